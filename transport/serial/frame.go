// Package serial is the carrier for terminal lines, modems and radios: a reliable stream over a line that loses and spoils bytes, and
// that may carry only one direction at a time. docs/serial.md is its specification.
package serial

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

type frameType byte

const (
	frameData frameType = iota + 1
	frameEnd
	frameAck
	frameTurn
	frameReset
	frameMore
	frameLimit

	fromCaller = 0x80
)

const (
	maxWire  = 255                        // bytes of a frame on the line, its end included
	maxFrame = maxWire - 2                // decoded: COBS adds one byte to so few, and the end is another
	overhead = 1 + 2 + 4                  // type, connection, checksum
	maxData  = maxFrame - overhead - 4    // bytes of the stream in a frame
	minData  = 24                         // that a frame is shortened to
	maxRuns  = (maxFrame - overhead) / 10 // runs in an ACK
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is one frame, decoded.
type frame struct {
	t      frameType
	caller bool
	conn   uint16
	off    uint32
	data   []byte // DATA
	runs   []run  // ACK, TURN
}

// run is bytes of a stream that came, from an offset on.
type run struct {
	from uint32
	n    uint32
}

var errFrame = errors.New("not a frame")

// append adds the frame as it goes over the line.
func (f *frame) append(b []byte) []byte {
	raw := make([]byte, 0, maxFrame)
	t := byte(f.t)
	if f.caller {
		t |= fromCaller
	}
	raw = append(raw, t, byte(f.conn>>8), byte(f.conn))
	if f.t != frameReset {
		raw = binary.BigEndian.AppendUint32(raw, f.off)
	}
	switch f.t {
	case frameData:
		raw = append(raw, f.data...)
	case frameAck, frameTurn, frameMore:
		at := f.off
		for _, r := range f.runs {
			raw = binary.AppendUvarint(raw, uint64(r.from-at))
			raw = binary.AppendUvarint(raw, uint64(r.n))
			at = r.from + r.n
		}
	}
	raw = binary.BigEndian.AppendUint32(raw, crc32.Checksum(raw, castagnoli))
	return append(cobs(b, raw), 0)
}

// parseFrame decodes what stood between two zero bytes.
func parseFrame(b []byte) (f frame, err error) {
	if len(b) == 0 || len(b) >= maxWire {
		return f, errFrame
	}
	raw, ok := uncobs(make([]byte, 0, len(b)), b)
	if !ok || len(raw) < overhead || len(raw) > maxFrame {
		return f, errFrame
	}
	body := raw[:len(raw)-4]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(raw[len(body):]) {
		return f, errFrame
	}
	f.t, f.caller, f.conn = frameType(body[0]&^fromCaller), body[0]&fromCaller != 0, binary.BigEndian.Uint16(body[1:])
	body = body[3:]
	if f.t == frameReset {
		if len(body) != 0 {
			return f, errFrame
		}
		return f, nil
	}
	if f.t == 0 || f.t >= frameLimit || len(body) < 4 {
		return f, errFrame
	}
	f.off, body = binary.BigEndian.Uint32(body), body[4:]
	switch f.t {
	case frameData:
		if f.data = body; len(body) == 0 {
			return f, errFrame
		}
	case frameEnd:
		if len(body) != 0 {
			return f, errFrame
		}
	default:
		return f, f.parseRuns(body)
	}
	return f, nil
}

func (f *frame) parseRuns(body []byte) error {
	at := f.off
	for len(body) > 0 {
		gap, n := binary.Uvarint(body)
		if n <= 0 || n > 1 && body[n-1] == 0 {
			return errFrame
		}
		size, m := binary.Uvarint(body[n:])
		if m <= 0 || m > 1 && body[n+m-1] == 0 || gap == 0 || size == 0 || gap > window || size > window {
			return errFrame
		}
		r := run{at + uint32(gap), uint32(size)}
		f.runs = append(f.runs, r)
		at = r.from + r.n
		body = body[n+m:]
	}
	if at-f.off > window {
		return errFrame
	}
	return nil
}

// cobs encodes b without zero bytes; b has less than 255 bytes.
func cobs(dst, b []byte) []byte {
	code := len(dst)
	dst = append(dst, 1)
	for _, c := range b {
		if c != 0 {
			dst = append(dst, c)
			dst[code]++
			continue
		}
		code = len(dst)
		dst = append(dst, 1)
	}
	return dst
}

// uncobs decodes what cobs made of less than 255 bytes.
func uncobs(dst, b []byte) ([]byte, bool) {
	for len(b) > 0 {
		n := int(b[0])
		if n == 0 || n > len(b) {
			return nil, false
		}
		for _, c := range b[1:n] {
			if c == 0 {
				return nil, false
			}
		}
		dst = append(dst, b[1:n]...)
		if b = b[n:]; len(b) > 0 {
			dst = append(dst, 0)
		}
	}
	return dst, true
}
