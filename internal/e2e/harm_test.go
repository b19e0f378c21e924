package e2e

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"mochila/internal/peertest"
)

// packetFiles are the packets that lie below a folder: files with names of 52 characters; any file, if the carrier gives
// them names of its own.
func packetFiles(t testing.TB, root string, any bool) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // what somebody has just removed
		}
		if name := e.Name(); any || len(name) == 52 && !strings.ContainsAny(name, ".~") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// mischief does to a folder what bad media, careless people and careless programs do.
type mischief struct {
	t      testing.TB
	root   string
	any    bool              // the carrier gives files names of its own
	stolen map[string][]byte // packets that were lost, to come again
}

func newMischief(t testing.TB, root string) *mischief {
	return &mischief{t: t, root: root, stolen: map[string][]byte{}}
}

// harm does one thing to each of the packets that lie there, most of the time, and returns to how many. Lost ones come
// back at the next call, when nobody wants them any more.
func (m *mischief) harm(r *rand.Rand) (hits int) {
	m.t.Helper()
	files := packetFiles(m.t, m.root, m.any)
	for path, b := range m.stolen {
		if os.WriteFile(path, b, 0o644) == nil {
			delete(m.stolen, path)
		}
	}
	for i, path := range files {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			continue
		}
		what := r.IntN(6)
		if i == 0 { // there may be only this one
			what = r.IntN(3)
		}
		switch what {
		case 0:
			m.stolen[path] = b
			os.Remove(path)
		case 1:
			os.Truncate(path, int64(r.IntN(len(b))))
		case 2:
			flipped := append([]byte{}, b...)
			flipped[r.IntN(len(b))] ^= 1 << r.IntN(8)
			os.WriteFile(path, flipped, 0o644)
		case 3:
			os.WriteFile(path+".sync-conflict-20300101-000000-ABCDEFG", b, 0o644)
		case 4:
			os.WriteFile(filepath.Join(filepath.Dir(path), ".tmp-left-behind"), b[:len(b)/2], 0o644)
		default:
			continue
		}
		hits++
	}
	return hits
}

// badLine listens and passes connections on to a target, over a line that breaks: the first ones are cut or changed
// after a while, then it has mercy.
type badLine struct {
	addr string

	mu    sync.Mutex
	r     *rand.Rand
	left  int // faults still to come
	flips bool
	done  int
	open  map[net.Conn]bool
	over  bool
}

// hangUp ends all connections: some programs keep theirs for later.
func (b *badLine) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	for c := range b.open {
		c.Close()
	}
}

func (b *badLine) note(c net.Conn, open bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[c] = open; !open {
		delete(b.open, c)
	}
	if b.over {
		c.Close()
	}
}

// newBadLine returns a line with so many faults to a target, "tcp" or "unix". With flips some of them invert a bit.
func newBadLine(t testing.TB, r *rand.Rand, network, target string, faults int, flips bool) *badLine {
	t.Helper()
	b := &badLine{r: r, left: faults, flips: flips, open: map[net.Conn]bool{}}
	at := "127.0.0.1:0"
	if network == "unix" {
		at = filepath.Join(shortDir(t), "line.sock")
	}
	l, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { b.pass(c, network, target) })
		}
	})
	t.Cleanup(func() { l.Close(); b.hangUp(); all.Wait() })
	return b
}

// faults is how many have happened.
func (b *badLine) faults() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.done
}

// fate is what happens to one direction of a connection: after so many bytes it is cut, or a bit changes. -1: nothing.
type fate struct {
	after int64
	flip  bool
}

func (b *badLine) next() fate {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left == 0 {
		return fate{after: -1}
	}
	b.left--
	return fate{after: int64(50 + b.r.IntN(40_000)), flip: b.flips && b.r.IntN(2) == 0}
}

func (b *badLine) happened() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done++
}

func (b *badLine) pass(c net.Conn, network, target string) {
	defer c.Close()
	d, err := net.Dial(network, target)
	if err != nil {
		return
	}
	defer d.Close()
	b.note(c, true)
	defer b.note(c, false)
	var both sync.WaitGroup
	way := func(to, from net.Conn, f fate) {
		both.Go(func() {
			defer to.Close()
			defer from.Close()
			if f.after >= 0 {
				if _, err := io.CopyN(to, from, f.after); err != nil {
					return
				}
				b.happened()
				if !f.flip {
					return
				}
				one := make([]byte, 1)
				if _, err := io.ReadFull(from, one); err != nil {
					return
				}
				one[0] ^= 0x10
				if _, err := to.Write(one); err != nil {
					return
				}
			}
			io.Copy(to, from)
		})
	}
	way(d, c, b.next())
	way(c, d, b.next())
	both.Wait()
}

// brokenPipe is a script that runs a command and hangs up in the middle of its output, so many times: after 3000 bytes,
// after 6000, and so on. What comes before the cut goes through at once, and the script is gone with it: a copier with a
// buffer, or one that leaves somebody at the other end of the pipe, would be a line that is silent, not one that breaks.
// A call in which the command itself ended early is no fault and counts as none.
func brokenPipe(t testing.TB, times int, command string) (script string, faults func() int) {
	t.Helper()
	dir := t.TempDir()
	script = filepath.Join(dir, "line.sh")
	text := fmt.Sprintf(`#!/bin/sh
cut=$(cat %[1]s/*.said 2>/dev/null | grep -c '^full$')
[ "$cut" -ge %[2]d ] && exec %[3]s
at=$(((cut + 1) * 3000))
mkfifo %[1]s/$$.pipe
exec 3<&0
%[3]s <&3 3<&- >%[1]s/$$.pipe &
exec 3<&- <%[1]s/$$.pipe
LC_ALL=C dd bs=1 count=$at 2>%[1]s/$$.dd
if grep -q "^$at+0 records in" %[1]s/$$.dd; then
	echo full >%[1]s/$$.said
	kill -9 $!
fi
exit 0
`, dir, times, command)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return script, func() int {
		said, err := filepath.Glob(filepath.Join(dir, "*.said"))
		if err != nil {
			t.Fatal(err)
		}
		return len(said)
	}
}

// link is how another node reaches n's link socket by a command.
func (n *node) link() string { return program("mochila") + " --home " + n.dir + " receive --link" }

// listens is the configuration that lets neighbours call n, and the address.
func listens(t testing.TB) (conf, addr string) {
	addr = peertest.FreePort(t)
	return "[link]\nlisten = [" + toml(addr) + "]\n", addr
}
