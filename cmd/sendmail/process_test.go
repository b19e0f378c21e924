package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"mochila/internal/envelope"
	"mochila/internal/submit"
	"mochila/smtpd/submission"
)

const headed = "From: a@c.x\nMessage-Id: <1@c.x>\nDate: x\n\n"

// TestHundredAtOnce: every one of a hundred simultaneous calls ends with 0 and its mail, with a daemon that has
// room for all, with one that is busy, and with none.
func TestHundredAtOnce(t *testing.T) {
	for name, limit := range map[string]int{"room": 256, "busy": 2, "down": 0} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if limit > 0 {
				n.start(t, submission.Options{PerUser: limit})
			}
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					if r := n.run(t, fmt.Sprintf("%sbody %d\n", headed, i), "sendmail", "b@c.x"); r.exit != 0 {
						t.Errorf("%+v", r)
					}
				})
			}
			wg.Wait()
			seen := map[string]int{}
			for _, l := range n.collect(t) {
				seen[l.content]++
			}
			for i := range 100 {
				want := strings.ReplaceAll(fmt.Sprintf("%sbody %d\n", headed, i), "\n", "\r\n")
				if seen[want] != 1 {
					t.Errorf("mail %d came %d times", i, seen[want])
				}
			}
		})
	}
}

func TestLargeMessages(t *testing.T) {
	line := strings.Repeat("0123456789abcdef", 60) + "\n"
	body := headed + strings.Repeat(line, 5000) // 4.8 MB
	want := strings.ReplaceAll(body, "\n", "\r\n")
	check := func(t *testing.T, r result, ls []letter) {
		t.Helper()
		if r.exit != 0 || len(ls) != 1 || ls[0].content != want {
			t.Errorf("%+v, %d mails", r, len(ls))
		}
	}
	t.Run("socket", func(t *testing.T) {
		n := newNode(t)
		n.start(t, submission.Options{})
		check(t, n.run(t, body, "sendmail", "b@c.x"), n.desk.take())
		if left := leftovers(t, n); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	})
	t.Run("maildrop", func(t *testing.T) {
		n := newNode(t)
		check(t, n.run(t, body, "sendmail", "b@c.x"), n.collect(t))
	})
	t.Run("socket without maildrop", func(t *testing.T) {
		n := newNode(t)
		n.start(t, submission.Options{})
		if err := os.RemoveAll(n.drop.Path()); err != nil {
			t.Fatal(err)
		}
		check(t, n.run(t, body, "sendmail", "b@c.x"), n.desk.take())
	})
	t.Run("too big for the daemon", func(t *testing.T) {
		n := newNode(t)
		n.start(t, submission.Options{MaxSize: 1 << 20})
		if r := n.run(t, body, "sendmail", "b@c.x"); r.exit != 65 || !strings.Contains(r.err, "too big") {
			t.Errorf("%+v", r)
		}
		if left := leftovers(t, n); len(left) > 0 || len(n.desk.take()) > 0 || n.desk.open != 0 {
			t.Errorf("left over: %q", left)
		}
	})
	t.Run("too big for the daemon that is down", func(t *testing.T) {
		n := newNode(t)
		if err := os.WriteFile(filepath.Join(n.drop.Path(), "domain"), []byte("camp.example\n2000000\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := n.run(t, body, "sendmail", "b@c.x"); r.exit != 65 || !strings.Contains(r.err, "more than 2000000 bytes") {
			t.Errorf("%+v", r)
		}
		if left := leftovers(t, n); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	})
}

// TestNothingWithoutTheEnd kills sendmail while it still reads: nothing may become visible, with or without a daemon.
func TestNothingWithoutTheEnd(t *testing.T) {
	big := headed + strings.Repeat("0123456789abcde\n", 100_000)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		for _, text := range []string{"", headed, headed + "half a", big} {
			for _, daemon := range []bool{true, false} {
				n := newNode(t)
				if daemon {
					n.start(t, submission.Options{})
				}
				cmd := n.command("sendmail", "b@c.x")
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if _, err := in.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); err == nil {
					t.Errorf("%v: exit 0", sig)
				}
				in.Close()
				n.stop()
				if ls := n.collect(t); len(ls) > 0 || n.desk.open != 0 || len(n.dd.refused) > 0 {
					t.Errorf("%v after %d bytes: %d mails, refused %q", sig, len(text), len(ls), n.dd.refused)
				}
			}
		}
	}
}

