package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"mochila/bridge/deliver"
	"mochila/bridge/jobs"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/smtpd"
	"mochila/spool"
	"mochila/transport/letter"
)

// Mail checks a reverse-path (smtpd.Acceptor).
func (b *Bridge) Mail(_ context.Context, m *envelope.Mail, declared int64) error {
	p := b.Policy()
	if declared > p.Limits.MessageSize {
		return envelope.NewStatus(552, "5.3.4", fmt.Sprintf("message size %d is above the limit of %d bytes", declared, p.Limits.MessageSize))
	}
	if b.spool.Full() {
		return envelope.NewStatus(452, "4.3.1", "insufficient system storage, try again later")
	}
	return nil
}

// Rcpt checks that a forward-path leads somewhere (smtpd.Acceptor).
func (b *Bridge) Rcpt(_ context.Context, m *envelope.Mail, r *envelope.Recipient, declared int64) error {
	p := b.Policy()
	if len(m.Recipients) >= p.Limits.Recipients {
		return envelope.NewStatus(452, "4.5.3", fmt.Sprintf("more than %d recipients", p.Limits.Recipients))
	}
	if _, ok := p.orderNode(r.Addr); ok {
		_, err := b.order(m, r.Addr)
		return err
	}
	if _, _, ok := p.asks(r.Addr); ok {
		return refuseAsking()
	}
	addr, d, err := p.place(m.Sender, p.qualify(r.Addr), declared, false)
	if err == nil && !d.Deliver && p.letterBox(addr) {
		return refuseLetter()
	}
	return err
}

// Data opens the intake of one mail (smtpd.Acceptor). The Received line is written first: it is part of the content
// from then on.
func (b *Bridge) Data(_ context.Context, m *envelope.Mail) (smtpd.Intake, error) {
	if err := m.Check(); err != nil {
		// what no other node would take is not accepted here
		return nil, envelope.NewStatus(553, "5.1.7", envelope.OneLine(err.Error(), 200))
	}
	in := &intake{b: b, mail: m, body: b.spool.NewMailBody(), limit: b.Policy().Limits.MessageSize}
	now := b.now()
	in.id = envelope.NewID(now)
	in.now = now
	in.before = newPasses(b.Policy().Domain)
	if _, err := in.body.Write(b.received(m, in.id, now)); err != nil {
		in.body.Discard()
		return nil, storageStatus(err)
	}
	return in, nil
}

// Submit opens the intake of a mail from a local program (the submission socket and the maildrop).
func (b *Bridge) Submit(ctx context.Context, m *envelope.Mail) (smtpd.Intake, error) {
	if err := b.checkOrders(m); err != nil {
		return nil, err
	}
	return b.submit(ctx, m)
}

func (b *Bridge) submit(ctx context.Context, m *envelope.Mail) (smtpd.Intake, error) {
	if err := b.Mail(ctx, m, 0); err != nil {
		return nil, err
	}
	return b.Data(ctx, m)
}

// maildropSeen remembers the maildrop files that were committed and are perhaps not removed yet.
const maildropSeen = "maildrop"

// SubmitFile is Submit for a file of the maildrop: its name is stored in the same commit, so that a crash before the
// file is removed takes no mail twice.
func (b *Bridge) SubmitFile(ctx context.Context, name string, m *envelope.Mail) (smtpd.Intake, error) {
	in, err := b.submit(ctx, m)
	if err == nil {
		in.(*intake).file = name
	}
	return in, err
}

// ReturnFile takes a mail of the maildrop that will never be accepted, for the status that says why: its sender was told
// long ago that it is taken, so he gets it back.
func (b *Bridge) ReturnFile(ctx context.Context, name string, m *envelope.Mail, why *envelope.Status) (smtpd.Intake, error) {
	in, err := b.Data(ctx, m)
	if err != nil {
		return nil, err
	}
	i := in.(*intake)
	i.file, i.refused, i.limit = name, why, 1<<62
	return i, nil
}

// SeenFile reports whether the mail in a maildrop file was committed before.
func (b *Bridge) SeenFile(name string) bool {
	var seen bool
	err := b.spool.View(func(tx *spool.Tx) error { seen = tx.KV(maildropSeen).Get([]byte(name)) != nil; return nil })
	return err == nil && seen
}

// ForgetFiles says that maildrop files are durably gone.
func (b *Bridge) ForgetFiles(names []string) error {
	return b.spool.Apply(func(tx *spool.Tx) error {
		for _, n := range names {
			if err := tx.KV(maildropSeen).Delete([]byte(n)); err != nil {
				return err
			}
		}
		return nil
	})
}

