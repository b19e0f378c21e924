package route

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Kind is the shape of a Pattern.
type Kind uint8

const (
	Any     Kind = iota + 1 // "*": every address, the null sender included
	Exact                   // "example.org": that domain alone
	Below                   // "*.example.org": every domain below it, at any depth, not itself
	Mailbox                 // "ana@example.org": one address
	Null                    // "<>": the null sender, in sender patterns only
)

// Pattern is one parsed address pattern. Domains are compared without regard to case, U-labels with U-labels and
// A-labels with A-labels (nothing is converted between the two); local parts are compared exactly, except that
// "postmaster" may be written in any case (RFC 5321 section 4.5.1) and that needless quotes do not count.
type Pattern struct {
	Kind   Kind
	Local  string // of a Mailbox, unquoted
	Domain string // of Exact, Below and Mailbox, folded
	text   string
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.text }

// ParsePattern reads one pattern. Errors say what is wrong with it and what is meant perhaps.
func ParsePattern(s string) (Pattern, error) {
	p := Pattern{text: s}
	bad := func(format string, a ...any) (Pattern, error) {
		return Pattern{}, fmt.Errorf("pattern %q: %s", s, fmt.Sprintf(format, a...))
	}
	switch {
	case s == "":
		return Pattern{}, errors.New("empty pattern (write a domain, *.domain, user@domain or *)")
	case s == "*":
		p.Kind = Any
		return p, nil
	case s == "<>":
		p.Kind = Null
		return p, nil
	case !utf8.ValidString(s):
		return bad("not valid UTF-8")
	case strings.HasPrefix(s, "<") || strings.HasSuffix(s, ">"):
		return bad("leave the angle brackets out")
	}
	local, domain, at := cut(s)
	if !at && strings.HasPrefix(s, `"`) {
		return bad("no @ after the quoted local part")
	}
	if !at {
		domain, p.Kind = s, Exact
		if d, ok := strings.CutPrefix(s, "*."); ok {
			domain, p.Kind = d, Below
		}
	} else {
		p.Kind, p.Local = Mailbox, Unquote(local)
		switch {
		case local == "" || local == "*":
			return bad("for every user of a domain write the domain alone: %q", domain)
		case strings.Contains(local, "*") && local[0] != '"':
			return bad("a * cannot be part of a local part")
		case !SafePath(local + "@x"):
			return bad("%q is not a local part", local)
		}
	}
	if why := badDomain(domain); why != "" {
		return bad("%s", why)
	}
	p.Domain = Fold(domain)
	return p, nil
}

// badDomain says what is wrong with the domain of a pattern, "" when nothing is.
func badDomain(d string) string {
	if strings.HasPrefix(d, "[") && strings.HasSuffix(d, "]") && len(d) > 2 && !strings.ContainsAny(d, " \t\"<>@*") {
		return "" // an address literal
	}
	switch {
	case d == "":
		return "the domain is missing"
	case len(d) > 255:
		return "the domain is longer than 255 bytes"
	case strings.Contains(d, "*"):
		return "a * stands alone or in front, as in *.example.org"
	case strings.HasSuffix(d, "."):
		return "leave out the dot at the end"
	case strings.HasPrefix(d, "."):
		return fmt.Sprintf("write *%s for everything below %s", d, d[1:])
	case strings.Contains(d, ".."):
		return "two dots in a row"
	}
	for _, r := range d {
		if r < 0x80 && !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_') ||
			unicode.IsSpace(r) || unicode.IsControl(r) {
			return fmt.Sprintf("%q does not belong in a domain", r)
		}
	}
	return ""
}

// Match reports whether addr, in wire form ("" is the null sender), falls under the pattern.
func (p Pattern) Match(addr string) bool {
	if addr == "" {
		return p.Kind == Null || p.Kind == Any
	}
	local, domain := Split(addr)
	return p.match(local, Fold(domain))
}

// match is Match for an address that is split and folded.
func (p Pattern) match(local, domain string) bool {
	switch p.Kind {
	case Any:
		return true
	case Exact:
		return domain == p.Domain
	case Below:
		n := len(domain) - len(p.Domain)
		return n > 1 && domain[n-1] == '.' && domain[n:] == p.Domain
	case Mailbox:
		return domain == p.Domain && sameLocal(p.Local, Unquote(local))
	}
	return false
}

// sameLocal compares two unquoted local parts.
func sameLocal(a, b string) bool { return mailboxLocal(a) == mailboxLocal(b) }

// mailboxLocal is the form in which unquoted local parts are compared.
func mailboxLocal(s string) string {
	if len(s) == len("postmaster") && strings.EqualFold(s, "postmaster") {
		return "postmaster"
	}
	return s
}

// cut splits an address at the last @ outside quotes.
func cut(addr string) (local, domain string, at bool) {
	if !strings.Contains(addr, `"`) {
		i := strings.LastIndexByte(addr, '@')
		if i < 0 {
			return addr, "", false
		}
		return addr[:i], addr[i+1:], true
	}
	i, quoted := -1, false
	for j := 0; j < len(addr); j++ {
		switch c := addr[j]; {
		case c == '\\' && quoted:
			j++
		case c == '"':
			quoted = !quoted
		case c == '@' && !quoted:
			i = j
		}
	}
	if i < 0 {
		return addr, "", false
	}
	return addr[:i], addr[i+1:], true
}

// Split divides an address in wire form into its local part, quotes kept, and what follows the last @ outside
// quotes. An unqualified address has no domain.
func Split(addr string) (local, domain string) {
	local, domain, _ = cut(addr)
	return local, domain
}

// Domain is the domain of an address in wire form, "" when it has none.
func Domain(addr string) string {
	_, d, _ := cut(addr)
	return d
}

// Unquote takes the quotes and backslashes off a quoted local part: "a\ b" and "a b" name one mailbox. Other local
// parts come back as they are.
func Unquote(local string) string {
	if len(local) < 2 || local[0] != '"' || local[len(local)-1] != '"' {
		return local
	}
	in := local[1 : len(local)-1]
	if !strings.Contains(in, `\`) {
		return in
	}
	var b strings.Builder
	for i := 0; i < len(in); i++ {
		if in[i] == '\\' && i+1 < len(in) {
			i++
		}
		b.WriteByte(in[i])
	}
	return b.String()
}

// Fold puts a name into the form in which case does not count. A letter beyond ASCII never becomes an ASCII one, so
// that look-alikes such as the Kelvin sign stay what they are.
func Fold(s string) string {
	plain := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= 'A' && c <= 'Z' || c >= 0x80 {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	return strings.Map(func(r rune) rune {
		l := unicode.ToLower(r)
		if r >= 0x80 && l < 0x80 {
			return r
		}
		return l
	}, s)
}

// SafePath reports whether an address can stand between the angle brackets of an SMTP command without being
// anything else: no control characters, no space, bracket or quote outside a quoted local part, every quote closed,
// valid UTF-8, at most 1,000 bytes. It does not ask whether the address makes sense.
func SafePath(addr string) bool {
	if addr == "" || len(addr) > 1000 || !utf8.ValidString(addr) {
		return false
	}
	for _, r := range addr {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return false
		}
	}
	i := 0
	if addr[0] == '"' {
		for i = 1; ; i++ {
			if i >= len(addr) {
				return false
			}
			if addr[i] == '\\' {
				i++
			} else if addr[i] == '"' {
				i++
				break
			}
		}
		if i < len(addr) && addr[i] != '@' {
			return false
		}
	}
	return !strings.ContainsAny(addr[i:], " <>\"\\")
}
