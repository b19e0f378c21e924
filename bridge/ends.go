package bridge

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// addition is an item that follows from another one's end: a DSN or a report.
type addition struct {
	item    *spool.Item
	body    *spool.Body
	entered *spool.Item // what was entered of it, perhaps under another id; known after the commit
}

func (a *addition) discard() {
	if a.body != nil {
		a.body.Discard()
	}
}

// legEnd is what becomes of one leg.
type legEnd struct {
	leg    int
	final  map[int]envelope.Outcome // by recipient
	taken  map[int]bool             // recipients of whom another system tells what NOTIFY asks for
	change func(*spool.Item, *spool.Leg)
	stays  bool // the leg goes on when all of its recipients have ended: change says how
}

// conclude is concludeAll for one leg. change, if not nil, adjusts the leg when recipients are left.
func (b *Bridge) conclude(ref spool.Ref, final map[int]envelope.Outcome, dsnTaken map[int]bool, change func(*spool.Item, *spool.Leg)) (*spool.Item, error) {
	return b.concludeAll(ref.ID, []legEnd{{leg: ref.Leg, final: final, taken: dsnTaken, change: change}})
}

// concludeAll gives recipients of some legs their final outcomes, in one commit with everything that follows: the one DSN
// or report, the dead letter, the end of the item. An item that is gone, or a leg that is done, is success: somebody
// was faster.
func (b *Bridge) concludeAll(id envelope.ID, ends []legEnd) (*spool.Item, error) {
	var seen *spool.Item
	err := b.spool.Peek(func(tx *spool.Tx) (err error) { seen, err = tx.Item(id); return err })
	if errors.Is(err, spool.ErrNotFound) {
		return &spool.Item{Env: &envelope.Envelope{ID: id, Mail: &envelope.Mail{}}}, nil
	}
	if err != nil {
		return nil, err
	}
	now := b.now()
	ends = slices.DeleteFunc(slices.Clone(ends), func(e legEnd) bool { return seen.Legs[e.leg].State == spool.Done })
	var fresh []int // recipients that become final now
	taken := map[int]bool{}
	for _, e := range ends {
		for i, o := range e.final {
			if i >= len(seen.Outcomes) || seen.Outcomes[i].Action.Final() {
				continue
			}
			o.Addr = seen.Outcomes[i].Addr
			if o.At.IsZero() {
				o.At = now
			}
			seen.Outcomes[i] = o
			taken[i] = e.taken[i]
			fresh = append(fresh, i)
		}
	}
	slices.Sort(fresh)
	var adds []*addition
	var grave []int // failed, and nobody to tell
	if len(fresh) > 0 {
		if adds, grave, err = b.follow(seen, fresh, taken); err != nil {
			return nil, err
		}
	}
	var item *spool.Item
	err = b.spool.ApplySoon(func(tx *spool.Tx) (err error) {
		if item, err = tx.Item(id); err != nil {
			return err
		}
		for _, i := range fresh {
			if item.Outcomes[i].Action.Final() {
				return errRace
			}
			item.Outcomes[i] = seen.Outcomes[i]
			o := &item.Outcomes[i]
			item.AddLog(now, o.Action.String(), strings.TrimSpace(o.Addr+" "+o.MTA)+": "+o.Status.String())
		}
		for _, e := range ends {
			leg := &item.Legs[e.leg]
			if leg.State == spool.Done {
				return errRace
			}
			left := slices.ContainsFunc(leg.Rcpts, func(i int) bool { return !item.Outcomes[i].Action.Final() })
			if !left && !e.stays {
				leg.State, leg.At = spool.Done, time.Time{}
			} else if e.change != nil {
				e.change(item, leg)
			}
		}
		if len(grave) > 0 {
			item.Legs = append(item.Legs, spool.Leg{Dest: spool.DeadDest, Rcpts: grave, State: spool.Held, Last: item.Outcomes[grave[0]].Status})
			item.AddLog(now, "dead letter", "nobody to tell")
		}
		for _, a := range adds {
			if err := tx.Add(a.item, a.body); err != nil {
				return err
			}
		}
		return tx.Save(item)
	})
	if err != nil {
		for _, a := range adds {
			a.discard()
		}
		switch {
		case errors.Is(err, errRace):
			return b.concludeAll(id, ends)
		case errors.Is(err, spool.ErrNotFound): // it ended between the look and the commit
			return seen, nil
		}
		return item, err
	}
	for _, a := range adds {
		b.logFollow(item, a.item)
	}
	if len(grave) > 0 {
		b.log.Warn(fmt.Sprintf("%s: to=<%s>, dead letter: undeliverable and has no sender to tell (%s)", id, item.Outcomes[grave[0]].Addr, item.Outcomes[grave[0]].Status))
	}
	return item, nil
}

