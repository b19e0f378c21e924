// Package bounce writes delivery status notifications (RFC 3464, RFC 6533 for SMTPUTF8 mail) and knows when RFC 3461
// wants one. It decides nothing about the queue and sends nothing: Compose returns a mail, somebody else accepts it.
//
// A notification always has the null sender, is never wanted for a mail that had the null sender, and is made of
// lines that end in CRLF, whatever strangers put into the texts it quotes.
package bounce

import (
	"bytes"
	"io"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// MaxReturn is the default of Notice.MaxReturn.
const MaxReturn = 50_000

// maxHeader bounds the part of an original's header that is quoted.
const maxHeader = 64 << 10

// Notice is what a notification tells.
type Notice struct {
	ID       envelope.ID        // of the notification, for its Message-Id and boundary
	MTA      string             // this node's mail domain: Reporting-MTA
	Node     string             // this node's name, for people; may be empty
	From     string             // "MAILER-DAEMON@camp.example"
	Original *envelope.Envelope // a mail with a sender
	Outcomes []envelope.Outcome // the recipients to tell of, at least one; only those that are Wanted
	// Content opens the original; nil when it is gone. Header is then quoted in its place, if there is one.
	Content   func() (io.ReadCloser, error)
	Header    []byte
	MaxReturn int64     // a failed mail is returned whole up to this many bytes, else its header; 0 = 50,000
	Until     time.Time // Will-Retry-Until of delayed recipients; zero = not said
	Now       time.Time
	Explain   []string // lines for people: the route, the last contact, the next one
}

// Wanted reports whether RFC 3461 section 5.2 wants a notification to the sender of env when the recipient with that
// index meets that end. Without NOTIFY, failures and delays are told; the null sender is never told anything.
func Wanted(env *envelope.Envelope, rcpt int, action envelope.Action) bool {
	m := env.Mail
	if m == nil || m.Sender == "" || rcpt < 0 || rcpt >= len(m.Recipients) {
		return false
	}
	n := m.Recipients[rcpt].Notify
	if n == 0 {
		n = envelope.NotifyFailure | envelope.NotifyDelay
	}
	if n&envelope.NotifyNever != 0 {
		return false
	}
	switch action {
	case envelope.ActionFailed:
		return n&envelope.NotifyFailure != 0
	case envelope.ActionDelayed:
		return n&envelope.NotifyDelay != 0
	case envelope.ActionRelayed:
		// A mail system that does not know the deadline has it now, or a trace was asked for (RFC 2852).
		return n&envelope.NotifySuccess != 0 || m.By != nil && (m.By.Trace || !m.By.Return)
	case envelope.ActionDelivered, envelope.ActionExpanded:
		return n&envelope.NotifySuccess != 0
	}
	return false
}

// AutoSubmitted reports whether a header says that no person wrote the mail: Auto-Submitted other than "no" (RFC 3834).
// Nobody waits for a report on such a mail, and a report on it may call for the next. Mail of lists is not meant: their
// software lives by reports.
func AutoSubmitted(header []byte) bool {
	auto := false
	eachField(header, func(name, value string) bool {
		if strings.EqualFold(name, "auto-submitted") {
			word := strings.TrimSpace(strings.FieldsFunc(strings.ToLower(value)+" ", func(r rune) bool { return r == ';' || r == '(' })[0])
			auto = word != "no" && word != ""
		}
		return !auto
	})
	return auto
}

// eachField walks the unfolded fields of a header until f returns false or the header ends.
func eachField(header []byte, f func(name, value string) bool) {
	var name, value string
	for len(header) > 0 {
		line := header
		if i := bytes.IndexByte(header, '\n'); i >= 0 {
			line, header = header[:i], header[i+1:]
		} else {
			header = nil
		}
		line = bytes.TrimRight(line, "\r")
		if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			value += " " + strings.TrimSpace(string(line))
			continue
		}
		if name != "" && !f(name, value) {
			return
		}
		name = ""
		if len(line) == 0 {
			return
		}
		if k, v, ok := strings.Cut(string(line), ":"); ok {
			name, value = strings.TrimSpace(k), v
		}
	}
	if name != "" {
		f(name, value)
	}
}

