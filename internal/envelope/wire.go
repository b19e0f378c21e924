package envelope

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The canonical encoding (docs/format.md, "Fields"): a record is a run of fields, each
//
//	tag   uvarint, ascending; equal tags only where the field is a list
//	len   uvarint
//	value len bytes; numbers are minimal uvarints, signed numbers zig-zag, times milliseconds since 1970
//
// A field with its zero value is left out, so that one record has exactly one encoding.

// maxMilli is the last millisecond of the year 9999, the end of time in every format of ours.
const maxMilli = 253402300799999

// ErrFormat is wrapped by every error about bytes that break a format.
var ErrFormat = errors.New("bad format")

// Enc appends fields to a buffer. The zero value is ready; the bytes are in B.
type Enc struct{ B []byte }

// Bytes writes a field, unless v is empty.
func (e *Enc) Bytes(tag uint64, v []byte) {
	if len(v) > 0 {
		e.Item(tag, v)
	}
}

// Item writes a field even when v is empty: for lists, where an empty element counts.
func (e *Enc) Item(tag uint64, v []byte) {
	e.B = binary.AppendUvarint(e.B, tag)
	e.B = binary.AppendUvarint(e.B, uint64(len(v)))
	e.B = append(e.B, v...)
}

// String writes a field, unless v is empty.
func (e *Enc) String(tag uint64, v string) {
	if v == "" {
		return
	}
	e.B = binary.AppendUvarint(e.B, tag)
	e.B = binary.AppendUvarint(e.B, uint64(len(v)))
	e.B = append(e.B, v...)
}

// Uint writes a field, unless v is zero.
func (e *Enc) Uint(tag, v uint64) {
	if v == 0 {
		return
	}
	var n [binary.MaxVarintLen64]byte
	e.Item(tag, n[:binary.PutUvarint(n[:], v)])
}

// Int writes a signed field in zig-zag form, unless v is zero.
func (e *Enc) Int(tag uint64, v int64) { e.Uint(tag, uint64(v)<<1^uint64(v>>63)) }

// Bool writes 1, or nothing for false.
func (e *Enc) Bool(tag uint64, v bool) {
	if v {
		e.Uint(tag, 1)
	}
}

// Time writes milliseconds since 1970, or nothing for the zero time. Times before 1970 do not exist in mochila,
// times after the year 9999 do not either: both are moved to the edge.
func (e *Enc) Time(tag uint64, t time.Time) {
	if !t.IsZero() {
		e.Uint(tag, uint64(min(max(t.UnixMilli(), 1), maxMilli)))
	}
}

// Begin opens a field whose value is a record of its own: write its fields, then give the mark to End.
func (e *Enc) Begin(tag uint64) (mark int) {
	e.B = binary.AppendUvarint(e.B, tag)
	e.B = append(e.B, 0)
	return len(e.B)
}

// End closes the field that Begin opened. It is written even when nothing is in it.
func (e *Enc) End(mark int) {
	n := len(e.B) - mark
	if n < 0x80 {
		e.B[mark-1] = byte(n)
		return
	}
	var l [binary.MaxVarintLen64]byte
	k := binary.PutUvarint(l[:], uint64(n))
	e.B = append(e.B, l[1:k]...) // room for the longer length, overwritten by the move
	copy(e.B[mark-1+k:], e.B[mark:mark+n])
	copy(e.B[mark-1:], l[:k])
}

// Dec walks the fields of one record. After the walk, Err tells whether all of it was well formed.
//
//	d := Dec{B: b}
//	for d.Next() {
//		switch d.Tag {
//		case 1: m.Sender = d.String()
//		default: d.Unknown()
//		}
//	}
//	return d.Err
type Dec struct {
	B    []byte // what is left
	Tag  uint64 // of the current field
	V    []byte // value of the current field, a slice of the input
	Err  error
	prev uint64
	list bool
	any  bool
}

// Next moves to the next field. It returns false at the end or at the first fault.
func (d *Dec) Next() bool {
	if d.Err != nil || len(d.B) == 0 {
		return false
	}
	tag, ok := d.uvarint()
	if !ok {
		return false
	}
	n, ok := d.uvarint()
	if !ok {
		return false
	}
	if n > uint64(len(d.B)) {
		d.fail("field %d says %d bytes, %d are left", tag, n, len(d.B))
		return false
	}
	if d.any && (tag < d.prev || tag == d.prev && !d.list) {
		d.fail("field %d after field %d", tag, d.prev)
		return false
	}
	d.Tag, d.prev, d.any, d.list = tag, tag, true, false
	d.V, d.B = d.B[:n:n], d.B[n:]
	return true
}

// List says that the current field may be followed by another of the same tag, and returns its bytes.
func (d *Dec) List() []byte { d.list = true; return d.V }

// Bytes is the current value; an empty one is refused, as Enc leaves those out.
func (d *Dec) Bytes() []byte {
	if len(d.V) == 0 {
		d.fail("field %d is empty", d.Tag)
	}
	return d.V
}

// String is the current value as text.
func (d *Dec) String() string { return string(d.Bytes()) }

// Fixed copies the current value into dst and refuses any other length.
func (d *Dec) Fixed(dst []byte) {
	if len(d.V) != len(dst) {
		d.fail("field %d has %d bytes, not %d", d.Tag, len(d.V), len(dst))
		return
	}
	copy(dst, d.V)
}

// Uint is the current value as a number; non-minimal and zero encodings are refused.
func (d *Dec) Uint() uint64 {
	v, n := binary.Uvarint(d.V)
	if n != len(d.V) || n <= 0 || v == 0 || n > 1 && d.V[n-1] == 0 {
		d.fail("field %d is not a minimal number", d.Tag)
		return 0
	}
	return v
}

// Max is Uint with an upper bound.
func (d *Dec) Max(limit uint64) uint64 {
	v := d.Uint()
	if v > limit {
		d.fail("field %d is %d, more than %d", d.Tag, v, limit)
		return 0
	}
	return v
}

// Int is the current value as a signed number.
func (d *Dec) Int() int64 { v := d.Uint(); return int64(v>>1) ^ -int64(v&1) }

// Bool is the current value, which must be 1.
func (d *Dec) Bool() bool { return d.Max(1) == 1 }

// Time is the current value as a time in UTC, bounded to the year 9999.
func (d *Dec) Time() time.Time { return time.UnixMilli(int64(d.Max(maxMilli))).UTC() }

// Sub walks the current value as a record of its own; a fault inside it is a fault of d. A walk that stops before
// the end of the value is a fault too.
func (d *Dec) Sub(walk func(*Dec)) {
	in := Dec{B: d.V}
	walk(&in)
	switch {
	case in.Err != nil && d.Err == nil:
		d.Err = in.Err
	case len(in.B) > 0:
		d.fail("field %d is not read to its end", d.Tag)
	}
}

// Unknown refuses the current field: unknown tags are never dropped silently.
func (d *Dec) Unknown() { d.fail("unknown field %d", d.Tag) }

// Fail refuses the record for a reason of the caller's.
func (d *Dec) Fail(format string, a ...any) { d.fail(format, a...) }

func (d *Dec) uvarint() (uint64, bool) {
	v, n := binary.Uvarint(d.B)
	if n <= 0 || n > 1 && d.B[n-1] == 0 {
		d.fail("broken number")
		return 0, false
	}
	d.B = d.B[n:]
	return v, true
}

func (d *Dec) fail(format string, a ...any) {
	if d.Err == nil {
		d.Err = fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, a...))
	}
}
