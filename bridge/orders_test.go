package bridge

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"mochila/bridge/jobs"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/spool"
)

// hand gives a mail to a node as its listeners do, and returns what it answers.
func (n *node) hand(c envelope.Client, from, text string, to ...string) (id string, err error) {
	n.t.Helper()
	ctx := context.Background()
	m := &envelope.Mail{Sender: from, Client: c}
	if err := n.b.Mail(ctx, m, 0); err != nil {
		return "", err
	}
	for _, a := range to {
		r := envelope.Recipient{Addr: a}
		if err := n.b.Rcpt(ctx, m, &r, 0); err != nil {
			return "", err
		}
		m.Recipients = append(m.Recipients, r)
	}
	in, err := n.b.Data(ctx, m)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(in, text); err != nil {
		return "", err
	}
	return in.Commit(ctx)
}

// grants sets [jobs] submit.
func (n *node) grants(g ...jobs.Grant) {
	p := *n.pol
	p.Jobs.Submit = g
	n.pol = &p
	n.b.SetPolicy(&p)
}

// TestWhoMayOrder: a mail to a job is taken from those who may make it, and from nobody else.
func TestWhoMayOrder(t *testing.T) {
	l := newLab(t)
	camp, hub := l.node("camp"), l.node("hub")
	camp.knows(hub, "dir:stick")
	hub.knows(camp, "dir:stick")
	camp.grants(jobs.Grant{User: "ana", Node: "hub", Channel: "*", Handler: "store"}, jobs.Grant{User: "bo", Node: "*", Channel: "*", Handler: "*"})
	own := int64(os.Geteuid()) + 1
	for _, x := range []struct {
		what   string
		client envelope.Client
		to     string
		code   string // enhanced; "" is taken
	}{
		{"who authenticated", envelope.Client{User: "ana"}, "store+a@run.hub.mochila", ""},
		{"in capitals", envelope.Client{User: "ana"}, "store@RUN.Hub.Mochila", ""},
		{"a local user", envelope.Client{User: "bo", UID: 1001}, "anything@run.hub.mochila", ""},
		{"root", envelope.Client{User: "root", UID: 1}, "anything@run.hub.mochila", ""},
		{"the node's user", envelope.Client{User: "x", UID: own}, "anything@run.hub.mochila", ""},
		{"another handler", envelope.Client{User: "ana"}, "erase+a@run.hub.mochila", "5.7.1"},
		{"another user", envelope.Client{User: "eve"}, "store+a@run.hub.mochila", "5.7.1"},
		{"a network that may relay", envelope.Client{Addr: "127.0.0.1"}, "store+a@run.hub.mochila", "5.7.1"},
		{"what XFORWARD says", envelope.Client{Addr: "127.0.0.1", Ident: "ana", Source: "LOCAL", Name: "ana"}, "store+a@run.hub.mochila", "5.7.1"},
		{"a name that nobody has", envelope.Client{User: ""}, "store@run.hub.mochila", "5.7.1"},
		{"no such peer", envelope.Client{User: "bo"}, "store@run.shore.mochila", "5.1.2"},
		{"not a handler's name", envelope.Client{User: "bo"}, `"a b"@run.hub.mochila`, "5.1.3"},
		{"not a channel's name", envelope.Client{User: "bo"}, "a+../x@run.hub.mochila", "5.1.3"},
	} {
		_, err := camp.hand(x.client, "ana@camp.example", "Subject: x\r\n\r\nx\r\n", x.to)
		var st *envelope.Status
		if got := ""; errors.As(err, &st) {
			got = st.Enhanced
			if got != x.code {
				t.Errorf("%s: %v, want %q", x.what, err, x.code)
			}
		} else if err != nil || x.code != "" {
			t.Errorf("%s: %v, want %q", x.what, err, x.code)
		}
	}
	counts := 0
	for _, it := range camp.items() {
		if it.Env.Kind != envelope.KindJob {
			t.Errorf("in the queue: %v", it.Env.Kind)
		}
		counts++
	}
	if counts != 5 {
		t.Errorf("%d jobs, want 5", counts)
	}
}

