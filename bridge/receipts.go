package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// said is what a receipt tells besides what arrived.
type said uint8

const (
	saidTrue   said = iota
	saidOurs        // it speaks of packets that were never sent: this spool was put back or copied
	saidTheirs      // the peer lacks what it had acknowledged: its spool was put back
)

// held takes a receipt: what the peer of a session says it has durably. A range is believed only where its check
// agrees with our own record of every number in it; anything else stays unacknowledged.
//
// The receipts of one life of the peer are growing sets, each within the next. So one that tells news and yet lacks
// what was acknowledged before comes from a peer that was put back; and numbers never given out here, or with other
// salts, mean that this spool was. Either is acted upon once: the session is sealed under no more.
func (b *Bridge) held(tx *spool.Tx, peer envelope.NodeID, h *envelope.Held, now time.Time) (w said, log []arrival, err error) {
	rec, err := tx.Session(h.Session)
	if errors.Is(err, spool.ErrNotFound) {
		return saidTrue, nil, nil // a session erased long ago, or a receipt gone astray
	}
	if err != nil || rec.Peer != peer {
		return saidTrue, nil, err
	}
	var news []*spool.Sent
	lacks := !covers(h.Ranges, rec.Acked)
	grown := false
	for _, r := range h.Ranges {
		if r.End() > rec.NextSeq {
			w = saidOurs
			continue
		}
		if lacks && straddles(rec.Acked, r) {
			grown = true // no check of such a range can be made
			continue
		}
		part, believed, err := b.verify(tx, rec, r)
		if err != nil {
			return w, nil, err
		}
		if !believed {
			w = saidOurs
			continue
		}
		news = append(news, part...)
	}
	if w == saidTrue && lacks && (grown || len(news) > 0) {
		w = saidTheirs
	}
	for _, s := range news {
		if !rec.Acked.Add(s.Seq, seal.ItemCheck(s.Seq, s.Salt)) {
			continue
		}
		l, err := b.acked(tx, s, now)
		if err != nil {
			return w, log, err
		}
		log = append(log, l...)
	}
	if w != saidTrue {
		live := rec.State != sesDraining
		ours, err := b.suspectSession(tx, rec)
		if err != nil {
			return w, log, err
		}
		if w == saidOurs && !ours || w == saidTheirs && !live {
			w = saidTrue // known already, or about another life
		}
	}
	if len(news) > 0 {
		rec.Heard = now
		err = tx.PutSession(rec)
	}
	return w, log, err
}

// covers reports whether each range of b lies inside one of a.
func covers(a, b envelope.Ranges) bool {
	for _, x := range b {
		in := false
		for _, y := range a {
			in = in || y.First <= x.First && x.End() <= y.End()
		}
		if !in {
			return false
		}
	}
	return true
}

