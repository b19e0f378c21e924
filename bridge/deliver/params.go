package deliver

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"mochila/bridge/route"
	"mochila/internal/envelope"
)

// refusal is a reason of ours why a mail or a recipient cannot go to this server at all.
type refusal struct{ enhanced, text string }

// offer is one mail in the words of one server.
type offer struct {
	c    *client
	ct   *content
	mail *envelope.Mail
	utf8 bool // SMTPUTF8 is said
}

// mailLine is the MAIL command. Parameters that the server does not offer are left out where they only ask for
// something (BODY, DSN, priorities); where they forbid something the mail is refused (SMTPUTF8, REQUIRETLS, SIZE, BY in
// mode R).
//
// 8-bit content goes out as it is to a server without 8BITMIME, as Postfix does: the choice is between that and
// rewriting signed mail, and every server of this century takes it. BODY=BINARYMIME becomes 8BITMIME: content is
// canonical lines here, whatever it is called.
func (o *offer) mailLine(now time.Time) (string, *refusal) {
	m, env := o.mail, o.ct.m.Env
	size := env.Size + int64(len(o.ct.m.Header))
	if m.Sender != "" && !route.SafePath(m.Sender) {
		return "", &refusal{"5.1.7", fmt.Sprintf("sender address %q cannot be written in SMTP", m.Sender)}
	}
	if by := m.By; by != nil && by.Return && o.ct.m.left(now) <= 0 {
		return "", &refusal{"5.4.7", "delivery time expired: requested by " + by.Deadline.UTC().Format(time.RFC3339)}
	}
	if no := o.ct.m.unsupported(); no != nil && !o.c.lmtp && !o.c.has("DELIVERBY") {
		return "", no // over LMTP this is the delivery itself
	}
	if limit, err := strconv.ParseInt(o.c.ext["SIZE"], 10, 64); err == nil && limit > 0 && size > limit {
		return "", &refusal{"5.3.4", fmt.Sprintf("message size %d exceeds size limit %d of the server", size, limit)}
	}
	if m.RequireTLS && !o.c.local && !o.c.has("REQUIRETLS") {
		return "", &refusal{"5.7.30", "REQUIRETLS was asked for, and the server does not offer it"}
	}
	if m.RequireTLS && !o.c.near && !o.c.encrypted() {
		return "", &refusal{"5.7.30", "REQUIRETLS was asked for, and the server is not spoken to by TLS"} // whatever it offers in clear
	}
	if !o.c.has("SMTPUTF8") {
		if !ascii(m.Sender) {
			return "", &refusal{"5.6.7", "the sender address needs SMTPUTF8, and the server does not offer it"}
		}
		if m.SMTPUTF8 && o.ct.header8 {
			return "", &refusal{"5.6.9", "the header needs SMTPUTF8, and the server does not offer it"}
		}
	}
	var b strings.Builder
	b.WriteString("MAIL FROM:<" + m.Sender + ">")
	if o.c.has("SIZE") {
		fmt.Fprintf(&b, " SIZE=%d", size)
	}
	if o.c.has("8BITMIME") && o.ct.eight {
		b.WriteString(" BODY=8BITMIME")
	}
	if o.utf8 {
		b.WriteString(" SMTPUTF8")
	}
	if m.RequireTLS && o.c.has("REQUIRETLS") {
		b.WriteString(" REQUIRETLS")
	}
	if o.c.has("DSN") {
		if m.Ret == "FULL" || m.Ret == "HDRS" {
			b.WriteString(" RET=" + m.Ret)
		}
		if m.EnvID != "" {
			if !token(m.EnvID, false) {
				return "", &refusal{"5.5.4", fmt.Sprintf("ENVID %q cannot be written in SMTP", m.EnvID)}
			}
			b.WriteString(" ENVID=" + m.EnvID)
		}
	}
	if m.Auth != nil && o.c.has("AUTH") {
		if !token(*m.Auth, o.utf8) {
			return "", &refusal{"5.5.4", fmt.Sprintf("AUTH %q cannot be written in SMTP", *m.Auth)}
		}
		b.WriteString(" AUTH=" + *m.Auth)
	}
	if env.Priority != 0 && o.c.has("MT-PRIORITY") {
		fmt.Fprintf(&b, " MT-PRIORITY=%d", min(max(env.Priority, -9), 9))
	}
	if m.By != nil && o.c.has("DELIVERBY") {
		b.WriteString(" BY=" + byValue(m.By, o.ct.m.left(now)))
	}
	return b.String(), nil
}

