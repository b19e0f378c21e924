package bridge

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

// rules changes the route rules of a node.
func (n *node) rules(change func(r *route.Rule)) {
	n.t.Helper()
	p := *n.pol
	list := append([]route.Rule(nil), p.Routes.Route...)
	for i := range list {
		change(&list[i])
	}
	var err error
	if p.Routes, err = route.New(p.Routes.Deliver, list); err != nil {
		n.t.Fatal(err)
	}
	n.pol = &p
	n.b.SetPolicy(&p)
}

// live lets time go by at nodes that deliver what they have.
func (l *lab) live(d time.Duration, nodes ...*node) {
	l.t.Helper()
	for ; d > 0; d -= 5 * day {
		l.pass(min(d, 5*day), nodes...)
		for _, n := range nodes {
			n.deliver()
		}
	}
}

// legOf returns the first leg of the only item of a node.
func (n *node) legOf() *spool.Leg {
	n.t.Helper()
	items := n.items()
	if len(items) != 1 {
		n.t.Fatalf("%d items at %s", len(items), n.name)
	}
	return &items[0].Legs[0]
}

// TestKeepHop lets go of a content at the next hop's receipt, over a relay and without one; of a mail for two nodes only
// when both have it.
func TestKeepHop(t *testing.T) {
	l := newLab(t)
	a, r, c := l.node("alpha"), l.node("rho"), l.node("gamma")
	chain(a, r, c)
	a.rules(func(x *route.Rule) { x.KeepHop = true })
	text := "Subject: kept\r\nX-Long: " + strings.Repeat("y", 100) + "\r\n\r\n" + strings.Repeat("body\r\n", 4000)
	id := a.submit("ana@alpha.example", "bob@gamma.example,ray@rho.example", text)
	r.sink.refuse["ray@rho.example"] = envelope.Status{Code: 451, Enhanced: "4.2.0", Text: "later"}
	has := func() bool {
		t.Helper()
		eid, err := envelope.ParseID(id)
		if err != nil {
			t.Fatal(err)
		}
		f, err := a.sp.OpenBody(eid)
		if err == nil {
			f.Close()
		} else if !errors.Is(err, spool.ErrNoBody) {
			t.Fatal(err)
		}
		return err == nil
	}
	a.meet()
	if !has() {
		t.Fatal("gone before anybody said that he has it")
	}
	r.meet() // the relay has both: its own mail and the bundle for gamma
	a.meet()
	if has() {
		t.Fatal("still here after the next hop's receipts")
	}
	it := a.items()[0]
	if !it.Gone || !bytes.Contains(it.Header, []byte("Subject: kept")) || bytes.Contains(it.Header, []byte("body")) {
		t.Errorf("gone %v, header %q", it.Gone, it.Header)
	}
	if rep, err := a.sp.Fsck(false); err != nil || len(rep.Problems) != 0 {
		t.Errorf("fsck: %v %v", rep, err)
	}
	a.reopen()
	// overdue, a refusal, a lost memory: nothing goes again, and nothing breaks
	l.live(20*day, a)
	if err := a.b.renewed(c.keys.ID(), nil); err != nil {
		t.Fatal(err)
	}
	for _, it := range a.items() {
		for i := range it.Legs {
			if st := it.Legs[i].State; st != spool.Travelling && st != spool.Arrived && it.Env.ID.String() == id {
				t.Errorf("leg %d is %s", i, st)
			}
		}
	}
	c.meet()
	once(t, c, text)
	for range 2 {
		c.meet()
		r.meet()
		a.meet()
	}
	l.live(57*day, a, r, c)
	l.settle(5, a, r, c)
	wantTold(t, a, 1, 1, 0)
	for _, d := range a.sink.notices("ana@alpha.example") {
		if strings.Contains(d, "Action: failed") && (!strings.Contains(d, "rfc822; ray@rho.example") || strings.Contains(d, "rfc822; bob") ||
			!strings.Contains(d, "Subject: kept") || strings.Contains(d, "body")) {
			t.Errorf("the notice of failure:\n%s", d)
		}
	}
	mustEmpty(t, a, r, c)
}

