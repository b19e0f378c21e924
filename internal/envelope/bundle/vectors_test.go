package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"mochila/internal/envelope"
)

var update = flag.Bool("update", false, "write the vectors of testdata anew (only when the format changes)")

// The vectors are files testdata/NAME.hex, as in the package above. A good one says in its first line what it holds.

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	c := newCodec(t)
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, f := range files {
		first, b := readVector(t, f)
		items, err := readAll(c, bytes.NewReader(b), Limits{MaxRaw: 64 << 20})
		if strings.HasPrefix(filepath.Base(f), "ok-") {
			if err != nil {
				t.Errorf("%s: %v", f, err)
			} else if got := "# holds: " + summary(items); got != first {
				t.Errorf("%s: got %q, want %q", f, got, first)
			}
			continue
		}
		want := strings.TrimPrefix(first, "# error: ")
		switch {
		case err == nil:
			t.Errorf("%s: is accepted, want %q", f, want)
		case !errors.Is(err, envelope.ErrFormat) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrSum):
			t.Errorf("%s: %v is none of the three errors", f, err)
		case !strings.Contains(err.Error(), want):
			t.Errorf("%s: got %q, want %q", f, err, want)
		}
	}
	if n := len(vectors(t)); n != len(files) {
		t.Errorf("%d vectors on disk, %d in the table", len(files), n)
	}
}

// summary tells what a bundle holds in a few words, sums included.
func summary(items []item) string {
	var s []string
	for _, x := range items {
		h := sha256.Sum256(append(x.body, x.content...))
		s = append(s, fmt.Sprintf("%v %d %x", x.typ, len(x.body)+len(x.content), h[:4]))
	}
	return strings.Join(s, ", ")
}

func readVector(t *testing.T, file string) (first string, b []byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, digits, _ := strings.Cut(string(text), "\n")
	b, err = hex.DecodeString(strings.Join(strings.Fields(digits), ""))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return first, b
}

