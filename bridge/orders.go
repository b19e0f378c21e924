package bridge

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"mochila/bridge/jobs"
	"mochila/bridge/letter"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/spool"
)

// runDomain is the domain below which a mail is a job: HANDLER+CHANNEL@run.NODE.mochila (docs/jobs.md, "By mail").
const (
	runPrefix = "run."
	runSuffix = ".mochila"
)

// order is a recipient that stands for a job.
type order struct {
	node             *Peer
	channel, handler string
}

// orderNode is the peer that an address of a job names; false when it is no such address.
func (p *Policy) orderNode(addr string) (node string, ok bool) {
	d := strings.ToLower(route.Domain(addr))
	if !strings.HasPrefix(d, runPrefix) || !strings.HasSuffix(d, runSuffix) || len(d) <= len(runPrefix)+len(runSuffix) {
		return "", false
	}
	node = d[len(runPrefix) : len(d)-len(runSuffix)]
	return node, !strings.Contains(node, ".")
}

// order reads the address of a job and says whether the sender of m may make it. It is a permanent refusal, or nil.
func (b *Bridge) order(m *envelope.Mail, addr string) (*order, error) {
	p := b.Policy()
	name, _ := p.orderNode(addr)
	o := &order{channel: "default"}
	for _, x := range p.Peers {
		if x.Name == name {
			o.node = x
		}
	}
	if o.node == nil {
		return nil, envelope.NewStatus(550, "5.1.2", fmt.Sprintf("no peer of this node is called %q, so no job can go there", name))
	}
	o.handler = route.Unquote(addr[:strings.LastIndexByte(addr, '@')])
	if h, c, ok := strings.Cut(o.handler, "+"); ok {
		o.handler, o.channel = h, c
	}
	if err := (&envelope.Job{Channel: o.channel, Handler: o.handler}).Check(); err != nil {
		return nil, envelope.NewStatus(550, "5.1.3", "not HANDLER or HANDLER+CHANNEL: "+envelope.OneLine(err.Error(), 200))
	}
	if !p.mayOrder(&m.Client, o) {
		who := "only who has authenticated, or is a local user, and is named in [jobs] submit"
		if m.Client.User != "" {
			who = fmt.Sprintf("%q is not named for it in [jobs] submit", m.Client.User)
		}
		return nil, envelope.NewStatus(550, "5.7.1", fmt.Sprintf("no job for %s:%s:%s may be made: %s", name, o.channel, o.handler, who))
	}
	return o, nil
}

// mayOrder reports whether a client may make a job. What a network or a peer says of a client never counts: a uid comes
// from the kernel, a user from authentication, at this node's own listeners.
func (p *Policy) mayOrder(c *envelope.Client, o *order) bool {
	if c.UID > 0 && (c.UID == 1 || c.UID-1 == int64(os.Geteuid())) {
		return true // root, or the node's own user
	}
	return p.Jobs.MaySubmit(c.User, o.node.Name, o.channel, o.handler)
}

