package submit

import "unicode/utf8"

// MaxAddr is the longest address in bytes, far above RFC 5321 section 4.5.3.1.
const MaxAddr = 1000

// A mailbox as it stands in a list: its wire text, and where in the list that text begins and ends (comments and
// blanks inside included).
type mailbox struct {
	addr       string
	start, end int
}

// ParseList reads the addresses of an RFC 5322 list as people write them: display names, comments, groups and source
// routes are dropped, the quotes of local parts are kept, and the words of an entry without angle brackets are
// several addresses when each of them has an "@". Empty entries and "<>" are skipped. Addresses need no domain. An
// entry that cannot be read is an error: to leave it out would lose mail.
func ParseList(s string) ([]string, error) {
	boxes, err := parseList(s)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(boxes))
	for i, m := range boxes {
		out[i] = m.addr
	}
	return out, nil
}

// entry collects one element of a list while the scanner walks over it.
type entry struct {
	words    []mailbox // outside of angle brackets
	angle    []byte    // between them
	hasAngle bool
	start    int // of the text in angle brackets
	end      int
	any      bool
}

func parseList(s string) ([]mailbox, error) {
	var out []mailbox
	var e entry
	flush := func() error {
		m, err := e.mailboxes(s)
		out = append(out, m...)
		e = entry{}
		return err
	}
	word := mailbox{start: -1}
	var text []byte
	glue := false // the last character was "@" or ".", or a blank was only folding around one
	endWord := func() {
		if word.start >= 0 {
			word.addr = string(text)
			e.words = append(e.words, word)
			e.any = true
		}
		word.start, text, glue = -1, nil, false
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case space(c):
			j := i
			for j < len(s) && space(s[j]) {
				j++
			}
			// RFC 5322 allows blanks around "@" and "." of an address.
			if !glue && (j == len(s) || s[j] != '@' && s[j] != '.' && s[j] != '(') {
				endWord()
			}
			i = j
			continue
		case c == '(':
			j, ok := skipComment(s, i)
			if !ok {
				return nil, fault(ExDataErr, "unclosed comment in "+show(s))
			}
			if k := skipSpace(s, j); !glue && (k == len(s) || s[k] != '@' && s[k] != '.') {
				endWord()
			}
			i = j
			continue
		case c == ',' || c == ';':
			endWord()
			if err := flush(); err != nil {
				return nil, err
			}
			i++
			continue
		case c == ':':
			// The name of a group ends here: its members follow.
			endWord()
			e = entry{}
			i++
			continue
		case c == '<':
			endWord()
			if e.hasAngle {
				return nil, fault(ExDataErr, "two addresses without a comma in "+show(s))
			}
			n, err := e.scanAngle(s, i+1)
			if err != nil {
				return nil, err
			}
			i = n
			continue
		case c == '>' || c == ')':
			return nil, fault(ExDataErr, "stray "+show(string(rune(c)))+" in "+show(s))
		}
		if e.hasAngle {
			// "<a@b> trailing words": sloppy, but clear.
			j, ok := skipAtom(s, i)
			if !ok {
				return nil, fault(ExDataErr, "unclosed quote in "+show(s))
			}
			i = j
			continue
		}
		if word.start < 0 {
			word.start = i
		}
		j, ok := skipAtom(s, i)
		if !ok {
			return nil, fault(ExDataErr, "unclosed quote in "+show(s))
		}
		text = append(text, s[i:j]...)
		glue = s[j-1] == '@' || s[j-1] == '.'
		i, word.end = j, j
	}
	endWord()
	return out, flush()
}

// skipAtom moves over one character, one quoted string or one domain literal.
func skipAtom(s string, i int) (int, bool) {
	end := byte(0)
	switch s[i] {
	case '"':
		end = '"'
	case '[':
		end = ']'
	default:
		return i + 1, true
	}
	for i++; i < len(s); i++ {
		switch s[i] {
		case end:
			return i + 1, true
		case '\\':
			i++
		}
	}
	return i, false
}

func skipComment(s string, i int) (int, bool) {
	for depth := 0; i < len(s); i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1, true
			}
		case '\\':
			i++
		}
	}
	return i, false
}

func skipSpace(s string, i int) int {
	for i < len(s) && space(s[i]) {
		i++
	}
	return i
}

