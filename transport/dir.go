package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// tempPrefix starts the names of files that are still being written. Readers ignore every name with a leading dot.
const tempPrefix = ".tmp-"

const (
	maxListed   = 1 << 18   // names that one List returns at most; the rest waits until these are gone
	spareRoom   = 128 << 10 // left free on the medium for directories and other people's bookkeeping
	staleTemp   = time.Hour // a temporary file this old belongs to a writer that died
	dirMode     = 0o777     // before umask: a shared folder is shared by its owner's choice
	fileMode    = 0o666
	readmeName  = "README.txt"
	mountNeeded = "require"
)

const readme = `This folder belongs to mochila, a program that carries e-mail and other messages
on sticks, disks and synced folders where there is no network.

The files in here are sealed: only the computers they are addressed to can open
them. They are not dangerous, and they are not damaged.

If you found this stick: please return it to its owner, or leave it as it is.
Please do not rename or delete anything in here. A courier may simply plug it in
at the next place.
`

// Dir is a Folder in a local directory: a stick, a disk, an NFS mount, a folder that another program synchronises.
//
// It never creates its root. While the root is missing (or its mount point is not mounted, see DirOptions),
// every method returns ErrAbsent and nothing is written. It keeps nothing open between calls, so the medium can be
// unmounted at any time. Only regular files are listed or opened; links of any kind inside the tree are refused.
type Dir struct {
	root  string
	mount string // "", a path, or "require"
	mu    sync.Mutex
	swept map[string]bool // directories whose leftovers were removed by this process
}

// DirOptions configures a Dir.
type DirOptions struct {
	// Mount makes an unmounted medium absent even where its empty mount point exists. "require": the root itself
	// must be a mount point. An absolute path: that directory must be. Empty: /etc/fstab is asked; if it names the
	// root or a directory above it as a mount point, it must be mounted.
	Mount string
}

// NewDir returns the Folder below root, an absolute path.
func NewDir(root string, o DirOptions) (*Dir, error) {
	if !filepath.IsAbs(root) {
		return nil, withHint(fmt.Errorf("dir: path %q is not absolute", root), "write the whole path, as in dir:/media/usb")
	}
	if o.Mount != "" && o.Mount != mountNeeded && !filepath.IsAbs(o.Mount) {
		return nil, withHint(fmt.Errorf("dir: mount=%q is neither %q nor an absolute path", o.Mount, mountNeeded),
			"mount=require demands that the folder itself is a mount point")
	}
	return &Dir{root: filepath.Clean(root), mount: o.Mount, swept: make(map[string]bool)}, nil
}

// String is the carrier URL without options.
func (d *Dir) String() string { return "dir:" + d.root }

// open opens the root, once it is sure to be the medium and not the hole that it is mounted over.
func (d *Dir) open() (*os.Root, error) {
	fi, err := os.Stat(d.root)
	if err != nil {
		return nil, d.absent(err)
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", d.root)
	}
	r, err := os.OpenRoot(d.root)
	if err != nil {
		return nil, d.absent(err)
	}
	if err := d.checkMount(); err != nil {
		r.Close()
		return nil, err
	}
	// What was opened must be what is mounted there now that the mount has been seen.
	opened, err1 := r.Stat(".")
	now, err2 := os.Stat(d.root)
	if err1 != nil || err2 != nil || !os.SameFile(opened, now) {
		r.Close()
		return nil, fmt.Errorf("%s was mounted or unmounted just now: %w", d.root, ErrAbsent)
	}
	return r, nil
}

// absent maps errors that mean "no medium".
func (d *Dir) absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist: %w", d.root, ErrAbsent)
	}
	return mediumError(err)
}

// mediumError adds ErrAbsent or ErrFull to the system errors that mean it.
func mediumError(err error) error {
	for _, no := range []syscall.Errno{syscall.ENODEV, syscall.ENXIO, syscall.ESTALE, syscall.ENOTCONN} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrAbsent, err)
		}
	}
	for _, no := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	if errors.Is(err, syscall.EROFS) {
		return withHint(err, "the medium is read-only: what lies there was read, and what is due waits for another carrier")
	}
	return err
}