// checkOrders refuses a mail to a job that its sender may not make.
func (b *Bridge) checkOrders(m *envelope.Mail) error {
	p := b.Policy()
	for i := range m.Recipients {
		if _, ok := p.orderNode(m.Recipients[i].Addr); ok {
			if _, err := b.order(m, m.Recipients[i].Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeOrders takes the recipients out of a mail that stand for jobs, and prepares these. The mail's content is in body.
func (in *intake) takeOrders() ([]*jobs.Request, error) {
	m, b := in.mail, in.b
	p := b.Policy()
	var reqs []*jobs.Request
	rest := m.Recipients[:0:0]
	var facts *letter.Input
	for i := range m.Recipients {
		r := &m.Recipients[i]
		if _, ok := p.orderNode(r.Addr); !ok {
			rest = append(rest, *r)
			continue
		}
		o, err := b.order(m, r.Addr)
		if err != nil {
			rest = append(rest, *r) // it bounces: route says why
			continue
		}
		body := b.spool.NewBody()
		facts, err = in.input(body)
		if err != nil {
			body.Discard()
			discard(reqs)
			return nil, err
		}
		req := &jobs.Request{Dest: o.node.ID, Body: body, Trust: trustOf(m), Priority: m.Priority,
			Job: envelope.Job{Channel: o.channel, Handler: o.handler, NotBefore: m.HoldUntil}}
		if m.Sender != "" && !facts.Automatic {
			subject := facts.Subject
			if subject == "" {
				subject = o.handler + "+" + o.channel + " at " + o.node.Name
			}
			req.Reply = &jobs.Reply{To: p.qualify(m.Sender), Subject: envelope.OneLine(subject, 300), MessageID: facts.MessageID}
		}
		reqs = append(reqs, req)
	}
	m.Recipients = rest
	return reqs, nil
}

func discard(reqs []*jobs.Request) {
	for _, r := range reqs {
		r.Body.Discard()
	}
}

// input writes what the mail has for a job's program.
func (in *intake) input(body *spool.Body) (*letter.Input, error) {
	r, err := in.body.Open()
	if err != nil {
		return nil, storageStatus(err)
	}
	defer r.Close()
	facts, err := letter.ReadInput(r, body)
	if err == nil {
		err = body.Finish()
	}
	switch {
	case errors.Is(err, letter.ErrInput):
		return nil, envelope.NewStatus(554, "5.6.0", envelope.OneLine(err.Error(), 200))
	case err != nil:
		return nil, storageStatus(err)
	}
	return facts, nil
}

// commitOrders stores the jobs of a mail, together with what is left of the mail (nil: nothing).
func (in *intake) commitOrders(reqs []*jobs.Request, item *spool.Item) (string, error) {
	tickets, err := in.b.jobs.EnqueueWith(reqs, func(tx *spool.Tx) error { return in.add(tx, item) })
	if err != nil {
		in.body.Discard()
		if errors.Is(err, jobs.ErrState) || errors.Is(err, envelope.ErrFormat) {
			return "", envelope.NewStatus(554, "5.6.0", envelope.OneLine(err.Error(), 200))
		}
		return "", storageStatus(err)
	}
	p := in.b.Policy()
	for i, t := range tickets {
		j := &reqs[i].Job
		in.b.log.Info(fmt.Sprintf("%s: job by mail, from=<%s>, node=%s, channel=%s, handler=%s, seq=%d", t.ID, esc(in.mail.Sender),
			p.nodeName(reqs[i].Dest), j.Channel, j.Handler, t.Seq), "service", "jobs")
	}
	if item == nil {
		in.body.Discard()
		return tickets[0].ID.String(), nil
	}
	return item.Env.ID.String(), nil
}

// resultMail makes the mail that tells how a job of this node ended (jobs.Options.Compose).
func (b *Bridge) resultMail(l *jobs.Letter) (*spool.Item, *spool.Body, error) {
	p := b.Policy()
	now := b.now()
	id := envelope.NewID(now)
	v, r := l.View, l.View.Result
	where := fmt.Sprintf("%s:%s", p.nodeName(v.Peer), v.Job.Channel)
	m := letter.Result{From: fmt.Sprintf("mochila at %s <%s>", p.Name, or(p.Postmaster, "postmaster@"+p.Domain)), To: l.Reply.To,
		MessageID: id.String() + "@" + p.Domain, InReplyTo: l.Reply.MessageID, Date: now, Job: v.ID.String()}
	m.Subject = fmt.Sprintf("job %s %s: %s", where, or(v.Job.Handler, v.Job.Kind.String()), r.State)
	if l.Reply.Subject != "" {
		m.Subject = "Re: " + strings.TrimPrefix(l.Reply.Subject, "Re: ")
	}
	m.Text = resultText(v, where)
	m.Parts = []letter.Part{{Name: "stdout", Open: l.Stdout, Size: r.Stdout}, {Name: "stderr", Open: l.Stderr, Size: r.Stderr}}
	body := b.spool.NewBody()
	err := m.Write(body)
	if err == nil {
		err = body.Finish()
	}
	if err != nil {
		body.Discard()
		return nil, nil, err
	}
	mail := &envelope.Mail{Recipients: []envelope.Recipient{{Addr: l.Reply.To, Notify: envelope.NotifyNever}}, Client: envelope.Client{Proto: "local"}}
	for _, c := range l.Reply.To {
		mail.SMTPUTF8 = mail.SMTPUTF8 || c >= 0x80
	}
	env := &envelope.Envelope{ID: id, Origin: b.ID(), Kind: envelope.KindMail, Created: now, Expires: now.Add(p.Limits.Lifetime), Mail: mail,
		Size: body.Size(), Sum: body.Sum()}
	item := &spool.Item{Env: env, Trust: "control", Entered: now, Parent: v.ID, Outcomes: []envelope.Outcome{{Addr: l.Reply.To}},
		Legs: []spool.Leg{{Dest: b.bounceDest(l.Reply.To, env.Size), Rcpts: []int{0}, State: spool.Due}}}
	if item.Legs[0].Dest == spool.DeadDest {
		item.Legs[0].State = spool.Held
		item.Legs[0].Last = envelope.Status{Code: 550, Enhanced: "5.1.2", Text: "no deliver or route rule takes the result of the job, and [bounce] via is not set"}
		item.AddLog(now, "dead letter", "no way to who asked for the result")
	}
	b.log.Info(fmt.Sprintf("%s: result of the job by mail: %s, to=<%s>", v.ID, id, esc(l.Reply.To)), "service", "jobs")
	return item, body, nil
}

// resultText says in plain lines how a job ended.
func resultText(v *jobs.View, where string) []string {
	r := v.Result
	how := r.State.String()
	switch {
	case r.Signal > 0:
		how += fmt.Sprintf(", ended by signal %d", r.Signal)
	case !r.Started.IsZero():
		how += fmt.Sprintf(", exit status %d", r.Exit)
	}
	lines := []string{fmt.Sprintf("Job %s (%s%s): %s.", v.ID, where, when(v.Job.Seq > 0, fmt.Sprintf(" number %d", v.Job.Seq)), how)}
	if r.Reason != "" {
		lines = append(lines, "Reason: "+r.Reason)
	}
	if r.Held {
		lines = append(lines, "Its channel waits until somebody there decides (mochila jobs retry, or skip).")
	}
	if !r.Started.IsZero() {
		lines = append(lines, fmt.Sprintf("Started %s, ran for %s, try %d.", r.Started.UTC().Format("2006-01-02 15:04:05 UTC"), r.Ended.Sub(r.Started).Round(1e6), max(r.Tries, 1)))
	}
	if r.DroppedOut+r.DroppedErr > 0 {
		lines = append(lines, fmt.Sprintf("%d bytes of its output were not kept there.", r.DroppedOut+r.DroppedErr))
	}
	return lines
}

func when(on bool, s string) string {
	if on {
		return s
	}
	return ""
}

var _ io.Writer = (*spool.Body)(nil)
