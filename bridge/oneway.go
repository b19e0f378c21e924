package bridge

import (
	"fmt"
	"io"

	"mochila/bridge/bounce"
	"mochila/internal/envelope"
	"mochila/spool"
)

// Legs whose content does not stay, and legs of which nothing will be heard.

// keptHeader is how much of a content that is let go stays here, for a notice of failure: its header, up to this.
const keptHeader = 16 << 10

// letGo drops the content of an own mail whose route says keep = "hop", once every leg of it is in other hands.
func (b *Bridge) letGo(id envelope.ID) {
	droppable := func(it *spool.Item) bool {
		if it.Gone || it.Env.Kind != envelope.KindMail || !b.own(it.Env) {
			return false
		}
		for i := range it.Legs {
			switch leg := &it.Legs[i]; leg.State {
			case spool.Done:
			case spool.Travelling, spool.Arrived:
				if !leg.KeepHop {
					return false
				}
			default:
				return false
			}
		}
		return true
	}
	var item *spool.Item
	err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(id); return err })
	if err != nil || !droppable(item) {
		return
	}
	var header []byte
	if r, err := b.spool.OpenBody(id); err == nil {
		header, err = io.ReadAll(io.LimitReader(r, keptHeader))
		r.Close()
		if err != nil {
			header = nil
		}
	}
	header = bounce.HeaderOf(header)
	err = b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		item, err := tx.Item(id)
		if err != nil || !droppable(item) {
			return gone(err)
		}
		item.Gone, item.Header = true, header
		item.AddLog(b.now(), "let go", "the next node has it, and keep = \"hop\": no copy stays here")
		return tx.Save(item)
	})
	if err != nil {
		b.log.Error("let go of a content", "id", id.String(), "err", err)
	}
}

// sentOut reports whether a leg on a one-way path has been sent as often as it is to be.
func (b *Bridge) sentOut(item *spool.Item, k int) bool {
	leg := &item.Legs[k]
	node, ok := leg.Dest.Node()
	if !ok || leg.State != spool.Sealed {
		return false
	}
	repeat := b.Policy().oneWay(node)
	return repeat > 0 && leg.Attempts+1 >= repeat
}

// unconfirmed ends the sending of a leg on a one-way path: its recipients count as relayed, which is told to who asked
// for it, and the content stays until the mail expires.
func (b *Bridge) unconfirmed(item *spool.Item, ref spool.Ref) error {
	until := item.Deadline()
	if item.Env.Kind != envelope.KindMail {
		return b.setAt(ref, until)
	}
	stay := func(item *spool.Item, leg *spool.Leg) {
		if leg.State == spool.Sealed || leg.State == spool.Due || leg.State == spool.Deferred {
			leg.State, leg.At = spool.Sealed, until
		}
	}
	leg := &item.Legs[ref.Leg]
	s := envelope.Status{Enhanced: "2.0.0", Text: fmt.Sprintf("sent %d times on a one-way path, cannot be confirmed", leg.Attempts+1)}
	final := map[int]envelope.Outcome{}
	for _, i := range leg.Rcpts {
		if !item.Outcomes[i].Action.Final() {
			final[i] = envelope.Outcome{Action: envelope.ActionRelayed, Status: s}
		}
	}
	done, err := b.concludeAll(ref.ID, []legEnd{{leg: ref.Leg, final: final, change: stay, stays: true}})
	if err != nil {
		return fmt.Errorf("end the sending on a one-way path: %w", err)
	}
	for i := range final {
		b.logDelivery(done, i, "sent", b.Policy().nodeName(mustNode(leg.Dest)), s, b.now())
	}
	return nil
}

// oneWayOver ends a leg on a one-way path whose time is over: what was sent has perhaps arrived, so nothing is called
// lost.
func (b *Bridge) oneWayOver(item *spool.Item, ref spool.Ref, leg *spool.Leg) error {
	if item.Env.Kind != envelope.KindMail {
		return b.endAny(item, ref, leg, envelope.Status{Code: 554, Enhanced: "5.4.7", Text: "its time on a one-way path is over"})
	}
	if err := b.unconfirmed(item, ref); err != nil {
		return err
	}
	return b.dropLeg(ref, "its time on a one-way path is over")
}

// mustNode is the node of a destination that is one.
func mustNode(d spool.Dest) envelope.NodeID {
	n, _ := d.Node()
	return n
}
