package repo

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mochila/internal/durable"
)

// Pending is a job whose answer is not here yet.
type Pending struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"` // push or fetch
	At      time.Time `json:"at"`
	Updates []Update  `json:"updates,omitempty"`
	Old     bool      `json:"old,omitempty"` // the answer to a later job is here: this one's says nothing new of the refs
}

// State is what a repository here knows of one at another node. It is a file in the git directory here.
type State struct {
	Refs  map[string]string `json:"refs"` // branches and tags there, as the last answer said
	Head  string            `json:"head,omitempty"`
	Heard time.Time         `json:"heard,omitzero"` // when that was
	Full  bool              `json:"full,omitempty"` // ask for everything: what came did not fit
	Jobs  []Pending         `json:"jobs,omitempty"` // in the order of their channel
}

// Remote is a repository at another node, seen from one here. What the other side is known to have is kept in refs
// below refs/mochila/NODE/REPO/, so that git keeps the commits that deltas are made from.
type Remote struct {
	State
	Node, Name string
	git        *Git
	dir        string // for our files, in the git directory
	file       string
	lock       *os.File
}

// OpenRemote takes the state of a remote repository for this process alone. dir is a git directory or work tree.
func OpenRemote(dir, node, name string) (*Remote, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	g := &Git{Dir: dir}
	out, err := g.run(nil, "rev-parse", "--git-common-dir")
	if err != nil {
		return nil, err
	}
	common := strings.TrimSpace(out)
	if !filepath.IsAbs(common) {
		common = filepath.Join(dir, common)
	}
	if common, err = filepath.Abs(common); err != nil {
		return nil, err
	}
	if out, err = g.run(nil, "rev-parse", "--is-shallow-repository"); err != nil {
		return nil, err
	} else if strings.TrimSpace(out) == "true" {
		return nil, errors.New("this is a shallow clone: a bundle of it would be incomplete (git fetch --unshallow)")
	}
	r := &Remote{Node: node, Name: name, git: &Git{Dir: common}, dir: filepath.Join(common, "mochila")}
	r.file = filepath.Join(r.dir, node, name+".json")
	if err := os.MkdirAll(filepath.Dir(r.file), 0o700); err != nil {
		return nil, err
	}
	if r.lock, err = os.OpenFile(filepath.Join(r.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(r.lock.Fd()), unix.LOCK_EX); err != nil {
		r.lock.Close()
		return nil, fmt.Errorf("lock the state: %w", err)
	}
	b, err := os.ReadFile(r.file)
	if err == nil {
		err = json.Unmarshal(b, &r.State)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// what it says can be asked for again
		r.State = State{Full: true}
	}
	if r.Refs == nil {
		r.Refs = map[string]string{}
	}
	return r, r.sweep()
}

// sweep removes what a killed process has left.
func (r *Remote) sweep() error {
	left, err := r.git.refs("refs/mochila-out")
	if err != nil {
		return err
	}
	for ref := range left {
		left[ref] = ""
	}
	old, _ := filepath.Glob(filepath.Join(r.dir, "tmp-*"))
	for _, f := range old {
		os.Remove(f)
	}
	return r.git.updateRefs(left)
}

// Close gives the state back. It does not save it.
func (r *Remote) Close() error { return r.lock.Close() }

// Save makes the state durable.
func (r *Remote) Save() error {
	return durable.WriteFile(durable.OS{}, r.file, 0o600, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", " ")
		return e.Encode(r.State)
	})
}

// space is where the refs of this remote are kept.
func (r *Remote) space() string { return "refs/mochila/" + r.Node + "/" + r.Name + "/" }

// Tracking is the ref here that stands for one there.
func (r *Remote) Tracking(ref string) string { return r.space() + strings.TrimPrefix(ref, "refs/") }

// Known lists the refs there whose commits are all here.
func (r *Remote) Known() (map[string]string, error) {
	list, err := r.git.refs(r.space())
	out := map[string]string{}
	for ref, sha := range list {
		out["refs/"+strings.TrimPrefix(ref, r.space())] = sha
	}
	return out, err
}

