package seal

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
)

var sizes = []int{0, 1, 100, ChunkSize - 1, ChunkSize, ChunkSize + 1, 2 * ChunkSize, 3*ChunkSize + 17}

// Streaming and in-memory sealing give the same bytes, SealedSize is exact, and every way of opening gives the
// content back.
func TestItemRoundTrip(t *testing.T) {
	_, _, i, r := pair(t)
	for _, n := range sizes {
		for _, offer := range []bool{false, true} {
			content := pattern(n)
			small := mustItem(t, i, 7, offer, content)
			if got, want := int64(len(small)), SealedSize(int64(n), offer); got != want {
				t.Errorf("%d bytes, offer %v: item of %d bytes, SealedSize %d", n, offer, got, want)
			}
			for _, step := range []int{1000, ChunkSize, 3 * ChunkSize} {
				var buf bytes.Buffer
				w, err := i.SealItem(&buf, 7, salt(7), offer, false)
				if err != nil {
					t.Fatal(err)
				}
				for p := content; len(p) > 0; {
					m := min(step, len(p))
					if _, err := w.Write(p[:m]); err != nil {
						t.Fatal(err)
					}
					p = p[m:]
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if err := w.Close(); err != nil {
					t.Error("second Close:", err)
				}
				if !bytes.Equal(buf.Bytes(), small) {
					t.Fatalf("%d bytes in steps of %d: another item than AppendItem's", n, step)
				}
			}
			h, err := ParseHeader(small)
			if err != nil {
				t.Fatal(err)
			}
			if h.Offer() != offer || h.Payload() || !bytes.Equal(h.Append(nil), small[:HeaderSize]) {
				t.Errorf("header %+v", h)
			}
			seq, ok := r.Match(h)
			if !ok || seq != 7 {
				t.Fatalf("Match = %d, %v", seq, ok)
			}
			for name, src := range map[string]io.Reader{
				"bytes": bytes.NewReader(small[h.BodyStart():]),
				"half":  iotest.HalfReader(bytes.NewReader(small[h.BodyStart():])),
				"eof":   iotest.DataErrReader(bytes.NewReader(small[h.BodyStart():])),
			} {
				got, err := io.ReadAll(r.OpenItem(h, seq, src))
				if err != nil || !bytes.Equal(got, content) {
					t.Fatalf("%s: %d bytes: opened %d bytes, %v", name, n, len(got), err)
				}
			}
			var direct bytes.Buffer
			if _, err := io.CopyBuffer(struct{ io.Writer }{&direct}, r.OpenItem(h, seq, bytes.NewReader(small[h.BodyStart():])), make([]byte, 2*ChunkSize)); err != nil || !bytes.Equal(direct.Bytes(), content) {
				t.Fatalf("large buffer: %d bytes, %v", direct.Len(), err)
			}
			got, _, seq, err := r.OpenSmall(small)
			if err != nil || seq != 7 || !bytes.Equal(got, content) {
				t.Fatalf("OpenSmall: %d bytes of item %d, %v", len(got), seq, err)
			}
		}
	}
}

// What was opened of an item is sealed again to the bytes that it came in, up to the last chunk.
func TestResealItem(t *testing.T) {
	_, _, i, r := pair(t)
	content := pattern(3*ChunkSize + 17)
	item := mustItem(t, i, 7, false, content)
	h, err := ParseHeader(item)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, ChunkSize, ChunkSize + 1, len(content)} {
		for chunk := range (n + ChunkSize - 1) / ChunkSize {
			var b bytes.Buffer
			w, err := r.ResealItem(&b, h, 7, uint64(chunk))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(content[chunk*ChunkSize : n]); err != nil {
				t.Fatal(err)
			}
			want := (max(0, n-1)/ChunkSize - chunk) * sealedChunk
			if b.Len() != want || !bytes.HasPrefix(item[h.BodyStart()+chunk*sealedChunk:], b.Bytes()) {
				t.Errorf("%d bytes of content from chunk %d on: %d bytes sealed again, want %d, or others", n, chunk, b.Len(), want)
			}
		}
	}
	if _, err := r.ResealItem(io.Discard, h, 8, 0); err != ErrNoMatch {
		t.Errorf("under another number: %v", err)
	}
}
