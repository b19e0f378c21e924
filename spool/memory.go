package spool

import (
	"sync"
	"time"

	"mochila/internal/envelope"
)

// tallies counts the legs of every destination. It holds nothing per item.
type tallies struct {
	mu sync.Mutex
	by map[uint32]*tallyOf
}

// tallyOf is the count of one destination.
type tallyOf struct {
	n     [NumStates]int
	bytes int64
	// oldest is the smallest id among the live legs while known is true; else it is a lower bound of it.
	oldest envelope.ID
	known  bool
}

// live is the number of legs that have not ended.
func (t *tallyOf) live() (n int) {
	for s := Due; s < Done; s++ {
		n += t.n[s]
	}
	return n
}

// apply counts the changes of one commit and returns the destinations that got something due.
func (t *tallies) apply(changes []change) (due []uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = make(map[uint32]*tallyOf)
	}
	for i := range changes {
		c := &changes[i]
		if c.leg < 0 {
			continue
		}
		d := t.by[c.dest]
		if d == nil {
			d = &tallyOf{}
			t.by[c.dest] = d
		}
		d.count(c)
		if c.to == Due && c.from != Due && !contains(due, c.dest) {
			due = append(due, c.dest)
		}
	}
	return due
}

// clone copies the counts.
func (t *tallies) clone() *tallies {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &tallies{by: make(map[uint32]*tallyOf)}
	for no, x := range t.by {
		y := *x
		c.by[no] = &y
	}
	return c
}

// contains is a linear search: a commit touches few destinations.
func contains(list []uint32, x uint32) bool {
	for _, y := range list {
		if x == y {
			return true
		}
	}
	return false
}

func (t *tallyOf) count(c *change) {
	was, is := c.from != 0 && c.from != Done, c.to != 0 && c.to != Done
	if was {
		t.n[c.from]--
		t.bytes -= c.size
	}
	if is {
		t.n[c.to]++
		t.bytes += c.size
	}
	switch {
	case is && !was:
		if t.live() == 1 {
			t.oldest, t.known = c.id, true
		} else if less(c.id, t.oldest) {
			t.oldest, t.known = c.id, true
		}
	case was && !is && c.id == t.oldest:
		t.known = false
	}
}

// less orders ids by age.
func less(a, b envelope.ID) bool { return string(a[:]) < string(b[:]) }

// dueLegs is how many legs of a destination are due.
func (t *tallies) dueLegs(no uint32) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := t.by[no]; d != nil {
		return d.n[Due]
	}
	return 0
}

// dueDests lists destinations with due legs and how many.
func (t *tallies) dueDests() map[uint32]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := make(map[uint32]int)
	for no, d := range t.by {
		if d.n[Due] > 0 {
			m[no] = d.n[Due]
		}
	}
	return m
}

// leaseTable holds what is leased; it ends with the process.
type leaseTable struct {
	mu sync.Mutex // held over a whole Lease, so that a lease cannot be given over a view from before its leg changed
	by map[Ref]uint32
	n  map[uint32]int
}

// apply ends the leases of legs that have changed.
func (t *leaseTable) apply(changes []change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.by) == 0 {
		return
	}
	for i := range changes {
		if c := &changes[i]; c.leg >= 0 && c.from == Due && c.to != Due {
			t.end(Ref{c.id, c.leg})
		}
	}
}

func (t *leaseTable) end(r Ref) {
	if no, ok := t.by[r]; ok {
		delete(t.by, r)
		if t.n[no]--; t.n[no] == 0 {
			delete(t.n, no)
		}
	}
}

func (t *leaseTable) begin(r Ref, no uint32) {
	if t.by == nil {
		t.by, t.n = make(map[Ref]uint32), make(map[uint32]int)
	}
	t.by[r] = no
	t.n[no]++
}

// count is how many legs of a destination are leased.
func (t *leaseTable) count(no uint32) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n[no]
}

// wakeTable remembers what Wake has told and how far the sweep for expiries is.
type wakeTable struct {
	mu    sync.Mutex
	told  map[Ref]int64 // milliseconds of now when it was told
	swept time.Time     // when the last sweep began; zero: never
	next  envelope.ID   // where the sweep under way goes on; zero: none
}

// retell is after how long Wake tells again what nobody has acted upon.
const retell = 10 * time.Minute

// apply forgets what was told of legs whose time has changed.
func (t *wakeTable) apply(changes []change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.told) == 0 {
		return
	}
	for i := range changes {
		if c := &changes[i]; c.retimed || c.to == 0 || c.to != c.from {
			delete(t.told, Ref{c.id, c.leg})
		}
	}
}
