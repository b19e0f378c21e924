package seal

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"

	"mochila/internal/envelope"
)

// What a hop box can speak of.
const (
	PayloadBundle uint8 = 1 // an item for the node named by Dest
	PayloadLayer  uint8 = 2 // an onion layer
)

// kindHop begins the content of a hop box; a bundle begins with another (bundle.Kind).
const kindHop = 1

// hopPlain is the content of a hop box.
const hopPlain = 40

// Hop is what a node tells its neighbour about a payload it hands over.
type Hop struct {
	Type        uint8 // PayloadBundle or PayloadLayer
	Dest        envelope.Label
	Length      int64     // of the payload, less than 2^48
	PayloadHash [16]byte  // SHA-256 of the payload, its first half
	Expiry      time.Time // whole seconds, up to the year 2106; zero is the past
	Class       uint8     // priority class
	HopLimit    uint8     // hops the payload may still make
	Left        uint16    // life left, in units of LeftUnit; LeftMax: that long or longer, or not known
}

// LeftUnit is the unit of Hop.Left, and LeftMax its largest value, which nobody counts down.
const (
	LeftUnit = 10 * time.Minute
	LeftMax  = math.MaxUint16
)

// LeftOf is a time as Hop.Left tells it, rounded up.
func LeftOf(d time.Duration) uint16 {
	return uint16(min(max((d+LeftUnit-1)/LeftUnit, 0), LeftMax))
}

// SealHop returns a hop box: HopSize bytes, OfferSize more with the offer. The payload is to follow it. About seq and
// salt see AppendItem: they come from the same numbers as those of other items.
func (s *Session) SealHop(seq uint64, salt [16]byte, withOffer bool, p Hop) ([]byte, error) {
	if p.Length < 0 || p.Length > int64(MaxSeq) {
		return nil, fmt.Errorf("hop box: a payload of %d bytes", p.Length)
	}
	if p.Type != PayloadBundle && p.Type != PayloadLayer {
		return nil, fmt.Errorf("hop box: unknown payload type %d", p.Type)
	}
	h, aead, err := s.sealer(seq, salt, withOffer, true)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, 0, hopPlain)
	plain = append(plain, kindHop, p.Type)
	plain = append(plain, p.Dest[:]...)
	plain = append(plain, uint48(uint64(p.Length))...)
	plain = append(plain, p.PayloadHash[:]...)
	plain = binary.BigEndian.AppendUint32(plain, uint32(min(max(p.Expiry.Unix(), 0), math.MaxUint32)))
	plain = append(plain, p.Class, p.HopLimit)
	plain = binary.BigEndian.AppendUint16(plain, p.Left)
	box := h.Append(make([]byte, 0, h.BodyStart()+hopPlain+Overhead))
	if withOffer {
		box = append(box, s.Offer...)
	}
	nc := nonce(0, true)
	return aead.Seal(box, nc[:], plain, nil), nil
}

// OpenHop opens a hop box that Match knows. b is what stands behind header and offer; its first HopSize-HeaderSize
// bytes are the box, the rest, if any, the payload. Compare that with CheckPayload before taking custody.
func (s *Session) OpenHop(h Header, seq uint64, b []byte) (Hop, error) {
	var p Hop
	if !h.Payload() {
		return p, fmt.Errorf("hop box: %w", badFormat("the header announces no payload"))
	}
	if len(b) < hopPlain+Overhead {
		return p, fmt.Errorf("hop box: %w", truncated())
	}
	aead, err := s.opener(h, seq)
	if err != nil {
		return p, fmt.Errorf("hop box: %w", err)
	}
	plain, err := openChunk(aead, nil, b[:hopPlain+Overhead], 0, true)
	if err != nil {
		return p, fmt.Errorf("hop box: %w", err)
	}
	if plain[0] != kindHop || plain[1] != PayloadBundle && plain[1] != PayloadLayer {
		return p, fmt.Errorf("hop box: %w", badFormat("unknown kind %d or payload type %d", plain[0], plain[1]))
	}
	p.Type = plain[1]
	copy(p.Dest[:], plain[2:10])
	p.Length = int64(fromUint48(plain[10:16]))
	copy(p.PayloadHash[:], plain[16:32])
	p.Expiry = time.Unix(int64(binary.BigEndian.Uint32(plain[32:36])), 0).UTC()
	p.Class, p.HopLimit = plain[36], plain[37]
	p.Left = binary.BigEndian.Uint16(plain[38:40])
	return p, nil
}

// HashPayload reads a payload to its end and returns what a Hop says of it.
func HashPayload(payload io.Reader) (length int64, hash [16]byte, err error) {
	sum := sha256.New()
	if length, err = io.Copy(sum, payload); err != nil {
		return 0, hash, fmt.Errorf("read the payload: %w", err)
	}
	return length, [16]byte(sum.Sum(nil)[:16]), nil
}

// CheckPayload reads a payload, at most one byte more than the hop box announces, and returns ErrPayload unless length
// and hash are those of the box.
func (p Hop) CheckPayload(payload io.Reader) error {
	length, hash, err := HashPayload(io.LimitReader(payload, p.Length+1))
	if err != nil {
		return err
	}
	if length != p.Length || subtle.ConstantTimeCompare(hash[:], p.PayloadHash[:]) != 1 {
		return ErrPayload
	}
	return nil
}
