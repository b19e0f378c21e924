package handler

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// others counts the threads of this process whose umask is another. The first thread does not count: it cannot end
// before the process does, so Go lays it to rest when it was one of them.
func others(t *testing.T, own int) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if strings.HasPrefix(f, fmt.Sprintf("/proc/self/task/%d/", os.Getpid())) {
			continue
		}
		b, _ := os.ReadFile(f) // else it has just ended
		if v, ok := statusLine(b, "Umask:"); ok && v != fmt.Sprintf("%04o", own) {
			n++
		}
	}
	return n
}

// TestLauncherKeepsThreads: many runs side by side, half of which need threads of their own, also more kinds than are
// kept: none sees the umask of another, and this process keeps its own. Close ends the threads.
func TestLauncherKeepsThreads(t *testing.T) {
	own := unix.Umask(0o22)
	unix.Umask(own)
	files := descriptors(t)
	var l Launcher
	command := script(t, "umask; umask >&2")
	var all sync.WaitGroup
	for i := range 6 * maxThreads {
		all.Go(func() {
			mask := i / 2 % (maxThreads + 4)
			var out, errs bytes.Buffer
			o := l.Run(t.Context(), Spec{Command: command, Dir: "/", Env: CleanEnv("/", "x", ""), Umask: mask, NoNewPrivs: i&1 == 1, Stdout: &out, Stderr: &errs, OutputCap: -1},
				func(int, uint64) error { return nil })
			if want := string([]byte{'0', '0', '0' + byte(mask/8), '0' + byte(mask%8), '\n'}); !o.OK() || out.String() != want || errs.String() != want {
				t.Errorf("umask %q and %q, want %q: %+v", out.String(), errs.String(), want, o)
			}
		})
	}
	all.Wait()
	if n := others(t, own); n == 0 || len(l.threads) > maxThreads {
		t.Errorf("%d threads are kept, %d of them besides the first", len(l.threads), n)
	}
	if now := unix.Umask(own); now != own {
		t.Errorf("the umask of this process went from %#o to %#o", own, now)
	}
	l.Close()
	for end := time.Now().Add(20 * time.Second); others(t, own) > 0; time.Sleep(10 * time.Millisecond) { // the kernel takes a moment
		if time.Now().After(end) {
			t.Fatalf("%d threads are left", others(t, own))
		}
	}
	if after := descriptors(t); after > files {
		t.Errorf("%d descriptors were open before, %d are now", files, after)
	}
}

// TestLongerThanBrief: what a program prints in the first moment, while nobody listens yet, and what it prints later is
// all there, also when it is more than a pipe holds, and whoever holds the output longer than the program is waited for.
func TestLongerThanBrief(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"at once":       {"echo first; echo oops >&2", "first\n"},
		"two times":     {"echo first; sleep 0.1; echo second; echo oops >&2", "first\nsecond\n"},
		"a child holds": {"echo first; (sleep 0.1; echo second; echo oops >&2) &", "first\nsecond\n"},
	} {
		r := do(t, Spec{Command: script(t, c.text)})
		if !r.OK() || r.out != c.want || r.err != "oops\n" || r.Lingered {
			t.Errorf("%s: %q, %q, %+v", name, r.out, r.err, r.Outcome)
		}
	}
	r := do(t, Spec{Command: script(t, "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2")})
	if !r.OK() || len(r.out) != 300_000 || len(r.err) != 200_000 || strings.Trim(r.out+r.err, "\x00") != "" {
		t.Errorf("%d and %d bytes, %+v", len(r.out), len(r.err), r.Outcome)
	}
}

// TestWithoutHandle: where the kernel has no descriptor that stands for a process, a thread waits instead.
func TestWithoutHandle(t *testing.T) {
	c, err := start("/bin/sleep", []string{"sleep", "0.05"}, attributes(nil, nil, "/"))
	if err != nil {
		t.Fatal(err)
	}
	if c.end < 0 {
		t.Error("this kernel gives no handle")
	} else {
		unix.Close(c.end)
		c.end = -1
	}
	if c.endsBy(time.Now().Add(time.Second)) {
		t.Error("nothing can tell of its end so soon")
	}
	if c.ends(); !waitFor(c.pid, unix.WNOHANG) {
		t.Error("its end was not seen")
	}
	if _, err := unix.Wait4(c.pid, nil, 0, nil); err != nil {
		t.Error(err)
	}
}

// TestStartTimeWithoutAsking: what the clock says of a start is what the kernel says.
func TestStartTimeWithoutAsking(t *testing.T) {
	known := 0
	for range 100 {
		c, err := start("/bin/sleep", []string{"sleep", "1000"}, attributes(nil, nil, "/"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := readStat(c.pid)
		unix.Kill(c.pid, unix.SIGKILL)
		unix.Wait4(c.pid, nil, 0, nil)
		unix.Close(c.end)
		if err != nil {
			t.Fatal(err)
		}
		if c.born == 0 {
			continue
		}
		known++
		if c.born != s.ticks {
			t.Fatalf("started %d ticks after boot, the kernel says %d", c.born, s.ticks)
		}
	}
	t.Logf("%d of 100 starts fell into one tick", known)
}
