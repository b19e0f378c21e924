package spool

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// model is what a spool should be, as plain maps.
type model struct {
	t      *testing.T
	r      *rand.Rand
	dir    string
	o      Options
	s      *Spool
	now    time.Time
	items  map[envelope.ID]*Item
	body   map[envelope.ID][]byte
	done   map[envelope.ID]bool
	leased map[Ref]bool
	dests  []Dest
}

var errWanted = errors.New("wanted failure")

// TestModel runs random work on a spool and on maps, with reopenings, and compares them all the time.
func TestModel(t *testing.T) {
	for seed := range int64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := &model{
				t: t, r: rand.New(rand.NewSource(seed)), dir: t.TempDir(), o: Options{InlineMax: 64, TraceKeep: 1 << 20},
				now: time.Now(), items: map[envelope.ID]*Item{}, body: map[envelope.ID][]byte{},
				done: map[envelope.ID]bool{}, leased: map[Ref]bool{},
				dests: []Dest{"node:a", "node:b", "via:c", DeadDest},
			}
			m.s = m.open()
			for range 250 {
				m.step()
			}
			m.compare()
			clean(t, m.s)
			if err := m.s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func (m *model) open() *Spool {
	m.t.Helper()
	s, err := Open(m.dir, m.o)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *model) step() {
	m.t.Helper()
	switch m.r.Intn(16) {
	case 0, 1, 2, 3:
		m.addSome()
	case 4, 5, 6, 7:
		m.changeSome()
	case 8, 9:
		m.lease()
	case 10:
		m.release()
	case 11:
		m.wake()
	case 12:
		m.drop()
	case 13:
		m.compare()
	case 14:
		m.now = m.now.Add(time.Duration(m.r.Intn(3000)) * time.Second)
	case 15:
		if m.r.Intn(4) == 0 {
			m.reopen()
		}
	}
}

func (m *model) reopen() {
	if err := m.s.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.s = m.open()
	if f := m.s.Recovered(); len(f.Missing)+len(f.Poisoned)+f.Orphans+f.Temp != 0 {
		m.t.Fatalf("after an orderly end: %+v", f)
	}
	m.leased = map[Ref]bool{}
}

func (m *model) leg() Leg {
	l := Leg{Dest: m.dests[m.r.Intn(len(m.dests))], State: State(1 + m.r.Intn(6))}
	if m.r.Intn(2) == 0 {
		l.State = Due
	}
	if l.State != Due && l.State != Held && m.r.Intn(3) > 0 {
		l.At = m.now.Add(time.Duration(m.r.Intn(10_000)-2000) * time.Second).Truncate(time.Millisecond).UTC()
	}
	return l
}

// addSome adds a few items at once, each through its own Apply, some of which fail after having written.
func (m *model) addSome() {
	type one struct {
		it         *Item
		data       []byte
		fail, here bool
		err        error
	}
	var all []*one
	for range 1 + m.r.Intn(8) {
		data := make([]byte, m.r.Intn(130))
		m.r.Read(data)
		it := mail(data)
		it.Env.ID = envelope.NewID(m.now.Add(-time.Duration(m.r.Intn(100)) * time.Hour))
		it.Env.Created = it.Env.ID.Time().UTC()
		it.Env.Priority = m.r.Intn(5) - 2
		if m.r.Intn(3) == 0 {
			it.Env.Expires = m.now.Add(time.Duration(m.r.Intn(60)) * time.Hour).Truncate(time.Second).UTC()
		}
		for range 1 + m.r.Intn(3) {
			it.Legs = append(it.Legs, m.leg())
		}
		all = append(all, &one{it: it, data: data, fail: m.r.Intn(5) == 0, here: m.r.Intn(2) == 0})
	}
	var wg sync.WaitGroup
	for _, x := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b := m.s.NewBody()
			if _, x.err = b.Write(x.data); x.err != nil {
				return
			}
			if x.err = b.Finish(); x.err != nil {
				return
			}
			apply := m.s.Apply
			if x.here {
				apply = m.s.ApplyHere
			}
			x.err = apply(func(tx *Tx) error {
				if err := tx.Add(x.it, b); err != nil {
					return err
				}
				if x.fail {
					return errWanted
				}
				return nil
			})
			if x.err != nil {
				b.Discard()
			}
		}()
	}
	wg.Wait()
	for _, x := range all {
		switch {
		case x.fail && x.err == errWanted:
		case x.fail || x.err != nil:
			m.t.Fatalf("adding: %v", x.err)
		default:
			m.items[x.it.Env.ID], m.body[x.it.Env.ID] = x.it, x.data
		}
	}
}

func (m *model) pick() *Item {
	ids := m.ids()
	if len(ids) == 0 {
		return nil
	}
	return m.items[ids[m.r.Intn(len(ids))]]
}

