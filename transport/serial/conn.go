package serial

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// conn is one connection. The state is guarded by the line's mutex; one goroutine sends.
type conn struct {
	l    *line
	id   uint16
	over chan struct{} // closed when the goroutine has ended
	once sync.Once
	cut  chan struct{} // closed by Cut
	cuts sync.Once

	out   outgoing
	in    incoming
	err   error     // what ended it
	shut  bool      // the program has closed it
	limit time.Time // after which a closed one waits for nothing
	rDead time.Time
	wDead time.Time

	heard   time.Time // when the last good frame came
	answers int       // good frames

	// half duplex
	turn   bool
	short  bool // the other side has more to say
	burst  int  // or, in full duplex, frames
	misses int  // TURNs in a row without an answer
	idle   int  // turns in a row in which nothing was said
	passed time.Time

	// full duplex
	ackAt time.Time // when an ACK is due; zero: none is
	unack int       // frames since the last
	moved time.Time // when an acknowledgement brought something new
	rto   time.Duration

	readM, writeM sync.Mutex
}

func newConn(l *line, id uint16) *conn {
	now := time.Now()
	return &conn{l: l, id: id, over: make(chan struct{}), cut: make(chan struct{}), heard: now, moved: now, rto: 3 * time.Second}
}

// start begins to send.
func (c *conn) start() {
	c.once.Do(func() {
		go func() {
			defer close(c.over)
			talk := c.half
			if c.l.o.Full {
				talk = c.full
			}
			if err := talk(); err != nil {
				c.fail(err)
			}
			c.l.mu.Lock()
			defer c.l.mu.Unlock()
			c.l.forget(c)
			c.l.notify()
		}()
	})
}

func (c *conn) isOver() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// fail ends the connection.
func (c *conn) fail(err error) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.end(err)
	c.once.Do(func() { close(c.over) }) // nobody had started it
}

// end is fail with mu held.
func (c *conn) end(err error) {
	if c.err == nil {
		c.err = err
	}
	c.l.notify()
}

// take handles a good frame. mu is held.
func (c *conn) take(f *frame) {
	now := time.Now()
	c.heard = now
	c.answers++
	switch f.t {
	case frameData:
		news := c.in.take(f.off, f.data)
		c.unack++
		c.owe(now, !news || len(c.in.held) > 0 || c.unack >= 4)
	case frameEnd:
		c.in.finish(f.off)
		c.owe(now, true)
	case frameAck, frameTurn, frameMore:
		inOrder := c.l.o.Full
		if c.out.acknowledge(f, c.burst, inOrder) {
			if inOrder && c.answers > 1 {
				c.rto = min(max(2*now.Sub(c.moved), time.Second/2), 3*time.Second) + c.l.o.airtime(4*maxWire)
			}
			c.moved = now
		}
		if f.t != frameAck && !c.l.o.Full {
			c.turn, c.short, c.misses = true, f.t == frameMore, 0
		}
	case frameReset:
		if !c.l.callee {
			c.end(fmt.Errorf("%s: the other side has ended the connection", c.l.o.Name))
		}
	}
}

// owe makes an ACK due.
func (c *conn) owe(now time.Time, soon bool) {
	at := now.Add(ackPause)
	if soon {
		at = now
	}
	if c.ackAt.IsZero() || at.Before(c.ackAt) {
		c.ackAt = at
	}
}

// finished reports whether nothing is left to be done: END is acknowledged, and so is the other side's, if it has come. mu is held.
func (c *conn) finished() bool {
	return c.err != nil || c.shut && (c.out.idle() || !time.Now().Before(c.limit))
}

// dead is the error of a line on which nothing good is heard; nil while there is hope. mu is held.
func (c *conn) dead(now time.Time) error {
	switch {
	case c.answers == 0 && !c.l.callee && now.Sub(c.heard) > unanswered+c.l.o.slack():
		if c.l.noise > 0 {
			return fmt.Errorf("nobody answers on %s: %d bytes of noise were heard, and no frame (is the speed right, and the parity?)", c.l.o.Name, c.l.noise)
		}
		return fmt.Errorf("nobody answers on %s: nothing was heard (does the other side listen?)", c.l.o.Name)
	case now.Sub(c.heard) > deaf+c.l.o.slack():
		return fmt.Errorf("nothing good was heard on %s for %v", c.l.o.Name, now.Sub(c.heard).Round(time.Second))
	}
	return nil
}

// account is an ACK, TURN or MORE. mu is held.
func (c *conn) account(t frameType) *frame {
	f := &frame{t: t, caller: !c.l.callee, conn: c.id}
	f.off, f.runs = c.in.account()
	c.ackAt, c.unack = time.Time{}, 0
	return f
}

