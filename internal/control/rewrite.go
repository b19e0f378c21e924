package control

import (
	"bytes"
	"context"
	"strings"

	"mochila/bridge"
	"mochila/internal/config"
	"mochila/internal/envelope"
	"mochila/smtpd"
	"mochila/smtpd/milter"
)

// entering is what a mail's content passes on its way into the spool: an account's author is checked, filters look at it,
// addresses in its header are rewritten, then it is signed.
func (n *Node) entering(in smtpd.Intake, m *envelope.Mail) smtpd.Intake {
	in = n.rewritten(n.signed(in, m))
	c := n.config()
	if len(c.SMTP.Milters) > 0 {
		in = n.screened(in, m, c)
	}
	return n.authored(in, m, c)
}

// screened makes filters look at a mail.
func (n *Node) screened(in smtpd.Intake, m *envelope.Mail, c *config.Config) smtpd.Intake {
	f := &milter.Filters{Addrs: c.SMTP.Milters, Accept: c.SMTP.MilterDefault == "accept", Hostname: c.SMTP.Hostname, Dir: n.spool.TempDir(), Log: n.log.With("service", "cleanup")}
	return f.Screen(in, m)
}

func (n *Node) rewritten(in smtpd.Intake) smtpd.Intake {
	var rules []bridge.Rewrite
	for _, r := range n.bridge.Policy().Local.Rewrite {
		if r.Headers && !r.Out {
			rules = append(rules, r)
		}
	}
	if len(rules) == 0 {
		return in
	}
	return &headIntake{in: in, change: func(header []byte) ([]byte, error) { return rewriteHeader(header, rules), nil }}
}

// maxHeader is the length of a header up to which it is looked at. A longer one is no header of a mail.
const maxHeader = 256 << 10

// headIntake holds the header of a mail until it is whole, and passes on what change makes of it. A header above maxHeader
// passes piecemeal: change gets nil for it.
type headIntake struct {
	in     smtpd.Intake
	change func(header []byte) ([]byte, error)
	header []byte
	ended  bool
}

// Write is smtpd.Intake's.
func (w *headIntake) Write(p []byte) (int, error) {
	if w.ended {
		return w.in.Write(p)
	}
	from := max(0, len(w.header)-3) // the empty line may have begun before p
	w.header = append(w.header, p...)
	end := bytes.Index(w.header[from:], []byte("\r\n\r\n"))
	n := -1
	switch {
	case bytes.HasPrefix(w.header, []byte("\r\n")):
		n = 0
	case end >= 0 && from+end+2 <= maxHeader:
		n = from + end + 2
	case end < 0 && len(w.header) <= maxHeader:
		return len(p), nil
	}
	if err := w.release(n); err != nil {
		return 0, err
	}
	return len(p), nil
}

// release passes on what was held; the first n bytes are the header, with -1 there is none that is whole.
func (w *headIntake) release(n int) error {
	w.ended = true
	all := w.header
	w.header = nil
	var head []byte
	if n >= 0 {
		head = all[:n:n]
		all = all[n:]
	}
	head, err := w.change(head)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{head, all} {
		if len(part) > 0 {
			if _, err := w.in.Write(part); err != nil {
				return err
			}
		}
	}
	return nil
}

// Commit is smtpd.Intake's.
func (w *headIntake) Commit(ctx context.Context) (string, error) {
	if !w.ended {
		n := -1
		if bytes.HasSuffix(w.header, []byte("\r\n")) && len(w.header) <= maxHeader {
			n = len(w.header) // a mail of a header only
		}
		if err := w.release(n); err != nil {
			w.in.Abort()
			return "", err
		}
	}
	return w.in.Commit(ctx)
}

// Abort is smtpd.Intake's.
func (w *headIntake) Abort() { w.in.Abort() }

// addressFields are the header fields with addresses of those who write, and of those who are written to.
var addressFields = []string{"from", "sender", "reply-to", "to", "cc", "resent-from", "resent-sender", "resent-to", "resent-cc",
	"return-receipt-to", "disposition-notification-to"}

// rewriteHeader changes addresses in the fields of a header, and nothing else: folding, case and order stay.
func rewriteHeader(header []byte, rules []bridge.Rewrite) []byte {
	out := make([]byte, 0, len(header)+64)
	inside := false
	for len(header) > 0 {
		line := header
		if i := bytes.IndexByte(header, '\n'); i >= 0 {
			line = header[:i+1]
		}
		header = header[len(line):]
		if line[0] != ' ' && line[0] != '\t' {
			name, _, _ := bytes.Cut(line, []byte(":"))
			inside = false
			for _, f := range addressFields {
				inside = inside || strings.EqualFold(string(bytes.TrimRight(name, " \t")), f)
			}
		}
		if inside && bytes.IndexByte(line, '@') >= 0 {
			out = appendRewritten(out, string(line), rules)
		} else {
			out = append(out, line...)
		}
	}
	return out
}

// appendRewritten writes a line with each address in it rewritten.
func appendRewritten(out []byte, line string, rules []bridge.Rewrite) []byte {
	for {
		at := strings.IndexByte(line, '@')
		if at < 0 {
			return append(out, line...)
		}
		begin := at
		if at > 0 && line[at-1] == '"' { // a quoted local part
			if i := strings.LastIndexByte(line[:at-1], '"'); i >= 0 {
				begin = i
			}
		} else {
			for begin > 0 && isAtext(line[begin-1]) {
				begin--
			}
		}
		end := at + 1
		for end < len(line) && isDomainByte(line[end]) {
			end++
		}
		for end > at+1 && (line[end-1] == '.' || line[end-1] == '-') {
			end--
		}
		addr := line[begin:end]
		if begin < at && end > at+1 {
			for i := range rules {
				if a, ok := rules[i].Apply(addr); ok {
					addr = a
					break
				}
			}
		}
		out = append(append(out, line[:begin]...), addr...)
		line = line[end:]
	}
}

func isAtext(c byte) bool {
	return c >= 0x80 || c > ' ' && c != 0x7f && !strings.ContainsRune(`()<>[]:;@\,"`, rune(c))
}

func isDomainByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c >= 0x80
}
