package envelope

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
)

// RecordType says what a record inside a bundle is (docs/format.md, "Records and receipts").
type RecordType uint8

const (
	RecordEnvelope    RecordType = 1 // an envelope's header, its content follows
	RecordHeld        RecordType = 2
	RecordRefused     RecordType = 3
	RecordClose       RecordType = 4
	RecordReset       RecordType = 5
	RecordFork        RecordType = 6
	RecordCard        RecordType = 7 // a signed card as it is
	RecordGreeting    RecordType = 8
	RecordInviteProof RecordType = 9  // 32 bytes
	RecordChannel     RecordType = 10 // the state of a channel of jobs, from its destination
	RecordResume      RecordType = 11 // the answer of its origin
)

// String is the word for the record in logs.
func (t RecordType) String() string {
	switch t {
	case RecordEnvelope:
		return "envelope"
	case RecordHeld:
		return "held"
	case RecordRefused:
		return "refused"
	case RecordClose:
		return "close"
	case RecordReset:
		return "reset"
	case RecordFork:
		return "fork"
	case RecordCard:
		return "card"
	case RecordGreeting:
		return "greeting"
	case RecordInviteProof:
		return "invite proof"
	case RecordChannel:
		return "channel"
	case RecordResume:
		return "resume"
	}
	return "record type " + strconv.Itoa(int(t))
}

// MaxBody is the longest body of a record that is not an envelope.
func (t RecordType) MaxBody() int {
	switch t {
	case RecordEnvelope:
		return MaxHeader
	case RecordHeld, RecordClose, RecordChannel:
		return 32 << 10 // MaxRanges ranges of at most 28 bytes, and the rest
	case RecordResume:
		return 64 << 10 // two lists of ranges
	case RecordRefused:
		return 512
	case RecordReset, RecordFork, RecordGreeting:
		return 256
	case RecordCard:
		return MaxCard
	case RecordInviteProof:
		return 32
	}
	return 0
}

// MaxCard is the longest card in bytes.
const MaxCard = 8 << 10

// MaxRefusedText is the longest text of a Refused in bytes.
const MaxRefusedText = 200

// Held is a receipt: everything the peer has taken durably in one direction of one session, over its whole life.
// It moves custody of hop boxes and proves the arrival of bundles. Old, lost and repeated ones are harmless.
type Held struct {
	Session [8]byte
	Ranges  Ranges // at least one, and a check on each
}

// Reason says why an item was refused. Numbers that this version does not know are kept as they are.
type Reason uint8

const (
	ReasonUnopenable Reason = 1 // no key of ours opens it
	ReasonKeyErased  Reason = 2 // sealed for a key that is gone; Refused.Serial names the card to use
	ReasonWindow     Reason = 3 // it would open range number MaxRanges + 1
	ReasonQuota      Reason = 4
	ReasonExpired    Reason = 5
	ReasonUnknown    Reason = 6 // destination or sender unknown here
	ReasonCorrupt    Reason = 7
	ReasonPolicy     Reason = 8 // authentic, but the sender was not given that right
	ReasonTooLarge   Reason = 9
)

// String is the word for the reason in logs.
func (r Reason) String() string {
	words := [...]string{"", "unopenable", "key erased", "window", "quota", "expired", "unknown", "corrupt", "policy", "too large"}
	if r > 0 && int(r) < len(words) {
		return words[r]
	}
	return "reason " + strconv.Itoa(int(r))
}

// Refused says that an item will not be taken. It proves nothing; its receiver reacts at most once per session
// and hour. It names the item either by session, number and salt, or, where no session could be found, by the
// hash of its packet.
type Refused struct {
	Session [8]byte
	Seq     uint64
	Salt    [8]byte  // the first half of the item's salt
	Packet  [32]byte // hash of the packet; then the three above are zero
	Reason  Reason
	Serial  uint64 // serial of the refuser's current card, 0 when it does not matter
	Text    string // one line for a person
}

// Close ends one direction of a session: nothing more will be sealed in it.
type Close struct {
	Session [8]byte
	Next    uint64 // the number after the last one used
	Check   Check  // XOR of the checks of all numbers below Next that are not in Void
	Void    Ranges // numbers that will never arrive, and need not; their checks are zero
}

// Reset asks the peer to stop sealing in a session and to start another.
type Reset struct {
	Session     [8]byte
	Incarnation [8]byte // of the sender of this record
}

// Fork says that a number was seen twice with different salts: the receiver of this record was rolled back or
// copied, unless it remembers both salts.
type Fork struct {
	Session     [8]byte
	Seq         uint64
	Salt        [16]byte // the one that came later
	Incarnation [8]byte  // of the sender of this record
}

// Greeting is the first thing that two neighbours on a live stream say to each other.
type Greeting struct {
	Name  string   // node name, for people, at most MaxNodeName bytes
	Nonce [16]byte // fresh for each contact
	Echo  [16]byte // the nonce of the peer's greeting; zero when none was read yet
}

