package durable

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// TempPrefix begins the name of every temporary file of WriteFile: readers of a folder skip such names, and whoever
// owns the folder removes them at start.
const TempPrefix = ".tmp-"

// WriteFile puts a file with the bytes that write produces at path. When it returns nil, content and name survive a
// power cut; when it fails, path is as it was before, and the temporary file is gone (or, after a crash, lies
// beside it under TempPrefix).
func WriteFile(fsys FS, path string, perm fs.FileMode, write func(io.Writer) error) error {
	dir := filepath.Dir(path)
	var salt [8]byte
	rand.Read(salt[:])
	tmp := filepath.Join(dir, TempPrefix+hex.EncodeToString(salt[:]))
	f, err := fsys.Create(tmp, perm)
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	if err := fill(f, write); err != nil {
		fsys.Remove(tmp) // best effort: the owner of the folder removes leftovers at start
		return fmt.Errorf("writing %q: %w", path, err)
	}
	if err := fsys.Rename(tmp, path); err != nil {
		fsys.Remove(tmp)
		return fmt.Errorf("writing %q: %w", path, err)
	}
	if err := fsys.SyncDir(dir); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return nil
}

// fill writes, checks the length, syncs and closes f.
func fill(f File, write func(io.Writer) error) error {
	c := &counter{w: f}
	if err := write(c); err != nil {
		f.Close()
		return err
	}
	return Seal(f, c.n)
}

// truncater is a File that can be cut short.
type truncater interface{ Truncate(size int64) error }

// Reseal is Seal for a file that was there before and may be longer. One that is much longer is cut: little content must
// not hold much of the disk.
func Reseal(f File, size int64) error {
	st, err := f.Stat()
	if err == nil && st.Size() < size {
		err = fmt.Errorf("wrote %d bytes, the file has %d", size, st.Size())
	}
	if t, ok := f.(truncater); ok && err == nil && st.Size() > max(4*size, size+64<<10) {
		err = t.Truncate(size)
	}
	return sealed(f, err)
}

// Seal checks that f has size bytes, syncs and closes it: the middle part of a durable write, for callers who keep the
// temporary file open for long. f is closed in any case.
func Seal(f File, size int64) error {
	st, err := f.Stat()
	if err == nil && st.Size() != size {
		err = fmt.Errorf("wrote %d bytes, the file has %d", size, st.Size())
	}
	return sealed(f, err)
}

// sealed syncs f unless err is set, and closes it.
func sealed(f File, err error) error {
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// counter counts what really went through.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
