// Package seal holds a node's keys and is the only package that touches them: identity and cards, sessions
// between two nodes, sealed items (bundles) and hop boxes, and the wrapping of secrets at rest. The byte
// layouts, labels and sizes are in docs/seal.md.
//
// It promises that an item opens only under the session of the two nodes it belongs to, in the direction it was
// sealed for; that what a reader returns has been authenticated; that a truncated item never ends in io.EOF; and
// that no secret leaves the package unwrapped. Memory per item is constant (two chunks of 64 KiB).
//
// It never remembers what it has seen: replay sets, tombstones and quotas belong to the caller.
package seal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"mochila/internal/envelope"
)

// Sizes on the wire, in bytes.
const (
	HeaderSize = 32                // what every item begins with
	OfferSize  = 1262              // an offer or an answer
	HopSize    = HeaderSize + 56   // a hop box without offer
	ChunkSize  = 64 << 10          // plaintext of every chunk but the last
	Overhead   = 16                // what sealing adds to each chunk
	MaxSeq     = uint64(1)<<48 - 1 // the highest sequence number a header can hold
)

// format is the first byte of items and offers.
const format = 0xB1

// Labels of docs/seal.md. Each ends in one zero byte, so that none is the start of another input.
const (
	labelCard       = "mochila card v1\x00"
	labelSuccession = "mochila succession v1\x00"
	labelKeyHint    = "mochila key hint v1\x00"
	labelSession    = "mochila session v1\x00"
	labelAnswer     = "mochila answer v1\x00"
	labelOffer      = "mochila offer v1\x00"
	labelRoot       = "mochila root v1\x00"
	labelID         = "mochila id v1\x00"
	labelHintI2R    = "mochila hint i2r v1\x00"
	labelHintR2I    = "mochila hint r2i v1\x00"
	labelItemI2R    = "mochila item i2r v1\x00"
	labelItemR2I    = "mochila item r2i v1\x00"
	labelItemKey    = "mochila item key v1\x00"
	labelIdentity   = "mochila identity v1\x00"
	labelWrap       = "mochila wrap v1\x00"
	labelWrapID     = "mochila wrap id v1\x00"
)

// What a caller may want to tell apart. Errors about bytes that break a layout wrap envelope.ErrFormat.
var (
	ErrSignature   = errors.New("the signature does not verify")
	ErrContested   = errors.New("two nodes speak with this identity")
	ErrOlderCard   = errors.New("not newer than the card we hold")
	ErrCardExpired = errors.New("the peer's card is too old to seal to; ask for a new one")
	ErrRevoked     = errors.New("the node's identity is revoked")
	ErrUnknownPeer = errors.New("the sender is not a peer")
	ErrUnopenable  = errors.New("sealed to no key of this node")
	ErrErased      = errors.New("sealed to a key that has been erased")
	ErrAnswered    = errors.New("the session has another answer already")
	ErrNoOffer     = errors.New("only the session's initiator can attach an offer")
	ErrSequence    = errors.New("sequence number out of range")
	ErrNoMatch     = errors.New("not an item of this session")
	ErrCorrupt     = errors.New("corrupt: a chunk does not authenticate")
	ErrTruncated   = errors.New("truncated: the end of the item is missing")
	ErrTrailing    = errors.New("bytes follow the end of the item")
	ErrPayload     = errors.New("the payload is not the one the hop box names")
	ErrWrapped     = errors.New("wrapped under a key that is gone")
	ErrWrapLost    = errors.New("the wrapping key is lost, and with it the sealing keys")
)

// ErasedError says which of this node's cards an unopenable offer was sealed to. It is an ErrErased.
type ErasedError struct{ Serial uint64 }

// Error names the card.
func (e *ErasedError) Error() string { return fmt.Sprintf("%v (card %d)", ErrErased, e.Serial) }

// Is makes errors.Is(err, ErrErased) true.
func (e *ErasedError) Is(target error) bool { return target == ErrErased }

// ItemCheck is SHA-256(seq ‖ salt)[:8], what a range of a replay set or receipt XORs together.
func ItemCheck(seq uint64, salt [16]byte) envelope.Check {
	var b [24]byte
	binary.BigEndian.PutUint64(b[:], seq)
	copy(b[8:], salt[:])
	h := sha256.Sum256(b[:])
	return envelope.Check(h[:8])
}

// InviteMAC is HMAC-SHA256(secret, th): what an invited stranger puts in its first bundle to show that it holds the
// invitation. Compare with hmac.Equal or subtle.ConstantTimeCompare.
func InviteMAC(secret []byte, th [32]byte) [32]byte {
	m := hmac.New(sha256.New, secret)
	m.Write(th[:])
	return [32]byte(m.Sum(nil))
}

func badFormat(f string, a ...any) error {
	return fmt.Errorf("%w: %s", envelope.ErrFormat, fmt.Sprintf(f, a...))
}
