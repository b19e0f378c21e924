package route

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"mochila/internal/envelope"
)

func TestPatternMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, addr string
		want          bool
	}{
		{"hub.example", "ana@hub.example", true},
		{"hub.example", "ana@HUB.Example", true},
		{"HUB.example", "ana@hub.EXAMPLE", true},
		{"hub.example", "ana@x.hub.example", false},
		{"hub.example", "ana@thub.example", false},
		{"hub.example", "ana", false},
		{"hub.example", "", false},
		{"*.hub.example", "ana@hub.example", false},
		{"*.hub.example", "ana@x.hub.example", true},
		{"*.hub.example", "ana@x.y.HUB.example", true},
		{"*.hub.example", "ana@xhub.example", false},
		{"*.hub.example", "ana@.hub.example", false},
		{"*.example", "ana@hub.example", true},
		{"*.example", "ana@example", false},
		{"*", "ana@hub.example", true},
		{"*", "ana", true},
		{"*", "", true},
		{"<>", "", true},
		{"<>", "ana@hub.example", false},
		{"ana@hub.example", "ana@Hub.Example", true},
		{"ana@hub.example", "Ana@hub.example", false},
		{"ana@hub.example", "ana+x@hub.example", false},
		{"ana@hub.example", `"ana"@hub.example`, true},
		{`"a b"@hub.example`, `"a b"@hub.example`, true},
		{`"a b"@hub.example`, `"a\ b"@hub.example`, true},
		{`"a@b"@hub.example`, `"a@b"@hub.example`, true},
		{"b\"@hub.example", `"a@b"@hub.example`, false},
		{"hub.example", `"a@evil.example"@hub.example`, true},
		{"evil.example", `"a@evil.example"@hub.example`, false},
		{"hub.example", `"a\"@evil.example"@hub.example`, true},
		{"evil.example", `"a\"@evil.example"@hub.example`, false},
		{"hub.example", "a@evil.example@hub.example", true},
		{"postmaster@hub.example", "PostMaster@hub.example", true},
		{"Postmaster@hub.example", "postmaster@hub.example", true},
		{"пример.рф", "ана@ПРИМЕР.рф", true},
		{"xn--e1afmkfd.xn--p1ai", "ана@пример.рф", false},
		{"XN--e1afmkfd.xn--p1ai", "ana@xn--E1AFMKFD.xn--p1ai", true},
		{"bank.example", "a@ban\u212a.example", false}, // Kelvin sign
		{"[127.0.0.1]", "ana@[127.0.0.1]", true},
		{"[IPv6:fe80::1]", "ana@[ipv6:FE80::1]", true},
		{"localhost", "root@localhost", true},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			if c.want || !strings.HasPrefix(c.pattern, `b"`) {
				t.Errorf("ParsePattern(%q): %v", c.pattern, err)
			}
			continue
		}
		if got := p.Match(c.addr); got != c.want {
			t.Errorf("%q matches %q: %v, want %v", c.pattern, c.addr, got, c.want)
		}
		if p.String() != c.pattern {
			t.Errorf("String() = %q, want %q", p.String(), c.pattern)
		}
	}
}

func TestParsePatternErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "empty pattern",
		"<ana@hub.example>":             "angle brackets",
		"hub.example.":                  "dot at the end",
		".hub.example":                  "write *.hub.example",
		"*hub.example":                  "stands alone or in front",
		"a.*.example":                   "stands alone or in front",
		"**":                            "stands alone or in front",
		"*.":                            "domain is missing",
		"*.*.example":                   "stands alone or in front",
		"@hub.example":                  `write the domain alone: "hub.example"`,
		"*@hub.example":                 `write the domain alone: "hub.example"`,
		"a*@hub.example":                "cannot be part of a local part",
		"ana@":                          "domain is missing",
		"ana@*.example":                 "stands alone or in front",
		"ana @hub.example":              "is not a local part",
		"ana@hub example":               "does not belong in a domain",
		"hub..example":                  "two dots",
		"hub.example,camp.example":      "does not belong in a domain",
		"hub.\x00example":               "does not belong in a domain",
		"hub.\xffexample":               "not valid UTF-8",
		`"ana@hub.example`:              "no @ after",
		`"ana"`:                         "no @ after",
		`a"b@hub.example`:               "does not belong in a domain",
		strings.Repeat("a.", 130) + "x": "longer than 255",
	} {
		_, err := ParsePattern(in)
		if err == nil {
			t.Errorf("ParsePattern(%q) succeeds", in)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePattern(%q): %v, want %q in it", in, err, want)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range [][3]string{
		{"ana@hub.example", "ana", "hub.example"},
		{"postmaster", "postmaster", ""},
		{"", "", ""},
		{`"a@b"@c`, `"a@b"`, "c"},
		{`"a@b"`, `"a@b"`, ""},
		{`"a\"@b"@c`, `"a\"@b"`, "c"},
		{`"a\\"@c`, `"a\\"`, "c"},
		{`a@b@c`, "a@b", "c"},
		{`a@`, "a", ""},
		{`"x> NOTIFY=NEVER "@e.f`, `"x> NOTIFY=NEVER "`, "e.f"},
	} {
		if l, d := Split(c[0]); l != c[1] || d != c[2] {
			t.Errorf("Split(%q) = %q, %q, want %q, %q", c[0], l, d, c[1], c[2])
		}
		if d := Domain(c[0]); d != c[2] {
			t.Errorf("Domain(%q) = %q, want %q", c[0], d, c[2])
		}
	}
}