// next is the next frame of data, or END; nil when there is none now. mu is held.
func (c *conn) next() *frame {
	f := &frame{t: frameData, caller: !c.l.callee, conn: c.id}
	if f.off, f.data = c.out.take(c.burst); f.data != nil {
		c.l.notify() // there is room for a Write
		return f
	}
	if o := &c.out; o.ended && o.endOut == 0 && !o.endAck && o.unsent() == 0 {
		o.endOut = max(c.burst, 1)
		return &frame{t: frameEnd, caller: f.caller, conn: c.id, off: o.next}
	}
	return nil
}

// half talks on a line that carries one direction at a time.
func (c *conn) half() error {
	l := c.l
	gather := min(max(l.o.Turnaround/5, 20*time.Millisecond), 200*time.Millisecond)
	long := min(max(10*l.o.Turnaround, 5*time.Second), 20*time.Second)
	for {
		more, err := c.await()
		if err != nil {
			return err
		}
		if !more {
			return c.farewell()
		}
		if err := c.sendBurst(gather, long); err != nil {
			return err
		}
	}
}

// farewell acknowledges the end of the other side, whose own connection then ends, too.
func (c *conn) farewell() error {
	l := c.l
	l.mu.Lock()
	due, quiet := c.turn && c.err == nil && c.in.done && !c.ackAt.IsZero(), l.lastByte.Add(l.o.Turnaround+l.o.airtime(2))
	wire := c.account(frameAck).append([]byte{0})
	l.mu.Unlock()
	if !due {
		return nil
	}
	time.Sleep(time.Until(quiet))
	return l.write(wire)
}

// await waits for the turn, and for something to say with it; false: the connection is over.
func (c *conn) await() (bool, error) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for !c.turn {
		now := time.Now()
		if c.finished() {
			return false, nil
		}
		if err := c.dead(now); err != nil {
			return false, err
		}
		back := c.heard.Add(deaf + l.o.slack() + 1)
		if !l.callee {
			// Nothing since TURN, or nothing more of a burst: TURN was lost.
			back = c.passed.Add((firstAnswer + 2*l.o.Turnaround) << min(c.misses, 2))
			if l.lastByte.After(c.passed) {
				back = l.lastByte.Add(midBurst + l.o.airtime(64))
			}
			if !now.Before(back) {
				c.turn = true
				c.misses++
				break
			}
		} else if c.shut {
			back = c.limit
		}
		l.pause(back)
	}
	// Whoever has the turn and nothing to say waits for something, but not for long.
	hold := calleeHolds
	switch {
	case c.misses > 0 || c.short:
		hold = 0
	case !l.callee:
		hold = min(callerHolds<<min(c.idle, 3), holdsLong)
	}
	for until := time.Now().Add(hold); !c.out.pending() && time.Now().Before(until); {
		if c.finished() {
			break
		}
		l.pause(until)
	}
	if c.err != nil {
		return false, nil
	}
	for !l.lastByte.IsZero() && c.err == nil {
		quiet := l.lastByte.Add(l.o.Turnaround + l.o.airtime(2))
		if !time.Now().Before(quiet) {
			break
		}
		l.pause(quiet)
	}
	return true, nil
}

// sendBurst says all that there is, within its time, and passes the turn. A connection that is over says so much.
func (c *conn) sendBurst(gather, long time.Duration) error {
	l := c.l
	l.mu.Lock()
	c.burst++
	said := 0
	lossy := c.out.size > 0 && c.out.size < maxData/2
	l.mu.Unlock()
	start := time.Now()
	lead := []byte{0}
	for {
		l.mu.Lock()
		if time.Since(start) > long || c.isCut() && past(c.limit) {
			l.mu.Unlock()
			break
		}
		f := c.next()
		if f == nil && said > 0 {
			// What the program says while the line is busy goes along.
			until := time.Now().Add(gather)
			for !c.out.pending() && time.Now().Before(until) && c.err == nil && !c.out.ended {
				l.pause(until)
			}
			f = c.next()
		}
		var wire []byte
		if f != nil {
			wire = f.append(lead)
		}
		l.mu.Unlock()
		if f == nil {
			break
		}
		said++
		if err := l.write(wire); err != nil {
			return err
		}
		lead = nil
	}
	l.mu.Lock()
	t := frameTurn
	if c.out.pending() || c.out.unsent() > 0 {
		t = frameMore
	}
	wire := c.account(t).append(lead)
	if lossy {
		wire = append(wire, wire...)
	}
	if c.idle++; said > 0 {
		c.idle = 0
	}
	c.turn = false
	l.mu.Unlock()
	if err := l.write(wire); err != nil {
		return err
	}
	l.mu.Lock()
	c.passed = time.Now().Add(early)
	l.mu.Unlock()
	return nil
}

