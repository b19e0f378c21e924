package seal

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

func fullCard(t testing.TB) *Card {
	t.Helper()
	k := newNode(t, "camp")
	c, err := k.Reissue(start, []string{"camp.example", "*.camp.example"}, []string{"tcp:camp.example:2424"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCardRoundTrip(t *testing.T) {
	c := fullCard(t)
	got, err := ParseCard(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, c) {
		t.Errorf("parsed %+v, want %+v", got, c)
	}
	if n := len(c.Bytes()); n > 1500 {
		t.Errorf("a small card takes %d bytes", n)
	}
	if got, want := c.KeepUntil.Sub(c.Published), 126*day; got != want {
		t.Errorf("kept for %v, want %v", got, want)
	}
	if got, want := c.LastSession(), c.Published.Add(119*day); !got.Equal(want) {
		t.Errorf("last session %v, want %v", got, want)
	}
}

func TestCardText(t *testing.T) {
	c := fullCard(t)
	for name, text := range map[string]string{
		"plain":             c.Text(),
		"mail":              "Hello,\r\n\r\nhere is my card.\r\n" + strings.ReplaceAll(c.Text(), "\n", "\r\n") + "\r\n-- \r\nAna\r\n",
		"other block first": "-----BEGIN OTHER-----\nAAAA\n-----END OTHER-----\n" + c.Text(),
	} {
		got, err := ParseCardText([]byte(text))
		if err != nil || !bytes.Equal(got.Bytes(), c.Bytes()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "words": "no card here", "cut": c.Text()[:len(c.Text())/2], "huge": strings.Repeat("x", maxCardText+1),
	} {
		_, err := ParseCardText([]byte(text))
		wantErr(t, name, err, envelope.ErrFormat)
	}
}

// Every flipped bit, every cut and every appended byte is refused.
func TestCardDamage(t *testing.T) {
	raw := fullCard(t).Bytes()
	b := bytes.Clone(raw)
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if _, err := ParseCard(b); !errors.Is(err, envelope.ErrFormat) && !errors.Is(err, ErrSignature) {
				t.Fatalf("byte %d bit %d flipped: %v", i, bit, err)
			}
			b[i] ^= 1 << bit
		}
	}
	for n := range raw {
		if _, err := ParseCard(raw[:n]); !errors.Is(err, envelope.ErrFormat) && !errors.Is(err, ErrSignature) {
			t.Fatalf("cut to %d: %v", n, err)
		}
	}
	_, err := ParseCard(append(bytes.Clone(raw), 0))
	wantErr(t, "appended byte", err, envelope.ErrFormat)
	_, err = ParseCard(make([]byte, MaxCardSize+1))
	wantErr(t, "too long", err, envelope.ErrFormat)
}

// Cards that are signed well but say what no card may say.
func TestCardContentRefused(t *testing.T) {
	k := newNode(t, "camp")
	for name, spoil := range map[string]func(*Card){
		"no name":            func(c *Card) { c.Name = "" },
		"name with slash":    func(c *Card) { c.Name = "a/b" },
		"name with dots":     func(c *Card) { c.Name = ".." },
		"name too long":      func(c *Card) { c.Name = strings.Repeat("x", 64) },
		"no serial":          func(c *Card) { c.Serial = 0 },
		"unknown suite":      func(c *Card) { c.Suite = 9 },
		"short sealing key":  func(c *Card) { c.SealingKey = c.SealingKey[:1215] },
		"bad sealing key":    func(c *Card) { c.SealingKey = bytes.Repeat([]byte{0xff}, 1216) },
		"short layer key":    func(c *Card) { c.LayerKey = []byte{1} },
		"unknown flag":       func(c *Card) { c.Flags = 1 << 9 },
		"escape in domain":   func(c *Card) { c.Domains = []string{"a\x1b[31m"} },
		"empty domain":       func(c *Card) { c.Domains = []string{""} },
		"many domains":       func(c *Card) { c.Domains = slicesOf("d", 65) },
		"many carriers":      func(c *Card) { c.Carriers = slicesOf("c", 17) },
		"long carrier":       func(c *Card) { c.Carriers = []string{strings.Repeat("c", 513)} },
		"ends before it is":  func(c *Card) { c.KeepUntil = c.Published.Add(-1) },
		"no max life":        func(c *Card) { c.MaxLife = 0 },
		"no incarnation":     func(c *Card) { c.Incarnation = [8]byte{} },
		"revoked with a key": func(c *Card) { c.Serial = RevokedSerial },
		"endless life":       func(c *Card) { c.MaxLife = 20 * 365 * day },
	} {
		c := *k.Card()
		c.key, c.predecessorSig = nil, nil
		spoil(&c)
		err := c.finish(k.identity, nil)
		if name != "endless life" {
			wantErr(t, name+" when made", err, envelope.ErrFormat)
		}
		_, signed := c.encode()
		raw := append(signed[:len(signed):len(signed)], sigField(k.sign(append([]byte(labelCard), signed...)))...)
		_, err = ParseCard(raw)
		wantErr(t, name+" when read", err, envelope.ErrFormat)
	}
}

func slicesOf(s string, n int) (out []string) {
	for range n {
		out = append(out, s)
	}
	return out
}

func TestCompareCards(t *testing.T) {
	k := newNode(t, "camp")
	first := k.Card()
	second, err := k.Reissue(start, []string{"camp.example"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	third, err := k.NewIncarnation(start)
	if err != nil {
		t.Fatal(err)
	}
	revoked := revocation(t, k)
	sign := func(edit func(*Card)) *Card {
		c := *second
		edit(&c)
		if err := c.finish(k.identity, nil); err != nil {
			t.Fatal(err)
		}
		return &c
	}
	if first.Serial >= second.Serial || second.Serial >= third.Serial {
		t.Errorf("serials %d, %d, %d do not rise", first.Serial, second.Serial, third.Serial)
	}
	for name, x := range map[string]struct {
		held, next *Card
		want       error
	}{
		"next serial":       {first, second, nil},
		"new incarnation":   {second, third, nil},
		"revocation":        {third, revoked, nil},
		"lower serial":      {third, first, ErrOlderCard},
		"same card":         {first, first, ErrOlderCard},
		"after revocation":  {revoked, third, ErrOlderCard},
		"revoked again":     {revoked, revoked, ErrOlderCard},
		"same serial":       {second, sign(func(c *Card) { c.Domains = nil }), ErrContested},
		"older incarnation": {third, sign(func(c *Card) { c.Serial = third.Serial + 5 }), ErrContested},
	} {
		if err := CompareCards(x.held, x.next); err != x.want {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	if CompareCards(first, newNode(t, "hub").Card()) == nil {
		t.Error("the card of another node replaced ours")
	}
}

// A successor's card carries the old identity's signature, which covers all of it.
func TestSuccession(t *testing.T) {
	old, next := newNode(t, "old"), newNode(t, "next")
	c, err := next.Succeed(start, old)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCard(c.Bytes())
	if err != nil || got.Predecessor != old.ID() {
		t.Fatalf("predecessor %v, %v", got.Predecessor, err)
	}
	forged := *c
	forged.Name = "other"
	_, signed := forged.encode()
	_, err = ParseCard(append(signed[:len(signed):len(signed)], sigField(next.sign(append([]byte(labelCard), signed...)))...))
	wantErr(t, "succession signed for another card", err, ErrSignature)
	later, err := next.Reissue(start.Add(time.Hour), []string{"next.example"}, nil)
	if err != nil || !later.Predecessor.IsZero() {
		t.Errorf("a later card still names the predecessor: %v", err)
	}
}

func FuzzCard(f *testing.F) {
	k := newNode(f, "camp")
	f.Add(k.Card().Bytes())
	f.Add(revocation(f, k).Bytes())
	f.Add([]byte(cardMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCard(b)
		if err != nil {
			if !errors.Is(err, envelope.ErrFormat) && !errors.Is(err, ErrSignature) {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		if !bytes.Equal(c.Bytes(), b) {
			t.Error("accepted, but not canonical")
		}
	})
}