// TestOrderAmongMails: a mail to people and to jobs is both; each job has its number, and its result comes as a reply.
func TestOrderAmongMails(t *testing.T) {
	l := newLab(t)
	camp, hub := l.node("camp"), l.node("hub")
	s := &scribe{}
	hub.runner = s
	hub.reopen()
	camp.knows(hub, "dir:stick")
	hub.knows(camp, "dir:stick")
	hub.allow("echo", "fail")
	camp.grants(jobs.Grant{User: "ana", Node: "*", Channel: "*", Handler: "*"})
	mail := "Subject: =?utf-8?q?w=C3=A4h?=\r\nMessage-ID: <1@x>\r\nContent-Transfer-Encoding: base64\r\n\r\naGVsbG8=\r\n"
	if _, err := camp.hand(envelope.Client{User: "ana"}, "ana@camp.example", mail, "bo@camp.example", "echo+c@run.hub.mochila", "fail+c@run.hub.mochila"); err != nil {
		t.Fatal(err)
	}
	camp.deliver()
	if got := camp.sink.count("bo@camp.example", "aGVsbG8=\r\n"); got != 1 {
		t.Errorf("the mail was delivered %d times", got)
	}
	trip := func() {
		camp.meet()
		hub.meet()
		hub.b.Jobs().Drain(context.Background())
		hub.meet()
		camp.meet()
	}
	trip()
	if got := strings.Join(s.lines(), "; "); got != "c 1  hello; c 2  hello" {
		t.Errorf("ran %q", got)
	}
	replies := camp.sink.notices("ana@camp.example")
	if len(replies) != 2 {
		t.Fatalf("%d replies: %q", len(replies), replies)
	}
	all := strings.Join(replies, "")
	for _, want := range []string{"Subject: Re: =?utf-8?q?w=C3=A4h?=\r\n", "In-Reply-To: <1@x>\r\n", "number 1): done", "out of hello", "number 2): failed, exit status 3", "Its channel waits"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
	// the held one is told again when somebody has decided, and then no more
	v, err := hub.b.Jobs().List(jobs.Filter{Side: "peers"})
	if err != nil || len(v.Jobs) != 1 {
		t.Fatal(v, err)
	}
	if err := hub.b.Jobs().Skip(v.Jobs[0].ID); err != nil {
		t.Fatal(err)
	}
	trip()
	trip()
	if replies = camp.sink.notices("ana@camp.example"); len(replies) != 3 || !strings.Contains(replies[2], "passed over by an operator") {
		t.Errorf("%d replies: %q", len(replies), replies[2:])
	}
	mustEmpty(t, hub)
}

// TestOrdersOfOthers: what a peer sends to an address of a job, whoever it says its client was, is refused, and so is an
// answer to an automatic mail.
func TestOrdersOfOthers(t *testing.T) {
	l := newLab(t)
	camp, hub, shore := l.node("camp"), l.node("hub"), l.node("shore")
	camp.knows(hub, "dir:stick")
	hub.knows(camp, "dir:stick")
	hub.knows(shore, "dir:other")
	hub.grants(jobs.Grant{User: "ana", Node: "*", Channel: "*", Handler: "*"})
	// camp believes that shore's jobs are a domain of hub's
	p := *camp.pol
	rule := route.Rule{To: []string{"*"}, Node: hub.keys.ID(), NodeName: "hub"}
	var err error
	if p.Routes, err = route.New(p.Routes.Deliver, []route.Rule{rule}); err != nil {
		t.Fatal(err)
	}
	camp.pol = &p
	camp.b.SetPolicy(&p)
	body := camp.sp.NewBody()
	io.WriteString(body, "Subject: x\r\n\r\nx\r\n")
	if err := body.Finish(); err != nil {
		t.Fatal(err)
	}
	m := &envelope.Mail{Sender: "ana@camp.example", Client: envelope.Client{User: "ana", UID: 1}, Recipients: []envelope.Recipient{{Addr: "store@run.shore.mochila"}}}
	// as a hostile camp would: past its own checks
	env := &envelope.Envelope{ID: envelope.NewID(l.clock()), Kind: envelope.KindMail, Created: l.clock(), Mail: m}
	item, _, err := camp.b.newMail(env, body, "control", false)
	if err != nil {
		t.Fatal(err)
	}
	item.Legs[0].Dest = spool.NodeDest(hub.keys.ID())
	item.Legs[0].State, item.Legs[0].Last = spool.Due, envelope.Status{}
	if err := camp.sp.Apply(func(tx *spool.Tx) error { return tx.Add(item, body) }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		camp.meet()
		hub.meet()
	}
	camp.meet()
	for _, n := range []*node{hub, camp} {
		for _, it := range n.items() {
			if it.Env.Kind == envelope.KindJob {
				t.Errorf("%s has a job of a stranger", n.name)
			}
		}
	}
	if got := strings.Join(camp.sink.notices("ana@camp.example"), ""); !strings.Contains(got, "5.7.1") || !strings.Contains(got, "another node") {
		t.Errorf("camp hears %q", got)
	}

	auto := "Subject: away\r\nAuto-Submitted: auto-replied\r\n\r\nx\r\n"
	if _, err := hub.hand(envelope.Client{User: "ana"}, "ana@hub.example", auto, "store@run.camp.mochila"); err != nil {
		t.Fatal(err)
	}
	page, err := hub.b.Jobs().List(jobs.Filter{Side: "own"})
	if err != nil || len(page.Jobs) != 1 {
		t.Fatal(page, err)
	}
	if err := hub.b.Jobs().Cancel(page.Jobs[0].ID); err != nil {
		t.Fatal(err)
	}
	hub.deliver()
	if got := hub.sink.notices("ana@hub.example"); len(got) != 0 {
		t.Errorf("an automatic mail was answered: %q", got)
	}
}
