package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"mochila/internal/seal"
	"mochila/transport"
)

// noise is text that does not compress.
func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 7))
	var b strings.Builder
	for i := range n {
		if i%77 == 76 {
			b.WriteString("\r\n")
			continue
		}
		b.WriteByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[r.IntN(64)])
	}
	b.WriteString("\r\n")
	return b.String()
}

// borders lists where the parts of an item begin and end: header fields, offer fields, hop box, chunks.
func borders(data []byte) []int {
	h, err := seal.ParseHeader(data)
	if err != nil {
		panic(err)
	}
	cuts := []int{0, 1, 2, 18, 26, 32}
	at := h.BodyStart()
	if h.Offer() {
		for _, o := range []int{1, 2, 6, 1126, 1262} {
			cuts = append(cuts, 32+o)
		}
	}
	if h.Payload() {
		for _, f := range []int{1, 2, 10, 16, 32, 36, 37, 38, 40, 56} {
			cuts = append(cuts, at+f)
		}
		at += seal.HopSize - seal.HeaderSize
		for _, c := range borders(data[at:]) {
			cuts = append(cuts, at+c)
		}
		return cuts
	}
	for at < len(data) {
		n := min(seal.ChunkSize+seal.Overhead, len(data)-at)
		cuts = append(cuts, at, at+n-seal.Overhead, at+n)
		at += n
	}
	return cuts
}

// around returns the distinct offsets at and beside the borders that lie in [0, limit).
func around(cuts []int, limit int) []int {
	var out []int
	for _, c := range cuts {
		for d := -1; d <= 1; d++ {
			if x := c + d; x >= 0 && x < limit {
				out = append(out, x)
			}
		}
	}
	out = append(out, limit-1)
	slices.Sort(out)
	return slices.Compact(out)
}

