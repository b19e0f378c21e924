// Package bundle writes and reads the content of one bundle: envelopes and receipts for one destination node, in
// compressed frames, before sealing and after opening (docs/format.md, "Bundle content").
//
// A frame holds the records of one trust class only, so that nobody learns from a length what a stranger's mail
// repeats. Small records are gathered into frames of at most MaxFrame bytes; a larger envelope has a frame of its
// own and streams through it in constant memory. The same calls with the same values write the same bytes.
//
// The package believes nothing it reads: lengths are checked before memory is taken, and what inflates to more
// than it declared is refused. It does not authenticate, and it does not interpret records other than envelopes.
package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
)

// Kind is the first byte of a bundle's content; a hop box begins with another.
const Kind = 2

// Encoding counts the ways this package has compressed: it goes up whenever the same records may give other
// bytes than before (another release of the compressor, another level, another rule for frames). Whoever keeps a
// recipe instead of the bytes keeps this number beside it, and seals anew when it differs.
const Encoding = 2

const (
	// MaxFrame is the most that a frame held in memory inflates to, in bytes.
	MaxFrame = 1 << 20
	// HeaderSize is how many bytes the content begins with before its first frame.
	HeaderSize = 9

	maxChunk  = 64 << 10 // of a streamed frame
	maxWindow = 8 << 20  // that a decoder keeps
	maxOther  = 64 << 10 // body of a record of unknown type
)

// Methods of a frame.
const (
	methodEnd    = 0 // no frame: the rest is padding
	methodStored = 1
	methodZstd   = 2
	methodDict   = 3 // zstd with dictionary 1
	methodStream = 4 // zstd in chunks, for what is larger than MaxFrame
)

var (
	// ErrLimit says that a bundle holds more than the reader allows.
	ErrLimit = errors.New("bundle exceeds a limit")
	// ErrSum says that a content is not the one that its envelope tells.
	ErrSum = errors.New("content does not match its envelope")

	errCut    = fmt.Errorf("%w: bundle", envelope.ErrFormat)
	errClosed = errors.New("bundle is closed")
	errStale  = errors.New("content of an earlier record")
)

// Header begins a bundle's content.
type Header struct {
	// Expires is when the last of the envelopes expires; written in seconds, rounded up, until the year 2106.
	Expires time.Time
	// Made is when it was sealed, by the clock of its origin; written in whole seconds. Receivers compare clocks by it, and
	// tell from it how long relays had it. It is never used to accept or refuse.
	Made time.Time
}

// Life is how long the last of the envelopes had to live when the bundle was sealed, as its header tells it.
func (h Header) Life() time.Duration {
	got, err := parseHeader(h.append(nil))
	if err != nil {
		return 0
	}
	return got.Expires.Sub(got.Made)
}

func (h Header) append(b []byte) []byte {
	s := h.Expires.Unix()
	if h.Expires.Nanosecond() > 0 {
		s++
	}
	b = binary.BigEndian.AppendUint32(append(b, Kind), uint32(min(max(s, 1), 1<<32-1)))
	return binary.BigEndian.AppendUint32(b, uint32(min(max(h.Made.Unix(), 1), 1<<32-1)))
}

func parseHeader(b []byte) (Header, error) {
	if b[0] != Kind {
		return Header{}, badFormat("content of kind %d, not %d", b[0], Kind)
	}
	s := binary.BigEndian.Uint32(b[1:])
	if s == 0 {
		return Header{}, badFormat("bundle that never expires")
	}
	made := binary.BigEndian.Uint32(b[5:])
	if made == 0 {
		return Header{}, badFormat("bundle that was never made")
	}
	return Header{Expires: time.Unix(int64(s), 0).UTC(), Made: time.Unix(int64(made), 0).UTC()}, nil
}

func badFormat(format string, a ...any) error {
	return fmt.Errorf("%w: bundle: %s", envelope.ErrFormat, fmt.Sprintf(format, a...))
}
