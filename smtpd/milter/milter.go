// Package milter lets mail filters look at a mail before it is taken: rspamd, ClamAV and whatever else speaks Sendmail's
// milter protocol. A refusal is the answer to the end of the data, so that nothing refused ever costs airtime.
//
// Filters may refuse, drop, and add, change or remove header fields. They are not offered to change envelopes or bodies.
// All stages are told at the end of the data, one filter after the other; a refusal of a single recipient refuses the mail.
package milter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	gomilter "github.com/emersion/go-milter"

	"mochila/internal/envelope"
	"mochila/smtpd"
)

// Filters are the filters of a node, in the order in which they are asked.
type Filters struct {
	Addrs    []string      // "unix:/path" or "inet:HOST:PORT"
	Accept   bool          // what cannot be asked lets mail pass; else it is refused for the time being
	Hostname string        // this node's, for the filters
	Dir      string        // where large mail is held
	Timeout  time.Duration // for each step; 0 = 30 s
	Log      *slog.Logger
}

// ParseAddr checks the form of an address.
func ParseAddr(s string) (network, addr string, err error) {
	kind, rest, ok := strings.Cut(s, ":")
	switch {
	case ok && kind == "unix" && strings.HasPrefix(rest, "/"):
		return "unix", rest, nil
	case ok && kind == "inet":
		if host, port, err := net.SplitHostPort(rest); err == nil && host != "" {
			if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
				return "tcp", rest, nil
			}
		}
	}
	return "", "", fmt.Errorf("%q is neither unix:/path nor inet:HOST:PORT", s)
}

// maxHeader is the length of a header up to which filters may change it.
const maxHeader = 256 << 10

// Screen is an intake that asks the filters before the mail goes into in.
func (f *Filters) Screen(in smtpd.Intake, m *envelope.Mail) smtpd.Intake {
	return &intake{f: f, in: in, mail: m, body: smtpd.Held{Dir: f.Dir}}
}

type intake struct {
	f      *Filters
	in     smtpd.Intake
	mail   *envelope.Mail
	header []byte // with its last CRLF, without the empty line
	ended  bool
	body   smtpd.Held // what follows the header, the empty line first
}

// Write is smtpd.Intake's.
func (t *intake) Write(p []byte) (int, error) {
	if t.ended {
		return t.body.Write(p)
	}
	from := max(0, len(t.header)-3)
	t.header = append(t.header, p...)
	end := bytes.Index(t.header[from:], []byte("\r\n\r\n"))
	switch {
	case bytes.HasPrefix(t.header, []byte("\r\n")):
		return len(p), t.cut(0)
	case end >= 0:
		return len(p), t.cut(from + end + 2)
	case len(t.header) > maxHeader:
		return len(p), t.cut(0) // no header of a mail: a body for the filters
	}
	return len(p), nil
}

// cut ends the header after n bytes.
func (t *intake) cut(n int) error {
	t.ended = true
	rest := t.header[n:]
	t.header = t.header[:n:n]
	_, err := t.body.Write(rest)
	return err
}

// Abort is smtpd.Intake's.
func (t *intake) Abort() {
	t.body.Drop()
	t.in.Abort()
}

// Commit asks the filters, and commits the mail as they leave it.
func (t *intake) Commit(ctx context.Context) (string, error) {
	defer t.body.Drop()
	if !t.ended && !bytes.HasSuffix(t.header, []byte("\r\n")) {
		if err := t.cut(0); err != nil {
			t.in.Abort()
			return "", err
		}
	}
	for _, addr := range t.f.Addrs {
		drop, err := t.ask(ctx, addr)
		if err != nil {
			t.in.Abort()
			return "", err
		}
		if drop {
			t.in.Abort()
			t.f.Log.Info(fmt.Sprintf("discarded: from=<%s>, by filter %s", t.mail.Sender, addr))
			return "discarded", nil
		}
	}
	if _, err := t.in.Write(t.header); err != nil {
		t.in.Abort()
		return "", err
	}
	if _, err := t.body.WriteTo(t.in); err != nil {
		t.in.Abort()
		return "", err
	}
	return t.in.Commit(ctx)
}

// ask shows the mail to one filter. drop says that it is taken and forgotten; an error is the answer to the client.
func (t *intake) ask(ctx context.Context, addr string) (drop bool, err error) {
	v, err := t.show(ctx, addr)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		t.f.Log.Warn(fmt.Sprintf("filter %s: %v", addr, err))
		if t.f.Accept {
			return false, nil
		}
		return false, envelope.NewStatus(451, "4.7.1", "service unavailable, try again later")
	}
	switch v.Code {
	case gomilter.ActDiscard:
		return true, nil
	case gomilter.ActReject:
		return false, envelope.NewStatus(550, "5.7.1", "message rejected by a filter")
	case gomilter.ActTempFail:
		return false, envelope.NewStatus(451, "4.7.1", "try again later")
	case gomilter.ActReplyCode:
		return false, reply(v)
	}
	return false, nil
}

