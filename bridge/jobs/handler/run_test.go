package handler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	ShimMain()
	os.Exit(m.Run())
}

// script writes a program.
func script(t testing.TB, text string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "handler")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{path}
}

// result is an outcome with what was printed.
type result struct {
	Outcome
	out, err string
}

// both are the two ways to start a program, of which the second goes through the shim.
var both = map[string]Limits{"plain": {}, "shim": {Files: 100}}

// Run is a run of a launcher that does nothing else.
func Run(ctx context.Context, s Spec, started func(int, uint64) error) Outcome {
	var l Launcher
	defer l.Close()
	return l.Run(ctx, s, started)
}

// do runs a spec whose gaps are filled.
func do(t testing.TB, s Spec) result {
	t.Helper()
	return doUntil(t, t.Context(), s)
}

// doUntil is do with a context.
func doUntil(t testing.TB, ctx context.Context, s Spec) result {
	t.Helper()
	var out, errs bytes.Buffer
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	if s.OutputCap == 0 {
		s.OutputCap = 1 << 20
	}
	if s.Stdout == nil {
		s.Stdout, s.Stderr = &out, &errs
	}
	if s.Env == nil {
		s.Env = CleanEnv("/", "nobody", "")
	}
	started := 0
	o := Run(ctx, s, func(pid int, startTime uint64) error {
		started++
		if pid <= 1 || startTime == 0 {
			t.Errorf("started with pid %d, start time %d", pid, startTime)
		}
		return nil
	})
	if o.Ran() && started != 1 {
		t.Errorf("started was called %d times", started)
	}
	if o.Ran() && o.Ended.Before(o.Started) {
		t.Errorf("ended %v before it started %v", o.Ended, o.Started)
	}
	return result{o, out.String(), errs.String()}
}

// trigger ends a context as soon as a program prints something.
type trigger struct{ fire func() }

func (g trigger) Write(b []byte) (int, error) { g.fire(); return len(b), nil }

// doReady runs a program that is cancelled when it says that it is ready, with a marker in its environment, and
// waits until the last of its processes has ended.
func doReady(t *testing.T, s Spec) result {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	mark := marker(t)
	s.Stdout, s.Env = trigger{cancel}, append(CleanEnv("/", "x", ""), mark)
	r := doUntil(t, ctx, s)
	if !r.Cancelled || r.TimedOut || r.OK() {
		t.Errorf("%+v", r)
	}
	gone(t, mark)
	return r
}

// gone waits until no living process has the marker in its environment: what was killed needs a moment to go.
func gone(t *testing.T, mark string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; {
		left, err := Leftover(0, 0, mark)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("processes %v are still there", left)
		}
		runtime.Gosched()
	}
}

var runs int

// marker is an environment entry that no other test uses.
func marker(t *testing.T) string {
	runs++
	return fmt.Sprintf("MOCHILA_JOB_ID=%s-%d-%d", t.Name(), os.Getpid(), runs)
}

func TestEnds(t *testing.T) {
	for name, limits := range both {
		for _, c := range []struct {
			text           string
			exit, sig, all int
		}{
			{"exit 0", 0, 0, 0},
			{"exit 1", 1, 0, 1},
			{"exit 75", 75, 0, 75},
			{"exit 255", 255, 0, 255},
			{"kill -9 $$", -1, 9, 137},
			{"kill -15 $$", -1, 15, 143},
			{"exec 0<&- 1>&- 2>&-; exit 3", 3, 0, 3},
			{"exec 1>&- 2>&-; cat; exit 4", 4, 0, 4},
		} {
			r := do(t, Spec{Command: script(t, c.text), Limits: limits, Stdin: strings.NewReader("input"), StdinSize: 5})
			if r.Err != "" || r.Exit != c.exit || r.Signal != c.sig || r.Status() != c.all || r.OK() != (c.all == 0) || r.TimedOut {
				t.Errorf("%s: %q gave %+v", name, c.text, r)
			}
		}
	}
}

