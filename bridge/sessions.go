package bridge

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// Session states, as spool.Session.State keeps them. docs/custody.md draws them.
const (
	sesOffered  uint8 = 1 // ours, nothing opened from the peer yet: the offer rides along
	sesLive     uint8 = 2 // confirmed, or accepted from the peer
	sesDraining uint8 = 3 // nothing new is sealed; what comes is opened
)

const (
	sendingLife   = 7 * 24 * time.Hour
	acceptingLife = sendingLife + (60+14)*24*time.Hour
	maxItems      = 1 << 20
	maxSessions   = 8  // live ones a peer may hold here
	maxNewADay    = 16 // it may open in a day
	tombstones    = "tombstones"
	peerFacts     = "peers"
)

// session is one live session in memory. Ranges and salts stay in the spool; here is what sealing and trying need.
type session struct {
	keys   *seal.Session
	peer   envelope.NodeID
	state  uint8
	next   uint64 // next sequence number to seal under
	born   time.Time
	heard  time.Time // last item opened under it
	ending time.Time // when the peer was last told that nothing more comes
	owed   uint64    // how many numbers the receipt that is due must cover; 0 = none is due
	told   uint64    // how many numbers the last receipt covered, in this process
}

// sessions holds every live session, most recently heard first.
type sessions struct {
	mu     sync.Mutex
	all    []*session
	opened map[envelope.NodeID][]time.Time // sessions accepted lately, per peer
	lost   [][8]byte                       // stored sessions that could not be read at start
	doubts map[envelope.NodeID]time.Time   // peers that seal under what is not known here; see doubt
}

// load reads the sessions of the spool.
func (s *sessions) load(b *Bridge) error {
	s.opened = map[envelope.NodeID][]time.Time{}
	return b.spool.View(func(tx *spool.Tx) error {
		recs, err := tx.Sessions()
		if err != nil {
			return err
		}
		for _, r := range recs {
			k, err := seal.UnmarshalSession(b.keys, r.Secret)
			if err != nil {
				b.log.Error("a session cannot be read; its peer is asked for a new one", "peer", r.Peer.String(), "err", err)
				b.askReset(r)
				s.lost = append(s.lost, r.ID)
				continue
			}
			s.all = append(s.all, &session{keys: k, peer: r.Peer, state: r.State, next: r.NextSeq, born: r.Created, heard: r.Heard, owed: owedBy(r)})
		}
		slices.SortFunc(s.all, func(a, b *session) int { return b.heard.Compare(a.heard) })
		return nil
	})
}

// owedBy is the count a stored session owes a receipt for.
func owedBy(r *spool.Session) uint64 {
	if r.OweHeld {
		return max(r.Recv.Count(), 1)
	}
	return 0
}

// match finds the session and the sequence number of an incoming item.
func (s *sessions) match(h seal.Header) (*session, uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.all {
		if seq, ok := x.keys.Match(h); ok {
			if i > 0 {
				copy(s.all[1:i+1], s.all[:i])
				s.all[0] = x
			}
			return x, seq, true
		}
	}
	return nil, 0, false
}

// pick returns the session to seal for a peer under: a live one (not if anew), then our own offer, then a new offer; with
// it the next sequence number and a fresh salt. Numbers are given out in memory: one that is never committed stays void.
func (s *sessions) pick(b *Bridge, card *seal.Card, anew bool) (*session, uint64, [16]byte, error) {
	var salt [16]byte
	rand.Read(salt[:])
	now := b.now()
	suspect := b.clock.suspect()
	s.mu.Lock()
	defer s.mu.Unlock()
	if card.Revoked() {
		return nil, 0, salt, seal.ErrRevoked
	}
	if _, lost := s.doubts[card.ID]; lost {
		anew = true
	}
	var best *session
	for _, x := range s.all {
		if x.peer != card.ID || x.state == sesDraining || now.Sub(x.born) > sendingLife && !suspect || x.next >= maxItems || b.stale(x.keys, card.Incarnation) || anew && x.state != sesOffered {
			continue
		}
		if best == nil || x.state > best.state || x.state == best.state && slices.Compare(x.keys.ID[:], best.keys.ID[:]) < 0 {
			best = x
		}
	}
	if best == nil {
		if suspect {
			// a wrong date keeps no mail back: the card decides by a time at which it is good
			now = later(card.Published, earlier(now, card.LastSession()))
		}
		k, err := b.keys.NewSession(card, now)
		if err != nil {
			return nil, 0, salt, fmt.Errorf("start a session: %w", err)
		}
		best = &session{keys: k, peer: card.ID, state: sesOffered, born: now}
		s.all = append(s.all, best)
	}
	seq := best.next
	best.next++
	return best, seq, salt, nil
}

