package bridge

import (
	"fmt"
	"io"
	"slices"
	"time"

	"mochila/bridge/bounce"
	"mochila/internal/envelope"
	"mochila/spool"
)

// notices makes the DSNs that fresh outcomes of one of our own mails call for. grave lists the failed recipients of
// which nobody can be told: their sender is null.
func (b *Bridge) notices(item *spool.Item, fresh []int, dsnTaken map[int]bool) (adds []*addition, grave []int, err error) {
	var tell []envelope.Outcome
	for _, i := range fresh {
		o := item.Outcomes[i]
		if o.Action == envelope.ActionFailed && (item.Env.Mail.Sender == "" || b.unasked(item, i) || b.Policy().archives(o.Addr)) {
			grave = append(grave, i)
			continue
		}
		if o.Action != envelope.ActionFailed && o.Action != envelope.ActionRelayed && dsnTaken[i] {
			continue // the next system took over the duty to tell (RFC 3461 section 5.2.2)
		}
		if bounce.Wanted(item.Env, i, o.Action) {
			tell = append(tell, o)
		}
	}
	if len(tell) == 0 {
		return nil, grave, nil
	}
	a, err := b.notice(item, tell, time.Time{})
	if err != nil {
		return nil, nil, err
	}
	return []*addition{a}, grave, nil
}

// unasked reports whether no person waits for news of a recipient: the mail was sent by a program that says so, and did not
// ask for reports either.
func (b *Bridge) unasked(item *spool.Item, i int) bool {
	return item.Env.Mail.Recipients[i].Notify == 0 && bounce.AutoSubmitted(b.headerOf(item))
}

// headerOf reads the header of an own mail, its first 64 KiB at most.
func (b *Bridge) headerOf(item *spool.Item) []byte {
	if item.Gone {
		return item.Header
	}
	r, err := b.spool.OpenBody(item.Env.ID)
	if err != nil {
		return item.Header
	}
	defer r.Close()
	head, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return nil
	}
	return bounce.HeaderOf(head)
}

// notice makes one DSN about some recipients of one of our own mails.
func (b *Bridge) notice(item *spool.Item, tell []envelope.Outcome, until time.Time) (*addition, error) {
	p := b.Policy()
	now := b.now()
	id := envelope.NewID(now)
	// the outcomes are told in the words of the address the sender used
	mail, content := bounce.Compose(bounce.Notice{
		ID: id, MTA: p.Domain, Node: p.Name, From: "MAILER-DAEMON@" + p.Domain,
		Original: item.Env, Outcomes: tell, Until: until, Now: now,
		Content: func() (io.ReadCloser, error) { return b.spool.OpenBody(item.Env.ID) },
		Header:  item.Header,
		Explain: b.explain(item, slices.ContainsFunc(tell, func(o envelope.Outcome) bool { return !o.Action.Final() })),
	})
	a, err := b.ownNotice(id, mail, content, item.Env.ID, now)
	if err != nil {
		return nil, err
	}
	leg := &a.item.Legs[0]
	if at := b.gather.wait(mail.Recipients[0].Addr, tell, now); !at.IsZero() && leg.State == spool.Due {
		leg.State, leg.At, leg.Last.Text = spool.Deferred, at, gathered
	}
	return a, nil
}

// ownNotice makes the item of a notification that this node has written.
func (b *Bridge) ownNotice(id envelope.ID, mail *envelope.Mail, content []byte, parent envelope.ID, now time.Time) (*addition, error) {
	p := b.Policy()
	body := b.spool.NewBody()
	if _, err := body.Write(content); err != nil {
		body.Discard()
		return nil, err
	}
	if err := body.Finish(); err != nil {
		body.Discard()
		return nil, err
	}
	env := &envelope.Envelope{ID: id, Origin: b.ID(), Kind: envelope.KindMail, Created: now, Mail: mail, Size: body.Size(), Sum: body.Sum(),
		Expires: now.Add(p.Limits.Lifetime)}
	mail.Client.Proto = "local"
	next := &spool.Item{Env: env, Trust: "control", Entered: now, Parent: parent, Outcomes: make([]envelope.Outcome, len(mail.Recipients))}
	var all []int
	for i := range mail.Recipients {
		all = append(all, i)
		next.Outcomes[i].Addr = mail.Recipients[i].Addr
	}
	next.Legs = []spool.Leg{{Dest: b.bounceDest(mail.Recipients[0].Addr, env.Size), Rcpts: all, State: spool.Due}}
	if next.Legs[0].Dest == spool.DeadDest {
		next.Legs[0].State = spool.Held
		next.Legs[0].Last = envelope.Status{Code: 550, Enhanced: "5.1.2", Text: "no way back to the sender: no deliver or route rule takes it and [bounce] via is not set"}
		next.AddLog(now, "dead letter", "no way back to the sender")
		b.log.Warn(fmt.Sprintf("%s: to=<%s>, dead letter: no deliver or route rule takes the notification, and [bounce] via is not set", id, esc(mail.Recipients[0].Addr)))
	}
	return &addition{item: next, body: body}, nil
}

