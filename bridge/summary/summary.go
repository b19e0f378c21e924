// Package summary makes the short form of a large mail (docs/summary.md): it finds the parts of a mail, chooses what fits
// into a limit, and writes a mail of its own with that, in which the rest is named. It decides nothing about the queue
// and stores nothing.
//
// It reads a mail twice, once to look and once to copy, and holds lines of it in memory, never parts. It never changes
// the mail. What strangers wrote gets into the summary only as fields and parts that were such before, or as text
// without control characters; a file name is never part of a header.
package summary

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// leastHeld is how much must be held to make a summary worth its note.
const leastHeld = 2 << 10

// leastText is how much of a text is worth showing when not all of it is.
const leastText = 256

// Choice is what of a mail goes at once.
type Choice struct {
	m    *Mail
	goes []int64 // of each part: bytes that go; its length: all of it
	Held int64   // bytes that stay
	Of   int     // parts of which something stays
}

// Choose fits a mail into limit bytes of text and attachments. It returns nil when the mail may as well go whole.
func (m *Mail) Choose(limit int64) *Choice {
	c := &Choice{m: m, goes: make([]int64, len(m.Parts))}
	left := limit
	if m.Sealing != Encrypted && m.Broken == "" {
		for i, p := range m.Parts {
			if p.isText() && !m.twin(p) {
				if c.goes[i] = min(p.Length(), left); c.goes[i] < p.Length() && left < leastText {
					c.goes[i] = 0
				}
				left -= c.goes[i]
			}
		}
		for i, p := range m.Parts {
			if !p.isText() && p.Length() <= left && !signature(p.Type) {
				c.goes[i] = p.Length()
				left -= c.goes[i]
			}
		}
	}
	for i, p := range m.Parts {
		if c.goes[i] < p.Length() {
			c.Held += p.Length() - c.goes[i]
			c.Of++
		}
	}
	if c.Held < leastHeld {
		return nil
	}
	return c
}

// twin reports whether a part says as HTML what another says as plain text.
func (m *Mail) twin(p *Part) bool {
	if p.Type != "text/html" || p.alt == 0 {
		return false
	}
	for _, x := range m.Parts {
		if x.alt == p.alt && x.isText() && x.Type == "text/plain" && x.Length() > 0 {
			return true
		}
	}
	return false
}

// signature reports whether a part is of no use without the others.
func signature(kind string) bool {
	switch kind {
	case "application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature", "application/pgp-encrypted":
		return true
	}
	return false
}

// Note is what a summary says besides the mail's own words.
type Note struct {
	ID        string // of the mail, in the queue that holds it
	MessageID string // of the summary, without angle brackets
	ReplyTo   string // who answers there asks for the whole mail
	Node      string // that holds it
	Until     time.Time
	Boundary  string // of the summary; nobody can know it before
}

// Write writes the summary; r gives the same mail that was read. Its error is w's or r's.
func (c *Choice) Write(w io.Writer, r io.ReadSeeker, n Note) error {
	out := bufio.NewWriterSize(w, 32<<10)
	c.header(out, n)
	section(out, n.Boundary, c.note(n))
	for i, p := range c.m.Parts {
		if p.Length() == 0 {
			continue
		}
		if c.goes[i] > 0 {
			if err := c.copyPart(out, r, i, n.Boundary); err != nil {
				return fmt.Errorf("copy part %d: %w", i+1, err)
			}
		}
		if c.goes[i] < p.Length() && !c.m.twin(p) { // of which nothing is missed
			section(out, n.Boundary, c.place(i, n))
		}
	}
	fmt.Fprintf(out, "--%s--\r\n", n.Boundary)
	return out.Flush()
}

func (c *Choice) header(out *bufio.Writer, n Note) {
	for _, f := range c.m.fields {
		if ofSummary(f.name) {
			writeRaw(out, f.raw)
		}
	}
	fmt.Fprintf(out, "Message-ID: <%s>\r\n", n.MessageID)
	own := ids(c.m.value("message-id"))
	if len(own) > 0 {
		fmt.Fprintf(out, "In-Reply-To: %s\r\n", own[0])
	}
	chain := ids(c.m.value("references"))
	if len(chain) == 0 {
		chain = ids(c.m.value("in-reply-to"))
	}
	if len(own) > 0 {
		chain = append(chain, own[0])
	}
	if k := len(chain) - 20; k > 0 {
		chain = append(chain[:1], chain[k+1:]...) // RFC 5537 section 3.4.4: the first and the newest
	}
	if len(chain) > 0 {
		fmt.Fprintf(out, "References: %s\r\n", strings.Join(chain, "\r\n "))
	}
	fmt.Fprintf(out, "Reply-To: <%s>\r\nX-Mochila-Summary: %s\r\nMIME-Version: 1.0\r\n", n.ReplyTo, n.ID)
	fmt.Fprintf(out, "Content-Type: multipart/mixed; boundary=\"%s\"\r\n\r\n", n.Boundary)
}

