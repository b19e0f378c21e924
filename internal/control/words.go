package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// words finds names and reasons for one answer. Each is looked up once: a queue of a hundred thousand has few of them.
type words struct {
	n       *Node
	nodes   map[envelope.NodeID]string
	dests   map[spool.Dest]string
	reasons map[place]string
	plans   map[spool.Dest]plan
}

// plan is what the timetable says of a destination.
type plan struct {
	via  string    // the neighbours on the way
	next time.Time // of the next contact with one of them
	here bool      // the destination is one of them
}

// place is all that the reason for a leg's waiting depends on.
type place struct {
	dest    spool.Dest
	state   spool.State
	carrier string
}

func (n *Node) words() *words {
	return &words{n: n, nodes: map[envelope.NodeID]string{}, dests: map[spool.Dest]string{}, reasons: map[place]string{}, plans: map[spool.Dest]plan{}}
}

// once is the value of a key, made when it is asked for first.
func once[K comparable](m map[K]string, key K, make func(K) string) string {
	v, ok := m[key]
	if !ok {
		v = make(key)
		m[key] = v
	}
	return v
}

func (w *words) node(id envelope.NodeID) string { return once(w.nodes, id, w.n.nodeName) }
func (w *words) dest(d spool.Dest) string       { return once(w.dests, d, w.n.destName) }

// hops names the neighbours through which a node is reached.
func (w *words) hops(node envelope.NodeID) string {
	hops := w.n.bridge.NextHops(node)
	if len(hops) == 0 {
		return w.node(node) + ", to which no contact leads"
	}
	var names []string
	for _, h := range hops {
		names = append(names, w.node(h))
	}
	return strings.Join(names, " or ")
}

// down says why a delivery place is not tried now, "" when it is up.
func (w *words) down(d spool.Dest) string {
	s, until, down := w.n.bridge.PlaceDown(d)
	if !down {
		return ""
	}
	via, _ := d.Via()
	return fmt.Sprintf("%s; %s is tried again at %s", s, via, until.Format("15:04:05"))
}

// plan looks up the timetable.
func (w *words) plan(d spool.Dest) plan {
	if p, ok := w.plans[d]; ok {
		return p
	}
	var p plan
	if node, ok := d.Node(); ok {
		p.via = w.hops(node)
		hops := w.n.bridge.NextHops(node)
		p.here = slices.Contains(hops, node)
		for _, c := range w.n.bridge.Contacts() {
			if !c.Next.IsZero() && slices.Contains(hops, c.Contact.Node) && (p.next.IsZero() || c.Next.Before(p.next)) {
				p.next = c.Next
			}
		}
	}
	w.plans[d] = p
	return p
}

// outlook says when a leg will move on, as far as that is known here.
func (w *words) outlook(leg *spool.Leg, l *QueueLeg) {
	p := w.plan(leg.Dest)
	l.Via = p.via
	switch leg.State {
	case spool.Due, spool.Deferred, spool.Sealed:
		l.NextContact = p.next
		if p.here {
			l.Expected = p.next
		}
	}
	if leg.State == spool.Deferred && l.NextContact.Before(leg.At) {
		l.NextContact, l.Expected = time.Time{}, time.Time{} // it is not due by then
	}
}

// queueItem is an item in the API's terms.
func (w *words) queueItem(it *spool.Item) QueueItem {
	e := it.Env
	q := QueueItem{QueueName: "deferred", QueueID: e.ID.String(), ArrivalTime: it.Entered.Unix(), MessageSize: it.BodySize,
		Origin: w.node(e.Origin), Expires: e.Expires, Priority: e.Priority, Recipients: []QueueRecipient{}}
	switch e.Kind {
	case envelope.KindMail:
		q.Kind = "mail"
	case envelope.KindReport:
		q.Kind = "report"
	case envelope.KindTransit:
		q.Kind = "transit"
	case envelope.KindJob:
		q.Kind = "job"
	case envelope.KindResult:
		q.Kind = "result"
	default:
		q.Kind = fmt.Sprintf("kind %d", e.Kind)
	}
	var legOf []int // leg of each recipient, plus one
	if e.Mail != nil {
		legOf = make([]int, len(e.Mail.Recipients))
	}
	for k := range it.Legs {
		leg := &it.Legs[k]
		l := QueueLeg{Dest: w.dest(leg.Dest), State: leg.State.String(), At: leg.At, Attempts: leg.Attempts, Carrier: leg.Carrier}
		if leg.Last.Code != 0 {
			l.Reason = leg.Last.String()
		} else if leg.State == spool.Held {
			l.Reason = leg.Last.Text
		}
		if l.Reason == "" && it.Problem != "" {
			l.Reason = it.Problem
		}
		if l.Reason == "" {
			l.Reason = w.waiting(leg)
		}
		if leg.State != spool.Done {
			w.outlook(leg, &l)
		}
		q.Legs = append(q.Legs, l)
		for _, r := range leg.Rcpts {
			if r < len(legOf) {
				legOf[r] = k + 1
			}
		}
		switch leg.State {
		case spool.Held:
			q.QueueName = "hold"
		case spool.Due:
			_, delivery := leg.Dest.Via()
			down := delivery && w.waiting(leg) != "" // the whole place rests: Postfix would call it deferred
			if q.QueueName != "hold" && !down {
				q.QueueName = "active"
			}
		}
	}
	if e.Mail != nil {
		q.Sender = e.Mail.Sender
		if strings.HasPrefix(it.Trust, "uid:") {
			q.UID = e.Mail.Client.UID
		}
		for i := range e.Mail.Recipients {
			r := QueueRecipient{Address: e.Mail.Recipients[i].Addr}
			if i < len(it.Outcomes) && it.Outcomes[i].Action.Final() {
				r.State = it.Outcomes[i].Action.String()
			} else if k := legOf[i] - 1; k >= 0 {
				r.State, r.DelayReason, r.Link = q.Legs[k].State, q.Legs[k].Reason, q.Legs[k].Dest
			}
			if k := legOf[i] - 1; k >= 0 && r.State == "relayed" && it.Legs[k].State == spool.Sealed { // on a one-way path
				r.DelayReason, r.Link = it.Outcomes[i].Status.Text, q.Legs[k].Dest
			} else if r.State == "delivered" || r.State == "failed" || r.State == "relayed" {
				continue // mailq shows who still waits
			}
			q.Recipients = append(q.Recipients, r)
		}
	}
	return q
}

// waiting says in words what a leg waits for.
func (w *words) waiting(leg *spool.Leg) string {
	return once(w.reasons, place{leg.Dest, leg.State, leg.Carrier}, w.reason)
}

func (w *words) reason(p place) string {
	if _, ok := p.dest.Via(); ok {
		return w.down(p.dest)
	}
	node, ok := p.dest.Node()
	if !ok {
		return ""
	}
	switch p.state {
	case spool.Due:
		return "waiting for a contact with " + w.hops(node)
	case spool.Sealed:
		if w.n.bridge.OneWay(node) {
			return "on " + p.carrier + ", a one-way path: no receipt comes back"
		}
		return "on " + p.carrier + ", no receipt of " + w.node(node) + " yet"
	case spool.Travelling:
		return "in the next node's custody, no receipt of " + w.node(node) + " yet"
	case spool.Arrived:
		return "arrived at " + w.node(node) + ", not delivered there yet"
	}
	return ""
}
