package seal

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"mochila/internal/envelope"
)

// open opens an item the two ways there are and checks that they agree on the outcome.
func open(t testing.TB, s *Session, item []byte) ([]byte, error) {
	t.Helper()
	small, _, _, smallErr := s.OpenSmall(item)
	h, err := ParseHeader(item)
	if err != nil {
		return nil, err
	}
	seq, ok := s.Match(h)
	if !ok {
		return nil, ErrNoMatch
	}
	if len(item) < h.BodyStart() || h.Offer() && !s.SameOffer(item[HeaderSize:h.BodyStart()]) {
		return small, smallErr
	}
	streamed, err := io.ReadAll(s.OpenItem(h, seq, bytes.NewReader(item[h.BodyStart():])))
	if (err == nil) != (smallErr == nil) || err == nil && !bytes.Equal(small, streamed) {
		t.Errorf("in memory: %v; streamed: %v", smallErr, err)
	}
	for _, sentinel := range []error{ErrCorrupt, ErrTruncated} {
		if len(item)-h.BodyStart() <= sealedChunk && errors.Is(err, sentinel) != errors.Is(smallErr, sentinel) {
			t.Errorf("in memory: %v; streamed: %v", smallErr, err)
		}
	}
	return streamed, err
}

// Every bit of header, offer and tag of a small item counts.
func TestItemBits(t *testing.T) {
	_, _, i, r := pair(t)
	for _, offer := range []bool{false, true} {
		item := mustItem(t, i, 77, offer, []byte("a small item"))
		for n := range item {
			for bit := range 8 {
				item[n] ^= 1 << bit
				got, err := open(t, r, item)
				if len(got) > 0 || err == nil {
					t.Fatalf("byte %d bit %d flipped: opened %q, %v", n, bit, got, err)
				}
				if n < 2 && !errors.Is(err, envelope.ErrFormat) && !errors.Is(err, ErrNoMatch) {
					t.Errorf("byte %d bit %d: %v", n, bit, err)
				}
				if n >= HeaderSize && !errors.Is(err, ErrCorrupt) {
					t.Errorf("byte %d bit %d: %v", n, bit, err)
				}
				item[n] ^= 1 << bit
			}
		}
		if _, err := open(t, r, item); err != nil {
			t.Fatal(err)
		}
	}
}

// The bits at the edges of every chunk count.
func TestChunkEdges(t *testing.T) {
	_, _, i, r := pair(t)
	item := mustItem(t, i, 1, false, pattern(2*ChunkSize+100))
	for _, start := range []int{HeaderSize, HeaderSize + sealedChunk, HeaderSize + 2*sealedChunk, len(item)} {
		for _, n := range []int{start - 17, start - 16, start - 15, start - 1, start, start + 1} {
			if n < HeaderSize || n >= len(item) {
				continue
			}
			for bit := range 8 {
				item[n] ^= 1 << bit
				if _, err := open(t, r, item); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("byte %d bit %d flipped: %v", n, bit, err)
				}
				item[n] ^= 1 << bit
			}
		}
	}
}

// An item cut at any boundary, or beside one, is refused; a cut between chunks is called truncation.
func TestCuts(t *testing.T) {
	_, _, i, r := pair(t)
	for _, size := range []int{0, 1, ChunkSize, ChunkSize + 1, 2 * ChunkSize, 2*ChunkSize + 100} {
		for _, offer := range []bool{false, true} {
			item := mustItem(t, i, 1, offer, pattern(size))
			h, _ := ParseHeader(item)
			cuts := []int{0, 1, HeaderSize, h.BodyStart()}
			for at := h.BodyStart(); at <= len(item); at += sealedChunk {
				cuts = append(cuts, at, at+Overhead)
			}
			cuts = append(cuts, len(item))
			for _, at := range cuts {
				for _, n := range []int{at - 1, at, at + 1} {
					if n < 0 || n >= len(item) {
						continue
					}
					_, err := open(t, r, item[:n])
					if err == nil {
						t.Fatalf("item of %d bytes cut to %d was opened", len(item), n)
					}
					boundary := n >= h.BodyStart() && (n-h.BodyStart())%sealedChunk < Overhead
					if boundary && (!errors.Is(err, ErrTruncated) || !errors.Is(err, io.ErrUnexpectedEOF)) {
						t.Errorf("item of %d bytes cut to %d: %v", len(item), n, err)
					}
				}
			}
		}
	}
}