// Resolve makes updates of refspecs: [+]SRC[:DST], :DST deletes.
func (r *Remote) Resolve(specs []string, force bool) ([]Update, error) {
	var list []Update
	for _, s := range specs {
		body, plus := strings.CutPrefix(s, "+")
		src, dst, two := strings.Cut(body, ":")
		u := Update{New: Zero, Force: force || plus}
		if src != "" {
			out, err := r.git.run(nil, "rev-parse", "--verify", "-q", "--end-of-options", src)
			if err != nil {
				return nil, fmt.Errorf("there is no %q here", src)
			}
			lines := strings.Fields(out)
			u.New = lines[len(lines)-1]
		}
		if !two {
			dst = src
		}
		full, err := r.name(dst, src)
		if err != nil {
			return nil, err
		}
		u.Ref = full
		list = append(list, u)
	}
	return list, nil
}

// name makes a full ref name of what a person typed.
func (r *Remote) name(dst, src string) (string, error) {
	if strings.HasPrefix(dst, "refs/") {
		return dst, CheckRef(dst)
	}
	if out, err := r.git.run(nil, "rev-parse", "--symbolic-full-name", "--verify", "-q", "--end-of-options", src); err == nil && src != "" {
		full := strings.TrimSpace(out)
		if dst == src && strings.HasPrefix(full, "refs/") {
			return full, CheckRef(full)
		}
		if strings.HasPrefix(full, "refs/tags/") {
			return "refs/tags/" + dst, CheckRef("refs/tags/" + dst)
		}
	}
	return "refs/heads/" + dst, CheckRef("refs/heads/" + dst)
}

// Branches lists refspecs for all branches, or all tags.
func (r *Remote) Branches(prefix string) ([]string, error) {
	list, err := r.git.refs(prefix)
	return slices.Sorted(maps.Keys(list)), err
}

// Plan leaves out what the other side has acknowledged already or what is on its way; it returns the jobs that carry
// the latter.
func (r *Remote) Plan(updates []Update) (todo []Update, flying []string) {
	for _, u := range updates {
		last := ""
		id := ""
		for _, p := range r.Jobs {
			for _, x := range p.Updates {
				if x.Ref == u.Ref {
					last, id = x.New, p.ID
				}
			}
		}
		there := r.Refs[u.Ref]
		if there == "" {
			there = Zero
		}
		u.Old = there
		switch {
		case id != "" && last == u.New:
			flying = append(flying, id)
		case id == "" && there == u.New && !r.Heard.IsZero():
		default:
			todo = append(todo, u)
		}
	}
	return todo, slices.Compact(slices.Sorted(slices.Values(flying)))
}

// WritePush writes what a push job brings: the updates, and a bundle on top of what the other side has acknowledged;
// with full on top of nothing.
func (r *Remote) WritePush(w io.Writer, updates []Update, full bool) error {
	if len(updates) > maxRefs {
		return fmt.Errorf("more than %d refs at once", maxRefs)
	}
	var head strings.Builder
	head.WriteString(magic + "\n")
	temp := map[string]string{}
	key := rand.Text()
	for i, u := range updates {
		word := "update"
		if u.Force {
			word = "force"
		}
		fmt.Fprintf(&head, "%s %s %s %s\n", word, u.Old, u.New, u.Ref)
		if !none(u.New) {
			temp[fmt.Sprintf("refs/mochila-out/%s/%d", key, i)] = u.New
		}
	}
	head.WriteString("\n")
	if err := r.git.updateRefs(temp); err != nil {
		return err
	}
	defer func() {
		for ref := range temp {
			temp[ref] = ""
		}
		r.git.updateRefs(temp)
	}()
	if _, err := io.WriteString(w, head.String()); err != nil || len(temp) == 0 {
		return err
	}
	var not []string
	if !full {
		known, err := r.Known()
		if err != nil {
			return err
		}
		not = slices.Compact(slices.Sorted(maps.Values(known)))
	}
	return r.git.bundle(w, filepath.Join(r.dir, "tmp-"+key), slices.Sorted(maps.Keys(temp)), not)
}