type intake struct {
	b     *Bridge
	mail  *envelope.Mail
	body  *spool.Body
	id    envelope.ID
	now   time.Time
	n     int64
	limit int64
	file  string // of the maildrop

	expanded bool             // it comes out of an alias
	eight    bool             // it has bytes above 127
	refused  *envelope.Status // it was taken long ago, and is sent back with this
	head     letter.Sniffer
	before   *passes  // it entered this node
	ahead    []*ahead // summaries that enter with it
}

// Write takes content. It fails with a status for the client: too large, going round, or no room.
func (in *intake) Write(p []byte) (int, error) {
	in.n += int64(len(p))
	if in.n > in.limit {
		return 0, envelope.NewStatus(552, "5.3.4", fmt.Sprintf("message is above the limit of %d bytes", in.limit))
	}
	in.head.Write(p)
	in.before.Write(p)
	in.eight = in.eight || !envelope.SevenBit(p)
	if err := in.loops(); err != nil {
		return 0, err
	}
	n, err := in.body.Write(p)
	if err != nil {
		return n, storageStatus(err)
	}
	return n, nil
}

// loops refuses a mail that goes round. What was taken long ago, and what an alias here makes of a mail, is no new round.
func (in *intake) loops() error {
	if in.refused != nil || in.expanded {
		return nil
	}
	return in.before.loop(in.b.Policy().Limits.Passes)
}

// noteBody says of large content what it is: whoever sends it would have to read all of it, just to know. Small content is read
// into memory then anyway (deliver.SmallContent).
func (in *intake) noteBody() {
	switch m := in.mail; {
	case in.n <= deliver.SmallContent || m.Body != "" && m.Body != "7BIT":
	case in.eight:
		m.Body = "8BITMIME"
	default:
		m.Body = "7BIT"
	}
}

// Abort gives the mail up: nothing of it stays.
func (in *intake) Abort() { in.body.Discard() }

// Commit stores the mail and returns its id; when it does, the mail is durable. Else the error is a status for the client.
func (in *intake) Commit(context.Context) (string, error) {
	if err := in.body.Finish(); err != nil {
		in.body.Discard()
		return "", storageStatus(err)
	}
	in.before.end()
	if err := in.loops(); err != nil {
		in.body.Discard()
		return "", err
	}
	var orders []*jobs.Request
	if in.refused == nil {
		var err error
		if orders, err = in.takeOrders(); err != nil {
			in.body.Discard()
			return "", err
		}
	}
	if len(orders) > 0 && len(in.mail.Recipients) == 0 {
		return in.commitOrders(orders, nil)
	}
	in.noteBody()
	env := &envelope.Envelope{ID: in.id, Kind: envelope.KindMail, Created: in.now, Mail: in.mail, Priority: in.mail.Priority}
	item, sums, err := in.item(env)
	if err == nil {
		if cerr := env.Check(); cerr != nil {
			err = envelope.NewStatus(554, "5.6.0", envelope.OneLine(cerr.Error(), 200))
		}
	}
	if err == nil && in.refused == nil && in.head.Letter() {
		for i := range item.Legs {
			if _, travels := item.Legs[i].Dest.Node(); travels {
				err = refuseLetter()
			}
		}
	}
	if err == nil && in.refused == nil {
		err = in.b.quota.chargeUser(in.b, item.Trust, env.Size)
	}
	if err == nil {
		in.ahead, err = in.b.goAhead(item, sums, in.body)
	}
	if err != nil {
		in.body.Discard()
		discard(orders)
		return "", err
	}
	if len(orders) > 0 {
		_, err = in.commitOrders(orders, item)
	} else if err = in.b.out.take(func(tx *spool.Tx) error { return in.add(tx, item) }); err != nil {
		in.body.Discard()
		err = storageStatus(err)
	}
	if err != nil {
		discardAhead(in.ahead)
		return "", err
	}
	in.b.logAccepted(item)
	in.b.logAhead(item, in.ahead)
	if hasDead(item) {
		in.b.bury(env.ID)
	}
	return env.ID.String(), nil
}

// item makes what the spool stores, and for each leg, what is to go ahead.
func (in *intake) item(env *envelope.Envelope) (*spool.Item, []route.Summary, error) {
	if in.refused == nil {
		return in.b.newMail(env, in.body, trustOf(in.mail), in.expanded)
	}
	p := in.b.Policy()
	env.Origin, env.Size, env.Sum = in.b.ID(), in.body.Size(), in.body.Sum()
	env.Expires = in.now.Add(p.Limits.Lifetime)
	env.Mail.Sender = p.qualify(env.Mail.Sender)
	item := &spool.Item{Env: env, Trust: trustOf(in.mail), Entered: in.now, Outcomes: make([]envelope.Outcome, len(env.Mail.Recipients)),
		Legs: []spool.Leg{{Dest: spool.DeadDest, State: spool.Due, Last: *in.refused}}}
	for i := range env.Mail.Recipients {
		env.Mail.Recipients[i].Addr = p.qualify(env.Mail.Recipients[i].Addr)
		item.Outcomes[i].Addr = env.Mail.Recipients[i].Addr
		item.Legs[0].Rcpts = append(item.Legs[0].Rcpts, i)
	}
	return item, nil, nil
}

