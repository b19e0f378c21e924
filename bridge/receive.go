package bridge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/envelope/bundle"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

func readPacket(p *transport.Packet) ([]byte, error) {
	r, err := p.Open(0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// mark is one item that a packet consisted of: its number enters the replay set in the commit that takes the packet.
type mark struct {
	ses  *session
	seq  uint64
	salt [16]byte
	owe  bool // the peer waits for a receipt

	count  uint64 // numbers that came under the session, this one included; known after the commit
	forked bool   // the number was taken before, with another salt; known after the commit
}

// incoming takes in one packet: verify all of it, then enter what it holds in one transaction, and nothing before.
type incoming struct {
	b        *Bridge
	desk     *desk           // nil when the neighbour is not known yet
	prev     envelope.NodeID // neighbour it came from, zero if unknown
	size     int64
	packet   *hashing // the reader of all of it
	offer    []byte   // in front of its first item
	spared   *spared  // how its bytes can be made again; nil: they can not
	greeting bool

	peer  envelope.NodeID // origin of the bundle
	marks []mark
	head  []byte

	adds     []*addition
	jobs     []*addition // jobs and results
	reported []*envelope.ChannelReport
	resumes  []*envelope.Resume
	reports  []*envelope.Envelope
	helds    []*envelope.Held
	refs     []*envelope.Refused
	cards    [][]byte
	remember []*envelope.Envelope
	resets   []*envelope.Reset
	forks    []*envelope.Fork
	closes   []*envelope.Close
	count    int
	noRoom   error    // why the mail of the bundle cannot be taken now; receipts in it still are
	box      *payload // what a hop box for this node speaks of
	guest    *session // the sender is not a peer: only an invitation lets it in
	proof    []byte
	mails    bool          // some mail was entered
	made     time.Time     // when the bundle was sealed, by the clock of its origin
	left     uint16        // what the hop box of this node says of its life
	relayed  time.Duration // how long relays had it, at least
	booked   []booking     // quota, to be settled
}

// hashing knows the name of the packet that is read, for a refusal: from the carrier, or by hashing what is read.
type hashing struct {
	r    io.Reader
	name transport.Named // nil: h is needed
	h    hash.Hash
	n    int64
}

func newHashing(r io.Reader) *hashing {
	x := &hashing{r: r}
	if x.name, _ = r.(transport.Named); x.name == nil {
		x.h = envelope.NewSum()
	}
	return x
}

func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if h.h != nil {
		h.h.Write(p[:n])
	}
	h.n += int64(n)
	return n, err
}

// vouch says that every byte that is still to come is authenticated here: nobody else needs to hash it.
func (h *hashing) vouch() {
	if v, ok := h.r.(transport.Vouched); ok {
		v.Vouch()
	}
}

// verify fails with transport.ErrIncomplete if the packet, read to its end, is a damaged copy.
func (h *hashing) verify(ctx context.Context) error {
	if v, ok := h.r.(transport.Vouched); ok {
		return v.Verify(ctx)
	}
	return nil
}

// sum is the hash of the packet, once all of it was read.
func (h *hashing) sum() (sum [32]byte) {
	if h.h == nil {
		return h.name.ID()
	}
	h.h.Sum(sum[:0])
	return sum
}

// take reads one packet of the carrier.
func (in *incoming) take(ctx context.Context, src io.Reader) error {
	b := in.b
	if !in.greeting {
		if err := b.quota.admit(b, in.prev, in.size); err != nil {
			return err
		}
	}
	r := newHashing(src)
	in.packet = r
	err := in.item(ctx, r, false)
	b.quota.settle(in.booked, err == nil)
	if err == nil {
		return nil
	}
	in.refill()
	in.discard()
	var bad *badPacket
	if !errors.As(err, &bad) || errors.Is(err, transport.ErrIncomplete) {
		return err
	}
	return in.refuse(ctx, r, bad)
}

// badPacket is a packet that will never be taken as it is.
type badPacket struct {
	reason envelope.Reason
	serial uint64
	err    error
	head   bool // the leading bytes alone tell: nothing behind them can change it
}

func (e *badPacket) Error() string { return e.reason.String() + ": " + e.err.Error() }
func (e *badPacket) Unwrap() error { return e.err }

func bad(reason envelope.Reason, err error) error { return &badPacket{reason: reason, err: err} }

// classify tells broken bytes from trouble of this node's own.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, transport.ErrIncomplete):
		return err
	case errors.Is(err, seal.ErrTruncated) || errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF:
		return bad(envelope.ReasonCorrupt, fmt.Errorf("truncated: %w", err))
	case errors.Is(err, seal.ErrCorrupt) || errors.Is(err, seal.ErrTrailing) || errors.Is(err, seal.ErrPayload) ||
		errors.Is(err, envelope.ErrFormat) || errors.Is(err, bundle.ErrSum):
		return bad(envelope.ReasonCorrupt, err)
	case errors.Is(err, bundle.ErrLimit):
		return bad(envelope.ReasonTooLarge, err)
	}
	return err
}

