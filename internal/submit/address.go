package submit

import "unicode/utf8"

// MaxAddr is the longest address in bytes, far above RFC 5321 section 4.5.3.1.
const MaxAddr = 1000

// mailbox is one address of a list: its wire text, and where in the list that begins and ends (comments and blanks
// inside included).
type mailbox struct {
	addr       string
	start, end int
}

// boxes is the memory of parseList.
type boxes struct{ out, words [4]mailbox }

// ParseList reads the addresses of an RFC 5322 list as people write them: display names, comments, groups and source
// routes are dropped, the quotes of local parts are kept, and the words of an entry without angle brackets are
// several addresses when each of them has an "@". Empty entries and "<>" are skipped. Addresses need no domain. An
// entry that cannot be read is an error: to leave it out would lose mail.
func ParseList(s string) ([]string, error) {
	found, err := parseList(new(boxes), s)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(found))
	for i, m := range found {
		out[i] = m.addr
	}
	return out, nil
}

// scanner walks over a list. Addresses are parts of the list where they stand in one piece there.
type scanner struct {
	s     string
	out   []mailbox
	words []mailbox // of the current entry, outside of angle brackets
	angle mailbox   // between them
	// word is the one being read; its text is s[word.start:word.end] while text is nil.
	word mailbox
	text []byte
	glue bool // the word ends in "@" or ".": what follows belongs to it, even behind a blank
}

// parseList returns the addresses of a list. They are in room while that is not used again.
func parseList(room *boxes, s string) ([]mailbox, error) {
	p := scanner{s: s, out: room.out[:0], words: room.words[:0], word: mailbox{start: -1}, angle: mailbox{start: -1}}
	for i := 0; i < len(s); {
		n, err := p.step(i)
		if err != nil {
			return nil, err
		}
		i = n
	}
	p.endWord()
	return p.out, p.endEntry()
}

// step reads what stands at i and returns where it ends.
func (p *scanner) step(i int) (int, error) {
	s := p.s
	c := s[i]
	switch {
	case space(c):
		j := skipSpace(s, i)
		// RFC 5322 allows blanks around "@" and "." of an address.
		if !p.glue && (j == len(s) || s[j] != '@' && s[j] != '.' && s[j] != '(') {
			p.endWord()
		}
		return j, nil
	case c == '(':
		j, ok := skipComment(s, i)
		if !ok {
			return 0, fault(ExDataErr, "unclosed comment in "+show(s))
		}
		if k := skipSpace(s, j); !p.glue && (k == len(s) || s[k] != '@' && s[k] != '.') {
			p.endWord()
		}
		return j, nil
	case c == ',' || c == ';':
		p.endWord()
		return i + 1, p.endEntry()
	case c == ':':
		// The name of a group ends here: its members follow.
		p.endWord()
		p.reset()
		return i + 1, nil
	case c == '<':
		p.endWord()
		if p.angle.start >= 0 {
			return 0, fault(ExDataErr, "two addresses without a comma in "+show(s))
		}
		return p.scanAngle(i + 1)
	case c == '>' || c == ')':
		return 0, fault(ExDataErr, "stray "+show(s[i:i+1])+" in "+show(s))
	}
	j, ok := skipAtom(s, i)
	if !ok {
		return 0, fault(ExDataErr, "unclosed quote in "+show(s))
	}
	if p.angle.start < 0 { // else "<a@b> trailing words": sloppy, but clear
		p.add(i, j)
		p.glue = s[j-1] == '@' || s[j-1] == '.'
	}
	return j, nil
}

// add appends s[i:j] to the word.
func (p *scanner) add(i, j int) {
	switch {
	case p.word.start < 0:
		p.word.start = i
	case p.text != nil:
		p.text = append(p.text, p.s[i:j]...)
	case p.word.end != i:
		p.text = append(append([]byte(nil), p.s[p.word.start:p.word.end]...), p.s[i:j]...)
	}
	p.word.end = j
}

// take returns the word and begins another.
func (p *scanner) take() mailbox {
	m := p.word
	m.addr = p.s[m.start:m.end]
	if p.text != nil {
		m.addr = string(p.text)
	}
	p.word, p.text, p.glue = mailbox{start: -1}, nil, false
	return m
}

func (p *scanner) endWord() {
	if p.word.start >= 0 {
		p.words = append(p.words, p.take())
	}
	p.glue = false
}

func (p *scanner) reset() {
	p.words, p.angle = p.words[:0], mailbox{start: -1}
}

// endEntry decides what one entry of a list names.
func (p *scanner) endEntry() error {
	defer p.reset()
	if p.angle.start >= 0 {
		if p.angle.addr == "" {
			return nil
		}
		p.out = append(p.out, p.angle)
		return CheckAddr(p.angle.addr)
	}
	with := 0
	for _, w := range p.words {
		if domainOf(w.addr) >= 0 {
			with++
		}
	}
	all := with == len(p.words) || len(p.words) == 1
	if !all && with != 1 {
		return fault(ExDataErr, "cannot read an address out of "+show(p.s))
	}
	for _, w := range p.words {
		if !all && domainOf(w.addr) < 0 {
			continue // "John Doe j@d.e"
		}
		if err := CheckAddr(w.addr); err != nil {
			return err
		}
		p.out = append(p.out, w)
	}
	return nil
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
func (p *scanner) scanAngle(i int) (int, error) {
	s := p.s
	p.angle.start = i
	route := false
	for i < len(s) {
		c := s[i]
		switch {
		case c == '>':
			if route {
				return 0, fault(ExDataErr, "source route without an address in "+show(s))
			}
			if p.word.start >= 0 {
				p.angle = p.take()
			}
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
		case c == '@' && p.word.start < 0:
			route = true
		case c == ':' && route:
			route = false
			p.take()
			i++
			continue
		}
		j, ok := skipAtom(s, i)
		if !ok {
			return 0, fault(ExDataErr, "unclosed quote in "+show(s))
		}
		p.add(i, j)
		i = j
	}
	return 0, fault(ExDataErr, "unclosed \"<\" in "+show(s))
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
