package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// enter commits everything that a verified packet holds.
func (in *incoming) enter(ctx context.Context) error {
	b := in.b
	if in.guest != nil {
		if len(in.cards) == 0 {
			return in.offerFault(seal.ErrUnknownPeer)
		}
		if err := b.honour(in.guest, in.proof, in.cards[0]); err != nil {
			return bad(envelope.ReasonUnknown, err)
		}
		b.ses.adopt(in.guest)
		in.restage()
	}
	for _, e := range in.reports {
		if err := b.reported(e); err != nil {
			return fmt.Errorf("take the report on %s: %w", e.Report.Ref, err)
		}
	}
	for _, c := range in.cards {
		if err := b.newCard(in.peer, c); err != nil {
			b.log.Warn("card not taken", "peer", b.Policy().nodeName(in.peer), "err", err)
		}
	}
	return in.enterMarks(ctx)
}

// enterMarks is the transaction: replay sets, envelopes, duplicate memory, receipts.
func (in *incoming) enterMarks(context.Context) error {
	b := in.b
	now := b.now()
	var logs []arrival
	var entered []*spool.Item
	var fault string   // what a peer has seen of this spool that only a copy explains
	var back []passing // refusals of what was only relayed here
	var lost bool      // the peer lacks what it had acknowledged: it was put back from an older copy
	apply := b.spool.ApplyUrgent
	for _, a := range in.adds {
		if a.item.Env.Kind != envelope.KindReport {
			apply = b.spool.Apply
		}
	}
	if in.hasJobs() {
		apply = b.spool.Apply
	}
	batch := b.jobs.Batch()
	err := apply(func(tx *spool.Tx) error {
		batch.Reset()
		logs, entered, back, fault, lost = logs[:0], entered[:0], nil, "", false
		for i := range in.marks {
			if err := in.enterMark(tx, &in.marks[i], now); err != nil {
				return err
			}
		}
		for _, a := range in.adds {
			if err := b.add(tx, a); err != nil {
				return err
			}
			if a.entered != nil {
				entered = append(entered, a.entered)
			}
		}
		for _, e := range in.remember {
			if err := tx.Remember(e.Origin, e.ID, e.Expires.Add(memoryGrace)); err != nil {
				return err
			}
		}
		for _, h := range in.helds {
			said, l, err := b.held(tx, in.peer, h, now)
			if err != nil {
				return err
			}
			if said == saidOurs {
				fault = "a receipt for packets that were never sent from here"
			}
			lost = lost || said == saidTheirs
			logs = append(logs, l...)
		}
		for _, f := range in.forks {
			ours, err := b.forked(tx, in.peer, f)
			if err != nil {
				return err
			}
			if ours {
				fault = "a number that was used twice"
			}
		}
		for _, c := range in.closes {
			if err := b.closed(tx, in.peer, c); err != nil {
				return err
			}
		}
		for _, r := range in.resets {
			if err := b.resetBy(tx, in.peer, r, now); err != nil {
				return err
			}
		}
		for _, f := range in.refs {
			again := *f
			to, gone, err := b.refused(tx, in.peer, &again, now)
			if err != nil {
				return err
			}
			lost = lost || gone
			if to != nil {
				back = append(back, passing{*to, &again})
			}
		}
		return in.enterJobs(tx, batch)
	})
	if err != nil {
		return err
	}
	in.leaveJobs(batch)
	batch.Committed()
	in.after(entered, logs, now)
	for _, p := range back {
		b.later(p.to, record{envelope.RecordRefused, p.r.Append(nil)})
	}
	if fault != "" {
		return b.ownFault(in.peer, fault)
	}
	if lost {
		b.log.Error("a peer has lost what it had acknowledged: what has no outcome goes again", "peer", b.Policy().nodeName(in.peer))
		return b.renewed(in.peer, nil)
	}
	return nil
}

// passing is a refusal on its way back.
type passing struct {
	to envelope.NodeID
	r  *envelope.Refused
}

