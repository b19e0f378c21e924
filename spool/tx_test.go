package spool

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// apply runs fn and fails the test on an error.
func apply(t testing.TB, s *Spool, fn func(*Tx) error) {
	t.Helper()
	if err := s.Apply(fn); err != nil {
		t.Fatal(err)
	}
}

// TestCompanions: callers that fail, with and without having written, share commits with others and harm nobody.
func TestCompanions(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	const n = 200
	items := make([]*Item, n)
	var wg sync.WaitGroup
	for i := range items {
		items[i] = mail(nil, Dest(fmt.Sprint("node:", i)))
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := s.Apply(func(tx *Tx) error {
				if i%5 == 0 {
					return errWanted
				}
				if err := tx.Add(items[i], nil); err != nil {
					return err
				}
				if i%3 == 0 {
					return errWanted
				}
				return nil
			})
			if want := i%5 == 0 || i%3 == 0; errors.Is(err, errWanted) != want || !want && err != nil {
				t.Errorf("%d: %v", i, err)
			}
		}()
	}
	wg.Wait()
	for i, it := range items {
		_, _, err := s.Find(it.Env.ID)
		if want := i%5 != 0 && i%3 != 0; (err == nil) != want {
			t.Errorf("%d: %v", i, err)
		}
		if due := s.DueNow(it.Legs[0].Dest); due != (err == nil) {
			t.Errorf("%d is due: %v", i, due)
		}
	}
	clean(t, s)
}

func TestAddRefuses(t *testing.T) {
	s := open(t, t.TempDir(), Options{InlineMax: 8})
	it := mail([]byte("x"), "node:a")
	add(t, s, it, []byte("x"))
	again := func(what string, want error, it *Item, b *Body) {
		t.Helper()
		err := s.Apply(func(tx *Tx) error { return tx.Add(it, b) })
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("adding %s: %v", what, err)
		}
	}
	again("twice", ErrExists, it, nil)
	again("without envelope", nil, &Item{}, nil)
	again("without id", nil, &Item{Env: &envelope.Envelope{}, Legs: it.Legs}, nil)
	noLegs := mail(nil)
	again("without legs", nil, noLegs, nil)
	noState := mail(nil, "node:a")
	noState.Legs[0].State = 0
	again("without state", nil, noState, nil)
	noDest := mail(nil, "")
	again("without destination", nil, noDest, nil)
	b := s.NewBody()
	b.Write(make([]byte, 100))
	again("with an unfinished body", nil, mail(nil, "node:a"), b)
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	one, two := mail(nil, "node:a"), mail(nil, "node:a")
	err := s.Apply(func(tx *Tx) error { return errors.Join(tx.Add(one, b), tx.Add(two, b)) })
	if err == nil {
		t.Error("one body was given to two items")
	}
	apply(t, s, func(tx *Tx) error { return tx.Add(one, b) })
	again("a used body", nil, two, b)
	b.Discard() // no effect any more
	if got := content(t, s, one.Env.ID); len(got) != 100 {
		t.Errorf("content has %d bytes", len(got))
	}
	if err := finish(s, it.Env.ID); err != nil {
		t.Fatal(err)
	}
	again("what has finished", ErrExists, it, nil)
	apply(t, s, func(tx *Tx) error { return tx.Add(two, nil) })
	if _, err := s.OpenBody(two.Env.ID); !errors.Is(err, ErrNoBody) {
		t.Errorf("content of an item without: %v", err)
	}
	if err := s.View(func(tx *Tx) error { return tx.Save(two) }); err == nil {
		t.Error("a view saved")
	}
	clean(t, s)
}

