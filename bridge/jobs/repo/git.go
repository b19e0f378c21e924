// Package repo moves the refs of git repositories by jobs: bundles of what the other side is known to lack, computed from
// what it has acknowledged, never from what was merely sent. The first half (serve.go) is the handler at the node that has
// the repository, the second (remote.go) is the side of who pushes and fetches. It runs the machine's git.
//
// A repository is never changed but by git itself: objects that came are unpacked beside it and pushed into it, so
// that its own hooks and settings (receive.denyNonFastForwards …) hold, and so that a kill at any point leaves it whole.
package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Zero is the object name that says that a ref is not there.
const Zero = "0000000000000000000000000000000000000000"

// Bounds of what one job may say.
const (
	maxRefs   = 20_000
	maxHeader = 8 << 20
	maxRef    = 1000
)

// magic is the first line of what a job brings.
const magic = "mochila-git 1"

// ErrFormat is input that this package has not made.
var ErrFormat = errors.New("not a git job")

// ErrDenied is something that the configuration does not allow.
var ErrDenied = errors.New("not allowed here")

// CheckName reports whether a text can name a repository: a relative path of plain names.
func CheckName(name string) error {
	ok := name != "" && len(name) <= 500
	for p := range strings.SplitSeq(name, "/") {
		ok = ok && p != "" && p[0] != '.' && p[0] != '-'
		for i := 0; i < len(p); i++ {
			c := p[i]
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-+", c) >= 0)
		}
		ok = ok && !strings.Contains(p, "..") && !strings.HasSuffix(p, ".lock")
	}
	if !ok {
		return fmt.Errorf("%w: %.100q is no name of a repository", ErrFormat, name)
	}
	return nil
}

// CheckRef reports whether a text is a full ref name (git-check-ref-format(1)).
func CheckRef(ref string) error {
	ok := strings.HasPrefix(ref, "refs/") && len(ref) <= maxRef && !strings.HasSuffix(ref, "/") && !strings.HasSuffix(ref, ".") &&
		!strings.Contains(ref, "..") && !strings.Contains(ref, "//") && !strings.Contains(ref, "@{") && strings.Count(ref, "/") >= 2
	for i := 0; i < len(ref); i++ {
		c := ref[i]
		ok = ok && c > ' ' && c != 0x7f && strings.IndexByte("~^:?*[\\", c) < 0
	}
	for p := range strings.SplitSeq(ref, "/") {
		ok = ok && !strings.HasPrefix(p, ".") && !strings.HasPrefix(p, "-") && !strings.HasSuffix(p, ".lock")
	}
	if !ok {
		return fmt.Errorf("%w: %.100q is no ref", ErrFormat, ref)
	}
	return nil
}

// CheckObject reports whether a text is the name of an object: SHA-1 or SHA-256, in lower case.
func CheckObject(s string) error {
	ok := len(s) == 40 || len(s) == 64
	for i := 0; i < len(s); i++ {
		ok = ok && (s[i] >= '0' && s[i] <= '9' || s[i] >= 'a' && s[i] <= 'f')
	}
	if !ok {
		return fmt.Errorf("%w: %.80q is no object", ErrFormat, s)
	}
	return nil
}

// none reports whether an object name stands for no object.
func none(s string) bool { return strings.Trim(s, "0") == "" }

// Git runs git in one repository.
type Git struct {
	Dir string    // its git directory, or a work tree
	Err io.Writer // what git says to people; nil: it becomes part of errors only
}

// environment is what git gets: nothing that points it to another repository.
func environment() []string {
	env := []string{"LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_NO_LAZY_FETCH=1", "GIT_ADVICE=0"}
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if (!strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "GIT_CONFIG_") || strings.HasPrefix(name, "GIT_TRACE")) && name != "LC_ALL" && name != "LANGUAGE" {
			env = append(env, e)
		}
	}
	return env
}

// run runs git; its output is at most a list of refs.
func (g *Git) run(in io.Reader, args ...string) (string, error) {
	var out bytes.Buffer
	err := g.pipe(in, &out, args...)
	return out.String(), err
}

// pipe runs git with a standard input and output.
func (g *Git) pipe(in io.Reader, out io.Writer, args ...string) error {
	cmd := exec.Command("git", append([]string{"-C", g.Dir}, args...)...)
	cmd.Env, cmd.Stdin, cmd.Stdout = environment(), in, out
	said := &tail{}
	cmd.Stderr = said
	if g.Err != nil {
		cmd.Stderr = io.MultiWriter(said, g.Err)
	}
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("git is not installed: %w", err)
		}
		return &gitError{verb: args[0], said: strings.TrimSpace(said.String()), err: err}
	}
	return nil
}

// gitError is a git that did not end well.
type gitError struct {
	verb, said string
	err        error
}

// Error is what git said, or else how it ended.
func (e *gitError) Error() string {
	if e.said == "" {
		return fmt.Sprintf("git %s: %v", e.verb, e.err)
	}
	return fmt.Sprintf("git %s: %s", e.verb, strings.ReplaceAll(e.said, "\n", "; "))
}

// Unwrap is how the process ended.
func (e *gitError) Unwrap() error { return e.err }

// tail keeps the end of what is written.
type tail struct{ b []byte }

// Write keeps the end of what is written.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - 4000; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }

// refs lists refs below the given prefixes, or all.
func (g *Git) refs(prefixes ...string) (map[string]string, error) {
	out, err := g.run(nil, append([]string{"for-each-ref", "--format=%(objectname) %(refname)"}, prefixes...)...)
	if err != nil {
		return nil, err
	}
	list := map[string]string{}
	for line := range strings.Lines(out) {
		if sha, ref, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok {
			list[ref] = sha
		}
	}
	return list, nil
}

// has returns those of the objects that are here, with all that they need, as far as git knows by its refs.
func (g *Git) has(objects []string) (map[string]bool, error) {
	out, err := g.run(strings.NewReader(strings.Join(objects, "\n")+"\n"), "cat-file", "--batch-check=%(objectname)")
	if err != nil {
		return nil, err
	}
	here := map[string]bool{}
	for line := range strings.Lines(out) {
		if line = strings.TrimSuffix(line, "\n"); CheckObject(line) == nil {
			here[line] = true
		}
	}
	return here, nil
}

// updateRefs sets refs, or deletes those whose object is "", all or none.
func (g *Git) updateRefs(set map[string]string) error {
	if len(set) == 0 {
		return nil
	}
	var b strings.Builder
	for ref, sha := range set {
		if sha == "" {
			fmt.Fprintf(&b, "delete %s\n", ref)
		} else {
			fmt.Fprintf(&b, "update %s %s\n", ref, sha)
		}
	}
	_, err := g.run(strings.NewReader(b.String()), "update-ref", "--stdin")
	return err
}

// bundle writes a bundle of refs, without what the given objects reach, to w, and nothing when there is nothing new. file is
// where it is made.
func (g *Git) bundle(w io.Writer, file string, refs, not []string) error {
	var b strings.Builder
	for _, r := range refs {
		b.WriteString(r + "\n")
	}
	for _, n := range not {
		b.WriteString("^" + n + "\n")
	}
	defer os.Remove(file)
	_, err := g.run(strings.NewReader(b.String()), "bundle", "create", "-q", file, "--stdin")
	var ge *gitError
	if errors.As(err, &ge) && strings.Contains(ge.said, "empty bundle") {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// matches reports whether a ref is covered by a pattern such as refs/heads/* (any depth) or refs/heads/main.
func matches(pattern, ref string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(ref, prefix) && len(ref) > len(prefix)
	}
	return pattern == ref
}
