package spool

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"mochila/internal/envelope"
)

// Session is what the spool keeps of a session with another node. Its secrets come wrapped.
type Session struct {
	ID              [8]byte
	Peer            envelope.NodeID
	State           uint8  // the bridge's
	Secret          []byte // opaque, wrapped by seal
	NextSeq         uint64 // of the next item we send
	Acked, Recv     envelope.Ranges
	OweHeld         bool // a receipt is owed
	Created         time.Time
	Heard, Used     time.Time
	PeerIncarnation [8]byte
	OwnIncarnation  [8]byte
	Extra           []byte // the bridge's
}

// Field tags of a session.
const (
	sesPeer = iota + 1
	sesState
	sesSecret
	sesNext
	sesAcked
	sesRecv
	sesOwe
	sesCreated
	sesHeard
	sesUsed
	sesPeerInc
	sesOwnInc
	sesExtra
)

func (x *Session) append(b []byte) []byte {
	w := envelope.Enc{B: b}
	w.Item(sesPeer, x.Peer[:])
	w.Uint(sesState, uint64(x.State))
	w.Bytes(sesSecret, x.Secret)
	w.Uint(sesNext, x.NextSeq)
	w.Bytes(sesAcked, appendRanges(nil, x.Acked))
	w.Bytes(sesRecv, appendRanges(nil, x.Recv))
	w.Bool(sesOwe, x.OweHeld)
	w.Time(sesCreated, x.Created)
	w.Time(sesHeard, x.Heard)
	w.Time(sesUsed, x.Used)
	w.Item(sesPeerInc, x.PeerIncarnation[:])
	w.Item(sesOwnInc, x.OwnIncarnation[:])
	w.Bytes(sesExtra, x.Extra)
	return w.B
}

func parseSession(id [8]byte, b []byte) (*Session, error) {
	x := &Session{ID: id}
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case sesPeer:
			d.Fixed(x.Peer[:])
		case sesState:
			x.State = uint8(d.Max(math.MaxUint8))
		case sesSecret:
			x.Secret = clone(d.Bytes())
		case sesNext:
			x.NextSeq = d.Uint()
		case sesAcked:
			x.Acked = takeRanges(&d)
		case sesRecv:
			x.Recv = takeRanges(&d)
		case sesOwe:
			x.OweHeld = d.Bool()
		case sesCreated:
			x.Created = d.Time()
		case sesHeard:
			x.Heard = d.Time()
		case sesUsed:
			x.Used = d.Time()
		case sesPeerInc:
			d.Fixed(x.PeerIncarnation[:])
		case sesOwnInc:
			d.Fixed(x.OwnIncarnation[:])
		case sesExtra:
			x.Extra = clone(d.Bytes())
		default:
			d.Unknown()
		}
	}
	if d.Err != nil {
		return nil, fmt.Errorf("reading session %x: %w", id, d.Err)
	}
	return x, nil
}

// clone copies bytes out of the index.
func clone(b []byte) []byte { return append([]byte(nil), b...) }

// A stored range is first, count and check: 24 bytes.
const rangeSize = 24

func appendRanges(b []byte, r envelope.Ranges) []byte {
	for i := range r {
		b = binary.BigEndian.AppendUint64(b, r[i].First)
		b = binary.BigEndian.AppendUint64(b, r[i].Count)
		b = append(b, r[i].Check[:]...)
	}
	return b
}

func takeRanges(d *envelope.Dec) envelope.Ranges {
	v := d.Bytes()
	n := len(v) / rangeSize
	if len(v)%rangeSize != 0 || n > envelope.MaxRanges {
		d.Fail("%d bytes are not a list of ranges", len(v))
		return nil
	}
	r := make(envelope.Ranges, n)
	for i := range r {
		b := v[i*rangeSize:]
		r[i] = envelope.Range{First: binary.BigEndian.Uint64(b), Count: binary.BigEndian.Uint64(b[8:]), Check: envelope.Check(b[16:24])}
	}
	return r
}

// Session reads a session. It fails with ErrNotFound.
func (tx *Tx) Session(id [8]byte) (*Session, error) {
	v := tx.bucket(bkSession).Get(id[:])
	if v == nil {
		return nil, fmt.Errorf("reading session %x: %w", id, ErrNotFound)
	}
	return parseSession(id, v)
}

// PutSession stores a session, new or changed.
func (tx *Tx) PutSession(x *Session) error { return tx.put(bkSession, x.ID[:], x.append(nil)) }

// DeleteSession forgets a session with its salts and sent items. Deleting one that is not there is no error.
func (tx *Tx) DeleteSession(id [8]byte) error {
	if err := tx.del(bkSession, id[:]); err != nil {
		return err
	}
	for _, k := range []bucket{bkSalt, bkSent} {
		var keys [][]byte
		c := tx.bucket(k).Cursor()
		for key, v := c.Seek(id[:]); len(key) > 8 && [8]byte(key[:8]) == id; key, v = c.Next() {
			keys = append(keys, clone(key))
			if k == bkSent {
				if err := tx.unindexPacket(key, v); err != nil {
					return err
				}
			}
		}
		for _, key := range keys {
			if err := tx.del(k, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sessions reads all sessions, by id. One that cannot be decoded is left out: its peer will find that we lost it, and
// start a new one.
func (tx *Tx) Sessions() ([]*Session, error) {
	var out []*Session
	err := tx.bucket(bkSession).ForEach(func(k, v []byte) error {
		if len(k) != 8 {
			return nil
		}
		if x, err := parseSession([8]byte(k), v); err == nil {
			out = append(out, x)
		}
		return nil
	})
	return out, err
}

// saltsKept is how many salts a session remembers.
const saltsKept = 4096

// saltKey is the place of a number's salt: numbers 4096 apart share one, the higher wins.
func saltKey(session [8]byte, seq uint64) (k [10]byte) {
	copy(k[:], session[:])
	binary.BigEndian.PutUint16(k[8:], uint16(seq%saltsKept))
	return k
}

// PutSalt remembers the salt of an item that came. Of numbers that are 4096 apart only the highest is kept.
func (tx *Tx) PutSalt(session [8]byte, seq uint64, salt [16]byte) error {
	k := saltKey(session, seq)
	if v := tx.bucket(bkSalt).Get(k[:]); len(v) == 24 && binary.BigEndian.Uint64(v) > seq {
		return nil
	}
	return tx.put(bkSalt, k[:], append(binary.BigEndian.AppendUint64(nil, seq), salt[:]...))
}

// Salt returns the salt under which an item came, if it is remembered.
func (tx *Tx) Salt(session [8]byte, seq uint64) (salt [16]byte, ok bool) {
	k := saltKey(session, seq)
	v := tx.bucket(bkSalt).Get(k[:])
	if len(v) != 24 || binary.BigEndian.Uint64(v) != seq {
		return salt, false
	}
	return [16]byte(v[8:]), true
}