// WriteFetch writes what a fetch job brings: what is here already.
func (r *Remote) WriteFetch(w io.Writer) error {
	var b strings.Builder
	b.WriteString(magic + "\n")
	if !r.Full {
		known, err := r.Known()
		if err != nil {
			return err
		}
		for _, sha := range slices.Compact(slices.Sorted(maps.Values(known))) {
			fmt.Fprintf(&b, "have %s\n", sha)
		}
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// maxAnswer bounds the first line of an answer.
const maxAnswer = 16 << 20

// Hear takes the answer to a job in: its bundle, if there is one, and what it says of the refs there. The job has no
// answer to wait for then.
func (r *Remote) Hear(id string, in io.Reader, now time.Time) (*Answer, error) {
	old := false
	for i := range r.Jobs {
		if r.Jobs[i].ID == id {
			old = r.Jobs[i].Old
			break
		}
		r.Jobs[i].Old = true
	}
	r.Forget(id)
	br := bufio.NewReaderSize(in, 64<<10)
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if err != bufio.ErrBufferFull || len(line) > maxAnswer {
			return nil, fmt.Errorf("%w: its answer is cut off", ErrFormat)
		}
	}
	var a Answer
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, fmt.Errorf("%w: its answer: %w", ErrFormat, err)
	}
	if len(a.Refs) > maxRefs {
		return nil, fmt.Errorf("%w: %d refs", ErrFormat, len(a.Refs))
	}
	for ref, sha := range a.Refs {
		if err := errors.Join(CheckRef(ref), CheckObject(sha)); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(ref, "refs/heads/") && !strings.HasPrefix(ref, "refs/tags/") {
			delete(a.Refs, ref)
		}
	}
	if CheckRef(a.Head) != nil {
		a.Head = ""
	}
	if err := r.takeIn(br); err != nil {
		// the next fetch asks for everything; nothing else has changed
		r.Full = true
		return &a, err
	}
	if !old {
		r.Refs, r.Head, r.Heard, r.Full = a.Refs, a.Head, now, false
	}
	return &a, errors.Join(r.track(), r.sweep())
}

// takeIn unpacks the bundle of an answer, under refs that sweep removes.
func (r *Remote) takeIn(in *bufio.Reader) error {
	if _, err := in.Peek(1); err == io.EOF {
		return nil
	}
	file := filepath.Join(r.dir, "tmp-"+rand.Text())
	defer os.Remove(file)
	if _, err := save(file, in); err != nil {
		return err
	}
	_, err := r.git.run(nil, "fetch", "-q", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", file, "+refs/*:refs/mochila-out/in/*")
	return err
}

// track sets the refs of this remote to what the other side has, as far as it is here complete.
func (r *Remote) track() error {
	old, err := r.git.refs(r.space())
	if err != nil {
		return err
	}
	gone, set := map[string]string{}, map[string]string{}
	for ref := range old {
		gone[ref] = ""
	}
	whole, err := r.whole(slices.Compact(slices.Sorted(maps.Values(r.Refs))))
	if err != nil {
		return err
	}
	for ref, sha := range r.Refs {
		if t := r.Tracking(ref); whole[sha] {
			delete(gone, t)
			if old[t] != sha {
				set[t] = sha
			}
		}
	}
	// A name may have become a folder of names: deletions first.
	if err := r.git.updateRefs(gone); err != nil {
		return err
	}
	return r.git.updateRefs(set)
}

// whole returns those of the objects that are here with all that they need.
func (r *Remote) whole(objects []string) (map[string]bool, error) {
	if len(objects) == 0 {
		return nil, nil
	}
	here, err := r.git.has(objects)
	if err != nil {
		return nil, err
	}
	reaches := func(list []string) bool {
		_, err := r.git.run(strings.NewReader(strings.Join(list, "\n")+"\n"), "rev-list", "--objects", "--quiet", "--stdin", "--not", "--all")
		return err == nil
	}
	if len(here) > 0 && !reaches(slices.Collect(maps.Keys(here))) {
		for sha := range here {
			here[sha] = reaches([]string{sha})
		}
	}
	return here, nil
}

// Forget takes a job off the list of those without answer.
func (r *Remote) Forget(id string) {
	r.Jobs = slices.DeleteFunc(r.Jobs, func(p Pending) bool { return p.ID == id })
}

// Waits reports whether a job of a kind has no answer yet.
func (r *Remote) Waits(kind string) (string, bool) {
	for _, p := range r.Jobs {
		if p.Kind == kind {
			return p.ID, true
		}
	}
	return "", false
}
