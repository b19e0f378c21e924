package seal

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"mochila/internal/envelope"
)

// Layout of an offer or answer.
const (
	kindOffer  = 0x01
	kindAnswer = 0x02
	encStart   = 6
	boxStart   = encStart + 1120
	plainSize  = 32 + 8 + 8 + 6 + 2 + ed25519.SignatureSize
	signedSize = plainSize - ed25519.SignatureSize
)

// Session is what two nodes share to seal items for each other, in both directions. Its exported fields are for the
// caller to read; Marshal keeps them together with the secrets. Methods may be called concurrently; Phase changes
// only in AcceptAnswer and Opened. When what NewAnswer, AcceptAnswer or Opened changed cannot be stored, drop the
// Session and load the stored one.
type Session struct {
	ID              [8]byte  // names the session in receipts, never on the wire in clear
	TH              [32]byte // transcript hash of the offer: what tombstones remember
	Peer            envelope.NodeID
	Initiator       bool   // this node made the offer
	Phase           uint8  // this node seals under: 0 offer, 1 answer
	PeerSerial      uint64 // initiator: the peer's card sealed to; responder: the card the peer says it has
	PeerIncarnation [8]byte
	OwnIncarnation  [8]byte // responder: that of the card the offer was sealed to, which may be an earlier one
	KeySerial       uint64  // responder: this node's sealing key (Key.Serial) that opens the offer; else 0
	Created         time.Time
	Offer           []byte // OfferSize bytes at the initiator, else nil

	offerSum [32]byte // SHA-256 of the offer

	mu       sync.RWMutex // guards Phase and what follows
	answerTH [32]byte     // zero without an answer
	root     [2][32]byte
	phases   [2]*phaseKeys // the second is nil without an answer
}

// Initiator is what an offer says of the node that made it.
type Initiator struct {
	ID          envelope.NodeID
	Incarnation [8]byte
	CardSerial  uint64    // the newest card the initiator had issued
	Created     time.Time // by its clock: information only, nothing may depend on it
	KeySerial   uint64    // this node's sealing key (Key.Serial) the offer was sealed to
	Verified    bool      // its signature over the offer verified
}

// NewSession makes an offer to the node of a card and returns the session, which seals at once. It refuses revoked
// cards (ErrRevoked) and those too close to their end (ErrCardExpired): see Card.LastSession.
func (k *Keyring) NewSession(peer *Card, now time.Time) (*Session, error) {
	if err := usable(peer, now); err != nil {
		return nil, fmt.Errorf("session with %v: %w", peer.ID, err)
	}
	own := k.Card()
	m, err := k.makeOffer(kindOffer, peer.key, sessionInfo(peer.ID, peer.SealingKey), own, now)
	if err != nil {
		return nil, fmt.Errorf("session with %v: %w", peer.ID, err)
	}
	s := &Session{
		TH: m.th, Peer: peer.ID, Initiator: true, PeerSerial: peer.Serial, PeerIncarnation: peer.Incarnation,
		OwnIncarnation: own.Incarnation, Created: stamp(now), Offer: m.bytes, offerSum: sha256.Sum256(m.bytes),
	}
	if err := s.setRoot(0, m.secret, m.th); err != nil {
		return nil, err
	}
	return s, nil
}

func usable(peer *Card, now time.Time) error {
	switch {
	case peer.Revoked():
		return ErrRevoked
	case peer.key == nil:
		return badFormat("a card that was not parsed")
	case now.After(peer.LastSession()):
		return ErrCardExpired
	}
	return nil
}

