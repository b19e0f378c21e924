package smtpd

import (
	"strconv"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// maxEnvID and maxORcpt are the sizes of RFC 3461 section 4.4 and 4.2, doubled: xtext made here from raw text grows.
const (
	maxEnvID = 200
	maxORcpt = 1000
)

// param is one esmtp-param (RFC 5321 section 4.1.2).
type param struct {
	key   string // upper case
	value string
	has   bool // there was a "="
}

// eachParam splits s and calls fn for every parameter; one that comes twice is refused.
func eachParam(s string, fn func(p param) *envelope.Status) *envelope.Status {
	var seen [16]string
	n := 0
	for s = strings.Trim(s, " \t"); s != ""; s = strings.TrimLeft(s, " \t") {
		end := strings.IndexAny(s, " \t")
		if end < 0 {
			end = len(s)
		}
		var p param
		p.key, p.value, p.has = strings.Cut(s[:end], "=")
		s = s[end:]
		p.key = strings.ToUpper(p.key)
		for _, k := range seen[:n] {
			if k == p.key {
				return badParam(p, "given twice")
			}
		}
		if n == len(seen) {
			return envelope.NewStatus(501, "5.5.4", "too many parameters")
		}
		seen[n] = p.key
		n++
		if st := fn(p); st != nil {
			return st
		}
	}
	return nil
}

func badParam(p param, why string) *envelope.Status {
	return envelope.NewStatus(501, "5.5.4", printable(p.key, 40)+" parameter: "+why)
}

func unknownParam(p param) *envelope.Status {
	return envelope.NewStatus(555, "5.5.4", "unsupported parameter: "+printable(p.key, 40))
}

// mailParams puts the parameters of MAIL into m and c.size.
func (c *conn) mailParams(m *envelope.Mail, s string, now time.Time) *envelope.Status {
	held := false
	return eachParam(s, func(p param) *envelope.Status {
		switch p.key {
		case "SIZE":
			return c.sizeParam(p)
		case "BODY":
			m.Body = strings.ToUpper(p.value)
			if m.Body != "7BIT" && m.Body != "8BITMIME" {
				return badParam(p, "not 7BIT or 8BITMIME")
			}
		case "SMTPUTF8":
			if p.has {
				return badParam(p, "takes no value")
			}
			m.SMTPUTF8 = true
		case "RET":
			m.Ret = strings.ToUpper(p.value)
			if m.Ret != "FULL" && m.Ret != "HDRS" {
				return badParam(p, "not FULL or HDRS")
			}
		case "ENVID":
			m.EnvID = toXtext(p.value)
			if len(m.EnvID) > maxEnvID || !isASCII(p.value) {
				return badParam(p, "too long or not ASCII")
			}
		case "AUTH":
			return c.authParam(m, p)
		case "BY":
			by, ok := parseBy(p.value, now)
			if !ok {
				return badParam(p, "not SECONDS;R or SECONDS;N")
			}
			m.By = by
		case "MT-PRIORITY":
			n, err := strconv.Atoi(p.value)
			if err != nil || n < -9 || n > 9 {
				return badParam(p, "not -9 to 9")
			}
			if c.mayRelay() {
				m.Priority = n
			} else {
				m.Priority = min(n, 0)
			}
		case "HOLDFOR", "HOLDUNTIL":
			if held {
				return badParam(p, "HOLDFOR and HOLDUNTIL exclude each other")
			}
			held = true
			return c.holdParam(m, p, now)
		case "REQUIRETLS":
			if m.Client.TLS == "" || !c.srv.RequireTLS {
				return unknownParam(p)
			}
			if p.has {
				return badParam(p, "takes no value")
			}
			m.RequireTLS = true
		default:
			return unknownParam(p)
		}
		return nil
	})
}

// sizeParam is RFC 1870.
func (c *conn) sizeParam(p param) *envelope.Status {
	if p.value == "" || len(p.value) > 20 || strings.Trim(p.value, "0123456789") != "" {
		return badParam(p, "not a number")
	}
	n, err := strconv.ParseInt(p.value, 10, 64)
	if err != nil || n > c.lim.MessageSize {
		return tooBig(c.lim.MessageSize)
	}
	c.size = n
	return nil
}

func tooBig(limit int64) *envelope.Status {
	return envelope.NewStatus(552, "5.3.4", "message is larger than the limit of "+strconv.FormatInt(limit, 10)+" bytes")
}

// authParam is RFC 4954 section 5: from a client that is not trusted, the value means nothing. An empty value is
// what some clients write for <>.
func (c *conn) authParam(m *envelope.Mail, p param) *envelope.Status {
	v := p.value
	if v == "" && p.has || !c.trusted {
		v = "<>"
	}
	if v != "<>" && (v == "" || !isXtext(v)) || len(v) > maxORcpt {
		return badParam(p, "not xtext")
	}
	m.Auth = &v
	return nil
}

// holdParam is RFC 4865.
func (c *conn) holdParam(m *envelope.Mail, p param, now time.Time) *envelope.Status {
	if p.key == "HOLDFOR" {
		n, ok := digits(p.value, 9)
		if !ok {
			return badParam(p, "not a number of seconds")
		}
		m.HoldUntil = now.Add(time.Duration(n) * time.Second)
	} else {
		t, err := time.Parse(time.RFC3339, p.value)
		if err != nil {
			return badParam(p, "not a date like 2026-01-31T12:00:00Z")
		}
		m.HoldUntil = t.UTC()
	}
	if m.HoldUntil.Sub(now) > c.lim.Hold {
		return badParam(p, "later than "+now.Add(c.lim.Hold).UTC().Format(time.RFC3339))
	}
	return nil
}

// parseBy is RFC 2852 section 4: by-time ";" by-mode [by-trace].
func parseBy(v string, now time.Time) (*envelope.By, bool) {
	secs, mode, _ := strings.Cut(v, ";")
	by := &envelope.By{}
	switch strings.ToUpper(mode) {
	case "R":
		by.Return = true
	case "RT":
		by.Return, by.Trace = true, true
	case "N":
	case "NT":
		by.Trace = true
	default:
		return nil, false
	}
	negative := strings.HasPrefix(secs, "-")
	n, ok := digits(strings.TrimPrefix(strings.TrimPrefix(secs, "-"), "+"), 9)
	if negative {
		n = -n
	}
	if !ok || by.Return && n <= 0 {
		return nil, false
	}
	by.Deadline = now.Add(time.Duration(n) * time.Second)
	return by, true
}

// digits reads an unsigned number of at most n digits.
func digits(s string, n int) (int64, bool) {
	if s == "" || len(s) > n || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	v, err := strconv.ParseInt(s, 10, 64)
	return v, err == nil
}

// rcptParams puts the parameters of RCPT into r.
func rcptParams(r *envelope.Recipient, s string) *envelope.Status {
	return eachParam(s, func(p param) *envelope.Status {
		switch p.key {
		case "NOTIFY":
			n, ok := parseNotify(p.value)
			if !ok {
				return badParam(p, "not NEVER or a list of SUCCESS, FAILURE, DELAY")
			}
			r.Notify = n
		case "ORCPT":
			kind, addr, ok := strings.Cut(p.value, ";")
			if !ok || addr == "" || !isAtom(kind) {
				return badParam(p, "not type;address")
			}
			if !strings.EqualFold(kind, "utf-8") { // RFC 6533 has its own escapes
				addr = toXtext(addr)
			}
			r.ORcpt = kind + ";" + addr
			if len(r.ORcpt) > maxORcpt {
				return badParam(p, "too long")
			}
		default:
			return unknownParam(p)
		}
		return nil
	})
}

// parseNotify is RFC 3461 section 4.1.
func parseNotify(v string) (envelope.Notify, bool) {
	var n envelope.Notify
	for word := range strings.SplitSeq(strings.ToUpper(v), ",") {
		switch word {
		case "NEVER":
			n |= envelope.NotifyNever
		case "SUCCESS":
			n |= envelope.NotifySuccess
		case "FAILURE":
			n |= envelope.NotifyFailure
		case "DELAY":
			n |= envelope.NotifyDelay
		default:
			return 0, false
		}
	}
	return n, n&envelope.NotifyNever == 0 || n == envelope.NotifyNever
}

// isAtom accepts what may name an address type.
func isAtom(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isAlnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return s != ""
}

// isXtext reports whether s is xtext (RFC 3461 section 4).
func isXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return false
			}
			i += 2
		case c <= ' ' || c >= 0x7f || c == '=':
			return false
		}
	}
	return true
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' }

// toXtext is s when that is xtext already, else s as raw text made into xtext: some clients send ENVID and ORCPT
// without encoding them, and a refusal here would be a bounce of good mail.
func toXtext(s string) string {
	if isXtext(s) {
		return s
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '=' || c == '+' {
			b = append(b, '+', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// fromXtext decodes xtext; what is not an escape stays as it is.
func fromXtext(s string) string {
	if strings.IndexByte(s, '+') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '+' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(v))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
