package bridge

import (
	"fmt"
	"io"
	netmail "net/mail"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/spool"
)

// ahead gives the rules of n for m a summary.
func (n *node) ahead(m *node, s route.Summary) {
	n.t.Helper()
	p := *n.pol
	rules := slices.Clone(p.Routes.Route)
	for i := range rules {
		if rules[i].Node == m.keys.ID() {
			rules[i].Summary = s
		}
	}
	var err error
	if p.Routes, err = route.New(p.Routes.Deliver, rules); err != nil {
		n.t.Fatal(err)
	}
	n.pol = &p
	n.b.SetPolicy(&p)
}

// thin is a lab of two nodes, where alpha sends summaries to gamma above 8 KiB.
func thin(t *testing.T) (l *lab, a, c *node) {
	l = newLab(t)
	a, c = l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	a.ahead(c, route.Summary{Above: 8 << 10})
	return l, a, c
}

// photos is a mail with a large attachment.
func photos(subject string) string {
	return "From: Ana <ana@alpha.example>\r\nTo: bob@gamma.example\r\nSubject: " + subject + "\r\nMessage-ID: <" + subject + "@alpha.example>\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nthe text of " + subject + "\r\n--b\r\n" +
		"Content-Type: image/jpeg; name=big.jpg\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 400) + "--b--\r\n"
}

// stubs are the summaries that somebody has got.
func (n *node) stubs(to string) (out []*netmail.Message) {
	n.t.Helper()
	for _, d := range n.sink.mails() {
		m, err := netmail.ReadMessage(strings.NewReader(d.content))
		if err != nil {
			n.t.Fatal(err)
		}
		if d.to == to && m.Header.Get("X-Mochila-Summary") != "" {
			out = append(out, m)
		}
	}
	return out
}

// token is the address in the one summary that somebody has got.
func (n *node) token(to string) string {
	n.t.Helper()
	all := n.stubs(to)
	if len(all) != 1 {
		n.t.Fatalf("%s has %d summaries: %v", to, len(all), n.got())
	}
	a, err := netmail.ParseAddress(all[0].Header.Get("Reply-To"))
	if err != nil {
		n.t.Fatal(err)
	}
	return a.Address
}

// legs tells states and sizes of what is queued, sorted.
func (n *node) legs() (out []string) {
	for _, it := range n.items() {
		for _, leg := range it.Legs {
			out = append(out, fmt.Sprintf("%s %v %v", leg.State, leg.Rcpts, heldForReader(&leg)))
		}
	}
	slices.Sort(out)
	return out
}

func (n *node) wantLegs(want ...string) {
	n.t.Helper()
	if got := n.legs(); !slices.Equal(got, want) {
		n.t.Errorf("%s: legs %q, want %q", n.name, got, want)
	}
}

// turns makes some contacts of both nodes.
func turns(a, c *node, n int) {
	for range n {
		a.meet()
		c.meet()
	}
}

// TestSummaryAskedFor: the summary comes, the mail is held, its reader asks, and gets every byte of it; then nothing is left.
func TestSummaryAskedFor(t *testing.T) {
	_, a, c := thin(t)
	whole := photos("one")
	id := a.send(&envelope.Mail{Sender: "ana@alpha.example", EnvID: "E1", Recipients: []envelope.Recipient{
		{Addr: "bob@gamma.example", Notify: envelope.NotifySuccess | envelope.NotifyFailure}}}, whole)
	a.wantLegs("due [0] false", "held [0] true")
	if n, size, err := a.b.HeldForReaders(); n != 1 || size < int64(len(whole)) || err != nil {
		t.Errorf("held: %d, %d bytes, %v", n, size, err)
	}
	turns(a, c, 3)
	s := c.stubs("bob@gamma.example")
	if len(s) != 1 {
		t.Fatalf("got %v", c.got())
	}
	h := s[0].Header
	if h.Get("X-Mochila-Summary") != id || h.Get("Subject") != "one" || h.Get("Message-Id") == "<one@alpha.example>" || h.Get("In-Reply-To") != "<one@alpha.example>" {
		t.Errorf("header %v", h)
	}
	if c.sink.count("bob@gamma.example", whole) != 0 {
		t.Error("the mail came though nobody asked")
	}
	a.wantLegs("held [0] true")
	wantTold(t, a, 0, 0, 0)
	ask := c.token("bob@gamma.example")
	if local, _, _ := strings.Cut(ask, "@"); len(local) > 64 || strings.ToLower(ask) != ask {
		t.Errorf("address %q", ask)
	}
	// mail systems on the way may change its case
	c.submit("Bob@GAMMA.example", strings.ToUpper(ask), "Subject: Re: one\r\nMessage-ID: <r@gamma.example>\r\n\r\nplease\r\n")
	turns(c, a, 4)
	if n := c.sink.count("bob@gamma.example", whole); n != 1 {
		t.Errorf("the mail came %d times", n)
	}
	wantTold(t, a, 0, 0, 1) // of the whole mail
	if n := c.sink.notices("Bob@GAMMA.example"); len(n) != 1 || !strings.Contains(n[0], "In-Reply-To: <r@gamma.example>") || !strings.Contains(n[0], "Subject: Re: one\r\n") {
		t.Errorf("answers %q", n)
	}
	// once more, when it has long been there
	c.submit("bob@gamma.example", ask, "Subject: again\r\n\r\n")
	turns(c, a, 3)
	if n := c.sink.count("bob@gamma.example", whole); n != 1 || len(c.sink.notices("bob@gamma.example")) != 0 {
		t.Errorf("asked twice: %d times, notices %q", n, c.sink.notices("bob@gamma.example"))
	}
	turns(a, c, 2)
	mustEmpty(t, a, c)
	if n := a.b.Numbers(); n.Summaries != 1 || n.Released != 1 {
		t.Errorf("numbers %+v", n)
	}
}

