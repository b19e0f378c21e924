package spool

import (
	"bytes"
	"encoding/binary"
	"sort"

	"mochila/internal/envelope"
)

// Leased is one leg handed out for work.
type Leased struct {
	Item *Item // as committed when it was leased; read it again inside Apply before changing it
	Leg  int
}

// Ref names the leg.
func (l Leased) Ref() Ref { return Ref{l.Item.Env.ID, l.Leg} }

// LeaseUpTo is Lease for a way that takes no content above maxItem (0: no limit). larger reports that it has passed over
// some: they are due still, for anybody.
func (s *Spool) LeaseUpTo(d Dest, max int, maxBytes, maxItem int64) (out []Leased, larger bool, err error) {
	return s.lease(d, max, maxBytes, maxItem)
}

// Lease hands out at most max due legs of d, whose contents have at most maxBytes together (0: no limit; the first is
// handed out whatever its size), urgent before other classes, small before large, old before new. Nobody else gets
// them until Release, or a Save that changes their state. Leases end with the process: what was under way is due again.
func (s *Spool) Lease(d Dest, max int, maxBytes int64) ([]Leased, error) {
	out, _, err := s.lease(d, max, maxBytes, 0)
	return out, err
}

func (s *Spool) lease(d Dest, max int, maxBytes, maxItem int64) (out []Leased, larger bool, err error) {
	no, ok := s.dests.number(d)
	if !ok || d == DeadDest || max <= 0 {
		return nil, false, nil
	}
	var bad []Ref
	larger, err = s.pick(no, max, maxBytes, maxItem, func(tx *Tx, refs []Ref) {
		var last *Item
		for _, r := range refs {
			if last == nil || last.Env.ID != r.ID {
				it, err := tx.Item(r.ID)
				if err != nil {
					bad = append(bad, r) // it is being set aside
					continue
				}
				last = it
			}
			out = append(out, Leased{last, r.Leg})
		}
	})
	s.Release(bad...)
	return out, larger, err
}

// fewLegs is how many legs may be leased where the writer works. More are looked up beside it, if the index can be brought
// to have them.
const fewLegs = 16

// pick leases legs and calls fn with them in the transaction in which they were found.
func (s *Spool) pick(no uint32, max int, maxBytes, maxItem int64, fn func(*Tx, []Ref)) (larger bool, err error) {
	if max > fewLegs {
		if err := s.settled(); err != nil {
			return false, err
		}
	}
	err = s.under(&s.leases.mu, func(tx *Tx, unlock func()) error {
		var refs []Ref
		refs, larger = tx.dueRefs(no, max, maxBytes, maxItem)
		unlock()
		fn(tx, refs)
		return nil
	})
	return larger, err
}

// dueRefs leases legs in the order of the index. The caller holds the lease table.
func (tx *Tx) dueRefs(no uint32, max int, maxBytes, maxItem int64) (refs []Ref, larger bool) {
	var prefix [4]byte
	binary.BigEndian.PutUint32(prefix[:], no)
	c := tx.bucket(bkDue).Cursor()
	sum := int64(0)
	// What is larger than maxItem stands together behind what is not, in each class: once one of them was found, the
	// others are jumped over.
	next := func() []byte {
		k, _ := c.Next()
		if larger && len(k) == dueKeySize && bytes.HasPrefix(k, prefix[:]) && k[5] > sizeClass(maxItem) && k[4] < 255 {
			k, _ = c.Seek(append(prefix[:], k[4]+1))
		}
		return k
	}
	for k, _ := c.Seek(prefix[:]); len(k) == dueKeySize && bytes.HasPrefix(k, prefix[:]) && len(refs) < max; k = next() {
		r := Ref{envelope.ID(k[6:22]), int(binary.BigEndian.Uint16(k[22:]))}
		if _, leased := tx.s.leases.by[r]; leased {
			continue
		}
		rec := tx.bucket(bkItem).Get(r.ID[:])
		h, err := parseHead(rec)
		if err != nil || r.Leg >= h.nlegs || h.leg(r.Leg).state != Due {
			tx.s.poison(r.ID, errIndex)
			continue
		}
		if maxItem > 0 && h.size > maxItem {
			larger = true
			continue
		}
		if maxBytes > 0 && len(refs) > 0 && sum+h.size > maxBytes {
			break
		}
		sum += h.size
		tx.s.leases.begin(r, no)
		refs = append(refs, r)
	}
	return refs, larger
}

// Release gives leases back without a change: the legs are due for anybody again. OnDue is not called.
func (s *Spool) Release(refs ...Ref) {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	for _, r := range refs {
		s.leases.end(r)
	}
}

// Dests lists the destinations with legs that can be leased, sorted.
func (s *Spool) Dests() []Dest {
	var out []Dest
	for no, n := range s.tally.dueDests() {
		d, ok := s.dests.dest(no)
		if ok && d != DeadDest && n > s.leases.count(no) {
			out = append(out, d)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}

// DueCount is how many legs of d are due, leased ones included.
func (s *Spool) DueCount(d Dest) int {
	no, ok := s.dests.number(d)
	if !ok {
		return 0
	}
	return s.tally.dueLegs(no)
}

// DueNow reports whether Lease would find something for d.
func (s *Spool) DueNow(d Dest) bool {
	no, ok := s.dests.number(d)
	return ok && d != DeadDest && s.tally.dueLegs(no) > s.leases.count(no)
}
