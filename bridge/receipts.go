package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// Kinds of what was sealed, as spool.Sent.Kind keeps them.
const (
	sentBundle  uint8 = 1 // Refs are the legs inside
	sentHop     uint8 = 2 // a hop box: Inner names our bundle, or Refs[0] the transit item
	sentControl uint8 = 3 // records only; nobody waits for its receipt
)

// arrival is one line of the log after a receipt was committed.
type arrival struct {
	item *spool.Item
	leg  int
	word string
}

// held takes a receipt: what the peer of a session says it has durably. A range is believed only where its check
// agrees with our own record of every number in it; anything else stays unacknowledged. It returns false when the
// receipt speaks of numbers that were never issued, which only a rolled-back or cloned spool explains.
func (b *Bridge) held(tx *spool.Tx, peer envelope.NodeID, h *envelope.Held, now time.Time) (ok bool, log []arrival, err error) {
	rec, err := tx.Session(h.Session)
	if errors.Is(err, spool.ErrNotFound) {
		return true, nil, nil // a session erased long ago, or a receipt gone astray
	}
	if err != nil || rec.Peer != peer {
		return true, nil, err
	}
	ok = true
	changed := false
	for _, r := range h.Ranges {
		if r.End() > rec.NextSeq {
			ok = false
			continue
		}
		news, believed, err := b.verify(tx, rec, r)
		if err != nil {
			return ok, log, err
		}
		if !believed {
			ok = false
			continue
		}
		for _, s := range news {
			if !rec.Acked.Add(s.Seq, seal.ItemCheck(s.Seq, s.Salt)) {
				continue
			}
			changed = true
			l, err := b.acked(tx, s, now)
			if err != nil {
				return ok, log, err
			}
			log = append(log, l...)
		}
	}
	if changed {
		rec.Heard = now
		err = tx.PutSession(rec)
	}
	return ok, log, err
}

// verify compares one range of a receipt with what was sent and what is acknowledged already.
func (b *Bridge) verify(tx *spool.Tx, rec *spool.Session, r envelope.Range) (news []*spool.Sent, believed bool, err error) {
	var sum envelope.Check
	seq := r.First
	for _, a := range rec.Acked {
		if a.End() <= r.First || a.First >= r.End() {
			continue
		}
		if a.First < r.First || a.End() > r.End() {
			return nil, a.First <= r.First && a.End() >= r.End(), nil // an old receipt: nothing new in it
		}
		if seq < a.First {
			part, c, full, err := b.sentBetween(tx, rec.ID, seq, a.First)
			if err != nil || !full {
				return nil, false, err
			}
			news, sum = append(news, part...), sum.XOR(c)
		}
		sum = sum.XOR(a.Check)
		seq = a.End()
	}
	if seq < r.End() {
		part, c, full, err := b.sentBetween(tx, rec.ID, seq, r.End())
		if err != nil || !full {
			return nil, false, err
		}
		news, sum = append(news, part...), sum.XOR(c)
	}
	return news, sum == r.Check, nil
}

// sentBetween reads what was sent under [from, to) of a session; full is false when a number is missing.
func (b *Bridge) sentBetween(tx *spool.Tx, id [8]byte, from, to uint64) (out []*spool.Sent, sum envelope.Check, full bool, err error) {
	next := from
	full = true
	err = tx.SentRange(id, from, to-from, func(s *spool.Sent) error {
		if s.Seq != next {
			full = false
		}
		next = s.Seq + 1
		sum = sum.XOR(seal.ItemCheck(s.Seq, s.Salt))
		out = append(out, s)
		return nil
	})
	return out, sum, full && next == to, err
}

// acked moves custody of what one sealed item carried.
func (b *Bridge) acked(tx *spool.Tx, s *spool.Sent, now time.Time) (log []arrival, err error) {
	if err := b.cardAcked(tx, s); err != nil {
		return nil, err
	}
	if !isLive(s.Carrier) && s.Packet != ([32]byte{}) {
		if err := tx.KV(finishedPackets).Put(s.Packet[:], timeBytes(now)); err != nil {
			return nil, err
		}
	}
	switch s.Kind {
	case sentBundle:
		for _, ref := range s.Refs {
			a, err := b.moveLeg(tx, ref, spool.DestHeld, now, "arrived at "+b.Policy().nodeName(s.Next))
			if err != nil {
				return log, err
			}
			if a != nil {
				log = append(log, *a)
			}
		}
	case sentHop:
		if s.InnerSession == ([8]byte{}) {
			for _, ref := range s.Refs {
				if _, err := b.moveLeg(tx, ref, spool.Finish, now, "handed on to "+b.Policy().nodeName(s.Next)); err != nil {
					return log, err
				}
			}
			break
		}
		inner, err := tx.Sent(s.InnerSession, s.InnerSeq)
		if errors.Is(err, spool.ErrNotFound) {
			break // the destination's own receipt was faster
		}
		if err != nil {
			return log, err
		}
		for _, ref := range inner.Refs {
			if _, err := b.moveLeg(tx, ref, spool.HopHeld, now, "in custody of "+b.Policy().nodeName(s.Next)); err != nil {
				return log, err
			}
		}
	}
	return log, tx.DeleteSent(s.Session, s.Seq)
}

