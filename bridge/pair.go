package bridge

import (
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// Pairing by invitation: the inviter's card and a single-use secret travel to the guest; the guest's first bundle
// proves that it knows the secret and brings its card. Nobody else who is not a peer can have a bundle opened.

const (
	invites    = "invites" // secret's key → invite
	joins      = "joins"   // peer → secret to prove
	inviteLife = 30 * 24 * time.Hour
)

// Invite is an open invitation of this node.
type Invite struct {
	Name   string // what the guest will be called here
	URL    string // the medium it was written on: the contact of the new peer
	Made   time.Time
	Secret []byte // 32 bytes
}

func (v *Invite) append(wrapped []byte) []byte {
	var e envelope.Enc
	e.String(1, v.Name)
	e.String(2, v.URL)
	e.Time(3, v.Made)
	e.Bytes(4, wrapped)
	return e.B
}

func parseInvite(b []byte) (*Invite, error) {
	v := &Invite{}
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			v.Name = d.String()
		case 2:
			v.URL = d.String()
		case 3:
			v.Made = d.Time()
		case 4:
			v.Secret = append([]byte{}, d.Bytes()...)
		default:
			d.Unknown()
		}
	}
	return v, d.Err
}

// Invite makes an invitation and remembers it until it is used or 30 days old.
func (b *Bridge) Invite(name, url string) (*Invite, error) {
	v := &Invite{Name: name, URL: url, Made: b.now(), Secret: make([]byte, 32)}
	rand.Read(v.Secret)
	var key [8]byte
	rand.Read(key[:])
	err := b.spool.Apply(func(tx *spool.Tx) error {
		return tx.KV(invites).Put(key[:], v.append(b.keys.Wrap(v.Secret)))
	})
	return v, err
}

// Join remembers the secret of an invitation: bundles to that peer prove it until the peer is heard.
func (b *Bridge) Join(peer envelope.NodeID, secret []byte) error {
	return b.spool.Apply(func(tx *spool.Tx) error { return tx.KV(joins).Put(peer[:], b.keys.Wrap(secret)) })
}

// Hello packs a first word for a peer although nothing is due: with it goes the proof of an invitation.
func (b *Bridge) Hello(peer envelope.NodeID) {
	b.later(peer, record{envelope.RecordGreeting, b.hello()})
}

func (b *Bridge) hello() []byte {
	g := envelope.Greeting{Name: b.Policy().Name}
	rand.Read(g.Nonce[:])
	return g.Append(nil)
}

// proof returns the records that a guest's bundles begin with while their session's offer is not confirmed.
func (b *Bridge) proof(n numbered) ([]record, error) {
	if !n.offer {
		return nil, nil
	}
	var wrapped []byte
	err := b.spool.View(func(tx *spool.Tx) error {
		wrapped = append(wrapped, tx.KV(joins).Get(n.ses.peer[:])...)
		return nil
	})
	if err != nil || len(wrapped) == 0 {
		return nil, err
	}
	secret, err := b.keys.Unwrap(wrapped)
	if err != nil {
		return nil, fmt.Errorf("the invitation's secret: %w", err)
	}
	mac := seal.InviteMAC(secret, n.ses.keys.TH)
	return []record{
		{envelope.RecordInviteProof, envelope.InviteProof(mac).Append(nil)},
		{envelope.RecordCard, b.keys.Card().Bytes()},
	}, nil
}

// honour looks for the invitation that a stranger's bundle proves, makes the stranger a peer and uses the invitation
// up. Options.Joined stores the peer and returns the policy with it.
func (b *Bridge) honour(x *session, proof []byte, card []byte) error {
	c, err := seal.ParseCard(card)
	if err != nil {
		return err
	}
	if c.ID != x.peer {
		return errors.New("the card is not the sender's")
	}
	found, key, err := b.invited(x, proof)
	if err != nil {
		return err
	}
	p, err := b.opt.Joined(found.Name, found.URL, c)
	if err != nil {
		return fmt.Errorf("store the new peer %s: %w", found.Name, err)
	}
	b.SetPolicy(p)
	b.log.Info("a new peer has joined by invitation", "name", found.Name, "id", c.ID.String())
	return b.spool.Apply(func(tx *spool.Tx) error { return tx.KV(invites).Delete(key) })
}

