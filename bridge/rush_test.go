package bridge

import (
	"testing"
	"time"
)

// TestRush: while mail comes in, a place that was quick gets few workers; any other gets all, and so does a quick one
// later.
func TestRush(t *testing.T) {
	b := &Bridge{started: time.Now()}
	if b.rush() {
		t.Error("mail came in before any did")
	}
	b.accepted()
	if !b.rush() {
		t.Error("no mail came in")
	}
	b.started = b.started.Add(-time.Hour) // as if an hour had gone by
	b.lastMail.Store(1)
	if b.rush() {
		t.Error("mail is coming in for an hour")
	}
	for _, c := range []struct {
		quick, rush bool
		want        int
	}{{true, true, rushWorkers}, {false, true, 7}, {true, false, 7}} {
		b := &Bridge{started: time.Now()}
		p := &Policy{}
		p.Limits.Deliveries = 7
		b.policy.Store(p)
		b.out.init(b)
		pl := &place{quick: c.quick}
		if c.rush {
			b.lastMail.Store(time.Since(b.started).Nanoseconds() + int64(time.Hour))
		}
		for range 20 {
			if n := b.out.allowed(pl); pl.workers < n {
				pl.workers++
			}
		}
		if pl.workers != c.want {
			t.Errorf("quick %v, rush %v: %d workers, want %d", c.quick, c.rush, pl.workers, c.want)
		}
	}
}
