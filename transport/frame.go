package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The framing of a live stream: docs/link.md has it byte by byte.

// preface is what each side sends before its first frame: a magic and the version.
const preface = "mch\x01"

// frameType is the first byte of a frame.
type frameType byte

const (
	frameHello   frameType = iota + 1 // greeting packet; first frame of each side, and only that
	framePacket                       // a whole small packet
	frameOffer                        // id 32, head 32, class 1, size: a big packet is there; offers count from 0
	frameWant                         // offer, offset: send it from there
	frameData                         // offer, bytes: the next slice
	frameVerdict                      // offer, code 1: the end of an offer
	frameAck                          // packets: how many PACKET frames are dealt with, all told
	frameDone                         // packets, offers dealt with, linger seconds: nothing to send now
	frameStop                         // reason: send me nothing more in this contact
	frameBye                          // reason: the contact is over
	framePing                         // empty: still here
	frameCancel                       // offer: cannot be sent after all
	frameLimit                        // not a frame
)

var frameNames = [...]string{
	frameHello: "HELLO", framePacket: "PACKET", frameOffer: "OFFER", frameWant: "WANT", frameData: "DATA",
	frameVerdict: "VERDICT", frameAck: "ACK", frameDone: "DONE", frameStop: "STOP", frameBye: "BYE", framePing: "PING",
	frameCancel: "CANCEL",
}

func (t frameType) String() string {
	if t == 0 || t >= frameLimit {
		return fmt.Sprintf("frame type %d", byte(t))
	}
	return frameNames[t]
}

// maxSlice bounds a PACKET frame and the bytes of a DATA frame.
const maxSlice = 64 << 10

// maxReason bounds the text of STOP and BYE, in bytes.
const maxReason = 255

// bodyLimits returns the least and greatest body length of a frame type.
func (t frameType) bodyLimits() (least, most int) {
	const number = binary.MaxVarintLen64
	switch t {
	case frameHello:
		return 1, MaxGreeting
	case framePacket:
		return 1, maxSlice
	case frameOffer:
		return 32 + HeadSize + 1 + 1, 32 + HeadSize + 1 + number
	case frameWant:
		return 2, 2 * number
	case frameData:
		return 2, number + maxSlice
	case frameVerdict:
		return 2, number + 1
	case frameAck, frameCancel:
		return 1, number
	case frameDone:
		return 3, 3 * number
	case frameStop, frameBye:
		return 0, maxReason
	}
	return 0, 0
}

// verdict is how the receiver ends an offer.
type verdict byte

const (
	verdictTaken   verdict = iota // received and durable
	verdictKnown                  // not needed: it was here already
	verdictRefused                // received, will never be taken
	verdictLater                  // not in this contact: busy, full
	verdictTooBig                 // larger than the receiver takes at all
	verdictCorrupt                // came with other bytes than its name says
	verdictLimit                  // not a verdict
)

var verdictNames = [...]string{"taken", "known", "refused", "later", "too big", "corrupt"}

func (v verdict) String() string { return verdictNames[v] }

// carried reports whether the sender is rid of the packet for this contact's purpose.
func (v verdict) carried() bool { return v <= verdictRefused }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errFrame is a neighbour that breaks the protocol, or a stream that breaks bytes.
var errFrame = errors.New("broken stream")

// frameWriter encodes frames. Not safe for concurrent use.
type frameWriter struct {
	w    *bufio.Writer
	head []byte
	nums []byte
}

// write sends one frame whose body is numbers (as uvarints) followed by parts.
func (f *frameWriter) write(t frameType, numbers []uint64, parts ...[]byte) error {
	f.nums = f.nums[:0]
	for _, n := range numbers {
		f.nums = binary.AppendUvarint(f.nums, n)
	}
	length := len(f.nums)
	for _, p := range parts {
		length += len(p)
	}
	f.head = binary.AppendUvarint(append(f.head[:0], byte(t)), uint64(length))
	sum := crc32.Update(crc32.Checksum(f.head, castagnoli), castagnoli, f.nums)
	f.w.Write(f.head)
	f.w.Write(f.nums)
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
		f.w.Write(p)
	}
	var tail [4]byte
	binary.BigEndian.PutUint32(tail[:], sum)
	_, err := f.w.Write(tail[:]) // bufio keeps the first error
	return err
}

// dataHead and dataTail are how many bytes a DATA frame has at most in front of its slice, and behind it.
const (
	dataHead = 1 + binary.MaxVarintLen32 + binary.MaxVarintLen64
	dataTail = 4
)

// writeData sends the n bytes behind the first dataHead of buf as a DATA frame, which is put together around them: a full
// slice goes to the line as it lies there, in one piece. buf has room for dataTail bytes more.
func (f *frameWriter) writeData(offer uint64, buf []byte, n int) error {
	f.nums = binary.AppendUvarint(f.nums[:0], offer)
	f.head = binary.AppendUvarint(append(f.head[:0], byte(frameData)), uint64(len(f.nums)+n))
	f.head = append(f.head, f.nums...)
	from, to := dataHead-len(f.head), dataHead+n
	copy(buf[from:], f.head)
	binary.BigEndian.PutUint32(buf[to:], crc32.Checksum(buf[from:to], castagnoli))
	_, err := f.w.Write(buf[from : to+dataTail])
	return err
}

