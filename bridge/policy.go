package bridge

import (
	"strings"
	"time"

	"mochila/bridge/jobs"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/internal/seal"
)

// Policy is the configuration as the engine needs it: an immutable value that a reload replaces whole.
type Policy struct {
	Name        string // this node's name
	HideClients bool   // Received lines do not tell which user or address a mail comes from that starts here
	Domain      string // appended to unqualified addresses, named in trace headers and DSNs
	Routes      route.Table
	Peers       []*Peer
	Contacts    []*Contact
	Limits      Limits
	BounceVia   string      // where DSNs go that no deliver or route rule takes; "" = dead letters
	Postmaster  string      // address behind <postmaster>; "" = postmaster@Domain
	Local       Local       // what becomes of addresses at the border
	Jobs        jobs.Policy // handlers and limits; names of nodes and retry times come from the rest
}

// Peer is a node whose card we hold, with what it may do here.
type Peer struct {
	Name     string
	ID       envelope.NodeID
	Card     *seal.Card
	SendAs   []route.Pattern  // sender patterns it may use; empty = any
	SendTo   []route.Pattern  // recipients it may reach beyond the domains delivered here; empty = none
	RelayTo  []envelope.Label // destinations it may relay to through this node
	RelayAny bool
	MaxBytes int64 // queued here on its behalf
	MaxCount int
}

// MayRelay reports whether the peer may hand us packets for dest.
func (p *Peer) MayRelay(dest envelope.Label) bool {
	if p.RelayAny {
		return true
	}
	for _, l := range p.RelayTo {
		if l == dest {
			return true
		}
	}
	return false
}

// Contact says how and when one neighbour is reached.
type Contact struct {
	Node      envelope.NodeID
	NodeName  string
	URL       string
	When      When
	Linger    time.Duration
	Overdue   time.Duration     // after this without a receipt a packet is sent again; 0 = by the kind of carrier
	MaxPacket int64             // packets above are not sent over it; 0 = any size
	MaxBytes  int64             // per contact; 0 = no limit
	Via       []envelope.NodeID // further nodes reached through this neighbour by default
	Paused    bool
	Label     envelope.Label // of a stranger on a folder; Node is zero then
}

// When is the timetable of a contact.
type When struct {
	Always  bool          // at once when something is due
	Every   time.Duration // and besides, or only, at this interval
	OnCall  bool          // they call us
	Manual  bool          // only when a person says so
	Windows []Window      // Always, but only inside these
	UTC     bool          // the windows are in UTC, not local time
}

// Window is a stretch of the week in local time, minutes from Monday 00:00, To excluded; From > To wraps around.
type Window struct{ From, To int }

// next is when a contact may begin: now, or when the next window opens.
func (w When) next(now time.Time) time.Time {
	if w.Open(now) {
		return now
	}
	for t := now.Truncate(time.Minute); t.Sub(now) < 8*24*time.Hour; t = t.Add(time.Minute) {
		if w.Open(t) && t.After(now) {
			return t
		}
	}
	return time.Time{}
}

// Open reports whether t lies inside one of the windows; no windows means always.
func (w When) Open(t time.Time) bool {
	if len(w.Windows) == 0 {
		return true
	}
	if w.UTC {
		t = t.UTC()
	}
	m := (int(t.Weekday())+6)%7*1440 + t.Hour()*60 + t.Minute()
	for _, x := range w.Windows {
		if x.From <= x.To && m >= x.From && m < x.To || x.From > x.To && (m >= x.From || m < x.To) {
			return true
		}
	}
	return false
}

// Limits are the numbers of docs/config.md; zero fields take the defaults.
type Limits struct {
	MessageSize int64         // bytes of content, 50 MiB
	Recipients  int           // per mail, 1000
	Lifetime    time.Duration // 60 days
	DelayNotice time.Duration // at least this long before a delay DSN, 4 h
	RetryMin    time.Duration // 1 min
	RetryMax    time.Duration // 4 h
	Hops        int           // nodes an envelope may pass, 20
	Passes      int           // times that one mail may enter this node, 5
	Deliveries  int           // concurrent deliveries to one place, 20
	BundleBytes int64         // small mail gathered into one bundle, 1 MiB
	UserCount   int           // mails that one local user or account may have in the queue; 0: no limit
	UserBytes   int64         // and their bytes
	ReturnGrace time.Duration // after expiry, how long a receipt may still come before the failure DSN: 14 days, 1 day for live carriers
}

