package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestKill sends mail through two nodes and a folder while both daemons are killed again and again, at random moments.
// Every mail that was answered 250 arrives exactly once: the far end is a Maildir, which knows a mail that it has.
func TestKill(t *testing.T) {
	random := random(t)
	kills := count(20, 500)
	listen := peertest.FreePort(t)
	stick := t.TempDir()
	mail := shortDir(t)
	here := newNode(t, "here", fmt.Sprintf("[smtp]\nlisten = [%q]\n", listen))
	there := newNode(t, "there", fmt.Sprintf("[[deliver]]\nto = [\"there.example\", \"there.mochila\"]\nvia = %q\n", "maildir:"+filepath.Join(mail, "%u")))
	here.knows(there, control.PeerAdd{Carrier: "dir:" + stick, Routes: []string{"there.example"}})
	there.knows(here, control.PeerAdd{Carrier: "dir:" + stick})
	here.start()
	there.start()

	var stop atomic.Bool
	var mu sync.Mutex
	accepted, tried := map[string]bool{}, map[string]bool{}
	var senders sync.WaitGroup
	for s := range 6 {
		senders.Add(1)
		go func() {
			defer senders.Done()
			for n := 0; !stop.Load(); n++ {
				id := fmt.Sprintf("mail-%d-%d", s, n)
				body := "Subject: " + id + "\r\n\r\n" + strings.Repeat("x"+id+"\r\n", 1+n%40*20)
				mu.Lock()
				tried[id] = true
				mu.Unlock()
				if send(listen, body, "<from@here.example>", "<box@there.example>") != nil {
					time.Sleep(10 * time.Millisecond) // the daemon is down: do not spin while it starts
					continue
				}
				mu.Lock()
				accepted[id] = true
				mu.Unlock()
			}
		}()
	}
	for range kills {
		n := here
		if random.IntN(2) == 0 {
			n = there
		}
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond) // the moment is what the seed decides
		n.kill()
		n.start()
	}
	stop.Store(true)
	senders.Wait()
	drained(t, here, there)

	got := map[string]int{}
	for name, text := range box(t, filepath.Join(mail, "box")) {
		_, rest, ok := strings.Cut(text, "Subject: ")
		id, body, _ := strings.Cut(rest, "\n")
		if !ok || !tried[id] {
			t.Errorf("%s is no mail of this test: %.200q", name, text)
			continue
		}
		got[id]++
		for line := range strings.Lines(strings.TrimPrefix(body, "\n")) {
			if line != "x"+id+"\n" {
				t.Errorf("%s is damaged: %.100q", id, line)
				break
			}
		}
	}
	for id := range accepted {
		if got[id] != 1 {
			t.Errorf("%s was answered 250 and arrived %d times", id, got[id])
		}
	}
	for id, n := range got {
		if n > 1 {
			t.Errorf("%s arrived %d times", id, n)
		}
	}
	if len(accepted) == 0 {
		t.Error("nothing was accepted: the test did not test")
	}
	t.Logf("%d kills, %d mails tried, %d answered 250, %d arrived", kills, len(tried), len(accepted), len(got))
}
