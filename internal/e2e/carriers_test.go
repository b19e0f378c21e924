package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestScenarioDir: one folder that both nodes see.
func TestScenarioDir(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		dir := t.TempDir()
		url := carrierRecipe(t, "stick.toml", "dir:/media/usb", "dir:"+dir, "?mount=/media/usb", "")
		return joined{camp: side{url: url}, hub: side{url: url}, harm: newMischief(t, dir).harm}
	}})
}

// TestScenarioStick: each node has a folder of its own, and somebody copies what he finds to and fro, in places, and not
// always to its end.
func TestScenarioStick(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		a, b := t.TempDir(), t.TempDir()
		r := random(t)
		bad := newMischief(t, a)
		other := newMischief(t, b)
		return joined{camp: side{url: "dir:" + a}, hub: side{url: "dir:" + b},
			carry: func() { copyTree(t, r, a, b); copyTree(t, r, b, a) },
			harm:  func(r *rand.Rand) int { return bad.harm(r) + other.harm(r) },
		}
	}})
}

// copyTree copies packets from one folder to another as cp does, under the final name; now and then it is stopped. One
// that lies there in another length is copied again.
func copyTree(t *testing.T, r *rand.Rand, from, to string) {
	t.Helper()
	for _, path := range packetFiles(t, from, false) {
		name, _ := strings.CutPrefix(path, from+"/")
		goal := filepath.Join(to, name)
		src, err := os.Stat(path)
		if err != nil {
			continue
		}
		if dst, err := os.Stat(goal); err == nil && dst.Size() == src.Size() {
			continue
		}
		size := src.Size()
		if r.IntN(4) == 0 {
			size = r.Int64N(size + 1)
		}
		in, err := os.Open(path)
		if err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(goal), 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(goal)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(out, io.LimitReader(in, size))
		in.Close()
		out.Close()
	}
}

func TestScenarioTCP(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		conf, addr := listens(t)
		line := newBadLine(t, random(t), "tcp", addr, 8, true)
		return joined{camp: side{url: carrierRecipe(t, "tcp.toml", "hub.example:2424", line.addr)}, hub: side{conf: conf}, faults: line.faults}
	}})
}

// TestScenarioSOCKS: the same through a proxy that asks for a password, as Tor is one.
func TestScenarioSOCKS(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		conf, addr := listens(t)
		line := newBadLine(t, random(t), "tcp", addr, 8, true)
		s := peertest.StartSOCKS(t)
		url := carrierRecipe(t, "tcp.toml", "hub.example:2424", fmt.Sprintf("%s?socks=%s:%s@%s", line.addr, s.User, s.Password, s.Addr))
		return joined{camp: side{url: url}, hub: side{conf: conf}, faults: line.faults}
	}})
}

// TestOneFolder: three nodes on one folder, each the neighbour of the two others. A mail to people at both others arrives once at each, and
// in the end nothing lies
// there but the last receipts.
func TestOneFolder(t *testing.T) {
	t.Parallel()
	dir, mail := t.TempDir(), t.TempDir()
	names := []string{"camp", "hub", "ship"}
	nodes := map[string]*node{}
	for _, name := range names {
		nodes[name] = newNode(t, name, fmt.Sprintf("[[deliver]]\nto = [\"%s.mochila\"]\nvia = %q\n[limits]\nretry_min = \"1s\"\n", name, "maildir:"+filepath.Join(mail, name)+"/%u"))
	}
	for _, a := range names {
		for _, b := range names {
			if a != b {
				nodes[a].knows(nodes[b], control.PeerAdd{Carrier: "dir:" + dir})
			}
		}
	}
	for _, n := range nodes {
		n.serve()
	}
	for _, from := range names {
		var to []string
		for _, name := range names {
			if name != from {
				to = append(to, "ana@"+name+".mochila")
			}
		}
		for i := range 3 {
			nodes[from].submit(fmt.Sprintf("Subject: %d from %s\n\nhello\n", i, from), to...)
		}
	}
	drained(t, nodes["camp"], nodes["hub"], nodes["ship"])
	for _, name := range names {
		got := map[string]int{}
		for _, m := range box(t, filepath.Join(mail, name, "ana")) {
			_, subject, _ := strings.Cut(m, "Subject: ")
			subject, _, _ = strings.Cut(subject, "\n")
			got[subject]++
		}
		for _, from := range names {
			for i := range 3 {
				subject := fmt.Sprintf("%d from %s", i, from)
				if want := map[bool]int{true: 1}[from != name]; got[subject] != want {
					t.Errorf("%s has the mail %q %d times, want %d", name, subject, got[subject], want)
				}
			}
		}
	}
	peertest.Await(t, "the folder to be empty", func() bool { return len(packetFiles(t, dir, false)) <= len(names)*2 }, nodes["camp"].log.String)
}

func TestScenarioUnix(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, hub *node) joined {
		line := newBadLine(t, random(t), "unix", hub.home.LinkSocket(), 8, true)
		return joined{camp: side{url: carrierRecipe(t, "unix.toml", "/srv/hub/run/link.sock", line.addr)}, faults: line.faults}
	}})
}

func TestScenarioPipe(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, hub *node) joined {
		script, faults := brokenPipe(t, 4, hub.link())
		return joined{camp: side{url: carrierRecipe(t, "pipe.toml", "docker exec -i hub mochila receive --link", script)}, faults: faults}
	}})
}

// TestScenarioSSH: a real sshd; the key of camp can do nothing there but this.
func TestScenarioSSH(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, hub *node) joined {
		d := peertest.StartSSHD(t, peertest.SSHDOptions{Restrict: hub.link()})
		line := newBadLine(t, random(t), "tcp", d.Addr, 6, true)
		return joined{camp: side{url: carrierRecipe(t, "ssh.toml", "mochila@hub.example", d.User+"@"+line.addr, "/etc/mochila/ssh_config", d.Config)}, faults: line.faults}
	}})
}
