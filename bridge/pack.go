package bridge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/envelope/bundle"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// smallBundle is up to where a bundle is made in memory; larger ones are streamed, twice: once for their hash, once
// for the carrier.
const smallBundle = 4 << 20

// record is one control record of a bundle.
type record struct {
	t    envelope.RecordType
	body []byte
}

// load is what one bundle carries, in the order it is written. Written again, it gives the same bytes: that is how a
// packet is sent a second time without having been kept (its recipe is).
type load struct {
	expiry  time.Time
	made    time.Time // when it is sealed
	records []record
	refs    []spool.Ref
	envs    []*envelope.Envelope
	trusts  []string
	anew    bool // seal it under a session that carries its offer: the peer may have lost the others
	written bool // once already, and all contents were what their envelopes say
}

// recipeRecord is the field of a recipe that holds one control record; recipeMade says when it was sealed.
const (
	recipeRecord = 4
	recipeMade   = 5
)

// newLoad begins a load that is sealed now.
func (b *Bridge) newLoad() *load { return &load{made: b.now().Round(0).Truncate(time.Millisecond)} }

// header is the header of the bundle.
func (l *load) header() bundle.Header { return bundle.Header{Expires: l.expiry, Made: l.made} }

// recipe is what a load needs besides its legs, as spool.Sent.Recipe keeps it.
func (l *load) recipe(offer bool) []byte {
	var e envelope.Enc
	e.Bool(1, offer)
	e.Time(2, l.expiry)
	e.Uint(3, bundle.Encoding)
	for _, r := range l.records {
		e.Item(recipeRecord, append([]byte{byte(r.t)}, r.body...))
	}
	e.Time(recipeMade, l.made)
	return e.B
}

// reload makes the load of a recipe again; errGone when one of its legs is no longer there as it was.
func (b *Bridge) reload(s *spool.Sent) (l *load, offer bool, err error) {
	l = &load{}
	d := envelope.Dec{B: s.Recipe}
	for d.Next() {
		switch d.Tag {
		case 1:
			offer = d.Bool()
		case 2:
			l.expiry = d.Time()
		case 3:
			if d.Uint() != bundle.Encoding {
				return nil, false, errGone
			}
		case recipeRecord:
			if v := d.List(); len(v) > 0 {
				l.records = append(l.records, record{envelope.RecordType(v[0]), slices.Clone(v[1:])})
			}
		case recipeMade:
			l.made = d.Time()
		default:
			d.Unknown()
		}
	}
	if d.Err != nil {
		return nil, false, d.Err
	}
	err = b.spool.View(func(tx *spool.Tx) error {
		for _, ref := range s.Refs {
			item, err := tx.Item(ref.ID)
			if errors.Is(err, spool.ErrNotFound) || err == nil && ref.Leg >= len(item.Legs) {
				return errGone
			}
			if err != nil {
				return err
			}
			if st := item.Legs[ref.Leg].State; st != spool.Sealed && st != spool.Travelling {
				return errGone
			}
			l.add(item, ref)
		}
		return nil
	})
	return l, offer, err
}

var errGone = errors.New("what the packet carried has gone on")

func (l *load) add(item *spool.Item, ref spool.Ref) {
	l.refs = append(l.refs, ref)
	l.envs = append(l.envs, onWire(item, ref.Leg, l.made))
	l.trusts = append(l.trusts, item.Trust)
	if l.expiry.Before(item.Env.Expires) {
		l.expiry = item.Env.Expires
	}
}

// onWire is the envelope as one leg carries it when it is sealed: only that leg's recipients, one hop more, and as old as
// it is.
func onWire(item *spool.Item, leg int, made time.Time) *envelope.Envelope {
	e := *item.Env
	e.Hops++
	e.Age = max(e.Age+made.Sub(item.Entered), 0).Truncate(time.Second)
	rcpts := item.Legs[leg].Rcpts
	if e.Mail != nil && len(rcpts) != len(e.Mail.Recipients) {
		m := *e.Mail
		m.Recipients = make([]envelope.Recipient, 0, len(rcpts))
		for _, i := range rcpts {
			m.Recipients = append(m.Recipients, e.Mail.Recipients[i])
		}
		e.Mail = &m
	}
	return &e
}