// Chunks can't be moved, repeated, dropped or added.
func TestChunkOrder(t *testing.T) {
	_, _, i, r := pair(t)
	item := mustItem(t, i, 1, false, pattern(3*ChunkSize))
	other := mustItem(t, i, 2, false, pattern(3*ChunkSize))
	cut := func(b []byte) (head []byte, chunks [][]byte) {
		return b[:HeaderSize], slices.Collect(slices.Chunk(b[HeaderSize:], sealedChunk))
	}
	head, c := cut(item)
	_, o := cut(other)
	for name, x := range map[string]struct {
		chunks [][]byte
		want   error
	}{
		"swapped":                {[][]byte{c[1], c[0], c[2]}, ErrCorrupt},
		"last first":             {[][]byte{c[2], c[0], c[1]}, ErrCorrupt},
		"repeated":               {[][]byte{c[0], c[0], c[1], c[2]}, ErrCorrupt},
		"dropped":                {[][]byte{c[0], c[2]}, ErrCorrupt},
		"last dropped":           {[][]byte{c[0], c[1]}, ErrTruncated},
		"last repeated":          {[][]byte{c[0], c[1], c[2], c[2]}, ErrTrailing},
		"appended full chunk":    {[][]byte{c[0], c[1], c[2], o[2]}, ErrTrailing},
		"appended byte":          {[][]byte{c[0], c[1], c[2], {0}}, ErrTrailing},
		"chunk of another item":  {[][]byte{c[0], o[1], c[2]}, ErrCorrupt},
		"appended after nothing": {[][]byte{{}, {0}}, ErrTruncated},
	} {
		_, err := open(t, r, append(bytes.Clone(head), slices.Concat(x.chunks...)...))
		wantErr(t, name, err, x.want)
	}
	short := mustItem(t, i, 1, false, []byte("short"))
	_, err := open(t, r, append(short, 0))
	wantErr(t, "byte after a short chunk", err, ErrCorrupt)
}

// sealChunks is a sealer that sets the last flags as it is told.
func sealChunks(t testing.TB, s *Session, seq uint64, chunks [][]byte, last []bool) []byte {
	t.Helper()
	h, aead, err := s.sealer(seq, salt(seq), false, false)
	if err != nil {
		t.Fatal(err)
	}
	b := h.Append(nil)
	for n := range chunks {
		nc := nonce(uint64(n), last[n])
		b = aead.Seal(b, nc[:], chunks[n], nil)
	}
	return b
}

// Items of a sealer that breaks the rules are refused though they authenticate.
func TestLastFlag(t *testing.T) {
	_, _, i, r := pair(t)
	full := pattern(ChunkSize)
	for name, x := range map[string]struct {
		chunks [][]byte
		last   []bool
		want   error
	}{
		"right":              {[][]byte{full, full}, []bool{false, true}, nil},
		"early":              {[][]byte{full, full}, []bool{true, true}, ErrTrailing},
		"late":               {[][]byte{full, full}, []bool{false, false}, ErrTruncated},
		"missing in a short": {[][]byte{[]byte("x")}, []bool{false}, ErrTruncated},
		"empty last chunk":   {[][]byte{full, nil}, []bool{false, true}, envelope.ErrFormat},
		"short in between":   {[][]byte{full[:100], full}, []bool{false, true}, ErrCorrupt},
	} {
		_, err := open(t, r, sealChunks(t, i, 1, x.chunks, x.last))
		wantErr(t, name, err, x.want)
	}
}

// What this node sealed itself comes back to it: it is not an item of the peer's.
func TestReflection(t *testing.T) {
	_, _, i, r := pair(t)
	for name, s := range map[string]*Session{"initiator": i, "responder": r} {
		_, err := open(t, s, mustItem(t, s, 1, false, []byte("x")))
		wantErr(t, name, err, ErrNoMatch)
	}
}

