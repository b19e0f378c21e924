package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Overwrite says what happens when the name of a thing is taken at its place.
type Overwrite string

const (
	Never   Overwrite = "never"   // the whole tree is refused
	Replace Overwrite = "replace" // the new takes the place of the old, in one step: a folder is not merged
	Rename  Overwrite = "rename"  // the new becomes NAME.2, NAME.3 …
)

// Place is where a tree goes.
type Place struct {
	Root      *os.Root  // nothing outside of it is touched, whatever links there are
	Dir       string    // in Root; made if it is missing
	Key       string    // names the folder in which the tree is built: that of the same job is begun anew
	Overwrite Overwrite // "" is Never
	Size      int64     // bytes of the stream, which bound what it may claim; negative: unknown
}

// ErrTaken: a name is taken, and Overwrite is Never.
var ErrTaken = errors.New("the name is taken")

// stagePrefix begins the names of folders in which trees are built.
const stagePrefix = ".mochila-"

// staleAfter is the age at which what a broken-off job has left is removed by another.
const staleAfter = 14 * 24 * time.Hour

// Placed is what Unpack has done.
type Placed struct {
	Summary
	Names []string // of the top things as they are named now
	Same  []string // of these, the ones that were there already, in the same state
}

// Unpack reads a tree, builds it beside its place, and when all of it is there, checked and on the disk, renames its top
// files and folders into their place: each of them whole or not at all. Before the first is renamed, it is certain that
// no name is taken against Overwrite. What is there already in the same state counts as done, so that a job that was
// killed can be begun again at any point.
//
// Files get their permission bits and times; folders are at least rwx for their owner.
func Unpack(r io.Reader, p Place) (*Placed, error) {
	if p.Overwrite == "" {
		p.Overwrite = Never
	}
	base, err := existing(p.Root, p.Dir)
	if err != nil {
		return nil, err
	}
	sweep(p.Root, base, time.Now())
	stage := path.Join(base, stagePrefix+p.Key)
	if err := p.Root.RemoveAll(stage); err != nil {
		return nil, fmt.Errorf("remove what an earlier try has left: %w", err)
	}
	if err := p.Root.Mkdir(stage, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder to work in: %w", err)
	}
	keep := false
	defer func() {
		if !keep {
			p.Root.RemoveAll(stage)
		}
	}()
	in, err := p.Root.OpenRoot(stage)
	if err != nil {
		return nil, fmt.Errorf("make a folder to work in: %w", err)
	}
	defer in.Close()
	b := &builder{in: in, r: NewReader(r, p.Size)}
	tops, err := b.build()
	if err != nil {
		return nil, err
	}
	if err := syncAll(in); err != nil {
		return nil, err
	}
	if err := p.Root.MkdirAll(p.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make folder %q: %w", p.Dir, err)
	}
	out := &Placed{Summary: b.r.Summary}
	if err := place(in, p, tops, out); err != nil {
		return nil, err
	}
	if err := p.Root.RemoveAll(stage); err != nil {
		return nil, fmt.Errorf("remove the folder it was built in: %w", err)
	}
	keep = true
	return out, syncUp(p.Root, p.Dir, base)
}

// existing is dir, or the deepest folder above it that is there.
func existing(root *os.Root, dir string) (string, error) {
	for {
		fi, err := root.Stat(dir)
		switch {
		case err == nil && fi.IsDir():
			return dir, nil
		case err == nil:
			return "", fmt.Errorf("%q is no folder: %w", dir, unix.ENOTDIR)
		case !errors.Is(err, fs.ErrNotExist) || dir == ".":
			return "", fmt.Errorf("look at the folder: %w", err)
		}
		dir = path.Dir(dir)
	}
}

// sweep removes what jobs have left that were broken off long ago.
func sweep(root *os.Root, dir string, now time.Time) {
	d, err := root.Open(dir)
	if err != nil {
		return
	}
	defer d.Close()
	var st unix.Stat_t
	if unix.Fstat(int(d.Fd()), &st) == nil && st.Nlink == 2 {
		return // no folder is in it, whatever else
	}
	for {
		list, err := d.ReadDir(1000)
		for _, e := range list {
			if !e.IsDir() || !strings.HasPrefix(e.Name(), stagePrefix) {
				continue
			}
			if fi, err := e.Info(); err == nil && now.Sub(fi.ModTime()) > staleAfter {
				root.RemoveAll(path.Join(dir, e.Name()))
			}
		}
		if err != nil {
			return
		}
	}
}

// builder makes a tree in an empty folder.
type builder struct {
	in   *os.Root
	r    *Reader
	open []Entry // folders whose mode and time are still to be set, outermost first
}

// build returns the names of the top things.
func (b *builder) build() (tops []string, err error) {
	for {
		e, err := b.r.Next()
		if err == io.EOF {
			return tops, b.leave("")
		}
		if err != nil {
			return nil, err
		}
		if err := b.leave(e.Name); err != nil {
			return nil, err
		}
		if !strings.Contains(e.Name, "/") {
			tops = append(tops, e.Name)
		}
		switch e.Kind {
		case Folder:
			if err = b.in.Mkdir(e.Name, 0o700); err == nil {
				b.open = append(b.open, *e)
			}
		case Link:
			err = b.in.Symlink(e.Target, e.Name)
		default:
			err = b.file(e)
		}
		if err != nil {
			return nil, fmt.Errorf("unpack: %w", err)
		}
	}
}