// size is the plain size of the load, near enough to choose between memory and stream.
func (l *load) size() (n int64) {
	for _, e := range l.envs {
		n += e.Size + 300
	}
	return n
}

// write writes the content of the bundle.
func (b *Bridge) write(w io.Writer, l *load) error {
	bw := b.codec.NewWriter(w, l.header(), bundle.Options{Compared: l.written})
	if len(l.records) > 0 {
		if err := bw.Frame("control"); err != nil {
			return err
		}
	}
	for _, r := range l.records {
		if err := bw.Record(r.t, r.body); err != nil {
			return err
		}
	}
	trust := "control"
	for i, e := range l.envs {
		if l.trusts[i] != trust || i == 0 {
			trust = l.trusts[i]
			if err := bw.Frame(trust); err != nil {
				return err
			}
		}
		if err := b.writeEnvelope(bw, e); err != nil {
			return fmt.Errorf("pack %s: %w", e.ID, err)
		}
	}
	return bw.Close()
}

func (b *Bridge) writeEnvelope(bw *bundle.Writer, e *envelope.Envelope) error {
	r, err := b.spool.OpenBody(e.ID)
	if err != nil {
		return err
	}
	defer r.Close()
	return bw.Envelope(e, r)
}

// sealed is a bundle or hop box ready for a carrier, before it is committed.
type sealed struct {
	packet *transport.Packet
	sent   []*spool.Sent
	used   []*session
	held   map[[8]byte]uint64 // numbers that the receipts inside cover, per session
	sum    [32]byte           // hash of the bundle behind the hop box, its name
	byHand bool               // its envelope was held for this packet
}

// numbered is a session with the number and salt of one item.
type numbered struct {
	ses   *session
	seq   uint64
	salt  [16]byte
	offer bool
}

// number takes the next number of a session with a node; anew wants one that carries its offer.
func (b *Bridge) number(node envelope.NodeID, anew bool) (n numbered, err error) {
	card, err := b.cardOf(node)
	if err != nil {
		return n, fmt.Errorf("card of %s: %w", b.Policy().nodeName(node), err)
	}
	if n.ses, n.seq, n.salt, err = b.ses.pick(b, card, anew); err != nil {
		return n, err
	}
	n.offer = b.ses.offers(n.ses)
	return n, nil
}

// sealLoad seals a load for dest, to be handed to the neighbour next; a hop box goes in front unless they are the same.
func (b *Bridge) sealLoad(l *load, dest, next envelope.NodeID, class uint8) (*sealed, error) {
	in, err := b.number(dest, l.anew)
	if err != nil {
		return nil, err
	}
	proof, err := b.proof(in)
	if err != nil {
		return nil, err
	}
	l.records = append(proof, l.records...)
	stream := func(w io.Writer) error { return b.sealInto(w, l, in) }
	out := &sealed{used: []*session{in.ses}}
	s := &spool.Sent{Session: in.ses.keys.ID, Seq: in.seq, Salt: in.salt, Kind: sentBundle, Refs: l.refs, Next: dest, Recipe: l.recipe(in.offer)}
	if len(l.refs) == 0 {
		s.Kind = sentControl
	}
	out.sent = []*spool.Sent{s}
	var small []byte
	if l.size() <= smallBundle {
		var buf bytes.Buffer
		b.benches <- struct{}{} // nobody there waits for anything but the disk
		err := stream(&buf)
		<-b.benches
		if err != nil {
			return nil, err
		}
		small = buf.Bytes()
		stream = func(w io.Writer) error { _, err := w.Write(small); return err }
	}
	if next == dest {
		if out.packet, err = finish(nil, small, stream, class); err != nil {
			return nil, err
		}
		l.written = true
		s.Packet, s.Size = out.packet.ID, out.packet.Size
		return out, nil
	}
	h := seal.Hop{Dest: dest.Label(), Expiry: l.expiry, Class: class, HopLimit: uint8(b.Policy().Limits.Hops), Left: seal.LeftOf(l.header().Life())}
	box, sent, err := b.hopBox(next, h, stream, out)
	if err != nil {
		return nil, err
	}
	l.written = true
	sent.InnerSession, sent.InnerSeq = s.Session, s.Seq
	if out.packet, err = finish(box, small, stream, class); err != nil {
		return nil, err
	}
	sent.Packet, sent.Size = out.packet.ID, out.packet.Size
	return out, nil
}