// frameReader decodes frames. Not safe for concurrent use.
type frameReader struct {
	r   *bufio.Reader
	buf []byte // reused by every frame but PACKET and HELLO
}

// frame is one decoded frame. body is valid until the next read, except that of PACKET and HELLO.
type frame struct {
	t    frameType
	body []byte
}

// next reads one frame. Only io.EOF means that the stream ended between two frames.
func (f *frameReader) next() (frame, error) {
	first, err := f.r.ReadByte()
	if err != nil {
		return frame{}, err
	}
	t := frameType(first)
	if t == 0 || t >= frameLimit {
		return frame{}, fmt.Errorf("%w: unknown %v", errFrame, t)
	}
	length, head, err := readUvarint(f.r, []byte{first})
	if err != nil {
		return frame{}, cut(err)
	}
	least, most := t.bodyLimits()
	if length < uint64(least) || length > uint64(most) {
		return frame{}, fmt.Errorf("%w: %v of %d bytes", errFrame, t, length)
	}
	body, err := f.body(t, int(length))
	if err != nil {
		return frame{}, cut(err)
	}
	var tail [4]byte
	if _, err := io.ReadFull(f.r, tail[:]); err != nil {
		return frame{}, cut(err)
	}
	sum := crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, body)
	if binary.BigEndian.Uint32(tail[:]) != sum {
		return frame{}, fmt.Errorf("%w: checksum of %v does not match", errFrame, t)
	}
	return frame{t, body}, nil
}

func (f *frameReader) body(t frameType, n int) ([]byte, error) {
	var body []byte
	if t == framePacket || t == frameHello {
		body = make([]byte, n)
	} else {
		if cap(f.buf) < n {
			f.buf = make([]byte, n)
		}
		body = f.buf[:n]
	}
	_, err := io.ReadFull(f.r, body)
	return body, err
}

// cut makes an end inside a frame an unexpected one.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readUvarint reads a shortest-form uvarint and appends its bytes to seen.
func readUvarint(r io.ByteReader, seen []byte) (uint64, []byte, error) {
	start := len(seen)
	for len(seen)-start < binary.MaxVarintLen64 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, seen, err
		}
		if seen = append(seen, b); b < 0x80 {
			n, err := shortUvarint(seen[start:])
			return n, seen, err
		}
	}
	return 0, seen, fmt.Errorf("%w: number too long", errFrame)
}

func shortUvarint(b []byte) (uint64, error) {
	n, used := binary.Uvarint(b)
	if used != len(b) || len(b) > 1 && b[len(b)-1] == 0 {
		return 0, fmt.Errorf("%w: number not in its shortest form", errFrame)
	}
	return n, nil
}

// number takes the next uvarint off the body.
func (f *frame) number() (uint64, error) {
	for i, b := range f.body {
		if b < 0x80 {
			n, err := shortUvarint(f.body[:i+1])
			f.body = f.body[i+1:]
			return n, err
		}
	}
	return 0, fmt.Errorf("%w: %v is cut short", errFrame, f.t)
}

// numbers decodes a body that is exactly so many uvarints.
func (f *frame) numbers(to ...*uint64) error {
	for _, p := range to {
		n, err := f.number()
		if err != nil {
			return err
		}
		*p = n
	}
	if len(f.body) != 0 {
		return fmt.Errorf("%w: %v has %d bytes too many", errFrame, f.t, len(f.body))
	}
	return nil
}

// offer is the body of an OFFER frame.
type offer struct {
	id    ID
	head  [HeadSize]byte
	class uint8
	size  int64
}

func (f *frame) offer() (offer, error) {
	var o offer
	n := copy(o.id[:], f.body)
	n += copy(o.head[:], f.body[n:])
	o.class = f.body[n]
	f.body = f.body[n+1:]
	var size uint64
	if err := f.numbers(&size); err != nil {
		return o, err
	}
	if size <= HeadSize || size > 1<<62 {
		return o, fmt.Errorf("%w: OFFER of %d bytes", errFrame, size)
	}
	o.size = int64(size)
	return o, nil
}

// reason is the text of STOP or BYE, made harmless for a log.
func (f *frame) reason() string { return cleanText(f.body) }

func cleanText(b []byte) string {
	b = b[:min(len(b), maxReason)]
	s := make([]byte, 0, len(b))
	for _, c := range b {
		if c < ' ' || c > '~' {
			c = '?'
		}
		s = append(s, c)
	}
	return string(s)
}

func uvarint(n uint64) []byte { return binary.AppendUvarint(nil, n) }
