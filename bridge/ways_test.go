package bridge

import (
	"fmt"
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
		if d, v := a.b.DueFor(toDead), a.b.DueFor(toAlive); d != atDead || v != atAlive {
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
