package summary

import (
	"bufio"
	"bytes"
	"io"
	"slices"
	"strings"
)

// Bounds of what is looked at: a mail beyond them is not taken apart.
const (
	maxDepth = 20
	maxParts = 1000
)

// level is a multipart that is open.
type level struct {
	delimiter []byte // "--" and its boundary
	digest    bool
	alt       int // number of the outermost alternative around it, 0 none
}

// scanner goes over a mail once, line by line. What it holds does not grow with the mail.
//
// It finds the borders of parts itself because the MIME readers at hand give up on what real mail has (no last boundary,
// a line in a part's header without a colon) and read a header of any length into memory. What a header means is
// go-message's business.
type scanner struct {
	m     *Mail
	top   bool   // in the header of the mail itself
	head  *block // the header that is being read; nil outside of one
	stack []level
	part  *Part // whose body is being read; nil in a preamble or epilogue
	armor armor // looks for PGP in it
	alts  int
	pos   int64 // of the line
	body  int64 // where the mail's own body begins
	eol   int64 // length of the line end before the line
}

// Read looks at a whole mail. The error is r's.
func Read(r io.Reader) (*Mail, error) {
	s := &scanner{m: &Mail{}, top: true, head: &block{wanted: wantedOfMail, room: roomOfMail}}
	br := bufio.NewReaderSize(r, 64<<10)
	begins := true
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			s.line(line, begins)
			s.pos += int64(len(line))
		}
		begins = err == nil
		switch err {
		case nil, bufio.ErrBufferFull:
		case io.EOF:
			s.end()
			return s.m, nil
		default:
			return nil, err
		}
	}
}

// line takes one line, or one piece of a long one; begins is true for the first.
func (s *scanner) line(l []byte, begins bool) {
	text := bytes.TrimRight(l, "\r\n")
	defer func() { s.eol = int64(len(l) - len(text)) }()
	if begins && !s.top && bytes.HasPrefix(text, []byte("--")) && s.border(text) {
		return
	}
	switch {
	case s.head != nil && begins && len(text) == 0:
		s.headEnds(s.pos + int64(len(l)))
	case s.head != nil:
		s.head.add(l, begins)
	case s.part != nil:
		s.part.to = s.pos + int64(len(l))
		s.part.chars += int64(len(text))
		if s.part.isText() {
			s.m.seal(s.armor.look(text))
		}
	}
}

// border takes a line that may be the delimiter of an open multipart.
func (s *scanner) border(text []byte) bool {
	if s.m.Broken != "" {
		return false
	}
	text = bytes.TrimRight(text, " \t")
	for k := len(s.stack) - 1; k >= 0; k-- {
		rest, ok := bytes.CutPrefix(text, s.stack[k].delimiter)
		if !ok || len(rest) > 0 && string(rest) != "--" {
			continue
		}
		if s.head != nil { // a part without a body
			s.headEnds(s.pos)
		}
		s.closePart()
		s.stack = s.stack[:k+1]
		if len(rest) > 0 {
			s.stack = s.stack[:k]
			return true
		}
		s.head = &block{wanted: wantedOfPart, room: roomOfPart}
		return true
	}
	return false
}

// closePart ends the body that is being read; the line end in front of a delimiter belongs to the delimiter.
func (s *scanner) closePart() {
	if s.part != nil {
		s.part.to = max(s.part.from, s.pos-s.eol)
		s.part = nil
	}
}

// headEnds takes a header that is complete; at is where the body begins.
func (s *scanner) headEnds(at int64) {
	h := s.head
	s.head = nil
	var in level
	if n := len(s.stack); n > 0 {
		in = s.stack[n-1]
	}
	p := newPart(h, in.digest)
	if s.top {
		s.top, s.body = false, at
		s.m.take(h, p)
	}
	s.m.seal(p.sealing())
	if strings.HasPrefix(p.Type, "multipart/") && s.m.Broken == "" {
		s.open(p, in)
		return
	}
	if len(s.m.Parts) == maxParts {
		s.m.Broken = "it has more than 1000 parts"
	}
	if s.m.Broken != "" {
		return
	}
	p.from, p.to, p.alt = at, at, in.alt
	s.m.Parts = append(s.m.Parts, p)
	s.part, s.armor = p, armor{encoding: p.encoding}
}

// open begins a multipart.
func (s *scanner) open(p *Part, in level) {
	switch {
	case p.boundary == "":
		s.m.Broken = "its parts have no boundary"
		return
	case len(s.stack) == maxDepth:
		s.m.Broken = "its parts are nested too deep"
		return
	}
	l := level{delimiter: []byte("--" + p.boundary), alt: in.alt, digest: p.Type == "multipart/digest"}
	if p.Type == "multipart/alternative" && l.alt == 0 {
		s.alts++
		l.alt = s.alts
	}
	s.stack = append(s.stack, l)
}

// end takes the end of the mail.
func (s *scanner) end() {
	if s.head != nil {
		s.headEnds(s.pos)
	}
	s.m.Size = s.pos
	if s.m.Broken == "" && len(s.m.Parts) == 0 {
		s.m.Broken = "no part of it was found"
	}
	if s.m.Broken != "" {
		s.m.Parts = []*Part{{Type: s.m.kind, from: s.body, to: s.pos, chars: s.pos - s.body, whole: true}}
	}
}

// block gathers the fields of a header that are wanted, within bounds.
type block struct {
	wanted func(name string) want
	room   int // for those that are not important
	fields []field
	lost   []string // names of wanted ones that were too long, or too many; each once, the first few
	cur    int      // 1 + index of the field being read; 0: it is not kept
	dkim   bool
}

// field is one header field: raw is as it stands in the mail, with its line ends.
type field struct {
	name string // lower case
	raw  []byte
	must bool
}

// maxField is how long a field may be that is kept.
const maxField = 4 << 10

func (b *block) add(l []byte, begins bool) {
	if begins && l[0] != ' ' && l[0] != '\t' {
		b.begin(l)
		return
	}
	if b.cur > 0 && b.fits(&b.fields[b.cur-1], l) {
		b.fields[b.cur-1].raw = append(b.fields[b.cur-1].raw, l...)
	}
}

// begin takes the first line of a field; what is none is left out.
func (b *block) begin(l []byte) {
	b.cur = 0
	k, _, ok := bytes.Cut(l, []byte(":"))
	name := strings.ToLower(strings.TrimRight(string(k[:min(len(k), 100)]), " \t"))
	if !ok || name == "" || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) >= 0 {
		return
	}
	b.dkim = b.dkim || name == "dkim-signature"
	w := b.wanted(name)
	if w == no || w == must && b.find(name) != nil {
		return
	}
	f := field{name: name, must: w == must}
	if b.fields = append(b.fields, f); b.fits(&f, l) {
		b.cur = len(b.fields)
		b.fields[b.cur-1].raw = bytes.Clone(l)
	}
}

// fits reports whether the last field may grow; one that may not is given up.
func (b *block) fits(f *field, l []byte) bool {
	if len(f.raw)+len(l) <= maxField && (f.must || len(l) <= b.room) {
		if !f.must {
			b.room -= len(l)
		}
		return true
	}
	b.cur, b.fields = 0, b.fields[:len(b.fields)-1]
	if !f.must {
		b.room += len(f.raw)
	}
	if len(b.lost) < 20 && !slices.Contains(b.lost, f.name) {
		b.lost = append(b.lost, f.name)
	}
	return false
}

func (b *block) find(name string) *field {
	for i := range b.fields {
		if b.fields[i].name == name {
			return &b.fields[i]
		}
	}
	return nil
}
