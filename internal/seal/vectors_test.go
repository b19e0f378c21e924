package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"mochila/internal/envelope"
)

var update = flag.Bool("update", false, "write new vectors; offers and answers change, as encapsulation is random")

// A vector file holds lines "name value"; # begins a comment. Values are hexadecimal, numbers or words.
type vector map[string]string

func (v vector) bytes(t testing.TB, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(v[name])
	if err != nil || v[name] == "" {
		t.Fatalf("vector %q: %q", name, v[name])
	}
	return b
}

func readVector(t testing.TB, path string) vector {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := vector{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, _ := strings.Cut(line, " ")
		v[name] = value
	}
	return v
}

func writeVector(t testing.TB, path, comment string, v vector) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n", comment)
	for _, name := range slices.Sorted(maps.Keys(v)) {
		fmt.Fprintf(&b, "%s %s\n", name, v[name])
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

const worldFile = "testdata/world.txt"

// world describes two nodes and a session between them.
func world(camp, hub *Keyring, i *Session, answer []byte) vector {
	v := vector{}
	for _, k := range []*Keyring{camp, hub} {
		name := k.Card().Name
		v[name+".identity.seed"] = hex.EncodeToString(k.identity.Seed())
		v[name+".sealing.seed"] = hex.EncodeToString(k.last().seed)
		v[name+".card"] = hex.EncodeToString(k.Card().Bytes())
		label := k.ID().Label()
		v[name+".label"] = hex.EncodeToString(label[:])
	}
	v["offer"] = hex.EncodeToString(i.Offer)
	v["offer.th"] = hex.EncodeToString(i.TH[:])
	v["answer"] = hex.EncodeToString(answer)
	v["answer.th"] = hex.EncodeToString(i.answerTH[:])
	v["session.id"] = hex.EncodeToString(i.ID[:])
	for n := range i.root {
		v["root"+strconv.Itoa(n)] = hex.EncodeToString(i.root[n][:])
		for name, label := range map[string]string{"hint.i2r": labelHintI2R, "hint.r2i": labelHintR2I, "item.i2r": labelItemI2R, "item.r2i": labelItemR2I} {
			v["root"+strconv.Itoa(n)+"."+name] = hex.EncodeToString(expand(i.root[n][:], label))
		}
	}
	mac := InviteMAC([]byte("0123456789abcdef"), i.TH)
	v["invite.0123456789abcdef"] = hex.EncodeToString(mac[:])
	check := ItemCheck(7, salt(7))
	v["check.7"] = hex.EncodeToString(check[:])
	wrapped := newWrapKey([32]byte(pattern(32)), start).wrap(wrapUser, [24]byte(pattern(24)), []byte("secret"))
	v["wrap.key"] = hex.EncodeToString(pattern(32))
	v["wrap.secret"] = hex.EncodeToString(wrapped)
	return v
}

// expand is HKDF-Expand of RFC 5869 for one block, written out.
func expand(prk []byte, info string) []byte {
	pad := func(x byte) []byte {
		b := make([]byte, 64)
		copy(b, prk)
		for n := range b {
			b[n] ^= x
		}
		return b
	}
	inner := sha256.Sum256(slices.Concat(pad(0x36), []byte(info), []byte{1}))
	outer := sha256.Sum256(slices.Concat(pad(0x5c), inner[:]))
	return outer[:]
}

// loadWorld brings up the nodes of the vectors and both ends of their session, from the stored offer and answer, which
// it may make first.
func loadWorld(t *testing.T, write bool) (camp, hub *Keyring, i, r *Session, v vector) {
	t.Helper()
	camp, hub = newNode(t, "camp"), newNode(t, "hub")
	if write {
		i, err := camp.NewSession(hub.Card(), start)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := hub.NewAnswer(mustAccept(t, hub, camp, i), camp.Card(), start)
		if err != nil {
			t.Fatal(err)
		}
		if err := camp.AcceptAnswer(i, answer); err != nil {
			t.Fatal(err)
		}
		writeVector(t, worldFile, "two nodes and a session between them; see docs/seal.md", world(camp, hub, i, answer))
	}
	v = readVector(t, worldFile)
	offer := v.bytes(t, "offer")
	r, _, err := hub.AcceptOffer(offer, knows(camp), start)
	if err != nil {
		t.Fatal(err)
	}
	i = &Session{ID: r.ID, TH: r.TH, Peer: hub.ID(), Initiator: true, PeerSerial: hub.Card().Serial, PeerIncarnation: hub.Incarnation(),
		OwnIncarnation: camp.Incarnation(), Created: start, Offer: offer, offerSum: r.offerSum, root: r.root}
	if i.phases[0], err = newPhaseKeys(i.root[0][:], true); err != nil {
		t.Fatal(err)
	}
	return camp, hub, i, r, v
}

// The whole key schedule gives the stored values again.
func TestVectorWorld(t *testing.T) {
	camp, hub, i, r, v := loadWorld(t, *update)
	if err := camp.AcceptAnswer(i, v.bytes(t, "answer")); err != nil {
		t.Fatal(err)
	}
	got := world(camp, hub, i, v.bytes(t, "answer"))
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if got[name] != v[name] {
			t.Errorf("%s is %s, want %s", name, got[name], v[name])
		}
	}
	if len(got) != len(v) {
		t.Errorf("%d values, want %d", len(got), len(v))
	}
	r.phases[1], r.root[1], r.Phase = nil, [32]byte{}, 0
	key := newWrapKey([32]byte(v.bytes(t, "wrap.key")), start)
	if b, err := key.unwrap(v.bytes(t, "wrap.secret")); err != nil || string(b) != "secret" {
		t.Errorf("unwrapped %q, %v", b, err)
	}
}