// InviteProof shows that the sender of a first bundle holds the secret of an invitation.
type InviteProof [32]byte

// Field numbers; every record counts its own.
const (
	recSession = 1

	heldRanges = 2

	refSeq    = 2
	refSalt   = 3
	refPacket = 4
	refReason = 5
	refSerial = 6
	refText   = 7

	closeNext  = 2
	closeCheck = 3
	closeVoid  = 4

	resetIncarnation = 2

	forkSeq         = 2
	forkSalt        = 3
	forkIncarnation = 4

	greetName  = 1
	greetNonce = 2
	greetEcho  = 3
)

// Append appends the record's body.
func (h *Held) Append(b []byte) []byte {
	w := Enc{B: b}
	w.Item(recSession, h.Session[:])
	m := w.Begin(heldRanges)
	w.B = appendRanges(w.B, h.Ranges, true)
	w.End(m)
	return w.B
}

// ParseHeld reads what Append wrote.
func ParseHeld(b []byte) (*Held, error) {
	h := new(Held)
	d := Dec{B: b}
	d.need(recSession, h.Session[:])
	for d.Next() {
		if d.Tag != heldRanges {
			d.Unknown()
			break
		}
		h.Ranges = d.ranges(true)
	}
	if h.Ranges == nil {
		d.Fail("a receipt without ranges")
	}
	return done(h, &d, RecordHeld)
}

// Append appends the record's body.
func (r *Refused) Append(b []byte) []byte {
	w := Enc{B: b}
	if r.Packet == [32]byte{} {
		w.Item(recSession, r.Session[:])
		w.Uint(refSeq, r.Seq)
		w.Item(refSalt, r.Salt[:])
	} else {
		w.Item(refPacket, r.Packet[:])
	}
	w.Uint(refReason, uint64(r.Reason))
	w.Uint(refSerial, r.Serial)
	w.String(refText, OneLine(r.Text, MaxRefusedText))
	return w.B
}

// ParseRefused reads what Append wrote.
func ParseRefused(b []byte) (*Refused, error) {
	r := new(Refused)
	d := Dec{B: b}
	session, salt, packet := false, false, false
	for d.Next() {
		switch d.Tag {
		case recSession:
			d.Fixed(r.Session[:])
			session = true
		case refSeq:
			r.Seq = d.Uint()
		case refSalt:
			d.Fixed(r.Salt[:])
			salt = true
		case refPacket:
			d.Fixed(r.Packet[:])
			packet = true
		case refReason:
			r.Reason = Reason(d.Max(255))
		case refSerial:
			r.Serial = d.Uint()
		case refText:
			r.Text = d.oneLine(MaxRefusedText)
		default:
			d.Unknown()
		}
	}
	switch {
	case session != salt || session == packet || r.Seq != 0 && !session || packet && r.Packet == [32]byte{}:
		d.Fail("names neither one number of a session nor one packet")
	case r.Reason == 0:
		d.Fail("no reason")
	}
	return done(r, &d, RecordRefused)
}

// Append appends the record's body.
func (c *Close) Append(b []byte) []byte {
	w := Enc{B: b}
	w.Item(recSession, c.Session[:])
	w.Uint(closeNext, c.Next)
	if c.Check != (Check{}) {
		w.Item(closeCheck, c.Check[:])
	}
	if len(c.Void) > 0 {
		m := w.Begin(closeVoid)
		w.B = appendRanges(w.B, c.Void, false)
		w.End(m)
	}
	return w.B
}

// ParseClose reads what Append wrote.
func ParseClose(b []byte) (*Close, error) {
	c := new(Close)
	d := Dec{B: b}
	d.need(recSession, c.Session[:])
	for d.Next() {
		switch d.Tag {
		case closeNext:
			c.Next = d.Uint()
		case closeCheck:
			d.Fixed(c.Check[:])
			if c.Check == (Check{}) {
				d.Fail("check of zeros")
			}
		case closeVoid:
			c.Void = d.ranges(false)
		default:
			d.Unknown()
		}
	}
	if n := len(c.Void); n > 0 && c.Void[n-1].End() > c.Next {
		d.Fail("void numbers that were never used")
	}
	return done(c, &d, RecordClose)
}

// Append appends the record's body.
func (r *Reset) Append(b []byte) []byte {
	w := Enc{B: b}
	w.Item(recSession, r.Session[:])
	w.Item(resetIncarnation, r.Incarnation[:])
	return w.B
}

// ParseReset reads what Append wrote.
func ParseReset(b []byte) (*Reset, error) {
	r := new(Reset)
	d := Dec{B: b}
	d.need(recSession, r.Session[:])
	d.need(resetIncarnation, r.Incarnation[:])
	d.end()
	return done(r, &d, RecordReset)
}

