package transporttest

import (
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// Radio describes a serial line, radio or modem between two ports. The zero value of each field is none of it.
type Radio struct {
	Seed       uint64
	BitRate    int           // bits per second, ten to a byte; 0: 9600
	BitErrors  float64       // share of bits that arrive inverted
	Lose       float64       // share of bytes that do not arrive
	Noise      float64       // bytes out of nowhere, for each byte that is sent
	Half       bool          // what is sent while the other side sends is spoiled, and so is what that sends
	Turnaround time.Duration // half duplex: what is sent so soon after the other side is spoiled
	Latency    time.Duration
}

// Ports returns the two ends. Writes return at once, as with a driver's buffer; closing one end does not close the other.
func (r Radio) Ports() (a, b io.ReadWriteCloser) {
	if r.BitRate <= 0 {
		r.BitRate = 9600
	}
	air := &air{Radio: r, rand: rand.New(rand.NewPCG(r.Seed, 7)), changed: make(chan struct{})}
	x, y := &radioPort{air: air}, &radioPort{air: air}
	x.far, y.far = y, x
	return x, y
}

// air is what both ports share.
type air struct {
	Radio
	mu      sync.Mutex
	rand    *rand.Rand
	changed chan struct{} // closed and replaced when anything changes
}

type radioPort struct {
	*air
	far    *radioPort
	free   time.Time // when all that was written has been sent
	coming []flying  // to this port
	closed bool
}

// flying is a byte on its way.
type flying struct {
	from, to time.Time // on the air
	b        byte
}

func (a *air) notify() {
	close(a.changed)
	a.changed = make(chan struct{})
}

func (p *radioPort) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, os.ErrClosed
	}
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	step := time.Duration(10 * int64(time.Second) / int64(p.BitRate))
	for _, c := range b {
		from := p.free
		p.free = from.Add(step)
		if p.Half && p.collides(from, p.free) {
			c = byte(p.rand.Uint32())
		}
		for bit := range 8 {
			if p.rand.Float64() < p.BitErrors {
				c ^= 1 << bit
			}
		}
		if p.rand.Float64() < p.Noise {
			p.far.coming = append(p.far.coming, flying{from, p.free, byte(p.rand.Uint32())})
		}
		if p.rand.Float64() >= p.Lose {
			p.far.coming = append(p.far.coming, flying{from, p.free, c})
		}
	}
	p.notify()
	return len(b), nil
}

// collides reports whether the other side sends at that time or has just done so, and spoils what it sends.
func (p *radioPort) collides(from, to time.Time) bool {
	hit := !p.far.free.IsZero() && from.Before(p.far.free.Add(p.Turnaround))
	for i := range p.coming {
		if x := &p.coming[i]; x.from.Before(to) && from.Before(x.to) {
			x.b = byte(p.rand.Uint32())
		}
	}
	return hit
}

func (p *radioPort) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.closed {
			return 0, os.ErrClosed
		}
		n := 0
		now := time.Now()
		for n < len(b) && len(p.coming) > 0 && !p.coming[0].to.Add(p.Latency).After(now) {
			b[n] = p.coming[0].b
			p.coming = p.coming[1:]
			n++
		}
		if n > 0 || len(b) == 0 {
			return n, nil
		}
		var wait <-chan time.Time
		var timer *time.Timer
		if len(p.coming) > 0 {
			// bytes come to a program in handfuls
			k := min(len(p.coming), 16) - 1
			timer = time.NewTimer(time.Until(p.coming[k].to.Add(p.Latency)))
			wait = timer.C
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-wait:
		}
		if timer != nil {
			timer.Stop()
		}
		p.mu.Lock()
	}
}

func (p *radioPort) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.notify()
	return nil
}

// Reopen makes a port that was closed usable again, as opening a device anew does. What came meanwhile is lost.
func Reopen(port io.ReadWriteCloser) io.ReadWriteCloser {
	p := port.(*radioPort)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.coming = false, nil
	return p
}