// scanAngle reads up to the closing bracket and drops a source route ("@a,@b:").
func (e *entry) scanAngle(s string, i int) (int, error) {
	e.hasAngle, e.any, e.start = true, true, i
	route := false
	for i < len(s) {
		c := s[i]
		switch {
		case c == '>':
			if route {
				return 0, fault(ExDataErr, "source route without an address in "+show(s))
			}
			e.end = i
			return i + 1, nil
		case c == '<':
			return 0, fault(ExDataErr, "stray \"<\" in "+show(s))
		case space(c):
			i++
			continue
		case c == '(':
			j, ok := skipComment(s, i)
			if !ok {
				return 0, fault(ExDataErr, "unclosed comment in "+show(s))
			}
			i = j
			continue
		case c == '@' && len(e.angle) == 0:
			route = true
		case c == ':' && route:
			route = false
			e.angle, e.start = nil, i+1
			i++
			continue
		}
		j, ok := skipAtom(s, i)
		if !ok {
			return 0, fault(ExDataErr, "unclosed quote in "+show(s))
		}
		if e.angle == nil {
			e.start = i
		}
		e.angle = append(e.angle, s[i:j]...)
		i = j
	}
	return 0, fault(ExDataErr, "unclosed \"<\" in "+show(s))
}

// mailboxes decides what one entry of a list names.
func (e *entry) mailboxes(list string) ([]mailbox, error) {
	if !e.any {
		return nil, nil
	}
	if e.hasAngle {
		if len(e.angle) == 0 {
			return nil, nil
		}
		m := mailbox{addr: string(e.angle), start: e.start, end: e.end}
		return []mailbox{m}, CheckAddr(m.addr)
	}
	var with []mailbox
	for _, w := range e.words {
		if domainOf(w.addr) >= 0 {
			with = append(with, w)
		}
	}
	switch {
	case len(e.words) == 1:
		with = e.words
	case len(with) == len(e.words) || len(with) == 1:
	default:
		return nil, fault(ExDataErr, "cannot read an address out of "+show(list))
	}
	for _, w := range with {
		if err := CheckAddr(w.addr); err != nil {
			return nil, err
		}
	}
	return with, nil
}

// domainOf is where the "@" of an address stands, -1 without one.
func domainOf(a string) int {
	at := -1
	for i := 0; i < len(a); {
		if a[i] == '@' {
			at = i
		}
		j, ok := skipAtom(a, i)
		if !ok {
			break
		}
		i = j
	}
	return at
}

// CheckAddr refuses what cannot stand between the angle brackets of an SMTP command: controls, blanks and brackets
// outside of quotes, bad UTF-8, an empty local part or domain, and more than MaxAddr bytes. Its errors are Faults
// with ExDataErr.
func CheckAddr(a string) error {
	bad := func(why string) error { return fault(ExDataErr, "bad address "+show(a)+": "+why) }
	if a == "" {
		return bad("it is empty")
	}
	if len(a) > MaxAddr {
		return bad("it is longer than 1000 bytes")
	}
	if !utf8.ValidString(a) {
		return bad("it is not UTF-8")
	}
	for i := 0; i < len(a); i++ {
		if a[i] < 0x20 || a[i] == 0x7f {
			return bad("it contains a control character")
		}
	}
	for i := 0; i < len(a); {
		switch a[i] {
		case ' ', '<', '>', '(', ')', ',', ';', '\\':
			return bad("it contains " + show(string(rune(a[i]))) + " outside of quotes")
		}
		j, ok := skipAtom(a, i)
		if !ok {
			return bad("a quote is not closed")
		}
		i = j
	}
	switch at := domainOf(a); {
	case at == 0:
		return bad("nothing stands before the \"@\"")
	case at == len(a)-1:
		return bad("nothing stands after the \"@\"")
	}
	return nil
}

// Unbang turns an UUCP path into an address: what stands after the last host that is a domain name, else the first
// host's. "a!b.example!u" is u@b.example, "a!b!u" is b!u@a, "a!u@d" is u@d. Quoted local parts stay as they are.
func Unbang(a string) string {
	if indexByte([]byte(a), '"') >= 0 {
		return a
	}
	if domainOf(a) >= 0 {
		for i := len(a) - 1; i >= 0; i-- {
			if a[i] == '!' && i < domainOf(a) {
				return a[i+1:]
			}
		}
		return a
	}
	last, prev := -1, -1
	for i := 0; i < len(a); i++ {
		if a[i] == '!' {
			last, prev = i, last
		}
	}
	if last <= 0 || last == len(a)-1 {
		return a
	}
	host := a[prev+1 : last]
	if _, _, dotted := cut(host, '.'); dotted || prev < 0 {
		return a[last+1:] + "@" + host
	}
	first, rest, _ := cut(a, '!')
	return rest + "@" + first
}
