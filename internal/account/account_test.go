package account

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

const password = "open sesame"

// open makes a book with one account, ana.
func open(t *testing.T) *Book {
	t.Helper()
	b := Open(filepath.Join(t.TempDir(), "accounts"))
	a, err := New("ana", password, []string{"ana@camp.example", "<>"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add(a); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLogin(t *testing.T) {
	b := open(t)
	if a, err := b.Login(t.Context(), "ana", password); err != nil || a.Name != "ana" || strings.Join(a.SendAs, " ") != "ana@camp.example <>" {
		t.Errorf("got %+v, %v", a, err)
	}
	for _, c := range [][2]string{{"ana", "open sesame "}, {"ana", ""}, {"Ana", password}, {"ben", password}, {"", ""}, {"ana", strings.Repeat("x", 5000)}} {
		if a, err := b.Login(t.Context(), c[0], c[1]); a != nil || !errors.Is(err, ErrDenied) {
			t.Errorf("%q, %q: got %+v, %v", c[0], c[1], a, err)
		}
	}
	if a, _ := New("ana", password, nil); !errors.Is(b.Add(a), ErrExists) {
		t.Error("ana was added twice")
	}
	if err := b.SetPassword("ana", "another one"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Login(t.Context(), "ana", password); !errors.Is(err, ErrDenied) {
		t.Errorf("the old password: %v", err)
	}
	if a, err := b.Login(t.Context(), "ana", "another one"); err != nil || len(a.SendAs) != 2 {
		t.Errorf("the new password: %+v, %v", a, err)
	}
	if err := b.Remove("ana"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Login(t.Context(), "ana", "another one"); !errors.Is(err, ErrDenied) {
		t.Errorf("after its removal: %v", err)
	}
	for what, err := range map[string]error{"remove": b.Remove("ana"), "passwd": b.SetPassword("ana", password)} {
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("%s of nobody: %v", what, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range hashesAtOnce {
		b.hashes <- struct{}{}
	}
	if _, err := b.Login(ctx, "ana", password); !errors.Is(err, context.Canceled) {
		t.Errorf("with all hashes busy: %v", err)
	}
}

// exchange is a whole login by SCRAM with the client of the library.
func exchange(t *testing.T, b *Book, name, password, authz string) (*Account, bool, error) {
	t.Helper()
	c, err := scram.SHA256.NewClient(name, password, authz)
	if err != nil {
		t.Fatal(err)
	}
	conv, x := c.NewConversation(), b.Exchange()
	said, err := conv.Step("")
	for err == nil {
		var reply string
		var who *Account
		if reply, who, err = x.Step(said); err != nil {
			break
		}
		said, err = conv.Step(reply)
		if who != nil {
			return who, conv.Valid(), err
		}
	}
	return nil, false, err
}

func TestScram(t *testing.T) {
	b := open(t)
	if who, valid, err := exchange(t, b, "ana", password, ""); err != nil || who.Name != "ana" || !valid {
		t.Errorf("got %+v, server valid %v, %v", who, valid, err)
	}
	if who, _, err := exchange(t, b, "ana", password, "ana"); err != nil || who == nil {
		t.Errorf("as herself: %+v, %v", who, err)
	}
	for _, c := range [][3]string{{"ana", "wrong one"}, {"ben", password}, {"ana", password, "ben"}} {
		if who, _, err := exchange(t, b, c[0], c[1], c[2]); who != nil || !errors.Is(err, ErrDenied) {
			t.Errorf("%q: got %+v, %v", c, who, err)
		}
	}
	for _, msg := range []string{"", "x", "n,,n=ana", "p=tls-exporter,,n=ana,r=abc", "n,,m=ext,n=ana,r=abc"} {
		if _, who, err := b.Exchange().Step(msg); who != nil || !errors.Is(err, ErrDenied) {
			t.Errorf("first message %q: %+v, %v", msg, who, err)
		}
	}
}

// TestScramTellsNoNames: the first answer to an unknown name looks like that to a known one, and is the same each time.
func TestScramTellsNoNames(t *testing.T) {
	b := open(t)
	salt := func(name string) string {
		reply, who, err := b.Exchange().Step("n,,n=" + name + ",r=abcdefgh")
		if err != nil || who != nil {
			t.Fatalf("%s: %+v, %v", name, who, err)
		}
		return reply[strings.Index(reply, ",s="):]
	}
	if a, z := salt("nobody"), salt("nobody"); a != z || a == salt("nobody2") || len(a) != len(salt("ana")) {
		t.Errorf("salts %q, %q, %q", a, z, salt("nobody2"))
	}
}

func TestFile(t *testing.T) {
	b := open(t)
	doc, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Stat(b.path); fi.Mode() != 0o600 {
		t.Errorf("mode is %v", fi.Mode())
	}
	if strings.Contains(string(doc), password) {
		t.Error("the password is in the file")
	}
	line := strings.Split(string(doc), "\n")[1]
	f := strings.Split(line, " ")
	if a, err := parse(line); err != nil || a.line() != line+"\n" {
		t.Errorf("parse of what was written: %v", err)
	}
	for defect, line := range map[string]string{
		"fields": "ana", "name": "a,a " + f[1] + " " + f[2] + " -", "hash": "ana x " + f[2] + " -", "keys": "ana " + f[1] + " x -",
		"swapped": "ana " + f[2] + " " + f[1] + " -", "memory": "ana " + strings.Replace(f[1], "m=19456", "m=99999999", 1) + " " + f[2] + " -",
		"iterations": "ana " + f[1] + " " + strings.Replace(f[2], "$60000:", "$1:", 1) + " -", "pattern": "ana " + f[1] + " " + f[2] + " a,,b",
		"zeros": "ana " + strings.Replace(f[1], "t=2", "t=02", 1) + " " + f[2] + " -", "cut": line[:len(line)/2], "twice": line + "\n" + line,
	} {
		if err := os.WriteFile(b.path, []byte(header+line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := b.Login(t.Context(), "ana", password); err == nil || errors.Is(err, ErrDenied) {
			t.Errorf("%s: got %+v, %v", defect, a, err)
		}
		if err := b.Remove("ana"); err == nil || errors.Is(err, ErrUnknown) {
			t.Errorf("%s: the broken file was written over: %v", defect, err)
		}
	}
	if err := os.WriteFile(b.path, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Login(t.Context(), "ana", password); err != nil {
		t.Errorf("after the repair: %v", err)
	}
	if err := os.Chmod(b.path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Login(t.Context(), "ana", password); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct{ name, password, pattern string }{
		{"", password, ""}, {"-x", password, ""}, {"a b", password, ""}, {"a\nb", password, ""}, {strings.Repeat("a", 65), password, ""},
		{"ana", "short", ""}, {"ana", "with\ttab", ""}, {"ana", "bad utf-8 \xff", ""}, {"ana", password, "a b"}, {"ana", password, "-"},
	} {
		var as []string
		if c.pattern != "" {
			as = []string{c.pattern}
		}
		if a, err := New(c.name, c.password, as); err == nil {
			t.Errorf("%+v: got %+v", c, a)
		}
	}
}

// FuzzParse: what is read is written the same.
func FuzzParse(f *testing.F) {
	f.Add("ana $argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA " +
		"SCRAM-SHA-256$60000:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= -")
	f.Fuzz(func(t *testing.T, line string) {
		a, err := parse(line)
		if err == nil && a.line() != line+"\n" {
			t.Errorf("%q is written as %q", line, a.line())
		}
	})
}