var errRace = errors.New("changed meanwhile")

// follow makes what the fresh outcomes of an item call for. grave lists failed recipients of which nobody can be told.
func (b *Bridge) follow(item *spool.Item, fresh []int, dsnTaken map[int]bool) (adds []*addition, grave []int, err error) {
	if item.Env.Kind != envelope.KindMail {
		return nil, nil, nil
	}
	if !b.own(item.Env) {
		a, err := b.report(item, fresh, dsnTaken)
		if err != nil {
			return nil, nil, err
		}
		return []*addition{a}, nil, nil
	}
	if e, err := b.entryOf(item); err != nil {
		return nil, nil, err
	} else if e != nil { // whoever sent the mail hears of that, not of its summary
		return nil, nil, b.failOriginal(item, e, fresh)
	}
	return b.notices(item, fresh, dsnTaken)
}

// report makes the envelope that tells the origin node how recipients of its mail ended.
func (b *Bridge) report(item *spool.Item, fresh []int, dsnTaken map[int]bool) (*addition, error) {
	now := b.now()
	r := &envelope.Report{Ref: item.Env.ID, Node: b.Policy().Name}
	if !item.Parent.IsZero() {
		r.Ref = item.Parent // it was entered here under another id
	}
	for _, i := range fresh {
		o := item.Outcomes[i]
		o.DSN = dsnTaken[i]
		r.Recipients = append(r.Recipients, o)
	}
	env := &envelope.Envelope{ID: envelope.NewID(now), Origin: b.ID(), Kind: envelope.KindReport, Created: now,
		Expires: now.Add(b.Policy().Limits.Lifetime), Report: r}
	body := b.spool.NewBody()
	if err := body.Finish(); err != nil {
		return nil, err
	}
	env.Sum = body.Sum()
	return &addition{body: body, item: &spool.Item{Env: env, Trust: "control", Entered: now, Parent: item.Env.ID,
		Legs: []spool.Leg{{Dest: spool.NodeDest(item.Env.Origin), State: spool.Due}}}}, nil
}

// endLeg fails the recipients of a leg with one status.
func (b *Bridge) endLeg(ref spool.Ref, rcpts []int, s envelope.Status) error {
	e := legEnd{leg: ref.Leg, final: map[int]envelope.Outcome{}}
	for _, i := range rcpts {
		e.final[i] = envelope.Outcome{Action: envelope.ActionFailed, Status: s}
	}
	item, err := b.concludeAll(ref.ID, []legEnd{e})
	if err != nil {
		return fmt.Errorf("end an envelope: %w", err)
	}
	b.logEnded(item, e)
	return nil
}

// bury ends the recipients that led nowhere when their mail was accepted: their outcome stands already, the DSN does
// not. It is repeated at start, so a crash in between loses nothing.
func (b *Bridge) bury(id envelope.ID) {
	var item *spool.Item
	err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(id); return err })
	if err != nil {
		return
	}
	for k := range item.Legs {
		leg := &item.Legs[k]
		if leg.Dest != spool.DeadDest || leg.State != spool.Due {
			continue
		}
		final := map[int]envelope.Outcome{}
		for _, i := range leg.Rcpts {
			s := leg.Last
			if s.Code == 0 {
				s = envelope.Status{Code: 550, Enhanced: "5.1.2", Text: "no route to this domain"}
			}
			final[i] = envelope.Outcome{Action: envelope.ActionFailed, Status: s}
		}
		if _, err := b.conclude(spool.Ref{ID: id, Leg: k}, final, nil, nil); err != nil {
			b.log.Error("end an unroutable mail", "id", id.String(), "err", err)
		}
	}
}

