package submit

import (
	"syscall"
	"testing"
)

// pipe returns raw descriptors; the reading end is closed with the test, the writing end by feed.
func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := syscall.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(p[0]) })
	return p[0], p[1]
}

// feed writes s in pieces that do not fit the reader's buffer.
func feed(w int, s string) {
	defer syscall.Close(w)
	for len(s) > 0 {
		n := min(len(s), 7001)
		if writeFD(w, []byte(s[:n])) != nil {
			return
		}
		s = s[n:]
	}
}
