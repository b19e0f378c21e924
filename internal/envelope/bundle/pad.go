package bundle

import "math/bits"

// Padme is the length to which PADMÉ pads n bytes (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files
// and Communication with PURBs", section 4): at most 12 % more, and only O(log log n) bits of the length show.
func Padme(n int64) int64 {
	if n < 2 {
		return n
	}
	e := bits.Len64(uint64(n)) - 1
	s := bits.Len64(uint64(e))
	mask := int64(1)<<max(e-s, 0) - 1
	return (n + mask) &^ mask
}