// add stores the mail, what goes ahead of it, and that its file in the maildrop is done with.
func (in *intake) add(tx *spool.Tx, item *spool.Item) error {
	if in.file != "" {
		if err := tx.KV(maildropSeen).Put([]byte(in.file), in.id[:]); err != nil {
			return err
		}
	}
	if item == nil {
		return nil
	}
	if err := tx.Add(item, in.body); err != nil {
		return err
	}
	return addAhead(tx, in.ahead)
}

// hasDead reports whether some recipients of a new item lead nowhere.
func hasDead(item *spool.Item) bool {
	for i := range item.Legs {
		if item.Legs[i].Dest == spool.DeadDest && item.Legs[i].State == spool.Due {
			return true
		}
	}
	return false
}

// trustOf names the trust class of a mail's submitter: mails of two classes never share a compression frame.
func trustOf(m *envelope.Mail) string {
	switch {
	case m.Client.UID > 0:
		return fmt.Sprintf("uid:%d", m.Client.UID-1)
	case m.Client.User != "":
		return "auth:" + m.Client.User
	}
	return "net"
}

// newMail routes every recipient of a mail that starts here and makes the item that the spool takes. Recipients that
// lead nowhere get a leg to the dead letters, which bury turns into a DSN.
func (b *Bridge) newMail(env *envelope.Envelope, body *spool.Body, trust string, expanded bool) (*spool.Item, []route.Summary, error) {
	env.Origin = b.ID()
	env.Size, env.Sum = body.Size(), body.Sum()
	return b.route(env, trust, expanded)
}

// route makes the legs of a mail, and says for each what is to go ahead of it.
func (b *Bridge) route(env *envelope.Envelope, trust string, expanded bool) (*spool.Item, []route.Summary, error) {
	p := b.Policy()
	now := b.now()
	m := env.Mail
	m.Sender = p.Local.rewrite(p.qualify(m.Sender), false)
	if !expanded {
		p.archive(m)
	}
	item := &spool.Item{Env: env, Trust: trust, Entered: now, Outcomes: make([]envelope.Outcome, len(m.Recipients))}
	var life time.Duration
	longest := time.Duration(0) // that every destination takes; 0: any
	type way struct {
		dest spool.Dest
		sum  route.Summary
	}
	legs := map[way]int{}
	var sums []route.Summary
	for i := range m.Recipients {
		r := &m.Recipients[i]
		r.Addr = p.qualify(r.Addr)
		item.Outcomes[i].Addr = r.Addr
		addr, d, err := p.place(m.Sender, r.Addr, env.Size, expanded)
		if node, ok := p.orderNode(r.Addr); ok {
			// a job is no mail, whatever the rules say of its address
			err = envelope.NewStatus(550, "5.7.1", "no job for node "+node+" may be made by this sender")
		}
		if _, _, ok := p.asks(r.Addr); ok {
			err = refuseAsking()
		}
		redirect(r, addr)
		item.Outcomes[i].Addr = r.Addr
		if err != nil {
			k, ok := legs[way{dest: spool.DeadDest}]
			if !ok {
				k = len(item.Legs)
				legs[way{dest: spool.DeadDest}] = k
				sums = append(sums, route.Summary{})
				item.Legs = append(item.Legs, spool.Leg{Dest: spool.DeadDest, State: spool.Due, Last: statusOf(err)})
			}
			item.Legs[k].Rcpts = append(item.Legs[k].Rcpts, i)
			continue
		}
		w := way{dest: spool.NodeDest(d.Rule.Node)}
		if d.Deliver {
			w.dest = spool.ViaDest(d.Rule.Via)
		} else {
			w.sum = p.summaryOf(env, r.Addr, d.Rule)
		}
		k, ok := legs[w]
		if !ok {
			k = len(item.Legs)
			legs[w] = k
			sums = append(sums, w.sum)
			item.Legs = append(item.Legs, spool.Leg{Dest: w.dest, State: spool.Due, KeepHop: d.Rule.KeepHop})
			if !m.HoldUntil.IsZero() && m.HoldUntil.After(now) {
				item.Legs[k].State, item.Legs[k].At = spool.Deferred, m.HoldUntil
			}
		}
		item.Legs[k].Rcpts = append(item.Legs[k].Rcpts, i)
		item.Legs[k].KeepHop = item.Legs[k].KeepHop && d.Rule.KeepHop
		life = max(life, p.lifetime(d.Rule))
		if most := b.maxLife(d.Rule.Node); most > 0 && (longest == 0 || most < longest) {
			longest = most
		}
	}
	if life == 0 {
		life = p.Limits.Lifetime
	}
	if longest > 0 {
		life = min(life, longest)
	}
	if env.Expires.IsZero() {
		env.Expires = now.Add(life)
		if m.By != nil && m.By.Return && m.By.Deadline.Before(env.Expires) {
			env.Expires = m.By.Deadline
		}
	}
	return item, sums, nil
}