// bounceDest is where a DSN for addr leaves: a deliver rule, else a route, else [bounce] via, else the dead letters.
func (b *Bridge) bounceDest(addr string, size int64) spool.Dest {
	p := b.Policy()
	to, d, err := p.place("", addr, size, false)
	switch {
	case err == nil && to != addr:
		return spool.ViaDest(viaAliases) // it has another name here
	case err == nil && d.Deliver:
		return spool.ViaDest(d.Rule.Via)
	case err == nil:
		return spool.NodeDest(d.Rule.Node)
	case p.BounceVia != "":
		return spool.ViaDest(p.BounceVia)
	}
	return spool.DeadDest
}

// explain says in plain lines where a mail was last seen, and when it goes on.
func (b *Bridge) explain(item *spool.Item, on bool) []string {
	var out []string
	p := b.Policy()
	for i := range item.Legs {
		n, ok := item.Legs[i].Dest.Node()
		if !ok {
			continue
		}
		line := "The way: node " + p.nodeName(n)
		if item.Legs[i].Carrier != "" {
			line += ", last handed to " + item.Legs[i].Carrier
		}
		if heard := b.Heard(n); heard.IsZero() {
			line += "; nothing was ever heard of it."
		} else {
			line += "; last heard of " + heard.UTC().Format("2006-01-02 15:04 UTC") + "."
		}
		if next := b.nextContact(n); on && next != "" && item.Legs[i].State != spool.Done {
			line += " " + next
		}
		out = append(out, line)
	}
	return out
}

// nextContact says for people when mail for a node may go on, by the contacts on the way there.
func (b *Bridge) nextContact(node envelope.NodeID) string {
	p, now := b.Policy(), b.now()
	var soonest time.Time
	words := ""
	for _, c := range p.Contacts {
		if !slices.Contains(p.paths(node), c.Node) || c.Paused {
			continue
		}
		switch at := c.When.next(now); {
		case isLocal(c.URL) && c.When.Every > 0:
			words = "A courier comes about every " + days(c.When.Every) + "."
		case isLocal(c.URL):
			words = "It goes on when the medium is there again."
		case c.When.OnCall:
			words = "It goes on when that node, or the one before it, calls."
		case c.When.Manual:
			words = "It goes on when an operator makes the contact."
		case at.After(now) && (soonest.IsZero() || at.Before(soonest)):
			soonest = at
		case !at.After(now):
			return "It is tried again and again."
		}
	}
	if !soonest.IsZero() {
		return "The next contact is at " + soonest.UTC().Format("2006-01-02 15:04 UTC") + "."
	}
	return words
}

// delayScan is how far the hourly look for delayed mail has come. It belongs to the timers.
type delayScan struct {
	under bool
	after envelope.ID
}

// delayChunk is how many items one step of the look takes, that a long queue does not keep the timers from their work.
const delayChunk = 10000

// delayNotices goes on with the look for mail that waits longer than its contact usually takes: its sender is told,
// once a mail.
func (b *Bridge) delayNotices(now time.Time) {
	d := &b.delays
	youngest := now.Add(-b.Policy().Limits.DelayNotice)
	for n := 0; d.under && n < delayChunk && !b.clock.suspect(); {
		items, more, err := b.spool.List(spool.Query{After: d.after, Limit: 500})
		if err != nil {
			b.log.Error("look for delayed mail", "err", err)
			return
		}
		n += len(items)
		d.under = more
		for _, it := range items {
			d.after = it.Env.ID
			if it.Env.Kind != envelope.KindMail || !b.own(it.Env) {
				continue
			}
			if it.Entered.After(youngest) && !missed(it, now) {
				continue
			}
			if it.Delayed || it.Env.Mail.Sender == "" {
				continue
			}
			if err := b.delayed(it, now); err != nil {
				b.log.Error("delay notice", "id", d.after.String(), "err", err)
			}
		}
	}
}

