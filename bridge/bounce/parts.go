package bounce

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"mochila/internal/envelope"
)

// notification is the part for people.
func (d *draft) notification(b *bytes.Buffer) {
	var t bytes.Buffer
	who := d.n.MTA
	if d.n.Node != "" && d.n.Node != d.n.MTA {
		who += " (mochila node " + d.n.Node + ")"
	}
	fmt.Fprintf(&t, "This is the mail system at %s.\n\n", envelope.Printable(who))
	t.WriteString(opening(d.kind, d.whole, d.mute(), d.mail.By != nil))
	if d.kind == envelope.ActionDelayed && !d.n.Until.IsZero() {
		fmt.Fprintf(&t, "It will be tried until %s.\n", d.n.Until.Format("Mon, 2 Jan 2006 15:04 MST"))
	}
	fmt.Fprintf(&t, "\nIts queue id here is %s.\n", d.n.Original.ID)
	for _, o := range d.n.Outcomes {
		fmt.Fprintf(&t, "\n<%s>: %s\n", envelope.Printable(o.Addr), sentence(o))
	}
	if len(d.n.Explain) > 0 {
		t.WriteByte('\n')
	}
	for _, l := range d.n.Explain {
		t.WriteString(envelope.Printable(l) + "\n")
	}
	if d.why != "" {
		t.WriteString("\n" + d.why + "\n")
	}
	charset := "us-ascii"
	if !ascii(t.String()) {
		charset = "utf-8"
	}
	field(b, "Content-Description", "Notification")
	field(b, "Content-Type", "text/plain; charset="+charset)
	if charset == "utf-8" {
		field(b, "Content-Transfer-Encoding", "8bit")
	}
	b.WriteString("\r\n")
	for l := range strings.Lines(t.String()) {
		wrap(b, strings.TrimSuffix(l, "\n"))
	}
}

// mute reports whether what was relayed was only sent out: no system has answered.
func (d *draft) mute() bool {
	for _, o := range d.n.Outcomes {
		if o.Action == envelope.ActionRelayed && o.Status.Code != 0 {
			return false
		}
	}
	return true
}

func opening(kind envelope.Action, whole, mute, by bool) string {
	switch kind {
	case envelope.ActionFailed:
		what := "Its header is"
		if whole {
			what = "It is"
		}
		return "I'm sorry to have to tell you that your mail could not be delivered to\n" +
			"one or more of its recipients, and will not be tried again. " + what + "\nattached below.\n"
	case envelope.ActionDelayed:
		return "Your mail has not arrived yet. YOU NEED NOT SEND IT AGAIN: it is kept\n" +
			"safely and goes on as soon as there is a way.\n"
	case envelope.ActionRelayed:
		if mute {
			return "Your mail was sent out on a path from which nothing comes back. Whether it\n" +
				"arrived will not be known here; you will not hear of it again.\n"
		}
		if by {
			return "Your mail was handed to the next mail system. You may hear from that one\n" +
				"what becomes of it, and of the time that you set for it.\n"
		}
		return "Your mail was handed to a mail system that does not report what becomes\n" +
			"of it. You may hear of a failure, but not of success.\n"
	case envelope.ActionExpanded:
		return "Your mail was delivered to a mailing list or alias and sent on to its\nmembers. You will not hear of those.\n"
	}
	return "Your mail was delivered.\n"
}

// sentence tells people what became of one recipient.
func sentence(o envelope.Outcome) string {
	text := envelope.Printable(o.Status.Text)
	if o.Status.Code != 0 {
		text = envelope.Printable(o.Status.String())
		if o.MTA != "" {
			text = "host " + envelope.Printable(o.MTA) + " said: " + text
		}
	}
	if text == "" {
		text = o.Action.String()
	}
	switch o.Action {
	case envelope.ActionFailed:
		return text
	case envelope.ActionDelayed:
		return "not delivered yet: " + text
	}
	return o.Action.String() + ": " + text
}

// status is the part for machines.
func (d *draft) status(b *bytes.Buffer) {
	kind := "message/delivery-status"
	if d.utf8 {
		kind = "message/global-delivery-status"
	}
	field(b, "Content-Description", "Delivery report")
	field(b, "Content-Type", kind)
	if d.utf8 {
		field(b, "Content-Transfer-Encoding", "8bit")
	}
	b.WriteString("\r\n")
	env := d.n.Original
	if id := envID(d.mail.EnvID); id != "" {
		field(b, "Original-Envelope-Id", id)
	}
	field(b, "Reporting-MTA", "dns; "+d.text(d.n.MTA))
	field(b, "X-Mochila-Queue-Id", env.ID.String())
	path(b, "X-Mochila-Sender", d.address(d.mail.Sender))
	if !env.Created.IsZero() {
		field(b, "Arrival-Date", env.Created.Format(time.RFC1123Z))
	}
	if by := d.mail.By; by != nil {
		field(b, "Deliver-By-Date", by.Deadline.Format(time.RFC1123Z)) // RFC 2852
	}
	for _, o := range d.n.Outcomes {
		b.WriteString("\r\n")
		d.recipient(b, o)
	}
}