// TestOneWay sends over a path from which nothing comes back: three times, then it counts as sent, whoever asked hears
// that, and nobody hears of a failure.
func TestOneWay(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:other") // what it writes goes nowhere
	a.rules(func(x *route.Rule) { x.OneWay = 3 })
	text := "Subject: out\r\n\r\nout\r\n"
	a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: []envelope.Recipient{
		{Addr: "bob@gamma.example", Notify: envelope.NotifySuccess | envelope.NotifyFailure}}}, text)
	carried := map[string]bool{}
	take := func() {
		for _, f := range l.take("one", a, c) {
			if !carried[f.name] {
				carried[f.name] = true
				l.mem("other").Set(f.dir, f.name, f.data)
			}
		}
	}
	for range 12 {
		a.meet()
		a.meet() // the reader has taken it off: it is not written again before its time
		take()
		l.pass(2*day, a)
	}
	a.deliver()
	if len(carried) != 3 {
		t.Errorf("%d packets were sent, want 3", len(carried))
	}
	if leg := a.legOf(); leg.State != spool.Sealed {
		t.Errorf("the leg is %s", leg.State)
	}
	wantTold(t, a, 0, 0, 1)
	if told(a, "one-way path") != 1 || told(a, "Action: relayed") != 1 {
		t.Errorf("told: %q", a.sink.notices("ana@alpha.example"))
	}
	c.meet()
	once(t, c, text)
	if n := len(a.items()); n != 1 || a.items()[0].Gone {
		t.Error("the content does not stay to expiry")
	}
	a.rules(func(x *route.Rule) { x.OneWay = 50 })
	mail(a, c, "its time is over before it was sent often enough")
	a.meet()
	take()
	p := *a.pol
	p.Contacts = nil
	a.b.SetPolicy(&p)
	mail(a, c, "no contact at all")
	l.live(80*day, a)
	wantTold(t, a, 1, 1, 1)
	if told(a, "no contact at all") != 2 {
		t.Errorf("what was never sent: %q", a.sink.notices("ana@alpha.example"))
	}
	mustEmpty(t, a)
}

// TestLifetimeOfTheCard clamps a route's lifetime to what the card of its node allows, and says so.
func TestLifetimeOfTheCard(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	if got := a.b.Clamped(); len(got) != 0 {
		t.Errorf("warned without reason: %q", got)
	}
	a.rules(func(x *route.Rule) { x.Lifetime = 400 * day })
	if got := a.b.Clamped(); len(got) != 1 || !strings.Contains(got[0], "lives 60d, not 400d") {
		t.Errorf("warnings: %q", got)
	}
	mail(a, c, "long")
	if got := a.items()[0].Env.Expires.Sub(l.clock()); got != seal.DefaultMaxLife {
		t.Errorf("lives %s", got)
	}
	a.rules(func(x *route.Rule) { x.Lifetime = 3 * day })
	a.submit("ana@alpha.example", "bob@gamma.example,ann@alpha.example", "Subject: two\r\n\r\ntwo\r\n")
	if got := a.items()[1].Env.Expires.Sub(l.clock()); got != 60*day {
		t.Errorf("a mail to two places lives %s, want the longer of the two", got)
	}
}

// TestOneNoticeAtExpiry ends a mail for three places at once: its sender hears once.
func TestOneNoticeAtExpiry(t *testing.T) {
	l := newLab(t)
	a, c, x := l.node("alpha"), l.node("gamma"), l.node("xi")
	a.knows(c, "dir:one")
	a.knows(x, "dir:two")
	a.sink.refuse["ann@alpha.example"] = envelope.Status{Code: 451, Enhanced: "4.2.1", Text: "box is locked"}
	a.submit("ana@alpha.example", "ann@alpha.example,bob@gamma.example,xen@xi.example", "Subject: three\r\n\r\nthree\r\n")
	a.deliver()
	l.live(61*day, a)
	wantTold(t, a, 1, 1, 0)
	for _, d := range a.sink.notices("ana@alpha.example") {
		if strings.Contains(d, "Action: failed") && strings.Count(d, "Final-Recipient:") != 3 {
			t.Errorf("the notice does not tell of three:\n%s", d)
		}
	}
	mustEmpty(t, a)
}

// TestLargeWaitsForNobody lets a live contact with a limit pass over a large mail, which another contact takes meanwhile.
func TestLargeWaitsForNobody(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	p := *a.pol
	small := *p.Contacts[0]
	small.MaxPacket = 2000
	p.Contacts = []*Contact{&small, {Node: c.keys.ID(), NodeName: c.name, URL: "dir:two", When: When{Always: true}}}
	a.pol = &p
	a.b.SetPolicy(&p)
	c.knows(a, "dir:two")
	text := "Subject: large\r\n\r\n" + strings.Repeat("large\r\n", 1000)
	a.submit("ana@alpha.example", "bob@gamma.example", text)
	tiny := mail(a, c, "small")
	d := a.b.openDesk(&small)
	packet, err := d.Next(t.Context())
	if err != nil || packet == nil {
		t.Fatal(packet, err)
	}
	d.Sent(packet)
	if more, err := d.Next(t.Context()); more != nil || err != nil {
		t.Fatalf("more than the small one: %v, %v", more, err)
	}
	a.contact(p.Contacts[1]) // while the other is still open
	c.meet()
	once(t, c, text)
	if _, _, stuck := d.close(0); !stuck {
		t.Error("the contact does not say that it could not take all")
	}
	l.set(l.clock().Add(time.Minute))
	a.meet()
	c.meet()
	l.settle(10, a, c)
	once(t, c, text, tiny)
}
