package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"mochila/internal/control"
	"mochila/internal/envelope"
	"mochila/internal/peertest"
	"mochila/transport"
)

// row is one line of a table of faults: what it calls the situation, and the same situation against us.
type row struct {
	name string
	do   func(*testing.T, *jobWorld)
}

func runRows(t *testing.T, rows []row) {
	t.Parallel()
	w := newJobWorld(t)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			old := w.t
			w.t = t
			defer func() { w.t = old }()
			for range 2 { // receipts of the row before are out of the way
				w.trip()
			}
			w.pack()
			r.do(t, w)
		})
	}
}

// gone reports whether a process has ended, even when nobody has waited for it yet.
func gone(pid string) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(pid), "stat"))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

// broken is input that breaks off after some words.
func broken() io.Reader {
	return io.MultiReader(strings.NewReader("half of"), iotest.ErrReader(errors.New("the pipe broke")))
}

// TestFilespoolerFaults has the rows of what was measured with Filespooler: order, faults, crashes.
func TestFilespoolerFaults(t *testing.T) {
	runRows(t, []row{
		{"3,5,2 arrive; then 1", func(t *testing.T, w *jobWorld) {
			var p [6]packet
			for i := 1; i <= 5; i++ {
				w.run("shuffle", "note", "")
				p[i] = w.one()
			}
			w.show(p[3])
			w.show(p[5])
			w.show(p[2])
			w.wants("shuffle")
			w.show(p[1])
			w.wants("shuffle", 1, 2, 3)
			if c := w.channel("shuffle"); c.State != "gap" || c.Next != 4 || c.Waiting != 1 {
				t.Errorf("%+v", c)
			}
			w.show(p[4])
			w.wants("shuffle", 1, 2, 3, 4, 5)
		}},
		{"gap (job lost for good)", func(t *testing.T, w *jobWorld) {
			w.run("gap", "note", "")
			w.one() // lost
			w.run("gap", "note", "")
			w.show(w.one())
			c := w.channel("gap")
			if c.State != "gap" || c.Missing != 1 || c.Since.IsZero() || !strings.Contains(c.Why, "number 1 is missing") || c.Reports == 0 {
				t.Errorf("the gap is not visible: %+v", c)
			}
			w.home() // hub asks
			// the packet may still be on its way for all that camp knows: only the third report is believed against that
			for i := 0; i < 4 && len(w.did("gap")) == 0; i++ {
				w.run("gap", "note", "more")
				w.trip()
			}
			if got := w.did("gap"); len(got) < 2 || !strings.HasPrefix(got[0], "1 ") || !strings.HasPrefix(got[1], "2 ") {
				t.Errorf("the gap did not heal: %q, %+v", got, w.channel("gap"))
			}
		}},
		{"sender's pipe breaks or -i file missing", func(t *testing.T, w *jobWorld) {
			if _, err := w.order(control.RunRequest{Channel: "burnt", Handler: "note"}, broken()); err == nil {
				t.Error("input that broke off was taken")
			}
			size := int64(10)
			if _, err := w.order(control.RunRequest{Channel: "burnt", Handler: "note", Size: &size}, strings.NewReader("short")); err == nil {
				t.Error("input that is too short was taken")
			}
			x, err := w.order(control.RunRequest{Channel: "burnt", Handler: "note"}, strings.NewReader(""))
			if err != nil || x.Seq != 1 {
				t.Errorf("the first job that was taken has number %d, %v", x.Seq, err)
			}
			w.trip()
			w.wants("burnt", 1)
		}},
		{"duplicate of a pending job (also Syncthing sync-conflict copy)", func(t *testing.T, w *jobWorld) {
			w.run("twice", "note", "")
			first := w.one()
			w.run("twice", "note", "")
			second := w.one()
			w.show(second, packet{second.name + ".sync-conflict-20261127-101010-ABCDEFG", second.data}, packet{second.name + " (copy)", second.data})
			w.show(second)
			w.show(first)
			w.wants("twice", 1, 2)
			if c := w.channel("twice"); c.State != "" {
				t.Errorf("the channel stands: %+v", c)
			}
		}},
		{"duplicate of a job already done", func(t *testing.T, w *jobWorld) {
			w.run("again", "note", "")
			p := w.one()
			for range 3 {
				w.show(p)
			}
			w.wants("again", 1)
			if n := w.quarantined(); n != 0 {
				t.Errorf("%d things put aside", n)
			}
		}},
		{"--order-by=Timestamp", func(t *testing.T, w *jobWorld) { // no such mode; jobs in no order are still started once
			for range 2 {
				if _, err := w.order(control.RunRequest{Channel: "loose", Handler: "note", Unordered: true}, strings.NewReader("x")); err != nil {
					t.Fatal(err)
				}
			}
			p := w.one()
			w.show(p)
			w.show(p)
			if got := w.did("loose"); len(got) != 2 {
				t.Errorf("ran %q", got)
			}
		}},
		{"job fails, Retry", func(t *testing.T, w *jobWorld) {
			id := w.run("temp", "exit", "75")
			next := w.run("temp", "note", "")
			w.trip()
			w.trip()
			it := w.job(w.hub, id)
			if it.State != "deferred" || it.Next.IsZero() || it.Tries != 1 || len(w.did("temp")) != 1 {
				t.Errorf("after EX_TEMPFAIL: %+v, ran %q", it, w.did("temp"))
			}
			w.act(w.hub, "retry", id) // the second try is the last: then a person decides
			w.trip()
			if it := w.job(w.camp, id); it.Result == nil || !it.Result.Held || it.Result.Exit != 75 {
				t.Errorf("after the last try: %+v", it)
			}
			if it := w.job(w.hub, next); it.State != "waiting" {
				t.Errorf("the next job: %+v", it)
			}
			w.act(w.hub, "skip", id)
			w.trip()
			w.trip()
			if it := w.job(w.camp, next); it.State != "done" {
				t.Errorf("the next job: %+v", it)
			}
		}},
		{"Delete / Leave", func(t *testing.T, w *jobWorld) {
			id := w.run("dead", "exit-dead", "")
			next := w.run("dead", "exit", "0")
			w.trip()
			if a, b := w.job(w.hub, id), w.job(w.camp, next); a.State != "dead" || b.State != "done" {
				t.Errorf("the dead letter: %+v; the next: %+v", a, b)
			}
			w.act(w.hub, "retry", id)
			w.trip()
			if it := w.job(w.camp, id); it.State != "done" {
				t.Errorf("tried again: %+v", it)
			}
		}},
		{"two processors", func(t *testing.T, w *jobWorld) {
			c := w.hub.client()
			defer c.Close()
			out, err := w.hub.command("sync").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "try again when it has finished") {
				t.Errorf("a second one: %v %s", err, out)
			}
		}},
		{"50 concurrent prepare on one seqfile", func(t *testing.T, w *jobWorld) {
			c := w.camp.client()
			defer c.Close()
			var mu sync.Mutex
			var seqs []int
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					var r control.RunReply
					err := c.Upload(t.Context(), "/v1/run", strings.NewReader(`{"nodes":["hub"],"channel":"many","handler":"note"}`+"\nx"), &r)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						t.Error(err)
						return
					}
					seqs = append(seqs, int(r.Jobs[0].Seq))
				})
			}
			all.Wait()
			slices.Sort(seqs)
			for i, n := range seqs {
				if n != i+1 {
					t.Fatalf("numbers %v", seqs)
				}
			}
		}},
		{"producer killed half way, or prepare killed half way", func(t *testing.T, w *jobWorld) {
			// mochila run is killed while it reads
			cmd := w.camp.command("run", "hub", "--channel", "killed", "--", "note")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(in, "half of ")
			cmd.Process.Kill()
			cmd.Wait()
			// a producer is killed that said how much it would write
			cmd = w.camp.command("run", "hub", "--channel", "killed", "--size", "100", "--", "note")
			cmd.Stdin = strings.NewReader("half of ")
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "8 bytes, not 100") {
				t.Errorf("%v, %s", err, out)
			}
			if x, err := w.order(control.RunRequest{Channel: "killed", Handler: "note"}, strings.NewReader("")); err != nil || x.Seq != 1 {
				t.Errorf("number %d, %v", x.Seq, err)
			}
		}},
		{"truncated age file with -d 'age -d ...'", func(t *testing.T, w *jobWorld) {
			w.trip()
			w.run("cut", "note", strings.Repeat("0123456789", 30_000))
			p := w.one()
			for _, n := range []int{1, len(p.data) / 3, len(p.data) - 1} {
				w.show(packet{p.name, p.data[:n]})
				w.wants("cut")
			}
			w.show(p)
			w.wants("cut", 1)
		}},
		{"bit flip in payload", func(t *testing.T, w *jobWorld) {
			w.run("flip", "note", "content")
			p := w.one()
			for _, at := range []int{0, 40, len(p.data) / 2, len(p.data) - 1} {
				bad := bytes.Clone(p.data)
				bad[at] ^= 4
				w.show(packet{p.name, bad})
				w.wants("flip")
			}
			w.show(p)
			w.wants("flip", 1)
		}},
		{"forged packet with next seq", func(t *testing.T, w *jobWorld) {
			// eve has camp's and hub's cards and calls herself camp
			eve := newNode(t, "eve", "")
			stick := t.TempDir()
			eve.knows(w.hub, control.PeerAdd{Carrier: "dir:" + stick})
			honest := w.camp
			w.camp = eve
			w.run("forged", "note", "evil")
			w.sync(eve)
			w.camp = honest
			forged := 0
			for _, d := range w.folders(stick) {
				entries, _ := os.ReadDir(filepath.Join(stick, d))
				for _, e := range entries {
					b, err := os.ReadFile(filepath.Join(stick, d, e.Name()))
					if err != nil {
						t.Fatal(err)
					}
					w.show(packet{e.Name(), b})
					forged++
				}
			}
			if forged == 0 {
				t.Fatal("eve wrote nothing")
			}
			w.wants("forged")
			for _, c := range func() []control.JobChannel {
				var l control.JobList
				w.with(w.hub, func(c *control.Client) error { return c.Get(t.Context(), "/v1/jobs", &l) })
				return l.Channels
			}() {
				if c.Channel == "forged" {
					t.Errorf("a stranger has made a channel: %+v", c)
				}
			}
		}},
		{"wrong decoder/key", func(t *testing.T, w *jobWorld) {
			w.run("key", "note", "")
			p := w.one()
			// The packet of a session that hub does not have, something that is none at all, and half of the good one.
			other := bytes.Clone(p.data)
			other[20] ^= 1
			junk := bytes.Repeat([]byte("not a packet of any session. "), 40)
			before := w.quarantine()
			was := w.sync(w.hub)[0].Refused // what rows before this one have left there
			lines := w.show(packet{packetName(other), other}, packet{packetName(junk), junk}, packet{p.name, p.data[:len(p.data)-7]})
			w.wants("key")
			if len(lines) == 0 || lines[0].Refused-was != 2 || lines[0].Incomplete != 1 || lines[0].Error != "" {
				t.Errorf("hub says %+v, want 2 refused and 1 incomplete", lines)
			}
			aside := w.quarantine()[len(before):]
			if len(aside) != 2 {
				t.Fatalf("put aside: %+v, want 2", aside)
			}
			for i, want := range []string{"no session of ours fits", "not an item"} { // in either order
				if !slices.ContainsFunc(aside, func(q control.QuarantineItem) bool { return q.From == "camp" && strings.Contains(q.Reason, want) }) {
					t.Errorf("%d: put aside: %+v, none %q", i, aside, want)
				}
			}
			w.show(p) // and nobody else minds
			w.wants("key", 1)
			if n := len(w.quarantine()) - len(before); n != 2 {
				t.Errorf("%d were put aside in the end", n)
			}
		}},
		{"header says L = 2^40 with valid prefix CRC", func(t *testing.T, w *jobWorld) {
			huge := append([]byte{0xb1, 2}, bytes.Repeat([]byte{0xff}, 2000)...)
			w.run("huge", "note", "")
			p := w.one()
			before := w.quarantine()
			w.lay(packet{packetName(huge), huge}, p)
			kib, out, err := peakOf(t, w.hub.command("sync"))
			if err != nil {
				t.Fatalf("sync: %v: %s", err, out)
			}
			if kib > 256<<10 {
				t.Errorf("it needed %d KiB", kib)
			}
			w.show() // on a slow machine the job has not run yet
			w.wants("huge", 1)
			aside := w.quarantine()[len(before):]
			if len(aside) != 1 || aside[0].From != "camp" || !strings.Contains(aside[0].Reason, "no session of ours fits") {
				t.Errorf("put aside: %+v, want it", aside)
			}
		}},
		{"fifo named fspl-x.fspl", func(t *testing.T, w *jobWorld) {
			w.run("fifo", "note", "")
			p := w.one()
			dir := filepath.Join(w.far, w.there)
			fifo, link := filepath.Join(dir, strings.Repeat("b", 52)), filepath.Join(dir, strings.Repeat("c", 52))
			if err := syscall.Mkfifo(fifo, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/etc/passwd", link); err != nil {
				t.Fatal(err)
			}
			w.show(p)
			w.wants("fifo", 1)
			os.Remove(fifo)
			os.Remove(link)
		}},
		{"--timeout 1 with a job that forked", func(t *testing.T, w *jobWorld) {
			id := w.run("fork", "hang", "")
			other := w.run("beside", "note", "")
			w.trip()
			if it := w.job(w.camp, id); it.State != "timeout" || !strings.Contains(it.Why, "killed after 3s") {
				t.Errorf("%+v", it)
			}
			pids := w.did("fork")
			if len(pids) != 1 {
				t.Fatalf("the program started %q", pids)
			}
			peertest.Await(t, "the grandchild to end, which has been told to", func() bool { return gone(pids[0]) })
			if it := w.job(w.camp, other); it.State != "done" {
				t.Errorf("another channel: %+v", it)
			}
		}},
		{"env value with newline", func(t *testing.T, w *jobWorld) {
			value := "a\nFSPL_JOB_QUEUEDIR=/\n\x1b[31m"
			x, err := w.order(control.RunRequest{Channel: "env", Handler: "env", Env: [][2]string{{"X", value}}}, strings.NewReader(""))
			if err != nil {
				t.Fatal(err)
			}
			out, err := w.camp.command("jobs", "show", x.ID).CombinedOutput()
			if err != nil || strings.Contains(string(out), "\nFSPL") || strings.Contains(string(out), "\x1b") || !strings.Contains(string(out), "X=a") {
				t.Errorf("shown as %q, %v", out, err)
			}
			w.trip()
			vars := strings.Split(w.output(x.ID, "stdout"), "\x00")
			if !slices.Contains(vars, "X="+value) || slices.ContainsFunc(vars, func(v string) bool { return strings.HasPrefix(v, "FSPL_") }) {
				t.Errorf("the program got %q", vars)
			}
		}},
		{"SaveBoth", func(t *testing.T, w *jobWorld) {
			id := w.run("both", "exit", "3")
			w.trip()
			it := w.job(w.camp, id)
			if it.Result == nil || it.Result.Exit != 3 || it.Result.Started.IsZero() || it.Result.Ended.Before(it.Result.Started) {
				t.Errorf("%+v", it.Result)
			}
			if out, err := w.output(id, "stdout"), w.output(id, "stderr"); out != "to stdout\n" || err != "to stderr\n" {
				t.Errorf("stdout %q, stderr %q", out, err)
			}
		}},
		{"process reading only part of stdin", func(t *testing.T, w *jobWorld) {
			id := w.run("part", "head", strings.Repeat("abc", 1<<20))
			w.trip()
			if it := w.job(w.camp, id); it.State != "done" || w.output(id, "stdout") != "abc" {
				t.Errorf("%+v", it)
			}
		}},
	})
}

