package bundle

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"mochila/internal/envelope"
)

func TestLimits(t *testing.T) {
	c := newCodec(t)
	items := []item{
		{"a", envelope.RecordEnvelope, nil, text(5000)}, {"a", envelope.RecordEnvelope, nil, text(7000)},
		{"b", envelope.RecordCard, noise(1, 1000), nil},
	}
	b := write(t, c, Options{}, items)
	raw := int64(len(envelopeRecord(0, text(5000))) + len(envelopeRecord(1, text(7000))) + 1003)
	for _, l := range []Limits{{MaxRaw: raw}, {MaxContent: 7000}, {MaxRecords: 3}, {raw, 7000, 3}} {
		if _, err := readAll(c, bytes.NewReader(b), l); err != nil {
			t.Errorf("%+v: %v", l, err)
		}
	}
	for _, l := range []Limits{{MaxRaw: raw - 1}, {MaxRaw: 1}, {MaxContent: 6999}, {MaxRecords: 2}} {
		if _, err := readAll(c, bytes.NewReader(b), l); !errors.Is(err, ErrLimit) {
			t.Errorf("%+v: got %v, want ErrLimit", l, err)
		}
	}
}

// TestBadRecordLeavesOthersAlone puts three records that cannot be used between three that can.
func TestBadRecordLeavesOthersAlone(t *testing.T) {
	c := newCodec(t)
	raw := slices.Concat(
		envelopeRecord(1, text(100)),
		envelopeRecord(2, text(200), func(e *envelope.Envelope) { e.Kind, e.Job = envelope.KindJob, &envelope.Job{} }),
		envelopeRecord(3, text(300)),
		envelopeRecord(4, text(400), func(e *envelope.Envelope) { e.Sum[0]++ }),
		[]byte{99, 2, 'h', 'i'},
		envelopeRecord(5, text(500)),
	)
	r := c.NewReader(bytes.NewReader(join(stored(raw), []byte{0})), Limits{})
	var got []string
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case rec.Err != nil && rec.Content != nil:
			b, err := io.ReadAll(rec.Content)
			if rec.Envelope != nil || err != nil || int64(len(b)) != rec.Size || len(rec.Body) == 0 {
				t.Errorf("the unusable envelope gives %v and %d bytes of %d, %v", rec.Envelope, len(b), rec.Size, err)
			}
			got = append(got, "job")
		case rec.Err != nil:
			got = append(got, string(rec.Body))
		default:
			if _, err := io.ReadAll(rec.Content); errors.Is(err, ErrSum) {
				got = append(got, "sum")
			} else if err != nil {
				t.Error(err)
			} else {
				got = append(got, "ok")
			}
		}
	}
	if want := []string{"ok", "job", "ok", "sum", "hi", "ok"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestContentNotRead skips contents, wholly or in part, in frames of each kind.
func TestContentNotRead(t *testing.T) {
	c := newCodec(t)
	items := sampleItems()
	b := write(t, c, Options{}, items)
	for _, take := range []int64{0, 1, 1000} {
		r := c.NewReader(bytes.NewReader(b), Limits{})
		var last io.Reader
		for i := 0; ; i++ {
			rec, err := r.Next()
			if err == io.EOF {
				if i != len(items) {
					t.Errorf("%d records, want %d", i, len(items))
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if last != nil {
				if n, err := last.Read(make([]byte, 10)); n > 0 || err == nil {
					t.Errorf("record %d: the content before it can still be read: %d, %v", i, n, err)
				}
			}
			if last = rec.Content; last != nil {
				if int64(len(items[i].content)) <= take {
					last = nil
				}
				io.CopyN(io.Discard, rec.Content, take)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	}
}

// TestReaderPassesErrorsOn lets the packet break anywhere: the error must come out as it is, never as an end.
func TestReaderPassesErrorsOn(t *testing.T) {
	c := newCodec(t)
	broken := errors.New("the seal is broken")
	b := write(t, c, Options{}, []item{{"a", envelope.RecordEnvelope, nil, text(2 << 20)}, {"b", envelope.RecordEnvelope, nil, noise(1, 1<<20)},
		{"c", envelope.RecordCard, noise(2, 50), nil}})
	for n := 0; n <= len(b); n += max(1, min(len(b)-n, 1+n/3)) {
		for _, shape := range []func(io.Reader) io.Reader{
			func(r io.Reader) io.Reader { return r }, iotest.HalfReader,
		} {
			_, err := readAll(c, shape(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken))), Limits{})
			if !errors.Is(err, broken) {
				t.Fatalf("broken at %d of %d: got %v", n, len(b), err)
			}
		}
	}
}

// TestHostileSizesTakeLittleMemory reads small bundles that announce large things.
func TestHostileSizesTakeLittleMemory(t *testing.T) {
	c := newCodec(t)
	read := func(b []byte) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := readAll(c, bytes.NewReader(b), Limits{}); err == nil {
			t.Error("a hostile bundle is accepted")
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	zeros := compress(t, make([]byte, 50<<20))
	for name, b := range map[string][]byte{
		"header of 4 MiB":       join([]byte{methodStored}, uv(1<<40), []byte{1}, uv(4<<20), uv(1<<39), []byte("x")),
		"content of 1 TiB":      join([]byte{methodStored}, uv(1<<41), envelopeRecord(1, nil)[:1], uv(40), uv(1<<40), make([]byte, 40)),
		"frame of 4 EiB":        join([]byte{methodStream}, uv(1<<62), uv(10), make([]byte, 10)),
		"bomb in a small frame": join(packed(methodZstd, MaxFrame, zeros[:min(len(zeros), MaxFrame-1)]), []byte{0}),
	} {
		read(b) // buffers and decoders are made once
		if got := read(b); got > 3<<20 {
			t.Errorf("%s: %d bytes of input take %d bytes of memory", name, len(b), got)
		}
	}
}

func TestPadding(t *testing.T) {
	c := newCodec(t)
	for _, n := range []int{0, 1, 100, 5000, 70000, 300000} {
		items := []item{{"a", envelope.RecordEnvelope, nil, noise(3, n)}}
		plain := int64(len(write(t, c, Options{}, items)))
		for name, pad := range map[string]func(int64) int64{
			"padme": Padme, "1 MiB": func(n int64) int64 { return max(n, 1<<20) }, "too little": func(int64) int64 { return 3 },
		} {
			b := write(t, c, Options{Pad: pad}, items)
			if want := max(pad(plain), plain); int64(len(b)) != want {
				t.Errorf("%d bytes, %s: got %d, want %d", n, name, len(b), want)
			}
			if got, err := readAll(c, bytes.NewReader(b), Limits{}); err != nil || len(got) != 1 {
				t.Errorf("%d bytes, %s: %d records, %v", n, name, len(got), err)
			}
		}
	}
}

func TestPadme(t *testing.T) {
	for n := int64(1); n < 1<<20; n += 1 + n/50 {
		p := Padme(n)
		if p < n || float64(p) > float64(n)*1.12+1 || Padme(p) != p {
			t.Errorf("Padme(%d) is %d, Padme of that %d", n, p, Padme(p))
		}
	}
	if Padme(0) != 0 || Padme(9) != 10 || Padme(1<<40) != 1<<40 {
		t.Errorf("got %d, %d, %d", Padme(0), Padme(9), Padme(1<<40))
	}
}

func TestWriterRefuses(t *testing.T) {
	c := newCodec(t)
	for name, fill := range map[string]func(w *Writer) error{
		"a short content": func(w *Writer) error { return w.Envelope(mail(1, text(100)), strings.NewReader("short")) },
		"no content":      func(w *Writer) error { return w.Envelope(mail(1, text(100)), nil) },
		"a long content":  func(w *Writer) error { return w.Envelope(mail(1, text(100)), bytes.NewReader(text(101))) },
		"another content": func(w *Writer) error { return w.Envelope(mail(1, text(100)), bytes.NewReader(noise(1, 100))) },
		"a large short content": func(w *Writer) error {
			return w.Envelope(mail(1, text(3<<20)), bytes.NewReader(text(3<<20-1)))
		},
		"a large tiny content":  func(w *Writer) error { return w.Envelope(mail(1, text(3<<20)), strings.NewReader("tiny")) },
		"a large long content":  func(w *Writer) error { return w.Envelope(mail(1, text(3<<20)), bytes.NewReader(text(3<<20+1))) },
		"another large content": func(w *Writer) error { return w.Envelope(mail(1, text(3<<20)), bytes.NewReader(noise(1, 3<<20))) },
		"a broken envelope":     func(w *Writer) error { return w.Envelope(&envelope.Envelope{}, nil) },
		"a broken source": func(w *Writer) error {
			return w.Envelope(mail(1, text(100)), iotest.ErrReader(errors.New("disk")))
		},
		"an envelope as a record": func(w *Writer) error { return w.Record(envelope.RecordEnvelope, []byte("x")) },
		"an unknown record":       func(w *Writer) error { return w.Record(99, nil) },
		"a record too long":       func(w *Writer) error { return w.Record(envelope.RecordCard, make([]byte, 8193)) },
	} {
		w := c.NewWriter(io.Discard, Header{Expires: t0}, Options{})
		if err := w.Record(envelope.RecordInviteProof, make([]byte, 32)); err != nil {
			t.Fatal(err)
		}
		err := fill(w)
		if err == nil {
			t.Errorf("%s is written", name)
		}
		if strings.Contains(name, "content") && !errors.Is(err, ErrSum) {
			t.Errorf("%s: got %v, want ErrSum", name, err)
		}
		if w.Close() == nil || w.Record(envelope.RecordInviteProof, make([]byte, 32)) == nil || w.Frame("x") == nil {
			t.Errorf("%s: the writer goes on", name)
		}
	}
	w := c.NewWriter(io.Discard, Header{Expires: t0}, Options{})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Close() == nil || w.Envelope(mail(1, nil), nil) == nil {
		t.Error("a closed writer goes on")
	}
}

// full takes n bytes and no more.
type full struct{ n int }

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.n {
		return 0, errors.New("no space")
	}
	f.n -= len(p)
	return len(p), nil
}

func TestWriterNoticesAFullDisk(t *testing.T) {
	c := newCodec(t)
	items := []item{{"a", envelope.RecordEnvelope, nil, text(3000)}, {"b", envelope.RecordEnvelope, nil, text(2 << 20)}, {"c", envelope.RecordEnvelope, nil, noise(1, 2<<20)}}
	size := len(write(t, c, Options{}, items))
	for n := 0; n < size; n += 1 + n/2 {
		w := c.NewWriter(&full{n}, Header{Expires: t0}, Options{})
		for i, x := range items {
			if w.Frame(x.trust) == nil {
				w.Envelope(mail(i, x.content), bytes.NewReader(x.content))
			}
		}
		if err := w.Close(); err == nil || !strings.Contains(err.Error(), "no space") {
			t.Errorf("room for %d of %d bytes: got %v", n, size, err)
		}
	}
}

// TestHugeHeader is an envelope whose header alone exceeds a frame.
func TestHugeHeader(t *testing.T) {
	c := newCodec(t)
	for _, content := range [][]byte{{}, text(10), noise(1, 10), text(100000)} {
		e := mail(1, content)
		for len(e.Mail.Recipients) < 2000 {
			e.Mail.Recipients = append(e.Mail.Recipients, envelope.Recipient{Addr: string(text(800)[:700]) + "@x"})
		}
		for i := range e.Mail.Recipients {
			e.Mail.Recipients[i].Addr = strings.NewReplacer("\r", "", "\n", "").Replace(e.Mail.Recipients[i].Addr)
		}
		var out bytes.Buffer
		w := c.NewWriter(&out, Header{Expires: t0}, Options{})
		if err := errors.Join(w.Envelope(e, bytes.NewReader(content)), w.Close()); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(c, &out, Limits{})
		if err != nil || len(got) != 1 || !bytes.Equal(got[0].content, content) {
			t.Errorf("%d bytes of content: %d records, %v", len(content), len(got), err)
		}
	}
}

// TestTrustClassesNeverShare writes the same secret text in two classes: sharing would shrink the second.
func TestTrustClassesNeverShare(t *testing.T) {
	c := newCodec(t)
	secret := noise(7, 4000)
	one := len(write(t, c, Options{}, []item{{"a", envelope.RecordEnvelope, nil, secret}}))
	apart := len(write(t, c, Options{}, []item{{"a", envelope.RecordEnvelope, nil, secret}, {"b", envelope.RecordEnvelope, nil, secret}}))
	same := len(write(t, c, Options{}, []item{{"a", envelope.RecordEnvelope, nil, secret}, {"a", envelope.RecordEnvelope, nil, secret}}))
	if apart < one+4000 {
		t.Errorf("%d bytes alone, %d with another class: the classes share", one, apart)
	}
	if same > one+1000 {
		t.Errorf("%d bytes alone, %d twice in one class", one, same)
	}
}

func TestCodecServesMany(t *testing.T) {
	c := newCodec(t)
	want := write(t, c, Options{}, sampleItems())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got := write(t, c, Options{}, sampleItems()); !bytes.Equal(got, want) {
				t.Error("a writer among others writes other bytes")
			}
			if got, err := readAll(c, bytes.NewReader(want), Limits{}); err != nil || len(got) != len(sampleItems()) {
				t.Errorf("%d records, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

// A content that is not compressed stands in the bundle where the record says.
func TestContentAt(t *testing.T) {
	c := newCodec(t)
	items := []item{{"a", envelope.RecordCard, noise(1, 1000), nil}, {"b", envelope.RecordEnvelope, nil, text(5000)},
		{"c", envelope.RecordEnvelope, nil, noise(2, 300000)}, {"c", envelope.RecordEnvelope, nil, noise(3, 3<<20)}}
	b := write(t, c, Options{}, items)
	r := c.NewReader(iotest.HalfReader(bytes.NewReader(b)), Limits{})
	var at []int64
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Content == nil {
			continue
		}
		content, err := io.ReadAll(rec.Content)
		if err != nil {
			t.Fatal(err)
		}
		if at = append(at, rec.At); rec.At >= 0 && !bytes.HasPrefix(b[rec.At:], content) {
			t.Errorf("content of %d bytes is not at %d", len(content), rec.At)
		}
	}
	if len(at) != 3 || at[0] != -1 || at[1] < 0 || at[2] < at[1] {
		t.Errorf("contents are at %d", at)
	}
}