// Append appends the record's body.
func (f *Fork) Append(b []byte) []byte {
	w := Enc{B: b}
	w.Item(recSession, f.Session[:])
	w.Uint(forkSeq, f.Seq)
	w.Item(forkSalt, f.Salt[:])
	w.Item(forkIncarnation, f.Incarnation[:])
	return w.B
}

// ParseFork reads what Append wrote.
func ParseFork(b []byte) (*Fork, error) {
	f := new(Fork)
	d := Dec{B: b}
	d.need(recSession, f.Session[:])
	salt, incarnation := false, false
	for d.Next() {
		switch d.Tag {
		case forkSeq:
			f.Seq = d.Uint()
		case forkSalt:
			d.Fixed(f.Salt[:])
			salt = true
		case forkIncarnation:
			d.Fixed(f.Incarnation[:])
			incarnation = true
		default:
			d.Unknown()
		}
	}
	if !salt || !incarnation {
		d.Fail("salt or incarnation is missing")
	}
	return done(f, &d, RecordFork)
}

// Append appends the record's body.
func (g *Greeting) Append(b []byte) []byte {
	w := Enc{B: b}
	w.String(greetName, OneLine(g.Name, MaxNodeName))
	w.Item(greetNonce, g.Nonce[:])
	if g.Echo != [16]byte{} {
		w.Item(greetEcho, g.Echo[:])
	}
	return w.B
}

// ParseGreeting reads what Append wrote.
func ParseGreeting(b []byte) (*Greeting, error) {
	g := new(Greeting)
	d := Dec{B: b}
	nonce := false
	for d.Next() {
		switch d.Tag {
		case greetName:
			g.Name = d.oneLine(MaxNodeName)
		case greetNonce:
			d.Fixed(g.Nonce[:])
			nonce = true
		case greetEcho:
			d.Fixed(g.Echo[:])
			if g.Echo == [16]byte{} {
				d.Fail("echo of zeros")
			}
		default:
			d.Unknown()
		}
	}
	if !nonce {
		d.Fail("no nonce")
	}
	return done(g, &d, RecordGreeting)
}

// Append appends the record's body.
func (p InviteProof) Append(b []byte) []byte { return append(b, p[:]...) }

// ParseInviteProof reads what Append wrote.
func ParseInviteProof(b []byte) (InviteProof, error) {
	if len(b) != len(InviteProof{}) {
		return InviteProof{}, fmt.Errorf("%w: invite proof of %d bytes, not %d", ErrFormat, len(b), len(InviteProof{}))
	}
	return InviteProof(b), nil
}

// appendRanges writes, for each range, the gap to the end of the one before, the count less one, and the check.
func appendRanges(b []byte, r Ranges, checks bool) []byte {
	end := uint64(0)
	for i := range r {
		b = binary.AppendUvarint(b, r[i].First-end)
		b = binary.AppendUvarint(b, r[i].Count-1)
		if checks {
			b = append(b, r[i].Check[:]...)
		}
		end = r[i].End()
	}
	return b
}

// ranges reads what appendRanges wrote: ascending, apart from each other, within 48 bits, at most MaxRanges.
func (d *Dec) ranges(checks bool) Ranges {
	in := Dec{B: d.Bytes()}
	each := 2
	if checks {
		each += len(Check{})
	}
	out := make(Ranges, 0, min(len(in.B)/each, MaxRanges))
	end := uint64(0)
	for len(in.B) > 0 && in.Err == nil {
		gap, _ := in.uvarint()
		less, _ := in.uvarint()
		first, c1 := bits.Add64(end, gap, 0)
		last, c2 := bits.Add64(first, less, 0)
		x := Range{First: first, Count: less + 1}
		switch {
		case in.Err != nil:
		case c1 != 0 || c2 != 0 || last > MaxSeq:
			in.fail("range past the last number")
		case gap == 0 && len(out) > 0:
			in.fail("two ranges that are one")
		case len(out) >= MaxRanges:
			in.fail("more than %d ranges", MaxRanges)
		case checks && len(in.B) < len(x.Check):
			in.fail("range without check")
		default:
			if checks {
				in.B = in.B[copy(x.Check[:], in.B):]
			}
			out, end = append(out, x), last+1
		}
	}
	if in.Err != nil {
		if d.Err == nil {
			d.Err = in.Err
		}
		return nil
	}
	return out
}

// need reads the next field, which must be this one.
func (d *Dec) need(tag uint64, dst []byte) {
	if !d.Next() || d.Tag != tag {
		d.fail("field %d is missing", tag)
		return
	}
	d.Fixed(dst)
}

// end refuses further fields.
func (d *Dec) end() {
	if d.Next() {
		d.Unknown()
	}
}

// done is what a parser returns.
func done[T any](v *T, d *Dec, t RecordType) (*T, error) {
	if d.Err != nil {
		return nil, fmt.Errorf("%v: %w", t, d.Err)
	}
	return v, nil
}
