package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"strings"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/envelope/bundle"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// desk is one neighbour's place at this node during one contact (transport.Station): packets to send are packed here
// at the last moment, packets that come are taken in.
type desk struct {
	b       *Bridge
	node    envelope.NodeID
	carrier string // the contact's URL without secrets: what packets are exposed on
	live    bool
	contact *Contact
	called  *Contact // the contact of the policy for whose sake the neighbour called, if there is one
	began   time.Time
	more    chan struct{}
	room    func() int64 // the largest packet that still fits on the medium; nil: nobody counts
	only    *spool.Ref   // nothing else is sent; nil: all that is due
	asked   bool         // somebody asked for just this contact: it gives way to no other

	mu        sync.Mutex
	pinch     int64 // bundles are made no larger than this, since the last one did not fit; 0: they do
	ready     []*transport.Packet
	resend    []resend
	aside     []spool.Ref              // leased, but not to be had: given back when it ends
	larger    bool                     // something due is too big for this contact
	took      map[envelope.NodeID]bool // what is due for these it need not leave to others any more
	spent     int64
	owing     time.Time // when the last packet of mere receipts left
	sent      map[transport.ID][]*spool.Item
	repeats   []repeat           // receipts to give again, unless the folder holds them still
	hello     map[[8]byte]uint64 // receipts in the greeting, until the neighbour is known to have read it
	greeted   bool
	welcomed  chan struct{} // closed when resends are planned, after the neighbour's greeting
	awaits    *bool         // whether there may be resends
	closed    bool
	envelopes int
	fresh     bool             // mail came since the last look
	pauseEnds time.Time        // of a pause for what came that was broken off; zero: of none
	told      map[[8]byte]bool // sessions whose receipt was repeated in this contact
}

// reportPause bounds how long a live contact waits for local deliveries before it says that it has nothing more.
const reportPause = time.Second

// isLive reports whether a carrier answers within the contact: a missing receipt then means a loss.
func isLive(carrier string) bool {
	scheme, _, _ := strings.Cut(carrier, ":")
	switch scheme {
	case "tcp", "unix", "ssh", "pipe", "serial":
		return true
	}
	return false
}

// isOneWay reports whether a carrier only takes packets: nothing lies on it that could be looked at.
func isOneWay(carrier string) bool {
	scheme, _, _ := strings.Cut(carrier, ":")
	switch scheme {
	case "exec", "mail", "nncp", "uucp", "fspl", "export", "import":
		return true
	}
	return false
}

// isLocal reports whether a carrier is a folder of this machine, which costs nothing to look at.
func isLocal(carrier string) bool { return strings.HasPrefix(carrier, "dir:") }

// openDesk prepares a contact with a neighbour.
func (b *Bridge) openDesk(c *Contact) *desk {
	d := &desk{b: b, node: c.Node, carrier: PublicURL(c.URL), live: isLive(c.URL), contact: c, began: b.now(),
		more: make(chan struct{}, 1), welcomed: make(chan struct{}), sent: map[transport.ID][]*spool.Item{}, told: map[[8]byte]bool{},
		took: map[envelope.NodeID]bool{}}
	b.mu.Lock()
	b.desks[d] = struct{}{}
	b.mu.Unlock()
	return d
}

