package bridge

import (
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
)

const day = 24 * time.Hour

// TestAgeTravels lets a mail wait at its origin, then at a relay, then at its destination, and there end after the sixty
// days of its life, although the clocks of relay and destination are behind by weeks and hold it for young.
func TestAgeTravels(t *testing.T) {
	for _, direct := range []bool{false, true} {
		l := newLoneLab(t)
		a, r, c := l.node("alpha"), l.wrongNode("rho", -20*day), l.wrongNode("gamma", -30*day)
		if direct {
			a.knows(c, "dir:left")
			c.knows(a, "dir:left")
			warmUp(l, a, c)
		} else {
			chain(a, r, c)
			mail(a, c, "warm")
			l.settle(3, a, r, c)
		}
		c.sink.refuse["bob@gamma.example"] = envelope.Status{Code: 450, Enhanced: "4.2.0", Text: "not today"}
		mail(a, c, "old")
		age, mailed := func(n *node) time.Duration {
			it := n.items()[0]
			return it.Env.Age + n.now().Sub(it.Entered)
		}, l.clock()
		l.pass(20*day, a, r, c)
		a.meet()
		if !direct {
			r.contact(r.b.Policy().Contacts[0])
			l.pass(22*day, a, r, c)
			r.contact(r.b.Policy().Contacts[1])
		}
		c.meet()
		waited := l.clock().Sub(mailed)
		if got := age(c); got > waited || got < waited-40*time.Minute {
			t.Errorf("direct %v: at the destination it has an age of %s after %s", direct, got, waited)
		}
		l.pass(60*day-l.clock().Sub(mailed)-2*time.Hour, c)
		if n := len(c.items()); n != 1 || c.items()[0].Env.Kind != envelope.KindMail {
			t.Errorf("direct %v: two hours before its end it is gone", direct)
		}
		l.pass(3*time.Hour, c)
		for _, it := range c.items() {
			if it.Env.Kind == envelope.KindMail {
				t.Errorf("direct %v: still there after %s", direct, l.clock().Sub(mailed))
			}
		}
		l.settle(4, a, r, c)
		if n := told(a, "5.4.7"); n != 1 {
			t.Errorf("direct %v: %d notices that its time is over", direct, n)
		}
	}
}

// TestRelayAges makes a relay whose clock is far behind drop a bundle when its time is over.
func TestRelayAges(t *testing.T) {
	l := newLab(t)
	a, r, c := l.node("alpha"), l.wrongNode("rho", -70*day), l.node("gamma")
	chain(a, r, c)
	mail(a, c, "never on")
	a.meet()
	r.b.Sync(t.Context(), []*Contact{r.b.Policy().Contacts[0]})
	if n := len(r.items()); n != 1 {
		t.Fatalf("%d items at the relay", n)
	}
	l.pass(60*day+transitGrace-day, r)
	if len(r.items()) != 1 {
		t.Error("dropped before its time")
	}
	l.pass(2*day, r)
	if len(r.items()) != 0 {
		t.Error("the relay keeps what is long over")
	}
}