// straddles reports whether r reaches over the edge of a range of set without holding it.
func straddles(set envelope.Ranges, r envelope.Range) bool {
	for _, a := range set {
		if a.End() <= r.First || a.First >= r.End() {
			continue
		}
		inside := a.First <= r.First && r.End() <= a.End()
		if !inside && (a.First < r.First || r.End() < a.End()) {
			return true
		}
	}
	return false
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
	if err := closeAcked(tx, s, now); err != nil {
		return nil, err
	}
	if !isLive(s.Carrier) && !isOneWay(s.Carrier) && s.Packet != ([32]byte{}) {
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
			a, err := b.moveLeg(tx, ref, spool.HopHeld, now, "in custody of "+b.Policy().nodeName(s.Next))
			if err != nil {
				return log, err
			}
			if a != nil {
				log = append(log, *a)
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
	if e == spool.DestHeld {
		switch item.Env.Kind {
		case envelope.KindReport, envelope.KindResult:
			e = spool.Finish
		case envelope.KindJob:
			if err := b.jobs.Arrived(tx, item); err != nil {
				return nil, err
			}
		}
	}
	next, ok := spool.Next(leg.State, e)
	if !ok || next == leg.State {
		return nil, nil
	}
	if next == spool.Due && item.Gone {
		item.AddLog(now, "not again", "no copy was kept here: "+what)
		return nil, tx.Save(item)
	}
	leg.State = next
	switch next {
	case spool.Arrived:
		leg.At = item.Deadline().Add(b.grace(leg))
		leg.Attempts = 0
	case spool.Travelling:
		leg.At = now.Add(b.journey(leg)) // what is usual with the next hop says nothing of the way behind it
		if leg.KeepHop {
			leg.At = item.Deadline().Add(b.grace(leg)) // it cannot go again
		}
	case spool.Done, spool.Due:
		leg.At = time.Time{}
	}
	item.AddLog(now, next.String(), what)
	return &arrival{item: item, leg: ref.Leg, word: what}, tx.Save(item)
}

// refused reacts to a neighbour or destination that could not use an item, at most once per session and hour: what it
// carried goes again, under another session where the keys were the trouble, else after a pause. A refusal of a bundle
// that this node only relayed is returned: it goes back to the neighbour that brought the bundle. lost reports that the
// peer has lost its memory of a session.
func (b *Bridge) refused(tx *spool.Tx, peer envelope.NodeID, r *envelope.Refused, now time.Time) (back *envelope.NodeID, lost bool, err error) {
	s, err := b.refusedSent(tx, r)
	if err != nil {
		return nil, false, err
	}
	if s == nil {
		return relayedFrom(tx, peer, r.Packet[:]), false, nil
	}
	rec, err := tx.Session(s.Session)
	if err != nil {
		return nil, false, gone(err)
	}
	if s.Next != peer && rec.Peer != peer && !slices.Contains(b.Policy().paths(s.Next), peer) {
		return nil, false, nil
	}
	kv := tx.KV("refusals")
	if recent(kv.Get(s.Session[:]), now, time.Hour) {
		return nil, false, nil
	}
	if err := kv.Put(s.Session[:], timeBytes(now)); err != nil {
		return nil, false, err
	}
	name := b.Policy().nodeName(peer)
	b.log.Warn("refused by a peer", "peer", name, "reason", r.Reason.String(), "text", esc(r.Text))
	keys := r.Reason == envelope.ReasonUnopenable || r.Reason == envelope.ReasonKeyErased || r.Reason == envelope.ReasonWindow
	if keys {
		// What the peer once knew and cannot open any more it has lost, and with it what it had taken and not delivered.
		// A live session it knew, whether or not it has acknowledged something in this one: perhaps that was in another.
		lost = r.Reason == envelope.ReasonUnopenable && rec.Peer == peer && (rec.State == sesLive || rec.State != sesDraining && len(rec.Acked) > 0)
		if rec.State != sesDraining {
			rec.State = sesDraining
			if err := tx.PutSession(rec); err != nil {
				return nil, false, err
			}
		}
		b.ses.drainOne(rec.ID)
	}
	why := strings.TrimSpace(fmt.Sprintf("refused by %s: %s %s", name, r.Reason, r.Text))
	for _, ref := range s.Refs {
		item, err := tx.Item(ref.ID)
		if err == nil && item.Transit != nil && !keys && r.Reason != envelope.ReasonQuota && r.Reason != envelope.ReasonCorrupt {
			// The next hop will never take it: its origin has a copy, and perhaps another way.
			back = &item.Transit.From
			copy(r.Packet[:], item.Env.Sum[:])
			if _, err := b.moveLeg(tx, ref, spool.Finish, now, why); err != nil {
				return nil, false, err
			}
			continue
		}
		if err := b.refuseLeg(tx, ref, now, why); err != nil {
			return nil, false, err
		}
	}
	return back, lost, nil
}

// refuseLeg makes a leg due that a peer could not use, at once for the first time and then later and later: a new
// session need not help.
func (b *Bridge) refuseLeg(tx *spool.Tx, ref spool.Ref, now time.Time, what string) error {
	a, err := b.moveLeg(tx, ref, spool.Refuse, now, what)
	if err != nil || a == nil {
		return err
	}
	leg := &a.item.Legs[ref.Leg]
	if leg.State != spool.Due {
		return nil
	}
	if leg.Attempts++; leg.Attempts > 1 {
		leg.State, leg.At = spool.Deferred, now.Add(b.backoff(leg.Attempts-1))
	}
	leg.Last = envelope.Status{Code: 451, Enhanced: "4.4.0", Text: envelope.OneLine(what, 200)}
	return tx.Save(a.item)
}

// journey is how long a leg that the next hop has taken may be without news of its destination.
func (b *Bridge) journey(leg *spool.Leg) time.Duration {
	const most = 14 * 24 * time.Hour
	base := 3 * 24 * time.Hour
	for _, c := range b.Policy().Contacts {
		if c.Overdue > 0 && PublicURL(c.URL) == leg.Carrier {
			base = c.Overdue
		}
	}
	for range min(leg.Attempts, 20) {
		if base *= 2; base > most {
			return most
		}
	}
	return base
}

// passedOn remembers which neighbour brought a relayed bundle: hash → time until which it matters, neighbour.
const passedOn = "passed"

// notePassed remembers where a relayed bundle came from.
func notePassed(tx *spool.Tx, item *spool.Item) error {
	return tx.KV(passedOn).Put(item.Env.Sum[:], append(timeBytes(item.Env.Expires), item.Transit.From[:]...))
}

// relayedFrom is the neighbour that brought a bundle, unless that is the one that speaks of it now.
func relayedFrom(tx *spool.Tx, peer envelope.NodeID, sum []byte) *envelope.NodeID {
	v := tx.KV(passedOn).Get(sum)
	if len(v) != 8+len(peer) {
		return nil
	}
	from := envelope.NodeID(v[8:])
	if from == peer {
		return nil
	}
	return &from
}

// payloads finds the bundle in a hop box of ours by its hash: time, session, number.
const payloads = "payloads"

// notePayload remembers the hash of a bundle that leaves behind a hop box: the destination knows no other name of it.
func notePayload(tx *spool.Tx, s *spool.Sent, sum [32]byte, now time.Time) error {
	v := append(timeBytes(now), s.Session[:]...)
	return tx.KV(payloads).Put(sum[:], binary.BigEndian.AppendUint64(v, s.Seq))
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
	} else if v := tx.KV(payloads).Get(r.Packet[:]); len(v) == 24 {
		s, err = tx.Sent([8]byte(v[8:16]), binary.BigEndian.Uint64(v[16:]))
	} else {
		s, err = tx.SentByPacket(r.Packet)
	}
	if err == nil {
		var in *spool.Sent
		if in, err = carried(tx, s); err == nil && r.Reason != envelope.ReasonUnopenable && r.Reason != envelope.ReasonKeyErased && r.Reason != envelope.ReasonWindow {
			s = in
		} else if err == nil && in != s {
			// the neighbour cannot open its hop box: that session is the trouble, the legs are the bundle's
			hop := *s
			hop.Refs = in.Refs
			s = &hop
		}
	}
	if errors.Is(err, spool.ErrNotFound) {
		return nil, nil
	}
	return s, err
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
