package bridge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// sparing is a packet on a fast line that ends at cut, without the last byte or with one that is damaged.
type sparing struct {
	pausing
	from         int64
	spared, late bool
	read         atomic.Int64
	filled       []byte
	lacks        int64 // what was read and is not in filled
}

func (s *sparing) Read(b []byte) (int, error) {
	n, err := s.pausing.Read(b)
	s.read.Add(int64(n))
	return n, err
}

func (s *sparing) ID() transport.ID             { return transport.ID{1} }
func (s *sparing) Vouch()                       {}
func (s *sparing) Verify(context.Context) error { return transport.ErrIncomplete }
func (s *sparing) Spare() bool                  { s.spared = true; return true }
func (s *sparing) Late() bool                   { return s.late && s.filled == nil }

func (s *sparing) Refill(again func(io.Writer, int64) error) error {
	var b bytes.Buffer
	read := s.read.Load()
	err := again(&b, s.from)
	s.filled, s.lacks = b.Bytes(), read-s.from-int64(b.Len())
	return err
}

// TestSparedBundle: wherever a large bundle breaks off, the node makes it again up to there, but for what is on its way between the
// line and the disk.
func TestSparedBundle(t *testing.T) {
	const ahead = 512 << 10 // as much as the carrier keeps
	l := newLab(t)
	a, c := l.pair()
	text := "Subject: large\r\n\r\n" + strings.NewReplacer("\r", "x", "\n", "\r\n").Replace(string(transporttest.Random(3, 6<<20)))
	a.submit("ana@alpha.example", "bob@gamma.example", text)
	a.meet()
	var packet []byte
	for _, f := range l.take("one", a, c) {
		if len(f.data) > len(packet) {
			packet = f.data
		}
	}
	if len(packet) < 6<<20 {
		t.Fatalf("a packet of %d bytes", len(packet))
	}
	for _, x := range []struct {
		name string
		from int64
		cut  int
		late bool
		flip bool
	}{
		{name: "cut early", cut: 900_000}, {name: "cut", from: 5, cut: 3_000_001}, {name: "cut again", from: 2_000_001, cut: 4_000_001}, {name: "before the last byte", from: int64(len(packet) - 1_000_000), cut: len(packet) - 1},
		{name: "damaged", cut: 4 << 20, flip: true}, {name: "late, then cut", cut: 5 << 20, late: true}, {name: "late", cut: len(packet), late: true},
	} {
		s := &sparing{late: x.late, from: x.from}
		s.data = bytes.Clone(packet[:x.cut])
		var r io.Reader = s
		if x.flip {
			s.data[x.cut-70_000] ^= 1
		} else if x.cut < len(packet) {
			s.data = append(s.data, make([]byte, x.cut)...)
			s.then = func() error { return fmt.Errorf("cut: %w", transport.ErrIncomplete) }
		}
		err := c.b.ReceiveFrom(context.Background(), a.keys.ID(), int64(len(packet)), r)
		if whole := x.cut == len(packet); (err == nil) != whole || !s.spared || (s.filled != nil) != (x.late || !whole) {
			t.Errorf("%s: %v; spared: %v, %d bytes made again", x.name, err, s.spared, len(s.filled))
		}
		if !bytes.HasPrefix(packet[x.from:], s.filled) || s.lacks > ahead {
			t.Errorf("%s: %d bytes made again, or others; %d are lacking", x.name, len(s.filled), s.lacks)
		}
	}
}
