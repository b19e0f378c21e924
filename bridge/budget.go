package bridge

import (
	"fmt"
	"sync"
	"time"

	"mochila/internal/envelope"
)

// What a neighbour may bring that is of no use: each bad packet costs a decryption, a commit and a place in the
// quarantine. Whoever brings too many on live links is not listened to for a while, over all contacts. On folders there
// is no such bound: anybody who has the stick can lay garbage into a neighbour's folder, and what was refused once is
// not opened again there.
const (
	maxRefused  = 256              // bad packets in a row
	refusedLeak = 15 * time.Second // after which one of them is forgotten: 240 an hour
)

// budgets counts the bad packets of each neighbour.
type budgets struct {
	mu sync.Mutex
	by map[envelope.NodeID]*budget
}

// budget is a bucket that leaks.
type budget struct {
	level int
	at    time.Time // of the last leak
	cut   bool      // it ran over, and has not come down to half since
}

func (g *budget) leak(now time.Time) {
	if n := int(now.Sub(g.at) / refusedLeak); n > 0 || now.Before(g.at) {
		g.level = max(g.level-max(n, 0), 0)
		g.at = now
	}
	g.cut = g.cut && g.level > maxRefused/2
}

// spend notes a bad packet; it reports whether the neighbour has just used up its budget.
func (s *budgets) spend(node envelope.NodeID, now time.Time) (over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[envelope.NodeID]*budget{}
	}
	g := s.by[node]
	if g == nil {
		g = &budget{at: now}
		s.by[node] = g
	}
	g.leak(now)
	g.level++
	over = g.level > maxRefused && !g.cut
	g.cut = g.cut || over
	return over
}

// until tells since when, from now, a neighbour is listened to again; the zero time when it is now.
func (s *budgets) until(node envelope.NodeID, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.by[node]
	if g == nil {
		return time.Time{}
	}
	if g.leak(now); !g.cut {
		return time.Time{}
	}
	return g.at.Add(time.Duration(g.level-maxRefused/2) * refusedLeak)
}

// CutOff tells until when a neighbour is not listened to on live links because of what it brought; the zero time when it
// is.
func (b *Bridge) CutOff(node envelope.NodeID) time.Time { return b.errors.until(node, b.now()) }

// spend notes that a neighbour brought a bad packet on a live link. The error ends the contact.
func (d *desk) spend() error {
	now := d.b.now()
	if d.b.errors.spend(d.node, now) {
		d.b.log.Error("a neighbour brings too many bad packets: it is not listened to for a while",
			"neighbour", d.b.Policy().nodeName(d.node), "until", d.b.errors.until(d.node, now).UTC().Format(time.RFC3339))
	}
	return d.b.listens(d.node)
}

// listens returns the error that keeps a neighbour from a live contact.
func (b *Bridge) listens(node envelope.NodeID) error {
	until := b.CutOff(node)
	if until.IsZero() {
		return nil
	}
	return fmt.Errorf("%s has brought too many bad packets: not before %s", b.Policy().nodeName(node), until.UTC().Format(time.RFC3339))
}