// expiredNow reports whether an item has outlived its time, and as what it ends. Nothing expires on a suspect clock.
func (b *Bridge) expiredNow(item *spool.Item) (envelope.Status, bool) {
	if end := item.Deadline(); end.IsZero() || b.now().Before(end) || b.clock.suspect() {
		return envelope.Status{}, false
	}
	return envelope.Status{Code: 554, Enhanced: "5.4.7", Text: "delivery time expired"}, true
}

// byLeft is what is left of the time that DELIVERBY gave a mail: by the running time of the nodes that had it, and by the
// clock, where that can be trusted; the shorter counts. It may be negative.
func (b *Bridge) byLeft(item *spool.Item) time.Duration {
	env, now := item.Env, b.now()
	by := env.Mail.By.Deadline
	left := by.Sub(env.Created) - env.Age - max(now.Sub(item.Entered), 0)
	if !b.clock.suspect() {
		left = min(left, by.Sub(now))
	}
	return left
}

// expire ends what is left of an item whose time has come. Legs whose bytes were never exposed fail at once; legs that
// may have arrived wait for the return grace, so that nothing is called lost that was delivered.
func (b *Bridge) expire(id envelope.ID) error {
	if b.clock.suspect() {
		return nil
	}
	var item *spool.Item
	if err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(id); return err }); err != nil {
		return gone(err)
	}
	now := b.now()
	end := item.Deadline()
	if end.IsZero() || now.Before(end) {
		return nil
	}
	var errs []error
	var ends []legEnd // of a mail: its sender hears of all at once
	end1 := func(ref spool.Ref, leg *spool.Leg, text string) {
		s := envelope.Status{Code: 554, Enhanced: "5.4.7", Text: text}
		if item.Env.Kind == envelope.KindMail {
			ends = append(ends, legEnd{leg: ref.Leg, final: failed(item, leg, s)})
			return
		}
		errs = append(errs, b.endAny(item, ref, leg, s))
	}
	for k := range item.Legs {
		leg := &item.Legs[k]
		ref := spool.Ref{ID: id, Leg: k}
		until := end.Add(b.grace(leg))
		node, out := leg.Dest.Node()
		switch {
		case leg.State == spool.Done:
		case leg.Dest == spool.DeadDest:
			errs = append(errs, b.dropLeg(ref, "dead letter expired"))
		case out && leg.Carrier != "" && b.Policy().oneWay(node) > 0:
			errs = append(errs, b.oneWayOver(item, ref, leg))
		case out && leg.Carrier != "" && now.Before(until):
			if leg.State == spool.Sealed || leg.State == spool.Travelling || leg.State == spool.Arrived {
				errs = append(errs, b.setAt(ref, until))
			} else { // It was to go again when its time ran out; what went before may have arrived, or still may.
				errs = append(errs, b.await(ref, until))
			}
		case leg.State == spool.Sealed, leg.State == spool.Travelling, leg.State == spool.Arrived:
			end1(ref, leg, "delivery time expired, no proof of delivery came back")
		case heldForReader(leg):
			end1(ref, leg, b.neverAsked(item, leg))
		default:
			text := "delivery time expired"
			if leg.Last.Code != 0 {
				text += ": " + leg.Last.Text
			}
			end1(ref, leg, text)
		}
	}
	if len(ends) > 0 {
		done, err := b.concludeAll(id, ends)
		errs = append(errs, err)
		if err == nil {
			for _, e := range ends {
				b.logEnded(done, e)
			}
		}
	}
	return errors.Join(errs...)
}

// failed is the failure of those recipients of a leg that have not ended.
func failed(item *spool.Item, leg *spool.Leg, s envelope.Status) map[int]envelope.Outcome {
	final := map[int]envelope.Outcome{}
	for _, i := range leg.Rcpts {
		if !item.Outcomes[i].Action.Final() {
			final[i] = envelope.Outcome{Action: envelope.ActionFailed, Status: s}
		}
	}
	return final
}

// logEnded writes a line for each recipient that a leg's end was one for.
func (b *Bridge) logEnded(item *spool.Item, e legEnd) {
	for i, o := range e.final {
		word := "bounced"
		if o.Status.Enhanced == "4.4.7" || o.Status.Enhanced == "5.4.7" {
			word = "expired"
		}
		b.logDelivery(item, i, word, "none", o.Status, b.now())
	}
}

// gone makes an item that has ended meanwhile no error.
func gone(err error) error {
	if errors.Is(err, spool.ErrNotFound) {
		return nil
	}
	return err
}

