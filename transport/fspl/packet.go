// Package fspl reads and writes the packets and queues of Filespooler, byte for byte as fspl 1.2 does: an ordered queue
// of jobs in a folder, each a file with a header and a payload.
//
// It is stricter than fspl: headers are bounded, only regular files are opened, names are synced to the disk, and a
// number is taken in the same step in which its job appears. What the format cannot do, it cannot either: a payload has
// neither a length nor a sum, so that half a payload looks like a whole one, and nobody knows who wrote it. Trust
// nothing in a queue that you would not type yourself.
package fspl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

const (
	magic      = "*FILESPOOLER"
	version    = 1
	prefixSize = 30

	maxMeta = 1 << 20 // bytes of a header
	maxList = 1000    // parameters, and variables
)

var (
	// ErrFormat says that a file is no packet of Filespooler, or has a header beyond the limits: 1 MiB, 1,000 parameters
	// and 1,000 variables.
	ErrFormat = errors.New("not a packet of Filespooler")
)

// Kind is what a job does.
type Kind string

// The kinds of jobs.
const (
	Command Kind = "Command" // runs the command of the queue
	NOP     Kind = "NOP"     // succeeds
	Fail    Kind = "Fail"    // fails until somebody takes it out
)

// Header is what stands before the payload of a job.
type Header struct {
	Seq    uint64
	Time   time.Time
	Kind   Kind
	Params []string    // bytes, as they are
	Env    [][2]string // pairs of name and value; fspl puts FSPL_SET_ in front of the name
}

// Append appends the bytes of the header to b.
func (h *Header) Append(b []byte) []byte {
	m := []byte{0x83}
	m = appendUint(appendStr(m, "seq"), h.Seq)
	m = append(appendStr(m, "ctime"), 0x92)
	m = appendUint(appendUint(m, uint64(max(h.Time.Unix(), 0))), uint64(h.Time.Nanosecond()))
	m = appendStr(m, "cmd_type")
	if h.Kind == NOP || h.Kind == Fail {
		m = appendStr(m, string(h.Kind))
	} else {
		m = appendStr(append(m, 0x81), string(Command))
		m = appendArray(appendStr(append(m, 0x82), "params"), len(h.Params))
		for _, p := range h.Params {
			m = appendBytes(m, p)
		}
		m = appendArray(appendStr(m, "env"), len(h.Env))
		for _, e := range h.Env {
			m = appendBytes(appendBytes(append(m, 0x92), e[0]), e[1])
		}
	}
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = binary.BigEndian.AppendUint64(b, uint64(len(m)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(m))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
	return append(b, m...)
}

func appendStr(b []byte, s string) []byte { return append(append(b, 0xa0|byte(len(s))), s...) } // all are short

func appendUint(b []byte, u uint64) []byte {
	switch {
	case u < 1<<7:
		return append(b, byte(u))
	case u < 1<<8:
		return append(b, 0xcc, byte(u))
	case u < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xcd), uint16(u))
	case u < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, 0xce), uint32(u))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xcf), u)
}

func appendArray(b []byte, n int) []byte {
	switch {
	case n < 16:
		return append(b, 0x90|byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xdc), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(n))
}

// appendBytes writes bytes as fspl does: an array of small numbers.
func appendBytes(b []byte, s string) []byte {
	b = appendArray(b, len(s))
	for i := range len(s) {
		b = appendUint(b, uint64(s[i]))
	}
	return b
}

// ReadHeader reads a header; what follows it in r is the payload. A file that ends in its header is ErrFormat and
// io.ErrUnexpectedEOF.
func ReadHeader(r io.Reader) (*Header, error) {
	var p [prefixSize]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		return nil, short(err)
	}
	size := binary.BigEndian.Uint64(p[14:])
	switch {
	case string(p[:12]) != magic:
		return nil, ErrFormat
	case binary.BigEndian.Uint32(p[26:]) != crc32.ChecksumIEEE(p[:26]):
		return nil, fmt.Errorf("%w: its first bytes are damaged", ErrFormat)
	case binary.BigEndian.Uint16(p[12:]) != version:
		return nil, fmt.Errorf("%w: version %d, this program reads version %d", ErrFormat, binary.BigEndian.Uint16(p[12:]), version)
	case size > maxMeta:
		return nil, fmt.Errorf("%w: a header of %d bytes", ErrFormat, size)
	}
	meta := make([]byte, size)
	if _, err := io.ReadFull(r, meta); err != nil {
		return nil, short(err)
	}
	if binary.BigEndian.Uint32(p[22:]) != crc32.ChecksumIEEE(meta) {
		return nil, fmt.Errorf("%w: its header is damaged", ErrFormat)
	}
	d := decoder{meta}
	h, err := d.header()
	if err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	return h, nil
}

func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrFormat, io.ErrUnexpectedEOF)
	}
	return err
}

// decoder reads the few forms of MessagePack that occur.
type decoder struct{ b []byte }

var (
	errCut  = errors.New("it is cut")
	errForm = errors.New("a value has another type than it should")
)

