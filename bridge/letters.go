package bridge

import (
	"errors"
	"fmt"
	"strings"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// The mail: carrier sends packets as letters, ordinary mails. They end at a [[deliver]] or leave by another mail
// server; they never travel in a bundle, because a letter in a packet in a letter would never end.

// refuseLetter is the answer to a letter that a rule would send to another node.
func refuseLetter() error {
	return envelope.NewStatus(554, "5.4.6", "a letter of the mail: carrier does not travel in another packet; it needs a [[deliver]], or a mail server that does not hand it to this node")
}

// letterBox reports whether mail to addr is what a mail: contact of this node sends.
func (p *Policy) letterBox(addr string) bool {
	for _, c := range p.Contacts {
		rest, ok := strings.CutPrefix(c.URL, "mail:")
		if to, _, _ := strings.Cut(rest, "?"); ok && strings.EqualFold(to, addr) {
			return true
		}
	}
	return false
}

// Bounced notes that the mail server of somebody sent a letter back: its packet is due again, later and later, and
// the contact shows why until the neighbour is heard again. It reports whether the packet is one of ours that is still
// under way.
func (b *Bridge) Bounced(packet transport.ID, why string) (bool, error) {
	var next envelope.NodeID
	found := false
	err := b.spool.Apply(func(tx *spool.Tx) error {
		found = false
		s, err := tx.SentByPacket(packet)
		if errors.Is(err, spool.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if !strings.HasPrefix(s.Carrier, "mail:") {
			return nil // somebody who knows its name says so
		}
		in, err := carried(tx, s)
		if err != nil {
			return gone(err)
		}
		found, next = true, s.Next
		for _, ref := range in.Refs {
			if err := b.refuseLeg(tx, ref, b.now(), "returned as mail: "+why); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || !found {
		return false, err
	}
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.contacts {
		if s.contact.Node == next && strings.HasPrefix(s.contact.URL, "mail:") {
			s.returned, s.returnedAt = why, now
			s.backoff = min(max(2*s.backoff, b.Policy().Limits.RetryMin), b.Policy().Limits.RetryMax)
			s.next = now.Add(s.backoff)
		}
	}
	b.log.Warn("a letter came back", "node", b.Policy().nodeName(next), "packet", packet.String(), "why", esc(why))
	return true, nil
}

// returnedText is what a contact shows of letters that came back, until the neighbour is heard. The mutex is held.
func (b *Bridge) returnedText(s *contactState) string {
	if s.returned == "" || b.heard[s.contact.Node].After(s.returnedAt) {
		return ""
	}
	return fmt.Sprintf("a letter came back at %s: %s", s.returnedAt.UTC().Format("2006-01-02 15:04 UTC"), s.returned)
}
