package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestFeed: files are dropped into a folder that contrib/feed watches, by somebody who renames them into it; the program
// is killed again and again. Each file becomes one job, in the order they came.
func TestFeed(t *testing.T) {
	t.Parallel()
	r := random(t)
	m := newStick(t)
	camp, hub := newNode(t, "camp", ""), newNode(t, "hub", "")
	pair(camp, hub, m.dir)
	folder, out := t.TempDir(), filepath.Join(t.TempDir(), "list")
	hub.configure("name = \"hub\"\n" + contribFile(t, "feed/handler.toml", `["/usr/bin/lp", "-s"]`,
		`["/bin/sh", "-c", "printf '%s %s\\n' \"$FEED_NAME\" \"$(cat)\" >>`+out+`"]`))

	files := count(40, 2000)
	var want []string
	var writer sync.WaitGroup
	writer.Go(func() {
		began := time.Now().Add(-time.Hour)
		for i := range files {
			name := fmt.Sprintf("file %04d", i)
			tmp := filepath.Join(folder, "."+name)
			if err := os.WriteFile(tmp, fmt.Appendf(nil, "content %d", i), 0o644); err != nil {
				t.Error(err)
				return
			}
			at := began.Add(time.Duration(i) * time.Second)
			os.Chtimes(tmp, at, at)
			if err := os.Rename(tmp, filepath.Join(folder, name)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range files {
		want = append(want, fmt.Sprintf("file_%04d content %d", i, i))
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "half.part"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	feed := func(settle string) *exec.Cmd {
		cmd := exec.Command(contribPath(t, "feed/mochila-feed"), folder, "hub", "feed", "print")
		cmd.Env = append(os.Environ(), "MOCHILA_HOME="+camp.dir, "PATH="+bin+":"+os.Getenv("PATH"), "FEED_SETTLE="+settle)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd
	}
	kills := 0
	for range count(12, 300) {
		cmd := feed("0")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(r.IntN(500_000)) * time.Microsecond) // a moment that no event chooses
		if syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) == nil {
			kills++
		}
		cmd.Wait()
	}
	writer.Wait()
	for {
		if out, err := feed("0").CombinedOutput(); err != nil {
			t.Fatalf("mochila-feed: %v: %s", err, out)
		}
		left, err := os.ReadDir(filepath.Join(folder, ".mochila-feed"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(left, func(d os.DirEntry) bool { return d.IsDir() }) {
			break
		}
	}
	camp.must("sync")
	hub.must("sync")
	camp.must("sync")
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(b)), "\n")
	sorted := slices.Sorted(slices.Values(got))
	if !slices.Equal(sorted, want) {
		t.Errorf("%d jobs of %d files: %q", len(got), files, got)
	}
	if slices.Equal(sorted, want) && !slices.Equal(got, want) {
		t.Errorf("another order: %q", got)
	}
	t.Logf("%d kills", kills)
	entries, _ := os.ReadDir(folder)
	if len(entries) != 3 { // .mochila-feed, half.part, link
		t.Errorf("left: %v", entries)
	}
	// A file that may still be written to waits.
	if err := os.WriteFile(filepath.Join(folder, "new"), []byte("n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := feed("1000").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s, %v", out, err)
	}
}
