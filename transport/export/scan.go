package export

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Scan is what a Scanner met.
type Scan struct {
	Blocks  int64
	Damaged int64 // blocks whose header is right and whose payload is not, or is cut off
	Garbage int64 // bytes that belong to no block
	Read    int64
	Foreign error // why something that looks like a block of another version was passed over; nil: nothing did
}

// Scanner finds the blocks of a stream, whatever else is in it. It holds one block in memory.
type Scanner struct {
	r    *bufio.Reader
	used int // bytes of the block returned last
	err  error
	Scan
}

// NewScanner reads from r.
func NewScanner(r io.Reader) *Scanner {
	s := &Scanner{}
	s.r = bufio.NewReaderSize(&countingReader{r, &s.Read}, maxBlock+2*HeaderSize)
	return s
}

type countingReader struct {
	r io.Reader
	n *int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += int64(n)
	return n, err
}

// Raw returns the next intact block as it stands in the stream. Both are valid until the next call. io.EOF at the end; any other
// error is the reader's.
func (s *Scanner) Raw() (h Header, raw []byte, err error) {
	s.r.Discard(s.used)
	s.used = 0
	for {
		if err := s.seek(); err != nil {
			return h, nil, err
		}
		head, err := s.peek(HeaderSize)
		if err != nil {
			return h, nil, err
		}
		if len(head) < HeaderSize {
			s.skip(len(magic))
			continue
		}
		h, err := parseHeader(head)
		if err != nil {
			if err != errBlock {
				s.Foreign = err
			}
			s.skip(len(magic))
			continue
		}
		raw, err := s.peek(HeaderSize + h.payload())
		if err != nil {
			return h, nil, err
		}
		if len(raw) == HeaderSize+h.payload() && intact(raw, raw[HeaderSize:]) {
			s.Blocks++
			s.used = len(raw)
			return h, raw, nil
		}
		s.Damaged++
		s.damaged(len(raw), len(raw) == HeaderSize+h.payload())
	}
}

// damaged passes over a block whose header is right and of which n bytes are there. If the stream ends or another block begins
// where it should end, its length is true and all of it is passed over; else only the header is.
func (s *Scanner) damaged(n int, whole bool) {
	next, err := s.peek(n + len(magic))
	if whole && err == nil && (len(next) == n || bytes.HasSuffix(next, magic)) {
		s.r.Discard(n)
		return
	}
	s.r.Discard(HeaderSize)
}

// Next returns the next intact block. Its payload is valid until the next call.
func (s *Scanner) Next() (Block, error) {
	h, raw, err := s.Raw()
	if err != nil {
		return Block{}, err
	}
	return Block{h, raw[HeaderSize:]}, nil
}

func (s *Scanner) skip(n int) {
	n, _ = s.r.Discard(n)
	s.Garbage += int64(n)
}

// peek returns n bytes, or less at the end.
func (s *Scanner) peek(n int) ([]byte, error) {
	b, err := s.r.Peek(n)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read stream: %w", err)
	}
	return b, nil
}

// seek passes over everything before the next magic.
func (s *Scanner) seek() error {
	for {
		if _, err := s.r.Peek(len(magic)); err != nil {
			if err == io.EOF {
				s.skip(s.r.Buffered())
				return io.EOF
			}
			return fmt.Errorf("read stream: %w", err)
		}
		b, _ := s.r.Peek(s.r.Buffered())
		if i := bytes.Index(b, magic); i >= 0 {
			s.skip(i)
			return nil
		}
		s.skip(len(b) - len(magic) + 1)
	}
}

// Merge reads several streams as one: always from that whose next stripe is the lowest, so that shards of a stripe that lie on
// several media come together. Each block is handed to each; the error of each ends it.
func Merge(each func(h Header, raw []byte) error, streams ...*Scanner) error {
	type head struct {
		s   *Scanner
		h   Header
		raw []byte
	}
	var heads []*head
	var broken error
	next := func(x *head) bool {
		var err error
		if x.h, x.raw, err = x.s.Raw(); err == nil {
			return true
		}
		if err != io.EOF {
			x.s.err = err
			broken = errors.Join(broken, err)
		}
		return false
	}
	for _, s := range streams {
		if x := (&head{s: s}); next(x) {
			heads = append(heads, x)
		}
	}
	for len(heads) > 0 {
		least := 0
		for i, x := range heads {
			if x.h.Stripe < heads[least].h.Stripe {
				least = i
			}
		}
		x := heads[least]
		if err := each(x.h, x.raw); err != nil {
			return err
		}
		if !next(x) {
			heads = append(heads[:least], heads[least+1:]...)
		}
	}
	return broken
}

// Err is what ended reading this stream before its end; nil when nothing did.
func (s *Scanner) Err() error { return s.err }