// TestSummaryStrangers: nobody gets a mail by a wrong token, from another node, or under another name.
func TestSummaryStrangers(t *testing.T) {
	l, a, c := thin(t)
	d := l.node("delta")
	a.knows(d, "dir:two")
	d.knows(a, "dir:two")
	held, err := envelope.ParseID(a.submit("ana@alpha.example", "bob@gamma.example,carl@gamma.example", photos("one")))
	if err != nil {
		t.Fatal(err)
	}
	turns(a, c, 2)
	ask := c.token("bob@gamma.example")
	if other := c.token("carl@gamma.example"); other != ask {
		t.Errorf("two summaries for one node: %q, %q", ask, other)
	}
	wrong := ask[:35] + strings.Repeat("a", 25) + ask[60:] // the right id
	refused := func(n *node, from, to, text, want string) {
		t.Helper()
		before := len(n.sink.notices(from))
		n.submit(from, to, text)
		for range 3 {
			n.meet()
			a.meet()
		}
		n.meet()
		notes := n.sink.notices(from)
		switch {
		case want == "" && len(notes) != before:
			t.Errorf("<%s> at %s is told %q", from, n.name, notes)
		case want != "" && (len(notes) != before+1 || !strings.Contains(flat(notes[before]), want)):
			t.Errorf("<%s> at %s: %d notices %q, want %q", from, n.name, len(notes)-before, notes, want)
		}
		a.wantLegs("held [0 1] true")
	}
	refused(c, "eve@gamma.example", ask, "\r\nhi\r\n", "5.7.1 only those to whom the mail is addressed")
	refused(c, "bob@gamma.example", wrong, "\r\nhi\r\n", "5.7.1 no mail is held here for this address")
	refused(c, "bob@gamma.example", releaseAddress(envelope.NewID(l.clock()), [16]byte{1}, "alpha.example"), "\r\nhi\r\n", "5.7.1 no mail is held")
	refused(d, "bob@gamma.example", ask, "\r\nhi\r\n", "")
	refused(d, "dan@delta.example", ask, "\r\nhi\r\n", "5.7.1 only those")
	refused(c, "bob@gamma.example", ask, "Auto-Submitted: auto-replied (vacation)\r\n\r\nI am away\r\n", "")
	refused(c, "bob@gamma.example", ask, "Precedence: Bulk\r\n\r\nI am away\r\n", "")
	refused(c, "", ask, "\r\nI am away\r\n", "")
	if err := a.b.Rcpt(t.Context(), &envelope.Mail{Sender: "bob@gamma.example"}, &envelope.Recipient{Addr: ask}, 0); err == nil || !strings.Contains(err.Error(), "5.7.1") {
		t.Errorf("at the node's own door: %v", err)
	}
	a.submit("bob@gamma.example", ask, "\r\nhi\r\n") // as a program does
	turns(a, c, 4)
	a.wantLegs("held [0 1] true")
	// an operator's word is above a reader's
	if err := a.b.Act(held, Act{Verb: VerbHold}); err != nil {
		t.Fatal(err)
	}
	a.wantLegs("held [0 1] false")
	c.submit("bob@gamma.example", ask, "\r\nhi\r\n")
	turns(c, a, 3)
	if n := c.sink.notices("bob@gamma.example"); !strings.Contains(flat(strings.Join(n, "")), "held by the operator") {
		t.Errorf("told %q", n)
	}
	if err := a.b.Act(held, Act{Verb: VerbRelease}); err != nil {
		t.Fatal(err)
	}
	turns(a, c, 3)
	if c.sink.count("bob@gamma.example", photos("one")) != 1 || c.sink.count("carl@gamma.example", photos("one")) != 1 {
		t.Errorf("after the release: %v", c.got())
	}
}

