package bridge

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestBothOffer lets two nodes that have never met begin a session each at the same moment.
func TestBothOffer(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	x, y := mail(a, c, "from alpha"), mail(c, a, "from gamma")
	a.contact()
	theirs := l.take("one", a, c)
	c.contact()
	l.put("one", theirs...)
	for i := range 5 {
		x2, y2 := mail(a, c, fmt.Sprintf("alpha %d", i)), mail(c, a, fmt.Sprintf("gamma %d", i))
		a.meet()
		c.meet()
		a.meet()
		once(t, c, x2)
		once(t, a, y2)
	}
	l.settle(5, a, c)
	once(t, c, x)
	once(t, a, y)
	mustEmpty(t, a, c)
}

// TestFirstOffersLost loses the first ten packets of a session: each later one carries the offer again.
func TestFirstOffersLost(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	var lost []file
	var texts []string
	for i := range 11 {
		lost = append(lost, l.take("one", a, c)...)
		texts = append(texts, mail(a, c, fmt.Sprintf("number %d", i)))
		a.contact(a.b.Policy().Contacts...)
		l.set(l.clock().Add(time.Minute))
	}
	c.meet()
	once(t, c, texts[10]) // the last one alone opens the session
	l.settle(10, a, c)
	once(t, c, texts...)
	l.put("one", lost...)
	c.meet()
	once(t, c, texts...)
	mustEmpty(t, a, c)
}

// TestLateSticks brings packets after 80, 100 and 140 days: what is within its time is delivered, the rest refused, and
// its sender was told.
func TestLateSticks(t *testing.T) {
	for _, days := range []int{30, 55, 80, 100, 140} {
		t.Run(fmt.Sprint(days), func(t *testing.T) {
			l := newLab(t)
			a, c := l.node("alpha"), l.node("gamma")
			a.knows(c, "dir:one")
			c.knows(a, "dir:one")
			text := mail(a, c, "late")
			a.contact()
			late := l.take("one", a, c)
			for range days / 5 {
				l.jump(5*24*time.Hour, a, c)
				a.deliver()
			}
			l.put("one", late...)
			c.meet()
			n := c.sink.count("bob@gamma.example", text)
			if want := map[bool]int{true: 1}[days < 60]; n != want {
				t.Errorf("delivered %d times after %d days", n, days)
			}
			if days < 60 {
				l.settle(5, a, c)
				noFailures(t, a)
			} else {
				l.pass(15*24*time.Hour, a, c)
				a.deliver()
				if k := told(a, "Action: failed"); k != 1 {
					t.Errorf("%d notices of failure", k)
				}
			}
			if days > 119 { // neither may seal to the card it has of the other: somebody has to carry one over
				pol := *a.pol
				p := *pol.Peers[0]
				p.Card = c.keys.Card()
				pol.Peers = []*Peer{&p}
				a.b.SetPolicy(&pol)
			}
			more := mail(a, c, "and on")
			l.settle(10, a, c)
			once(t, c, more)
			mustEmpty(t, a)
		})
	}
}

// TestTwelveSticksOut renews the session while twelve sticks are on their way; they come back in the wrong order.
func TestTwelveSticksOut(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	var out [][]file
	var texts []string
	for i := range 12 {
		texts = append(texts, mail(a, c, fmt.Sprintf("stick %d", i)))
		a.contact()
		out = append(out, l.take("one", a, c))
		l.pass(2*24*time.Hour, a, c)
	}
	for i := range out {
		l.put("one", out[len(out)-1-i]...)
		c.meet()
	}
	once(t, c, texts...)
	l.settle(10, a, c)
	once(t, c, texts...)
	noFailures(t, a)
	mustEmpty(t, a, c)
}

