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
	"syscall"
	"time"

	"mochila/internal/envelope"
)

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
	temp := path.Join(dir, TempName())
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

// writeFile writes exactly size bytes to a new file, makes them durable and reads them back.
func writeFile(ctx context.Context, r *os.Root, name string, size int64, src io.Reader) error {
	f, err := r.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	wrote := envelope.NewSum()
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
	read := envelope.NewSum()
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
