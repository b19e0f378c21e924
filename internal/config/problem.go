package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Problem is one thing that is wrong, or as a Warning looks wrong, in a configuration file.
type Problem struct {
	File      string // path as it was opened
	Line, Col int    // from 1; 0 when the problem is not at one place
	Key       string // "smtp.listen", "route.node"; "" when it is not about a key
	Msg       string
	Hint      string // what would help, or ""
}

// Warning is a Problem that does not keep the node from running.
type Warning = Problem

// Error is "file:line:column: key: message", without the hint.
func (p *Problem) Error() string {
	s := p.File
	if p.Line > 0 {
		s += fmt.Sprintf(":%d:%d", p.Line, p.Col)
	}
	if p.Key != "" {
		s += ": " + p.Key
	}
	return s + ": " + p.Msg
}

// Problems is everything found wrong, never empty as an error.
type Problems []*Problem

// Error has one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.As each problem.
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

// sorted puts mochila.toml first and each file in its order.
func (ps Problems) sorted(h Home) Problems {
	slices.SortStableFunc(ps, func(a, b *Problem) int {
		if a.File != b.File {
			switch h.Config() {
			case a.File:
				return -1
			case b.File:
				return 1
			}
		}
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	return ps
}

// fromTOML turns what the decoder found into Problems; target is the struct type that was decoded into.
func fromTOML(file string, err error, target reflect.Type) Problems {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		ps := make(Problems, len(strict.Errors))
		for i := range strict.Errors {
			e := &strict.Errors[i]
			line, col := e.Position()
			ps[i] = &Problem{File: file, Line: line, Col: col, Key: strings.Join(e.Key(), "."), Msg: "unknown key", Hint: suggestKey(target, e.Key())}
		}
		return ps
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		line, col := decode.Position()
		msg, hint := typeMismatch(strings.TrimPrefix(decode.Error(), "toml: "))
		return Problems{{File: file, Line: line, Col: col, Key: strings.Join(decode.Key(), "."), Msg: msg, Hint: hint}}
	}
	return Problems{{File: file, Msg: strings.TrimPrefix(err.Error(), "toml: ")}}
}

// mismatch is compiled when there is something to reword: the start of every command would pay for it.
const mismatch = `^cannot decode TOML ([a-z -]+) into (?:a )?(?:struct field \S+ of type )?(.+)$`

// goWords tells in an operator's words what a field of a Go type wants.
var goWords = map[string][2]string{
	"[]string":        {"a list of strings", `write ["…", "…"]`},
	"[]config.Listen": {"a list of strings", `write ["127.0.0.1:2525"]`},
	"[]config.Net":    {"a list of strings", `write ["127.0.0.0/8"]`},
	"string":          {"a string", `write it in quotes`},
	"int":             {"a whole number", `write it without quotes`},
	"bool":            {"true or false", `write it without quotes`},
}

// typeMismatch rewords the decoder's message about Go types.
func typeMismatch(msg string) (string, string) {
	if m := regexp.MustCompile(mismatch).FindStringSubmatch(msg); m != nil {
		if w, ok := goWords[m[2]]; ok {
			return fmt.Sprintf("wants %s, not a %s", w[0], m[1]), w[1]
		}
		return fmt.Sprintf("does not take a %s", m[1]), ""
	}
	switch {
	case msg == "cannot store an array table in a struct":
		return "there is only one such table", "write its name in single brackets"
	case strings.HasSuffix(msg, "at start of value"):
		return msg, "text stands in quotes"
	}
	return msg, ""
}

// suggestKey guesses which key was meant: a similar one in the same table, or the same one in another table.
func suggestKey(target reflect.Type, key []string) string {
	if len(key) == 0 {
		return ""
	}
	t := target
	depth := 0
	for depth < len(key)-1 {
		f, ok := fieldFor(t, key[depth])
		if !ok {
			break
		}
		t = f
		depth++
	}
	last := key[depth]
	names := keysOf(t)
	if s := nearest(last, names); s != "" {
		return fmt.Sprintf("did you mean %q?", s)
	}
	for _, table := range keysOf(target) {
		f, _ := fieldFor(target, table)
		if f.Kind() != reflect.Struct || f == t {
			continue
		}
		for _, name := range keysOf(f) {
			if name == last {
				return fmt.Sprintf("%q belongs into [%s]", last, table)
			}
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "known here: " + strings.Join(names, ", ")
}

// keysOf lists the TOML keys of a struct type in its order.
func keysOf(t reflect.Type) []string {
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("toml"); tag != "" && tag != "-" {
			names = append(names, tag)
		}
	}
	return names
}

// fieldFor returns the type behind a key, looking into lists.
func fieldFor(t reflect.Type, key string) (reflect.Type, bool) {
	if t.Kind() != reflect.Struct {
		return nil, false
	}
	for i := range t.NumField() {
		if strings.EqualFold(t.Field(i).Tag.Get("toml"), key) {
			f := t.Field(i).Type
			if f.Kind() == reflect.Slice {
				f = f.Elem()
			}
			return f, true
		}
	}
	return nil, false
}

// nearest is the candidate that differs from s in the fewest letters, if those are few; "" otherwise.
func nearest(s string, candidates []string) string {
	best, limit := "", 1+len(s)/4
	for _, c := range candidates {
		if d := distance(strings.ToLower(s), c, limit); d <= limit {
			best, limit = c, d-1
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with a neighbour to make a into b (optimal string
// alignment); beyond limit the answer is only known to be larger.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d > limit || -d > limit || len(a) > 64 {
		return limit + 1
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