// heardOf is when the last item of a peer was opened.
func (s *sessions) heardOf(peer envelope.NodeID) (last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.peer == peer && x.heard.After(last) && x.state != sesOffered {
			last = x.heard
		}
	}
	return last
}

// offers reports whether items of the session still carry its offer.
func (s *sessions) offers(x *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return x.state == sesOffered
}

// record returns the spool's record of a session, or a new one for a session that was never committed.
func (b *Bridge) record(tx *spool.Tx, x *session) (*spool.Session, error) {
	r, err := tx.Session(x.keys.ID)
	if err == nil {
		return r, nil
	}
	if !errors.Is(err, spool.ErrNotFound) {
		return nil, err
	}
	b.ses.mu.Lock()
	state := x.state
	b.ses.mu.Unlock()
	return &spool.Session{ID: x.keys.ID, Peer: x.peer, State: state, Secret: x.keys.Marshal(b.keys), Created: x.born,
		PeerIncarnation: x.keys.PeerIncarnation, OwnIncarnation: x.keys.OwnIncarnation}, nil
}

// confirm says that an item of the session was opened: an offered session is confirmed by that.
func (s *sessions) confirm(x *session, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.state == sesOffered {
		x.state = sesLive
		delete(s.doubts, x.peer)
	}
	x.heard = now
}

// doubtAfter is how long a peer must have been silent: whoever can put garbage on a folder is not to cost a session each
// time, of which a peer may begin 16 a day.
const doubtAfter = 6 * time.Hour

