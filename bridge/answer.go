package bridge

import (
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// receiptPause is how long a live contact gathers receipts after the last packet of mere receipts.
const receiptPause = 100 * time.Millisecond

// addReceipts puts what this node owes a peer in front of a load: receipts, refusals, a new card. It returns the
// numbers covered, per session. The desk's mutex need not be held.
func (d *desk) addReceipts(l *load, peer envelope.NodeID) (map[[8]byte]uint64, error) {
	b := d.b
	held := map[[8]byte]uint64{}
	owing := b.ses.owing(peer)
	err := b.spool.View(func(tx *spool.Tx) error {
		for _, x := range owing {
			rec, err := tx.Session(x.keys.ID)
			if err != nil {
				continue // not stored yet: nothing was received under it
			}
			if len(rec.Recv) == 0 {
				continue
			}
			h := envelope.Held{Session: rec.ID, Ranges: rec.Recv}
			l.records = append(l.records, record{envelope.RecordHeld, h.Append(nil)})
			held[rec.ID] = rec.Recv.Count()
		}
		ends, err := b.closes(tx, peer, b.now())
		if err != nil {
			return err
		}
		l.records = append(l.records, ends...)
		if p := b.Policy().peer(peer); p != nil && b.cardDue(tx, peer[:]) {
			l.records = append(l.records, record{envelope.RecordCard, b.keys.Card().Bytes()})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := d.channelRecords(l, peer); err != nil {
		return nil, err
	}
	l.records = append(l.records, b.takePending(peer)...)
	if limit := b.now().Add(b.Policy().Limits.Lifetime); l.expiry.Before(limit) { // relays may have to wait for their courier
		l.expiry = limit
	}
	return held, nil
}

// receipts packs a bundle of mere receipts for a peer that waits for some; nil when nobody does, or when a live
// contact had one a moment ago and is to gather more for so long. The desk's mutex is held.
func (d *desk) receipts() (p *transport.Packet, wait time.Duration, err error) {
	b := d.b
	peers := b.ses.owedPeers()
	b.mu.Lock()
	for n := range b.pending {
		peers[n] = true
	}
	b.mu.Unlock()
	for _, n := range b.jobs.Due(b.now()) {
		peers[n] = true
	}
	for n := range peers {
		if !d.serves(n) || n == d.node && len(d.hello) > 0 {
			continue // the greeting says it; if it is lost, the next contact does
		}
		if wait := receiptPause - time.Since(d.owing); d.live && wait > 0 {
			return nil, wait, nil
		}
		l := b.newLoad()
		held, err := d.addReceipts(l, n)
		if err != nil {
			return nil, 0, err
		}
		if len(l.records) == 0 {
			b.ses.settled(n)
			continue
		}
		x, err := b.sealLoad(l, n, d.node, 0)
		if err != nil {
			b.ses.settled(n)
			b.log.Warn("cannot send receipts", "node", b.Policy().nodeName(n), "err", err)
			continue
		}
		if d.room != nil && x.packet.Size > d.room() {
			return nil, 0, nil // the next medium has them
		}
		x.held = held
		if err := d.expose(x); err != nil {
			return nil, 0, err
		}
		d.owing = time.Now()
		if len(d.ready) == 0 {
			continue
		}
		p := d.ready[0]
		d.ready = d.ready[1:]
		return p, 0, nil
	}
	return nil, 0, nil
}

// receiptsIn adds how many numbers the receipts of a recipe cover, per session.
func receiptsIn(recipe []byte, count map[[8]byte]uint64) {
	d := envelope.Dec{B: recipe}
	for d.Next() {
		if d.Tag != recipeRecord {
			continue
		}
		v := d.List()
		if len(v) < 2 || envelope.RecordType(v[0]) != envelope.RecordHeld {
			continue
		}
		if h, err := envelope.ParseHeld(v[1:]); err == nil {
			count[h.Session] = max(count[h.Session], h.Ranges.Count())
		}
	}
}

// settled forgets that a peer waits for receipts that cannot be sent now; the next duplicate makes them due again.
func (s *sessions) settled(peer envelope.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.peer == peer {
			x.owed = 0
		}
	}
}
