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

// TestRoomOfARetry: a job that comes again does not get, nor remove, the directory of its first try: another job is in it.
func TestRoomOfARetry(t *testing.T) {
	r := &rooms{dir: filepath.Join(t.TempDir(), "jobs")}
	take := func(id string) *room {
		t.Helper()
		w, err := r.take("h", id)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	first := take("1")
	r.give("h", first)
	second := take("2")
	if second != first {
		t.Fatal("a new directory although one was kept")
	}
	x := filepath.Join(second.path, "x")
	if err := os.WriteFile(x, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := take("1")
	if _, err := os.Lstat(x); err != nil || again.path == second.path {
		t.Errorf("%s is given to two jobs: %v", again.path, err)
	}
	r.give("h", again)
	r.give("h", second)
	if list, err := os.ReadDir(r.dir); err != nil || len(list) != 1 || filepath.Join(r.dir, list[0].Name()) != again.path {
		t.Errorf("left: %v %v", list, err)
	}
}

// TestRoomInOneTick: what a job leaves in the tick of the clock in which its directory was made does not show by the time
// of that, however long the job goes on.
func TestRoomInOneTick(t *testing.T) {
	r := &rooms{dir: filepath.Join(t.TempDir(), "jobs")}
	w, err := r.take("h", "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.path, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if w.was, err = lookAt(w.path); err != nil { // as if the clock had not ticked
		t.Fatal(err)
	}
	long := -w.was.settled() - time.Second // ago it began
	w.made, w.taken = w.made.Add(long), w.taken.Add(long)
	r.give("h", w)
	if w, err = r.take("h", "2"); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(w.path); err != nil || len(list) > 0 {
		t.Errorf("the next job finds %v: %v", list, err)
	}
}