func writeVectors(t *testing.T) {
	t.Helper()
	c := newCodec(t)
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors(t) {
		var out strings.Builder
		if v.err != "" {
			fmt.Fprintf(&out, "# error: %s\n", v.err)
		} else {
			items, err := readAll(c, bytes.NewReader(v.b), Limits{})
			if err != nil {
				t.Fatalf("%s: %v", v.name, err)
			}
			fmt.Fprintf(&out, "# holds: %s\n", summary(items))
		}
		for line := range slices.Chunk(v.b, 32) {
			fmt.Fprintf(&out, "%x\n", line)
		}
		if err := os.WriteFile(filepath.Join("testdata", v.name+".hex"), []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type vector struct {
	name string
	b    []byte
	err  string
}

var head = []byte{Kind, 0x6a, 0, 0, 0, 0x69, 0, 0, 0}

// join is a bundle of the given parts.
func join(parts ...[]byte) []byte { return slices.Concat(append([][]byte{head}, parts...)...) }

func uv(n uint64) []byte { return binary.AppendUvarint(nil, n) }

// stored is a stored frame.
func stored(raw []byte) []byte {
	return slices.Concat([]byte{methodStored}, uv(uint64(len(raw))), raw)
}

// packed is a frame of method 2 or 3 that says it inflates to raw bytes.
func packed(method byte, raw int, z []byte) []byte {
	return slices.Concat([]byte{method}, uv(uint64(raw)), uv(uint64(len(z))), z)
}

// chunked is a frame of method 4 that says it inflates to raw bytes.
func chunked(raw int, chunks ...[]byte) []byte {
	b := append([]byte{methodStream}, uv(uint64(raw))...)
	for _, c := range chunks {
		b = append(append(b, uv(uint64(len(c)))...), c...)
	}
	return append(b, 0)
}

func compress(t *testing.T, raw []byte, o ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderCRC(false)}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(raw, nil)
}

// envelopeRecord is one envelope as it stands in a frame.
func envelopeRecord(n int, content []byte, change ...func(*envelope.Envelope)) []byte {
	e := mail(n, content)
	for _, f := range change {
		f(e)
	}
	h := envelope.AppendEnvelope(nil, e)
	return slices.Concat([]byte{1}, uv(uint64(len(h))), uv(uint64(len(content))), h, content)
}

func vectors(t *testing.T) []vector {
	end := []byte{0}
	card := append([]byte{7, 100}, text(100)...)
	one := envelopeRecord(1, text(300))
	big := envelopeRecord(2, text(MaxFrame))
	zOne, zDict := compress(t, one), compress(t, one, zstd.WithEncoderDictRaw(mailDictID, mailDict))
	zBig := compress(t, big)
	wide := compress(t, append(noise(9, 100), text(20<<20)...), zstd.WithWindowSize(16<<20), zstd.WithSingleSegment(false))
	c := newCodec(t)
	items := sampleItems()
	bad := "bad format: bundle: "
	return []vector{
		{"ok-empty", join(end), ""},
		{"ok-padding", join(stored(card), make([]byte, 5000)), ""},
		{"ok-stored", join(stored(slices.Concat(card, one)), end), ""},
		{"ok-zstd", join(packed(methodZstd, len(one), zOne), end), ""},
		{"ok-dictionary", join(packed(methodDict, len(one), zDict), end), ""},
		{"ok-streamed", join(chunked(len(big), zBig), end), ""},
		{"ok-written-here", write(t, c, Options{}, []item{items[0], items[2], items[3], items[7], items[10]}), ""},

		{"empty", nil, "cut short"},
		{"header-cut", head[:8], "cut short"},
		{"made-zero", []byte{Kind, 0x6a, 0, 0, 0, 0, 0, 0, 0, 0}, "never made"},
		{"kind-1", append([]byte{1}, head[1:]...), bad + "content of kind 1"},
		{"expiry-zero", []byte{Kind, 0, 0, 0, 0, 0x69, 0, 0, 0, 0}, "never expires"},
		{"end-missing", join(stored(card)), "cut short"},
		{"padding-not-zero", join(stored(card), make([]byte, 33000), []byte{1}), "padding is not zero"},
		{"frame-after-the-end", join(end, stored(card), end), "padding is not zero"},
		{"method-5", join([]byte{5, 1, 1, 1}, end), "unknown method 5"},
		{"frame-empty", join([]byte{methodStored, 0}, end), "empty frame"},
		{"frame-size-not-minimal", join([]byte{methodStored, 0x81, 0}, end), "broken number"},
		{"frame-size-cut", join([]byte{methodStored, 0x81}), "cut short"},
		{"frame-size-of-11-bytes", join([]byte{methodStored}, bytes.Repeat([]byte{0xff}, 11)), "broken number"},
		{"frame-size-past-62-bits", join([]byte{methodStored}, uv(1<<63)), "more than 4611686018427387904"},
		{"frames-exceed-the-limit", join([]byte{methodStored}, uv(65<<20)), "exceeds a limit"},
		{"stored-cut", join(stored(one)[:100]), "cut short"},
		{"zstd-too-large", join(packed(methodZstd, MaxFrame+1, zOne), end), "1048577 bytes, more than 1048576"},
		{"zstd-not-smaller", join(packed(methodZstd, len(zOne), zOne), end), "length"},
		{"zstd-cut", join(packed(methodZstd, len(one), zOne)[:50]), "cut short"},
		{"zstd-inflates-to-more", join(packed(methodZstd, len(one)-1, zOne), end), "does not inflate"},
		{"zstd-inflates-to-less", join(packed(methodZstd, len(one)+1, zOne), end), "does not inflate"},
		{"zstd-bomb", join(packed(methodZstd, 1000, compress(t, make([]byte, 50<<20))[:900]), end), "does not inflate"},
		{"zstd-garbage", join(packed(methodZstd, 500, noise(1, 200)), end), "not compressed by method 2"},
		{"zstd-with-the-dictionary", join(packed(methodZstd, len(one), zDict), end), "not compressed by method 2"},
		{"dictionary-not-used", join(packed(methodDict, len(one), zOne), end), "not compressed by method 3"},
		{"dictionary-2", join(packed(methodDict, len(one), compress(t, one, zstd.WithEncoderDictRaw(2, mailDict))), end), "not compressed by method 3"},
		{"zstd-skippable", join(packed(methodZstd, 500, append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zOne...)), end), "not compressed by method 2"},
		{"streamed-too-small", join(chunked(len(one), zOne), end), "streamed frame of only"},
		{"streamed-chunk-after-a-short-one", join(chunked(len(big), zBig[:50], zBig[50:]), end), "after a short one"},
		{"streamed-chunk-too-long", join([]byte{methodStream}, uv(uint64(len(big))), uv(maxChunk+1)), "more than 65536"},
		{"streamed-cut", join(chunked(len(big), zBig)[:100]), "cut short"},
		{"streamed-inflates-to-more", join(chunked(len(big), compress(t, append(slices.Clone(big), 1))), end), "inflates to more"},
		{"streamed-inflates-to-less", join(chunked(len(big), compress(t, big[:len(big)-1])), end), "cut short"},
		{"streamed-with-trailing-bytes", join(chunked(len(big), append(slices.Clone(zBig), 1, 2, 3, 4, 5)), end), "compressed stream"},
		{"streamed-window-above-8-MiB", join(chunked(20<<20, wide), end), "compressed stream"},
		{"streamed-with-the-dictionary", join(chunked(len(big), compress(t, big, zstd.WithEncoderDictRaw(mailDictID, mailDict))), end), "compressed stream"},

		{"record-type-0", join(stored([]byte{0, 1, 1}), end), "not supported by this version"},
		{"record-type-12", join(stored([]byte{12, 1, 1}), end), "not supported by this version"},
		{"record-unknown", join(stored([]byte{200, 1, 1}), end), "not supported by this version"},
		{"record-without-length", join(stored([]byte{7}), end), "cut short"},
		{"record-past-the-frame", join(stored(card[:50]), end), "record of 100 bytes in the last 48"},
		{"record-across-frames", join(stored(one[:200]), stored(one[200:]), end), "more than"},
		{"card-too-long", join(stored(slices.Concat([]byte{7}, uv(8193), make([]byte, 8193))), end), "more than 8192"},
		{"header-too-long", join([]byte{methodStored}, uv(8<<20), []byte{1}, uv(4<<20+1), []byte{0}), "more than 4194304"},
		{"content-past-the-frame", join(stored(slices.Concat([]byte{1, 5}, uv(4000), make([]byte, 300))), end), "more than"},
		{"content-of-another-size", join(stored(envelopeRecord(1, text(300), func(e *envelope.Envelope) { e.Size = 301 })), end), "tells another size"},
		{"content-of-another-sum", join(stored(envelopeRecord(1, text(300), func(e *envelope.Envelope) { e.Sum[5]++ })), end), "does not match"},
		{"no-content-but-a-sum", join(stored(envelopeRecord(1, nil, func(e *envelope.Envelope) { e.Sum[5]++ })), end), "does not match"},
		{"envelope-broken", join(stored(envelopeRecord(1, nil, func(e *envelope.Envelope) { e.Mail.Sender = "\n" })), end), "control character"},
	}
}

// TestPinnedBytes notices when records give other bytes than in the release before. Then Encoding must go up, and
// the sum here with it: packets in flight must not be sealed again with another plaintext.
func TestPinnedBytes(t *testing.T) {
	const encoding, want = 2, "f34a5179cb1418c798faf979fdf5b3f9910e793261ce57da616bf4382a82e4d2"
	if Encoding != encoding {
		t.Fatalf("Encoding is %d, this test knows %d", Encoding, encoding)
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(write(t, newCodec(t), Options{}, pinnedItems()))); got != want {
		t.Errorf("the bundle has SHA-256 %s, not %s", got, want)
	}
}

// pinnedItems reach every method and code path of the writer.
func pinnedItems() []item {
	items := sampleItems()
	for i := range 300 { // more text than a dictionary frame takes
		items = append(items, item{"auth:bob", envelope.RecordEnvelope, nil, generated(i)})
	}
	return items
}

// TestDictionaryIsFrozen repeats what docs/format.md states.
func TestDictionaryIsFrozen(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(mailDict)); sum != mailDictSum || !bytes.Contains(doc, []byte("`"+sum+"`")) {
		t.Errorf("the dictionary has SHA-256 %s; the code says %s", sum, mailDictSum)
	}
	if len(mailDict) > 32<<10 {
		t.Errorf("the dictionary has %d bytes", len(mailDict))
	}
}
