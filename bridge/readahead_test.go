package bridge

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"mochila/transport/transporttest"
)

func TestReadAhead(t *testing.T) {
	broken := errors.New("broken")
	for _, size := range []int{0, 1, aheadSize - 1, aheadSize, 7*aheadSize + 5} {
		data := transporttest.Random(uint64(size), size)
		for name, source := range map[string]io.Reader{
			"whole":  bytes.NewReader(data),
			"ragged": iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(data))),
			"broken": io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)),
		} {
			a := readAhead(source)
			got, err := io.ReadAll(a)
			a.Close()
			if want := name == "broken"; !bytes.Equal(got, data) || errors.Is(err, broken) != want || err != nil && !want {
				t.Errorf("%s, %d bytes: got %d, %v", name, size, len(got), err)
			}
		}
	}
}

// Close waits for the Read that is under way, and nothing is read after it: whoever closes reads on from there.
func TestReadAheadIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		a := readAhead(r)
		go w.Write(make([]byte, 10))
		if _, err := io.ReadFull(a, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		closed := false
		go func() { a.Close(); closed = true }()
		synctest.Wait()
		if closed {
			t.Error("closed while the source is being read")
		}
		go w.Write([]byte("ab"))
		synctest.Wait()
		if !closed {
			t.Error("not closed after the source was read")
		}
		go w.Write([]byte("c"))
		b := make([]byte, 1)
		if _, err := io.ReadFull(r, b); err != nil || b[0] != 'c' {
			t.Errorf("read on: %q, %v", b, err)
		}
	})
}

// What is stored in pieces has no byte more or less, and an end that is too early stays an error.
func TestCopyContent(t *testing.T) {
	for _, size := range []int{0, 10, copyBytes, copyBytes + 1, 3*copyBytes - 1, smallBundle + 1} {
		data := transporttest.Random(uint64(size), size)
		var out bytes.Buffer
		if err := copyContent(&out, iotest.HalfReader(bytes.NewReader(data)), int64(size)); err != nil || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("%d bytes: got %d, %v", size, out.Len(), err)
		}
		out.Reset()
		cut := io.MultiReader(bytes.NewReader(data), iotest.ErrReader(io.ErrUnexpectedEOF))
		if err := copyContent(&out, cut, int64(size)+10); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes, cut: %v", size, err)
		}
		if size > 0 {
			if err := copyContent(brokenWriter{}, bytes.NewReader(data), int64(size)); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%d bytes, written to what is closed: %v", size, err)
			}
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestPulledIsClosed: whoever reads a packet may be told that nobody wants it any more by another goroutine.
func TestPulledIsClosed(t *testing.T) {
	piece := make([]byte, 1000)
	for i := range 1000 {
		p := pull(func(w io.Writer) error {
			for {
				if _, err := w.Write(piece); err != nil {
					return err
				}
			}
		})
		var reading sync.WaitGroup
		if i%10 > 0 {
			reading.Go(func() {
				for b := make([]byte, 300); ; {
					if _, err := p.Read(b); err != nil {
						return
					}
				}
			})
			// Another moment of the reading each time; each has to end well.
			time.Sleep(time.Duration(i) * 50 * time.Nanosecond)
		}
		p.Close()
		reading.Wait()
		if n, err := p.Read(piece); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("read behind the end: %d, %v", n, err)
		}
	}
}
