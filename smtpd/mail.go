package smtpd

import (
	"errors"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// mailFrom is MAIL.
func (c *conn) mailFrom(args string, now time.Time) {
	switch {
	case c.helo == "":
		c.fail(503, "5.5.1", "say "+c.helloVerb()+" first")
		return
	case c.mail != nil:
		c.fail(503, "5.5.1", "nested MAIL command")
		return
	case !c.mayRelay() && c.srv.OpenTo == nil:
		c.fail(530, "5.7.0", "log in first")
		return
	}
	path, ok := cutWord(args, "FROM")
	if !ok {
		c.fail(501, "5.5.4", "syntax: MAIL FROM:<address>")
		return
	}
	addr, params, err := parsePath(path)
	if err != nil {
		c.wrong("MAIL", envelope.NewStatus(501, "5.1.7", err.Error()), path)
		return
	}
	m := &envelope.Mail{Sender: addr, Client: c.client()}
	c.size = 0
	st := c.mailParams(m, params, now)
	if st == nil && !m.SMTPUTF8 && !isASCII(args) {
		st = envelope.NewStatus(553, "5.6.7", "address needs SMTPUTF8")
	}
	if st != nil {
		c.wrong("MAIL", st, path)
		return
	}
	if st = c.maySend(addr); st == nil {
		st = c.srv.gate.mail(now, c)
	}
	if st != nil {
		c.reject("MAIL", st, "")
		c.failStatus(st)
		return
	}
	if err := c.srv.Acceptor.Mail(c.ctx, m, c.size); err != nil {
		st := c.refusal(err)
		c.reject("MAIL", st, "")
		c.mark(st)
		c.replyStatus(st)
		return
	}
	m.Recipients = nil
	c.mail, c.refused = m, 0
	c.reply(250, "2.1.0", "Ok")
}

// rcptTo is RCPT.
func (c *conn) rcptTo(args string) {
	if c.mail == nil {
		c.fail(503, "5.5.1", "need MAIL command")
		return
	}
	path, ok := cutWord(args, "TO")
	if !ok {
		c.fail(501, "5.5.4", "syntax: RCPT TO:<address>")
		return
	}
	r := envelope.Recipient{}
	addr, params, err := parsePath(path)
	if err == nil && addr == "" {
		err = errPathSyntax
	}
	if err != nil {
		c.refused++
		c.wrong("RCPT", envelope.NewStatus(501, "5.1.3", err.Error()), path)
		return
	}
	r.Addr = addr
	st := rcptParams(&r, params)
	if st == nil && !c.mail.SMTPUTF8 && !isASCII(args) {
		st = envelope.NewStatus(553, "5.6.7", "address needs SMTPUTF8")
	}
	if st != nil {
		c.refused++
		c.wrong("RCPT", st, path)
		return
	}
	if len(c.mail.Recipients) >= c.lim.Recipients {
		c.refused++
		c.reply(452, "4.5.3", "too many recipients")
		return
	}
	if err := c.checkRcpt(&r); err != nil {
		c.refused++
		st := c.refusal(err)
		c.reject("RCPT", st, r.Addr)
		c.mark(st)
		c.replyStatus(st)
		return
	}
	c.mail.Recipients = append(c.mail.Recipients, r)
	c.reply(250, "2.1.5", "Ok")
}

// checkRcpt asks whether this client may send to r, then the Acceptor.
func (c *conn) checkRcpt(r *envelope.Recipient) error {
	if !c.mayRelay() && (c.srv.OpenTo == nil || !c.srv.OpenTo(r.Addr)) {
		return envelope.NewStatus(550, "5.7.1", relayDenied)
	}
	return c.srv.Acceptor.Rcpt(c.ctx, c.mail, r, c.size)
}

// mark makes refusals errors for clients that have no business being refused often; a trusted mail server may
// bring a mail for many recipients that are gone.
func (c *conn) mark(st *envelope.Status) {
	if !c.mayRelay() && !st.Temporary() {
		c.errors++
	} else if !c.mayRelay() {
		c.junk++
	}
}

func (c *conn) helloVerb() string {
	if c.srv.LMTP {
		return "LHLO"
	}
	return "EHLO"
}

// cutWord takes "FROM:" or "TO:" off s; blanks before the colon are forgiven.
func cutWord(s, word string) (string, bool) {
	if len(s) <= len(word) || !strings.EqualFold(s[:len(word)], word) {
		return "", false
	}
	return strings.CutPrefix(strings.TrimLeft(s[len(word):], " \t"), ":")
}

// data is DATA: the only place where content is read.
func (c *conn) data(args string) {
	if st := c.mayData(args); st != nil {
		c.failStatus(st)
		c.refuseData()
		return
	}
	m := c.mail
	in, err := c.srv.Acceptor.Data(c.ctx, m)
	if err != nil {
		st := c.refusal(err)
		c.reject("DATA", st, "")
		c.mark(st)
		c.replyStatus(st)
		c.refuseData()
		return
	}
	if !c.setBusy(true) {
		in.Abort()
		c.hangUp(errDraining)
		return
	}
	c.reply(354, "", "End data with <CR><LF>.<CR><LF>")
	replies := 1
	if c.srv.LMTP {
		replies = len(m.Recipients)
	}
	proto := m.Client.Proto
	id, err := c.receive(in)
	c.setBusy(false)
	c.afterData(replies, proto, id, err)
}

// mayData checks the order of commands.
func (c *conn) mayData(args string) *envelope.Status {
	switch {
	case args != "":
		return envelope.NewStatus(501, "5.5.4", "DATA takes no parameters")
	case c.mail == nil:
		return envelope.NewStatus(503, "5.5.1", "need MAIL command")
	case len(c.mail.Recipients) == 0 && (c.refused == 0 || c.srv.LMTP): // RFC 2033 section 4.2 wants 503
		return envelope.NewStatus(503, "5.5.1", "need RCPT command")
	case len(c.mail.Recipients) == 0:
		return envelope.NewStatus(554, "5.5.1", "no valid recipients")
	}
	return nil
}

// refuseData comes after a refused DATA: a client that sends its message all the same must not have it read as
// commands.
func (c *conn) refuseData() {
	c.wary = true
	if c.r < c.w {
		c.closing, c.linger = true, true
	}
}

// afterData answers the end of data: once, or once per recipient in LMTP. Errors of the connection have no answer.
// The mail itself belongs to the Acceptor now.
func (c *conn) afterData(replies int, proto, id string, err error) {
	var lost *lostError
	if errors.As(err, &lost) {
		c.hangUp(lost.err)
		return
	}
	st := envelope.NewStatus(250, "2.0.0", "Ok: queued as "+id)
	if err != nil {
		st = c.refusal(err)
		c.reject("END-OF-MESSAGE", st, "")
		c.errors++
	} else {
		c.errors, c.junk, c.commands, c.slowed = 0, 0, 0, 0
		c.logQueued(proto, id)
	}
	c.reset()
	for range replies {
		c.replyStatus(st)
	}
}

// logQueued writes the line that ties a queue id to a client.
func (c *conn) logQueued(proto, id string) {
	line := id + ": client=" + c.who()
	if f := c.forward; f != nil {
		if f.Ident != "" {
			line += ", orig_queue_id=" + f.Ident
		}
		if f.Name != "" || f.Addr != "" {
			line += ", orig_client=" + f.Name + "[" + f.Addr + "]"
		}
	}
	if c.account != nil {
		line += ", sasl_method=" + c.method + ", sasl_username=" + c.account.Name
	}
	line += ", proto=" + proto + ", helo=<" + c.helo + ">"
	c.srv.log.Info(printable(line, 2000))
}
