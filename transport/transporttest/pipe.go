package transporttest

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"mochila/transport"
)

// ErrBroken is what both ends of a Pipe get after it was cut.
var ErrBroken = errors.New("simulated line is broken")

// Line describes one direction of a Pipe. The zero value is a perfect line.
type Line struct {
	BitRate int64         // bits per second; 0: unlimited
	Latency time.Duration // from sender to receiver
	Buffer  int           // bytes that a write may be ahead of the line; 0: 4 KiB
	Cut     int64         // after so many delivered bytes the whole pipe breaks; 0: never; below 0: at the first
	Hang    bool          // at Cut, nothing more is delivered and nobody is told
	Flip    int64         // the lowest bit of this byte (the first is 1) arrives inverted; 0: none
}

// Pipe returns the two ends of a simulated line; ab is the direction from a to b. Writes block as they do on a
// modem: until all but Buffer bytes have left. Both ends honour deadlines, and report bytes written before one.
func Pipe(ab, ba Line) (a, b transport.Stream) {
	s := &wire{changed: make(chan struct{})}
	x, y := newLane(ab), newLane(ba)
	return &end{w: s, in: y, out: x}, &end{w: s, in: x, out: y}
}

// wire is the state shared by both ends.
type wire struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced when anything below changes
	broken  bool
}

// lane is one direction; wire.mu guards it.
type lane struct {
	Line
	chunks    []chunk
	queued    int       // bytes in chunks
	free      time.Time // when the line has sent what was written
	delivered int64
	shut      bool // the writer has closed
	deaf      bool // the reader has closed
}

type chunk struct {
	at time.Time
	b  []byte
}

const (
	grain    = 1024     // bytes that arrive together
	inKernel = 64 << 10 // bytes that wait for a slow reader before the writer blocks
)

func newLane(l Line) *lane {
	if l.Buffer <= 0 {
		l.Buffer = 4 << 10
	}
	return &lane{Line: l}
}

type end struct {
	w             *wire
	in, out       *lane
	rDead, wDead  time.Time
	closed        bool
	readM, writeM sync.Mutex // one Read, one Write at a time
}

func (w *wire) notify() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// pause releases mu until something changes or t (if set) has come.
func (w *wire) pause(t time.Time) {
	changed := w.changed
	w.mu.Unlock()
	defer w.mu.Lock()
	if t.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func past(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

func (e *end) Read(p []byte) (int, error) {
	e.readM.Lock()
	defer e.readM.Unlock()
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	l := e.in
	for {
		hung := l.Hang && l.Cut != 0 && l.delivered >= max(l.Cut, 0)
		switch {
		case e.closed:
			return 0, os.ErrClosed
		case e.w.broken:
			return 0, ErrBroken
		case past(e.rDead):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case hung:
			e.w.pause(e.rDead)
			continue
		case len(l.chunks) > 0 && !time.Now().Before(l.chunks[0].at):
			return e.take(p)
		case len(l.chunks) == 0 && l.shut:
			return 0, io.EOF
		}
		var due time.Time
		if len(l.chunks) > 0 {
			due = l.chunks[0].at
		}
		e.w.pause(earlier(due, e.rDead))
	}
}

// take delivers bytes of the first chunk. wire.mu is held.
func (e *end) take(p []byte) (int, error) {
	l := e.in
	c := &l.chunks[0]
	n := min(len(p), len(c.b))
	if l.Cut != 0 {
		n = int(min(int64(n), max(l.Cut, 0)-l.delivered))
		if n == 0 {
			e.w.broken = true
			e.w.notify()
			return 0, ErrBroken
		}
	}
	copy(p, c.b[:n])
	if at := l.Flip - 1 - l.delivered; l.Flip > 0 && at >= 0 && at < int64(n) {
		p[at] ^= 1
	}
	l.delivered += int64(n)
	l.queued -= n
	if c.b = c.b[n:]; len(c.b) == 0 {
		l.chunks = l.chunks[1:]
	}
	if l.Cut > 0 && l.delivered >= l.Cut && !l.Hang {
		e.w.broken = true
	}
	e.w.notify()
	return n, nil
}

func (e *end) Write(p []byte) (int, error) {
	e.writeM.Lock()
	defer e.writeM.Unlock()
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	l := e.out
	total := 0
	for {
		ahead := l.free.Add(-l.time(l.Buffer))
		switch {
		case e.closed:
			return total, os.ErrClosed
		case e.w.broken || l.deaf:
			return total, ErrBroken
		case total == len(p):
			return total, nil
		case past(e.wDead):
			return total, os.ErrDeadlineExceeded
		case time.Now().Before(ahead):
			e.w.pause(earlier(ahead, e.wDead))
			continue
		case l.queued >= inKernel+int(l.Latency.Seconds()*float64(l.BitRate)/8):
			e.w.pause(e.wDead)
			continue
		}
		n := min(grain, len(p)-total)
		now := time.Now()
		if l.free.Before(now) {
			l.free = now
		}
		l.free = l.free.Add(l.time(n))
		l.chunks = append(l.chunks, chunk{l.free.Add(l.Latency), append([]byte(nil), p[total:total+n]...)})
		l.queued += n
		total += n
		e.w.notify()
	}
}

// time is how long the line takes to send n bytes.
func (l *lane) time(n int) time.Duration {
	if l.BitRate <= 0 {
		return 0
	}
	return time.Duration(float64(n) * 8 / float64(l.BitRate) * float64(time.Second))
}

func (e *end) Close() error {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.closed, e.out.shut, e.in.deaf = true, true, true
	e.w.notify()
	return nil
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.rDead = t
	e.w.notify()
	return nil
}

func (e *end) SetWriteDeadline(t time.Time) error {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.wDead = t
	e.w.notify()
	return nil
}

// DialFunc makes a Dialer of a function.
type DialFunc func() (transport.Stream, error)

// Dial implements transport.Dialer.
func (f DialFunc) Dial(ctx context.Context) (transport.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return f()
}
