package transport

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func id(n byte) ID { return ID{n} }

func TestPartialsKeepWithinTheirRoom(t *testing.T) {
	dir := t.TempDir()
	p, err := OpenPartials(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	begin := func(n byte, size int64) *partial {
		t.Helper()
		w, err := p.begin(id(n), size)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	a := begin(1, 600)
	if _, err := p.begin(id(1), 600); !errors.Is(err, errBusy) {
		t.Errorf("the same packet twice: %v", err)
	}
	if _, err := p.begin(id(2), 600); !errors.Is(err, ErrFull) {
		t.Errorf("beyond the room, nothing to drop: %v", err)
	}
	if _, err := p.begin(id(3), 1001); !errors.Is(err, ErrFull) {
		t.Errorf("more than all: %v", err)
	}
	if _, err := a.Write(make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	if err := a.keep(); err != nil {
		t.Fatal(err)
	}
	b := begin(4, 400) // 500 are on disk
	b.Write(make([]byte, 10))
	if err := b.keep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, id(1).String())); err != nil {
		t.Errorf("dropped without need: %v", err)
	}
	c := begin(5, 700) // now the oldest has to go
	if _, err := os.Stat(filepath.Join(dir, id(1).String())); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	c.Write(bytes.Repeat([]byte("x"), 300))
	if err := c.keep(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p, err = OpenPartials(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if c := begin(5, 700); c.off != 300 {
		t.Errorf("after reopening it goes on at %d, want 300", c.off)
	} else if err := c.drop(nil); err != nil {
		t.Error(err)
	}
	if d := begin(6, 100); d.keep() != nil {
		t.Error("keep of an empty one failed")
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 1 || filepath.Base(left[0]) != id(4).String() {
		t.Errorf("left: %q", left)
	}
}

func TestPartialsOfHostileFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, id(1).String())); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, id(2).String()), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPartials(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for n := byte(1); n <= 2; n++ {
		if _, err := p.begin(id(n), 10); err == nil {
			t.Errorf("opened %d", n)
		}
	}
}

func TestHostOf(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7:99":              "192.0.2.7/32",
		"[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::/64",
		"[::ffff:192.0.2.7]:1":      "192.0.2.7/32",
		"[fe80::1%eth0]:1":          "fe80::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := hostOf(a).String(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	if got := hostOf(&net.UnixAddr{Name: "@", Net: "unix"}); got.IsValid() {
		t.Errorf("a unix socket: got %v", got)
	}
}