// item reads one item: a bundle, or at the outside a hop box with a bundle behind it.
func (in *incoming) item(ctx context.Context, r io.Reader, inner bool) error {
	b := in.b
	var raw [seal.HeaderSize]byte
	if n, err := io.ReadFull(r, raw[:]); err != nil {
		if n == 0 && errors.Is(err, transport.ErrIncomplete) {
			return err
		}
		return classify(err)
	}
	if !inner {
		in.head = raw[:]
	}
	h, err := seal.ParseHeader(raw[:])
	if err != nil {
		return &badPacket{reason: envelope.ReasonUnopenable, err: err, head: true}
	}
	var offer []byte
	if h.Offer() {
		offer = make([]byte, seal.OfferSize)
		if _, err := io.ReadFull(r, offer); err != nil {
			return classify(err)
		}
	}
	if !inner {
		in.offer = offer
	}
	ses, seq, ok := b.ses.match(h)
	if ok && offer != nil && !ses.keys.SameOffer(offer) {
		return bad(envelope.ReasonCorrupt, errors.New("the item carries another session's offer"))
	}
	if !ok && offer != nil {
		ses, err = b.ses.accept(b, offer)
		if errors.Is(err, seal.ErrUnknownPeer) && ses != nil && !inner && b.opt.Joined != nil {
			in.guest, err = ses, nil
		}
		if err != nil {
			return in.offerFault(err)
		}
		if seq, ok = ses.keys.Match(h); !ok {
			return bad(envelope.ReasonCorrupt, errors.New("the offer does not fit the item"))
		}
	}
	if !ok {
		return &badPacket{reason: envelope.ReasonUnopenable, head: true,
			err: errors.New("no session of ours fits and it carries no offer: lost or erased state, or a stranger")}
	}
	if in.guest == nil && b.Policy().peer(ses.peer) == nil {
		return bad(envelope.ReasonUnknown, fmt.Errorf("%s is no peer any more", ses.peer))
	}
	dup, err := b.duplicate(ses, seq, h.Salt)
	if err != nil {
		return err
	}
	if dup.known {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return classify(err)
		}
		if in.peer.IsZero() {
			in.peer = ses.peer
		}
		if in.greeting {
			return bad(envelope.ReasonUnopenable, errors.New("this greeting was used before"))
		}
		if in.desk != nil {
			in.desk.repeat(ses, dup)
		} else if !dup.quiet {
			b.ses.oweAgain(ses, dup.count)
		}
		return in.enterMarks(ctx)
	}
	m := mark{ses: ses, seq: seq, salt: h.Salt}
	if h.Payload() {
		if inner {
			return bad(envelope.ReasonCorrupt, errors.New("hop box inside a hop box"))
		}
		return in.hop(ctx, r, h, m)
	}
	in.peer = ses.peer
	return in.bundle(ctx, r, h, m)
}

// offerFault turns the refusal of an offer into the answer the sender gets.
func (in *incoming) offerFault(err error) error {
	var erased *seal.ErasedError
	switch {
	case errors.As(err, &erased):
		return &badPacket{reason: envelope.ReasonKeyErased, serial: in.b.keys.Card().Serial, err: err}
	case errors.Is(err, seal.ErrUnknownPeer), errors.Is(err, seal.ErrRevoked):
		return bad(envelope.ReasonUnknown, err)
	case errors.Is(err, errTombstone):
		return &badPacket{reason: envelope.ReasonKeyErased, serial: in.b.keys.Card().Serial, err: err}
	case errors.Is(err, errTooMany):
		return bad(envelope.ReasonQuota, err)
	case errors.Is(err, seal.ErrUnopenable):
		return bad(envelope.ReasonUnopenable, err)
	case errors.Is(err, envelope.ErrFormat), errors.Is(err, seal.ErrCorrupt), errors.Is(err, seal.ErrSignature):
		return bad(envelope.ReasonCorrupt, err)
	}
	return err
}

