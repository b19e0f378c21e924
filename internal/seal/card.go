package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math"
	"time"

	"mochila/internal/envelope"
)

// SuiteHybrid is HPKE base mode with MLKEM768-X25519, HKDF-SHA256 and ChaCha20-Poly1305: the only suite there is.
const SuiteHybrid = 1

// Card flags.
const (
	FlagRelay  uint32 = 1 << iota // the node passes items of others on, and has a layer key
	FlagOneWay                    // nothing ever comes back from it
	knownFlags = FlagRelay | FlagOneWay
)

// RevokedSerial is the serial of a revocation card: nothing comes after it.
const RevokedSerial = math.MaxUint64

// Bounds of a card.
const (
	MaxCardSize    = 16 << 10 // bytes of an encoded card
	maxCardText    = 64 << 10 // bytes of text searched for a card
	maxName        = 63
	maxDomains     = 64
	maxDomainSize  = 253
	maxCarriers    = 16
	maxCarrierSize = 512
	maxLifeBound   = 10 * 365 * day
	sealingKeySize = 1216
	layerKeySize   = 32
	day            = 24 * time.Hour
)

// cardMagic begins every card; its last byte is the version.
const cardMagic = "mcard\x01"

// Card is a node's signed public description. Times have whole seconds. Domains and Carriers are hints: routes and
// rights come from the local configuration only. A Card is made by ParseCard or a Keyring and not changed afterwards.
type Card struct {
	ID          envelope.NodeID
	Name        string
	Serial      uint64  // a higher one replaces a lower one; RevokedSerial ends the identity
	Incarnation [8]byte // one continuous life of one spool; ordered as a big-endian number
	Suite       uint8   // SuiteHybrid, or 0 on a revocation
	SealingKey  []byte  // 1216 bytes, or none on a revocation
	LayerKey    []byte  // 32 bytes on relays, or none
	Published   time.Time
	UseUntil    time.Time // afterwards: ask for a newer card, but go on
	KeepUntil   time.Time // the node erases its key then; see LastSession
	MaxLife     time.Duration
	Flags       uint32
	Domains     []string
	Carriers    []string
	Predecessor envelope.NodeID // the id this one replaces, with that id's signature; or zero

	predecessorSig []byte
	raw            []byte
	key            hpke.PublicKey
}

// Revoked reports whether the card ends its identity.
func (c *Card) Revoked() bool { return c.Serial == RevokedSerial }

// LastSession is the last moment at which a session may be started to the card: seven days before KeepUntil.
func (c *Card) LastSession() time.Time { return c.KeepUntil.Add(-7 * day) }

// Bytes is the canonical, signed encoding. The caller must not change it.
func (c *Card) Bytes() []byte { return c.raw }

// Text is the card as people mail and paste it: PEM, some 2 KB.
func (c *Card) Text() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "MOCHILA CARD", Bytes: c.raw}))
}

// ParseCardText reads the first card in a text, whatever stands around it.
func ParseCardText(text []byte) (*Card, error) {
	if len(text) > maxCardText {
		return nil, badFormat("card text of %d bytes, more than %d", len(text), maxCardText)
	}
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, badFormat("no BEGIN MOCHILA CARD line, or the text is damaged")
		}
		if block.Type == "MOCHILA CARD" {
			return ParseCard(block.Bytes)
		}
		text = rest
	}
}