// PublicURL is a carrier's URL without the part that may hold a secret.
func PublicURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil && u.RawQuery == "" {
		return s
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// close ends the contact and gives back what was leased and not sent. It tells how many envelopes the carrier took,
// whether packets were ready when it was over already (of those handed to the carrier late ones), and whether
// something that is due could not leave: too big, over the budget, impossible to seal, or not taken.
func (d *desk) close(handed int) (envelopes int, late, stuck bool) {
	d.b.mu.Lock()
	delete(d.b.desks, d)
	d.b.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	behind := handed + len(d.ready)
	stuck = d.larger || len(d.aside) > 0 || len(d.sent) > behind || d.contact.MaxBytes > 0 && d.spent >= d.contact.MaxBytes
	d.b.spool.Release(d.aside...)
	d.aside = nil
	return d.envelopes, behind > 0, stuck
}

// Close ends the contact of a neighbour that called (transport.Closer).
func (d *desk) Close() {
	d.close(0)
	if d.called == nil {
		return
	}
	d.mu.Lock()
	left := len(d.sent) > 0
	d.mu.Unlock()
	now := d.b.now()
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	s := d.b.state(d.called)
	s.last, s.ok = now, now
	s.left = left
}

// kick says that Next may have something new.
func (d *desk) kick() {
	select {
	case d.more <- struct{}{}:
	default:
	}
}

// More tells when Next may have something new (transport.Station).
func (d *desk) More() <-chan struct{} { return d.more }

// serves reports whether mail for dest may leave through this neighbour.
func (d *desk) serves(dest envelope.NodeID) bool {
	if dest == d.node {
		return true
	}
	for _, n := range d.b.Policy().paths(dest) {
		if n == d.node {
			return true
		}
	}
	return false
}

// Next packs the packet to send next (transport.Station).
func (d *desk) Next(ctx context.Context) (*transport.Packet, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ctx.Err() == nil && !d.closed {
		if len(d.ready) > 0 {
			p := d.ready[0]
			d.ready = d.ready[1:]
			return p, nil
		}
		if d.only != nil {
			ref := *d.only
			if ref.Leg < 0 {
				return nil, nil // it was sent
			}
			d.only.Leg = -1
			if err := d.packOne(ref); err != nil {
				return nil, err
			}
			continue
		}
		if d.contact.MaxBytes > 0 && d.spent >= d.contact.MaxBytes {
			return nil, nil
		}
		if len(d.resend) > 0 {
			s := d.resend[0]
			d.resend = d.resend[1:]
			p, err := d.again(s)
			if err != nil {
				return nil, err
			}
			if p != nil {
				return p, nil
			}
			continue
		}
		progress := false
		for _, q := range d.b.spool.Dests() {
			node, ok := q.Node()
			if !ok || !d.serves(node) || !d.asked && !d.took[node] && d.b.givesWay(d.node, node, q, d.began) {
				continue
			}
			got, err := d.pack(q, node)
			if err != nil {
				return nil, err
			}
			if got {
				if len(d.ready) > 0 {
					d.took[node] = true
					d.b.gave(d.node, node, d.larger)
				}
				progress = true
				break
			}
		}
		if progress {
			continue
		}
		if !d.isWelcome() && d.mayResend() {
			// A caller that said now that it has nothing to send would be hung up on.
			d.mu.Unlock()
			select {
			case <-d.welcomed:
			case <-ctx.Done():
			}
			d.mu.Lock()
			continue
		}
		if d.live && d.fresh {
			// what just came is being delivered: its reports go back in the same contact
			d.settle(ctx)
			continue
		}
		p, wait, err := d.receipts()
		if wait == 0 || err != nil {
			return p, err
		}
		// The contact does not end meanwhile: what came last is acknowledged in it, too.
		d.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-d.more: // something may be due, and takes them along
		case <-ctx.Done():
		}
		d.mu.Lock()
	}
	return nil, ctx.Err()
}

// settle waits until what just came is delivered, for reportPause at most, or until something is due, which does not wait for
// a long delivery: the rest of the pause is for the time when nothing is. The mutex is held, but for the wait.
func (d *desk) settle(ctx context.Context) {
	until := d.pauseEnds
	if until.IsZero() {
		until = time.Now().Add(reportPause)
	}
	d.fresh = false
	d.mu.Unlock()
	waiting, cancel := context.WithDeadline(ctx, until)
	kicked := make(chan bool)
	go func() {
		select {
		case <-d.more:
			cancel()
			kicked <- true
		case <-waiting.Done():
			kicked <- false
		}
	}()
	d.b.out.settle(waiting, reportPause)
	d.b.jobs.Settle(waiting, reportPause)
	cancel()
	again := <-kicked && time.Now().Before(until)
	d.mu.Lock()
	if d.pauseEnds = (time.Time{}); again {
		d.fresh, d.pauseEnds = true, until
	}
}

