package spool

import (
	"encoding/binary"
	"time"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/envelope"
)

// sweepChunk is how many items one call of Wake looks at for expiries that have come near.
const sweepChunk = 20_000

// Wake lists at most max legs whose At is not after now, and items (leg -1) whose expiry is not after now and has not
// been seen (Item.ExpirySeen), oldest time first. It changes nothing: the caller decides and saves. What it has told
// it tells again only ten minutes later, unless a Save has changed the time meanwhile: one item that nobody can
// handle does not hide the others.
func (s *Spool) Wake(now time.Time, max int) ([]Ref, error) {
	if err := s.sweep(now); err != nil {
		return nil, err
	}
	ms := now.UnixMilli()
	var refs []Ref
	err := s.under(&s.wakes.mu, func(tx *Tx, _ func()) error {
		c := tx.bucket(bkWait).Cursor()
		for k, _ := c.First(); len(k) == waitKeySize && len(refs) < max; k, _ = c.Next() {
			at, r := parseWait(k)
			if at > ms {
				break
			}
			if t, told := s.wakes.told[r]; told && ms-t < retell.Milliseconds() && ms >= t {
				continue
			}
			if !tx.waits(at, r) {
				s.dropWait(k)
				continue
			}
			refs = append(refs, r)
		}
		if s.wakes.told == nil {
			s.wakes.told = make(map[Ref]int64)
		}
		for _, r := range refs {
			s.wakes.told[r] = ms
		}
		return nil
	})
	return refs, err
}

// NextWake is the earliest time at which Wake may have something to tell; always within an hour of the last sweep.
// It is the zero time before the first Wake.
func (s *Spool) NextWake() time.Time {
	s.wakes.mu.Lock()
	swept, sweeping := s.wakes.swept, !s.wakes.next.IsZero()
	s.wakes.mu.Unlock()
	if swept.IsZero() || sweeping {
		return time.Time{}
	}
	next := swept.Add(sweepEvery).UnixMilli()
	err := s.under(&s.wakes.mu, func(tx *Tx, _ func()) error {
		c := tx.bucket(bkWait).Cursor()
		for k, _ := c.First(); len(k) == waitKeySize; k, _ = c.Next() {
			at, r := parseWait(k)
			if at >= next {
				break
			}
			if t, told := s.wakes.told[r]; told {
				next = min(next, max(at, t+retell.Milliseconds()))
				continue
			}
			next = at
			break
		}
		return nil
	})
	if err != nil {
		return swept.Add(sweepEvery)
	}
	return time.UnixMilli(next).UTC()
}

// parseWait reads a key of the wake index.
func parseWait(k []byte) (at int64, r Ref) {
	at = int64(binary.BigEndian.Uint64(k))
	r = Ref{envelope.ID(k[8:24]), int(binary.BigEndian.Uint16(k[24:]))}
	if r.Leg == wholeItem {
		r.Leg = -1
	}
	return at, r
}

// waits reports whether the record agrees with an entry of the wake index.
func (tx *Tx) waits(at int64, r Ref) bool {
	h, err := parseHead(tx.bucket(bkItem).Get(r.ID[:]))
	if err != nil {
		return false
	}
	if r.Leg < 0 {
		return h.wakes() == at
	}
	return r.Leg < h.nlegs && h.leg(r.Leg).wakes() == at
}

// dropWait removes an entry that no record confirms, later.
func (s *Spool) dropWait(k []byte) {
	key := append([]byte(nil), k...)
	s.chores.add(func() {
		s.Apply(func(tx *Tx) error {
			if at, r := parseWait(key); !tx.waits(at, r) {
				return tx.del(bkWait, key)
			}
			return nil
		})
	})
}

// sweep puts expiries that have come near into the wake index: once an hour it walks all items, some at each call.
func (s *Spool) sweep(now time.Time) error {
	s.wakes.mu.Lock()
	defer s.wakes.mu.Unlock()
	w := &s.wakes
	if w.next.IsZero() && !w.swept.IsZero() && now.Sub(w.swept) < sweepEvery && !now.Before(w.swept) {
		return nil
	}
	from := w.next
	w.mu.Unlock() // the writer may need the table
	near, next, err := s.nearExpiries(from, now.Add(expiryIndexed))
	w.mu.Lock()
	if err != nil {
		return err
	}
	if len(near) > 0 {
		// The writer needs the table after its commit: let it go meanwhile.
		w.mu.Unlock()
		err = s.Apply(func(tx *Tx) error {
			for _, k := range near {
				if at, r := parseWait(k[:]); tx.waits(at, r) {
					if err := tx.put(bkWait, k[:], nil); err != nil {
						return err
					}
				}
			}
			return nil
		})
		w.mu.Lock()
		if err != nil {
			return err
		}
	}
	if from.IsZero() {
		w.swept = now
	}
	w.next = next
	return nil
}

// nearExpiries lists wake entries for expiries until horizon that are not there yet, and where to go on (zero: all
// seen).
func (s *Spool) nearExpiries(from envelope.ID, horizon time.Time) (near [][waitKeySize]byte, next envelope.ID, err error) {
	ms := horizon.UnixMilli()
	err = s.view(func(b *bolt.Tx) error {
		tx := &Tx{s: s, tx: b}
		c := tx.bucket(bkItem).Cursor()
		n := 0
		for k, v := c.Seek(from[:]); k != nil; k, v = c.Next() {
			if n == sweepChunk {
				next = envelope.ID(k)
				return nil
			}
			n++
			h, err := parseHead(v)
			if err != nil {
				s.poison(envelope.ID(k), err)
				continue
			}
			if at := h.wakes(); at != 0 && at <= ms {
				key := waitKey(at, envelope.ID(k), wholeItem)
				if tx.bucket(bkWait).Get(key[:]) == nil {
					near = append(near, key)
				}
			}
		}
		return nil
	})
	return near, next, err
}
