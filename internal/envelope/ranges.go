package envelope

// MaxRanges bounds a replay set or receipt (docs/format.md, "Records and receipts"): an item that would make one more is parked.
const MaxRanges = 1024

// MaxSeq is the highest sequence number: 48 bits travel.
const MaxSeq = 1<<48 - 1

// Check is SHA-256(seq u64 ‖ salt)[:8] of one item, XORed over a range of items.
type Check [8]byte

// XOR adds or takes away an item's check.
func (c Check) XOR(o Check) Check {
	for i := range c {
		c[i] ^= o[i]
	}
	return c
}

// Range is Count consecutive sequence numbers from First on, with the XOR of their checks.
type Range struct {
	First, Count uint64
	Check        Check
}

// End is the first number after the range.
func (r Range) End() uint64 { return r.First + r.Count }

// Ranges is a set of sequence numbers, ascending, with at least one number missing between two ranges.
type Ranges []Range

// find returns the index of the first range that ends after seq.
func (r Ranges) find(seq uint64) int {
	lo, hi := 0, len(r)
	for lo < hi {
		if m := (lo + hi) / 2; r[m].End() <= seq {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// Contains reports whether seq is in the set.
func (r Ranges) Contains(seq uint64) bool {
	i := r.find(seq)
	return i < len(r) && r[i].First <= seq
}

// Count is how many numbers the set holds.
func (r Ranges) Count() (n uint64) {
	for _, x := range r {
		n += x.Count
	}
	return n
}

// Add puts seq into the set and reports false, changing nothing, when that would make more than MaxRanges ranges
// or when seq is there already.
func (r *Ranges) Add(seq uint64, check Check) bool {
	s := *r
	i := s.find(seq)
	if i < len(s) && s[i].First <= seq {
		return false
	}
	left := i > 0 && s[i-1].End() == seq
	right := i < len(s) && s[i].First == seq+1
	switch {
	case left && right:
		s[i-1].Count += 1 + s[i].Count
		s[i-1].Check = s[i-1].Check.XOR(check).XOR(s[i].Check)
		s = append(s[:i], s[i+1:]...)
	case left:
		s[i-1].Count++
		s[i-1].Check = s[i-1].Check.XOR(check)
	case right:
		s[i].First--
		s[i].Count++
		s[i].Check = s[i].Check.XOR(check)
	case len(s) >= MaxRanges:
		return false
	default:
		s = append(s, Range{})
		copy(s[i+1:], s[i:])
		s[i] = Range{First: seq, Count: 1, Check: check}
	}
	*r = s
	return true
}
