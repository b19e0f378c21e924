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

// TestNonBlockingDescriptor: a descriptor that somebody made non-blocking is waited for, in both directions.
func TestNonBlockingDescriptor(t *testing.T) {
	r, w := pipe(t)
	for _, fd := range []int{r, w} {
		if err := syscall.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
	const total = 1 << 20 // many times what a pipe holds: each side has to wait for the other
	go feed(w, string(make([]byte, total)))
	got := 0
	for b := make([]byte, 3000); ; {
		n, err := readFD(r, b)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		got += n
	}
	if got != total {
		t.Errorf("%d bytes of %d", got, total)
	}
}
