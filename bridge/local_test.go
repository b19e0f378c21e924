package bridge

import (
	"io"
	"slices"
	"strings"
	"testing"

	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/spool"
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

// TestAliasesOfTwoNodes: a name for several at one node may name one for several at the other.
func TestAliasesOfTwoNodes(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	a.border(Local{Aliases: map[string][]string{"staff": {"ana", "team@gamma.example"}}})
	c.border(Local{Aliases: map[string][]string{"team": {"x", "y"}}})
	a.submit("ana@alpha.example", "staff@alpha.example", "hello\r\n")
	a.drain()
	for range 3 {
		a.meet()
		c.meet()
	}
	a.wantGot("ana@alpha.example > ana@alpha.example")
	c.wantGot("ana@alpha.example > x@gamma.example", "ana@alpha.example > y@gamma.example")
}

// TestNoticeToAnAlias: a report for a name that stands for somebody reaches him.
func TestNoticeToAnAlias(t *testing.T) {
	l := newLab(t)
	c := l.node("gamma")
	c.border(Local{Aliases: map[string][]string{"root": {"ana"}}})
	c.sink.refuse["nobody@gamma.example"] = envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no"}
	c.submit("root@gamma.example", "nobody@gamma.example", "hello\r\n")
	for range 4 {
		c.drain()
	}
	if n := len(c.sink.notices("ana@gamma.example")); n != 1 {
		t.Errorf("ana has %d notices", n)
	}
	if n := len(c.sink.notices("root@gamma.example")); n != 0 {
		t.Errorf("root's own mailbox has %d notices", n)
	}
}

// TestLostArchiveIsNotSilent: a copy that the archive refuses is a dead letter, and no matter of the sender's.
func TestLostArchiveIsNotSilent(t *testing.T) {
	l := newLab(t)
	c := l.node("gamma")
	c.border(Local{Archive: "archive@gamma.example"})
	c.sink.refuse["archive@gamma.example"] = envelope.Status{Code: 550, Enhanced: "5.2.2", Text: "full"}
	c.submit("x@gamma.example", "ana@gamma.example", "hello\r\n")
	for range 3 {
		c.drain()
	}
	c.wantGot("x@gamma.example > ana@gamma.example")
	if n := len(c.sink.notices("x@gamma.example")); n != 0 {
		t.Errorf("the sender has %d notices", n)
	}
	if items := c.items(); len(items) != 1 || items[0].Legs[0].Dest != spool.DeadDest && items[0].Legs[len(items[0].Legs)-1].Dest != spool.DeadDest {
		t.Errorf("no dead letter: %v", items)
	}
}

// TestReturnedFile: a mail that was taken into the maildrop and is refused later goes back to its sender.
func TestReturnedFile(t *testing.T) {
	l := newLab(t)
	c := l.node("gamma")
	m := &envelope.Mail{Sender: "ana", Recipients: to("bob@else.example"), Client: envelope.Client{Proto: "local", UID: 1001}}
	in, err := c.b.ReturnFile(t.Context(), "file", m, envelope.NewStatus(550, "5.7.1", "it smells"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("Subject: late\r\n\r\nhello\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.drain()
	list := c.sink.notices("ana@gamma.example")
	if len(list) != 1 || !strings.Contains(list[0], "Status: 5.7.1") || !strings.Contains(list[0], "it smells") || !strings.Contains(list[0], "Subject: late") {
		t.Errorf("notices: %q", list)
	}
	if !c.b.SeenFile("file") {
		t.Error("the file would be taken again")
	}
}

// TestBodyNoted: large content is noted as what it is, whatever its client said, so that sending it needs no look at it.
func TestBodyNoted(t *testing.T) {
	n := newLab(t).node("alpha")
	large := strings.Repeat("0123456789abcdef\r\n", deliver.SmallContent/18)
	for _, c := range []struct{ said, text, want string }{
		{"", "Subject: x\r\n\r\nabc\r\n", ""},
		{"", "Subject: x\r\n\r\n\xe9\r\n", ""},
		{"7BIT", "Subject: x\r\n\r\n\xe9\r\n", "7BIT"},
		{"", "Subject: x\r\n\r\n" + large, "7BIT"},
		{"", "Subject: x\r\n\r\n" + large + "\xe9\r\n", "8BITMIME"},
		{"7BIT", "Subject: x\r\n\r\n\xe9\r\n" + large, "8BITMIME"},
		{"8BITMIME", "Subject: x\r\n\r\n" + large, "8BITMIME"},
		{"BINARYMIME", "Subject: x\r\n\r\n" + large, "BINARYMIME"},
	} {
		id, err := n.enter(&envelope.Mail{Sender: "ana@alpha.example", Body: c.said, Recipients: []envelope.Recipient{{Addr: "bob@alpha.example"}}}, c.text)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range n.items() {
			if it.Env.ID.String() == id && it.Env.Mail.Body != c.want {
				t.Errorf("%d bytes, BODY %q: noted %q, want %q", len(c.text), c.said, it.Env.Mail.Body, c.want)
			}
		}
	}
	if got := len(n.items()); got != 8 {
		t.Errorf("%d mails in the spool", got)
	}
}
