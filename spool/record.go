package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"mochila/internal/envelope"
)

// A record is what the index keeps of an item (docs/spool.md, "Records"). Its head has fixed places, so that
// counting, leasing and indexing a million items needs no parsing of envelopes:
//
//	0   version 1
//	1   flags
//	2   class, size class
//	4   entered u64, expires u64 (milliseconds, 0 never), body size u64
//	28  body file name 16 (flagFile), body sum 32 (flagSum)
//	..  legs u16, then for each: destination number u32, state u8, at u64
//	..  fields (Enc): all the rest, the envelope last
const (
	recordVersion = 1
	headFixed     = 28
	legSize       = 13
)

const (
	flagInline = 1 << iota // content is in bucket body
	flagFile               // content is in a file
	flagSum                // content sum differs from Env.Sum
	flagExpirySeen
	flagAll = flagInline | flagFile | flagSum | flagExpirySeen
)

// Field tags of a record.
const (
	recTrust    = 1
	recLeg      = 2 // one per leg, in order; may be empty
	recOutcome  = 3 // one per recipient, in order; may be empty
	recDelayed  = 4
	recNoReport = 5
	recTransit  = 6
	recLog      = 7
	recParent   = 8
	recProblem  = 9
	recEnv      = 10
	recHeader   = 11
)

// errRecord is wrapped by every error about a record that cannot be read.
var errRecord = errors.New("broken record")

// fileName names a body file.
type fileName [16]byte

// legHead is the part of a leg that the index needs.
type legHead struct {
	dest  uint32
	state State
	at    int64 // milliseconds, 0 never
}

// head is the fixed part of a record.
type head struct {
	flags        uint8
	class, size1 uint8 // size1: the size class
	entered      int64
	expires      int64
	size         int64
	file         fileName
	sum          [32]byte // only with flagSum
	nlegs        int
	legs         []byte // nlegs * legSize
	rest         []byte
}

// leg is the i-th leg.
func (h *head) leg(i int) legHead {
	b := h.legs[i*legSize:]
	return legHead{binary.BigEndian.Uint32(b), State(b[4]), int64(binary.BigEndian.Uint64(b[5:]))}
}

// done reports whether every leg has ended.
func (h *head) done() bool {
	for i := range h.nlegs {
		if h.leg(i).state != Done {
			return false
		}
	}
	return true
}

// parseHead reads the fixed part of a record; the slices of h are slices of b.
func parseHead(b []byte) (h head, err error) {
	if len(b) < headFixed+2 {
		return h, fmt.Errorf("%w: %d bytes", errRecord, len(b))
	}
	if b[0] != recordVersion {
		return h, fmt.Errorf("%w: version %d", errRecord, b[0])
	}
	h.flags, h.class, h.size1 = b[1], b[2], b[3]
	if h.flags&^flagAll != 0 || h.flags&flagInline != 0 && h.flags&flagFile != 0 {
		return h, fmt.Errorf("%w: flags %#x", errRecord, h.flags)
	}
	entered, expires, size := binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint64(b[12:]), binary.BigEndian.Uint64(b[20:])
	if entered > maxMilli || expires > maxMilli || size > math.MaxInt64 {
		return h, fmt.Errorf("%w: a number is out of range", errRecord)
	}
	h.entered, h.expires, h.size = int64(entered), int64(expires), int64(size)
	b = b[headFixed:]
	if h.flags&flagFile != 0 {
		if len(b) < len(h.file) {
			return h, fmt.Errorf("%w: cut short", errRecord)
		}
		b = b[copy(h.file[:], b):]
	}
	if h.flags&flagSum != 0 {
		if len(b) < len(h.sum) {
			return h, fmt.Errorf("%w: cut short", errRecord)
		}
		b = b[copy(h.sum[:], b):]
	}
	if len(b) < 2 {
		return h, fmt.Errorf("%w: cut short", errRecord)
	}
	h.nlegs = int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if h.nlegs == 0 || h.nlegs > MaxLegs || len(b) < h.nlegs*legSize {
		return h, fmt.Errorf("%w: %d legs in %d bytes", errRecord, h.nlegs, len(b))
	}
	h.legs, h.rest = b[:h.nlegs*legSize], b[h.nlegs*legSize:]
	for i := range h.nlegs {
		l := h.leg(i)
		if l.state < Due || l.state > Done || uint64(l.at) > maxMilli {
			return h, fmt.Errorf("%w: leg %d", errRecord, i)
		}
	}
	return h, nil
}

