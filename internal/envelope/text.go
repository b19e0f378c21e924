package envelope

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// OneLine makes text fit for a diagnosis: controls become spaces, bytes that are not UTF-8 become "?", blanks at
// the ends go, and what exceeds limit bytes is cut at a character. Reports pass their texts through it.
func OneLine(s string, limit int) string {
	if clean(s, limit) {
		return s
	}
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if len(s) > limit {
		cut := max(limit, 0)
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = strings.TrimSpace(s[:cut])
	}
	return s
}

// clean reports whether OneLine has nothing to do.
func clean(s string, limit int) bool {
	if len(s) > limit || strings.TrimSpace(s) != s || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return false
		}
	}
	return true
}

// Printable makes foreign text fit to be shown to people in the text of a mail, on one line: any white space and line
// separator becomes a space, and what is no valid UTF-8, a control, or a character that turns the direction of writing or
// takes no room becomes "?". Nothing is cut.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r) || r == '\u2028' || r == '\u2029':
			return ' '
		case r == utf8.RuneError || unicode.Is(unicode.C, r):
			return '?'
		}
		return r
	}, s)
}

// checkText refuses what may not stand in an SMTP command or a header field: controls, and more than limit bytes.
func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%w: %s has %d bytes, more than %d", ErrFormat, what, len(s), limit)
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == 0x7f {
			return fmt.Errorf("%w: %s has the control character 0x%02x", ErrFormat, what, c)
		}
	}
	return nil
}
