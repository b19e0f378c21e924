// Package letter is the mail side of remote jobs: it takes a job's standard input out of a mail, and writes the mail
// that tells how a job ended (docs/jobs.md, "By mail"). It decides nothing and stores nothing. Both ways it streams: what
// it holds in memory does not grow with the mail.
package letter

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/textproto"
	"strings"
	"time"
	"unicode/utf8"
)

// Result is a mail that tells how a job ended.
type Result struct {
	From      string // address of the sender, with or without a name
	To        string // wire text
	Subject   string
	MessageID string // of this mail, without angle brackets
	InReplyTo string // of the mail that made the job, with its angle brackets; may be empty
	Date      time.Time
	Job       string   // id
	Text      []string // lines for people
	Parts     []Part   // what the program wrote
}

// Part is one stream of output.
type Part struct {
	Name string // stdout or stderr
	Open func() (io.ReadCloser, error)
	Size int64 // bytes; 0 leaves the part out
}

// Write writes the mail: CRLF lines, seven bits, each at most 998 bytes.
func (m *Result) Write(w io.Writer) error {
	out := bufio.NewWriterSize(w, 32<<10)
	var mark [12]byte
	rand.Read(mark[:])
	boundary := "=_" + hex.EncodeToString(mark[:])
	field := func(name, value string) { fmt.Fprintf(out, "%s: %s\r\n", name, value) }
	field("From", m.From)
	if ascii(m.To) {
		field("To", m.To)
	} else {
		field("To", "undisclosed-recipients:;") // an address that only SMTPUTF8 could show
	}
	field("Subject", subject(m.Subject))
	field("Date", m.Date.Format("Mon, 2 Jan 2006 15:04:05 -0700"))
	field("Message-ID", "<"+m.MessageID+">")
	if m.InReplyTo != "" {
		field("In-Reply-To", m.InReplyTo)
		field("References", m.InReplyTo)
	}
	field("Auto-Submitted", "auto-replied")
	field("X-Mochila-Job", m.Job)
	field("MIME-Version", "1.0")
	field("Content-Type", `multipart/mixed; boundary="`+boundary+`"`)
	out.WriteString("\r\n")
	text := strings.Join(m.Text, "\n") + "\n"
	begin := func(h ...string) { fmt.Fprintf(out, "--%s\r\n%s\r\n\r\n", boundary, strings.Join(h, "\r\n")) }
	begin("Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable")
	if err := quoted(out, strings.NewReader(text)); err != nil {
		return err
	}
	out.WriteString("\r\n")
	for _, p := range m.Parts {
		if p.Size == 0 || p.Open == nil {
			continue
		}
		if err := p.write(out, begin); err != nil {
			return fmt.Errorf("%s of the job: %w", p.Name, err)
		}
	}
	fmt.Fprintf(out, "--%s--\r\n", boundary)
	return out.Flush()
}

// maxText is how large output may be that goes as text, so that a mail program shows it.
const maxText = 256 << 10

func (p *Part) write(out *bufio.Writer, begin func(...string)) error {
	readable, err := p.readable()
	if err != nil {
		return err
	}
	r, err := p.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if readable {
		begin(`Content-Type: text/plain; charset=utf-8; name="`+p.Name+`.txt"`, "Content-Transfer-Encoding: quoted-printable",
			`Content-Disposition: inline; filename="`+p.Name+`.txt"`)
		err = quoted(out, r)
	} else {
		begin(`Content-Type: application/octet-stream; name="`+p.Name+`"`, "Content-Transfer-Encoding: base64",
			`Content-Disposition: attachment; filename="`+p.Name+`"`)
		err = Base64(out, r)
	}
	out.WriteString("\r\n")
	return err
}

// readable reports whether all of the output is text.
func (p *Part) readable() (bool, error) {
	if p.Size > maxText {
		return false, nil
	}
	r, err := p.Open()
	if err != nil {
		return false, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil || !utf8.Valid(b) {
		return false, err
	}
	bad := bytes.IndexFunc(b, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0x7f })
	return bad < 0, nil
}

func quoted(out io.Writer, r io.Reader) error {
	q := quotedprintable.NewWriter(out)
	if _, err := io.Copy(q, r); err != nil {
		return err
	}
	return q.Close()
}

// Base64 copies r in lines of 76 characters that end in CRLF.
func Base64(w io.Writer, r io.Reader) error {
	l := &lines{w: w}
	e := base64.NewEncoder(base64.StdEncoding, l)
	if _, err := io.Copy(e, r); err != nil {
		return err
	}
	if err := e.Close(); err != nil {
		return err
	}
	return l.end()
}

// lines breaks what is written into lines.
type lines struct {
	w io.Writer
	n int
}

func (l *lines) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		k := min(76-l.n, len(p))
		if _, err := l.w.Write(p[:k]); err != nil {
			return done, err
		}
		done, p = done+k, p[k:]
		if l.n += k; l.n == 76 {
			if err := l.end(); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

func (l *lines) end() error {
	if l.n == 0 {
		return nil
	}
	l.n = 0
	_, err := io.WriteString(l.w, "\r\n")
	return err
}

// subject makes one header value of any text, folded where it must be.
func subject(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	if ascii(s) {
		return textproto.TrimString(s)
	}
	re := ""
	if rest, ok := strings.CutPrefix(s, "Re: "); ok {
		re, s = "Re: ", rest // where every mail program finds it
	}
	return re + strings.ReplaceAll(mime.QEncoding.Encode("utf-8", s), "?= =?", "?=\r\n =?")
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
