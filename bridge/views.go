package bridge

import (
	"context"
	"io"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// PlaceDown tells why a delivery place is not tried now; ok is false when it is up.
func (b *Bridge) PlaceDown(d spool.Dest) (s envelope.Status, until time.Time, ok bool) {
	return b.out.state(d)
}

// Qualify completes an address without a domain, as accepting a mail would.
func (b *Bridge) Qualify(addr string) string { return b.Policy().qualify(addr) }

// NextHops returns the neighbours through which a node is reached.
func (b *Bridge) NextHops(node envelope.NodeID) []envelope.NodeID { return b.Policy().paths(node) }

// Heard is when a node was last heard: a good contact with it, or something it sealed that came by any way. Zero if
// never.
func (b *Bridge) Heard(node envelope.NodeID) time.Time {
	b.mu.Lock()
	last := b.heard[node]
	b.mu.Unlock()
	if t := b.ses.heardOf(node); t.After(last) {
		return t
	}
	return last
}

// ReceiveFrom takes one packet that a program hands over on a stream; prev is the neighbour if it is known.
func (b *Bridge) ReceiveFrom(ctx context.Context, prev envelope.NodeID, size int64, r io.Reader) error {
	in := &incoming{b: b, prev: prev, size: size}
	if err := in.take(ctx, r); err != nil {
		return err
	}
	if prev = in.prev; prev.IsZero() { // a bundle without a hop box comes from its origin
		prev = in.peer
	}
	if b.Policy().neighbour(prev) {
		b.met(prev)
	}
	return nil
}

// Visit reads what a stranger may have left on a folder: only an invitation's proof lets it in. It hands out nothing.
func (b *Bridge) Visit(ctx context.Context, l transport.Link, url string) (transport.Stats, error) {
	d := b.openDesk(&Contact{URL: url})
	defer d.close(0)
	return l.Run(ctx, d)
}

// Settled reports whether nothing waits for local delivery except at places that are down, and no job runs.
func (b *Bridge) Settled() bool { return b.out.idle() && b.jobs.Idle() }

// idle reports whether no worker runs and no queue of a place that is up has something due.
func (d *dispatcher) idle() bool {
	d.mu.Lock()
	for _, p := range d.places {
		if p.workers > 0 {
			d.mu.Unlock()
			return false
		}
	}
	d.mu.Unlock()
	for _, q := range d.b.spool.Dests() {
		if _, ok := q.Via(); !ok || !d.b.spool.DueNow(q) {
			continue
		}
		if _, _, down := d.state(q); !down {
			return false
		}
	}
	return true
}
