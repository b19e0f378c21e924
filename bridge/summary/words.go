package summary

import (
	"bufio"
	"fmt"
	"mime/quotedprintable"
	"net/mail"
	"strings"

	"github.com/emersion/go-message"

	"mochila/internal/envelope"
)

// section writes a part of text for people.
func section(out *bufio.Writer, boundary, text string) {
	fmt.Fprintf(out, "--%s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\nContent-Disposition: inline\r\n\r\n", boundary)
	q := quotedprintable.NewWriter(out)
	q.Write([]byte(text)) // what goes wrong with out is told by its Flush
	q.Close()
	out.WriteString("\r\n")
}

// note is what stands in front.
func (c *Choice) note(n Note) string {
	m := c.m
	var b strings.Builder
	b.WriteString("This is a summary of a mail. ")
	switch {
	case c.Of == 1:
		fmt.Fprintf(&b, "One part of it, %s, is held at %s", size(c.heldSize()), n.Node)
	default:
		fmt.Fprintf(&b, "%d parts of it, %s, are held at %s", c.Of, size(c.heldSize()), n.Node)
	}
	b.WriteString(" because the link to you is slow or costly.\n\nTo get the whole mail as it was sent, reply to this one; the reply may be empty. It will come as a mail of its own.")
	b.WriteString("\nNobody reads what you write in that reply.")
	if a := m.Author(); a != "" {
		b.WriteString(" To write to the author, use this address:\n  " + a)
	}
	b.WriteString("\n")
	if !n.Until.IsZero() {
		fmt.Fprintf(&b, "\nIt is held until %s.\n", n.Until.UTC().Format("2 January 2006, 15:04 UTC"))
	}
	switch {
	case m.Sealing == Signed:
		b.WriteString("\nThe mail is SIGNED. Nothing in this summary is signed or verified; only the whole mail can be.\n")
	case m.Sealing == Encrypted:
		b.WriteString("\nThe mail is ENCRYPTED. Nothing of it can be shown here; only the whole mail can be read.\n")
	case m.DKIM:
		b.WriteString("\nThe mail has a signature of its mail system (DKIM). This summary has none; the whole mail still verifies.\n")
	}
	if m.Broken != "" {
		b.WriteString("\nThe mail cannot be taken apart (" + m.Broken + "), so only its header is here.\n")
	}
	if len(m.lost) > 0 {
		b.WriteString("\nLeft out because they are too long: " + lostNames(m.lost) + ".\n")
	}
	b.WriteString("\nHeld:\n")
	shown := 0
	for i, p := range m.Parts {
		if c.goes[i] == p.Length() {
			continue
		}
		if shown++; shown > 50 {
			fmt.Fprintf(&b, "  and %d more\n", c.Of-50)
			break
		}
		b.WriteString("  " + c.what(i) + "\n")
	}
	return b.String()
}

// lostNames lists header fields.
func lostNames(lost []string) string {
	var out []string
	for _, n := range lost {
		n = Clean(n, 40)
		out = append(out, strings.ToUpper(n[:1])+n[1:])
	}
	return strings.Join(out, ", ")
}

// place stands where a part is missing.
func (c *Choice) place(i int, n Note) string {
	if c.goes[i] > 0 {
		p := c.m.Parts[i]
		return fmt.Sprintf("[The text goes on: %s of %s are held at %s. Reply to this mail to get all of it.]\n", size(p.Length()-c.goes[i]), size(p.Length()), n.Node)
	}
	return fmt.Sprintf("[Held at %s: %s. Reply to this mail to get it.]\n", n.Node, c.what(i))
}

// what names a part.
func (c *Choice) what(i int) string {
	p := c.m.Parts[i]
	kind := Clean(p.Type, 100)
	switch {
	case p.whole:
		return fmt.Sprintf("the whole mail (%s, %s)", kind, size(p.Size()))
	case c.goes[i] > 0:
		return fmt.Sprintf("the rest of a text (%s, %s of %s)", kind, size(p.Length()-c.goes[i]), size(p.Length()))
	case c.m.twin(p):
		return fmt.Sprintf("the same text as HTML (%s, %s)", kind, size(p.Size()))
	case p.Name != "":
		return fmt.Sprintf("%s (%s, %s)", Clean(p.Name, 120), kind, size(p.Size()))
	case p.isText():
		return fmt.Sprintf("a text (%s, %s)", kind, size(p.Size()))
	}
	return fmt.Sprintf("a part without a name (%s, %s)", kind, size(p.Size()))
}

// heldSize is Held as it will be on the reader's disk.
func (c *Choice) heldSize() (n int64) {
	for i, p := range c.m.Parts {
		switch {
		case c.goes[i] == 0:
			n += p.Size()
		default:
			n += p.Length() - c.goes[i]
		}
	}
	return n
}

// Author is where an answer to the mail would have gone, for people; "" when that is not known.
func (m *Mail) Author() string {
	for _, name := range []string{"reply-to", "from"} {
		v := m.value(name)
		if v == "" {
			continue
		}
		list, err := mail.ParseAddressList(v)
		if err != nil {
			return Clean(v, 200)
		}
		var out []string
		for _, a := range list {
			s := a.Address
			if a.Name != "" {
				s = a.Name + " <" + s + ">"
			}
			out = append(out, s)
		}
		return Clean(strings.Join(out, ", "), 200)
	}
	return ""
}

// Subject is the mail's subject, decoded, on one line; "" when it has none.
func (m *Mail) Subject() string {
	h := message.Header{}
	h.Set("Subject", m.value("subject"))
	s, err := h.Text("Subject")
	if err != nil {
		s = m.value("subject")
	}
	return Clean(s, 200)
}

// Clean makes foreign text fit to be shown: one line of at most most characters, without controls and without those that
// turn the direction of writing or take no room. A long text loses its middle, so that the end of a file name stays.
func Clean(s string, most int) string {
	r := []rune(strings.TrimSpace(envelope.Printable(s)))
	if len(r) <= most {
		return string(r)
	}
	end := most / 4
	return string(r[:most-end-1]) + "…" + string(r[len(r)-end:])
}

// size shows a number of bytes.
func size(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d bytes", n)
	case n < 1_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
