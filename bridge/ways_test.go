package bridge

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestDeadRelay has two relays on the way, one of which takes mail and is never heard of again: what is due is left to the
// other one as long as that lives.
func TestDeadRelay(t *testing.T) {
	l := newLab(t)
	a, dead, alive, c := l.node("alpha"), l.node("dead"), l.node("alive"), l.node("gamma")
	for _, r := range []*node{dead, alive} {
		a.knows(r, "dir:a-"+r.name)
		a.knows(c, "", r)
		r.knows(a, "dir:a-"+r.name)
		r.knows(c, "dir:c-"+r.name)
		c.knows(r, "dir:c-"+r.name)
		c.knows(a, "", r)
	}
	send := func(i int) {
		a.submit("ana@alpha.example", "bob@gamma.example", fmt.Sprintf("Subject: %d\r\n\r\nx\r\n", i))
	}
	toDead, toAlive := a.pol.Contacts[0], a.pol.Contacts[1]
	rounds := func(n int) {
		for range n {
			for _, n := range []*node{a, alive, c, alive} {
				n.meet()
				l.jump(time.Second, a)
			}
		}
	}
	due := func(what string, atDead, atAlive bool) {
		t.Helper()
		if d, v := a.b.DueFor(toDead, false), a.b.DueFor(toAlive, false); d != atDead || v != atAlive {
			t.Errorf("%s: due at the dead relay: %v (want %v), at the other: %v (want %v)", what, d, atDead, v, atAlive)
		}
	}
	got := func(n int) {
		t.Helper()
		if len(c.sink.got) != n {
			t.Fatalf("%d mails arrived, want %d", len(c.sink.got), n)
		}
	}

	send(0)
	due("nobody has been given anything", true, true)
	a.contact(toDead)
	rounds(2)
	got(0)

	// what is new does not go to the dead one, in whatever order the contacts are made
	for i := range 8 {
		send(1 + i)
		due("one is silent", false, true)
		rounds(2)
	}
	got(8)

	// nor does what it kept, once that is overdue
	l.jump(30*24*time.Hour, a)
	due("what the dead one kept is overdue", false, true)
	rounds(2)
	got(9)
	rounds(2)

	// it gets what somebody gives it
	send(9)
	due("again", false, true)
	if n := a.contact(toDead)[0].Envelopes; n != 1 {
		t.Fatalf("a contact that was asked for took %d mails", n)
	}
	l.jump(30*24*time.Hour, a)
	rounds(2)
	got(10)

	// and what nobody else takes in time
	send(10)
	due("the head start begins", false, true)
	l.jump(headStart-time.Second, a)
	due("it goes on", false, true)
	l.jump(2*time.Second, a)
	due("it is over", true, true)
	rounds(1)
	l.jump(30*24*time.Hour, a) // whichever took it
	rounds(2)
	got(11)

	// and everything while the other one is out of reach
	send(11)
	due("a head start of its own", false, true)
	a.b.mu.Lock()
	a.b.state(toAlive).err = "no such disk"
	delete(a.b.heard, alive.keys.ID())
	a.b.mu.Unlock()
	due("the other one is away", true, true)
}

// TestCourierTakesAll: a neighbour takes all that is due in the contact in which it is its turn, and not just the first
// packet; and what is too big for the others does not wait because they take what is small.
func TestCourierTakesAll(t *testing.T) {
	l := newLab(t)
	a, courier, other, c := l.node("alpha"), l.node("courier"), l.node("other"), l.node("gamma")
	for _, r := range []*node{courier, other} {
		a.knows(r, "dir:a-"+r.name)
		a.knows(c, "", r)
	}
	big := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 20<<10)
	send := func(text string) {
		a.submit("ana@alpha.example", "bob@gamma.example", "Subject: x\r\n\r\n"+text)
	}
	visit := func(what string, by *Contact, want int) {
		t.Helper()
		if _, n, err := a.b.contactOnce(context.Background(), by, false); err != nil || n != want {
			t.Errorf("%s: a contact took %d mails, want %d: %v", what, n, want, err)
		}
	}
	toCourier, toOther := a.pol.Contacts[0], a.pol.Contacts[1]
	visit("nothing is due", toOther, 0)
	for range 3 {
		send(big)
	}
	visit("nobody owes an answer", toCourier, 3)

	l.jump(time.Second, a)
	for range 3 {
		send(big)
	}
	visit("it is silent", toCourier, 0)
	a.b.ways.mu.Lock()
	if a.b.ways.again == nil {
		t.Error("nobody looks again when the head start is over")
	}
	a.b.ways.mu.Unlock()
	l.jump(headStart, a)
	visit("nobody else took it", toCourier, 3)

	toOther.MaxPacket = 100 << 10
	l.jump(time.Second, a)
	send(big)
	for range headStart / (10 * time.Second) {
		visit("the head start goes on", toCourier, 0)
		send("small\r\n")
		visit("what is small", toOther, 1)
		a.b.ways.mu.Lock()
		delete(a.b.ways.given, other.keys.ID()) // as if it had answered
		a.b.ways.mu.Unlock()
		l.jump(10*time.Second, a)
	}
	visit("the others cannot take it", toCourier, 1)
}
