package bridge

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// Verb is what an operator does to an envelope.
type Verb string

const (
	VerbHold     Verb = "hold"     // stays until released
	VerbRelease  Verb = "release"  // undoes hold; a dead letter is routed again
	VerbRetry    Verb = "retry"    // due now, whatever was waited for
	VerbExpire   Verb = "expire"   // fails now, with a notice to the sender
	VerbBounce   Verb = "bounce"   // the same, with the operator's reason
	VerbRemove   Verb = "remove"   // gone without a word to anybody but the log
	VerbReroute  Verb = "reroute"  // what has not left goes another way
	VerbPriority Verb = "priority" // its place in the queue
)

// Act is a verb with what it needs.
type Act struct {
	Verb     Verb
	To       spool.Dest // of VerbReroute; empty: where the rules of now lead
	Priority int        // of VerbPriority, -9 to 9
	Reason   string     // of VerbBounce, for the sender
}

// ErrNoChange is wrapped by Act when there is nothing that the verb could do: what has left cannot go another way.
var ErrNoChange = errors.New("nothing to change")

// Act does something to one envelope. spool.ErrNotFound when it has ended.
func (b *Bridge) Act(id envelope.ID, a Act) error {
	var item *spool.Item
	if err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(id); return err }); err != nil {
		return err
	}
	ends := a.Verb == VerbRemove || a.Verb == VerbExpire || a.Verb == VerbBounce
	if item.Env.Kind == envelope.KindJob && ends {
		// its number must have an end
		if b.jobs.IsOwn(item) {
			return b.jobs.Cancel(id)
		}
		return b.jobs.Drop(id)
	}
	switch a.Verb {
	case VerbRemove:
		if err := b.spool.Apply(func(tx *spool.Tx) error { return tx.Drop(id) }); err != nil {
			return err
		}
		b.log.Info(fmt.Sprintf("%s: removed (by an operator)", id))
		return nil
	case VerbExpire:
		return b.endAll(item, envelope.Status{Code: 554, Enhanced: "5.4.7", Text: "ended by an operator before delivery"})
	case VerbBounce:
		text := envelope.OneLine(a.Reason, 200)
		if text == "" {
			text = "returned by an operator"
		}
		return b.endAll(item, envelope.Status{Code: 554, Enhanced: "5.7.1", Text: text})
	}
	change, ok := b.changes(a)
	if !ok {
		return fmt.Errorf("unknown verb %q", a.Verb)
	}
	err := b.spool.Apply(func(tx *spool.Tx) error {
		item, err := tx.Item(id)
		if err != nil {
			return err
		}
		changed, err := change(item)
		if err != nil || !changed {
			return err
		}
		item.AddLog(b.now(), string(a.Verb), "by an operator")
		return tx.Save(item)
	})
	if a.Verb != VerbHold {
		b.out.kick()
		b.kickContacts()
	}
	return err
}

