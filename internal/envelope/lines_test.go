package envelope

import (
	"math/rand/v2"
	"regexp"
	"testing"
)

func TestCleanLines(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "a": 0, "\r\n": 2, "\n": 0, "\r": 0, "a\r\n": 3, "a\r\nb": 3, "a\r\nb\r": 3, "a\r\n.\r\n": 3, "a\r\n\r\nb\r\n": 8,
		"a\nb\r\n": 0, "a\r\nb\nc\r\n": 3, "a\rb\r\n": 0, "a\r\r\n": 0, "a\r\nb\rc\r\n": 0, ".a\r\nb\r\n": 7, "\x00\r\n": 3,
	} {
		if got := CleanLines([]byte(text)); got != want {
			t.Errorf("%q: %d, not %d", text, got, want)
		}
	}
}

// TestCleanLinesModel compares with an expression for what is promised, on short texts of the bytes that matter.
func TestCleanLinesModel(t *testing.T) {
	clean := regexp.MustCompile(`^[^\r\n]*\r\n([^.\r\n][^\r\n]*\r\n|\r\n)*$`)
	r := rand.New(rand.NewPCG(3, 4))
	some := 0
	for range 200_000 {
		var b []byte
		for range r.IntN(8) {
			b = append(b, []string{"\r\n", "\r\n", "\r", "\n", ".", "a", "bc"}[r.IntN(7)]...)
		}
		n := CleanLines(b)
		if n > 0 {
			some++
			if !clean.Match(b[:n]) || n < len(b) && clean.Match(b) {
				t.Fatalf("%q: %d", b, n)
			}
		}
	}
	if some < 1000 {
		t.Errorf("only %d texts had clean lines", some)
	}
}
