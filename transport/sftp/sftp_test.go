package sftp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mochila/internal/peertest"
	"mochila/transport"
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

func at(d *peertest.SSHD, dir string) string {
	return fmt.Sprintf("sftp:%s@%s%s?config=%s", d.User, d.Addr, dir, d.Config)
}

// TestConforms runs the suite in sessions with a real server.
func TestConforms(t *testing.T) {
	d := peertest.StartSSHD(t, peertest.SSHDOptions{})
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder {
		f, end, err := parsed(t, at(d, t.TempDir())).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(end)
		return f
	})
}

// TestWithoutSession: each operation calls up on its own; and in a session, what a killed upload left is not seen, and
// removed when it is old.
func TestWithoutSession(t *testing.T) {
	d := peertest.StartSSHD(t, peertest.SSHDOptions{})
	root := t.TempDir()
	f := parsed(t, at(d, root))
	const dir = "mochila/aaaaaaaaaaaaa/bbbbbbbbbbbbb"
	left := filepath.Join(root, dir, transport.TempName())
	if err := os.MkdirAll(filepath.Dir(left), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(left, old, old); err != nil {
		t.Fatal(err)
	}
	if files, err := f.List(t.Context(), dir); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	p := transporttest.Packet(0, transporttest.Random(1, 70_000))
	r, err := p.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Put(t.Context(), dir, p.ID.String(), p.Size, r); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a dead process left: %v", err)
	}
	if dirs, err := f.Dirs(t.Context(), "mochila/aaaaaaaaaaaaa"); err != nil || len(dirs) != 1 {
		t.Errorf("%v, %v", dirs, err)
	}
	if err := f.Remove(t.Context(), dir, p.ID.String()); err != nil {
		t.Error(err)
	}
}

// TestWhatIsBroken: each trouble has its own words, and a hint that helps.
func TestWhatIsBroken(t *testing.T) {
	d := peertest.StartSSHD(t, peertest.SSHDOptions{})
	config, err := os.ReadFile(d.Config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	variant := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	stranger := variant("stranger", strings.ReplaceAll(string(config), "UserKnownHostsFile ", "UserKnownHostsFile /nowhere"))
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "other")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	locked := variant("locked", "Host *\nIdentityFile "+dir+"/other\n"+string(config)[strings.Index(string(config), "IdentitiesOnly"):])
	for _, x := range []struct{ name, url, words, hint string }{
		{"no folder", at(d, "/no/such/folder"), "/no/such/folder", "make it there"},
		{"unknown host", fmt.Sprintf("sftp:%s@%s/tmp?config=%s", d.User, d.Addr, stranger), "Host key verification failed", "compare the fingerprint"},
		{"wrong key", fmt.Sprintf("sftp:%s@%s/tmp?config=%s", d.User, d.Addr, locked), "Permission denied", "authorized_keys"},
		{"nobody there", "sftp:x@127.0.0.1:1/tmp?config=" + d.Config, "refused", ""},
	} {
		_, _, err := parsed(t, x.url).Open(t.Context())
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
}

func TestURLs(t *testing.T) {
	for _, bad := range []string{"sftp:host", "sftp:host/", "sftp:/x", "sftp:-oX/y", "sftp:host/~", "sftp:h/x?colour=red", "sftp:h:99999/x", "sftp://h/x"} {
		if _, err := transport.Parse([]transport.Scheme{Scheme}, bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for url, root := range map[string]string{"sftp:h/a/b": "/a/b", "sftp:u@h:22/~/a": "a", "sftp:h/a/": "/a"} {
		if got := parsed(t, url).root; got != root {
			t.Errorf("%q is %q, want %q", url, got, root)
		}
	}
}
