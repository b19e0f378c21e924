package bridge

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// listen lets neighbours call n and returns the carrier URL.
func (n *node) listen() string {
	n.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	srv := &transport.Server{Reception: reception{n}, Stream: n.stream()}
	go func() { defer close(done); srv.Serve(ctx, ln) }()
	n.t.Cleanup(func() { cancel(); <-done })
	return "tcp:" + ln.Addr().String()
}

// reception follows a node that is closed and opened again.
type reception struct{ n *node }

func (r reception) Admit(ctx context.Context, greeting []byte) (transport.Greeter, error) {
	b := r.n.b
	if b == nil {
		return nil, fmt.Errorf("node is down")
	}
	return b.Admit(ctx, greeting)
}

func (n *node) stream() transport.StreamOptions {
	p, err := transport.OpenPartials(n.dir+"/partial", 1<<30)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { p.Close() })
	return transport.StreamOptions{Partials: p}
}

func TestTCPRoundTrip(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	url := hub.listen()
	camp.knows(hub, url)
	hub.knows(camp, "")
	camp.run()
	hub.run()
	for i := range 20 {
		camp.submit("ana@camp.example", "bob@hub.example", fmt.Sprintf("Subject: %d\r\n\r\nbody %d\r\n", i, i))
	}
	eventually(t, "twenty mails", func() bool { return len(hub.box("bob")) == 20 })
	eventually(t, "camp empty", camp.empty)
	big := "Subject: big\r\n\r\n" + strings.Repeat("0123456789abcdef\r\n", 300000)
	camp.submit("ana@camp.example", "carl@hub.example", big)
	eventually(t, "big mail", func() bool { return len(hub.box("carl")) == 1 })
	eventually(t, "camp empty again", camp.empty)
	eventually(t, "hub empty", hub.empty)
	// and what hub has waits until camp calls
	hub.submit("bob@hub.example", "ana@camp.example", "Subject: back\r\n\r\nx\r\n")
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: call\r\n\r\nx\r\n")
	eventually(t, "answer came with the call", func() bool { return len(camp.box("ana")) == 1 })
}

// TestRelay sends through a node in the middle, over folders; the middle loses its spool once, and the origin's
// retransmission brings everything anyway.
func TestRelay(t *testing.T) {
	a, r, c := newNode(t, "alpha"), newNode(t, "relay"), newNode(t, "gamma")
	left, right := "dir:"+t.TempDir(), "dir:"+t.TempDir()
	a.knows(r, left)
	a.knows(c, "", r)
	r.knows(a, left)
	r.knows(c, right)
	c.knows(r, right)
	c.knows(a, "", r)
	for i := range 5 {
		a.submit("ana@alpha.example", "bob@gamma.example", fmt.Sprintf("Subject: %d\r\n\r\nsecret words %d\r\n", i, i))
	}
	a.sync()
	r.sync()
	if items, _, _ := r.sp.List(spool.Query{}); len(items) == 0 {
		t.Fatal("the relay took nothing")
	}
	// the relay's disk dies before it has handed anything on
	r.close()
	wipe(t, r.dir+"/spool")
	r.open()
	a.sync() // reads the relay's receipt
	r.sync()
	c.sync()
	if n := len(c.box("bob")); n != 0 {
		t.Fatalf("%d mails arrived although the relay lost them", n)
	}
	// overdue: the origin sends again
	a.b.Tick(time.Now().Add(100 * 24 * time.Hour / 10))
	for range 4 {
		a.sync()
		r.sync()
		c.sync()
		c.drain()
		r.sync()
		a.sync()
	}
	if n := len(c.box("bob")); n != 5 {
		t.Fatalf("%d of 5 mails arrived after the origin sent again", n)
	}
	if !a.empty() {
		items, _, _ := a.sp.List(spool.Query{})
		for _, it := range items {
			t.Errorf("left at the origin: %s %+v %v", it.Env.ID, it.Legs, it.Log)
		}
	}
}

// drain delivers what is due at a node whose engine does not run.
func (n *node) drain() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { n.b.out.run(ctx); close(done) }()
	eventually(n.t, n.name+" has delivered", n.b.out.idle) // jobs are not run here
	cancel()
	<-done
}

var _ = envelope.KindMail