// Header and number must belong together, also for a caller that mixes them up.
func TestWrongNumber(t *testing.T) {
	_, _, i, r := pair(t)
	h, err := ParseHeader(mustItem(t, i, 1, false, []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(r.OpenItem(h, 2, bytes.NewReader(nil)))
	wantErr(t, "another number", err, ErrNoMatch)
	_, err = i.AppendItem(nil, MaxSeq+1, salt(1), false, nil)
	wantErr(t, "number too high", err, ErrSequence)
	if b := mustItem(t, i, MaxSeq, false, nil); len(b) != HeaderSize+Overhead {
		t.Errorf("item of %d bytes", len(b))
	}
	_, err = r.SealItem(io.Discard, 1, salt(1), true, false)
	wantErr(t, "responder's offer", err, ErrNoOffer)
}

// The same number with another salt is another key: what a restored node seals never meets what it sealed before.
func TestNumberUsedTwice(t *testing.T) {
	_, _, i, _ := pair(t)
	a, err := i.AppendItem(nil, 5, salt(1), false, make([]byte, 64))
	if err != nil {
		t.Fatal(err)
	}
	b, err := i.AppendItem(nil, 5, salt(2), false, make([]byte, 64))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a[HeaderSize:], b[HeaderSize:]) || bytes.Equal(a[18:HeaderSize], b[18:HeaderSize]) {
		t.Error("key or mask used twice")
	}
	if ItemCheck(5, salt(1)) == ItemCheck(5, salt(2)) || ItemCheck(5, salt(1)) == ItemCheck(6, salt(1)) {
		t.Error("checks do not tell items apart")
	}
}

// A reader's own errors come through, and its unexpected end is truncation.
func TestSourceErrors(t *testing.T) {
	_, _, i, r := pair(t)
	item := mustItem(t, i, 1, false, pattern(3*ChunkSize))
	h, _ := ParseHeader(item)
	body := item[HeaderSize:]
	broken := errors.New("cable")
	for name, x := range map[string]struct {
		src  io.Reader
		want error
	}{
		"error":          {io.MultiReader(bytes.NewReader(body[:100000]), iotest.ErrReader(broken)), broken},
		"unexpected end": {io.MultiReader(bytes.NewReader(body[:100000]), iotest.ErrReader(io.ErrUnexpectedEOF)), ErrTruncated},
		"no progress":    {idle{}, io.ErrNoProgress},
		"error at end":   {io.MultiReader(bytes.NewReader(body), iotest.ErrReader(broken)), broken},
	} {
		src := r.OpenItem(h, 1, x.src)
		_, err := io.ReadAll(src)
		wantErr(t, name, err, x.want)
		_, again := src.Read(make([]byte, 1))
		wantErr(t, name+" again", again, x.want)
	}
	for limit := range 5 {
		w, err := i.SealItem(&limited{left: limit}, 1, salt(1), false, false)
		if err == nil {
			_, err = w.Write(pattern(3 * ChunkSize))
			if err == nil {
				err = w.Close()
			}
			if again := w.Close(); (again == nil) != (err == nil) {
				t.Errorf("closed again: %v after %v", again, err)
			}
		}
		if (limit < 4) != errors.Is(err, errPower) {
			t.Errorf("%d writes: %v", limit, err)
		}
	}
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

// limited takes a number of writes.
type limited struct{ left int }

func (l *limited) Write(p []byte) (int, error) {
	if l.left == 0 {
		return 0, errPower
	}
	l.left--
	return len(p), nil
}

// A gigabyte passes through two chunks of memory.
func TestLargeItemStreams(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 1 << 28
	}
	_, _, i, r := pair(t)
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		w, err := i.SealItem(pw, 1, salt(1), true, false)
		for n, piece := int64(0), make([]byte, 1<<20); err == nil && n < size; n += int64(len(piece)) {
			_, err = w.Write(piece)
		}
		if err == nil {
			err = w.Close()
		}
		pw.CloseWithError(err)
		done <- err
	}()
	head := make([]byte, HeaderSize+OfferSize)
	if _, err := io.ReadFull(pr, head); err != nil {
		t.Fatal(err)
	}
	h, err := ParseHeader(head)
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	src, buf := r.OpenItem(h, 1, pr), make([]byte, 1<<20)
	allocs := testing.AllocsPerRun(100, func() {
		m, err := io.ReadFull(src, buf)
		if n += int64(m); err != nil {
			t.Error(err)
		}
	})
	rest, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, src, buf)
	if err != nil || n+rest != size || <-done != nil {
		t.Errorf("%d bytes, %v", n+rest, err)
	}
	if allocs > 50 { // 16 chunks sealed and opened per run
		t.Errorf("%v allocations per MiB", allocs)
	}
}

