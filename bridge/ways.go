package bridge

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// Several neighbours may lead to one node: whichever has a contact first takes what is due, and what was not answered for
// goes again, by any of them. A dead one would take it again and again, as its contacts have no other work. Hence a
// neighbour that is silent (docs/custody.md, "Several ways") leaves what is due to another one that lives.

// headStart is how long a silent neighbour leaves to others what is due. Nobody else took it by then, so it may try.
const headStart = 3 * rescan

// ways is what is known of neighbours that relay, since the start.
type ways struct {
	mu    sync.Mutex
	given map[envelope.NodeID]time.Time // neighbour → when it was handed the first thing that it said nothing since
	left  map[envelope.NodeID]time.Time // destination → since when something is due that was left to others
	again *time.Timer                   // until the next head start is over; nil: none has begun
}

// takeTurns changes places, by chance, among contacts that lead to the same node by different neighbours. A process that
// makes its contacts and ends does not remember who was silent, and the first must not always be the same.
func (b *Bridge) takeTurns(contacts []*Contact) {
	type pair [2]envelope.NodeID
	rivals, p := map[pair]bool{}, b.Policy()
	for _, q := range b.spool.Dests() {
		n, ok := q.Node()
		if !ok {
			continue
		}
		lead := append(p.paths(n), n)
		for _, x := range lead {
			for _, y := range lead {
				rivals[pair{x, y}] = x != y
			}
		}
	}
	for i := range contacts {
		for j := range i {
			if rivals[pair{contacts[i].Node, contacts[j].Node}] && rand.IntN(2) == 0 {
				contacts[i], contacts[j] = contacts[j], contacts[i]
			}
		}
	}
}

// gave notes that a neighbour was handed something for the node to. passed: not what was too big for it.
func (b *Bridge) gave(by, to envelope.NodeID, passed bool) {
	heard := b.ses.heardOf(by)
	b.ways.mu.Lock()
	defer b.ways.mu.Unlock()
	if !passed {
		delete(b.ways.left, to)
	}
	if at, ok := b.ways.given[by]; by == to || ok && !heard.After(at) {
		return // it relays nothing, or owes an answer for longer
	}
	if b.ways.given == nil {
		b.ways.given = map[envelope.NodeID]time.Time{}
	}
	b.ways.given[by] = b.now()
}

// silent reports whether a neighbour was handed something to relay before a time, and not heard of since.
func (b *Bridge) silent(n envelope.NodeID, before time.Time) bool {
	heard := b.ses.heardOf(n)
	b.ways.mu.Lock()
	defer b.ways.mu.Unlock()
	at, ok := b.ways.given[n]
	return ok && at.Before(before) && !heard.After(at)
}

// givesWay reports whether a neighbour leaves to others what is due for the node to, the destination q, in a contact
// that began at a time: what it was handed in this contact it need not have answered for.
func (b *Bridge) givesWay(by, to envelope.NodeID, q spool.Dest, began time.Time) bool {
	if by == to {
		return false
	}
	due, now := b.spool.DueNow(q), b.now()
	b.ways.mu.Lock()
	_, given := b.ways.given[by]
	_, left := b.ways.left[to]
	b.ways.mu.Unlock()
	if !given || !due && !left || !b.silent(by, began) { // a desk asks for every destination, with each packet
		return false
	}
	if !slices.ContainsFunc(b.Policy().paths(to), func(n envelope.NodeID) bool { return n != by && !b.silent(n, now) && b.within(n) }) {
		return false
	}
	b.ways.mu.Lock()
	defer b.ways.mu.Unlock()
	if !due {
		delete(b.ways.left, to)
		return true
	}
	since, ok := b.ways.left[to]
	if !ok {
		if b.ways.left == nil {
			b.ways.left = map[envelope.NodeID]time.Time{}
		}
		since = now
		b.ways.left[to] = now
	}
	age := now.Sub(since)
	if age < 0 || age >= headStart {
		return false
	}
	b.lookAgain(headStart - age)
	return true
}

// lookAgain has contacts looked at when a head start is over: nothing else may happen by then. The mutex is held.
func (b *Bridge) lookAgain(in time.Duration) {
	if b.ways.again != nil {
		return
	}
	b.ways.again = time.AfterFunc(in, func() {
		b.ways.mu.Lock()
		b.ways.again = nil
		b.ways.mu.Unlock()
		b.kickContacts()
	})
}

// within reports whether a neighbour is within reach: there was a contact just now, or the last one was good and the next
// may begin.
func (b *Bridge) within(n envelope.NodeID) bool {
	now, contacts := b.now(), b.Policy().Contacts
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.heard[n]) < headStart { // it may be one that calls
		return true
	}
	return slices.ContainsFunc(contacts, func(c *Contact) bool {
		if c.Node != n || c.URL == "" || c.Paused || c.When.Manual || c.When.OnCall || !c.When.Open(now) {
			return false
		}
		s := b.contacts[contactKey(c)]
		return s != nil && !s.ok.IsZero() && s.err == ""
	})
}
