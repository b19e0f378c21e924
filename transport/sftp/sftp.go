// Package sftp is the carrier sftp: a folder on a machine that is reached by ssh and needs nothing else there, as a shell
// account, a NAS or a hoster's drop box. The system's ssh is run, so that its configuration, agent and hardware keys count.
package sftp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"mochila/transport"
)

// Scheme is the carrier sftp.
var Scheme = transport.Scheme{Name: "sftp", Form: "sftp:user@host/srv/mochila", Parse: parse}

func parse(rest string, opts url.Values) (transport.Carrier, error) {
	host, dir, found := strings.Cut(rest, "/")
	dir = strings.TrimSuffix("/"+dir, "/")
	if home, ok := strings.CutPrefix(dir, "/~/"); ok {
		dir = home
	}
	if !found || dir == "" || dir == "/~" || strings.ContainsFunc(dir, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return transport.Carrier{}, transport.WithHint(fmt.Errorf("%q is not [USER@]HOST[:PORT]/PATH", rest),
			"as in sftp:user@host/srv/mochila, or sftp:user@host/~/mochila below the login directory")
	}
	argv, err := transport.SSHCommand(host, opts, "-s")
	if err != nil {
		return transport.Carrier{}, err
	}
	name := "sftp:" + rest
	f := &Folder{name: name, root: path.Clean(dir), ssh: transport.NewCommand(name, append(argv, "sftp")...), swept: map[string]bool{}}
	f.Call = f.open
	return transport.Carrier{Folder: f}, nil
}

// Folder is a directory of a remote machine. Each operation is a session of its own; Open makes one for several.
type Folder struct {
	transport.Calls
	name, root string
	ssh        *transport.Command

	mu    sync.Mutex
	swept map[string]bool // directories whose leftovers were removed by this process
}

// String is the carrier URL without options.
func (f *Folder) String() string { return f.name }

// open calls up.
func (f *Folder) open(ctx context.Context) (transport.Folder, func(), error) {
	stream, err := f.ssh.Dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	client, err := sftp.NewClientPipe(stream, stream, sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true))
	if err != nil {
		stop()
		stream.Close()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		return nil, nil, fmt.Errorf("open %s: %w", f.name, err)
	}
	s := &session{f: f, c: client, made: map[string]bool{}}
	end := func() {
		stop()
		client.Close()
		stream.Close()
	}
	if fi, err := client.Stat(f.root); err != nil || !fi.IsDir() {
		end()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if err == nil {
			err = errors.New("it is not a directory")
		}
		return nil, nil, transport.WithHint(fmt.Errorf("open %s: %s: %w", f.name, f.root, err), "make it there; mochila makes nothing above its own folder")
	}
	return s, end, nil
}

// session is the folder while a connection stands. It is safe for concurrent use.
type session struct {
	f *Folder
	c *sftp.Client

	mu   sync.Mutex
	made map[string]bool // directories that are there
}

func (s *session) at(parts ...string) string {
	return path.Join(append([]string{s.f.root}, parts...)...)
}

// trouble prefers the reason of a cancelled operation.
func trouble(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Put implements transport.Folder: temporary file, length, fsync where the server can, rename over what is there.
func (s *session) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.makeDir(dir); err != nil {
		return trouble(ctx, fmt.Errorf("make %s: %w", s.at(dir), err))
	}
	goal := s.at(dir, name)
	if _, err := transport.ParseID(name); err == nil {
		if fi, err := s.c.Lstat(goal); err == nil && fi.Mode().IsRegular() && fi.Size() == size {
			return nil
		}
	}
	s.sweep(dir)
	temp := s.at(dir, transport.TempName())
	src := transport.Exactly(r, size)
	err := s.write(temp, size, src)
	if err == nil {
		if err = s.c.PosixRename(temp, goal); errors.Is(err, sftp.ErrSSHFxOpUnsupported) || isFailure(err) {
			s.c.Remove(goal) // old servers do not rename over a file; readers verify what they see meanwhile
			err = s.c.Rename(temp, goal)
		}
	}
	if err == nil {
		return nil
	}
	s.c.Remove(temp)
	if cause := src.Err(); cause != nil {
		return cause
	}
	if v, e := s.c.StatVFS(s.at()); e == nil && v.FreeSpace() < uint64(size) {
		err = fmt.Errorf("%w: %w", transport.ErrFull, err)
	}
	return trouble(ctx, fmt.Errorf("write %s: %w", goal, err))
}