// flat undoes the folding of a notice.
func flat(s string) string { return strings.Join(strings.Fields(s), " ") }

// TestSummaryAnyone: where readers write from other addresses, the address is enough, from that node.
func TestSummaryAnyone(t *testing.T) {
	_, a, c := thin(t)
	a.ahead(c, route.Summary{Above: 8 << 10, Anyone: true})
	a.submit("ana@alpha.example", "info@gamma.example", photos("one"))
	turns(a, c, 2)
	c.submit("eve@gamma.example", c.token("info@gamma.example"), "\r\nhi\r\n")
	turns(c, a, 3)
	if c.sink.count("info@gamma.example", photos("one")) != 1 {
		t.Errorf("got %v", c.got())
	}
}

// TestSummaryFails: a summary that does not reach its reader ends the mail for him, and its sender hears of it once.
func TestSummaryFails(t *testing.T) {
	_, a, c := thin(t)
	c.sink.refuse["nobody@gamma.example"] = envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no such user"}
	c.sink.refuse["never@gamma.example"] = envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no such user"}
	id := a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: []envelope.Recipient{{Addr: "bob@gamma.example"}, {Addr: "nobody@gamma.example"},
		{Addr: "never@gamma.example", Notify: envelope.NotifyNever}}}, photos("one"))
	turns(a, c, 3)
	a.deliver()
	wantTold(t, a, 1, 0, 0)
	if n := a.sink.notices("ana@alpha.example"); len(n) != 1 || !strings.Contains(n[0], "X-Mochila-Queue-Id: "+id) || !strings.Contains(n[0], "550 5.1.1 no such user") || strings.Contains(n[0], "bob@gamma.example:") {
		t.Errorf("notices %q", n)
	}
	c.submit("bob@gamma.example", c.token("bob@gamma.example"), "\r\nhi\r\n")
	turns(c, a, 4)
	if c.sink.count("bob@gamma.example", photos("one")) != 1 {
		t.Errorf("got %v", c.got())
	}
	wantTold(t, a, 1, 0, 0)
	turns(a, c, 2)
	mustEmpty(t, a, c)
}