func TestSafePath(t *testing.T) {
	for addr, want := range map[string]bool{
		"ana@hub.example":                true,
		"postmaster":                     true,
		`"a b"@c`:                        true,
		`"x> NOTIFY=NEVER "@e.f`:         true,
		`"a\"b"@c`:                       true,
		"ана@пример.рф":                  true,
		"":                               false,
		"x> NOTIFY=NEVER @e.f":           false,
		"a b@c":                          false,
		"a@b>":                           false,
		"<a@b":                           false,
		"a@b\r\nRCPT TO:<evil@x>":        false,
		"a@b\n":                          false,
		"a\x00@b":                        false,
		"a\x7f@b":                        false,
		"a\u0085@b":                      false,
		"a\u2028@b":                      false,
		"\"a\r\nb\"@c":                   false,
		`"a@b`:                           false,
		`"a\"@b`:                         false,
		`"a\`:                            false,
		`"a"b@c`:                         false,
		`a"b"@c`:                         false,
		"a@b\xff":                        false,
		"a@" + strings.Repeat("x", 1000): false,
	} {
		if got := SafePath(addr); got != want {
			t.Errorf("SafePath(%q) = %v, want %v", addr, got, want)
		}
	}
}

func testRules() (deliver, route []Rule) {
	return []Rule{
			{To: []string{"camp.example"}, Via: "smtp:127.0.0.1:10026", MaxSize: 100},
			{To: []string{"*"}, From: []string{"<>", "*.camp.example"}, Via: "lmtp:/x"},
		}, []Rule{
			{To: []string{"boss@hub.example"}, NodeName: "fast"},
			{To: []string{"hub.example", "*.hub.example"}, NodeName: "hub", MaxSize: 1000},
			{To: []string{"hub.example"}, NodeName: "never"},
			{To: []string{"*"}, From: []string{"ana@camp.example"}, NodeName: "world"},
		}
}

func TestLookup(t *testing.T) {
	d, r := testRules()
	made, err := New(d, r)
	if err != nil {
		t.Fatal(err)
	}
	literal := Table{Deliver: d, Route: r}
	for _, c := range []struct {
		sender, rcpt string
		size         int64
		want, err    string
	}{
		{"x@y", "ana@camp.example", 0, "smtp:127.0.0.1:10026", ""},
		{"x@y", "ana@camp.example", 100, "smtp:127.0.0.1:10026", ""},
		{"x@y", "ana@camp.example", 101, "smtp:127.0.0.1:10026", "552 5.3.4 message of 101 bytes is larger than the 100 bytes allowed on the way to smtp:127.0.0.1:10026"},
		{"x@y", "boss@hub.example", 5000, "fast", ""},
		{"x@y", "Boss@hub.example", 50, "hub", ""},
		{"x@y", "Boss@hub.example", 5000, "hub", "552 5.3.4 message of 5000 bytes is larger than the 1000 bytes allowed on the way to hub"},
		{"x@y", "a@b.hub.example", 50, "hub", ""},
		{"", "boss@hub.example", 50, "lmtp:/x", ""},
		{"u@deep.camp.example", "boss@hub.example", 50, "lmtp:/x", ""},
		{"ana@camp.example", "who@else.example", 50, "world", ""},
		{"bob@camp.example", "who@else.example", 50, "", `550 5.1.2 no route for "else.example"`},
		{"x@y", "postmaster", 0, "", `501 5.1.3 recipient address "postmaster" has no domain`},
		{"", "postmaster", 0, "", `501 5.1.3 recipient address "postmaster" has no domain`},
		{"x@y", "a@", 0, "", `501 5.1.3 recipient address "a@" has no domain`},
	} {
		for name, table := range map[string]*Table{"made": &made, "literal": &literal} {
			got, err := table.Lookup(c.sender, c.rcpt, c.size)
			if text := errText(err); text != c.err {
				t.Errorf("%s: Lookup(%q, %q, %d): error %q, want %q", name, c.sender, c.rcpt, c.size, text, c.err)
			}
			var st *envelope.Status
			if err != nil && !errors.As(err, &st) {
				t.Errorf("%s: %v is not a Status", name, err)
			}
			target := ""
			if got.Rule != nil {
				target = got.Rule.target()
				list := table.Route
				if got.Deliver {
					list = table.Deliver
				}
				if &list[got.Index] != got.Rule {
					t.Errorf("%s: Index %d is not the rule", name, got.Index)
				}
			}
			if target != c.want {
				t.Errorf("%s: Lookup(%q, %q) goes to %q, want %q", name, c.sender, c.rcpt, target, c.want)
			}
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestNewErrors(t *testing.T) {
	for _, c := range []struct {
		d, r []Rule
		want string
	}{
		{[]Rule{{To: []string{"a.example"}}, {}}, nil, `deliver rule 2: to is empty`},
		{nil, []Rule{{To: []string{"<>"}}}, "route rule 1: to: <> is no recipient"},
		{nil, []Rule{{To: []string{"a..b"}}}, `route rule 1: to: pattern "a..b": two dots`},
		{nil, []Rule{{To: []string{"*"}, From: []string{"@x"}}}, `route rule 1: from: pattern "@x": for every user`},
	} {
		if _, err := New(c.d, c.r); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("New: %v, want %q", err, c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	d, r := testRules()
	table, err := New(d, r)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range table.Explain("x@y", "ana@hub.example", 2000) {
		got = append(got, s.Why)
	}
	want := []string{
		`"ana@hub.example" is not in to = ["camp.example"]`,
		`to matches "*", but the sender <x@y> is not in from = ["<>", "*.camp.example"]`,
		`"ana@hub.example" is not in to = ["boss@hub.example"]`,
		`to matches "hub.example"; refused: 552 5.3.4 message of 2000 bytes is larger than the 1000 bytes allowed on the way to hub`,
		`to matches "hub.example", but a rule before it has decided`,
		`to matches "*", but the sender <x@y> is not in from = ["ana@camp.example"]`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Whatever the rules are, the index, the plain walk and the explanation name the same rule.
func TestIndexAgreesWithWalk(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	labels := []string{"a", "b", "A", "ж"}
	domain := func() string {
		var d []string
		for range 1 + rng.IntN(3) {
			d = append(d, labels[rng.IntN(len(labels))])
		}
		return strings.Join(d, ".")
	}
	locals := []string{"u", "U", `"u"`, `"u@a"`, "postmaster", "Postmaster"}
	address := func() string { return locals[rng.IntN(len(locals))] + "@" + domain() }
	pattern := func(from bool) string {
		switch rng.IntN(6) {
		case 0:
			return "*"
		case 1:
			return "*." + domain()
		case 2:
			return address()
		case 3:
			if from {
				return "<>"
			}
		}
		return domain()
	}
	rules := func() (out []Rule) {
		for range rng.IntN(5) {
			r := Rule{MaxSize: int64(rng.IntN(2))}
			for range 1 + rng.IntN(2) {
				r.To = append(r.To, pattern(false))
			}
			for range rng.IntN(3) {
				r.From = append(r.From, pattern(true))
			}
			out = append(out, r)
		}
		return out
	}
	for range 3000 {
		d, r := rules(), rules()
		made, err := New(d, r)
		if err != nil {
			t.Fatal(err)
		}
		literal := Table{Deliver: d, Route: r}
		sender, rcpt := address(), address()
		if rng.IntN(4) == 0 {
			sender = ""
		}
		size := int64(rng.IntN(3))
		x, errX := made.Lookup(sender, rcpt, size)
		y, errY := literal.Lookup(sender, rcpt, size)
		if x.Rule != y.Rule || x.Deliver != y.Deliver || x.Index != y.Index || errText(errX) != errText(errY) {
			t.Fatalf("rules %+v %+v\n<%s> to <%s>: index says %+v %v, walk says %+v %v", d, r, sender, rcpt, x, errX, y, errY)
		}
		var decides *Rule
		for _, s := range literal.Explain(sender, rcpt, size) {
			if s.Decides {
				decides = s.Rule
			}
		}
		if decides != x.Rule {
			t.Fatalf("rules %+v %+v\n<%s> to <%s>: Explain says %+v, Lookup %+v", d, r, sender, rcpt, decides, x)
		}
	}
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"*", "<>", "hub.example", "*.hub.example", "a@b.c", `"a@b"@c`, "пример.рф", "a@[1.2.3.4]"} {
		f.Add(s, "ana@hub.example")
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, s, addr string) {
		p, err := ParsePattern(s)
		if err != nil {
			if !strings.Contains(err.Error(), "pattern") {
				t.Errorf("error %q does not name the pattern", err)
			}
			return
		}
		again, err := ParsePattern(p.String())
		if err != nil || again != p {
			t.Errorf("ParsePattern(%q) = %+v, %v, then %+v", s, p, err, again)
		}
		if p.Kind == Mailbox && !p.Match(s) {
			t.Errorf("%q does not match itself", s)
		}
		p.Match(addr)
		table, err := New(nil, []Rule{{To: []string{s}}})
		if p.Kind == Null {
			return
		}
		if err != nil {
			t.Fatalf("New refuses %q: %v", s, err)
		}
		d, lerr := table.Lookup("", addr, 0)
		if _, domain := Split(addr); domain != "" && (lerr == nil) != p.Match(addr) {
			t.Errorf("pattern %q, address %q: Lookup %+v %v, Match %v", s, addr, d, lerr, p.Match(addr))
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	var rules []Rule
	for i := range 5000 {
		rules = append(rules, Rule{To: []string{"d" + string(rune('a'+i%26)) + strings.Repeat("x", i%50) + ".example"}})
	}
	rules = append(rules, Rule{To: []string{"*.hub.example"}})
	table, err := New(nil, rules)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := table.Lookup("a@b.example", "ana@mail.hub.example", 10); err != nil {
			b.Fatal(err)
		}
	}
}

func TestUnknownUser(t *testing.T) {
	table, err := New([]Rule{{To: []string{"ana@Camp.example", "*.camp.example"}, Via: "lmtp:/x"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for rcpt, want := range map[string]string{
		"ana@camp.example":   "",
		"bob@CAMP.example":   `550 5.1.1 no such recipient at "CAMP.example"`,
		"ana@hub.example":    `550 5.1.2 no route for "hub.example"`,
		"bob@x.camp.example": "",
	} {
		if _, err := table.Lookup("x@y", rcpt, 0); errText(err) != want {
			t.Errorf("Lookup(%q): %q, want %q", rcpt, errText(err), want)
		}
	}
}