// Sealing is deterministic: the same session, number, salt and content give the stored bytes.
func TestVectorItems(t *testing.T) {
	_, hub, i, r, _ := loadWorld(t, false)
	for name, size := range map[string]int{"empty": 0, "one-byte": 1, "one-chunk": ChunkSize, "one-chunk-and-a-byte": ChunkSize + 1} {
		for dir, s := range map[string][2]*Session{"i2r": {i, r}, "r2i": {r, i}} {
			item := mustItem(t, s[0], 7, false, pattern(size))
			sum := sha256.Sum256(item)
			path := filepath.Join("testdata", "item", name+"-"+dir+".txt")
			if *update {
				v := vector{"seq": "7", "size": strconv.Itoa(size), "head": hex.EncodeToString(item[:min(len(item), 64)]), "sha256": hex.EncodeToString(sum[:])}
				writeVector(t, path, "an item under phase 0, salt 00..07, content = pattern of docs/seal.md", v)
			}
			v := readVector(t, path)
			if v["sha256"] != hex.EncodeToString(sum[:]) || !bytes.HasPrefix(item, v.bytes(t, "head")) {
				t.Errorf("%s: sealed %x", path, item[:min(len(item), 64)])
			}
			if got, err := open(t, s[1], item); err != nil || !bytes.Equal(got, pattern(size)) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	hop := Hop{Type: PayloadBundle, Dest: hub.ID().Label(), Length: 1234, PayloadHash: salt(1), Expiry: start, Class: 2, HopLimit: 20, Left: 0x0203}
	box, err := i.SealHop(8, salt(8), false, hop)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "item", "hop-box.txt")
	if *update {
		writeVector(t, path, "a hop box, number 8, salt 00..08: bundle of 1234 bytes for hub, hash 00..01, class 2, 20 hops, 515 times ten minutes left", vector{"item": hex.EncodeToString(box)})
	}
	if v := readVector(t, path); v["item"] != hex.EncodeToString(box) {
		t.Errorf("hop box %x, want %s", box, v["item"])
	}
}

// defects are small items with one fault each. Their files are named after it.
func defects(t testing.TB, i, r *Session) map[string]vector {
	good := mustItem(t, i, 9, false, []byte("nine"))
	with := func(b []byte, at int, x byte) []byte {
		b = bytes.Clone(b)
		b[(at+len(b))%len(b)] ^= x
		return b
	}
	offered := mustItem(t, i, 9, true, []byte("nine"))
	m := map[string]vector{}
	for name, x := range map[string]struct {
		item   []byte
		expect string
	}{
		"good":                      {good, "ok"},
		"good-with-offer":           {offered, "ok"},
		"unknown-format":            {with(good, 0, 0x01), "format"},
		"unknown-flag":              {with(good, 1, 0x04), "format"},
		"flag-payload-added":        {with(good, 1, 0x02), "no-match"},
		"salt-changed":              {with(good, 2, 0x01), "no-match"},
		"hint-changed":              {with(good, 18, 0x01), "no-match"},
		"sequence-changed":          {with(good, 31, 0x01), "corrupt"},
		"content-changed":           {with(good, HeaderSize, 0x01), "corrupt"},
		"tag-changed":               {with(good, -1, 0x80), "corrupt"},
		"offer-changed":             {with(offered, HeaderSize+700, 0x01), "corrupt"},
		"offer-seal-changed":        {with(offered, HeaderSize+OfferSize-1, 0x01), "corrupt"},
		"cut-in-header":             {good[:31], "format"},
		"cut-after-header":          {good[:32], "truncated"},
		"cut-in-offer":              {offered[:100], "truncated"},
		"cut-in-tag":                {good[:HeaderSize+15], "truncated"},
		"cut-by-one":                {good[:len(good)-1], "corrupt"},
		"byte-appended":             {append(bytes.Clone(good), 0), "corrupt"},
		"last-flag-missing":         {sealChunks(t, i, 9, [][]byte{[]byte("nine")}, []bool{false}), "truncated"},
		"own-item-reflected":        {mustItem(t, r, 9, false, []byte("nine")), "no-match"},
		"sealed-with-another-salt":  {append(bytes.Clone(good[:HeaderSize]), bytes.Clone(mustItemSalt(t, i, 9, 10))[HeaderSize:]...), "corrupt"},
		"chunk-of-the-next-number":  {append(bytes.Clone(good[:HeaderSize]), mustItem(t, i, 10, false, []byte("nine"))[HeaderSize:]...), "corrupt"},
		"header-without-its-chunks": {append(bytes.Clone(good[:HeaderSize]), make([]byte, 20)...), "corrupt"},
	} {
		m[name] = vector{"item": hex.EncodeToString(x.item), "expect": x.expect}
	}
	return m
}

func mustItemSalt(t testing.TB, s *Session, seq, n uint64) []byte {
	t.Helper()
	b, err := s.AppendItem(nil, seq, salt(n), false, []byte("nine"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectorDefects opens the stored items at the responder.
func TestVectorDefects(t *testing.T) {
	_, _, i, r, _ := loadWorld(t, false)
	if *update {
		for name, v := range defects(t, i, r) {
			writeVector(t, filepath.Join("testdata", "defect", name+".txt"), "opened by hub under phase 0 of the session in world.txt", v)
		}
	}
	files, err := filepath.Glob("testdata/defect/*.txt")
	if err != nil || len(files) != len(defects(t, i, r)) {
		t.Fatalf("%d vectors, %v", len(files), err)
	}
	want := map[string]error{"format": envelope.ErrFormat, "no-match": ErrNoMatch, "corrupt": ErrCorrupt, "truncated": ErrTruncated, "trailing": ErrTrailing}
	for _, path := range files {
		v := readVector(t, path)
		got, _, seq, err := r.OpenSmall(v.bytes(t, "item"))
		if v["expect"] == "ok" {
			if err != nil || seq != 9 || string(got) != "nine" {
				t.Errorf("%s: %q, %d, %v", path, got, seq, err)
			}
			continue
		}
		sentinel, known := want[v["expect"]]
		if !known || !errors.Is(err, sentinel) || len(got) != 0 {
			t.Errorf("%s: %q, %v, want %s", path, got, err, v["expect"])
		}
	}
}
