package bridge

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// cutter forwards TCP calls. The first cuts of them get nothing to hear: what the caller says is swallowed, and then
// the line is cut.
type cutter struct {
	ln    net.Listener
	to    string
	cuts  int64
	calls atomic.Int64
	wg    sync.WaitGroup
}

func newCutter(t *testing.T, to string, cuts int64) *cutter {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{ln: ln, to: strings.TrimPrefix(to, "tcp:"), cuts: cuts}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			c.wg.Add(1)
			go func() { defer c.wg.Done(); c.forward(in, c.calls.Add(1) <= c.cuts) }()
		}
	}()
	t.Cleanup(func() { ln.Close(); c.wg.Wait() })
	return c
}

func (c *cutter) forward(in net.Conn, cut bool) {
	defer in.Close()
	if cut {
		in.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		io.Copy(io.Discard, in)
		return
	}
	out, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(out, in)
		out.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(in, out)
	in.(*net.TCPConn).CloseWrite()
	<-done
}

// TestCutLineIsCalledAgain: what was under way when a line broke goes with the next call, and that call is made at once,
// not when the packet is overdue.
func TestCutLineIsCalledAgain(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	line := newCutter(t, hub.listen(), 3)
	camp.pol.Limits.RetryMin, camp.pol.Limits.RetryMax = 10*time.Millisecond, 20*time.Millisecond
	hub.knows(camp, "")
	hub.run()
	camp.knows(hub, "tcp:"+line.ln.Addr().String())
	for _, text := range []string{"first", "second"} {
		camp.submit("ana@camp.example", "bob@hub.example", "Subject: "+text+"\r\n\r\n")
	}
	camp.run()
	eventually(t, "both mails", func() bool { return len(hub.box("bob")) == 2 })
	eventually(t, "camp has nothing left", camp.empty)
	if n := line.calls.Load(); n < 4 {
		t.Errorf("%d calls, want 4", n)
	}
}