// endAll ends every leg of an item that has not ended, with a notice to the sender; dead letters just go.
func (b *Bridge) endAll(item *spool.Item, why envelope.Status) error {
	for k := range item.Legs {
		if item.Legs[k].State == spool.Done {
			continue
		}
		ref := spool.Ref{ID: item.Env.ID, Leg: k}
		var err error
		if item.Legs[k].Dest == spool.DeadDest {
			err = b.dropLeg(ref, "expired by an operator")
		} else {
			err = b.endAny(item, ref, &item.Legs[k], why)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changes is the change that a verb makes to an item; ok is false for one that does not exist.
func (b *Bridge) changes(a Act) (change func(*spool.Item) (bool, error), ok bool) {
	switch a.Verb {
	case VerbHold:
		return b.moves(VerbHold, spool.Hold), true
	case VerbRelease:
		return b.moves(VerbRelease, spool.Release), true
	case VerbRetry:
		return b.moves(VerbRetry, spool.Overdue), true
	case VerbReroute:
		return func(item *spool.Item) (bool, error) { return b.rerouteItem(item, a.To) }, true
	case VerbPriority:
		return func(item *spool.Item) (bool, error) {
			changed := item.Env.Priority != a.Priority
			item.Env.Priority = a.Priority
			return changed, nil
		}, true
	}
	return nil, false
}

// moves gives every leg of an item an event.
func (b *Bridge) moves(v Verb, event spool.Event) func(*spool.Item) (bool, error) {
	return func(item *spool.Item) (changed bool, err error) {
		for k := range len(item.Legs) { // without those that reroute adds
			leg := &item.Legs[k]
			e := event
			switch {
			case v == VerbRetry && leg.State == spool.Deferred:
				e = spool.Wake
			case v == VerbRelease && leg.Dest == spool.DeadDest && leg.State == spool.Held:
				changed = b.reroute(item, k, b.deadWay(item)) || changed
				continue
			case v == VerbHold && heldForReader(leg): // from now on by the operator
				leg.Last, changed = envelope.Status{}, true
				continue
			}
			if v == VerbRelease && heldForReader(leg) {
				leg.Last = envelope.Status{}
			}
			if next, ok := spool.Next(leg.State, e); ok && next != leg.State {
				leg.State, leg.At = next, time.Time{}
				changed = true
			}
		}
		return changed, nil
	}
}

// deadWay is where a dead letter may go after all.
func (b *Bridge) deadWay(item *spool.Item) func(addr string) spool.Dest {
	return func(addr string) spool.Dest { return b.bounceDest(addr, item.Env.Size) }
}

// rerouteItem sends what has not left this node another way: to one place, or by the rules of now.
func (b *Bridge) rerouteItem(item *spool.Item, to spool.Dest) (changed bool, err error) {
	if item.Env.Mail == nil {
		return false, fmt.Errorf("%w: only mail can be routed again", ErrNoChange)
	}
	way := func(addr string) spool.Dest {
		if to != "" {
			return to
		}
		other, d, err := b.Policy().place(item.Env.Mail.Sender, addr, item.Env.Size, false)
		if err == nil && other != addr {
			return spool.ViaDest(viaAliases)
		}
		switch {
		case err != nil:
			return spool.DeadDest // reroute leaves it where it is
		case d.Deliver:
			return spool.ViaDest(d.Rule.Via)
		}
		return spool.NodeDest(d.Rule.Node)
	}
	waits := false
	for k := len(item.Legs) - 1; k >= 0; k-- { // backwards: reroute may put the last leg into the place of k
		switch item.Legs[k].State {
		case spool.Due, spool.Deferred, spool.Held:
			waits = true
			changed = b.reroute(item, k, way) || changed
		}
	}
	switch {
	case !waits:
		return false, fmt.Errorf("%w: it is on its way already", ErrNoChange)
	case !changed:
		return false, fmt.Errorf("%w: it goes there already, or nowhere else", ErrNoChange)
	}
	return true, nil
}

// reroute looks again where the recipients of leg k go; it reports whether anybody has another way now. Who has none
// stays.
func (b *Bridge) reroute(item *spool.Item, k int, way func(addr string) spool.Dest) bool {
	if item.Env.Mail == nil {
		return false
	}
	ways := map[spool.Dest]int{} // to their legs
	var stay []int
	old := item.Legs[k]
	fresh := spool.Leg{State: spool.Due}
	if old.State == spool.Held && old.Dest != spool.DeadDest {
		fresh.State, fresh.Last = spool.Held, old.Last
	}
	for _, i := range old.Rcpts {
		dest := way(item.Env.Mail.Recipients[i].Addr)
		final := i < len(item.Outcomes) && item.Outcomes[i].Action.Final()
		if dest == spool.DeadDest || dest == old.Dest || final && old.Dest != spool.DeadDest {
			stay = append(stay, i)
			continue
		}
		n, ok := ways[dest]
		if !ok {
			n = len(item.Legs)
			ways[dest] = n
			fresh.Dest = dest
			item.Legs = append(item.Legs, fresh)
		}
		item.Legs[n].Rcpts = append(item.Legs[n].Rcpts, i)
		if final {
			item.Outcomes[i] = envelope.Outcome{Addr: item.Outcomes[i].Addr}
		}
	}
	if len(ways) == 0 {
		return false
	}
	if item.Legs[k].Rcpts = stay; len(stay) == 0 { // its place is free
		last := len(item.Legs) - 1
		item.Legs[k] = item.Legs[last]
		item.Legs = slices.Delete(item.Legs, last, last+1)
	}
	return true
}
