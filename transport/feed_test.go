package transport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"mochila/transport"
	"mochila/transport/letter"
	"mochila/transport/transporttest"
)

func submitter(t *testing.T, url string) transport.Submitter {
	t.Helper()
	c, err := transport.Parse(transport.Schemes(), url)
	if err != nil {
		t.Fatal(err)
	}
	return c.Submitter
}

// files returns the contents of a folder.
func files(dir string) (all [][]byte) {
	names, _ := filepath.Glob(filepath.Join(dir, "[^.]*"))
	sort.Strings(names)
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil {
			all = append(all, b)
		}
	}
	return all
}

// inside keeps what stands on standard input once it has ended, under a name of its own.
const inside = `f=$(mktemp -p %s .t-XXXXXX) && cat >$f && mv $f %s/$(basename $f | tr -d .)`

func TestExecConforms(t *testing.T) {
	transporttest.TestSubmitter(t, func(t *testing.T) (transport.Submitter, func() [][]byte) {
		dir := t.TempDir()
		return submitter(t, "exec:"+fmt.Sprintf(inside, dir, dir)), func() [][]byte { return files(dir) }
	})
}

// fakeSendmail is a program with sendmail's command line that keeps each mail in a folder.
func fakeSendmail(t *testing.T, dir, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sendmail")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+fmt.Sprintf(script, dir, dir)+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// opened puts the packets in letters together.
func opened(t *testing.T, letters [][]byte) (packets [][]byte) {
	t.Helper()
	box, err := letter.OpenBox(t.TempDir(), letter.BoxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range letters {
		m, err := letter.Open(bytes.NewReader(l))
		if err != nil {
			t.Fatal(err)
		}
		err = m.Parts(func(p letter.Part, data io.Reader) error {
			whole, err := box.Keep(p, data)
			if err != nil || !whole {
				return err
			}
			r, err := box.Open(p)
			if err != nil {
				return err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			packets = append(packets, b)
			box.Done(p)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return packets
}

func TestMailConforms(t *testing.T) {
	t.Run("sendmail", func(t *testing.T) {
		transporttest.TestSubmitter(t, func(t *testing.T) (transport.Submitter, func() [][]byte) {
			dir := t.TempDir()
			return submitter(t, "mail:b@b.example?from=a@a.example&size=100k&sendmail="+fakeSendmail(t, dir, inside)),
				func() [][]byte { return opened(t, files(dir)) }
		})
	})
	t.Run("smtp", func(t *testing.T) {
		transporttest.TestSubmitter(t, func(t *testing.T) (transport.Submitter, func() [][]byte) {
			s := startSMTP(t, nil)
			return submitter(t, "mail:b@b.example?from=a@a.example&size=100k&smtp="+s.addr), func() [][]byte { return opened(t, s.mails()) }
		})
	})
}

// smtpServer keeps mails in memory.
type smtpServer struct {
	addr   string
	refuse error
	mu     sync.Mutex
	all    [][]byte
	path   []string
}

func startSMTP(t *testing.T, refuse error) *smtpServer {
	t.Helper()
	s := &smtpServer{refuse: refuse}
	srv := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return s, nil }))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return s
}

func (s *smtpServer) mails() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

func (s *smtpServer) Mail(from string, _ *smtp.MailOptions) error {
	s.path = append(s.path, from)
	return nil
}
func (s *smtpServer) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.path = append(s.path, to)
	return nil
}
func (s *smtpServer) Reset()        {}
func (s *smtpServer) Logout() error { return nil }
func (s *smtpServer) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse == nil {
		s.all = append(s.all, b)
	}
	return s.refuse
}

// TestMailErrors: what a mail server says reaches the contact, and a mail that is too large is passed over.
func TestMailErrors(t *testing.T) {
	p := transporttest.Packet(0, transporttest.Random(1, 1000))
	for _, c := range []struct {
		refuse  *smtp.SMTPError
		refused bool
		text    string
	}{
		{&smtp.SMTPError{Code: 552, EnhancedCode: smtp.EnhancedCode{5, 3, 4}, Message: "too large"}, true, "552"},
		{&smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "not now"}, false, "451 4.3.0 not now"},
	} {
		s := startSMTP(t, c.refuse)
		err := submitter(t, "mail:b@b.example?from=a@a.example&smtp="+s.addr).Submit(t.Context(), p)
		if err == nil || errors.Is(err, transport.ErrRefused) != c.refused || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v: %v", c.refuse, err)
		}
		if got := strings.Join(s.path, " "); got != "a@a.example b@b.example" {
			t.Errorf("envelope %q", got)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	err = submitter(t, "mail:b@b.example?from=a@a.example&smtp="+ln.Addr().String()).Submit(t.Context(), p)
	if !errors.Is(err, transport.ErrAbsent) {
		t.Errorf("nobody listens: %v", err)
	}
	err = submitter(t, "mail:b@b.example?from=a@a.example&sendmail=/nonexistent/sendmail").Submit(t.Context(), p)
	if !errors.Is(err, transport.ErrAbsent) {
		t.Errorf("no sendmail: %v", err)
	}
}

// TestExecExit: what the exit status means, and that the program's words are told.
func TestExecExit(t *testing.T) {
	p := transporttest.Packet(0, transporttest.Random(1, 300_000))
	for _, c := range []struct {
		command string
		is      error
		text    string
	}{
		{"exit 0", nil, ""}, // what it does not read it does not want
		{"echo no room >&2; exit 75", nil, "no room"},
		{"cat >/dev/null; exit 65", transport.ErrRefused, "65"},
		{"exec /nonexistent/program", transport.ErrAbsent, "nonexistent"},
		{"kill -9 $$", nil, "killed"},
		{"cat >/dev/null; test $MOCHILA_SIZE = 300000 && test $MOCHILA_PACKET = " + p.ID.String(), nil, ""},
	} {
		err := transport.NewExec(c.command).Submit(t.Context(), p)
		if (err != nil) != (c.text != "") || c.is != nil && !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.command, err)
		}
	}
}

