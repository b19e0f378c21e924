package milter

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/textproto"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	gomilter "github.com/emersion/go-milter"

	"mochila/internal/envelope"
)

// filter is a mail filter of the library's server that does what a test tells it.
type filter struct {
	gomilter.NoOpMilter
	end  func(m *gomilter.Modifier) (gomilter.Response, error)
	rcpt func(string) gomilter.Response

	mu   *sync.Mutex
	seen *strings.Builder
}

func (f *filter) note(parts ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen.WriteString(strings.Join(parts, "|") + "\n")
}

func (f *filter) Connect(host, family string, port uint16, addr net.IP, m *gomilter.Modifier) (gomilter.Response, error) {
	f.note("connect", host, addr.String())
	return gomilter.RespContinue, nil
}
func (f *filter) Helo(name string, m *gomilter.Modifier) (gomilter.Response, error) {
	f.note("helo", name)
	return gomilter.RespContinue, nil
}
func (f *filter) MailFrom(from string, m *gomilter.Modifier) (gomilter.Response, error) {
	f.note("mail", from)
	return gomilter.RespContinue, nil
}
func (f *filter) RcptTo(to string, m *gomilter.Modifier) (gomilter.Response, error) {
	f.note("rcpt", to)
	if f.rcpt != nil {
		return f.rcpt(to), nil
	}
	return gomilter.RespContinue, nil
}
func (f *filter) Header(name, value string, m *gomilter.Modifier) (gomilter.Response, error) {
	f.note("header", name, value)
	return gomilter.RespContinue, nil
}
func (f *filter) Headers(textproto.MIMEHeader, *gomilter.Modifier) (gomilter.Response, error) {
	return gomilter.RespContinue, nil
}
func (f *filter) BodyChunk(b []byte, m *gomilter.Modifier) (gomilter.Response, error) {
	f.note("body", string(b[:min(len(b), 100)]))
	return gomilter.RespContinue, nil
}
func (f *filter) Body(m *gomilter.Modifier) (gomilter.Response, error) {
	if f.end == nil {
		return gomilter.RespAccept, nil
	}
	return f.end(m)
}