// flips returns the offsets at which a bit is inverted: each field, and each chunk's first, middle and last byte.
func flips(data []byte) []int {
	cuts := borders(data)
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var out []int
	for i, c := range cuts {
		end := len(data)
		if i+1 < len(cuts) {
			end = cuts[i+1]
		}
		if c < end {
			out = append(out, c, (c+end)/2, end-1)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestCutsAndFlips damages packets of every make in every place and shows them to a node in both ways, on a stick and
// by a program. Nothing of them may take effect, and the good copy is taken afterwards, once.
func TestCutsAndFlips(t *testing.T) {
	type scene struct {
		name string
		make func(t *testing.T, l *lab) (f file, from, to *node, text string)
	}
	pair := func(t *testing.T, l *lab, warm bool, text string) (file, *node, *node, string) {
		a, c := l.node("alpha"), l.node("gamma")
		a.knows(c, "dir:one")
		c.knows(a, "dir:one")
		if warm {
			warmUp(l, a, c)
		}
		l.take("one", a, c)
		a.submit("ana@alpha.example", "bob@gamma.example", text)
		a.meet()
		p := l.take("one", a, c)
		if len(p) != 1 {
			t.Fatalf("%d packets on the stick, not one", len(p))
		}
		return p[0], a, c, text
	}
	relayed := func(t *testing.T, l *lab, last bool) (file, *node, *node, string) {
		a, r, c := l.node("alpha"), l.node("relay"), l.node("gamma")
		chain(a, r, c)
		text := "Subject: by relay\r\n\r\n" + noise(3, 3000)
		a.submit("ana@alpha.example", "bob@gamma.example", text)
		a.meet()
		p := l.take("left", a, r)
		if !last {
			if len(p) != 1 {
				t.Fatalf("%d packets on the stick, not one", len(p))
			}
			return p[0], a, r, text
		}
		l.put("left", p...)
		r.meet()
		p = l.take("right", r, c)
		if len(p) != 1 {
			t.Fatalf("%d packets on the stick, not one", len(p))
		}
		return p[0], r, c, text
	}
	for _, s := range []scene{
		{"small", func(t *testing.T, l *lab) (file, *node, *node, string) {
			return pair(t, l, true, "Subject: s\r\n\r\nsmall\r\n")
		}},
		{"offer", func(t *testing.T, l *lab) (file, *node, *node, string) {
			return pair(t, l, false, "Subject: o\r\n\r\nfirst\r\n")
		}},
		{"chunks", func(t *testing.T, l *lab) (file, *node, *node, string) {
			return pair(t, l, true, "Subject: c\r\n\r\n"+noise(1, 3*seal.ChunkSize))
		}},
		{"hop box for the relay", func(t *testing.T, l *lab) (file, *node, *node, string) { return relayed(t, l, false) }},
		{"hop box for the destination", func(t *testing.T, l *lab) (file, *node, *node, string) { return relayed(t, l, true) }},
	} {
		t.Run(s.name, func(t *testing.T) {
			l := newLab(t)
			good, from, to, text := s.make(t, l)
			before := len(to.sink.mails())
			check := func(what string) {
				t.Helper()
				if n := len(to.items()); n != 0 {
					t.Fatalf("%s: %d items were entered", what, n)
				}
				if n := len(to.sink.mails()); n != before {
					t.Fatalf("%s: something was delivered", what)
				}
			}
			try := func(what string, data []byte) {
				t.Helper()
				err := to.b.ReceiveFrom(context.Background(), from.keys.ID(), int64(len(data)), bytes.NewReader(data))
				if !errors.Is(err, transport.ErrRefused) && !errors.Is(err, transport.ErrIncomplete) {
					t.Fatalf("%s, handed over: %v", what, err)
				}
				check(what + ", handed over")
				bad := good
				bad.data = data
				l.put("one", bad)
				l.put("left", bad)
				l.put("right", bad)
				for _, r := range to.contact() {
					if r.Err != nil {
						t.Fatalf("%s, on a stick: %v", what, r.Err)
					}
					if r.Stats.PacketsIn != 0 {
						t.Fatalf("%s, on a stick: taken: %+v", what, r.Stats)
					}
				}
				check(what + ", on a stick")
			}
			for _, n := range around(borders(good.data), len(good.data)) {
				try(fmt.Sprintf("cut at %d", n), good.data[:n])
			}
			for _, at := range flips(good.data) {
				bad := slices.Clone(good.data)
				bad[at] ^= 1 << (at % 8)
				try(fmt.Sprintf("bit inverted at %d", at), bad)
			}
			try("a byte more", append(slices.Clone(good.data), 0))
			if len(to.quarantined()) == 0 {
				t.Error("nothing is in quarantine")
			}
			l.put("one", good)
			l.put("left", good)
			l.put("right", good)
			to.meet()
			l.put("one", good)
			l.put("left", good)
			l.put("right", good)
			to.meet()
			if err := to.b.ReceiveFrom(context.Background(), from.keys.ID(), int64(len(good.data)), bytes.NewReader(good.data)); err != nil {
				t.Errorf("the good copy once more: %v", err)
			}
			to.deliver()
			if to.name == "relay" {
				if n := len(to.items()); n != 1 {
					t.Errorf("the relay holds %d items after the good copy", n)
				}
				return
			}
			if n := to.sink.count("bob@gamma.example", text); n != 1 {
				t.Errorf("delivered %d times", n)
			}
		})
	}
}

// warmUp lets two neighbours exchange a mail each way, so that their session is confirmed.
func warmUp(l *lab, a, c *node) {
	a.submit("ana@"+a.name+".example", "warm@"+c.name+".example", "Subject: warm\r\n\r\nup\r\n")
	for range 4 {
		a.meet()
		c.meet()
	}
	l.set(l.clock().Add(time.Minute))
}

// chain makes three nodes neighbours in a row, with mail between the ends going through the middle.
func chain(a, r, c *node) {
	a.knows(r, "dir:left")
	a.knows(c, "", r)
	r.knows(a, "dir:left")
	r.knows(c, "dir:right")
	c.knows(r, "dir:right")
	c.knows(a, "", r)
}

// TestForgedCopyHidesNothing lays packets on a stick that begin like a good one, under names that fit them: a courier
// can make these. The good one is taken all the same, whichever is read first, also by a new process.
func TestForgedCopyHidesNothing(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	text := mail(a, c, "the good one")
	a.meet()
	good := l.take("one", a, c)[0]
	var forged []file
	for _, at := range []int{33, 36, 500, 1200, 1293, len(good.data) - 20, len(good.data) - 1} {
		f := file{dir: good.dir, data: slices.Clone(good.data)}
		f.data[at] ^= 0x10
		f.name = packetID(f.data)
		forged = append(forged, f)
	}
	l.put("one", forged...)
	c.meet()
	c.reopen()
	c.meet()
	if n := len(c.sink.mails()); n != 0 {
		t.Fatalf("%d mails of forged packets", n)
	}
	q := len(c.quarantined())
	if q != len(forged) {
		t.Errorf("%d forged packets, %d in quarantine", len(forged), q)
	}
	l.put("one", good)
	c.meet()
	once(t, c, text)
	c.reopen()
	c.meet()
	if n := len(c.quarantined()); n != q {
		t.Errorf("the quarantine grew from %d to %d", q, n)
	}
	l.settle(5, a, c)
	once(t, c, text)
	mustEmpty(t, a, c)
}
