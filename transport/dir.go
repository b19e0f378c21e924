package transport

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
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

// Put implements Folder: free space is checked, then temporary file, fsync, read back and compare, rename, fsync
// of the directory. A file whose name is a packet name and whose bytes hash to it is left as it is.
func (d *Dir) Put(ctx context.Context, dir, name string, size int64, src io.Reader) error {
	if err := firstErr(ctx.Err(), checkName(name)); err != nil {
		return err
	}
	r, err := d.open()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := d.makeDir(r, dir); err != nil {
		return mediumError(err)
	}
	to := path.Join(dir, name)
	there, err := r.Lstat(to)
	switch {
	case err == nil && there.IsDir():
		return fmt.Errorf("%s is a directory", filepath.Join(d.root, to))
	case err == nil && isPacketFile(ctx, r, to, name, size):
		return nil
	}
	d.sweep(r, dir)
	if free, err := freeSpace(r); err == nil && free < size+spareRoom {
		return fmt.Errorf("%s: %d bytes free, %d needed: %w", d.root, free, size, ErrFull)
	}
	temp := path.Join(dir, tempName())
	if err := writeFile(ctx, r, temp, size, src); err != nil {
		r.Remove(temp)
		return mediumError(err)
	}
	if err := r.Rename(temp, to); err != nil {
		r.Remove(temp)
		return mediumError(err)
	}
	return mediumError(syncDir(r, dir))
}

// isPacketFile reports whether a file is there already with the bytes that its name promises.
func isPacketFile(ctx context.Context, r *os.Root, at, name string, size int64) bool {
	id, err := ParseID(name)
	if err != nil {
		return false
	}
	f, fi, err := openFile(r, at)
	if err != nil {
		return false
	}
	defer f.Close()
	if fi.Size() != size {
		return false
	}
	_, err = io.Copy(io.Discard, newVerifier(ctx, f, id, size, ErrIncomplete))
	return err == nil
}

func tempName() string {
	var b [12]byte
	rand.Read(b[:])
	return tempPrefix + hex.EncodeToString(b[:])
}

// writeFile writes exactly size bytes to a new file, makes them durable and reads them back.
func writeFile(ctx context.Context, r *os.Root, name string, size int64, src io.Reader) error {
	f, err := r.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	wrote := sha256.New()
	n, err := copyContext(ctx, io.MultiWriter(f, wrote), io.LimitReader(src, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes came, %d were announced: %w", n, size, errDamaged)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = firstErr(err, f.Close()); err != nil {
		return err
	}
	back, _, err := openFile(r, name)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	defer back.Close()
	read := sha256.New()
	if _, err := copyContext(ctx, read, back); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if string(read.Sum(nil)) != string(wrote.Sum(nil)) {
		return fmt.Errorf("%s: what was written does not read back the same: the medium is failing", name)
	}
	return nil
}

// copyContext is io.Copy that stops when ctx is done.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, 64<<10)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := r.Read(buf)
		if n > 0 {
			m, err := w.Write(buf[:n])
			total += int64(m)
			if err != nil {
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// makeDir makes dir below the existing root, durably, with the note for the finder at the top.
func (d *Dir) makeDir(r *os.Root, dir string) error {
	found, err := checkDir(r, dir)
	if err != nil || found {
		return err
	}
	parts := strings.Split(dir, "/")
	for i := range parts {
		at := path.Join(parts[:i+1]...)
		if err := r.Mkdir(at, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := syncDir(r, path.Dir(at)); err != nil {
			return err
		}
	}
	if _, err := checkDir(r, dir); err != nil {
		return err
	}
	at := path.Join(parts[0], readmeName)
	if _, err := r.Lstat(at); errors.Is(err, fs.ErrNotExist) {
		if f, err := r.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode); err == nil {
			_, err = io.WriteString(f, readme)
			if firstErr(err, f.Sync(), f.Close()) != nil {
				r.Remove(at) // a courtesy only
			}
		}
	}
	return nil
}

func syncDir(r *os.Root, dir string) error {
	f, err := openDir(r, dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return fmt.Errorf("sync directory: %w", err) // EINVAL, ENOTSUP: this file system has no such thing
	}
	return nil
}

// sweep deletes temporary files that an earlier life of this node left behind, once per directory and process.
func (d *Dir) sweep(r *os.Root, dir string) {
	d.mu.Lock()
	done := d.swept[dir]
	d.swept[dir] = true
	d.mu.Unlock()
	if done {
		return
	}
	f, err := openDir(r, dir)
	if err != nil {
		return
	}
	defer f.Close()
	for {
		batch, err := f.ReadDir(512)
		for _, e := range batch {
			fi, err := e.Info()
			if err == nil && strings.HasPrefix(e.Name(), tempPrefix) && fi.Mode().IsRegular() && time.Since(fi.ModTime()) > staleTemp {
				r.Remove(path.Join(dir, e.Name()))
			}
		}
		if err != nil {
			return
		}
	}
}

// Flush implements Folder: the whole file system of the root is written out.
func (d *Dir) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := d.open()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := openDir(r, ".")
	if err != nil {
		return mediumError(err)
	}
	defer f.Close()
	if err := syncFS(f); err != nil {
		return fmt.Errorf("flush %s: %w", d.root, mediumError(err))
	}
	return nil
}