func (b *builder) file(e *Entry) error {
	f, err := b.in.OpenFile(e.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.Copy(f, b.r); err != nil {
		return err
	} else if n != e.Size {
		return bad("%q has %d bytes, not %d", short(e.Name), n, e.Size)
	}
	if err := f.Chmod(e.Mode); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return b.in.Chtimes(e.Name, e.ModTime, e.ModTime)
}

// leave finishes the folders that the next entry is not in.
func (b *builder) leave(next string) error {
	for len(b.open) > 0 {
		d := b.open[len(b.open)-1]
		if next != "" && strings.HasPrefix(next, d.Name+"/") {
			return nil
		}
		b.open = b.open[:len(b.open)-1]
		err := b.in.Chmod(d.Name, d.Mode|0o700)
		if err == nil {
			err = b.in.Chtimes(d.Name, d.ModTime, d.ModTime)
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	return nil
}

// syncAll makes everything durable that was written to the file system of a folder: one call for any number of files.
func syncAll(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// syncUp syncs a folder and those above it, as far as they may have been made now.
func syncUp(root *os.Root, dir, until string) error {
	for {
		d, err := root.Open(dir)
		if err == nil {
			err = d.Sync()
			d.Close()
		}
		if err != nil {
			return fmt.Errorf("sync folder %q: %w", dir, err)
		}
		if dir == until || dir == "." {
			return nil
		}
		dir = path.Dir(dir)
	}
}

// place renames the top things of a built tree.
func place(in *os.Root, p Place, tops []string, out *Placed) error {
	from, err := in.Open(".")
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := p.Root.OpenRoot(p.Dir)
	if err != nil {
		return fmt.Errorf("open folder %q: %w", p.Dir, err)
	}
	defer to.Close()
	dir, err := to.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	there := map[string]bool{} // and the same
	for _, name := range tops {
		_, err := to.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("look at %q: %w", name, err)
		}
		same, err := equal(in, to, name, name)
		if err != nil {
			return err
		}
		if there[name] = same; !same && p.Overwrite == Never {
			return fmt.Errorf("%w: %q", ErrTaken, name)
		}
	}
	for _, name := range tops {
		if there[name] {
			out.Names, out.Same = append(out.Names, name), append(out.Same, name)
			continue
		}
		now, err := put(in, to, int(from.Fd()), int(dir.Fd()), name, p.Overwrite)
		if err != nil {
			return fmt.Errorf("put %q into its place: %w", name, err)
		}
		out.Names = append(out.Names, now)
	}
	return nil
}

// put renames one thing, and returns its name.
func put(in, to *os.Root, from, dir int, name string, how Overwrite) (string, error) {
	err := renameat2(from, name, dir, name, unix.RENAME_NOREPLACE)
	if err == nil || !errors.Is(err, unix.EEXIST) {
		return name, err
	}
	switch how {
	case Replace:
		// the old one goes to where the new one was built, and with that folder
		return name, renameat2(from, name, dir, name, unix.RENAME_EXCHANGE)
	case Rename:
		for i := 2; i < 100_000; i++ {
			n := fmt.Sprintf("%s.%d", name, i)
			if err = renameat2(from, name, dir, n, unix.RENAME_NOREPLACE); err == nil {
				return n, nil
			}
			if !errors.Is(err, unix.EEXIST) {
				return "", err
			}
			// a try that was killed after its rename
			if same, err := equal(in, to, name, n); err == nil && same {
				return n, nil
			}
		}
	}
	return "", ErrTaken
}

// renameat2 renames, and where the file system knows no flags it does what comes next to them.
func renameat2(from int, old string, to int, name string, flags uint) error {
	err := unix.Renameat2(from, old, to, name, flags)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	var st unix.Stat_t
	gone := errors.Is(unix.Fstatat(to, name, &st, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT)
	switch {
	case gone:
	case flags == unix.RENAME_NOREPLACE:
		return unix.EEXIST
	default:
		aside := old + ".old" // longer than any name that came with it? then it fails, and nothing has happened
		if err := unix.Renameat(to, name, from, aside); err != nil {
			return err
		}
	}
	return unix.Renameat(from, old, to, name)
}

// equal reports whether two things are the same in kind, permissions and content.
func equal(a, b *os.Root, x, y string) (bool, error) {
	fa, err := a.Lstat(x)
	if err != nil {
		return false, err
	}
	fb, err := b.Lstat(y)
	if err != nil || fa.Mode() != fb.Mode() {
		return false, nil
	}
	switch {
	case fa.IsDir():
		return equalFolders(a, b, x, y)
	case fa.Mode()&fs.ModeSymlink != 0:
		la, err := a.Readlink(x)
		if err != nil {
			return false, err
		}
		lb, err := b.Readlink(y)
		return err == nil && la == lb, nil
	case !fa.Mode().IsRegular() || fa.Size() != fb.Size():
		return false, nil
	}
	return equalFiles(a, b, x, y)
}

func equalFolders(a, b *os.Root, x, y string) (bool, error) {
	na, err := names(a, x)
	if err != nil {
		return false, err
	}
	nb, err := names(b, y)
	if err != nil || len(na) != len(nb) {
		return false, nil
	}
	for i, n := range na {
		if n != nb[i] {
			return false, nil
		}
		if same, err := equal(a, b, path.Join(x, n), path.Join(y, n)); !same {
			return false, err
		}
	}
	return true, nil
}
