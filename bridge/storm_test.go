package bridge

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"mochila/transport"
)

// countedLink counts the contacts that are made.
type countedLink struct {
	transport.Link
	runs *atomic.Int64
}

func (l countedLink) Run(ctx context.Context, st transport.Station) (transport.Stats, error) {
	l.runs.Add(1)
	return l.Link.Run(ctx, st)
}

// counting makes n count its contacts; call it before the links are opened.
func (n *node) counting() *atomic.Int64 {
	runs := new(atomic.Int64)
	n.b.opt.Link = func(c *Contact) (transport.Link, error) {
		carrier, err := transport.Parse(transport.Schemes(), c.URL)
		if err != nil {
			return nil, err
		}
		l := carrier.Link(transport.LinkOptions{Self: n.b.ID().Label(), Peer: c.Node.Label(), Stream: n.b.opt.Stream})
		return countedLink{l, runs}, nil
	}
	return runs
}

func files(t *testing.T, stick string) int {
	t.Helper()
	f, err := filepath.Glob(stick + "/mochila/*/*/*")
	if err != nil {
		t.Fatal(err)
	}
	return len(f)
}

// TestAbsentStickIsNoLoop has mail due for a stick that is not plugged in.
func TestAbsentStickIsNoLoop(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	runs := camp.counting()
	camp.knows(hub, "dir:"+filepath.Join(t.TempDir(), "not-there"))
	camp.run()
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: x\r\n\r\nx\r\n")
	eventually(t, "a first try", func() bool { return runs.Load() > 0 })
	time.Sleep(500 * time.Millisecond)
	if n := runs.Load(); n > 3 {
		t.Errorf("%d contacts in half a second", n)
	}
}

// TestTooBigIsNoLoop has mail due that no contact takes.
func TestTooBigIsNoLoop(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	runs := camp.counting()
	camp.knows(hub, "dir:"+t.TempDir())
	p := *camp.pol
	c := *p.Contacts[0]
	c.MaxPacket = 10
	p.Contacts = []*Contact{&c}
	camp.b.SetPolicy(&p)
	camp.run()
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: x\r\n\r\nx\r\n")
	eventually(t, "a first try", func() bool { return runs.Load() > 0 })
	time.Sleep(500 * time.Millisecond)
	if n := runs.Load(); n > 3 {
		t.Errorf("%d contacts in half a second", n)
	}
}

// TestFolderComesToRest lets two nodes share a folder: once all has been said, nothing new is written.
func TestFolderComesToRest(t *testing.T) {
	stick := t.TempDir()
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	camp.knows(hub, "dir:"+stick)
	hub.knows(camp, "dir:"+stick)
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: x\r\n\r\nx\r\n")
	for range 6 {
		camp.sync()
		hub.sync()
		hub.drain()
	}
	if !camp.empty() || !hub.empty() {
		t.Fatal("something is left")
	}
	for i := range 5 {
		a, b := camp.syncStats(), hub.syncStats()
		if a.PacketsOut+b.PacketsOut > 0 {
			t.Errorf("round %d: camp wrote %d packets and hub %d although nothing is due", i, a.PacketsOut, b.PacketsOut)
		}
	}
}

// TestUnreadStickDoesNotFillUp visits a stick again and again whose other end never reads the answers.
func TestUnreadStickDoesNotFillUp(t *testing.T) {
	stick := t.TempDir()
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	camp.knows(hub, "dir:"+stick)
	hub.knows(camp, "dir:"+stick)
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: x\r\n\r\nx\r\n")
	camp.sync()
	hub.sync()
	hub.drain()
	hub.sync()
	hub.sync()
	before := files(t, stick)
	for range 5 {
		hub.sync()
	}
	hub.close()
	hub.open()
	hub.sync()
	hub.sync()
	if n := files(t, stick); n != before {
		t.Errorf("%d files on the stick, %d before", n, before)
	}
}

func (n *node) syncStats() transport.Stats {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r := n.b.Sync(ctx, nil)
	if r[0].Err != nil {
		n.t.Fatal(r[0].Err)
	}
	return r[0].Stats
}

// TestCallsLeaveNothing counts the stations that are open after calls have ended.
func TestCallsLeaveNothing(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	camp.knows(hub, hub.listen())
	hub.knows(camp, "")
	for range 5 {
		camp.sync()
	}
	eventually(t, "hub closed its stations", func() bool {
		hub.b.mu.Lock()
		defer hub.b.mu.Unlock()
		return len(hub.b.desks) == 0
	})
}