// hop opens a hop box and takes its payload: as a bundle when it is for this node, else into the queue of the next.
func (in *incoming) hop(ctx context.Context, r io.Reader, h seal.Header, m mark) error {
	b := in.b
	box := make([]byte, seal.HopSize-seal.HeaderSize)
	if _, err := io.ReadFull(r, box); err != nil {
		return classify(err)
	}
	hop, err := m.ses.keys.OpenHop(h, m.seq, box)
	if err != nil {
		return classify(err)
	}
	m.owe = true
	in.prev = m.ses.peer
	in.marks = append(in.marks, m)
	pr := &payload{r: io.LimitReader(r, hop.Length), rest: r, left: hop.Length, want: hop.PayloadHash, h: sha256.New(), name: envelope.NewSum()}
	if hop.Dest == b.ID().Label() {
		in.box, in.left = pr, hop.Left
		return in.item(ctx, pr, true)
	}
	return in.transit(ctx, pr, hop)
}

// payload reads what a hop box speaks of. It ends with io.EOF only when length and hash are right and nothing follows.
type payload struct {
	r    io.Reader
	rest io.Reader
	left int64
	want [16]byte
	h    hash.Hash // compared with want
	name hash.Hash // the bundle's, for a refusal
	err  error     // sticky: what was found at the end
}

func (p *payload) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.read(b)
	p.err = err
	return n, err
}

func (p *payload) read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.h.Write(b[:n])
	p.name.Write(b[:n])
	p.left -= int64(n)
	if err != io.EOF {
		return n, err
	}
	if p.left > 0 {
		return n, seal.ErrTruncated
	}
	if [16]byte(p.h.Sum(nil)) != p.want {
		return n, seal.ErrPayload
	}
	var one [1]byte
	if k, err := io.ReadFull(p.rest, one[:]); k > 0 {
		return n, seal.ErrTrailing
	} else if err != io.EOF && err != io.ErrUnexpectedEOF {
		return n, err
	}
	return n, io.EOF
}

// transitGrace is how long a relay keeps a bundle beyond its expiry.
const transitGrace = 14 * 24 * time.Hour

// transit stores a bundle that this node only relays.
func (in *incoming) transit(ctx context.Context, r io.Reader, hop seal.Hop) error {
	b := in.b
	p := b.Policy()
	from := p.peer(in.prev)
	next := p.label(hop.Dest)
	now := b.now()
	switch {
	case from == nil || !from.MayRelay(hop.Dest):
		return bad(envelope.ReasonPolicy, fmt.Errorf("%s may not relay to %s through this node", p.nodeName(in.prev), hop.Dest))
	case next == nil || len(p.paths(next.ID)) == 0:
		return bad(envelope.ReasonUnknown, fmt.Errorf("no path to the node with label %s", hop.Dest))
	case hop.HopLimit <= 1:
		return bad(envelope.ReasonPolicy, errors.New("the packet has passed too many nodes"))
	case !b.clock.suspect() && (now.After(hop.Expiry) || hop.Left == 0):
		return bad(envelope.ReasonExpired, errors.New("expired on the way"))
	case b.spool.Full():
		return spool.ErrFull
	}
	if err := in.charge(in.prev, hop.Length); err != nil {
		return bad(envelope.ReasonQuota, err)
	}
	in.packet.vouch() // the box, which is authentic, has the hash of the rest
	body := b.spool.NewBody()
	if err := copyContent(body, r, hop.Length); err != nil {
		body.Discard()
		return classify(err)
	}
	if err := body.Finish(); err != nil {
		body.Discard()
		return err
	}
	env := &envelope.Envelope{ID: envelope.NewID(now), Origin: b.ID(), Kind: envelope.KindTransit, Created: now,
		Expires: hop.Expiry.Add(transitGrace), Size: body.Size(), Sum: body.Sum(), Priority: 9 - int(min(hop.Class, 18))}
	if hop.Left != seal.LeftMax { // so that it ages from now on whatever this node's clock says
		env.Created = env.Expires.Add(-transitGrace - time.Duration(hop.Left)*seal.LeftUnit)
	}
	item := &spool.Item{Env: env, Trust: peerTrust(in.prev), Entered: now,
		Legs:    []spool.Leg{{Dest: spool.NodeDest(next.ID), State: spool.Due}},
		Transit: &spool.Transit{Dest: hop.Dest, Class: hop.Class, HopsLeft: hop.HopLimit - 1, From: in.prev, Left: hop.Left}}
	in.adds = append(in.adds, &addition{item: item, body: body})
	return in.enter(ctx)
}

