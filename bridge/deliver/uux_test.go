package deliver

import (
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"
)

// TestUUX: what uux is called with, and what the command at the site gets.
func TestUUX(t *testing.T) {
	const body = "Subject: hi\n\n.dot\nend without newline"
	for _, c := range []struct {
		via, args, in string
		rcpts         []string
		want          []string
	}{
		{"hub!rmail", "-r -n -g C - hub!rmail (b@y) (c.d@y)", "From a@x DATE\n" + body + "\n", []string{"b@y", "c.d@y", "e f@y", `"q"@y`},
			[]string{"0 relayed 2.0.0 queued for hub by uux", "1 relayed 2.0.0 queued for hub by uux", `2 failed 5.1.3 recipient address "e f@y" is none`,
				`3 failed 5.1.3 recipient address "\"q\"@y" cannot stand on a command line: deliver by hub!rsmtp`}},
		{"hub!rsmtp", "-r -n -g C - hub!rsmtp", "HELO us\nMAIL FROM:<a@x>\nRCPT TO:<b@y>\nRCPT TO:<\"q\"@y>\nDATA\nSubject: hi\n\n..dot\nend without newline\n.\nQUIT\n",
			[]string{"b@y", `"q"@y`}, []string{"0 relayed 2.0.0 queued for hub by uux", "1 relayed 2.0.0 queued for hub by uux"}},
		{"hub!rgsmtp", "-I /conf -r -n -g A - hub!rgsmtp", "HELO us\nMAIL FROM:<a@x>\nRCPT TO:<b@y>\nDATA\nSubject: hi\n\n..dot\nend without newline\n.\nQUIT\n",
			[]string{"b@y"}, []string{"0 relayed 2.0.0 queued for hub by uux"}},
	} {
		path, dir := script(t, `echo "$@" >"$D/args"; cat >"$D/in"`)
		options := "?program=" + path
		if strings.HasPrefix(c.args, "-I") {
			options += "&config=/conf&grade=A"
		}
		tr := open(t, "uux:"+c.via+options, Options{TempDir: dir, Hostname: "us"})
		check(t, tr, mail("a@x", body, c.rcpts...), c.want...)
		if got := strings.TrimSpace(readFile(t, dir+"/args")); got != c.args {
			t.Errorf("%s: arguments %q", c.via, got)
		}
		in := readFile(t, dir+"/in")
		if strings.HasSuffix(c.via, "rgsmtp") {
			f, err := os.Open(dir + "/in")
			if err != nil {
				t.Fatal(err)
			}
			z, err := gzip.NewReader(f)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			in = string(b)
			f.Close()
		}
		if first, rest, _ := strings.Cut(in, "\n"); strings.HasPrefix(first, "From a@x ") {
			in = "From a@x DATE\n" + rest
		}
		if in != c.in {
			t.Errorf("%s: input %q, want %q", c.via, in, c.in)
		}
	}
	path, _ := script(t, "echo no such system >&2; exit 1")
	tr := open(t, "uux:hub!rsmtp?program="+path, Options{})
	check(t, tr, mail("", hello, "b@y"), "0 pending 4.3.0 no such system")
	for _, via := range []string{"uux:hub", "uux:hub!cat", "uux:-x!rmail", "uux:a!b!rmail", "uux:hub!rmail?x=1", "uux:hub!rmail?grade=CC"} {
		if _, err := New(via, Options{}); err == nil {
			t.Errorf("%s was taken", via)
		}
	}
}
