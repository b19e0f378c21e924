package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mochila/internal/peertest"
)

// withJob lists the living processes whose environment names a job.
func withJob(t *testing.T, id string) (pids []string) {
	t.Helper()
	for _, p := range processes(t) {
		if slices.Contains(p.env, "MOCHILA_JOB_ID="+id) {
			pids = append(pids, strconv.Itoa(p.pid))
		}
	}
	return pids
}

// process is a living one of this machine.
type process struct {
	pid  int
	args string   // each followed by a zero byte
	env  []string // that it was started with
}

// processes lists those that can be looked at. One that is in the middle of an exec has neither arguments nor environment
// for a moment: that is waited for.
func processes(t testing.TB) (list []process) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		for round := range 1000 {
			args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
			env, _ := os.ReadFile(filepath.Join(d, "environ"))
			if _, err := os.Readlink(filepath.Join(d, "exe")); err != nil || gone(filepath.Base(d)) {
				break // of the kernel, or dead
			}
			if len(args) > 0 && (len(env) > 0 || round >= 3) { // the environment comes last; there may be none
				pid, _ := strconv.Atoi(filepath.Base(d))
				list = append(list, process{pid, string(args), strings.Split(string(env), "\x00")})
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return list
}

// TestHandlerMisery: whatever a program does, its job ends as its handler's configuration says, everybody can see it, and the
// jobs of other channels run.
func TestHandlerMisery(t *testing.T) {
	t.Parallel()
	w := newJobWorld(t)
	output := int64(count(200<<20, 10<<30))
	forks := count(300, 5000)
	conf, err := os.ReadFile(w.hub.home.Config())
	if err != nil {
		t.Fatal(err)
	}
	handlers := func(name, command, more string) string {
		return fmt.Sprintf("\n[[handler]]\nname = %q\ncommand = %s\nallow = [\"camp:*\"]\nretry = 0\n%s\n", name, command, more)
	}
	sh := func(line string) string { return fmt.Sprintf("[\"/bin/sh\", \"-c\", %q]", line) }
	w.hub.configure(string(conf) +
		handlers("hangs", sh("trap '' TERM; while :; do sleep 100; done"), `timeout = "1s"`) +
		handlers("dies", sh("kill -9 $$"), "") +
		handlers("forks", sh(fmt.Sprintf("i=0; while [ $i -lt %d ]; do sleep 1000 & i=$((i+1)); done; echo many; wait", forks)), fmt.Sprintf("timeout = \"%ds\"", count(5, 60))) +
		handlers("talks", fmt.Sprintf("[\"/usr/bin/head\", \"-c\", \"%d\", \"/dev/zero\"]", output), `output = "10k"`) +
		handlers("shuts", sh("exec <&-; exec sleep 0.1"), "") +
		handlers("temporary", sh("exit 75"), "") +
		handlers("missing", `["/no/such/program"]`, "") +
		handlers("skips", sh("exit 9"), `on_failure = "skip"`) +
		handlers("limited", sh("head -c 1M /dev/zero > big"), `limit_file_size = "1k"`))
	big := strings.Repeat("x", 8<<20)
	tests := []struct {
		handler, stdin, state, why string
		exit, signal               int
		held                       bool
		check                      func(t *testing.T, id string)
	}{
		{handler: "hangs", state: "timeout", why: "killed after 1s", held: true, signal: 9},
		{handler: "dies", state: "failed", signal: 9, held: true},
		{handler: "forks", state: "timeout", held: true, signal: 15, why: "killed after"},
		{handler: "talks", state: "done", check: func(t *testing.T, id string) {
			r := w.job(w.camp, id).Result
			if r.Stdout != 10_000 || r.DroppedStdout != output-10_000 {
				t.Errorf("kept %d, dropped %d of %d bytes", r.Stdout, r.DroppedStdout, output)
			}
		}},
		{handler: "shuts", stdin: big, state: "done"},
		{handler: "temporary", state: "failed", exit: 75, held: true},
		{handler: "missing", state: "failed", exit: 127, why: "no such file", held: true},
		{handler: "skips", state: "failed", exit: 9},
		{handler: "limited", state: "failed", held: true, exit: -1, check: func(t *testing.T, id string) {
			if r := w.job(w.camp, id).Result; r.Started.IsZero() || r.Signal != 25 && r.Exit != 128+25 {
				t.Errorf("not ended by SIGXFSZ: %+v", r)
			}
		}},
	}
	ids, beside := map[string]string{}, map[string]string{}
	for _, x := range tests {
		ids[x.handler] = w.run(x.handler, x.handler, x.stdin)
		w.run(x.handler, "note", "") // behind it on the same channel
		beside[x.handler] = w.run(x.handler+"-beside", "note", "")
	}
	w.trip()
	w.trip()
	for _, x := range tests {
		t.Run(x.handler, func(t *testing.T) {
			old := w.t
			w.t = t
			defer func() { w.t = old }()
			it := w.job(w.camp, ids[x.handler])
			r := it.Result
			if r == nil || r.State != x.state || r.Held != x.held || x.exit >= 0 && (r.Signal != x.signal || r.Exit != x.exit) || !strings.Contains(r.Reason, x.why) {
				t.Errorf("at camp: %+v, %+v", it, r)
			}
			c := w.channel(x.handler)
			if x.held && (c.State != "held" || c.Waiting != 2 || !strings.Contains(c.Why, it.ID)) || !x.held && (c.State != "" || c.Waiting != 0) {
				t.Errorf("the channel: %+v", c)
			}
			if got := len(w.did(x.handler)); got == 1 == x.held {
				t.Errorf("%d jobs behind it have run", got)
			}
			if it := w.job(w.camp, beside[x.handler]); it.State != "done" {
				t.Errorf("the other channel: %+v", it)
			}
			// They have been killed; the kernel takes each away when it next looks at it.
			peertest.Await(t, "the last of its processes to end", func() bool { return len(withJob(t, ids[x.handler])) == 0 })
			if x.check != nil {
				x.check(t, ids[x.handler])
			}
		})
	}
}
