package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// refuseMail decides whether a whole mail of a peer is turned down where it arrives; its origin then bounces it.
func (b *Bridge) refuseMail(e *envelope.Envelope) (envelope.Status, bool) {
	p := b.Policy()
	peer := p.peer(e.Origin)
	now := b.now()
	no := func(code int, enh, text string) (envelope.Status, bool) {
		return envelope.Status{Code: code, Enhanced: enh, Text: text}, true
	}
	switch {
	case peer == nil:
		return no(550, "5.7.1", "sending node is not a peer")
	case e.Size > p.Limits.MessageSize:
		return no(552, "5.3.4", fmt.Sprintf("message of %d bytes is above the limit of %d", e.Size, p.Limits.MessageSize))
	case e.Hops > p.Limits.Hops:
		return no(554, "5.4.6", fmt.Sprintf("mail loop: passed more than %d nodes", p.Limits.Hops))
	case !b.clock.suspect() && (now.After(e.Expires) || e.Age >= e.Expires.Sub(e.Created)):
		return no(554, "5.4.7", "delivery time expired before it arrived")
	case e.Expires.After(now.Add(10*365*24*time.Hour)) && !b.clock.suspect():
		return no(554, "5.7.1", "lifetime is longer than ten years")
	case len(peer.SendAs) > 0 && e.Mail.Sender != "" && !matchAny(peer.SendAs, e.Mail.Sender):
		return no(550, "5.7.1", fmt.Sprintf("node %s may not send as <%s>", peer.Name, e.Mail.Sender))
	}
	return envelope.Status{}, false
}

func matchAny(list []route.Pattern, addr string) bool {
	for _, p := range list {
		if p.Match(addr) {
			return true
		}
	}
	return false
}

// arrive makes the item of a mail that came from a peer: it may go to what is delivered here, and further only where
// the peer was given the right.
func (b *Bridge) arrive(e *envelope.Envelope) *spool.Item {
	p := b.Policy()
	peer := p.peer(e.Origin)
	now := b.now()
	item := &spool.Item{Env: e, Trust: peerTrust(e.Origin), Entered: now, Outcomes: make([]envelope.Outcome, len(e.Mail.Recipients))}
	legs := map[spool.Dest]int{}
	put := func(d spool.Dest, i int, s envelope.Status) {
		k, ok := legs[d]
		if !ok {
			k = len(item.Legs)
			legs[d] = k
			item.Legs = append(item.Legs, spool.Leg{Dest: d, State: spool.Due, Last: s})
		}
		item.Legs[k].Rcpts = append(item.Legs[k].Rcpts, i)
	}
	for i := range e.Mail.Recipients {
		addr := e.Mail.Recipients[i].Addr
		item.Outcomes[i].Addr = addr
		if _, _, ok := p.asks(addr); ok {
			put(spool.ViaDest(viaSummaries), i, envelope.Status{})
			continue
		}
		to, d, err := p.place(e.Mail.Sender, addr, e.Size, false)
		if err != nil && strings.HasSuffix(strings.ToLower(addr), ".mochila") {
			// names of nodes are local: what a peer calls us ends here as our own name
			to, d, err = p.place(e.Mail.Sender, localPart(addr)+"@"+p.Name+".mochila", e.Size, false)
			if strings.EqualFold(to, localPart(addr)+"@"+p.Name+".mochila") {
				to = addr
			}
		}
		if node, ok := p.orderNode(addr); ok {
			// jobs are made by users of this node; a peer makes its own
			err = envelope.NewStatus(550, "5.7.1", "no job for node "+node+" may be made by mail from another node")
		}
		switch {
		case err != nil:
			put(spool.DeadDest, i, statusOf(err))
		case d.Deliver:
			redirect(&e.Mail.Recipients[i], to)
			put(spool.ViaDest(d.Rule.Via), i, envelope.Status{})
		case to == addr && !matchAny(peer.SendTo, addr) || d.Rule.Node == e.Origin && to == addr:
			put(spool.DeadDest, i, envelope.Status{Code: 550, Enhanced: "5.7.1", Text: fmt.Sprintf("node %s may not send to <%s> through this node", peer.Name, addr)})
		default:
			redirect(&e.Mail.Recipients[i], to)
			put(spool.NodeDest(d.Rule.Node), i, envelope.Status{})
		}
	}
	item.AddLog(now, "arrived", "from "+p.nodeName(e.Origin))
	return item
}

