package transport

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how many idle times a write may stand still while the neighbour shows other signs of life.
const patience = 10

// patientStream renews deadlines at every read and write, counts bytes, and tells a slow link from a dead one: a
// timeout ends nothing as long as bytes move in either direction.
type patientStream struct {
	Stream
	idle     time.Duration
	until    atomic.Pointer[time.Time] // hard end of reads, while set
	in, out  atomic.Int64
	heard    atomic.Int64 // Unix nanoseconds: last bytes in
	squeezed atomic.Int64 // last time that a write which had to wait went on

	mu    sync.Mutex
	ended bool // only a last word is still written, quickly
}

// lastWord is how long a contact that has failed may still take to say why.
const lastWord = time.Second

// end makes the write that runs, and later ones, return soon.
func (p *patientStream) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.SetWriteDeadline(time.Now().Add(lastWord)) // the stream may be closed: then nothing waits
}

// renewWrite sets the next write deadline and reports whether the contact has ended.
func (p *patientStream) renewWrite(now time.Time) (ended bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := p.idle
	if p.ended {
		wait = lastWord
	}
	return p.ended, p.SetWriteDeadline(now.Add(wait))
}

// errSilent ends a contact with a neighbour that hangs.
var errSilent = errors.New("neighbour is silent")

func newPatientStream(s Stream, idle time.Duration) *patientStream {
	p := &patientStream{Stream: s, idle: idle}
	p.heard.Store(time.Now().UnixNano())
	return p
}

func (p *patientStream) recent(t *atomic.Int64, now time.Time) bool {
	return now.UnixNano()-t.Load() < int64(p.idle)
}

func (p *patientStream) Read(b []byte) (int, error) {
	start := time.Now()
	for {
		now := time.Now()
		deadline := now.Add(p.idle)
		until := p.until.Load()
		if until != nil && until.Before(deadline) {
			deadline = *until
		}
		if err := p.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
		n, err := p.Stream.Read(b)
		if n > 0 {
			p.in.Add(int64(n))
			p.heard.Store(time.Now().UnixNano())
			return n, nil // an error comes again at the next read
		}
		if !isTimeout(err) {
			return 0, err
		}
		now = time.Now()
		if until != nil || !p.recent(&p.squeezed, now) || now.Sub(start) > patience*p.idle {
			return 0, fmt.Errorf("%w: nothing came for %v", errSilent, now.Sub(start).Round(time.Millisecond))
		}
	}
}

func (p *patientStream) Write(b []byte) (int, error) {
	total := 0
	moved := time.Now()
	for {
		now := time.Now()
		ended, err := p.renewWrite(now)
		if err != nil {
			return total, err
		}
		n, err := p.Stream.Write(b[total:])
		total += n
		p.out.Add(int64(n))
		after := time.Now()
		if n > 0 {
			moved = after
			if after.Sub(now) > time.Second {
				p.squeezed.Store(after.UnixNano())
			}
		}
		switch {
		case total == len(b):
			return total, nil
		case err == nil:
			return total, fmt.Errorf("stream took %d of %d bytes and gave no reason", total, len(b))
		case !isTimeout(err):
			return total, err
		case ended || n == 0 && (!p.recent(&p.heard, after) || after.Sub(moved) > patience*p.idle):
			return total, fmt.Errorf("%w: it has taken nothing for %v", errSilent, after.Sub(moved).Round(time.Millisecond))
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
