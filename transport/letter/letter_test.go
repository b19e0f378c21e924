package letter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/mail"
	"os"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 7))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

var cover = Cover{From: "mochila@camp.example", To: "mochila@hub.example", Date: time.Date(2026, 11, 27, 20, 0, 0, 0, time.UTC)}

// split writes a packet as letters.
func split(t testing.TB, packet []byte, size int64) (parts []Part, letters [][]byte) {
	t.Helper()
	for off := int64(0); off < int64(len(packet)); off += size {
		p := Part{Packet: envelope.SumOf(packet), Size: int64(len(packet)), Offset: off, Length: min(size, int64(len(packet))-off)}
		var b bytes.Buffer
		if err := Write(&b, cover, p, bytes.NewReader(packet[off:])); err != nil {
			t.Fatal(err)
		}
		parts, letters = append(parts, p), append(letters, b.Bytes())
	}
	return parts, letters
}

// TestWrite: what Write writes is a mail that others can read, too, and its size is as promised.
func TestWrite(t *testing.T) {
	for _, n := range []int{1, 2, 3, 56, 57, 58, 1000, 4096, 100_000} {
		packet := random(uint64(n), n)
		want, letters := split(t, packet, 1<<20)
		m, err := mail.ReadMessage(bytes.NewReader(letters[0]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Header.Date(); err != nil || m.Header.Get("Auto-Submitted") != "auto-generated" || !strings.HasPrefix(m.Header.Get("Message-ID"), "<mochila.") {
			t.Errorf("header %v: %v", m.Header, err)
		}
		if over := len(letters[0]) - n*78/57; over > Overhead {
			t.Errorf("%d bytes of packet make a mail of %d: %d too much", n, len(letters[0]), over)
		}
		for _, line := range bytes.Split(letters[0], []byte("\n")) {
			if len(line) > 120 {
				t.Errorf("a line of %d bytes", len(line))
			}
		}
		got, datas, err := parts(bytes.NewReader(letters[0]))
		if err != nil || len(got) != 1 || got[0] != want[0] || !bytes.Equal(datas[0], packet) {
			t.Errorf("%d bytes: %+v, %v", n, got, err)
		}
	}
}

func TestWriteFailsWithItsSource(t *testing.T) {
	p := Part{Size: 100, Length: 100}
	if err := Write(io.Discard, cover, p, bytes.NewReader(make([]byte, 99))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a source that is too short: %v", err)
	}
}

// TestEveryCutAndFlip: no prefix of a letter gives a part, and no changed byte of the attachment does.
func TestEveryCutAndFlip(t *testing.T) {
	packet := random(1, 400)
	_, letters := split(t, packet, 1<<20)
	letter := letters[0]
	body := bytes.Index(letter, []byte("base64\n\n")) + len("base64\n\n")
	end := bytes.LastIndex(letter, []byte("\n\n--"))
	whole := func(b []byte) bool {
		_, datas, err := parts(bytes.NewReader(b))
		return err == nil && len(datas) == 1 && bytes.Equal(datas[0], packet)
	}
	for n := range end {
		if _, datas, err := parts(bytes.NewReader(letter[:n])); err == nil || len(datas) > 0 {
			t.Fatalf("a letter cut at %d of %d gives %d parts, %v", n, len(letter), len(datas), err)
		}
	}
	for i := body; i < end; i++ {
		bad := bytes.Clone(letter)
		if bad[i] ^= 1; bad[i] == '\n' || letter[i] == '\n' {
			continue
		}
		if _, datas, err := parts(bytes.NewReader(bad)); err == nil && !whole(bad) {
			t.Fatalf("byte %d changed: %d parts, %v", i, len(datas), err)
		}
	}
}

func TestEndlessHeaderIsNoLetter(t *testing.T) {
	r := io.MultiReader(strings.NewReader("X: "), io.LimitReader(endless('x'), 1<<30))
	if _, err := Open(r); !errors.Is(err, ErrNoLetter) {
		t.Errorf("got %v", err)
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// TestSniffer knows what Write wrote, with or without the field, and nothing else.
func TestSniffer(t *testing.T) {
	_, letters := split(t, random(2, 100), 1<<20)
	without := bytes.Replace(letters[0], []byte(Field), []byte("X-Gone"), 1)
	for i, c := range []struct {
		mail []byte
		want bool
	}{
		{letters[0], true}, {without, true}, {bytes.ReplaceAll(letters[0], []byte("\n"), []byte("\r\n")), true},
		{[]byte("Subject: about letters\n\nMochila-Packet: x\n"), false}, {nil, false},
	} {
		var s Sniffer
		for _, b := range c.mail { // in the smallest writes
			s.Write([]byte{b})
		}
		if s.Letter() != c.want {
			t.Errorf("mail %d: %v", i, s.Letter())
		}
	}
}

// keep puts a letter into a box.
func keep(t testing.TB, b *Box, letter []byte) (whole bool, p Part) {
	t.Helper()
	m, err := Open(bytes.NewReader(letter))
	if err == nil {
		err = m.Parts(func(q Part, data io.Reader) (err error) {
			p = q
			whole, err = b.Keep(q, data)
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return whole, p
}

// TestBoxAnyOrder: parts in any order, some twice, cut in two ways, with a restart in between.
func TestBoxAnyOrder(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		packet := random(seed, 1000+rng.IntN(3000))
		_, one := split(t, packet, 1+int64(rng.IntN(900)))
		_, two := split(t, packet, 1+int64(rng.IntN(900)))
		all := append(append([][]byte{}, one...), two...)
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		dir := t.TempDir()
		b, err := OpenBox(dir, BoxOptions{})
		if err != nil {
			t.Fatal(err)
		}
		whole, at := false, Part{}
		for i := 0; i < len(all) && !whole; i++ {
			whole, at = keep(t, b, all[i])
			if again, _ := keep(t, b, all[i]); again != whole {
				t.Fatalf("seed %d: the same part again: %v, then %v", seed, whole, again)
			}
			if i%3 == 0 {
				if b, err = OpenBox(dir, BoxOptions{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !whole {
			t.Fatalf("seed %d: all parts came and the packet is not whole", seed)
		}
		r, err := b.Open(at)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, packet) {
			t.Fatalf("seed %d: %d bytes, %v", seed, len(got), err)
		}
		b.Done(at)
		if _, err := b.Open(at); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a packet that is done is there still: %v", err)
		}
		if whole, _ := keep(t, b, all[len(all)-1]); whole {
			t.Error("a late part makes the packet whole again")
		}
		if n, bytes := b.Waiting(); n != 0 || bytes != 0 {
			t.Errorf("%d packets with %d bytes are left", n, bytes)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("left on the disk: %v", left)
		}
	}
}

// TestBoxIsBounded: junk pushes out what is oldest, and never more than the limit is kept.
func TestBoxIsBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	b, err := OpenBox(t.TempDir(), BoxOptions{MaxBytes: 5000, MaxPackets: 8, MaxParts: 4, Age: time.Hour, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		_, letters := split(t, random(uint64(100+i), 2000), 1000)
		now = now.Add(time.Second)
		keep(t, b, letters[0])
		if n, bytes := b.Waiting(); n > 8 || bytes > 5000 {
			t.Fatalf("%d packets with %d bytes", n, bytes)
		}
	}
	_, letters := split(t, random(99, 6000), 5500)
	m, _ := Open(bytes.NewReader(letters[0]))
	err = m.Parts(func(p Part, data io.Reader) error { _, err := b.Keep(p, data); return err })
	if !errors.Is(err, ErrFull) {
		t.Errorf("a part larger than the box: %v", err)
	}
	many := Part{Packet: [32]byte{1}, Size: 100, Length: 1}
	for i := range int64(6) {
		many.Offset = i
		_, err = b.Keep(many, strings.NewReader("x"))
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("more parts than allowed: %v", err)
	}
	now = now.Add(2 * time.Hour)
	b.Expire()
	if n, bytes := b.Waiting(); n != 0 || bytes != 0 {
		t.Errorf("after its age %d packets with %d bytes are left", n, bytes)
	}
}

// TestBoxKeepsNothingDamaged: a part that turns out damaged leaves nothing behind.
func TestBoxKeepsNothingDamaged(t *testing.T) {
	dir := t.TempDir()
	b, err := OpenBox(dir, BoxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := Part{Packet: [32]byte{1}, Size: 100, Length: 50}
	bad := io.MultiReader(strings.NewReader("half"), failing{})
	if _, err := b.Keep(p, bad); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left on the disk: %v", left)
	}
	other := p
	other.Size = 60 // a forged part with another size stands in nobody's way
	if _, err := b.Keep(other, bytes.NewReader(make([]byte, 50))); err != nil {
		t.Error(err)
	}
	if _, err := b.Keep(p, bytes.NewReader(make([]byte, 50))); err != nil {
		t.Error(err)
	}
	p.Offset = 50
	if whole, err := b.Keep(p, bytes.NewReader(make([]byte, 50))); err != nil || !whole {
		t.Errorf("%v, %v", whole, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, fmt.Errorf("%w: cut", ErrDamaged) }

// FuzzParts: whatever comes as a mail, a part that is given out is undamaged and within its limits.
func FuzzParts(f *testing.F) {
	files, err := os.ReadDir("testdata")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if b, err := os.ReadFile("testdata/" + file.Name()); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, mail []byte) {
		got, datas, err := parts(bytes.NewReader(mail))
		if errors.Is(err, ErrNoLetter) && len(got) > 0 {
			t.Errorf("no letter, with %d parts", len(got))
		}
		for i, p := range got {
			if p.check() != nil || int64(len(datas[i])) != p.Length {
				t.Errorf("%+v with %d bytes", p, len(datas[i]))
			}
			h, err := parseHeader(p.header())
			if err != nil || h != p {
				t.Errorf("%+v written and read again is %+v, %v", p, h, err)
			}
		}
		if m, err := Open(bytes.NewReader(mail)); err == nil {
			b, _ := m.Bounce()
			if strings.ContainsAny(b.Text, "\n\r") {
				t.Errorf("the text of a bounce has lines: %q", b.Text)
			}
		}
		var s Sniffer
		s.Write(mail)
	})
}
