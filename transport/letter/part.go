// Package letter puts packets into ordinary mails and takes them out again.
//
// A letter is a MIME mail with one attachment, a part: a stretch of one packet that says of itself which packet it
// belongs to, where it goes, and by a sum whether it is undamaged (docs/format.md, "Letters"). So neither the subject
// nor a file name nor any header of the mail matters, parts may come in any order, twice, and cut differently when
// they are sent again.
//
// It never holds a part in memory, opens no packet and trusts nothing: whoever may write to the address can send
// parts, and a packet that was put together of them is believed only as far as its own seal goes.
package letter

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

const (
	magic      = "mochPart"
	version    = 1
	headerSize = len(magic) + 2 + 32 + 8 + 8 + 8
	sumSize    = 16

	// MaxPacket is the largest packet that letters carry, in bytes.
	MaxPacket = 1 << 40
)

var (
	// ErrDamaged says that a part is not what was sent: cut, changed on the way, or never was one.
	ErrDamaged = errors.New("damaged part of a packet")
	// ErrNoLetter says that a mail holds no part at all.
	ErrNoLetter = errors.New("the mail carries no packet")
)

var nameText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// nameSize is the length of a packet's name in text.
const nameSize = 52

// Part says which stretch of which packet an attachment is.
type Part struct {
	Packet [32]byte // hash of the whole packet
	Size   int64    // of the whole packet, 1 … MaxPacket
	Offset int64    // where the stretch begins
	Length int64    // its bytes, at least 1
}

// Name is the packet's name on media.
func (p Part) Name() string { return nameText.EncodeToString(p.Packet[:]) }

// Whole reports whether the part is all of its packet.
func (p Part) Whole() bool { return p.Offset == 0 && p.Length == p.Size }

func (p Part) check() error {
	switch {
	case p.Size < 1 || p.Size > MaxPacket:
		return fmt.Errorf("%w: packet of %d bytes", ErrDamaged, p.Size)
	case p.Length < 1 || p.Offset < 0 || p.Length > p.Size || p.Offset > p.Size-p.Length:
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrDamaged, p.Length, p.Offset, p.Size)
	}
	return nil
}

// header is what stands before the bytes.
func (p Part) header() []byte {
	b := append(make([]byte, 0, headerSize), magic...)
	b = append(b, version, 0)
	b = append(b, p.Packet[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Size))
	b = binary.BigEndian.AppendUint64(b, uint64(p.Offset))
	return binary.BigEndian.AppendUint64(b, uint64(p.Length))
}

func parseHeader(b []byte) (Part, error) {
	var p Part
	if len(b) != headerSize || string(b[:len(magic)]) != magic {
		return p, fmt.Errorf("%w: no header", ErrDamaged)
	}
	b = b[len(magic):]
	if b[0] != version || b[1] != 0 {
		return p, fmt.Errorf("%w: version %d with flags %d, this program reads version %d without any", ErrDamaged, b[0], b[1], version)
	}
	b = b[2+copy(p.Packet[:], b[2:]):]
	for _, n := range []*int64{&p.Size, &p.Offset, &p.Length} {
		u := binary.BigEndian.Uint64(b)
		if u > MaxPacket {
			return p, fmt.Errorf("%w: number above the limit", ErrDamaged)
		}
		*n, b = int64(u), b[8:]
	}
	return p, p.check()
}

// writePart writes a part: header, p.Length bytes of data, sum. It fails when data ends early.
func writePart(w io.Writer, p Part, data io.Reader) error {
	if err := p.check(); err != nil {
		return err
	}
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	if _, err := both.Write(p.header()); err != nil {
		return err
	}
	if n, err := io.Copy(both, io.LimitReader(data, p.Length)); err != nil {
		return err
	} else if n != p.Length {
		return fmt.Errorf("part at %d: %d of %d bytes: %w", p.Offset, n, p.Length, io.ErrUnexpectedEOF)
	}
	_, err := w.Write(sum.Sum(nil)[:sumSize])
	return err
}

// content reads the bytes of a part. It ends with io.EOF only after the sum was found right; anything else is
// ErrDamaged, or the error of the mail itself.
type content struct {
	r    io.Reader
	left int64
	sum  hash.Hash
	err  error // sticky
}

// readPart reads the header of a part whose magic has been seen.
func readPart(r io.Reader) (Part, *content, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Part{}, nil, cut(err)
	}
	p, err := parseHeader(h[:])
	if err != nil {
		return Part{}, nil, err
	}
	c := &content{r: r, left: p.Length, sum: sha256.New()}
	c.sum.Write(h[:])
	return p, c, nil
}

// cut tells a mail that ends too early, or is coded wrongly, from one that cannot be read now.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isCoding(err) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// Read implements io.Reader.
func (c *content) Read(b []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.left == 0 {
		c.err = c.end()
		return 0, c.err
	}
	n, err := c.r.Read(b[:min(int64(len(b)), c.left)])
	c.sum.Write(b[:n])
	c.left -= int64(n)
	if err != nil && (c.left > 0 || !errors.Is(err, io.EOF)) {
		c.err = cut(err)
	}
	return n, c.err
}

// end compares the sum; whatever follows it is not looked at, because gateways add blank lines.
func (c *content) end() error {
	var want [sumSize]byte
	if _, err := io.ReadFull(c.r, want[:]); err != nil {
		return cut(err)
	}
	if !bytes.Equal(want[:], c.sum.Sum(nil)[:sumSize]) {
		return fmt.Errorf("%w: its sum is wrong", ErrDamaged)
	}
	return io.EOF
}
