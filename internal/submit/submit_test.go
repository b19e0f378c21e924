package submit

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// TestImports keeps the start of sendmail cheap: these are all packages it may contain.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "mochila/cmd/sendmail").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		"runtime": true, "unsafe": true, "errors": true, "cmp": true, "iter": true, "slices": true, "sync": true, "sync/atomic": true,
		"syscall": true, "math": true, "math/rand/v2": true, "unicode/utf8": true, "math/bits": true, "mochila/internal/submit": true, "mochila/cmd/sendmail": true,
	}
	for _, p := range strings.Fields(string(out)) {
		if !allowed[p] && !strings.HasPrefix(p, "internal/") {
			t.Errorf("sendmail contains package %s: every package costs each mail time", p)
		}
	}
}

func TestParseList(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"root", "root"},
		{"a@b.c", "a@b.c"},
		{"a@b.c,", "a@b.c"},
		{",,a@b.c;;d", "a@b.c|d"},
		{"a@b.c b@c.d", "a@b.c|b@c.d"},
		{"<a@b.c>", "a@b.c"},
		{"< a@b.c >", "a@b.c"},
		{"A B <a@b.c> (x), <b@c.d>", "a@b.c|b@c.d"},
		{`"B, A" <a@b.c>`, "a@b.c"},
		{`"A \" B" <a@b.c>`, "a@b.c"},
		{"a@b.c (A, B)", "a@b.c"},
		{"(x) a (y) @ (z) b . c (w)", "a@b.c"},
		{"a(x(y)z)@b.c", "a@b.c"},
		{`"q u"@b.c`, `"q u"@b.c`},
		{`"a\"b"@b.c`, `"a\"b"@b.c`},
		{"group: a@b.c, B <b@c.d>; c@d.e", "a@b.c|b@c.d|c@d.e"},
		{"undisclosed-recipients:;", ""},
		{"<@x,@y:a@b.c>", "a@b.c"},
		{"<>", ""},
		{"a@[192.0.2.1]", "a@[192.0.2.1]"},
		{"A\r\n <a@b.c>,\r\n\tb@c.d\r\n", "a@b.c|b@c.d"},
		{"John Doe j@d.e", "j@d.e"},
		{"J. Q. Public <j@d.e>", "j@d.e"},
		{"=?utf-8?Q?J=2E_D?= <j@d.e>", "j@d.e"},
		{"<a@b.c> trailing", "a@b.c"},
		{"\xe9 <j@d.e>", "j@d.e"},
		{"site!user", "site!user"},
		{"|/bin/sh", "|/bin/sh"}, // only a name here: nothing expands it
	} {
		got, err := ParseList(c.in)
		if err != nil || strings.Join(got, "|") != c.want {
			t.Errorf("ParseList(%q) = %q, %v; want %s", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{
		"<a@b.c", "a@b.c>", "a b", "(a", "a)", `"a`, "<a@b.c><d@e.f>", "<a <b@c.d>>", "a@", "@b", "<@x:>", "<@x", "a@[1",
		"a@b.c\x00", "a@\xff.c", "<a b@c>x<", "<(>", `a\`,
	} {
		if got, err := ParseList(in); err == nil && len(got) > 0 {
			t.Errorf("ParseList(%q) = %q, want an error", in, got)
		}
	}
}

func TestUnbang(t *testing.T) {
	for in, want := range map[string]string{
		"u": "u", "a!u": "u@a", "a!b!u": "b!u@a", "a!b.example!u": "u@b.example", "a!u@d.example": "u@d.example",
		"u@d": "u@d", "!u": "!u", "a!": "a!", `"a!b"@d`: `"a!b"@d`,
	} {
		if got := Unbang(in); got != want {
			t.Errorf("Unbang(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzParseList: whatever is read can stand in an SMTP command, reads back as itself, and lies where it is said to.
func FuzzParseList(f *testing.F) {
	for _, s := range []string{"a@b.c, \"x y\" <d@e>", "g: a, b;", "(c) a @ b", `"\"@"@x`, "<@a:b@c>", "root (Cron Daemon)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		found, err := parseList(new(boxes), s)
		if err != nil {
			return
		}
		for _, m := range found {
			if err := CheckAddr(m.addr); err != nil {
				t.Fatalf("%q: %v", s, err)
			}
			if strings.ContainsAny(m.addr, "\r\n\x00") {
				t.Fatalf("%q gave %q", s, m.addr)
			}
			if m.start < 0 || m.end > len(s) || m.start >= m.end {
				t.Fatalf("%q: %q at %d to %d", s, m.addr, m.start, m.end)
			}
			again, err := ParseList("<" + m.addr + ">")
			if err != nil || len(again) != 1 || again[0] != m.addr {
				if domainOf(m.addr) >= 0 && m.addr[0] != '@' {
					t.Fatalf("%q gave %q, which reads as %q, %v", s, m.addr, again, err)
				}
			}
		}
	})
}

// FuzzMessage: whatever comes in, the content is canonical, keeps every field that it should and loses Bcc.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{
		"From: root (Cron)\nTo: a\nBcc: b\n\nhi\n", "text", "\r\n\r\n", "X:\n .\n.\n..\n", "a\r\r\nb\rc\x00", "From x\n>From y\nTo:z\nfoo",
		"Resent-To: a\nResent-Bcc: b\n\n.", ".\n", "bcc :x\n y\n\nz",
	} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, msg []byte, dots bool) {
		in := &input{buf: bytes.Clone(msg), w: len(msg), eof: true, dots: dots}
		h := &header{}
		if err := h.read(in); err != nil {
			return
		}
		if list, err := h.recipients(nil); err == nil {
			for _, r := range unique(list) {
				if err := CheckAddr(r.Addr); err != nil {
					t.Fatal(err)
				}
			}
		}
		w := &writer{}
		w.begin(&Node{}, &Mail{}, nil)
		start := len(w.buf)
		if err := h.write(w, letterX{}); err != nil {
			t.Fatal(err)
		}
		if h.hasRest {
			if err := w.line(h.rest); err != nil {
				t.Fatal(err)
			}
		}
		in.keep = false
		if err := in.body(w, false); err != nil {
			t.Fatal(err)
		}
		out := w.buf[start:]
		canonical(t, out)
		head, _, ok := bytes.Cut(out, []byte("\r\n\r\n"))
		if !ok {
			t.Fatalf("no blank line in %q", out)
		}
		for _, l := range bytes.Split(head, []byte("\r\n")) {
			name, colon := fieldName(l)
			if colon < 0 && (len(l) == 0 || !blank(l[0])) {
				t.Fatalf("header line %q", l)
			}
			if k := kindOf(l[:name]); colon >= 0 && (k == kBcc || k == kResentBcc || k == kReturnPath) {
				t.Fatalf("header line %q", l)
			}
		}
		for i := range h.fields {
			fl := &h.fields[i]
			want := []byte(reference(strings.ReplaceAll(string(h.raw[fl.start:fl.end]), "\n.\n", "\n")))
			if fl.kind == kOther && !bytes.Contains(out, want) {
				t.Fatalf("field %q is lost", h.raw[fl.start:fl.end])
			}
		}
	})
}

// letterX is an origin with short words.
type letterX struct{}

func (letterX) domain(b []byte) []byte    { return append(b, 'x') }
func (letterX) from(b []byte) []byte      { return append(b, 'x') }
func (letterX) date(b []byte) []byte      { return append(b, 'x') }
func (letterX) messageID(b []byte) []byte { return append(b, "<x>"...) }

func canonical(t *testing.T, b []byte) {
	t.Helper()
	if len(b) > 0 && !bytes.HasSuffix(b, []byte("\r\n")) {
		t.Fatalf("ends in %q", b[max(0, len(b)-10):])
	}
	for i, c := range b {
		if c == '\n' && (i == 0 || b[i-1] != '\r') {
			t.Fatalf("bare LF at %d of %q", i, b)
		}
	}
}

// TestBodyAtBufferEdges puts line ends and dots around the place where the input buffer fills up.
func TestBodyAtBufferEdges(t *testing.T) {
	for _, tail := range []string{"\r\n.\r\nlost\n", "\r\n.", "\n.\n", ".\n.\n", "\r.\n.\n", "\r\r\n..\n.\n", "\r", ""} {
		for shift := -4; shift <= 4; shift++ {
			head := strings.Repeat("x", inputBuffer+shift)
			want := reference(head + tail)
			r, w := pipe(t)
			go feed(w, head+tail)
			in := &input{fd: r, dots: true}
			wr := &writer{}
			wr.begin(&Node{}, &Mail{}, nil)
			start := len(wr.buf)
			if err := in.body(wr, false); err != nil {
				t.Fatal(err)
			}
			if got := string(wr.buf[start:]); got != want {
				t.Fatalf("tail %q shift %d: ends in %q, want %q", tail, shift, got[max(0, len(got)-20):], want[max(0, len(want)-20):])
			}
		}
	}
}

// reference is the body rule in the plainest words.
func reference(s string) string {
	var out strings.Builder
	for s != "" {
		l, rest, _ := strings.Cut(s, "\n")
		if strings.Contains(s, "\n") {
			l = strings.TrimSuffix(l, "\r")
		}
		if l == "." {
			break
		}
		out.WriteString(l + "\r\n")
		s = rest
	}
	return out.String()
}