// TestDaemonThatHangsUp: when the daemon goes away before it can have the mail, the maildrop gets it; afterwards,
// nobody knows, and the exit status says so.
func TestDaemonThatHangsUp(t *testing.T) {
	serve := func(t *testing.T, n *node, answer func(net.Conn)) {
		t.Helper()
		l, err := net.Listen("unix", filepath.Join(n.home, "run/submit.sock"))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				answer(c)
				c.Close()
			}
		}()
		t.Cleanup(func() { l.Close(); <-done })
	}
	body := headed + strings.Repeat("0123456789abcde\n", 60_000) // more than a socket buffer, less than what stays in memory
	t.Run("at once", func(t *testing.T) {
		n := newNode(t)
		serve(t, n, func(net.Conn) {})
		if r := n.run(t, body, "sendmail", "b@c.x"); r.exit != 0 || len(n.collect(t)) != 1 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("before the first byte", func(t *testing.T) {
		// A listener with connections that nobody accepted.
		n := newNode(t)
		path := filepath.Join(n.home, "run/submit.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		cmd := n.command("sendmail", "b@c.x")
		cmd.Stdin = strings.NewReader(headed)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return pending(t, path) })
		l.Close()
		if err := cmd.Wait(); err != nil || len(n.collect(t)) != 1 {
			t.Errorf("%v", err)
		}
	})
	t.Run("after the last byte", func(t *testing.T) {
		n := newNode(t)
		serve(t, n, func(c net.Conn) {
			b := make([]byte, 1<<16)
			for total := 0; total < len(headed); {
				k, err := c.Read(b)
				if err != nil {
					return
				}
				total += k
			}
		})
		if r := n.run(t, headed, "sendmail", "b@c.x"); r.exit != 75 || len(n.collect(t)) != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("another protocol", func(t *testing.T) {
		n := newNode(t)
		serve(t, n, func(c net.Conn) { c.Read(make([]byte, 1<<16)); c.Write([]byte("HTTP/1.1 400 no\r\n\r\n")) })
		if r := n.run(t, headed, "sendmail", "b@c.x"); r.exit != 75 || len(n.collect(t)) != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// waitFor looks until a process outside has got so far.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		if t.Context().Err() != nil {
			t.Fatal("it never came")
		}
		runtime.Gosched()
	}
}

// pending reports whether somebody is connected, or waits to be, at a socket path: the kernel lists both ends.
func pending(t *testing.T, path string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), path+"\n") > 1
}

