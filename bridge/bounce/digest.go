package bounce

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// Digest is several notifications to one sender as one mail: a list in words, and the notifications, whole, as the parts of
// a multipart/digest (RFC 2046 section 5.1.5), where programs find each as it would have come alone.
type Digest struct {
	ID       envelope.ID
	MTA      string // this node's mail domain
	Node     string // this node's name; may be empty
	From     string
	To       string   // the sender of all the mails
	Notices  [][]byte // as Compose wrote them, at least one
	SMTPUTF8 bool     // some of them need it
	MaxBytes int      // of notifications that are added; those beyond it are only in the list
	Now      time.Time
}

// Compose writes the digest. It always succeeds.
func (g *Digest) Compose() (*envelope.Mail, []byte) {
	var list, parts bytes.Buffer
	who := g.MTA
	if g.Node != "" && g.Node != g.MTA {
		who += " (mochila node " + g.Node + ")"
	}
	fmt.Fprintf(&list, "This is the mail system at %s.\n\n", envelope.Printable(who))
	fmt.Fprintf(&list, "I'm sorry to have to tell you that %d of your mails could not be delivered,\nand will not be tried again. "+
		"So that you do not get as many reports, here is\none of all. The single reports are attached.\n\n", len(g.Notices))
	outer, inner := g.ID.String()+"/"+token(g.MTA), g.ID.String()+".digest/"+token(g.MTA)
	for bytes.Contains(bytes.Join(g.Notices, nil), []byte("--"+inner)) || bytes.Contains(bytes.Join(g.Notices, nil), []byte("--"+outer)) {
		outer, inner = "="+outer, "="+inner
	}
	left := 0
	for _, n := range g.Notices {
		for _, l := range failures(n) {
			list.WriteString(envelope.Printable(l) + "\n")
		}
		if g.MaxBytes > 0 && parts.Len()+len(n) > g.MaxBytes {
			left++
			continue
		}
		parts.WriteString("\r\n--" + inner + "\r\n\r\n")
		parts.Write(n)
	}
	if left > 0 {
		fmt.Fprintf(&list, "\nThe last %d reports are not attached: they would make this one too large.\n", left)
	}
	var text bytes.Buffer
	for l := range strings.Lines(list.String()) {
		wrap(&text, strings.TrimSuffix(l, "\n"))
	}
	eight := !ascii(text.String()) || !ascii(parts.String())
	var b bytes.Buffer
	field(&b, "Date", g.Now.Format(time.RFC1123Z))
	field(&b, "From", "Mail Delivery System <"+envelope.Printable(g.From)+">")
	field(&b, "Subject", fmt.Sprintf("Undelivered Mail: %d reports", len(g.Notices)))
	path(&b, "To", "<"+envelope.Printable(g.To)+">")
	field(&b, "Auto-Submitted", "auto-replied")
	field(&b, "Message-Id", "<"+g.ID.String()+"@"+token(g.MTA)+">")
	field(&b, "MIME-Version", "1.0")
	b.WriteString("Content-Type: multipart/mixed;\r\n\tboundary=\"" + outer + "\"\r\n")
	cte := func() {
		if eight {
			field(&b, "Content-Transfer-Encoding", "8bit")
		}
	}
	cte()
	b.WriteString("\r\nThis is a MIME-encapsulated message.\r\n\r\n--" + outer + "\r\n")
	field(&b, "Content-Type", "text/plain; charset=utf-8")
	cte()
	b.WriteString("\r\n")
	b.Write(text.Bytes())
	b.WriteString("\r\n--" + outer + "\r\nContent-Type: multipart/digest;\r\n\tboundary=\"" + inner + "\"\r\n")
	cte()
	b.Write(parts.Bytes())
	b.WriteString("\r\n--" + inner + "--\r\n\r\n--" + outer + "--\r\n")
	m := &envelope.Mail{Recipients: []envelope.Recipient{{Addr: g.To}}, SMTPUTF8: g.SMTPUTF8, Body: "7BIT"}
	if eight {
		m.Body = "8BITMIME"
	}
	return m, b.Bytes()
}

// failures are the recipients that a notification tells of, each with its status, and the subject of the mail.
func failures(notice []byte) (lines []string) {
	var rcpt, status, subject string
	part := 0
	for l := range bytes.Lines(notice) {
		s := strings.TrimRight(string(l), "\r\n")
		switch {
		case strings.HasPrefix(s, "Content-Type: message/delivery-status"), strings.HasPrefix(s, "Content-Type: message/global-delivery-status"):
			part = 1
		case part == 1 && strings.HasPrefix(s, "Final-Recipient: "):
			_, rcpt, _ = strings.Cut(s, "; ")
		case part == 1 && strings.HasPrefix(s, "Status: "):
			if status = s[len("Status: "):]; rcpt != "" {
				lines = append(lines, "<"+rcpt+">: "+status)
			}
			rcpt = ""
		case part == 1 && strings.HasPrefix(s, "Content-Type: "):
			part = 2
		case part == 2 && subject == "" && len(s) > 9 && strings.EqualFold(s[:9], "subject: "):
			subject = s[9:]
		}
	}
	for i := range lines {
		if subject != "" {
			lines[i] += " (" + subject + ")"
		}
	}
	return lines
}
