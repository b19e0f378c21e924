package transport

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// The partial file of a packet that is opened while it comes holds what its Station stores anyway, sealed. A Station that can
// make those bytes again (Sparing) has the file spared: what comes goes by in a ring in memory, and the line waits while that is full.
// When the packet does not come whole, or takes longer than was expected, or the Station does, it fills the hole that the file then
// has: it is a partial file as any other. Until then, a file that has been written to behind the hole has a name of its own, under
// which the next start removes it.

// spare is where bytes of a growing packet are that its file has not got. The fields are guarded by growing.mu.
type spare struct {
	ring   []byte
	from   int64         // the file ends here
	to     int64         // and goes on here, once something is written behind the hole; until then the packet's size
	late   bool          // nothing more goes into the ring
	filled bool          // there is no hole any more
	until  time.Time     // the latest that bytes go into the ring
	wanted bool          // room in the ring is waited for
	room   chan struct{} // there is some
}

const (
	// spareMost is how long the rest of a packet may take, as it seems, that has its file spared: a crash costs what came of it.
	spareMost = 3 * time.Second
	// The ring holds what was not read yet, and at least ringKeep bytes before: there are that many in the Station's buffers, read and
	// not yet stored.
	ringSize = 1 << 20
	ringKeep = ringSize / 2
	// ringRoom is what the line waits for when the ring is full, so that it does not wake up for each slice.
	ringRoom = ringKeep / 2
	// lateRoom is how long it waits for that at most.
	lateRoom = 250 * time.Millisecond
)

// errHole says that bytes of a partial file are lost.
var errHole = errors.New("the bytes before cannot be made again")

// Spare implements Sparing.
func (g *growing) Spare() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.may || g.sum != nil || g.spare != nil || g.ended != nil {
		return false
	}
	g.spare = &spare{ring: make([]byte, ringSize), from: g.size, to: g.size, until: time.Now().Add(syncEvery), room: make(chan struct{}, 1)}
	return true
}

// Late implements Sparing.
func (g *growing) Late() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.spare != nil && g.spare.late && !g.spare.filled
}

// holed reports whether the file lacks bytes.
func (g *growing) holed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.spare != nil && !g.spare.filled
}

// put takes the next bytes that come instead of the file; false: they belong into the file. It is for whoever fills the file.
func (g *growing) put(b []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.spare
	if s == nil || s.late {
		return false
	}
	s.from = min(s.from, g.off)
	g.awaitRoom(s, int64(len(b)))
	if s.late {
		return false
	}
	s.write(b, g.off)
	g.part.pass(len(b))
	g.off += int64(len(b))
	if g.off >= g.want {
		g.more.Signal()
	}
	return true
}

// awaitRoom waits until n bytes fit into the ring, or it is too late for them. mu is held, and let go meanwhile.
func (g *growing) awaitRoom(s *spare, n int64) {
	full := func(n int64) bool { return g.off+n-max(g.at-ringKeep, s.from) > ringSize }
	if full(n) {
		t := time.NewTimer(lateRoom)
		defer t.Stop()
		s.wanted = true
		for over := false; full(ringRoom) && g.ended == nil && !s.late && !over; {
			g.mu.Unlock()
			select {
			case <-s.room:
			case <-t.C:
				over = true
			}
			g.mu.Lock()
		}
		s.wanted = false
	}
	if full(n) || time.Now().After(s.until) {
		g.endSpare(s)
	}
}

// endSpare has what comes from now on go into the file. mu is held.
func (g *growing) endSpare(s *spare) {
	if !s.late {
		s.late, s.from, s.to = true, min(s.from, g.off), g.off
	}
}

// Refill implements Sparing.
func (g *growing) Refill(again func(w io.Writer, from int64) error) error {
	g.mu.Lock()
	if g.spare == nil || g.spare.filled {
		g.mu.Unlock()
		return nil
	}
	g.endSpare(g.spare)
	s := *g.spare
	g.mu.Unlock()
	w := &filler{g.part, s.from, s.to}
	err := again(w, s.from)
	if err == nil && w.at < s.to-ringSize {
		err = errHole
	}
	for b := make([]byte, maxSlice); err == nil && w.at < s.to; {
		_, err = w.Write(b[:s.read(b, w.at)])
	}
	if err = firstErr(err, g.part.mend(w.at, err == nil)); err != nil {
		return fmt.Errorf("fill partial packet: %w", mediumError(err))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spare.filled = true
	return nil
}

// read copies bytes at off out of the ring.
func (s *spare) read(b []byte, off int64) int {
	return copy(b[:min(int64(len(b)), s.to-off)], s.ring[off%ringSize:])
}

// write copies the bytes at off into the ring.
func (s *spare) write(b []byte, off int64) {
	for len(b) > 0 {
		n := copy(s.ring[off%ringSize:], b)
		b, off = b[n:], off+int64(n)
	}
}

// filler writes what the file lacks, from at to to, and drops what comes behind.
type filler struct {
	part   *partial
	at, to int64
}

// Write fills up to where the file goes on.
func (f *filler) Write(b []byte) (int, error) {
	n, err := f.part.f.WriteAt(b[:min(int64(len(b)), f.to-f.at)], f.at)
	f.at += int64(n)
	if err != nil {
		return n, err
	}
	return len(b), nil
}
