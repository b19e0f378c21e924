package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestScenarioExport: somebody exports at one side and imports at the other; his media rot, are cut short, get lost, and are read
// twice.
func TestScenarioExport(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, hub *node) joined {
		p := &post{t: t, dir: t.TempDir(), nodes: [2]*node{camp, hub}, r: random(t)}
		return joined{carry: p.carry, harm: p.harm}
	}})
}

// post carries exports between two nodes.
type post struct {
	t     *testing.T
	dir   string
	nodes [2]*node
	r     *rand.Rand
	n     int
}

// carry brings what lies about to whoever runs, and has them write anew.
func (p *post) carry() {
	for i, from := range p.nodes {
		to := p.nodes[1-i]
		if to.stop != nil {
			files, _ := filepath.Glob(filepath.Join(p.dir, to.name+"-*"))
			for _, f := range files {
				out, err := to.command("import", f).CombinedOutput()
				if code := exitCode(err); code != 0 && code != 75 && code != 65 {
					p.t.Fatalf("import: %v: %s", err, out)
				}
				if p.r.IntN(3) > 0 {
					os.Remove(f)
				}
			}
		}
		if from.stop == nil {
			continue
		}
		p.n++
		file := filepath.Join(p.dir, fmt.Sprintf("%s-%d", to.name, p.n))
		args := []string{"export", to.name, "--block", "512", "-o", file}
		if p.r.IntN(2) == 0 {
			args = append(args, "--parts", "5", "--parity", "2")
		}
		if out, err := from.command(args...).CombinedOutput(); err != nil {
			p.t.Fatalf("export: %v: %s", err, out)
		}
		if st, err := os.Stat(file); err == nil && st.Size() == 0 {
			os.Remove(file)
		}
	}
}

// harm damages the media that lie about.
func (p *post) harm(r *rand.Rand) (hits int) {
	files, _ := filepath.Glob(filepath.Join(p.dir, "*"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || len(b) < 100 {
			continue
		}
		switch r.IntN(4) {
		case 0:
			b = nil
		case 1:
			b = b[:r.IntN(len(b))]
		case 2:
			for range 1 + len(b)/2000 {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
		case 3:
			at := r.IntN(len(b))
			b = append(append(append([]byte{}, b[at:]...), "a label"...), b[:at]...)
		}
		if err := os.WriteFile(f, b, 0o644); err != nil {
			p.t.Fatal(err)
		}
		hits++
	}
	return hits
}

// exitCode is that of a command that ran; -1 when it did not.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if x, ok := err.(*exec.ExitError); ok {
		return x.ExitCode()
	}
	return -1
}

// exporters makes two nodes that meet by exports only, and hub's Maildir.
func exporters(t *testing.T) (camp, hub *node, mail string) {
	t.Helper()
	mail = t.TempDir()
	camp = newNode(t, "camp", "")
	hub = newNode(t, "hub", fmt.Sprintf("[[deliver]]\nto = [\"hub.mochila\"]\nvia = %q\n", "maildir:"+mail+"/%u"))
	camp.knows(hub, control.PeerAdd{When: "on-call"})
	hub.knows(camp, control.PeerAdd{When: "on-call"})
	return camp, hub, mail
}

// run is a command of the node that must end with this status; it returns what it said.
func (n *node) run(status int, args ...string) string {
	n.t.Helper()
	out, err := n.command(args...).CombinedOutput()
	if exitCode(err) != status {
		n.t.Errorf("%s: mochila %q: %v, want status %d: %s", n.name, args, err, status, out)
	}
	return string(out)
}

// recipe is a script of contrib/export that runs for the node.
func (n *node) recipe(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join("..", "..", "contrib", "export", name), args...)
	cmd.Env = append(os.Environ(), "MOCHILA_HOME="+n.dir, "PATH="+bin+":"+os.Getenv("PATH"))
	return cmd
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: %s is not installed: run .ci/peers", p)
		}
	}
}