// full talks on a line that carries both directions at once.
func (c *conn) full() error {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	lead := []byte{0}
	for {
		now := time.Now()
		if c.finished() && (c.err != nil || c.ackAt.IsZero()) {
			return nil
		}
		if err := c.dead(now); err != nil {
			return err
		}
		var f *frame
		if !c.ackAt.IsZero() && !now.Before(c.ackAt) {
			f = c.account(frameAck)
		} else {
			c.burst++
			if f = c.next(); f != nil && len(c.out.flight) <= 1 && c.out.acked == f.off {
				c.moved = now // the clock of an answer begins
			}
		}
		if f == nil {
			until := c.heard.Add(deaf + l.o.slack() + 1)
			for _, t := range []time.Time{c.ackAt, c.timeout()} {
				if !t.IsZero() && t.Before(until) {
					until = t
				}
			}
			if c.answers == 0 && !l.callee {
				until = minTime(until, c.heard.Add(unanswered+l.o.slack()+1))
			}
			if c.shut {
				until = minTime(until, c.limit)
			}
			if t := c.timeout(); !t.IsZero() && !now.Before(t) {
				c.again(now)
				continue
			}
			l.pause(until)
			continue
		}
		wire := f.append(lead)
		lead = nil
		l.mu.Unlock()
		err := l.write(wire)
		l.mu.Lock()
		if err != nil {
			return err
		}
	}
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// timeout is when what is in flight is taken for lost; zero when nothing is. mu is held.
func (c *conn) timeout() time.Time {
	if len(c.out.flight) == 0 && (c.out.endOut == 0 || c.out.endAck) {
		return time.Time{}
	}
	return c.moved.Add(c.rto)
}

// again makes the oldest in flight lost, or END.
func (c *conn) again(now time.Time) {
	c.moved = now
	c.rto = min(2*c.rto, 15*time.Second)
	for i := range c.out.flight {
		if s := &c.out.flight[i]; s.burst >= 0 {
			s.lost = true
			c.out.judge(true)
			return
		}
	}
	c.out.endOut = 0
}

// Read implements transport.Stream.
func (c *conn) Read(p []byte) (int, error) {
	c.readM.Lock()
	defer c.readM.Unlock()
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	for {
		switch {
		case c.shut:
			return 0, os.ErrClosed
		case len(c.in.ready) > 0 && len(p) > 0:
			n := copy(p, c.in.ready)
			c.in.ready = c.in.ready[n:]
			return n, nil
		case c.in.done:
			return 0, io.EOF
		case c.err != nil:
			return 0, c.err
		case len(p) == 0:
			return 0, nil
		case past(c.rDead):
			return 0, os.ErrDeadlineExceeded
		}
		c.l.pause(c.rDead)
	}
}

// ahead is how many bytes a program may be ahead of the line: some two seconds.
func (c *conn) ahead() int { return max(1024, min(c.l.o.Baud/c.l.o.Bits*2, window/2)) }

// Write implements transport.Stream. It returns when all but a second or two of it has left.
func (c *conn) Write(p []byte) (int, error) {
	c.writeM.Lock()
	defer c.writeM.Unlock()
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	total := 0
	for {
		switch {
		case c.shut:
			return total, os.ErrClosed
		case c.err != nil:
			return total, c.err
		case total == len(p):
			return total, nil
		}
		if n := min(c.ahead()-c.out.unsent(), len(p)-total); n > 0 {
			c.out.buf = append(c.out.buf, p[total:total+n]...)
			total += n
			c.l.notify()
			continue
		}
		if past(c.wDead) {
			return total, os.ErrDeadlineExceeded
		}
		c.l.pause(c.wDead)
	}
}

func past(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// Close ends the stream after what was written, and waits until the other side has all of it, but not for long. A port that takes
// nothing even then is closed.
func (c *conn) Close() error {
	c.l.mu.Lock()
	if !c.shut {
		c.shut, c.out.ended = true, true
		stays := callerStays
		if c.l.callee {
			stays = calleeStays
		}
		c.limit = time.Now().Add(stays + 4*c.l.o.Turnaround + c.l.o.slack() + 2*c.l.o.airtime(len(c.out.buf)))
		c.l.notify()
	}
	c.l.mu.Unlock()
	c.once.Do(func() { close(c.over) })
	if !c.l.wait(c, stalled+c.l.o.slack()) {
		c.fail(fmt.Errorf("%s takes nothing", c.l.o.Name))
		c.l.close()
	}
	return nil
}

// Cut implements transport.Cutter: what was written may get lost, and the other side may not be told.
func (c *conn) Cut() error {
	c.cuts.Do(func() {
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		if soon := time.Now().Add(cutStays); !c.shut || soon.Before(c.limit) {
			c.limit = soon
		}
		c.shut, c.out.ended = true, true
		c.l.notify()
		close(c.cut)
	})
	return c.Close()
}

func (c *conn) isCut() bool {
	select {
	case <-c.cut:
		return true
	default:
		return false
	}
}

// SetReadDeadline implements transport.Stream.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.rDead = t
	c.l.notify()
	return nil
}

// SetWriteDeadline implements transport.Stream.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.wDead = t
	c.l.notify()
	return nil
}
