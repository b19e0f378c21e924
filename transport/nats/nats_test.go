package nats

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/transport"
	"mochila/transport/nats/natstest"
	"mochila/transport/transporttest"
)

func parsed(t testing.TB, url string) *Folder {
	t.Helper()
	c, err := transport.Parse([]transport.Scheme{Scheme}, url)
	if err != nil {
		t.Fatal(err)
	}
	return c.Folder.(*Folder)
}

func TestConforms(t *testing.T) {
	c := natstest.New(t, 1)
	n := 0
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder {
		n++
		f, end, err := parsed(t, "nats:"+c.Hosts()+"/s"+strings.Repeat("x", n)).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(end)
		return f
	})
}

const outbox = "mochila/aaaaaaaaaaaaa/bbbbbbbbbbbbb"

func put(t testing.TB, f transport.Folder, p *transport.Packet) error {
	t.Helper()
	r, err := p.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return f.Put(t.Context(), outbox, p.ID.String(), p.Size, r)
}

// TestManyFiles: more files than one fetch brings are listed, and none of another directory.
func TestManyFiles(t *testing.T) {
	c := natstest.New(t, 1)
	f, end, err := parsed(t, "nats:"+c.Hosts()).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	const n = 1234
	for i := range n {
		if err := put(t, f, transporttest.Packet(0, transporttest.Random(uint64(i), 40))); err != nil {
			t.Fatal(err)
		}
	}
	files, err := f.List(t.Context(), outbox)
	if err != nil || len(files) != n {
		t.Errorf("%d files, %v; want %d", len(files), err, n)
	}
	if files, err := f.List(t.Context(), "mochila/aaaaaaaaaaaaa/ccccccccccccc"); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	if dirs, err := f.Dirs(t.Context(), "mochila"); err != nil || len(dirs) != 1 || dirs[0] != "aaaaaaaaaaaaa" {
		t.Errorf("%q, %v", dirs, err)
	}
}

// TestWatch: a new file is a hint, and the watch ends with its context.
func TestWatch(t *testing.T) {
	c := natstest.New(t, 1)
	f := parsed(t, "nats:"+c.Hosts())
	link := transport.NewFolderLink(f, envelope.Label{1}, envelope.Label{2}, transport.FolderOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	hints := link.Watch(ctx)
	dir := "mochila/" + envelope.Label{2}.String() + "/" + envelope.Label{1}.String()
	for hinted := false; !hinted; { // the subscription takes a moment
		name := transport.TempName()[1:]
		if err := f.Put(t.Context(), dir, name, 1, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-hints:
			hinted = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	cancel()
	for range hints { // to its end
	}
}

// TestServerDies: of three servers one may die at any time; what was put is there, and what is put goes on.
func TestServerDies(t *testing.T) {
	c := natstest.New(t, 3)
	f := parsed(t, "nats:"+c.Hosts()+"?replicas=3")
	var all []*transport.Packet
	sure := func(p *transport.Packet) {
		t.Helper()
		for end := time.Now().Add(5 * time.Minute); ; {
			err := put(t, f, p)
			if err == nil {
				all = append(all, p)
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	for i := range 6 {
		sure(transporttest.Packet(0, transporttest.Random(uint64(i), 300_000)))
		if i%3 == 1 {
			c.Stop(i / 3)
		}
		if i%3 == 2 {
			c.Start(i / 3)
		}
	}
	var files []transport.Entry
	for end := time.Now().Add(5 * time.Minute); len(files) != len(all) && time.Now().Before(end); {
		files, _ = f.List(t.Context(), outbox)
	}
	if len(files) != len(all) {
		t.Errorf("%d of %d packets are there", len(files), len(all))
	}
}

// TestWhatIsBroken: each trouble has its own words, and a hint that helps.
func TestWhatIsBroken(t *testing.T) {
	c := natstest.New(t, 1)
	c.Stop(0)
	c.Options(0).Username, c.Options(0).Password = "camp", "right"
	c.Start(0)
	dir := t.TempDir()
	secret := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	open := func(url string) error {
		_, end, err := parsed(t, url).Open(t.Context())
		if err == nil {
			end()
		}
		return err
	}
	if err := open("nats:" + c.Hosts() + "?secret=" + secret("good", "camp:right\n", 0o600)); err != nil {
		t.Error(err)
	}
	for _, x := range []struct{ name, url, hint string }{
		{"no password", "nats:" + c.Hosts(), "secret=/FILE"},
		{"wrong password", "nats:" + c.Hosts() + "?secret=" + secret("bad", "camp:wrong\n", 0o600), "secret=/FILE"},
		{"secret for all", "nats:" + c.Hosts() + "?secret=" + secret("loose", "camp:right\n", 0o644), "chmod 600"},
		{"nobody there", "nats:127.0.0.1:1", ""},
	} {
		err := open(x.url)
		var h interface{ Hint() string }
		switch {
		case err == nil:
			t.Errorf("%s: no error", x.name)
		case x.hint == "":
			if !errors.Is(err, transport.ErrAbsent) {
				t.Errorf("%s: %v is not ErrAbsent", x.name, err)
			}
		case !errors.As(err, &h) || !strings.Contains(h.Hint(), x.hint):
			t.Errorf("%s: hint of %v, want %q", x.name, err, x.hint)
		}
	}
	c.Stop(0)
	c.Options(0).Username, c.Options(0).Password, c.Options(0).JetStream = "", "", false
	c.Start(0)
	var h interface{ Hint() string }
	if err := open("nats:" + c.Hosts()); !errors.As(err, &h) || !strings.Contains(h.Hint(), "-js") {
		t.Errorf("without JetStream: %v", err)
	}
}

func TestURLs(t *testing.T) {
	for _, bad := range []string{"nats:", "nats:/x", "nats:u@h/x", "nats:h/a.b", "nats:h/x?replicas=9", "nats:h?tls=maybe", "nats:h?colour=red", "nats://h"} {
		if _, err := transport.Parse([]transport.Scheme{Scheme}, bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if f := parsed(t, "nats:a,b:4223/net"); f.String() != "nats:a,b:4223/net" || len(f.servers) != 2 {
		t.Errorf("%v", f)
	}
}

func TestTokens(t *testing.T) {
	for _, name := range []string{"invite.json", "a=b", "ü >*.", "plain-Name_1"} {
		s := token(name)
		if got, ok := untoken(s); !ok || got != name || strings.ContainsAny(s, ".*> ") {
			t.Errorf("%q is %q is %q", name, s, got)
		}
	}
	for _, s := range []string{"=", "=4", "=zz", "=41", "a b"} {
		if name, ok := untoken(s); ok {
			t.Errorf("%q is %q", s, name)
		}
	}
}
