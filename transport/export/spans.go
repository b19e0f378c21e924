package export

import "slices"

// span is the numbers from From up to, not including, To.
type span struct{ From, To int64 }

// spans is a set of numbers: ascending, with at least one number missing between two spans.
type spans []span

// find returns the index of the first span that ends behind n.
func (s spans) find(n int64) int {
	i, _ := slices.BinarySearchFunc(s, n, func(x span, n int64) int {
		if x.To <= n {
			return -1
		}
		return 1
	})
	return i
}

// around returns the span that holds n.
func (s spans) around(n int64) (span, bool) {
	if i := s.find(n); i < len(s) && s[i].From <= n {
		return s[i], true
	}
	return span{}, false
}

func (s spans) contains(n int64) bool { _, ok := s.around(n); return ok }

// covers reports whether all numbers from a up to b are in the set.
func (s spans) covers(a, b int64) bool {
	x, ok := s.around(a)
	return a >= b || ok && x.To >= b
}

// add puts the numbers from a up to b into the set.
func (s *spans) add(a, b int64) {
	if a >= b {
		return
	}
	i := s.find(a - 1) // the first that touches a, or lies behind
	j := i
	for j < len(*s) && (*s)[j].From <= b {
		a, b = min(a, (*s)[j].From), max(b, (*s)[j].To)
		j++
	}
	*s = slices.Replace(*s, i, j, span{a, b})
}

// valid reports whether the set is one: of a file that was read, nobody knows.
func (s spans) valid() bool {
	end := int64(-1)
	for _, x := range s {
		if x.From <= end || x.From < 0 || x.To <= x.From || x.To > maxContent {
			return false
		}
		end = x.To
	}
	return true
}

// sum is how many numbers are in the set.
func (s spans) sum() (n int64) {
	for _, x := range s {
		n += x.To - x.From
	}
	return n
}
