package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/internal/peertest"
)

// tool skips a test without a program of Debian's, loudly.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed: run .ci/peers", name)
	}
	return path
}

// contribPath is a program of contrib.
func contribPath(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "contrib", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// must runs a command of this node and returns what it says.
func (n *node) must(args ...string) string {
	n.t.Helper()
	out, err := n.command(args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: mochila %q: %v: %s", n.name, args, err, out)
	}
	return string(out)
}

// fromContrib runs a program of contrib as the user of this node would.
func (n *node) fromContrib(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(append(os.Environ(), "MOCHILA_HOME="+n.dir, "PATH="+bin+":"+os.Getenv("PATH")), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tree is what a folder holds: names, modes, contents, links.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%q %v", rel, fi.Mode())
		if fi.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
		} else if fi.Mode()&fs.ModeSymlink != 0 {
			to, _ := os.Readlink(path)
			line += " -> " + to
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// backup is a site whose folder is backed up at another one, by the files of contrib/backup.
type backup struct {
	*stick
	tool      string
	camp, hub *node
	src, dst  string
	state     string
	states    [][]string // of the folder, at each backup
}

func newBackup(t *testing.T, program string) *backup {
	t.Helper()
	tool(t, program)
	b := &backup{stick: newStick(t), tool: program, src: t.TempDir(), dst: t.TempDir(), state: t.TempDir()}
	b.camp = newNode(t, "camp", "")
	b.hub = newNode(t, "hub", "")
	pair(b.camp, b.hub, b.dir)
	b.hub.configure("name = \"hub\"\n" + contribFile(t, "backup/handler.toml", "/usr/local/lib/mochila/backup-apply", contribPath(t, "backup/backup-apply"), "/srv/backup", b.dst))
	return b
}

// change changes the folder so that a wrong order cannot give the right tree.
func (b *backup) change(n int) {
	b.t.Helper()
	do := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	name := func(s string) string { return filepath.Join(b.src, s) }
	do(os.WriteFile(name("always"), fmt.Appendf(nil, "version %d", n), 0o644))
	do(os.MkdirAll(name(fmt.Sprintf("dir%d/deep", n)), 0o755))
	do(os.WriteFile(name(fmt.Sprintf("dir%d/deep/file", n)), fmt.Append(nil, n), 0o600))
	do(os.WriteFile(name(fmt.Sprintf("only%d", n)), fmt.Append(nil, n), 0o644))
	if n > 0 {
		do(os.Remove(name(fmt.Sprintf("only%d", n-1))))
		do(os.RemoveAll(name(fmt.Sprintf("dir%d", n-1))))
	}
}

// run makes a backup, and returns its job.
func (b *backup) run(env ...string) (job string) {
	b.t.Helper()
	b.states = append(b.states, tree(b.t, b.src))
	out, err := b.camp.fromContrib(append(env, "BACKUP_STATE="+b.state), contribPath(b.t, "backup/mochila-backup"), b.tool, b.src, "hub", "home")
	if err != nil {
		b.t.Fatalf("mochila-backup: %v: %s", err, out)
	}
	f := strings.Fields(strings.TrimSpace(out))
	return f[len(f)-1]
}

// at is which state of the folder the backup is: -1 when there is none yet. Any other tree is a fault.
func (b *backup) at() int {
	b.t.Helper()
	current := filepath.Join(b.dst, "camp", "home", "current")
	real, err := filepath.EvalSymlinks(current)
	if os.IsNotExist(err) {
		return -1
	} else if err != nil {
		b.t.Fatal(err)
	}
	got := tree(b.t, real)
	for i, s := range b.states {
		if slices.Equal(got, s) {
			return i
		}
	}
	b.t.Fatalf("the tree is none that ever was:\n%s", strings.Join(got, "\n"))
	return 0
}

// trips carries the stick to and fro.
func (b *backup) trips(n int) {
	b.t.Helper()
	for range n {
		b.camp.must("sync")
		b.hub.must("sync")
	}
}

// TestBackup: a full archive and two increments in the worst order, then one lost, then one dropped by a person, then a
// backup that was wiped: the tree is always right or untouched, and heals by itself.
func TestBackup(t *testing.T) {
	for _, program := range []string{"dar", "tar"} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			b := newBackup(t, program)
			var sticks []string
			for n := range 3 {
				b.change(n)
				b.run()
				b.camp.must("sync")
				b.lose(false)
				sticks = append(sticks, b.pull())
			}
			// the worst order
			for i, want := range []struct{ stick, at int }{{2, -1}, {0, 0}, {1, 2}} {
				b.plug(sticks[want.stick])
				b.hub.must("sync")
				if got := b.at(); got != want.at {
					t.Fatalf("after stick %d, which came as number %d, the tree is %d, not %d", want.stick, i, got, want.at)
				}
			}
			b.trips(1)

			// one lost with its stick: the channel asks for it again
			b.change(3)
			b.run()
			b.camp.must("sync")
			b.lose(true)
			b.change(4)
			b.run()
			b.camp.must("sync")
			b.lose(false)
			b.hub.must("sync")
			if got := b.at(); got != 2 {
				t.Fatalf("with one missing the tree is %d", got)
			}
			b.trips(4)
			if got := b.at(); got != 4 {
				t.Fatalf("the channel has not healed: the tree is %d\n%s", got, b.hub.must("jobs", "list"))
			}

			// one that a person drops: what builds on it is refused, and the next backup mends it
			b.change(5)
			job := b.run()
			b.change(6)
			b.run()
			b.hub.must("jobs", "pause", "camp:backup")
			b.trips(1)
			b.hub.must("jobs", "drop", job)
			b.hub.must("jobs", "resume", "camp:backup")
			b.trips(1)
			if got := b.at(); got != 4 {
				t.Fatalf("without number 5 the tree is %d", got)
			}
			b.camp.must("sync")
			b.change(7)
			b.run()
			b.trips(2)
			if got := b.at(); got != 7 {
				t.Fatalf("the next backup has not mended it: the tree is %d", got)
			}

			// the backup is lost with its disk
			b.camp.must("sync")
			if err := os.RemoveAll(filepath.Join(b.dst, "camp")); err != nil {
				t.Fatal(err)
			}
			for n := 8; n < 10; n++ {
				b.change(n)
				b.run()
				b.trips(2)
			}
			if got := b.at(); got != 9 {
				t.Fatalf("a lost backup is not begun anew: the tree is %d", got)
			}
		})
	}
}

