package deliver

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mochila/bridge/route"
	"mochila/internal/envelope"
)

// bsmtp hands mail to a program as a batch: the SMTP commands that a client would say, on stdin, without waiting for
// replies. All parameters of the envelope are in it, so the other end is mochila's rsmtp, or something that knows them.
//
//	bsmtp:/path           the batch itself, for rsmtp and what carries it there
//	bsmtp:/path?to=ADDR   the batch inside a mail to ADDR (application/batch-SMTP, RFC 2442): path is a sendmail, and
//	                      where ADDR ends, the mail is piped to rsmtp
//
// Exit 0 means that the mail has gone on its way; who runs the batch reports on it no more.
type bsmtp struct {
	program
	to string
}

func newBSMTP(rest string, o Options) (Transport, error) {
	path, query, _ := strings.Cut(rest, "?")
	to, ok := strings.CutPrefix(query, "to=")
	if query != "" && (!ok || !route.SafePath(to) || !ascii(to) || strings.HasPrefix(to, "-")) {
		return nil, fmt.Errorf("%q is not ?to=ADDRESS", "?"+query)
	}
	p, err := newProgram(path, "bsmtp", o)
	return &bsmtp{p, to}, err
}

// batchExtensions are what a batch may use.
var batchExtensions = map[string]string{"SIZE": "", "8BITMIME": "", "SMTPUTF8": "", "DSN": "", "DELIVERBY": "", "REQUIRETLS": "", "AUTH": ""}

// Deliver runs the program once for all recipients, and one by one after a final failure of several, to find out whose
// it was.
func (p *bsmtp) Deliver(ctx context.Context, m *Message) []Result {
	s := newSheet(m, p.mta)
	ct, err := load(m, true)
	if err != nil {
		s.trouble(err)
		return s.res
	}
	for who := s.open(); len(who) > 0; {
		k := min(len(who), p.o.MaxRcpts)
		if err := p.group(ctx, ct, s, who[:k]); err != nil {
			s.trouble(err)
			return s.res
		}
		who = who[k:]
	}
	s.wait(ours("4.3.2", "not tried: interrupted"))
	return s.res
}

func (p *bsmtp) group(ctx context.Context, ct *content, s *sheet, who []int) error {
	if ctx.Err() != nil {
		return nil
	}
	commands, who := p.commands(ct, s, who)
	if len(who) == 0 {
		return nil
	}
	in, err := p.batch(commands, ct)
	if err != nil {
		return err
	}
	defer in.Close()
	var args []string
	if p.to != "" {
		args = []string{"-i", "-f", p.postmaster(), "--", p.to}
	}
	e := p.run(ctx, args, nil, in)
	if e.code == 0 {
		for _, i := range who {
			s.put(i, envelope.ActionRelayed, envelope.Status{Enhanced: "2.0.0", Text: "put into a batch for " + p.path})
		}
		return nil
	}
	a, st := e.verdict(filepath.Base(p.path), pipeFailures)
	if a == envelope.ActionFailed && len(who) > 1 {
		for k := range who {
			if err := p.group(ctx, ct, s, who[k:k+1]); err != nil {
				return err
			}
		}
		return nil
	}
	for _, i := range who {
		s.put(i, a, st)
	}
	return nil
}

// commands are those before the content, and the recipients that are in them; others are decided.
func (p *bsmtp) commands(ct *content, s *sheet, who []int) (string, []int) {
	o := &offer{c: &client{ext: batchExtensions, near: true}, ct: ct, mail: s.m.Env.Mail}
	o.utf8 = o.mail.SMTPUTF8 || !ascii(o.mail.Sender)
	for _, i := range who {
		o.utf8 = o.utf8 || !ascii(s.rcpt(i).Addr)
	}
	mail, no := o.mailLine(time.Now())
	if no != nil {
		for _, i := range who {
			s.fail(i, no.enhanced, no.text)
		}
		return "", nil
	}
	var b strings.Builder
	b.WriteString("EHLO " + p.o.Hostname + "\r\n" + mail + "\r\n")
	var in []int
	for _, i := range who {
		line, no := o.rcptLine(s.rcpt(i))
		if no != nil {
			s.fail(i, no.enhanced, no.text)
			continue
		}
		b.WriteString(line + "\r\n")
		in = append(in, i)
	}
	b.WriteString("DATA\r\n")
	return b.String(), in
}

// batch gathers the program's input in a file without a name, ready to be read.
func (p *bsmtp) batch(commands string, ct *content) (*os.File, error) {
	f, err := os.CreateTemp(p.o.TempDir, ".mochila-deliver-*")
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriterSize(f, 64<<10)
	if err := errors.Join(os.Remove(f.Name()), p.write(w, commands, ct), w.Flush()); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (p *bsmtp) write(w io.Writer, commands string, ct *content) error {
	if p.to == "" {
		return writeBatch(w, commands, ct)
	}
	if _, err := io.WriteString(w, p.header()); err != nil {
		return err
	}
	lines := &lineWriter{w: w}
	e := base64.NewEncoder(base64.StdEncoding, lines)
	return errors.Join(writeBatch(e, commands, ct), e.Close(), lines.end())
}

// writeBatch writes one transaction and QUIT.
func writeBatch(w io.Writer, commands string, ct *content) error {
	r, err := ct.open()
	if err != nil {
		return err
	}
	defer r.Close()
	b := bufio.NewWriterSize(w, 32<<10)
	b.WriteString(commands)
	d := &dotWriter{w: b}
	if _, err := d.Write(ct.m.Header); err != nil {
		return err
	}
	if _, err := io.Copy(d, r); err != nil {
		return err
	}
	d.end()
	b.WriteString("QUIT\r\n")
	return b.Flush()
}

func (p *bsmtp) postmaster() string { return "postmaster@" + p.o.Domain }

// header is that of the mail around a batch (RFC 2442).
func (p *bsmtp) header() string {
	return "From: " + p.postmaster() + "\nTo: " + p.to + "\nSubject: batch SMTP\n" +
		"Date: " + time.Now().Format(time.RFC1123Z) + "\nMessage-Id: <" + strings.ToLower(rand.Text()) + "@" + p.o.Domain + ">\n" +
		"Auto-Submitted: auto-generated\nMIME-Version: 1.0\n" +
		"Content-Type: application/batch-SMTP;\n required-extensions=\"8BITMIME,DSN,SIZE,SMTPUTF8,DELIVERBY\"\n" +
		"Content-Transfer-Encoding: base64\n\n"
}

// lineWriter breaks its input into lines of 76 octets.
type lineWriter struct {
	w   io.Writer
	col int
}

// Write breaks what it passes on into lines of 76 characters.
func (l *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(76-l.col, len(p))
		if _, err := l.w.Write(p[:k]); err != nil {
			return 0, err
		}
		if l.col, p = l.col+k, p[k:]; l.col == 76 {
			if err := l.end(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (l *lineWriter) end() error {
	if l.col == 0 {
		return nil
	}
	l.col = 0
	_, err := io.WriteString(l.w, "\n")
	return err
}