// recipient is one group of fields (RFC 3464 section 2.3).
func (d *draft) recipient(b *bytes.Buffer, o envelope.Outcome) {
	if orig := d.original(o.Addr); orig != "" {
		path(b, "Original-Recipient", orig)
	}
	path(b, "Final-Recipient", d.address(o.Addr))
	field(b, "Action", o.Action.String())
	field(b, "Status", statusCode(o))
	if o.Status.Code != 0 {
		if mta := remote(o.MTA); mta != "" {
			field(b, "Remote-MTA", "dns; "+mta)
		}
		field(b, "Diagnostic-Code", "smtp; "+d.text(o.Status.String()))
	} else if o.Status.Text != "" {
		field(b, "Diagnostic-Code", "X-Mochila; "+d.text(o.Status.Text))
	}
	if !o.At.IsZero() {
		field(b, "Last-Attempt-Date", o.At.Format(time.RFC1123Z))
	}
	if o.Action == envelope.ActionDelayed && !d.n.Until.IsZero() {
		field(b, "Will-Retry-Until", d.n.Until.Format(time.RFC1123Z))
	}
}

// address is an address with its type in front. Without RFC 6533 there is none that is not ASCII.
func (d *draft) address(a string) string {
	if !ascii(a) {
		return "utf-8; " + envelope.Printable(a)
	}
	return "rfc822; " + envelope.Printable(a)
}

// original is the Original-Recipient field of a recipient, "" when its sender gave no ORCPT.
func (d *draft) original(addr string) string {
	for _, r := range d.mail.Recipients {
		if r.Addr != addr || r.ORcpt == "" {
			continue
		}
		kind, value, ok := strings.Cut(r.ORcpt, ";")
		if !ok || token(kind) != kind || kind == "" {
			return ""
		}
		return kind + "; " + d.text(unXtext(value))
	}
	return ""
}

// text is foreign text as the status part may hold it.
func (d *draft) text(s string) string {
	s = envelope.Printable(s)
	if d.utf8 {
		return s
	}
	return toASCII(s)
}

// statusCode is the Status field: always a code, of a class that fits the action, but a failure may keep the
// temporary code that its last attempt met.
func statusCode(o envelope.Outcome) string {
	e := o.Status.Enhanced
	if !enhanced(e) {
		e = ""
		if c := o.Status.Code / 100; c == 2 || c == 4 || c == 5 {
			e = string(rune('0'+c)) + ".0.0"
		}
	}
	class := "2"
	switch o.Action {
	case envelope.ActionFailed:
		if strings.HasPrefix(e, "4") {
			return e
		}
		class = "5"
	case envelope.ActionDelayed:
		class = "4"
	}
	if e == "" {
		return class + ".0.0"
	}
	if e[:1] != class {
		if class == "2" || e[:1] == "2" {
			return class + ".0.0"
		}
		return class + e[1:]
	}
	return e
}

// enhanced reports whether s is a code like "5.1.1".
func enhanced(s string) bool {
	part := strings.Split(s, ".")
	if len(part) != 3 || len(part[0]) != 1 || !strings.Contains("245", part[0]) {
		return false
	}
	for _, p := range part[1:] {
		if p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}

// remote is the host in "host:port", an address in brackets; "" for what is no host.
func remote(mta string) string {
	host, _, err := net.SplitHostPort(mta)
	if err != nil {
		host = mta
	}
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		if a.Is6() {
			return "[IPv6:" + a.WithZone("").String() + "]"
		}
		return "[" + a.String() + "]"
	}
	if host == "" || token(host) != host || strings.ContainsAny(host, "/:") {
		return ""
	}
	return host
}

// quote reads what is returned of the original.
func (d *draft) quote() {
	limit := d.n.MaxReturn
	if limit == 0 {
		limit = MaxReturn
	}
	// RFC 3461 section 4.3: RET counts for failures, everything else returns the header.
	full := d.kind == envelope.ActionFailed && d.mail.Ret != "HDRS" && !d.mail.RequireTLS
	if full && d.n.Original.Size > limit && d.n.Content != nil {
		full, d.why = false, fmt.Sprintf("Your mail has %d bytes; only its header is attached.", d.n.Original.Size)
	}
	most := int64(maxHeader)
	if full {
		most = limit
	}
	raw, all := d.n.Header, false
	if d.n.Content != nil {
		if b, complete, err := read(d.n.Content, most); err == nil {
			raw, all = b, complete
		}
	}
	if full && !all {
		full = false
		if d.why == "" {
			d.why = "The content of your mail is not kept here any more."
		}
	}
	end := headerEnd(raw)
	d.header8 = !ascii(string(raw[:end]))
	if !full {
		raw = raw[:end]
		if len(raw) > maxHeader {
			raw = raw[:bytes.LastIndexByte(raw[:maxHeader], '\n')+1]
		}
	}
	d.quoted, d.whole = canonical(raw), full
}

