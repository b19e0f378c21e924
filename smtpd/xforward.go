package smtpd

import (
	"net/netip"
	"strings"

	"mochila/internal/envelope"
)

// maxForward bounds one XFORWARD value.
const maxForward = 255

// xforward is Postfix's XFORWARD: an upstream mail server tells where the next mail came from. What it does not tell
// is unknown; the end of the transaction, RSET and EHLO forget it.
func (c *conn) xforward(args string) {
	switch {
	case !c.mayForward():
		c.fail(550, "5.7.1", "XFORWARD is not for you")
		return
	case c.helo == "" || c.mail != nil:
		c.fail(503, "5.5.1", "XFORWARD belongs between EHLO and MAIL")
		return
	case args == "":
		c.fail(501, "5.5.4", "XFORWARD needs attributes")
		return
	}
	c.junk++
	var f envelope.Client
	if c.forward != nil {
		f = *c.forward
	}
	for _, attr := range strings.Fields(args) {
		key, value, ok := strings.Cut(attr, "=")
		value = fromXtext(value)
		if !ok || len(value) > maxForward {
			c.fail(501, "5.5.4", "XFORWARD attribute without a value, or too long")
			return
		}
		value = printable(value, maxForward)
		if strings.EqualFold(value, "[UNAVAILABLE]") || strings.EqualFold(value, "[TEMPUNAVAIL]") {
			value = ""
		}
		if !setForward(&f, strings.ToUpper(key), value) {
			c.fail(501, "5.5.4", "bad XFORWARD attribute "+printable(key, 40))
			return
		}
	}
	c.forward = &f
	c.reply(250, "2.0.0", "Ok")
}

// mayForward reports whether what the client says of others is believed. A local user at the submission socket may relay,
// but is who he is; root may speak for others.
func (c *conn) mayForward() bool { return c.trusted && c.peer.UID <= 1 }

// setForward puts one attribute into f; an empty value means unknown.
func setForward(f *envelope.Client, key, value string) bool {
	switch key {
	case "NAME":
		f.Name = value
	case "ADDR":
		if value == "" {
			f.Addr = ""
			break
		}
		text := value
		if len(text) > 5 && strings.EqualFold(text[:5], "IPv6:") {
			text = text[5:]
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return false
		}
		f.Addr = a.WithZone("").String()
	case "PORT":
		if _, ok := digits(value, 5); value != "" && !ok {
			return false
		}
		f.Port = value
	case "PROTO":
		f.Proto = value
	case "HELO":
		f.Helo = value
	case "IDENT":
		f.Ident = value
	case "SOURCE":
		value = strings.ToUpper(value)
		if value != "" && value != "LOCAL" && value != "REMOTE" {
			return false
		}
		f.Source = value
	default:
		return false
	}
	return true
}
