package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/internal/peertest"
)

// node is one home. Its daemon runs in this process (serve) or in one of its own (start).
type node struct {
	t    testing.TB
	name string
	dir  string
	home config.Home
	log  *logbook

	stop   func() error // of the daemon in this process; nil: none runs
	reload chan struct{}

	flags  []string  // of mochila serve
	env    []string  // of every process, beside the test's own
	cmd    *exec.Cmd // the daemon of its own; nil: none runs
	exited chan struct{}
}

// logbook keeps what daemons log.
type logbook struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tail is the end of a log.
func tail(s string) string {
	const most = 12 << 10
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}

// newNode makes a node with the given configuration, which lacks only its name. When the test fails, its log is shown.
func newNode(t testing.TB, name, conf string) *node {
	t.Helper()
	return nodeAt(t, name, shortDir(t), conf)
}

// nodeAt is newNode at a home that the caller chose. Unix sockets want short paths.
func nodeAt(t testing.TB, name, dir, conf string) *node {
	t.Helper()
	home, err := config.HomeAt(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, name: name, dir: dir, home: home, log: &logbook{}}
	if _, err := control.Init(t.Context(), home, control.InitOptions{Name: name}); err != nil {
		t.Fatal(err)
	}
	n.configure(conf)
	t.Cleanup(func() {
		n.kill()
		if n.stop != nil {
			n.shutdown()
		}
		if t.Failed() || os.Getenv("MOCHILA_E2E_LOG") != "" {
			t.Logf("log of %s:\n%s", name, tail(n.log.String()))
		}
	})
	return n
}

// configure replaces mochila.toml. Without a reserve of its own a node takes mail to the last 5 % of the disk, which a
// full machine for tests may not have.
func (n *node) configure(conf string) {
	n.t.Helper()
	if !strings.Contains(conf, "\nname = ") && !strings.HasPrefix(conf, "name = ") {
		conf = "name = \"" + n.name + "\"\n" + conf
	}
	if !strings.Contains(conf, "[limits]") {
		conf += "\n[limits]\n"
	}
	if !strings.Contains(conf, "reserve") {
		conf = strings.Replace(conf, "[limits]\n", "[limits]\nreserve = \"1MiB\"\n", 1)
	}
	if err := os.WriteFile(n.home.Config(), []byte(conf), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// serve runs the daemon in this process until shutdown or the end of the test.
func (n *node) serve() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ready := make(chan struct{})
	n.reload = make(chan struct{})
	log := slog.New(slog.NewTextHandler(n.log, nil)).With("node", n.name)
	go func() {
		done <- control.Serve(ctx, n.home, control.ServeOptions{Version: "test", Log: log, Reload: n.reload, Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		n.t.Fatalf("%s does not start: %v\n%s", n.name, err, n.log)
	}
	n.stop = func() error {
		cancel()
		return <-done
	}
}

// shutdown ends the daemon in this process.
func (n *node) shutdown() {
	n.t.Helper()
	if err := n.stop(); err != nil {
		n.t.Errorf("%s stops: %v", n.name, err)
	}
	n.stop = nil
}

// command is a command line of the built program for this home.
func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program("mochila"), append([]string{"--home", n.dir}, args...)...)
	cmd.Env = append(os.Environ(), n.env...)
	return cmd
}

// start runs the daemon as a process and waits until its control socket answers.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	peertest.Await(n.t, n.name+" to start", func() bool {
		select {
		case <-n.exited:
			n.t.Fatalf("%s ends at its start: %v\n%s", n.name, n.cmd.ProcessState, tail(n.log.String()))
		default:
		}
		return n.answers()
	}, n.log.String)
}

// launch is start without waiting.
func (n *node) launch() {
	n.t.Helper()
	cmd := n.command(append([]string{"serve"}, n.flags...)...)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	exited := make(chan struct{})
	n.cmd, n.exited = cmd, exited
	go func() { defer close(exited); cmd.Wait() }()
}

// answers reports whether the daemon's control socket takes a connection.
func (n *node) answers() bool {
	conn, err := dialUnix(n.home.ControlSocket())
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// kill ends the daemon's process as a power cut would, as far as the process is concerned.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Kill()
	<-n.exited
	n.cmd = nil
}

// client speaks to the node, whoever runs it.
func (n *node) client() *control.Client {
	n.t.Helper()
	c, err := control.Dial(n.t.Context(), n.home, control.ClientOptions{Version: "test"})
	if err != nil {
		n.t.Fatalf("speak to %s: %v", n.name, err)
	}
	return c
}

// get asks a verb.
func (n *node) get(path string, out any) {
	n.t.Helper()
	c := n.client()
	defer c.Close()
	if err := c.Get(n.t.Context(), path, out); err != nil {
		n.t.Fatalf("%s: GET %s: %v", n.name, path, err)
	}
}

// post asks a verb.
func (n *node) post(path string, in, out any) {
	n.t.Helper()
	c := n.client()
	defer c.Close()
	if err := c.Post(n.t.Context(), path, in, out); err != nil {
		n.t.Fatalf("%s: POST %s: %v", n.name, path, err)
	}
}

// queued is how many envelopes are in the queue.
func (n *node) queued() int {
	n.t.Helper()
	var list control.QueueList
	n.get("/v1/queue?limit=1", &list)
	return list.Count
}

// queue is the first page of the queue, for messages of tests.
func (n *node) queue() string {
	n.t.Helper()
	var list control.QueueList
	n.get("/v1/queue?limit=20", &list)
	b, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// card is the node's card as text.
func (n *node) card() string {
	n.t.Helper()
	var c struct{ Card string }
	n.get("/v1/card", &c)
	return c.Card
}

// knows makes m a peer of n.
func (n *node) knows(m *node, add control.PeerAdd) {
	n.t.Helper()
	add.Name, add.Card = m.name, m.card()
	n.post("/v1/peers", add, nil)
}

// pair makes two nodes neighbours by a folder.
func pair(a, b *node, dir string) {
	a.t.Helper()
	a.knows(b, control.PeerAdd{Carrier: "dir:" + dir})
	b.knows(a, control.PeerAdd{Carrier: "dir:" + dir})
}

// drained waits until nothing is queued at any of the nodes.
func drained(t testing.TB, nodes ...*node) {
	t.Helper()
	var logs []func() string
	for _, n := range nodes {
		logs = append(logs, func() string { return n.name + ":\n" + n.queue() + tail(n.log.String()) })
	}
	for _, n := range nodes {
		peertest.Await(t, "an empty queue at "+n.name, func() bool { return n.queued() == 0 }, logs...)
	}
}

// box returns the mails of a Maildir.
func box(t testing.TB, dir string) map[string]string {
	t.Helper()
	mails := map[string]string{}
	for _, sub := range []string{"new", "cur"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, sub, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			mails[e.Name()] = string(b)
		}
	}
	return mails
}

// shortDir is a folder with a path short enough for a unix socket in it.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// submit hands a mail to the node by the sendmail program and fails the test when it is not taken.
func (n *node) submit(mail string, args ...string) {
	n.t.Helper()
	if out, err := n.sendmail(strings.NewReader(mail), args...); err != nil {
		n.t.Fatalf("%s: sendmail %q: %v: %s", n.name, args, err, out)
	}
}

func (n *node) sendmail(mail io.Reader, args ...string) (string, error) {
	cmd := exec.Command(program("sendmail"), args...)
	cmd.Env = append(os.Environ(), "MOCHILA_HOME="+n.dir)
	cmd.Stdin = mail
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// toml quotes a string for a configuration.
func toml(s string) string { return fmt.Sprintf("%q", s) }