// ParseCard reads a card and verifies everything that can be verified without knowing more: bounds, canonical
// encoding, key encodings and signatures. Errors wrap envelope.ErrFormat or ErrSignature. It keeps no part of b.
func ParseCard(b []byte) (*Card, error) {
	if len(b) > MaxCardSize {
		return nil, badFormat("card of %d bytes, more than %d", len(b), MaxCardSize)
	}
	if !bytes.HasPrefix(b, []byte(cardMagic)) {
		return nil, badFormat("not a card, or of an unknown version")
	}
	c := &Card{raw: bytes.Clone(b)}
	sig, err := c.decode()
	if err != nil {
		return nil, fmt.Errorf("card: %w", err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("card of %v: %w", c.ID, err)
	}
	body, signed := c.encode()
	if !bytes.Equal(append(signed[:len(signed):len(signed)], sigField(sig)...), b) {
		return nil, fmt.Errorf("card of %v: %w", c.ID, badFormat("not the canonical encoding"))
	}
	if !c.Predecessor.IsZero() && !verify(c.Predecessor, labelSuccession, body, c.predecessorSig) {
		return nil, fmt.Errorf("card of %v, succeeding %v: %w", c.ID, c.Predecessor, ErrSignature)
	}
	if !verify(c.ID, labelCard, signed, sig) {
		return nil, fmt.Errorf("card of %v: %w", c.ID, ErrSignature)
	}
	return c, nil
}

// CompareCards tells what to do with a card of a node whose card we hold. Nil: next replaces held. ErrOlderCard:
// nothing new, ignore it; the very same card and a second revocation count as that. ErrContested: one serial was
// given to two cards, or an earlier incarnation issued a later card, so two nodes speak with one identity.
func CompareCards(held, next *Card) error {
	switch {
	case held.ID != next.ID:
		return fmt.Errorf("cards of two nodes, %v and %v", held.ID, next.ID)
	case next.Serial < held.Serial:
		return ErrOlderCard
	case next.Serial == held.Serial && (held.Revoked() || bytes.Equal(held.raw, next.raw)):
		return ErrOlderCard
	case next.Serial == held.Serial:
		return ErrContested
	case !next.Revoked() && bytes.Compare(next.Incarnation[:], held.Incarnation[:]) < 0:
		return ErrContested
	}
	return nil
}

// Field tags of a card.
const (
	tagID = iota + 1
	tagName
	tagSerial
	tagIncarnation
	tagSuite
	tagSealingKey
	tagLayerKey
	tagPublished
	tagUseUntil
	tagKeepUntil
	tagMaxLife
	tagFlags
	tagDomain
	tagCarrier
	tagPredecessor
	tagPredecessorSig
	tagSig
)

// encode returns the bytes a predecessor signs and the longer ones that the node itself signs.
func (c *Card) encode() (body, signed []byte) {
	e := envelope.Enc{B: []byte(cardMagic)}
	e.Bytes(tagID, c.ID[:])
	e.String(tagName, c.Name)
	e.Uint(tagSerial, c.Serial)
	if !c.Revoked() {
		e.Bytes(tagIncarnation, c.Incarnation[:])
	}
	e.Uint(tagSuite, uint64(c.Suite))
	e.Bytes(tagSealingKey, c.SealingKey)
	e.Bytes(tagLayerKey, c.LayerKey)
	e.Uint(tagPublished, seconds(c.Published))
	e.Uint(tagUseUntil, seconds(c.UseUntil))
	e.Uint(tagKeepUntil, seconds(c.KeepUntil))
	e.Uint(tagMaxLife, uint64(c.MaxLife/time.Second))
	e.Uint(tagFlags, uint64(c.Flags))
	for _, d := range c.Domains {
		e.Item(tagDomain, []byte(d))
	}
	for _, u := range c.Carriers {
		e.Item(tagCarrier, []byte(u))
	}
	if !c.Predecessor.IsZero() {
		e.Bytes(tagPredecessor, c.Predecessor[:])
	}
	n := len(e.B)
	e.Bytes(tagPredecessorSig, c.predecessorSig)
	return e.B[:n:n], e.B
}

func (c *Card) decode() (sig []byte, err error) {
	d := envelope.Dec{B: c.raw[len(cardMagic):]}
	for d.Next() {
		switch d.Tag {
		case tagID:
			d.Fixed(c.ID[:])
		case tagName:
			c.Name = d.String()
		case tagSerial:
			c.Serial = d.Uint()
		case tagIncarnation:
			d.Fixed(c.Incarnation[:])
		case tagSuite:
			c.Suite = uint8(d.Max(math.MaxUint8))
		case tagSealingKey:
			c.SealingKey = d.Bytes()
		case tagLayerKey:
			c.LayerKey = d.Bytes()
		case tagPublished:
			c.Published = fromSeconds(d.Max(maxSeconds))
		case tagUseUntil:
			c.UseUntil = fromSeconds(d.Max(maxSeconds))
		case tagKeepUntil:
			c.KeepUntil = fromSeconds(d.Max(maxSeconds))
		case tagMaxLife:
			c.MaxLife = time.Duration(d.Max(uint64(maxLifeBound/time.Second))) * time.Second
		case tagFlags:
			c.Flags = uint32(d.Max(math.MaxUint32))
		case tagDomain:
			c.Domains = append(c.Domains, string(d.List()))
		case tagCarrier:
			c.Carriers = append(c.Carriers, string(d.List()))
		case tagPredecessor:
			d.Fixed(c.Predecessor[:])
		case tagPredecessorSig:
			c.predecessorSig = d.Bytes()
		case tagSig:
			sig = d.Bytes()
		default:
			d.Unknown()
		}
	}
	return sig, d.Err
}

// check applies the bounds, to cards of others and to our own before they are signed.
func (c *Card) check() error {
	switch {
	case c.ID.IsZero():
		return badFormat("no id")
	case !validName(c.Name):
		return badFormat("name %q: 1 to %d letters, digits, and - _ . inside", c.Name, maxName)
	case c.Serial == 0:
		return badFormat("no serial")
	case c.Flags&^knownFlags != 0:
		return badFormat("unknown flags %#x", c.Flags&^knownFlags)
	case len(c.Domains) > maxDomains || len(c.Carriers) > maxCarriers:
		return badFormat("%d domains and %d carriers, more than %d and %d", len(c.Domains), len(c.Carriers), maxDomains, maxCarriers)
	case c.Predecessor.IsZero() != (len(c.predecessorSig) == 0):
		return badFormat("a predecessor and its signature come together")
	}
	for _, s := range c.Domains {
		if !visible(s, maxDomainSize) {
			return badFormat("domain %q", s)
		}
	}
	for _, s := range c.Carriers {
		if !visible(s, maxCarrierSize) {
			return badFormat("carrier %q", s)
		}
	}
	if c.Revoked() {
		if c.Suite != 0 || len(c.SealingKey)+len(c.LayerKey) != 0 || c.Incarnation != [8]byte{} || !c.Predecessor.IsZero() {
			return badFormat("a revocation has no keys")
		}
		return nil
	}
	switch {
	case c.Suite != SuiteHybrid:
		return badFormat("unknown suite %d", c.Suite)
	case c.Incarnation == [8]byte{}:
		return badFormat("no incarnation")
	case len(c.LayerKey) != 0 && len(c.LayerKey) != layerKeySize:
		return badFormat("layer key of %d bytes", len(c.LayerKey))
	case c.Published.IsZero() || c.UseUntil.Before(c.Published) || c.KeepUntil.Before(c.UseUntil):
		return badFormat("published, use_until and keep_until are not in order")
	case c.MaxLife <= 0:
		return badFormat("no max_life")
	}
	key, err := hpke.MLKEM768X25519().NewPublicKey(c.SealingKey)
	if err != nil {
		return badFormat("sealing key: %v", err)
	}
	c.key = key
	return nil
}

// finish checks and signs a card of our own.
func (c *Card) finish(key, predecessor ed25519.PrivateKey) error {
	c.predecessorSig = nil
	if predecessor != nil {
		c.Predecessor = envelope.NodeID(predecessor.Public().(ed25519.PublicKey))
		body, _ := c.encode()
		c.predecessorSig = ed25519.Sign(predecessor, append([]byte(labelSuccession), body...))
	}
	if err := c.check(); err != nil {
		return fmt.Errorf("new card: %w", err)
	}
	_, signed := c.encode()
	sig := ed25519.Sign(key, append([]byte(labelCard), signed...))
	c.raw = append(signed[:len(signed):len(signed)], sigField(sig)...)
	if len(c.raw) > MaxCardSize {
		return badFormat("card of %d bytes, more than %d: fewer domains or carriers", len(c.raw), MaxCardSize)
	}
	return nil
}

func sigField(sig []byte) []byte {
	var e envelope.Enc
	e.Bytes(tagSig, sig)
	return e.B
}

// verify checks a signature over label ‖ msg. A public key or signature of a wrong length does not verify.
func verify(id envelope.NodeID, label string, msg, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(id[:], append([]byte(label), msg...), sig)
}

// validName keeps node names usable as file names and as a part of a domain name.
func validName(s string) bool {
	if len(s) == 0 || len(s) > maxName {
		return false
	}
	for i := 0; i < len(s); i++ {
		ch := s[i]
		alnum := ch >= 'a' && ch <= 'z' || ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9'
		edge := i == 0 || i == len(s)-1
		if !alnum && (edge || ch != '-' && ch != '_' && ch != '.') {
			return false
		}
	}
	return true
}

// visible accepts printable ASCII without spaces: what a hint may show on a terminal.
func visible(s string, limit int) bool {
	if len(s) == 0 || len(s) > limit {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// maxSeconds is the end of the year 9999.
const maxSeconds = 253402300799

// seconds is 0 for the zero time, and at least 1 otherwise: there are no times before 1970.
func seconds(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(min(max(t.Unix(), 1), maxSeconds))
}

func fromSeconds(s uint64) time.Time { return time.Unix(int64(s), 0).UTC() }

// newIncarnation is 5 bytes of Unix seconds and 3 random bytes, above prev whatever the clock says.
func newIncarnation(prev [8]byte, now time.Time, random []byte) [8]byte {
	var inc [8]byte
	last := binary.BigEndian.Uint64(prev[:]) >> 24
	binary.BigEndian.PutUint64(inc[:], max(last+1, seconds(now))<<24)
	copy(inc[5:], random[:3])
	return inc
}
