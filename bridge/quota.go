package bridge

import (
	"fmt"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// quotas counts what each peer has queued here: everything it relays or sends through this node. What ends is not
// subtracted: the count is an upper bound, and made anew when it says no. That walks the whole spool, so it is done
// at first need and then no more often than it is cheap.
type quotas struct {
	scan sync.Mutex // held while the spool is walked

	mu   sync.Mutex
	use  map[string]usage // by trust class; nil: not counted yet
	at   time.Time        // when it was counted
	cost time.Duration    // how long that took
}

type usage struct {
	bytes int64
	count int
}

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
	return q.ask(b, node, size, false)
}

// charge books size bytes more that are queued here on behalf of a node, or refuses them.
func (q *quotas) charge(b *Bridge, node envelope.NodeID, size int64) error {
	return q.ask(b, node, size, true)
}

// ask looks whether one more item has room in a node's quota.
func (q *quotas) ask(b *Bridge, node envelope.NodeID, size int64, book bool) error {
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
	trust := "peer:" + node.Label().String()
	fits := func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		u := q.use[trust]
		if q.use == nil || u.bytes+size > maxBytes || u.count >= maxCount {
			return false
		}
		if book {
			q.use[trust] = usage{u.bytes + size, u.count + 1}
		}
		return true
	}
	if fits() {
		return nil
	}
	switch again, err := q.renew(b); {
	case err != nil:
		return err
	case again && fits():
		return nil
	}
	b.log.Warn("peer is over its quota", "peer", peer.Name, "bytes", maxBytes, "count", maxCount)
	return fmt.Errorf("%w: %s is over its quota here", transport.ErrRefused, peer.Name)
}
