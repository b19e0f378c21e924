package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"mochila/internal/envelope"
	"mochila/transport"
)

// Packets that take their time: what a node thinks of their sender may change while they come.

// pausing reads data and calls then once, when half of it was read. An error of then is that of the reader.
type pausing struct {
	data []byte
	at   int
	then func() error
}

func (p *pausing) Read(b []byte) (int, error) {
	if p.at >= len(p.data)/2 && p.then != nil {
		then := p.then
		p.then = nil
		if err := then(); err != nil {
			return 0, err
		}
	}
	if p.at == len(p.data) {
		return 0, io.EOF
	}
	n := copy(b, p.data[p.at:min(p.at+4096, len(p.data))])
	p.at += n
	return n, nil
}

// largePacket has alpha pack one large mail for gamma, and returns its text and the packet. It is so large that its envelope
// is seen long before its end, and that the spool looks at the disk meanwhile.
func largePacket(l *lab, a, c *node) (text string, packet []byte) {
	l.t.Helper()
	text = "Subject: large\r\n\r\n" + noise(7, 4<<20)
	a.submit("ana@alpha.example", "bob@gamma.example", text)
	a.meet()
	files := l.take("one", a, c)
	for _, f := range files {
		if len(f.data) > len(packet) {
			packet = f.data
		}
	}
	if len(packet) < 3<<20 {
		l.t.Fatalf("%d packets, the largest of %d bytes", len(files), len(packet))
	}
	return text, packet
}

// slowly hands a packet to gamma with a pause in the middle.
func (n *node) slowly(from *node, packet []byte, then func() error) error {
	return n.b.ReceiveFrom(context.Background(), from.keys.ID(), int64(len(packet)), &pausing{data: packet, then: then})
}

func TestPeerRemovedWhileItsPacketComes(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	_, packet := largePacket(l, a, c)
	err := c.slowly(a, packet, func() error {
		pol := *c.pol
		pol.Peers, pol.Contacts = nil, nil
		c.b.SetPolicy(&pol)
		return nil
	})
	if !errors.Is(err, transport.ErrRefused) {
		t.Errorf("got %v, want a refusal", err)
	}
	if n := len(c.items()); n != 0 {
		t.Errorf("%d items were entered", n)
	}
}

func TestSessionErasedWhileItsPacketComes(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	text, packet := largePacket(l, a, c)
	err := c.slowly(a, packet, func() error {
		return c.b.ses.remove(c.b, func(x *session) bool { return x.peer == a.keys.ID() })
	})
	if !errors.Is(err, transport.ErrRefused) {
		t.Errorf("got %v, want a refusal", err)
	}
	if n := len(c.items()); n != 0 {
		t.Errorf("%d items were entered", n)
	}
	if left := c.b.ses.of(a.keys.ID()); len(left) != 0 {
		t.Errorf("%d sessions are back", len(left))
	}
	l.settle(30, a, c) // the sender hears of it, and uses another session
	if n := c.sink.count("bob@gamma.example", text); n != 1 {
		t.Errorf("the mail came %d times", n)
	}
}

// vouched is a packet that nobody hashes but on demand.
type vouched struct {
	io.Reader
	verified error
	asked    int
}

func (v *vouched) ID() transport.ID { return transport.ID{1} }
func (v *vouched) Vouch()           {}
func (v *vouched) Verify(context.Context) error {
	v.asked++
	return v.verified
}

