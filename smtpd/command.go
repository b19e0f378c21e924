package smtpd

import (
	"bytes"
	"crypto/tls"
	"strconv"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// verb is a command.
type verb uint8

const (
	verbNone verb = iota // before the first command
	verbHelo
	verbEhlo
	verbLhlo
	verbMail
	verbRcpt
	verbData
	verbRset
	verbNoop
	verbQuit
	verbVrfy
	verbExpn
	verbHelp
	verbEtrn
	verbStartTLS
	verbXforward
	verbAuth
	verbBdat
	verbUnknown
	numVerbs
)

var verbNames = [numVerbs]string{"CONNECT", "HELO", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT",
	"VRFY", "EXPN", "HELP", "ETRN", "STARTTLS", "XFORWARD", "AUTH", "BDAT", "UNKNOWN"}

// String is the command in capitals.
func (v verb) String() string { return verbNames[v] }

func (v verb) lower() string { return strings.ToLower(verbNames[v]) }

// parseVerb recognises the first word of a line, in any case.
func parseVerb(word []byte) verb {
	for v := verbHelo; v < verbUnknown; v++ {
		if len(word) == len(verbNames[v]) && bytes.EqualFold(word, []byte(verbNames[v])) {
			return v
		}
	}
	return verbUnknown
}

// command answers one command line.
func (c *conn) command(line []byte) {
	line = bytes.TrimRight(line, " \t")
	word, rest := line, []byte(nil)
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		word, rest = line[:i], bytes.TrimLeft(line[i:], " \t")
	}
	c.verb = parseVerb(word)
	c.tally[c.verb].all++
	c.commands++
	if c.verb != verbMail && c.verb != verbRcpt && len(line) > maxLine-2 {
		c.fail(500, "5.5.2", "line too long")
		return
	}
	wary := c.wary
	c.wary = wary && (c.verb == verbNoop || c.verb == verbHelp || c.verb == verbVrfy || c.verb == verbExpn)
	if c.verb == verbUnknown && (wary || isHTTP(word)) {
		// The body of a message whose DATA was refused, or a web browser that was told to talk to this port.
		c.srv.log.Warn("non-SMTP command from " + c.who() + ": " + printable(string(line), 100))
		c.reply(421, "4.7.0", "this is not SMTP, closing")
		c.closing, c.linger = true, true
		return
	}
	args := string(rest)
	if hasControl(strings.ReplaceAll(args, "\t", " ")) {
		c.fail(501, "5.5.2", "control character or bad UTF-8 in command")
		return
	}
	switch c.verb {
	case verbHelo, verbEhlo, verbLhlo:
		c.hello(args)
	case verbMail:
		c.mailFrom(args, time.Now())
	case verbRcpt:
		c.rcptTo(args)
	case verbData:
		c.data(args)
	case verbXforward:
		c.xforward(args)
	case verbStartTLS:
		c.startTLS(args)
	case verbEtrn:
		c.etrn(args)
	case verbQuit:
		c.reply(221, "2.0.0", "Bye")
		c.closing = true
	case verbRset:
		c.junk++
		c.reset()
		c.reply(250, "2.0.0", "Ok")
	case verbNoop:
		c.junk++
		c.reply(250, "2.0.0", "Ok")
	case verbVrfy:
		c.vrfy(args)
	case verbHelp:
		c.help()
	case verbExpn:
		c.fail(502, "5.5.1", "EXPN is not offered")
	case verbAuth:
		c.auth(args)
	case verbBdat:
		// The chunk is on its way; nobody here counts its bytes, so nothing after it can be read as a command.
		c.reply(502, "5.5.1", "CHUNKING is not offered, closing")
		c.closing, c.linger = true, true
	default:
		c.fail(500, "5.5.2", "command not recognised")
	}
}

// isHTTP recognises the start of an HTTP request and header lines: what cross-protocol attacks send.
func isHTTP(word []byte) bool {
	switch string(word) {
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "PATCH", "DELETE":
		return true
	}
	return len(word) > 1 && word[len(word)-1] == ':'
}

// greet says who is here.
func (c *conn) greet() {
	kind := " ESMTP mochila"
	if c.srv.LMTP {
		kind = " LMTP mochila"
	}
	c.reply(220, "", c.srv.Hostname+kind)
}

// hello is HELO, EHLO and LHLO.
func (c *conn) hello(name string) {
	if c.srv.LMTP != (c.verb == verbLhlo) {
		c.fail(500, "5.5.1", "this port speaks "+map[bool]string{true: "LMTP: say LHLO", false: "SMTP: say EHLO"}[c.srv.LMTP])
		return
	}
	name, _, _ = strings.Cut(name, " ")
	if name == "" || len(name) > 255 {
		c.fail(501, "5.5.4", c.verb.String()+" needs your host name")
		return
	}
	c.junk++
	c.reset()
	c.helo = name
	c.esmtp = c.verb != verbHelo
	if !c.esmtp {
		c.reply(250, "", c.srv.Hostname)
		return
	}
	c.lines(250, c.capabilities(time.Now())...)
}

