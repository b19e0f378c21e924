package config

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// file is one configuration file with the place of each key.
type file struct {
	path string
	keys map[string]place // "smtp.listen", "route[1].node"
}

type place struct {
	line, col int
	number    string // the value, if it is a bare number
}

// source is where an element of a merged list came from.
type source struct {
	file *file
	at   string // "route[1]"
}

// newFile indexes a document that the decoder has accepted.
func newFile(path string, doc []byte) *file {
	f := &file{path: path, keys: map[string]place{}}
	var p unstable.Parser
	p.Reset(doc)
	table, counts := "", map[string]int{}
	for p.NextExpression() {
		e := p.Expression()
		name, pos := "", place{}
		for it := e.Key(); it.Next(); {
			n := it.Node()
			if name == "" {
				start := p.Shape(n.Raw).Start
				pos = place{line: start.Line, col: start.Column}
			} else {
				name += "."
			}
			name += strings.ToLower(string(n.Data))
		}
		switch e.Kind {
		case unstable.Table:
			table = name
			if isList(name) { // [route] once means the same as [[route]]
				table = fmt.Sprintf("%s[%d]", name, counts[name])
				counts[name]++
			}
			f.keys[table] = pos
		case unstable.ArrayTable:
			table = fmt.Sprintf("%s[%d]", name, counts[name])
			counts[name]++
			f.keys[table] = pos
		case unstable.KeyValue:
			if table != "" {
				name = table + "." + name
			}
			if v := e.Value(); v.Kind == unstable.Integer || v.Kind == unstable.Float {
				pos.number = string(v.Data)
			}
			f.keys[name] = pos
		}
	}
	return f
}

// units finds bare numbers where a duration is wanted, and negative sizes: the decoder takes both as they are.
func (f *file) units(target reflect.Type) (ps Problems) {
	for at, pos := range f.keys {
		if pos.number == "" {
			continue
		}
		t := target
		for key := range strings.SplitSeq(plain(at), ".") {
			if t != nil {
				t, _ = fieldFor(t, key)
			}
		}
		switch {
		case t == reflect.TypeFor[Duration]() && pos.number != "0":
			ps = append(ps, f.problem(at, pos.number+" has no unit", fmt.Sprintf("write %q if you mean seconds", pos.number+"s")))
		case t == reflect.TypeFor[Size]() && pos.number[0] == '-':
			ps = append(ps, f.problem(at, "must not be negative", ""))
		}
	}
	return ps
}

// isList reports whether a table may be there several times.
func isList(name string) bool {
	switch name {
	case "route", "contact", "deliver", "handler", "peer", "dkim", "rewrite":
		return true
	}
	return false
}

// problem makes a Problem at a key, or at the closest thing around it that the file has.
func (f *file) problem(at, msg, hint string) *Problem {
	p := &Problem{File: f.path, Msg: msg, Hint: hint, Key: plain(at)}
	for {
		if pos, ok := f.keys[at]; ok {
			p.Line, p.Col = pos.line, pos.col
			return p
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			return p
		}
		at = at[:i]
	}
}

// plain drops list indexes: "route[1].node" is route.node to a person.
func plain(at string) string {
	var b strings.Builder
	in := false
	for _, r := range at {
		switch {
		case r == '[':
			in = true
		case r == ']':
			in = false
		case !in:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func (s source) problem(key, msg, hint string) *Problem {
	at := s.at
	if key != "" {
		at += "." + key
	}
	return s.file.problem(at, msg, hint)
}

// line is "line N", with the file's name when it is not the same file.
func (s source) line(from source) string {
	l := fmt.Sprintf("line %d", s.file.keys[s.at].line)
	if s.file != from.file {
		l += " of " + s.file.path
	}
	return l
}
