package bridge

import (
	"errors"
	"slices"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// What was exposed and is not acknowledged: which packets go again in a contact, and which may leave a folder.

// resend is a packet to be sent again, with those of its legs that no later packet carries.
type resend struct {
	*spool.Sent
	refs []spool.Ref
}

// again makes a packet once more that was exposed and not acknowledged; nil when it is not needed any more.
func (d *desk) again(s resend) (*transport.Packet, error) {
	p, err := d.b.rebuild(s.Sent)
	switch {
	case errors.Is(err, errGone) || errors.Is(err, spool.ErrNotFound):
		return nil, d.b.giveUp(s)
	case err != nil:
		d.b.log.Warn("cannot send again", "packet", transport.ID(s.Packet).String(), "err", err)
		return nil, nil
	}
	return p, nil
}

// giveUp notes that a packet will not be made again: what is left of its legs becomes due. The number stays known, as
// the packet may still arrive and be acknowledged.
func (b *Bridge) giveUp(s resend) error {
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for _, ref := range s.refs {
			item, err := tx.Item(ref.ID)
			if errors.Is(err, spool.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if leg := &item.Legs[ref.Leg]; leg.State == spool.Sealed {
				leg.State, leg.At = spool.Due, time.Time{}
				if err := tx.Save(item); err != nil {
					return err
				}
			}
		}
		x, err := tx.Sent(s.Session, s.Seq)
		if errors.Is(err, spool.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return withdraw(tx, x, b.now())
	})
}

// withdraw makes a sent packet one that is neither sent again nor needed on a folder.
func withdraw(tx *spool.Tx, s *spool.Sent, now time.Time) error {
	if s.Packet == ([32]byte{}) {
		return nil
	}
	if !isLive(s.Carrier) && !isOneWay(s.Carrier) {
		if err := tx.KV(finishedPackets).Put(s.Packet[:], timeBytes(now)); err != nil {
			return err
		}
	}
	s.Packet = [32]byte{}
	return tx.PutSent(s)
}

// receiptLife is how long a packet of mere receipts lies on a folder.
const receiptLife = 14 * 24 * time.Hour

// Finished reports whether an own packet may be taken off the carrier (transport.Station): it was acknowledged, or
// nothing in it has to arrive any more. A receipt that nobody fetched in a fortnight goes too: if the packet that it
// speaks of still lies there, it is written anew.
func (d *desk) Finished(id transport.ID) bool {
	b := d.b
	var done bool
	err := b.spool.View(func(tx *spool.Tx) error {
		if done = tx.KV(finishedPackets).Get(id[:]) != nil; done {
			return nil
		}
		s, err := tx.SentByPacket(id)
		if err != nil {
			return err
		}
		in, err := carried(tx, s)
		if errors.Is(err, spool.ErrNotFound) {
			done = true // the destination's own receipt was faster than the next hop's
			return nil
		}
		if err != nil {
			return err
		}
		if in.Kind == sentControl {
			done = !b.clock.suspect() && b.now().Sub(s.At) > receiptLife
			return nil
		}
		for _, ref := range in.Refs {
			item, err := tx.Item(ref.ID)
			if errors.Is(err, spool.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if st := item.Legs[ref.Leg].State; st != spool.Arrived && st != spool.Done {
				return nil
			}
		}
		done = true
		return nil
	})
	return err == nil && done
}

// carried is what tells of the legs in a packet: itself, or for a hop box of ours the bundle in it.
func carried(tx *spool.Tx, s *spool.Sent) (*spool.Sent, error) {
	if s.Kind == sentHop && s.InnerSession != ([8]byte{}) {
		return tx.Sent(s.InnerSession, s.InnerSeq)
	}
	return s, nil
}

// finishedPackets remembers packets on folders that were acknowledged, until they are gone from the folder for sure.
// A packet that this index does not know is left alone: it may come from a life that was restored away.
const finishedPackets = "finished"

// Present tells which own packets still lie on a folder: those that are missing and not acknowledged are written again.
// So are receipts for packets of the neighbour that still lie there, unless they lie there too, unread.
func (d *desk) Present(own []transport.Entry) {
	have := map[[32]byte]int64{}
	for _, e := range own {
		if id, err := transport.ParseID(e.Name); err == nil {
			have[id] = e.Size
		}
	}
	d.mu.Lock()
	repeats := d.repeats
	d.repeats = nil
	d.mu.Unlock()
	lies := map[[8]byte]uint64{}
	d.plan(func(s *spool.Sent) bool {
		if s.Carrier != d.carrier {
			return false
		}
		if size, ok := have[s.Packet]; !ok || size != s.Size {
			return true
		}
		if len(repeats) > 0 {
			receiptsIn(s.Recipe, lies)
		}
		return false
	})
	for _, r := range repeats {
		if lies[r.ses.keys.ID] < r.count {
			d.b.ses.oweAgain(r.ses, r.count)
		}
	}
}

// plan chooses what of the unacknowledged goes again in this contact.
func (d *desk) plan(want func(*spool.Sent) bool) {
	list := d.unacknowledged(want)
	d.mu.Lock()
	d.resend = append(d.resend, list...)
	d.mu.Unlock()
	d.kick()
}

// onLive chooses what an earlier live contact left unacknowledged.
func onLive(s *spool.Sent) bool { return isLive(s.Carrier) }

// unacknowledged lists what has to be sent again: want is asked about every packet that was handed to the neighbour
// before this contact. Mere receipts are not sent again: they are made anew when they are missed. Nor are packets whose
// legs have all been sealed into later ones, nor anything where no receipt can come.
//
// Whatever was handed to the neighbour was sealed in a session with it, and a leg in sessions with its destination: no
// more than these is read, whatever else waits for receipts.
func (d *desk) unacknowledged(want func(*spool.Sent) bool) (list []resend) {
	if d.b.Policy().mute(d.node) {
		return nil
	}
	err := d.b.spool.View(func(tx *spool.Tx) error {
		last := map[spool.Ref]time.Time{}
		dests := map[envelope.NodeID]bool{}
		err := d.b.eachSent(tx, d.node, func(s *spool.Sent) error {
			if s.Next != d.node || s.Packet == ([32]byte{}) || !s.At.Before(d.began) || !want(s) || s.Kind == sentControl {
				return nil
			}
			in, err := carried(tx, s)
			if errors.Is(err, spool.ErrNotFound) || err == nil && in.Kind == sentControl {
				return nil
			}
			if err != nil {
				return err
			}
			list = append(list, resend{s, in.Refs})
			dests[in.Next] = true
			if s.Kind == sentHop && in == s { // relayed: the next time it may have gone to another neighbour
				for _, c := range d.b.Policy().Contacts {
					dests[c.Node] = true
				}
			}
			for _, ref := range in.Refs {
				last[ref] = time.Time{}
			}
			return nil
		})
		if err != nil || len(list) == 0 {
			return err
		}
		for n := range dests {
			err := d.b.eachSent(tx, n, func(s *spool.Sent) error {
				for _, ref := range s.Refs {
					if t, asked := last[ref]; asked && s.At.After(t) {
						last[ref] = s.At
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		for i := range list {
			r := &list[i]
			r.refs = slices.DeleteFunc(slices.Clone(r.refs), func(ref spool.Ref) bool { return r.At.Before(last[ref]) })
		}
		list = slices.DeleteFunc(list, func(r resend) bool { return len(r.refs) == 0 })
		return nil
	})
	if err != nil {
		d.b.log.Error("read what was sent", "err", err)
		return nil
	}
	return list
}

// eachSent calls fn for everything that was sealed in the sessions with a node and is not acknowledged.
func (b *Bridge) eachSent(tx *spool.Tx, node envelope.NodeID, fn func(*spool.Sent) error) error {
	for _, id := range b.ses.of(node) {
		if err := tx.SentRange(id, 0, 1<<48, fn); err != nil {
			return err
		}
	}
	return nil
}

// of lists the sessions with a node.
func (s *sessions) of(node envelope.NodeID) (ids [][8]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.peer == node {
			ids = append(ids, x.keys.ID)
		}
	}
	return ids
}
