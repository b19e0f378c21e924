package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// rescan is how often a folder is looked at without any hint: file system events do not cross mounts and hosts.
const rescan = 10 * time.Second

// idlePause is how long a contact that moved nothing is not made again: whatever made it start would start it again
// at once. Contacts that could not take what was due wait longer.
const idlePause = time.Second

// visitRest is how many times as long as a visit of a folder the pause behind it is, while there is something to do.
const visitRest = 4

// contactState is what the scheduler knows of one contact. Its fields belong to the bridge's mutex.
type contactState struct {
	contact *Contact
	running bool
	backoff time.Duration
	next    time.Time // not before
	last    time.Time // when the last contact ended
	ok      time.Time // when the last good one ended
	err     string
	poked   bool // the carrier says that something is there
	left    bool // live: the end of the last contact left packets behind that nothing was said of
	unheard int  // calls in a row that were taken and not answered

	returned   string // why a letter came back last
	returnedAt time.Time

	absent  bool // the folder was not there at the last look
	stats   transport.Stats
	unwatch context.CancelFunc
	link    transport.Link
}

// ContactView is one contact as status shows it.
type ContactView struct {
	Contact Contact
	Running bool
	Last    time.Time // end of the last contact
	OK      time.Time // end of the last good one
	Next    time.Time // not tried before; zero = when something is due
	Err     string
	Stats   transport.Stats // of the last contact
}

func contactKey(c *Contact) string { return c.Node.Text() + " " + c.Linger.String() + " " + c.URL }

// kickContacts makes the scheduler look again, and every open desk.
func (b *Bridge) kickContacts() {
	b.mu.Lock()
	for d := range b.desks {
		d.kick()
	}
	b.mu.Unlock()
	select {
	case b.kicked <- struct{}{}:
	default:
	}
}

// state returns the record of a contact of the present policy. The mutex is held.
func (b *Bridge) state(c *Contact) *contactState {
	k := contactKey(c)
	s := b.contacts[k]
	if s == nil {
		s = &contactState{contact: c}
		b.contacts[k] = s
	}
	s.contact = c
	return s
}

// runContacts is the scheduler: one goroutine decides which contacts to make, each contact has one of its own.
func (b *Bridge) runContacts(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.kicked:
		case <-timer.C:
		}
		wait := time.Minute
		now := b.now()
		b.forgetContacts(now)
		// In any order: where several neighbours lead to one node, the first takes what is due, and it must not always be
		// the same, which may be dead.
		contacts := slices.Clone(b.Policy().Contacts)
		rand.Shuffle(len(contacts), func(i, j int) { contacts[i], contacts[j] = contacts[j], contacts[i] })
		for _, c := range contacts {
			start, again := b.shouldStart(ctx, c, now)
			if start {
				wg.Add(1)
				go func() {
					defer wg.Done()
					b.contactOnce(ctx, c, false)
					b.kickContacts()
				}()
			}
			if again > 0 && again < wait {
				wait = again
			}
		}
		timer.Reset(wait)
	}
}

