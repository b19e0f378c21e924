package durable_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"mochila/internal/durable"
	"mochila/internal/durable/durabletest"
)

func put(fsys durable.FS, path, text string) error {
	return durable.WriteFile(fsys, path, 0o600, func(w io.Writer) error {
		for _, part := range []string{text[:len(text)/2], text[len(text)/2:]} {
			if _, err := io.WriteString(w, part); err != nil {
				return err
			}
		}
		return nil
	})
}

func get(t *testing.T, fsys durable.FS, path string) (string, bool) {
	t.Helper()
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), true
}

// TestWriteFileTrace is the golden order of operations.
func TestWriteFileTrace(t *testing.T) {
	d := durabletest.New()
	if err := d.MkdirAll("/a", 0o700); err != nil {
		t.Fatal(err)
	}
	n := d.Len()
	if err := put(d, "/a/x", "hello"); err != nil {
		t.Fatal(err)
	}
	trace := d.Trace(n)
	tmp := strings.TrimPrefix(trace[0], "create ")
	want := []string{"create " + tmp, "write " + tmp + " 2", "write " + tmp + " 3", "sync " + tmp, "rename " + tmp + " /a/x", "syncdir /a"}
	if !slices.Equal(trace, want) || !strings.HasPrefix(tmp, "/a/"+durable.TempPrefix) {
		t.Errorf("got %q, want %q", trace, want)
	}
}

// TestWriteFileCuts cuts the power behind every operation of a second version's writing.
func TestWriteFileCuts(t *testing.T) {
	d := durabletest.New()
	d.MkdirAll("/a", 0o700)
	if err := put(d, "/a/x", "the old version"); err != nil {
		t.Fatal(err)
	}
	from := d.Len()
	if err := put(d, "/a/x", "the new one"); err != nil {
		t.Fatal(err)
	}
	for n := from; n <= d.Len(); n++ {
		for _, loss := range durabletest.Losses() {
			got, ok := get(t, d.At(n, loss), "/a/x")
			if !ok || got != "the old version" && got != "the new one" {
				t.Errorf("after operation %d, %s: %q, %v", n, loss, got, ok)
			}
			if n == d.Len() && got != "the new one" {
				t.Errorf("acknowledged and lost (%s): %q", loss, got)
			}
		}
	}
}

