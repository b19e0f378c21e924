package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mochila/internal/envelope"
)

// The files testdata/*.dialog are SMTP dialogs, one directive a line:
//
//	# …               comment
//	set KEY=VALUE     a setting of the server, see dialog.set; before the first send
//	> TEXT            send TEXT and CRLF
//	>> TEXT           send TEXT alone
//	>*N TEXT          send TEXT N times, without CRLF
//	< TEXT            expect this reply line; "*" stands for anything
//	<*                expect a reply of any number of lines
//	wait 5m           let time pass
//	close             the client closes its connection
//	shutdown          the server begins to shut down
//	eof               expect that the server has closed the connection
//	mail TEXT         expect this committed mail, as render writes it
//	body TEXT         expect this content of the mail named last
//	log TEXT          expect a log line like this
//
// TEXT may be empty and knows the escapes \r \n \t \0 \xHH \\ and \s for a blank. Sends that follow each other are one
// write. All replies must be expected; all committed mails must be named, in order. Each dialog runs twice: as
// written, and with one octet per write (unless it says "set whole").
func TestDialogs(t *testing.T) {
	files, err := filepath.Glob("testdata/*.dialog")
	if err != nil || len(files) < 40 {
		t.Fatalf("found %d dialogs (%v), want at least 40", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, bytewise := range []bool{false, true} {
			name := strings.TrimSuffix(filepath.Base(file), ".dialog")
			if bytewise && strings.Contains(string(text), "\nset whole\n") {
				continue
			}
			t.Run(fmt.Sprintf("%s/bytewise=%v", name, bytewise), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					runDialog(t, string(text), bytewise)
				})
			})
		}
	}
}

// dialog is one run of one file.
type dialog struct {
	t        *testing.T
	bytewise bool
	server   *Server
	acceptor *memory
	log      *logLines
	remote   net.Addr
	ehlo     bool
	client   net.Conn
	pending  []byte
	mails    int

	mu     sync.Mutex
	got    []byte
	closed bool
}

func runDialog(t *testing.T, text string, bytewise bool) {
	d := &dialog{t: t, bytewise: bytewise, acceptor: &memory{}, log: &logLines{}}
	d.remote = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4321}
	d.server = &Server{Acceptor: d.acceptor, Hostname: "mx.test", Log: slog.New(d.log),
		RelayFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
	var steps []string
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, " \r")
		if set, ok := strings.CutPrefix(line, "set "); ok {
			d.set(set)
			line = ""
		}
		if line != "" && line[0] != '#' {
			steps = append(steps, strconv.Itoa(n+1)+" "+line)
		}
	}
	ln := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(t.Context(), ln) }()
	var far net.Conn
	d.client, far = net.Pipe()
	ln.conns <- &addrConn{far, d.remote}
	go d.read()
	var last *stored
	if d.ehlo {
		steps = append([]string{"0 < 220 *", "0 > EHLO c", "0 <*"}, steps...)
	}
	for _, step := range steps {
		number, line, _ := strings.Cut(step, " ")
		d.step(number, line, &last)
	}
	d.settle()
	if len(d.got) > 0 {
		t.Errorf("unexpected reply %q", d.got)
	}
	if n := len(d.acceptor.got()); n != d.mails {
		t.Errorf("%d mails were committed, the dialog names %d: %s", n, d.mails, renderAll(d.acceptor.got()))
	}
	d.client.Close()
	if err := d.server.Shutdown(context.Background()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != ErrClosed {
		t.Errorf("Serve: %v", err)
	}
	for _, l := range d.log.lines() {
		if printable(l, len(l)) != l {
			t.Errorf("log line with control characters: %q", l)
		}
	}
}

