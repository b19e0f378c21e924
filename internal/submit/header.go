package submit

// MaxHeaderSize bounds the header of a message that sendmail reads: it is held in memory.
const MaxHeaderSize = 1 << 20

// kind is a header field that sendmail looks at.
type kind uint8

const (
	kOther kind = iota
	kFrom
	kTo
	kCc
	kBcc
	kDate
	kMessageID
	kReturnPath
	kResentFrom
	kResentTo
	kResentCc
	kResentBcc
	kResentDate
	kResentMessageID
	kResentOther
)

var kinds = [...]struct {
	name string
	kind kind
}{
	{"from", kFrom}, {"to", kTo}, {"cc", kCc}, {"bcc", kBcc}, {"date", kDate}, {"message-id", kMessageID},
	{"return-path", kReturnPath}, {"resent-from", kResentFrom}, {"resent-to", kResentTo}, {"resent-cc", kResentCc},
	{"resent-bcc", kResentBcc}, {"resent-date", kResentDate}, {"resent-message-id", kResentMessageID},
	{"resent-sender", kResentOther}, {"resent-reply-to", kResentOther},
}

// field is one header field: raw[start:end] with its line ends, raw[value:end] without its name.
type field struct {
	kind              kind
	start, value, end int
}

// header is the header of a message as it was read.
type header struct {
	raw    []byte // every field byte for byte, but with CRLF line ends
	fields []field
	have   [kResentOther + 1]bool
	resent bool
	// rest is the line that ended the header because it is none of it; it is the first line of the body.
	rest    []byte
	hasRest bool
}

// readHeader reads up to the blank line, the end of the message, or the first line that is no header line.
// Mailbox separators ("From " lines) in front are dropped.
func readHeader(in *input) (*header, error) {
	h := &header{}
	for {
		l, ok, err := in.line(MaxHeaderSize)
		if err != nil {
			return nil, err
		}
		if !ok || len(l) == 0 {
			return h, nil
		}
		if len(h.raw)+len(l)+2 > MaxHeaderSize {
			return nil, fault(ExDataErr, "the header has more than 1 MiB")
		}
		if len(h.fields) == 0 && (hasPrefix(string(l[:min(len(l), 6)]), "From ") || hasPrefix(string(l[:min(len(l), 6)]), ">From ")) {
			continue
		}
		start := len(h.raw)
		if blank(l[0]) && len(h.fields) > 0 {
			h.raw = append(append(h.raw, l...), '\r', '\n')
			h.fields[len(h.fields)-1].end = len(h.raw)
			continue
		}
		name, colon := fieldName(l)
		if colon < 0 {
			h.rest, h.hasRest = append([]byte(nil), l...), true
			return h, nil
		}
		h.raw = append(append(h.raw, l...), '\r', '\n')
		f := field{kind: kindOf(l[:name]), start: start, value: start + colon + 1, end: len(h.raw)}
		h.have[f.kind] = true
		h.resent = h.resent || f.kind >= kResentFrom
		h.fields = append(h.fields, f)
	}
}

// fieldName returns the length of the name and where the colon stands, or -1 when the line is no header field
// (RFC 5322 section 2.2; blanks before the colon as in its section 4.5).
func fieldName(l []byte) (name, colon int) {
	n := 0
	for n < len(l) && l[n] > ' ' && l[n] < 0x7f && l[n] != ':' {
		n++
	}
	c := n
	for c < len(l) && blank(l[c]) {
		c++
	}
	if n == 0 || c == len(l) || l[c] != ':' {
		return 0, -1
	}
	return n, c
}

func kindOf(name []byte) kind {
	if len(name) > len("resent-message-id") {
		return kOther
	}
	s := string(name)
	for _, k := range kinds {
		if equalFold(s, k.name) {
			return k.kind
		}
	}
	return kOther
}

// value is the text of a field, folding included.
func (h *header) value(f *field) string { return string(h.raw[f.value:f.end]) }

// recipients lists the addresses in To, Cc and Bcc, or those of their Resent- forms when the message has any
// Resent- field (RFC 5322 section 3.6.6).
func (h *header) recipients() ([]string, error) {
	var out []string
	for i := range h.fields {
		f := &h.fields[i]
		switch f.kind {
		case kTo, kCc, kBcc:
			if h.resent {
				continue
			}
		case kResentTo, kResentCc, kResentBcc:
		default:
			continue
		}
		list, err := ParseList(h.value(f))
		if err != nil {
			return nil, fault(ExDataErr, "header field "+show(string(h.raw[f.start:f.value-1]))+": "+err.Error())
		}
		out = append(out, list...)
	}
	return out, nil
}

// repair is what header.write needs to know to complete a header.
type repair struct {
	gateway bool // leave the header incomplete: the mail did not start here
	domain  func() string
	from    func() string // a whole From value
	date    func() string
	id      func() string // "<...>"
}

// write sends the header, completed, and the blank line: Bcc, Resent-Bcc and Return-Path go; From, Date and
// Message-Id (or their Resent- forms) come, behind the others; the only address of a From without a domain gets one.
// Every other line stays byte for byte.
func (h *header) write(w *writer, r *repair) error {
	for i := range h.fields {
		f := &h.fields[i]
		switch f.kind {
		case kBcc, kResentBcc, kReturnPath:
			continue
		case kFrom, kResentFrom:
			if !r.gateway {
				if err := h.writeFrom(w, f, r); err != nil {
					return err
				}
				continue
			}
		}
		if err := w.write(h.raw[f.start:f.end]); err != nil {
			return err
		}
	}
	if !r.gateway {
		if err := h.complete(w, r); err != nil {
			return err
		}
	}
	return w.line(nil)
}

func (h *header) complete(w *writer, r *repair) error {
	prefix, from, date, id := "", kFrom, kDate, kMessageID
	if h.resent {
		prefix, from, date, id = "Resent-", kResentFrom, kResentDate, kResentMessageID
	}
	add := func(k kind, name string, value func() string) error {
		if h.have[k] {
			return nil
		}
		return w.line([]byte(prefix + name + ": " + value()))
	}
	if err := add(id, "Message-Id", r.id); err != nil {
		return err
	}
	if err := add(date, "Date", r.date); err != nil {
		return err
	}
	return add(from, "From", r.from)
}

// writeFrom qualifies what cron writes: "From: root (Cron Daemon)".
func (h *header) writeFrom(w *writer, f *field, r *repair) error {
	raw := h.raw[f.start:f.end]
	boxes, err := parseList(h.value(f))
	if err != nil || len(boxes) != 1 || domainOf(boxes[0].addr) >= 0 {
		return w.write(raw)
	}
	at := f.value - f.start + boxes[0].end
	b := append(make([]byte, 0, len(raw)+64), raw[:at]...)
	b = append(append(b, '@'), r.domain()...)
	return w.write(append(b, raw[at:]...))
}