// TestDiskForgets proves that the crash disk would catch the two usual mistakes.
func TestDiskForgets(t *testing.T) {
	d := durabletest.New()
	d.MkdirAll("/a", 0o700)
	f, err := d.Create("/a/t", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, "data")
	if err := d.Rename("/a/t", "/a/x"); err != nil { // no fsync of the file
		t.Fatal(err)
	}
	if err := d.SyncDir("/a"); err != nil {
		t.Fatal(err)
	}
	if got, ok := get(t, d.At(d.Len(), durabletest.LoseData), "/a/x"); !ok || got != "" {
		t.Errorf("without fsync of the file the content survived: %q, %v", got, ok)
	}
	if got, ok := get(t, d.At(d.Len(), durabletest.LoseTail), "/a/x"); !ok || got != "da" {
		t.Errorf("half of the content: %q, %v", got, ok)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := d.Rename("/a/x", "/a/y"); err != nil { // no fsync of the folder
		t.Fatal(err)
	}
	if _, ok := get(t, d.At(d.Len(), durabletest.LoseAll), "/a/y"); ok {
		t.Error("without fsync of the folder the new name survived")
	}
	if got, ok := get(t, d.At(d.Len(), durabletest.LoseAll), "/a/x"); !ok || got != "data" {
		t.Errorf("the old name is gone: %q, %v", got, ok)
	}
}

// TestWriteFileFails has every operation fail once: the old version stays, and no temporary file.
func TestWriteFileFails(t *testing.T) {
	for i := 0; ; i++ {
		d := durabletest.New()
		d.MkdirAll("/a", 0o700)
		if err := put(d, "/a/x", "old"); err != nil {
			t.Fatal(err)
		}
		n := 0
		var failed durabletest.Op
		d.FailWith(func(o durabletest.Op) error {
			n++
			if n-1 == i {
				failed = o
				return syscall.ENOSPC
			}
			return nil
		})
		err := put(d, "/a/x", "new")
		d.FailWith(nil)
		if failed.Kind == "" {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s failed, got %v", failed.Kind, err)
		}
		got, _ := get(t, d, "/a/x")
		if want := "old"; got != want && failed.Kind != "syncdir" {
			t.Errorf("%s failed, got %q", failed.Kind, got)
		}
		if names, _ := d.ReadDir("/a"); len(names) != 1 {
			t.Errorf("%s failed, left %v", failed.Kind, names)
		}
	}
}

func TestOS(t *testing.T) {
	dir := t.TempDir()
	var o durable.OS
	deep := filepath.Join(dir, "a", "b", "c")
	if err := o.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(deep, "x")
	if err := put(o, file, "hello"); err != nil {
		t.Fatal(err)
	}
	if got, ok := get(t, o, file); !ok || got != "hello" {
		t.Errorf("got %q, %v", got, ok)
	}
	if _, err := o.Create(file, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating over a file: %v", err)
	}
	link := filepath.Join(deep, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if f, err := o.Open(link); err == nil {
		f.Close()
		t.Error("a symbolic link was followed")
	}
	fifo := filepath.Join(deep, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := o.Open(fifo); err == nil {
		f.Close()
		t.Error("a fifo was opened")
	}
	if _, err := o.Create(link, 0o600); err == nil {
		t.Error("created through a symbolic link")
	}
	if err := o.MkdirAll(file, 0o700); err == nil {
		t.Error("made a folder of a file")
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := durable.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = durable.Lock(path)
	if !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("second lock: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Errorf("second unlock: %v", err)
	}
	l, err = durable.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Unlock()
}

func TestFree(t *testing.T) {
	free, total, err := durable.Free(t.TempDir())
	if err != nil || free < 0 || total <= 0 || free > total {
		t.Errorf("free %d of %d, %v", free, total, err)
	}
	if _, _, err := durable.Free("/nonexistent/x"); err == nil {
		t.Error("free space of nothing")
	}
}

func TestBirth(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := os.WriteFile(p, []byte("same"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i1, b1, err := durable.Birth(a)
	if err != nil {
		t.Fatal(err)
	}
	i2, _, err := durable.Birth(b)
	if err != nil || i1 == i2 {
		t.Errorf("two files have inode %d, %v", i2, err)
	}
	if err := os.Rename(a, a+"2"); err != nil {
		t.Fatal(err)
	}
	if i, b, err := durable.Birth(a + "2"); err != nil || i != i1 || b != b1 {
		t.Errorf("a renamed file changed: %d %d, %v", i, b, err)
	}
}

// slowDirs counts SyncDir and lets a test hold it.
type slowDirs struct {
	durable.FS
	n     atomic.Int32
	began chan struct{}
	gate  chan struct{}
}

func (s *slowDirs) SyncDir(string) error {
	s.n.Add(1)
	s.began <- struct{}{}
	<-s.gate
	return nil
}

// TestDirSyncer: those who come while an fsync runs share the next one, and none of them is served by that which ran.
func TestDirSyncer(t *testing.T) {
	s := &slowDirs{began: make(chan struct{}, 100), gate: make(chan struct{}, 1)}
	d := &durable.DirSyncer{FS: s}
	var wg sync.WaitGroup
	var done atomic.Int32
	call := func() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := d.Sync("/a"); err != nil {
				t.Error(err)
			}
			done.Add(1)
		}()
	}
	call()
	<-s.began
	for range 20 {
		call()
	}
	if done.Load() != 0 {
		t.Fatal("a call returned before any fsync ended")
	}
	s.gate <- struct{}{}
	<-s.began // the second one began after the first ended
	close(s.gate)
	wg.Wait()
	if n := s.n.Load(); n < 2 || n > 21 {
		t.Errorf("21 calls made %d fsyncs", n)
	}
	if done.Load() != 21 {
		t.Errorf("%d calls returned", done.Load())
	}
}

func TestDirSyncerManyFolders(t *testing.T) {
	disk := durabletest.New()
	d := &durable.DirSyncer{FS: disk}
	for i := range 4 {
		disk.MkdirAll(fmt.Sprint("/", i), 0o700)
	}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 50 {
				dir := fmt.Sprint("/", (g+i)%4)
				name := fmt.Sprintf("%s/%d-%d", dir, g, i)
				f, err := disk.Create(name, 0o600)
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
				if err := d.Sync(dir); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	after := disk.At(disk.Len(), durabletest.LoseAll)
	n := 0
	for i := range 4 {
		names, err := after.ReadDir(fmt.Sprint("/", i))
		if err != nil {
			t.Fatal(err)
		}
		n += len(names)
	}
	if n != 16*50 {
		t.Errorf("%d of %d names survived", n, 16*50)
	}
}

func TestDirSyncerError(t *testing.T) {
	disk := durabletest.New()
	d := &durable.DirSyncer{FS: disk}
	if err := d.Sync("/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
