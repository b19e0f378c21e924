package deliver

import (
	"context"
	"sync"
	"time"
)

// pool keeps connections to one server. At most max are open at once; who comes later waits.
type pool struct {
	dial  func(context.Context) (*client, error)
	idle  time.Duration
	slots chan struct{}

	mu     sync.Mutex
	free   []*client // the one used last at the end
	timer  *time.Timer
	closed bool
	reaper sync.WaitGroup // timer functions that run
}

func newPool(max int, idle time.Duration, dial func(context.Context) (*client, error)) *pool {
	return &pool{dial: dial, idle: idle, slots: make(chan struct{}, max)}
}

// get returns an idle connection or a new one; with fresh set, only a new one, and the idle ones, which have proved
// to be stale, are closed. The caller gives it back with put or drop.
func (p *pool) get(ctx context.Context, fresh bool) (*client, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	if fresh {
		for _, c := range p.free {
			c.nc.Close()
		}
		p.free = nil
	}
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	c, err := p.dial(ctx)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return c, nil
}

// put gives a good connection back.
func (p *pool) put(c *client) {
	c.since, c.reused = time.Now(), true
	p.mu.Lock()
	keep := !p.closed && c.stop.Load() == 0
	if keep {
		p.free = append(p.free, c)
		p.schedule()
	}
	p.mu.Unlock()
	if !keep {
		c.quit()
	}
	<-p.slots
}

// drop closes a connection that is in an unknown state.
func (p *pool) drop(c *client) {
	c.nc.Close()
	<-p.slots
}

// schedule makes sure that the reaper comes when the oldest idle connection is due. The mutex is held.
func (p *pool) schedule() {
	if p.timer != nil || len(p.free) == 0 {
		return
	}
	p.reaper.Add(1)
	p.timer = time.AfterFunc(time.Until(p.free[0].since.Add(p.idle)), func() {
		defer p.reaper.Done()
		p.reap(time.Now())
	})
}

// reap ends the connections that were idle for too long.
func (p *pool) reap(now time.Time) {
	p.mu.Lock()
	p.timer = nil
	n := 0
	for n < len(p.free) && now.Sub(p.free[n].since) >= p.idle {
		n++
	}
	old := append([]*client(nil), p.free[:n]...)
	p.free = append(p.free[:0], p.free[n:]...)
	if !p.closed {
		p.schedule()
	}
	p.mu.Unlock()
	for _, c := range old {
		c.quit()
	}
}

// close ends the idle connections and waits for the reaper. Connections in use end when they come back.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	free := p.free
	p.free = nil
	if p.timer != nil && p.timer.Stop() {
		p.reaper.Done()
	}
	p.timer = nil
	p.mu.Unlock()
	for _, c := range free {
		c.quit()
	}
	p.reaper.Wait()
}
