package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"mochila/bridge"
	"mochila/bridge/jobs"
	"mochila/internal/envelope"
	"mochila/spool"
)

// printable makes text from a mail safe to show on a terminal: controls become \ooo.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			fmt.Fprintf(&b, "\\%03o", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// arrivalLayout is the time column of mailq.
const arrivalLayout = "Mon Jan _2 15:04:05"

// destName is a queue in the words of people.
func (n *Node) destName(d spool.Dest) string {
	if via, ok := d.Via(); ok {
		return via
	}
	if id, ok := d.Node(); ok {
		return n.nodeName(id)
	}
	if id, ok := jobs.Waits(d); ok {
		return "jobs of " + n.nodeName(id)
	}
	if d == jobs.ResultDest {
		return "results of jobs"
	}
	return "dead letters"
}

func (n *Node) nodeName(id envelope.NodeID) string {
	if id.IsZero() || id == n.bridge.ID() {
		return n.config().Name
	}
	for _, p := range n.bridge.Policy().Peers {
		if p.ID == id {
			return p.Name
		}
	}
	return id.String()
}

// list is one page of the queue.
func (n *Node) list(f queueFilter) (*QueueList, error) {
	if f.limit <= 0 || f.limit > 1000 {
		f.limit = 100
	}
	items, more, err := n.spool.List(f.query())
	if err != nil {
		return nil, err
	}
	l := &QueueList{More: more, Items: []QueueItem{}}
	words := n.words()
	for _, it := range items {
		l.Items = append(l.Items, words.queueItem(it))
		l.Bytes += it.BodySize
	}
	l.Count = len(items)
	if f.plain() {
		l.Count, l.Bytes, err = n.totals()
	}
	return l, err
}

// totals counts what is in the spool: legs stand for envelopes, which is right for all but mail to several places.
func (n *Node) totals() (count int, bytes int64, err error) {
	counts, err := n.spool.Counts()
	for i := range counts {
		if counts[i].Dest == jobs.ResultDest {
			continue
		}
		count += counts[i].Total()
		bytes += counts[i].Bytes
	}
	return count, bytes, err
}