// A packet that cannot be opened is held against its sender only if the carrier brought the right bytes.
func TestDamagedCopyIsNotRefused(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	text, packet := largePacket(l, a, c)
	damaged := bytes.Clone(packet)
	damaged[len(damaged)/2] ^= 1
	receive := func(data []byte, verified error) (*vouched, error) {
		v := &vouched{Reader: bytes.NewReader(data), verified: verified}
		return v, c.b.ReceiveFrom(context.Background(), a.keys.ID(), int64(len(data)), v)
	}
	v, err := receive(damaged, fmt.Errorf("other bytes: %w", transport.ErrIncomplete))
	if !errors.Is(err, transport.ErrIncomplete) || errors.Is(err, transport.ErrRefused) || v.asked != 1 {
		t.Errorf("damaged: %v, asked %d times", err, v.asked)
	}
	if found, err := c.sp.Quarantined(); err != nil || len(found) != 0 {
		t.Errorf("in quarantine: %v, %v", found, err)
	}
	if v, err = receive(packet, nil); err != nil || v.asked != 0 {
		t.Errorf("whole: %v, asked %d times", err, v.asked)
	}
	c.deliver()
	if n := c.sink.count("bob@gamma.example", text); n != 1 {
		t.Errorf("the mail came %d times", n)
	}
}

// A line that breaks again and again does not use up the quota of its peer, and what is under way is part of it, whatever is counted
// meanwhile.
func TestQuotaOfWhatIsUnderWay(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	pol := *c.pol
	pol.Peers = []*Peer{{Name: "alpha", ID: a.keys.ID(), Card: a.keys.Card(), MaxBytes: 5 << 20, MaxCount: 1000}}
	c.pol = &pol
	c.b.SetPolicy(&pol)
	text, packet := largePacket(l, a, c)
	for i := range 5 {
		err := c.slowly(a, packet, func() error {
			if err := c.b.quota.load(c.b); err != nil {
				return err
			}
			if err := c.b.quota.admit(c.b, a.keys.ID(), 2<<20); !errors.Is(err, transport.ErrRefused) {
				t.Errorf("beside a packet under way: %v, want a refusal", err)
			}
			return fmt.Errorf("cut: %w", transport.ErrIncomplete)
		})
		if !errors.Is(err, transport.ErrIncomplete) || errors.Is(err, transport.ErrRefused) {
			t.Fatalf("cut %d: %v", i, err)
		}
		if n := len(c.b.quota.coming); n != 0 {
			t.Fatalf("cut %d: %d bookings are left", i, n)
		}
	}
	if err := c.slowly(a, packet, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.b.quota.admit(c.b, a.keys.ID(), 2<<20); !errors.Is(err, transport.ErrRefused) {
		t.Errorf("beside a packet that was entered: %v, want a refusal", err)
	}
	c.deliver()
	if n := c.sink.count("bob@gamma.example", text); n != 1 {
		t.Errorf("the mail came %d times", n)
	}
}

// The same packet comes by two ways at once: it is entered once, both carriers are rid of it.
func TestSamePacketByTwoWaysAtOnce(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	text, packet := largePacket(l, a, c)
	err := c.slowly(a, packet, func() error {
		if err := c.slowly(a, packet, nil); err != nil {
			t.Errorf("the second: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("the first: %v", err)
	}
	c.deliver()
	l.settle(5, a, c)
	if n := c.sink.count("bob@gamma.example", text); n != 1 {
		t.Errorf("the mail came %d times", n)
	}
	mustEmpty(t, a, c)
}

// The disk gets full while a packet comes: nothing of it is entered, it is this node's own trouble, and with room again it is taken.
func TestDiskFullWhileAPacketComes(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	text, packet := largePacket(l, a, c)
	err := c.slowly(a, packet, func() error { l.disk(c, 0); return nil })
	if err == nil || errors.Is(err, transport.ErrRefused) || errors.Is(err, transport.ErrIncomplete) {
		t.Errorf("got %v, want trouble of the node's own", err)
	}
	if n := len(c.items()); n != 0 {
		t.Errorf("%d items were entered", n)
	}
	l.disk(c, 5<<30)
	if err := c.b.ReceiveFrom(context.Background(), a.keys.ID(), int64(len(packet)), bytes.NewReader(packet)); err != nil {
		t.Fatal(err)
	}
	c.deliver()
	if n := c.sink.count("bob@gamma.example", text); n != 1 {
		t.Errorf("the mail came %d times", n)
	}
	for _, it := range c.items() {
		if it.Env.Kind == envelope.KindMail {
			t.Errorf("left: %s", it.Env.ID)
		}
	}
}