// maxMilli is the end of the year 9999, the last time that a record can hold.
const maxMilli = 253402300799999

// milli is t in milliseconds since 1970; 0 stands for the zero time.
func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return min(max(t.UnixMilli(), 1), maxMilli)
}

// fromMilli is the inverse of milli.
func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// expiry is the expiry of e as envelope.AppendStored keeps it: in whole seconds.
func expiry(e *envelope.Envelope) int64 {
	ms := milli(e.Expires)
	if ms == 0 {
		return 0
	}
	return max(ms/1000, 1) * 1000
}

// deadline is Item.Deadline in milliseconds.
func deadline(it *Item) int64 {
	at := expiry(it.Env)
	if at == 0 || it.Env.Created.IsZero() || it.Entered.IsZero() {
		return at
	}
	life := it.Env.Expires.Sub(it.Env.Created)
	aged := milli(it.Entered.Add(life - it.Env.Age))
	return min(at, max(aged/1000, 1)*1000)
}

// bodyRef says where the content of an item is.
type bodyRef struct {
	flags uint8 // flagInline, flagFile or neither
	size  int64
	file  fileName
	sum   [32]byte
}

// body is the bodyRef of a parsed record; envSum is its envelope's sum, used where the record has none of its own.
func (h *head) body(envSum [32]byte) bodyRef {
	r := bodyRef{flags: h.flags & (flagInline | flagFile), size: h.size, file: h.file, sum: envSum}
	if h.flags&flagSum != 0 {
		r.sum = h.sum
	}
	return r
}

// appendRecord encodes it. dest gives the number of a destination.
func appendRecord(b []byte, it *Item, body bodyRef, dest func(Dest) (uint32, error)) ([]byte, error) {
	if it.Env == nil {
		return nil, errors.New("item without envelope")
	}
	if len(it.Legs) == 0 || len(it.Legs) > MaxLegs {
		return nil, fmt.Errorf("item with %d legs", len(it.Legs))
	}
	flags := body.flags
	if flags != 0 && body.sum != it.Env.Sum {
		flags |= flagSum
	}
	if it.ExpirySeen {
		flags |= flagExpirySeen
	}
	b = append(b, recordVersion, flags, class(it.Env), sizeClass(body.size))
	b = binary.BigEndian.AppendUint64(b, uint64(milli(it.Entered)))
	b = binary.BigEndian.AppendUint64(b, uint64(deadline(it)))
	b = binary.BigEndian.AppendUint64(b, uint64(body.size))
	if flags&flagFile != 0 {
		b = append(b, body.file[:]...)
	}
	if flags&flagSum != 0 {
		b = append(b, body.sum[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(it.Legs)))
	for i := range it.Legs {
		l := &it.Legs[i]
		if l.State < Due || l.State > Done {
			return nil, fmt.Errorf("leg %d has no state", i)
		}
		no, err := dest(l.Dest)
		if err != nil {
			return nil, err
		}
		b = binary.BigEndian.AppendUint32(b, no)
		b = append(b, byte(l.State))
		b = binary.BigEndian.AppendUint64(b, uint64(milli(l.At)))
	}
	return appendRest(b, it)
}

// parseRecord decodes the whole item. dest gives the destination of a number.
func parseRecord(b []byte, dest func(uint32) (Dest, bool)) (*Item, head, error) {
	h, err := parseHead(b)
	if err != nil {
		return nil, h, err
	}
	it := &Item{
		Entered: fromMilli(h.entered), BodySize: h.size,
		ExpirySeen: h.flags&flagExpirySeen != 0,
		Gone:       h.flags&(flagInline|flagFile) == 0 && h.size > 0 && !h.done(),
		Legs:       make([]Leg, h.nlegs),
	}
	for i := range it.Legs {
		l := h.leg(i)
		d, ok := dest(l.dest)
		if !ok {
			return nil, h, fmt.Errorf("%w: leg %d goes to the unknown destination %d", errRecord, i, l.dest)
		}
		it.Legs[i] = Leg{Dest: d, State: l.state, At: fromMilli(l.at)}
	}
	if err := parseRest(h.rest, it); err != nil {
		return nil, h, fmt.Errorf("%w: %w", errRecord, err)
	}
	return it, h, nil
}
