package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func dialUnix(path string) (net.Conn, error) { return net.DialTimeout("unix", path, time.Minute) }

// wire is the client's side of an SMTP dialog.
type wire struct {
	net.Conn
	r *bufio.Reader
}

// dial connects to an SMTP server and reads its greeting.
func dial(addr string) (*wire, error) {
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	c, err := net.DialTimeout(network, addr, time.Minute)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: c, r: bufio.NewReader(c)}
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	if reply, err := w.reply(); err != nil || !strings.HasPrefix(reply, "220") {
		c.Close()
		return nil, fmt.Errorf("greeting %q: %w", reply, err)
	}
	return w, nil
}

// reply reads one reply of any number of lines.
func (w *wire) reply() (string, error) {
	var all strings.Builder
	for {
		line, err := w.r.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			return all.String(), fmt.Errorf("reply: %w", err)
		}
		if len(line) < 4 || line[3] != '-' {
			return all.String(), nil
		}
	}
}

// say sends a line and wants a reply that begins with the given text.
func (w *wire) say(line, want string) error {
	if _, err := fmt.Fprintf(w, "%s\r\n", line); err != nil {
		return err
	}
	reply, err := w.reply()
	if err != nil {
		return fmt.Errorf("after %q: %w", line, err)
	}
	if !strings.HasPrefix(reply, want) {
		return &unexpected{line, reply}
	}
	return nil
}

// unexpected is a reply that was not wanted.
type unexpected struct{ line, reply string }

func (u *unexpected) Error() string { return fmt.Sprintf("after %.100q: %q", u.line, u.reply) }

// envelope says MAIL and RCPT with their parameters: "<a@b> NOTIFY=NEVER".
func (w *wire) envelope(from string, to ...string) error {
	if err := w.say("MAIL FROM:"+from, "250"); err != nil {
		return err
	}
	for _, r := range to {
		if err := w.say("RCPT TO:"+r, "250"); err != nil {
			return err
		}
	}
	return w.say("DATA", "354")
}

// content sends a mail (CRLF lines) and its final dot.
func (w *wire) content(mail string) error {
	if strings.HasPrefix(mail, ".") {
		mail = "." + mail
	}
	mail = strings.ReplaceAll(mail, "\r\n.", "\r\n..")
	if mail != "" && !strings.HasSuffix(mail, "\r\n") {
		return fmt.Errorf("the mail does not end with a line end")
	}
	if _, err := w.Write([]byte(mail)); err != nil {
		return err
	}
	return w.say(".", "250")
}

// send holds a whole dialog.
func send(addr, mail, from string, to ...string) error {
	w, err := dial(addr)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.say("EHLO client.test", "250"); err != nil {
		return err
	}
	if err := w.envelope(from, to...); err != nil {
		return err
	}
	if err := w.content(mail); err != nil {
		return err
	}
	return w.say("QUIT", "221")
}

// sink is an SMTP server that takes everything and remembers it.
type sink struct {
	Addr string
	// Refuse, if set, answers RCPT; "" accepts.
	Refuse func(rcpt string) string
	LMTP   bool        // a verdict for each recipient
	More   string      // further extensions, each as a reply line with CRLF
	ASCII  bool        // it knows no SMTPUTF8
	TLS    *tls.Config // for STARTTLS, after which it takes mail
	Secret string      // further extensions under TLS

	ln net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
	mails  []taken
}

// taken is one mail at the sink.
type taken struct {
	At        time.Time // of its 250
	Mail      string    // the command
	Rcpt      []string
	Xforward  []string
	Content   string // CRLF lines, without stuffed dots
	Confirmed bool   // the 250 was written
}

func newSink(t testing.TB, refuse func(string) string) *sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{Addr: ln.Addr().String(), Refuse: refuse, ln: ln, conns: map[net.Conn]bool{}}
	s.wg.Add(1)
	go s.serve()
	t.Cleanup(func() {
		ln.Close()
		s.mu.Lock()
		s.closed = true
		for c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

// Mails returns what has come.
func (s *sink) Mails() []taken {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]taken(nil), s.mails...)
}

func (s *sink) serve() {
	defer s.wg.Done()
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			c.Close()
		}
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			s.dialog(c)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
	}
}

func (s *sink) dialog(c net.Conn) {
	r := bufio.NewReaderSize(c, 64<<10)
	out := bufio.NewWriter(c)
	clear := s.TLS != nil // not encrypted yet, and not willing without
	say := func(reply string) bool {
		out.WriteString(reply + "\r\n")
		return r.Buffered() > 0 || out.Flush() == nil
	}
	say("220 sink.test ESMTP")
	var m taken
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO", "LHLO":
			if s.LMTP != (strings.EqualFold(verb, "LHLO")) {
				say("500 5.5.1 wrong protocol")
				continue
			}
			utf8 := "250-SMTPUTF8\r\n"
			if s.ASCII {
				utf8 = ""
			}
			more := s.More
			switch {
			case clear:
				more += "250-STARTTLS\r\n"
			case s.TLS != nil:
				more += s.Secret
			}
			say("250-sink.test\r\n" + more + "250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n" + utf8 + "250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n250 XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT")
		case "XFORWARD":
			m.Xforward = append(m.Xforward, rest)
			say("250 2.0.0 ok")
		case "STARTTLS":
			if !clear {
				say("503 5.5.1 not now")
				continue
			}
			say("220 2.0.0 go on")
			t := tls.Server(c, s.TLS)
			if t.Handshake() != nil {
				return
			}
			clear = false
			r.Reset(t)
			out.Reset(t)
		case "MAIL":
			if clear {
				say("530 5.7.0 STARTTLS first")
				continue
			}
			m.Mail = rest
			say("250 2.1.0 ok")
		case "RCPT":
			if s.Refuse != nil {
				if why := s.Refuse(rest); why != "" {
					say(why)
					continue
				}
			}
			m.Rcpt = append(m.Rcpt, rest)
			say("250 2.1.5 ok")
		case "DATA":
			if len(m.Rcpt) == 0 {
				say("554 5.5.1 no recipients")
				continue
			}
			say("354 go on")
			var b strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				b.WriteString(strings.TrimPrefix(line, "."))
			}
			m.Content, m.At = b.String(), time.Now()
			s.mu.Lock()
			k := len(s.mails)
			s.mails = append(s.mails, m)
			s.mu.Unlock()
			ok := say("250 2.0.0 taken")
			for i := 1; i < len(m.Rcpt) && s.LMTP; i++ {
				ok = say("250 2.0.0 taken") && ok
			}
			s.mu.Lock()
			s.mails[k].Confirmed = ok
			s.mu.Unlock()
			m = taken{}
		case "RSET":
			m = taken{}
			say("250 2.0.0 ok")
		case "NOOP":
			say("250 2.0.0 ok")
		case "QUIT":
			say("221 2.0.0 bye")
			return
		default:
			say("502 5.5.2 what?")
		}
	}
}
