package bridge

import (
	"context"
	"fmt"
	"io"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// PlaceDown tells why a delivery place is not tried now; ok is false when it is up.
func (b *Bridge) PlaceDown(d spool.Dest) (s envelope.Status, until time.Time, ok bool) {
	return b.out.state(d)
}

// Qualify completes an address without a domain, as accepting a mail would.
func (b *Bridge) Qualify(addr string) string { return b.Policy().qualify(addr) }

// NextHops returns the neighbours through which a node is reached.
func (b *Bridge) NextHops(node envelope.NodeID) []envelope.NodeID { return b.Policy().paths(node) }

// Heard is when a node was last heard: a good contact with it, or something it sealed that came by any way. Zero if
// never.
func (b *Bridge) Heard(node envelope.NodeID) time.Time {
	b.mu.Lock()
	last := b.heard[node]
	b.mu.Unlock()
	if t := b.ses.heardOf(node); t.After(last) {
		return t
	}
	return last
}

// Verb is what an operator does to an envelope.
type Verb string

const (
	VerbHold    Verb = "hold"    // stays until released
	VerbRelease Verb = "release" // undoes hold; a dead letter is routed again
	VerbRetry   Verb = "retry"   // due now, whatever was waited for
	VerbExpire  Verb = "expire"  // fails now, with a notice to the sender
	VerbRemove  Verb = "remove"  // gone without a word to anybody but the log
)

// Act does something to one envelope. spool.ErrNotFound when it has ended.
func (b *Bridge) Act(id envelope.ID, v Verb) error {
	var item *spool.Item
	if err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(id); return err }); err != nil {
		return err
	}
	now := b.now()
	if item.Env.Kind == envelope.KindJob && (v == VerbRemove || v == VerbExpire) {
		// its number must have an end
		if b.jobs.IsOwn(item) {
			return b.jobs.Cancel(id)
		}
		return b.jobs.Drop(id)
	}
	switch v {
	case VerbRemove:
		if err := b.spool.Apply(func(tx *spool.Tx) error { return tx.Drop(id) }); err != nil {
			return err
		}
		b.log.Info(fmt.Sprintf("%s: removed (by an operator)", id))
		return nil
	case VerbExpire:
		for k := range item.Legs {
			if item.Legs[k].State == spool.Done {
				continue
			}
			ref := spool.Ref{ID: id, Leg: k}
			var err error
			if item.Legs[k].Dest == spool.DeadDest {
				err = b.dropLeg(ref, "expired by an operator")
			} else {
				err = b.endAny(item, ref, &item.Legs[k], envelope.Status{Code: 554, Enhanced: "5.4.7", Text: "ended by an operator before delivery"})
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	event := map[Verb]spool.Event{VerbHold: spool.Hold, VerbRelease: spool.Release, VerbRetry: spool.Overdue}[v]
	if event == 0 {
		return fmt.Errorf("unknown verb %q", v)
	}
	err := b.spool.Apply(func(tx *spool.Tx) error {
		item, err := tx.Item(id)
		if err != nil {
			return err
		}
		changed := false
		for k := range len(item.Legs) { // without those that reroute adds
			leg := &item.Legs[k]
			e := event
			switch {
			case v == VerbRetry && leg.State == spool.Deferred:
				e = spool.Wake
			case v == VerbRelease && leg.Dest == spool.DeadDest && leg.State == spool.Held:
				changed = b.reroute(item, k) || changed
				continue
			}
			if next, ok := spool.Next(leg.State, e); ok && next != leg.State {
				leg.State, leg.At = next, time.Time{}
				changed = true
			}
		}
		if !changed {
			return nil
		}
		item.AddLog(now, string(v), "by an operator")
		return tx.Save(item)
	})
	if v != VerbHold {
		b.out.kick()
		b.kickContacts()
	}
	return err
}

// reroute looks again where the recipients of the dead letter in leg k go; it reports whether anybody has a way now.
func (b *Bridge) reroute(item *spool.Item, k int) bool {
	if item.Env.Mail == nil {
		return false
	}
	ways := map[spool.Dest]int{} // to their legs
	var dead []int
	old := item.Legs[k]
	for _, i := range old.Rcpts {
		dest := b.bounceDest(item.Env.Mail.Recipients[i].Addr, item.Env.Size)
		if dest == spool.DeadDest {
			dead = append(dead, i)
			continue
		}
		n, ok := ways[dest]
		if !ok {
			n = len(item.Legs)
			ways[dest] = n
			item.Legs = append(item.Legs, spool.Leg{Dest: dest, State: spool.Due})
		}
		item.Legs[n].Rcpts = append(item.Legs[n].Rcpts, i)
		item.Outcomes[i] = envelope.Outcome{Addr: item.Outcomes[i].Addr}
	}
	if len(ways) == 0 {
		return false
	}
	if item.Legs[k].Rcpts = dead; len(dead) == 0 { // its place is free
		last := len(item.Legs) - 1
		item.Legs[k], item.Legs = item.Legs[last], item.Legs[:last]
	}
	return true
}

// ReceiveFrom takes one packet that a program hands over on a stream; prev is the neighbour if it is known.
func (b *Bridge) ReceiveFrom(ctx context.Context, prev envelope.NodeID, size int64, r io.Reader) error {
	in := &incoming{b: b, prev: prev, size: size}
	if err := in.take(ctx, r); err != nil {
		return err
	}
	if prev = in.prev; prev.IsZero() { // a bundle without a hop box comes from its origin
		prev = in.peer
	}
	if b.Policy().neighbour(prev) {
		b.met(prev)
	}
	return nil
}

// Visit reads what a stranger may have left on a folder: only an invitation's proof lets it in. It hands out nothing.
func (b *Bridge) Visit(ctx context.Context, l transport.Link, url string) (transport.Stats, error) {
	d := b.openDesk(&Contact{URL: url})
	defer d.close(0)
	return l.Run(ctx, d)
}

// Settled reports whether nothing waits for local delivery except at places that are down, and no job runs.
func (b *Bridge) Settled() bool { return b.out.idle() && b.jobs.Idle() }

// idle reports whether no worker runs and no queue of a place that is up has something due.
func (d *dispatcher) idle() bool {
	d.mu.Lock()
	for _, p := range d.places {
		if p.workers > 0 {
			d.mu.Unlock()
			return false
		}
	}
	d.mu.Unlock()
	for _, q := range d.b.spool.Dests() {
		if _, ok := q.Via(); !ok || !d.b.spool.DueNow(q) {
			continue
		}
		if _, _, down := d.state(q); !down {
			return false
		}
	}
	return true
}
