package envelope

import (
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// TestSummer compares sums of content of every interesting length, in pieces of any size.
func TestSummer(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	sizes := []int{0, 1, 100, len(data)}
	for _, border := range []int{summerChunk, summerInline, summerInline + summerChunk, summerInline + 2*summerChunk} {
		sizes = append(sizes, border-1, border, border+1)
	}
	for _, size := range sizes {
		for _, piece := range []int{1 << 30, 1000, summerChunk, 3 * summerChunk, 100_001} {
			s := NewSummer()
			for rest := data[:size]; len(rest) > 0; {
				p := append([]byte{}, rest[:min(piece, len(rest))]...)
				rest = rest[len(p):]
				if n, err := s.Write(p); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				clear(p) // the caller's again
			}
			if first := s.Sum(); first != sha256.Sum256(data[:size]) || s.Sum() != first {
				t.Errorf("%d bytes in pieces of %d: another sum", size, piece)
			}
		}
	}
}
