package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// sessions is how many clients send at once in these tests.
const sessions = 10

// kills ends daemons by kill -9 again and again, at random moments while mail flows, and starts them again. It returns
// the moments.
func kills(t *testing.T, l *load, r *rand.Rand, n int, nodes ...*node) (when []time.Time) {
	t.Helper()
	for _, x := range nodes {
		x.start()
	}
	for k := range n {
		l.more(1 + r.IntN(60))
		x := nodes[r.IntN(len(nodes))]
		select { // a moment that no event of the daemon chooses
		case <-time.After(time.Duration(r.IntN(30_000)) * time.Microsecond):
		case <-x.exited:
			t.Fatalf("%s ended by itself: %v\n%s", x.name, x.cmd.ProcessState, tail(x.log.String()))
		}
		if r.IntN(4) == 0 && len(nodes) > 1 { // a power cut at both ends
			for _, y := range nodes {
				y.kill()
			}
		} else {
			x.kill()
		}
		when = append(when, time.Now())
		for _, y := range nodes {
			if y.cmd == nil {
				y.launch()
			}
		}
		if k%7 == 0 { // now and then while it still starts
			x.kill()
			when = append(when, time.Now())
			x.launch()
		}
		for _, y := range nodes {
			peertest.Await(t, y.name+" to answer", func() bool { return y.answers() }, y.log.String)
		}
	}
	t.Logf("%d kills, %d mails answered 250", len(when), l.count())
	return when
}

// TestKillMaildir: one node, mail in by SMTP and out into a Maildir. No duplicates are allowed.
func TestKillMaildir(t *testing.T) {
	r := random(t)
	smtp, mail := peertest.FreePort(t), t.TempDir()
	n := newNode(t, "camp", `
domain = "camp.example"
[smtp]
listen = [`+toml(smtp)+`]
[[deliver]]
to = ["camp.example"]
via = `+toml("maildir:"+mail+"/%u")+`
`)
	l := newLoad(smtp, "ana@camp.example")
	l.start(sessions, r)
	kills(t, l, r, count(20, 500), n)
	l.end()
	drained(t, n)
	l.verify(t, inBox(t, filepath.Join(mail, "ana")), nil)
}

// TestKillSMTP: one node, out by SMTP. The one window that SMTP leaves is counted: a kill after the server's 250 and
// before this node has stored it.
func TestKillSMTP(t *testing.T) {
	r := random(t)
	smtp, out := peertest.FreePort(t), newSink(t, nil)
	n := newNode(t, "camp", `
domain = "camp.example"
[smtp]
listen = [`+toml(smtp)+`]
[[deliver]]
to = ["camp.example"]
via = `+toml("smtp:"+out.Addr)+`
`)
	l := newLoad(smtp, "ana@camp.example")
	l.start(sessions, r)
	when := kills(t, l, r, count(20, 500), n)
	l.end()
	drained(t, n)
	window := 0
	l.verify(t, inSink(out), func(c []arrival) bool {
		// a copy for each kill at most, and a kill between any two
		slices.SortFunc(c, func(a, b arrival) int { return a.at.Compare(b.at) })
		for i := range c[1:] {
			between := func(k time.Time) bool { return k.After(c[i].at) && k.Before(c[i+1].at) }
			if !slices.ContainsFunc(when, between) {
				return false
			}
		}
		window++
		return true
	})
	t.Logf("the window of SMTP was hit %d times in %d kills", window, len(when))
	if most := len(when) * 20; window > most { // [limits] deliveries
		t.Errorf("%d mails came twice, more than %d deliveries can have been under way", window, most)
	}
}

// TestKillEitherSide: two nodes and what lies between them. Either daemon is killed, or both; what the first one
// answered 250 is in the Maildir of the second, once.
func TestKillEitherSide(t *testing.T) {
	for _, carrier := range []string{"dir", "tcp"} {
		t.Run(carrier, func(t *testing.T) {
			r := random(t)
			smtp, link, mail := peertest.FreePort(t), peertest.FreePort(t), t.TempDir()
			camp := newNode(t, "camp", fmt.Sprintf(`
domain = "camp.example"
[smtp]
listen = [%q]
[limits]
retry_min = "1s"
retry_max = "1s"
`, smtp))
			hub := newNode(t, "hub", fmt.Sprintf(`
domain = "hub.example"
[link]
listen = [%q]
[[deliver]]
to = ["hub.example"]
via = %q
[limits]
retry_min = "1s"
retry_max = "1s"
`, link, "maildir:"+mail+"/%u"))
			if carrier == "dir" {
				dir := t.TempDir()
				camp.knows(hub, control.PeerAdd{Carrier: "dir:" + dir, Routes: []string{"hub.example"}})
				hub.knows(camp, control.PeerAdd{Carrier: "dir:" + dir})
			} else {
				camp.knows(hub, control.PeerAdd{Carrier: "tcp:" + link, Routes: []string{"hub.example"}})
				camp.calls("hub")
				hub.knows(camp, control.PeerAdd{When: "on-call"})
			}
			l := newLoad(smtp, "ana@hub.example")
			l.start(sessions, r)
			kills(t, l, r, count(10, 250), camp, hub)
			l.end()
			drained(t, camp, hub)
			l.verify(t, inBox(t, filepath.Join(mail, "ana")), nil)
		})
	}
}