// AcceptOffer opens an offer and makes the responder's end of the session. lookup returns the card of a peer, or
// ErrUnknownPeer (or nil) for others; any other error of its own ends the acceptance.
//
// The checks are, in this order: length and layout; the key hint (ErrUnopenable, ErrErased); decapsulation
// (ErrCorrupt); the sender is a peer and not revoked (ErrRevoked); the signature (ErrSignature). From there on it is
// the caller's turn: tombstones by Session.TH (an already known TH changes nothing), the number of sessions per
// peer, and storing the session.
//
// A stranger whose signature verifies gets ErrUnknownPeer together with the session and its facts, so that the
// caller can look for an invitation in its first bundle; without one, the caller must drop the session. With every
// other error the session is nil. The facts are non-nil as soon as the offer could be opened.
func (k *Keyring) AcceptOffer(offer []byte, lookup func(envelope.NodeID) (*Card, error), now time.Time) (*Session, *Initiator, error) {
	if err := checkOffer(offer, kindOffer); err != nil {
		return nil, nil, fmt.Errorf("offer: %w", err)
	}
	o, err := k.openOffer(offer, func(key *Key) []byte { return sessionInfo(k.ID(), key.Card.SealingKey) })
	if err != nil {
		return nil, nil, fmt.Errorf("offer: %w", err)
	}
	in := &o.from
	card, err := lookup(in.ID)
	unknown := card == nil && (err == nil || errors.Is(err, ErrUnknownPeer))
	switch {
	case unknown:
	case err != nil:
		return nil, in, fmt.Errorf("offer of %v: %w", in.ID, err)
	case card.ID != in.ID:
		return nil, in, fmt.Errorf("offer of %v: was given the card of %v", in.ID, card.ID)
	case card.Revoked():
		return nil, in, fmt.Errorf("offer of %v: %w", in.ID, ErrRevoked)
	}
	if !verify(in.ID, labelOffer, o.th[:], o.sig) {
		return nil, in, fmt.Errorf("offer of %v: %w", in.ID, ErrSignature)
	}
	in.Verified = true
	s := &Session{
		TH: o.th, Peer: in.ID, PeerSerial: in.CardSerial, PeerIncarnation: in.Incarnation,
		OwnIncarnation: o.key.Card.Incarnation, KeySerial: o.key.Serial, Created: stamp(now), offerSum: sha256.Sum256(offer),
	}
	if err := s.setRoot(0, o.secret, o.th); err != nil {
		return nil, in, err
	}
	if unknown {
		return s, in, fmt.Errorf("offer of %v: %w", in.ID, ErrUnknownPeer)
	}
	return s, in, nil
}

// SameOffer reports whether an offer found beside an item is this session's, byte for byte.
func (s *Session) SameOffer(offer []byte) bool {
	sum := sha256.Sum256(offer)
	return subtle.ConstantTimeCompare(sum[:], s.offerSum[:]) == 1
}

// NewAnswer makes the responder's contribution to phase 1, to be stored with the session before it is sent, sealed,
// to the initiator. There is at most one per session; a second call is ErrAnswered. peer is the initiator's card.
func (k *Keyring) NewAnswer(s *Session, peer *Card, now time.Time) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.Initiator || peer.ID != s.Peer:
		return nil, fmt.Errorf("answer to %v: only the responder answers, and only its initiator", peer.ID)
	case s.phases[1] != nil:
		return nil, fmt.Errorf("answer to %v: %w", peer.ID, ErrAnswered)
	}
	if err := usable(peer, now); err != nil {
		return nil, fmt.Errorf("answer to %v: %w", peer.ID, err)
	}
	m, err := k.makeOffer(kindAnswer, peer.key, answerInfo(peer.ID, peer.SealingKey, s.ID), k.Card(), now)
	if err != nil {
		return nil, fmt.Errorf("answer to %v: %w", peer.ID, err)
	}
	if err := s.setRoot(1, append(s.root[0][:len(s.root[0]):len(s.root[0])], m.secret...), m.th); err != nil {
		return nil, err
	}
	s.answerTH = m.th
	return m.bytes, nil
}

