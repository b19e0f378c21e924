package transport

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// What folders at the other end of a network have in common. They live in packages of their own.

// Session is a Folder that has to be called up: a FolderLink asks for it once in each contact. The methods of the
// Folder itself work, too, one call each.
type Session interface {
	Folder
	// Open returns the same folder for several operations, and what ends it.
	Open(ctx context.Context) (f Folder, end func(), err error)
}

// Calls makes a Session of a way to call up: outside of a session each operation is a call of its own.
type Calls struct {
	// Call opens a session, and returns what ends it.
	Call func(ctx context.Context) (f Folder, end func(), err error)
}

// Open implements Session.
func (c Calls) Open(ctx context.Context) (Folder, func(), error) { return c.Call(ctx) }

// once runs one operation in a session of its own.
func once[T any](ctx context.Context, c Calls, do func(Folder) (T, error)) (T, error) {
	f, end, err := c.Call(ctx)
	if err != nil {
		var zero T
		return zero, err
	}
	defer end()
	return do(f)
}

// Put implements Folder.
func (c Calls) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	_, err := once(ctx, c, func(f Folder) (any, error) { return nil, f.Put(ctx, dir, name, size, r) })
	return err
}

// List implements Folder.
func (c Calls) List(ctx context.Context, dir string) ([]Entry, error) {
	return once(ctx, c, func(f Folder) ([]Entry, error) { return f.List(ctx, dir) })
}

// Dirs implements Folder.
func (c Calls) Dirs(ctx context.Context, dir string) ([]string, error) {
	return once(ctx, c, func(f Folder) ([]string, error) { return f.Dirs(ctx, dir) })
}

// Get implements Folder. The session ends when the file is closed.
func (c Calls) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	f, end, err := c.Call(ctx)
	if err != nil {
		return nil, err
	}
	r, err := f.Get(ctx, dir, name)
	if err != nil {
		end()
		return nil, err
	}
	return &lastFile{r, end}, nil
}

// lastFile ends its session.
type lastFile struct {
	io.ReadCloser
	end func()
}

func (l *lastFile) Close() error {
	defer l.end()
	return l.ReadCloser.Close()
}

// Remove implements Folder.
func (c Calls) Remove(ctx context.Context, dir, name string) error {
	_, err := once(ctx, c, func(f Folder) (any, error) { return nil, f.Remove(ctx, dir, name) })
	return err
}

// Flush implements Folder: an operation that has ended is durable.
func (c Calls) Flush(ctx context.Context) error { return ctx.Err() }

// Sweeper is a Folder that deletes many files faster than one by one.
type Sweeper interface {
	// RemoveAll deletes files of dir; missing ones are success. After an error some may be left.
	RemoveAll(ctx context.Context, dir string, names []string) error
}

// WithHint adds advice for a person to an error: something that would help, without a full stop.
func WithHint(err error, format string, args ...any) error { return withHint(err, format, args...) }

// Take takes an option out of opts; "" when it is not there.
func Take(opts url.Values, key string) string { return take(opts, key) }

// CheckPath says what is wrong with the directory and file name of an operation on a Folder; name may be "".
func CheckPath(dir, name string) error {
	if !fs.ValidPath(dir) || dir == "." {
		return fmt.Errorf("%q is not a plain relative path", dir)
	}
	for part := range strings.SplitSeq(dir, "/") {
		if err := checkName(part); err != nil {
			return fmt.Errorf("%q is not a plain relative path", dir)
		}
	}
	if name == "" {
		return nil
	}
	return checkName(name)
}

// CheckFile is CheckPath with a name that must be there.
func CheckFile(dir, name string) error {
	if err := CheckPath(dir, name); err != nil {
		return err
	}
	return checkName(name)
}

// Hidden reports whether readers pass over a name: of temporary files and of what other programs keep for themselves.
func Hidden(name string) bool { return name == "" || name[0] == '.' || name[0] == '~' }

// TempName is a new name that readers pass over.
func TempName() string {
	var b [12]byte
	rand.Read(b[:])
	return tempPrefix + hex.EncodeToString(b[:])
}

// MaxListed is how many names one List returns at most; the rest waits until these are gone.
const MaxListed = maxListed

// ExactReader passes exactly size bytes through. If more or fewer come, it fails before the last byte is out, so that an
// upload of a known length cannot end well.
type ExactReader struct {
	r    io.Reader
	left int64
	err  error
}

// Exactly returns an ExactReader; size is greater than 0.
func Exactly(r io.Reader, size int64) *ExactReader { return &ExactReader{r: r, left: size} }

// Err is why reading ended too early; nil when it did not.
func (e *ExactReader) Err() error {
	if e.err == io.EOF {
		return nil
	}
	return e.err
}

// Read passes on what comes, and fails where the content ends early or goes on behind its size.
func (e *ExactReader) Read(b []byte) (int, error) {
	switch {
	case e.err != nil:
		return 0, e.err
	case e.left == 0:
		e.err = io.EOF
		return 0, io.EOF
	}
	if int64(len(b)) > e.left {
		b = b[:e.left]
	}
	n, err := e.r.Read(b)
	e.left -= int64(n)
	switch {
	case e.left > 0 && err == io.EOF:
		e.err = fmt.Errorf("%d bytes are missing: %w", e.left, errDamaged)
	case e.left > 0:
		e.err = err
	case err == nil: // all are there; nothing may follow
		var one [1]byte
		m, err := io.ReadFull(e.r, one[:])
		if m > 0 {
			err = fmt.Errorf("more bytes come than were announced: %w", errDamaged)
		}
		if err != io.EOF {
			e.err = err
		}
	case err != io.EOF:
		e.err = err
	}
	if e.left == 0 && e.err != nil {
		return 0, e.err
	}
	return n, e.err
}

// SecretFile reads a file that holds a secret, at most 64 KiB. It is refused where others can read it.
func SecretFile(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", withHint(fmt.Errorf("secret file %q is not an absolute path", path), "write the whole path, as in /etc/mochila/secret")
	}
	f, err := os.Open(path)
	if err != nil { // not %w: a file that is not there here must not be taken for one that is not there at the other side
		return "", withHint(fmt.Errorf("read the secret: %v", err), "make %s, readable by the daemon's user alone (mode 600)", path)
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return "", fmt.Errorf("read the secret: %w", err)
	case !fi.Mode().IsRegular():
		return "", fmt.Errorf("read the secret: %s is %s", path, kind(fi.Mode()))
	case fi.Mode().Perm()&0o077 != 0:
		return "", withHint(fmt.Errorf("read the secret: others can read %s (mode %#o)", path, fi.Mode().Perm()), "chmod 600 %s", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 64<<10+1))
	if err == nil && len(b) > 64<<10 {
		err = errors.New("it is longer than 64 KiB")
	}
	if err != nil {
		return "", fmt.Errorf("read the secret: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// IsTemp reports whether a name is one of TempName.
func IsTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }
