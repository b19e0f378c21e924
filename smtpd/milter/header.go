package milter

import (
	"strings"

	gomilter "github.com/emersion/go-milter"
)

// field is one header field, with its line ends as it came.
type field struct {
	name string // without the colon
	text string // whole
}

// value is what a filter is told: what follows the colon, folded with LF, without the space in front.
func (f *field) value() string {
	_, v, _ := strings.Cut(f.text, ":")
	v = strings.ReplaceAll(strings.TrimSuffix(v, "\r\n"), "\r\n", "\n")
	return strings.TrimPrefix(v, " ")
}

// fields splits a header. Lines that belong to no field stay with the one before, or stand alone without a name.
func fields(header []byte) []field {
	var out []field
	for line := range strings.Lines(string(header)) {
		if len(out) > 0 && (line[0] == ' ' || line[0] == '\t') {
			out[len(out)-1].text += line
			continue
		}
		name, _, ok := strings.Cut(line, ":")
		if !ok {
			name = ""
		}
		out = append(out, field{name: strings.TrimRight(name, " \t"), text: line})
	}
	return out
}

// modify does what a filter asks of the header.
func (t *intake) modify(mods []gomilter.ModifyAction) {
	if len(mods) == 0 || len(t.header) == 0 {
		return
	}
	all := fields(t.header)
	for _, m := range mods {
		if !goodName(m.HeaderName) {
			continue
		}
		text := m.HeaderName + ": " + strings.ReplaceAll(clean(m.HeaderValue), "\n", "\r\n") + "\r\n"
		switch m.Code {
		case gomilter.ActAddHeader:
			all = append(all, field{m.HeaderName, text})
		case gomilter.ActInsertHeader:
			i := min(int(m.HeaderIndex), len(all))
			all = append(all[:i:i], append([]field{{m.HeaderName, text}}, all[i:]...)...)
		case gomilter.ActChangeHeader:
			n := uint32(0)
			for i := range all {
				if strings.EqualFold(all[i].name, m.HeaderName) {
					if n++; n == max(m.HeaderIndex, 1) {
						if m.HeaderValue == "" {
							text = ""
						}
						all[i].text = text
						break
					}
				}
			}
		}
	}
	var b strings.Builder
	for _, f := range all {
		b.WriteString(f.text)
	}
	t.header = []byte(b.String())
}

func goodName(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == ':' {
			return false
		}
	}
	return s != ""
}

// clean keeps a value from ending the header: every further line of it begins with white space.
func clean(v string) string {
	v = strings.NewReplacer("\r\n", "\n", "\r", "", "\x00", "").Replace(v)
	lines := strings.Split(strings.TrimRight(v, "\n"), "\n")
	for i, l := range lines {
		if i > 0 && (l == "" || l[0] != ' ' && l[0] != '\t') {
			lines[i] = " " + l
		}
	}
	return strings.Join(lines, "\n")
}
