package bridge

import (
	"io"
	"slices"
	"strings"
	"testing"

	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/internal/envelope"
)

// border gives a node local rules, and delivery rules of its own.
func (n *node) border(l Local, rules ...route.Rule) {
	n.t.Helper()
	p := *n.pol
	p.Local = l
	if len(rules) > 0 {
		var err error
		if p.Routes, err = route.New(rules, p.Routes.Route); err != nil {
			n.t.Fatal(err)
		}
	}
	n.pol = &p
	n.b.SetPolicy(&p)
}

// got lists who got mail, sorted.
func (n *node) got() []string {
	var out []string
	for _, d := range n.sink.mails() {
		out = append(out, d.from+" > "+d.to)
	}
	slices.Sort(out)
	return out
}

func (n *node) wantGot(want ...string) {
	n.t.Helper()
	slices.Sort(want)
	if got := n.got(); !slices.Equal(got, want) {
		n.t.Errorf("%s: got\n\t%s\nwant\n\t%s", n.name, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// TestAliases: names that stand for one address or several, for mail that starts here and for mail that arrives.
func TestAliases(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	c.border(Local{Aliases: map[string][]string{
		"root": {"ana"}, "staff": {"ana", "bob@gamma.example", "root", "far@alpha.example"},
		"self": {"self", "ana"}, "loop": {"pool"}, "pool": {"loop"},
	}})
	c.submit("x@gamma.example", "root@gamma.example", "one\r\n")
	a.submit("ana@alpha.example", "ROOT@gamma.example", "two\r\n")
	a.submit("ana@alpha.example", "staff@gamma.example", "three\r\n")
	a.submit("ana@alpha.example", "self@gamma.example", "four\r\n")
	c.submit("x@gamma.example", "loop@gamma.example", "five\r\n")
	for range 6 {
		a.meet()
		c.meet()
	}
	c.wantGot("x@gamma.example > ana@gamma.example", "ana@alpha.example > ana@gamma.example",
		"ana@alpha.example > ana@gamma.example", "ana@alpha.example > bob@gamma.example",
		"ana@alpha.example > self@gamma.example", "ana@alpha.example > ana@gamma.example",
		"x@gamma.example > loop@gamma.example")
	a.wantGot("ana@alpha.example > far@alpha.example")
	if !a.empty() || !c.empty() {
		t.Errorf("something is left: %v %v", a.items(), c.items())
	}
}

// TestExpandedOnce: a crash between the mail to the members of a list and the end of the one to the list makes no second.
func TestExpandedOnce(t *testing.T) {
	l := newLab(t)
	c := l.node("gamma")
	c.border(Local{Aliases: map[string][]string{"staff": {"ana", "bob"}}})
	c.send(&envelope.Mail{Sender: "x@gamma.example", Recipients: []envelope.Recipient{{Addr: "staff@gamma.example", Notify: envelope.NotifySuccess | envelope.NotifyFailure}}}, "Subject: s\r\n\r\nhello\r\n")
	items := c.items()
	if len(items) != 1 {
		t.Fatalf("%d items", len(items))
	}
	id := items[0].Env.ID
	m := &deliver.Message{Env: items[0].Env, Rcpts: []int{0}, Open: func() (io.ReadCloser, error) { return c.b.spool.OpenBody(id) }}
	for range 2 {
		for _, r := range (expander{c.b}).Deliver(t.Context(), m) {
			if r.Action != envelope.ActionExpanded {
				t.Errorf("got %v %v", r.Action, r.Status)
			}
		}
	}
	c.drain()
	c.drain()
	c.wantGot("x@gamma.example > ana@gamma.example", "x@gamma.example > bob@gamma.example")
	for _, n := range c.sink.notices("x@gamma.example") {
		if !strings.Contains(n, "Action: expanded") {
			t.Errorf("a notice without expanded: %s", n)
		}
	}
	if n := len(c.sink.notices("x@gamma.example")); n != 1 {
		t.Errorf("%d notices, want 1", n)
	}
}

// TestKnownRecipients: who does not exist is refused at RCPT, or somebody else gets the mail; large mail takes a later rule.
func TestKnownRecipients(t *testing.T) {
	l := newLab(t)
	c := l.node("gamma")
	c.border(Local{}, route.Rule{To: []string{"gamma.example"}, Via: "maildir:/a", Known: route.NewAddresses([]string{"ana", "bob@gamma.example"}), UpTo: 2000},
		route.Rule{To: []string{"gamma.example"}, Via: "maildir:/b", Known: route.NewAddresses([]string{"ana"}), CatchAll: "ana"})
	ask := func(addr string, size int64) string {
		err := c.b.Rcpt(t.Context(), &envelope.Mail{Sender: "x@y.example"}, &envelope.Recipient{Addr: addr}, size)
		if err == nil {
			return "ok"
		}
		return err.Error()
	}
	for _, x := range []struct {
		addr string
		size int64
		want string
	}{{"ana@gamma.example", 0, "ok"}, {"ANA@gamma.EXAMPLE", 5000, "ok"}, {"BOB@gamma.example", 10, "ok"}, {"carl@gamma.example", 10, "5.1.1"}, {"carl@gamma.example", 5000, "ok"}} {
		if got := ask(x.addr, x.size); !strings.Contains(got, x.want) {
			t.Errorf("RCPT %s SIZE=%d: %s, want %s", x.addr, x.size, got, x.want)
		}
	}
	c.submit("x@gamma.example", "carl@gamma.example", strings.Repeat("long line\r\n", 400))
	c.drain()
	c.wantGot("x@gamma.example > ana@gamma.example")
}

// TestRewrite: what is inside is not seen outside, and back; the archive gets a copy of what enters.
func TestRewrite(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	inside := func(s string) route.Pattern {
		p, err := route.ParsePattern(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	c.border(Local{Archive: "archive@gamma.example", Rewrite: []Rewrite{{From: inside("gamma.internal"), To: "gamma.example"}, {From: inside("ana@gamma.example"), To: "ana@gamma.internal", Out: true}}},
		route.Rule{To: []string{"gamma.example", "gamma.internal"}, Via: "maildir:/gamma"})
	c.submit("ana@gamma.internal", "bob@alpha.example", "out\r\n")
	a.submit("bob@alpha.example", "ana@gamma.example", "in\r\n")
	for range 2 {
		a.meet()
		c.meet()
	}
	a.wantGot("ana@gamma.example > bob@alpha.example")
	c.wantGot("bob@alpha.example > ana@gamma.internal", "ana@gamma.example > archive@gamma.example")
}
