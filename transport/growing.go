package transport

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"mochila/internal/envelope"
)

// growing reads a packet whose bytes are still coming into its partial file. It never lets its reader have all of them
// unless all came and, if the reader has not vouched for that, they hash to the packet's name: the last byte is held back until then.
// When the packet does not come whole, reading fails instead. Whoever fills the file is never kept waiting by the reader, unless the
// file is spared (spared.go).
type growing struct {
	part *partial
	id   ID
	size int64
	may  bool // the file may be spared

	at  int64     // read so far; the reader's own, which changes it with mu held
	sum hash.Hash // over what was read; nil: the reader has vouched

	mu    sync.Mutex
	more  sync.Cond
	off   int64  // bytes there
	want  int64  // the reader sleeps until so many are
	ended error  // nil: more will come; io.EOF: all came
	bad   error  // found by the reader
	spare *spare // where bytes are that the file has not got; nil: it has all
}

var (
	// errOtherBytes: what came does not hash to the name it came under.
	errOtherBytes = fmt.Errorf("bytes do not match the packet's name: %w", ErrIncomplete)
	// errCutShort: the contact ended before the packet did.
	errCutShort = fmt.Errorf("contact was cut: %w", ErrIncomplete)
	// errFileCut: somebody else has shortened the partial file.
	errFileCut = fmt.Errorf("partial packet is shorter than what came: %w", ErrIncomplete)
	// errCancelled: the neighbour took its offer back.
	errCancelled = fmt.Errorf("neighbour has cancelled the packet: %w", ErrIncomplete)
)

func newGrowing(part *partial) *growing {
	g := &growing{part: part, id: part.id, size: part.size, off: part.off, sum: envelope.NewSum()}
	g.more.L = &g.mu
	return g
}

// ID is the packet's name (Named).
func (g *growing) ID() ID { return g.id }

// Vouch implements Vouched, for the goroutine that reads.
func (g *growing) Vouch() { g.sum = nil }

// Verify implements Vouched, for the goroutine that reads.
func (g *growing) Verify(ctx context.Context) error {
	if _, err := io.Copy(io.Discard, g); err != nil || g.sum != nil {
		return err
	}
	whole, err := false, error(nil)
	if !g.holed() {
		whole, err = hashesTo(ctx, g.part.f, g.size, g.id)
	}
	if err == nil && !whole {
		err = errOtherBytes
	}
	if err != nil {
		g.spoil(err)
	}
	return err
}

// spoil has every later Read fail.
func (g *growing) spoil(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bad = err
}

// grow says that off bytes are there now.
func (g *growing) grow(off int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.off = off
	if off >= g.want {
		g.more.Signal()
	}
}

// end says that no more will come: io.EOF when all is there. Only the first call counts.
func (g *growing) end(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended == nil {
		g.ended = err
		g.more.Signal()
	}
}

// failure tells why the packet is not to be had whole, as far as that is known; nil: nothing is wrong with it.
func (g *growing) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bad == nil && g.ended != nil && g.ended != io.EOF {
		return g.ended
	}
	return g.bad
}

// Read waits until it can fill b, or the packet ends. One goroutine may use it.
func (g *growing) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := g.wait(len(b))
	if err != nil {
		return 0, err
	}
	if err = g.fetch(b[:n]); err == nil && g.sum != nil {
		g.sum.Write(b[:n])
		if g.at+int64(n) == g.size && ID(g.sum.Sum(nil)) != g.id {
			err = errOtherBytes
		}
	}
	if err != nil {
		clear(b[:n])
		g.spoil(err)
		return 0, err
	}
	g.advance(int64(n))
	return n, nil
}

// fetch fills b with the bytes at g.at, which are there.
func (g *growing) fetch(b []byte) error {
	g.mu.Lock()
	var s spare
	if g.spare != nil {
		s = *g.spare
	}
	g.mu.Unlock()
	for at := g.at; len(b) > 0; {
		n := len(b)
		switch {
		case s.ring != nil && at >= s.from && at < s.to:
			n = s.read(b, at)
		case s.ring != nil && at < s.from:
			n = int(min(int64(n), s.from-at))
			fallthrough
		default:
			if k, err := g.part.f.ReadAt(b[:n], at); k < n {
				if errors.Is(err, io.EOF) {
					return errFileCut
				}
				return fmt.Errorf("read partial packet: %w", err)
			}
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// advance says that n bytes were read.
func (g *growing) advance(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at += n
	if s := g.spare; s != nil && s.wanted && g.off+ringRoom-max(g.at-ringKeep, s.from) <= ringSize {
		select {
		case s.room <- struct{}{}:
		default:
		}
	}
}

// wait returns how many of the next most bytes may be read.
func (g *growing) wait(most int) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bad != nil {
		return 0, g.bad
	}
	g.want = max(min(g.at+int64(most), g.size-1), g.at+1)
	for g.ended == nil && (g.off < g.want || g.want == g.size) {
		g.more.Wait()
	}
	switch {
	case g.ended != nil && g.ended != io.EOF:
		return 0, g.ended
	case g.at == g.size:
		return 0, io.EOF
	case g.ended == nil:
		return int(g.want - g.at), nil
	}
	return int(min(int64(most), g.size-g.at)), nil
}