// set changes the server.
func (d *dialog) set(s string) {
	d.t.Helper()
	key, value, _ := strings.Cut(s, "=")
	n, _ := strconv.Atoi(value)
	switch key {
	case "whole":
	case "lmtp":
		d.server.LMTP = true
	case "ehlo":
		d.ehlo = value != "no"
	case "accounts":
		d.server.Accounts = testAccounts{}
	case "auth-clear":
		d.server.AuthWithoutTLS = true
	case "tls":
		d.server.TLS = &tls.Config{}
	case "requiretls":
		d.server.RequireTLS = true
	case "vrfy":
		d.server.Verify = true
	case "relay":
		d.server.RelayFrom = nil
		if value != "no" {
			d.server.RelayFrom = []netip.Prefix{netip.MustParsePrefix(value)}
		}
	case "proxy":
		d.server.ProxyFrom = []netip.Prefix{netip.MustParsePrefix(value)}
	case "rate":
		d.server.Limits.MailRate = n
	case "wrong":
		d.server.Limits.AuthFailures = n
	case "free":
		d.server.Limits.FreeErrors = n
	case "normalize":
		d.server.Normalize = true
	case "host":
		d.server.Hostname = value
	case "unix":
		d.remote = &net.UnixAddr{Net: "unix"}
	case "from":
		d.remote = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(value))
	case "open":
		d.server.OpenTo = func(addr string) bool { return strings.HasSuffix(addr, "@"+value) }
	case "size":
		d.server.Limits.MessageSize = int64(n)
	case "recipients":
		d.server.Limits.Recipients = n
	case "errors":
		d.server.Limits.Errors = n
	case "commands":
		d.server.Limits.Commands = n
	case "junk":
		d.server.Limits.Junk = n
	case "received":
		d.server.Limits.Received = n
	default:
		d.t.Fatalf("unknown setting %q", s)
	}
}

// step carries out one directive.
func (d *dialog) step(number, line string, last **stored) {
	d.t.Helper()
	word, text, _ := strings.Cut(line, " ")
	raw := d.unescape(number, text)
	if word == ">" {
		d.pending = append(append(d.pending, raw...), '\r', '\n')
		return
	}
	if word == ">>" {
		d.pending = append(d.pending, raw...)
		return
	}
	if count, ok := strings.CutPrefix(word, ">*"); ok {
		n, err := strconv.Atoi(count)
		if err != nil {
			d.t.Fatalf("line %s: %v", number, err)
		}
		d.pending = append(d.pending, strings.Repeat(raw, n)...)
		return
	}
	d.settle()
	switch word {
	case "<":
		got, rest, ok := strings.Cut(string(d.got), "\r\n")
		if !ok || !glob(raw, got) {
			d.t.Fatalf("line %s: got reply %q, want %q (log: %q)", number, d.got, raw, d.log.lines())
		}
		d.got = []byte(rest)
	case "<*":
		for more := true; more; {
			got, rest, ok := strings.Cut(string(d.got), "\r\n")
			if !ok {
				d.t.Fatalf("line %s: got %q, want a whole reply (log: %q)", number, d.got, d.log.lines())
			}
			more = len(got) > 3 && got[3] == '-'
			d.got = []byte(rest)
		}
	case "eof":
		if len(d.got) > 0 || !d.closed {
			d.t.Fatalf("line %s: closed=%v after reply %q, want end of connection", number, d.closed, d.got)
		}
	case "wait":
		pause, err := time.ParseDuration(text)
		if err != nil {
			d.t.Fatalf("line %s: %v", number, err)
		}
		time.Sleep(pause)
		d.settle()
	case "close":
		d.client.Close()
		d.settle()
	case "shutdown":
		d.server.drain()
		d.settle()
	case "mail":
		mails := d.acceptor.got()
		if len(mails) <= d.mails {
			d.t.Fatalf("line %s: no mail was committed (log: %q)", number, d.log.lines())
		}
		*last = &mails[d.mails]
		d.mails++
		if got := render((*last).mail); !glob(raw, got) {
			d.t.Errorf("line %s: got mail\n%s\nwant\n%s", number, got, raw)
		}
	case "body":
		if *last == nil {
			d.t.Fatalf("line %s: no mail named yet", number)
		}
		if got := (*last).body; got != raw {
			d.t.Errorf("line %s: got body\n%q, want\n%q", number, got, raw)
		}
	case "log":
		for _, l := range d.log.lines() {
			if glob(raw, l) {
				return
			}
		}
		d.t.Errorf("line %s: no log line like %q in %q", number, raw, d.log.lines())
	default:
		d.t.Fatalf("line %s: unknown directive %q", number, line)
	}
}

// settle sends what is pending and waits until the server has nothing more to do; read has nothing to do then either.
func (d *dialog) settle() {
	data := d.pending
	d.pending = nil
	piece := len(data)
	if d.bytewise {
		piece = 1
	}
	for len(data) > 0 {
		n, err := d.client.Write(data[:min(piece, len(data))])
		if err != nil { // the server has closed the connection; the dialog says whether it should
			break
		}
		data = data[n:]
	}
	synctest.Wait()
}

