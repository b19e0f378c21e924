// Package maildrop empties the folder in which local programs leave mail while no daemon answers (docs/submission.md).
//
// Everybody may write into the folder and nobody but its owner may list it. Package submit writes a frame under a
// temporary name, syncs it, and renames it to 26 random characters; this package takes such files one by one: it
// opens them without following links or waiting for a writer, believes only the owner that the kernel names, commits
// the mail, and only then removes the file. Whatever else lies there (links, pipes, broken or huge files) neither
// stops it nor gets through.
package maildrop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/submit"
	"mochila/internal/submit/frame"
)

// Desk is where the mail goes.
type Desk interface {
	// Submit begins to take a mail. name is the name of its file: a desk that stores it in the transaction of the
	// commit, and answers Seen from there, takes no mail twice when it dies between the commit and the removal.
	// m.Body may still become "BINARYMIME" before Commit is called. An error that is a permanent *envelope.Status
	// means that the mail will never be taken: it goes to Return, else to Refuse. After any other, it stays for the next pass.
	Submit(ctx context.Context, name string, m *envelope.Mail) (frame.Intake, error)
	// Seen reports whether the mail in a file was committed before.
	Seen(name string) bool
	// Forget says that these files are durably gone.
	Forget(names []string) error
	// Refuse keeps what is no mail for a person to look at. An error leaves it in the maildrop.
	Refuse(reason, from string, r io.Reader) error
}

// Returner is a Desk that can send back a mail which it refused for ever: whoever wrote it was told that it is taken.
type Returner interface {
	// Return is Submit for such a mail; why is the refusal. An error is treated as one of Submit.
	Return(ctx context.Context, name string, m *envelope.Mail, why *envelope.Status) (frame.Intake, error)
}

// Options of a Dir. Zero values take the defaults.
type Options struct {
	MaxSize int64                  // content bytes of one mail; default 50 MiB
	Stale   time.Duration          // age from which unfinished files go; default 7 days
	Workers int                    // files taken at a time, so that they share syncs; default 8
	Owner   int64                  // uid trusted beside root
	User    func(uid int64) string // login name; required
	Log     *slog.Logger           // nil discards
}

// Dir is a maildrop. One goroutine at a time may call Collect.
type Dir struct {
	path string
	desk Desk
	opt  Options

	odd map[string]bool // entries that cannot be removed, and were reported
}

// nameLen is the length of the names that sendmail chooses: 128 bits in base32.
const nameLen = 26

// Open makes the folder, with the permissions it needs, removes what a killed owner left there, and writes
// submit.DomainFile. Only the owner of the spool may call it. The parent folders are created
// so that everybody may pass them.
func Open(path, domain string, desk Desk, o Options) (*Dir, error) {
	if o.MaxSize <= 0 {
		o.MaxSize = 50 << 20
	}
	if o.Stale <= 0 {
		o.Stale = 7 * 24 * time.Hour
	}
	if o.Workers <= 0 {
		o.Workers = 8
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, fmt.Errorf("maildrop: %w", err)
	}
	if err := os.Chmod(path, 0o733|fs.ModeSticky); err != nil {
		return nil, fmt.Errorf("maildrop: %w", err)
	}
	d := &Dir{path: path, desk: desk, opt: o, odd: map[string]bool{}}
	if err := d.tidy(); err != nil {
		return nil, err
	}
	err := d.writeDomain(domain)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		// A daemon that does not start on a full disk makes no room either.
		o.Log.Warn("maildrop: sendmail goes on with what it knew", "err", err)
		err = nil
	}
	return d, err
}

// domainTemp begins the name of the domain file while it is written. No name that sendmail gives begins so.
const domainTemp = submit.TempPrefix + submit.DomainFile + "-"

// tidy removes what daemons that were killed in writeDomain left: nobody but the one that opens the folder writes there
// under such a name. What cannot be removed, somebody else put there; it is reported, and stops nobody.
func (d *Dir) tidy() error {
	dir, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("maildrop: %w", err)
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if strings.HasPrefix(name, domainTemp) {
				d.junk(name, "left by a daemon that was killed")
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("maildrop: %w", err)
		}
	}
}