// AcceptAnswer opens the responder's answer, found in an item of the session. Afterwards the session seals under
// phase 1 and must be stored. The same answer again changes nothing; another one is ErrAnswered. Other errors are
// those of AcceptOffer.
func (k *Keyring) AcceptAnswer(s *Session, answer []byte) error {
	if err := checkOffer(answer, kindAnswer); err != nil {
		return fmt.Errorf("answer of %v: %w", s.Peer, err)
	}
	if !s.Initiator {
		return fmt.Errorf("answer of %v: %w", s.Peer, badFormat("only a responder answers"))
	}
	o, err := k.openOffer(answer, func(key *Key) []byte { return answerInfo(k.ID(), key.Card.SealingKey, s.ID) })
	if err != nil {
		return fmt.Errorf("answer of %v: %w", s.Peer, err)
	}
	if o.from.ID != s.Peer || !verify(o.from.ID, labelOffer, o.th[:], o.sig) {
		return fmt.Errorf("answer of %v: %w", s.Peer, ErrSignature)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phases[1] != nil {
		if o.th == s.answerTH {
			return nil
		}
		return fmt.Errorf("answer of %v: %w", s.Peer, ErrAnswered)
	}
	if err := s.setRoot(1, append(s.root[0][:len(s.root[0]):len(s.root[0])], o.secret...), o.th); err != nil {
		return err
	}
	s.answerTH, s.Phase = o.th, 1
	return nil
}

// Opened tells a session that an item with this header was opened. It reports whether that changed the session: a
// responder seals under phase 1 once it has seen the initiator do so. A changed session must be stored.
func (s *Session) Opened(h Header) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Phase == 1 || s.phases[1] == nil {
		return false
	}
	if _, ok := s.phases[1].match(h); !ok {
		return false
	}
	s.Phase = 1
	return true
}

// InPhase returns a view of the session that seals under the given phase, for sealing an item again byte for byte that
// was sealed when Phase was that. It shares the keys and opens what the session opens.
func (s *Session) InPhase(phase uint8) (*Session, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if int(phase) >= len(s.phases) || s.phases[phase] == nil {
		return nil, fmt.Errorf("seal under phase %d: the session has no such phase", phase)
	}
	return &Session{
		ID: s.ID, TH: s.TH, Peer: s.Peer, Initiator: s.Initiator, Phase: phase, PeerSerial: s.PeerSerial,
		PeerIncarnation: s.PeerIncarnation, OwnIncarnation: s.OwnIncarnation, KeySerial: s.KeySerial, Created: s.Created,
		Offer: s.Offer, offerSum: s.offerSum, answerTH: s.answerTH, root: s.root, phases: s.phases,
	}, nil
}

// Answered reports whether the session has both phases, so that reading it later takes a key of both nodes.
func (s *Session) Answered() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.phases[1] != nil
}

// madeOffer is a fresh offer or answer.
type madeOffer struct {
	bytes, secret []byte
	th            [32]byte
}

func (k *Keyring) makeOffer(kind byte, to hpke.PublicKey, info []byte, own *Card, now time.Time) (*madeOffer, error) {
	enc, sender, err := hpke.NewSender(to, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info)
	if err != nil {
		return nil, fmt.Errorf("encapsulate: %w", err)
	}
	m := &madeOffer{bytes: make([]byte, 0, OfferSize)}
	hint := keyHint(enc, to.Bytes())
	m.bytes = append(append(append(m.bytes, format, kind), hint[:]...), enc...)
	plain := make([]byte, 0, plainSize)
	id := k.ID()
	plain = append(append(plain, id[:]...), own.Incarnation[:]...)
	plain = binary.BigEndian.AppendUint64(plain, own.Serial)
	plain = append(plain, uint48(uint64(max(now.UnixMilli(), 0)))...)
	plain = append(plain, 0, 0)
	m.th = transcript(m.bytes, info, plain)
	plain = append(plain, k.sign(append([]byte(labelOffer), m.th[:]...))...)
	box, err := sender.Seal(m.bytes[:encStart], plain)
	if err != nil {
		return nil, fmt.Errorf("seal the offer: %w", err)
	}
	m.bytes = append(m.bytes, box...)
	if m.secret, err = sender.Export(labelRoot, 32); err != nil {
		return nil, fmt.Errorf("export the root: %w", err)
	}
	return m, nil
}

// openedOffer is an offer or answer that decrypted; its signature is not yet verified.
type openedOffer struct {
	key    *Key
	from   Initiator
	sig    []byte
	secret []byte
	th     [32]byte
}