// eachItem walks the queue page by page; the next page is read while fn works on one.
func (n *Node) eachItem(ctx context.Context, f queueFilter, fn func(QueueItem) error) error {
	f.limit = 500
	type page struct {
		items []*spool.Item
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	pages := make(chan page, 1)
	go func() {
		defer close(pages)
		for more := true; more && ctx.Err() == nil; {
			var p page
			p.items, more, p.err = n.spool.List(f.query())
			if more = more && p.err == nil && len(p.items) > 0; more {
				f.after = p.items[len(p.items)-1].Env.ID
			}
			pages <- p
		}
	}()
	defer func() { // the reader is gone before its spool may be closed
		cancel()
		for range pages {
		}
	}()
	words := n.words()
	for p := range pages {
		if p.err != nil {
			return p.err
		}
		for _, it := range p.items {
			if err := fn(words.queueItem(it)); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// resolve finds the envelope that an id, or a unique beginning of one, names.
func (n *Node) resolve(text string) (envelope.ID, error) {
	if id, err := envelope.ParseID(text); err == nil {
		return id, nil
	}
	ids, err := n.spool.FindPrefix(strings.ToUpper(text))
	switch {
	case err != nil:
		return envelope.ID{}, &Error{Message: err.Error(), Hint: "mochila queue list shows ids", Exit: ExitUsage}
	case len(ids) == 1:
		return ids[0], nil
	case len(ids) > 1:
		return envelope.ID{}, &Error{Message: fmt.Sprintf("%q is the beginning of %d ids", text, len(ids)), Hint: "give more of it", Exit: ExitUsage}
	}
	return envelope.ID{}, &Error{Message: fmt.Sprintf("no envelope %q in the spool or its trace", printable(text)), Hint: "mochila queue list shows what is there", Exit: ExitData}
}

// trace shows the life of one envelope.
func (n *Node) trace(text string) (*Trace, error) {
	id, err := n.resolve(text)
	if err != nil {
		return nil, err
	}
	it, done, err := n.spool.Find(id)
	if errors.Is(err, spool.ErrNotFound) {
		return nil, &Error{Message: fmt.Sprintf("no envelope %s in the spool or its trace", id), Hint: "it was never here, or ended longer ago than the trace is kept", Exit: ExitData}
	}
	if err != nil {
		return nil, err
	}
	words := n.words()
	t := &Trace{Item: words.queueItem(it), Done: done}
	if done {
		t.Item.QueueName, t.Item.Expires = "ended", time.Time{} // it is in no queue, and has no time left to lose
	}
	t.Events = append(t.Events, TraceEvent{At: it.Entered, What: "entered", Detail: "at " + n.config().Name + ", trust class " + it.Trust})
	for _, l := range it.Log {
		t.Events = append(t.Events, TraceEvent{At: l.At, What: l.What, Detail: l.Detail})
	}
	for _, o := range it.Outcomes {
		if o.Action.Final() {
			t.Final = append(t.Final, TraceFinal{Address: o.Addr, Action: o.Action.String(), Status: o.Status.String(), MTA: o.MTA, At: o.At})
		}
	}
	if !done {
		for k := range it.Legs {
			leg := &it.Legs[k]
			if leg.State == spool.Done {
				continue
			}
			line := words.dest(leg.Dest) + ": " + leg.State.String()
			w := words.waiting(leg)
			if leg.State == spool.Held {
				w = leg.Last.Text
			}
			if w != "" {
				line += ", " + w
			}
			if !leg.At.IsZero() {
				line += ", looked at again " + leg.At.Local().Format("2006-01-02 15:04")
			}
			t.Next = append(t.Next, line)
		}
		if !it.Env.Expires.IsZero() {
			t.Next = append(t.Next, "expires "+it.Env.Expires.Local().Format("2006-01-02 15:04"))
		}
	}
	return t, nil
}

// content opens the message of an envelope.
func (n *Node) content(text string) (io.ReadCloser, error) {
	id, err := n.resolve(text)
	if err != nil {
		return nil, err
	}
	r, err := n.spool.OpenBody(id)
	if err != nil {
		return nil, &Error{Message: fmt.Sprintf("content of %s: %v", id, err), Exit: ExitData}
	}
	return r, nil
}

// routeTest explains where mail to an address goes.
func (n *Node) routeTest(from, to string, size int64) *RouteTest {
	p := n.bridge.Policy()
	to = n.bridge.Qualify(to)
	t := &RouteTest{Address: to}
	for _, x := range p.Routes.Explain(from, to, size) {
		kind := "route"
		if x.Deliver {
			kind = "deliver"
		}
		t.Why = append(t.Why, fmt.Sprintf("[[%s]] %d to %s: %s", kind, x.Index+1, strings.Join(x.Rule.To, ", "), x.Why))
	}
	to, d, err := p.Place(from, to, size)
	switch {
	case err != nil:
		t.Result, t.Status = err.Error(), err
	case d.Deliver:
		t.OK = true
		t.Result = fmt.Sprintf("%s: delivered here via %s", to, d.Rule.Via)
	default:
		t.OK = true
		t.Result = fmt.Sprintf("%s: to node %s, next hop %s", to, d.Rule.NodeName, n.words().hops(d.Rule.Node))
		t.Next = n.nextContact(d.Rule.Node)
		if above := d.Rule.Summary.Above; above > 0 && (size == 0 || size > above) {
			t.Result += fmt.Sprintf("; above %d bytes a summary goes ahead, and the mail is held until a reader asks", above)
		}
	}
	return t
}

// nextContact says how and when the next contact towards a node comes.
func (n *Node) nextContact(node envelope.NodeID) string {
	hops := n.bridge.NextHops(node)
	for _, c := range n.bridge.Contacts() {
		for _, h := range hops {
			if c.Contact.Node != h {
				continue
			}
			s := "over " + c.Contact.URL + ", " + describeWhen(c.Contact.When)
			if c.Err != "" {
				s += " (last: " + c.Err + ")"
			}
			return s
		}
	}
	return "no contact is configured"
}

// describeWhen is a timetable in words.
func describeWhen(w bridge.When) string {
	switch {
	case w.OnCall:
		return "when they call us"
	case w.Manual:
		return "when mochila sync is typed"
	case len(w.Windows) > 0:
		return "inside its windows"
	case !w.Always && w.Every > 0:
		return "every " + w.Every.String()
	}
	return "as soon as it is there"
}