func (m *model) ids() []envelope.ID {
	var ids []envelope.ID
	for id := range m.items {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b envelope.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

func (m *model) changeSome() {
	for range 1 + m.r.Intn(4) {
		it := m.pick()
		if it == nil {
			return
		}
		id := it.Env.ID
		var got *Item
		fail := m.r.Intn(5) == 0
		seed := m.r.Int63()
		err := m.s.Apply(func(tx *Tx) error {
			r := rand.New(rand.NewSource(seed)) // fn may run twice
			var err error
			if got, err = tx.Item(id); err != nil {
				return err
			}
			for i := range got.Legs {
				switch r.Intn(4) {
				case 0:
					got.Legs[i].State, got.Legs[i].At = Done, time.Time{}
				case 1:
					got.Legs[i] = m.legFrom(r)
				}
			}
			got.Env.Priority = r.Intn(5) - 2
			got.ExpirySeen = r.Intn(4) == 0
			if err := tx.Save(got); err != nil {
				return err
			}
			if fail {
				return errWanted
			}
			return nil
		})
		if fail && err == errWanted {
			continue
		}
		if err != nil || fail {
			m.t.Fatalf("saving: %v", err)
		}
		for i := range got.Legs {
			if got.Legs[i].State != Due || got.Legs[i].Dest != it.Legs[i].Dest {
				delete(m.leased, Ref{id, i})
			}
		}
		m.items[id] = got
		if got.Done() {
			delete(m.items, id)
			m.done[id] = true
		}
	}
}

func (m *model) legFrom(r *rand.Rand) Leg {
	was := m.r
	m.r = r
	defer func() { m.r = was }()
	return m.leg()
}

func (m *model) lease() {
	d := m.dests[m.r.Intn(len(m.dests))]
	n := 1 + m.r.Intn(5)
	got, err := m.s.Lease(d, n, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	type cand struct {
		key string
		ref Ref
	}
	var want []cand
	for id, it := range m.items {
		for i, l := range it.Legs {
			if l.Dest == d && l.State == Due && !m.leased[Ref{id, i}] && d != DeadDest {
				k := dueKey(0, class(it.Env), sizeClass(it.BodySize), id, i)
				want = append(want, cand{string(k[:]), Ref{id, i}})
			}
		}
	}
	slices.SortFunc(want, func(a, b cand) int { return cmp.Compare(a.key, b.key) })
	if len(got) != min(n, len(want)) {
		m.t.Fatalf("leased %d of %d, asked for %d", len(got), len(want), n)
	}
	for i, l := range got {
		if l.Ref() != want[i].ref {
			m.t.Fatalf("lease %d is %v, want %v", i, l.Ref(), want[i].ref)
		}
		m.leased[l.Ref()] = true
	}
	if due := m.s.DueNow(d); due != (len(want) > len(got)) {
		m.t.Fatalf("due now: %v with %d left", due, len(want)-len(got))
	}
}

func (m *model) release() {
	for r := range m.leased {
		if m.r.Intn(2) == 0 {
			m.s.Release(r)
			delete(m.leased, r)
		}
	}
}

// wake asks with a time far enough from the last one that nothing is held back as told already.
func (m *model) wake() {
	m.now = m.now.Add(retell + time.Second)
	got, err := m.s.Wake(m.now, 1<<20)
	if err != nil {
		m.t.Fatal(err)
	}
	ms := m.now.UnixMilli()
	want := map[Ref]bool{}
	for id, it := range m.items {
		if at := milli(it.Deadline()); at != 0 && at <= ms && !it.ExpirySeen {
			want[Ref{id, -1}] = true
		}
		for i, l := range it.Legs {
			if l.State != Done && !l.At.IsZero() && l.At.UnixMilli() <= ms {
				want[Ref{id, i}] = true
			}
		}
	}
	for _, r := range got {
		if !want[r] {
			m.t.Fatalf("woken by %v for no reason", r)
		}
		delete(want, r)
	}
	if len(want) != 0 {
		m.t.Fatalf("not woken by %v", want)
	}
	if n := m.s.NextWake(); !n.After(m.now) {
		m.t.Fatalf("next wake %v is not after %v", n, m.now)
	}
}

func (m *model) drop() {
	if it := m.pick(); it != nil {
		if err := m.s.Apply(func(tx *Tx) error { return tx.Drop(it.Env.ID) }); err != nil {
			m.t.Fatal(err)
		}
		delete(m.items, it.Env.ID)
		for i := range it.Legs {
			delete(m.leased, Ref{it.Env.ID, i})
		}
	}
}

// compare looks at everything.
func (m *model) compare() {
	m.t.Helper()
	all, more, err := m.s.List(Query{})
	if err != nil || more {
		m.t.Fatal(err, more)
	}
	ids := m.ids()
	if len(all) != len(ids) {
		m.t.Fatalf("%d items, want %d", len(all), len(ids))
	}
	counts := map[Dest]*Count{}
	for i, it := range all {
		id := ids[i]
		want := m.items[id]
		if it.Env.ID != id || !slices.EqualFunc(it.Legs, want.Legs, sameLeg) || it.ExpirySeen != want.ExpirySeen || it.Env.Priority != want.Env.Priority {
			m.t.Fatalf("item %d is\n%+v, want\n%+v", i, it, want)
		}
		if b := content(m.t, m.s, id); !bytes.Equal(b, m.body[id]) {
			m.t.Fatalf("content of %s has %d bytes, want %d", id, len(b), len(m.body[id]))
		}
		for _, l := range want.Legs {
			if l.State == Done {
				continue
			}
			c := counts[l.Dest]
			if c == nil {
				c = &Count{Dest: l.Dest, Oldest: want.Entered}
				counts[l.Dest] = c
			}
			c.States[l.State]++
			c.Bytes += want.BodySize
		}
	}
	got, err := m.s.Counts()
	if err != nil || len(got) != len(counts) {
		m.t.Fatalf("%d counts, want %d; %v", len(got), len(counts), err)
	}
	for _, c := range got {
		if w := counts[c.Dest]; w == nil || c.States != w.States || c.Bytes != w.Bytes || !c.Oldest.Equal(w.Oldest.Truncate(time.Millisecond)) {
			m.t.Fatalf("count %+v, want %+v", c, w)
		}
	}
	for id := range m.done {
		if _, done, err := m.s.Find(id); err != nil || !done {
			m.t.Fatalf("finished %s: %v, %v", id, done, err)
		}
	}
}

func sameLeg(a, b Leg) bool {
	return a.Dest == b.Dest && a.State == b.State && a.At.Equal(b.At)
}