func (d *decoder) byte() (byte, error) {
	if len(d.b) == 0 {
		return 0, errCut
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c, nil
}

func (d *decoder) fixed(n int) (u uint64, err error) {
	if len(d.b) < n {
		return 0, errCut
	}
	for _, c := range d.b[:n] {
		u = u<<8 | uint64(c)
	}
	d.b = d.b[n:]
	return u, nil
}

func (d *decoder) uint() (uint64, error) {
	c, err := d.byte()
	switch {
	case err != nil:
		return 0, err
	case c < 0x80:
		return uint64(c), nil
	case c >= 0xcc && c <= 0xcf:
		return d.fixed(1 << (c - 0xcc))
	}
	return 0, errForm
}

// count reads the head of an array or map: fix is its short form.
func (d *decoder) count(fix, wide byte) (int, error) {
	c, err := d.byte()
	var n uint64
	switch {
	case err != nil:
		return 0, err
	case c&0xf0 == fix:
		return int(c & 0x0f), nil
	case c == wide:
		n, err = d.fixed(2)
	case c == wide+1:
		n, err = d.fixed(4)
	default:
		return 0, errForm
	}
	if err == nil && n > uint64(len(d.b)) { // each element has a byte at least
		err = errCut
	}
	return int(n), err
}

func (d *decoder) array() (int, error) { return d.count(0x90, 0xdc) }

func (d *decoder) str() (string, error) {
	c, err := d.byte()
	if err != nil {
		return "", err
	}
	n := uint64(c & 0x1f)
	switch {
	case c&0xe0 == 0xa0:
	case c == 0xd9:
		if n, err = d.fixed(1); err != nil {
			return "", err
		}
	default:
		return "", errForm
	}
	if n > uint64(len(d.b)) {
		return "", errCut
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s, nil
}

// bytes reads an array of small numbers.
func (d *decoder) bytes() (string, error) {
	n, err := d.array()
	if err != nil {
		return "", err
	}
	out := make([]byte, 0, n)
	for range n {
		u, err := d.uint()
		if err != nil {
			return "", err
		}
		if u > 255 {
			return "", errForm
		}
		out = append(out, byte(u))
	}
	return string(out), nil
}

func (d *decoder) header() (*Header, error) {
	h := &Header{}
	if n, err := d.count(0x80, 0xde); err != nil || n != 3 {
		return nil, errors.Join(errForm, err)
	}
	for _, want := range []string{"seq", "ctime", "cmd_type"} {
		if key, err := d.str(); err != nil || key != want {
			return nil, errors.Join(fmt.Errorf("%q where %q should stand", key, want), err)
		}
		var err error
		switch want {
		case "seq":
			h.Seq, err = d.uint()
		case "ctime":
			h.Time, err = d.time()
		default:
			err = d.kind(h)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", want, err)
		}
	}
	if len(d.b) > 0 {
		return nil, errors.New("something follows its end")
	}
	return h, nil
}

func (d *decoder) time() (time.Time, error) {
	if n, err := d.array(); err != nil || n != 2 {
		return time.Time{}, errors.Join(errForm, err)
	}
	secs, err := d.uint()
	if err != nil {
		return time.Time{}, err
	}
	nanos, err := d.uint()
	if err != nil || secs > 1<<40 || nanos >= 2e9 {
		return time.Time{}, errors.Join(errForm, err)
	}
	return time.Unix(int64(secs), int64(nanos)).UTC(), nil
}

func (d *decoder) kind(h *Header) error {
	if len(d.b) > 0 && d.b[0]&0xf0 != 0x80 {
		s, err := d.str()
		h.Kind = Kind(s)
		if err == nil && h.Kind != NOP && h.Kind != Fail {
			err = fmt.Errorf("there is no kind %q", s)
		}
		return err
	}
	h.Kind = Command
	if n, err := d.count(0x80, 0xde); err != nil || n != 1 {
		return errors.Join(errForm, err)
	}
	if s, err := d.str(); err != nil || s != string(Command) {
		return errors.Join(errForm, err)
	}
	if n, err := d.count(0x80, 0xde); err != nil || n != 2 {
		return errors.Join(errForm, err)
	}
	n, err := d.list("params")
	if err != nil {
		return err
	}
	for range n {
		p, err := d.bytes()
		if err != nil {
			return err
		}
		h.Params = append(h.Params, p)
	}
	if n, err = d.list("env"); err != nil {
		return err
	}
	for range n {
		if k, err := d.array(); err != nil || k != 2 {
			return errors.Join(errForm, err)
		}
		name, err := d.bytes()
		if err != nil {
			return err
		}
		value, err := d.bytes()
		if err != nil {
			return err
		}
		h.Env = append(h.Env, [2]string{name, value})
	}
	return nil
}

func (d *decoder) list(want string) (int, error) {
	if key, err := d.str(); err != nil || key != want {
		return 0, errors.Join(errForm, err)
	}
	n, err := d.array()
	if err == nil && n > maxList {
		err = fmt.Errorf("%d %s are more than %d", n, want, maxList)
	}
	return n, err
}
