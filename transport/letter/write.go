package letter

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"
)

// Marks by which a mail server in between, and this program itself, knows a letter without opening it.
const (
	// Field is the header field that every letter has.
	Field = "Mochila-Packet"
	// boundary begins the MIME boundary of every letter: it survives where header fields are taken out.
	boundary = "mochila-packet-"
)

// Cover is what a letter says to the mail servers on its way.
type Cover struct {
	From, To string // addresses as wire text, without angle brackets
	Date     time.Time
}

// Overhead is the size of a letter beside the Base64 of its part, at most, for addresses of ordinary length.
const Overhead = 2 << 10

// Write writes the letter with one part, lines ending in LF: p.Length bytes of data. When it fails, what was written
// must not be sent.
func Write(w io.Writer, c Cover, p Part, data io.Reader) error {
	b := bufio.NewWriter(w)
	name := p.Name()
	mark := fmt.Sprintf("%s%s-%d", boundary, name[:16], p.Offset)
	_, domain, _ := strings.Cut(c.From, "@")
	fmt.Fprintf(b, "From: %s\nTo: %s\nSubject: mochila packet %s (bytes %d to %d of %d)\nDate: %s\n",
		angle(c.From), angle(c.To), name[:16], p.Offset, p.Offset+p.Length, p.Size, c.Date.Format(time.RFC1123Z))
	// the time keeps a letter that is sent again from being taken for a copy of the first
	fmt.Fprintf(b, "Message-ID: <%s%s.%d.%x@%s>\n%s: %s; offset=%d; length=%d; size=%d\n", idMark, name, p.Offset, c.Date.UnixMilli(), domain,
		Field, name, p.Offset, p.Length, p.Size)
	fmt.Fprintf(b, "Auto-Submitted: auto-generated\nX-Auto-Response-Suppress: All\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"%s\"\n\n", mark)
	fmt.Fprintf(b, "--%s\nContent-Type: text/plain; charset=us-ascii\n\nA mail server sends this mail to another one. Its attachment holds mail that is\nsealed; the program mochila at the receiver's side reads it. It is not meant for people.\n\n", mark)
	fmt.Fprintf(b, "--%s\nContent-Type: application/octet-stream; name=\"%s.mochila\"\nContent-Disposition: attachment; filename=\"%s.mochila\"\nContent-Transfer-Encoding: base64\n\n", mark, name[:16], name[:16])
	lines := &lines{w: b}
	enc := base64.NewEncoder(base64.StdEncoding, lines)
	if err := writePart(enc, p, data); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	fmt.Fprintf(b, "\n--%s--\n", mark)
	return b.Flush()
}

// angle writes an address as a header field does; one that needs more than ASCII is left as it is (RFC 6532).
func angle(addr string) string { return "<" + addr + ">" }

// lines breaks what is written into lines of 76 characters.
type lines struct {
	w *bufio.Writer
	n int
}

func (l *lines) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if l.n == 76 {
			l.w.WriteByte('\n')
			l.n = 0
		}
		k := min(76-l.n, len(rest))
		if _, err := l.w.Write(rest[:k]); err != nil {
			return 0, err
		}
		l.n += k
		rest = rest[k:]
	}
	return len(p), nil
}

// Sniffer looks at the header of a mail that is written to it, and at nothing behind it. The zero value is ready.
type Sniffer struct {
	line  []byte
	ended bool
	found bool
}

// maxHeader bounds the header of a mail that is looked at.
const maxHeader = 256 << 10

// Letter reports whether what was written so far is a letter.
func (s *Sniffer) Letter() bool { return s.found }

// Write implements io.Writer; it never fails.
func (s *Sniffer) Write(p []byte) (int, error) {
	for _, c := range p {
		if s.ended {
			break
		}
		if c != '\n' {
			if len(s.line) < 1000 {
				s.line = append(s.line, c)
			}
			continue
		}
		line := strings.TrimRight(string(s.line), "\r")
		s.line = s.line[:0]
		low := strings.ToLower(line)
		switch {
		case line == "":
			s.ended = true
		case strings.HasPrefix(low, strings.ToLower(Field)+":"), strings.Contains(low, "boundary="+boundary), strings.Contains(low, "boundary=\""+boundary):
			s.found, s.ended = true, true
		}
	}
	return len(p), nil
}
