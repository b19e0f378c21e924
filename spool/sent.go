package spool

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"mochila/internal/envelope"
)

// Sent remembers what an item of a session carried, until its receipt.
type Sent struct {
	Session      [8]byte
	Seq          uint64
	Salt         [16]byte
	Kind         uint8 // the bridge's
	Refs         []Ref // the legs inside
	InnerSession [8]byte
	InnerSeq     uint64
	Packet       [32]byte // hash of the packet, zero when there is none
	Size         int64
	Next         envelope.NodeID
	Carrier      string
	At           time.Time
	Recipe       []byte // how to make the same bytes again; the bridge's
}

// Field tags of a Sent.
const (
	sentSalt = iota + 1
	sentKind
	sentRefs
	sentInner
	sentInnerSeq
	sentPacket
	sentSize
	sentNext
	sentCarrier
	sentAt
	sentRecipe
)

// refSize is a stored Ref: id, leg + 1.
const refSize = 16 + 2

func (x *Sent) append(b []byte) []byte {
	w := envelope.Enc{B: b}
	w.Item(sentSalt, x.Salt[:])
	w.Uint(sentKind, uint64(x.Kind))
	if len(x.Refs) > 0 {
		m := w.Begin(sentRefs)
		for _, r := range x.Refs {
			w.B = append(w.B, r.ID[:]...)
			w.B = binary.BigEndian.AppendUint16(w.B, uint16(r.Leg+1))
		}
		w.End(m)
	}
	if x.InnerSession != [8]byte{} {
		w.Item(sentInner, x.InnerSession[:])
	}
	w.Uint(sentInnerSeq, x.InnerSeq)
	if x.Packet != [32]byte{} {
		w.Item(sentPacket, x.Packet[:])
	}
	w.Uint(sentSize, uint64(max(x.Size, 0)))
	if !x.Next.IsZero() {
		w.Item(sentNext, x.Next[:])
	}
	w.String(sentCarrier, x.Carrier)
	w.Time(sentAt, x.At)
	w.Bytes(sentRecipe, x.Recipe)
	return w.B
}

func parseSent(key, b []byte) (*Sent, error) {
	if len(key) != 16 {
		return nil, fmt.Errorf("%w: key of %d bytes", errRecord, len(key))
	}
	x := &Sent{Session: [8]byte(key), Seq: binary.BigEndian.Uint64(key[8:])}
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case sentSalt:
			d.Fixed(x.Salt[:])
		case sentKind:
			x.Kind = uint8(d.Max(math.MaxUint8))
		case sentRefs:
			v := d.Bytes()
			if len(v)%refSize != 0 {
				d.Fail("%d bytes are not a list of legs", len(v))
				break
			}
			x.Refs = make([]Ref, 0, len(v)/refSize)
			for ; len(v) > 0; v = v[refSize:] {
				x.Refs = append(x.Refs, Ref{envelope.ID(v[:16]), int(binary.BigEndian.Uint16(v[16:])) - 1})
			}
		case sentInner:
			d.Fixed(x.InnerSession[:])
		case sentInnerSeq:
			x.InnerSeq = d.Uint()
		case sentPacket:
			d.Fixed(x.Packet[:])
		case sentSize:
			x.Size = int64(d.Max(math.MaxInt64))
		case sentNext:
			d.Fixed(x.Next[:])
		case sentCarrier:
			x.Carrier = d.String()
		case sentAt:
			x.At = d.Time()
		case sentRecipe:
			x.Recipe = clone(d.Bytes())
		default:
			d.Unknown()
		}
	}
	if d.Err != nil {
		return nil, fmt.Errorf("reading sent item %d of session %x: %w", x.Seq, x.Session, d.Err)
	}
	return x, nil
}

func sentKey(session [8]byte, seq uint64) (k [16]byte) {
	copy(k[:], session[:])
	binary.BigEndian.PutUint64(k[8:], seq)
	return k
}

// PutSent remembers a sent item, new or changed.
func (tx *Tx) PutSent(x *Sent) error {
	k := sentKey(x.Session, x.Seq)
	if old := tx.bucket(bkSent).Get(k[:]); old != nil {
		if err := tx.unindexPacket(k[:], old); err != nil {
			return err
		}
	}
	if x.Packet != [32]byte{} {
		if err := tx.put(bkPacket, x.Packet[:], clone(k[:])); err != nil {
			return err
		}
	}
	return tx.put(bkSent, k[:], x.append(nil))
}

// unindexPacket removes the packet hash of the stored item v from the index, if it points to key.
func (tx *Tx) unindexPacket(key, v []byte) error {
	x, err := parseSent(key, v)
	if err != nil || x.Packet == [32]byte{} {
		return nil // nothing can be known of a broken one; its hash leads to an item that does not exist
	}
	if string(tx.bucket(bkPacket).Get(x.Packet[:])) != string(key) {
		return nil
	}
	return tx.del(bkPacket, x.Packet[:])
}

// Sent reads what an item carried. It fails with ErrNotFound.
func (tx *Tx) Sent(session [8]byte, seq uint64) (*Sent, error) {
	k := sentKey(session, seq)
	return tx.sent(k[:])
}

func (tx *Tx) sent(key []byte) (*Sent, error) {
	v := tx.bucket(bkSent).Get(key)
	if v == nil {
		return nil, fmt.Errorf("reading sent item %x: %w", key, ErrNotFound)
	}
	return parseSent(key, v)
}

// SentByPacket reads the item that a packet carried. It fails with ErrNotFound.
func (tx *Tx) SentByPacket(packet [32]byte) (*Sent, error) {
	k := tx.bucket(bkPacket).Get(packet[:])
	if len(k) != 16 {
		return nil, fmt.Errorf("looking for packet %x: %w", packet[:8], ErrNotFound)
	}
	return tx.sent(clone(k))
}

// DeleteSent forgets an item. Deleting one that is not there is no error.
func (tx *Tx) DeleteSent(session [8]byte, seq uint64) error {
	k := sentKey(session, seq)
	old := tx.bucket(bkSent).Get(k[:])
	if old == nil {
		return nil
	}
	if err := tx.unindexPacket(k[:], old); err != nil {
		return err
	}
	return tx.del(bkSent, k[:])
}

// SentRange calls fn for the remembered items of a session with numbers from first on, count numbers wide, in order.
// fn may delete the item it is given.
func (tx *Tx) SentRange(session [8]byte, first, count uint64, fn func(*Sent) error) error {
	from := sentKey(session, first)
	return tx.walkSent(from[:], func(k []byte) bool {
		return [8]byte(k) == session && binary.BigEndian.Uint64(k[8:])-first < count
	}, fn)
}

// EachSent calls fn for every remembered item, by session and number. fn may delete the item it is given.
func (tx *Tx) EachSent(fn func(*Sent) error) error {
	return tx.walkSent(nil, func([]byte) bool { return true }, fn)
}

// walkSent seeks anew after every call of fn, which may have changed the tree. Items that cannot be decoded are
// left out.
func (tx *Tx) walkSent(from []byte, in func(k []byte) bool, fn func(*Sent) error) error {
	b := tx.bucket(bkSent)
	c := b.Cursor()
	k, v := c.Seek(from)
	for len(k) == 16 && in(k) {
		key := clone(k)
		if x, err := parseSent(key, v); err == nil {
			if err := fn(x); err != nil {
				return err
			}
		}
		if tx.b == nil {
			k, v = c.Next()
			continue
		}
		if k, v = c.Seek(key); k != nil && string(k) == string(key) {
			k, v = c.Next()
		}
	}
	return nil
}
