// Package rclone is the carrier rclone: whatever the program rclone reaches, some seventy kinds of stores and clouds, is a
// folder. The program must be installed; its remotes and their secrets are in its own configuration.
//
// Nothing is taken for granted of a store that is reached so: a file may be seen under its name before it is whole, and
// what is read is compared with its name. What was written is looked at once more before it counts as sent.
package rclone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os/exec"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"mochila/transport"
)

// Scheme is the carrier rclone.
var Scheme = transport.Scheme{Name: "rclone", Form: "rclone:REMOTE:PATH", Parse: parse}

func parse(rest string, opts url.Values) (transport.Carrier, error) {
	i := strings.LastIndexByte(rest, ':')
	bad := func(r rune) bool { return r < ' ' || r == 0x7f }
	if i < 1 || rest[0] == '-' || strings.ContainsFunc(rest, bad) {
		return transport.Carrier{}, transport.WithHint(fmt.Errorf("%q is not REMOTE:PATH", rest), "as in rclone:drive:net; rclone listremotes shows what there is")
	}
	f := &Folder{remote: strings.TrimSuffix(rest, "/"), fresh: map[string]map[string]int64{}}
	if file := transport.Take(opts, "config"); file != "" {
		if !path.IsAbs(file) {
			return transport.Carrier{}, fmt.Errorf("config=%q is not an absolute path", file)
		}
		f.flags = []string{"--config", file}
	}
	return transport.Carrier{Folder: f}, nil
}

// Folder is a folder of a remote. It is safe for concurrent use; each operation runs the program once.
type Folder struct {
	remote string
	flags  []string

	turn sync.Mutex // of uploads: two to one name would damage each other on some remotes

	mu    sync.Mutex
	fresh map[string]map[string]int64 // by directory and name: sizes of what was written and not looked at yet
}

// String is the carrier URL without options.
func (f *Folder) String() string { return "rclone:" + f.remote }

func (f *Folder) at(parts ...string) string {
	tail := path.Join(parts...)
	if strings.HasSuffix(f.remote, ":") {
		return f.remote + tail
	}
	return f.remote + "/" + tail
}

// words keeps the end of what the program says.
type words struct{ b []byte }

func (w *words) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	if n := len(w.b) - 2000; n > 0 {
		w.b = append(w.b[:0], w.b[n:]...)
	}
	return len(p), nil
}

// run is one call of the program under way.
type run struct {
	*exec.Cmd
	f    *Folder
	ctx  context.Context
	says *words
}

func (f *Folder) command(ctx context.Context, args ...string) *run {
	fixed := []string{"--ask-password=false", "--quiet", "--retries", "1", "--low-level-retries", "4"}
	cmd := exec.CommandContext(ctx, "rclone", append(append(fixed, f.flags...), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	says := &words{}
	cmd.Stderr = says
	return &run{cmd, f, ctx, says}
}

const (
	exitNoDir  = 3
	exitNoFile = 4
)

// trouble says what became of a call that ended with err.
func (r *run) trouble(err error) error {
	if err == nil {
		return nil
	}
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return transport.WithHint(fmt.Errorf("run rclone: %w", err), "apt install rclone")
	}
	said := strings.Join(strings.Fields(string(r.says.b)), " ")
	says := func(texts ...string) bool {
		for _, x := range texts {
			if strings.Contains(strings.ToLower(said), strings.ToLower(x)) {
				return true
			}
		}
		return false
	}
	remote, _, _ := strings.Cut(r.f.remote, ":")
	err = fmt.Errorf("rclone: %s (%w)", said, err)
	switch code := r.ProcessState.ExitCode(); {
	case code == exitNoDir, code == exitNoFile, says("directory not found", "object not found"):
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case says("didn't find section in config file"):
		return transport.WithHint(err, "rclone listremotes, as the daemon's user, shows what there is; config=/FILE takes another configuration")
	case says("unable to decrypt configuration", "RCLONE_CONFIG_PASS"):
		return transport.WithHint(err, "the configuration has a password: give the daemon RCLONE_CONFIG_PASS or RCLONE_PASSWORD_COMMAND")
	case says("no space left", "quota exceeded", "storageQuotaExceeded", "insufficient_space", "QuotaExceeded"):
		return fmt.Errorf("%w: %w", transport.ErrFull, err)
	case says("no such host", "connection refused", "i/o timeout", "no route to host", "network is unreachable", "couldn't connect"):
		return fmt.Errorf("%w: %w", transport.ErrAbsent, err)
	case says("invalid_grant", "token expired", "empty token", "InvalidAccessKeyId", "AccessDenied", "401", "403", "Forbidden", "Unauthorized", "unable to authenticate"):
		return transport.WithHint(err, "the remote does not accept the credentials: rclone config reconnect %s:, then rclone lsd %s:", remote, remote)
	}
	return err
}

// Put implements transport.Folder. Flush looks whether what was written is there in its length.
func (f *Folder) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.turn.Lock()
	defer f.turn.Unlock()
	src := transport.Exactly(r, size)
	// An end of input is an end of the file to the program, so it is killed before it can see one that comes too early.
	kill, cancel := context.WithCancel(ctx)
	defer cancel()
	c := f.command(kill, "rcat", "--size", fmt.Sprint(size), f.at(dir, name))
	in, err := c.StdinPipe()
	if err != nil {
		return fmt.Errorf("run rclone: %w", err)
	}
	if err := c.Start(); err != nil {
		return c.trouble(err)
	}
	if _, err := io.Copy(in, src); src.Err() != nil {
		cancel()
		c.Wait()
		f.drop(ctx, dir, name)
		return src.Err()
	} else if err == nil {
		in.Close()
	}
	if err := c.Wait(); err != nil {
		c.ctx = ctx
		err = c.trouble(err)
		f.drop(ctx, dir, name)
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fresh[dir] == nil {
		f.fresh[dir] = map[string]int64{}
	}
	f.fresh[dir][name] = size
	return nil
}

// drop deletes what a failed upload may have left, even when ctx is done.
func (f *Folder) drop(ctx context.Context, dir, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	f.RemoveAll(ctx, dir, []string{name})
}

// Flush implements transport.Folder: what was put since the last one is there, in its length.
func (f *Folder) Flush(ctx context.Context) error {
	f.mu.Lock()
	fresh := f.fresh
	f.fresh = map[string]map[string]int64{}
	f.mu.Unlock()
	var first error
	for dir, files := range fresh {
		there, err := f.List(ctx, dir)
		if err != nil {
			return fmt.Errorf("look at what was written: %w", err)
		}
		for _, e := range there {
			if e.Size == files[e.Name] || e.Size < 0 { // some remotes do not tell
				delete(files, e.Name)
			}
		}
		for name, size := range files {
			f.drop(ctx, dir, name)
			if first == nil {
				first = fmt.Errorf("%s is not there with its %d bytes after rclone wrote it", f.at(dir, name), size)
			}
		}
	}
	return first
}

// entry is one element of what lsjson prints.
type entry struct {
	Name  string
	Size  int64
	IsDir bool
}

// list calls fn for each name in a directory; a missing one is empty.
func (f *Folder) list(ctx context.Context, dir string, fn func(entry) (more bool)) error {
	if err := transport.CheckPath(dir, ""); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := f.command(ctx, "lsjson", "--no-modtime", "--no-mimetype", f.at(dir))
	out, err := c.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run rclone: %w", err)
	}
	if err := c.Start(); err != nil {
		return c.trouble(err)
	}
	d := json.NewDecoder(out)
	_, bad := d.Token() // [
	for bad == nil && d.More() {
		var e entry
		if bad = d.Decode(&e); bad == nil && !transport.Hidden(e.Name) && !fn(e) {
			cancel()
			c.Wait()
			return nil
		}
	}
	io.Copy(io.Discard, out)
	err = c.trouble(c.Wait())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && bad != nil {
		err = fmt.Errorf("read the output of rclone lsjson: %w", bad)
	}
	return err
}

