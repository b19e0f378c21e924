package bridge

import (
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// TestAutomatic lets mail fail that a program sent: nobody is told of it unless he asked, and it lies with the dead letters.
// The mail of a list is told of: its software waits for that.
func TestAutomatic(t *testing.T) {
	for name, x := range map[string]struct {
		header string
		notify envelope.Notify
		told   int
	}{
		"a person's":             {"", 0, 1},
		"a program's":            {"Auto-Submitted: auto-generated\r\n", 0, 0},
		"a program's that asked": {"Auto-Submitted: auto-generated\r\n", envelope.NotifyFailure, 1},
		"says no":                {"Auto-Submitted: no\r\n", 0, 1},
		"a list's":               {"Precedence: list\r\nList-Id: <l.example>\r\n", 0, 1},
	} {
		l := newLoneLab(t)
		a := l.node("alpha")
		a.sink.refuse["nobody@alpha.example"] = envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "unknown"}
		a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: []envelope.Recipient{{Addr: "nobody@alpha.example", Notify: x.notify}}},
			x.header+"Subject: s\r\n\r\nbody\r\n")
		a.deliver()
		a.deliver()
		if n := told(a, "Action: failed"); n != x.told {
			t.Errorf("%s: %d notices, want %d", name, n, x.told)
		}
		if n := len(a.items()); n != 1-x.told {
			t.Errorf("%s: %d dead letters", name, n)
		}
	}
}

// TestLateAutomatic looks once at a program's mail that is late: nobody is told, and it is not read again at every look.
func TestLateAutomatic(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:none")
	a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: to("bob@gamma.example")}, "Auto-Submitted: auto-generated\r\n\r\nlate\r\n")
	a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: append(to("bob@gamma.example"), envelope.Recipient{Addr: "ann@gamma.example", Notify: envelope.NotifyDelay})},
		"Auto-Submitted: auto-generated\r\n\r\nlate, and asked\r\n")
	l.jump(5*day, a)
	a.deliver()
	wantTold(t, a, 0, 1, 0)
	if told(a, "rfc822; ann@gamma.example") != 1 || told(a, "rfc822; bob@gamma.example") != 0 {
		t.Errorf("told: %q", a.sink.notices("ana@alpha.example"))
	}
	for _, it := range a.items() {
		if !it.Delayed {
			t.Errorf("%s is looked at again", it.Env.ID)
		}
	}
}

// TestNextContactInWords tells a sender whose mail is late when it may go on, by the timetable of the contact.
func TestNextContactInWords(t *testing.T) {
	l := newLoneLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	for want, contact := range map[string]Contact{
		"A courier comes about every 7d.":                        {URL: "dir:one", When: When{Always: true, Every: 7 * day}},
		"It goes on when the medium is there again.":             {URL: "dir:one", When: When{Always: true}},
		"It goes on when that node, or the one before it, calls": {When: When{OnCall: true}},
		"It goes on when an operator makes the contact.":         {URL: "tcp:x", When: When{Manual: true}},
		"It is tried again and again.":                           {URL: "tcp:x", When: When{Always: true}},
		"The next contact is at 2027-03-02 06:00 UTC.":           {URL: "tcp:x", When: When{UTC: true, Windows: []Window{{From: 1440 + 360, To: 1440 + 480}}}},
	} {
		p := *a.pol
		contact.Node, contact.NodeName = c.keys.ID(), c.name
		p.Contacts = []*Contact{&contact}
		a.b.SetPolicy(&p)
		if got := a.b.nextContact(c.keys.ID()); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := (When{Windows: []Window{{From: 10, To: 20}}, UTC: true}).next(time.Date(2027, 3, 1, 0, 15, 0, 0, time.UTC)); got.Minute() != 15 {
		t.Errorf("inside a window it is %s", got)
	}
}