// writeDomain replaces whatever somebody may have put under that name.
func (d *Dir) writeDomain(domain string) error {
	f, err := os.CreateTemp(d.path, domainTemp+"*")
	if err != nil {
		return fmt.Errorf("maildrop: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintf(f, "%s\n%d\n", domain, d.opt.MaxSize)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(d.path, submit.DomainFile))
	}
	if err != nil {
		return fmt.Errorf("maildrop: writing the domain: %w", err)
	}
	return nil
}

// Path is the folder, for a watcher.
func (d *Dir) Path() string { return d.path }

// Collect takes everything that is ready and returns how many mails that were. An error means that some stayed
// behind and the next pass should come later; what is wrong with single files is no error but goes to Refuse or the
// log.
func (d *Dir) Collect(ctx context.Context, now time.Time) (int, error) {
	dir, err := os.Open(d.path)
	if err != nil {
		return 0, fmt.Errorf("maildrop: %w", err)
	}
	defer dir.Close()
	total := 0
	for {
		names, rerr := dir.Readdirnames(1024)
		taken, gone, err := d.batch(ctx, names, now)
		total += taken
		if len(gone) > 0 {
			if serr := dir.Sync(); serr != nil {
				return total, errors.Join(err, fmt.Errorf("maildrop: %w", serr))
			}
			if ferr := d.desk.Forget(gone); ferr != nil {
				err = errors.Join(err, fmt.Errorf("maildrop: %w", ferr))
			}
		}
		if err != nil {
			return total, err
		}
		if errors.Is(rerr, io.EOF) {
			return total, nil
		}
		if rerr != nil {
			return total, fmt.Errorf("maildrop: %w", rerr)
		}
	}
}

// batch takes some files in parallel. gone are those whose mail is committed and whose name is removed.
func (d *Dir) batch(ctx context.Context, names []string, now time.Time) (taken int, gone []string, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan string)
	for range min(d.opt.Workers, len(names)) {
		wg.Go(func() {
			for name := range work {
				ok, done, terr := d.take(ctx, name)
				mu.Lock()
				if ok {
					taken++
				}
				if done {
					gone = append(gone, name)
				}
				err = errors.Join(err, terr)
				mu.Unlock()
			}
		})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		switch {
		case name == submit.DomainFile:
		case strings.HasPrefix(name, submit.TempPrefix):
			d.sweep(name, now)
		case !properName(name):
			d.junk(name, "not a name that sendmail gives")
		default:
			mu.Lock()
			failed := err != nil
			mu.Unlock()
			if !failed {
				work <- name
			}
		}
	}
	close(work)
	wg.Wait()
	return taken, gone, errors.Join(err, ctx.Err())
}

func properName(name string) bool {
	if len(name) != nameLen {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; !('a' <= c && c <= 'z' || '2' <= c && c <= '7') {
			return false
		}
	}
	return true
}

// sweep removes what a sendmail that was killed left behind.
func (d *Dir) sweep(name string, now time.Time) {
	path := filepath.Join(d.path, name)
	fi, err := os.Lstat(path)
	if err != nil || now.Sub(fi.ModTime()) < d.opt.Stale && fi.Mode().IsRegular() {
		return
	}
	d.junk(name, "unfinished")
}