// TestExecEndsWithTheContact: a program that hangs, and what it started, is killed when the contact ends.
func TestExecEndsWithTheContact(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- transport.NewExec("sleep 1000 & echo $! >"+dir+"/p && mv "+dir+"/p "+dir+"/pid; wait").Submit(ctx, transporttest.Packet(0, []byte("x")))
	}()
	var pid int
	for end := time.Now().Add(5 * time.Minute); pid == 0; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(dir + "/pid"); err == nil {
			fmt.Sscan(string(b), &pid)
		}
		if time.Now().After(end) {
			t.Fatal("the program does not start")
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(b), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("its child is alive")
		}
	}
}

func TestSubmitterURLs(t *testing.T) {
	for url, want := range map[string]string{
		"exec:":                                                            "no command",
		"mail:hub.example?from=a@a.example":                                "not a mail address",
		"mail:b@b.example":                                                 "an address is missing",
		"mail:-b@b.example?from=a@a.example":                               "not a mail address",
		"mail:b@b.example?from=a@a.example&x=":                             "unknown option",
		"mail:b@b.example?from=a@a.example&size=12":                        "not a size",
		"mail:b@b.example?from=a@a.example&size=5Q":                        "not a size",
		"mail:b@b.example?from=a@a.example&smtp=host":                      "not HOST:PORT",
		"mail:b@b.example?from=a@a.example&sendmail=sendmail":              "not an absolute path",
		"mail:b@b.example?from=a@a.example&sendmail=/s&smtp=127.0.0.1:25":  "contradict",
		"exec:scp - hub:in?x=1 && true":                                    "",
		"mail:b+x@b.example?from=a@a.example&size=8MiB&smtp=127.0.0.1:587": "",
	} {
		_, err := transport.Parse(transport.Schemes(), url)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}