// start serves a filter and returns its address.
func (f *filter) start(t *testing.T) string {
	t.Helper()
	f.mu, f.seen = &sync.Mutex{}, &strings.Builder{}
	path := filepath.Join(t.TempDir(), "milter.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &gomilter.Server{NewMilter: func() gomilter.Milter { return f }, Actions: gomilter.OptAddHeader | gomilter.OptChangeHeader}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ln) }()
	t.Cleanup(func() { s.Close(); <-done })
	return "unix:" + path
}

// sink is the intake behind the filters.
type sink struct {
	bytes.Buffer
	committed, aborted bool
}

func (s *sink) Commit(context.Context) (string, error) { s.committed = true; return "ID", nil }
func (s *sink) Abort()                                 { s.aborted = true }

func run(t *testing.T, f *Filters, text string, rcpts ...string) (*sink, string, error) {
	t.Helper()
	m := &envelope.Mail{Sender: "eve@camp.example", Client: envelope.Client{Addr: "192.0.2.7", Name: "pc.camp.example", Port: "4711", Helo: "pc"}}
	for _, r := range rcpts {
		m.Recipients = append(m.Recipients, envelope.Recipient{Addr: r})
	}
	f.Dir, f.Log = t.TempDir(), slog.New(slog.DiscardHandler)
	s := &sink{}
	in := f.Screen(s, m)
	for p := []byte(text); len(p) > 0; { // in pieces
		n := min(len(p), 7)
		if len(text) > 1000 {
			n = min(len(p), 8000)
		}
		if _, err := in.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	id, err := in.Commit(t.Context())
	return s, id, err
}

const letter = "Subject: hello\r\nX-Spam: no\r\nTo: ana@hub.example,\r\n\tbob@hub.example\r\nx-spam: 2\r\n\r\n\r\nbody\r\n"

func TestScreen(t *testing.T) {
	f := &filter{end: func(m *gomilter.Modifier) (gomilter.Response, error) {
		return gomilter.RespAccept, errors.Join(m.AddHeader("X-Checked", "by us\n\twith care"), m.ChangeHeader(2, "X-Spam", ""), m.ChangeHeader(1, "Subject", "[x] hello"),
			m.InsertHeader(0, "X-First", "1"), m.AddHeader("X-Evil", "a\nb: c\r\n\r\nbody"))
	}}
	fs := &Filters{Addrs: []string{f.start(t)}, Hostname: "camp.example"}
	s, id, err := run(t, fs, letter, "ana@hub.example", "bob@hub.example")
	want := "X-First: 1\r\nSubject: [x] hello\r\nX-Spam: no\r\nTo: ana@hub.example,\r\n\tbob@hub.example\r\nX-Checked: by us\r\n\twith care\r\nX-Evil: a\r\n b: c\r\n \r\n body\r\n\r\n\r\nbody\r\n"
	if err != nil || id != "ID" || s.String() != want {
		t.Errorf("%q, %v, got\n%q, want\n%q", id, err, s.String(), want)
	}
	seen := f.seen.String()
	for _, want := range []string{"connect|pc.camp.example|192.0.2.7\n", "helo|pc\n", "mail|eve@camp.example\n", "rcpt|ana@hub.example\nrcpt|bob@hub.example\n",
		"header|Subject|hello\n", "header|To|ana@hub.example,\n\tbob@hub.example\n", "body|\r\nbody\r\n\n"} {
		if !strings.Contains(seen, want) {
			t.Errorf("the filter was not told %q: %q", want, seen)
		}
	}
}

func TestVerdicts(t *testing.T) {
	custom := func(text string) func(*gomilter.Modifier) (gomilter.Response, error) {
		return func(*gomilter.Modifier) (gomilter.Response, error) {
			return gomilter.NewResponseStr('y', text), nil
		}
	}
	simple := func(r gomilter.Response) func(*gomilter.Modifier) (gomilter.Response, error) {
		return func(*gomilter.Modifier) (gomilter.Response, error) { return r, nil }
	}
	for name, c := range map[string]struct {
		f        *filter
		id, want string
	}{
		"reject":    {&filter{end: simple(gomilter.RespReject)}, "", "550 5.7.1 message rejected by a filter"},
		"tempfail":  {&filter{end: simple(gomilter.RespTempFail)}, "", "451 4.7.1 try again later"},
		"discard":   {&filter{end: simple(gomilter.RespDiscard)}, "discarded", ""},
		"words":     {&filter{end: custom("554 5.7.0 it smells\000")}, "", "554 5.7.0 it smells"},
		"recipient": {&filter{rcpt: func(string) gomilter.Response { return gomilter.RespReject }}, "", "550 5.7.1"},
		"accept":    {&filter{}, "ID", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, id, err := run(t, &Filters{Addrs: []string{c.f.start(t)}}, letter, "ana@hub.example")
			got := ""
			if err != nil {
				got = err.Error()
			}
			if id != c.id || !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
				t.Errorf("got %q, %q, want %q, %q", id, got, c.id, c.want)
			}
			if s.committed != (name == "accept") || s.aborted == s.committed || s.aborted && s.Len() > 0 {
				t.Errorf("committed %v, aborted %v, %d bytes", s.committed, s.aborted, s.Len())
			}
		})
	}
}

// TestGone: a filter that does not answer refuses mail for the time being, or lets it pass, as configured.
func TestGone(t *testing.T) {
	fs := &Filters{Addrs: []string{"unix:" + filepath.Join(t.TempDir(), "nobody")}}
	if s, _, err := run(t, fs, letter, "ana@hub.example"); err == nil || !strings.HasPrefix(err.Error(), "451 4.7.1") || !s.aborted {
		t.Errorf("got %v", err)
	}
	fs.Accept = true
	if s, id, err := run(t, fs, letter, "ana@hub.example"); err != nil || id != "ID" || s.String() != letter {
		t.Errorf("got %q %v %q", id, err, s.String())
	}
}

// TestShapes: whatever the content looks like, a filter that changes nothing leaves every byte.
func TestShapes(t *testing.T) {
	f := &filter{}
	fs := &Filters{Addrs: []string{f.start(t)}}
	for _, text := range []string{"", "\r\n", "\r\nbody\r\n", "Subject: x\r\n", "Subject: x\r\n\r\n", "no header at all\r\n", "From x\r\nSubject: y\r\n\r\nz\r\n", " folded\r\n\r\nz",
		"X: y", "Subject: big\r\n\r\n" + strings.Repeat(strings.Repeat("x", 998)+"\r\n", 2000), "X: " + strings.Repeat("y", 300<<10) + "\r\n\r\nbody\r\n"} {
		s, _, err := run(t, fs, text, "ana@hub.example")
		if err != nil || s.String() != text {
			t.Errorf("%.60q: %v, got %.60q", text, err, s.String())
		}
	}
}

var _ io.Writer = (*sink)(nil)