// junk removes an entry that is no submission. What cannot be removed (a folder with something in it) is reported
// once.
func (d *Dir) junk(name, why string) {
	if d.odd[name] {
		return
	}
	if len(d.odd) > 1000 {
		clear(d.odd) // better to report again than to remember without end
	}
	if err := os.Remove(filepath.Join(d.path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.odd[name] = true
		d.opt.Log.Warn("maildrop: cannot remove", "name", name, "why", why, "err", err)
		return
	}
	d.opt.Log.Warn("maildrop: removed", "name", name, "why", why)
}

// take submits one file. taken: a mail was committed now. gone: its name was removed after a commit, now or in an
// earlier life.
func (d *Dir) take(ctx context.Context, name string) (taken, gone bool, err error) {
	path := filepath.Join(d.path, name)
	if d.desk.Seen(name) {
		return false, remove(path) == nil, nil
	}
	f, uid, why, err := d.open(path)
	if err != nil {
		return false, false, err
	}
	if f == nil {
		if why != "" {
			d.opt.Log.Warn("maildrop: removed", "name", name, "why", why, "err", remove(path))
		}
		return false, false, nil
	}
	defer f.Close()
	id, err := d.submit(ctx, name, f, uid, d.desk.Submit)
	if err == nil {
		d.opt.Log.Debug("maildrop: taken", "name", name, "uid", uid, "id", id)
		return true, remove(path) == nil, nil
	}
	reason, permanent := refusal(err)
	if !permanent {
		return false, false, fmt.Errorf("maildrop: %s of uid %d: %w", name, uid, err)
	}
	if id, ok, err := d.giveBack(ctx, name, f, uid, err); err != nil || ok {
		if err == nil {
			d.opt.Log.Info("maildrop: returned to its sender", "name", name, "uid", uid, "id", id, "why", reason)
			return true, remove(path) == nil, nil
		}
		return false, false, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, false, fmt.Errorf("maildrop: %w", err)
	}
	if err := d.desk.Refuse("maildrop: "+reason, fmt.Sprintf("uid:%d", uid), io.LimitReader(f, d.maxFile())); err != nil {
		return false, false, fmt.Errorf("maildrop: quarantine: %w", err)
	}
	return false, false, remove(path)
}

// giveBack returns a whole mail that the desk will never take to its sender. It reports whether that was possible.
func (d *Dir) giveBack(ctx context.Context, name string, f *os.File, uid int64, cause error) (id string, ok bool, err error) {
	var why *envelope.Status
	desk, can := d.desk.(Returner)
	if !can || !errors.As(cause, &why) {
		return "", false, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", false, fmt.Errorf("maildrop: %w", err)
	}
	id, err = d.submit(ctx, name, f, uid, func(ctx context.Context, name string, m *envelope.Mail) (frame.Intake, error) {
		return desk.Return(ctx, name, m, why)
	})
	if err != nil {
		if _, permanent := refusal(err); permanent {
			return "", false, nil
		}
		return "", false, fmt.Errorf("maildrop: return %s of uid %d: %w", name, uid, err)
	}
	return id, true, nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("maildrop: %w", err)
	}
	return nil
}

// maxFile is the size of the largest frame that can be good.
func (d *Dir) maxFile() int64 {
	return d.opt.MaxSize + d.opt.MaxSize/1024 + submit.MaxRecord + 64
}

// open opens a file if it may be a submission. A nil file without a reason is none of ours any more.
func (d *Dir) open(path string) (f *os.File, uid int64, why string, err error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return nil, 0, "", nil
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.EISDIR):
		return nil, 0, "not a regular file", nil
	case errors.Is(err, syscall.EACCES):
		return nil, 0, "not readable", nil
	case err != nil:
		return nil, 0, "", fmt.Errorf("maildrop: %s: %w", path, err)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		syscall.Close(fd)
		return nil, 0, "", fmt.Errorf("maildrop: %s: %w", path, err)
	}
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		why = "not a regular file"
	case st.Nlink != 1:
		// It may be another user's file, linked here: neither its owner nor its content says anything.
		why = "a file with several names"
	case st.Size > d.maxFile():
		why = fmt.Sprintf("%d bytes, more than any submission", st.Size)
	}
	if why != "" {
		syscall.Close(fd)
		return nil, 0, why, nil
	}
	return os.NewFile(uintptr(fd), path), int64(st.Uid), "", nil
}

func (d *Dir) submit(ctx context.Context, name string, f *os.File, uid int64, begin func(context.Context, string, *envelope.Mail) (frame.Intake, error)) (string, error) {
	br := bufio.NewReaderSize(io.LimitReader(f, d.maxFile()), 32<<10)
	fr := frame.NewReader(br)
	q, err := fr.Request()
	if err != nil {
		return "", err
	}
	if q.Verb != submit.VerbSubmit {
		return "", fmt.Errorf("%w: a request that is no mail", frame.ErrFormat)
	}
	q.Stamp(frame.Submitter{UID: uid, Name: d.opt.User(uid), Trusted: uid == 0 || uid == d.opt.Owner})
	content := fr.Content(d.opt.MaxSize)
	content.Last = func() error {
		if _, err := br.ReadByte(); err != io.EOF {
			return fmt.Errorf("%w: bytes behind its end", frame.ErrFormat)
		}
		return nil
	}
	in, err := begin(ctx, name, q.Mail)
	if err != nil {
		return "", err
	}
	return content.Into(ctx, in, q.Mail)
}

// refusal tells whether an error is for ever.
func refusal(err error) (reason string, permanent bool) {
	var st *envelope.Status
	switch {
	case errors.As(err, &st):
		return st.Error(), !st.Temporary()
	case errors.Is(err, frame.ErrFormat), errors.Is(err, frame.ErrTooBig):
		return err.Error(), true
	}
	return "", false
}
