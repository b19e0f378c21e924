package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
)

// Header flags.
const (
	flagOffer   = 1 << 0 // an offer stands between the header and the chunks
	flagPayload = 1 << 1 // a payload follows the one chunk: this is a hop box
	knownItem   = flagOffer | flagPayload
)

// Header is the first 32 bytes of an item, as they stand on the wire. It says nothing to those without the session.
type Header struct {
	Flags  uint8
	Salt   [16]byte
	Hint   [8]byte
	Masked [6]byte // the sequence number, masked
}

// ParseHeader reads the header at the start of b. Only the format and the flags can be wrong.
func ParseHeader(b []byte) (Header, error) {
	var h Header
	switch {
	case len(b) < HeaderSize:
		return h, badFormat("item of %d bytes, shorter than its header", len(b))
	case b[0] != format:
		return h, badFormat("begins with %#02x: not an item, or of an unknown version", b[0])
	case b[1]&^knownItem != 0:
		return h, badFormat("unknown item flags %#x", b[1])
	}
	h.Flags = b[1]
	copy(h.Salt[:], b[2:18])
	copy(h.Hint[:], b[18:26])
	copy(h.Masked[:], b[26:32])
	return h, nil
}

// Append puts the header's 32 bytes behind dst.
func (h Header) Append(dst []byte) []byte {
	dst = append(dst, format, h.Flags)
	dst = append(dst, h.Salt[:]...)
	dst = append(dst, h.Hint[:]...)
	return append(dst, h.Masked[:]...)
}

// Offer reports whether OfferSize bytes of offer stand between the header and the chunks.
func (h Header) Offer() bool { return h.Flags&flagOffer != 0 }

// Payload reports whether the item is a hop box: one chunk, then the payload it speaks of.
func (h Header) Payload() bool { return h.Flags&flagPayload != 0 }

// BodyStart is the offset of the first chunk in the item.
func (h Header) BodyStart() int {
	if h.Offer() {
		return HeaderSize + OfferSize
	}
	return HeaderSize
}

// SealedSize is the exact size of an item with that much content.
func SealedSize(contentLen int64, withOffer bool) int64 {
	chunks := max(1, (contentLen+ChunkSize-1)/ChunkSize)
	size := HeaderSize + contentLen + chunks*Overhead
	if withOffer {
		size += OfferSize
	}
	return size
}

// Match reports whether an item comes from the session's peer under this session, and its sequence number. Items
// this node sealed itself do not match. A match is a 64-bit hint, not yet proof: only the chunks authenticate.
func (s *Session) Match(h Header) (seq uint64, ok bool) {
	seq, _, ok = s.match(h)
	return seq, ok
}

func (s *Session) match(h Header) (seq uint64, keys *phaseKeys, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := len(s.phases) - 1; i >= 0; i-- {
		if s.phases[i] == nil {
			continue
		}
		if seq, ok = s.phases[i].match(h); ok {
			return seq, s.phases[i], true
		}
	}
	return 0, nil, false
}

// opener returns the AEAD of an item that Match knows.
func (s *Session) opener(h Header, seq uint64) (cipher.AEAD, error) {
	got, keys, ok := s.match(h)
	if !ok || got != seq {
		return nil, ErrNoMatch
	}
	return keys.recvItem.aead(h, seq), nil
}

// sealer returns the header and AEAD of a new item.
func (s *Session) sealer(seq uint64, salt [16]byte, withOffer, withPayload bool) (Header, cipher.AEAD, error) {
	h := Header{Salt: salt}
	if seq > MaxSeq {
		return h, nil, fmt.Errorf("seal item %d: %w", seq, ErrSequence)
	}
	if withOffer {
		if len(s.Offer) != OfferSize {
			return h, nil, fmt.Errorf("seal item %d: %w", seq, ErrNoOffer)
		}
		h.Flags |= flagOffer
	}
	if withPayload {
		h.Flags |= flagPayload
	}
	s.mu.RLock()
	keys := s.phases[s.Phase]
	s.mu.RUnlock()
	t := keys.sendHint.hint(h)
	copy(h.Hint[:], t[:8])
	copy(h.Masked[:], uint48(seq))
	subtle.XORBytes(h.Masked[:], h.Masked[:], t[8:14])
	return h, keys.sendItem.aead(h, seq), nil
}

// phaseKeys are the four direction keys of one phase, seen from this node.
type phaseKeys struct {
	sendHint, sendItem, recvHint, recvItem *keyedMAC
}

func newPhaseKeys(root []byte, initiator bool) (*phaseKeys, error) {
	p := new(phaseKeys)
	send, recv := [2]string{labelHintI2R, labelItemI2R}, [2]string{labelHintR2I, labelItemR2I}
	if !initiator {
		send, recv = recv, send
	}
	for _, x := range []struct {
		dst   **keyedMAC
		label string
	}{{&p.sendHint, send[0]}, {&p.sendItem, send[1]}, {&p.recvHint, recv[0]}, {&p.recvItem, recv[1]}} {
		key, err := hkdf.Expand(sha256.New, root, x.label, 32)
		if err != nil {
			return nil, fmt.Errorf("derive a direction key: %w", err)
		}
		*x.dst = &keyedMAC{mac: hmac.New(sha256.New, key)}
	}
	return p, nil
}

func (p *phaseKeys) match(h Header) (seq uint64, ok bool) {
	t := p.recvHint.hint(h)
	if subtle.ConstantTimeCompare(t[:8], h.Hint[:]) != 1 {
		return 0, false
	}
	var m [6]byte
	subtle.XORBytes(m[:], h.Masked[:], t[8:14])
	return fromUint48(m[:]), true
}

// keyedMAC is HMAC-SHA256 under one key; the two key blocks are hashed once, which halves the cost of trying a
// session.
type keyedMAC struct {
	mu  sync.Mutex
	mac hash.Hash
	buf [64]byte // input and output: kept here so that a try allocates nothing
}

// sum returns HMAC(key, parts).
func (m *keyedMAC) sum(parts ...[]byte) (out [32]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mac.Reset()
	in := m.buf[:0]
	for _, p := range parts {
		in = append(in, p...)
	}
	m.mac.Write(in)
	copy(out[:], m.mac.Sum(in[:0]))
	return out
}

// hint is t = HMAC(hint key, format ‖ flags ‖ salt).
func (m *keyedMAC) hint(h Header) [32]byte {
	head := [2]byte{format, h.Flags}
	return m.sum(head[:], h.Salt[:])
}

// aead returns the cipher of one item. Its key is HKDF-Expand(item key, label ‖ format ‖ flags ‖ salt ‖ seq, 32),
// which RFC 5869 makes one HMAC over that and the byte 1.
func (m *keyedMAC) aead(h Header, seq uint64) cipher.AEAD {
	var in [len(labelItemKey) + 2 + 16 + 8 + 1]byte
	b := append(in[:0], labelItemKey...)
	b = append(b, format, h.Flags)
	b = append(b, h.Salt[:]...)
	b = binary.BigEndian.AppendUint64(b, seq)
	b = append(b, 1)
	key := m.sum(b)
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic("seal: a key of 32 bytes was refused: " + err.Error()) // cannot happen
	}
	return aead
}

// nonce is an 11-byte chunk counter and the last flag.
func nonce(chunk uint64, last bool) (n [chacha20poly1305.NonceSize]byte) {
	binary.BigEndian.PutUint64(n[3:11], chunk)
	if last {
		n[11] = 1
	}
	return n
}