// Compose writes the notification. It always succeeds: an original that cannot be read is left out, with a line that
// says so. The Mail has the null sender and the original's sender as recipient; its Client is the caller's to fill in.
//
// QUIRK: RFC 8689 section 5 would have the notification of a REQUIRETLS mail require TLS too. It does not here, as it
// would then be lost wherever the local mail system offers no TLS; instead, as that section says, it never holds more
// than the header.
func Compose(n Notice) (*envelope.Mail, []byte) {
	d := &draft{n: &n, mail: n.Original.Mail}
	d.kind = d.worst()
	d.quote()
	d.utf8 = !ascii(d.mail.Sender) || !ascii(n.From) || d.mail.SMTPUTF8 && d.header8
	for _, o := range n.Outcomes {
		d.utf8 = d.utf8 || !ascii(o.Addr)
	}
	var parts [3]bytes.Buffer
	d.notification(&parts[0])
	d.status(&parts[1])
	d.returned(&parts[2])
	b := d.assemble(parts[:])
	m := &envelope.Mail{
		Recipients: []envelope.Recipient{{Addr: d.mail.Sender}},
		SMTPUTF8:   d.utf8,
		Body:       "7BIT",
	}
	if !ascii(string(b)) {
		m.Body = "8BITMIME"
	}
	return m, b
}

// draft is a notification in the making.
type draft struct {
	n       *Notice
	mail    *envelope.Mail
	kind    envelope.Action // the worst news in it
	utf8    bool            // RFC 6533 types
	quoted  []byte          // of the original, CRLF lines
	whole   bool            // quoted is all of it
	header8 bool
	why     string // why quoted is not what one may expect
}

// worst is the action that names the notification.
func (d *draft) worst() envelope.Action {
	var kind envelope.Action
	for _, o := range d.n.Outcomes {
		switch {
		case o.Action == envelope.ActionFailed:
			return o.Action
		case kind == envelope.ActionPending || o.Action == envelope.ActionDelayed:
			kind = o.Action
		}
	}
	return kind
}

// assemble puts the parts together.
func (d *draft) assemble(parts []bytes.Buffer) []byte {
	var all []byte
	for i := range parts {
		all = append(all, parts[i].Bytes()...)
	}
	boundary := d.n.ID.String() + "/" + token(d.n.MTA)
	for bytes.Contains(all, []byte("--"+boundary)) {
		boundary = "=" + boundary
	}
	var b bytes.Buffer
	field(&b, "Date", d.n.Now.Format(time.RFC1123Z))
	field(&b, "From", "Mail Delivery System <"+envelope.Printable(d.n.From)+">")
	field(&b, "Subject", subject(d.kind))
	path(&b, "To", "<"+envelope.Printable(d.mail.Sender)+">")
	field(&b, "Auto-Submitted", "auto-replied")
	field(&b, "Message-Id", "<"+d.n.ID.String()+"@"+token(d.n.MTA)+">")
	field(&b, "MIME-Version", "1.0")
	b.WriteString("Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"" + boundary + "\"\r\n")
	if !ascii(string(all)) {
		field(&b, "Content-Transfer-Encoding", "8bit")
	}
	b.WriteString("\r\nThis is a MIME-encapsulated message.\r\n")
	for i := range parts {
		b.WriteString("\r\n--" + boundary + "\r\n")
		b.Write(parts[i].Bytes())
	}
	b.WriteString("\r\n--" + boundary + "--\r\n")
	return b.Bytes()
}

func subject(kind envelope.Action) string {
	switch kind {
	case envelope.ActionFailed:
		return "Undelivered Mail Returned to Sender"
	case envelope.ActionDelayed:
		return "Delayed Mail (still being retried)"
	}
	return "Successful Mail Delivery Report"
}