func TestOutput(t *testing.T) {
	for name, limits := range both {
		r := do(t, Spec{Command: script(t, "cat; echo two >&2"), Limits: limits, Stdin: strings.NewReader("one"), StdinSize: 3})
		if r.out != "one" || r.err != "two\n" || r.StdoutBytes != 3 || r.StderrBytes != 4 || r.Truncated || !r.OK() {
			t.Errorf("%s: %+v", name, r)
		}
	}
	r := do(t, Spec{Command: script(t, "printf 0123456789; printf 0123 >&2"), OutputCap: 4})
	if r.out != "0123" || r.err != "0123" || r.StdoutBytes != 10 || r.StderrBytes != 4 || !r.Truncated || !r.OK() {
		t.Errorf("capped: %+v", r)
	}
	r = do(t, Spec{Command: script(t, "printf 0123456789"), OutputCap: -1})
	if r.out != "0123456789" || r.Truncated {
		t.Errorf("not capped: %+v", r)
	}
	o := Run(t.Context(), Spec{Command: script(t, "echo hi"), Dir: "/"}, nil)
	if o.StdoutBytes != 3 || !o.Truncated || !o.OK() {
		t.Errorf("without a sink: %+v", o)
	}
}

// broken fails after some bytes.
type broken struct{ left int }

func (b *broken) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

func TestSinkThatFails(t *testing.T) {
	r := do(t, Spec{Command: script(t, "head -c 300000 /dev/zero; exit 7"), Stdout: &broken{1000}})
	if r.Exit != 7 || r.StdoutBytes != 300000 || !r.Truncated || !strings.Contains(r.SinkErr, "stdout: no space left") || r.Err != "" {
		t.Errorf("got %+v", r)
	}
}