func TestRefusedByTheDaemon(t *testing.T) {
	n := newNode(t)
	n.desk.fail = envelope.NewStatus(550, "5.7.1", "not for you\nInjected")
	n.start(t, submission.Options{})
	r := n.run(t, headed, "sendmail", "b@c.x")
	if r.exit != submit.ExNoPerm || r.err != "sendmail: error: not for you Injected\n" || len(leftovers(t, n)) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestNowhereToGo(t *testing.T) {
	n := &node{home: filepath.Join(t.TempDir(), "none")}
	for _, c := range []struct {
		argv0 string
		args  []string
		want  int
	}{
		{"sendmail", []string{"b@c.x"}, 69}, {"mailq", nil, 69}, {"sendmail", []string{"-bp"}, 69}, {"sendmail", []string{"-q"}, 69},
		{"runq", nil, 69}, {"sendmail", []string{"-bs"}, 69}, {"sendmail", []string{"-bv", "b@c.x"}, 69},
	} {
		r := n.run(t, headed, c.argv0, c.args...)
		if r.exit != c.want || !strings.Contains(r.err, "hint: mochila serve\n") {
			t.Errorf("%s %q: %+v", c.argv0, c.args, r)
		}
	}
}

func TestOtherVerbs(t *testing.T) {
	n := newNode(t)
	n.start(t, submission.Options{Owner: -1})
	queue := fmt.Sprintf("queue of uid %d, all %v\n", os.Getuid(), os.Getuid() == 0)
	for _, c := range []struct {
		argv0, args string
		exit        int
		out         string
	}{
		{"mailq", "", 0, queue},
		{"sendmail", "-bp", 0, queue},
		{"sendmail", "-bp -v", 0, queue},
		{"sendmail", "-bv b@c.x root", 0, "b@c.x ... via ferry\nroot ... via ferry\n"},
		{"sendmail", "-bv nobody@c.x b@c.x", 67, "nobody@c.x ... 550 5.1.1 no such user\nb@c.x ... via ferry\n"},
		{"sendmail", "-bv", 64, ""},
		{"sendmail", "-q", 0, ""}, {"sendmail", "-q30m", 0, ""}, {"sendmail", "-qf", 0, ""}, {"sendmail", "-qRhub.example", 0, ""}, {"runq", "", 0, ""},
		{"sendmail", "--version", 0, submit.Version + "\n"},
	} {
		r := n.run(t, "", c.argv0, strings.Fields(c.args)...)
		if r.exit != c.exit || r.out != c.out {
			t.Errorf("%s %s: %+v", c.argv0, c.args, r)
		}
	}
	if got := fmt.Sprintf("%q", n.desk.flushed); got != `["" "" "" "hub.example" ""]` {
		t.Errorf("flushed %s", got)
	}
	r := n.run(t, "QUIT\r\n", "sendmail", "-bs")
	want := fmt.Sprintf("220 hello uid %d\r\n250 you said \"QUIT\\r\\n\"\r\n221 then \"\" EOF\r\n", os.Getuid())
	if r.exit != 0 || r.out != want {
		t.Errorf("-bs: %+v, want %q", r, want)
	}
}

func TestBatchOfSeveral(t *testing.T) {
	n := newNode(t)
	n.start(t, submission.Options{})
	one := "MAIL FROM:<a@c.x>\nRCPT TO:<b@c.x>\nDATA\nhi\n.\n"
	if r := n.run(t, "HELO x\n"+one+"RSET\nNOOP\n"+one+one+"QUIT\nignored\n", "rsmtp"); r.exit != 0 || len(n.desk.take()) != 3 {
		t.Errorf("%+v", r)
	}
	r := n.run(t, one+"MAIL FROM:<a@c.x>\nRCPT TO:<>\n"+one, "rsmtp")
	if r.exit != 65 || !strings.Contains(r.err, "batch line 7: ") || !strings.Contains(r.err, "(1 messages were queued before)") || len(n.desk.take()) != 1 {
		t.Errorf("%+v", r)
	}
}

// TestBareProcess runs sendmail as a daemon's child may: without environment, with a strict umask, with closed or
// non-blocking descriptors.
func TestBareProcess(t *testing.T) {
	n := newNode(t)
	old := syscall.Umask(0o777)
	cmd := n.command("sendmail", "--home", n.home, "b@c.x")
	cmd.Env = []string{}
	r := finish(t, cmd, "Subject: x\n\n")
	syscall.Umask(old)
	if r.exit != 0 {
		t.Errorf("%+v", r)
	}
	for _, name := range leftovers(t, n) {
		if fi, err := os.Stat(filepath.Join(n.drop.Path(), name)); err != nil || fi.Mode().Perm() != 0o644 {
			t.Errorf("%v, %v", fi.Mode(), err)
		}
	}
	if ls := n.collect(t); len(ls) != 1 || !strings.Contains(ls[0].content, "\r\nFrom: ") {
		t.Errorf("%+v", ls)
	}

	dir, err := os.Open(n.home)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var errb bytes.Buffer
	cmd = n.command("sendmail", "b@c.x")
	cmd.Stdin, cmd.Stderr = dir, &errb
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != submit.ExNoInput {
		t.Errorf("a folder as stdin: %v, %s", err, errb.String())
	}

	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	in := os.NewFile(uintptr(p[0]), "in")
	cmd = n.command("sendmail", "b@c.x")
	cmd.Stdin, cmd.Stderr = in, &errb
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Package os makes what it hands to a child blocking: undo that, for both ends of the descriptor.
	if err := syscall.SetNonblock(p[0], true); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out := os.NewFile(uintptr(p[1]), "out")
	if _, err := out.WriteString(headed); err != nil {
		t.Fatal(err)
	}
	out.Close()
	if err := cmd.Wait(); err != nil || len(n.collect(t)) != 1 {
		t.Errorf("non-blocking stdin: %v, %s", err, errb.String())
	}
}

// TestLongHome: the socket's path may be longer than a socket address.
func TestLongHome(t *testing.T) {
	n := newNode(t)
	n.home = filepath.Join(n.home, strings.Repeat("long/", 30))
	if err := os.MkdirAll(filepath.Join(n.home, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.start(t, submission.Options{})
	if r := n.run(t, headed, "sendmail", "b@c.x"); r.exit != 0 || len(n.desk.take()) != 1 {
		t.Errorf("%+v", r)
	}
}

// TestForeignDomainFile: only the owner of the maildrop says what the domain is.
func TestForeignDomainFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: another user must own the file")
	}
	n := newNode(t)
	if err := os.Chown(filepath.Join(n.drop.Path(), "domain"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if r := n.run(t, "From: x\n\n", "sendmail", "b@c.x"); r.exit != 0 {
		t.Fatalf("%+v", r)
	}
	if ls := n.collect(t); len(ls) != 1 || strings.Contains(ls[0].content, "camp.example") {
		t.Errorf("%+v", ls)
	}
}