// invited finds the open invitation that a stranger's proof speaks of.
func (b *Bridge) invited(x *session, proof []byte) (found *Invite, key []byte, err error) {
	now := b.now()
	err = b.spool.View(func(tx *spool.Tx) error {
		return tx.KV(invites).Each(nil, func(k, v []byte) error {
			inv, err := parseInvite(v)
			if err != nil || found != nil {
				return nil
			}
			secret, err := b.keys.Unwrap(inv.Secret)
			if err != nil || !b.clock.suspect() && now.Sub(inv.Made) > inviteLife {
				return nil
			}
			mac := seal.InviteMAC(secret, x.keys.TH)
			if hmac.Equal(mac[:], proof) {
				found, key = inv, k
			}
			return nil
		})
	})
	if err == nil && (found == nil || b.opt.Joined == nil) {
		err = errors.New("it proves no open invitation of this node")
	}
	return found, key, err
}

// pruneInvites forgets invitations that nobody used in time.
func (b *Bridge) pruneInvites(now time.Time) error {
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		kv := tx.KV(invites)
		return kv.Each(nil, func(k, v []byte) error {
			if inv, err := parseInvite(v); err == nil && now.Sub(inv.Made) <= inviteLife {
				return nil
			}
			return kv.Delete(k)
		})
	})
}

// greetInviters has a first word ready for every node that invited this one and to which nothing was ever sent: the
// process that joined may have ended before the medium took it.
func (b *Bridge) greetInviters() error {
	fresh := map[envelope.NodeID]bool{}
	err := b.spool.View(func(tx *spool.Tx) error {
		err := tx.KV(joins).Each(nil, func(k, _ []byte) error {
			if len(k) == len(envelope.NodeID{}) {
				fresh[envelope.NodeID(k)] = true
			}
			return nil
		})
		if err != nil || len(fresh) == 0 {
			return err
		}
		return tx.EachSent(func(s *spool.Sent) error { delete(fresh, s.Next); return nil })
	})
	for peer := range fresh {
		if b.Policy().peer(peer) != nil {
			b.Hello(peer)
		}
	}
	return err
}

// rewrapTable puts the wrapped secrets of one small table under a new wrapping key.
func rewrapTable(tx *spool.Tx, name string, convert func([]byte) ([]byte, error), at func([]byte) ([]byte, func([]byte) []byte, error)) error {
	kv := tx.KV(name)
	next := map[string][]byte{}
	err := kv.Each(nil, func(k, v []byte) error {
		secret, put, err := at(v)
		if err != nil {
			return err
		}
		if secret, err = convert(secret); errors.Is(err, seal.ErrWrapped) {
			next[string(k)] = nil
			return nil
		} else if err != nil {
			return err
		}
		next[string(k)] = put(secret)
		return nil
	})
	if err != nil {
		return err
	}
	for k, v := range next {
		if v == nil {
			err = kv.Delete([]byte(k))
		} else {
			err = kv.Put([]byte(k), v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rewrapPairing is rewrapTable for the secrets of invitations.
func (b *Bridge) rewrapPairing(tx *spool.Tx, convert func([]byte) ([]byte, error)) error {
	err := rewrapTable(tx, invites, convert, func(v []byte) ([]byte, func([]byte) []byte, error) {
		inv, err := parseInvite(v)
		if err != nil {
			return nil, nil, err
		}
		return inv.Secret, inv.append, nil
	})
	if err != nil {
		return err
	}
	return rewrapTable(tx, joins, convert, func(v []byte) ([]byte, func([]byte) []byte, error) {
		return v, func(n []byte) []byte { return n }, nil
	})
}