// TestMuchOutput: 200 MB, or 10 GB with MOCHILA_SOAK, neither block nor fill memory.
func TestMuchOutput(t *testing.T) {
	size := int64(200 << 20)
	if os.Getenv("MOCHILA_SOAK") != "" {
		size = 10 << 30
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := strconv.FormatInt(size, 10)
	r := do(t, Spec{Command: []string{"/bin/sh", "-c", "head -c " + n + " /dev/zero & head -c " + n + " /dev/zero >&2; wait"}, OutputCap: 1000})
	runtime.ReadMemStats(&after)
	if r.StdoutBytes != size || r.StderrBytes != size || !r.Truncated || len(r.out) != 1000 || len(r.err) != 1000 || !r.OK() {
		t.Errorf("got %d and %d bytes: %+v", r.StdoutBytes, r.StderrBytes, r.Outcome)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 2<<20 {
		t.Errorf("%d bytes of memory were allocated", used)
	}
}

// plainReader hides that something is a file.
type plainReader struct{ io.Reader }

func TestInput(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, 1, smallInput - 1, smallInput, smallInput + 1, 1 << 20} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rand.N(256))
		}
		path := filepath.Join(dir, "stdin")
		if err := os.WriteFile(path, append([]byte("skip"), data...), 0o600); err != nil {
			t.Fatal(err)
		}
		open := func(flag int) *os.File {
			f, err := os.OpenFile(path, flag, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if _, err := f.Seek(4, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			return f
		}
		for how, in := range map[string]io.Reader{
			"file": open(os.O_RDONLY), "writable": open(os.O_RDWR), "reader": bytes.NewReader(data), "hidden": plainReader{open(os.O_RDONLY)},
		} {
			for name, limits := range both {
				if f, ok := in.(*os.File); ok {
					f.Seek(4, io.SeekStart)
				} else if h, ok := in.(plainReader); ok {
					h.Reader.(*os.File).Seek(4, io.SeekStart)
				} else {
					in.(*bytes.Reader).Seek(0, io.SeekStart)
				}
				// With the right to write, the file must not be the program's input itself.
				r := do(t, Spec{Command: script(t, "cat; [ ! -f /proc/self/fd/0 ] || (echo x >&0) 2>/dev/null && echo file >&2; exit 0"),
					Limits: limits, Stdin: in, StdinSize: int64(size), OutputCap: -1})
				if r.out != string(data) || r.Err != "" {
					t.Errorf("%s, %s, %d bytes: got %d: %+v", how, name, size, len(r.out), r.Outcome)
				}
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "stdin")); err != nil || string(b[:4]) != "skip" || len(b) != 4+1<<20 {
		t.Errorf("the file was changed: %d bytes, %v", len(b), err)
	}
}

func TestInputNotWanted(t *testing.T) {
	for name, limits := range both {
		r := do(t, Spec{Command: script(t, "head -c 3; exit 0"), Limits: limits, Stdin: bytes.NewReader(make([]byte, 4<<20)), StdinSize: 4 << 20})
		if !r.OK() || r.out != "\x00\x00\x00" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestInputThatEndsEarly: a program must never see the end of an input that is not the whole. It writes a file only
// when it has.
func TestInputThatEndsEarly(t *testing.T) {
	long := 1 << 20
	fault := errors.New("bad sector")
	for name, in := range map[string]struct {
		r   func() io.Reader
		ran bool
		why string
	}{
		"short":           {func() io.Reader { return bytes.NewReader(make([]byte, long-1)) }, true, "unexpected EOF"},
		"long":            {func() io.Reader { return bytes.NewReader(make([]byte, long+1)) }, true, "more of it"},
		"fault":           {func() io.Reader { return io.MultiReader(bytes.NewReader(make([]byte, long/2)), errReader{fault}) }, true, "bad sector"},
		"fault at start":  {func() io.Reader { return errReader{fault} }, false, "bad sector"},
		"short and small": {func() io.Reader { return strings.NewReader("abc") }, false, "unexpected EOF"},
	} {
		for how, limits := range both {
			dir := t.TempDir()
			r := do(t, Spec{Command: script(t, "cat >/dev/null; echo done >effect"), Dir: dir, Limits: limits, Stdin: in.r(), StdinSize: int64(long)})
			if _, err := os.Stat(filepath.Join(dir, "effect")); err == nil {
				t.Errorf("%s, %s: the program took half of its input for all", name, how)
			}
			if r.Ran() != in.ran || !strings.Contains(r.Err, in.why) {
				t.Errorf("%s, %s: %+v", name, how, r)
			}
			if r.OK() || r.Status() != 255 {
				t.Errorf("%s, %s: counts as done: %+v", name, how, r)
			}
		}
	}
	f, err := os.Open(script(t, "")[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := do(t, Spec{Command: script(t, ""), Stdin: f, StdinSize: 1000}); r.Ran() || !strings.Contains(r.Err, "holds") {
		t.Errorf("short file: %+v", r)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestCannotStart(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) []string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return []string{path}
	}
	for name, limits := range both {
		for _, c := range []struct {
			s    Spec
			want string
		}{
			{Spec{Command: []string{"/nowhere/program"}}, `program "/nowhere/program": no such file`},
			{Spec{Command: []string{"/etc"}}, `program "/etc" is not a file`},
			{Spec{Command: file("plain", "#!/bin/sh\n", 0o644)}, "is not executable"},
			{Spec{Command: file("orphan", "#!/nowhere/sh -e\n", 0o755)}, `interpreter ("/nowhere/sh -e") is missing`},
			{Spec{Command: file("text", "echo hi\n", 0o755)}, "neither a binary"},
			{Spec{Command: []string{"/bin/true"}, Dir: "/nowhere"}, `working directory "/nowhere": no such file`},
			{Spec{Command: []string{"/bin/true"}, Dir: "/etc/passwd"}, `working directory "/etc/passwd": not a directory`},
			{Spec{Command: []string{"/bin/true"}, User: "no-such-user"}, `user "no-such-user" is unknown`},
			{Spec{Command: []string{"/bin/true"}, Args: []string{strings.Repeat("x", 200_000)}}, "too long for this system"},
			{Spec{Command: []string{"true"}}, "not an absolute path"},
			{Spec{Command: []string{"/bin/true"}, Dir: "tmp"}, "not an absolute path"},
			{Spec{}, "no command"},
			{Spec{Command: []string{"/bin/echo"}, Args: []string{"a\x00b"}}, "NUL"},
			{Spec{Command: []string{"/bin/true"}, Env: []string{"A"}}, "NAME=VALUE"},
			{Spec{Command: []string{"/bin/true"}, Env: []string{"A=1", "A=2"}}, "twice"},
			{Spec{Command: []string{"/bin/true"}, Umask: 0o1000}, "umask"},
			{Spec{Command: []string{"/bin/true"}, Timeout: -1}, "negative"},
			{Spec{Command: []string{"/bin/true"}, StdinSize: 5}, "without a source"},
			{Spec{Command: []string{"/bin/true"}, Limits: Limits{Processes: 5}}, "user of its own"},
		} {
			if c.s.Limits == (Limits{}) {
				c.s.Limits = limits
			}
			r := do(t, c.s)
			if r.Ran() || r.Exit != -1 || r.Status() != 255 || !strings.Contains(r.Err, c.want) || r.Temporary || !r.Ended.IsZero() {
				t.Errorf("%s: want %q, got %+v", name, c.want, r)
			}
		}
	}
}

func TestNotRecorded(t *testing.T) {
	for name, limits := range both {
		var pid int
		o := Run(t.Context(), Spec{Command: []string{"/bin/sleep", "1000"}, Dir: "/", Limits: limits}, func(p int, _ uint64) error {
			pid = p
			return errors.New("disk full")
		})
		if !strings.Contains(o.Err, "recording the start: disk full") || o.OK() || o.Status() != 255 {
			t.Errorf("%s: %+v", name, o)
		}
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("%s: process %d: %v", name, pid, err)
		}
		if name == "shim" && o.Ran() {
			t.Errorf("the program ran before its start was recorded: %+v", o)
		}
	}
}

// TestGrandchildHoldsOutput: the run ends when the grace does, with the exit status of the program, and nothing is left.
func TestGrandchildHoldsOutput(t *testing.T) {
	for name, limits := range both {
		mark := marker(t)
		r := do(t, Spec{Command: script(t, "echo early; sleep 1000 & exit 5"), Limits: limits, Grace: 100 * time.Millisecond, Env: append(CleanEnv("/", "x", ""), mark)})
		if r.Exit != 5 || r.out != "early\n" || !r.Lingered || r.TimedOut || r.Err != "" {
			t.Errorf("%s: %+v", name, r)
		}
		gone(t, mark)
	}
}

// TestLateOutput: what the tail of a pipeline prints within the grace is kept.
func TestLateOutput(t *testing.T) {
	r := do(t, Spec{Command: script(t, "(sleep 0.2; echo late) & exit 0"), Grace: 20 * time.Second})
	if r.out != "late\n" || r.Lingered || !r.OK() {
		t.Errorf("%+v", r)
	}
}

// TestQuietGrandchild: who holds no output open is killed when the program ends.
func TestQuietGrandchild(t *testing.T) {
	mark := marker(t)
	r := do(t, Spec{Command: script(t, "sleep 1000 >/dev/null 2>&1 </dev/null & exit 0"), Grace: time.Minute, Env: append(CleanEnv("/", "x", ""), mark)})
	if !r.OK() || r.Lingered {
		t.Errorf("%+v", r)
	}
	gone(t, mark)
}

// TestEscaped: a process in a session of its own is let go, and cannot hold the run by an open output.
func TestEscaped(t *testing.T) {
	mark := marker(t)
	r := do(t, Spec{Command: script(t, "mkfifo up; setsid sh -c 'echo >up; exec sleep 1000' & read x <up; exit 0"), Grace: 50 * time.Millisecond,
		Env: append(CleanEnv("/", "x", ""), mark)})
	if r.Exit != 0 || !r.Lingered {
		t.Errorf("%+v", r)
	}
	if n, err := KillGroup(t.Context(), 0, 0, mark, 0); n != 1 || err != nil {
		t.Errorf("killed %d of the escaped, %v", n, err)
	}
	gone(t, mark)
}

func TestTimeout(t *testing.T) {
	for name, limits := range both {
		mark := marker(t)
		r := do(t, Spec{Command: script(t, "sleep 1000 & sleep 1000 & wait"), Limits: limits, Timeout: 300 * time.Millisecond, Env: append(CleanEnv("/", "x", ""), mark)})
		if !r.TimedOut || r.Cancelled || r.Signal != 15 || r.Exit != -1 || r.Status() != 143 || r.Err != "" || r.OK() {
			t.Errorf("%s: %+v", name, r)
		}
		gone(t, mark)
	}
}

// TestAskedToEnd: SIGTERM to the group, and SIGKILL when that did not help.
func TestAskedToEnd(t *testing.T) {
	const long, short = time.Minute, 50 * time.Millisecond
	for name, limits := range both {
		// What prints has no trap: a shell that has one may lose a signal between fork and exec.
		for _, c := range []struct {
			text      string
			grace     time.Duration
			exit, sig int
		}{
			{"echo; sleep 1000", long, -1, 15},
			{"trap 'exit 9' TERM; /bin/sh -c 'echo; sleep 1000' & wait", long, 9, 0},
			{"trap 'exit 0' TERM; /bin/sh -c 'echo; sleep 1000' & wait", long, 0, 0},
			{"trap '' TERM; echo; sleep 1000; sleep 1000", short, -1, 9},
			{"(trap '' TERM; echo; sleep 1000; sleep 1000) & wait", short, -1, 15},
			{"echo; kill -STOP $$", long, -1, 15},
			{"set -m; sleep 1000 & sleep 1000 & echo; wait", short, -1, 15}, // each in a group of its own
		} {
			if r := doReady(t, Spec{Command: script(t, c.text), Limits: limits, Grace: c.grace}); r.Exit != c.exit || r.Signal != c.sig || r.Err != "" {
				t.Errorf("%s: %q gave %+v", name, c.text, r)
			}
		}
	}
}

// endless is an input that goes on.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// TestEndKeepsInputOpen: a program that is asked to end must not see an end of input instead.
func TestEndKeepsInputOpen(t *testing.T) {
	dir := t.TempDir()
	doReady(t, Spec{Command: script(t, "trap '' TERM; echo; cat >/dev/null && echo done >effect; exit 0"), Dir: dir,
		Grace: 100 * time.Millisecond, Stdin: endless{}, StdinSize: 1 << 60})
	if _, err := os.Stat(filepath.Join(dir, "effect")); err == nil {
		t.Error("the program took half of its input for all")
	}
}

func TestCancel(t *testing.T) {
	for name, limits := range both {
		ctx, cancel := context.WithCancel(t.Context())
		mark := marker(t)
		o := Run(ctx, Spec{Command: []string{"/bin/sleep", "1000"}, Dir: "/", Limits: limits, Env: []string{mark}}, func(int, uint64) error {
			cancel()
			return nil
		})
		if !o.Cancelled || o.TimedOut || o.OK() {
			t.Errorf("%s: %+v", name, o)
		}
		gone(t, mark)
		if o := Run(ctx, Spec{Command: []string{"/bin/true"}, Dir: "/"}, nil); o.Ran() || !o.Cancelled {
			t.Errorf("after the end: %+v", o)
		}
	}
}

// TestForkBomb: a program that does nothing but start itself again ends with its group, whatever its parts are at.
func TestForkBomb(t *testing.T) {
	// A bomb with a short fuse: 2^7 processes, each of which goes on starting others, one at a time.
	r := doReady(t, Spec{Command: script(t, `trap '' TERM; d=${1:-0}; if [ $d -lt 7 ]; then "$0" $((d+1)) & "$0" $((d+1)) & fi
		[ $d != 2 ] || echo; while :; do sleep 0.05; done`), Grace: 100 * time.Millisecond})
	if r.Signal != 9 {
		t.Errorf("%+v", r)
	}
}

// TestEnvironment: exactly what was asked for, descriptors and session included.
func TestEnvironment(t *testing.T) {
	t.Setenv("SECRET", "of the daemon")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, limits := range both {
		env := []string{"B=2", "A=\xff\n", "EMPTY=", "GODEBUG=inittrace=1", "GOTRACEBACK=all"}
		r := do(t, Spec{Command: []string{"/usr/bin/env"}, Args: []string{"-0"}, Env: env, Dir: dir, Limits: limits})
		if want := strings.Join(env, "\x00") + "\x00"; r.out != want || r.err != "" {
			t.Errorf("%s: environment is %q, want %q; %q", name, r.out, want, r.err)
		}
		r = do(t, Spec{Command: []string{"/usr/bin/env"}, Env: []string{}, Limits: limits})
		if r.out != "" {
			t.Errorf("%s: empty environment is %q", name, r.out)
		}
		r = do(t, Spec{Command: []string{"/bin/pwd"}, Dir: dir, Limits: limits})
		if r.out != dir+"\n" {
			t.Errorf("%s: directory is %q, want %q", name, r.out, dir)
		}
		r = do(t, Spec{Command: []string{"/bin/ls", "/proc/self/fd"}, Limits: limits})
		if r.out != "0\n1\n2\n3\n" { // 3 is that of ls itself
			t.Errorf("%s: descriptors are %q", name, strings.Fields(r.out))
		}
		r = do(t, Spec{Command: []string{"/bin/cat", "/proc/self/stat"}, Limits: limits})
		if st, err := parseStat([]byte(r.out)); err != nil || st.pid != st.group || st.pid != st.session {
			t.Errorf("%s: process is %+v, %v", name, st, err)
		}
		args := []string{"a b", "$HOME", "", "`id`", "*", "\xff", "-n"}
		r = do(t, Spec{Command: []string{"/usr/bin/printf", `%s\0`}, Args: args, Limits: limits})
		if want := strings.Join(args, "\x00") + "\x00"; r.out != want {
			t.Errorf("%s: arguments are %q, want %q", name, r.out, want)
		}
	}
}

func TestInheritedDescriptor(t *testing.T) {
	fd, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0) // without O_CLOEXEC, as from whoever started the daemon
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for name, limits := range both {
		if r := do(t, Spec{Command: []string{"/bin/ls", "/proc/self/fd"}, Limits: limits}); r.out != "0\n1\n2\n3\n" {
			t.Errorf("%s: descriptors are %q", name, strings.Fields(r.out))
		}
	}
}

func TestNoCore(t *testing.T) {
	if err := NoCore(); err != nil {
		t.Fatal(err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core.Cur != 0 {
		t.Errorf("core files are limited to %d: %v", core.Cur, err)
	}
}

func TestUmask(t *testing.T) {
	own := unix.Umask(0o22)
	unix.Umask(own)
	for name, limits := range both {
		for _, mask := range []int{0, 0o22, 0o27, 0o77, 0o777} {
			r := do(t, Spec{Command: script(t, "umask"), Umask: mask, Limits: limits})
			if got, err := strconv.ParseInt(strings.TrimSpace(r.out), 8, 32); err != nil || int(got) != mask {
				t.Errorf("%s: umask is %q, want %#o: %+v", name, r.out, mask, r)
			}
		}
	}
	if now := unix.Umask(own); now != own {
		t.Errorf("the umask of this process went from %#o to %#o", own, now)
	}
}

// TestAtOnce: runs side by side do not see each other's umask, input, output or end, and leave nothing behind.
func TestAtOnce(t *testing.T) {
	command := script(t, `umask; cat; [ "$1" != hang ] || sleep 1000; exit "$2"`)
	before := descriptors(t)
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() {
			var out bytes.Buffer
			mask := []int{0o22, 0o27, 0o77, 0}[i%4]
			in := strings.Repeat(strconv.Itoa(i), 1000*i+1)
			s := Spec{Command: command, Args: []string{"run", strconv.Itoa(i)}, Dir: "/", Env: CleanEnv("/", "x", ""), Umask: mask,
				Stdin: strings.NewReader(in), StdinSize: int64(len(in)), Stdout: &out, OutputCap: -1}
			if i%6 == 0 {
				s.Limits.Files = 60 + i
			}
			if i%5 == 0 {
				s.Args[0], s.Timeout, s.Grace = "hang", 300*time.Millisecond, 100*time.Millisecond
			}
			o := Run(t.Context(), s, func(int, uint64) error { return nil })
			if want := fmt.Sprintf("%04o\n%s", mask, in); o.TimedOut != (i%5 == 0) || !o.TimedOut && (o.Exit != i || out.String() != want) {
				t.Errorf("run %d: %+v, %.40q", i, o, out.String())
			}
		})
	}
	all.Wait()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors were open before, %d are now", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestLimits(t *testing.T) {
	r := do(t, Spec{Command: []string{"/bin/cat", "/proc/self/limits"}, Limits: Limits{CPU: 1500 * time.Millisecond, Memory: 1 << 30, FileSize: 12345, Files: 64}})
	for _, want := range [][]string{
		{"Max", "cpu", "time", "2", "3"},
		{"Max", "file", "size", "12345", "12345"},
		{"Max", "core", "file", "size", "0"},
		{"Max", "open", "files", "64", "64"},
		{"Max", "address", "space", "1073741824", "1073741824"},
	} {
		if !slices.ContainsFunc(strings.Split(r.out, "\n"), func(l string) bool {
			f := strings.Fields(l)
			return len(f) >= len(want) && slices.Equal(f[:len(want)], want)
		}) {
			t.Errorf("no %q in\n%s%+v", want, r.out, r.Outcome)
		}
	}
	if r := do(t, Spec{Command: script(t, "while :; do :; done"), Limits: Limits{CPU: time.Second}}); syscall.Signal(r.Signal) != unix.SIGXCPU {
		t.Errorf("endless loop: %+v", r)
	} else if r.User+r.System == 0 {
		t.Errorf("no CPU time was counted: %+v", r)
	}
	if r := do(t, Spec{Command: []string{"/usr/bin/head", "-c", "100000", "/dev/zero"}, Limits: Limits{FileSize: 1000}}); !r.OK() {
		t.Errorf("a pipe is no file: %+v", r)
	}
	if r := do(t, Spec{Command: script(t, "exec head -c 100000 /dev/zero >file"), Limits: Limits{FileSize: 1000}}); syscall.Signal(r.Signal) != unix.SIGXFSZ {
		t.Errorf("large file: %+v", r)
	}
}

// TestTightLimits: limits that would stop the shim itself stop only the program.
func TestTightLimits(t *testing.T) {
	for range 10 {
		if r := do(t, Spec{Command: []string{"/bin/true"}, Limits: Limits{Memory: 8 << 20, Files: 4}}); !r.OK() {
			t.Errorf("%+v", r)
		}
	}
}

func TestNoNewPrivs(t *testing.T) {
	for name, limits := range both {
		for _, on := range []bool{false, true} {
			r := do(t, Spec{Command: []string{"/bin/cat", "/proc/self/status"}, NoNewPrivs: on, Limits: limits})
			want := map[bool]string{false: "NoNewPrivs:\t0", true: "NoNewPrivs:\t1"}[on]
			if !strings.Contains(r.out, want) || !strings.Contains(r.out, "CapAmb:\t0000000000000000") {
				t.Errorf("%s: no %q in %s", name, want, r.out)
			}
		}
	}
}

// rootOnly skips where other users cannot be had.
func rootOnly(t *testing.T) *user.User {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can run a handler as another user")
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skipf("SKIPPED: no user to switch to: %v", err)
	}
	return u
}

func TestUser(t *testing.T) {
	u := rootOnly(t)
	for name, limits := range both {
		for _, who := range []string{u.Username, u.Uid} {
			r := do(t, Spec{Command: script(t, "id -u; id -g; id -G; cat /proc/self/status; cat"), Dir: "/", User: who, Limits: limits, Stdin: strings.NewReader("in"), StdinSize: 2})
			// The script lies in a folder that only root may enter, unless it is told otherwise.
			if r.Ran() {
				t.Errorf("%s: a user ran what it may not read: %+v", name, r)
			}
			r = do(t, Spec{Command: []string{"/bin/sh", "-c", "id -u; id -g; id -G; grep CapPrm /proc/self/status; cat"}, Dir: "/", User: who, Limits: limits, Stdin: strings.NewReader("in"), StdinSize: 2})
			ids, err := u.GroupIds()
			if err != nil {
				t.Fatal(err)
			}
			want := u.Uid + "\n" + u.Gid + "\n" + strings.Join(ids, " ") + "\nCapPrm:\t0000000000000000\nin"
			if r.out != want || !r.OK() {
				t.Errorf("%s: got %q, want %q: %+v", name, r.out, want, r)
			}
		}
		locked := t.TempDir()
		if err := os.Chmod(locked, 0o700); err != nil {
			t.Fatal(err)
		}
		if r := do(t, Spec{Command: []string{"/bin/true"}, Dir: locked, User: u.Username, Limits: limits}); r.Ran() || !strings.Contains(r.Err, "permission denied") {
			t.Errorf("%s: in a folder of root: %+v", name, r)
		}
	}
}

// TestProcessLimit: forks beyond the limit fail, and those within end with the group.
func TestProcessLimit(t *testing.T) {
	u := rootOnly(t)
	mark := marker(t)
	r := do(t, Spec{Command: []string{"/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 1000 & done; wait"}, Dir: "/", User: u.Username,
		Limits: Limits{Processes: 8}, Timeout: 5 * time.Second, Grace: 100 * time.Millisecond, Env: append(CleanEnv("/", "x", ""), mark)})
	if !strings.Contains(r.err, "ork") || r.OK() {
		t.Errorf("%+v", r)
	}
	gone(t, mark)
}

func TestUserNeedsRoot(t *testing.T) {
	s := Spec{User: "root", Limits: Limits{Processes: 3}}
	if _, err := s.credential(); err == nil {
		t.Error("a limit of processes was taken for the user of this process, or without root")
	}
	me, err := LookupAccount("")
	if err != nil || int(me.UID) != os.Geteuid() || len(me.Groups) == 0 {
		t.Errorf("own account: %+v, %v", me, err)
	}
}
