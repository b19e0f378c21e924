package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// An incarnation is one continuous life of one spool. When a spool is lost, put back from an older copy, or copied,
// what it remembers of its sessions is not what its peers have seen: a new incarnation begins, with a new sealing key
// and card, and everything without an outcome is sent again. This file is what a node knows of its own lives and of
// its peers' (docs/custody.md).

const (
	lifeKey   = "incarnation" // in the spool: the incarnation it belongs to
	twins     = "twins"       // session, number, half a salt → time: items that came under a number taken before
	accused   = "accused"     // peer → time at which its word last began a new incarnation
	contested = "contested"   // peer → time at which two of its lives were last seen at once

	// accuseEvery bounds how often the word of one peer makes this node begin a new life.
	accuseEvery = time.Hour
)

// checkLife compares spool and identity before any link opens, and begins a new incarnation when they do not belong
// together: the index was copied or put back, or has lost commits, it is new although the identity is not, or one of them is older.
func (b *Bridge) checkLife() error {
	var life []byte
	if err := b.spool.View(func(tx *spool.Tx) error { life = tx.Meta(lifeKey); return nil }); err != nil {
		return err
	}
	own := b.keys.Incarnation()
	switch {
	case b.spool.Copied():
		if damage := b.spool.Recovered().LogDamage; damage != "" {
			return b.Restored("commits of the spool are lost: " + damage + "; both logs are in the quarantine")
		}
		return b.Restored("the index is a copy of another one")
	case len(b.ses.lost) > 0:
		// their keys were wrapped anew, or lost: the spool is older than the identity, or was not wrapped with it
		if err := b.Restored("the index has sessions whose keys are gone"); err != nil {
			return err
		}
		return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
			for _, id := range b.ses.lost {
				// what they carried goes again: its packets need not lie on folders
				err := tx.SentRange(id, 0, 1<<48, func(r *spool.Sent) error { return withdraw(tx, r, b.now()) })
				if err != nil {
					return err
				}
				if err := tx.DeleteSession(id); err != nil {
					return err
				}
			}
			return nil
		})
	case life == nil && b.keys.Begun():
		return b.Restored("the spool is new, but the identity is not")
	case life != nil && !bytes.Equal(life, own[:]):
		return b.Restored("the spool belongs to another life of this identity")
	}
	return b.beginLife()
}

// beginLife notes in spool and identity that they belong together.
func (b *Bridge) beginLife() error {
	own := b.keys.Incarnation()
	var life []byte
	err := b.spool.View(func(tx *spool.Tx) error { life = tx.Meta(lifeKey); return nil })
	if err == nil && !bytes.Equal(life, own[:]) {
		err = b.spool.ApplyUrgent(func(tx *spool.Tx) error { return tx.SetMeta(lifeKey, own[:]) })
	}
	if err != nil {
		return err
	}
	return b.keys.Begin()
}

// Restored begins a new life of this node: new sealing key and card, no sealing under the old sessions, and all that
// has no outcome goes again. Peers know by the new card what happened, and do the same with what they have for us. A
// crash on the way leaves spool and identity of two lives: the next start does it again.
func (b *Bridge) Restored(why string) error {
	if _, err := b.keys.NewIncarnation(b.now()); err != nil {
		return fmt.Errorf("start a new incarnation: %w", err)
	}
	if err := b.jobs.Restored(); err != nil {
		return fmt.Errorf("hold the channels of jobs: %w", err)
	}
	if err := b.ses.drainAll(b); err != nil {
		return fmt.Errorf("end the old sessions: %w", err)
	}
	counts, err := b.spool.Counts()
	if err != nil {
		return err
	}
	for _, c := range counts {
		if _, ok := c.Dest.Node(); ok {
			if err := b.returnLegs(c.Dest, "this node has a new incarnation"); err != nil {
				return err
			}
		}
	}
	if err := b.beginLife(); err != nil {
		return fmt.Errorf("note the new life: %w", err)
	}
	if err := b.spool.AcceptCopy(); err != nil {
		return fmt.Errorf("adopt the copied spool: %w", err)
	}
	b.log.Warn("new incarnation", "why", why, "card", b.keys.Card().Serial)
	return nil
}