// TestExportDisc: a disc image is filled with the most urgent, and read as it is; the next one has the rest. The receipt comes back the
// same way, and empties the queue.
func TestExportDisc(t *testing.T) {
	t.Parallel()
	needs(t, "genisoimage")
	r := random(t)
	camp, hub, mail := exporters(t)
	for i := range 8 {
		camp.submit(randomMail(r, 200_000), fmt.Sprintf("m%d@hub.mochila", i))
	}
	camp.submit("Subject: small\n\n", "small@hub.mochila")
	arrived := 0
	for disc := 1; disc <= 3; disc++ {
		image := filepath.Join(t.TempDir(), "disc.iso")
		if out, err := camp.recipe("disc", "hub", image, "0.5M").CombinedOutput(); err != nil {
			t.Fatalf("disc: %v: %s", err, out)
		}
		if st, err := os.Stat(image); err != nil || st.Size() > 1<<20 {
			t.Errorf("image: %v, %v", st, err)
		}
		hub.run(0, "import", image)
		got, _ := filepath.Glob(filepath.Join(mail, "*/new/*"))
		if len(got) <= arrived || disc == 1 && len(box(t, mail+"/small")) != 1 {
			t.Errorf("after disc %d: %d mails", disc, len(got))
		}
		arrived = len(got)
	}
	if out := camp.run(0, "export", "hub", "-o", filepath.Join(t.TempDir(), "rest")); !strings.Contains(out, "hub: ") {
		t.Errorf("rest: %s", out)
	}
	back := filepath.Join(t.TempDir(), "back.mcx")
	hub.run(0, "export", "camp", "-o", back)
	camp.run(0, "import", back)
	if n := camp.queued(); n == 9 || n > 9-arrived {
		t.Errorf("%d envelopes are queued after receipts for %d", n, arrived)
	}
}

// TestExportSticks: any N of N+M sticks restore everything; with one fewer it is said which are missing; rot is survived, and named.
func TestExportSticks(t *testing.T) {
	t.Parallel()
	r := random(t)
	camp, hub, mail := exporters(t)
	for range 5 {
		camp.submit(randomMail(r, 300_000), "ana@hub.mochila")
	}
	var sticks []string
	for range 5 {
		sticks = append(sticks, t.TempDir())
	}
	if out, err := camp.recipe("sticks", append([]string{"3", "2", "hub"}, sticks...)...).CombinedOutput(); err != nil {
		t.Fatalf("sticks: %v: %s", err, out)
	}
	if out := hub.run(75, "import", sticks[4]); !strings.Contains(out, "of its 5 parts 3 are needed, and only part 5 is here") || !strings.Contains(out, "bring 2 of the parts 1, 2, 3, 4") {
		t.Errorf("one stick: %s", out)
	}
	if out := hub.run(75, "import", sticks[1]); !strings.Contains(out, "only parts 2, 5 are here") {
		t.Errorf("two sticks: %s", out)
	}
	// The third and the fourth have rot, at different places.
	for i, s := range []string{sticks[0], sticks[3]} {
		files, _ := filepath.Glob(s + "/*.mcx")
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/3+i*len(b)/3] ^= 4
		if err := os.WriteFile(files[0], b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := hub.run(75, "import", sticks[0]); !strings.Contains(out, "1 block damaged") || !strings.Contains(out, "1 stripe is missing or damaged") || !strings.Contains(out, "bring part 3 or 4") {
		t.Errorf("a stick with rot: %s", out)
	}
	if out := hub.run(0, "import", sticks[3]); !strings.Contains(out, "1 block damaged") {
		t.Errorf("another one: %s", out)
	}
	if got := box(t, mail+"/ana"); len(got) != 5 {
		t.Errorf("%d mails", len(got))
	}
	if out := hub.run(0, append([]string{"import"}, sticks...)...); !strings.Contains(out, "nothing new") {
		t.Errorf("once more: %s", out)
	}
}

// TestExportTape: two exports on one tape, with padding and what somebody else wrote between them.
func TestExportTape(t *testing.T) {
	t.Parallel()
	camp, hub, mail := exporters(t)
	tape := filepath.Join(t.TempDir(), "tape")
	if err := os.WriteFile(tape, bytes.Repeat([]byte("somebody's backup "), 5000), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		camp.submit(fmt.Sprintf("Subject: %d\n\n", i), "ana@hub.mochila")
		if out, err := camp.recipe("tape", "hub", tape).CombinedOutput(); err != nil {
			t.Fatalf("tape: %v: %s", err, out)
		}
	}
	hub.run(0, "import", tape)
	if got := box(t, mail+"/ana"); len(got) != 2 {
		t.Errorf("%d mails", len(got))
	}
}

// TestExportDiode: datagrams, one way, a fifth of them lost on the way. The receiver runs as long as it likes, beside its daemon.
func TestExportDiode(t *testing.T) {
	t.Parallel()
	needs(t, "socat")
	r := random(t)
	camp, hub, mail := exporters(t)
	hub.serve()
	for range 3 {
		camp.submit(randomMail(r, 400_000), "ana@hub.mochila")
	}
	_, port, _ := net.SplitHostPort(peertest.FreePort(t))
	receive := hub.recipe("diode-receive", port)
	said := &logbook{}
	receive.Stdout, receive.Stderr = said, said
	receive.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := receive.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- receive.Wait() }()
	defer syscall.Kill(-receive.Process.Pid, syscall.SIGKILL)

	diode := lossyUDP(t, "127.0.0.1:"+port, r)
	peertest.Await(t, "the receiver to listen", func() bool {
		c, err := net.ListenPacket("udp", "0.0.0.0:"+port)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if out, err := camp.recipe("diode-send", "hub", diode, "6").CombinedOutput(); err != nil {
		t.Fatalf("diode-send: %v: %s", err, out)
	}
	peertest.Await(t, "three mails", func() bool { return len(box(t, mail+"/ana")) == 3 }, said.String, hub.log.String)
	syscall.Kill(-receive.Process.Pid, syscall.SIGINT)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the receiver does not end")
	}
	if !strings.Contains(said.String(), "camp: ") {
		t.Errorf("the receiver says %s", said.String())
	}
}

// lossyUDP passes datagrams on, but for a fifth of them.
func lossyUDP(t *testing.T, to string, r *rand.Rand) string {
	t.Helper()
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in.(*net.UDPConn).SetReadBuffer(8 << 20)
	far, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	seed := r.Uint64()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := rand.New(rand.NewPCG(seed, 5))
		b := make([]byte, 64<<10)
		for {
			n, _, err := in.ReadFrom(b)
			if err != nil {
				return
			}
			if r.IntN(5) > 0 {
				in.WriteTo(b[:n], far)
			}
		}
	}()
	t.Cleanup(func() { in.Close(); <-done })
	return in.LocalAddr().String()
}

