package fspl

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"mochila/internal/durable"
)

// ErrBusy says that another program is at work on a queue or a counter.
var ErrBusy = errors.New("another program is at work on it")

// Queue is a folder of jobs: DIR/jobs, and DIR/nextseq with the number of the job that is to be processed next.
type Queue struct{ dir string }

// OpenQueue uses an existing queue, or the writing half of one (fspl queue-init --append-only), which has no nextseq.
func OpenQueue(dir string) (*Queue, error) {
	if fi, err := os.Stat(filepath.Join(dir, "jobs")); err != nil || !fi.IsDir() {
		return nil, fmt.Errorf("%s is no Filespooler queue: it has no folder jobs", dir)
	}
	return &Queue{dir}, nil
}

// InitQueue makes a queue as fspl queue-init does.
func InitQueue(dir string) (*Queue, error) {
	if err := (durable.OS{}).MkdirAll(filepath.Join(dir, "jobs"), 0o755); err != nil {
		return nil, err
	}
	q := &Queue{dir}
	if _, err := os.Lstat(q.counter().path); errors.Is(err, fs.ErrNotExist) {
		if err := q.counter().set(1); err != nil {
			return nil, err
		}
	}
	return q, nil
}

func (q *Queue) jobs() string { return filepath.Join(q.dir, "jobs") }

func (q *Queue) counter() counter { return counter{filepath.Join(q.dir, "nextseq")} }

// counter is a file with the next number, as fspl keeps it.
type counter struct{ path string }

// lock keeps other programs out, fspl included, until unlock is called.
func (c counter) lock(wait bool) (unlock func(), err error) {
	f, err := os.OpenFile(c.path+".lock", os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		err = syscall.Flock(int(f.Fd()), how)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%s: %w", c.path, ErrBusy)
		}
		return nil, err
	}
	return func() {
		syscall.Flock(int(f.Fd()), syscall.LOCK_UN) // a process that is being started may have a copy of the file
		f.Close()
	}, nil
}

// get reads the number; a missing file is 1.
func (c counter) get() (uint64, error) {
	b, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s does not hold a number", c.path)
	}
	return n, nil
}

func (c counter) set(n uint64) error {
	return durable.WriteFile(durable.OS{}, c.path, 0o644, func(w io.Writer) error { _, err := fmt.Fprintf(w, "%d\n", n); return err })
}

// UUID names a job file.
type UUID [16]byte

// NewUUID returns a random one.
func NewUUID() (u UUID) {
	rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}

