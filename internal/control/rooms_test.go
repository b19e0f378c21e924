package control

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestRooms: the next job of a handler gets the directory of the last one if that is as it was, and never what a program
// left there.
func TestRooms(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	if err := os.MkdirAll(filepath.Join(dir, "crashed", "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "running"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &rooms{dir: dir}
	take := func(handler, id string) *room {
		t.Helper()
		w, err := r.take(handler, id)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := os.ReadDir(w.path); err != nil || len(list) > 0 {
			t.Fatalf("%s: %v %v", w.path, list, err)
		}
		return w
	}
	first := take("h", "1")
	if list, _ := os.ReadDir(dir); len(list) != 2 {
		t.Errorf("what a crash left is still there: %v", list)
	}
	r.give("h", first)
	if w := take("other", "2"); w == first {
		t.Error("the directory of another handler")
	}
	if w := take("h", "3"); w != first {
		t.Error("a new directory although one was kept")
	}
	if w := take("h", "4"); w == first {
		t.Error("a directory in use")
	}
	for what, leave := range map[string]func(path string) error{
		"a file":     func(p string) error { return os.WriteFile(filepath.Join(p, "x"), nil, 0o600) },
		"a folder":   func(p string) error { return os.Mkdir(filepath.Join(p, "x"), 0o700) },
		"its mode":   func(p string) error { return os.Chmod(p, 0o770) },
		"nothing":    os.Remove,
		"another":    func(p string) error { os.Rename(p, p+".old"); return os.Mkdir(p, 0o700) },
		"a symlink":  func(p string) error { os.Remove(p); return os.Symlink("/", p) },
		"unreadable": func(p string) error { return os.Chmod(p, 0) },
	} {
		w := take(what, "5")
		if err := leave(w.path); err != nil {
			t.Fatal(err)
		}
		r.give(what, w)
		if _, err := os.Lstat(w.path); err == nil {
			t.Errorf("%s: the directory is still there", what)
		}
		next := take(what, "6")
		r.give(what, next)
		if err := leave(next.path); err != nil {
			t.Fatal(err)
		}
		if w := take(what, "7"); w == next {
			t.Errorf("%s, after the job: the directory was taken", what)
		}
	}
	first.made = first.made.Add(-time.Hour)
	for probe := filepath.Join(t.TempDir(), "x"); ; { // file systems count time in ticks: the next one has to come
		if err := os.Mkdir(probe, 0o700); err != nil {
			t.Fatal(err)
		}
		now, err := lookAt(probe)
		if err = errors.Join(err, os.Remove(probe)); err != nil {
			t.Fatal(err)
		}
		if now.changed != first.was.changed {
			break
		}
	}
	if err := os.WriteFile(filepath.Join(first.path, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Remove(filepath.Join(first.path, "x")); first.untouched() {
		t.Error("what came and went has left no trace")
	}
	first = take("h", "8")
	r.give("h", first)
	r.Close()
	if _, err := os.Lstat(first.path); err == nil {
		t.Error("a kept directory is still there after the end")
	}
}
