package summary

import (
	"bufio"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"
	"time"
)

// Automatic reports whether a program wrote the mail, by its header: such a mail is no request of a reader.
func (m *Mail) Automatic() bool {
	auto, _, _ := strings.Cut(strings.ToLower(m.value("auto-submitted")), ";")
	auto, _, _ = strings.Cut(auto, "(")
	if auto = strings.TrimSpace(auto); auto != "" && auto != "no" || m.Report {
		return true
	}
	switch strings.ToLower(m.value("precedence")) {
	case "bulk", "junk", "list", "auto_reply":
		return true
	}
	return false
}

// MessageID is the mail's own, with its angle brackets; "" when it has none that can be quoted.
func (m *Mail) MessageID() string {
	if list := ids(m.value("message-id")); len(list) > 0 {
		return list[0]
	}
	return ""
}

// Answer is the short mail to a reader who has asked for the whole one.
type Answer struct {
	From, To  string // addresses
	Node      string
	Subject   string // of the request
	InReplyTo string // its message id, with angle brackets; may be empty
	MessageID string // of the answer, without
	Date      time.Time
	ID        string // of the mail that was asked for
	Size      int64
	Author    string // of that mail, for people; may be empty
}

// Write writes the answer: CRLF lines of seven bits.
func (a Answer) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	field := func(name, value string) { fmt.Fprintf(out, "%s: %s\r\n", name, value) }
	field("From", fmt.Sprintf("mochila at %s <%s>", Clean(a.Node, 63), Clean(a.From, 320)))
	to := "<" + Clean(a.To, 320) + ">"
	if strings.IndexFunc(to, func(r rune) bool { return r >= 0x80 }) >= 0 {
		to = "undisclosed-recipients:;" // an address that only SMTPUTF8 could show
	}
	field("To", to)
	subject := Clean(a.Subject, 200)
	if len(subject) < 3 || !strings.EqualFold(subject[:3], "re:") {
		subject = "Re: " + subject
	}
	field("Subject", strings.ReplaceAll(mime.QEncoding.Encode("utf-8", subject), "?= =?", "?=\r\n =?"))
	field("Date", a.Date.Format(time.RFC1123Z))
	field("Message-ID", "<"+a.MessageID+">")
	if a.InReplyTo != "" {
		field("In-Reply-To", a.InReplyTo)
		field("References", a.InReplyTo)
	}
	field("Auto-Submitted", "auto-replied")
	field("MIME-Version", "1.0")
	field("Content-Type", "text/plain; charset=utf-8")
	field("Content-Transfer-Encoding", "quoted-printable")
	out.WriteString("\r\n")
	q := quotedprintable.NewWriter(out)
	fmt.Fprintf(q, "The mail that you asked for is on its way from %s: %s, id %s there.\nIt comes as a mail of its own.\n\n", Clean(a.Node, 63), size(a.Size), a.ID)
	fmt.Fprintf(q, "What you may have written in your request was read by nobody.")
	if a.Author != "" {
		fmt.Fprintf(q, " To write to the author, use this address:\n  %s", Clean(a.Author, 200))
	}
	fmt.Fprintf(q, "\n")
	if err := q.Close(); err != nil {
		return err
	}
	return out.Flush()
}