// after does what follows a commit: memory, log lines, dead ends.
func (in *incoming) after(entered []*spool.Item, logs []arrival, now time.Time) {
	b := in.b
	for _, it := range entered {
		if it.Env.Kind == envelope.KindMail {
			in.mails = true
			b.log.Info(fmt.Sprintf("%s: client=%s[%s]", it.Env.ID, b.Policy().nodeName(it.Env.Origin), it.Env.Origin), "service", "mochila")
			b.logActive(it)
			if hasDead(it) {
				b.bury(it.Env.ID)
			}
		}
	}
	for _, a := range in.adds {
		if a.entered == nil {
			a.discard()
		}
	}
	in.adds = nil
	for _, l := range logs {
		leg := &l.item.Legs[l.leg]
		if l.item.Env.Kind != envelope.KindMail {
			continue
		}
		if leg.KeepHop {
			b.letGo(l.item.Env.ID)
		}
		if leg.State != spool.Arrived {
			continue
		}
		for _, i := range leg.Rcpts {
			b.logDelivery(l.item, i, "arrived", b.Policy().nodeName(in.peer), envelope.Status{Code: 250, Enhanced: "2.0.0", Text: l.word}, now)
		}
	}
	for _, m := range in.marks {
		b.ses.confirm(m.ses, now)
		switch {
		case m.forked:
			b.tellFork(m)
			b.ses.oweAgain(m.ses, m.count)
		case m.owe:
			b.ses.owe(m.ses, m.count)
		}
	}
	if n := len(in.marks); n > 0 {
		var made time.Time // the newest
		for _, e := range in.remember {
			made = later(made, e.Created)
		}
		if !made.IsZero() {
			b.lookTwice(in.marks[n-1], made)
		}
		if !in.made.IsZero() && in.guest == nil {
			b.clock.peerTime(in.peer.Text(), in.made, now)
		}
	}
	b.kickContacts()
}

// restage judges the mails of a guest again, now that it is a peer.
func (in *incoming) restage() {
	for _, a := range in.adds {
		if a.item.Env.Kind == envelope.KindMail {
			a.item = in.b.arrive(a.item.Env)
		}
	}
}

func (in *incoming) discard() {
	for _, a := range in.adds {
		a.discard()
	}
	in.adds = nil
	in.leaveJobs(nil)
}

// enterMark puts one number into its session's replay set.
func (in *incoming) enterMark(tx *spool.Tx, m *mark, now time.Time) error {
	b := in.b
	rec, err := b.record(tx, m.ses)
	if err != nil {
		return err
	}
	m.count, m.forked = rec.Recv.Count(), false
	if rec.Recv.Contains(m.seq) {
		old, known := tx.Salt(rec.ID, m.seq)
		if known && old == m.salt {
			return nil // the same packet, by another way at the same moment
		}
		// The sender was put back, or copied. Its receipt tells it so: the check is that of the first with this number.
		m.forked = known
		rec.OweHeld = true
		if err := tx.KV(twins).Put(twinKey(rec.ID, m.seq, m.salt), timeBytes(now)); err != nil {
			return err
		}
		return tx.PutSession(rec)
	}
	if !rec.Recv.Add(m.seq, seal.ItemCheck(m.seq, m.salt)) {
		return bad(envelope.ReasonWindow, fmt.Errorf("more than %d gaps in the numbers of the session", envelope.MaxRanges))
	}
	m.count = rec.Recv.Count()
	lies := (in.desk == nil || !in.desk.live) && !in.greeting
	if lies {
		liesOn(rec, now)
	}
	if lies && !m.owe {
		if err := tx.KV(quietItems).Put(quietKey(rec.ID, m.seq), timeBytes(now)); err != nil {
			return err
		}
	}
	rec.OweHeld = rec.OweHeld || m.owe
	rec.Heard = now
	if rec.State == sesOffered {
		rec.State = sesLive
		if err := tx.KV(joins).Delete(rec.Peer[:]); err != nil { // the invitation has done its work
			return err
		}
	}
	if err := tx.PutSalt(rec.ID, m.seq, m.salt); err != nil {
		return err
	}
	return tx.PutSession(rec)
}

// quietItems remembers the items of which nobody waits for a receipt and which may lie on a folder for long: seen
// again there, they call for none either, else two nodes would answer each other's receipts for ever.
const quietItems = "quiet"

func quietKey(session [8]byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte{}, session[:]...), seq)
}

// taken tells whether and how an item was taken before.
type taken struct {
	known bool
	quiet bool   // nobody waits for its receipt
	count uint64 // numbers that came under its session
}