// TestYearOneWay sends for a year to where no answer ever comes from. Each mail has an end that its sender learns, and
// nothing is delivered twice.
func TestYearOneWay(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	var texts []string
	for i := range 24 {
		text := fmt.Sprintf("Subject: %d\r\n\r\nfortnight %d\r\n", i, i)
		texts = append(texts, text)
		a.submit(fmt.Sprintf("u%d@alpha.example", i), "bob@gamma.example", text)
		for range 3 {
			a.contact()
			c.contact()
			c.deliver()
			l.take("one", c, a)
			l.jump(5*24*time.Hour, a, c)
			a.deliver()
		}
	}
	for range 20 {
		a.contact()
		l.jump(5*24*time.Hour, a, c)
		a.deliver()
	}
	came := 0
	for i, text := range texts {
		n := c.sink.count("bob@gamma.example", text)
		came += n
		failed := 0
		for _, d := range a.sink.notices(fmt.Sprintf("u%d@alpha.example", i)) {
			if strings.Contains(d, "Action: failed") {
				failed++
			}
		}
		if n > 1 || failed != 1 {
			t.Errorf("mail %d: came %d times, %d notices", i, n, failed)
		}
	}
	if came < 8 { // until the card of gamma is over
		t.Errorf("only %d mails came", came)
	}
	mustEmpty(t, a)
}

// TestCardRenewal lets nodes talk for a year: sealing keys change each month, cards travel along.
func TestCardRenewal(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	first := a.keys.Card().Serial
	var texts []string
	for i := range 12 {
		l.jump(31*24*time.Hour, a, c)
		texts = append(texts, mail(a, c, fmt.Sprintf("month %d", i)))
		if i%2 == 0 {
			mail(c, a, fmt.Sprintf("month %d", i))
		}
		l.settle(3, a, c)
	}
	once(t, c, texts...)
	card, err := c.b.cardOf(a.keys.ID())
	if err != nil || card.Serial == first || card.Serial != a.keys.Card().Serial {
		t.Errorf("the peer holds card %v, the node has %d (%v)", card.Serial, a.keys.Card().Serial, err)
	}
	noFailures(t, a, c)
	mustEmpty(t, a, c)
}

// TestCrashInRenewal stops the beginning of a new life after its first step: the next start goes through with it.
func TestCrashInRenewal(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	under := mail(a, c, "on its way")
	a.contact()
	if _, err := a.keys.NewIncarnation(l.clock()); err != nil {
		t.Fatal(err)
	}
	was := a.incarnation()
	a.reopen()
	if a.incarnation() == was {
		t.Error("identity and spool of two lives were taken for one")
	}
	is := a.incarnation()
	a.reopen()
	if a.incarnation() != is {
		t.Error("another life at each start")
	}
	text := mail(a, c, "afterwards")
	l.settle(10, a, c)
	once(t, c, under, text)
	noFailures(t, a, c)
	mustEmpty(t, a, c)
}

// TestGreetingReplayed shows a greeting a second time, and one that is damaged.
func TestGreetingReplayed(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	d := a.b.openDesk(&Contact{Node: c.keys.ID(), NodeName: "gamma", URL: "tcp:x"})
	hello, err := d.Greeting(t.Context())
	d.Close()
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte{}, hello...)
	bad[len(bad)-1] ^= 1
	if _, err := c.b.Admit(t.Context(), bad); err == nil {
		t.Error("a damaged greeting was let in")
	}
	g, err := c.b.Admit(t.Context(), hello)
	if err != nil {
		t.Fatal(err)
	}
	g.(*desk).Close()
	if _, err := c.b.Admit(t.Context(), hello); err == nil {
		t.Error("a greeting was let in twice")
	}
	if _, err := c.b.Admit(t.Context(), nil); err == nil {
		t.Error("an empty greeting was let in")
	}
	if len(c.quarantined()) != 0 {
		t.Error("a greeting was quarantined")
	}
}

// TestStatusAfterRefusal shows why a mail waits at its origin.
func TestStatusAfterRefusal(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	pol := *c.pol
	pol.Limits.MessageSize = 10_000
	c.b.SetPolicy(&pol)
	a.submit("ana@alpha.example", "bob@gamma.example", "Subject: too large there\r\n\r\n"+noise(4, 20_000))
	good := mail(a, c, "beside it")
	l.settle(3, a, c)
	once(t, c, good)
	wantTold(t, a, 1, 0, 0)
	if told(a, "5.3.4") != 1 {
		t.Error("the notice does not say that it is too large")
	}
	mustEmpty(t, a, c)
}
