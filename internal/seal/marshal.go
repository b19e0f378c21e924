package seal

import (
	"fmt"
	"math"

	"mochila/internal/envelope"
)

// Marshal returns the session for storage, wrapped whole: no part of it is readable without the wrapping key. See
// Keyring.Wrap about when to call it, and give the bytes to every RotateWrap.
func (s *Session) Marshal(k *Keyring) []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var e envelope.Enc
	e.Bytes(1, s.ID[:])
	e.Bytes(2, s.TH[:])
	e.Bytes(3, s.Peer[:])
	e.Bool(4, s.Initiator)
	e.Uint(5, uint64(s.Phase))
	e.Uint(6, s.PeerSerial)
	e.Bytes(7, s.PeerIncarnation[:])
	e.Bytes(8, s.OwnIncarnation[:])
	e.Uint(9, s.KeySerial)
	e.Time(10, s.Created)
	e.Bytes(11, s.Offer)
	e.Bytes(12, s.offerSum[:])
	e.Bytes(13, s.root[0][:])
	if s.phases[1] != nil {
		e.Bytes(14, s.answerTH[:])
		e.Bytes(15, s.root[1][:])
	}
	return k.wrap(wrapSession, e.B)
}

// UnmarshalSession reads what Marshal wrote. ErrWrapped means that the wrapping key is gone, so the session is lost.
func UnmarshalSession(k *Keyring, b []byte) (*Session, error) {
	plain, err := k.unwrap(wrapSession, b)
	if err != nil {
		return nil, fmt.Errorf("stored session: %w", err)
	}
	s := new(Session)
	answered := false
	d := envelope.Dec{B: plain}
	for d.Next() {
		switch d.Tag {
		case 1:
			d.Fixed(s.ID[:])
		case 2:
			d.Fixed(s.TH[:])
		case 3:
			d.Fixed(s.Peer[:])
		case 4:
			s.Initiator = d.Bool()
		case 5:
			s.Phase = uint8(d.Max(1))
		case 6:
			s.PeerSerial = d.Uint()
		case 7:
			d.Fixed(s.PeerIncarnation[:])
		case 8:
			d.Fixed(s.OwnIncarnation[:])
		case 9:
			s.KeySerial = d.Max(math.MaxUint64 - 1)
		case 10:
			s.Created = d.Time()
		case 11:
			s.Offer = make([]byte, OfferSize)
			d.Fixed(s.Offer)
		case 12:
			d.Fixed(s.offerSum[:])
		case 13:
			d.Fixed(s.root[0][:])
		case 14:
			d.Fixed(s.answerTH[:])
		case 15:
			d.Fixed(s.root[1][:])
			answered = true
		default:
			d.Unknown()
		}
	}
	if d.Err == nil && (s.ID == [8]byte{} || s.root[0] == [32]byte{} || s.Phase == 1 && !answered || s.Initiator != (s.Offer != nil)) {
		d.Fail("a part is missing")
	}
	if d.Err != nil {
		return nil, fmt.Errorf("stored session: %w", d.Err)
	}
	if s.phases[0], err = newPhaseKeys(s.root[0][:], s.Initiator); err != nil {
		return nil, err
	}
	if answered {
		if s.phases[1], err = newPhaseKeys(s.root[1][:], s.Initiator); err != nil {
			return nil, err
		}
	}
	return s, nil
}
