package bridge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	netmail "net/mail"
	"net/textproto"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// house is a whole node at work inside a bubble of testing/synctest: its engine runs, its links are net.Pipe, its mail
// system decides by the local part of the recipient.
type house struct {
	t    *testing.T
	name string
	keys *seal.Keyring
	sp   *spool.Spool
	b    *Bridge
	pol  *Policy
	down atomic.Bool // whether nobody answers its calls
	to   map[string]*house
	wg   sync.WaitGroup
	ctx  context.Context

	mu  sync.Mutex
	got []delivery
}

func newHouse(ctx context.Context, t *testing.T, name string) *house {
	h := &house{t: t, name: name, to: map[string]*house{}, ctx: ctx}
	dir := t.TempDir()
	var err error
	if h.keys, err = seal.Create(filepath.Join(dir, "identity"), seal.Options{Name: name, Now: time.Now(), FS: quickFS{}}); err != nil {
		t.Fatal(err)
	}
	h.pol = &Policy{Name: name, Domain: name + ".example"}
	if h.pol.Routes, err = route.New([]route.Rule{{To: []string{name + ".example"}, Via: "maildir:/" + name}}, nil); err != nil {
		t.Fatal(err)
	}
	h.sp, err = spool.Open(filepath.Join(dir, "spool"), spool.Options{FS: quickFS{}, Ballast: -1, OnDue: func(d spool.Dest) {
		if h.b != nil {
			h.b.OnDue(d)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	h.b, err = New(Options{Spool: h.sp, Keys: h.keys, Policy: h.pol, Now: time.Now,
		Link: func(c *Contact) (transport.Link, error) {
			return transport.NewStreamLink(caller{h, c.NodeName}, transport.StreamOptions{}), nil
		},
		Deliver: func(string) (deliver.Transport, error) { return h, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// caller dials another house.
type caller struct {
	h  *house
	to string
}

func (c caller) Dial(ctx context.Context) (transport.Stream, error) {
	if c.h.down.Load() {
		return nil, errors.New("no carrier")
	}
	near, far := net.Pipe()
	other := c.h.to[c.to]
	c.h.wg.Go(func() { transport.Answer(c.h.ctx, far, other.b, transport.StreamOptions{}) })
	return near, nil
}

// joins makes two houses peers; a calls b every two hours.
func (a *house) joins(b *house) {
	add := func(x, y *house, c *Contact) {
		p := *x.pol
		p.Peers = append(slices.Clip(p.Peers), &Peer{Name: y.name, ID: y.keys.ID(), Card: y.keys.Card(), RelayAny: true})
		c.Node, c.NodeName = y.keys.ID(), y.name
		p.Contacts = append(slices.Clip(p.Contacts), c)
		x.pol = &p
		x.to[y.name] = y
	}
	add(a, b, &Contact{URL: "tcp:" + b.name, When: When{Always: true, Every: 2 * time.Hour}})
	add(b, a, &Contact{When: When{OnCall: true}})
}

// routes sends the domain of another house over a relay, which is a peer then, too.
func (a *house) routes(b *house, over ...*house) {
	a.t.Helper()
	p := *a.pol
	r := route.Rule{To: []string{b.name + ".example"}, Node: b.keys.ID(), NodeName: b.name}
	for _, x := range over {
		r.Path = append(r.Path, x.keys.ID())
		p.Peers = append(slices.Clip(p.Peers), &Peer{Name: b.name, ID: b.keys.ID(), Card: b.keys.Card(), RelayAny: true})
	}
	var err error
	if p.Routes, err = route.New(p.Routes.Deliver, append(slices.Clip(p.Routes.Route), r)); err != nil {
		a.t.Fatal(err)
	}
	a.pol = &p
}

func (h *house) run() {
	h.b.SetPolicy(h.pol)
	h.wg.Go(func() { h.b.Run(h.ctx) })
}

// Deliver is the mail system of the house.
func (h *house) Deliver(_ context.Context, m *deliver.Message) (out []deliver.Result) {
	r, err := m.Open()
	if err != nil {
		h.t.Error(err)
		return nil
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil {
		h.t.Error(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range m.Rcpts {
		to := m.Env.Mail.Recipients[i].Addr
		res := deliver.Result{Rcpt: i, Action: envelope.ActionDelivered, MTA: "192.0.2.7:25", Status: envelope.Status{Code: 250, Enhanced: "2.1.5", Text: "Ok"}}
		switch {
		case strings.HasPrefix(to, "failed"):
			res.Action, res.Status = envelope.ActionFailed, envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "nobody of that name"}
		case strings.HasPrefix(to, "relayed"):
			res.Action = envelope.ActionRelayed
		case strings.HasPrefix(to, "expanded"):
			res.Action = envelope.ActionExpanded
		}
		if res.Action != envelope.ActionFailed {
			h.got = append(h.got, delivery{from: m.Env.Mail.Sender, to: to, content: string(content), id: m.Env.ID})
		}
		out = append(out, res)
	}
	return out
}

func (h *house) Close() error { return nil }

// dsn is a notification as a machine reads it.
type dsn struct {
	head    netmail.Header
	kinds   []string
	parts   []string
	message textproto.MIMEHeader
	rcpts   map[string]textproto.MIMEHeader // by final recipient
}

func parseDSN(t *testing.T, content string) (d dsn) {
	t.Helper()
	m, err := netmail.ReadMessage(strings.NewReader(content))
	if err != nil {
		t.Fatalf("%v in %q", err, content)
	}
	d.head, d.rcpts = m.Header, map[string]textproto.MIMEHeader{}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("Content-Type %q: %v", m.Header.Get("Content-Type"), err)
	}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		part, err := r.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(part.Header.Get("Content-Type"))
		d.kinds, d.parts = append(d.kinds, kind), append(d.parts, string(text))
	}
	if len(d.parts) != 3 {
		t.Fatalf("%d parts in %q", len(d.parts), content)
	}
	for i, r := 0, textproto.NewReader(bufio.NewReader(bytes.NewReader([]byte(d.parts[1]+"\r\n")))); ; i++ {
		f, err := r.ReadMIMEHeader()
		if len(f) == 0 {
			break
		}
		if err != nil && err != io.EOF {
			t.Fatalf("%v in %q", err, d.parts[1])
		}
		if i == 0 {
			d.message = f
		} else {
			d.rcpts[f.Get("Final-Recipient")] = f
		}
	}
	return d
}

// matrixCase is one mail of the matrix: to four recipients, of whom one will be unknown, one relayed, one delivered, one
// a list.
type matrixCase struct {
	sender  string
	notify  envelope.Notify
	ret     string
	utf8    bool
	null    bool
	content string
}

func (c *matrixCase) rcpt(action string) string {
	if c.utf8 {
		return action + "-ñandú@gamma.example"
	}
	return action + "@gamma.example"
}

// wants reports whether RFC 3461 wants a notification with that action.
func (c *matrixCase) wants(action string) bool {
	if c.null || c.notify&envelope.NotifyNever != 0 {
		return false
	}
	bit := map[string]envelope.Notify{"failed": envelope.NotifyFailure, "delayed": envelope.NotifyDelay,
		"relayed": envelope.NotifySuccess, "delivered": envelope.NotifySuccess, "expanded": envelope.NotifySuccess}[action]
	if c.notify == 0 {
		return bit != envelope.NotifySuccess
	}
	return c.notify&bit != 0
}

// TestMatrix sends a mail for every combination of NOTIFY, RET, character set and null sender over two hops, the second
// of which is out for a week, and checks every field of every notification that comes of it: delayed, failed, relayed,
// delivered and expanded, each where it was asked for, once, and nothing else.
func TestMatrix(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(labStart)) // a bubble begins in 2000, when no clock was right
		ctx, cancel := context.WithCancel(t.Context())
		a, r, g := newHouse(ctx, t, "alpha"), newHouse(ctx, t, "rho"), newHouse(ctx, t, "gamma")
		a.joins(r)
		r.joins(g)
		a.routes(g, r)
		g.routes(a, r)
		a.routes(r)
		r.routes(a)
		r.routes(g)
		g.routes(r)
		r.down.Store(true)
		for _, h := range []*house{a, r, g} {
			h.run()
		}
		defer func() {
			cancel()
			for _, h := range []*house{a, r, g} {
				h.wg.Wait()
				h.sp.Close()
			}
		}()
		cases := a.sendMatrix()
		sent := time.Now()
		time.Sleep(7 * 24 * time.Hour)
		for i := range cases {
			a.checkMatrix(&cases[i], sent, true)
		}
		if len(g.got) != 0 {
			t.Fatalf("%d mails crossed a link that is out", len(g.got))
		}
		r.down.Store(false)
		time.Sleep(5 * 24 * time.Hour)
		for i := range cases {
			a.checkMatrix(&cases[i], sent, false)
		}
		once := map[delivery]int{}
		for _, d := range g.got {
			once[delivery{from: d.from, to: d.to, id: d.id}]++
		}
		for d, n := range once {
			if n != 1 {
				t.Errorf("%s for %s was handed over %d times", d.id, d.to, n)
			}
		}
		if want := 3 * len(cases); len(once) != want {
			t.Errorf("%d recipients were reached, want %d", len(once), want)
		}
		items, _, err := a.sp.List(spool.Query{})
		if err != nil {
			t.Fatal(err)
		}
		dead := 0
		for _, it := range items {
			if leg := it.Legs[len(it.Legs)-1]; leg.Dest == spool.DeadDest && it.Env.Mail.Sender == "" && leg.Last.Enhanced == "5.1.1" {
				dead++
				continue
			}
			t.Errorf("left at alpha: %s %+v", it.Env.ID, it.Legs)
		}
		if dead != len(cases)/2 {
			t.Errorf("%d dead letters, want one for each null sender, %d", dead, len(cases)/2)
		}
	})
}

// sendMatrix submits all of the mails.
func (h *house) sendMatrix() (cases []matrixCase) {
	S, F, D := envelope.NotifySuccess, envelope.NotifyFailure, envelope.NotifyDelay
	for _, notify := range []envelope.Notify{0, envelope.NotifyNever, S, F, D, S | F, S | D, F | D, S | F | D} {
		for _, ret := range []string{"FULL", "HDRS"} {
			for _, utf8 := range []bool{false, true} {
				for _, null := range []bool{false, true} {
					cases = append(cases, matrixCase{notify: notify, ret: ret, utf8: utf8, null: null})
				}
			}
		}
	}
	for i := range cases {
		c := &cases[i]
		c.sender = fmt.Sprintf("s%d@alpha.example", i)
		subject := "plain"
		if c.utf8 {
			c.sender, subject = fmt.Sprintf("señora%d@alpha.example", i), "año"
		}
		c.content = fmt.Sprintf("From: %s\r\nSubject: %s %d\r\n\r\nbody %d\r\n", c.sender, subject, i, i)
		m := &envelope.Mail{Sender: c.sender, Ret: c.ret, EnvID: fmt.Sprintf("id+2B%d", i), SMTPUTF8: c.utf8, Body: "8BITMIME", Client: envelope.Client{Proto: "ESMTP"}}
		if c.null {
			m.Sender = ""
		}
		for _, action := range []string{"failed", "relayed", "delivered", "expanded"} {
			orcpt := "rfc822;Orig+2B" + action + "@gamma.example"
			if c.utf8 {
				orcpt = "utf-8;" + c.rcpt(action)
			}
			m.Recipients = append(m.Recipients, envelope.Recipient{Addr: c.rcpt(action), Notify: c.notify, ORcpt: orcpt})
		}
		in, err := h.b.Data(h.ctx, m)
		if err != nil {
			h.t.Fatal(err)
		}
		in.Write([]byte(c.content))
		if _, err := in.Commit(h.ctx); err != nil {
			h.t.Fatal(err)
		}
	}
	return cases
}

// checkMatrix compares what came back for one mail: after the outage, or still in it.
func (h *house) checkMatrix(c *matrixCase, sent time.Time, out bool) {
	h.t.Helper()
	what := fmt.Sprintf("NOTIFY %04b, RET %s, UTF-8 %v, null %v", c.notify, c.ret, c.utf8, c.null)
	var late, final []dsn
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.got {
		if d.to != c.sender {
			continue
		}
		if d.from != "" {
			h.t.Errorf("%s: a notification from <%s>", what, d.from)
		}
		n := parseDSN(h.t, d.content)
		for _, f := range n.rcpts {
			if f.Get("Action") == "delayed" {
				late = append(late, n)
			} else {
				final = append(final, n)
			}
			break
		}
	}
	check := func(got, want, field string) {
		if got != want {
			h.t.Errorf("%s: %s is %q, want %q", what, field, got, want)
		}
	}
	one := func(list []dsn, actions []string, kind string) {
		var wanted []string
		for _, action := range actions {
			if k := kind; k == "delayed" && c.wants(k) || k != "delayed" && c.wants(action) {
				wanted = append(wanted, action)
			}
		}
		if len(wanted) == 0 {
			if len(list) != 0 {
				h.t.Errorf("%s: %d notifications that nobody wants", what, len(list))
			}
			return
		}
		if len(list) != 1 {
			h.t.Errorf("%s: %d notifications (%s), want 1", what, len(list), kind)
			return
		}
		n := list[0]
		check(n.head.Get("From"), "Mail Delivery System <MAILER-DAEMON@alpha.example>", "From")
		check(n.head.Get("To"), "<"+c.sender+">", "To")
		check(n.head.Get("Auto-Submitted"), "auto-replied", "Auto-Submitted")
		check(n.message.Get("Reporting-Mta"), "dns; alpha.example", "Reporting-MTA")
		check(n.message.Get("Original-Envelope-Id"), strings.Replace(strings.Split(c.sender, "@")[0], strings.TrimRight(strings.Split(c.sender, "@")[0], "0123456789"), "id+", 1), "Original-Envelope-Id")
		at, err := netmail.ParseDate(n.message.Get("Arrival-Date"))
		if err != nil || sent.Sub(at).Abs() > time.Minute {
			h.t.Errorf("%s: Arrival-Date %q", what, n.message.Get("Arrival-Date"))
		}
		if len(n.rcpts) != len(wanted) {
			h.t.Errorf("%s: it speaks of %d recipients, want %v", what, len(n.rcpts), wanted)
		}
		typ := "rfc822"
		if c.utf8 {
			typ = "utf-8"
		}
		failed := false
		for _, action := range wanted {
			f := n.rcpts[typ+"; "+c.rcpt(action)]
			if f == nil {
				h.t.Errorf("%s: nothing of %s", what, action)
				continue
			}
			orig := "rfc822; Orig+" + action + "@gamma.example"
			if c.utf8 {
				orig = "utf-8; " + c.rcpt(action)
			}
			check(f.Get("Original-Recipient"), orig, "Original-Recipient")
			if kind == "delayed" {
				check(f.Get("Action"), "delayed", "Action")
				check(f.Get("Status"), "4.4.1", "Status")
				until, err := netmail.ParseDate(f.Get("Will-Retry-Until"))
				if err != nil || until.Sub(sent.Add(60*24*time.Hour)).Abs() > time.Minute {
					h.t.Errorf("%s: Will-Retry-Until %q", what, f.Get("Will-Retry-Until"))
				}
				continue
			}
			failed = failed || action == "failed"
			check(f.Get("Action"), action, "Action")
			check(f.Get("Status"), map[string]string{"failed": "5.1.1", "relayed": "2.1.5", "delivered": "2.1.5", "expanded": "2.1.5"}[action], "Status")
			check(f.Get("Remote-Mta"), "dns; [192.0.2.7]", "Remote-MTA")
			check(f.Get("Diagnostic-Code"), map[bool]string{true: "smtp; 550 5.1.1 nobody of that name", false: "smtp; 250 2.1.5 Ok"}[action == "failed"], "Diagnostic-Code")
			check(f.Get("Will-Retry-Until"), "", "Will-Retry-Until")
		}
		whole := failed && c.ret == "FULL"
		kinds := map[[2]bool]string{
			{false, true}: "text/plain message/delivery-status message/rfc822", {false, false}: "text/plain message/delivery-status text/rfc822-headers",
			{true, true}: "text/plain message/global-delivery-status message/global", {true, false}: "text/plain message/global-delivery-status message/global-headers"}
		check(strings.Join(n.kinds, " "), kinds[[2]bool{c.utf8, whole}], "parts")
		_, text, _ := strings.Cut(n.parts[2], "From: ") // behind the trace line
		head, body, _ := strings.Cut(c.content, "\r\n\r\n")
		want := strings.TrimPrefix(head, "From: ") + "\r\n"
		if whole {
			want += "\r\n" + body
		}
		check(text, want, "what is returned")
	}
	one(late, []string{"failed", "relayed", "delivered", "expanded"}, "delayed")
	if out {
		if len(final) != 0 {
			h.t.Errorf("%s: an end is told while the link is out", what)
		}
		return
	}
	one(final, []string{"failed", "relayed", "delivered", "expanded"}, "final")
}
