package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

var t0 = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func newCodec(t testing.TB) *Codec {
	t.Helper()
	c, err := NewCodec()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mail is an envelope around content, with an id that depends on n only.
func mail(n int, content []byte) *envelope.Envelope {
	id := envelope.NewID(t0)
	copy(id[6:], fmt.Sprintf("%010d", n))
	return &envelope.Envelope{
		ID: id, Kind: envelope.KindMail, Expires: t0.Add(60 * 24 * time.Hour), Size: int64(len(content)), Sum: envelope.SumOf(content),
		Mail: &envelope.Mail{Sender: "ana@camp.example", Recipients: []envelope.Recipient{{Addr: "bob@hub.example"}}},
	}
}

// item is one record as tests write and expect it.
type item struct {
	trust   string
	typ     envelope.RecordType
	body    []byte
	content []byte
}

func write(t testing.TB, c *Codec, o Options, items []item) []byte {
	t.Helper()
	var out bytes.Buffer
	w := c.NewWriter(&out, Header{Expires: t0.Add(time.Hour)}, o)
	for i, x := range items {
		if err := w.Frame(x.trust); err != nil {
			t.Fatal(err)
		}
		var err error
		if x.typ == envelope.RecordEnvelope {
			err = w.Envelope(mail(i, x.content), bytes.NewReader(x.content))
		} else {
			err = w.Record(x.typ, x.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func readAll(c *Codec, r io.Reader, l Limits) (items []item, err error) {
	b := c.NewReader(r, l)
	defer b.Close()
	for {
		r, err := b.Next()
		if err == io.EOF {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		if r.Err != nil {
			return items, r.Err
		}
		x := item{typ: r.Type}
		if r.Type == envelope.RecordEnvelope {
			if x.content, err = io.ReadAll(r.Content); err != nil {
				return items, err
			}
		} else {
			x.body = r.Body
		}
		items = append(items, x)
	}
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func text(n int) []byte {
	return []byte(strings.Repeat("Subject: the weather at camp is fair, and the mail goes on.\r\n", n/60+1)[:n])
}

func sampleItems() []item {
	held := (&envelope.Held{Session: [8]byte{1}, Ranges: envelope.Ranges{{First: 1, Count: 5, Check: envelope.Check{7}}}}).Append(nil)
	return []item{
		{"control", envelope.RecordHeld, held, nil},
		{"control", envelope.RecordCard, noise(1, 1450), nil},
		{"uid:1000", envelope.RecordEnvelope, nil, text(700)},
		{"uid:1000", envelope.RecordEnvelope, nil, []byte{}},
		{"uid:1000", envelope.RecordEnvelope, nil, text(300 << 10)},
		{"net", envelope.RecordEnvelope, nil, noise(2, 900<<10)},
		{"net", envelope.RecordEnvelope, nil, text(200 << 10)},
		{"net", envelope.RecordEnvelope, nil, text(3 << 20)},
		{"net", envelope.RecordEnvelope, nil, noise(3, 2<<20)},
		{"peer:x", envelope.RecordEnvelope, nil, append(noise(4, 100), text(MaxFrame)...)},
		{"control", envelope.RecordInviteProof, noise(5, 32), nil},
	}
}

func TestRoundTrip(t *testing.T) {
	c := newCodec(t)
	want := sampleItems()
	b := write(t, c, Options{}, want)
	r := c.NewReader(bytes.NewReader(b), Limits{})
	if h, err := r.Header(); err != nil || !h.Expires.Equal(t0.Add(time.Hour)) {
		t.Fatalf("got header %v, %v", h, err)
	}
	r.Close()
	got, err := readAll(c, bytes.NewReader(b), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("got %d records, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i].typ != want[i].typ || !bytes.Equal(got[i].body, want[i].body) || !bytes.Equal(got[i].content, want[i].content) {
			t.Errorf("record %d differs", i)
		}
	}
}

// reader of one byte, three bytes... so that writes cannot depend on how a source is cut.
type dribble struct {
	r io.Reader
	n int
}

func (d *dribble) Read(p []byte) (int, error) {
	d.n = (d.n*7 + 3) % 5000
	return d.r.Read(p[:min(len(p), d.n+1)])
}

func TestSameBytesAgain(t *testing.T) {
	c := newCodec(t)
	want := write(t, c, Options{}, sampleItems())
	for range 3 { // a used codec
		write(t, c, Options{}, []item{{"a", envelope.RecordEnvelope, nil, text(2 << 20)}, {"b", envelope.RecordEnvelope, nil, noise(9, 5000)}})
		if !bytes.Equal(write(t, c, Options{}, sampleItems()), want) {
			t.Fatal("a used codec writes other bytes")
		}
	}
	var out bytes.Buffer
	w := newCodec(t).NewWriter(&out, Header{Expires: t0.Add(time.Hour)}, Options{})
	for i, x := range sampleItems() {
		w.Frame(x.trust)
		if x.typ == envelope.RecordEnvelope {
			w.Envelope(mail(i, x.content), &dribble{r: bytes.NewReader(x.content)})
		} else {
			w.Record(x.typ, x.body)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Fatal("a source read in small pieces gives other bytes")
	}
}

func TestCutAnywhere(t *testing.T) {
	c := newCodec(t)
	b := write(t, c, Options{}, []item{
		{"a", envelope.RecordEnvelope, nil, text(500)}, {"b", envelope.RecordEnvelope, nil, noise(1, 200)}, {"b", envelope.RecordCard, noise(2, 90), nil},
	})
	for n := range b {
		if _, err := readAll(c, bytes.NewReader(b[:n]), Limits{}); !errors.Is(err, envelope.ErrFormat) {
			t.Fatalf("cut at %d of %d: got %v, want ErrFormat", n, len(b), err)
		}
	}
	big := write(t, c, Options{}, []item{{"a", envelope.RecordEnvelope, nil, text(2 << 20)}, {"b", envelope.RecordEnvelope, nil, noise(1, 2<<20)}})
	for n := 0; n < len(big); n += 1 + len(big)/101 {
		if _, err := readAll(c, bytes.NewReader(big[:n]), Limits{}); !errors.Is(err, envelope.ErrFormat) {
			t.Fatalf("large one cut at %d of %d: got %v, want ErrFormat", n, len(big), err)
		}
	}
}