// doubt notes that a peer seals under a session that is not known here and has not been heard under another for a while.
// Perhaps both ends have lost what they shared: then neither could tell the other so under what it believes in. What
// goes to the peer carries an offer again until one is confirmed.
func (s *sessions) doubt(peer envelope.NodeID, now time.Time) {
	if now.Sub(s.heardOf(peer)) < doubtAfter {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doubts == nil {
		s.doubts = map[envelope.NodeID]time.Time{}
	}
	if _, known := s.doubts[peer]; !known {
		s.doubts[peer] = now
	}
}

// accept opens an offer. A known one returns its session and changes nothing.
func (s *sessions) accept(b *Bridge, offer []byte) (*session, error) {
	now := b.now()
	k, who, err := b.keys.AcceptOffer(offer, b.cardOf, now)
	if errors.Is(err, seal.ErrUnknownPeer) && k != nil {
		// not a peer, but perhaps a guest: the caller looks for the proof in the bundle, and adopts or drops it
		return &session{keys: k, peer: who.ID, state: sesLive, born: now, heard: now}, err
	}
	if err != nil {
		return nil, err
	}
	if x := s.byID(k.ID); x != nil {
		return x, nil
	}
	// The spool is asked without the lock: its writer may be waiting for that.
	var dead bool
	err = b.spool.View(func(tx *spool.Tx) error {
		dead = tx.KV(tombstones).Get(k.TH[:]) != nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	card, cardErr := b.cardOf(who.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.keys.ID == k.ID {
			return x, nil
		}
	}
	if dead {
		return nil, errTombstone
	}
	live, day := 0, s.opened[who.ID][:0]
	for _, t := range s.opened[who.ID] {
		if now.Sub(t) < 24*time.Hour {
			day = append(day, t)
		}
	}
	for _, x := range s.all {
		if x.peer == who.ID && x.state != sesDraining {
			live++
		}
	}
	if live >= maxSessions || len(day) >= maxNewADay {
		s.opened[who.ID] = day
		return nil, fmt.Errorf("%w: %d sessions live, %d opened today", errTooMany, live, len(day))
	}
	s.opened[who.ID] = append(day, now)
	x := &session{keys: k, peer: who.ID, state: sesLive, born: now, heard: now}
	if cardErr == nil && card != nil && b.stale(k, card.Incarnation) {
		x.state = sesDraining // what comes is taken; answers go under a session of the present lives
	}
	s.all = append([]*session{x}, s.all...)
	return x, nil
}

// adopt keeps the session of a guest that has become a peer.
func (s *sessions) adopt(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append([]*session{x}, s.all...)
}

var (
	errTombstone = errors.New("the session was ended; its offer is not accepted again")
	errTooMany   = errors.New("too many sessions of this peer")
)

// drain stops sealing under a peer's sessions but for those in keep; under all of every peer's when peer is zero.
func (s *sessions) drain(b *Bridge, peer envelope.NodeID, keep map[*session]bool) error {
	s.mu.Lock()
	var ids [][8]byte
	for _, x := range s.all {
		if (peer.IsZero() || x.peer == peer) && !keep[x] {
			x.state = sesDraining
			ids = append(ids, x.keys.ID)
		}
	}
	s.mu.Unlock()
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for _, id := range ids {
			r, err := tx.Session(id)
			if errors.Is(err, spool.ErrNotFound) {
				continue // nothing was sealed or opened under it yet
			}
			if err != nil {
				return err
			}
			if r.State == sesDraining {
				continue
			}
			r.State = sesDraining
			if err := tx.PutSession(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *sessions) drainAll(b *Bridge) error { return s.drain(b, envelope.NodeID{}, nil) }

// erase forgets sessions whose accepting life is over; their offers leave a tombstone until the sealing key that
// opens them is gone. Not on a suspect clock.
func (s *sessions) erase(b *Bridge, now time.Time) error {
	if b.clock.suspect() {
		return nil
	}
	young := map[[8]byte]bool{} // born, as it seems, after this moment: their life begins now
	s.mu.Lock()
	for _, x := range s.all {
		switch age := now.Sub(x.born); {
		case age > sendingLife:
			x.state = sesDraining
		case age < -clockBack:
			x.born, young[x.keys.ID] = now, true
		}
	}
	s.mu.Unlock()
	if err := s.reborn(b, young, now); err != nil {
		return err
	}
	if err := s.bury(b, now); err != nil {
		return err
	}
	return s.remove(b, func(x *session) bool { return now.Sub(x.born) > acceptingLife })
}

// reborn stores that sessions which were begun on a wrong clock begin now.
func (s *sessions) reborn(b *Bridge, ids map[[8]byte]bool, now time.Time) error {
	if len(ids) == 0 {
		return nil
	}
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for id := range ids {
			r, err := tx.Session(id)
			if errors.Is(err, spool.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			r.Created = now
			if err := tx.PutSession(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// remove erases sessions and leaves their tombstones.
func (s *sessions) remove(b *Bridge, match func(*session) bool) error {
	s.mu.Lock()
	var gone []*session
	s.all = slices.DeleteFunc(s.all, func(x *session) bool {
		if match(x) {
			gone = append(gone, x)
			return true
		}
		return false
	})
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for _, x := range gone {
			if err := tx.KV(tombstones).Put(x.keys.TH[:], timeBytes(b.keys.Card().KeepUntil)); err != nil {
				return err
			}
			// its packets would lie on folders for ever, unknown
			err := tx.SentRange(x.keys.ID, 0, 1<<48, func(r *spool.Sent) error { return withdraw(tx, r, b.now()) })
			if err != nil {
				return err
			}
			if err := tx.DeleteSession(x.keys.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

// cardOf is cardIn where no transaction is at hand.
func (b *Bridge) cardOf(id envelope.NodeID) (c *seal.Card, err error) {
	verr := b.spool.View(func(tx *spool.Tx) error {
		c, err = b.cardIn(tx, id)
		return nil
	})
	if verr != nil {
		return nil, verr
	}
	return c, err
}

// cardIn returns the newest card held of a node: the one it sent, if it is newer than the configured one.
func (b *Bridge) cardIn(tx *spool.Tx, id envelope.NodeID) (*seal.Card, error) {
	p := b.Policy().peer(id)
	if p == nil {
		return nil, seal.ErrUnknownPeer
	}
	raw := tx.KV("cards").Get(id[:])
	if raw == nil {
		return p.Card, nil
	}
	c, err := seal.ParseCard(raw)
	if err != nil || p.Card != nil && c.Serial < p.Card.Serial {
		return p.Card, nil
	}
	return c, nil
}