// read returns at most limit bytes, and whether that is all.
func read(open func() (io.ReadCloser, error), limit int64) (b []byte, complete bool, err error) {
	r, err := open()
	if err != nil {
		return nil, false, err
	}
	defer r.Close()
	b, err = io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, false, err
	}
	if int64(len(b)) > limit {
		return b[:limit], false, nil
	}
	return b, true, nil
}

// HeaderOf is the header of a content, or of its beginning: whole lines, without the empty one.
func HeaderOf(b []byte) []byte { return b[:headerEnd(b)] }

// headerEnd is the length of the header, without the empty line; a last line cut short does not count when there is
// no empty line.
func headerEnd(b []byte) int {
	for i := 0; i < len(b); {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return i
		}
		if line := bytes.TrimRight(b[i:i+j], "\r"); len(line) == 0 {
			return i
		}
		i += j + 1
	}
	return len(b)
}

// canonical ends every line with CRLF and has no other CR or LF.
func canonical(b []byte) []byte {
	out := make([]byte, 0, len(b)+2)
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '\n':
			out = append(out, '\r', '\n')
		case c == '\r' && i+1 < len(b) && (b[i+1] == '\n' || b[i+1] == '\r'):
		case c == '\r':
			out = append(out, ' ')
		default:
			out = append(out, c)
		}
	}
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\r', '\n')
	}
	return out
}

// returned is the part with the original.
func (d *draft) returned(b *bytes.Buffer) {
	desc, kind := "Undelivered Message", "message/rfc822"
	if d.kind != envelope.ActionFailed {
		desc = "Message"
	}
	switch {
	case d.whole && d.utf8:
		kind = "message/global"
	case !d.whole && d.utf8:
		kind = "message/global-headers"
	case !d.whole:
		kind = "text/rfc822-headers"
	}
	if !d.whole {
		desc += " Headers"
	}
	field(b, "Content-Description", desc)
	field(b, "Content-Type", kind)
	if !ascii(string(d.quoted)) {
		field(b, "Content-Transfer-Encoding", "8bit")
	}
	b.WriteString("\r\n")
	b.Write(d.quoted)
}

// field writes one header field, folded at spaces near 76 columns and anyhow before 900.
func field(b *bytes.Buffer, name, value string) {
	b.WriteString(name + ":")
	col := len(name) + 1
	for i, w := range strings.Fields(value) {
		for len(w) > 900 { // no such word is honest
			n := runeStart(w, 900)
			b.WriteString("\r\n " + w[:n])
			w, col = w[n:], n
		}
		if i > 0 && col+1+len(w) > 76 || col+1+len(w) > 950 {
			b.WriteString("\r\n")
			col = 0
		}
		b.WriteString(" " + w)
		col += 1 + len(w)
	}
	b.WriteString("\r\n")
}

// path writes a field with an address, whose spaces count, in one line if that is possible at all.
func path(b *bytes.Buffer, name, value string) {
	if len(name)+len(value) > 990 {
		field(b, name, value)
		return
	}
	b.WriteString(name + ": " + value + "\r\n")
}

// runeStart is the last place up to n where a character of s begins.
func runeStart(s string, n int) int {
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return n
}

// wrap writes one line of text, broken at spaces near 76 columns, continued with an indent.
func wrap(b *bytes.Buffer, line string) {
	if line == "" {
		b.WriteString("\r\n")
		return
	}
	col := 0
	for i, w := range strings.Fields(line) {
		for len(w) > 900 {
			n := runeStart(w, 900)
			b.WriteString(w[:n] + "\r\n")
			w, col = w[n:], 0
		}
		if i > 0 && col+1+len(w) > 76 {
			b.WriteString("\r\n    ")
			col = 4
		} else if i > 0 {
			b.WriteByte(' ')
			col++
		}
		b.WriteString(w)
		col += len(w)
	}
	b.WriteString("\r\n")
}

// toASCII replaces what is not.
func toASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 0x80 {
			return '?'
		}
		return r
	}, s)
}

// token leaves of a text what may stand in a host name, a type or a boundary.
func token(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r) {
			return r
		}
		return -1
	}, s)
}

// envID is the decoded ENVID, "" when there is none that can be shown.
func envID(x string) string { return strings.TrimSpace(toASCII(envelope.Printable(unXtext(x)))) }

// unXtext decodes xtext (RFC 3461 section 4); what is none comes back as it is.
func unXtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return s
		}
		hi, lo := strings.IndexByte("0123456789ABCDEF", s[i+1]), strings.IndexByte("0123456789ABCDEF", s[i+2])
		if hi < 0 || lo < 0 {
			return s
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String()
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