// pack leases what is due for one node, makes packets of it and puts them into ready. It reports false when nothing
// was there to pack. The desk's mutex is held.
func (d *desk) pack(q spool.Dest, node envelope.NodeID) (bool, error) {
	b := d.b
	limit := b.Policy().Limits.BundleBytes
	room := int64(math.MaxInt64)
	if d.room != nil {
		if room = d.room() - receiptRoom; room <= 0 {
			return false, nil
		}
		if limit = min(limit, room); d.pinch > 0 {
			limit = min(limit, d.pinch)
		}
	}
	most := d.contact.MaxPacket
	if room < math.MaxInt64/2 && (most == 0 || most > 2*room) {
		most = 2 * room // it would have to shrink by half: more than that is not tried
	}
	leased, larger, err := b.spool.LeaseUpTo(q, 512, limit, most)
	d.larger = d.larger || larger
	if err != nil || len(leased) == 0 {
		return false, err
	}
	l := b.newLoad()
	class := uint8(255)
	var refs []spool.Ref
	var size int64
	for _, x := range leased {
		ref := spool.Ref{ID: x.Item.Env.ID, Leg: x.Leg}
		if _, expired := b.expiredNow(x.Item); expired {
			if err := b.expire(ref.ID); err != nil {
				b.log.Error("end an expired envelope", "id", ref.ID.String(), "err", err)
			}
			d.aside = append(d.aside, ref)
			continue
		}
		if x.Item.Transit != nil {
			if x.Item.BodySize+seal.HopSize > room {
				d.aside = append(d.aside, ref)
				continue
			}
			if err := d.packTransit(x.Item, ref); err != nil {
				if err := b.unsealable(node, &load{refs: []spool.Ref{ref}}, err); err != nil {
					return false, err
				}
				d.aside = append(d.aside, ref)
			}
			continue
		}
		if size > 0 && size+x.Item.Env.Size > limit {
			b.spool.Release(ref) // a large one goes alone
			continue
		}
		size += x.Item.Env.Size
		class = min(class, classOf(x.Item))
		refs = append(refs, ref)
		l.add(x.Item, ref)
	}
	if len(refs) == 0 {
		return true, nil // what was put aside is not leased again: this comes to an end
	}
	defer func() { b.spool.Release(refs...) }()
	held, err := d.addReceipts(l, node)
	if err != nil {
		return false, err
	}
	x, err := b.sealLoad(l, node, d.node, class)
	if err != nil {
		return true, b.unsealable(node, l, err)
	}
	if x.packet.Size > room { // nobody has seen it: its number goes unused
		if len(refs) == 1 {
			d.aside, refs = append(d.aside, refs...), nil
		} else {
			d.pinch = max(size/2, 1)
		}
		return true, nil
	}
	x.held = held
	return true, d.expose(x)
}

// unsealable deals with legs of which no packet could be made: the one whose content spoils it is taken out of the
// queue; anything else (the peer's card is too old, the disk fails) is met again later, and the legs are put off.
func (b *Bridge) unsealable(node envelope.NodeID, l *load, cause error) error {
	if errors.Is(cause, envelope.ErrFormat) || errors.Is(cause, bundle.ErrSum) || errors.Is(cause, spool.ErrNotFound) || errors.Is(cause, spool.ErrNoBody) {
		for _, ref := range l.refs {
			if len(l.refs) == 1 || strings.Contains(cause.Error(), ref.ID.String()) {
				return b.quarantineItem(ref.ID, cause.Error())
			}
		}
	}
	b.log.Warn("cannot seal", "node", b.Policy().nodeName(node), "err", cause)
	now := b.now()
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for _, ref := range l.refs {
			item, err := tx.Item(ref.ID)
			if errors.Is(err, spool.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			leg := &item.Legs[ref.Leg]
			if leg.State != spool.Due {
				continue
			}
			leg.Attempts++
			leg.State, leg.At = spool.Deferred, now.Add(b.backoff(leg.Attempts))
			leg.Last = envelope.Status{Code: 451, Enhanced: "4.7.0", Text: envelope.OneLine("cannot seal: "+cause.Error(), 200)}
			item.AddLog(now, "deferred", leg.Last.Text)
			if err := tx.Save(item); err != nil {
				return err
			}
		}
		return nil
	})
}

// classOf is the order of packets on a carrier: 0 first.
func classOf(item *spool.Item) uint8 {
	if item.Transit != nil {
		return item.Transit.Class
	}
	return uint8(9 - max(-9, min(9, item.Env.Priority)))
}