func TestHop(t *testing.T) {
	_, hub, i, r := pair(t)
	payload := pattern(1000)
	length, hash, err := HashPayload(bytes.NewReader(payload))
	if err != nil || length != 1000 {
		t.Fatal(length, err)
	}
	want := Hop{Type: PayloadBundle, Dest: hub.ID().Label(), Length: length, PayloadHash: hash, Expiry: start, Class: 3, HopLimit: 20}
	for _, offer := range []bool{false, true} {
		box, err := i.SealHop(9, salt(9), offer, want)
		if err != nil {
			t.Fatal(err)
		}
		h, err := ParseHeader(box)
		if err != nil || !h.Payload() || h.Offer() != offer || len(box) != h.BodyStart()+56 || !offer && len(box) != HopSize {
			t.Fatalf("hop box of %d bytes, %+v, %v", len(box), h, err)
		}
		seq, ok := r.Match(h)
		if !ok || seq != 9 {
			t.Fatal("no match")
		}
		got, err := r.OpenHop(h, seq, append(box, payload...)[h.BodyStart():])
		if err != nil || got != want {
			t.Errorf("opened %+v, %v", got, err)
		}
		for n := range box {
			if n >= HeaderSize && n < h.BodyStart() {
				continue // the offer has its own test
			}
			for bit := range 8 {
				box[n] ^= 1 << bit
				if h, err := ParseHeader(box); err == nil && h.Offer() == offer {
					if seq, ok := r.Match(h); ok {
						if _, err := r.OpenHop(h, seq, box[h.BodyStart():]); err == nil {
							t.Fatalf("byte %d bit %d flipped and opened", n, bit)
						}
					}
				}
				box[n] ^= 1 << bit
			}
		}
		_, err = r.OpenHop(h, seq, box[h.BodyStart():len(box)-1])
		wantErr(t, "cut box", err, ErrTruncated)
		_, err = r.OpenHop(h, 10, box[h.BodyStart():])
		wantErr(t, "another number", err, ErrNoMatch)
	}
	for name, p := range map[string][]byte{
		"shorter": payload[:999], "longer": append(bytes.Clone(payload), 0), "other": pattern(1001)[1:], "none": nil,
	} {
		wantErr(t, "payload "+name, want.CheckPayload(bytes.NewReader(p)), ErrPayload)
	}
	if err := want.CheckPayload(bytes.NewReader(payload)); err != nil {
		t.Error(err)
	}
	wantErr(t, "endless payload", want.CheckPayload(&counterRand{label: "endless"}), ErrPayload)
}

func TestHopRefused(t *testing.T) {
	_, _, i, r := pair(t)
	for name, p := range map[string]Hop{
		"no type": {}, "unknown type": {Type: 3}, "negative": {Type: 1, Length: -1}, "huge": {Type: 1, Length: 1 << 48},
	} {
		if _, err := i.SealHop(1, salt(1), false, p); err == nil {
			t.Errorf("%s was sealed", name)
		}
	}
	good := append([]byte{kindHop, PayloadLayer}, make([]byte, 38)...)
	for name, at := range map[string]int{"kind": 0, "payload type": 1} {
		plain := bytes.Clone(good)
		plain[at] ^= 0x80
		h, aead, err := i.sealer(1, salt(1), false, true)
		if err != nil {
			t.Fatal(err)
		}
		nc := nonce(0, true)
		_, err = r.OpenHop(h, 1, aead.Seal(nil, nc[:], plain, nil))
		wantErr(t, name, err, envelope.ErrFormat)
	}
	// a bundle is no hop box, whatever its content, and a hop box no bundle
	item := mustItem(t, i, 1, false, good)
	h, _ := ParseHeader(item)
	_, err := r.OpenHop(h, 1, item[HeaderSize:])
	wantErr(t, "bundle as hop box", err, envelope.ErrFormat)
	item[1] |= flagPayload
	h, _ = ParseHeader(item)
	_, err = r.OpenHop(h, 1, item[HeaderSize:])
	wantErr(t, "bundle with the flag of a hop box", err, ErrNoMatch)
	late, err := i.SealHop(1, salt(1), false, Hop{Type: 1, Expiry: time.Unix(1<<40, 0)})
	if err != nil {
		t.Fatal(err)
	}
	h, _ = ParseHeader(late)
	if p, err := r.OpenHop(h, 1, late[HeaderSize:]); err != nil || p.Expiry.Unix() != 1<<32-1 {
		t.Errorf("expires %v, %v", p.Expiry, err)
	}
}

func FuzzHeader(f *testing.F) {
	_, _, i, r := pair(f)
	f.Add(mustItem(f, i, 1, true, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			wantErr(t, "header", err, envelope.ErrFormat)
			return
		}
		if !bytes.Equal(h.Append(nil), b[:HeaderSize]) {
			t.Error("not canonical")
		}
		r.Match(h)
	})
}

func FuzzItem(f *testing.F) {
	_, _, i, r := pair(f)
	content := pattern(ChunkSize + 10)
	items := [][]byte{mustItem(f, i, 1, false, content[:20]), mustItem(f, i, 2, true, nil), mustItem(f, i, 3, false, content)}
	for _, item := range items {
		f.Add(item)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := open(t, r, b); err == nil && !slices.ContainsFunc(items, func(x []byte) bool { return bytes.Equal(x, b) }) {
			t.Error("opened what nobody sealed")
		}
	})
}
