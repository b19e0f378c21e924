package bridge

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"mochila/transport"
)

// TestBudget cuts a neighbour off that brings nothing but garbage on live links, over all of its calls, and listens to it
// again later; the receipts that it gave before stand, and other neighbours notice nothing.
func TestBudget(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	url := &Contact{Node: a.keys.ID(), NodeName: a.name, URL: "tcp:", When: When{OnCall: true}}
	garbage := func(i int) error {
		d := c.b.openDesk(url)
		defer d.close(0)
		p := bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, 50)
		return d.Receive(t.Context(), int64(len(p)), bytes.NewReader(p))
	}
	for i := range maxRefused {
		if err := garbage(i); !errors.Is(err, transport.ErrRefused) {
			t.Fatalf("packet %d: %v", i, err)
		}
	}
	if !c.b.CutOff(a.keys.ID()).IsZero() {
		t.Fatal("cut off within its budget")
	}
	err := garbage(maxRefused)
	if err == nil || errors.Is(err, transport.ErrRefused) {
		t.Errorf("the contact goes on beyond the budget: %v", err)
	}
	until := c.b.CutOff(a.keys.ID())
	if d := until.Sub(l.clock()); d < 20*time.Minute || d > time.Hour {
		t.Errorf("cut off for %s", d)
	}
	hello := func() error {
		hi, err := a.b.openDesk(&Contact{Node: c.keys.ID(), NodeName: c.name, URL: "tcp:"}).Greeting(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.b.Admit(t.Context(), hi)
		return err
	}
	if err := hello(); !errors.Is(err, transport.ErrRefused) {
		t.Errorf("its call is taken: %v", err)
	}
	text := mail(a, c, "by stick, in which nobody is cut off")
	a.meet()
	c.meet()
	once(t, c, text)
	l.set(until)
	if err := hello(); err != nil {
		t.Errorf("not listened to when its time is over: %v", err)
	}
	if err := garbage(9999); !errors.Is(err, transport.ErrRefused) {
		t.Errorf("cut off again by one packet: %v", err)
	}
}