// reply is a filter's own answer.
func reply(v *gomilter.Action) error {
	code, text := v.SMTPCode, strings.TrimSpace(v.SMTPText)
	enhanced := map[bool]string{true: "4.7.1", false: "5.7.1"}[code/100 == 4]
	if word, rest, ok := strings.Cut(text, " "); ok && strings.Count(word, ".") == 2 && word[0] == enhanced[0] {
		enhanced, text = word, rest
	}
	if code/100 != 4 && code/100 != 5 {
		code, enhanced = 550, "5.7.1"
	}
	return envelope.NewStatus(code, enhanced, envelope.OneLine(text, 400))
}

// show goes through all stages of the protocol. The verdict is the first that is not "go on".
func (t *intake) show(ctx context.Context, addr string) (*gomilter.Action, error) {
	network, place, err := ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	timeout := t.f.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	c := gomilter.NewClientWithOptions(network, place, gomilter.ClientOptions{
		Dialer: dialer{ctx, timeout}, ReadTimeout: timeout, WriteTimeout: timeout,
		ActionMask:   gomilter.OptAddHeader | gomilter.OptChangeHeader,
		ProtocolMask: 0,
	})
	defer c.Close()
	s, err := c.Session()
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer s.Close()
	mods, v, err := t.stages(s)
	if err != nil {
		return nil, err
	}
	if v.Code == gomilter.ActAccept || v.Code == gomilter.ActContinue {
		t.modify(mods)
	}
	return v, nil
}

// dialer is a net.Dialer that gives up when the client is gone.
type dialer struct {
	ctx     context.Context
	timeout time.Duration
}

// Dial is the milter library's.
func (d dialer) Dial(network, addr string) (net.Conn, error) {
	return (&net.Dialer{Timeout: d.timeout}).DialContext(d.ctx, network, addr)
}

// final reports whether a verdict ends the conversation.
func final(v *gomilter.Action, err error) bool {
	return err != nil || v.Code != gomilter.ActContinue
}

func (t *intake) stages(s *gomilter.ClientSession) ([]gomilter.ModifyAction, *gomilter.Action, error) {
	k := &t.mail.Client
	family, addr, name := gomilter.FamilyUnknown, k.Addr, k.Name
	if ip := net.ParseIP(k.Addr); ip != nil {
		family = gomilter.FamilyInet6
		if ip.To4() != nil {
			family = gomilter.FamilyInet
		}
	}
	if name == "" {
		name = "unknown"
	}
	if k.UID > 0 {
		name, addr, family = "localhost", "127.0.0.1", gomilter.FamilyInet
	}
	port, _ := strconv.ParseUint(k.Port, 10, 16)
	if err := s.Macros(gomilter.CodeConn, "j", t.f.Hostname, "{daemon_name}", "mochila"); err != nil {
		return nil, nil, err
	}
	if v, err := s.Conn(name, family, uint16(port), addr); final(v, err) {
		return nil, v, err
	}
	helo := k.Helo
	if helo == "" {
		helo = name
	}
	if v, err := s.Helo(helo); final(v, err) {
		return nil, v, err
	}
	if err := s.Macros(gomilter.CodeMail, "{auth_authen}", k.User, "{mail_addr}", t.mail.Sender); err != nil {
		return nil, nil, err
	}
	if v, err := s.Mail(t.mail.Sender, nil); final(v, err) {
		return nil, v, err
	}
	for i := range t.mail.Recipients {
		if v, err := s.Rcpt(t.mail.Recipients[i].Addr, nil); final(v, err) {
			return nil, v, err
		}
	}
	for _, f := range fields(t.header) {
		if v, err := s.HeaderField(f.name, f.value()); final(v, err) {
			return nil, v, err
		}
	}
	if v, err := s.HeaderEnd(); final(v, err) {
		return nil, v, err
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := t.body.WriteTo(&afterCRLF{w: pw, left: "\r\n"})
		pw.CloseWithError(err)
	}()
	mods, v, err := s.BodyReadFrom(pr)
	pr.CloseWithError(io.ErrClosedPipe) // ends the writer, if the filter has heard enough
	return mods, v, err
}

// afterCRLF leaves out the empty line between header and body.
type afterCRLF struct {
	w    io.Writer
	left string
}

// Write is io.Writer's.
func (a *afterCRLF) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && a.left != "" && p[n] == a.left[0] {
		a.left = a.left[1:]
		n++
	}
	if n < len(p) {
		a.left = ""
	}
	if n == len(p) {
		return n, nil
	}
	k, err := a.w.Write(p[n:])
	return n + k, err
}
