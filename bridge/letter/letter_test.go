package letter

import (
	"bytes"
	"errors"
	"io"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// input reads the input of a mail.
func input(t *testing.T, m []byte) (string, *Input, error) {
	t.Helper()
	var out bytes.Buffer
	in, err := ReadInput(bytes.NewReader(m), &out)
	return out.String(), in, err
}

// TestInput reads the mails of testdata: NAME.eml gives what is in NAME.want, or fails when the name begins with "bad-".
func TestInput(t *testing.T) {
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d mails, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".eml")
		t.Run(name, func(t *testing.T) {
			m, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			m = bytes.ReplaceAll(m, []byte("\n"), []byte("\r\n"))
			got, _, err := input(t, m)
			if strings.HasPrefix(name, "bad-") {
				if !errors.Is(err, ErrInput) {
					t.Errorf("got %q, %v, want ErrInput", got, err)
				}
				return
			}
			want, ferr := os.ReadFile(strings.TrimSuffix(f, ".eml") + ".want")
			if ferr != nil {
				t.Fatal(ferr)
			}
			if err != nil || got != string(want) {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		})
	}
}

func TestFacts(t *testing.T) {
	m := "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <a@b>\r\n\r\nx\r\n"
	if _, in, err := input(t, []byte(m)); err != nil || in.Subject != "Grüße" || in.MessageID != "<a@b>" || in.Automatic {
		t.Errorf("%+v, %v", in, err)
	}
	m = "Message-ID: <a b>\r\nAuto-Submitted: auto-generated\r\n\r\nx\r\n"
	if _, in, err := input(t, []byte(m)); err != nil || in.MessageID != "" || !in.Automatic {
		t.Errorf("%+v, %v", in, err)
	}
}

// part gives bytes as output of a program.
func part(name, content string) Part {
	return Part{Name: name, Size: int64(len(content)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
}

// TestResult writes a mail and reads it again as any mail program would: what the program wrote comes out.
func TestResult(t *testing.T) {
	binary := string([]byte{0, 1, 2, 0xff, '\r', '\n', '.', '\r', '\n'})
	for _, out := range []string{"a line\nanother = 3\n", "ends without LF", "tab\tand ümlaut \n", strings.Repeat("x", 5000) + "\n", ".\n..\nFrom me\n", binary, strings.Repeat(binary, 200)} {
		var w bytes.Buffer
		m := Result{From: "mochila at camp <postmaster@camp.example>", To: "ana@camp.example", Subject: "Re: größer " + strings.Repeat("wörter ", 20), MessageID: "x@camp",
			InReplyTo: "<1@b>", Date: time.Unix(1e9, 0).UTC(), Job: "JOB", Text: []string{"done"}, Parts: []Part{part("stdout", out), part("stderr", "")}}
		if err := m.Write(&w); err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.SplitAfter(w.String(), "\n") {
			if line != "" && !strings.HasSuffix(line, "\r\n") || len(line) > 1000 || strings.Count(line, "\r") > 1 || !ascii(strings.TrimRight(line, "\r\n")) && strings.IndexByte(line, '\t') < 0 {
				t.Fatalf("line %q", line)
			}
		}
		p, err := mail.ReadMessage(bytes.NewReader(w.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if p.Header.Get("In-Reply-To") != "<1@b>" || p.Header.Get("Auto-Submitted") != "auto-replied" || p.Header.Get("X-Mochila-Job") != "JOB" {
			t.Errorf("header %v", p.Header)
		}
		// a result answered as if it were input: its output is the attachment
		got, in, err := input(t, w.Bytes())
		if err != nil || got != out || !in.Automatic || !strings.HasPrefix(in.Subject, "Re: größer") {
			t.Errorf("got %q, %+v, %v, want %q", got, in, err, out)
		}
	}
}

func FuzzReadInput(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.eml")
	for _, name := range files {
		m, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		var a, b bytes.Buffer
		_, err := ReadInput(bytes.NewReader(m), &a)
		if a.Len() > len(m)+2 {
			t.Fatalf("%d bytes of input from a mail of %d", a.Len(), len(m))
		}
		if _, again := ReadInput(bytes.NewReader(m), &b); (err == nil) != (again == nil) || err == nil && !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Fatalf("%v, then %v", err, again)
		}
	})
}
