package handler

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// orphan starts a program as a daemon does that dies then: nobody of this test waits for it.
func orphan(t *testing.T, text, mark string) (pid int, start uint64) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	if err := syscall.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	// The shell that starts it ends at once, so that it becomes a child of init.
	out, err := exec.Command("/bin/sh", "-c", `setsid "$@" >/dev/null 2>&1 </dev/null & echo $!`, "sh", "/usr/bin/env", "-i", mark,
		"PATH="+DefaultPath, "READY="+ready, script(t, text)[0]).Output()
	if err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(ready); err != nil || string(b) != "ready\n" { // blocks until the program writes
		t.Fatalf("%q, %v", b, err)
	}
	if start, err = StartTime(pid); err != nil {
		t.Fatal(err)
	}
	return pid, start
}

// awaitEnd waits until a process has ended and init has taken notice.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; {
		if _, err := readStat(pid); err != nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d does not end", pid)
		}
		time.Sleep(time.Millisecond)
	}
}

const family = `sleep 1000 & sleep 1000 & echo ready >$READY; wait`

func TestKillGroup(t *testing.T) {
	mark := marker(t)
	pid, start := orphan(t, family, mark)
	left, err := Leftover(pid, start, mark)
	if err != nil || len(left) != 3 || !slices.Contains(left, pid) {
		t.Fatalf("left are %v, %v", left, err)
	}
	if left, err := Leftover(pid, start, ""); err != nil || len(left) != 3 {
		t.Errorf("without a mark: %v, %v", left, err)
	}
	if n, err := KillGroup(t.Context(), pid, start, mark, 0); n != 3 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
	gone(t, mark)
	if n, err := KillGroup(t.Context(), pid, start, mark, 0); n != 0 || err != nil {
		t.Errorf("killed %d again, %v", n, err)
	}
}

// TestReusedNumber: a process that has the number of the run, but not its start time, or that of another boot, is not
// touched, whatever else looks alike.
func TestReusedNumber(t *testing.T) {
	mark := marker(t)
	pid, start := orphan(t, family, mark)
	for _, other := range []uint64{start - 1, start + 1, start ^ 1<<tickBits, start ^ 1<<(tickBits+20), start - 1<<tickBits, 0, ^uint64(0)} {
		if n, err := KillGroup(t.Context(), pid, other, mark, 0); n != 0 || err != nil {
			t.Errorf("start time %d instead of %d: killed %d, %v", other, start, n, err)
		}
	}
	if left, _ := Leftover(pid, start, mark); len(left) != 3 {
		t.Fatalf("left are %v", left)
	}
	// A run whose first process has gone left a number to others, who have another mark.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, pid)
	for _, other := range []string{"", "MOCHILA_JOB_ID=other", mark + "0", mark[1:], mark[:len(mark)-1]} {
		if left, err := Leftover(pid, start, other); len(left) != 0 || err != nil {
			t.Errorf("mark %q: left are %v, %v", other, left, err)
		}
	}
	if left, err := Leftover(pid, start+1e6, mark); len(left) != 0 || err != nil {
		t.Errorf("processes older than the run: %v, %v", left, err)
	}
	// The true one finds its children.
	if n, err := KillGroup(t.Context(), pid, start, mark, time.Minute); n != 2 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
	gone(t, mark)
}

// TestUnrecorded: the daemon died between the start of a program and the record of its number.
func TestUnrecorded(t *testing.T) {
	mark := marker(t)
	orphan(t, family, mark)
	if n, err := KillGroup(t.Context(), 0, 0, "", 0); n != 0 || err != nil {
		t.Errorf("nothing in particular: killed %d, %v", n, err)
	}
	if n, err := KillGroup(t.Context(), 0, 0, mark, 0); n != 3 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
	gone(t, mark)
}

// TestStubborn: who does not listen to SIGTERM gets SIGKILL.
func TestStubborn(t *testing.T) {
	mark := marker(t)
	pid, start := orphan(t, `trap '' TERM; sleep 1000 & echo ready >$READY; sleep 1000; sleep 1000`, mark)
	if n, err := KillGroup(t.Context(), pid, start, mark, 50*time.Millisecond); n < 2 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
	gone(t, mark)

	pid, start = orphan(t, `trap '' TERM; echo ready >$READY; sleep 1000; sleep 1000`, mark)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := KillGroup(ctx, pid, start, mark, time.Hour); err == nil {
		t.Error("the end of the context was not noticed")
	}
	if _, err := KillGroup(t.Context(), pid, start, mark, 0); err != nil {
		t.Error(err)
	}
	gone(t, mark)
}

func TestParseStat(t *testing.T) {
	tail := " 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11 12"
	for in, want := range map[string]stat{
		"41 (sh) S" + tail:            {41, 42, 43, false, 987654},
		"41 (a) Z 9 9 (x) Z" + tail:   {41, 42, 43, true, 987654},
		"41 (new\nline)) R" + tail:    {41, 42, 43, false, 987654},
		"41 () X" + tail + " 13 14\n": {41, 42, 43, true, 987654},
	} {
		if got, err := parseStat([]byte(in)); got != want || err != nil {
			t.Errorf("%q is %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "41", "41 (sh", "41 (sh)", "41 )sh( S" + tail, "x (sh) S" + tail, "41 (sh) S 1 x" + tail, "41 (sh) S 1 2 3"} {
		if got, err := parseStat([]byte(in)); err == nil {
			t.Errorf("%q is %+v", in, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	if b, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStat(b)
		if err == nil && !strings.Contains(string(b), strconv.FormatUint(s.ticks, 10)) && !strings.Contains(string(b), fmt.Sprintf("0%d", s.ticks)) {
			t.Errorf("%q is %+v", b, s)
		}
	})
}

// TestFoundInExec: a process that is becoming another program has no environment for a moment, and is found all the same.
func TestFoundInExec(t *testing.T) {
	mark := marker(t)
	pid, _ := orphan(t, `[ -z "$READY" ] || echo ready >$READY; READY= exec "$0"`, mark)
	for end, round := time.Now().Add(3*time.Second), 0; round < 200 && time.Now().Before(end); round++ {
		if left, err := Leftover(0, 0, mark); err != nil || !slices.Contains(left, pid) {
			t.Errorf("left are %v, %v", left, err)
			break
		}
	}
	if n, err := KillGroup(t.Context(), 0, 0, mark, 0); n < 1 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
	gone(t, mark)
}
