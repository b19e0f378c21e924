package bridge

import (
	"io"

	"mochila/internal/seal"
)

// readahead reads a source in a goroutine of its own, a few buffers ahead of its reader: what the source does to the bytes
// (decrypting them) and what the reader does with them (hashing and storing them) then happen at the same time.
type readahead struct {
	full chan piece
	free chan []byte
	stop chan struct{}
	now  []byte // what is left of the piece that is read
	buf  []byte // the buffer that it is in
	err  error
}

// piece is what one Read of the source returned.
type piece struct {
	b   []byte
	n   int
	err error
}

const (
	aheadBuffers = 3
	aheadSize    = seal.ChunkSize // the source decrypts so much at once
)

// readAhead begins to read r, until its end or Close.
func readAhead(r io.Reader) *readahead {
	a := &readahead{full: make(chan piece, aheadBuffers), free: make(chan []byte, aheadBuffers), stop: make(chan struct{})}
	for range aheadBuffers {
		a.free <- make([]byte, aheadSize)
	}
	go a.fill(r)
	return a
}

func (a *readahead) fill(r io.Reader) {
	defer close(a.full)
	for {
		var b []byte
		select {
		case <-a.stop:
			return
		case b = <-a.free:
		}
		select {
		case <-a.stop: // both were ready
			return
		default:
		}
		n, err := r.Read(b)
		a.full <- piece{b, n, err} // never waits: there are no more pieces than places
		if err != nil {
			return
		}
	}
}

// next returns what the next Read of the source returned; it is valid until the one after that.
func (a *readahead) next() ([]byte, error) {
	if a.buf != nil {
		a.free <- a.buf
		a.buf = nil
	}
	x, ok := <-a.full
	if !ok {
		return nil, io.ErrClosedPipe
	}
	a.buf = x.b
	return x.b[:x.n], x.err
}

// Read returns what the source returned, in the same order.
func (a *readahead) Read(p []byte) (int, error) {
	for len(a.now) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		a.now, a.err = a.next()
	}
	n := copy(p, a.now)
	a.now = a.now[n:]
	return n, nil
}

// Close returns when the source is not read any more: after the Read that is under way.
func (a *readahead) Close() {
	close(a.stop)
	for range a.full {
	}
}

// copyBytes is the unit in which large contents are stored.
const copyBytes = 64 << 10

// copyContent copies size bytes of r, or up to an error of it, to w. Large content goes in large pieces.
func copyContent(w io.Writer, r io.Reader, size int64) error {
	if size <= copyBytes {
		_, err := io.Copy(w, r)
		return err
	}
	for buf := make([]byte, copyBytes); ; {
		n, err := full{r}.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// full reads until the buffer is full.
type full struct{ r io.Reader }

func (f full) Read(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = f.r.Read(b[n:])
		n += m
	}
	return n, err
}
