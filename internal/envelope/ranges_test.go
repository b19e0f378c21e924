package envelope

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// checkOf is a check that depends on the number only.
func checkOf(seq uint64) (c Check) {
	for i := range c {
		c[i] = byte(seq*2654435761>>(8*i)) ^ byte(i)
	}
	return c
}

// wellFormed fails the test unless r is ascending and no two ranges touch.
func wellFormed(t *testing.T, r Ranges) {
	t.Helper()
	for i, x := range r {
		if x.Count == 0 || i > 0 && x.First <= r[i-1].End() {
			t.Fatalf("range %d of %v is out of place", i, r)
		}
	}
}

// TestRangesAgainstModel adds numbers in any order, many of them twice, and compares with a map.
func TestRangesAgainstModel(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		span := uint64(1 + rng.IntN(300))
		base := []uint64{0, 1, 1 << 20, MaxSeq - 300}[rng.IntN(4)]
		var r Ranges
		model := map[uint64]bool{}
		for range rng.IntN(600) {
			seq := base + rng.Uint64N(span)
			if got := r.Add(seq, checkOf(seq)); got == model[seq] {
				t.Fatalf("seed %d: Add(%d) is %v, already there: %v", seed, seq, got, model[seq])
			}
			model[seq] = true
		}
		wellFormed(t, r)
		if r.Count() != uint64(len(model)) {
			t.Fatalf("seed %d: %d numbers, want %d", seed, r.Count(), len(model))
		}
		for seq := base; seq <= base+span; seq++ {
			if r.Contains(seq) != model[seq] {
				t.Fatalf("seed %d: Contains(%d) is %v", seed, seq, !model[seq])
			}
		}
		for _, x := range r {
			var want Check
			for seq := x.First; seq < x.End(); seq++ {
				want = want.XOR(checkOf(seq))
			}
			if x.Check != want {
				t.Fatalf("seed %d: check of %d+%d is %x, want %x", seed, x.First, x.Count, x.Check, want)
			}
		}
		if len(r) == 0 {
			continue
		}
		h := Held{Session: [8]byte{1}, Ranges: r}
		got, err := ParseHeld(h.Append(nil))
		if err != nil || !slices.Equal(got.Ranges, r) {
			t.Fatalf("seed %d: the receipt reads back as %v, %v", seed, got, err)
		}
	}
}

// TestRangesFull fills a set to its bound: one more range is refused and changes nothing, but gaps can be filled.
func TestRangesFull(t *testing.T) {
	var r Ranges
	for i := range uint64(MaxRanges) {
		if !r.Add(2*i, checkOf(2*i)) {
			t.Fatalf("range %d of %d is refused", i, MaxRanges)
		}
	}
	before := slices.Clone(r)
	for _, seq := range []uint64{2 * MaxRanges, 2*MaxRanges + 50, MaxSeq} {
		if r.Add(seq, checkOf(seq)) {
			t.Errorf("range number %d is accepted", MaxRanges+1)
		}
	}
	if !slices.Equal(r, before) {
		t.Error("a refused number changed the set")
	}
	if r.Add(2, checkOf(2)) {
		t.Error("a number is accepted twice")
	}
	if !r.Add(2*MaxRanges-1, checkOf(1)) || !r.Add(1, checkOf(1)) {
		t.Error("numbers that make no new range are refused")
	}
	if len(r) != MaxRanges-1 || r[0].Count != 3 {
		t.Errorf("got %d ranges, the first of %d", len(r), r[0].Count)
	}
	if !r.Add(MaxSeq, checkOf(9)) {
		t.Error("the room that was won is not used")
	}
	wellFormed(t, r)
	if b := (&Held{Ranges: r}).Append(nil); len(b) > RecordHeld.MaxBody() {
		t.Errorf("a full receipt has %d bytes, more than %d", len(b), RecordHeld.MaxBody())
	}
}

// TestLargestReceiptFits builds the longest body that ranges can make.
func TestLargestReceiptFits(t *testing.T) {
	var r Ranges
	step := uint64(MaxSeq / MaxRanges)
	for i := range uint64(MaxRanges) {
		r = append(r, Range{First: i * step, Count: step - 1, Check: checkOf(i)})
	}
	h := Held{Ranges: r}
	b := h.Append(nil)
	if len(b) > RecordHeld.MaxBody() {
		t.Fatalf("%d bytes, more than %d", len(b), RecordHeld.MaxBody())
	}
	if got, err := ParseHeld(b); err != nil || !slices.Equal(got.Ranges, r) {
		t.Fatalf("it reads back as %v", err)
	}
}