func isFailure(err error) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxFailure
}

// write writes all of src to a new file and makes sure that it is there in its length.
func (s *session) write(name string, size int64, src io.Reader) error {
	f, err := s.c.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.ReadFromWithConcurrency(src, 16)
	if err == nil {
		if err = f.Sync(); errors.Is(err, sftp.ErrSSHFxOpUnsupported) {
			err = nil
		}
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	fi, err := s.c.Lstat(name)
	if err == nil && fi.Size() != size {
		err = fmt.Errorf("%d bytes are there, %d were written", fi.Size(), size)
	}
	return err
}

// makeDir makes a directory below the root, which exists.
func (s *session) makeDir(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made[dir] {
		return nil
	}
	if err := s.c.MkdirAll(s.at(dir)); err != nil {
		return err
	}
	s.made[dir] = true
	return nil
}

// sweep removes what uploads of an earlier life left, once per directory and process.
func (s *session) sweep(dir string) {
	s.f.mu.Lock()
	done := s.f.swept[dir]
	s.f.swept[dir] = true
	s.f.mu.Unlock()
	if done {
		return
	}
	files, err := s.c.ReadDir(s.at(dir))
	if err != nil {
		return
	}
	for _, fi := range files {
		if transport.IsTemp(fi.Name()) && time.Since(fi.ModTime()) > 24*time.Hour {
			s.c.Remove(s.at(dir, fi.Name()))
		}
	}
}

// read lists a directory; a missing one is empty.
func (s *session) read(ctx context.Context, dir string) ([]os.FileInfo, error) {
	if err := transport.CheckPath(dir, ""); err != nil {
		return nil, err
	}
	files, err := s.c.ReadDirContext(ctx, s.at(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, trouble(ctx, fmt.Errorf("list %s: %w", s.at(dir), err))
	}
	return files[:min(len(files), transport.MaxListed)], nil
}

// List implements transport.Folder.
func (s *session) List(ctx context.Context, dir string) ([]transport.Entry, error) {
	files, err := s.read(ctx, dir)
	var all []transport.Entry
	for _, fi := range files {
		if fi.Mode().IsRegular() && !transport.Hidden(fi.Name()) {
			all = append(all, transport.Entry{Name: fi.Name(), Size: fi.Size()})
		}
	}
	return all, err
}

// Dirs implements transport.Folder.
func (s *session) Dirs(ctx context.Context, dir string) ([]string, error) {
	files, err := s.read(ctx, dir)
	var all []string
	for _, fi := range files {
		if fi.IsDir() && !transport.Hidden(fi.Name()) {
			all = append(all, fi.Name())
		}
	}
	return all, err
}

// readAhead is how much of a file is asked for at a time: enough for a long line.
const readAhead = 1 << 20

// Get implements transport.Folder.
func (s *session) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	if err := transport.CheckFile(dir, name); err != nil {
		return nil, err
	}
	at := s.at(dir, name)
	fi, err := s.c.Lstat(at)
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", at)
	}
	if err != nil {
		return nil, trouble(ctx, err)
	}
	f, err := s.c.Open(at)
	if err != nil {
		return nil, trouble(ctx, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{bufio.NewReaderSize(f, int(min(fi.Size()+1, readAhead))), f}, nil
}

// Remove implements transport.Folder.
func (s *session) Remove(ctx context.Context, dir, name string) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	if err := s.c.Remove(s.at(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return trouble(ctx, err)
	}
	return nil
}

// Flush implements transport.Folder: each file was made durable where the server can.
func (s *session) Flush(ctx context.Context) error { return ctx.Err() }
