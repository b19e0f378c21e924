package bridge

import (
	"fmt"
	"strings"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// Log lines follow Postfix's grammar, so that the tools that read it keep working; one key hop= comes last.

// esc makes any text safe for one log line: controls become \ooo as Postfix's do.
func esc(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0 {
		return s
	}
	var w strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == 0x7f {
			fmt.Fprintf(&w, "\\%03o", c)
		} else {
			w.WriteByte(c)
		}
	}
	return w.String()
}

// logAccepted writes the lines of a mail that entered here.
func (b *Bridge) logAccepted(item *spool.Item) {
	e := item.Env
	c := &e.Mail.Client
	if c.UID > 0 {
		b.log.Info(fmt.Sprintf("%s: uid=%d from=<%s>", e.ID, c.UID-1, esc(e.Mail.Sender)), "service", "pickup")
	} // the SMTP server names its clients itself
	b.logActive(item)
}

// logActive writes the line with which Postfix's queue manager names size and recipients.
func (b *Bridge) logActive(item *spool.Item) {
	e := item.Env
	b.counts.entered(e)
	b.log.Info(fmt.Sprintf("%s: from=<%s>, size=%d, nrcpt=%d (queue active)", e.ID, esc(e.Mail.Sender), e.Size, len(e.Mail.Recipients)), "service", "qmgr")
}

// logDelivery writes the line of one recipient's delivery attempt.
func (b *Bridge) logDelivery(item *spool.Item, rcpt int, word, mta string, s envelope.Status, began time.Time) {
	if item == nil || item.Env.Mail == nil || rcpt >= len(item.Env.Mail.Recipients) {
		return
	}
	now := b.now()
	b.counts.tried(word, now.Sub(item.Entered))
	dsn := s.Enhanced
	if dsn == "" {
		dsn = map[bool]string{true: "2.0.0", false: "4.0.0"}[word == "sent"]
	}
	service := "smtp"
	if i := strings.IndexByte(mta, ':'); i > 0 && (mta[:i] == "maildir" || mta[:i] == "pipe" || mta[:i] == "lmtp" || mta[:i] == "sendmail") {
		service = mta[:i]
	}
	b.log.Info(fmt.Sprintf("%s: to=<%s>, relay=%s, delay=%.2f, delays=%.2f/0/0/%.2f, dsn=%s, status=%s (%s)",
		item.Env.ID, esc(item.Env.Mail.Recipients[rcpt].Addr), or(esc(mta), "none"),
		now.Sub(item.Entered).Seconds(), max(0, began.Sub(item.Entered).Seconds()), now.Sub(began).Seconds(),
		dsn, word, esc(s.String())), "service", service)
}

// logSent writes the line of an envelope that a packet took along.
func (b *Bridge) logSent(item *spool.Item, leg *spool.Leg, node, carrier string) {
	if item.Env.Kind != envelope.KindMail {
		return
	}
	b.counts.sealed(len(leg.Rcpts))
	for _, i := range leg.Rcpts {
		b.log.Info(fmt.Sprintf("%s: to=<%s>, relay=%s, delay=%.2f, dsn=2.0.0, status=sealed (on its way), hop=%s",
			item.Env.ID, esc(item.Env.Mail.Recipients[i].Addr), node, b.now().Sub(item.Entered).Seconds(), esc(carrier)), "service", "mochila")
	}
}

// logFollow writes the line that ties a DSN to the mail it speaks of.
func (b *Bridge) logFollow(of, next *spool.Item) {
	switch next.Env.Kind {
	case envelope.KindMail:
		b.counts.noticed()
		b.log.Info(fmt.Sprintf("%s: sender non-delivery notification: %s", of.Env.ID, next.Env.ID), "service", "bounce")
		b.logActive(next)
	case envelope.KindReport:
		b.log.Info(fmt.Sprintf("%s: report to the origin node: %s", of.Env.ID, next.Env.ID), "service", "bounce")
	}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
