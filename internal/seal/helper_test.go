package seal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// start is the clock of every test: 2026-02-03 04:05:06 UTC.
var start = time.Unix(1770091506, 0).UTC()

// counterRand is a reproducible random source: SHA-256 of a label and a counter.
type counterRand struct {
	label string
	n     uint64
	rest  []byte
}

func (r *counterRand) Read(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if len(r.rest) == 0 {
			r.n++
			sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(r.label), r.n))
			r.rest = sum[:]
		}
		n := copy(p, r.rest)
		p, r.rest = p[n:], r.rest[n:]
	}
	return total, nil
}

func newNode(t testing.TB, name string) *Keyring {
	t.Helper()
	k, err := Create(filepath.Join(t.TempDir(), "identity"), Options{Name: name, Now: start, Rand: &counterRand{label: name}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// knows is a lookup over some nodes' cards.
func knows(nodes ...*Keyring) func(envelope.NodeID) (*Card, error) {
	return func(id envelope.NodeID) (*Card, error) {
		for _, k := range nodes {
			if k.ID() == id {
				return k.Card(), nil
			}
		}
		return nil, ErrUnknownPeer
	}
}

// pair returns both ends of a fresh session.
func pair(t testing.TB) (camp, hub *Keyring, i, r *Session) {
	t.Helper()
	camp, hub = newNode(t, "camp"), newNode(t, "hub")
	i, err := camp.NewSession(hub.Card(), start)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err = hub.AcceptOffer(i.Offer, knows(camp), start)
	if err != nil {
		t.Fatal(err)
	}
	return camp, hub, i, r
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func salt(n uint64) (s [16]byte) {
	binary.BigEndian.PutUint64(s[8:], n)
	return s
}

func mustItem(t testing.TB, s *Session, seq uint64, offer bool, content []byte) []byte {
	t.Helper()
	b, err := s.AppendItem(nil, seq, salt(seq), offer, content)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pattern is n bytes that differ from chunk to chunk.
func pattern(n int) []byte {
	b := make([]byte, n)
	io.ReadFull(&counterRand{label: "pattern"}, b)
	return b
}