// TestBackupKilled: the program that restores is killed again and again, with the daemon; the tree is right or untouched.
func TestBackupKilled(t *testing.T) {
	t.Parallel()
	b := newBackup(t, "dar")
	b.change(0)
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(b.src, fmt.Sprintf("file%d", i)), fmt.Append(nil, strings.Repeat("x", i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for n := range count(3, 30) {
		if n > 0 {
			b.change(n)
		}
		job := b.run()
		b.camp.must("sync")
		b.hub.killInJob(job, filepath.Join(b.dst, "camp", "home", "work"), func() { b.hub.command("sync").Run() })
		if got := b.at(); got != n && got != n-1 {
			t.Fatalf("after a kill in backup %d the tree is %d", n, got)
		}
		b.hub.must("sync")
		b.trips(1)
		if got := b.at(); got != n {
			t.Fatalf("backup %d did not complete: the tree is %d\n%s", n, got, b.hub.must("jobs", "list"))
		}
	}
}

// killInJob starts something that runs a job of this node, and kills all of it as soon as a file or folder is there that
// the job makes: the node's processes, and those of the job.
func (n *node) killInJob(job, sign string, start func()) {
	n.t.Helper()
	n.killInJobAfter(0, job, sign, start)
}

// killInJobAfter is killInJob, some time later.
func (n *node) killInJobAfter(later time.Duration, job, sign string, start func()) {
	n.t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); start() }()
	peertest.Await(n.t, "the job to be at work", func() bool {
		select {
		case <-done:
			return true
		default:
		}
		_, err := os.Lstat(sign)
		return err == nil
	}, n.log.String)
	time.Sleep(later) // a moment that no event chooses
	n.killAll(job)
	<-done
}

// killAll kills every process of this node, and of a job that it runs, and waits until they have ended.
func (n *node) killAll(job string) {
	n.t.Helper()
	killed := map[int]bool{}
	peertest.Await(n.t, "the processes of "+n.name+" to end", func() bool {
		left := 0
		for _, p := range processes(n.t) {
			ours := strings.HasPrefix(p.args, program("mochila")+"\x00--home\x00"+n.dir+"\x00")
			if (ours || job != "" && slices.Contains(p.env, "MOCHILA_JOB_ID="+job)) && p.pid != os.Getpid() {
				left++
				if syscall.Kill(p.pid, syscall.SIGKILL) == nil {
					killed[p.pid] = true
				}
			}
		}
		return left == 0
	}, n.log.String)
	n.t.Logf("%d processes of %s were killed in job %s", len(killed), n.name, job)
}
