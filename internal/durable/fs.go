// Package durable writes files so that a power cut at any instruction leaves either the old state or the new one:
// temporary file, write, length, fsync, close, rename, fsync of the directory. It also holds the advisory lock that
// keeps two processes out of one folder, and tells how much room a disk has.
//
// The file system is an interface, so that a test can put one below that forgets whatever was not synced
// (package durabletest). It never retries a failed fsync: after one, nobody knows what the disk holds.
package durable

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// File is what the durable write needs of an open file.
type File interface {
	io.Reader
	io.Writer
	io.Seeker
	io.Closer
	// Sync returns when the content and length are on the disk; times are not waited for. The name is not: see FS.SyncDir.
	Sync() error
	Stat() (fs.FileInfo, error)
	// Name is the path it was opened with.
	Name() string
}

// FS is a file system. Its errors satisfy errors.Is for fs.ErrNotExist, fs.ErrExist and syscall numbers.
type FS interface {
	// Create makes a new file for reading and writing and fails with fs.ErrExist if the name is taken.
	Create(path string, perm fs.FileMode) (File, error)
	// OpenWrite opens a regular file that is there for reading and writing, from its start and as it is. A symbolic link
	// as last element is refused.
	OpenWrite(path string) (File, error)
	// Open opens a regular file for reading. A symbolic link as last element is refused.
	Open(path string) (File, error)
	// Rename replaces the file newpath, if there is one, in one step. It is durable after SyncDir of both folders.
	Rename(oldpath, newpath string) error
	// Remove removes a file or an empty folder. It is durable after SyncDir.
	Remove(path string) error
	// MkdirAll makes a folder and its missing parents, durably.
	MkdirAll(path string, perm fs.FileMode) error
	// SyncDir returns when the names in a folder are on the disk.
	SyncDir(path string) error
	// ReadDir lists a folder, sorted by name.
	ReadDir(path string) ([]fs.DirEntry, error)
	// Lstat tells about a name; symbolic links are not followed.
	Lstat(path string) (fs.FileInfo, error)
}

// OS is the real file system.
type OS struct{}

// Create implements FS.
func (OS) Create(path string, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, perm)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

// OpenWrite implements FS.
func (OS) OpenWrite(path string) (File, error) {
	f, err := openRegular(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

// Open implements FS. It does not hang on a fifo that somebody put in a file's place.
func (OS) Open(path string) (File, error) {
	f, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func openRegular(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if !st.Mode().IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("not a regular file: %w", fs.ErrInvalid)}
	}
	return f, nil
}

// osFile is a file that is being written.
type osFile struct {
	*os.File
	begun   int64 // so much of it is on its way to the disk
	pushing sync.Mutex
	pushed  sync.WaitGroup
}

// Sync implements File: fdatasync(2) makes content and length durable, and does not wait for the journal when only a
// time of the file has changed.
func (f *osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

// Begin implements Beginner. A disk with a full queue keeps the one who asks waiting: that is a goroutine, one at a time.
func (f *osFile) Begin(size int64) {
	from, n := f.begun, size-f.begun
	if n <= 0 || !f.pushing.TryLock() {
		return
	}
	f.begun = size
	f.pushed.Go(func() {
		defer f.pushing.Unlock()
		_ = unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WRITE) // Sync tells what is wrong
	})
}

// Close implements File.
func (f *osFile) Close() error {
	f.pushed.Wait()
	return f.File.Close()
}

// Beginner is an optional method of a File: Begin has the first size bytes, which are written, brought to the disk
// without waiting for it, so that a later Sync waits less. It promises nothing.
type Beginner interface{ Begin(size int64) }

// Rename implements FS.
func (OS) Rename(oldpath, newpath string) error { return os.Rename(oldpath, newpath) }

// Remove implements FS.
func (OS) Remove(path string) error { return os.Remove(path) }

// MkdirAll implements FS: the parent of every folder it makes is synced.
func (o OS) MkdirAll(path string, perm fs.FileMode) error {
	st, err := os.Stat(path)
	if err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := o.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !os.IsExist(err) {
		return err
	}
	return o.SyncDir(parent)
}

// SyncDir implements FS.
func (OS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		d.Close()
		return err
	}
	return d.Close()
}

// ReadDir implements FS.
func (OS) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }

// Lstat implements FS.
func (OS) Lstat(path string) (fs.FileInfo, error) { return os.Lstat(path) }
