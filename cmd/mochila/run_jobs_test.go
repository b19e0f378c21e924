package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// TestFollowing: what follows the head of a request is all there, in one piece when it is short, and what breaks off is no
// input.
func TestFollowing(t *testing.T) {
	for _, n := range []int{0, 1, 4<<10 - 1, 4 << 10, 4<<10 + 1, 100_000} {
		in := strings.Repeat("x", n)
		r, err := following([]byte("head\n"), iotest.HalfReader(strings.NewReader(in)))
		if err != nil {
			t.Fatal(err)
		}
		if _, piece := r.(*bytes.Reader); piece != (n < 4<<10) {
			t.Errorf("%d bytes: a %T", n, r)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != "head\n"+in {
			t.Errorf("%d bytes: %d came, %v", n, len(got), err)
		}
	}
	broken := errors.New("broken")
	if r, err := following([]byte("head\n"), io.MultiReader(strings.NewReader("some"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("input that breaks off: %v, %v", r, err)
	}
}