// TestExportFails: a medium that cannot be written costs nothing; mistakes are named.
func TestExportFails(t *testing.T) {
	t.Parallel()
	camp, hub, mail := exporters(t)
	camp.submit("Subject: x\n\n", "ana@hub.mochila")
	due := func() int {
		var st control.Status
		camp.get("/v1/status", &st)
		n := 0
		for _, q := range st.Queues {
			n += q.Due
		}
		return n
	}
	for _, daemon := range []bool{false, true} {
		if daemon {
			camp.serve()
		}
		if out := camp.run(74, "export", "hub", "-o", "/dev/full"); !strings.Contains(out, "no space left") || !strings.Contains(out, "hint: --size") {
			t.Errorf("full: %s", out)
		}
		if n := due(); n != 1 {
			t.Errorf("%d due after a failed export, daemon %v\n%s", n, daemon, camp.queue())
		}
	}
	file := filepath.Join(t.TempDir(), "x")
	for _, c := range []struct {
		status int
		says   string
		args   []string
	}{
		{64, "there is no peer", []string{"export", "nobody", "-o", file}},
		{64, "is not a size", []string{"export", "hub", "-o", file, "--size", "much"}},
		{64, "3 parts and 2 outputs", []string{"export", "hub", "-o", file, "-o", file + "2", "--parts", "2", "--parity", "1"}},
		{64, "1 to 256", []string{"export", "hub", "-o", file, "--parts", "250", "--parity", "10"}},
		{64, "blocks of", []string{"export", "hub", "-o", file, "--block", "2MiB"}},
		{64, "NODE", []string{"export"}},
		{66, "no such file", []string{"import", file}},
		{65, "nothing that mochila export wrote", []string{"import", "/etc/passwd"}},
	} {
		if out := camp.run(c.status, c.args...); !strings.Contains(out, c.says) {
			t.Errorf("%q: %s, want %q", c.args, out, c.says)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%q leaves a file", c.args)
		}
	}
	camp.run(0, "export", "hub", "-o", file)
	camp.run(73, "export", "hub", "-o", file)
	if out := camp.run(65, "import", file); !strings.Contains(out, "for other nodes") {
		t.Errorf("import at home: %s", out)
	}
	hub.run(0, "import", file)
	if got := box(t, mail+"/ana"); len(got) != 1 {
		t.Errorf("%d mails", len(got))
	}
}
