package deliver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// fake is an SMTP or LMTP server that does what a test tells it.
type fake struct {
	greeting string // "220 fake ESMTP" when empty
	ext      []string
	lmtp     bool
	hold     bool // answers nothing after MAIL before it has seen DATA: a client that does not pipeline hangs
	// reply may answer a command in its own way; "" is the usual answer, "close" hangs up.
	reply func(cmd string) string
	// body may answer the content; conn counts connections from 1. "" and "close" as above.
	body func(conn int, raw string) []string
	// cut is asked before each line of content; true hangs up after that reply.
	cut func(sofar int) (bool, string)

	ln net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	log    []string // commands, as they came
	bodies []string // what followed 354, dots stuffed, without the final dot
	halves []string // content that ended without a final dot
	conns  int
	open   map[net.Conn]bool
}

// start listens; the URL is for New.
func (f *fake) start(t *testing.T) (via string) {
	t.Helper()
	var err error
	f.open = map[net.Conn]bool{}
	if f.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	f.serve(t)
	if f.lmtp {
		return "lmtp:" + f.ln.Addr().String()
	}
	return "smtp:" + f.ln.Addr().String()
}

func (f *fake) startUnix(t *testing.T) (via string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	var err error
	f.open = map[net.Conn]bool{}
	if f.ln, err = net.Listen("unix", path); err != nil {
		t.Fatal(err)
	}
	f.serve(t)
	return "lmtp:" + path
}

func (f *fake) serve(t testing.TB) {
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		for {
			c, err := f.ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns++
			n := f.conns
			f.open[c] = true
			f.mu.Unlock()
			f.wg.Add(1)
			go func() {
				defer f.wg.Done()
				defer c.Close()
				f.talk(c, n)
				f.mu.Lock()
				delete(f.open, c)
				f.mu.Unlock()
			}()
		}
	}()
	t.Cleanup(f.stop)
}

// hangUp closes all connections.
func (f *fake) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.open {
		c.Close()
	}
}

func (f *fake) stop() {
	f.ln.Close()
	f.hangUp()
	f.wg.Wait()
}

func (f *fake) note(list *[]string, s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*list = append(*list, s)
}

// script returns what the test has set last.
func (f *fake) script() (func(string) string, func(int, string) []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reply, f.body
}

// set changes the script while the server runs.
func (f *fake) set(reply func(cmd string) string, body func(conn int, raw string) []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reply, f.body = reply, body
}

// seen tells how many connections and mails there were.
func (f *fake) seen() (conns, mails int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conns, len(f.bodies)
}

// commands are the commands seen since the last call, those of the greeting left out.
func (f *fake) commands() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, l := range f.log {
		if !strings.HasPrefix(l, "EHLO") && !strings.HasPrefix(l, "LHLO") && !strings.HasPrefix(l, "HELO") {
			out = append(out, l)
		}
	}
	f.log = nil
	return out
}

func (f *fake) talk(c net.Conn, n int) {
	r := bufio.NewReader(c)
	g := f.greeting
	if g == "" {
		g = "220 fake ESMTP"
	}
	fmt.Fprintf(c, "%s\r\n", g)
	accepted := 0
	var held bytes.Buffer
	holding := false
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		cmd, ok := strings.CutSuffix(line, "\r\n")
		if !ok {
			f.note(&f.log, "BARE LF "+line)
		}
		f.note(&f.log, cmd)
		verb := strings.ToUpper(strings.SplitN(cmd, " ", 2)[0])
		if f.hold && verb == "MAIL" {
			holding = true
		}
		answer := ""
		if reply, _ := f.script(); reply != nil {
			answer = reply(cmd)
		}
		if answer == "close" {
			return
		}
		if answer == "" {
			answer = f.usual(verb, accepted)
		}
		switch {
		case verb == "MAIL", verb == "RSET":
			accepted = 0
		case verb == "RCPT" && answer[0] == '2':
			accepted++
		}
		fmt.Fprintf(&held, "%s\r\n", answer)
		if holding && verb != "DATA" {
			continue
		}
		holding = false
		c.Write(held.Bytes())
		held.Reset()
		if verb == "QUIT" || strings.HasPrefix(answer, "421") {
			return
		}
		if verb == "DATA" && strings.HasPrefix(answer, "354") {
			if !f.data(c, r, n, accepted) {
				return
			}
			accepted = 0
		}
	}
}

func (f *fake) usual(verb string, accepted int) string {
	switch verb {
	case "EHLO", "LHLO":
		if (verb == "LHLO") != f.lmtp {
			return "500 5.5.1 wrong greeting"
		}
		lines := append([]string{"fake"}, f.ext...)
		for i := range lines {
			sep := "-"
			if i == len(lines)-1 {
				sep = " "
			}
			lines[i] = "250" + sep + lines[i]
		}
		return strings.Join(lines, "\r\n")
	case "DATA":
		if accepted == 0 {
			return "554 5.5.1 no valid recipients"
		}
		return "354 go ahead"
	case "QUIT":
		return "221 2.0.0 bye"
	}
	return "250 2.1.0 ok"
}

