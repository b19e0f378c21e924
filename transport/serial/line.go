package serial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"mochila/transport"
)

// Options describe a line. The zero value of each means its default.
type Options struct {
	Baud       int           // bits per second; 9600
	Bits       int           // of a character, start, parity and stop included; 10
	Full       bool          // both directions at once; else one at a time
	Turnaround time.Duration // how long the line must be quiet before the other direction works
	Name       string        // for messages
}

func (o Options) withDefaults() Options {
	if o.Baud <= 0 {
		o.Baud = 9600
	}
	if o.Bits <= 0 {
		o.Bits = 10
	}
	if o.Name == "" {
		o.Name = "the line"
	}
	return o
}

// airtime is how long n bytes take.
func (o *Options) airtime(n int) time.Duration {
	return time.Duration(n) * time.Duration(o.Bits) * time.Second / time.Duration(o.Baud)
}

const (
	firstAnswer = 3 * time.Second // until the first byte after TURN, beside two turnarounds
	midBurst    = time.Second     // without a byte in the middle of a burst
	calleeHolds = 2 * time.Second // with the turn and nothing to say
	callerHolds = time.Second     // the same, doubling up to
	holdsLong   = 8 * time.Second
	unanswered  = 45 * time.Second // a caller hears nothing at all, beside eight frames
	deaf        = 90 * time.Second // nothing good is heard any more, beside the same
	callerStays = 20 * time.Second // after END, without an acknowledgement, beside four turnarounds, some frames, and what is to be sent
	calleeStays = time.Minute      // the same; another call ends it
	ackPause    = 100 * time.Millisecond
	early       = 20 * time.Millisecond // what is written ahead of the line
)

// slack is what slow lines get on top of long times.
func (o *Options) slack() time.Duration { return o.airtime(8 * maxWire) }

// line is one end of a line: a port, and the connection on it.
type line struct {
	o      Options
	port   io.ReadWriteCloser
	callee bool

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when anything below changes
	conn     *conn
	calls    chan *conn
	recent   []uint16
	reset    uint16 // a connection that is to be told that it is gone
	resets   bool
	lastByte time.Time // when something was heard last
	noise    int       // bytes that were in no good frame
	broken   error     // of the port

	writing chan struct{} // holds a value while somebody writes
	free    time.Time     // when the line has sent what was written
	readers sync.WaitGroup
}

// newLine begins to listen to a port.
func newLine(port io.ReadWriteCloser, o Options, callee bool) *line {
	l := &line{o: o.withDefaults(), port: port, callee: callee, changed: make(chan struct{}), calls: make(chan *conn, 1), writing: make(chan struct{}, 1)}
	l.readers.Go(l.read)
	return l
}

// close ends everything.
func (l *line) close() {
	l.port.Close()
	l.readers.Wait()
	l.mu.Lock()
	c := l.conn
	l.mu.Unlock()
	if c != nil {
		c.fail(errGone)
		<-c.over
	}
}

var errGone = errors.New("the line was closed")

// notify wakes everybody who waits. mu is held.
func (l *line) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// pause releases mu until something changes, or t (if set) has come.
func (l *line) pause(t time.Time) {
	changed := l.changed
	l.mu.Unlock()
	defer l.mu.Lock()
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

// read takes frames from the port until it is closed.
func (l *line) read() {
	buf := make([]byte, 512)
	var frame []byte
	for {
		n, err := l.port.Read(buf)
		l.mu.Lock()
		if n > 0 {
			l.lastByte = time.Now()
		}
		for _, b := range buf[:n] {
			switch {
			case b != 0:
				if frame = append(frame, b); len(frame) > maxWire {
					l.noise += len(frame) // no frame is that long
					frame = frame[:0]
				}
			case len(frame) > 0:
				l.take(frame)
				frame = frame[:0]
			}
		}
		if n > 0 {
			l.notify()
		}
		if err != nil {
			l.broken = fmt.Errorf("read from %s: %w", l.o.Name, err)
			c := l.conn
			l.notify()
			l.mu.Unlock()
			if c != nil {
				c.fail(l.broken)
			}
			return
		}
		l.mu.Unlock()
	}
}

// take handles what stood between two zero bytes. mu is held.
func (l *line) take(b []byte) {
	f, err := parseFrame(b)
	if err != nil {
		l.noise += len(b)
		return
	}
	if f.caller != l.callee {
		return // an echo of this side's own
	}
	c := l.conn
	if c == nil || c.id != f.conn || c.isOver() {
		if !l.callee || f.t == frameReset {
			return
		}
		for _, id := range l.recent {
			if id == f.conn {
				if f.t == frameTurn || f.t == frameMore || l.o.Full {
					l.reset, l.resets = id, true
				}
				return
			}
		}
		if c != nil {
			c.end(fmt.Errorf("the caller on %s has begun another connection", l.o.Name))
		}
		c = newConn(l, f.conn)
		l.conn = c
		select {
		case <-l.calls: // nobody took it
		default:
		}
		l.calls <- c
	}
	c.take(&f)
}

// forget ends the time of a connection. mu is held.
func (l *line) forget(c *conn) {
	if l.callee {
		l.recent = append(l.recent, c.id)
		if len(l.recent) > 16 {
			l.recent = l.recent[1:]
		}
	}
}

// write sends bytes at the pace of the line: it returns when they have almost left.
func (l *line) write(b []byte) error {
	l.writing <- struct{}{}
	defer func() { <-l.writing }()
	if _, err := l.port.Write(b); err != nil {
		return fmt.Errorf("write to %s: %w", l.o.Name, err)
	}
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(l.o.airtime(len(b)))
	time.Sleep(time.Until(l.free.Add(-early)))
	return nil
}

// Call begins a connection on an open port. Closing it closes the port.
func Call(port io.ReadWriteCloser, o Options) transport.Stream {
	l := newLine(port, o, false)
	c := newConn(l, uint16(rand.Uint32()))
	c.turn = true
	l.mu.Lock()
	l.conn = c
	l.mu.Unlock()
	c.start()
	return &callersEnd{c}
}

// callersEnd takes the port along when it is closed.
type callersEnd struct{ *conn }

func (e *callersEnd) Close() error {
	e.conn.Close()
	e.l.close()
	return nil
}

// Listener takes calls on a line, one after the other.
type Listener struct{ l *line }

// Listen listens on an open port, until Close.
func Listen(port io.ReadWriteCloser, o Options) *Listener { return &Listener{newLine(port, o, true)} }

// Accept waits for a call. The port stays open when the stream is closed.
func (x *Listener) Accept(ctx context.Context) (transport.Stream, error) {
	l := x.l
	for {
		l.mu.Lock()
		broken, changed := l.broken, l.changed
		l.mu.Unlock()
		if broken != nil {
			return nil, broken
		}
		select {
		case c := <-l.calls:
			c.start()
			return c, nil
		case <-changed:
			x.answerLate()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// answerLate tells a caller whose connection is gone.
func (x *Listener) answerLate() {
	l := x.l
	l.mu.Lock()
	id, due := l.reset, l.resets
	l.resets = false
	l.mu.Unlock()
	if due {
		time.Sleep(l.o.Turnaround + l.o.airtime(4))
		f := frame{t: frameReset, conn: id}
		l.write(f.append([]byte{0})) // a courtesy
	}
}

// Close ends it, and the connection that may be open.
func (x *Listener) Close() error {
	x.l.close()
	return nil
}