// TestClockPutRight boots a node with a date of last year's, lets it take mail, puts the clock right, and wants the mail
// to live on: it is a minute old. What the node had before it went down keeps its times.
func TestClockPutRight(t *testing.T) {
	for _, step := range []time.Duration{90 * day, 20 * time.Minute, -90 * day} {
		l := newLoneLab(t)
		boot, up := "one", time.Hour
		a, c := l.node("alpha"), l.node("gamma")
		a.up = func() (string, time.Duration, bool) { return boot, up, true }
		a.reopen()
		a.knows(c, "dir:one")
		c.knows(a, "dir:one")
		warmUp(l, a, c)
		run := func(d time.Duration) { // time that really passes
			up += d
			l.jump(d, a, c)
		}
		before := mail(a, c, "taken by the right clock")
		entered := a.items()[0].Entered
		run(time.Minute)
		a.close()
		boot, up, a.skew = "two", time.Minute, -step
		l.set(l.clock().Add(10 * time.Minute))
		a.open()
		a.deaf()
		a.tick()
		run(time.Minute)
		text := mail(a, c, "taken by the wrong clock")
		by := a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: to("bob@gamma.example"),
			By: &envelope.By{Deadline: a.now().Add(2 * time.Hour), Return: true}}, "Subject: by\r\n\r\nby\r\n")
		run(time.Minute)
		a.skew = 0
		a.b.clock.kernel = func() bool { return true } // something keeps the clock from now on
		up += time.Minute
		l.jump(time.Minute, a, c)
		if step > 0 { // and the same across a new process
			a.reopen()
			a.b.clock.kernel = func() bool { return true }
			a.tick()
		}
		for _, it := range a.items() {
			switch id, in := it.Env.ID.String(), it.Env.Expires.Sub(l.clock()); {
			case it.Entered.Equal(entered):
				if step > 0 && in < 59*day {
					t.Errorf("%s: what was there before expires in %s", step, in)
				}
			case id == by && (in < 110*time.Minute || in > 2*time.Hour || !it.Env.Mail.By.Deadline.Equal(it.Env.Expires)):
				t.Errorf("%s: the deadline is in %s, at %s", step, in, it.Env.Mail.By.Deadline)
			case id != by && (in < 59*day || in > 60*day):
				t.Errorf("%s: expires in %s", step, in)
			}
		}
		a.meet()
		c.meet()
		once(t, c, before, text, "Subject: by\r\n\r\nby\r\n")
		l.settle(5, a, c)
		noFailures(t, a)
		mustEmpty(t, a, c)
	}
}

// TestClockMoveResumes kills the process between the step and the moment when all of the queue has followed it.
func TestClockMoveResumes(t *testing.T) {
	l := newLab(t)
	up := time.Hour
	a, c := l.node("alpha"), l.node("gamma")
	a.up = func() (string, time.Duration, bool) { return "one", up, true }
	a.reopen()
	a.knows(c, "dir:none")
	a.tick()
	for i := range 3 {
		mail(a, c, strings.Repeat("x", i+1))
	}
	was := a.items()[0].Entered
	l.set(l.clock().Add(90*day + time.Minute))
	up += time.Minute
	a.b.clock.look(a.now())
	if err := a.b.clock.store(a.b, a.now()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a.reopen()
		a.tick()
		for _, it := range a.items() {
			if got := it.Entered.Sub(was); got != 90*day {
				t.Errorf("moved by %s", got)
			}
		}
	}
}

// TestDeadline compares what a node expires by with what its origin asked for.
func TestDeadline(t *testing.T) {
	at := func(d time.Duration) time.Time { return labStart.Add(d) }
	for _, x := range []struct {
		name                                 string
		created, entered, age, expires, want time.Duration
	}{
		{"own", 0, 0, 0, 60 * day, 60 * day},
		{"on its way for ten days", 0, 10 * day, 0, 60 * day, 60 * day},
		{"waited for ten days", 0, 10 * day, 10 * day, 60 * day, 60 * day},
		{"a clock that is behind", 0, -90 * day, 10 * day, 60 * day, -40 * day},
		{"a clock that is ahead", 0, 20 * day, 10 * day, 60 * day, 60 * day},
		{"older than its life", 0, 0, 70 * day, 60 * day, -10 * day},
	} {
		it := &spool.Item{Entered: at(x.entered), Env: &envelope.Envelope{Created: at(x.created), Expires: at(x.expires), Age: x.age}}
		if got := it.Deadline(); !got.Equal(at(x.want)) {
			t.Errorf("%s: %s, want %s", x.name, got.Sub(labStart), x.want)
		}
	}
	if it := (&spool.Item{Env: &envelope.Envelope{Created: labStart}, Entered: labStart}); !it.Deadline().IsZero() {
		t.Errorf("what never expires has the deadline %s", it.Deadline())
	}
	for d, want := range map[time.Duration]uint16{-time.Hour: 0, 0: 0, 1: 1, 10 * time.Minute: 1, 601 * time.Second: 2, 60 * day: 8640, 455 * day: 65520, 456 * day: seal.LeftMax, 9000 * day: seal.LeftMax} {
		if got := seal.LeftOf(d); got != want {
			t.Errorf("%s is %d units, want %d", d, got, want)
		}
	}
}
