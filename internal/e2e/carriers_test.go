package e2e

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
