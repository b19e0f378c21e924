package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mochila/internal/durable"
	"mochila/internal/durable/durabletest"
	"mochila/internal/envelope"
)

// files lists a Maildir's mails as "sub/name: content".
func files(t *testing.T, fsys durable.FS, dir string) []string {
	t.Helper()
	var out []string
	for _, sub := range []string{"new", "cur"} {
		entries, err := fsys.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			f, err := fsys.Open(filepath.Join(dir, sub, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, sub+"/"+e.Name()+": "+string(b))
		}
	}
	return out
}

const stored = "Return-Path: <a@x>\nDelivered-To: Ana+box@camp.example\nReceived: here\nSubject: hi\n\nHello\n.dot\n..two\n"

func TestMaildir(t *testing.T) {
	root := t.TempDir()
	tr := open(t, "maildir:"+root+"/%d/%u", Options{Hostname: "ca:mp/x"})
	m := mail("a@x", hello, "Ana+box@camp.example", "bob")
	m.Header = []byte("Received: here\r\n")
	check(t, tr, m, "0 delivered 2.0.0 delivered to maildir", "1 delivered 2.0.0 delivered to maildir")
	got := files(t, durable.OS{}, root+"/camp.example/ana+box")
	if len(got) != 1 {
		t.Fatalf("files: %q", got)
	}
	name, content, _ := strings.Cut(got[0], ": ")
	if content != stored {
		t.Errorf("content %q, want %q", content, stored)
	}
	if !strings.HasPrefix(name, "new/1700000000.M"+m.Env.ID.String()+"_") || !strings.HasSuffix(name, ".ca_mp_x") {
		t.Errorf("name %q", name)
	}
	if got := files(t, durable.OS{}, root+"/localhost/bob"); len(got) != 1 {
		t.Errorf("an address without a domain: %q", got)
	}
	for _, dir := range []string{"tmp", "cur"} {
		if e, err := os.ReadDir(root + "/camp.example/ana+box/" + dir); err != nil || len(e) != 0 {
			t.Errorf("%s: %v, %v", dir, e, err)
		}
	}
	st, err := os.Stat(root + "/camp.example/ana+box")
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}

	// The same again, by the same and by another process, is no second mail, wherever a reader has put it.
	again := "0 delivered 2.0.0 delivered to maildir (by an earlier attempt)"
	m.Rcpts = []int{0}
	check(t, tr, m, again)
	dir := root + "/camp.example/ana+box/"
	base := strings.TrimPrefix(name, "new/")
	for _, flags := range []string{":2,", ":2,RS", ",S=123,W=130:2,S", ";2,S"} {
		old, err := filepath.Glob(dir + "*/17*")
		if err != nil || len(old) != 1 {
			t.Fatal(old, err)
		}
		if err := os.Rename(old[0], dir+"cur/"+base+flags); err != nil {
			t.Fatal(err)
		}
		check(t, open(t, "maildir:"+root+"/%d/%u", Options{Hostname: "renamed"}), m, again)
	}
	check(t, tr, m, again)
	if got := files(t, durable.OS{}, dir); len(got) != 1 {
		t.Errorf("files: %q", got)
	}
	// Another sender's node cannot hide its mail behind the id of this one.
	m.Env.Origin[0]++
	check(t, tr, m, "0 delivered 2.0.0 delivered to maildir")
	if got := files(t, durable.OS{}, dir); len(got) != 2 {
		t.Errorf("files: %q", got)
	}
}