// missed reports whether the time is over by which a mail was to be delivered, or its sender told (RFC 2852, mode N).
func missed(it *spool.Item, now time.Time) bool {
	m := it.Env.Mail
	return m != nil && m.By != nil && !m.By.Return && !now.Before(m.By.Deadline)
}

// delayed sends the delay notice of one mail if its time has come.
func (b *Bridge) delayed(it *spool.Item, now time.Time) error {
	var tell []envelope.Outcome
	silent := false // some recipient would be told of, if a person had sent the mail
	for k := range it.Legs {
		leg := &it.Legs[k]
		held := heldForReader(leg)
		switch leg.State {
		case spool.Due, spool.Deferred, spool.Sealed, spool.Travelling:
		default:
			if !held {
				continue
			}
		}
		if node, ok := leg.Dest.Node(); ok && leg.Carrier != "" && b.Policy().oneWay(node) > 0 {
			continue // nothing more will be known
		}
		by := missed(it, now)
		if leg.Dest == spool.DeadDest || !by && now.Sub(it.Entered) < b.patience(leg.Dest) {
			continue
		}
		s := leg.Last
		if s.Code/100 != 4 {
			s = envelope.Status{Code: 451, Enhanced: "4.4.1", Text: "waiting for the next contact"}
		}
		if held {
			s = envelope.Status{Enhanced: "4.2.0", Text: "its text was delivered in a summary; the whole mail is kept until its reader asks for it"}
		}
		if by {
			s = envelope.Status{Code: 451, Enhanced: "4.4.7", Text: envelope.OneLine("not delivered by the time that was asked for: "+s.Text, envelope.MaxStatusText)}
		}
		for _, i := range leg.Rcpts {
			want := bounce.Wanted(it.Env, i, envelope.ActionDelayed) || by && it.Env.Mail.Recipients[i].Notify&envelope.NotifyNever == 0
			if it.Outcomes[i].Action.Final() || !want || held && !b.arrivedAhead(it, i) { // its summary speaks for it until then
				continue
			}
			if b.unasked(it, i) {
				silent = true
			} else {
				tell = append(tell, envelope.Outcome{Addr: it.Outcomes[i].Addr, Action: envelope.ActionDelayed, Status: s, At: now})
			}
		}
	}
	if len(tell) == 0 {
		if silent { // nor need it be read again at the next look
			return b.spool.Apply(func(tx *spool.Tx) error {
				item, err := tx.Item(it.Env.ID)
				if err != nil {
					return gone(err)
				}
				item.Delayed = true
				return tx.Save(item)
			})
		}
		return nil
	}
	a, err := b.notice(it, tell, it.Env.Expires)
	if err != nil {
		return err
	}
	told := false
	err = b.spool.Apply(func(tx *spool.Tx) error {
		told = false
		item, err := tx.Item(it.Env.ID)
		if err != nil || item.Delayed {
			return gone(err)
		}
		told, item.Delayed = true, true
		item.AddLog(now, "delayed", "the sender was told")
		if err := tx.Add(a.item, a.body); err != nil {
			return err
		}
		return tx.Save(item)
	})
	if err != nil || !told {
		a.discard()
	}
	return err
}

// patience is how long mail for a place may wait before its sender is told: twice the cadence of the contacts on the
// way to it that this node knows.
func (b *Bridge) patience(d spool.Dest) time.Duration {
	p := b.Policy()
	wait := p.Limits.DelayNotice
	node, ok := d.Node()
	if !ok {
		return wait
	}
	way := append(p.paths(node), node)
	for _, c := range p.Contacts {
		if !slices.Contains(way, c.Node) {
			continue
		}
		wait = max(wait, 2*c.When.Every)
		if !isLive(c.URL) && c.When.Every == 0 {
			wait = max(wait, 2*c.Overdue, 2*24*time.Hour)
		}
	}
	return wait
}
