package submission

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/submit"
	"mochila/internal/submit/frame"
	"mochila/smtpd"
)

// desk answers from fields; gate, when set, holds every Commit until it is closed.
type desk struct {
	fail error
	gate chan struct{}

	mu        sync.Mutex
	mails     []*envelope.Mail
	committed int
	aborted   int
	entered   chan struct{} // gets one for each Commit that has begun
}

type intake struct {
	d *desk
	n int
}

func (d *desk) Submit(_ context.Context, m *envelope.Mail) (smtpd.Intake, error) {
	if d.fail != nil {
		return nil, d.fail
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mails = append(d.mails, m)
	return &intake{d: d}, nil
}

func (in *intake) Write(p []byte) (int, error) { in.n += len(p); return len(p), nil }

func (in *intake) Commit(ctx context.Context) (string, error) {
	if in.d.gate != nil {
		in.d.entered <- struct{}{}
		<-in.d.gate
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	in.d.mu.Lock()
	defer in.d.mu.Unlock()
	in.d.committed++
	return fmt.Sprintf("ID%d", in.d.committed), nil
}

func (in *intake) Abort() {
	in.d.mu.Lock()
	defer in.d.mu.Unlock()
	in.d.aborted++
}

func (d *desk) List(_ context.Context, uid int64, all bool, w io.Writer) error {
	for range 10000 {
		if _, err := fmt.Fprintf(w, "line for %d %v\n", uid, all); err != nil {
			return err
		}
	}
	return d.fail
}

func (d *desk) Flush(context.Context, int64, string) error { return d.fail }

func (d *desk) Verify(_ context.Context, addr string) (string, error) {
	return addr + " ... ok", d.fail
}

func (d *desk) ServeSMTP(ctx context.Context, c net.Conn, uid int64) {
	defer c.Close()
	fmt.Fprintf(c, "220 %d\r\n", uid)
	io.Copy(c, c)
}

func (d *desk) ServeJobs(ctx context.Context, c net.Conn, uid int64, user string) {
	defer c.Close()
	fmt.Fprintf(c, "jobs of %d %s\n", uid, user)
	io.Copy(c, c)
}

func (d *desk) counts() (committed, aborted int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.committed, d.aborted
}

// start serves on a new socket; stop waits for the end.
func start(t *testing.T, d *desk, o Options) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(d, o).Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return path, stop
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// letter is a whole SUBMIT frame with n bytes of content in lines of 8.
func letter(n int, rcpts ...string) []byte {
	m := &submit.Mail{Owner: true}
	for _, r := range rcpts {
		m.Recipients = append(m.Recipients, submit.Recipient{Addr: r})
	}
	b := submit.AppendRequest(nil, submit.VerbSubmit, m)
	for left := n; left > 0; {
		k := min(left, 1<<16)
		b = binary.BigEndian.AppendUint32(b, uint32(k))
		b = append(b, strings.Repeat("123456\r\n", k/8)...)
		left -= k
	}
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	h := fnv.New64a()
	h.Write(b)
	return h.Sum(b)
}

type answer struct {
	out, text string
	code      byte
}

func readReply(c io.Reader) (a answer, err error) {
	r := bufio.NewReader(c)
	head := make([]byte, 5)
	if _, err = io.ReadFull(r, head); err != nil {
		return a, err
	}
	if string(head) != submit.ReplyMagic+"\x01" {
		return a, fmt.Errorf("reply begins with %q", head)
	}
	for {
		if _, err = io.ReadFull(r, head[:4]); err != nil {
			return a, err
		}
		n := binary.BigEndian.Uint32(head)
		if n == 0 {
			break
		}
		b := make([]byte, n)
		if _, err = io.ReadFull(r, b); err != nil {
			return a, err
		}
		a.out += string(b)
	}
	if _, err = io.ReadFull(r, head); err != nil {
		return a, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err = io.ReadFull(r, b)
	a.code, a.text = head[0], string(b)
	return a, err
}

func ask(t *testing.T, path string, request []byte) answer {
	t.Helper()
	c := dial(t, path)
	if _, err := c.Write(request); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Logf("write: %v", err)
	}
	a, err := readReply(c)
	if err != nil {
		t.Fatalf("reply: %v", err)
	}
	return a
}

func TestSubmitStampsTheKernelsWord(t *testing.T) {
	d := &desk{}
	path, _ := start(t, d, Options{User: func(uid int64) string { return fmt.Sprintf("user%d", uid) }})
	if a := ask(t, path, letter(80000, "root")); a.code != 0 || a.text != "ID1" {
		t.Fatalf("%+v", a)
	}
	uid := int64(os.Getuid())
	m := d.mails[0]
	if m.Client.UID != uid+1 || m.Client.User != fmt.Sprintf("user%d", uid) || m.Sender != m.Client.User || m.Client.Proto != "local" {
		t.Errorf("%+v", m)
	}
}

func TestExitCodes(t *testing.T) {
	one := letter(8, "a@b")
	for _, c := range []struct {
		name    string
		fail    error
		request []byte
		want    byte
		text    string
	}{
		{"good", nil, one, 0, "ID1"},
		{"garbage", nil, []byte("GET / HTTP/1.0\r\n\r\n"), 76, "magic"},
		{"wrong sum", nil, append(bytes.Clone(one[:len(one)-1]), one[len(one)-1]+1), 76, "sum"},
		{"too big", nil, letter(1<<20+8, "a@b"), 65, "too big"},
		{"declared too big", nil, append([]byte("MSUB\x01\x01\x00\x00\x00\x0d\x02\x05\x01\x03a@b\x22\x04\xff\xff\xff\x7f"), 0), 65, "too big"},
		{"too many recipients", nil, letter(8, "a@b", "c@d", "e@f", "g@h"), 65, "4 recipients"},
		{"full", envelope.NewStatus(452, "4.3.1", "disk full"), one, 75, "disk full"},
		{"no user", envelope.NewStatus(550, "5.1.1", "who?"), one, 67, "who?"},
		{"no host", envelope.NewStatus(550, "5.1.2", "where?"), one, 68, "where?"},
		{"denied", fmt.Errorf("x: %w", envelope.NewStatus(550, "5.7.1", "no")), one, 77, "no"},
		{"other", envelope.NewStatus(554, "5.0.0", "no"), one, 65, "no"},
		{"internal", errors.New("secret path"), one, 75, "log"},
		{"flush", nil, submit.AppendRequest(nil, submit.VerbFlush, &submit.Mail{}), 0, ""},
		{"verify nothing", nil, submit.AppendRequest(nil, submit.VerbVerify, &submit.Mail{}), 76, "verify"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, _ := start(t, &desk{fail: c.fail}, Options{MaxSize: 1 << 20, MaxRecipients: 3})
			a := ask(t, path, c.request)
			if a.code != c.want || !strings.Contains(a.text, c.text) || strings.Contains(a.text, "secret") {
				t.Errorf("%+v, want %d %q", a, c.want, c.text)
			}
		})
	}
}

func TestListAndVerify(t *testing.T) {
	d := &desk{}
	path, _ := start(t, d, Options{Owner: int64(os.Getuid())})
	a := ask(t, path, submit.AppendRequest(nil, submit.VerbList, &submit.Mail{}))
	line := fmt.Sprintf("line for %d true\n", os.Getuid())
	if a.code != 0 || a.out != strings.Repeat(line, 10000) {
		t.Errorf("list: %d, %d bytes", a.code, len(a.out))
	}
	v := submit.AppendRequest(nil, submit.VerbVerify, &submit.Mail{Recipients: []submit.Recipient{{Addr: "a@b"}, {Addr: "c"}}})
	if a := ask(t, path, v); a.code != 0 || a.out != "a@b ... ok\nc ... ok\n" {
		t.Errorf("verify: %+v", a)
	}
	d.fail = envelope.NewStatus(550, "5.1.1", "no\nsuch")
	if a := ask(t, path, v); a.code != 67 || a.out != "a@b ... 550 5.1.1 no such\nc ... 550 5.1.1 no such\n" {
		t.Errorf("verify of nobody: %+v", a)
	}
}

func TestSMTPKeepsWhatWasReadAhead(t *testing.T) {
	path, stop := start(t, &desk{}, Options{})
	c := dial(t, path)
	if _, err := c.Write(append(submit.AppendRequest(nil, submit.VerbSMTP, &submit.Mail{}), "QUIT\r\n"...)); err != nil {
		t.Fatal(err)
	}
	c.(*net.UnixConn).CloseWrite()
	b, err := io.ReadAll(c)
	if want := fmt.Sprintf("220 %d\r\nQUIT\r\n", os.Getuid()); err != nil || string(b) != want {
		t.Errorf("%q, %v", b, err)
	}
	stop()
}

func TestJobsKnowWhoCalls(t *testing.T) {
	path, stop := start(t, &desk{}, Options{User: func(uid int64) string { return fmt.Sprintf("user-%d", uid) }})
	c := dial(t, path)
	if _, err := c.Write(append(submit.AppendRequest(nil, submit.VerbJobs, &submit.Mail{}), "GET"...)); err != nil {
		t.Fatal(err)
	}
	c.(*net.UnixConn).CloseWrite()
	b, err := io.ReadAll(c)
	if want := fmt.Sprintf("jobs of %d user-%[1]d\nGET", os.Getuid()); err != nil || string(b) != want {
		t.Errorf("got %q, %v, want %q", b, err, want)
	}
	stop()
}

// TestOneUserCannotFillTheHouse: connections beyond the limit are told to use the maildrop, at once.
func TestOneUserCannotFillTheHouse(t *testing.T) {
	path, _ := start(t, &desk{}, Options{PerUser: 3})
	var held []net.Conn
	for range 3 {
		c := dial(t, path)
		if _, err := c.Write([]byte("MSUB")); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	for {
		// The three are served by other goroutines: the fourth finds them all in place in the end.
		c := dial(t, path)
		if _, err := c.Write(letter(8, "a@b")); err != nil {
			t.Logf("write: %v", err)
		}
		a, err := readReply(c)
		if err != nil {
			t.Fatal(err)
		}
		if a.code == submit.Busy {
			break
		}
	}
	held[0].Close()
	for {
		if a := ask(t, path, letter(8, "a@b")); a.code == 0 {
			break
		}
	}
}

func TestIdleClientIsCutOff(t *testing.T) {
	d := &desk{}
	path, _ := start(t, d, Options{Idle: 20 * time.Millisecond})
	b := letter(8000, "a@b")
	for _, n := range []int{0, 3, 15, len(b) - 1} {
		c := dial(t, path)
		c.Write(b[:n]) // fails when the server was quicker, which says why all the same
		if a, err := readReply(c); err != nil || a.code != submit.Busy {
			t.Errorf("after %d bytes: %+v, %v", n, a, err)
		}
	}
	if ok, aborted := d.counts(); ok != 0 || aborted != len(d.mails) {
		t.Errorf("%d committed, %d aborted of %d", ok, aborted, len(d.mails))
	}
}

// TestStopFinishesWhatIsWhole: at the end of Serve the mail that is being committed gets its reply, the half one
// is dropped.
func TestStopFinishesWhatIsWhole(t *testing.T) {
	d := &desk{gate: make(chan struct{}), entered: make(chan struct{}, 1)}
	path, stop := start(t, d, Options{})
	b := letter(8000, "a@b")
	half, whole := dial(t, path), dial(t, path)
	if _, err := half.Write(b[:len(b)-1]); err != nil {
		t.Fatal(err)
	}
	if _, err := whole.Write(b); err != nil {
		t.Fatal(err)
	}
	<-d.entered
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	if a, err := readReply(half); err != nil || a.code != submit.Busy {
		t.Errorf("the half mail got %+v, %v", a, err)
	}
	close(d.gate)
	if a, err := readReply(whole); err != nil || a.code != 0 {
		t.Errorf("the whole mail got %+v, %v", a, err)
	}
	<-stopped
	if ok, _ := d.counts(); ok != 1 {
		t.Errorf("%d committed", ok)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("somebody still listens")
	}
}

// TestStopAnswersWhoWasJustAccepted: a connection that is accepted when the daemon already stops hears that it should
// use the maildrop, although nothing of it was read.
func TestStopAnswersWhoWasJustAccepted(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := dial(t, l.Addr().String())
	if _, err := client.Write(letter(8000, "a@b")); err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := &desk{}
	New(d, Options{}).serve(ctx, nc)
	if a, err := readReply(client); err != nil || a.code != submit.Busy {
		t.Errorf("got %+v, %v", a, err)
	}
	if ok, _ := d.counts(); ok != 0 || len(d.mails) != 0 {
		t.Errorf("%d mails begun, %d committed", len(d.mails), ok)
	}
}

func TestListenReplacesADeadSocketAndTakesLongPaths(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "submit.sock")
	for range 2 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o666 {
			t.Errorf("%v, %v", fi, err)
		}
		l.Close()
	}
}

func TestLoginName(t *testing.T) {
	if got := LoginName(0); got != "root" {
		t.Errorf("uid 0 is %q", got)
	}
	if got := LoginName(3999999999); got != "uid3999999999" {
		t.Errorf("unknown uid is %q", got)
	}
}

var _ frame.Intake = smtpd.Intake(nil)
