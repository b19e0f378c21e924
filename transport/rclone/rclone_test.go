package rclone

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/peertest"
	"mochila/transport"
	"mochila/transport/transporttest"
)

func open(t testing.TB, url string) *Folder {
	t.Helper()
	c, err := transport.Parse([]transport.Scheme{Scheme}, url)
	if err != nil {
		t.Fatal(err)
	}
	return c.Folder.(*Folder)
}

// TestConforms runs the suite on a folder of this machine; the common scenario takes a remote that rclone encrypts.
func TestConforms(t *testing.T) {
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder {
		return open(t, "rclone:plain:?config="+peertest.NewRclone(t).Config)
	})
}

const outbox = "mochila/aaaaaaaaaaaaa/bbbbbbbbbbbbb"

// TestFlushLooks: what is not there with its length after it was written does not count as sent.
func TestFlushLooks(t *testing.T) {
	r := peertest.NewRclone(t)
	f := open(t, "rclone:plain:?config="+r.Config)
	p := transporttest.Packet(0, transporttest.Random(1, 5000))
	put := func() {
		t.Helper()
		if err := f.Put(t.Context(), outbox, p.ID.String(), p.Size, bytes.NewReader(transporttest.Random(1, 5000))); err != nil {
			t.Fatal(err)
		}
	}
	put()
	if err := os.Truncate(filepath.Join(r.Dir, outbox, p.ID.String()), 4000); err != nil {
		t.Fatal(err)
	}
	if err := f.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "5000 bytes") {
		t.Errorf("a truncated file: %v", err)
	}
	put()
	if err := f.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if files, err := f.List(t.Context(), outbox); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}

// TestWhatIsBroken: each trouble has its own words, and a hint that helps.
func TestWhatIsBroken(t *testing.T) {
	r := peertest.NewRclone(t)
	locked := filepath.Join(t.TempDir(), "locked")
	if err := os.WriteFile(locked, []byte("# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZHSElKS0xNTk9QUVJTVFVWV1hZ\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.WriteFile(gone, []byte("[far]\ntype = webdav\nurl = http://127.0.0.1:1/\nvendor = other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ name, url, words, hint string }{
		{"no such remote", "rclone:nowhere:x?config=" + r.Config, "section", "rclone listremotes"},
		{"locked configuration", "rclone:plain:x?config=" + locked, "decrypt", "RCLONE_CONFIG_PASS"},
		{"nobody there", "rclone:far:x?config=" + gone, "refused", ""},
	} {
		_, err := open(t, x.url).List(t.Context(), outbox)
		var h interface{ Hint() string }
		switch {
		case err == nil || !strings.Contains(err.Error(), x.words):
			t.Errorf("%s: %v, want %q", x.name, err, x.words)
		case x.hint == "":
			if !errors.Is(err, transport.ErrAbsent) {
				t.Errorf("%s: %v is not ErrAbsent", x.name, err)
			}
		case !errors.As(err, &h) || !strings.Contains(h.Hint(), x.hint):
			t.Errorf("%s: hint of %v, want %q", x.name, err, x.hint)
		}
	}
	f := open(t, "rclone:plain:?config="+r.Config)
	if _, err := f.Get(t.Context(), outbox, "missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	var h interface{ Hint() string }
	if err := f.Put(t.Context(), outbox, "x", 1, strings.NewReader("x")); !errors.As(err, &h) || !strings.Contains(h.Hint(), "install rclone") {
		t.Errorf("no rclone: %v", err)
	}
}

func TestURLs(t *testing.T) {
	for _, bad := range []string{"rclone:", "rclone:drive", "rclone:-x:y", "rclone::x", "rclone:d:x?config=rel", "rclone:d:x?colour=red"} {
		if _, err := transport.Parse([]transport.Scheme{Scheme}, bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if f := open(t, "rclone:drive:"); f.at("a", "b") != "drive:a/b" {
		t.Errorf("%q", f.at("a", "b"))
	}
	if f := open(t, "rclone:drive:net/"); f.at("a", "b") != "drive:net/a/b" {
		t.Errorf("%q", f.at("a", "b"))
	}
}
