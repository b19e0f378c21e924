package bridge

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mochila/bridge/route"
	"mochila/internal/seal"
	"mochila/transport"
	"mochila/transport/serial"
	"mochila/transport/transporttest"
)

// virtualNode is newNode in a bubble, whose clock begins long before the build date.
func virtualNode(t *testing.T, name string, now func() time.Time) *node {
	t.Helper()
	n := &node{t: t, name: name, dir: t.TempDir(), now: now}
	var err error
	if n.keys, err = seal.Create(filepath.Join(n.dir, "identity"), seal.Options{Name: name, Now: now()}); err != nil {
		t.Fatal(err)
	}
	n.pol = &Policy{Name: name, Domain: name + ".example"}
	if n.pol.Routes, err = route.New([]route.Rule{{To: []string{name + ".example"}, Via: "maildir:" + n.mail("%u")}}, nil); err != nil {
		t.Fatal(err)
	}
	n.open()
	t.Cleanup(n.close)
	return n
}

// tally counts the bytes of both directions of contacts.
type tally struct {
	mu    sync.Mutex
	stats []transport.Stats
}

func (c *tally) add(s transport.Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats = append(c.stats, s)
}

func (c *tally) last() (transport.Stats, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.stats) == 0 {
		return transport.Stats{}, 0
	}
	return c.stats[len(c.stats)-1], len(c.stats)
}

// TestMailOverRadio: a line of 9600 bit/s that carries one direction at a time and takes a second to turn. Once the two nodes know each
// other, a mail of 500 bytes is delivered within three seconds after it was accepted, and a contact in which nothing happens costs less than 200
// bytes.
func TestMailOverRadio(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, base := time.Now(), time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
		now := func() time.Time { return base.Add(time.Since(start)) }
		camp, hub := virtualNode(t, "camp", now), virtualNode(t, "hub", now)
		pa, pb := transporttest.Radio{Seed: 1, BitRate: 9600, Half: true, Turnaround: time.Second, Latency: 10 * time.Millisecond}.Ports()
		o := serial.Options{Baud: 9600, Turnaround: time.Second}
		tune := func(s transport.StreamOptions) transport.StreamOptions {
			s.Inline, s.Idle, s.Greet = 8<<10, 10*time.Minute, 10*time.Minute
			return s
		}
		camp.b.opt.Link = func(*Contact) (transport.Link, error) {
			return transport.NewStreamLink(transporttest.DialFunc(func() (transport.Stream, error) {
				return serial.Call(transporttest.Reopen(pa), o), nil
			}), tune(camp.stream())), nil
		}
		camp.knows(hub, "serial:/dev/radio")
		hub.knows(camp, "")
		line := serial.Listen(pb, o)
		ctx, cancel := context.WithCancel(t.Context())
		var answering sync.WaitGroup
		calls := &tally{}
		so := tune(hub.stream())
		answering.Go(func() {
			for {
				s, err := line.Accept(ctx)
				if err != nil {
					return
				}
				st, err := transport.Answer(ctx, s, hub.b, so)
				if err != nil && ctx.Err() == nil {
					t.Errorf("answer: %v", err)
				}
				calls.add(st)
			}
		})
		camp.run()
		hub.run()
		mail := func(k int) string {
			text := fmt.Sprintf("Subject: weather %d\r\nDate: Mon, 1 Mar 2027 12:00:00 +0000\r\nMessage-ID: <%d@camp.example>\r\n\r\n", k, k)
			for i := 0; len(text) < 500; i++ {
				text += fmt.Sprintf("wind %d knots, barometer 10%02d and falling, sea state %d.\r\n", (i*7+k)%40, (i*13+k)%30, i%9)
			}
			return text[:498] + "\r\n"
		}
		settle := func(k int) {
			eventually(t, fmt.Sprintf("mail %d and its receipts", k), func() bool { return len(hub.box("bob")) == k && camp.empty() && hub.empty() })
		}
		for k := range 2 { // a session comes about
			camp.submit("ana@camp.example", "bob@hub.example", mail(k))
			settle(k + 1)
			time.Sleep(time.Minute)
		}
		for k := 2; k < 5; k++ {
			_, before := calls.last()
			accepted := time.Now()
			camp.submit("ana@camp.example", "bob@hub.example", mail(k))
			eventually(t, "the mail", func() bool { return len(hub.box("bob")) == k+1 })
			took := time.Since(accepted)
			settle(k + 1)
			time.Sleep(time.Minute)
			st, after := calls.last()
			t.Logf("mail %d: delivered after %v; %d contacts, the last %d bytes in, %d out, over after %v", k, took, after-before, st.BytesIn, st.BytesOut, time.Since(accepted)-time.Minute)
			if took >= 3*time.Second {
				t.Errorf("mail %d took %v", k, took)
			}
		}
		// Nothing to say.
		for _, r := range camp.b.Sync(ctx, nil) {
			if r.Err != nil {
				t.Error(r.Err)
			}
			t.Logf("idle contact: %d bytes out, %d in", r.Stats.BytesOut, r.Stats.BytesIn)
			if n := r.Stats.BytesOut + r.Stats.BytesIn; n >= 200 {
				t.Errorf("an idle contact costs %d bytes", n)
			}
		}
		for _, m := range hub.box("bob") {
			if !strings.Contains(m, "barometer") {
				t.Errorf("mail: %q", m)
			}
		}
		cancel()
		camp.close()
		hub.close()
		line.Close()
		answering.Wait()
	})
}