// checkOffer checks what stands in clear.
func checkOffer(offer []byte, kind byte) error {
	switch {
	case len(offer) != OfferSize:
		return badFormat("%d bytes, not %d", len(offer), OfferSize)
	case offer[0] != format || offer[1] != kind:
		return badFormat("begins with %#02x %#02x, not %#02x %#02x", offer[0], offer[1], format, kind)
	}
	return nil
}

func (k *Keyring) openOffer(offer []byte, info func(*Key) []byte) (*openedOffer, error) {
	enc := offer[encStart:boxStart]
	err := error(ErrUnopenable)
	for _, key := range k.keys() {
		if keyHint(enc, key.Card.SealingKey) != [4]byte(offer[2:6]) {
			continue
		}
		if key.private == nil {
			err = &ErasedError{Serial: key.Card.Serial}
			continue
		}
		o, openErr := openWith(key, offer, info(key))
		if openErr == nil {
			return o, nil
		}
		err = openErr
	}
	return nil, err
}

func openWith(key *Key, offer, info []byte) (*openedOffer, error) {
	r, err := hpke.NewRecipient(offer[encStart:boxStart], key.private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info)
	if err != nil {
		return nil, fmt.Errorf("%w: decapsulate: %w", ErrCorrupt, err)
	}
	plain, err := r.Open(offer[:encStart], offer[boxStart:])
	if err != nil {
		return nil, ErrCorrupt
	}
	if len(plain) != plainSize {
		return nil, badFormat("content of %d bytes", len(plain))
	}
	if plain[54] != 0 || plain[55] != 0 {
		return nil, badFormat("unknown flags %#x", plain[54:56])
	}
	o := &openedOffer{key: key, sig: plain[signedSize:], th: transcript(offer[:boxStart], info, plain[:signedSize])}
	o.from = Initiator{
		ID:          envelope.NodeID(plain[:32]),
		Incarnation: [8]byte(plain[32:40]),
		CardSerial:  binary.BigEndian.Uint64(plain[40:48]),
		Created:     time.UnixMilli(int64(fromUint48(plain[48:54]))).UTC(),
		KeySerial:   key.Serial,
	}
	if o.secret, err = r.Export(labelRoot, 32); err != nil {
		return nil, fmt.Errorf("export the root: %w", err)
	}
	return o, nil
}

// keyHint lets the responder find its key without trying all.
func keyHint(enc, sealingKey []byte) [4]byte {
	h := sha256.New()
	h.Write([]byte(labelKeyHint))
	h.Write(enc)
	h.Write(sealingKey)
	return [4]byte(h.Sum(nil)[:4])
}

// transcript is th: it covers everything both ends saw.
func transcript(clear, info, plain []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte(labelOffer))
	h.Write(clear)
	h.Write(info)
	h.Write(plain)
	return [32]byte(h.Sum(nil))
}

func sessionInfo(responder envelope.NodeID, sealingKey []byte) []byte {
	sum := sha256.Sum256(sealingKey)
	return append(append([]byte(labelSession), responder[:]...), sum[:]...)
}

func answerInfo(initiator envelope.NodeID, sealingKey []byte, id [8]byte) []byte {
	sum := sha256.Sum256(sealingKey)
	return append(append(append([]byte(labelAnswer), initiator[:]...), sum[:]...), id[:]...)
}

// setRoot derives a root and its keys; the first root also names the session.
func (s *Session) setRoot(phase int, ikm []byte, th [32]byte) error {
	root, err := hkdf.Key(sha256.New, ikm, th[:], labelRoot, 32)
	if err != nil {
		return fmt.Errorf("derive the root: %w", err)
	}
	s.root[phase] = [32]byte(root)
	if phase == 0 {
		id, err := hkdf.Expand(sha256.New, root, labelID, 32)
		if err != nil {
			return fmt.Errorf("derive the session id: %w", err)
		}
		s.ID = [8]byte(id[:8])
	}
	s.phases[phase], err = newPhaseKeys(root, s.Initiator)
	return err
}

// stamp is a time as Marshal keeps it.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func uint48(v uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return b[2:]
}

func fromUint48(b []byte) uint64 {
	var v [8]byte
	copy(v[2:], b[:6])
	return binary.BigEndian.Uint64(v[:])
}