// bundle opens a bundle for this node.
func (in *incoming) bundle(ctx context.Context, r io.Reader, h seal.Header, m mark) error {
	b := in.b
	limit := b.Policy().Limits.MessageSize
	in.packet.vouch()
	content := m.ses.keys.OpenItem(h, m.seq, r)
	if in.size > smallBundle {
		a := readAhead(content)
		defer a.Close() // before r is read on, to refuse the packet
		content = in.sparing(a, h, m)
	}
	rd := b.codec.NewReader(content, bundle.Limits{MaxRaw: max(64<<20, 4*limit, b.Policy().jobBytes(in.peer)), MaxRecords: 100000})
	defer rd.Close()
	head, err := rd.Header()
	if err != nil {
		return classify(err)
	}
	in.made = head.Made
	if whole := seal.LeftOf(head.Life()); in.box != nil && in.left < whole && whole < seal.LeftMax {
		in.relayed = time.Duration(whole-in.left) * seal.LeftUnit
	}
	for n := 0; ; n++ {
		rec, err := rd.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return classify(err)
		}
		if in.guest != nil && n == 0 && rec.Type != envelope.RecordInviteProof {
			return in.offerFault(seal.ErrUnknownPeer)
		}
		if err := in.record(rec); err != nil {
			return classify(err)
		}
		if in.guest != nil && n == 0 { // before anything of a stranger is written to the disk
			if _, _, err := b.invited(in.guest, in.proof); err != nil {
				return bad(envelope.ReasonUnknown, err)
			}
		}
		if ctx.Err() != nil {
			return errShutdown
		}
	}
	if in.noRoom != nil {
		return in.onlyReceipts(ctx)
	}
	if err := in.stillWelcome(m.ses); err != nil {
		return err
	}
	m.owe = in.count > 0
	in.marks = append(in.marks, m)
	err = in.enter(ctx)
	if errors.Is(err, spool.ErrFull) {
		in.noRoom = err
		return in.onlyReceipts(ctx)
	}
	return err
}

// stillWelcome looks again whether its session may bring a bundle that may have taken long to come.
func (in *incoming) stillWelcome(ses *session) error {
	switch {
	case in.guest != nil:
		return nil
	case in.b.Policy().peer(ses.peer) == nil:
		return bad(envelope.ReasonUnknown, fmt.Errorf("%s is no peer any more", ses.peer))
	case in.b.ses.byID(ses.keys.ID) == nil:
		return &badPacket{reason: envelope.ReasonKeyErased, serial: in.b.keys.Card().Serial,
			err: errors.New("the session was erased while the bundle came")}
	}
	return nil
}

// charge books what is queued here on behalf of a node; take settles it.
func (in *incoming) charge(node envelope.NodeID, size int64) error {
	if err := in.b.quota.charge(in.b, node, size); err != nil {
		return err
	}
	in.booked = append(in.booked, booking{peerTrust(node), size})
	return nil
}

// onlyReceipts ends a bundle whose mail cannot be taken now: what frees space, or ends mail, takes effect all the same,
// and the bundle counts as never seen.
func (in *incoming) onlyReceipts(ctx context.Context) error {
	in.refill()
	in.discard()
	in.marks, in.remember = nil, nil
	if in.guest == nil {
		if err := in.enter(ctx); err != nil {
			return err
		}
	}
	return in.noRoom
}

