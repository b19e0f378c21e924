package bundle

import (
	"fmt"
	"hash"
	"io"

	"mochila/internal/envelope"
)

// verifier reads the content of one envelope: exactly size bytes, and its end is io.EOF only if the sum is right.
type verifier struct {
	r    io.Reader
	want [32]byte
	size int64
	left int64
	sum  hash.Hash // nil: not asked for
}

func newVerifier(r io.Reader, e *envelope.Envelope) *verifier {
	return &verifier{r: r, want: e.Sum, size: e.Size, left: e.Size, sum: envelope.NewSum()}
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.left == 0 {
		if err := v.check(); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	if int64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.r.Read(p)
	if v.sum != nil {
		v.sum.Write(p[:n])
	}
	v.left -= int64(n)
	if err == io.EOF {
		err = nil
		if v.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// check compares the sum once everything is read. An envelope without content may leave its sum out.
func (v *verifier) check() error {
	if v.sum == nil || v.size == 0 && v.want == [32]byte{} {
		return nil
	}
	if got := [32]byte(v.sum.Sum(nil)); got != v.want {
		return fmt.Errorf("%w: its hash is %x, not %x", ErrSum, got[:8], v.want[:8])
	}
	return nil
}

// finish checks the sum, and that the source holds nothing more.
func (v *verifier) finish() error {
	if err := v.check(); err != nil {
		return err
	}
	var one [1]byte
	for range 100 {
		n, err := v.r.Read(one[:])
		switch {
		case n > 0:
			return fmt.Errorf("%w: it is longer than %d bytes", ErrSum, v.size)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}
