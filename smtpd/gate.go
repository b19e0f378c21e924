package smtpd

import (
	"net/netip"
	"sync"
	"time"

	"mochila/internal/envelope"
)

// gate counts connections and turns clients away that take too many.
type gate struct {
	mu      sync.Mutex
	open    int // all connections
	strange int // those of clients that are not trusted
	clients map[netip.Prefix]*visitor
}

// visitor is one client that is not trusted.
type visitor struct {
	open  int
	since time.Time // start of the minute that came counts
	came  int
}

// maxVisitors is when clients without a connection are forgotten.
const maxVisitors = 4096

// visitorKey is what counts as one client: an IPv4 address, an IPv6 /64.
func visitorKey(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil { // no address: all of them are one client
		return netip.Prefix{}
	}
	return p
}

// enter counts a new connection, or returns the reply that turns it away.
func (g *gate) enter(now time.Time, key netip.Prefix, trusted bool, lim *Limits) *envelope.Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open >= lim.Conns || !trusted && g.strange >= max(1, lim.Conns*3/4) {
		return envelope.NewStatus(421, "4.3.2", "too many connections")
	}
	if trusted {
		g.open++
		return nil
	}
	v := g.clients[key]
	if v == nil {
		g.forget(now)
		v = &visitor{since: now}
		g.clients[key] = v
	}
	if now.Sub(v.since) >= time.Minute {
		v.since, v.came = now, 0
	}
	if v.came++; v.came > lim.ConnRate {
		return envelope.NewStatus(421, "4.7.0", "you connect too often")
	}
	if v.open >= lim.ConnsPerClient {
		return envelope.NewStatus(421, "4.7.0", "too many connections from you")
	}
	g.open++
	g.strange++
	v.open++
	return nil
}

// leave ends what enter counted.
func (g *gate) leave(key netip.Prefix, trusted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if !trusted {
		g.strange--
		g.clients[key].open--
	}
}

// forget drops clients that are gone, and when that does not make room, the memory of their rates.
func (g *gate) forget(now time.Time) {
	if len(g.clients) < maxVisitors {
		return
	}
	for k, v := range g.clients {
		if v.open == 0 && now.Sub(v.since) >= time.Minute {
			delete(g.clients, k)
		}
	}
	if len(g.clients) < maxVisitors {
		return
	}
	for k, v := range g.clients {
		if v.open == 0 {
			delete(g.clients, k)
		}
	}
}