// data reads content as a strict server does: only CRLF.CRLF ends it.
func (f *fake) data(c net.Conn, r *bufio.Reader, n, accepted int) bool {
	var b strings.Builder
	for {
		if f.cut != nil {
			if hangUp, reply := f.cut(b.Len()); hangUp {
				io.WriteString(c, reply)
				if tc, ok := c.(*net.TCPConn); ok && reply != "" {
					tc.CloseWrite()
					io.Copy(io.Discard, r)
				}
				f.note(&f.halves, b.String())
				return false
			}
		}
		line, err := r.ReadString('\n')
		if err != nil {
			f.note(&f.halves, b.String()+line)
			return false
		}
		if line == ".\r\n" && (b.Len() == 0 || strings.HasSuffix(b.String(), "\r\n")) {
			break
		}
		b.WriteString(line)
	}
	f.note(&f.bodies, b.String())
	var answers []string
	if _, body := f.script(); body != nil {
		answers = body(n, b.String())
	}
	if answers == nil {
		answers = []string{"250 2.0.0 queued as 1"}
		if f.lmtp {
			for len(answers) < accepted {
				answers = append(answers, answers[0])
			}
		}
	}
	for _, a := range answers {
		if a == "close" {
			return false
		}
		fmt.Fprintf(c, "%s\r\n", a)
	}
	return true
}

// mail makes a message of a text with LF lines.
func mail(sender, text string, rcpts ...string) *Message {
	b := []byte(strings.ReplaceAll(text, "\n", "\r\n"))
	return rawMail(sender, b, rcpts...)
}

func rawMail(sender string, b []byte, rcpts ...string) *Message {
	env := &envelope.Envelope{
		ID:   envelope.NewID(time.Unix(1700000000, 0)),
		Kind: envelope.KindMail, Created: time.Unix(1700000000, 0),
		Size: int64(len(b)), Sum: envelope.SumOf(b),
		Mail: &envelope.Mail{Sender: sender},
	}
	m := &Message{Env: env, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
	for i, r := range rcpts {
		env.Mail.Recipients = append(env.Mail.Recipients, envelope.Recipient{Addr: r})
		m.Rcpts = append(m.Rcpts, i)
	}
	return m
}

const hello = "Subject: hi\n\nHello\n.dot\n..two\n"

// open makes a transport that is closed at the end of the test.
func open(t *testing.T, via string, o Options) Transport {
	t.Helper()
	if o.Hostname == "" {
		o.Hostname = "camp.example"
	}
	if o.Command == 0 {
		o.Command, o.Final, o.Block = 5*time.Minute, 5*time.Minute, 5*time.Minute
	}
	tr, err := New(via, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// show writes results as "index action code enhanced text [flags]" lines.
func show(res []Result) string {
	var b strings.Builder
	for _, r := range res {
		fmt.Fprintf(&b, "%d %s %s", r.Rcpt, r.Action, r.Status.String())
		if r.DSN {
			b.WriteString(" [dsn]")
		}
		if r.Down {
			b.WriteString(" [down]")
		}
		if r.Corrupt {
			b.WriteString(" [corrupt]")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// check delivers and compares the results; addr stands for the server's address in want.
func check(t *testing.T, tr Transport, m *Message, want ...string) {
	t.Helper()
	checkCtx(t, context.Background(), tr, m, want...)
}

func checkCtx(t *testing.T, ctx context.Context, tr Transport, m *Message, want ...string) {
	t.Helper()
	got := show(tr.Deliver(ctx, m))
	w := strings.Join(want, "\n") + "\n"
	if s, ok := tr.(*smtp); ok {
		w = strings.ReplaceAll(w, "ADDR", s.addr)
	}
	if got != w {
		t.Errorf("results:\n%swant:\n%s", got, w)
	}
}

func (f *fake) checkCommands(t *testing.T, want ...string) {
	t.Helper()
	if got := strings.Join(f.commands(), "\n"); got != strings.Join(want, "\n") {
		t.Errorf("commands:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

func (f *fake) checkBodies(t *testing.T, want ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if fmt.Sprintf("%q", f.bodies) != fmt.Sprintf("%q", want) {
		t.Errorf("content:\n%q\nwant:\n%q", f.bodies, want)
	}
}

// reader fails with err after the first n bytes.
type reader struct {
	b   []byte
	n   int
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, r.err
	}
	n := copy(p, r.b[:min(r.n, len(r.b))])
	r.b, r.n = r.b[n:], r.n-n
	return n, nil
}

func (r *reader) Close() error { return nil }

var errDisk = errors.New("input/output error")
