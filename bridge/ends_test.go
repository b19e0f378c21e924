package bridge

import (
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// send submits a mail with every parameter a test may want.
func (n *node) send(m *envelope.Mail, text string) string {
	n.t.Helper()
	if m.Client.Proto == "" {
		m.Client = envelope.Client{Proto: "local", UID: 1001}
	}
	in, err := n.b.Submit(n.t.Context(), m)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := in.Write([]byte(text)); err != nil {
		n.t.Fatal(err)
	}
	id, err := in.Commit(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func to(addrs ...string) (out []envelope.Recipient) {
	for _, a := range addrs {
		out = append(out, envelope.Recipient{Addr: a})
	}
	return out
}

// told counts the notices for ana at a node by what they say.
func told(n *node, what string) (k int) {
	for _, d := range n.sink.notices("ana@" + n.name + ".example") {
		if strings.Contains(d, what) {
			k++
		}
	}
	return k
}

// wantTold compares the notices that ana has got: failures, delays, deliveries.
func wantTold(t *testing.T, n *node, failed, delayed, delivered int) {
	t.Helper()
	f, d, s := told(n, "Action: failed"), told(n, "Action: delayed"), told(n, "Action: delivered")+told(n, "Action: relayed")
	if f != failed || d != delayed || s != delivered {
		t.Errorf("%s: notices of failure %d, delay %d, delivery %d; want %d, %d, %d", n.name, f, d, s, failed, delayed, delivered)
	}
}

// TestExpiryNeverSent ends a mail that no contact ever took: one notice of failure, at once when its time is over.
func TestExpiryNeverSent(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	mail(a, c, "nobody comes for it")
	l.pass(59*24*time.Hour, a)
	a.deliver()
	wantTold(t, a, 0, 1, 0)
	l.pass(2*24*time.Hour, a)
	a.deliver()
	wantTold(t, a, 1, 1, 0)
	if told(a, "5.4.7") == 0 {
		t.Error("the notice has no status 5.4.7")
	}
	mustEmpty(t, a)
	l.pass(30*24*time.Hour, a)
	a.deliver()
	wantTold(t, a, 1, 1, 0)
}

// TestExpiryExposed waits with the notice of failure for the grace when bytes have left, also when they were to go
// again; a receipt and an outcome that come in the grace count.
func TestExpiryExposed(t *testing.T) {
	for _, s := range []struct {
		name   string
		before func(l *lab, a, c *node)
		failed int
	}{
		{"lost", func(l *lab, a, c *node) {}, 1},
		{"outcome in the grace", func(l *lab, a, c *node) {
			c.meet()
			c.meet()
		}, 0},
	} {
		t.Run(s.name, func(t *testing.T) {
			l := newLab(t)
			a, c := l.pair()
			mail(a, c, "on a stick that comes late")
			l.pass(56*24*time.Hour, a) // it leaves four days before its end, and becomes due again one before
			a.meet()
			s.before(l, a, c)
			held := l.take("one", c, a) // the courier is away
			l.pass(5*24*time.Hour, a)
			a.deliver()
			if failed := told(a, "Action: failed"); failed != 0 {
				t.Fatalf("a failure was told before the grace was over")
			}
			l.pass(8*24*time.Hour, a)
			if n := len(l.lying("one", a, c)); n == 0 {
				t.Error("what may still arrive was taken off the stick")
			}
			l.put("one", held...)
			a.meet()
			l.pass(10*24*time.Hour, a)
			a.deliver()
			wantTold(t, a, s.failed, 1, 0)
			mustEmpty(t, a)
			a.meet()
			c.meet() // too late: it must not be delivered after its sender was told that it failed
			if n := c.sink.count("bob@gamma.example", "late\r\n"); n != 1-s.failed {
				t.Errorf("delivered %d times", n)
			}
		})
	}
}

// TestFailureAtDestination writes the notice at the origin and nowhere else, once, also when the report comes twice.
func TestFailureAtDestination(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	c.sink.refuse["nobody@gamma.example"] = envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no such user"}
	a.submit("ana@alpha.example", "nobody@gamma.example,bob@gamma.example", "Subject: x\r\n\r\nfor two\r\n")
	a.meet()
	c.meet()
	reports := l.lying("one", c, a)
	c.meet()
	a.meet()
	l.settle(5, a, c)
	l.put("one", reports...)
	a.reopen()
	l.settle(5, a, c)
	wantTold(t, a, 1, 0, 0)
	if told(a, "no such user") != 1 || told(a, "nobody@gamma.example") != 1 {
		t.Error("the notice does not say what failed")
	}
	for _, d := range c.sink.got {
		if d.from == "" {
			t.Errorf("the destination wrote a notice itself:\n%s", d.content)
		}
	}
	once(t, c, "for two\r\n")
	mustEmpty(t, a, c)
}

// TestNobodyToTell ends failed mail of the null sender as a dead letter.
func TestNobodyToTell(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	c.sink.refuse["nobody@gamma.example"] = envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no such user"}
	a.submit("", "nobody@gamma.example", "Subject: bounce\r\n\r\nof a bounce\r\n")
	l.settle(2, a, c)
	it := a.items()
	if len(it) != 1 || it[0].Legs[len(it[0].Legs)-1].Dest != spool.DeadDest {
		t.Fatalf("no dead letter: %+v", it)
	}
	if !l.log.has("dead letter") {
		t.Error("no log line")
	}
	if len(a.sink.got)+len(c.sink.got) > 2 { // the warm-up's
		t.Error("somebody got something")
	}
}

// TestNotify does what RFC 3461 asks for.
func TestNotify(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	no := envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no such user"}
	c.sink.refuse["nobody@gamma.example"] = no
	m := func(addr string, n envelope.Notify) *envelope.Mail {
		return &envelope.Mail{Sender: "ana@alpha.example", EnvID: "E-1", Recipients: []envelope.Recipient{{Addr: addr, Notify: n}}}
	}
	a.send(m("nobody@gamma.example", envelope.NotifyNever), "Subject: 1\r\n\r\nnever\r\n")
	l.settle(3, a, c)
	wantTold(t, a, 0, 0, 0)
	mustEmpty(t, a, c)
	a.send(m("bob@gamma.example", envelope.NotifySuccess), "Subject: 2\r\n\r\nsuccess\r\n")
	l.settle(3, a, c)
	wantTold(t, a, 0, 0, 1)
	a.send(m("nobody@gamma.example", envelope.NotifySuccess), "Subject: 3\r\n\r\nonly success\r\n")
	l.settle(3, a, c)
	wantTold(t, a, 0, 0, 1)
	a.send(m("nobody@gamma.example", envelope.NotifyFailure), "Subject: 4\r\n\r\nfailure\r\n")
	l.settle(3, a, c)
	wantTold(t, a, 1, 0, 1)
	mustEmpty(t, a, c)
}

// TestWeekOfOutage lets every carrier of a chain of three be away for a week: one notice of delay, then delivery.
func TestWeekOfOutage(t *testing.T) {
	l := newLab(t)
	a, r, c := l.node("alpha"), l.node("relay"), l.node("gamma")
	chain(a, r, c)
	text := mail(a, c, "patience")
	for _, s := range []string{"left", "right"} {
		l.mem(s).Unplug(true)
	}
	for range 7 {
		l.pass(24*time.Hour, a, r, c)
		for _, n := range []*node{a, r, c} {
			for _, x := range n.contact() {
				if x.Err == nil {
					t.Fatal("a contact over an absent stick went well")
				}
			}
			n.deliver()
		}
	}
	wantTold(t, a, 0, 1, 0)
	for _, s := range []string{"left", "right"} {
		l.mem(s).Unplug(false)
	}
	l.settle(10, a, r, c)
	once(t, c, text)
	wantTold(t, a, 0, 1, 0)
	mustEmpty(t, a, r, c)
}

// TestNoWayBack delivers over a chain whose answers never come back: the sender is told once that there is no proof,
// after the grace.
func TestNoWayBack(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	text := mail(a, c, "one way")
	for range 30 {
		a.meet()
		c.meet()
		l.take("one", c, a)
		l.jump(3*24*time.Hour, a, c)
		if d := l.clock().Sub(labStart); d < (60+13)*24*time.Hour {
			wantTold(t, a, 0, told(a, "Action: delayed"), 0)
		}
	}
	once(t, c, text)
	wantTold(t, a, 1, 1, 0)
	mustEmpty(t, a)
}

// TestSuspectClock has nothing expire, bounce or be forgotten while the clock is wrong, and mail goes on.
func TestSuspectClock(t *testing.T) {
	for _, s := range []struct {
		name  string
		wrong time.Time
	}{
		{"1970", time.Unix(1000, 0).UTC()},
		{"a year back", labStart.AddDate(-1, 0, 0)},
		{"a year ahead", labStart.AddDate(1, 0, 0)},
	} {
		t.Run(s.name, func(t *testing.T) {
			l := newLab(t)
			a, c := l.pair()
			for _, n := range []*node{a, c} {
				n.deaf()
				n.tick()
			}
			c.sink.refuse["bob@gamma.example"] = envelope.Status{Code: 451, Enhanced: "4.2.1", Text: "later"}
			waits := mail(a, c, "waits at the destination")
			a.meet()
			c.meet()
			a.meet()
			here := mail(a, c, "waits at the origin")
			was := a.incarnation()
			right := l.clock()
			l.set(s.wrong)
			for _, n := range []*node{a, c} {
				n.reopen()
				n.deaf()
				if n.b.ClockSuspect() == "" {
					t.Errorf("%s trusts its clock after the start", n.name)
				}
			}
			for range 100 {
				l.jump(24*time.Hour, a, c)
			}
			for _, n := range []*node{a, c} {
				n.deliver()
			}
			wantTold(t, a, 0, 0, 0)
			if len(a.items()) != 2 || len(c.items()) != 1 {
				t.Errorf("%d items at the origin, %d at the destination", len(a.items()), len(c.items()))
			}
			delete(c.sink.refuse, "bob@gamma.example")
			fresh := mail(a, c, "on a wrong clock")
			if err := c.b.Flush(); err != nil {
				t.Fatal(err)
			}
			for range 4 {
				a.meet()
				c.meet()
			}
			once(t, c, waits, here, fresh)
			noFailures(t, a, c)
			if a.b.ClockSuspect() == "" {
				t.Error("the clock is trusted again by itself")
			}
			l.set(right.Add(24 * time.Hour))
			for _, n := range []*node{a, c} {
				n.reopen()
				n.deaf()
				if why := n.b.ClockSuspect(); why != "" {
					t.Errorf("%s: the right clock is suspect: %s", n.name, why)
				}
			}
			l.settle(10, a, c)
			mustEmpty(t, a, c)
			if a.incarnation() != was {
				t.Error("a wrong clock began a new life")
			}
		})
	}
}

// deaf keeps the kernel's word on the clock away from a node, and has it look again.
func (n *node) deaf() {
	n.b.clock.kernel = func() bool { return false }
	n.b.clock.why = ""
	if err := n.b.clock.load(n.b); err != nil {
		n.t.Fatal(err)
	}
}

// TestClockJumps notices a step while running, with a clock that runs on beside it.
func TestClockJumps(t *testing.T) {
	base := time.Now()
	for _, s := range []struct {
		name    string
		ran     time.Duration
		wall    time.Duration
		suspect bool
	}{
		{"an hour", time.Hour, time.Hour, false},
		{"asleep for six days", time.Hour, 6 * 24 * time.Hour, false},
		{"asleep for eight days", time.Hour, 8 * 24 * time.Hour, true},
		{"four minutes back", time.Hour, time.Hour - 4*time.Minute, false},
		{"ten minutes back", time.Hour, time.Hour - 10*time.Minute, true},
	} {
		c := clock{last: base.Round(0), mono: base, kernel: func() bool { return false }}
		later := base.Add(s.ran) // both readings
		c.last = c.last.Add(s.ran - s.wall)
		c.look(later)
		if c.suspect() != s.suspect {
			t.Errorf("%s: suspect %v (%s)", s.name, c.suspect(), c.reason())
		}
	}
}

// TestClockTrustedAgain ends the suspicion by a person's word, and by that of two peers.
func TestClockTrustedAgain(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	x := l.node("xi")
	x.knows(a, "dir:x")
	a.knows(x, "dir:x")
	warmUp(l, x, a)
	a.tick()
	l.jump(9*24*time.Hour, a, c, x)
	a.close()
	l.set(l.clock().Add(9 * 24 * time.Hour))
	a.open()
	a.deaf()
	if a.b.ClockSuspect() == "" {
		t.Fatal("nine days without running are not suspect")
	}
	mail(c, a, "by a good clock")
	c.meet()
	a.meet()
	if a.b.ClockSuspect() == "" {
		t.Error("one peer's time is enough")
	}
	mail(x, a, "by another good clock")
	x.meet()
	a.meet()
	if why := a.b.ClockSuspect(); why != "" {
		t.Errorf("two peers agree, and it is still suspect: %s", why)
	}
	for _, now := range []time.Time{time.Unix(5000, 0), l.clock().AddDate(3, 0, 0)} {
		l.set(now)
		a.reopen()
		a.deaf()
		if a.b.ClockSuspect() == "" {
			t.Fatal("trusted")
		}
		if err := a.b.AcceptClock(); err != nil {
			t.Fatal(err)
		}
		if a.b.ClockSuspect() != "" {
			t.Error("not trusted after it was declared right")
		}
		for range 20 {
			l.jump(3*24*time.Hour, a)
			a.reopen()
			a.deaf()
			if why := a.b.ClockSuspect(); why != "" {
				t.Fatalf("suspect again later: %s", why)
			}
		}
	}
}

// TestLoop sends mail round in a circle of nodes: it ends with one notice.
func TestLoop(t *testing.T) {
	l := newLab(t)
	a, b := l.node("alpha"), l.node("beta")
	a.knows(b, "dir:one")
	b.knows(a, "dir:one")
	c := l.node("gamma")
	b.knows(c, "dir:two")
	c.knows(b, "dir:two")
	c.knows(a, "dir:three")
	a.knows(c, "dir:three")
	for _, p := range [][2]*node{{a, b}, {b, c}, {c, a}} {
		p[0].sends("loop.example", p[1])
	}
	a.submit("ana@alpha.example", "u@loop.example", "Subject: round\r\n\r\nand round\r\n")
	for range 40 {
		for _, n := range []*node{a, b, c} {
			n.meet()
		}
	}
	l.settle(10, a, b, c)
	wantTold(t, a, 1, 0, 0)
	if told(a, "5.4.6") != 1 {
		t.Error("the notice does not say that it is a loop")
	}
	mustEmpty(t, a, b, c)
}
