package bridge

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"mochila/bridge/deliver"
	"mochila/internal/envelope"
	"mochila/spool"
)

// slowly is a place that delivers a mail when it is told to.
type slowly struct {
	in, done atomic.Int64
	goOn     chan struct{}
}

func (s *slowly) Deliver(ctx context.Context, m *deliver.Message) (out []deliver.Result) {
	s.in.Add(1)
	defer s.in.Add(-1)
	select {
	case <-s.goOn:
		s.done.Add(1)
	case <-ctx.Done():
	}
	for _, i := range m.Rcpts {
		out = append(out, deliver.Result{Rcpt: i, Action: envelope.ActionDelivered, MTA: "test", Status: envelope.Status{Code: 250, Enhanced: "2.0.0", Text: "taken"}})
	}
	return out
}

func (*slowly) Close() error { return nil }

// TestRush: while several callers wait for their 250 a place gets two workers, and as many as are allowed before and after it,
// or when a burst has gathered.
func TestRush(t *testing.T) {
	n := newNode(t, "camp")
	n.close()
	place := &slowly{goOn: make(chan struct{})}
	sp, err := spool.Open(filepath.Join(n.dir, "spool2"), spool.Options{FS: quickFS{}, OnDue: func(d spool.Dest) { n.b.OnDue(d) }})
	if err != nil {
		t.Fatal(err)
	}
	n.sp = sp
	n.b, err = New(Options{Spool: sp, Keys: n.keys, Policy: n.pol, Now: n.now, NoContacts: true,
		Deliver: func(string) (deliver.Transport, error) { return place, nil }})
	if err != nil {
		t.Fatal(err)
	}
	out, most := &n.b.out, n.b.Policy().Limits.Deliveries
	workers := func() (sum int) {
		out.mu.Lock()
		defer out.mu.Unlock()
		for _, p := range out.places {
			sum += p.workers
		}
		return sum
	}
	mails := func(k int) {
		for i := range k {
			n.submit("ana@elsewhere.example", fmt.Sprintf("bob%d@camp.example", i), "Subject: x\r\n\r\nx\r\n")
		}
	}
	rush := func(on bool) {
		until := int64(0)
		if on {
			until = 1 << 62
			out.rushed.Store(until) // it does not end by its length, however long this takes
		}
		out.rush.Store(until)
	}
	n.run()
	rush(true)
	mails(most + 10)
	eventually(t, "two deliveries", func() bool { return place.in.Load() == rushWorkers })
	place.goOn <- struct{}{}
	place.goOn <- struct{}{}
	eventually(t, "two more", func() bool { return place.done.Load() == 2 && place.in.Load() == rushWorkers })
	if w := workers(); w != rushWorkers {
		t.Errorf("%d workers in a rush", w)
	}
	rush(false)
	eventually(t, "all workers behind the rush, though both of the rush hang", func() bool { return place.in.Load() == int64(most) })
	rush(true)
	for range most - rushWorkers {
		place.goOn <- struct{}{}
	}
	eventually(t, "two workers again", func() bool { return workers() == rushWorkers })
	mails(rushBurst)
	eventually(t, "all workers for a burst", func() bool { return place.in.Load() == int64(most) })
	rush(false)
	close(place.goOn)
	eventually(t, "everything is delivered", func() bool { return place.done.Load() == int64(most+10+rushBurst) })
}

// TestTakeCountsCallers: one caller at a time is no rush, two are, and it ends by itself.
func TestTakeCountsCallers(t *testing.T) {
	n := newNode(t, "camp")
	out := &n.b.out
	take := func() error { return out.take(func(*spool.Tx) error { return nil }) }
	for range 3 {
		if err := take(); err != nil {
			t.Fatal(err)
		}
	}
	if _, rush := out.limit("via:x"); rush {
		t.Error("one caller after the other is a rush")
	}
	out.taking.Add(1) // one that waits
	if err := take(); err != nil {
		t.Fatal(err)
	}
	if out.rush.Load() == 0 {
		t.Error("two callers at once are no rush")
	}
	if _, rush := out.limit("via:x"); !rush && time.Duration(out.rush.Load()) > time.Since(dispatchStart) {
		t.Error("it has not begun")
	}
	out.rush.Store(1 << 62)
	out.rushed.Add(-int64(rushMost))
	if _, rush := out.limit("via:x"); rush {
		t.Error("a stream that lasts is held up")
	}
	out.rush.Store(int64(time.Since(dispatchStart)))
	if err := take(); err != nil {
		t.Fatal(err)
	}
	if _, rush := out.limit("via:x"); rush {
		t.Error("a stream that pauses for a moment is held up")
	}
	out.rush.Store(int64(time.Since(dispatchStart) - 2*rushApart))
	if err := take(); err != nil {
		t.Fatal(err)
	}
	if _, rush := out.limit("via:x"); !rush && time.Duration(out.rush.Load()) > time.Since(dispatchStart) {
		t.Error("no rush after a quiet while")
	}
	out.taking.Add(-1)
	eventually(t, "the end of the rush", func() bool { _, rush := out.limit("via:x"); return !rush })
	if out.taking.Load() != 0 || time.Duration(out.rush.Load()) > time.Since(dispatchStart) {
		t.Error("somebody is still counted")
	}
}