// record stages one record; nothing of it has any effect before the bundle has been read to its authenticated end.
func (in *incoming) record(rec *bundle.Record) error {
	if rec.Err != nil {
		in.b.log.Warn("a record of a bundle cannot be used", "peer", in.b.Policy().nodeName(in.peer), "type", rec.Type.String(), "err", rec.Err)
		return nil
	}
	var err error
	switch rec.Type {
	case envelope.RecordEnvelope:
		in.count++
		return in.envelope(rec)
	case envelope.RecordHeld:
		var h *envelope.Held
		if h, err = envelope.ParseHeld(rec.Body); err == nil {
			in.helds = append(in.helds, h)
		}
	case envelope.RecordRefused:
		var f *envelope.Refused
		if f, err = envelope.ParseRefused(rec.Body); err == nil {
			in.refs = append(in.refs, f)
		}
	case envelope.RecordCard:
		in.cards = append(in.cards, bytes.Clone(rec.Body))
	case envelope.RecordChannel:
		var c *envelope.ChannelReport
		if c, err = envelope.ParseChannelReport(rec.Body); err == nil {
			in.reported = append(in.reported, c)
		}
	case envelope.RecordResume:
		var c *envelope.Resume
		if c, err = envelope.ParseResume(rec.Body); err == nil {
			in.resumes = append(in.resumes, c)
		}
	case envelope.RecordReset:
		var x *envelope.Reset
		if x, err = envelope.ParseReset(rec.Body); err == nil {
			in.resets = append(in.resets, x)
		}
	case envelope.RecordClose:
		var x *envelope.Close
		if x, err = envelope.ParseClose(rec.Body); err == nil {
			in.closes = append(in.closes, x)
		}
	case envelope.RecordFork:
		var x *envelope.Fork
		if x, err = envelope.ParseFork(rec.Body); err == nil {
			in.forks = append(in.forks, x)
		}
	case envelope.RecordInviteProof:
		in.proof = bytes.Clone(rec.Body)
	case envelope.RecordGreeting:
		_, err = envelope.ParseGreeting(rec.Body)
	}
	return err
}

// envelope stages one envelope of a bundle.
func (in *incoming) envelope(rec *bundle.Record) error {
	b := in.b
	e := rec.Envelope
	e.Origin = in.peer
	e.Age = min(e.Age+in.relayed, envelope.MaxAge)
	switch e.Kind {
	case envelope.KindReport:
		if _, err := io.Copy(io.Discard, rec.Content); err != nil {
			return err
		}
		in.reports = append(in.reports, e)
		in.remember = append(in.remember, e)
		return nil
	case envelope.KindJob, envelope.KindResult:
		return in.job(rec)
	case envelope.KindMail:
	default:
		b.log.Warn("an envelope of a kind this version does not know", "id", e.ID.String(), "kind", int(e.Kind))
		return nil
	}
	var parent envelope.ID
	seen := func() (yes bool, err error) {
		err = b.spool.View(func(tx *spool.Tx) error { yes = tx.Seen(e.Origin, e.ID); return nil })
		return yes, err
	}
	if yes, err := seen(); err != nil {
		return err
	} else if yes {
		had, err := b.before(e)
		if err != nil {
			return err
		}
		first, second := e, others(e, had)
		if second != nil {
			e, parent = second, first.ID
			if yes, err = seen(); err != nil {
				return err
			}
			had = nil
		}
		if yes {
			if _, err := io.Copy(io.Discard, rec.Content); err != nil {
				return err
			}
			if second != nil {
				if had, err = b.before(second); err != nil {
					return err
				}
			}
			return in.tellAgain(first, had)
		}
	}
	if s, refused := b.refuseMail(e); refused && in.guest == nil {
		if _, err := io.Copy(io.Discard, rec.Content); err != nil {
			return err
		}
		told := *e
		if !parent.IsZero() {
			told.ID = parent
		}
		a, err := b.failed(&told, s)
		if err != nil {
			return err
		}
		in.adds = append(in.adds, a)
		in.remember = append(in.remember, e)
		return nil
	}
	if in.noRoom == nil && b.spool.Full() {
		in.noRoom = spool.ErrFull
	}
	if in.noRoom == nil && in.guest == nil {
		if err := in.charge(e.Origin, e.Size); err != nil {
			in.noRoom = bad(envelope.ReasonQuota, err)
		}
	}
	if in.noRoom != nil {
		_, err := io.Copy(io.Discard, rec.Content)
		return err
	}
	body := b.spool.NewBody()
	if e.Kind == envelope.KindMail {
		body = b.spool.NewMailBody()
	}
	if err := in.store(body, rec); err != nil {
		if !errors.Is(err, spool.ErrFull) {
			return err
		}
		in.noRoom = err
		_, err := io.Copy(io.Discard, rec.Content)
		return err
	}
	var item *spool.Item
	if in.guest != nil {
		item = &spool.Item{Env: e} // restage completes it
	} else {
		item = b.arrive(e)
		item.Parent = parent
	}
	in.adds = append(in.adds, &addition{item: item, body: body})
	in.remember = append(in.remember, e)
	return nil
}
