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
	start, value, end int32
}

// header is the header of a message as it was read. It points into the buffer of the input, which keeps still until
// the header is written.
type header struct {
	raw    []byte // lines end in LF or CRLF
	fields []field
	room   [24]field // enough for most
	have   [kResentOther + 1]bool
	resent bool
	// rest is the line that ended the header because it is none of it; it is the first line of the body.
	rest    []byte
	hasRest bool
	boxes   boxes
	line    [256]byte // one that sendmail makes
}

// read reads up to the blank line, the end of the message, or the first line that is no header line. Mailbox
// separators ("From " lines) in front are dropped. Until in.keep is taken back, in must not be read on.
func (h *header) read(in *input) error {
	in.keep = true
	h.fields = h.room[:0]
	for {
		start := in.r
		l, ok, err := in.line(MaxHeaderSize)
		if err != nil {
			return err
		}
		if in.r > MaxHeaderSize {
			return fault(ExDataErr, "the header has more than 1 MiB")
		}
		h.raw = in.buf
		if !ok || len(l) == 0 {
			return nil
		}
		if len(h.fields) == 0 && separator(l) {
			continue
		}
		if blank(l[0]) && len(h.fields) > 0 {
			h.fields[len(h.fields)-1].end = int32(in.r)
			continue
		}
		name, colon := fieldName(l)
		if colon < 0 {
			h.rest, h.hasRest = l, true
			return nil
		}
		f := field{kind: kindOf(l[:name]), start: int32(start), value: int32(start + colon + 1), end: int32(in.r)}
		h.have[f.kind] = true
		h.resent = h.resent || f.kind >= kResentFrom
		h.fields = append(h.fields, f)
	}
}

// separator reports whether a line is one that mailboxes and UUCP put in front of a message.
func separator(l []byte) bool {
	if len(l) > 0 && l[0] == '>' {
		l = l[1:]
	}
	return len(l) >= 5 && string(l[:5]) == "From "
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
	for i := range kinds {
		if equalFold(view(name), kinds[i].name) {
			return kinds[i].kind
		}
	}
	return kOther
}

// value is the text of a field, folding included.
func (h *header) value(f *field) string { return view(h.raw[f.value:f.end]) }

// recipients appends the addresses in To, Cc and Bcc to dst, or those of their Resent- forms when the message has any
// Resent- field (RFC 5322 section 3.6.6).
func (h *header) recipients(dst []Recipient) ([]Recipient, error) {
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
		var err error
		if dst, err = appendRecipients(dst, &h.boxes, h.value(f)); err != nil {
			return nil, fault(ExDataErr, "header field "+show(string(h.raw[f.start:f.value-1]))+": "+err.Error())
		}
	}
	return dst, nil
}

// origin makes what a header lacks. Each method appends to b.
type origin interface {
	domain(b []byte) []byte
	from(b []byte) []byte // a whole From value
	date(b []byte) []byte
	messageID(b []byte) []byte // with its brackets
}

// write sends the header, completed, and the blank line: Bcc, Resent-Bcc and Return-Path go; From, Date and
// Message-Id (or their Resent- forms) come, behind the others; the only address of a From without a domain gets one.
// Every other line stays byte for byte, but for CRLF. A nil origin leaves the header incomplete: the mail did not
// start here.
func (h *header) write(w *writer, o origin) error {
	for i := range h.fields {
		f := &h.fields[i]
		switch f.kind {
		case kBcc, kResentBcc, kReturnPath:
			continue
		case kFrom, kResentFrom:
			if o != nil {
				if err := h.writeFrom(w, f, o); err != nil {
					return err
				}
				continue
			}
		}
		if err := w.lines(h.raw[f.start:f.end]); err != nil {
			return err
		}
	}
	if o != nil {
		if err := h.complete(w, o); err != nil {
			return err
		}
	}
	return w.line(nil)
}

func (h *header) complete(w *writer, o origin) error {
	prefix, from, date, id := "", kFrom, kDate, kMessageID
	if h.resent {
		prefix, from, date, id = "Resent-", kResentFrom, kResentDate, kResentMessageID
	}
	b := h.line[:0]
	if !h.have[id] {
		b = append(append(b, prefix...), "Message-Id: "...)
		b = append(o.messageID(b), '\n')
	}
	if !h.have[date] {
		b = append(append(b, prefix...), "Date: "...)
		b = append(o.date(b), '\n')
	}
	if !h.have[from] {
		b = append(append(b, prefix...), "From: "...)
		b = append(o.from(b), '\n')
	}
	return w.lines(b)
}

// writeFrom qualifies what cron writes: "From: root (Cron Daemon)".
func (h *header) writeFrom(w *writer, f *field, o origin) error {
	raw := h.raw[f.start:f.end]
	boxes, err := parseList(&h.boxes, h.value(f))
	if err != nil || len(boxes) != 1 || domainOf(boxes[0].addr) >= 0 {
		return w.lines(raw)
	}
	at := int(f.value-f.start) + boxes[0].end
	b := append(h.line[:0], raw[:at]...)
	b = o.domain(append(b, '@'))
	return w.lines(append(b, raw[at:]...))
}
