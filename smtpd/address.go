package smtpd

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Reasons why a path is refused.
var (
	errPathSyntax  = errors.New("bad address syntax")
	errPathControl = errors.New("control character in address")
	errPathLength  = errors.New("address too long")
)

// parsePath reads the path at the start of s, what follows "FROM:" or "TO:", and returns the address as wire text
// without angle brackets and what comes behind it. A source route (RFC 5321 section 4.1.1.3) is dropped.
//
// Accepted beyond the RFC, because real clients send it: blanks before the path, a path without angle brackets,
// addresses without a domain, local parts with odd dots and longer than 64 octets. "" stands for <>.
func parsePath(s string) (addr, rest string, err error) {
	s = strings.TrimLeft(s, " \t")
	if !strings.HasPrefix(s, "<") {
		addr, rest, _ = strings.Cut(s, " ")
		if addr == "" {
			return "", "", errPathSyntax
		}
		return addr, rest, checkAddress(addr)
	}
	end, err := closingAngle(s)
	if err != nil {
		return "", "", err
	}
	addr, rest = s[1:end], s[end+1:]
	if rest != "" && rest[0] != ' ' && rest[0] != '\t' {
		return "", "", errPathSyntax
	}
	if strings.HasPrefix(addr, "@") {
		route, mailbox, ok := strings.Cut(addr, ":")
		if !ok {
			return "", "", errPathSyntax
		}
		for _, hop := range strings.Split(route, ",") {
			if len(hop) < 2 || hop[0] != '@' || !validDomain(hop[1:]) {
				return "", "", errPathSyntax
			}
		}
		if addr = mailbox; addr == "" {
			return "", "", errPathSyntax
		}
	}
	if addr == "" {
		return "", rest, nil
	}
	return addr, rest, checkAddress(addr)
}

// closingAngle finds the ">" that ends the path at the start of s; one inside a quoted string does not.
func closingAngle(s string) (int, error) {
	quoted := false
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case !quoted && c == '>':
			return i, nil
		}
	}
	return 0, errPathSyntax
}

// checkAddress accepts local-part [ "@" domain ].
func checkAddress(addr string) error {
	if len(addr) > maxAddress {
		return errPathLength
	}
	if hasControl(addr) {
		return errPathControl
	}
	n := localLength(addr)
	switch {
	case n <= 0:
		return errPathSyntax
	case n == len(addr):
		return nil
	case addr[n] != '@' || !validDomain(addr[n+1:]):
		return errPathSyntax
	}
	return nil
}

// localLength is the length of the local part at the start of s, -1 when a quoted one does not end.
func localLength(s string) int {
	if s[0] != '"' {
		for i := 0; i < len(s); i++ {
			if c := s[i]; c == ' ' || strings.IndexByte(`<>()[],;:\"@`, c) >= 0 {
				return i
			}
		}
		return len(s)
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// validDomain accepts host names, also with underscores and UTF-8 labels, and address literals.
func validDomain(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	if s[0] == '[' {
		return len(s) > 2 && s[len(s)-1] == ']' && !strings.ContainsAny(s[1:len(s)-1], " []\\<>\"@")
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := 0; i < len(label); i++ {
			if c := label[i]; !isAlnum(c) && c != '-' && c != '_' && c < utf8.RuneSelf {
				return false
			}
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// hasControl reports control characters, C1 included, and bytes that are not UTF-8.
func hasControl(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == 0x7f {
			return true
		} else if c >= utf8.RuneSelf {
			return !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl)
		}
	}
	return false
}

// isASCII reports whether s needs no SMTPUTF8.
func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// printable is s, at most n bytes of it, with everything that could disturb a log line or a reply made "?".
func printable(s string, n int) string {
	clean := len(s) <= n
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= ' ' && s[i] < 0x7f
	}
	if clean {
		return s
	}
	b := []byte(s[:min(len(s), n)])
	for i, c := range b {
		if c < ' ' || c >= 0x7f {
			b[i] = '?'
		}
	}
	return string(b)
}