// packetName is the name that a packet of these bytes has.
func packetName(b []byte) string { return transport.ID(envelope.SumOf(b)).String() }

// TestNNCPFaults has the rows of what was measured with NNCP's exec.
func TestNNCPFaults(t *testing.T) {
	runRows(t, []row{
		{"Order", func(t *testing.T, w *jobWorld) { // a priority changes which packet leaves first, not the order of a channel
			for i := range 3 {
				if _, err := w.order(control.RunRequest{Channel: "order", Handler: "note", Priority: 9 * (i - 1)}, strings.NewReader("")); err != nil {
					t.Fatal(err)
				}
			}
			w.trip()
			w.wants("order", 1, 2, 3)
		}},
		{"Exactly once", func(t *testing.T, w *jobWorld) {
			w.run("once", "note", "")
			p := w.one()
			for range 3 {
				w.show(p)
				w.home()
			}
			w.wants("once", 1)
		}},
		{"Same job queued twice by sender", func(t *testing.T, w *jobWorld) {
			for range 2 { // two jobs are two jobs, with ids of their own; a key makes the later take the place of the other
				w.run("same", "note", "x")
			}
			for range 2 {
				if _, err := w.order(control.RunRequest{Channel: "key", Handler: "note", Supersede: "k"}, strings.NewReader("x")); err != nil {
					t.Fatal(err)
				}
			}
			w.trip()
			w.wants("same", 1, 2)
			w.wants("key", 2)
		}},
		{"stdin", func(t *testing.T, w *jobWorld) { // nothing begins before the last byte is authentic
			w.run("stdin", "note", strings.Repeat("0123456789abcdef", 20_000))
			p := w.one()
			bad := bytes.Clone(p.data)
			bad[len(bad)-1] ^= 1
			w.show(packet{packetName(bad), bad})
			w.wants("stdin")
			w.show(p)
			w.wants("stdin", 1)
		}},
		{"env / args", func(t *testing.T, w *jobWorld) {
			opt := w.run("args1", "note", "", "--exec=rm")
			none := w.run("args2", "head", "", "x")
			shell := w.run("args3", "note", "", "$(id)", "a b", "*")
			x, err := w.order(control.RunRequest{Channel: "args4", Handler: "note", Env: [][2]string{{"LD_PRELOAD", "/tmp/x"}}}, strings.NewReader(""))
			if err != nil {
				t.Fatal(err)
			}
			w.trip()
			for _, id := range []string{opt, none, x.ID} {
				if it := w.job(w.camp, id); it.State != "refused" || it.Why == "" {
					t.Errorf("%+v", it)
				}
			}
			if got := w.did("args3"); w.job(w.camp, shell).State != "done" || len(got) != 1 || got[0] != "1  $(id) a b *" {
				t.Errorf("a shell has read %q", got)
			}
		}},
		{"Failure", func(t *testing.T, w *jobWorld) { // the sender is told, and nothing is tried again for ever
			id := w.run("fail", "exit", "1")
			nope := w.run("nope", "no-such-handler", "")
			for range 3 {
				w.trip()
			}
			if it := w.job(w.camp, id); it.State != "failed" || it.Result.Exit != 1 || len(w.did("fail")) != 1 {
				t.Errorf("%+v, ran %q", it, w.did("fail"))
			}
			if it := w.job(w.camp, nope); it.State != "refused" || !strings.Contains(it.Why, "no handler") {
				t.Errorf("%+v", it)
			}
		}},
		{"Hung handler", func(t *testing.T, w *jobWorld) {
			id := w.run("hung", "hang", "")
			var others []string
			for i := range 3 {
				others = append(others, w.run(fmt.Sprint("free", i), "note", ""))
			}
			w.trip()
			if it := w.job(w.camp, id); it.State != "timeout" {
				t.Errorf("%+v", it)
			}
			for _, o := range others {
				if it := w.job(w.camp, o); it.State != "done" {
					t.Errorf("another channel: %+v", it)
				}
			}
		}},
		{"Concurrency", func(t *testing.T, w *jobWorld) { // each waits for the next: one after the other they would never end
			a, b, c := w.run("a", "meet", "b"), w.run("b", "meet", "c"), w.run("c", "meet", "a")
			w.lay(w.pack()...)
			w.hub.serve() // a single sync may end before all three have begun
			peertest.Await(t, "all three", func() bool {
				var l control.JobList
				w.hub.get("/v1/jobs?side=ended&limit=1", &l)
				ended := 0
				for _, x := range l.Channels {
					if len(x.Channel) == 1 && x.Waiting == 0 && x.Next == 2 {
						ended++
					}
				}
				return ended == 3
			}, w.hub.log.String)
			w.hub.shutdown()
			w.sync(w.hub)
			w.home()
			for _, id := range []string{a, b, c} {
				if it := w.job(w.camp, id); it.State != "done" {
					t.Errorf("%+v", it)
				}
			}
		}},
		{"Corrupt packet", func(t *testing.T, w *jobWorld) {
			w.run("corrupt", "note", "")
			p := w.one()
			bad := bytes.Clone(p.data)
			bad[len(bad)/2] ^= 0x10
			w.show(packet{packetName(bad), bad}) // the name is right for it, as a hostile carrier would have it
			w.wants("corrupt")
			w.show(p)
			w.wants("corrupt", 1)
		}},
		{"Full spool, sender", func(t *testing.T, w *jobWorld) {
			conf, err := os.ReadFile(w.camp.home.Config())
			if err != nil {
				t.Fatal(err)
			}
			w.camp.configure("name = \"camp\"\n[limits]\nreserve = \"9000T\"\n")
			cmd := w.camp.command("run", "hub", "--channel", "full", "--", "note")
			cmd.Stdin = strings.NewReader(strings.Repeat("x", 1<<20))
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != control.ExitTemp || !strings.Contains(string(out), "hint: ") {
				t.Errorf("exit status %d, %v: %s", cmd.ProcessState.ExitCode(), err, out)
			}
			if err := os.WriteFile(w.camp.home.Config(), conf, 0o644); err != nil {
				t.Fatal(err)
			}
			if x, err := w.order(control.RunRequest{Channel: "full", Handler: "note"}, strings.NewReader("")); err != nil || x.Seq != 1 {
				t.Errorf("number %d, %v", x.Seq, err)
			}
			w.trip()
		}},
		{"Full spool, receiver", func(t *testing.T, w *jobWorld) {
			conf, err := os.ReadFile(w.hub.home.Config())
			if err != nil {
				t.Fatal(err)
			}
			w.hub.configure(strings.Replace(string(conf), `reserve = "1MiB"`, `reserve = "9000T"`, 1))
			id := w.run("full2", "note", strings.Repeat("x", 1<<20))
			w.show(w.one())
			w.wants("full2")
			if err := os.WriteFile(w.hub.home.Config(), conf, 0o644); err != nil {
				t.Fatal(err)
			}
			w.home()
			for range 3 {
				w.trip()
			}
			w.wants("full2", 1)
			if it := w.job(w.camp, id); it.State != "done" {
				t.Errorf("%+v", it)
			}
		}},
	})
}

