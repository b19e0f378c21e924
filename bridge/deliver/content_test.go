package deliver

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
)

// dots and lines run both writers over content that comes in the given pieces.
func dots(pieces ...[]byte) string {
	var b bytes.Buffer
	d := &dotWriter{w: bufio.NewWriterSize(&b, 16)}
	for _, p := range pieces {
		d.Write(p)
	}
	d.end()
	d.w.Flush()
	return b.String()
}

func lines(pieces ...[]byte) string {
	var b bytes.Buffer
	l := &lfWriter{w: bufio.NewWriterSize(&b, 16)}
	for _, p := range pieces {
		l.Write(p)
	}
	l.end()
	return b.String()
}

var contents = []struct{ in, dot, lf string }{
	{"", ".\r\n", ""},
	{"a\r\n", "a\r\n.\r\n", "a\n"},
	{"a", "a\r\n.\r\n", "a\n"},
	{".", "..\r\n.\r\n", ".\n"},
	{".\r\n", "..\r\n.\r\n", ".\n"},
	{"\r\n.\r\n", "\r\n..\r\n.\r\n", "\n.\n"},
	{"a\r\n..b\r\nc.d\r\n", "a\r\n...b\r\nc.d\r\n.\r\n", "a\n..b\nc.d\n"},
	{"a\n.\nb", "a\r\n..\r\nb\r\n.\r\n", "a\n.\nb\n"},
	{"a\r.\rb\r\n", "a . b\r\n.\r\n", "a\r.\rb\n"},
	{"a\r\r\n.\r\r\n", "a\r\n..\r\n.\r\n", "a\r\n.\r\n"},
	{"a\r", "a\r\n.\r\n", "a\n"},
	{"\r", "\r\n.\r\n", "\n"},
	{"\r.", " .\r\n.\r\n", "\r.\n"},
	{"a\x00b\x00", "a\x00b\x00\r\n.\r\n", "a\x00b\x00\n"},
	{"a\r\n\r", "a\r\n\r\n.\r\n", "a\n\n"},
}

func TestWriters(t *testing.T) {
	for _, c := range contents {
		in := []byte(c.in)
		if got := dots(in); got != c.dot {
			t.Errorf("dots(%q) = %q, want %q", c.in, got, c.dot)
		}
		if got := lines(in); got != c.lf {
			t.Errorf("lines(%q) = %q, want %q", c.in, got, c.lf)
		}
		for i := range in {
			if got := dots(in[:i], in[i:]); got != c.dot {
				t.Errorf("dots(%q, %q) = %q, want %q", in[:i], in[i:], got, c.dot)
			}
			if got := lines(in[:i], in[i:]); got != c.lf {
				t.Errorf("lines(%q, %q) = %q, want %q", in[:i], in[i:], got, c.lf)
			}
		}
	}
}

// However content looks and is cut, exactly one line of the output is the final dot, every line ends in CRLF, and
// canonical content comes out of the other end as it was.
func FuzzDots(f *testing.F) {
	for _, c := range contents {
		f.Add([]byte(c.in), 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		if cut < 0 || cut > len(in) {
			cut = len(in) / 2
		}
		out := dots(in[:cut], in[cut:])
		if out != dots(in) {
			t.Fatalf("cut at %d: %q, whole: %q", cut, out, dots(in))
		}
		body, ok := strings.CutSuffix("\r\n"+out, "\r\n.\r\n")
		if !ok || strings.Contains(body+"\r\n", "\r\n.\r\n") {
			t.Fatalf("%q ends elsewhere: %q", in, out)
		}
		body += "\r\n"
		if strings.ContainsAny(strings.ReplaceAll(body, "\r\n", ""), "\r\n") {
			t.Fatalf("%q: bare CR or LF in %q", in, out)
		}
		body = strings.ReplaceAll(body, "\r\n.", "\r\n")[2:]
		text := string(in)
		if !strings.ContainsAny(strings.ReplaceAll(text, "\r\n", ""), "\r\n") { // canonical
			if text != "" && !strings.HasSuffix(text, "\r\n") {
				text += "\r\n"
			}
			if body != text {
				t.Fatalf("%q arrives as %q", text, body)
			}
			if got := lines(in[:cut], in[cut:]); got != strings.ReplaceAll(text, "\r\n", "\n") {
				t.Fatalf("%q is stored as %q", text, got)
			}
		}
	})
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "250\r\n", "2500 x\r\n", "999 x\r\n", "250-a\r\n251 b\r\n", "550 5.1.1 \x1b\xff\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		code, lines, err := readReply(bufio.NewReaderSize(strings.NewReader(s), maxReplyLine))
		if err != nil {
			return
		}
		st := status(code, lines)
		if st.Code < 200 || st.Code > 599 || len(lines) == 0 {
			t.Errorf("%q: %+v", s, st)
		}
		if st.Text != cleanText(st.Text) || len(st.Text) > maxText || strings.ContainsAny(st.Text, "\r\n\x1b\x00") {
			t.Errorf("%q: text %q", s, st.Text)
		}
		if st.Enhanced != "" && int(st.Enhanced[0]-'0') != code/100 {
			t.Errorf("%q: enhanced code %q with %d", s, st.Enhanced, code)
		}
	})
}

func BenchmarkDots(b *testing.B) {
	text := bytes.Repeat([]byte("The quick brown fox jumps over the lazy dog and runs away from here, always.\r\n"), 4000)
	b.SetBytes(int64(len(text)))
	w := bufio.NewWriterSize(io.Discard, 64<<10)
	for b.Loop() {
		d := &dotWriter{w: w}
		d.Write(text)
		d.end()
	}
}