// forgetContacts drops what is known of contacts that are configured no more, and ends their watches.
func (b *Bridge) forgetContacts(now time.Time) {
	live := map[string]bool{}
	for _, c := range b.Policy().Contacts {
		live[contactKey(c)] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, s := range b.contacts {
		if live[k] {
			continue
		}
		if s.unwatch != nil {
			s.unwatch()
			s.unwatch = nil
		}
		if !s.running && now.Sub(s.last) > time.Minute { // one of a sync that goes on is kept
			delete(b.contacts, k)
		}
	}
}

// shouldStart decides whether a contact begins now, and when to look again.
func (b *Bridge) shouldStart(ctx context.Context, c *Contact, now time.Time) (start bool, again time.Duration) {
	if c.When.Manual || c.When.OnCall || c.Paused || c.URL == "" || b.opt.NoContacts {
		return false, 0
	}
	b.mu.Lock()
	s := b.state(c)
	if s.running {
		b.mu.Unlock()
		return false, 0
	}
	if s.unwatch == nil {
		b.watch(ctx, s)
	}
	next, last, poked := s.next, s.last, s.poked || s.left
	b.mu.Unlock()
	if !c.When.Open(now) {
		return false, time.Minute
	}
	if cut := b.errors.until(c.Node, now); isLive(c.URL) && cut.After(next) {
		next = cut
	}
	if next.After(now) {
		return false, next.Sub(now)
	}
	interval := c.When.Every
	if isLocal(c.URL) && (interval == 0 || c.When.Always && interval > rescan) {
		interval = rescan
	}
	if calls := b.callsFor(c, now); calls > 0 && (interval == 0 || calls < interval) {
		interval = calls
	}
	switch {
	case poked:
	case interval > 0 && now.Sub(last) >= interval:
	case (c.When.Always || len(c.When.Windows) > 0) && b.DueFor(c, false):
	default:
		if interval > 0 {
			return false, max(interval-now.Sub(last), time.Millisecond)
		}
		return false, 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.running {
		return false, 0
	}
	s.running, s.poked = true, false
	return true, 0
}

// callsFor is the interval of contacts while somebody waits for the result of a job beyond c: where only this side can
// call, the result waits there for the next call. It is a quarter of the time that the job has taken so far, and at
// least a second; 0 when nobody waits, or where a call is no small thing.
func (b *Bridge) callsFor(c *Contact, now time.Time) (interval time.Duration) {
	switch scheme, _, _ := strings.Cut(c.URL, ":"); scheme {
	case "tcp", "unix", "ssh":
	default:
		return 0
	}
	for _, a := range b.jobs.Awaited() {
		if age := max(now.Sub(a.Entered)/4, time.Second); b.leads(c, a.Peer) && (interval == 0 || age < interval) {
			interval = age
		}
	}
	return interval
}

// leads reports whether a contact is a way to a node.
func (b *Bridge) leads(c *Contact, n envelope.NodeID) bool {
	return n == c.Node || slices.Contains(b.Policy().paths(n), c.Node)
}

// watch listens to the hints of a carrier that has some. The mutex is held.
func (b *Bridge) watch(ctx context.Context, s *contactState) {
	s.unwatch = func() {}
	if s.link == nil {
		l, err := b.openLink(s.contact)
		if err != nil {
			return
		}
		s.link = l
	}
	l := s.link
	w, ok := l.(interface {
		Watch(context.Context) <-chan struct{}
	})
	if !ok {
		return
	}
	var wctx context.Context
	wctx, s.unwatch = context.WithCancel(ctx)
	hints := w.Watch(wctx)
	if hints == nil {
		return
	}
	b.background.Add(1)
	go func() {
		defer b.background.Done()
		for {
			select {
			case <-wctx.Done():
				return
			case _, ok := <-hints:
				if !ok {
					return
				}
				b.mu.Lock()
				s.poked = true
				if s.absent {
					s.next = time.Time{} // perhaps it has just been plugged in
				}
				b.mu.Unlock()
				b.kickContacts()
			}
		}
	}()
}

// DueFor reports whether there is something to hand over in this contact: packets, or receipts that are owed. asked: as in
// Meet.
func (b *Bridge) DueFor(c *Contact, asked bool) bool {
	now := b.now()
	for _, q := range b.spool.Dests() {
		if n, ok := q.Node(); ok && b.leads(c, n) && b.spool.DueNow(q) && (asked || !b.givesWay(c.Node, n, q, now)) {
			return true
		}
	}
	for n := range b.ses.owedPeers() {
		if b.leads(c, n) {
			return true
		}
	}
	for _, n := range b.jobs.Due(now) {
		if b.leads(c, n) {
			return true
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := range b.pending {
		if b.leads(c, n) {
			return true
		}
	}
	return false
}

func (b *Bridge) openLink(c *Contact) (transport.Link, error) {
	if b.opt.Link != nil {
		return b.opt.Link(c)
	}
	carrier, err := transport.Parse(b.opt.Schemes, c.URL)
	if err != nil {
		return nil, err
	}
	o := b.opt.Stream
	o.Linger = c.Linger
	return carrier.Link(transport.LinkOptions{Self: b.ID().Label(), Peer: c.Node.Label(), Stream: o}), nil
}

// link returns the link of a contact, which lives as long as the contact is configured.
func (b *Bridge) link(c *Contact) (transport.Link, error) {
	b.mu.Lock()
	s := b.state(c)
	l := s.link
	b.mu.Unlock()
	if l != nil {
		return l, nil
	}
	l, err := b.openLink(c)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.link == nil {
		s.link = l
	}
	return s.link, nil
}

// noteHail counts calls that were taken and not answered. The neighbour may have lost the sessions that it knew this node
// by: the next greeting then carries an offer.
func (b *Bridge) noteHail(c *Contact, d *desk, err error) {
	if !d.live {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.state(c)
	switch {
	case d.greeted:
		s.unheard = 0
	case err != nil && !errors.Is(err, transport.ErrAbsent):
		s.unheard++
	}
}

// maxUnheard is how many calls in a row may go unanswered before a greeting carries an offer.
const maxUnheard = 2

// unheard reports whether so many calls went unanswered.
func (b *Bridge) unheard(c *Contact) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.contacts[contactKey(c)]
	return s != nil && s.unheard >= maxUnheard
}

// contactOnce makes one contact and notes how it went; asked is one that somebody asked for.
func (b *Bridge) contactOnce(ctx context.Context, c *Contact, asked bool) (transport.Stats, int, error) {
	l, err := b.link(c)
	var st transport.Stats
	var took time.Duration
	envelopes, late, stuck := 0, false, false
	if err == nil {
		d := b.openDesk(c)
		d.asked = asked
		began := b.now()
		st, err = l.Run(ctx, d)
		took = b.now().Sub(began)
		envelopes, late, stuck = d.close(st.Late)
		b.noteHail(c, d, err)
	}
	now := b.now()
	limits := b.Policy().Limits
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.state(c)
	s.running, s.last, s.stats, s.absent = false, now, st, false
	switch {
	case err == nil:
		s.ok, s.err, s.backoff, s.next, s.left = now, "", 0, time.Time{}, false
		if isLive(c.URL) || st.PacketsIn > 0 {
			b.heard[c.Node] = now
		}
		switch {
		case stuck && isLocal(c.URL):
			s.next = now.Add(rescan)
		case stuck:
			s.next = now.Add(limits.RetryMin)
		case st.PacketsIn+st.PacketsOut == 0 && !late:
			s.next = now.Add(idlePause)
		case late && isLive(c.URL):
			s.left = true // it goes at once
		case !isLive(c.URL):
			// what becomes due one by one gathers, and a folder that is long to read leaves time for other work
			s.next = now.Add(min(visitRest*took, 2*time.Second))
		}
	case ctx.Err() != nil:
	case errors.Is(err, transport.ErrAbsent) && isLocal(c.URL):
		s.err, s.absent, s.next = err.Error(), true, now.Add(rescan)
	default:
		text := withAdvice(err)
		if s.err != text {
			b.log.Warn("contact failed", "node", c.NodeName, "carrier", PublicURL(c.URL), "err", esc(text))
		}
		s.err, s.left = text, s.left || isLive(c.URL) && (late || stuck)
		if s.backoff = min(max(2*s.backoff, limits.RetryMin), limits.RetryMax); st.PacketsIn+st.PacketsOut > 0 {
			s.backoff = idlePause // a line that breaks, but carries
		}
		s.next = now.Add(s.backoff)
	}
	return st, envelopes, err
}

// withAdvice is an error as a person reads it in status and log: with what would help, if a carrier knows that.
func withAdvice(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return err.Error() + " (" + h.Hint() + ")"
	}
	return err.Error()
}

// SyncResult is how one contact of Sync went.
type SyncResult struct {
	Node      string
	Carrier   string
	Stats     transport.Stats
	Envelopes int // of ours that went along
	Waiting   int // of ours that still wait for this neighbour
	Err       error
}

// Sync makes the given contacts now, one after the other, whatever their timetable says; with none given, the usual ones.
// A contact that is under way already is waited for. ctx ends it after a contact.
func (b *Bridge) Sync(ctx context.Context, contacts []*Contact) []SyncResult {
	asked := len(contacts) > 0
	if !asked {
		contacts = b.Usual()
	}
	var out []SyncResult
	for _, c := range contacts {
		out = append(out, b.Meet(ctx, c, asked))
		if ctx.Err() != nil {
			break
		}
	}
	return out
}

// Usual lists the contacts of a sync that names none: all that are not on call nor paused. Those that lead to the same node
// take turns.
func (b *Bridge) Usual() (contacts []*Contact) {
	for _, c := range b.Policy().Contacts {
		if !c.When.OnCall && !c.Paused && c.URL != "" {
			contacts = append(contacts, c)
		}
	}
	b.takeTurns(contacts)
	return contacts
}

// Meet makes one contact now, when one that is under way has ended. asked: somebody asked for just this one, so that it
// gives way to no other (ways.go).
func (b *Bridge) Meet(ctx context.Context, c *Contact, asked bool) (r SyncResult) {
	r = SyncResult{Node: c.NodeName, Carrier: PublicURL(c.URL)}
	for !b.begin(c) {
		select {
		case <-ctx.Done():
			r.Err = ctx.Err()
			return r
		case <-time.After(50 * time.Millisecond):
		}
	}
	r.Stats, r.Envelopes, r.Err = b.contactOnce(ctx, c, asked)
	counts, err := b.spool.Counts()
	if err != nil && r.Err == nil {
		r.Err = err
	}
	for _, q := range counts {
		if node, ok := q.Dest.Node(); ok && node == c.Node {
			r.Waiting += q.States[spool.Due] + q.States[spool.Deferred] + q.States[spool.Sealed] + q.States[spool.Travelling]
		}
	}
	return r
}

// begin claims a contact.
func (b *Bridge) begin(c *Contact) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.state(c)
	if s.running {
		return false
	}
	s.running = true
	return true
}

// Contacts shows every contact with what is known of it.
func (b *Bridge) Contacts() []ContactView {
	p := b.Policy()
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []ContactView
	for _, c := range p.Contacts {
		s := b.state(c)
		v := ContactView{Contact: *c, Running: s.running, Last: s.last, OK: s.ok, Next: s.next, Err: s.err, Stats: s.stats}
		if v.Err == "" {
			v.Err = b.returnedText(s)
		}
		out = append(out, v)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Contact.NodeName < out[j].Contact.NodeName })
	return out
}

// Flush makes everything due now: queues of places that are down, deferred mail, contacts in back-off.
func (b *Bridge) Flush() error { return b.FlushTo("") }

// FlushTo is Flush for what goes to one destination, and for the contacts that lead there; "" stands for all.
func (b *Bridge) FlushTo(dest spool.Dest) error {
	var hops []envelope.NodeID
	if node, ok := dest.Node(); ok {
		hops = b.NextHops(node)
	}
	b.mu.Lock()
	for _, s := range b.contacts {
		if dest == "" || slices.Contains(hops, s.contact.Node) {
			s.backoff, s.next = 0, time.Time{}
		}
	}
	b.mu.Unlock()
	var after envelope.ID
	for more := true; more; {
		var items []*spool.Item
		var err error
		if items, more, err = b.spool.List(spool.Query{Dest: dest, State: spool.Deferred, After: after, Limit: 500}); err != nil {
			return err
		}
		if len(items) == 0 {
			break
		}
		after = items[len(items)-1].Env.ID
		if err := b.wakeItems(items, dest); err != nil {
			return fmt.Errorf("wake deferred mail: %w", err)
		}
	}
	b.out.kickFor(dest)
	b.kickContacts()
	return nil
}

// wakeItems makes the deferred legs of items due, in one commit: those to dest, or all where that is "".
func (b *Bridge) wakeItems(items []*spool.Item, dest spool.Dest) error {
	now := b.now()
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for _, it := range items {
			item, err := tx.Item(it.Env.ID)
			if errors.Is(err, spool.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if m := item.Env.Mail; m != nil && m.HoldUntil.After(now) {
				continue // its sender wants it to wait (RFC 4865)
			}
			for k := range item.Legs {
				if leg := &item.Legs[k]; leg.State == spool.Deferred && (dest == "" || leg.Dest == dest) {
					leg.State, leg.At = spool.Due, time.Time{}
				}
			}
			if err := tx.Save(item); err != nil {
				return err
			}
		}
		return nil
	})
}
