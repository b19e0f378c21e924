package bridge

import (
	"fmt"
	"math"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// quotas counts what each peer has queued here, everything it relays or sends through this node, and where it is
// limited, what each local user and account has. What ends is not
// subtracted: the count is an upper bound, and made anew when it says no. That walks the whole spool, so it is done
// at first need and then no more often than it is cheap.
type quotas struct {
	scan sync.Mutex // held while the spool is walked

	mu     sync.Mutex
	use    map[string]usage // by trust class; nil: not counted yet
	coming map[string]usage // booked for packets that are being taken, which no count sees
	at     time.Time        // when it was counted
	cost   time.Duration    // how long that took
}

type usage struct {
	bytes int64
	count int
}

// booking is room that an incoming packet takes up.
type booking struct {
	trust string
	size  int64
}

// book is where room is booked; nil: nowhere, it is only asked for. mu is held.
type book func(q *quotas) map[string]usage

func queued(q *quotas) map[string]usage { return q.use }

func onItsWay(q *quotas) map[string]usage {
	if q.coming == nil {
		q.coming = make(map[string]usage)
	}
	return q.coming
}

// peerTrust is the trust class of what a peer sends.
func peerTrust(node envelope.NodeID) string { return "peer:" + node.Label().String() }

// scanShare bounds the part of the time that counting takes: one of so many.
const scanShare = 50

// load counts.
func (q *quotas) load(b *Bridge) error {
	began := time.Now()
	use := map[string]usage{}
	var after envelope.ID
	for {
		items, more, err := b.spool.List(spool.Query{After: after, Limit: 1000})
		if err != nil {
			return fmt.Errorf("count what peers have queued: %w", err)
		}
		for _, it := range items {
			after = it.Env.ID
			u := use[it.Trust]
			use[it.Trust] = usage{u.bytes + it.BodySize, u.count + 1}
		}
		if !more || len(items) == 0 {
			break
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.use, q.at, q.cost = use, b.now(), time.Since(began)
	return nil
}

// renew counts, if that was never done or its last result is old enough; it reports whether there is a new count.
func (q *quotas) renew(b *Bridge) (bool, error) {
	q.mu.Lock()
	seen := q.at
	q.mu.Unlock()
	q.scan.Lock()
	defer q.scan.Unlock()
	q.mu.Lock()
	first, at, cost := q.use == nil, q.at, q.cost
	q.mu.Unlock()
	switch {
	case !at.Equal(seen):
		return true, nil // somebody else has just counted
	case !first && b.now().Sub(at) < max(time.Second, scanShare*cost):
		return false, nil
	}
	return true, q.load(b)
}

// smallPacket is up to where a packet is opened whatever its sender's quota: it may hold receipts, which free space.
const smallPacket = 64 << 10

// admit refuses a large packet of a neighbour that has used up what it may queue here, before it is read.
func (q *quotas) admit(b *Bridge, node envelope.NodeID, size int64) error {
	if size <= smallPacket {
		return nil
	}
	return q.ask(b, node, size, nil)
}

// charge books size bytes more that come to be queued here on behalf of a node, or refuses them. settle ends it.
func (q *quotas) charge(b *Bridge, node envelope.NodeID, size int64) error {
	return q.ask(b, node, size, onItsWay)
}

// settle ends bookings of packets: what was entered is queued here now, what was not leaves no trace.
func (q *quotas) settle(booked []booking, entered bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range booked {
		u := q.coming[b.trust]
		if q.coming[b.trust] = (usage{u.bytes - b.size, u.count - 1}); u.count == 1 {
			delete(q.coming, b.trust)
		}
		if entered && q.use != nil {
			u := q.use[b.trust]
			q.use[b.trust] = usage{u.bytes + b.size, u.count + 1}
		}
	}
}

// chargeUser books a mail of a local user or an account, by its trust class, or refuses it. It costs nothing where no
// limit is set.
func (q *quotas) chargeUser(b *Bridge, trust string, size int64) error {
	l := &b.Policy().Limits
	if l.UserBytes == 0 && l.UserCount == 0 || trust == "net" || trust == "uid:0" {
		return nil
	}
	maxBytes, maxCount := l.UserBytes, l.UserCount
	if maxBytes == 0 {
		maxBytes = math.MaxInt64 / 2
	}
	if maxCount == 0 {
		maxCount = math.MaxInt
	}
	ok, err := q.fits(b, trust, maxBytes, maxCount, size, queued)
	if err != nil {
		return err
	}
	if !ok {
		b.log.Warn("a local user is over the quota", "trust", trust, "bytes", l.UserBytes, "count", l.UserCount)
		return envelope.NewStatus(452, "4.2.2", "you have too much mail in the queue, try again later")
	}
	return nil
}

// ask looks whether one more item has room in a node's quota.
func (q *quotas) ask(b *Bridge, node envelope.NodeID, size int64, book book) error {
	peer := b.Policy().peer(node)
	if peer == nil {
		return nil
	}
	maxBytes, maxCount := peer.MaxBytes, peer.MaxCount
	if maxBytes == 0 {
		maxBytes = 1 << 30
	}
	if maxCount == 0 {
		maxCount = 100000
	}
	ok, err := q.fits(b, peerTrust(node), maxBytes, maxCount, size, book)
	if err != nil || ok {
		return err
	}
	b.log.Warn("peer is over its quota", "peer", peer.Name, "bytes", maxBytes, "count", maxCount)
	return fmt.Errorf("%w: %s is over its quota here", transport.ErrRefused, peer.Name)
}

// fits reports whether one more item of a trust class has room, and books it if asked to.
func (q *quotas) fits(b *Bridge, trust string, maxBytes int64, maxCount int, size int64, book book) (bool, error) {
	fits := func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		u, c := q.use[trust], q.coming[trust]
		if q.use == nil || u.bytes+c.bytes+size > maxBytes || u.count+c.count >= maxCount {
			return false
		}
		if book != nil {
			to := book(q)
			to[trust] = usage{to[trust].bytes + size, to[trust].count + 1}
		}
		return true
	}
	if fits() {
		return true, nil
	}
	again, err := q.renew(b)
	return err == nil && again && fits(), err
}
