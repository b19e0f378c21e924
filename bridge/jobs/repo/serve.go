package repo

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Update is one ref that a push wants changed.
type Update struct {
	Ref    string `json:"ref"`
	Old    string `json:"old,omitempty"` // what the pusher knows the ref to be; only forced updates insist on it
	New    string `json:"new"`           // Zero: delete it
	Force  bool   `json:"force,omitempty"`
	Result string `json:"result,omitempty"` // ok, same, late (something newer is there), rejected
	Why    string `json:"why,omitempty"`
}

// Answer is the first line of what a job gives back; after that of a fetch comes a bundle, unless there is nothing new.
type Answer struct {
	Status  string            `json:"status"` // ok, need (objects are missing that the pusher took for known), rejected
	Refs    map[string]string `json:"refs"`   // all branches and tags, as they are now
	Head    string            `json:"head,omitempty"`
	Updates []Update          `json:"updates,omitempty"`
	Why     string            `json:"why,omitempty"`
}

// Rules are what the configuration allows a peer.
type Rules struct {
	Push  []string // patterns of refs that may be changed; none: fetching only
	Force bool     // also backwards, and deleted
}

// Find finds a repository below a folder: NAME or NAME.git, and nothing that a link leads out to.
func Find(folder, name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	top, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return "", fmt.Errorf("folder of the repositories: %w", err)
	}
	for _, n := range []string{name, name + ".git"} {
		dir, err := filepath.EvalSymlinks(filepath.Join(top, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("repository %q: %w", name, err)
		}
		if !strings.HasPrefix(dir, strings.TrimSuffix(top, "/")+"/") {
			return "", fmt.Errorf("%w: repository %q is elsewhere", ErrDenied, name)
		}
		out, err := (&Git{Dir: dir}).run(nil, "rev-parse", "--absolute-git-dir")
		if err != nil {
			return "", fmt.Errorf("repository %q: %w", name, err)
		}
		gitDir := strings.TrimSpace(out)
		if gitDir != dir && gitDir != filepath.Join(dir, ".git") {
			return "", fmt.Errorf("%w: %q is a folder in another repository", fs.ErrNotExist, name)
		}
		return gitDir, nil
	}
	return "", fmt.Errorf("there is no repository %q: %w", name, fs.ErrNotExist)
}

// server is one job at the node that has the repository.
type server struct {
	git  *Git
	work string // an empty folder in the git directory
}

// open takes the repository for this job alone, as far as jobs are concerned. It works in a folder of the git directory:
// that is where its user may write, whatever the node's own folders are.
func open(gitDir string) (*server, func(), error) {
	f, err := os.OpenFile(filepath.Join(gitDir, "mochila.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("lock the repository: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("lock the repository: %w", err)
	}
	work := filepath.Join(gitDir, "mochila.work")
	err = os.RemoveAll(work) // of a job that was killed
	if err == nil {
		err = os.Mkdir(work, 0o700)
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("make a folder to work in: %w", err)
	}
	return &server{git: &Git{Dir: gitDir}, work: work}, func() { os.RemoveAll(work); f.Close() }, nil
}

// heads lists what others may see.
func (s *server) heads() (map[string]string, error) { return s.git.refs("refs/heads", "refs/tags") }

// answer writes the first line.
func (s *server) answer(out io.Writer, a *Answer) error {
	var err error
	if a.Refs, err = s.heads(); err != nil {
		return err
	}
	if head, err := s.git.run(nil, "symbolic-ref", "-q", "HEAD"); err == nil {
		a.Head = strings.TrimSpace(head)
	}
	return json.NewEncoder(out).Encode(a)
}

// header reads the lines before the bundle.
func header(in *bufio.Reader, each func(word, rest string) error) error {
	total := 0
	for n := 0; ; n++ {
		b, err := in.ReadSlice('\n')
		if total += len(b); err != nil || total > maxHeader || n > maxRefs {
			return fmt.Errorf("%w: its header is too long or cut off", ErrFormat)
		}
		line := strings.TrimSuffix(string(b), "\n")
		switch {
		case n == 0 && line != magic:
			return fmt.Errorf("%w: of another version", ErrFormat)
		case n == 0:
		case line == "":
			return nil
		default:
			word, rest, _ := strings.Cut(line, " ")
			if err := each(word, rest); err != nil {
				return err
			}
		}
	}
}

// ServePush does what a push asks for. A push that cannot be done is no error: the answer says why, and Status is not ok.
func ServePush(gitDir string, rules Rules, in io.Reader, out io.Writer) (*Answer, error) {
	r := bufio.NewReaderSize(in, 64<<10)
	var updates []Update
	seen := map[string]bool{}
	err := header(r, func(word, rest string) error {
		f := strings.Split(rest, " ")
		if word != "update" && word != "force" || len(f) != 3 {
			return fmt.Errorf("%w: %.80q", ErrFormat, word)
		}
		u := Update{Old: f[0], New: f[1], Ref: f[2], Force: word == "force"}
		if seen[u.Ref] {
			return fmt.Errorf("%w: %.80q twice", ErrFormat, u.Ref)
		}
		seen[u.Ref] = true
		updates = append(updates, u)
		return errors.Join(CheckObject(u.Old), CheckObject(u.New), CheckRef(u.Ref))
	})
	if err != nil {
		return nil, err
	}
	for _, u := range updates {
		switch {
		case !slices.ContainsFunc(rules.Push, func(p string) bool { return matches(p, u.Ref) }):
			return nil, fmt.Errorf("%w: changing %q (push = […])", ErrDenied, u.Ref)
		case (u.Force || none(u.New)) && !rules.Force:
			return nil, fmt.Errorf("%w: forcing or deleting %q (force = true)", ErrDenied, u.Ref)
		}
	}
	s, done, err := open(gitDir)
	if err != nil {
		return nil, err
	}
	defer done()
	a := &Answer{Status: "ok", Updates: updates}
	if err := s.push(r, a); err != nil {
		return nil, err
	}
	return a, s.answer(out, a)
}

// push takes the bundle in and changes the refs.
func (s *server) push(in io.Reader, a *Answer) error {
	if err := s.unlock(); err != nil {
		return err
	}
	file := filepath.Join(s.work, "in.bundle")
	n, err := save(file, in)
	if err != nil {
		return err
	}
	side, err := s.beside()
	if err != nil {
		return err
	}
	if n > 0 {
		if _, err := s.git.run(nil, "bundle", "verify", file); err != nil {
			var ge *gitError
			if errors.As(err, &ge) && (strings.Contains(ge.said, "prerequisite") || strings.Contains(ge.said, "lacks")) {
				a.Status, a.Why = "need", "commits are missing here that it builds on"
				return nil
			}
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if _, err := side.run(nil, "fetch", "-q", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", file, "+refs/*:refs/in/*"); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
	}
	here, err := s.known(side, a.Updates)
	if err != nil {
		return err
	}
	now, err := s.git.refs()
	if err != nil {
		return err
	}
	var specs []string
	for i := range a.Updates {
		u := &a.Updates[i]
		switch {
		case now[u.Ref] == u.New || none(u.New) && now[u.Ref] == "":
			u.Result = "same"
		case !none(u.New) && !here[u.New]:
			a.Status, a.Why = "need", "commits are missing here that it names"
			return nil
		case !u.Force && !none(u.New) && now[u.Ref] != "" && s.contains(now[u.Ref], u.New):
			u.Result = "late"
		default:
			specs = append(specs, spec(u)...)
		}
	}
	if len(specs) == 0 {
		return nil
	}
	return s.change(side, specs, a)
}

// spec is an update for git push.
func spec(u *Update) []string {
	src, plus := u.New, ""
	if none(src) {
		src = ""
	}
	if !u.Force && !none(u.New) {
		return []string{src + ":" + u.Ref}
	}
	lease := "--force-with-lease=" + u.Ref + ":"
	if !none(u.Old) {
		lease += u.Old
	}
	if none(u.Old) && none(u.New) {
		return []string{src + ":" + u.Ref}
	}
	return []string{lease, plus + src + ":" + u.Ref}
}

// contains reports whether a commit is an ancestor of another.
func (s *server) contains(of, commit string) bool {
	_, err := s.git.run(nil, "merge-base", "--is-ancestor", commit, of)
	return err == nil
}

// known returns which of the new objects are here or beside.
func (s *server) known(side *Git, updates []Update) (map[string]bool, error) {
	var list []string
	for _, u := range updates {
		if !none(u.New) {
			list = append(list, u.New)
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	return side.has(list)
}

// change pushes from beside, so that hooks run and the repository's own rules hold.
func (s *server) change(side *Git, specs []string, a *Answer) error {
	var options, refs []string
	for _, x := range specs {
		if strings.HasPrefix(x, "--") {
			options = append(options, x)
		} else {
			refs = append(refs, x)
		}
	}
	journal := filepath.Join(s.git.Dir, "mochila.push")
	var names []string
	for _, u := range a.Updates {
		names = append(names, u.Ref)
	}
	if err := os.WriteFile(journal, []byte(strings.Join(names, "\n")), 0o600); err != nil {
		return err
	}
	args := append([]string{"push", "--porcelain", "--atomic", "--no-verify"}, options...)
	out, err := side.run(nil, append(append(args, s.git.Dir), refs...)...)
	os.Remove(journal)
	for line := range strings.Lines(out) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		if len(f) != 3 {
			continue
		}
		_, ref, _ := strings.Cut(f[1], ":")
		for i := range a.Updates {
			if u := &a.Updates[i]; u.Ref == ref {
				u.Result = "ok"
				if f[0] == "!" {
					u.Result, u.Why = "rejected", f[2]
				}
			}
		}
	}
	if err == nil {
		return nil
	}
	var ge *gitError
	if !errors.As(err, &ge) || !slices.ContainsFunc(a.Updates, func(u Update) bool { return u.Result == "rejected" }) {
		return err
	}
	if strings.Contains(ge.said, ".lock'") || strings.Contains(ge.said, "cannot lock ref") && !strings.Contains(ge.said, "exists; cannot create") { // somebody works on it at this moment
		return fmt.Errorf("%w: %w", ge, unix.EAGAIN)
	}
	a.Status, a.Why = "rejected", ge.said
	return nil
}

// beside makes an empty repository that sees the objects of the real one.
func (s *server) beside() (*Git, error) {
	dir := filepath.Join(s.work, "beside.git")
	out, err := s.git.run(nil, "rev-parse", "--git-path", "objects")
	if err != nil {
		return nil, err
	}
	objects := strings.TrimSpace(out)
	if !filepath.IsAbs(objects) {
		objects = filepath.Join(s.git.Dir, objects)
	}
	format, err := s.git.run(nil, "rev-parse", "--show-object-format")
	if err != nil {
		return nil, err
	}
	side := &Git{Dir: s.work}
	if _, err := side.run(nil, "-c", "init.defaultBranch=none", "init", "-q", "--bare", "--template=", "--object-format="+strings.TrimSpace(format), dir); err != nil {
		return nil, err
	}
	side.Dir = dir
	info := filepath.Join(dir, "objects", "info")
	if err := os.MkdirAll(info, 0o700); err != nil {
		return nil, err
	}
	return side, os.WriteFile(filepath.Join(info, "alternates"), []byte(objects+"\n"), 0o600)
}

// unlock removes the lock files of refs that a push of ours has left which was killed: its journal says which they may
// be, and nobody else's are as old as it.
func (s *server) unlock() error {
	journal := filepath.Join(s.git.Dir, "mochila.push")
	b, err := os.ReadFile(journal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	began := time.Time{}
	if fi, err := os.Stat(journal); err == nil {
		began = fi.ModTime()
	}
	for _, ref := range append(strings.Split(string(b), "\n"), "HEAD", "packed-refs", "shallow") {
		if strings.HasPrefix(ref, "refs/") && CheckRef(ref) != nil {
			continue
		}
		file := filepath.Join(s.git.Dir, ref+".lock")
		if fi, err := os.Lstat(file); err == nil && !fi.ModTime().Before(began.Add(-time.Second)) {
			os.Remove(file)
		}
	}
	return os.Remove(journal)
}

// ServeFetch gives the refs, and a bundle of what the other side lacks.
func ServeFetch(gitDir string, in io.Reader, out io.Writer) error {
	var have []string
	err := header(bufio.NewReaderSize(in, 64<<10), func(word, rest string) error {
		if word != "have" {
			return fmt.Errorf("%w: %.80q", ErrFormat, word)
		}
		have = append(have, rest)
		return CheckObject(rest)
	})
	if err != nil {
		return err
	}
	s, done, err := open(gitDir)
	if err != nil {
		return err
	}
	defer done()
	// The refs may move while the bundle is made: it is made beside, of what they are now.
	side, err := s.beside()
	if err != nil {
		return err
	}
	a := &Answer{Status: "ok"}
	var first strings.Builder
	if err := s.answer(&first, a); err != nil {
		return err
	}
	if err := side.updateRefs(a.Refs); err != nil {
		return err
	}
	known := map[string]bool{}
	if len(have) > 0 {
		if known, err = s.git.has(have); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(out, first.String()); err != nil {
		return err
	}
	var refs, not []string
	for ref := range a.Refs {
		refs = append(refs, ref)
	}
	for sha := range known {
		not = append(not, sha)
	}
	slices.Sort(refs)
	slices.Sort(not)
	if len(refs) == 0 {
		return nil
	}
	return side.bundle(out, filepath.Join(s.work, "out.bundle"), refs, not)
}

// save writes a stream to a new file.
func save(file string, in io.Reader) (int64, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, in)
	return n, errors.Join(err, f.Close())
}
