package bridge

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
	"mochila/transport/transporttest"
)

// status452 wants a temporary refusal for want of room.
func status452(t *testing.T, what string, err error) {
	t.Helper()
	var s *envelope.Status
	if !errors.As(err, &s) || s.Code != 452 || s.Enhanced != "4.3.1" {
		t.Errorf("%s: %v, want 452 4.3.1", what, err)
	}
}

// TestDiskFull has a node without room refuse mail and take receipts; nothing is lost, and all goes on with room.
func TestDiskFull(t *testing.T) {
	for _, free := range []int64{50 << 20, 1 << 20} { // below the reserve for mail, and below that for anything
		t.Run(fmt.Sprint(free>>20), func(t *testing.T) { diskFull(t, free) })
	}
}

func diskFull(t *testing.T, free int64) {
	l := newLab(t)
	a, c := l.pair()
	ctx := t.Context()
	sent := mail(a, c, "its receipt comes to a full disk")
	back := mail(c, a, "to the full node, with the receipt")
	m := &envelope.Mail{Sender: "ana@alpha.example", Recipients: to("bob@gamma.example"), Client: envelope.Client{UID: 1}}
	begun, err := a.b.Submit(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(begun, "Subject: begun\r\n\r\nbefore the disk was full\r\n")
	l.disk(a, free)
	_, err = begun.Commit(ctx)
	status452(t, "commit", err)
	_, err = a.b.Submit(ctx, m)
	status452(t, "submit", err)
	status452(t, "MAIL", a.b.Mail(ctx, m, 100))
	a.contact() // what waits goes all the same
	c.meet()
	c.meet()
	for _, r := range a.contact() {
		if r.Err != nil && !errors.Is(r.Err, spool.ErrFull) {
			t.Fatal(r.Err)
		}
	}
	once(t, c, sent)
	if n := a.sink.count("bob@alpha.example", back); n != 0 {
		t.Error("mail was taken on a full disk")
	}
	mustEmpty(t, a) // the receipt, and the report that rode along with the mail that had no room
	for range 3 {
		l.pass(24*time.Hour, a, c)
		a.contact()
		c.meet()
	}
	l.disk(a, 1<<30)
	l.settle(20, a, c)
	once(t, a, back)
	noFailures(t, a, c)
	mustEmpty(t, a, c)
}

// TestRelayFull has a relay without room leave custody where it is.
func TestRelayFull(t *testing.T) {
	l := newLab(t)
	a, r, c := l.node("alpha"), l.node("relay"), l.node("gamma")
	chain(a, r, c)
	l.disk(r, 50<<20)
	text := mail(a, c, "by a full relay")
	for range 4 {
		a.contact()
		r.contact()
		l.pass(24*time.Hour, a, r)
	}
	if len(r.items()) != 0 {
		t.Error("the full relay took something")
	}
	if st := a.items()[0].Legs[0].State; st != spool.Sealed && st != spool.Due {
		t.Errorf("the origin believes it %v", st)
	}
	l.disk(r, 1<<30)
	l.settle(10, a, r, c)
	once(t, c, text)
	mustEmpty(t, a, r, c)
}

// TestStickFull has a stick without room: what does not fit waits and goes later, what is small still goes.
func TestStickFull(t *testing.T) {
	l := newLab(t)
	l.sticks["one"] = transporttest.NewMemFolder(40_000)
	a, c := l.pair()
	pol := *a.pol
	pol.Limits.BundleBytes = 32 << 10 // else all are one packet, which never fits
	a.b.SetPolicy(&pol)
	var texts []string
	for i := range 5 {
		text := "Subject: large\r\n\r\n" + noise(uint64(i), 30_000)
		a.submit("ana@alpha.example", "bob@gamma.example", text)
		texts = append(texts, text)
	}
	full := false
	for range 40 {
		for _, n := range []*node{a, c} {
			for _, r := range n.contact() {
				if errors.Is(r.Err, transport.ErrFull) {
					full = true
				} else if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			n.deliver()
		}
		l.pass(12*time.Hour, a, c)
	}
	if !full {
		t.Error("the stick was never full: the test is void")
	}
	for _, text := range texts {
		if n := c.sink.count("bob@gamma.example", text); n != 1 {
			t.Errorf("came %d times", n)
		}
	}
	mustEmpty(t, a, c)
}

// contentOf is how long the content of a bundle is that a node has sent, before sealing.
func (n *node) contentOf(session [8]byte, seq uint64) int64 {
	n.t.Helper()
	var s *spool.Sent
	if err := n.sp.View(func(tx *spool.Tx) (err error) { s, err = tx.Sent(session, seq); return err }); err != nil {
		n.t.Fatal(err)
	}
	l, _, err := n.b.reload(s)
	if err != nil {
		n.t.Fatal(err)
	}
	c := counted{h: nullHash{}}
	if err := n.b.write(&c, l); err != nil {
		n.t.Fatal(err)
	}
	return c.n
}

// TestBytes counts what sealing costs on the wire.
func TestBytes(t *testing.T) {
	l := newLab(t)
	a, r, c := l.node("alpha"), l.node("relay"), l.node("gamma")
	chain(a, r, c)
	mail(a, c, "warm")
	mail(c, a, "warm back")
	mail(a, r, "warm relay")
	mail(r, a, "warm relay back")
	mail(r, c, "warm other relay")
	mail(c, r, "warm other relay back")
	l.settle(6, a, r, c)
	mustEmpty(t, a, r, c)
	l.pass(time.Hour, a, r, c)
	newest := func(n *node) (all []*spool.Sent) {
		n.sp.View(func(tx *spool.Tx) error {
			return tx.EachSent(func(s *spool.Sent) error {
				if s.At.Equal(l.clock()) && s.Kind != sentControl {
					all = append(all, s)
				}
				return nil
			})
		})
		return all
	}
	for _, size := range []int{10, 5000, 60_000, 200_000, 1_000_000} {
		for _, s := range []string{"left", "right"} {
			for _, p := range [][2]*node{{a, r}, {r, a}, {r, c}, {c, r}} {
				l.take(s, p[0], p[1])
			}
		}
		l.set(l.clock().Add(time.Minute))
		a.submit("ana@alpha.example", "bob@relay.example", "Subject: direct\r\n\r\n"+noise(uint64(size), size))
		a.meet()
		sent := newest(a)
		if len(sent) != 1 {
			t.Fatalf("%d packets", len(sent))
		}
		content := a.contentOf(sent[0].Session, sent[0].Seq)
		want := content + 48 + 16*((content-1)/(64<<10))
		if sent[0].Size != want {
			t.Errorf("direct: a content of %d bytes makes a packet of %d, want %d", content, sent[0].Size, want)
		}
		l.settle(3, a, r)
		l.set(l.clock().Add(time.Minute))
		a.submit("ana@alpha.example", "bob@gamma.example", "Subject: relayed\r\n\r\n"+noise(uint64(size), size))
		a.meet()
		for _, s := range newest(a) {
			if s.Kind == sentBundle {
				content = a.contentOf(s.Session, s.Seq)
			}
		}
		want = content + 48 + 16*((content-1)/(64<<10)) + seal.HopSize
		if seal.HopSize != 88 {
			t.Fatalf("a hop box has %d bytes", seal.HopSize)
		}
		hop := func(n *node, stick string, from, to *node) {
			t.Helper()
			got := int64(0)
			for _, p := range l.lying(stick, from, to) {
				got = max(got, int64(len(p.data)))
			}
			if got != want {
				t.Errorf("%s: a content of %d bytes makes a packet of %d, want %d", n.name, content, got, want)
			}
		}
		hop(a, "left", a, r)
		r.meet()
		hop(r, "right", r, c)
		l.settle(6, a, r, c)
		mustEmpty(t, a, r, c)
	}
}

type nullHash struct{}

func (nullHash) Write(b []byte) (int, error) { return len(b), nil }
func (nullHash) Sum(b []byte) []byte         { return b }
func (nullHash) Reset()                      {}
func (nullHash) Size() int                   { return 0 }
func (nullHash) BlockSize() int              { return 1 }

// TestIdleContact counts the bytes of a live contact in which nothing is to be said.
func TestIdleContact(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	url := hub.listen()
	camp.noContacts = true
	camp.reopen()
	camp.knows(hub, url)
	hub.knows(camp, "")
	camp.run()
	hub.run()
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: warm\r\n\r\nup\r\n")
	camp.sync()
	eventually(t, "the mail and its report", func() bool {
		camp.sync()
		return len(hub.box("bob")) == 1 && camp.empty() && hub.empty()
	})
	for range 3 {
		for _, r := range camp.b.Sync(t.Context(), nil) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			if n := r.Stats.BytesIn + r.Stats.BytesOut; n >= 200 {
				t.Errorf("an idle contact moves %d bytes: %+v", n, r.Stats)
			}
		}
	}
}