// checkDir walks dir component by component: each is a plain name and a real directory. found is false when one
// does not exist.
func checkDir(r *os.Root, dir string) (found bool, err error) {
	if !fs.ValidPath(dir) || dir == "." {
		return false, fmt.Errorf("%q is not a plain relative path", dir)
	}
	parts := strings.Split(dir, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, ".") || strings.ContainsAny(part, "\\\x00") {
			return false, fmt.Errorf("%q is not a plain relative path", dir)
		}
		at := path.Join(parts[:i+1]...)
		fi, err := r.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, mediumError(err)
		case !fi.IsDir():
			return false, fmt.Errorf("%s is not a directory but %s", filepath.Join(r.Name(), at), kind(fi.Mode()))
		}
	}
	return true, nil
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "a file"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	}
	return "a special file"
}

func checkName(name string) error {
	if name == "" || len(name) > 255 || name[0] == '.' || name[0] == '~' || strings.ContainsAny(name, "/\\\x00") {
		return fmt.Errorf("%q is not a file name for a carrier", name)
	}
	return nil
}

// openFile opens a regular file for reading. It cannot hang on a fifo, and follows no link.
func openFile(r *os.Root, name string) (*os.File, fs.FileInfo, error) {
	before, err := r.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a file but %s", name, kind(before.Mode()))
	}
	f, err := r.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || !os.SameFile(before, fi)) {
		err = fmt.Errorf("%s changed while it was opened", name)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// openDir opens a directory for listing or syncing.
func openDir(r *os.Root, dir string) (*os.File, error) {
	return r.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_DIRECTORY, 0)
}

// entries calls fn for every visible name of dir, a bounded number of them at a time in memory.
func (d *Dir) entries(ctx context.Context, dir string, fn func(r *os.Root, e fs.DirEntry) (more bool)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := d.open()
	if err != nil {
		return err
	}
	defer r.Close()
	if found, err := checkDir(r, dir); err != nil || !found {
		return err
	}
	f, err := openDir(r, dir)
	if err != nil {
		return mediumError(err)
	}
	defer f.Close()
	for {
		batch, err := f.ReadDir(512)
		for _, e := range batch {
			if name := e.Name(); name[0] != '.' && name[0] != '~' && !fn(r, e) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err := firstErr(ctx.Err(), err); err != nil {
			return mediumError(err)
		}
	}
}

// List implements Folder.
func (d *Dir) List(ctx context.Context, dir string) ([]Entry, error) {
	var files []Entry
	err := d.entries(ctx, dir, func(r *os.Root, e fs.DirEntry) bool {
		fi, err := e.Info() // does not follow links
		if err == nil && fi.Mode().IsRegular() {
			files = append(files, Entry{Name: e.Name(), Size: fi.Size()})
		}
		return len(files) < maxListed
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", filepath.Join(d.root, dir), err)
	}
	return files, nil
}

// Dirs implements Folder.
func (d *Dir) Dirs(ctx context.Context, dir string) ([]string, error) {
	var dirs []string
	err := d.entries(ctx, dir, func(r *os.Root, e fs.DirEntry) bool {
		fi, err := r.Lstat(path.Join(dir, e.Name()))
		if err == nil && fi.IsDir() {
			dirs = append(dirs, e.Name())
		}
		return len(dirs) < maxListed
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", filepath.Join(d.root, dir), err)
	}
	return dirs, nil
}

// Get implements Folder.
func (d *Dir) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	if err := firstErr(ctx.Err(), checkName(name)); err != nil {
		return nil, err
	}
	r, err := d.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if found, err := checkDir(r, dir); err != nil || !found {
		return nil, firstErr(err, fmt.Errorf("open %s: %w", path.Join(dir, name), fs.ErrNotExist))
	}
	f, _, err := openFile(r, path.Join(dir, name))
	if err != nil {
		return nil, mediumError(err)
	}
	return f, nil
}

// Remove implements Folder.
func (d *Dir) Remove(ctx context.Context, dir, name string) error {
	if err := firstErr(ctx.Err(), checkName(name)); err != nil {
		return err
	}
	r, err := d.open()
	if err != nil {
		return err
	}
	defer r.Close()
	if found, err := checkDir(r, dir); err != nil || !found {
		return err
	}
	if err := r.Remove(path.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return mediumError(err)
	}
	return nil
}
