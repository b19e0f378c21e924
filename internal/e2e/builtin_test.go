package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/internal/control"
)

// couple are two nodes with one stick: camp makes jobs, hub has the built-in handlers.
type couple struct {
	*stick
	camp, hub *node
	in, out   string // folders of hub: what file puts there, what get may give
	repos     string // the same for git
}

func newCouple(t *testing.T) *couple {
	t.Helper()
	c := &couple{stick: newStick(t), camp: newNode(t, "camp", ""), hub: newNode(t, "hub", ""), in: t.TempDir(), out: t.TempDir(), repos: t.TempDir()}
	pair(c.camp, c.hub, c.dir)
	c.hub.configure(fmt.Sprintf(`name = "hub"
[[handler]]
builtin = "file"
allow = ["camp:*"]
folders = [%q]
overwrite = "replace"
[[handler]]
builtin = "get"
allow = ["camp:*"]
folders = [%q]
[[handler]]
builtin = "git"
allow = ["camp:*"]
folders = [%q]
push = ["refs/heads/*"]
`, c.in, c.out, c.repos))
	return c
}

// ticket is the job that a command has made.
func ticket(out string) string {
	id, _, _ := strings.Cut(out, " ")
	return id
}

// state is how a job of camp stands.
func (c *couple) state(job string) string {
	c.t.Helper()
	var it control.JobItem
	if err := json.Unmarshal([]byte(c.camp.must("jobs", "show", job, "--json")), &it); err != nil {
		c.t.Fatal(err)
	}
	return it.State
}

// answered meets until the result of a job is home: after a kill the first contact may have to tell what was lost.
func (c *couple) answered(job string) {
	c.t.Helper()
	for range 5 {
		if c.state(job) == "done" {
			return
		}
		c.hub.must("sync")
		c.camp.must("sync")
	}
	if s := c.state(job); s != "done" {
		c.t.Fatalf("job %s is %s", job, s)
	}
}

// interrupt lets hub run a job and kills all of it at a moment that no event chooses, after the sign that it has begun.
func (c *couple) interrupt(r *rand.Rand, job, sign string) {
	c.t.Helper()
	c.hub.killInJobAfter(time.Duration(r.IntN(40_000))*time.Microsecond, job, sign, func() { c.hub.command("sync").Run() })
}

// forest fills a folder with files that say which version they are.
func forest(t *testing.T, dir string, version, files int) {
	t.Helper()
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("%02d", i%20))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), fmt.Appendf(nil, "%d of version %d", i, version), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("only%d", version)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, fmt.Sprintf("only%d", version-1)))
}

// TestFileKilled: kill -9 in the middle of jobs that replace a tree: what is there is the old or the new, whole, and then
// the new.
func TestFileKilled(t *testing.T) {
	t.Parallel()
	r, c := random(t), newCouple(t)
	src := filepath.Join(t.TempDir(), "site")
	var before []string
	for n := range count(4, 100) {
		forest(t, src, n, 300)
		job := ticket(c.camp.must("send", src, "hub:www"))
		want := tree(t, src)
		c.camp.must("sync")
		c.interrupt(r, job, filepath.Join(c.hub.home.SpoolDir, "jobs", job))
		dst := filepath.Join(c.in, "www", "site")
		if _, err := os.Stat(dst); err == nil {
			if got := tree(t, dst); !slices.Equal(got, before) && !slices.Equal(got, want) {
				t.Fatalf("version %d: neither the old nor the new: %d entries", n, len(got))
			}
		} else if n > 0 {
			t.Fatalf("version %d: nothing is there: %v", n, err)
		}
		c.hub.must("sync")
		if got := tree(t, dst); !slices.Equal(got, want) {
			t.Fatalf("version %d: not completed: %d entries\n%s", n, len(got), c.hub.must("jobs", "list"))
		}
		if left, _ := filepath.Glob(filepath.Join(c.in, "www", ".mochila-*")); len(left) > 0 {
			t.Errorf("version %d has left %q", n, left)
		}
		c.camp.must("sync")
		c.answered(job)
		before = want
	}
}

// TestGetKilled: the same at both ends of a get.
func TestGetKilled(t *testing.T) {
	t.Parallel()
	r, c := random(t), newCouple(t)
	forest(t, filepath.Join(c.out, "site"), 1, 300)
	want := tree(t, c.out)
	for n := range count(3, 50) {
		out, err := c.camp.command("get", "hub:site").Output()
		if err != nil {
			t.Fatal(err)
		}
		job := ticket(string(out))
		c.camp.must("sync")
		c.interrupt(r, job, filepath.Join(c.hub.home.SpoolDir, "jobs", job))
		c.hub.must("sync")
		c.camp.must("sync")
		c.answered(job)
		dst := t.TempDir()
		land := c.camp.command("get", "--job", job, dst)
		if err := land.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(r.IntN(80_000)) * time.Microsecond) // a moment that no event chooses
		land.Process.Kill()
		land.Wait()
		if got := visible(tree(t, dst)); len(got) > 0 && !slices.Equal(got, want) {
			t.Fatalf("get %d: a half of it is there: %d entries", n, len(got))
		}
		c.camp.must("get", "--job", job, dst)
		if got := tree(t, dst); !slices.Equal(got, want) {
			t.Fatalf("get %d: %d entries, not %d", n, len(got), len(want))
		}
	}
}