// withDefaults fills the zero fields.
func (l Limits) withDefaults() Limits {
	set := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	if l.MessageSize == 0 {
		l.MessageSize = 50 << 20
	}
	if l.Recipients == 0 {
		l.Recipients = 1000
	}
	if l.Hops == 0 {
		l.Hops = 20
	}
	if l.Passes == 0 {
		l.Passes = 5
	}
	l.Hops = min(l.Hops, 255) // a byte on the wire
	if l.Deliveries == 0 {
		l.Deliveries = 20
	}
	if l.BundleBytes == 0 {
		l.BundleBytes = 1 << 20
	}
	set(&l.Lifetime, 60*24*time.Hour)
	set(&l.DelayNotice, 4*time.Hour)
	set(&l.RetryMin, time.Minute)
	set(&l.RetryMax, 4*time.Hour)
	set(&l.ReturnGrace, 14*24*time.Hour)
	return l
}

// peer returns the peer with that id, nil when there is none.
func (p *Policy) peer(id envelope.NodeID) *Peer {
	for _, x := range p.Peers {
		if x.ID == id {
			return x
		}
	}
	return nil
}

// label returns the peer with that label, nil when there is none.
func (p *Policy) label(l envelope.Label) *Peer {
	for _, x := range p.Peers {
		if x.ID.Label() == l {
			return x
		}
	}
	return nil
}

// nodeName is what people call a node: its local name, else its fingerprint.
func (p *Policy) nodeName(id envelope.NodeID) string {
	if x := p.peer(id); x != nil {
		return x.Name
	}
	return id.String()
}

// neighbour reports whether there is any contact with the node.
func (p *Policy) neighbour(id envelope.NodeID) bool {
	for _, c := range p.Contacts {
		if c.Node == id {
			return true
		}
	}
	return false
}

// paths returns the neighbours through which dest is reached, best first: itself when it is a neighbour, then the
// first hop of each route rule's path to it.
func (p *Policy) paths(dest envelope.NodeID) []envelope.NodeID {
	var out []envelope.NodeID
	add := func(n envelope.NodeID) {
		for _, x := range out {
			if x == n {
				return
			}
		}
		out = append(out, n)
	}
	for _, r := range p.Routes.Route {
		if r.Node == dest && len(r.Path) > 0 {
			add(r.Path[0])
		}
	}
	if p.neighbour(dest) {
		add(dest)
	}
	for _, c := range p.Contacts {
		for _, v := range c.Via {
			if v == dest {
				add(c.Node)
			}
		}
	}
	return out
}

// oneWay is how often a packet is sent towards a node from which nothing comes back; 0: receipts are waited for.
func (p *Policy) oneWay(dest envelope.NodeID) (repeat int) {
	for i := range p.Routes.Route {
		if r := &p.Routes.Route[i]; r.Node == dest {
			repeat = max(repeat, r.OneWay)
		}
	}
	return repeat
}

// OneWay reports whether nothing ever comes back from a node.
func (b *Bridge) OneWay(node envelope.NodeID) bool { return b.Policy().oneWay(node) > 0 }

// mute reports whether nothing ever comes from a neighbour: it is the first on a one-way path.
func (p *Policy) mute(node envelope.NodeID) bool {
	for i := range p.Routes.Route {
		if r := &p.Routes.Route[i]; r.OneWay > 0 && (len(r.Path) == 0 && r.Node == node || len(r.Path) > 0 && r.Path[0] == node) {
			return true
		}
	}
	return false
}

// lifetime is how long a mail lives by a rule: as it or the limits say.
func (p *Policy) lifetime(r *route.Rule) time.Duration {
	if r.Lifetime > 0 {
		return r.Lifetime
	}
	return p.Limits.Lifetime
}

// qualify completes an address without a domain.
func (p *Policy) qualify(addr string) string {
	if strings.EqualFold(addr, "postmaster") && p.Postmaster != "" {
		return p.Postmaster
	}
	if addr != "" && route.Domain(addr) == "" {
		return addr + "@" + p.Domain
	}
	return addr
}
