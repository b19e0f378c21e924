package envelope

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"testing/quick"
	"time"
)

// TestBeginEnd writes nested fields of lengths around those where the length takes one byte more.
func TestBeginEnd(t *testing.T) {
	for _, n := range []int{0, 1, 126, 127, 128, 129, 16382, 16383, 16384, 1 << 21} {
		v := bytes.Repeat([]byte{7}, n)
		want := binary.AppendUvarint([]byte{9, 1, 1, 1, 5}, uint64(n))
		want = append(append(want, v...), 6, 0)
		e := Enc{B: []byte{9}}
		e.Uint(1, 1)
		mark := e.Begin(5)
		e.B = append(e.B, v...)
		e.End(mark)
		e.Item(6, nil)
		if !bytes.Equal(e.B, want) {
			t.Errorf("%d bytes inside: got %x..., want %x...", n, e.B[:min(len(e.B), 12)], want[:min(len(want), 12)])
		}
	}
}

func TestNumbers(t *testing.T) {
	if err := quick.Check(func(u uint64, i int64) bool {
		var e Enc
		e.Uint(1, u)
		e.Int(2, i)
		d := Dec{B: e.B}
		var gu uint64
		var gi int64
		for d.Next() {
			switch d.Tag {
			case 1:
				gu = d.Uint()
			case 2:
				gi = d.Int()
			}
		}
		return d.Err == nil && gu == u && gi == i
	}, nil); err != nil {
		t.Error(err)
	}
}

func TestTimesAtTheEdges(t *testing.T) {
	for _, c := range []struct{ in, want time.Time }{
		{time.Time{}, time.Time{}},
		{time.Unix(0, 0), time.UnixMilli(1)},
		{time.Date(1850, 1, 1, 0, 0, 0, 0, time.UTC), time.UnixMilli(1)},
		{time.Date(2026, 1, 2, 3, 4, 5, 6999999, time.UTC), time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)},
		{time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC)},
	} {
		var e Enc
		e.Time(1, c.in)
		d := Dec{B: e.B}
		var got time.Time
		if d.Next() {
			got = d.Time()
		}
		if d.Err != nil || !got.Equal(c.want) {
			t.Errorf("%v reads back as %v, %v", c.in, got, d.Err)
		}
	}
}

func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"as it is", 20, "as it is"},
		{"550 two\r\nlines", 40, "550 two  lines"},
		{"  blanks\t", 40, "blanks"},
		{"nul\x00esc\x1bdel\x7f.", 40, "nul esc del ."},
		{"latin \xe9", 40, "latin ?"},
		{"äöü", 3, "ä"},
		{"a b", 2, "a"},
		{strings.Repeat("x", 2000), 1000, strings.Repeat("x", 1000)},
		{"c1 \u0085 next", 40, "c1   next"},
		{"\r\n", 5, ""},
		{"x", 0, ""},
	} {
		got := OneLine(c.in, c.limit)
		if got != c.want {
			t.Errorf("OneLine(%q, %d) is %q, want %q", c.in, c.limit, got, c.want)
		}
		if again := OneLine(got, c.limit); again != got {
			t.Errorf("OneLine is not its own fixed point: %q, %q", got, again)
		}
	}
	if err := quick.Check(func(s string, n uint8) bool {
		got := OneLine(s, int(n))
		return clean(got, int(n)) && OneLine(got, int(n)) == got
	}, nil); err != nil {
		t.Error(err)
	}
}
