package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/submit/frame"
	"mochila/smtpd"
	"mochila/smtpd/submission"
	"mochila/spool/maildrop"
)

// binary is the program under test, built once by TestMain.
var binary string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sendmail")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "sendmail")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building sendmail: %v\n%s", err, out)
		return 1
	}
	for _, name := range []string{"mailq", "newaliases", "rmail", "rsmtp", "runq"} {
		if err := os.Symlink("sendmail", filepath.Join(dir, name)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// letter is a mail as the desk committed it.
type letter struct {
	mail    envelope.Mail
	content string
}

// desk is a daemon that keeps its mail in memory.
type desk struct {
	mu      sync.Mutex
	letters []letter
	open    int // intakes neither committed nor aborted
	flushed []string
	fail    error // of Submit
}

type intake struct {
	d   *desk
	m   *envelope.Mail
	buf bytes.Buffer
}

func (d *desk) Submit(_ context.Context, m *envelope.Mail) (smtpd.Intake, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return nil, d.fail
	}
	d.open++
	return &intake{d: d, m: m}, nil
}

func (in *intake) Write(p []byte) (int, error) { return in.buf.Write(p) }

func (in *intake) Commit(context.Context) (string, error) {
	in.d.mu.Lock()
	defer in.d.mu.Unlock()
	in.d.open--
	in.d.letters = append(in.d.letters, letter{mail: *in.m, content: in.buf.String()})
	return fmt.Sprintf("ID%d", len(in.d.letters)), nil
}

func (in *intake) Abort() {
	in.d.mu.Lock()
	defer in.d.mu.Unlock()
	in.d.open--
}

func (d *desk) List(_ context.Context, uid int64, all bool, w io.Writer) error {
	_, err := fmt.Fprintf(w, "queue of uid %d, all %v\n", uid, all)
	return err
}

func (d *desk) Flush(_ context.Context, uid int64, site string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushed = append(d.flushed, site)
	return nil
}

func (d *desk) Verify(_ context.Context, addr string) (string, error) {
	if strings.HasPrefix(addr, "nobody") {
		return "", envelope.NewStatus(550, "5.1.1", "no such user")
	}
	return addr + " ... via ferry", nil
}

func (d *desk) ServeJobs(_ context.Context, c net.Conn, _ int64, _ string) { c.Close() }

func (d *desk) ServeSMTP(ctx context.Context, conn net.Conn, uid int64) {
	defer conn.Close()
	fmt.Fprintf(conn, "220 hello uid %d\r\n", uid)
	b := make([]byte, 64)
	n, _ := conn.Read(b)
	fmt.Fprintf(conn, "250 you said %q\r\n", b[:n])
	n, err := conn.Read(b)
	fmt.Fprintf(conn, "221 then %q %v\r\n", b[:n], err)
}

func (d *desk) take() []letter {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.letters
	d.letters = nil
	return l
}

// dropDesk is the same desk behind the maildrop.
type dropDesk struct {
	*desk
	refused []string
}

func (d *dropDesk) Submit(ctx context.Context, _ string, m *envelope.Mail) (frame.Intake, error) {
	return d.desk.Submit(ctx, m)
}
func (d *dropDesk) Seen(string) bool      { return false }
func (d *dropDesk) Forget([]string) error { return nil }
func (d *dropDesk) Refuse(reason, from string, r io.Reader) error {
	d.refused = append(d.refused, reason)
	_, err := io.Copy(io.Discard, r)
	return err
}

// node is a home with a desk; the daemon part runs only after start.
type node struct {
	home string
	desk *desk
	drop *maildrop.Dir
	dd   *dropDesk
	stop func()
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{home: t.TempDir(), desk: &desk{}, stop: func() {}}
	if err := os.Mkdir(filepath.Join(n.home, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.dd = &dropDesk{desk: n.desk}
	var err error
	n.drop, err = maildrop.Open(filepath.Join(n.home, "spool/maildrop"), "camp.example", n.dd, maildrop.Options{User: user})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func user(int64) string { return "tester" }

func (n *node) start(t testing.TB, o submission.Options) {
	t.Helper()
	o.User = user
	l, err := submission.Listen(filepath.Join(n.home, "run/submit.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- submission.New(n.desk, o).Serve(ctx, l) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(n.stop)
}

// collect empties the maildrop.
func (n *node) collect(t testing.TB) []letter {
	t.Helper()
	if _, err := n.drop.Collect(context.Background(), time.Now()); err != nil {
		t.Fatal(err)
	}
	return n.desk.take()
}

// result is how one run of the program ended.
type result struct {
	exit     int
	out, err string
}

func (n *node) command(argv0 string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(filepath.Dir(binary), argv0), args...)
	cmd.Env = []string{"MOCHILA_HOME=" + n.home}
	return cmd
}

func (n *node) run(t testing.TB, stdin, argv0 string, args ...string) result {
	t.Helper()
	return finish(t, n.command(argv0, args...), stdin)
}

func finish(t testing.TB, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var out, errb bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errb
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) && !strings.Contains(err.Error(), "broken pipe") {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{exit: cmd.ProcessState.ExitCode(), out: out.String(), err: errb.String()}
}
