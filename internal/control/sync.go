package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"mochila/bridge"
	"mochila/spool"
	"mochila/transport"
	"mochila/transport/all"
)

// syncRounds is how often a folder is visited in one sync: what was read may bring receipts and reports to write.
const syncRounds = 3

// settleTime bounds how long a sync waits for local deliveries, whose reports then go on the same medium.
const settleTime = 20 * time.Second

// target is one thing to sync with.
type target struct {
	contact *bridge.Contact
	folder  bool
	asked   bool // for by name
}

// sync is POST /v1/sync: make the contacts, one after the other, and report each.
func (n *Node) sync(ctx context.Context, q SyncRequest, report func(SyncLine) error) error {
	defer n.engine(ctx)()
	if _, err := n.Collect(ctx); err != nil {
		n.log.Warn("maildrop", "err", err)
	}
	targets, err := n.targets(ctx, q.Targets)
	if err != nil {
		return err
	}
	for _, t := range targets {
		t.asked = len(q.Targets) > 0
		line := n.syncOne(ctx, t)
		if err := report(line); err != nil {
			return err
		}
	}
	n.settle(ctx)
	return nil
}

// settle waits until what arrived has been handed to the local mail system, or cannot be now.
func (n *Node) settle(ctx context.Context) {
	end := time.Now().Add(settleTime)
	for ctx.Err() == nil && time.Now().Before(end) && !n.bridge.Settled() {
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// syncOne makes one contact; a folder is visited again while there is something new to write.
func (n *Node) syncOne(ctx context.Context, t target) SyncLine {
	line := SyncLine{Carrier: bridge.PublicURL(t.contact.URL), Folder: t.folder, Node: t.contact.NodeName}
	n.takeJoined()
	before := n.delivered.Load()
	if t.contact.Node.IsZero() {
		return n.visit(ctx, t, line)
	}
	for round := 0; round < syncRounds; round++ {
		r := n.bridge.Meet(ctx, t.contact, t.asked)
		line.add(r.Stats)
		if r.Err != nil {
			line.Error, line.Hint = r.Err.Error(), n.adviceFor(t.contact.URL, r.Err)
			line.Absent, line.Full = errors.Is(r.Err, transport.ErrAbsent), errors.Is(r.Err, transport.ErrFull)
		}
		n.settle(ctx)
		line.Delivered = int(n.delivered.Load() - before)
		if r.Err != nil || !t.folder || r.Stats.PacketsIn == 0 && round > 0 || !n.bridge.DueFor(t.contact, t.asked) {
			break
		}
	}
	return line
}

// adviceFor says what would help: when a disk is full, this node's or the carrier's, whatever the carrier knows, or what is to be looked at.
func (n *Node) adviceFor(url string, err error) string {
	switch {
	case errors.Is(err, spool.ErrFull):
		return "make room on the disk of " + n.home.SpoolDir + "; what was not taken stays with the neighbour"
	case errors.Is(err, transport.ErrFull):
		return "what did not fit goes with the next contact; more room takes more at once"
	}
	if hint := hintOf(err, 0).Hint; hint != "" {
		return hint
	}
	return carrierAdvice(url, err.Error())
}

func (l *SyncLine) add(s transport.Stats) {
	l.PacketsIn += s.PacketsIn
	l.PacketsOut += s.PacketsOut
	l.BytesIn += s.BytesIn
	l.BytesOut += s.BytesOut
	l.Refused += s.Refused
	l.Incomplete = s.Incomplete
	l.Lying = s.Waiting
}

// visit reads what a stranger left on a folder; if it proves an invitation, it is a peer afterwards, and the contact
// is made.
func (n *Node) visit(ctx context.Context, t target, line SyncLine) SyncLine {
	carrier, err := all.Parse(t.contact.URL)
	if err != nil {
		line.Error = err.Error()
		return line
	}
	before := n.delivered.Load()
	link := carrier.Link(transport.LinkOptions{Self: n.keys.ID().Label(), Peer: t.contact.Label})
	st, err := n.bridge.Visit(ctx, link, t.contact.URL)
	line.add(st)
	if err != nil {
		line.Error = err.Error()
	}
	joined := n.takeJoined()
	if len(joined) == 0 {
		line.Node = "stranger " + t.contact.Label.String()
		return line
	}
	n.settle(ctx)
	line.Paired, line.Delivered = joined[0], int(n.delivered.Load()-before)
	for _, c := range n.contactsOf(joined[0]) {
		if c.URL != t.contact.URL {
			continue
		}
		next := n.syncOne(ctx, target{contact: c, folder: true})
		next.Paired = joined[0]
		next.Delivered += line.Delivered
		next.add(st)
		next.Refused = 0
		return next
	}
	return line
}

func (n *Node) takeJoined() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	j := n.joined
	n.joined = nil
	return j
}

// targets finds the contacts that names, URLs and folders stand for; none stands for all that may be made.
func (n *Node) targets(ctx context.Context, names []string) ([]target, error) {
	var out []target
	add := func(c *bridge.Contact) {
		f, _ := folderOf(c.URL)
		out = append(out, target{contact: c, folder: f != nil})
	}
	if len(names) == 0 {
		seen := map[string]bool{}
		for _, c := range n.bridge.Usual() {
			add(c)
			if f, _ := folderOf(c.URL); f != nil && !seen[c.URL] {
				seen[c.URL] = true
				out = append(out, n.strangers(ctx, f, c.URL)...)
			}
		}
		return out, nil
	}
	for _, name := range names {
		if cs := n.contactsOf(name); len(cs) > 0 {
			for _, c := range cs {
				add(c)
			}
			continue
		}
		isPeer := false
		for _, p := range n.bridge.Policy().Peers {
			isPeer = isPeer || p.Name == name
		}
		if isPeer {
			return nil, &Error{Message: fmt.Sprintf("no contact with %s can be made from here", name), Hint: fmt.Sprintf("add a [[contact]] for it, or name a carrier: mochila sync %s", "dir:/media/usb"), Exit: ExitUsage}
		}
		if !strings.ContainsAny(name, "/:.") {
			return nil, &Error{Message: fmt.Sprintf("there is no neighbour %q", name), Hint: "mochila peer list; a folder is written with a slash, as in ./stick", Exit: ExitUsage}
		}
		url, err := carrierURL(name)
		if err != nil {
			return nil, err
		}
		more, err := n.byURL(ctx, url)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// byURL finds everybody whom one carrier may serve: contacts configured with it, peers that left something there, and
// strangers with an invitation.
func (n *Node) byURL(ctx context.Context, url string) ([]target, error) {
	var out []target
	folder, err := folderOf(url)
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, c := range n.bridge.Policy().Contacts {
		if c.URL == url {
			out = append(out, target{contact: c, folder: folder != nil})
			have[c.NodeName] = true
		}
	}
	if folder == nil {
		if len(out) == 0 {
			return nil, &Error{Message: "no contact uses " + url, Hint: "add a [[contact]] with it", Exit: ExitUsage}
		}
		return out, nil
	}
	senders, err := transport.Senders(ctx, folder, n.keys.ID().Label())
	if err != nil {
		return nil, openError(url, err)
	}
	for _, l := range senders {
		for _, p := range n.bridge.Policy().Peers {
			if p.ID.Label() == l && !have[p.Name] {
				have[p.Name] = true
				out = append(out, target{folder: true, contact: &bridge.Contact{Node: p.ID, NodeName: p.Name, URL: url, When: bridge.When{Manual: true}}})
			}
		}
	}
	out = append(out, n.strangers(ctx, folder, url)...)
	if len(out) == 0 {
		// nobody wrote here yet: all neighbours that are reached by folders may be meant
		for _, p := range n.bridge.Policy().Peers {
			for _, c := range n.contactsOf(p.Name) {
				if f, _ := folderOf(c.URL); f != nil && !have[p.Name] {
					have[p.Name] = true
					out = append(out, target{folder: true, contact: &bridge.Contact{Node: p.ID, NodeName: p.Name, URL: url, When: bridge.When{Manual: true}}})
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, &Error{Message: "there is nothing for this node on " + url, Hint: "mochila invite NAME " + strings.TrimPrefix(url, "dir:") + " starts a pairing", Exit: ExitNoInput}
	}
	return out, nil
}

// strangers lists unknown nodes that left something for this node on a folder.
func (n *Node) strangers(ctx context.Context, f transport.Folder, url string) (out []target) {
	senders, err := transport.Senders(ctx, f, n.keys.ID().Label())
	if err != nil {
		return nil
	}
next:
	for _, l := range senders {
		for _, p := range n.bridge.Policy().Peers {
			if p.ID.Label() == l {
				continue next
			}
		}
		out = append(out, target{folder: true, contact: &bridge.Contact{Label: l, URL: url}})
	}
	return out
}
