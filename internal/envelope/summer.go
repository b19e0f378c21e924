package envelope

import (
	"hash"
	"sync"

	"github.com/zeebo/blake3"
)

// Contents and packets are known by their BLAKE3 hash of 32 bytes (docs/format.md). A node hashes every byte that it
// accepts, carries or delivers, so large mail is as fast as the hash: SHA-256 takes three to ten times as long where the
// processor has no instructions for it, and no less time where it has them.

// NewSum begins a hash over nothing.
func NewSum() hash.Hash { return blake3.New() }

// SumOf is the hash of b.
func SumOf(b []byte) [32]byte { return blake3.Sum256(b) }

// Summer computes the hash of content that goes by in pieces. Behind the first summerInline bytes it works beside its
// caller, on another core if there is one: a hash costs as much time as writing content or sending it. The zero value
// is not ready; see NewSummer. One goroutine may use it. A Summer that is given up needs no closing.
type Summer struct {
	h    *blake3.Hasher // nil once sum is known
	sum  [32]byte
	n    int64
	bufs [2][]byte
	cur  int
	busy chan struct{} // closed when the other buffer has been hashed; nil when nothing was begun
}

// hashers are used again: one is larger than most mail.
var hashers = sync.Pool{New: func() any { return blake3.New() }}

const (
	summerInline = 256 << 10
	summerChunk  = 64 << 10
)

// NewSummer begins with no content.
func NewSummer() *Summer { return &Summer{h: hashers.Get().(*blake3.Hasher)} }

// Write takes the next piece. It never fails. Behind Sum nothing may be written.
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

// Sum is the hash of all that was written.
func (s *Summer) Sum() [32]byte {
	if s.h != nil {
		s.wait()
		s.h.Write(s.bufs[s.cur])
		s.h.Sum(s.sum[:0])
		s.h.Reset()
		hashers.Put(s.h)
		s.h = nil
	}
	return s.sum
}