// TestSummaryNobodyAsks: its sender is told that it waits, and at the end that nobody wanted it; of silence he who asked for silence.
func TestSummaryNobodyAsks(t *testing.T) {
	l, a, c := thin(t)
	a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: to("bob@gamma.example")}, photos("one"))
	a.send(&envelope.Mail{Sender: "zoe@alpha.example", Recipients: []envelope.Recipient{{Addr: "bob@gamma.example", Notify: envelope.NotifyNever}}}, photos("two"))
	a.send(&envelope.Mail{Sender: "prog@alpha.example", Recipients: to("bob@gamma.example")}, "Auto-Submitted: auto-generated\r\n"+photos("three"))
	turns(a, c, 3)
	l.jump(3*24*time.Hour, a, c)
	a.deliver()
	wantTold(t, a, 0, 1, 0)
	if n := a.sink.notices("ana@alpha.example"); !strings.Contains(flat(n[0]), "its text was delivered in a summary; the whole mail is kept until its reader asks for it") {
		t.Errorf("delay notice %s", n)
	}
	l.pass(58*24*time.Hour, a, c)
	a.deliver()
	wantTold(t, a, 1, 1, 0)
	if n := a.sink.notices("ana@alpha.example"); !strings.Contains(flat(n[1]), "its text was delivered in a summary, and nobody asked") || !strings.Contains(n[1], "Status: 5.4.7") {
		t.Errorf("failure notice %s", n)
	}
	if z, p := a.sink.notices("zoe@alpha.example"), a.sink.notices("prog@alpha.example"); len(z)+len(p) != 0 {
		t.Errorf("told %q %q", z, p)
	}
	c.submit("bob@gamma.example", regexp.MustCompile(`release\+\w+@alpha.example`).FindString(c.sink.mails()[0].content), "\r\nhi\r\n")
	turns(c, a, 3)
	if n := c.sink.notices("bob@gamma.example"); len(n) != 1 || !strings.Contains(flat(n[0]), "no mail is held here") && !strings.Contains(flat(n[0]), "any more") {
		t.Errorf("asked too late: %q", n)
	}
	if n := len(c.sink.mails()); n != 3 {
		t.Errorf("%d mails at gamma, want three summaries", n)
	}
	l.pass(95*24*time.Hour, a)
	err := a.sp.View(func(tx *spool.Tx) error {
		return tx.KV(summaries).Each(nil, func(k, _ []byte) error { return fmt.Errorf("entry %x is kept for ever", k) })
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSummaryNeverThere: a contact that never comes ends summary and mail with one notice.
func TestSummaryNeverThere(t *testing.T) {
	l, a, _ := thin(t)
	a.submit("ana@alpha.example", "bob@gamma.example", photos("one"))
	l.pass(61*24*time.Hour, a)
	a.deliver()
	wantTold(t, a, 1, 1, 0)
	mustEmpty(t, a)
}

// TestSummaryNotFor: what travels whole.
func TestSummaryNotFor(t *testing.T) {
	_, a, c := thin(t)
	p := *a.pol
	p.Local.Archive = "box@gamma.example"
	a.pol = &p
	a.b.SetPolicy(&p)
	big := strings.Repeat("a line of text\r\n", 1000)
	signed := "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n" + big + "--b--\r\n"
	for _, m := range []struct {
		mail envelope.Mail
		text string
	}{
		{envelope.Mail{Sender: "small@alpha.example"}, "\r\nx\r\n"},
		{envelope.Mail{Sender: ""}, "\r\n" + big},
		{envelope.Mail{Sender: "urgent@alpha.example", Priority: 1}, "\r\n" + big},
		{envelope.Mail{Sender: "signed@alpha.example"}, signed},
		{envelope.Mail{Sender: "report@alpha.example"}, "Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n\r\n" + big + "--b--\r\n"},
	} {
		m.mail.Recipients = to("bob@gamma.example")
		a.send(&m.mail, m.text)
	}
	// the archive gets the whole mail, by the same node and under the same id
	a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: to("bob@gamma.example")}, photos("arch"))
	turns(a, c, 3)
	if n := len(c.stubs("bob@gamma.example")); n != 1 {
		t.Errorf("%d summaries: %v", n, c.got())
	}
	if len(c.stubs("box@gamma.example")) != 0 || c.sink.count("box@gamma.example", photos("arch")) != 1 {
		t.Errorf("the archive: %v", c.got())
	}
	if !slices.ContainsFunc(a.items(), func(it *spool.Item) bool { return strings.Contains(fmt.Sprint(it.Log), "held until a reader asks") }) {
		t.Error("the trace says nothing of the summary")
	}
	c.submit("bob@gamma.example", c.token("bob@gamma.example"), "\r\nhi\r\n")
	turns(c, a, 4)
	if c.sink.count("bob@gamma.example", photos("arch")) != 1 || c.sink.count("box@gamma.example", photos("arch")) != 1 {
		t.Errorf("after asking: %v", c.got())
	}
	turns(a, c, 2)
	mustEmpty(t, a, c)
	a.ahead(c, route.Summary{Above: 8 << 10, Signed: true})
	a.send(&envelope.Mail{Sender: "signed@alpha.example", Recipients: to("sue@gamma.example")}, signed)
	turns(a, c, 2)
	if s := c.stubs("sue@gamma.example"); len(s) != 1 {
		t.Errorf("a signed mail with summary_signed = hold: %v", c.got())
	}
}