// TestLeaseOrder: urgent, then small, then old; and the byte budget.
func TestLeaseOrder(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	put := func(prio, size int, age time.Duration) envelope.ID {
		data := make([]byte, size)
		it := mail(data, "node:a")
		it.Env.ID = envelope.NewID(epoch().Add(-age))
		it.Env.Priority = prio
		add(t, s, it, data)
		return it.Env.ID
	}
	normal := put(0, 10, time.Hour)
	old := put(0, 10, 2*time.Hour)
	large := put(0, 20_000, 3*time.Hour)
	urgent := put(5, 20_000, 0)
	bulk := put(-4, 10, 9*time.Hour)
	want := []envelope.ID{urgent, old, normal, large, bulk}
	got, err := s.Lease("node:a", 100, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ids []envelope.ID
	var refs []Ref
	for _, l := range got {
		ids, refs = append(ids, l.Item.Env.ID), append(refs, l.Ref())
	}
	if !slices.Equal(ids, want) {
		t.Errorf("leased %v, want %v", ids, want)
	}
	if len(s.Dests()) != 0 {
		t.Errorf("destinations with everything leased: %v", s.Dests())
	}
	s.Release(refs...)
	if got, _ := s.Lease("node:a", 100, 20_015); len(got) != 2 {
		t.Errorf("%d items in 20,015 bytes", len(got))
	}
	s.Release(refs...)
	if got, _ := s.Lease("node:a", 100, 1); len(got) != 1 {
		t.Errorf("%d items in 1 byte: the first always goes", len(got))
	}
	// What a new priority puts in front goes first.
	apply(t, s, func(tx *Tx) error {
		it, err := tx.Item(bulk)
		if err != nil {
			return err
		}
		it.Env.Priority = 9
		return tx.Save(it)
	})
	s.Release(refs...)
	if got, _ := s.Lease("node:a", 1, 0); len(got) != 1 || got[0].Item.Env.ID != bulk {
		t.Errorf("leased %v", got)
	}
	clean(t, s)
}

// TestLeaseOnce: many workers take and finish; nothing is handed out twice.
func TestLeaseOnce(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	const n = 400
	for range n / 50 {
		apply(t, s, func(tx *Tx) error {
			for range 50 {
				if err := tx.Add(mail(nil, "node:a"), nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	var mu sync.Mutex
	taken := map[Ref]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				got, err := s.Lease("node:a", 3, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if len(got) == 0 {
					return
				}
				for _, l := range got {
					mu.Lock()
					taken[l.Ref()]++
					mu.Unlock()
					if err := finish(s, l.Item.Env.ID); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	for r, k := range taken {
		if k != 1 {
			t.Errorf("%v was handed out %d times", r, k)
		}
	}
	if len(taken) != n {
		t.Errorf("%d of %d were handed out", len(taken), n)
	}
}

func TestDeadLetters(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	apply(t, s, func(tx *Tx) error { return tx.Add(mail(nil, DeadDest), nil) })
	if got, _ := s.Lease(DeadDest, 10, 0); len(got) != 0 || s.DueNow(DeadDest) || len(s.Dests()) != 0 {
		t.Error("a dead letter was leased")
	}
	if c, err := s.Counts(); err != nil || len(c) != 1 || c[0].Total() != 1 {
		t.Errorf("counts %+v, %v", c, err)
	}
}

func TestOnDue(t *testing.T) {
	var mu sync.Mutex
	var due []Dest
	s := open(t, t.TempDir(), Options{OnDue: func(d Dest) { mu.Lock(); defer mu.Unlock(); due = append(due, d) }})
	take := func() []Dest {
		apply(t, s, func(*Tx) error { return nil }) // after the callbacks of the commit before
		mu.Lock()
		defer mu.Unlock()
		d := due
		due = nil
		return d
	}
	it := mail(nil, "node:a", "node:b")
	it.Legs[1].State = Deferred
	apply(t, s, func(tx *Tx) error { return tx.Add(it, nil) })
	if d := take(); !slices.Equal(d, []Dest{"node:a"}) {
		t.Errorf("after adding: %v", d)
	}
	it.Legs[0].State, it.Legs[1].State = Sealed, Due
	apply(t, s, func(tx *Tx) error { return tx.Save(it) })
	if d := take(); !slices.Equal(d, []Dest{"node:b"}) {
		t.Errorf("after the change: %v", d)
	}
	it.Log = nil
	apply(t, s, func(tx *Tx) error { return tx.Save(it) })
	if d := take(); len(d) != 0 {
		t.Errorf("after no change: %v", d)
	}
}

// TestWakeTellsOnce: what nobody acts upon does not hide the rest, and comes again later.
func TestWakeTellsOnce(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	now := epoch()
	at := func(d time.Duration) *Item {
		it := mail(nil, "node:a")
		it.Env.Expires = time.Time{}
		it.Legs[0].State, it.Legs[0].At = Deferred, now.Add(d)
		apply(t, s, func(tx *Tx) error { return tx.Add(it, nil) })
		return it
	}
	if !s.NextWake().IsZero() {
		t.Error("next wake before the first one")
	}
	first, second := at(-2*time.Second), at(-time.Second)
	later := at(30 * time.Minute)
	wake := func(now time.Time, max int, want ...*Item) {
		t.Helper()
		got, err := s.Wake(now, max)
		if err != nil {
			t.Fatal(err)
		}
		var refs []Ref
		for _, it := range want {
			refs = append(refs, Ref{it.Env.ID, 0})
		}
		if !slices.Equal(got, refs) {
			t.Errorf("woken by %v, want %v", got, refs)
		}
	}
	wake(now, 1, first)
	wake(now, 1, second)
	wake(now, 1)
	if n := s.NextWake(); !n.Equal(now.Add(retell)) {
		t.Errorf("next wake at %v", n)
	}
	first.Legs[0].At = now.Add(time.Minute)
	apply(t, s, func(tx *Tx) error { return tx.Save(first) })
	if n := s.NextWake(); !n.Equal(now.Add(time.Minute)) {
		t.Errorf("next wake at %v", n)
	}
	wake(now.Add(2*time.Minute), 10, first)
	wake(now.Add(retell), 10, second)
	wake(now.Add(31*time.Minute), 10, second, first, later)
	first.Legs[0].State = Done
	apply(t, s, func(tx *Tx) error { return tx.Save(first) })
	wake(now.Add(time.Hour), 10, second, later)
	wake(now.Add(-time.Hour), 10) // a clock that goes back forgets nothing and tells nothing early
	wake(now.Add(time.Hour), 10)
}

// TestExpirySweep: expiries far away enter the index when they come near, also those of a spool that was off.
func TestExpirySweep(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	now := time.Now()
	var want []Ref
	for i := range 30 {
		it := mail(nil, "node:a")
		it.Env.Expires = now.Add(time.Duration(i+2) * 24 * time.Hour).Truncate(time.Second)
		apply(t, s, func(tx *Tx) error { return tx.Add(it, nil) })
		want = append(want, Ref{it.Env.ID, -1})
	}
	for day := range 40 {
		got, err := s.Wake(now.Add(time.Duration(day)*24*time.Hour), 100)
		if err != nil {
			t.Fatal(err)
		}
		if n := min(max(0, day-1), 30); len(got) != n {
			t.Fatalf("day %d: woken by %d, want %d", day, len(got), n)
		}
	}
	it, _, err := s.Find(want[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	it.ExpirySeen = true
	apply(t, s, func(tx *Tx) error { return tx.Save(it) })
	got, err := s.Wake(now.Add(50*24*time.Hour), 100)
	if err != nil || !slices.Equal(got, want[1:]) {
		t.Errorf("woken by %d, want %d; %v", len(got), len(want)-1, err)
	}
	clean(t, s)
}

func TestTraceIsBounded(t *testing.T) {
	s := open(t, t.TempDir(), Options{TraceKeep: 10})
	var first, last envelope.ID
	for i := range 800 {
		it := mail(nil, "node:a")
		it.Legs[0].State = Done
		apply(t, s, func(tx *Tx) error { return tx.Add(it, nil) })
		if last = it.Env.ID; i == 0 {
			first = last
		}
	}
	if r := clean(t, s); r.Trace < 10 || r.Trace > 10+trimSlack {
		t.Errorf("%d in the trace", r.Trace)
	}
	if _, _, err := s.Find(first); !errors.Is(err, ErrNotFound) {
		t.Errorf("the first: %v", err)
	}
	if _, done, err := s.Find(last); err != nil || !done {
		t.Errorf("the last: %v", err)
	}
	if err := s.Forget(time.Now().Add(91 * 24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	if r := clean(t, s); r.Trace != 0 || s.done.Load() != 0 {
		t.Errorf("%d in the trace after its age, %d counted", r.Trace, s.done.Load())
	}
}

func TestSeen(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	now := epoch()
	a, b := envelope.NodeID{1}, envelope.NodeID{2}
	id := envelope.NewID(now)
	seen := func(n envelope.NodeID, want bool) {
		t.Helper()
		s.View(func(tx *Tx) error {
			if got := tx.Seen(n, id); got != want {
				t.Errorf("seen %v, want %v", got, want)
			}
			return nil
		})
	}
	apply(t, s, func(tx *Tx) error { return tx.Remember(a, id, now.Add(time.Hour)) })
	seen(a, true)
	seen(b, false)
	apply(t, s, func(tx *Tx) error { return tx.Remember(a, id, now.Add(time.Minute)) })
	for _, x := range []struct {
		at   time.Duration
		want bool
	}{{59 * time.Minute, true}, {61 * time.Minute, false}} {
		if err := s.Forget(now.Add(x.at)); err != nil {
			t.Fatal(err)
		}
		seen(a, x.want)
	}
}

func TestMetaAndKV(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, s, func(tx *Tx) error {
		kv := tx.KV("tombstones")
		if kv.Get([]byte("x")) != nil || kv.Delete([]byte("x")) != nil || kv.Each(nil, nil) != nil {
			t.Error("an empty table is not empty")
		}
		for i := range 20 {
			if err := kv.Put([]byte(fmt.Sprintf("k%02d", i)), []byte{byte(i)}); err != nil {
				return err
			}
		}
		if err := tx.SetMeta("version", []byte("mine")); err != nil { // not the spool's own
			return err
		}
		return tx.SetMeta("gone", []byte("x"))
	})
	s.Close()
	s = open(t, dir, Options{})
	apply(t, s, func(tx *Tx) error {
		if v := tx.Meta("version"); string(v) != "mine" {
			t.Errorf("meta %q", v)
		}
		if err := tx.SetMeta("gone", nil); err != nil || tx.Meta("gone") != nil {
			t.Errorf("meta not removed: %v", err)
		}
		kv := tx.KV("tombstones")
		var seen []byte
		err := kv.Each([]byte("k1"), func(k, v []byte) error {
			seen = append(seen, v[0])
			if v[0] == 12 {
				if err := kv.Delete([]byte("k13")); err != nil {
					return err
				}
			}
			return kv.Delete(k)
		})
		if err != nil || !bytes.Equal(seen, []byte{10, 11, 12, 14, 15, 16, 17, 18, 19}) {
			t.Errorf("walked %v, %v", seen, err)
		}
		if kv.Get([]byte("k10")) != nil || !bytes.Equal(kv.Get([]byte("k09")), []byte{9}) {
			t.Error("wrong keys are left")
		}
		return nil
	})
	if err := s.View(func(tx *Tx) error { return tx.KV("new").Put([]byte("a"), nil) }); err == nil {
		t.Error("a view wrote")
	}
}

func TestFindPrefix(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	var ids []envelope.ID
	for i := range 20 {
		it := mail(nil, "node:a")
		if i%2 == 0 {
			it.Legs[0].State = Done
		}
		apply(t, s, func(tx *Tx) error { return tx.Add(it, nil) })
		ids = append(ids, it.Env.ID)
	}
	for _, id := range ids {
		got, err := s.FindPrefix(id.String()[:18])
		if err != nil || len(got) != 1 || got[0] != id {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
	if got, err := s.FindPrefix(""); err != nil || len(got) != 20 {
		t.Errorf("no prefix: %d, %v", len(got), err)
	}
	if got, err := s.FindPrefix("VVVV"); err != nil || len(got) != 0 {
		t.Errorf("unknown: %v, %v", got, err)
	}
	for _, bad := range []string{"!", "XYZ", string(make([]byte, 27))} {
		if _, err := s.FindPrefix(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestListPages(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for i := range 25 {
		it := mail(nil, "node:a", "node:b")
		if i%5 == 0 {
			it.Legs[1].State = Held
		}
		apply(t, s, func(tx *Tx) error { return tx.Add(it, nil) })
	}
	q := Query{Limit: 10}
	n := 0
	for more := true; more; {
		var page []*Item
		var err error
		if page, more, err = s.List(q); err != nil {
			t.Fatal(err)
		}
		n += len(page)
		q.After = page[len(page)-1].Env.ID
	}
	if n != 25 {
		t.Errorf("%d items on all pages", n)
	}
	for _, x := range []struct {
		q    Query
		want int
	}{
		{Query{Dest: "node:b"}, 25}, {Query{Dest: "node:b", State: Held}, 5}, {Query{Dest: "node:a", State: Held}, 0},
		{Query{Dest: "node:c"}, 0}, {Query{State: Travelling}, 0},
		{Query{Match: func(it *Item) bool { return it.Legs[1].State == Due }}, 20},
	} {
		if got, _, err := s.List(x.q); err != nil || len(got) != x.want {
			t.Errorf("%+v: %d, want %d; %v", x.q, len(got), x.want, err)
		}
	}
}

// TestApplySoon: callers that can wait ride along with others, or go by themselves; none is forgotten, also at the end.
func TestApplySoon(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			do := s.ApplySoon
			switch i % 3 {
			case 0:
				do = s.Apply
			case 1:
				do = s.ApplyHere
			}
			if err := do(func(tx *Tx) error { return tx.Add(mail(nil, "node:a"), nil) }); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if c, err := s.Counts(); err != nil || len(c) != 1 || c[0].Total() != 200 {
		t.Errorf("counts %+v, %v", c, err)
	}
	for range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := s.ApplySoon(func(*Tx) error { return nil }); err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		}()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestClosed: whatever is called after Close says so, and nobody hangs.
func TestClosed(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			apply := s.Apply
			if i%2 == 0 {
				apply = s.ApplyHere
			}
			for {
				err := apply(func(tx *Tx) error { return tx.Add(mail(nil, "node:a"), nil) })
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	apply(t, s, func(tx *Tx) error { return tx.Add(mail(nil, "node:a"), nil) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if err := s.View(func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("view: %v", err)
	}
	if _, err := s.Lease("node:a", 1, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("lease: %v", err)
	}
	if _, err := s.Wake(time.Now(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("wake: %v", err)
	}
}

// TestLeaseUpTo: a way that takes no large content passes over it in every class, wherever it stands, and says so.
func TestLeaseUpTo(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	put := func(prio, size int) envelope.ID {
		data := make([]byte, size)
		it := mail(data, "node:a")
		it.Env.Priority = prio
		add(t, s, it, data)
		return it.Env.ID
	}
	var want []envelope.ID
	for _, prio := range []int{9, 0, -9} {
		want = append(want, put(prio, 10))
		put(prio, 12_000)
		for _, size := range []int{20_000, 30_000, 200_000} {
			put(prio, size)
		}
	}
	put(-9, 17_000)
	lease := func(maxItem int64) (ids []envelope.ID, larger bool) {
		t.Helper()
		got, larger, err := s.LeaseUpTo("node:a", 100, 0, maxItem)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range got {
			ids = append(ids, l.Item.Env.ID)
			s.Release(l.Ref())
		}
		return ids, larger
	}
	if got, larger := lease(11_000); !slices.Equal(got, want) || !larger {
		t.Errorf("leased %v, larger %v; want %v", got, larger, want)
	}
	for maxItem, n := range map[int64]int{0: 16, 200_000: 16, 199_999: 13, 16_999: 6, 17_000: 7, 25_000: 10, 9: 0} {
		if got, larger := lease(maxItem); len(got) != n || larger != (n < 16) {
			t.Errorf("up to %d bytes: %d items, larger %v; want %d", maxItem, len(got), larger, n)
		}
	}
	clean(t, s)
}
