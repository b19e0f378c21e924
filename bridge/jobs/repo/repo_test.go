package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair is a repository with a work tree here, and a bare one there.
type pair struct {
	t     *testing.T
	here  string
	there string
	rules Rules
	n     int
}

func newPair(t *testing.T) *pair {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("SKIPPED: git is not installed: run .ci/peers")
	}
	for k, v := range map[string]string{"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "HOME": t.TempDir()} {
		t.Setenv(k, v)
	}
	p := &pair{t: t, here: t.TempDir(), there: filepath.Join(t.TempDir(), "site.git"), rules: Rules{Push: []string{"refs/heads/*", "refs/tags/*"}}}
	p.git(p.here, "init", "-q", "-b", "main")
	p.git(".", "init", "-q", "--bare", "-b", "main", p.there)
	for _, c := range [][2]string{{"user.name", "Ana"}, {"user.email", "ana@camp.example"}, {"commit.gpgsign", "false"}} {
		p.git(p.here, "config", c[0], c[1])
	}
	return p
}

func (p *pair) git(dir string, args ...string) string {
	p.t.Helper()
	out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("git %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a commit with a content of its own, and returns it.
func (p *pair) commit(name string) string {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.here, name), []byte(strings.Repeat(name+"\n", 100)), 0o644); err != nil {
		p.t.Fatal(err)
	}
	p.git(p.here, "add", ".")
	p.git(p.here, "commit", "-q", "-m", name)
	return p.git(p.here, "rev-parse", "HEAD")
}

// remote runs do with the state of the remote.
func (p *pair) remote(do func(*Remote)) {
	p.t.Helper()
	r, err := OpenRemote(p.here, "hub", "site")
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	do(r)
	if err := r.Save(); err != nil {
		p.t.Fatal(err)
	}
}

// push makes the input of a push job, as the nth job.
func (p *pair) push(full bool, force bool, specs ...string) (id string, stream []byte) {
	p.t.Helper()
	p.remote(func(r *Remote) {
		updates, err := r.Resolve(specs, force)
		if err != nil {
			p.t.Fatal(err)
		}
		todo, _ := r.Plan(updates)
		if len(todo) == 0 {
			return
		}
		var b bytes.Buffer
		if err := r.WritePush(&b, todo, full); err != nil {
			p.t.Fatal(err)
		}
		p.n++
		id, stream = fmt.Sprint("job", p.n), b.Bytes()
		r.Jobs = append(r.Jobs, Pending{ID: id, Kind: "push", Updates: todo})
	})
	return id, stream
}

// serve runs a push job there.
func (p *pair) serve(stream []byte) (*Answer, []byte, error) {
	var out bytes.Buffer
	dir, err := Find(filepath.Dir(p.there), "site")
	if err != nil {
		return nil, nil, err
	}
	a, err := ServePush(dir, p.rules, bytes.NewReader(stream), &out)
	if err == nil {
		p.git(p.there, "fsck", "--strict")
	}
	return a, out.Bytes(), err
}

func (p *pair) must(stream []byte, status string) []byte {
	p.t.Helper()
	a, out, err := p.serve(stream)
	if err != nil || a.Status != status {
		p.t.Fatalf("got %+v, %v, want %s", a, err, status)
	}
	return out
}

func (p *pair) hear(id string, out []byte) {
	p.t.Helper()
	p.remote(func(r *Remote) {
		if _, err := r.Hear(id, bytes.NewReader(out), time.Now()); err != nil {
			p.t.Fatal(err)
		}
	})
}

func (p *pair) main() string { return p.git(p.there, "rev-parse", "main") }

func TestDeltasFromAcknowledged(t *testing.T) {
	p := newPair(t)
	one := p.commit("one")
	id1, s1 := p.push(false, false, "main")
	// Without an answer the next one is complete, too: the first may be lost.
	two := p.commit("two")
	id2, s2 := p.push(false, false, "main")
	if p.must(s2, "ok"); p.main() != two {
		t.Fatal("the second does not stand for itself")
	}
	// The first comes late: a success that changes nothing.
	out1 := p.must(s1, "ok")
	if p.main() != two {
		t.Fatal("a late push went back")
	}
	p.hear(id1, out1)
	p.remote(func(r *Remote) {
		if r.Refs["refs/heads/main"] != two || r.Jobs[0].ID != id2 {
			t.Errorf("%+v", r.State)
		}
	})
	p.remote(func(r *Remote) { r.Forget(id2) })
	// Now it builds on what was acknowledged.
	three := p.commit("three")
	id3, s3 := p.push(false, false, "main")
	if !bytes.Contains(s3, []byte("-"+two)) || bytes.Contains(s3, []byte("-"+one)) {
		t.Errorf("no delta from %s: %.400q", two, s3)
	}
	p.hear(id3, p.must(s3, "ok"))
	if p.main() != three {
		t.Error("the third is not there")
	}
	if id, _ := p.push(false, false, "main"); id != "" {
		t.Error("pushed again what was acknowledged")
	}
	// Again the same: a success.
	p.must(s3, "ok")
}

