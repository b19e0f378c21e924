package bridge

import (
	"errors"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// A session that is sealed under no more is erased before its accepting life is over when both ends have said that
// nothing more will come: each tells the other, under another session, which numbers it has used (docs/seal.md).

// closing is what a session's record keeps of its end, as spool.Session.Extra.
type closing struct {
	told bool      // the peer has our word that nothing more comes
	done bool      // we have the peer's, and all that it speaks of
	lies bool      // some of its packets were put on folders, where they may still lie
	at   time.Time // when both were known
}

// lieFor is how long a session outlives its end when its packets may still lie on folders: once it is erased, they
// would be taken for a stranger's. Receipts that nobody fetched are cleared away before.
const lieFor = receiptLife + 24*time.Hour

// over reports whether the session can be erased.
func (c closing) over(now time.Time) bool {
	return c.told && c.done && (!c.lies || !c.at.IsZero() && now.Sub(c.at) > lieFor)
}

func parseClosing(b []byte) (c closing) {
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			c.told = d.Bool()
		case 2:
			c.done = d.Bool()
		case 3:
			c.lies = d.Bool()
		case 4:
			c.at = d.Time()
		}
	}
	return c
}

// put stores it in a session's record.
func (c closing) put(rec *spool.Session, now time.Time) {
	if c.told && c.done && c.at.IsZero() {
		c.at = now
	}
	var e envelope.Enc
	e.Bool(1, c.told)
	e.Bool(2, c.done)
	e.Bool(3, c.lies)
	e.Time(4, c.at)
	rec.Extra = e.B
}

// liesOn notes in a session's record that its packets are put on folders.
func liesOn(rec *spool.Session, now time.Time) {
	if c := parseClosing(rec.Extra); !c.lies {
		c.lies = true
		c.put(rec, now)
	}
}

// closeAgain is after how long the word that a session is over is repeated while nothing tells that it has arrived.
const closeAgain = 24 * time.Hour

// closes returns the records that end draining sessions with a peer.
func (b *Bridge) closes(tx *spool.Tx, peer envelope.NodeID, now time.Time) (out []record, err error) {
	for _, x := range b.ses.over(peer, now) {
		rec, err := tx.Session(x.keys.ID)
		if errors.Is(err, spool.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if parseClosing(rec.Extra).told {
			continue
		}
		c, ok, err := closeOf(tx, rec)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, record{envelope.RecordClose, c.Append(nil)})
		}
	}
	return out, nil
}

// over returns the draining sessions with a peer whose end was not told lately, and notes that it is told now.
func (s *sessions) over(peer envelope.NodeID, now time.Time) (out []*session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.peer == peer && x.state == sesDraining && now.Sub(x.ending) >= closeAgain {
			x.ending = now
			out = append(out, x)
		}
	}
	return out
}

// closeOf makes the record that ends this node's direction of a session; false while something in it still matters.
func closeOf(tx *spool.Tx, rec *spool.Session) (*envelope.Close, bool, error) {
	c := &envelope.Close{Session: rec.ID, Next: rec.NextSeq}
	for _, a := range rec.Acked {
		c.Check = c.Check.XOR(a.Check)
	}
	open := false
	err := tx.SentRange(rec.ID, 0, 1<<48, func(s *spool.Sent) error {
		in, err := carried(tx, s)
		if errors.Is(err, spool.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, ref := range in.Refs {
			item, err := tx.Item(ref.ID)
			if errors.Is(err, spool.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			open = open || ref.Leg < len(item.Legs) && item.Legs[ref.Leg].State != spool.Done
		}
		return nil
	})
	if err != nil || open {
		return nil, false, err
	}
	next := uint64(0)
	void := func(end uint64) {
		if next < end {
			c.Void = append(c.Void, envelope.Range{First: next, Count: end - next})
		}
	}
	for _, a := range rec.Acked {
		void(a.First)
		next = a.End()
	}
	void(rec.NextSeq)
	return c, len(c.Void) <= envelope.MaxRanges, nil
}

// closed takes a peer's word that nothing more comes in a session.
func (b *Bridge) closed(tx *spool.Tx, peer envelope.NodeID, c *envelope.Close) error {
	rec, err := tx.Session(c.Session)
	if errors.Is(err, spool.ErrNotFound) || err == nil && rec.Peer != peer {
		return nil
	}
	if err != nil {
		return err
	}
	state := parseClosing(rec.Extra)
	if state.done || !complete(tx, rec, c) {
		return nil
	}
	state.done = true
	state.put(rec, b.now())
	rec.State = sesDraining
	b.ses.drainOne(rec.ID)
	return tx.PutSession(rec)
}

// complete reports whether everything that a close speaks of has come: each number below its end is here, or is void.
func complete(tx *spool.Tx, rec *spool.Session, c *envelope.Close) bool {
	check := envelope.Check{}
	for _, r := range rec.Recv {
		if r.End() > c.Next {
			return false // it speaks of less than there was
		}
		check = check.XOR(r.Check)
	}
	all := append(envelope.Ranges{}, c.Void...)
	for _, r := range rec.Recv {
		for _, v := range c.Void {
			// what was not acknowledged may have come all the same
			for n := max(r.First, v.First); n < min(r.End(), v.End()); n++ {
				salt, known := tx.Salt(rec.ID, n)
				if !known {
					return false
				}
				check = check.XOR(seal.ItemCheck(n, salt))
			}
		}
		all = append(all, r)
	}
	if check != c.Check {
		return false
	}
	for next := uint64(0); next < c.Next; {
		was := next
		for _, r := range all {
			if r.First <= next && next < r.End() {
				next = r.End()
			}
		}
		if next == was {
			return false
		}
	}
	return true
}

// closeAcked notes that a peer has read the ends of sessions that a bundle carried.
func closeAcked(tx *spool.Tx, s *spool.Sent, now time.Time) error {
	d := envelope.Dec{B: s.Recipe}
	for s.Kind != sentHop && d.Next() {
		if d.Tag != recipeRecord {
			continue
		}
		v := d.List()
		if len(v) < 2 || envelope.RecordType(v[0]) != envelope.RecordClose {
			continue
		}
		c, err := envelope.ParseClose(v[1:])
		if err != nil {
			continue
		}
		rec, err := tx.Session(c.Session)
		if errors.Is(err, spool.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		state := parseClosing(rec.Extra)
		state.told = true
		state.put(rec, now)
		if err := tx.PutSession(rec); err != nil {
			return err
		}
	}
	return nil
}

// bury erases the sessions that both ends have closed.
func (s *sessions) bury(b *Bridge, now time.Time) error {
	over := map[[8]byte]bool{}
	err := b.spool.View(func(tx *spool.Tx) error {
		all, err := tx.Sessions()
		for _, r := range all {
			if r.State == sesDraining && parseClosing(r.Extra).over(now) {
				over[r.ID] = true
			}
		}
		return err
	})
	if err != nil || len(over) == 0 {
		return err
	}
	return s.remove(b, func(x *session) bool { return x.state == sesDraining && over[x.keys.ID] })
}