// visible leaves out the folder in which a tree is built.
func visible(list []string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return strings.HasPrefix(s, `".mochila-`) })
}

// worktree makes a repository of hub, and one with a work tree that pushes to it.
func (c *couple) worktree(name string) (work, bare string) {
	c.t.Helper()
	tool(c.t, "git")
	work, bare = filepath.Join(c.t.TempDir(), name), filepath.Join(c.repos, name+".git")
	git(c.t, ".", "init", "-q", "--bare", "-b", "main", bare)
	git(c.t, ".", "init", "-q", "-b", "main", work)
	return work, bare
}

// git runs git with an identity and without anybody's configuration.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
	cmd.Env = append(os.Environ(), gitEnv()...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func gitEnv() []string {
	env := []string{"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1"}
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		env = append(env, "GIT_"+who+"_NAME=Ana", "GIT_"+who+"_EMAIL=ana@camp.example")
	}
	return env
}

// inTree runs a command of a node in a work tree.
func (n *node) inTree(dir string, args ...string) string {
	n.t.Helper()
	cmd := n.command(args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), gitEnv()...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: mochila %q: %v: %s", n.name, args, err, out)
	}
	return string(out)
}

// TestGitKilled: kill -9 in the middle of pushes: the repository is sound, the branch is the old or the new, then the new.
func TestGitKilled(t *testing.T) {
	t.Parallel()
	r, c := random(t), newCouple(t)
	work, bare := c.worktree("site")
	before := ""
	for n := range count(4, 100) {
		forest(t, work, n, 100)
		git(t, work, "add", "-A")
		git(t, work, "commit", "-q", "-m", fmt.Sprint(n))
		want := git(t, work, "rev-parse", "HEAD")
		out := c.camp.inTree(work, "git", "push", "hub/site")
		job := ticket(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
		c.camp.must("sync")
		c.interrupt(r, job, filepath.Join(c.hub.home.SpoolDir, "jobs", job))
		git(t, bare, "fsck", "--strict", "--no-dangling")
		if now := git(t, bare, "for-each-ref", "--format=%(objectname)"); now != before && now != want {
			t.Fatalf("push %d: the branch is %q", n, now)
		}
		c.hub.must("sync")
		if now := git(t, bare, "rev-parse", "main"); now != want {
			t.Fatalf("push %d: not completed\n%s", n, c.hub.must("jobs", "list"))
		}
		c.camp.must("sync")
		before = want
	}
	c.camp.inTree(work, "git", "status", "hub/site")
	if acked := git(t, work, "rev-parse", "mochila/hub/site/heads/main"); acked != before {
		t.Errorf("acknowledged is %s, not %s", acked, before)
	}
}

// TestGitLostBundle: one of three bundles is lost, another is dropped by a person: the repository is right or untouched,
// and the next push heals it.
func TestGitLostBundle(t *testing.T) {
	t.Parallel()
	c := newCouple(t)
	work, bare := c.worktree("site")
	commit := func() (sha, job string) {
		t.Helper()
		git(t, work, "commit", "-q", "--allow-empty", "-m", "x")
		out := c.camp.inTree(work, "git", "push", "hub/site")
		return git(t, work, "rev-parse", "HEAD"), ticket(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
	}
	check := func(want string) {
		t.Helper()
		git(t, bare, "fsck", "--strict")
		if now := git(t, bare, "for-each-ref", "--format=%(objectname)"); now != want {
			t.Fatalf("the branch is %q, not %q\n%s", now, want, c.hub.must("jobs", "list"))
		}
	}
	one, _ := commit()
	c.camp.must("sync")
	c.lose(false)
	c.hub.must("sync")
	check(one)
	c.camp.must("sync")
	commit()
	c.camp.must("sync")
	c.lose(true)
	three, _ := commit()
	c.camp.must("sync")
	c.lose(false)
	c.hub.must("sync")
	check(one) // number 2 is missing: number 3 waits
	for range 4 {
		c.camp.must("sync")
		c.hub.must("sync")
	}
	check(three)

	c.camp.must("sync")
	_, job := commit()
	c.hub.must("jobs", "pause", "camp:git")
	c.camp.must("sync")
	c.hub.must("sync")
	c.hub.must("jobs", "drop", job)
	c.hub.must("jobs", "resume", "camp:git")
	c.hub.must("sync")
	check(three)
	c.camp.must("sync")
	five, _ := commit()
	c.camp.must("sync")
	c.hub.must("sync")
	check(five)
}

// TestFileHostile: a peer that writes its streams by hand gets nothing anywhere.
func TestFileHostile(t *testing.T) {
	t.Parallel()
	c := newCouple(t)
	first := &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "mochila", PAXRecords: map[string]string{"MOCHILA.tree": "1"}}
	outside := filepath.Join(filepath.Dir(c.in), "outside")
	var jobs []string
	send := func(stream []byte) {
		t.Helper()
		cmd := c.camp.command("run", "hub", "--channel", "files", "--", "file")
		cmd.Stdin = bytes.NewReader(stream)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, ticket(string(out)))
	}
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "../outside", Size: 1},
		{Typeflag: tar.TypeReg, Name: outside, Size: 1},
		{Typeflag: tar.TypeSymlink, Name: "l", Linkname: filepath.Dir(c.in)},
		{Typeflag: tar.TypeLink, Name: "l", Linkname: "/etc/passwd"},
		{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8},
		{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeFifo, Name: "fifo"},
		{Typeflag: tar.TypeReg, Name: "huge", Size: 1 << 60},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range []*tar.Header{first, h} {
			h.Format = tar.FormatPAX
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		w.Write([]byte("x"))
		send(b.Bytes())
	}
	send(nil)
	send([]byte("this is no tree"))
	for _, dir := range []string{"..", "/", "/etc", "../outside", "a/../../outside"} {
		jobs = append(jobs, ticket(c.camp.must("send", "builtin_test.go", "hub:"+dir)))
	}
	c.camp.must("sync")
	c.hub.must("sync")
	c.camp.must("sync")
	for _, job := range jobs {
		if s := c.state(job); s != "failed" && s != "refused" {
			t.Errorf("job %s is %s", job, s)
		}
	}
	if left := tree(t, c.in); len(left) > 0 {
		t.Errorf("in the folder: %q", left)
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Error("a file came out of the folder")
	}
}

