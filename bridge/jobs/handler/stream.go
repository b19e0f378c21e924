package handler

import (
	"errors"
	"io"
	"os"
)

// The buffer of a stream grows from one to the other as a program turns out to be talkative.
const minBuffer, maxBuffer = 2 << 10, 64 << 10

// stream reads what a program writes until the end, keeps the first bytes, and counts the others.
type stream struct {
	name  string
	fd    int      // of the pipe, which does not block, as long as pipe is nil
	pipe  *os.File // when somebody waits for it
	over  bool     // the last writer has closed the pipe
	sink  io.Writer
	room  int64 // bytes that may still be kept; negative: all
	total int64
	lost  bool
	err   error // of the sink
}

// listen makes the pipe something that can be waited for.
func (s *stream) listen() {
	if s.pipe == nil {
		s.pipe = os.NewFile(uintptr(s.fd), s.name)
	}
}

// drain reads until the last writer closes the pipe, or until its read deadline.
func (s *stream) drain() {
	if s.over {
		return
	}
	buf := make([]byte, minBuffer)
	for {
		n, err := s.pipe.Read(buf)
		s.take(buf[:n])
		if err != nil {
			return
		}
		if n == len(buf) && n < maxBuffer {
			buf = make([]byte, min(4*n, maxBuffer))
		}
	}
}

func (s *stream) take(b []byte) {
	s.total += int64(len(b))
	keep := b
	if s.room >= 0 {
		keep = b[:min(int64(len(b)), s.room)]
		s.room -= int64(len(keep))
	}
	if s.sink == nil || s.err != nil {
		keep = nil
	}
	if len(keep) < len(b) {
		s.lost = true
	}
	if len(keep) == 0 {
		return
	}
	if n, err := s.sink.Write(keep); err != nil || n < len(keep) {
		if err == nil {
			err = io.ErrShortWrite
		}
		s.err, s.lost = err, true
	}
}

// feeder writes the input that a pipe could not take at once.
type feeder struct {
	pipe *os.File
	head []byte    // goes first
	rest io.Reader // nil: head is all
	left int64     // bytes that rest must have, exactly
}

var errInputLong = errors.New("there is more of it than announced")

// feed returns what was wrong with the input; a program that does not want it is fine. It does not close the pipe,
// because a program must not take half of its input for the whole.
func (f *feeder) feed() error {
	if _, err := f.pipe.Write(f.head); err != nil || f.rest == nil {
		return nil
	}
	buf := make([]byte, min(f.left+1, maxBuffer))
	for {
		n, err := f.rest.Read(buf[:min(int64(len(buf)), f.left+1)])
		if f.left -= int64(n); f.left < 0 {
			return errInputLong
		}
		if _, werr := f.pipe.Write(buf[:n]); werr != nil {
			return nil
		}
		if err == io.EOF && f.left == 0 {
			return nil
		} else if err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
	}
}