// reported takes a report on one of our envelopes: outcomes, DSNs, the end of the envelope.
func (b *Bridge) reported(e *envelope.Envelope) error {
	var item *spool.Item
	err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(e.Report.Ref); return err })
	if errors.Is(err, spool.ErrNotFound) {
		return nil // ended already
	}
	if err != nil || item.Env.Mail == nil {
		return err
	}
	for k := range item.Legs {
		if item.Legs[k].Dest != spool.NodeDest(e.Origin) || item.Legs[k].State == spool.Done {
			continue
		}
		final, dsnTaken := map[int]envelope.Outcome{}, map[int]bool{}
		for _, o := range e.Report.Recipients {
			for _, i := range item.Legs[k].Rcpts {
				if item.Env.Mail.Recipients[i].Addr == o.Addr && o.Action.Final() {
					o.MTA = or(o.MTA, e.Report.Node)
					final[i], dsnTaken[i] = o, o.DSN
				}
			}
		}
		if len(final) == 0 {
			continue
		}
		done, err := b.conclude(spool.Ref{ID: item.Env.ID, Leg: k}, final, dsnTaken, nil)
		if err != nil {
			return err
		}
		for i, o := range final {
			word := "sent"
			if o.Action == envelope.ActionFailed {
				word = "bounced"
			}
			b.logDelivery(done, i, word, e.Report.Node, o.Status, b.now())
		}
	}
	return nil
}

// newCard keeps a newer card that a peer sent of itself. It never changes routes or rights.
func (b *Bridge) newCard(peer envelope.NodeID, raw []byte) error {
	c, err := seal.ParseCard(raw)
	if err != nil {
		return err
	}
	if c.ID != peer {
		return fmt.Errorf("card of %s in a bundle of %s", c.ID, peer)
	}
	held, err := b.cardOf(peer)
	if err != nil {
		return err
	}
	switch err := seal.CompareCards(held, c); {
	case errors.Is(err, seal.ErrOlderCard):
		return nil
	case errors.Is(err, seal.ErrContested):
		b.contest(peer, "two cards that exclude each other")
		return err
	case err != nil:
		return err
	}
	if held != nil && held.Serial == c.Serial {
		return nil
	}
	// The card is stored last: after a crash it comes again, and so does what follows from it.
	if held != nil && !c.Revoked() && held.Incarnation != c.Incarnation {
		b.log.Warn("a peer has a new incarnation: what has no outcome goes again", "peer", b.Policy().nodeName(peer))
		if err := b.renewed(peer, b.ses.ofLife(peer, c.Incarnation)); err != nil {
			return err
		}
	}
	err = b.spool.ApplyUrgent(func(tx *spool.Tx) error { return tx.KV("cards").Put(peer[:], raw) })
	if err != nil || !c.Revoked() {
		return err
	}
	b.log.Warn("a peer's identity is revoked", "peer", b.Policy().nodeName(peer))
	return b.endSessions(peer)
}

// ofLife returns the sessions of a peer's present life.
func (s *sessions) ofLife(peer envelope.NodeID, life [8]byte) map[*session]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := map[*session]bool{}
	for _, x := range s.all {
		if x.peer == peer && x.keys.PeerIncarnation == life {
			keep[x] = true
		}
	}
	return keep
}

const refusedHeads = "refused-heads"

// readToRefuse is how much of a packet whose first bytes say that it is none of ours is read to learn its name.
const readToRefuse = 16 << 20

// refuse puts a bad packet into quarantine, remembers it so that this is done once, and lets the neighbour know.
//
// A packet is remembered by its hash; only where its head alone decides, by that, so that it is not even opened again
// on a folder. Otherwise a damaged copy, or one that a courier has forged, would hide the good one.
func (in *incoming) refuse(ctx context.Context, r *hashing, cause *badPacket) error {
	b := in.b
	if in.greeting {
		return fmt.Errorf("%w: %v", transport.ErrRefused, cause.err)
	}
	if in.box != nil && cause.reason != envelope.ReasonQuota {
		return in.refuseInner(ctx, r, cause)
	}
	from := "unknown"
	if !in.prev.IsZero() {
		from = b.Policy().nodeName(in.prev)
	}
	unread := cause.head && in.size-r.n > readToRefuse
	if !unread {
		// the rest is read: the hash names the packet, and tells a damaged copy from a bad packet
		var rest io.Reader = r
		endless := in.size < 0 && cause.head
		if endless { // a program that pours in bytes without end is not listened to
			rest = io.LimitReader(r, readToRefuse)
		}
		n, err := io.Copy(io.Discard, rest)
		if err != nil {
			return fmt.Errorf("read a packet that is refused: %w", err)
		}
		unread = endless && n == readToRefuse
		if !unread {
			if err := r.verify(ctx); err != nil {
				return fmt.Errorf("look again at a packet that is refused: %w", err)
			}
		}
	}
	sum := r.sum()
	if cause.reason != envelope.ReasonQuota {
		known := false
		err := b.spool.ApplyUrgent(func(tx *spool.Tx) error {
			kv := tx.KV(refusedHeads)
			key := sum[:]
			if cause.head && len(in.head) > 0 {
				key = in.head
			}
			known = kv.Get(key) != nil
			return kv.Put(key, append(timeBytes(b.now()), cause.Error()...))
		})
		if err != nil {
			return err
		}
		if known {
			return fmt.Errorf("%w: %v", transport.ErrRefused, cause) // all has been said
		}
		if _, err := b.spool.Quarantine(cause.Error(), from, bytes.NewReader(in.head)); err != nil {
			b.log.Error("quarantine", "err", err)
		}
	}
	b.log.Warn("packet refused", "from", from, "size", in.size, "reason", cause.reason.String(), "err", esc(cause.err.Error()))
	if !unread {
		in.tellRefused(sum, cause)
	}
	return fmt.Errorf("%w: %v", transport.ErrRefused, cause)
}