// TestSendMemory: a large file goes through both nodes and the handler in little memory.
func TestSendMemory(t *testing.T) {
	t.Parallel()
	c := newCouple(t)
	size := int64(count(80<<20, 900<<20)) // a peer may have 1 GiB in the queue
	src := filepath.Join(t.TempDir(), "large")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	key := [32]byte{1}
	noise := rand.NewChaCha8(key)
	for range size >> 20 {
		noise.Read(block)
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	peak := func(cmd *exec.Cmd) {
		t.Helper()
		kb, out, err := peakOf(t, cmd)
		if err != nil {
			t.Fatalf("%q: %v: %s", cmd.Args, err, out)
		}
		if kb > 64<<10 {
			t.Errorf("mochila %q took %d MiB", cmd.Args[3:], kb>>10)
		} else {
			t.Logf("mochila %s: %d MiB", cmd.Args[3], kb>>10)
		}
	}
	peak(c.camp.command("send", src, "hub:"))
	peak(c.camp.command("sync"))
	peak(c.hub.command("sync"))
	if out, err := exec.Command("cmp", src, filepath.Join(c.in, "large")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestBuiltinUser: built-in handlers run as another user and under limits like any other, in a node whose folders that
// user cannot enter.
func TestBuiltinUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can run handlers as another user")
	}
	c := newCouple(t)
	inbox := shortDir(t)
	if err := os.Chmod(inbox, 0o777); err != nil {
		t.Fatal(err)
	}
	c.hub.configure(fmt.Sprintf(`name = "hub"
[[handler]]
builtin = "file"
allow = ["camp:*"]
folders = ["%s/%%n"]
user = "nobody"
limit_files = 50
limit_cpu = "1m"
[[handler]]
builtin = "get"
allow = ["camp:*"]
folders = [%q, "/root"]
user = "nobody"
[[handler]]
name = "where"
command = ["/bin/sh", "-c", "touch here && id -un && ls -A"]
allow = ["camp:*"]
user = "nobody"
`, inbox, inbox))
	where := ticket(c.camp.must("run", "hub", "--", "where"))
	sent := ticket(c.camp.must("send", "builtin_test.go", "hub:"))
	out, err := c.camp.command("get", "hub:/root").Output()
	if err != nil {
		t.Fatal(err)
	}
	denied := ticket(string(out))
	c.camp.must("sync")
	c.hub.must("sync")
	c.camp.must("sync")
	if s := c.state(sent); s != "done" {
		t.Fatalf("the file is %s: %s", s, c.camp.must("jobs", "show", sent))
	}
	fi, err := os.Stat(filepath.Join(inbox, "camp", "builtin_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := fi.Sys().(*syscall.Stat_t).Uid; uid == 0 {
		t.Error("the file belongs to root")
	}
	if s := c.camp.must("jobs", "show", where, "--stdout"); s != "nobody\nhere\n" {
		t.Errorf("a handler without dir says %q: %s", s, c.camp.must("jobs", "show", where))
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "mochila-job-"+where)); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if s := c.camp.must("jobs", "show", denied); !strings.Contains(s, "failed") {
		t.Errorf("root's folder: %s", s)
	}
}