// hopBox seals the hop box of a payload for the neighbour next and notes it in out.
func (b *Bridge) hopBox(next envelope.NodeID, h seal.Hop, stream func(io.Writer) error, out *sealed) ([]byte, *spool.Sent, error) {
	name, check := counted{h: envelope.NewSum()}, sha256.New() // the box has its own hash: docs/seal.md
	if err := stream(io.MultiWriter(&name, check)); err != nil {
		return nil, nil, err
	}
	h.Type, h.Length = 1, name.n
	name.h.Sum(out.sum[:0])
	copy(h.PayloadHash[:], check.Sum(nil))
	n, err := b.number(next, false)
	if err != nil {
		return nil, nil, err
	}
	box, err := n.ses.keys.SealHop(n.seq, n.salt, n.offer, h)
	if err != nil {
		return nil, nil, err
	}
	sent := &spool.Sent{Session: n.ses.keys.ID, Seq: n.seq, Salt: n.salt, Kind: sentHop, Next: next, Recipe: hopRecipe(n.offer, h)}
	out.used = append(out.used, n.ses)
	out.sent = append(out.sent, sent)
	return box, sent, nil
}

// hopRecipe is what a hop box needs to be sealed again.
func hopRecipe(offer bool, h seal.Hop) []byte {
	var e envelope.Enc
	e.Bool(1, offer)
	e.Time(2, h.Expiry)
	e.Bytes(4, h.Dest[:])
	e.Uint(5, uint64(h.Length))
	e.Bytes(6, h.PayloadHash[:])
	e.Uint(7, uint64(h.Class))
	e.Uint(8, uint64(h.HopLimit))
	e.Uint(9, uint64(h.Left))
	return e.B
}

func parseHopRecipe(v []byte) (offer bool, h seal.Hop, err error) {
	h.Type = 1
	d := envelope.Dec{B: v}
	for d.Next() {
		switch d.Tag {
		case 1:
			offer = d.Bool()
		case 2:
			h.Expiry = d.Time()
		case 4:
			d.Fixed(h.Dest[:])
		case 5:
			h.Length = int64(d.Max(1 << 48))
		case 6:
			d.Fixed(h.PayloadHash[:])
		case 7:
			h.Class = uint8(d.Max(255))
		case 8:
			h.HopLimit = uint8(d.Max(255))
		case 9:
			h.Left = uint16(d.Max(seal.LeftMax))
		default:
			d.Unknown()
		}
	}
	return offer, h, d.Err
}

// sealInto writes the sealed bundle.
func (b *Bridge) sealInto(w io.Writer, l *load, n numbered) error {
	sw, err := n.ses.keys.SealItem(w, n.seq, n.salt, n.offer, false)
	if err != nil {
		return err
	}
	if err := b.write(sw, l); err != nil {
		return err
	}
	return sw.Close()
}

type counted struct {
	h hash.Hash
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.h.Write(p)
}

// finish makes the packet of a head and a payload, which is in memory or streamed.
func finish(head, small []byte, stream func(io.Writer) error, class uint8) (*transport.Packet, error) {
	p := &transport.Packet{Class: class}
	if small != nil {
		all := small
		if len(head) > 0 {
			all = append(slices.Clip(head), small...)
		}
		p.ID, p.Size = envelope.SumOf(all), int64(len(all))
		p.Open = func(off int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(all[min(off, int64(len(all))):])), nil
		}
		return p, nil
	}
	c := counted{h: envelope.NewSum()}
	c.Write(head)
	if err := stream(&c); err != nil {
		return nil, err
	}
	c.h.Sum(p.ID[:0])
	p.Size = c.n
	p.Open = func(off int64) (io.ReadCloser, error) {
		return pull(func(w io.Writer) error {
			sk := &skipper{w: w, n: off}
			if _, err := sk.Write(head); err != nil {
				return err
			}
			return stream(sk)
		}), nil
	}
	return p, nil
}