// writeRaw writes a field as it is, but for control characters. Its lines end in CRLF; the last may have lost its end with
// the mail.
func writeRaw(out *bufio.Writer, raw []byte) {
	raw = bytes.TrimRight(raw, "\r\n")
	for i, c := range raw {
		fold := c == '\r' && bytes.HasPrefix(raw[i:], []byte("\r\n")) || c == '\n' && i > 0 && raw[i-1] == '\r'
		if c < ' ' && c != '\t' && !fold || c == 0x7f {
			c = '?'
		}
		out.WriteByte(c)
	}
	out.WriteString("\r\n")
}

// value is the unfolded value of a field of the mail, "" when it has none.
func (m *Mail) value(name string) string {
	f := (&block{fields: m.fields}).find(name)
	if f == nil {
		return ""
	}
	_, v, _ := strings.Cut(string(f.raw), ":")
	return strings.Join(strings.Fields(v), " ")
}

// ids are the message ids in a field.
func ids(value string) (out []string) {
	for _, w := range strings.Fields(value) {
		if len(w) > 2 && len(w) < 900 && w[0] == '<' && w[len(w)-1] == '>' && strings.IndexFunc(w, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0 {
			out = append(out, w)
		}
	}
	return out
}

// copyPart writes what goes of a part.
func (c *Choice) copyPart(out *bufio.Writer, r io.ReadSeeker, i int, boundary string) error {
	p := c.m.Parts[i]
	fmt.Fprintf(out, "--%s\r\n", boundary)
	for _, f := range p.fields {
		writeRaw(out, f.raw)
	}
	out.WriteString("\r\n")
	if _, err := r.Seek(p.from, io.SeekStart); err != nil {
		return err
	}
	if c.goes[i] < p.Length() {
		return cut(out, io.LimitReader(r, p.Length()), c.goes[i], p.encoding)
	}
	n, err := io.Copy(out, io.LimitReader(r, p.Length()))
	if err == nil && n < p.Length() {
		err = io.ErrUnexpectedEOF
	}
	out.WriteString("\r\n")
	return err
}

// cut copies as many whole lines of encoded text as fit into n bytes; of a first line that is longer, a piece.
func cut(out *bufio.Writer, r io.Reader, n int64, encoding string) error {
	br := bufio.NewReaderSize(r, 64<<10)
	chars := 0 // of base64
	done := int64(0)
	for {
		line, err := br.ReadSlice('\n')
		if err != nil && err != io.EOF && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		text := bytes.TrimRight(line, "\r\n")
		over := done+int64(len(line)) > n
		if over && done == 0 {
			text = piece(text[:min(int64(len(text)), n)], encoding)
		}
		if !over || done == 0 {
			out.Write(text)
			chars += len(text)
			if err == nil || over {
				out.WriteString("\r\n")
			}
		}
		if done += int64(len(line)); over || err == io.EOF {
			break
		}
	}
	if encoding == "base64" { // a group of four that was begun is filled up
		switch chars % 4 {
		case 1:
			out.WriteString("A==\r\n")
		case 2:
			out.WriteString("==\r\n")
		case 3:
			out.WriteString("=\r\n")
		}
	}
	_, err := out.WriteString("\r\n")
	return err
}

// piece is the beginning of a line that is cut inside: no escape and no character is left half.
func piece(text []byte, encoding string) []byte {
	switch encoding {
	case "base64":
		return text[:len(text)&^3]
	case "quoted-printable":
		if i := bytes.LastIndexByte(text, '='); i >= 0 && i >= len(text)-2 {
			return text[:i]
		}
		return text
	}
	for k := 0; k < 3 && len(text) > 0 && !utf8.Valid(text[max(0, len(text)-4):]) && text[len(text)-1] >= 0x80; k++ {
		if c := text[len(text)-1]; c >= 0xc0 { // the first byte of a character
			return text[:len(text)-1]
		}
		text = text[:len(text)-1]
	}
	return text
}