// tellRefused lets the neighbour know what was refused, and why.
func (in *incoming) tellRefused(hash [32]byte, cause *badPacket) {
	if in.prev.IsZero() {
		return
	}
	if cause.reason == envelope.ReasonUnopenable {
		in.b.ses.doubt(in.prev, in.b.now())
	}
	f := &envelope.Refused{Packet: hash, Reason: cause.reason, Serial: cause.serial, Text: envelope.OneLine(cause.err.Error(), envelope.MaxRefusedText)}
	in.b.later(in.prev, record{envelope.RecordRefused, f.Append(nil)})
}

// refuseInner refuses the bundle inside a hop box for this node. The neighbour has done its part: it gets its receipt,
// and passes the refusal on to where the bundle came from.
func (in *incoming) refuseInner(ctx context.Context, r *hashing, cause *badPacket) error {
	b := in.b
	box := in.box
	in.box = nil
	if _, err := io.Copy(io.Discard, box); err != nil {
		if errors.Is(err, transport.ErrIncomplete) {
			return err
		}
		return in.refuse(ctx, r, &badPacket{reason: envelope.ReasonCorrupt, err: err}) // not what the box speaks of
	}
	in.marks = in.marks[:1]
	in.remember, in.reports, in.helds, in.refs, in.cards, in.resets, in.forks, in.closes, in.guest = nil, nil, nil, nil, nil, nil, nil, nil, nil
	in.reported, in.resumes = nil, nil
	if err := in.enterMarks(ctx); err != nil {
		var bad *badPacket
		if errors.As(err, &bad) {
			return in.refuse(ctx, r, bad)
		}
		return err
	}
	if _, err := b.spool.Quarantine(cause.Error(), b.Policy().nodeName(in.prev), bytes.NewReader(in.head)); err != nil {
		b.log.Error("quarantine", "err", err)
	}
	b.log.Warn("bundle refused", "by way of", b.Policy().nodeName(in.prev), "size", in.size, "reason", cause.reason.String(), "err", esc(cause.err.Error()))
	in.tellRefused([32]byte(box.name.Sum(nil)), cause)
	return fmt.Errorf("%w: %v", transport.ErrRefused, cause)
}

// refusedBefore reports whether a packet with this head was refused already.
func (b *Bridge) refusedBefore(head []byte) bool {
	var known bool
	err := b.spool.View(func(tx *spool.Tx) error { known = tx.KV(refusedHeads).Get(head) != nil; return nil })
	return err == nil && known
}

// later keeps a control record until a bundle for the node takes it along. Refusals are hints: they live in memory.
func (b *Bridge) later(node envelope.NodeID, r record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending == nil {
		b.pending = map[envelope.NodeID][]record{}
	}
	if len(b.pending[node]) < 64 {
		b.pending[node] = append(b.pending[node], r)
	}
}

// takePending hands out the control records that wait for a node.
func (b *Bridge) takePending(node envelope.NodeID) []record {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.pending[node]
	delete(b.pending, node)
	return r
}

// owe makes a receipt due for the first n numbers that came under a session, unless it has left already.
func (s *sessions) owe(x *session, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > x.told {
		x.owed = max(x.owed, n)
	}
}

// oweAgain makes a receipt due that may have left before: the peer does not seem to have it.
func (s *sessions) oweAgain(x *session, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.owed = max(x.owed, n, 1)
}

// owing returns the sessions of a peer that owe a receipt.
func (s *sessions) owing(peer envelope.NodeID) (out []*session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.peer == peer && x.owed > 0 {
			out = append(out, x)
		}
	}
	return out
}

// owed returns the peers that wait for a receipt.
func (s *sessions) owedPeers() map[envelope.NodeID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[envelope.NodeID]bool{}
	for _, x := range s.all {
		if x.owed > 0 {
			out[x.peer] = true
		}
	}
	return out
}

// met notes that a neighbour has just been heard: deliveries to it that were put off are tried again.
func (b *Bridge) met(node envelope.NodeID) {
	b.mu.Lock()
	b.heard[node] = b.now()
	var kick bool
	for _, c := range b.contacts {
		if c.contact.Node == node && c.backoff > 0 {
			c.backoff, c.next, kick = 0, time.Time{}, true
		}
	}
	b.mu.Unlock()
	if kick {
		b.kickContacts()
	}
}

// localPart is what stands before the last @ outside quotes.
func localPart(addr string) string {
	local, _ := route.Split(addr)
	return local
}
