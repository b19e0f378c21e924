package spool

import (
	"bytes"
	"encoding/base32"
	"fmt"
	"sort"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/envelope"
)

// Count is what one destination has in the spool.
type Count struct {
	Dest   Dest
	States [NumStates]int // legs by State; Done stays 0
	Bytes  int64          // content of these legs
	Oldest time.Time      // when the item with the smallest id entered
}

// Total is the number of legs.
func (c *Count) Total() (n int) {
	for _, x := range c.States {
		n += x
	}
	return n
}

// Counts tells what every destination has, sorted; destinations without legs are left out.
func (s *Spool) Counts() ([]Count, error) {
	s.tally.mu.Lock()
	type work struct {
		no uint32
		tallyOf
	}
	var all []work
	for no, t := range s.tally.by {
		if t.live() > 0 {
			all = append(all, work{no, *t})
		}
	}
	s.tally.mu.Unlock()
	out := make([]Count, 0, len(all))
	for _, w := range all {
		d, _ := s.dests.dest(w.no)
		c := Count{Dest: d, States: w.n, Bytes: w.bytes}
		id, entered, err := s.oldest(w.no, w.oldest)
		if err != nil {
			return nil, err
		}
		c.Oldest = entered
		if !w.known && !id.IsZero() {
			s.tally.learn(w.no, w.oldest, id)
		}
		out = append(out, c)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Dest < out[j].Dest })
	return out, nil
}

// learn keeps the answer of oldest, if nothing has changed since.
func (t *tallies) learn(no uint32, bound, id envelope.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := t.by[no]; d != nil && !d.known && d.oldest == bound {
		d.oldest = id // a lower bound still, in case an older leg came meanwhile and went
	}
}

// oldest finds the first item from id on with a live leg to a destination.
func (s *Spool) oldest(no uint32, from envelope.ID) (id envelope.ID, entered time.Time, err error) {
	err = s.view(func(b *bolt.Tx) error {
		c := b.Bucket(bucketNames[bkItem].name).Cursor()
		for k, v := c.Seek(from[:]); k != nil; k, v = c.Next() {
			h, err := parseHead(v)
			if err != nil {
				continue
			}
			if h.matches(no, 0) {
				id, entered = envelope.ID(k), fromMilli(h.entered)
				return nil
			}
		}
		return nil
	})
	return id, entered, err
}

// matches reports whether a leg goes to destination no (0: any) in state st (0: any that has not ended).
func (h *head) matches(no uint32, st State) bool {
	for i := range h.nlegs {
		l := h.leg(i)
		if (no == 0 || l.dest == no) && (l.state == st || st == 0 && l.state != Done) {
			return true
		}
	}
	return false
}

// Query selects items for List. Zero fields select all.
type Query struct {
	Dest  Dest
	State State
	After envelope.ID // begin behind this id
	Limit int         // 0: no limit
	Match func(*Item) bool
}

// List returns items that have not finished, by id, that is by age, and whether there are more than Limit. An item
// is selected when one of its legs has both the destination and the state asked for.
func (s *Spool) List(q Query) (items []*Item, more bool, err error) {
	no := uint32(0)
	if q.Dest != "" {
		var ok bool
		if no, ok = s.dests.number(q.Dest); !ok {
			return nil, false, nil
		}
	}
	err = s.View(func(tx *Tx) error {
		c := tx.bucket(bkItem).Cursor()
		k, v := c.Seek(q.After[:])
		if k != nil && bytes.Equal(k, q.After[:]) {
			k, v = c.Next()
		}
		for ; k != nil; k, v = c.Next() {
			h, err := parseHead(v)
			if err != nil {
				s.poison(envelope.ID(k), err)
				continue
			}
			if !h.matches(no, q.State) {
				continue
			}
			it, err := tx.parse(envelope.ID(k), v)
			if err != nil || q.Match != nil && !q.Match(it) {
				continue
			}
			if q.Limit > 0 && len(items) == q.Limit {
				more = true
				return nil
			}
			items = append(items, it)
		}
		return nil
	})
	return items, more, err
}

// Find reads an item from the spool, or from the trace of finished ones (done). It fails with ErrNotFound.
func (s *Spool) Find(id envelope.ID) (it *Item, done bool, err error) {
	err = s.View(func(tx *Tx) error {
		rec := tx.bucket(bkItem).Get(id[:])
		if rec == nil {
			rec, done = tx.bucket(bkTrace).Get(id[:]), true
		}
		if rec == nil {
			return itemError("reading", id, ErrNotFound)
		}
		var err error
		if !done {
			it, err = tx.parse(id, rec)
			return err
		}
		if it, _, err = parseRecord(rec, s.dests.dest); err != nil {
			return itemError("reading the trace of", id, err)
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return it, done, nil
}

// maxFound bounds the answer of FindPrefix.
const maxFound = 100

// FindPrefix lists the ids, in the spool or its trace, whose text begins with prefix: at most 100.
func (s *Spool) FindPrefix(prefix string) ([]envelope.ID, error) {
	prefix = strings.ToUpper(prefix)
	from, err := prefixStart(prefix)
	if err != nil {
		return nil, err
	}
	var ids []envelope.ID
	err = s.View(func(tx *Tx) error {
		for _, k := range []bucket{bkItem, bkTrace} {
			c := tx.bucket(k).Cursor()
			for k, _ := c.Seek(from[:]); len(k) == 16 && len(ids) < maxFound; k, _ = c.Next() {
				id := envelope.ID(k)
				if !strings.HasPrefix(id.String(), prefix) {
					break
				}
				ids = append(ids, id)
			}
		}
		return nil
	})
	sort.Slice(ids, func(i, j int) bool { return less(ids[i], ids[j]) })
	return ids, err
}

// prefixStart is the smallest id whose text begins with prefix.
func prefixStart(prefix string) (id envelope.ID, err error) {
	const chars = 26 // of the text of an id; the last carries 3 bits
	if len(prefix) > chars {
		return id, fmt.Errorf("%q is longer than an envelope id", prefix)
	}
	text := prefix + strings.Repeat("0", chars-len(prefix))
	b, err := base32.HexEncoding.WithPadding(base32.NoPadding).DecodeString(text)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q cannot begin an envelope id (0-9 and A-V)", prefix)
	}
	return envelope.ID(b), nil
}
