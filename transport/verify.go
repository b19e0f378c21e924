package transport

import (
	"context"
	"fmt"
	"hash"
	"io"

	"mochila/internal/envelope"
)

// verifier passes a packet's bytes through and never lets a reader have all of them unless there are exactly size
// bytes and they hash to id. The last bytes are held back until the hash is known, so that even a caller that reads
// no further than size bytes sees the error.
type verifier struct {
	ctx  context.Context
	r    io.Reader
	id   ID
	sum  hash.Hash
	left int64
	bad  error // what a wrong hash or a short file means here
	err  error // sticky
	read int64
}

func newVerifier(ctx context.Context, r io.Reader, id ID, size int64, bad error) *verifier {
	return &verifier{ctx: ctx, r: r, id: id, sum: envelope.NewSum(), left: size, bad: bad}
}

func (v *verifier) Read(b []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if err := v.ctx.Err(); err != nil {
		v.err = err
		return 0, err
	}
	if v.left == 0 {
		v.err = io.EOF
		return 0, io.EOF
	}
	if int64(len(b)) > v.left {
		b = b[:v.left]
	}
	n, err := v.r.Read(b)
	v.sum.Write(b[:n])
	v.left -= int64(n)
	v.read += int64(n)
	switch {
	case v.left == 0:
		if ID(v.sum.Sum(nil)) != v.id {
			v.err = fmt.Errorf("packet %s: bytes do not match its name: %w", v.id, v.bad)
			clear(b[:n])
			return 0, v.err
		}
		return n, nil
	case err == io.EOF:
		v.err = fmt.Errorf("packet %s: %d bytes are missing: %w", v.id, v.left, v.bad)
		return n, v.err
	case err != nil:
		v.err = err
	}
	return n, v.err
}

// ID is the packet's name (Named).
func (v *verifier) ID() ID { return v.id }

// errDamaged says that a packet of this node's own does not have the bytes its ID promises.
var errDamaged = fmt.Errorf("own packet is damaged")

// OpenWhole opens all of an outgoing packet; the reader fails if the bytes are not those that the ID names.
func OpenWhole(ctx context.Context, p *Packet) (io.ReadCloser, error) { return openWhole(ctx, p) }

// Verified reads size bytes of r that must hash to id: a reader that would have them all otherwise meets ErrIncomplete instead.
func Verified(ctx context.Context, r io.Reader, id ID, size int64) io.Reader {
	return newVerifier(ctx, r, id, size, ErrIncomplete)
}

// openWhole opens all of an outgoing packet; the reader fails if the bytes are not those that the ID names.
func openWhole(ctx context.Context, p *Packet) (io.ReadCloser, error) {
	if p.Size <= 0 {
		return nil, fmt.Errorf("packet %s: size %d: %w", p.ID, p.Size, errDamaged)
	}
	r, err := p.Open(0)
	if err != nil {
		return nil, fmt.Errorf("open packet %s: %w", p.ID, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{newVerifier(ctx, r, p.ID, p.Size, errDamaged), r}, nil
}