// TestSummaryLegs: of one mail for several nodes only that is held which goes by a rule with a summary, and for each node by
// its own limit.
func TestSummaryLegs(t *testing.T) {
	l, a, c := thin(t)
	d, e := l.node("delta"), l.node("epsilon")
	a.knows(d, "dir:two")
	d.knows(a, "dir:two")
	a.knows(e, "dir:three")
	e.knows(a, "dir:three")
	a.ahead(e, route.Summary{Above: 20 << 10})
	id := a.submit("ana@alpha.example", "bob@gamma.example,dan@delta.example,eve@epsilon.example,local@alpha.example", photos("one"))
	a.deliver()
	a.meet()
	for _, n := range []*node{c, d, e} {
		n.meet()
	}
	if len(c.stubs("bob@gamma.example")) != 1 || len(e.stubs("eve@epsilon.example")) != 1 || d.sink.count("dan@delta.example", photos("one")) != 1 || a.sink.count("local@alpha.example", photos("one")) != 1 {
		t.Errorf("%v %v %v %v", c.got(), d.got(), e.got(), a.got())
	}
	e.submit("eve@epsilon.example", e.token("eve@epsilon.example"), "\r\nhi\r\n")
	turns(e, a, 3)
	c.meet()
	if e.sink.count("eve@epsilon.example", photos("one")) != 1 || c.sink.count("bob@gamma.example", photos("one")) != 0 {
		t.Errorf("eve asked: %v, bob did not: %v", e.got(), c.got())
	}
	for range 3 {
		a.meet()
		d.meet()
		e.meet()
	}
	held, err := envelope.ParseID(id)
	if err == nil {
		err = a.b.Act(held, Act{Verb: VerbBounce, Reason: "no"})
	}
	if err != nil {
		t.Fatal(err)
	}
	a.deliver()
	wantTold(t, a, 1, 0, 0)
}

// TestSummaryCommit: at every moment of a mail's acceptance and release, what a crash leaves is all or nothing: never a
// mail that travels beside its summary, never a summary of nothing, never two.
func TestSummaryCommit(t *testing.T) {
	_, a, c := thin(t)
	var images []image
	during := func(work func()) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				images = append(images, a.image())
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
		work()
		close(stop)
		wg.Wait()
		images = append(images, a.image())
	}
	during(func() {
		for i := range 3 {
			a.submit("ana@alpha.example", "bob@gamma.example", photos(fmt.Sprint("n", i)))
		}
	})
	held := 0
	for _, m := range thinned(images, 12) {
		a.rollBack(m)
		n := map[string]int{}
		for _, s := range a.legs() {
			n[s]++
		}
		if n["due [0] false"] != n["held [0] true"] || len(n) > 2 {
			t.Fatalf("after a crash: %v", n)
		}
		held = max(held, n["held [0] true"])
	}
	if held != 3 {
		t.Errorf("%d are held at the end, want 3", held)
	}
	// the release: a crash between it and the outcome of the request releases once
	turns(a, c, 3)
	ask, err := netmail.ParseAddress(c.stubs("bob@gamma.example")[0].Header.Get("Reply-To"))
	if err != nil {
		t.Fatal(err)
	}
	request := &envelope.Envelope{ID: envelope.NewID(a.now()), Origin: c.keys.ID(), Mail: &envelope.Mail{Sender: "bob@gamma.example", Recipients: to(ask.Address)}}
	msg := &deliver.Message{Env: request, Rcpts: []int{0}, Open: openText("Subject: x\r\n\r\n")}
	images = nil
	during(func() {
		for range 3 {
			if r := (reader{a.b}).Deliver(t.Context(), msg); r[0].Action != envelope.ActionDelivered {
				t.Errorf("%+v", r)
			}
		}
	})
	for _, m := range thinned(images, 6) {
		a.rollBack(m)
		due := 0
		for _, s := range a.legs() {
			if s == "due [0] false" { // the mail, and the answer to who asked
				due++
			}
		}
		if due != 0 && due != 2 {
			t.Fatalf("after a crash: %v", a.legs())
		}
	}
}

// thinned is some of a list, first and last among them.
func thinned(all []image, n int) (out []image) {
	for i := range all {
		if i == len(all)-1 || i%(len(all)/n+1) == 0 {
			out = append(out, all[i])
		}
	}
	return out
}

// TestSummaryNoRoom: a disk without room for both takes neither.
func TestSummaryNoRoom(t *testing.T) {
	l, a, _ := thin(t)
	l.disk(a, 50<<20)
	m := &envelope.Mail{Sender: "ana@alpha.example", Recipients: to("bob@gamma.example")}
	in, err := a.b.Data(t.Context(), m)
	if err == nil {
		if _, err = in.Write([]byte(photos("one"))); err == nil {
			_, err = in.Commit(t.Context())
		}
	}
	if err == nil || statusOf(err).Code != 452 {
		t.Errorf("got %v, want 452", err)
	}
	mustEmpty(t, a)
}

// openText opens a text, each time anew.
func openText(s string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}
