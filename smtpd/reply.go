package smtpd

import (
	"errors"
	"strconv"

	"mochila/internal/envelope"
)

// reply queues one line; it is sent when the input runs dry.
func (c *conn) reply(code int, enhanced, text string) {
	b := strconv.AppendInt(c.out, int64(code), 10)
	b = append(b, ' ')
	if enhanced != "" {
		b = append(b, enhanced...)
		b = append(b, ' ')
	}
	b = append(b, printable(text, maxReply)...)
	c.out = append(b, '\r', '\n')
	c.good = code < 400
}

// replyStatus queues st as it is.
func (c *conn) replyStatus(st *envelope.Status) {
	c.reply(st.Code, st.Enhanced, st.Text)
	if st.Code == 421 || st.Code == 521 {
		c.closing, c.linger = true, true
	}
}

// fail refuses a command that is wrong in itself.
func (c *conn) fail(code int, enhanced, text string) {
	c.errors++
	c.reply(code, enhanced, text)
}

// failStatus is fail for a reply that exists already.
func (c *conn) failStatus(st *envelope.Status) {
	c.errors++
	c.replyStatus(st)
}

// wrong refuses MAIL or RCPT for what the client wrote: path is the argument from the address on.
func (c *conn) wrong(what string, st *envelope.Status, path string) {
	c.srv.log.Warn(printable("NOQUEUE: reject: "+what+" from "+c.who()+": "+st.String()+"; argument="+path+" proto="+c.proto()+" helo=<"+c.helo+">", 2000))
	c.failStatus(st)
}

// lines queues a reply of several lines without enhanced codes, as EHLO and HELP have it.
func (c *conn) lines(code int, text ...string) {
	for i, t := range text {
		b := strconv.AppendInt(c.out, int64(code), 10)
		if i < len(text)-1 {
			b = append(b, '-')
		} else {
			b = append(b, ' ')
		}
		b = append(b, t...)
		c.out = append(b, '\r', '\n')
	}
	c.good = true
}

// refusal is the reply for an error of the Acceptor. What is not a *envelope.Status is trouble of this node: it is
// temporary, and its text is for the log.
func (c *conn) refusal(err error) *envelope.Status {
	var st *envelope.Status
	if errors.As(err, &st) && st != nil && st.Code >= 400 && st.Code <= 599 {
		return st
	}
	c.srv.log.Error("while serving " + c.who() + ": " + printable(err.Error(), maxReply))
	return envelope.NewStatus(451, "4.3.0", "local error, try again later")
}

// reject logs a refusal in the words of Postfix.
func (c *conn) reject(what string, st *envelope.Status, rcpt string) {
	line := "NOQUEUE: reject: " + what + " from " + c.who() + ": " + inPostfixWords(what, st, rcpt) + ";"
	if c.mail != nil {
		line += " from=<" + c.mail.Sender + ">"
	}
	if rcpt != "" {
		line += " to=<" + rcpt + ">"
	}
	line += " proto=" + c.proto() + " helo=<" + c.helo + ">"
	c.srv.log.Warn(printable(line, 2000))
}

// relayDenied is what a client hears that may not send to a recipient: in these words because tools count it by them.
const relayDenied = "Relay access denied"

// inPostfixWords is a refusal as Postfix would log it: tools look for what was refused there, and for these words.
func inPostfixWords(what string, st *envelope.Status, addr string) string {
	if what != "RCPT" || st.Code == 0 {
		return st.String()
	}
	s := *st
	if s.Text != relayDenied {
		s.Text = "Recipient address rejected: " + s.Text
	}
	s.Text = "<" + addr + ">: " + s.Text
	return s.String()
}
