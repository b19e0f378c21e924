package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestCutTransfer: one large job over a TCP line that is cut twenty times, anywhere. What came before a cut does not come again.
func TestCutTransfer(t *testing.T) {
	t.Parallel()
	r := random(t)
	const cuts = 20
	size := int64(count(24<<20, 1<<30))
	link := peertest.FreePort(t)
	limits := "[smtp]\nmax_size = \"4GiB\"\n[limits]\nretry_min = \"1s\"\nretry_max = \"1s\"\n"
	camp := newNode(t, "camp", limits)
	conf := fmt.Sprintf("name = \"hub\"\n[link]\nlisten = [%q]\n[[handler]]\nname = \"sum\"\ncommand = [\"/usr/bin/sha256sum\"]\nallow = [\"*:*\"]\n%s", link, limits)
	hub := newNode(t, "hub", conf)
	parts, sum := make([]int64, cuts), int64(0) // at random places of the first nine tenths: all cuts happen
	for i := range parts {
		parts[i] = 1 + r.Int64N(1<<20)
		sum += parts[i]
	}
	b := newBreaker(t, "tcp", link, func(n int) int64 {
		if n >= cuts {
			return 0
		}
		return max(1000, size*9/10*parts[n]/sum)
	})
	camp.knows(hub, control.PeerAdd{Carrier: "tcp:" + b.addr})
	camp.calls("hub")
	hub.knows(camp, control.PeerAdd{When: "on-call"})
	hub.configure(conf + "[[peer]]\nnode = \"camp\"\nmax_bytes = \"8GiB\"\n")
	hub.start()
	camp.start()

	file := filepath.Join(t.TempDir(), "input")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.New()
	var seed [32]byte
	seed[0], seed[1] = byte(r.Uint32()), 1
	if _, err := io.Copy(io.MultiWriter(f, digest), io.LimitReader(rand.NewChaCha8(seed), size)); err != nil {
		t.Fatal(err)
	}
	f.Seek(0, io.SeekStart)
	cmd := camp.command("run", "hub", "--wait", "--", "sum")
	cmd.Stdin = f
	out, err := cmd.Output()
	f.Close()
	if want := hex.EncodeToString(digest.Sum(nil)); err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("the program at the other side read something else: %q, want %s: %v\n%s", out, want, err, tail(camp.log.String()))
	}
	if err := hub.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	hub.exit() // the last contact is in the log
	conns, n := b.tally()
	bytes := hub.received()
	t.Logf("%d bytes: %d connections, %d cuts, %d bytes received: %.3f times", size, conns, n, bytes, float64(bytes)/float64(size))
	if n != cuts || bytes >= size*105/100 {
		t.Errorf("%d cuts, want %d; %d bytes received for %d", n, cuts, bytes, size)
	}
}

// TestWaitForOnCall: the result of a job that ends when the contact is long over comes home although only this side can
// call, and by itself does so every five minutes: for whoever waits the node calls more often.
func TestWaitForOnCall(t *testing.T) {
	t.Parallel()
	link, gate := peertest.FreePort(t), filepath.Join(t.TempDir(), "gate")
	camp := newNode(t, "camp", "name = \"camp\"\n")
	hub := newNode(t, "hub", fmt.Sprintf("name = \"hub\"\n[link]\nlisten = [%q]\n", link)+
		fmt.Sprintf("[[handler]]\nname = \"gate\"\ncommand = [\"/bin/sh\", \"-c\", \"until [ -e %s ]; do sleep 0.1; done; echo open\"]\nallow = [\"*:*\"]\n", gate))
	camp.knows(hub, control.PeerAdd{Carrier: "tcp:" + link})
	hub.knows(camp, control.PeerAdd{When: "on-call"})
	hub.start()
	camp.start()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // without waiting it would be five
	defer cancel()
	over := make(chan error, 1)
	var out []byte
	go func() {
		var err error
		cmd := camp.command("run", "hub", "--wait", "--", "gate")
		stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
		defer stop()
		out, err = cmd.Output()
		over <- err
	}()
	peertest.Await(t, "the job to run at hub", func() bool { return strings.Contains(hub.must("jobs", "list"), "running") }, hub.log.String)
	brought := regexp.MustCompile(`contact over .* in=[1-9]`) // the first contact made the session
	peertest.Await(t, "the end of the contact that brought it", func() bool { return brought.MatchString(hub.log.String()) }, hub.log.String)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err != nil || string(out) != "open\n" {
		t.Errorf("%v: %q\n%s", err, out, tail(camp.log.String()))
	}
}

var bytesIn = regexp.MustCompile(`bytes_in=(\d+)`)

// received is how many bytes a node has read from callers whose contacts are over. What a cut left in the kernel it never had.
func (n *node) received() (sum int64) {
	for _, m := range bytesIn.FindAllStringSubmatch(n.log.String(), -1) {
		k, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			n.t.Fatal(err)
		}
		sum += k
	}
	return sum
}
