package envelope

import (
	"fmt"
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
			if first := s.Sum(); first != SumOf(data[:size]) || s.Sum() != first {
				t.Errorf("%d bytes in pieces of %d: another sum", size, piece)
			}
		}
	}
}

// TestSum holds the hash to the vectors of BLAKE3's authors (test_vectors.json: bytes 0 to 250, again and again), and to
// the promise of hash.Hash that Sum disturbs nothing.
func TestSum(t *testing.T) {
	data := make([]byte, 100_000)
	for i := range data {
		data[i] = byte(i % 251)
	}
	for n, want := range map[int]string{
		0:    "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
		1:    "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
		1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
		1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
		8192: "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63",
	} {
		if got := fmt.Sprintf("%x", SumOf(data[:n])); got != want {
			t.Errorf("%d bytes: %s, not %s", n, got, want)
		}
	}
	for _, step := range []int{1, 63, 64, 65, 1000, 1023, 1024, 1025, 8191, 8192, 8193, 20_000, 50_000} {
		h := NewSum()
		for off := 0; off < len(data) && off < 40*step; off += step {
			end := min(off+step, len(data))
			h.Write(data[off:end])
			if [32]byte(h.Sum(nil)) != SumOf(data[:end]) {
				t.Errorf("pieces of %d, a sum taken behind each: wrong at %d", step, end)
				break
			}
		}
	}
}