// pulled reads what a stream writes: a write runs when it is read, in turns with the reader, so that the bytes that one core has
// just sealed are the ones it sends, and no goroutine needs to be woken for them. Close may come while another goroutine reads, as
// from an HTTP client whose server has answered before it had all.
type pulled struct {
	mu   sync.Mutex
	next func() ([]byte, bool)
	stop func()
	rest []byte // of the write that is read
	err  error  // what the stream returned; after Close what its writes do
}

// pull begins with nothing. The stream writes from the goroutine that it is called in.
func pull(stream func(io.Writer) error) *pulled {
	p := new(pulled)
	p.next, p.stop = iter.Pull(func(yield func([]byte) bool) {
		p.err = stream(yielder(yield))
	})
	return p
}

// Read implements io.Reader.
func (p *pulled) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.rest) == 0 {
		var more bool
		if p.rest, more = p.next(); !more {
			if p.err != nil {
				return 0, p.err
			}
			return 0, io.EOF
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Close ends the stream where it is.
func (p *pulled) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop()
	p.rest, p.err = nil, io.ErrClosedPipe
	return nil
}

// yielder is the writer of a pulled stream.
type yielder func([]byte) bool

// Write hands b to the reader, and returns when it has been read.
func (y yielder) Write(b []byte) (int, error) {
	if !y(b) {
		return 0, io.ErrClosedPipe
	}
	return len(b), nil
}

// skipper drops the first n bytes.
type skipper struct {
	w io.Writer
	n int64
}

func (s *skipper) Write(p []byte) (int, error) {
	drop := min(s.n, int64(len(p)))
	s.n -= drop
	if int(drop) == len(p) {
		return len(p), nil
	}
	n, err := s.w.Write(p[drop:])
	return int(drop) + n, err
}

// commit stores that a packet is about to be exposed on a carrier. errGone when one of its legs changed meanwhile.
func (b *Bridge) commit(x *sealed, carrier string, overdue func(item *spool.Item, leg *spool.Leg) time.Duration) ([]*spool.Item, error) {
	now := b.now()
	var items []*spool.Item
	err := b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		items = items[:0]
		for _, s := range x.sent {
			for _, ref := range s.Refs {
				item, err := tx.Item(ref.ID)
				if errors.Is(err, spool.ErrNotFound) {
					return errGone
				}
				if err != nil {
					return err
				}
				leg := &item.Legs[ref.Leg]
				if x.byHand && leg.State == spool.Held {
					leg.State = spool.Due // it was held for this
				}
				next, ok := spool.Next(leg.State, spool.Seal)
				if !ok {
					return errGone
				}
				leg.State, leg.Carrier, leg.At = next, carrier, now.Add(overdue(item, leg))
				item.AddLog(now, "sealed", "on "+carrier+" for "+b.Policy().nodeName(s.Next))
				if err := tx.Save(item); err != nil {
					return err
				}
				items = append(items, item)
			}
			s.Carrier, s.At = carrier, now
			if err := tx.PutSent(s); err != nil {
				return err
			}
			if s.InnerSession != ([8]byte{}) {
				if err := notePayload(tx, x.sent[0], x.sum, now); err != nil {
					return err
				}
			}
		}
		for _, ses := range x.used {
			rec, err := b.record(tx, ses)
			if err != nil {
				return err
			}
			for _, s := range x.sent {
				if s.Session == rec.ID {
					rec.NextSeq = max(rec.NextSeq, s.Seq+1)
				}
			}
			rec.Used = now
			if !isLive(carrier) {
				liesOn(rec, now)
			}
			if err := tx.PutSession(rec); err != nil {
				return err
			}
		}
		return paid(tx, x.held)
	})
	if err != nil {
		return nil, err
	}
	b.ses.committed(x.held)
	return items, nil
}