// TestLost: the second of three bundles never arrives; and one comes to a repository that was put back.
func TestLost(t *testing.T) {
	p := newPair(t)
	p.commit("one")
	id, s := p.push(false, false, "main")
	p.hear(id, p.must(s, "ok"))
	copyOf := filepath.Join(t.TempDir(), "old.git")
	p.git(".", "clone", "-q", "--mirror", p.there, copyOf)
	p.commit("two")
	p.push(false, false, "main") // lost
	three := p.commit("three")
	id, s = p.push(false, false, "main")
	p.hear(id, p.must(s, "ok"))
	if p.main() != three {
		t.Fatal("the third does not heal the second")
	}
	// The other side is put back from an old copy.
	if err := os.RemoveAll(p.there); err != nil {
		t.Fatal(err)
	}
	p.git(".", "clone", "-q", "--mirror", copyOf, p.there)
	before := p.main()
	four := p.commit("four")
	id, s = p.push(false, false, "main")
	out := p.must(s, "need")
	if p.main() != before {
		t.Fatal("a bundle that lacks something has changed the repository")
	}
	p.hear(id, out)
	id, s = p.push(false, false, "main")
	p.hear(id, p.must(s, "ok"))
	if p.main() != four {
		t.Error("it did not heal by itself")
	}
}

func TestRules(t *testing.T) {
	p := newPair(t)
	one := p.commit("one")
	_, s := p.push(false, false, "main", "main:refs/tags/v1", "main:refs/heads/side")
	p.hear("job1", p.must(s, "ok"))
	p.git(p.here, "tag", "-a", "-m", "tag", "v2")
	id, s := p.push(false, false, "v2")
	p.hear(id, p.must(s, "ok"))
	if got := p.git(p.there, "cat-file", "-t", "v2"); got != "tag" {
		t.Errorf("v2 is a %s", got)
	}
	// not forward
	p.git(p.here, "commit", "-q", "--amend", "-m", "other")
	other := p.git(p.here, "rev-parse", "HEAD")
	id, s = p.push(false, false, "main")
	p.hear(id, p.must(s, "rejected"))
	if p.main() != one {
		t.Fatal("it was forced")
	}
	id, s = p.push(false, true, "main")
	if _, _, err := p.serve(s); !errors.Is(err, ErrDenied) {
		t.Errorf("forced: %v", err)
	}
	p.remote(func(r *Remote) { r.Forget(id) })
	p.rules.Force = true
	id, s = p.push(false, true, "main")
	p.hear(id, p.must(s, "ok"))
	if p.main() != other {
		t.Error("not forced")
	}
	// deleted
	id, s = p.push(false, false, ":side")
	p.hear(id, p.must(s, "ok"))
	p.remote(func(r *Remote) {
		if known, _ := r.Known(); known["refs/heads/side"] != "" || known["refs/heads/main"] != other {
			t.Errorf("known: %v", known)
		}
	})
	// one of several that is not allowed: none
	p.rules.Push = []string{"refs/heads/camp/*"}
	_, s = p.push(false, false, "main:refs/heads/camp/main", "main:refs/heads/hub")
	if _, _, err := p.serve(s); !errors.Is(err, ErrDenied) {
		t.Errorf("another's branch: %v", err)
	}
	if got := p.git(p.there, "for-each-ref", "refs/heads/camp"); got != "" {
		t.Errorf("half a push: %s", got)
	}
	p.rules.Push = nil
	if _, _, err := p.serve(s); !errors.Is(err, ErrDenied) {
		t.Errorf("read-only: %v", err)
	}
}