// String is its usual form.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Write appends a job: it takes the next number of the counter file seqfile (as of fspl prepare -s), writes payload, and
// shows the job, in one step: whatever fails or crashes takes no number, and leaves no gap. h.Seq is set. The same id as
// that of the last job written is that job, and success. Concurrent writers wait for each other.
func (q *Queue) Write(seqfile string, id UUID, h *Header, payload io.Reader) error {
	c := counter{seqfile}
	unlock, err := c.lock(true)
	if err != nil {
		return fmt.Errorf("take a number: %w", err)
	}
	defer unlock()
	last, err := q.settle(c)
	if err != nil {
		return fmt.Errorf("take a number: %w", err)
	}
	if last == id {
		_, err := io.Copy(io.Discard, payload)
		return err
	}
	if h.Seq, err = c.get(); err != nil {
		return fmt.Errorf("take a number: %w", err)
	}
	temp := filepath.Join(q.jobs(), "tmp-fspl-"+id.String()+".fspl.tmp")
	os.Remove(temp) // of an attempt that failed
	if err := q.fill(temp, h, payload); err != nil {
		os.Remove(temp)
		return fmt.Errorf("write a job: %w", err)
	}
	// From here on a crash is settled by the next writer: the temporary file tells whether the job has appeared.
	note := func(w io.Writer) error { _, err := fmt.Fprintf(w, "%d %s\n", h.Seq, id); return err }
	if err := durable.WriteFile(durable.OS{}, c.path+".last", 0o644, note); err != nil {
		os.Remove(temp)
		return fmt.Errorf("write a job: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(q.jobs(), "fspl-"+id.String()+".fspl")); err != nil {
		return fmt.Errorf("write a job: %w", err)
	}
	if err := (durable.OS{}).SyncDir(q.jobs()); err != nil {
		return fmt.Errorf("write a job: %w", err)
	}
	return c.set(h.Seq + 1)
}

// fill writes the temporary file, durably, its name included.
func (q *Queue) fill(temp string, h *Header, payload io.Reader) error {
	f, err := durable.OS{}.Create(temp, 0o644)
	if err != nil {
		return err
	}
	head := h.Append(nil)
	_, err = f.Write(head)
	var n int64
	if err == nil {
		n, err = io.Copy(f, payload)
	}
	if err != nil {
		f.Close()
		return err
	}
	if err := durable.Seal(f, int64(len(head))+n); err != nil {
		return err
	}
	return durable.OS{}.SyncDir(q.jobs())
}

// settle ends what a crash left between the note and the counter, and returns the id of the last job. The lock is held.
func (q *Queue) settle(c counter) (last UUID, err error) {
	b, err := os.ReadFile(c.path + ".last")
	if errors.Is(err, fs.ErrNotExist) {
		return last, nil
	}
	if err != nil {
		return last, err
	}
	number, text, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	seq, err := strconv.ParseUint(number, 10, 64)
	raw := strings.ReplaceAll(text, "-", "")
	if _, e := fmt.Sscanf(raw, "%x", (*hexBytes)(&last)); err != nil || e != nil || last.String() != text {
		return UUID{}, fmt.Errorf("%s.last does not hold a number and an id", c.path)
	}
	next, err := c.get()
	if err != nil || next != seq {
		return last, err
	}
	temp := filepath.Join(q.jobs(), "tmp-fspl-"+text+".fspl.tmp")
	if _, err := os.Lstat(temp); err == nil { // it has not appeared: its number is free
		return UUID{}, os.Remove(temp)
	}
	if err := (durable.OS{}).SyncDir(q.jobs()); err != nil {
		return last, err
	}
	return last, c.set(seq + 1)
}

// hexBytes scans 32 digits.
type hexBytes UUID

// Scan implements fmt.Scanner.
func (h *hexBytes) Scan(s fmt.ScanState, _ rune) error {
	tok, err := s.Token(true, nil)
	if err != nil || len(tok) != 32 {
		return errors.New("not an id")
	}
	for i := range h {
		v, err := strconv.ParseUint(string(tok[2*i:2*i+2]), 16, 8)
		if err != nil {
			return err
		}
		h[i] = byte(v)
	}
	return nil
}

// Job is one file of a queue.
type Job struct {
	*Header
	Path   string
	Size   int64 // of the file
	offset int64 // of the payload
}

// Payload is how many bytes the payload has now.
func (j *Job) Payload() int64 { return j.Size - j.offset }

// Open reads the payload.
func (j *Job) Open() (io.ReadCloser, error) {
	f, err := durable.OS{}.Open(j.Path)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(j.offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, j.Payload()), f}, nil
}

// Remove deletes the file, durably.
func (j *Job) Remove() error {
	if err := os.Remove(j.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.OS{}.SyncDir(filepath.Dir(j.Path))
}

// isJob reports whether a file name is that of a job, a conflict copy included.
func isJob(name string) bool {
	return strings.HasPrefix(name, "fspl-") && strings.HasSuffix(name, ".fspl")
}

// List reads the headers of all jobs, in the order of their numbers. Files that are none are named in bad, and stand in
// nobody's way: perhaps they are not complete yet.
func (q *Queue) List(ctx context.Context) (jobs []*Job, bad []error, err error) {
	entries, err := os.ReadDir(q.jobs())
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if !isJob(e.Name()) {
			continue
		}
		j, err := q.read(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			bad = append(bad, fmt.Errorf("%s: %w", e.Name(), err))
		default:
			jobs = append(jobs, j)
		}
	}
	slices.SortStableFunc(jobs, func(a, b *Job) int { return cmp.Compare(a.Seq, b.Seq) })
	return jobs, bad, nil
}

func (q *Queue) read(name string) (*Job, error) {
	j := &Job{Path: filepath.Join(q.jobs(), name)}
	f, err := durable.OS{}.Open(j.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	j.Size = fi.Size()
	if j.Header, err = ReadHeader(f); err != nil {
		return nil, err
	}
	j.offset, err = f.Seek(0, io.SeekCurrent)
	return j, err
}

// Reader takes the jobs of a queue out in their order, as fspl queue-process does. One at a time has a queue.
type Reader struct {
	q      *Queue
	unlock func()
}

// Reader locks the queue; ErrBusy when another program processes it.
func (q *Queue) Reader() (*Reader, error) {
	unlock, err := q.counter().lock(false)
	if err != nil {
		return nil, err
	}
	return &Reader{q, unlock}, nil
}

// Close lets others in.
func (r *Reader) Close() { r.unlock() }

// Next is the number of the job whose turn it is.
func (r *Reader) Next() (uint64, error) { return r.q.counter().get() }

// Done says that job n was dealt with: the next one's turn comes.
func (r *Reader) Done(n uint64) error { return r.q.counter().set(n + 1) }
