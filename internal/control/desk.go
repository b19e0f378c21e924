package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
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
	in, err := (*Node)(d).bridge.SubmitFile(ctx, name, m)
	if err != nil {
		return nil, err
	}
	return (*Node)(d).entering(in, m), nil
}

// Return is maildrop.Returner's.
func (d *dropDesk) Return(ctx context.Context, name string, m *envelope.Mail, why *envelope.Status) (frame.Intake, error) {
	return (*Node)(d).bridge.ReturnFile(ctx, name, m, why)
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
	in, err := d.bridge.Submit(ctx, m)
	if err != nil {
		return nil, err
	}
	return d.entering(in, m), nil
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
	if t.Next != "" {
		return t.Result + ", next contact " + t.Next, nil
	}
	return t.Result, nil
}

func (d *submitDesk) ServeSMTP(ctx context.Context, conn net.Conn, uid int64) {
	d.smtp.ServeConn(ctx, conn, envelope.Client{Proto: "local", UID: uid + 1, User: submission.LoginName(uid)})
}

func (d *submitDesk) ServeJobs(ctx context.Context, conn net.Conn, uid int64, user string) {
	serveOne(ctx, conn, d.jobsFor(maker{limited: uid != 0 && uid != int64(os.Geteuid()), uid: uid + 1, user: user}))
}

// mailqWriter prints the queue in the layout of Postfix's mailq.
type mailqWriter struct {
	w     io.Writer
	entry []byte // of the last item, for the next
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
	m.entry = appendMailq(m.entry[:0], &it)
	_, err := m.w.Write(m.entry)
	return err
}

func (m *mailqWriter) end() error {
	_, err := io.WriteString(m.w, MailqFooter(m.count, m.bytes))
	return err
}

// MailqHeader is the first line of a queue that is not empty. The layout is Postfix's for long queue ids, with ten columns
// more for ours.
const MailqHeader = "---------Queue ID---------- --Size-- ---Arrival Time---- --Sender/Recipient------\n"

// mailqIndent is where senders and recipients begin.
const mailqIndent = 27 + 1 + 8 + 1 + len(arrivalLayout) + 1

// MailqFooter is the last line: monitoring plugins read it.
func MailqFooter(count int, bytes int64) string {
	switch count {
	case 0:
		return "Mail queue is empty\n"
	case 1:
		return fmt.Sprintf("-- %d Kbytes in 1 Request.\n", bytes/1024)
	}
	return fmt.Sprintf("-- %d Kbytes in %d Requests.\n", bytes/1024, count)
}

// MailqEntry is one envelope as mailq prints it, with the empty line after it.
func MailqEntry(it QueueItem) string { return string(appendMailq(nil, &it)) }

// appendMailq is MailqEntry for long queues: fmt would take half of the time.
func appendMailq(b []byte, it *QueueItem) []byte {
	mark := byte(' ')
	switch it.QueueName {
	case "active":
		mark = '*'
	case "hold":
		mark = '!'
	}
	sender := it.Sender
	if sender == "" {
		sender = "MAILER-DAEMON"
	}
	if it.Kind != "mail" {
		sender = "(" + it.Kind + " of " + it.Origin + ")"
	}
	b = append(b, it.QueueID...)
	b = append(spaces(b, 26-len(it.QueueID)), mark, ' ')
	var digits [20]byte
	size := strconv.AppendInt(digits[:0], it.MessageSize, 10)
	b = append(spaces(b, 8-len(size)), size...)
	b = time.Unix(it.ArrivalTime, 0).AppendFormat(append(b, ' '), arrivalLayout)
	b = append(append(append(b, ' '), printable(sender)...), '\n')
	line := func(indent int, text, end string) {
		b = append(append(append(spaces(b, indent), text...), end...), '\n')
	}
	last := ""
	for i := range it.Recipients {
		r := &it.Recipients[i]
		if r.DelayReason != last && r.DelayReason != "" {
			reason := printable(r.DelayReason)
			line(max(76-utf8.RuneCountInString(reason), 0), "("+reason, ")")
			last = r.DelayReason
		}
		line(mailqIndent, printable(r.Address), "")
	}
	if len(it.Recipients) == 0 {
		for _, l := range it.Legs {
			line(mailqIndent, printable(l.Dest), "")
		}
	}
	return append(b, '\n')
}

// spaces appends n spaces, none when n is negative.
func spaces(b []byte, n int) []byte {
	for ; n > 0; n-- {
		b = append(b, ' ')
	}
	return b
}