// capabilities is what EHLO and LHLO answer. For LHLO, what does not fit into maxLHLO octets is left out, the least
// useful first.
func (c *conn) capabilities(now time.Time) []string {
	caps := []string{c.srv.Hostname, "PIPELINING", "SIZE " + strconv.FormatInt(c.lim.MessageSize, 10), "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"}
	if c.srv.TLS != nil && c.peer.TLS == "" && c.peer.Addr != "" {
		caps = append(caps, "STARTTLS")
	}
	if c.mayForward() {
		caps = append(caps, "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE")
	}
	if c.offersAuth() {
		caps = append(caps, "AUTH "+mechanisms)
	}
	if c.peer.TLS != "" && c.srv.RequireTLS {
		caps = append(caps, "REQUIRETLS")
	}
	caps = append(caps, "MT-PRIORITY", "DELIVERBY")
	if _, ok := c.srv.Acceptor.(Turner); ok && c.mayRelay() {
		caps = append(caps, "ETRN")
	}
	caps = append(caps, "FUTURERELEASE "+strconv.FormatInt(int64(c.lim.Hold/time.Second), 10)+" "+now.Add(c.lim.Hold).UTC().Format(time.RFC3339),
		"LIMITS RCPTMAX="+strconv.Itoa(c.lim.Recipients)) // RFC 9422
	if !c.srv.LMTP {
		return caps
	}
	fit, total := caps[:1], len("250 \r\n")+len(caps[0])
	for _, s := range caps[1:] {
		if n := len("250 \r\n") + len(s); total+n <= maxLHLO {
			fit, total = append(fit, s), total+n
		}
	}
	return fit
}

// reset ends the transaction.
func (c *conn) reset() {
	c.mail, c.forward, c.size, c.refused = nil, nil, 0, 0
}

// startTLS is RFC 3207. What the client sent before the handshake is forgotten, so that nobody can put words in its
// mouth; a failed handshake ends the connection.
func (c *conn) startTLS(args string) {
	switch {
	case c.srv.TLS == nil || c.peer.Addr == "":
		c.fail(502, "5.5.1", "STARTTLS is not offered")
		return
	case args != "":
		c.fail(501, "5.5.4", "STARTTLS takes no parameters")
		return
	case c.peer.TLS != "":
		c.fail(503, "5.5.1", "TLS is on already")
		return
	case c.r < c.w:
		c.srv.log.Warn("improper command pipelining after STARTTLS from " + c.who() + ": " + printable(string(c.buf[c.r:c.w]), 100))
		c.fail(501, "5.5.2", "nothing may follow STARTTLS, closing")
		c.closing, c.linger = true, true
		return
	}
	c.reply(220, "2.0.0", "Ready to start TLS")
	if c.flush() != nil {
		c.closing = true
		return
	}
	t := tls.Server(c.nc, c.srv.TLS)
	c.replaceConn(t)
	if !c.handshake(t) {
		c.closing = true
		return
	}
	c.reset()
	c.helo, c.esmtp, c.account = "", false, nil
}

// vrfy is VRFY. Whoever may send to anybody learns whether this node knows a way to an address; others learn nothing.
func (c *conn) vrfy(args string) {
	c.junk++
	addr, rest, err := parsePath(args)
	switch {
	case args == "":
		c.fail(501, "5.5.4", "VRFY needs an address")
		return
	case !c.mayRelay() || !c.srv.Verify:
		c.reply(252, "2.0.0", "cannot verify, send mail and see")
		return
	case err != nil || rest != "" || addr == "":
		c.fail(501, "5.1.3", "bad address syntax")
		return
	}
	if err := c.srv.Acceptor.Rcpt(c.ctx, &envelope.Mail{Client: c.client()}, &envelope.Recipient{Addr: addr}, 0); err != nil {
		c.replyStatus(c.refusal(err))
		return
	}
	c.reply(252, "2.1.5", "mail for <"+addr+"> is taken here")
}

// help is HELP.
func (c *conn) help() {
	c.junk++
	verbs := "EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP"
	if c.srv.LMTP {
		verbs = "LHLO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP"
	}
	if c.srv.TLS != nil && c.peer.TLS == "" && c.peer.Addr != "" {
		verbs += " STARTTLS"
	}
	if c.offersAuth() {
		verbs += " AUTH"
	}
	if c.trusted {
		verbs += " XFORWARD"
	}
	if _, ok := c.srv.Acceptor.(Turner); ok && c.mayRelay() {
		verbs += " ETRN"
	}
	c.lines(214, "2.0.0 mochila knows:", "2.0.0 "+verbs, "2.0.0 see RFC 5321, and docs/smtp.md of mochila")
}

// etrn is RFC 1985.
func (c *conn) etrn(args string) {
	t, ok := c.srv.Acceptor.(Turner)
	switch {
	case !ok || !c.mayRelay():
		c.fail(502, "5.5.1", "ETRN is not offered")
	case c.helo == "" || c.mail != nil:
		c.fail(503, "5.5.1", "not now")
	case args == "" || strings.ContainsAny(args, " \t"):
		c.fail(501, "5.5.4", "ETRN needs one name")
	default:
		c.junk++
		if err := t.Turn(c.ctx, args); err != nil {
			c.replyStatus(c.refusal(err))
			return
		}
		c.reply(250, "2.0.0", "Queuing started")
	}
}

// proto is the "with" keyword (RFC 3848) of this connection.
func (c *conn) proto() string {
	p := "SMTP"
	switch {
	case c.srv.LMTP:
		p = "LMTP"
	case c.esmtp:
		p = "ESMTP"
	}
	if c.peer.TLS != "" && p != "SMTP" {
		p += "S"
	}
	if c.account != nil && p != "SMTP" {
		p += "A"
	}
	return p
}

// client is what a mail says about where it came from: what XFORWARD told, else what is known of the connection.
func (c *conn) client() envelope.Client {
	if c.forward != nil {
		f := *c.forward
		f.TLS = c.peer.TLS
		if c.account != nil {
			f.User = c.account.Name
		}
		if f.Proto == "" {
			f.Proto = c.proto()
		}
		return f
	}
	p := c.peer
	p.Proto, p.Helo = c.proto(), c.helo
	if c.account != nil {
		p.User = c.account.Name
	}
	return p
}
