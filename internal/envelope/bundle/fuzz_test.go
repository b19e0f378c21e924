package bundle

import (
	"bytes"
	"errors"
	"testing"

	"mochila/internal/envelope"
)

// FuzzBundle asserts that any bytes are refused with one of the three errors, or hold records that, written again,
// read as the same records.
func FuzzBundle(f *testing.F) {
	c := newCodec(f)
	for _, b := range [][]byte{
		join([]byte{0}), join(stored(envelopeRecord(1, text(300))), []byte{0}), join([]byte{methodStream, 1}),
		write(f, c, Options{}, sampleItems()[:4]),
		write(f, c, Options{}, []item{{"a", envelope.RecordEnvelope, nil, text(MaxFrame)}}),
	} {
		f.Add(b)
	}
	limits := Limits{MaxRaw: 4 << 20, MaxRecords: 1000}
	f.Fuzz(func(t *testing.T, b []byte) {
		items, envelopes, err := readEnvelopes(c, b, limits)
		if err != nil {
			if !errors.Is(err, envelope.ErrFormat) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrSum) {
				t.Fatalf("%v is none of the three errors", err)
			}
			return
		}
		var out bytes.Buffer
		w := c.NewWriter(&out, Header{Expires: t0}, Options{})
		for i, x := range items {
			if x.typ == envelope.RecordEnvelope {
				err = w.Envelope(envelopes[i], bytes.NewReader(x.content))
			} else {
				err = w.Record(x.typ, x.body)
			}
			if err != nil {
				t.Fatalf("record %d was read, but cannot be written: %v", i, err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		again, _, err := readEnvelopes(c, out.Bytes(), limits)
		if err != nil || summary(again) != summary(items) {
			t.Fatalf("read again: %v\n%s\n%s", err, summary(items), summary(again))
		}
	})
}

// readEnvelopes is readAll that keeps the envelopes.
func readEnvelopes(c *Codec, b []byte, l Limits) ([]item, []*envelope.Envelope, error) {
	items, err := readAll(c, bytes.NewReader(b), l)
	if err != nil {
		return nil, nil, err
	}
	var envelopes []*envelope.Envelope
	r := c.NewReader(bytes.NewReader(b), l)
	for {
		rec, err := r.Next()
		if err != nil {
			return items, envelopes, nil
		}
		envelopes = append(envelopes, rec.Envelope)
	}
}

// FuzzContent asserts that any content, cut into mails of any trust, comes back.
func FuzzContent(f *testing.F) {
	c := newCodec(f)
	f.Add([]byte("some text"), uint16(3), uint8(1))
	f.Add(text(5000), uint16(100), uint8(7))
	f.Add(noise(1, 3000), uint16(1000), uint8(255))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16, trust uint8) {
		var want []item
		for i := 0; len(b) > 0 && i < 12; i++ {
			n := min(len(b), 1+int(cut))
			want = append(want, item{string(rune('a' + i%(1+int(trust)))), envelope.RecordEnvelope, nil, b[:n]})
			b = b[n:]
		}
		got, err := readAll(c, bytes.NewReader(write(t, c, Options{Pad: Padme}, want)), Limits{})
		if err != nil || summary(got) != summary(want) {
			t.Fatalf("%v\n%s\n%s", err, summary(want), summary(got))
		}
	})
}