// byValue is what is left of a deadline, in RFC 2852's words; it may be negative in mode N.
func byValue(by *envelope.By, left time.Duration) string {
	secs := int64(left / time.Second)
	if left > 0 && left%time.Second != 0 {
		secs++
	}
	mode := ";N"
	if by.Return {
		mode = ";R"
	}
	if by.Trace {
		mode += "T"
	}
	return strconv.FormatInt(min(max(secs, -999999999), 999999999), 10) + mode
}

// rcptLine is the RCPT command for one recipient.
func (o *offer) rcptLine(r *envelope.Recipient) (string, *refusal) {
	if !route.SafePath(r.Addr) {
		return "", &refusal{"5.1.3", fmt.Sprintf("recipient address %q cannot be written in SMTP", r.Addr)}
	}
	if !ascii(r.Addr) && !o.utf8 {
		return "", &refusal{"5.6.7", "the recipient address needs SMTPUTF8, and the server does not offer it"}
	}
	line := "RCPT TO:<" + r.Addr + ">"
	if !o.c.has("DSN") {
		return line, nil
	}
	if n := notifyText(r.Notify); n != "" {
		line += " NOTIFY=" + n
	}
	if r.ORcpt != "" {
		if !token(r.ORcpt, o.utf8) {
			return "", &refusal{"5.5.4", fmt.Sprintf("ORCPT %q cannot be written in SMTP", r.ORcpt)}
		}
		line += " ORCPT=" + r.ORcpt
	}
	return line, nil
}

// notifyText writes a NOTIFY set, "" for an absent one.
func notifyText(n envelope.Notify) string {
	if n&envelope.NotifyNever != 0 {
		return "NEVER"
	}
	var words []string
	for _, w := range []struct {
		bit  envelope.Notify
		word string
	}{{envelope.NotifySuccess, "SUCCESS"}, {envelope.NotifyFailure, "FAILURE"}, {envelope.NotifyDelay, "DELAY"}} {
		if n&w.bit != 0 {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ",")
}

// token reports whether a parameter value is one: printable, without spaces, of bounded length.
func token(s string, utf8ok bool) bool {
	if s == "" || len(s) > 1000 {
		return false
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r > 0x7f && (!utf8ok || r == '\uFFFD' || r < 0xa0) {
			return false
		}
	}
	return true
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// xforward is what to tell a server that offers XFORWARD about the client that gave us the mail (Postfix,
// XFORWARD_README): one or two commands, as Postfix splits them.
func (o *offer) xforward() []string {
	offered := strings.Fields(strings.ToUpper(o.c.ext["XFORWARD"]))
	if len(offered) == 0 {
		return nil
	}
	cl := &o.mail.Client
	ident := cl.Ident
	if ident == "" {
		ident = o.ct.m.Env.ID.String()
	}
	source := strings.ToUpper(cl.Source)
	if source != "LOCAL" && source != "REMOTE" {
		source = ""
		if cl.UID > 0 {
			source = "LOCAL"
		}
	}
	values := map[string]string{
		"NAME": cl.Name, "ADDR": xforwardAddr(cl.Addr), "PORT": port(cl.Port),
		"PROTO": cl.Proto, "HELO": cl.Helo, "IDENT": ident, "SOURCE": source,
	}
	var out []string
	for _, group := range [][]string{{"NAME", "ADDR", "PORT"}, {"PROTO", "HELO", "IDENT", "SOURCE"}} {
		cmd := "XFORWARD"
		for _, k := range group {
			if !contains(offered, k) {
				continue
			}
			v := "[UNAVAILABLE]"
			if values[k] != "" {
				v = xtext(values[k])
			}
			cmd += " " + k + "=" + v
		}
		if cmd != "XFORWARD" {
			out = append(out, cmd)
		}
	}
	return out
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// xforwardAddr is an address as XFORWARD writes it, "" for what is none.
func xforwardAddr(s string) string {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return ""
	}
	if a = a.WithZone("").Unmap(); a.Is6() {
		return "IPV6:" + a.String()
	}
	return a.String()
}

func port(s string) string {
	if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
		return ""
	}
	return s
}

// xtext encodes a value (RFC 3461 section 4); what is longer than 255 bytes is cut.
func xtext(s string) string {
	if len(s) > 255 {
		s = s[:255]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < '!' || c > '~' || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
