package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"unicode/utf8"

	"mochila/internal/envelope"
	"mochila/internal/submit/frame"
	"mochila/smtpd"
	"mochila/smtpd/submission"
	"mochila/spool/maildrop"
)

var (
	_ maildrop.Desk   = (*dropDesk)(nil)
	_ submission.Desk = (*submitDesk)(nil)
)

func (d *dropDesk) Submit(ctx context.Context, name string, m *envelope.Mail) (frame.Intake, error) {
	return (*Node)(d).bridge.SubmitFile(ctx, name, m)
}

func (d *dropDesk) Seen(name string) bool { return (*Node)(d).bridge.SeenFile(name) }

func (d *dropDesk) Forget(names []string) error { return (*Node)(d).bridge.ForgetFiles(names) }

func (d *dropDesk) Refuse(reason, from string, r io.Reader) error {
	return (*Node)(d).quarantine(reason, from, r)
}

// submitDesk is the node as local programs see it through the submission socket.
type submitDesk struct {
	*Node
	smtp *smtpd.Server // for -bs; speaks SMTP with a local user
}

func (d *submitDesk) Submit(ctx context.Context, m *envelope.Mail) (smtpd.Intake, error) {
	return d.bridge.Submit(ctx, m)
}

func (d *submitDesk) List(ctx context.Context, uid int64, all bool, w io.Writer) error {
	l := mailqWriter{w: w}
	filter := queueFilter{}
	if !all {
		filter.uid = uid + 1
	}
	err := d.eachItem(ctx, filter, func(it QueueItem) error { return l.item(it) })
	if err != nil {
		return err
	}
	return l.end()
}

func (d *submitDesk) Flush(ctx context.Context, _ int64, site string) error {
	return d.flush(ctx, site)
}

func (d *submitDesk) Verify(_ context.Context, addr string) (string, error) {
	t := d.routeTest("", addr, 0)
	if !t.OK {
		return "", t.Status
	}
	return t.Result, nil
}

func (d *submitDesk) ServeSMTP(ctx context.Context, conn net.Conn, uid int64) {
	d.smtp.ServeConn(ctx, conn, envelope.Client{Proto: "local", UID: uid + 1, User: submission.LoginName(uid)})
}

// mailqWriter prints the queue in the layout of Postfix's mailq.
type mailqWriter struct {
	w     io.Writer
	count int
	bytes int64
}

func (m *mailqWriter) item(it QueueItem) error {
	if m.count == 0 {
		if _, err := io.WriteString(m.w, MailqHeader); err != nil {
			return err
		}
	}
	m.count++
	m.bytes += it.MessageSize
	_, err := io.WriteString(m.w, MailqEntry(it))
	return err
}

func (m *mailqWriter) end() error {
	_, err := io.WriteString(m.w, MailqFooter(m.count, m.bytes))
	return err
}

// MailqHeader is the first line of a queue that is not empty, in Postfix's layout for long queue ids.
var MailqHeader = fmt.Sprintf("%-27s --Size-- ----Arrival Time---- -Sender/Recipient-------\n", "-Queue ID-")

// MailqFooter is the last line: monitoring plugins read it.
func MailqFooter(count int, bytes int64) string {
	switch count {
	case 0:
		return "Mail queue is empty\n"
	case 1:
		return fmt.Sprintf("-- %d Kbytes in 1 Request.\n", (bytes+1023)/1024)
	}
	return fmt.Sprintf("-- %d Kbytes in %d Requests.\n", (bytes+1023)/1024, count)
}

// MailqEntry is one envelope as mailq prints it, with the empty line after it.
func MailqEntry(it QueueItem) string {
	var b strings.Builder
	mark := " "
	switch it.QueueName {
	case "active":
		mark = "*"
	case "hold":
		mark = "!"
	}
	sender := it.Sender
	if sender == "" {
		sender = "MAILER-DAEMON"
	}
	if it.Kind != "mail" {
		sender = "(" + it.Kind + " of " + it.Origin + ")"
	}
	fmt.Fprintf(&b, "%-26s%s %8d %s  %s\n", it.QueueID, mark, it.MessageSize, arrival(it.ArrivalTime), printable(sender))
	last := ""
	for _, r := range it.Recipients {
		if r.DelayReason != last && r.DelayReason != "" {
			reason := printable(r.DelayReason)
			fmt.Fprintf(&b, "%*s(%s)\n", max(76-utf8.RuneCountInString(reason), 0), "", reason)
			last = r.DelayReason
		}
		fmt.Fprintf(&b, "%58s%s\n", "", printable(r.Address))
	}
	if len(it.Recipients) == 0 {
		for _, l := range it.Legs {
			fmt.Fprintf(&b, "%58s%s\n", "", printable(l.Dest))
		}
	}
	b.WriteByte('\n')
	return b.String()
}