// paid stores that receipts have left, unless more has come meanwhile.
func paid(tx *spool.Tx, held map[[8]byte]uint64) error {
	for id, n := range held {
		rec, err := tx.Session(id)
		if errors.Is(err, spool.ErrNotFound) {
			continue // erased meanwhile
		}
		if err != nil {
			return err
		}
		if rec.OweHeld && rec.Recv.Count() == n {
			rec.OweHeld = false
			if err := tx.PutSession(rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// committed notes that receipts have left: the numbers they cover, per session.
func (s *sessions) committed(held map[[8]byte]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.all {
		if n, ok := held[u.keys.ID]; ok {
			u.told = max(u.told, n)
			if u.owed <= n {
				u.owed = 0
			}
		}
	}
}

// rebuild makes a packet again that was exposed before and is not acknowledged: the same bytes.
func (b *Bridge) rebuild(s *spool.Sent) (*transport.Packet, error) {
	switch {
	case s.Kind == sentHop && s.InnerSession == ([8]byte{}):
		return b.rebuildTransit(s)
	case s.Kind == sentHop:
		var inner *spool.Sent
		err := b.spool.View(func(tx *spool.Tx) (err error) { inner, err = tx.Sent(s.InnerSession, s.InnerSeq); return err })
		if errors.Is(err, spool.ErrNotFound) {
			return nil, errGone
		}
		if err != nil {
			return nil, err
		}
		l, stream, err := b.restream(inner)
		if err != nil {
			return nil, err
		}
		box, err := b.rebox(s)
		if err != nil {
			return nil, err
		}
		p, err := b.same(s, box, l.size() <= smallBundle, stream)
		l.written = err == nil
		return p, err
	case s.Kind == sentBundle:
		l, stream, err := b.restream(s)
		if err != nil {
			return nil, err
		}
		p, err := b.same(s, nil, l.size() <= smallBundle, stream)
		l.written = err == nil
		return p, err
	}
	return nil, errGone
}

// restream is the sealed stream of a bundle sent before.
func (b *Bridge) restream(s *spool.Sent) (*load, func(io.Writer) error, error) {
	l, offer, err := b.reload(s)
	if err != nil {
		return nil, nil, err
	}
	ses := b.ses.byID(s.Session)
	if ses == nil {
		return nil, nil, errGone
	}
	n := numbered{ses: ses, seq: s.Seq, salt: s.Salt, offer: offer}
	return l, func(w io.Writer) error { return b.sealInto(w, l, n) }, nil
}

// rebox is a hop box sealed again.
func (b *Bridge) rebox(s *spool.Sent) ([]byte, error) {
	ses := b.ses.byID(s.Session)
	if ses == nil {
		return nil, errGone
	}
	offer, h, err := parseHopRecipe(s.Recipe)
	if err != nil {
		return nil, err
	}
	return ses.keys.SealHop(s.Seq, s.Salt, offer, h)
}

func (b *Bridge) rebuildTransit(s *spool.Sent) (*transport.Packet, error) {
	if len(s.Refs) != 1 {
		return nil, errGone
	}
	box, err := b.rebox(s)
	if err != nil {
		return nil, err
	}
	id := s.Refs[0].ID
	return b.same(s, box, s.Size <= smallBundle, func(w io.Writer) error { return b.copyBody(w, id) })
}

func (b *Bridge) copyBody(w io.Writer, id envelope.ID) error {
	r, err := b.spool.OpenBody(id)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// same finishes a rebuilt packet and makes sure that it is the one that was sent: a new release may compress otherwise.
func (b *Bridge) same(s *spool.Sent, head []byte, small bool, stream func(io.Writer) error) (*transport.Packet, error) {
	var mem []byte
	if small {
		var buf bytes.Buffer
		b.benches <- struct{}{} // nobody there waits for anything but the disk
		err := stream(&buf)
		<-b.benches
		if err != nil {
			return nil, err
		}
		mem = buf.Bytes()
	}
	p, err := finish(head, mem, stream, 0)
	if err != nil {
		return nil, err
	}
	if [32]byte(p.ID) != s.Packet {
		return nil, errGone
	}
	return p, nil
}

// byID finds a live session.
func (s *sessions) byID(id [8]byte) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.keys.ID == id {
			return x
		}
	}
	return nil
}