// read gathers what the server says.
func (d *dialog) read() {
	buf := make([]byte, 4096)
	for {
		n, err := d.client.Read(buf)
		d.mu.Lock()
		d.got = append(d.got, buf[:n]...)
		d.closed = err != nil
		d.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (d *dialog) unescape(number, s string) string {
	d.t.Helper()
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i == len(s) {
			d.t.Fatalf("line %s: backslash at the end", number)
		}
		switch s[i] {
		case 'r':
			b.WriteByte('\r')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case '0':
			b.WriteByte(0)
		case 's':
			b.WriteByte(' ')
		case '\\':
			b.WriteByte('\\')
		case 'x':
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				d.t.Fatalf("line %s: %v", number, err)
			}
			b.WriteByte(byte(v))
			i += 2
		default:
			d.t.Fatalf("line %s: unknown escape \\%c", number, s[i])
		}
	}
	return b.String()
}

// glob matches s against a pattern in which "*" stands for anything.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// render writes an SMTP envelope on one line; what is not set is left out. Times count from the start of the dialog.
func render(m *envelope.Mail) string {
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where synctest begins
	s := "<" + m.Sender + ">"
	add := func(key, value string) {
		if value != "" {
			s += " " + key + "=" + value
		}
	}
	add("ret", m.Ret)
	add("envid", m.EnvID)
	add("body", m.Body)
	if m.SMTPUTF8 {
		s += " utf8"
	}
	if m.RequireTLS {
		s += " requiretls"
	}
	if by := m.By; by != nil {
		s += fmt.Sprintf(" by=%v/return=%v/trace=%v", by.Deadline.Sub(start), by.Return, by.Trace)
	}
	if !m.HoldUntil.IsZero() {
		s += fmt.Sprintf(" hold=%v", m.HoldUntil.Sub(start))
	}
	if m.Priority != 0 {
		s += fmt.Sprintf(" priority=%d", m.Priority)
	}
	if m.Auth != nil {
		s += " auth=" + *m.Auth
	}
	c := m.Client
	add("proto", c.Proto)
	add("user", c.User)
	add("name", c.Name)
	add("addr", c.Addr)
	add("port", c.Port)
	add("helo", c.Helo)
	add("ident", c.Ident)
	add("source", c.Source)
	add("tls", c.TLS)
	for _, r := range m.Recipients {
		s += " to:<" + r.Addr + ">"
		if r.Notify != 0 {
			s += fmt.Sprintf("/notify=%d", r.Notify)
		}
		if r.ORcpt != "" {
			s += "/orcpt=" + r.ORcpt
		}
	}
	return s
}

func renderAll(mails []stored) string {
	var b strings.Builder
	for _, m := range mails {
		fmt.Fprintf(&b, "\n%s %q", render(m.mail), m.body)
	}
	return b.String()
}

// testAccounts knows ana, who may use any sender, and ben, who may use ben@x.example; their password is "open sesame".
type testAccounts struct{}

func (testAccounts) Ready() bool { return true }

func (testAccounts) Login(_ context.Context, name, password string) (*Account, error) {
	switch {
	case name == "broken":
		return nil, errors.New("open /var/secret: permission denied")
	case name == "ana" && password == "open sesame":
		return &Account{Name: "ana"}, nil
	case name == "ben" && password == "open sesame":
		return &Account{Name: "ben", MaySend: func(sender string) bool { return sender == "ben@x.example" }}, nil
	}
	return nil, ErrCredentials
}

func (testAccounts) Exchange() Exchange { return noExchange{} }

// noExchange denies everything: internal/account tests SCRAM.
type noExchange struct{}

func (noExchange) Step(string) (string, *Account, error) { return "", nil, ErrCredentials }

// pipeListener hands out connections made by the test.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Net: "pipe"} }

// addrConn is a connection that comes from somewhere else.
type addrConn struct {
	net.Conn
	remote net.Addr
}

func (c *addrConn) RemoteAddr() net.Addr { return c.remote }

// logLines is a slog.Handler that keeps messages.
type logLines struct {
	mu  sync.Mutex
	got []string
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logLines) WithGroup(string) slog.Handler            { return l }
func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got = append(l.got, r.Message)
	return nil
}

func (l *logLines) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.got...)
}