// packTransit puts a hop box around a bundle that this node relays.
func (d *desk) packTransit(item *spool.Item, ref spool.Ref) error {
	b := d.b
	id := item.Env.ID
	x := &sealed{}
	h := seal.Hop{Dest: item.Transit.Dest, Expiry: item.Env.Expires.Add(-transitGrace), Class: item.Transit.Class, HopLimit: item.Transit.HopsLeft,
		Left: item.Transit.Left}
	if h.Left != seal.LeftMax {
		h.Left = seal.LeftOf(time.Duration(h.Left)*seal.LeftUnit - b.now().Sub(item.Entered))
	}
	stream := func(w io.Writer) error { return b.copyBody(w, id) }
	box, sent, err := b.hopBox(d.node, h, stream, x)
	if err != nil {
		return err
	}
	if x.sum != item.Env.Sum {
		return fmt.Errorf("%w: bundle %s in transit", bundle.ErrSum, id)
	}
	sent.Refs = []spool.Ref{ref}
	var small []byte
	if item.BodySize <= smallBundle {
		var buf bytes.Buffer
		if err := stream(&buf); err != nil {
			return err
		}
		small = buf.Bytes()
	}
	p, err := finish(box, small, stream, h.Class)
	if err != nil {
		return err
	}
	sent.Packet, sent.Size = p.ID, p.Size
	x.packet = p
	defer b.spool.Release(ref)
	return d.expose(x)
}

// expose commits a sealed packet and puts it into ready.
func (d *desk) expose(x *sealed) error {
	items, err := d.b.commit(x, d.carrier, d.overdue)
	if errors.Is(err, errGone) {
		return nil // a leg was held, expired or answered meanwhile: the rest is due still
	}
	if err != nil {
		return fmt.Errorf("store what is sent: %w", err)
	}
	d.spent += x.packet.Size
	d.sent[x.packet.ID] = items
	d.ready = append(d.ready, x.packet)
	return nil
}

// overdue is how long to wait for a receipt before a leg is due again: twice the usual round trip of its carrier,
// doubling with each loss.
func (d *desk) overdue(_ *spool.Item, leg *spool.Leg) time.Duration {
	if node, ok := leg.Dest.Node(); ok && d.b.Policy().oneWay(node) > 0 {
		return d.b.overdue(d.contact, 0)
	}
	return d.b.overdue(d.contact, leg.Attempts)
}

func (b *Bridge) overdue(c *Contact, attempts int) time.Duration {
	base := c.Overdue
	limit := 14 * 24 * time.Hour
	if base == 0 {
		if isLive(c.URL) {
			base, limit = max(10*time.Minute, 2*c.When.Every), 24*time.Hour
		} else {
			base = max(3*24*time.Hour, 2*c.When.Every)
		}
	}
	for range min(attempts, 20) {
		if base *= 2; base > limit {
			return max(limit, c.Overdue)
		}
	}
	return base
}

// Sent notes that the carrier took a packet (transport.Station).
func (d *desk) Sent(p *transport.Packet) {
	d.mu.Lock()
	items := d.sent[p.ID]
	delete(d.sent, p.ID)
	d.envelopes += len(items)
	d.mu.Unlock()
	for _, it := range items {
		for k := range it.Legs {
			if it.Legs[k].Carrier == d.carrier {
				d.b.logSent(it, &it.Legs[k], d.b.Policy().nodeName(d.node), d.carrier)
			}
		}
	}
}

// Known reports whether an incoming packet was taken before (transport.Station). Its receipt is then due again, once
// per contact.
func (d *desk) Known(head []byte, _ int64) bool {
	h, err := seal.ParseHeader(head)
	if err != nil {
		return d.b.refusedBefore(head)
	}
	ses, seq, ok := d.b.ses.match(h)
	if !ok {
		return d.b.refusedBefore(head)
	}
	dup, err := d.b.duplicate(ses, seq, h.Salt)
	if err != nil || !dup.known {
		return false
	}
	d.repeat(ses, dup)
	return true
}

// repeat is a receipt that the neighbour seems not to have.
type repeat struct {
	ses   *session
	count uint64
}

// repeat makes the receipt of a session due again, once per contact. On a folder it is decided in Present.
func (d *desk) repeat(ses *session, dup taken) {
	if dup.quiet {
		return
	}
	d.mu.Lock()
	first := !d.told[ses.keys.ID]
	d.told[ses.keys.ID] = true
	folder := !d.live && !isOneWay(d.carrier)
	if first && folder {
		d.repeats = append(d.repeats, repeat{ses, dup.count})
	}
	d.mu.Unlock()
	if first && !folder {
		d.b.ses.oweAgain(ses, dup.count)
		d.kick()
	}
}

