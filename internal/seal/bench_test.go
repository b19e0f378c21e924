package seal

import (
	"bytes"
	"io"
	"testing"
)

func BenchmarkSmallSeal(b *testing.B) {
	_, _, i, _ := pair(b)
	content, dst := pattern(1024), make([]byte, 0, 2048)
	b.ReportAllocs()
	for n := uint64(0); b.Loop(); n++ {
		if _, err := i.AppendItem(dst, n, salt(n), false, content); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSmallOpen(b *testing.B) {
	_, _, i, r := pair(b)
	item := mustItem(b, i, 1, false, pattern(1024))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := r.OpenSmall(item); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMatchMiss(b *testing.B) {
	_, _, i, _ := pair(b)
	h, err := ParseHeader(mustItem(b, i, 1, false, nil))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := i.Match(h); ok {
			b.Fatal("an own item matched")
		}
	}
}

func BenchmarkLargeSeal(b *testing.B) {
	_, _, i, _ := pair(b)
	content := pattern(1 << 20)
	w, err := i.SealItem(io.Discard, 1, salt(1), false, false)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		w.Write(content)
	}
}

func BenchmarkLargeOpen(b *testing.B) {
	const size = 16 << 20
	_, _, i, r := pair(b)
	item, buf := mustItem(b, i, 1, false, pattern(size)), make([]byte, 1<<20)
	h, err := ParseHeader(item)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		src := r.OpenItem(h, 1, bytes.NewReader(item[HeaderSize:]))
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, src, buf); n != size || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkOffer(b *testing.B) {
	camp, hub := newNode(b, "camp"), newNode(b, "hub")
	card := hub.Card()
	for b.Loop() {
		if _, err := camp.NewSession(card, start); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAccept(b *testing.B) {
	camp, hub, i, _ := pair(b)
	for b.Loop() {
		if _, _, err := hub.AcceptOffer(i.Offer, knows(camp), start); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	camp, _, i, _ := pair(b)
	stored := i.Marshal(camp)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := UnmarshalSession(camp, stored); err != nil {
			b.Fatal(err)
		}
	}
}