// TestHooks: the repository's own hook has a say, and a branch that is checked out is not pulled away.
func TestHooks(t *testing.T) {
	p := newPair(t)
	p.commit("one")
	hook := filepath.Join(p.there, "hooks", "update")
	if err := os.MkdirAll(filepath.Dir(hook), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hook, []byte("#!/bin/sh\n[ \"$1\" != refs/heads/main ] || { echo not today; exit 1; }\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	id, s := p.push(false, false, "main")
	p.hear(id, p.must(s, "rejected"))
	if got := p.git(p.there, "for-each-ref"); got != "" {
		t.Errorf("refs: %s", got)
	}
	if err := os.Remove(hook); err != nil {
		t.Fatal(err)
	}
	id, s = p.push(false, false, "main")
	p.hear(id, p.must(s, "ok"))
	p.there = filepath.Join(filepath.Dir(p.there), "work", "site")
	p.git(".", "clone", "-q", filepath.Join(filepath.Dir(filepath.Dir(p.there)), "site.git"), p.there)
	before := p.git(p.there, "rev-parse", "HEAD")
	p.commit("two")
	_, s = p.push(true, false, "main")
	p.must(s, "rejected")
	if got := p.git(p.there, "rev-parse", "HEAD"); got != before {
		t.Error("the branch of a work tree was moved")
	}
}

func TestFetch(t *testing.T) {
	p := newPair(t)
	p.commit("one")
	id, s := p.push(false, false, "main")
	p.hear(id, p.must(s, "ok"))
	// somebody else works there
	other := filepath.Join(t.TempDir(), "other")
	p.git(".", "clone", "-q", p.there, other)
	p.git(other, "-c", "user.name=B", "-c", "user.email=b@x", "commit", "-q", "--allow-empty", "-m", "theirs")
	p.git(other, "push", "-q", "origin", "HEAD:main", "HEAD:refs/heads/new/branch", "HEAD:refs/tags/v1")
	fetch := func() []byte {
		t.Helper()
		var in, out bytes.Buffer
		p.remote(func(r *Remote) {
			if err := r.WriteFetch(&in); err != nil {
				t.Fatal(err)
			}
		})
		if err := ServeFetch(p.there, &in, &out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	b := fetch()
	want := p.main()
	p.hear("f1", b)
	if got := p.git(p.here, "rev-parse", "mochila/hub/site/heads/main"); got != want {
		t.Errorf("fetched %s, want %s", got, want)
	}
	if got := p.git(p.here, "rev-parse", "mochila/hub/site/heads/new/branch", "mochila/hub/site/tags/v1"); strings.Count(got, want) != 2 {
		t.Errorf("fetched %s", got)
	}
	if again := fetch(); bytes.Count(again, []byte("\n")) != 1 {
		t.Errorf("nothing is new: %.200q", again)
	}
	// A bundle that does not fit changes nothing, and the next fetch is complete.
	fresh := newPair(t)
	fresh.commit("unrelated")
	p.git(other, "-c", "user.name=B", "-c", "user.email=b@x", "commit", "-q", "--allow-empty", "-m", "more")
	p.git(other, "push", "-q", "origin", "HEAD:main")
	delta := fetch()
	fresh.remote(func(r *Remote) {
		if _, err := r.Hear("x", bytes.NewReader(delta), time.Now()); err == nil || !r.Full || len(r.Refs) > 0 {
			t.Errorf("%v, %+v", err, r.State)
		}
		var b bytes.Buffer
		if err := r.WriteFetch(&b); err != nil || b.String() != magic+"\n\n" {
			t.Errorf("%q, %v", b.String(), err)
		}
	})
	fresh.git(fresh.here, "fsck", "--strict")
	// A branch that becomes a folder of branches.
	p.git(p.there, "branch", "-D", "new/branch")
	p.git(p.there, "branch", "new", "main")
	p.hear("f2", fetch())
	if got := p.git(p.here, "rev-parse", "mochila/hub/site/heads/new"); got != p.main() {
		t.Error("new is not there")
	}
	if left := p.git(p.here, "for-each-ref", "refs/mochila-out"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestHostileGit: whatever comes, the repository stays as it was.
func TestHostileGit(t *testing.T) {
	p := newPair(t)
	one := p.commit("one")
	id, s := p.push(false, false, "main")
	p.hear(id, p.must(s, "ok"))
	two := p.commit("two")
	_, s = p.push(true, false, "main")
	_, bundle, _ := bytes.Cut(s, []byte("\n\n"))
	line := func(l string) []byte { return append([]byte(magic+"\n"+l+"\n\n"), bundle...) }
	before := p.git(p.there, "for-each-ref")
	for name, b := range map[string][]byte{
		"empty":         nil,
		"no header":     bundle,
		"cut header":    []byte(magic + "\nupdate " + Zero),
		"an option":     line("update " + Zero + " " + two + " --upload-pack=x"),
		"a ref up":      line("update " + Zero + " " + two + " refs/heads/../../config"),
		"no ref":        line("update " + Zero + " " + two + " config"),
		"a lock":        line("update " + Zero + " " + two + " refs/heads/x.lock"),
		"HEAD":          line("update " + Zero + " " + two + " HEAD"),
		"no object":     line("update " + Zero + " main refs/heads/x"),
		"upper case":    line("update " + Zero + " " + strings.ToUpper(two) + " refs/heads/x"),
		"twice":         line("update " + Zero + " " + two + " refs/heads/x\nupdate " + Zero + " " + one + " refs/heads/x"),
		"other word":    line("run " + Zero + " " + two + " refs/heads/x"),
		"cut bundle":    s[:len(s)-40],
		"wrong bundle":  append(bytes.Clone(s[:len(s)-60]), bytes.Repeat([]byte{0}, 60)...),
		"no bundle":     append([]byte(magic+"\nupdate "+Zero+" "+two+" refs/heads/x\n\n"), "this is no bundle"...),
		"endless lines": append([]byte(magic+"\n"), bytes.Repeat([]byte("x"), 100_000)...),
	} {
		if _, _, err := p.serve(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// It names a commit that is nowhere.
	p.must([]byte(magic+"\nupdate "+Zero+" "+strings.Repeat("a", 40)+" refs/heads/x\n\n"), "need")
	if got := p.git(p.there, "for-each-ref"); got != before {
		t.Errorf("refs are\n%s\nwere\n%s", got, before)
	}
	p.git(p.there, "fsck", "--strict")
	for _, n := range []string{"", "..", "../site", "/etc", "a//b", "-x", ".git", "a/../b", "site.lock", "a b", "x\x00"} {
		if _, err := Find(filepath.Dir(p.there), n); !errors.Is(err, ErrFormat) {
			t.Errorf("repository %q: %v", n, err)
		}
	}
	folder := filepath.Dir(p.there)
	if err := os.Symlink(p.here, filepath.Join(folder, "out.git")); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(folder, "out"); !errors.Is(err, ErrDenied) {
		t.Errorf("through a link: %v", err)
	}
	if _, err := Find(folder, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	// an answer with names that are none
	p.remote(func(r *Remote) {
		for _, a := range []string{"", "{}", `{"refs":{"refs/heads/../x":"` + one + `"}}` + "\n", `{"refs":{"refs/heads/x":"main"}}` + "\n"} {
			if _, err := r.Hear("x", strings.NewReader(a), time.Now()); !errors.Is(err, ErrFormat) {
				t.Errorf("answer %q: %v", a, err)
			}
		}
	})
}

// TestKilledPush: a push that was killed has left the locks of its refs.
func TestKilledPush(t *testing.T) {
	p := newPair(t)
	p.commit("one")
	_, s := p.push(false, false, "main")
	lock := filepath.Join(p.there, "refs", "heads", "main.lock")
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.serve(s); err == nil {
		t.Fatal("somebody else's lock was ignored")
	}
	if _, err := os.Stat(lock); err != nil {
		t.Fatal("somebody else's lock was removed")
	}
	os.Remove(lock)
	if err := os.WriteFile(filepath.Join(p.there, "mochila.push"), []byte("refs/heads/main"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.must(s, "ok")
	if _, err := os.Stat(filepath.Join(p.there, "mochila.push")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the journal is still there")
	}
}

// FuzzHeader: what passes as the header of a push names refs and objects only.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(magic + "\nupdate " + Zero + " " + strings.Repeat("a", 40) + " refs/heads/x\n\nrest"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := ServePush("/nonexistent", Rules{Push: []string{"refs/*"}, Force: true}, bytes.NewReader(b), io.Discard)
		if err == nil {
			t.Error("a push into nothing")
		}
	})
}
