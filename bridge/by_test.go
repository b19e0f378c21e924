package bridge

import (
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// TestByExpired: a mail in mode R that is not delivered in time comes back, as expired, also when NOTIFY says nothing; in
// mode N its sender hears of the delay at the next look, also where the time was over from the start and whatever else he
// wants to hear of, and it goes on.
func TestByExpired(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:none")
	send := func(by time.Duration, back bool, n envelope.Notify) {
		a.send(&envelope.Mail{Sender: "ana@alpha.example", EnvID: "by", By: &envelope.By{Deadline: l.clock().Add(by), Return: back},
			Recipients: []envelope.Recipient{{Addr: "bob@gamma.example", Notify: n}}}, "Subject: x\r\n\r\n")
	}
	send(time.Hour, true, 0)
	send(time.Hour, true, envelope.NotifyNever)
	send(0, false, 0)
	send(-time.Minute, false, envelope.NotifyDelay)
	send(-time.Minute, false, envelope.NotifySuccess)
	l.jump(61*time.Minute, a)
	a.deliver()
	wantTold(t, a, 1, 3, 0)
	if told(a, "Status: 5.4.7") != 1 || told(a, "Status: 4.4.7") != 3 || told(a, "\r\nDeliver-By-Date: ") != 4 {
		t.Errorf("%q", a.sink.notices("ana@alpha.example"))
	}
	if n := told(a, "It goes on when the"); n != 3 {
		t.Errorf("%d notices say how it goes on, want the 3 of what does", n)
	}
	left := 0
	for _, it := range a.items() {
		if it.Env.Mail != nil && it.Env.Mail.EnvID == "by" && it.Legs[0].State != spool.Done {
			left++
		}
	}
	if left != 3 {
		t.Errorf("%d mails go on, want the 3 of mode N", left)
	}
}

// TestByLeft: each node takes off the time that it had the mail, by its running time where its clock is wrong.
func TestByLeft(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"right clock": 0, "slow clock": -30 * time.Minute, "fast clock": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			a, c := l.node("alpha"), l.wrongNode("gamma", ahead)
			a.knows(c, "dir:stick")
			c.knows(a, "dir:stick")
			c.sink.refuse["bob@gamma.example"] = envelope.Status{Code: 450, Enhanced: "4.2.1", Text: "later"}
			a.send(&envelope.Mail{Sender: "ana@alpha.example", By: &envelope.By{Deadline: l.clock().Add(3 * time.Hour)},
				Recipients: to("bob@gamma.example")}, "Subject: x\r\n\r\n")
			l.pass(time.Hour, a, c) // at alpha
			a.meet()
			l.pass(20*time.Minute, a, c) // on the stick: nobody's running time
			c.meet()
			l.pass(30*time.Minute, a, c) // at gamma
			items := c.items()
			if len(items) != 1 {
				t.Fatalf("%d items", len(items))
			}
			got := c.b.byLeft(items[0])
			want := 70 * time.Minute
			switch {
			case ahead < 0:
				want = 90 * time.Minute // what the stick took is not known
			case ahead > 0:
				want -= ahead
			}
			if d := got - want; d < -time.Minute || d > time.Minute {
				t.Errorf("left %s, want %s", got, want)
			}
		})
	}
}

// TestByTrace: who asks for a trace hears of each relay, as does who set a time and whose mail goes to a system that does
// not know it, but not those who want to hear nothing.
func TestByTrace(t *testing.T) {
	for name, c := range map[string]struct {
		by   *envelope.By
		n    envelope.Notify
		want int
	}{
		"trace":           {&envelope.By{Return: true, Trace: true}, 0, 1},
		"trace, failures": {&envelope.By{Trace: true}, envelope.NotifyFailure, 1},
		"trace, never":    {&envelope.By{Trace: true}, envelope.NotifyNever, 0},
		"mode N":          {&envelope.By{}, 0, 1},
		"mode R":          {&envelope.By{Return: true}, 0, 0},
		"mode R, success": {&envelope.By{Return: true}, envelope.NotifySuccess, 1},
		"no time":         {nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			a, c2 := l.pair()
			c2.sink.action = envelope.ActionRelayed
			if c.by != nil {
				c.by.Deadline = l.clock().Add(time.Hour)
			}
			a.send(&envelope.Mail{Sender: "ana@alpha.example", By: c.by, Recipients: []envelope.Recipient{{Addr: "bob@gamma.example", Notify: c.n}}}, "Subject: x\r\n\r\n")
			l.settle(20, a, c2)
			if got := told(a, "Action: relayed"); got != c.want || told(a, "") != c.want {
				t.Errorf("%d notices, want %d: %q", got, c.want, a.sink.notices("ana@alpha.example"))
			}
			if c.by != nil && c.want > 0 && !strings.Contains(a.sink.notices("ana@alpha.example")[0], "the time that you set for it") {
				t.Errorf("%s", a.sink.notices("ana@alpha.example")[0])
			}
		})
	}
}
