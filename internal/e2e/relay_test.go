package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/internal/peertest"
)

// overdue sets after what time a packet without a receipt is sent again by all contacts with a peer.
func (n *node) overdue(peer string, d time.Duration) {
	n.t.Helper()
	f, err := config.ReadPeer(n.home, peer)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := range f.Contacts {
		f.Contacts[i].Overdue = config.Duration(d)
	}
	if err := config.WritePeer(n.home, f); err != nil {
		n.t.Fatal(err)
	}
}

// holds reports in which file below a folder one of the texts stands.
func holds(t *testing.T, dir string, texts ...string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // what a running daemon has just removed
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for _, text := range texts {
			if bytes.Contains(b, []byte(text)) {
				found = append(found, path+" has "+text)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRelayLosesEverything: mail goes from camp over a relay to hub, by two folders. The relay is killed in the middle
// and loses its spool; what camp answered 250 arrives once all the same. The relay holds nothing that it could read.
func TestRelayLosesEverything(t *testing.T) {
	r := random(t)
	smtp, mail, left, right := peertest.FreePort(t), t.TempDir(), t.TempDir(), t.TempDir()
	quick := "[limits]\nretry_min = \"1s\"\nretry_max = \"1s\"\n"
	camp := newNode(t, "camp", fmt.Sprintf("domain = \"camp.example\"\n[smtp]\nlisten = [%q]\n%s", smtp, quick))
	relay := newNode(t, "relay", quick)
	hub := newNode(t, "hub", fmt.Sprintf("domain = \"hub.example\"\n[[deliver]]\nto = [\"hub.example\"]\nvia = %q\n%s", "maildir:"+mail+"/%u", quick))
	camp.knows(relay, control.PeerAdd{Carrier: "dir:" + left})
	camp.knows(hub, control.PeerAdd{Path: []string{"relay"}, Routes: []string{"hub.example"}})
	hub.knows(relay, control.PeerAdd{Carrier: "dir:" + right})
	hub.knows(camp, control.PeerAdd{Path: []string{"relay"}})
	relay.knows(camp, control.PeerAdd{Carrier: "dir:" + left}) // its right to relay names hub, which comes next
	relay.knows(hub, control.PeerAdd{Carrier: "dir:" + right, RelayTo: []string{"camp"}})
	relay.knows(camp, control.PeerAdd{Carrier: "dir:" + left, RelayTo: []string{"hub"}})
	for n, peers := range map[*node][]string{camp: {"relay"}, relay: {"camp", "hub"}, hub: {"relay"}} {
		for _, p := range peers {
			n.overdue(p, 3*time.Second)
		}
	}
	camp.start()
	relay.start()
	hub.start()
	l := newLoad(smtp, "ana@hub.example")
	l.start(4, r)
	arrived := func() int { return len(box(t, filepath.Join(mail, "ana"))) }
	for range count(3, 20) {
		l.more(30)
		some := arrived()
		peertest.Await(t, "mail on its way", func() bool { return arrived() > some }, relay.log.String, hub.log.String)
		if found := holds(t, relay.dir, "X-Load-Id", "eve@camp.example", "ana@hub.example", "Subject: load"); len(found) > 0 {
			t.Errorf("the relay can read: %q", found)
		}
		relay.kill()
		if err := os.RemoveAll(relay.home.SpoolDir); err != nil {
			t.Fatal(err)
		}
		relay.start()
	}
	l.more(10)
	l.end()
	drained(t, camp, hub)
	l.verify(t, inBox(t, filepath.Join(mail, "ana")), nil)
	for _, secret := range []string{"eve@", "ana@", "camp.example", "hub.example"} {
		if strings.Contains(relay.log.String(), secret) {
			t.Errorf("the relay's log knows %q", secret)
		}
	}
}