// TestKillRows are the rows about kills: fspl's "kill -9 of fspl during job 1, then rerun" and "durability", NNCP's "kill -9
// mid-job", "Crash window" and "Enqueue durability".
func TestKillRows(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	camp, hub := jobPair(t, "", `
[[handler]]
name = "slow"
command = ["/bin/sh", "-c", "echo $$ >>`+out+`/$MOCHILA_CHANNEL; exec sleep 1000"]
allow = ["camp:*"]
[[handler]]
name = "again"
command = ["/bin/sh", "-c", "echo $$ >>`+out+`/$MOCHILA_CHANNEL; [ $(grep -c . `+out+`/$MOCHILA_CHANNEL) -gt 1 ] || exec sleep 1000"]
allow = ["camp:*"]
idempotent = true
`)
	camp.start()
	hub.start()
	order := func(channel, handler string) string {
		cmd := camp.command("run", "hub", "--channel", channel, "--", handler)
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		camp.kill() // right after the answer: what it said is on the disk
		camp.start()
		id, _, _ := strings.Cut(string(b), " ")
		return id
	}
	once, twice := order("once", "slow"), order("twice", "again")
	pids := func(channel string) []string {
		b, _ := os.ReadFile(filepath.Join(out, channel))
		return strings.Fields(string(b))
	}
	peertest.Await(t, "both programs", func() bool { return len(pids("once")) == 1 && len(pids("twice")) == 1 }, camp.log.String, hub.log.String)
	hub.kill()
	hub.start()
	peertest.Await(t, "the second start of what may start again", func() bool { return len(pids("twice")) == 2 }, hub.log.String)
	if p := pids("once"); len(p) != 1 || !gone(p[0]) {
		t.Errorf("programs of the killed daemon: %v", p)
	}
	if p := pids("twice"); !gone(p[0]) {
		t.Errorf("the first copy runs beside the second")
	}
	show := func(id string) (it control.JobItem) { camp.get("/v1/jobs/"+id, &it); return it }
	peertest.Await(t, "the results", func() bool { return show(once).Result != nil && show(twice).Ended }, camp.log.String, hub.log.String)
	if it := show(once); it.State != "unknown" || !it.Result.Held || !strings.Contains(it.Why, "running when this node stopped") {
		t.Errorf("%+v", it)
	}
	if it := show(twice); it.State != "done" {
		t.Errorf("%+v", it)
	}
	if p := pids("once"); len(p) != 1 {
		t.Errorf("started %d times", len(p))
	}
}