// maxLife is the longest lifetime of an envelope that a node takes, by its card; 0 when that is not known.
func (b *Bridge) maxLife(node envelope.NodeID) time.Duration {
	if node.IsZero() {
		return 0
	}
	c, err := b.cardOf(node)
	if err != nil || c == nil {
		return 0
	}
	return c.MaxLife
}

// Clamped lists the routes whose mail lives shorter than the configuration says: its destination takes no longer lifetime.
func (b *Bridge) Clamped() (out []string) {
	p := b.Policy()
	for i := range p.Routes.Route {
		r := &p.Routes.Route[i]
		if most := b.maxLife(r.Node); most > 0 && p.lifetime(r) > most {
			out = append(out, fmt.Sprintf("mail for %s by node %s lives %s, not %s: the card of %s allows no more",
				strings.Join(r.To, ", "), r.NodeName, days(most), days(p.lifetime(r)), r.NodeName))
		}
	}
	return out
}

// days shows a lifetime.
func days(d time.Duration) string {
	if d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return d.String()
}

// received is the trace line of RFC 5321 section 4.4 that this node puts in front of what it accepts.
func (b *Bridge) received(m *envelope.Mail, id envelope.ID, now time.Time) []byte {
	var w bytes.Buffer
	c := &m.Client
	w.WriteString("Received: ")
	switch hide := b.Policy().HideClients; {
	case hide && c.UID > 0:
		fmt.Fprintf(&w, "by %s (mochila)\r\n\tid %s", b.Policy().Domain, id)
	case hide && c.User != "":
		fmt.Fprintf(&w, "by %s (mochila) with %s id %s", b.Policy().Domain, clean(c.Proto), id)
	case c.UID > 0:
		fmt.Fprintf(&w, "by %s (mochila, from userid %d)\r\n\tid %s", b.Policy().Domain, c.UID-1, id)
	default:
		helo := clean(c.Helo)
		if helo == "" {
			helo = "unknown"
		}
		fmt.Fprintf(&w, "from %s", helo)
		if c.Addr != "" {
			name := clean(c.Name)
			if name == "" {
				name = "unknown"
			}
			a := clean(c.Addr)
			if strings.Contains(a, ":") {
				a = "IPv6:" + a
			}
			fmt.Fprintf(&w, " (%s [%s])", name, a)
		}
		proto := clean(c.Proto)
		if proto == "" {
			proto = "ESMTP"
		}
		if m.SMTPUTF8 && !strings.HasPrefix(proto, "UTF8") {
			proto = "UTF8" + strings.TrimPrefix(proto, "E")
		}
		fmt.Fprintf(&w, "\r\n\tby %s (mochila) with %s id %s", b.Policy().Domain, proto, id)
	}
	fmt.Fprintf(&w, ";\r\n\t%s\r\n", now.Format("Mon, 2 Jan 2006 15:04:05 -0700 (MST)"))
	return w.Bytes()
}

// clean drops what must not stand in a trace line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f || r == '(' || r == ')' || r == ';' {
			return -1
		}
		return r
	}, s)
}

// statusOf turns any error into an SMTP reply; what is not a Status itself is temporary.
func statusOf(err error) envelope.Status {
	var s *envelope.Status
	if errors.As(err, &s) {
		return *s
	}
	return envelope.Status{Code: 451, Enhanced: "4.3.0", Text: err.Error()}
}

// storageStatus is the reply to a spool that cannot take more, now.
func storageStatus(err error) error {
	if errors.Is(err, spool.ErrFull) {
		return envelope.NewStatus(452, "4.3.1", "insufficient system storage, try again later")
	}
	return fmt.Errorf("store the mail: %w", err)
}

var _ smtpd.Acceptor = (*Bridge)(nil)