// moveLeg applies one custody event to a leg, if it is still there. A report, and anything that this node only relays,
// has no outcome: it ends where its destination has it.
func (b *Bridge) moveLeg(tx *spool.Tx, ref spool.Ref, e spool.Event, now time.Time, what string) (*arrival, error) {
	item, err := tx.Item(ref.ID)
	if errors.Is(err, spool.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if ref.Leg >= len(item.Legs) {
		return nil, nil
	}
	leg := &item.Legs[ref.Leg]
	if leg.State == spool.Done {
		return nil, nil
	}
	if e == spool.DestHeld && item.Env.Kind == envelope.KindReport {
		e = spool.Finish
	}
	next, ok := spool.Next(leg.State, e)
	if !ok || next == leg.State {
		return nil, nil
	}
	leg.State = next
	switch next {
	case spool.Arrived:
		leg.At = item.Env.Expires.Add(b.grace(leg))
		leg.Attempts = 0
	case spool.Done, spool.Due:
		leg.At = time.Time{}
	}
	item.AddLog(now, next.String(), what)
	return &arrival{item: item, leg: ref.Leg, word: what}, tx.Save(item)
}

// refused reacts to a neighbour or destination that could not use an item: what it carried becomes due again under
// another session, at most once per session and hour.
func (b *Bridge) refused(tx *spool.Tx, peer envelope.NodeID, r *envelope.Refused, now time.Time) error {
	s, err := b.refusedSent(tx, r)
	if err != nil || s == nil {
		return err
	}
	rec, err := tx.Session(s.Session)
	if err != nil {
		if errors.Is(err, spool.ErrNotFound) {
			return nil
		}
		return err
	}
	if s.Next != peer && rec.Peer != peer {
		return nil
	}
	kv := tx.KV("refusals")
	key := append([]byte{}, s.Session[:]...)
	if v := kv.Get(key); len(v) == 8 && now.Sub(time.UnixMilli(int64(binary.BigEndian.Uint64(v)))) < time.Hour {
		return nil
	}
	if err := kv.Put(key, timeBytes(now)); err != nil {
		return err
	}
	b.log.Warn("refused by a peer", "peer", b.Policy().nodeName(peer), "reason", r.Reason.String(), "text", esc(r.Text))
	switch r.Reason {
	case envelope.ReasonUnopenable, envelope.ReasonKeyErased, envelope.ReasonWindow:
		if rec.State != sesDraining {
			rec.State = sesDraining
			if err := tx.PutSession(rec); err != nil {
				return err
			}
		}
		b.ses.drainOne(rec.ID)
	}
	for _, ref := range s.Refs {
		if _, err := b.moveLeg(tx, ref, spool.Refuse, now, fmt.Sprintf("refused by %s: %s", b.Policy().nodeName(peer), r.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// refusedSent finds what a refusal speaks of; nil when it is not known (any more).
func (b *Bridge) refusedSent(tx *spool.Tx, r *envelope.Refused) (*spool.Sent, error) {
	var s *spool.Sent
	var err error
	if r.Session != ([8]byte{}) {
		s, err = tx.Sent(r.Session, r.Seq)
		if err == nil && [8]byte(s.Salt[:8]) != r.Salt {
			return nil, nil
		}
	} else {
		s, err = tx.SentByPacket(r.Packet)
	}
	if errors.Is(err, spool.ErrNotFound) {
		return nil, nil
	}
	if err == nil && s.Kind == sentHop && s.InnerSession != ([8]byte{}) {
		inner, err := tx.Sent(s.InnerSession, s.InnerSeq)
		if errors.Is(err, spool.ErrNotFound) {
			return s, nil
		}
		return inner, err
	}
	return s, err
}

// renewed reacts to a peer that lost or renewed its memory: sessions to it drain, and everything without an outcome
// goes again.
func (b *Bridge) renewed(peer envelope.NodeID, keep *session) error {
	if err := b.ses.drain(b, peer, keep); err != nil {
		return err
	}
	dest := spool.NodeDest(peer)
	for _, st := range []spool.State{spool.Sealed, spool.Travelling, spool.Arrived} {
		var after envelope.ID
		for {
			items, more, err := b.spool.List(spool.Query{Dest: dest, State: st, After: after, Limit: 500})
			if err != nil {
				return err
			}
			for _, it := range items {
				after = it.Env.ID
				for k := range it.Legs {
					if it.Legs[k].Dest != dest || it.Legs[k].State != st {
						continue
					}
					err := b.spool.Apply(func(tx *spool.Tx) error {
						_, err := b.moveLeg(tx, spool.Ref{ID: after, Leg: k}, spool.PeerRenewed, b.now(), "the peer has a new incarnation")
						return err
					})
					if err != nil {
						return err
					}
				}
			}
			if !more || len(items) == 0 {
				break
			}
		}
	}
	return nil
}

// drainOne stops sealing under one session.
func (s *sessions) drainOne(id [8]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.keys.ID == id {
			x.state = sesDraining
		}
	}
}

// timeBytes is a time as eight bytes, Unix milliseconds.
func timeBytes(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t.UnixMilli())) }
