package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mochila/internal/envelope"
	"mochila/transport"
	"mochila/transport/transporttest"
)

var (
	ship  = envelope.Label{1}
	shore = envelope.Label{2}
)

// someSet writes packets of these sizes and returns them with the stream, one part after the other if there are several.
func someSet(t testing.TB, o Options, sizes ...int) ([]*transport.Packet, [][]byte) {
	t.Helper()
	var all []*transport.Packet
	for i, n := range sizes {
		all = append(all, transporttest.Packet(1, transporttest.Random(uint64(i)<<32+uint64(n), n)))
	}
	o.From, o.To = ship, shore
	if o.Set == (SetID{}) {
		o.Set = SetID{9, byte(o.Data), byte(o.Parity)}
	}
	var one bytes.Buffer
	w, err := NewWriter(&one, o)
	if err != nil {
		t.Fatal(err)
	}
	st := transporttest.NewStation("", all...)
	if _, err := (Link{W: w}).Run(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if st.Left() != 0 {
		t.Fatalf("%d packets left", st.Left())
	}
	if w.Written() != int64(one.Len()) {
		t.Fatalf("%d bytes said, %d written", w.Written(), one.Len())
	}
	parts := make([][]byte, max(o.Data, 1)+o.Parity)
	s := NewScanner(&one)
	for {
		h, raw, err := s.Raw()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		parts[h.Shard] = append(parts[h.Shard], raw...)
	}
	if s.Damaged != 0 || s.Garbage != 0 {
		t.Fatalf("own stream: %+v", s.Scan)
	}
	return all, parts
}

func importer(t testing.TB, dir string) *Importer {
	t.Helper()
	m, err := OpenImporter(dir, ImporterOptions{Self: shore, Peer: func(l envelope.Label) bool { return l == ship }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// feed imports streams, together.
func feed(t testing.TB, m *Importer, st *transporttest.Station, streams ...[]byte) ([]SetReport, []*Scanner) {
	t.Helper()
	run, err := m.Begin(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	var scanners []*Scanner
	for _, b := range streams {
		scanners = append(scanners, NewScanner(bytes.NewReader(b)))
	}
	err = Merge(func(h Header, raw []byte) error {
		return run.Add(t.Context(), &Block{h, raw[HeaderSize:]})
	}, scanners...)
	reports, e := run.End()
	if err := errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	return reports, scanners
}

var someSizes = []int{33, 500, 1000, 70_000, 64, 300_000, 100, 2_000, 150_000, 40}

func TestWholeStream(t *testing.T) {
	for _, o := range []Options{{}, {Block: 64}, {Block: 1000}, {Data: 1, Parity: 2}, {Data: 3}, {Data: 3, Parity: 2, Block: 512}, {Data: 7, Parity: 1, Block: 5000}, {Data: 200, Parity: 56, Block: 100}} {
		t.Run(fmt.Sprintf("%d+%d blocks of %d", o.Data, o.Parity, o.Block), func(t *testing.T) {
			all, parts := someSet(t, o, someSizes...)
			m := importer(t, t.TempDir())
			defer m.Close()
			st := transporttest.NewStation("")
			got, _ := feed(t, m, st, parts...)
			transporttest.RequireReceived(t, st, all...)
			if len(got) != 1 || !got[0].Complete || got[0].Packets != len(all) || got[0].Missing != 0 {
				t.Errorf("report %+v", got)
			}
			// Once more: nothing new, and nothing is kept.
			got, _ = feed(t, m, st, parts...)
			if len(got) != 1 || !got[0].Complete || got[0].Packets != 0 || got[0].Repeats == 0 {
				t.Errorf("second time: %+v", got)
			}
			if e, _ := m.root.Open("."); e != nil {
				names, _ := e.Readdirnames(-1)
				e.Close()
				for _, n := range names {
					d, _ := m.root.Open(n)
					files, _ := d.Readdirnames(-1)
					d.Close()
					if !slices.Equal(files, []string{"state"}) {
						t.Errorf("left in %s: %q", n, files)
					}
				}
			}
		})
	}
}

// blocks cuts a stream into its blocks.
func blocks(t testing.TB, b []byte) (all [][]byte) {
	t.Helper()
	s := NewScanner(bytes.NewReader(b))
	for {
		_, raw, err := s.Raw()
		if err == io.EOF {
			return all
		}
		all = append(all, bytes.Clone(raw))
	}
}

// Blocks in any order, repeated, with rubbish between them, in two runs with a restart between them.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		o := Options{Block: 64 + r.IntN(5000), Data: 1 + r.IntN(4), Parity: r.IntN(3)}
		all, parts := someSet(t, o, someSizes...)
		var mixed [][]byte
		for _, p := range parts {
			mixed = append(mixed, blocks(t, p)...)
		}
		mixed = append(mixed, mixed[:len(mixed)/3]...)
		r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		var halves [2]bytes.Buffer
		for _, b := range mixed {
			h := &halves[r.IntN(2)]
			h.Write(b)
			if r.IntN(3) == 0 {
				h.Write(transporttest.Random(r.Uint64(), r.IntN(300)))
			}
			if r.IntN(9) == 0 {
				h.Write(b[:r.IntN(len(b))]) // cut off
			}
			if r.IntN(9) == 0 {
				h.Write(magic)
			}
		}
		dir := t.TempDir()
		st := transporttest.NewStation("")
		m := importer(t, dir)
		feed(t, m, st, halves[0].Bytes())
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		m = importer(t, dir)
		got, _ := feed(t, m, st, halves[1].Bytes())
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		// Fragments may swallow a block: a second look at the media brings it.
		if !got[0].Complete {
			m = importer(t, dir)
			got, _ = feed(t, m, st, parts...)
			m.Close()
		}
		transporttest.RequireReceived(t, st, all...)
		if !got[0].Complete {
			t.Errorf("seed %d: %+v", seed, got)
		}
		for _, p := range all {
			if n := st.Received(p.ID); n != 1 {
				t.Errorf("seed %d: packet %s received %d times", seed, p.ID, n)
			}
		}
	}
}

// Any N of N+M parts restore everything; with one fewer the report says what is missing, and the next part completes it.
func TestAnyPartsRestore(t *testing.T) {
	const n, k = 3, 2
	all, parts := someSet(t, Options{Data: n, Parity: k, Block: 4096}, someSizes...)
	for mask := range 1 << (n + k) {
		var some [][]byte
		var numbers []int
		for i, p := range parts {
			if mask>>i&1 == 1 {
				some = append(some, p)
				numbers = append(numbers, i+1)
			}
		}
		if len(some) != n && len(some) != n-1 {
			continue
		}
		m := importer(t, t.TempDir())
		st := transporttest.NewStation("")
		got, _ := feed(t, m, st, some...)
		if len(some) < n {
			if got[0].Complete || st.Count() != 0 || !slices.Equal(got[0].Parts, numbers) || got[0].Data != n {
				t.Errorf("parts %v: %+v", numbers, got)
			}
			for i, p := range parts {
				if mask>>i&1 == 0 {
					got, _ = feed(t, m, st, p)
					break
				}
			}
		}
		if !got[0].Complete {
			t.Errorf("parts %v: %+v", numbers, got)
		}
		transporttest.RequireReceived(t, st, all...)
		m.Close()
	}
}

// Each part has rotten places, but no stripe has more than M of them.
func TestRotIsSurvived(t *testing.T) {
	const n, k = 4, 2
	all, parts := someSet(t, Options{Data: n, Parity: k, Block: 1024}, someSizes...)
	r := rand.New(rand.NewPCG(4, 4))
	stripes := len(blocks(t, parts[0]))
	size := HeaderSize + 1024
	for s := range stripes - 1 {
		for _, part := range r.Perm(n + k)[:k] {
			parts[part][s*size+r.IntN(size)] ^= 1 << r.IntN(8)
		}
	}
	m := importer(t, t.TempDir())
	defer m.Close()
	st := transporttest.NewStation("")
	got, scans := feed(t, m, st, parts...)
	transporttest.RequireReceived(t, st, all...)
	damaged := int64(0)
	for _, s := range scans {
		damaged += s.Damaged + s.Garbage
	}
	if !got[0].Complete || damaged == 0 {
		t.Errorf("%+v, damaged %d", got, damaged)
	}
}

// A gap costs only the packets that it touches, and is named; another copy fills it.
func TestGap(t *testing.T) {
	sizes := make([]int, 100)
	for i := range sizes {
		sizes[i] = 900
	}
	all, parts := someSet(t, Options{Block: 1024}, sizes...)
	whole := bytes.Clone(parts[0])
	size := HeaderSize + 1024
	holed := slices.Concat(whole[:10*size], whole[13*size:])
	m := importer(t, t.TempDir())
	defer m.Close()
	st := transporttest.NewStation("")
	got, _ := feed(t, m, st, holed)
	if got[0].Missing != 3 || got[0].Complete || st.Count() < 94 || st.Count() > 97 {
		t.Errorf("%d of %d packets; %+v", st.Count(), len(all), got)
	}
	got, _ = feed(t, m, st, whole[10*size:12*size])
	if got[0].Missing != 1 {
		t.Errorf("%+v", got)
	}
	got, _ = feed(t, m, st, whole)
	transporttest.RequireReceived(t, st, all...)
	if !got[0].Complete {
		t.Errorf("%+v", got)
	}
}

// Cut anywhere: what is whole is taken, and the rest comes with the next look.
func TestCutAnywhere(t *testing.T) {
	all, parts := someSet(t, Options{Block: 256}, 300, 40, 500, 256, 223)
	for at := 0; at < len(parts[0]); at += 13 {
		m := importer(t, t.TempDir())
		st := transporttest.NewStation("")
		feed(t, m, st, parts[0][:at])
		got, _ := feed(t, m, st, parts[0][at/2:])
		if !got[0].Complete {
			got, _ = feed(t, m, st, parts[0])
		}
		transporttest.RequireReceived(t, st, all...)
		if !got[0].Complete {
			t.Fatalf("cut at %d: %+v", at, got)
		}
		m.Close()
	}
}

// Trouble of this node's own loses nothing: the next run, of whatever, brings the packet.
func TestTakerInTrouble(t *testing.T) {
	all, parts := someSet(t, Options{Block: 512}, someSizes...)
	m := importer(t, t.TempDir())
	defer m.Close()
	st := transporttest.NewStation("")
	full := errors.New("disk is full")
	st.OnReceive = func(transport.ID, int64) error {
		if st.Count() >= 4 {
			return full
		}
		return nil
	}
	run, err := m.Begin(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	err = Merge(func(h Header, raw []byte) error { return run.Add(t.Context(), &Block{h, raw[HeaderSize:]}) }, NewScanner(bytes.NewReader(parts[0])))
	if !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	run.End()
	st.OnReceive = nil
	feed(t, m, st)
	if st.Count() != 5 {
		t.Errorf("%d packets after a run without a medium, want 5", st.Count())
	}
	feed(t, m, st, parts[0])
	transporttest.RequireReceived(t, st, all...)
}

// A medium is filled with what fits, and not a byte more.
func TestSize(t *testing.T) {
	for _, o := range []Options{{Block: 4096, Size: 100_000}, {Data: 3, Parity: 1, Block: 1000, Size: 50_000}, {Size: 200}, {Size: 10}} {
		o.From, o.To = ship, shore
		var b bytes.Buffer
		w, err := NewWriter(&b, o)
		if err != nil {
			t.Fatal(err)
		}
		for w.Room() > 0 {
			n := min(w.Room(), 3000)
			if err := w.Packet(context.Background(), transporttest.Packet(0, transporttest.Random(1, int(n)))); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Packet(context.Background(), transporttest.Packet(0, []byte("x"))); !errors.Is(err, transport.ErrFull) {
			t.Errorf("got %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if int64(b.Len()) > o.Size || o.Size > 1000 && int64(b.Len()) < o.Size*97/100 {
			t.Errorf("%d bytes for %d", b.Len(), o.Size)
		}
	}
}

// A packet whose bytes are not those of its name, or cannot be read, does not spoil the rest.
func TestBadPacketInStream(t *testing.T) {
	bad := transporttest.Packet(0, transporttest.Random(1, 5000))
	bad.Open = transporttest.Packet(0, transporttest.Random(2, 5000)).Open
	short := transporttest.Packet(0, transporttest.Random(3, 5000))
	short.Open = func(int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(make([]byte, 100))), nil }
	good := transporttest.Packet(0, transporttest.Random(4, 5000))
	var b bytes.Buffer
	w, err := NewWriter(&b, Options{From: ship, To: shore, Block: 700})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range []*transport.Packet{bad, good, short, good} {
		if err := w.Packet(t.Context(), p); (err == nil) != (p == good) {
			t.Errorf("packet %d: %v", i, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	m := importer(t, t.TempDir())
	defer m.Close()
	st := transporttest.NewStation("")
	got, _ := feed(t, m, st, b.Bytes())
	transporttest.RequireReceived(t, st, good)
	if got[0].Damaged != 2 || got[0].Known != 1 || !got[0].Complete {
		t.Errorf("%+v", got)
	}
}

// Others' sets, and strangers', are passed over.
func TestForOthers(t *testing.T) {
	all, parts := someSet(t, Options{Block: 512}, 1000, 2000)
	m, err := OpenImporter(t.TempDir(), ImporterOptions{Self: ship, Peer: func(envelope.Label) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	st := transporttest.NewStation("")
	if got, _ := feed(t, m, st, parts[0]); len(got) != 0 || st.Count() != 0 {
		t.Errorf("%+v", got)
	}
	_ = all
}

// TestSticksOfTwoExports: sticks of two exports get mixed up, in many shapes, cut short and with flipped bits. Each export is restored from its
// own, and when one stick too few is whole, the report names that export, and what is missing.
func TestSticksOfTwoExports(t *testing.T) {
	for _, c := range []struct{ n, m int }{{1, 1}, {2, 1}, {3, 2}, {5, 3}, {20, 5}} {
		t.Run(fmt.Sprintf("%d+%d", c.n, c.m), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(c.n), uint64(c.m)))
			shape := Options{Data: c.n, Parity: c.m, Block: 1024}
			shape.Set = SetID{1}
			first, a := someSet(t, shape, 33, 5_000, 40_000)
			shape.Set = SetID{2}
			second, b := someSet(t, shape, 34, 6_000, 30_000, 700)
			all := c.n + c.m

			// M sticks of each are lost, in all ways that there are: gone, cut short, rotten from end to end.
			ruined := func(parts [][]byte) (left [][]byte, whole []int) {
				bad := r.Perm(all)[:c.m]
				for i, p := range parts {
					p = bytes.Clone(p)
					if !slices.Contains(bad, i) {
						left, whole = append(left, p), append(whole, i)
						continue
					}
					switch r.IntN(3) {
					case 0:
						left = append(left, p[:r.IntN(len(p))])
					case 1:
						for at := r.IntN(HeaderSize + 1024); at < len(p); at += HeaderSize + 1024 {
							p[at] ^= 1 << r.IntN(8)
						}
						left = append(left, p)
					}
				}
				return left, whole
			}
			here, _ := ruined(a)
			there, whole := ruined(b)
			sticks := append(here, there...)
			r.Shuffle(len(sticks), func(i, j int) { sticks[i], sticks[j] = sticks[j], sticks[i] })
			m := importer(t, t.TempDir())
			defer m.Close()
			st := transporttest.NewStation("")
			for _, s := range sticks { // one after the other, as somebody plugs them in
				feed(t, m, st, s)
			}
			transporttest.RequireReceived(t, st, append(first, second...)...)
			if n := st.Count(); n != len(first)+len(second) {
				t.Errorf("%d packets came, want %d", n, len(first)+len(second))
			}

			// All of the first, and one too few of the second.
			m2 := importer(t, t.TempDir())
			defer m2.Close()
			st = transporttest.NewStation("")
			some := slices.Clone(a)
			for _, i := range whole[1:] {
				some = append(some, b[i])
			}
			reports, _ := feed(t, m2, st, some...)
			transporttest.RequireReceived(t, st, first...)
			var lacking []SetReport
			for _, x := range reports {
				if !x.Complete {
					lacking = append(lacking, x)
				}
			}
			if c.n == 1 { // nothing of the second is there, and nobody can know of it
				if len(lacking) != 0 {
					t.Errorf("%+v", lacking)
				}
				return
			}
			if len(lacking) != 1 || !strings.HasPrefix(lacking[0].Set, "02") || lacking[0].Data != c.n || len(lacking[0].Parts) != c.n-1 {
				t.Errorf("one stick too few: %+v", lacking)
			}
		})
	}
}