func TestMaildirTrouble(t *testing.T) {
	m := mail("a@x", hello, "ana@y")
	for kind, c := range map[string]struct {
		err  error
		want string
	}{
		"create": {syscall.EACCES, "4.3.0"}, "write": {syscall.ENOSPC, "4.3.1"}, "sync": {syscall.EIO, "4.3.0"},
		"rename": {syscall.EDQUOT, "4.2.2"}, "syncdir": {syscall.EIO, "4.3.0"}, "mkdir": {syscall.EROFS, "4.3.0"},
	} {
		disk := durabletest.New()
		tr := open(t, "maildir:/m/%u", Options{FS: disk, Hostname: "h"})
		failed := false
		disk.FailWith(func(o durabletest.Op) error {
			if o.Kind == kind {
				failed = true
				return c.err
			}
			return nil
		})
		got := tr.Deliver(context.Background(), m)
		if !failed || got[0].Action != envelope.ActionPending || got[0].Status.Enhanced != c.want {
			t.Errorf("%s fails: %s", kind, show(got))
		}
		if tmp, err := disk.ReadDir("/m/ana/tmp"); err == nil && len(tmp) != 0 {
			t.Errorf("%s fails: left in tmp: %v", kind, tmp)
		}
		disk.FailWith(nil)
		if got := tr.Deliver(context.Background(), m); got[0].Action != envelope.ActionDelivered || len(files(t, disk, "/m/ana")) != 1 {
			t.Errorf("after %s failed: %s %q", kind, show(got), files(t, disk, "/m/ana"))
		}
	}
	// Content that is not what it was leaves nothing behind.
	disk := durabletest.New()
	tr := open(t, "maildir:/m/%u", Options{FS: disk, Hostname: "h"})
	big := []byte(strings.Repeat("0123456789abcdef\r\n", SmallContent/16))
	m = rawMail("a@x", big, "ana@y")
	m.Open = func() (io.ReadCloser, error) { return &reader{append([]byte("X"), big[1:]...), len(big), io.EOF}, nil }
	check(t, tr, m, "0 pending 4.3.0 stored content does not match its checksum [corrupt]")
	m.Open = func() (io.ReadCloser, error) { return &reader{big, len(big) / 2, errDisk}, nil }
	check(t, tr, m, "0 pending 4.3.0 input/output error")
	if tmp, err := disk.ReadDir("/m/ana/tmp"); err != nil || len(tmp) != 0 || len(files(t, disk, "/m/ana")) != 0 {
		t.Errorf("left in tmp: %v, %v", tmp, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	checkCtx(t, ctx, tr, mail("a@x", hello, "ana@y"), "0 pending 4.3.2 not tried: interrupted")
}

// A power cut behind any operation, with any loss: delivering again ends with the whole mail, once; and once Deliver
// has returned, the mail is there without that.
func TestMaildirCrash(t *testing.T) {
	deliver := func(disk *durabletest.Disk) {
		t.Helper()
		tr := open(t, "maildir:/srv/%d/%u", Options{FS: disk, Hostname: "h"})
		m := mail("a@x", hello, "Ana+box@camp.example")
		m.Env.ID = envelope.ID{5: 1, 15: 9}
		m.Header = []byte("Received: here\r\n")
		if got := tr.Deliver(context.Background(), m); got[0].Action != envelope.ActionDelivered {
			t.Fatal(show(got))
		}
	}
	disk := durabletest.New()
	deliver(disk)
	for n := range disk.Len() + 1 {
		for _, loss := range durabletest.Losses() {
			crashed := disk.At(n, loss)
			for _, f := range files(t, crashed, "/srv/camp.example/ana+box") {
				if !strings.HasSuffix(f, ": "+stored) {
					t.Errorf("cut after %d, %v: half a mail is visible: %q", n, loss, f)
				}
			}
			if n == disk.Len() && len(files(t, crashed, "/srv/camp.example/ana+box")) != 1 {
				t.Errorf("%v: a delivered mail is lost", loss)
			}
			deliver(crashed)
			got := files(t, crashed, "/srv/camp.example/ana+box")
			if len(got) != 1 || !strings.HasSuffix(got[0], ": "+stored) {
				t.Errorf("cut after %d, %v: %q", n, loss, got)
			}
		}
	}
	trace := strings.Join(disk.Trace(0), "\n")
	name := "0.M" + (envelope.ID{5: 1, 15: 9}).String()
	want := []string{"mkdir /srv/camp.example/ana+box/tmp", "mkdir /srv/camp.example/ana+box/new", "create /srv/camp.example/ana+box/tmp/" + name, "write", "sync /srv/camp.example/ana+box/tmp/" + name,
		"rename /srv/camp.example/ana+box/tmp/" + name, "syncdir /srv/camp.example/ana+box/new"}
	rest := "\n" + trace
	for _, w := range want {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Fatalf("trace lacks %q in its place:\n%s", w, trace)
		}
		rest = after
	}
}

func TestMaildirNames(t *testing.T) {
	for _, c := range []struct{ tmpl, addr, want string }{
		{"/m/%u", "Ana@x", "/m/ana"},
		{"/m/%u", `"ana"@x`, "/m/ana"},
		{"/m/%u", "ana+box_1=2-3.4@x", "/m/ana+box_1=2-3.4"},
		{"/m/%d/%u/x", "ana@Camp.Example", "/m/camp.example/ana/x"},
		{"/m/%%%u%%", "ana@x", "/m/%ana%"},
		{"/m/.%u", "ana@x", "/m/.ana"},
		{"/m/%u", "../../etc@x", "/m/%2E%2E%2F%2E%2E%2Fetc"},
		{"/m/%u", `".."@x`, "/m/%2E%2E"},
		{"/m/%u", ".x@x", "/m/%2Ex"},
		{"/m/%u", "a..b.c@x", "/m/a%2E%2Eb.c"},
		{"/m/%u", `"a/b"@x`, "/m/a%2Fb"},
		{"/m/%u", `"a b%c"@x`, "/m/a%20b%25c"},
		{"/m/%u", "ÄNA@x", "/m/%C3%A4na"},
		{"/m/%u", "\u212aana@x", "/m/%E2%84%AAana"}, // the Kelvin sign is not a k
		{"/m/%d", "ana@[::1]", "/m/%5B%3A%3A1%5D"},
		{"/m/%u", "~ana@x", "/m/%7Eana"},
		{"/m/all", "ana@x", "/m/all"},
	} {
		tmpl, err := parseTemplate(c.tmpl)
		if err != nil {
			t.Fatal(err)
		}
		local, domain, _ := cutAt(c.addr)
		if got, err := tmpl.expand(local, domain); err != nil || got != c.want {
			t.Errorf("%s for %s: %q, %v, want %q", c.tmpl, c.addr, got, err, c.want)
		}
	}
	tr := open(t, "maildir:"+t.TempDir()+"/%u", Options{})
	for _, bad := range []string{`""@x`, strings.Repeat("a", 300) + "@x", "a\x00@x", "a\xff@x"} {
		got := tr.Deliver(context.Background(), mail("a@x", hello, bad))
		if got[0].Action != envelope.ActionFailed || got[0].Status.Enhanced != "5.1.3" {
			t.Errorf("%q: %s", bad, show(got))
		}
	}
	got := tr.Deliver(context.Background(), mail("a@x\nX: y", hello, "a@x"))
	if got[0].Action != envelope.ActionFailed || got[0].Status.Enhanced != "5.1.7" {
		t.Errorf("bad sender: %s", show(got))
	}
}

func cutAt(s string) (string, string, bool) {
	i := strings.LastIndexByte(s, '@')
	return s[:i], s[i+1:], true
}

// No address leaves the folder, and different addresses do not share one, case aside.
func FuzzMaildirName(f *testing.F) {
	f.Add("ana", "../ana")
	f.Add("..", ".")
	f.Add("%2E", ".")
	f.Fuzz(func(t *testing.T, a, b string) {
		tmpl := template{text: []string{"/m/", ""}, vars: []byte{'u'}}
		x, errX := tmpl.expand(a, "d")
		if errX != nil {
			return
		}
		if filepath.Dir(x) != "/m" || filepath.Clean(x) != x {
			t.Errorf("%q leads to %q", a, x)
		}
		y, errY := tmpl.expand(b, "d")
		if errY == nil && x == y && !strings.EqualFold(unquoted(a), unquoted(b)) {
			t.Errorf("%q and %q share %q", a, b, x)
		}
	})
}

func unquoted(s string) string {
	if len(s) > 1 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
		var b strings.Builder
		for i := 0; i < len(s); i++ {
			if s[i] == '\\' && i+1 < len(s) {
				i++
			}
			b.WriteByte(s[i])
		}
		return b.String()
	}
	return s
}

func TestMaildirManyFolders(t *testing.T) {
	root := t.TempDir()
	tr := open(t, "maildir:"+root+"/%u", Options{})
	d := tr.(*maildir)
	for i := range 5 {
		d.mu.Lock()
		d.total = maxSeen // as if a great many stems were remembered
		d.mu.Unlock()
		m := mail("a@x", hello, fmt.Sprintf("u%d@y", i))
		check(t, tr, m, "0 delivered 2.0.0 delivered to maildir")
		check(t, tr, m, "0 delivered 2.0.0 delivered to maildir (by an earlier attempt)")
	}
}
