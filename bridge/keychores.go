package bridge

import (
	"errors"
	"slices"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// keyChores rotates and erases what docs/seal.md says has a limited life: the wrapping key each night, the sealing
// key each month, sealing keys past their date.
func (b *Bridge) keyChores(now time.Time) {
	if now.Sub(b.keys.WrapMade()) > 20*time.Hour || b.keys.WrapPending() {
		if err := b.keys.RotateWrap(now, b.rewrap); err != nil {
			b.log.Error("renew the wrapping key", "err", err)
		}
	}
	if made, err := b.keys.RotateSealing(now); err != nil {
		b.log.Error("renew the sealing key", "err", err)
	} else if made {
		b.log.Info("new sealing key; peers get the card with the next bundle", "card", b.keys.Card().Serial)
	}
	if _, err := b.keys.EraseExpired(now); err != nil {
		b.log.Error("erase expired keys", "err", err)
	}
}

// rewrap puts every secret of the index under the new wrapping key, in one transaction.
func (b *Bridge) rewrap(convert func([]byte) ([]byte, error)) error {
	return b.spool.Apply(func(tx *spool.Tx) error {
		all, err := tx.Sessions()
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Secret, err = convert(r.Secret); errors.Is(err, seal.ErrWrapped) {
				continue // lost already; load has said so
			} else if err != nil {
				return err
			}
			if err := tx.PutSession(r); err != nil {
				return err
			}
		}
		return b.rewrapPairing(tx, convert)
	})
}

const cardsSent = "cards-sent"

// cardDue reports whether a peer has not been given the present card yet.
func (b *Bridge) cardDue(tx *spool.Tx, peer []byte) bool {
	had := tx.KV(cardsSent).Get(peer)
	if had == nil {
		return len(b.keys.Keys()) > 1 // it was paired with our first card, or with a later one that it will see again
	}
	return !slices.Equal(had, serialBytes(b.keys.Card().Serial))
}

// cardAcked notes that the peer has what a bundle carried: if that was our card, it need not be sent again.
func (b *Bridge) cardAcked(tx *spool.Tx, s *spool.Sent) error {
	if s.Kind == sentHop || !b.cardDue(tx, s.Next[:]) {
		return nil
	}
	d := envelope.Dec{B: s.Recipe}
	for d.Next() {
		if d.Tag != recipeRecord {
			continue
		}
		if v := d.List(); len(v) > 1 && envelope.RecordType(v[0]) == envelope.RecordCard {
			if c, err := seal.ParseCard(v[1:]); err == nil {
				return tx.KV(cardsSent).Put(s.Next[:], serialBytes(c.Serial))
			}
		}
	}
	return nil
}

func serialBytes(n uint64) []byte {
	v := make([]byte, 8)
	for i := range v {
		v[i] = byte(n >> (56 - 8*i))
	}
	return v
}