// grace is how long after expiry a leg that was exposed waits for its receipt.
func (b *Bridge) grace(leg *spool.Leg) time.Duration {
	if isLive(leg.Carrier) {
		return min(24*time.Hour, b.Policy().Limits.ReturnGrace)
	}
	return b.Policy().Limits.ReturnGrace
}

// endAny ends a leg of any kind of item: mail fails with a notice, the rest is dropped with a log line.
func (b *Bridge) endAny(item *spool.Item, ref spool.Ref, leg *spool.Leg, s envelope.Status) error {
	if item.Env.Kind == envelope.KindMail {
		var open []int
		for _, i := range leg.Rcpts {
			if !item.Outcomes[i].Action.Final() {
				open = append(open, i)
			}
		}
		return b.endLeg(ref, open, s)
	}
	if item.Env.Kind == envelope.KindJob && leg.Dest != spool.DeadDest {
		return b.jobs.Expire(item, s.Text)
	}
	return b.dropLeg(ref, s.Text)
}

// dropLeg ends a leg without telling anybody but the log.
func (b *Bridge) dropLeg(ref spool.Ref, why string) error {
	err := b.changeLeg(ref, func(item *spool.Item, leg *spool.Leg) {
		leg.State, leg.At = spool.Done, time.Time{}
		item.AddLog(b.now(), "dropped", why)
	})
	if err := gone(err); err != nil {
		return fmt.Errorf("drop: %w", err)
	}
	b.log.Info(fmt.Sprintf("%s: removed (%s)", ref.ID, why))
	return nil
}

// await makes a leg that was exposed before wait for news until a time, and send nothing more.
func (b *Bridge) await(ref spool.Ref, until time.Time) error {
	return gone(b.changeLeg(ref, func(_ *spool.Item, leg *spool.Leg) {
		if leg.State == spool.Due || leg.State == spool.Deferred || leg.State == spool.Held {
			leg.State, leg.At = spool.Sealed, until
		}
	}))
}

// setAt sets the time at which a leg is looked at again.
func (b *Bridge) setAt(ref spool.Ref, at time.Time) error {
	return gone(b.changeLeg(ref, func(_ *spool.Item, leg *spool.Leg) { leg.At = at }))
}

// changeLeg commits one change of one leg.
func (b *Bridge) changeLeg(ref spool.Ref, change func(*spool.Item, *spool.Leg)) error {
	return b.spool.Apply(func(tx *spool.Tx) error {
		item, err := tx.Item(ref.ID)
		if err != nil {
			return err
		}
		if ref.Leg >= len(item.Legs) {
			return nil
		}
		change(item, &item.Legs[ref.Leg])
		return tx.Save(item)
	})
}

// quarantineItem ends an item that cannot be handled: what can be read of it is kept in the quarantine with the reason,
// and a mail ends as failed, so that its sender hears of it.
func (b *Bridge) quarantineItem(id envelope.ID, why string) error {
	var item *spool.Item
	if err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(id); return err }); err != nil {
		return gone(err)
	}
	r, err := b.spool.OpenBody(id)
	if err == nil {
		_, err = b.spool.Quarantine(why, "queue "+id.String(), r)
		r.Close()
	}
	b.log.Error("an item that cannot go on is ended; what is left of it is in the quarantine", "id", id.String(), "why", esc(why), "err", err)
	if item.Env.Kind != envelope.KindMail || len(item.Legs) == 0 {
		return gone(b.spool.ApplyUrgent(func(tx *spool.Tx) error { return tx.Drop(id) }))
	}
	var errs []error
	for k := range item.Legs {
		leg, ref := &item.Legs[k], spool.Ref{ID: id, Leg: k}
		if leg.State == spool.Done {
			continue
		}
		if _, out := leg.Dest.Node(); out && leg.Carrier != "" && !item.Env.Expires.IsZero() {
			// what went before the damage may have arrived: it is not called lost
			errs = append(errs, b.await(ref, item.Deadline().Add(b.grace(leg))))
			continue
		}
		errs = append(errs, b.endAny(item, ref, leg,
			envelope.Status{Code: 554, Enhanced: "5.6.0", Text: "the message was damaged in the queue of " + b.Policy().Domain}))
	}
	return errors.Join(errs...)
}
