package envelope

import (
	"crypto/sha256"
	"hash"
)

// Summer computes the SHA-256 of content that goes by in pieces. Behind the first summerInline bytes it works beside its
// caller, on another core if there is one: a hash costs as much time as writing content or sending it. The zero value
// is not ready; see NewSummer. One goroutine may use it. A Summer that is given up needs no closing.
type Summer struct {
	h    hash.Hash
	n    int64
	bufs [2][]byte
	cur  int
	busy chan struct{} // closed when the other buffer has been hashed; nil when nothing was begun
}

const (
	summerInline = 256 << 10
	summerChunk  = 64 << 10
)

// NewSummer begins with no content.
func NewSummer() *Summer { return &Summer{h: sha256.New()} }

// Write takes the next piece. It never fails.
func (s *Summer) Write(p []byte) (int, error) {
	n := len(p)
	if s.n += int64(n); s.n <= summerInline && s.bufs[0] == nil {
		return s.h.Write(p)
	}
	if s.bufs[0] == nil {
		s.bufs[0], s.bufs[1] = make([]byte, 0, summerChunk), make([]byte, 0, summerChunk)
	}
	for len(p) > 0 {
		b := s.bufs[s.cur]
		k := copy(b[len(b):summerChunk], p)
		s.bufs[s.cur], p = b[:len(b)+k], p[k:]
		if len(b)+k == summerChunk {
			s.turn()
		}
	}
	return n, nil
}

// turn has the full buffer hashed while the other one is filled.
func (s *Summer) turn() {
	s.wait()
	full, busy := s.bufs[s.cur], make(chan struct{})
	go func() {
		s.h.Write(full)
		close(busy)
	}()
	s.busy = busy
	s.cur = 1 - s.cur
	s.bufs[s.cur] = s.bufs[s.cur][:0]
}

func (s *Summer) wait() {
	if s.busy != nil {
		<-s.busy
		s.busy = nil
	}
}

// Sum is that of the content so far.
func (s *Summer) Sum() (sum [32]byte) {
	s.wait()
	s.h.Write(s.bufs[s.cur])
	s.bufs[s.cur] = s.bufs[s.cur][:0]
	s.h.Sum(sum[:0])
	return sum
}