// renewed reacts to a peer that lost or renewed its memory: nothing new is sealed under the sessions with it, but for
// those in keep, and everything without an outcome goes again.
func (b *Bridge) renewed(peer envelope.NodeID, keep map[*session]bool) error {
	if err := b.ses.drain(b, peer, keep); err != nil {
		return err
	}
	if err := b.jobs.PeerRenewed(peer); err != nil {
		return err
	}
	return b.returnLegs(spool.NodeDest(peer), "the peer has a new incarnation")
}

// returnLegs makes due again what was handed out for a node and has no outcome.
func (b *Bridge) returnLegs(dest spool.Dest, why string) error {
	now := b.now()
	for _, st := range []spool.State{spool.Sealed, spool.Travelling, spool.Arrived} {
		var after envelope.ID
		for {
			items, more, err := b.spool.List(spool.Query{Dest: dest, State: st, After: after, Limit: 500})
			if err != nil {
				return err
			}
			if len(items) == 0 {
				break
			}
			after = items[len(items)-1].Env.ID
			err = b.spool.ApplyUrgent(func(tx *spool.Tx) error {
				for _, it := range items {
					for k := range it.Legs {
						if it.Legs[k].Dest != dest || it.Legs[k].State != st {
							continue
						}
						if _, err := b.moveLeg(tx, spool.Ref{ID: it.Env.ID, Leg: k}, spool.PeerRenewed, now, why); err != nil {
							return err
						}
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
	}
	return nil
}

// ownFault says that a peer has seen what only a spool that was put back or copied explains: numbers never given out
// here, or a number used twice. It begins a new life, at most once an hour on the word of one peer.
func (b *Bridge) ownFault(peer envelope.NodeID, why string) error {
	now := b.now()
	again := false
	err := b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		kv := tx.KV(accused)
		again = recent(kv.Get(peer[:]), now, accuseEvery)
		if again {
			return nil
		}
		return kv.Put(peer[:], timeBytes(now))
	})
	if err != nil {
		return err
	}
	name := b.Policy().nodeName(peer)
	if again {
		b.log.Error("a peer says again that this spool was put back or copied", "peer", name, "why", why)
		return nil
	}
	b.log.Error("this spool was put back from an older copy, or is used twice", "peer", name, "why", why)
	return b.Restored(why + " (" + name + ")")
}

// recent reports whether a stored time is less than d before now, or after it.
func recent(v []byte, now time.Time, d time.Duration) bool {
	return len(v) >= 8 && now.Sub(time.UnixMilli(int64(binary.BigEndian.Uint64(v)))) < d
}

// suspectSession reports whether what a peer says of a session can speak of this life at all, and ends the sealing
// under it either way: what was said once is not acted upon again.
func (b *Bridge) suspectSession(tx *spool.Tx, rec *spool.Session) (ours bool, err error) {
	if rec.State == sesDraining {
		return false, nil
	}
	own := b.keys.Incarnation()
	ours = rec.OwnIncarnation == own
	rec.State = sesDraining
	b.ses.drainOne(rec.ID)
	return ours, tx.PutSession(rec)
}

// forked takes the word of a peer that a number of ours came twice with different salts. A node never uses a number
// twice in one life.
func (b *Bridge) forked(tx *spool.Tx, peer envelope.NodeID, f *envelope.Fork) (ours bool, err error) {
	rec, err := tx.Session(f.Session)
	if errors.Is(err, spool.ErrNotFound) || err == nil && rec.Peer != peer {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return b.suspectSession(tx, rec)
}

// resetBy takes a peer's request to seal under another session: it cannot open this one. What it has not acknowledged
// goes again.
func (b *Bridge) resetBy(tx *spool.Tx, peer envelope.NodeID, r *envelope.Reset, now time.Time) error {
	rec, err := tx.Session(r.Session)
	if errors.Is(err, spool.ErrNotFound) || err == nil && rec.Peer != peer {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.State == sesDraining && recent(tx.KV("refusals").Get(rec.ID[:]), now, time.Hour) {
		return nil
	}
	if err := tx.KV("refusals").Put(rec.ID[:], timeBytes(now)); err != nil {
		return err
	}
	rec.State = sesDraining
	b.ses.drainOne(rec.ID)
	if err := tx.PutSession(rec); err != nil {
		return err
	}
	var refs []spool.Ref
	if err := tx.SentRange(rec.ID, 0, 1<<48, func(s *spool.Sent) error { refs = append(refs, s.Refs...); return nil }); err != nil {
		return err
	}
	for _, ref := range refs {
		if err := b.refuseLeg(tx, ref, now, "the peer cannot open the session"); err != nil {
			return err
		}
	}
	return nil
}

// askReset asks the peer of a session whose keys are lost here to begin another.
func (b *Bridge) askReset(r *spool.Session) {
	x := envelope.Reset{Session: r.ID, Incarnation: b.keys.Incarnation()}
	b.later(r.Peer, record{envelope.RecordReset, x.Append(nil)})
}

// twinKey names an item whose number was taken before.
func twinKey(session [8]byte, seq uint64, salt [16]byte) []byte {
	k := append([]byte{}, session[:]...)
	k = binary.BigEndian.AppendUint64(k, seq)
	return append(k, salt[:8]...)
}

// tellFork tells a peer that it used a number twice: it was rolled back, or there are two of it.
func (b *Bridge) tellFork(m mark) {
	b.log.Error("a peer used a number twice: it was put back from an older copy, or there are two of it",
		"peer", b.Policy().nodeName(m.ses.peer), "number", m.seq)
	f := envelope.Fork{Session: m.ses.keys.ID, Seq: m.seq, Salt: m.salt, Incarnation: b.keys.Incarnation()}
	b.later(m.ses.peer, record{envelope.RecordFork, f.Append(nil)})
}

// lookTwice notices when an older life of a peer goes on although a newer one was seen: an envelope was made, by the
// peer's own clock, after the newer life had begun. Mail goes on; a person has to end one of the two.
func (b *Bridge) lookTwice(m mark, made time.Time) {
	card, err := b.cardOf(m.ses.peer)
	if err != nil || card == nil || bytes.Compare(m.ses.keys.PeerIncarnation[:], card.Incarnation[:]) >= 0 {
		return
	}
	begun := time.Unix(int64(binary.BigEndian.Uint64(card.Incarnation[:])>>24), 0)
	if !made.After(begun.Add(clockBack)) {
		return // it was on its way when the new life began
	}
	b.contest(m.ses.peer, "an older life of it is still at work")
}

// contest notes that there are two of a peer.
func (b *Bridge) contest(peer envelope.NodeID, why string) {
	now := b.now()
	err := b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		return tx.KV(contested).Put(peer[:], timeBytes(now))
	})
	b.log.Error("a peer is contested: two nodes use its identity; one of them must be set up anew with another id",
		"peer", b.Policy().nodeName(peer), "why", why, "err", err)
}

// Contested tells when two lives of a peer were last seen at work at once; the zero time for never.
func (b *Bridge) Contested(peer envelope.NodeID) (at time.Time) {
	err := b.spool.View(func(tx *spool.Tx) error {
		if v := tx.KV(contested).Get(peer[:]); len(v) >= 8 {
			at = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
		}
		return nil
	})
	if err != nil {
		return time.Time{}
	}
	return at
}

// endSessions erases all sessions with a node whose card was revoked.
func (b *Bridge) endSessions(peer envelope.NodeID) error {
	return b.ses.remove(b, func(x *session) bool { return x.peer == peer })
}

// stale reports whether a session belongs to an earlier life of one of its ends: what comes under it is taken, and
// nothing more is sealed under it.
func (b *Bridge) stale(k *seal.Session, peerNow [8]byte) bool {
	return k.OwnIncarnation != b.keys.Incarnation() || bytes.Compare(k.PeerIncarnation[:], peerNow[:]) < 0
}
