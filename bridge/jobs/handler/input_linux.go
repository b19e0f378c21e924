package handler

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// smallInput is tried in one write before the program starts: a pipe takes that much, and no goroutine is needed.
const smallInput = 16 << 10

// sureInput fits into every empty pipe, however small the kernel has made it: one page (pipe(7)).
const sureInput = 4 << 10

// ends are the descriptors of a run: three for the program, and ours.
type ends struct {
	child  [3]int // closed when the program has them
	feed   *feeder
	out    *stream
	err    *stream
	parent []*os.File
	buf    []byte // to read with
}

func (s *Spec) open() (*ends, error) {
	e := &ends{child: [3]int{-1, -1, -1}}
	err := s.openInput(e)
	if err == nil {
		e.out, err = e.openOutput(1, "stdout", s.Stdout, s.OutputCap)
	}
	if err == nil {
		e.err, err = e.openOutput(2, "stderr", s.Stderr, s.OutputCap)
	}
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// closeChild closes what the program has got by now.
func (e *ends) closeChild() {
	for i, fd := range e.child {
		if fd >= 0 {
			unix.Close(fd)
		}
		e.child[i] = -1
	}
}

func (e *ends) close() {
	e.closeChild()
	for _, f := range e.parent {
		f.Close()
	}
	for _, s := range []*stream{e.out, e.err} {
		switch {
		case s == nil:
		case s.pipe != nil:
			s.pipe.Close()
		default:
			unix.Close(s.fd)
		}
	}
}

// pipe makes a pipe of which the program gets the end number i, and returns our end. That does not block, if wanted;
// the program's does.
func (e *ends) pipe(i int, name string, block bool) (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, fmt.Errorf("pipe for %s: %w", name, err)
	}
	ours, theirs := p[0], p[1]
	if i == 0 {
		ours, theirs = p[1], p[0]
	}
	e.child[i] = theirs
	if block {
		return ours, nil
	}
	if _, err := unix.FcntlInt(uintptr(ours), unix.F_SETFL, unix.O_NONBLOCK); err != nil {
		unix.Close(ours)
		return -1, fmt.Errorf("pipe for %s: %w", name, err)
	}
	return ours, nil
}

func (e *ends) openOutput(i int, name string, sink io.Writer, room int64) (*stream, error) {
	fd, err := e.pipe(i, name, false)
	if err != nil {
		return nil, err
	}
	return &stream{name: name, fd: fd, sink: sink, room: room}, nil
}

// soak reads what is there, and reports whether there will be no more.
func (e *ends) soak() bool {
	if e.buf == nil {
		e.buf = make([]byte, minBuffer)
	}
	for _, s := range []*stream{e.out, e.err} {
		for !s.over {
			n, err := unix.Read(s.fd, e.buf)
			if err == unix.EINTR {
				continue
			}
			if err == unix.EAGAIN {
				return false
			}
			if n <= 0 {
				s.over = true
				break
			}
			s.take(e.buf[:n])
		}
	}
	return true
}

func (s *Spec) openInput(e *ends) error {
	if s.Stdin == nil {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", os.DevNull, err)
		}
		e.child[0] = fd
		return nil
	}
	if f, ok := s.Stdin.(*os.File); ok {
		fd, err := s.ownFile(f)
		if err != nil || fd >= 0 {
			e.child[0] = fd
			return err
		}
	}
	head := make([]byte, min(s.StdinSize+1, smallInput))
	n, err := io.ReadFull(s.Stdin, head)
	all := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	switch {
	case err != nil && !all:
		return fmt.Errorf("stdin: %w", err)
	case all && int64(n) < s.StdinSize:
		return fmt.Errorf("stdin: %w", io.ErrUnexpectedEOF)
	case int64(n) > s.StdinSize:
		return fmt.Errorf("stdin: %w", errInputLong)
	}
	fd, err := e.pipe(0, "stdin", all && n <= sureInput)
	if err != nil {
		return err
	}
	done := 0
	if all {
		if done, err = unix.Write(fd, head[:n]); err == nil && done == n {
			return unix.Close(fd)
		}
	}
	w := os.NewFile(uintptr(fd), "stdin")
	e.parent = append(e.parent, w)
	e.feed = &feeder{pipe: w, head: head[max(done, 0):n], left: s.StdinSize - int64(n)}
	if !all {
		e.feed.rest = s.Stdin
	}
	return nil
}

// ownFile duplicates a file that can be the program's input as it is; -1: it cannot.
func (s *Spec) ownFile(f *os.File) (int, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("stdin: %w", err)
	}
	dup := -1
	cerr := c.Control(func(fd uintptr) {
		var st unix.Stat_t
		var flags int
		if err = unix.Fstat(int(fd), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return
		}
		if flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
			return
		}
		var at int64
		if at, err = unix.Seek(int(fd), 0, io.SeekCurrent); err != nil {
			return
		}
		if st.Size-at != s.StdinSize {
			err = fmt.Errorf("its file holds %d bytes, not %d", st.Size-at, s.StdinSize)
			return
		}
		dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
	})
	if err = errors.Join(err, cerr); err != nil {
		return -1, fmt.Errorf("stdin: %w", err)
	}
	return dup, nil
}
