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
	stalled     = 5 * time.Second       // a port that takes nothing, beside the slack, of a connection past its time
	lastChance  = time.Second           // the same when the port is closed, or the connection is cut
	cutStays    = 2 * time.Second       // a connection that is cut, after END
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
	since    time.Time // when what the port has not taken yet was given to it; zero: there is nothing
	closed   bool      // nothing is given to the port any more

	gone    chan struct{} // closed with closed
	shut    chan struct{} // closed when the port is
	writing chan struct{} // holds a value while somebody writes
	free    time.Time     // when the line has sent what was written
	readers sync.WaitGroup
}

// newLine begins to listen to a port.
func newLine(port io.ReadWriteCloser, o Options, callee bool) *line {
	l := &line{o: o.withDefaults(), port: port, callee: callee, changed: make(chan struct{}), calls: make(chan *conn, 1), gone: make(chan struct{}), shut: make(chan struct{}), writing: make(chan struct{}, 1)}
	l.readers.Go(l.read)
	return l
}

// close ends everything. A port that takes nothing does not hold it up: what was given to it is thrown away, and if it holds the
// writer even then, the writer is left to it.
func (l *line) close() {
	l.mu.Lock()
	first := !l.closed
	if first {
		l.closed = true
		close(l.gone)
		l.notify()
	}
	l.mu.Unlock()
	if first {
		if !l.taken(lastChance) {
			if p, ok := l.port.(interface{ ResetOutputBuffer() error }); ok {
				p.ResetOutputBuffer()
			}
			l.taken(lastChance)
		}
		l.port.Close()
		close(l.shut)
	}
	<-l.shut
	l.readers.Wait()
	l.mu.Lock()
	c := l.conn
	l.mu.Unlock()
	if c != nil {
		c.fail(errGone)
		l.mu.Lock()
		c.limit = time.Now()
		l.mu.Unlock()
		l.wait(c, 0)
	}
}

// taken waits until the port has taken what was given to it, for so long; false: it has not.
func (l *line) taken(long time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for until := time.Now().Add(long); !l.since.IsZero() && time.Now().Before(until); {
		l.pause(until)
	}
	return l.since.IsZero()
}

// wait waits until a connection is over. False: it is past its limit, and the port has not taken anything for so long.
func (l *line) wait(c *conn, long time.Duration) bool {
	for cut := c.cut; ; {
		l.mu.Lock()
		since, limit := l.since, c.limit
		l.mu.Unlock()
		look := limit
		if past(limit) {
			if !since.IsZero() && time.Since(since) >= long {
				return false
			}
			look = time.Now().Add(time.Second)
		}
		timer := time.NewTimer(time.Until(look))
		select {
		case <-c.over:
			timer.Stop()
			return true
		case <-cut:
			timer.Stop()
			cut, long = nil, min(long, lastChance)
		case <-timer.C:
		}
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
	select {
	case l.writing <- struct{}{}:
	case <-l.gone:
		return errGone
	}
	defer func() { <-l.writing }()
	for rest := b; len(rest) > 0; {
		n, err := l.give(rest)
		if err != nil {
			return fmt.Errorf("write to %s: %w", l.o.Name, err)
		}
		rest = rest[n:]
	}
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(l.o.airtime(len(b)))
	timer := time.NewTimer(time.Until(l.free.Add(-early)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.gone:
	}
	return nil
}

// give gives bytes to the port, which may take some of them only (a signal came), or none for as long as it likes.
func (l *line) give(b []byte) (n int, err error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, errGone // its descriptor may be another file's by now
	}
	l.since = time.Now()
	l.mu.Unlock()
	n, err = l.port.Write(b)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Time{}
	if l.closed {
		l.notify()
	}
	if n < 1 && err == nil {
		err = io.ErrShortWrite
	}
	return n, err
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

// Cut takes the port along, too.
func (e *callersEnd) Cut() error {
	e.conn.Cut()
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
			x.answerLate(ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// answerLate tells a caller whose connection is gone.
func (x *Listener) answerLate(ctx context.Context) {
	l := x.l
	l.mu.Lock()
	id, due := l.reset, l.resets
	l.resets = false
	l.mu.Unlock()
	if !due {
		return
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		time.Sleep(l.o.Turnaround + l.o.airtime(4))
		f := frame{t: frameReset, conn: id}
		l.write(f.append([]byte{0})) // a courtesy
	}()
	select {
	case <-said:
	case <-ctx.Done(): // the port may not take it
	}
}

// Close ends it, and the connection that may be open.
func (x *Listener) Close() error {
	x.l.close()
	return nil
}
