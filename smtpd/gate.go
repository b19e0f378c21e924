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

	accounts map[string]*rate // mails of those who have logged in
}

// visitor is one client that is not trusted.
type visitor struct {
	open  int
	rate        // of connections
	mails rate  // begun
	wrong tally // passwords
}

// rate counts what happens within a minute.
type rate struct {
	since time.Time
	n     int
}

// more counts one and returns how many that makes.
func (r *rate) more(now time.Time) int {
	if now.Sub(r.since) >= time.Minute {
		r.since, r.n = now, 0
	}
	r.n++
	return r.n
}

// tally is what has happened within an hour after it began.
type tally struct {
	since time.Time
	n     int
}

func (t *tally) now(now time.Time) int {
	if now.Sub(t.since) >= time.Hour {
		t.since, t.n = now, 0
	}
	return t.n
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
		v = &visitor{}
		g.clients[key] = v
	}
	if v.more(now) > lim.ConnRate {
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

// mail counts a mail that a client begins, or returns the reply that refuses it. Clients inside RelayFrom are not
// counted, unless they have logged in.
func (g *gate) mail(now time.Time, c *conn) *envelope.Status {
	if c.trusted && c.account == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var r *rate
	if c.account != nil {
		if r = g.accounts[c.account.Name]; r == nil {
			r = &rate{}
			g.accounts[c.account.Name] = r
		}
	} else {
		r = &g.clients[c.key].mails
	}
	if r.more(now) > c.lim.MailRate {
		return envelope.NewStatus(450, "4.7.1", "too many mails within a minute, slow down")
	}
	return nil
}

// mayTry is the reply to AUTH of a client that has been wrong too often, nil for others.
func (g *gate) mayTry(now time.Time, key netip.Prefix, trusted bool, lim *Limits) *envelope.Status {
	if trusted {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.clients[key].wrong.now(now) >= lim.AuthFailures {
		return envelope.NewStatus(421, "4.7.0", "too many wrong passwords from you, come back in an hour")
	}
	return nil
}

// failed counts a wrong password.
func (g *gate) failed(now time.Time, key netip.Prefix, trusted bool) {
	if trusted {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.clients[key]
	v.wrong.now(now)
	if v.wrong.n == 0 {
		v.wrong.since = now
	}
	v.wrong.n++
}

// forget drops clients that are gone, and when that does not make room, the memory of their rates.
func (g *gate) forget(now time.Time) {
	if len(g.clients) < maxVisitors {
		return
	}
	for k, v := range g.clients {
		if v.open == 0 && now.Sub(v.since) >= time.Minute && v.wrong.now(now) == 0 {
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