// Receive takes one incoming packet (transport.Station).
func (d *desk) Receive(ctx context.Context, size int64, r io.Reader) error {
	in := &incoming{b: d.b, desk: d, prev: d.node, size: size}
	err := in.take(ctx, r)
	d.mu.Lock()
	d.fresh = d.fresh || in.mails
	if d.live && errors.Is(err, transport.ErrRefused) {
		if over := d.spend(); over != nil {
			err = over
		}
	}
	d.mu.Unlock()
	if err == nil {
		d.answered()
		d.b.met(d.node)
		d.kick()
	}
	return err
}

// Greeting is this side's first word on a stream (transport.Greeter).
func (d *desk) Greeting(ctx context.Context) ([]byte, error) {
	l := d.b.newLoad()
	l.expiry, l.anew = l.made.Add(24*time.Hour), d.b.unheard(d.contact)
	held, err := d.addReceipts(l, d.node)
	if err != nil {
		return nil, err
	}
	x, err := d.b.sealLoad(l, d.node, d.node, 0)
	if err == nil && x.packet.Size > transport.MaxGreeting {
		// a receipt with many gaps: it follows as a packet
		held = nil
		x, err = d.b.sealLoad(&load{expiry: l.expiry, made: l.made}, d.node, d.node, 0)
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.b.commit(x, d.carrier, d.overdue); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.hello = held // whether the neighbour is there at all is not known yet
	d.mu.Unlock()
	return readPacket(x.packet)
}

// answered says that the neighbour has read the greeting of this side: the receipts in it have arrived.
func (d *desk) answered() {
	d.mu.Lock()
	held := d.hello
	d.hello = nil
	d.mu.Unlock()
	if len(held) == 0 {
		return
	}
	if err := d.b.spool.ApplySoon(func(tx *spool.Tx) error { return paid(tx, held) }); err != nil {
		d.b.log.Error("note the receipts of a greeting", "err", err)
		return
	}
	d.b.ses.committed(held)
}

// Greeted takes the neighbour's greeting (transport.Greeter): what it acknowledges need not be sent again, the rest goes.
func (d *desk) Greeted(ctx context.Context, packet []byte) error {
	in := &incoming{b: d.b, desk: d, prev: d.node, size: int64(len(packet)), greeting: true}
	if err := in.take(ctx, bytes.NewReader(packet)); err != nil {
		return err
	}
	if in.peer != d.node {
		return fmt.Errorf("%w: %s answered, not %s", transport.ErrRefused, d.b.Policy().nodeName(in.peer), d.b.Policy().nodeName(d.node))
	}
	d.answered()
	d.welcome()
	return nil
}

// welcome plans the resends of a live contact, once its greeting has been read.
func (d *desk) welcome() {
	d.b.met(d.node)
	d.mu.Lock()
	first := !d.greeted
	d.greeted = true
	d.mu.Unlock()
	if first {
		d.plan(onLive)
		close(d.welcomed)
	}
}

// isWelcome reports whether resends are planned.
func (d *desk) isWelcome() bool {
	select {
	case <-d.welcomed:
		return true
	default:
		return false
	}
}

// mayResend reports whether an earlier live contact left something that the neighbour's greeting does not acknowledge,
// as far as can be told before it came. The desk's mutex is held.
func (d *desk) mayResend() bool {
	if d.awaits == nil {
		some := d.live && len(d.unacknowledged(onLive)) > 0
		d.awaits = &some
	}
	return *d.awaits
}

// Admit turns a caller's greeting into that neighbour's desk (transport.Reception).
func (b *Bridge) Admit(ctx context.Context, greeting []byte) (transport.Greeter, error) {
	in := &incoming{b: b, size: int64(len(greeting)), greeting: true}
	if err := in.take(ctx, bytes.NewReader(greeting)); err != nil {
		return nil, err
	}
	p := b.Policy()
	if p.peer(in.peer) == nil {
		return nil, fmt.Errorf("%w: caller is not a peer", transport.ErrRefused)
	}
	if err := b.listens(in.peer); err != nil {
		return nil, fmt.Errorf("%w: %w", transport.ErrRefused, err)
	}
	c := &Contact{Node: in.peer, NodeName: p.nodeName(in.peer), URL: "tcp:"}
	var called *Contact
	for _, x := range p.Contacts {
		if x.Node == in.peer && (isLive(x.URL) || x.When.OnCall) {
			y := *x
			if !isLive(y.URL) {
				y.URL = "tcp:"
			}
			c, called = &y, x
			break
		}
	}
	d := b.openDesk(c)
	d.called = called
	d.welcome()
	return d, nil
}