// duplicate reports whether an item was taken before. A known number with another salt is not a replay but a sender
// that was rolled back or cloned: its content decides.
func (b *Bridge) duplicate(ses *session, seq uint64, salt [16]byte) (dup taken, err error) {
	err = b.spool.View(func(tx *spool.Tx) error {
		rec, err := tx.Session(ses.keys.ID)
		if errors.Is(err, spool.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if !rec.Recv.Contains(seq) {
			return nil
		}
		old, known := tx.Salt(rec.ID, seq)
		dup = taken{known: known && old == salt, count: rec.Recv.Count()}
		dup.known = dup.known || tx.KV(twins).Get(twinKey(rec.ID, seq, salt)) != nil
		dup.quiet = dup.known && tx.KV(quietItems).Get(quietKey(rec.ID, seq)) != nil
		return nil
	})
	return dup, err
}

// memoryGrace is how long beyond its expiry an envelope is remembered.
const memoryGrace = 14 * 24 * time.Hour

// sameID is the id under which an envelope is entered whose own is taken: by one of another origin, or by one of the
// same origin for other recipients. The same things give the same id, so that it too enters once.
func sameID(e *envelope.Envelope, to []envelope.Recipient) envelope.ID {
	h := sha256.New()
	h.Write([]byte("mochila second envelope v1\x00"))
	h.Write(e.Origin[:])
	h.Write(e.ID[:])
	for i := range to {
		fmt.Fprintf(h, "%s\x00", to[i].Addr)
	}
	id := e.ID // its time stays, by which ids sort
	copy(id[6:], h.Sum(nil))
	return id
}

// add enters one staged item, unless it is here already.
func (b *Bridge) add(tx *spool.Tx, a *addition) error {
	a.entered = nil
	if a.item.Env.Kind == envelope.KindMail && tx.Seen(a.item.Env.Origin, a.item.Env.ID) {
		return nil
	}
	err := tx.Add(a.item, a.body)
	if err == nil {
		a.entered = a.item
		if a.item.Transit != nil {
			return notePassed(tx, a.item)
		}
	}
	if !errors.Is(err, spool.ErrExists) || a.item.Env.Kind != envelope.KindMail {
		return err
	}
	// Another mail has this id: one that passes here twice on its way, or a forgery. It gets an id of its own, and its
	// origin hears of it under the old one.
	again, env := *a.item, *a.item.Env
	again.Env, again.Parent = &env, a.item.Env.ID
	env.ID = sameID(a.item.Env, env.Mail.Recipients)
	if tx.Seen(env.Origin, env.ID) {
		return nil
	}
	if err := tx.Add(&again, a.body); err != nil {
		return err
	}
	a.entered = &again
	return tx.Remember(env.Origin, env.ID, env.Expires.Add(memoryGrace))
}

// before returns what was entered of an envelope earlier, also when it has ended since; nil when that is not known.
func (b *Bridge) before(e *envelope.Envelope) (*spool.Item, error) {
	item, _, err := b.spool.Find(e.ID)
	if errors.Is(err, spool.ErrNotFound) || errors.Is(err, spool.ErrPoisoned) || err == nil && (item.Env.Mail == nil || item.Env.Origin != e.Origin) {
		return nil, nil
	}
	return item, err
}

// others returns an envelope with the recipients of e that were not in it when it came before, nil when there are none:
// two ways of one mail may lead to the same node, one after the other.
func others(e *envelope.Envelope, had *spool.Item) *envelope.Envelope {
	if had == nil {
		return nil
	}
	var rest []envelope.Recipient
	for _, r := range e.Mail.Recipients {
		found := false
		for i := range had.Env.Mail.Recipients {
			found = found || had.Env.Mail.Recipients[i].Addr == r.Addr
		}
		if !found {
			rest = append(rest, r)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	second, mail := *e, *e.Mail
	second.ID, second.Mail, mail.Recipients = sameID(e, rest), &mail, rest
	return &second
}

// failed makes the report that a mail of a peer is turned down whole.
func (b *Bridge) failed(e *envelope.Envelope, s envelope.Status) (*addition, error) {
	all := &spool.Item{Env: e, Outcomes: make([]envelope.Outcome, len(e.Mail.Recipients))}
	every := make([]int, len(e.Mail.Recipients))
	for i := range every {
		every[i] = i
		all.Outcomes[i] = envelope.Outcome{Addr: e.Mail.Recipients[i].Addr, Action: envelope.ActionFailed, Status: s, At: b.now()}
	}
	return b.report(all, every, nil)
}

// tellAgain answers an envelope that came before: its origin does not know how it ended. One that has passed more nodes
// than then has come round in a circle.
func (in *incoming) tellAgain(e *envelope.Envelope, item *spool.Item) error {
	b := in.b
	if item == nil {
		return nil
	}
	if e.Hops > item.Env.Hops {
		a, err := b.failed(e, envelope.Status{Code: 554, Enhanced: "5.4.6", Text: "mail loop: it has been here before"})
		if err == nil {
			in.adds = append(in.adds, a)
		}
		return err
	}
	var told []int
	for i := range item.Outcomes {
		if item.Outcomes[i].Action.Final() {
			told = append(told, i)
		}
	}
	if len(told) == 0 {
		return nil
	}
	if b.toldAlready(item.Env.ID) {
		return nil
	}
	a, err := b.report(item, told, nil)
	if err != nil {
		return err
	}
	in.adds = append(in.adds, a)
	return nil
}

// retellEvery is how often the end of one envelope is told again at most.
const retellEvery = time.Hour

// toldAlready reports whether the end of an envelope was told again lately, and notes that it is now.
func (b *Bridge) toldAlready(id envelope.ID) bool {
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if t, ok := b.retold[id]; ok && now.Sub(t) < retellEvery {
		return true
	}
	if b.retold == nil || len(b.retold) > 100000 {
		b.retold = map[envelope.ID]time.Time{}
	}
	b.retold[id] = now
	return false
}