// List implements transport.Folder.
func (f *Folder) List(ctx context.Context, dir string) ([]transport.Entry, error) {
	var all []transport.Entry
	err := f.list(ctx, dir, func(e entry) bool {
		if !e.IsDir {
			all = append(all, transport.Entry{Name: e.Name, Size: e.Size})
		}
		return len(all) < transport.MaxListed
	})
	return all, err
}

// Dirs implements transport.Folder.
func (f *Folder) Dirs(ctx context.Context, dir string) ([]string, error) {
	var all []string
	err := f.list(ctx, dir, func(e entry) bool {
		if e.IsDir {
			all = append(all, e.Name)
		}
		return len(all) < transport.MaxListed
	})
	return all, err
}

// Get implements transport.Folder.
func (f *Folder) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	if err := transport.CheckFile(dir, name); err != nil {
		return nil, err
	}
	kill, cancel := context.WithCancel(ctx)
	c := f.command(kill, "cat", f.at(dir, name))
	c.ctx = ctx
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		cancel()
		return nil, c.trouble(err)
	}
	r := &reader{run: c, out: out, cancel: cancel}
	n, err := io.ReadFull(out, r.first[:]) // a missing file shows at once; no packet is empty
	if n == 0 {
		err = c.trouble(c.Wait())
		cancel()
		if err == nil {
			err = fmt.Errorf("%s is empty: %w", f.at(dir, name), transport.ErrIncomplete)
		}
		return nil, err
	}
	r.left = r.first[:]
	return r, err
}

// reader is the output of the program. An error of the program is one of the reader.
type reader struct {
	*run
	out    io.Reader
	cancel context.CancelFunc
	first  [1]byte
	left   []byte
	ended  bool
}

func (r *reader) Read(b []byte) (int, error) {
	if len(r.left) > 0 {
		n := copy(b, r.left)
		r.left = r.left[n:]
		return n, nil
	}
	if r.ended {
		return 0, io.EOF
	}
	n, err := r.out.Read(b)
	if err == nil {
		return n, nil
	}
	r.ended = true
	if e := r.trouble(r.Wait()); e != nil {
		return n, e
	}
	return n, err
}

// Close ends the program.
func (r *reader) Close() error {
	r.cancel()
	if !r.ended {
		r.ended = true
		r.Wait()
	}
	return nil
}

// Remove implements transport.Folder.
func (f *Folder) Remove(ctx context.Context, dir, name string) error {
	return f.RemoveAll(ctx, dir, []string{name})
}

// RemoveAll implements transport.Sweeper.
func (f *Folder) RemoveAll(ctx context.Context, dir string, names []string) error {
	var list bytes.Buffer
	for _, name := range names {
		if err := transport.CheckFile(dir, name); err != nil {
			return err
		}
		fmt.Fprintf(&list, "%s\n", name)
	}
	c := f.command(ctx, "delete", "--files-from-raw", "-", f.at(dir))
	c.Stdin = &list
	err := c.trouble(c.Run())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
