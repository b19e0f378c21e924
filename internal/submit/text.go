package submit

import "unsafe"

// Small text helpers: package strings would pull in the Unicode tables.

func indexByte(b []byte, c byte) int {
	for i, x := range b {
		if x == c {
			return i
		}
	}
	return -1
}

// view is b as a string without a copy: it is good while b does not change.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func cut(s string, c byte) (before, after string, found bool) {
	for i := 0; i < len(s); i++ {
		if s[i] == c {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func hasPrefix(s, p string) bool { return len(s) >= len(p) && s[:len(p)] == p }

func hasPrefixFold(s, p string) bool { return len(s) >= len(p) && equalFold(s[:len(p)], p) }

func blank(c byte) bool { return c == ' ' || c == '\t' }

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func trim(s string) string {
	for len(s) > 0 && space(s[0]) {
		s = s[1:]
	}
	for len(s) > 0 && space(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

// fields splits at runs of blanks.
func fields(s string) []string {
	var out []string
	for {
		for len(s) > 0 && space(s[0]) {
			s = s[1:]
		}
		if s == "" {
			return out
		}
		n := 0
		for n < len(s) && !space(s[n]) {
			n++
		}
		out = append(out, s[:n])
		s = s[n:]
	}
}

func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - ('a' - 'A')
		}
	}
	return string(b)
}

func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// controls reports whether s has a control character other than a tab: what no address in argv may have, lest it
// becomes a line of its own somewhere.
func controls(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 && s[i] != '\t' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

func itoa(n int) string { return string(appendInt(nil, uint64(n), 0)) }

// appendInt appends v in decimal, with zeros in front up to width.
func appendInt(b []byte, v uint64, width int) []byte {
	var d [20]byte
	i := len(d)
	for v > 0 || i == len(d) || len(d)-i < width {
		i--
		d[i] = byte('0' + v%10)
		v /= 10
	}
	return append(b, d[i:]...)
}

// atoi reads a decimal number of up to 18 digits.
func atoi(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var v int64
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		v = v*10 + int64(s[i]-'0')
	}
	return v, true
}

// show quotes what a user typed for an error message: controls become "?", long text is cut.
//
//go:noinline
func show(s string) string {
	b := []byte{'"'}
	for i := 0; i < len(s); i++ {
		if i == 80 {
			b = append(b, "..."...)
			break
		}
		if s[i] < 0x20 || s[i] == 0x7f {
			b = append(b, '?')
		} else {
			b = append(b, s[i])
		}
	}
	return string(append(b, '"'))
}
