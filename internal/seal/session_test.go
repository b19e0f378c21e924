package seal

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// revocation reads a node's revoke.card.
func revocation(t testing.TB, k *Keyring) *Card {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.dir, fileRevoke))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCardText(b)
	if err != nil || !c.Revoked() {
		t.Fatalf("revocation card: %v", err)
	}
	return c
}

func TestSessionBothEndsAgree(t *testing.T) {
	camp, hub, i, r := pair(t)
	if len(i.Offer) != OfferSize || r.Offer != nil {
		t.Errorf("offers of %d and %d bytes", len(i.Offer), len(r.Offer))
	}
	if i.ID != r.ID || i.TH != r.TH || i.root != r.root || i.ID == [8]byte{} {
		t.Error("the two ends derived different sessions")
	}
	if i.Peer != hub.ID() || r.Peer != camp.ID() || !i.Initiator || r.Initiator {
		t.Errorf("peers %v and %v", i.Peer, r.Peer)
	}
	if r.PeerIncarnation != camp.Incarnation() || r.OwnIncarnation != hub.Incarnation() || i.PeerIncarnation != r.OwnIncarnation || i.OwnIncarnation != r.PeerIncarnation {
		t.Error("incarnations differ")
	}
	if r.PeerSerial != camp.Card().Serial || i.PeerSerial != hub.Card().Serial || r.KeySerial != hub.Keys()[0].Serial {
		t.Error("serials differ")
	}
	_, in, err := hub.AcceptOffer(i.Offer, knows(camp), start)
	if err != nil || !in.Created.Equal(start) || !in.Verified || in.ID != camp.ID() {
		t.Errorf("initiator %+v, %v", in, err)
	}
	for name, x := range map[string]struct{ from, to *Session }{"to hub": {i, r}, "to camp": {r, i}} {
		got, _, seq, err := x.to.OpenSmall(mustItem(t, x.from, 3, false, []byte("hello")))
		if err != nil || seq != 3 || string(got) != "hello" {
			t.Errorf("%s: %q, %d, %v", name, got, seq, err)
		}
	}
}

// Every bit of an offer counts, and so does its length.
func TestOfferDamage(t *testing.T) {
	camp, hub, i, r := pair(t)
	b := bytes.Clone(i.Offer)
	for n := range b {
		want := ErrUnopenable
		switch {
		case n < 2:
			want = envelope.ErrFormat
		case n >= boxStart:
			want = ErrCorrupt
		}
		for bit := range 8 {
			b[n] ^= 1 << bit
			s, _, err := hub.AcceptOffer(b, knows(camp), start)
			if s != nil || !errors.Is(err, want) {
				t.Fatalf("byte %d bit %d flipped: session %v, error %v, want %v", n, bit, s != nil, err, want)
			}
			if r.SameOffer(b) {
				t.Fatalf("byte %d bit %d flipped: still the same offer", n, bit)
			}
			b[n] ^= 1 << bit
		}
	}
	if !r.SameOffer(b) || !i.SameOffer(b) {
		t.Error("the offer is not the session's own")
	}
	for _, n := range []int{0, 1, 6, boxStart, OfferSize - 1, OfferSize + 1} {
		_, _, err := hub.AcceptOffer(append(bytes.Clone(b), 0)[:n], knows(camp), start)
		wantErr(t, "cut offer", err, envelope.ErrFormat)
	}
}

func TestOfferRefused(t *testing.T) {
	camp, hub, i, _ := pair(t)
	ferry, mallory := newNode(t, "ferry"), newNode(t, "mallory")

	_, _, err := ferry.AcceptOffer(i.Offer, knows(camp), start)
	wantErr(t, "offer to another node", err, ErrUnopenable)

	// ferry with hub's sealing key, but not its id: the key's owner is part of what was agreed
	stolen := &Keyring{fs: ferry.fs, identity: ferry.identity, id: ferry.id, sealing: hub.sealing}
	_, _, err = stolen.AcceptOffer(i.Offer, knows(camp), start)
	wantErr(t, "offer to another id with the same key", err, ErrCorrupt)

	posing := &Keyring{fs: mallory.fs, identity: mallory.identity, id: camp.id, sealing: mallory.sealing}
	forged, err := posing.NewSession(hub.Card(), start)
	if err != nil {
		t.Fatal(err)
	}
	s, in, err := hub.AcceptOffer(forged.Offer, knows(camp), start)
	wantErr(t, "offer with another's signature", err, ErrSignature)
	if s != nil || in == nil || in.Verified {
		t.Error("a forged offer made a session")
	}

	revoked := revocation(t, camp)
	s, _, err = hub.AcceptOffer(i.Offer, func(envelope.NodeID) (*Card, error) { return revoked, nil }, start)
	wantErr(t, "offer of a revoked node", err, ErrRevoked)
	if s != nil {
		t.Error("a revoked node made a session")
	}

	broken := errors.New("index on fire")
	_, _, err = hub.AcceptOffer(i.Offer, func(envelope.NodeID) (*Card, error) { return nil, broken }, start)
	wantErr(t, "failing lookup", err, broken)
	_, _, err = hub.AcceptOffer(i.Offer, func(envelope.NodeID) (*Card, error) { return mallory.Card(), nil }, start)
	if err == nil {
		t.Error("the card of another node was believed")
	}
	if _, err := hub.NewSession(hub.Card(), start); err != nil {
		t.Error("a session with oneself:", err)
	}

	_, err = hub.NewSession(revoked, start)
	wantErr(t, "offer to a revoked node", err, ErrRevoked)
	_, err = hub.NewSession(&Card{ID: camp.ID(), KeepUntil: start.Add(100 * day)}, start)
	wantErr(t, "offer to a card made by hand", err, envelope.ErrFormat)
	card := camp.Card()
	if _, err := hub.NewSession(card, card.LastSession()); err != nil {
		t.Error("at the last moment:", err)
	}
	_, err = hub.NewSession(card, card.LastSession().Add(time.Second))
	wantErr(t, "offer to an old card", err, ErrCardExpired)
}

// A stranger with a good signature is told apart, so that an invitation can be honoured.
func TestOfferOfStranger(t *testing.T) {
	_, hub, i, _ := pair(t)
	for name, lookup := range map[string]func(envelope.NodeID) (*Card, error){
		"error": knows(), "nil": func(envelope.NodeID) (*Card, error) { return nil, nil },
	} {
		s, in, err := hub.AcceptOffer(i.Offer, lookup, start)
		wantErr(t, name, err, ErrUnknownPeer)
		if s == nil || !in.Verified || s.TH != i.TH {
			t.Fatalf("%s: no session, or not verified: %+v", name, in)
		}
		secret := []byte("128 bits of invitation")
		m := hmac.New(sha256.New, secret)
		m.Write(i.TH[:])
		if got := InviteMAC(secret, s.TH); !hmac.Equal(got[:], m.Sum(nil)) {
			t.Error("the invitation's proof differs")
		}
	}
}

func TestErasedKey(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	i, err := camp.NewSession(hub.Card(), start)
	if err != nil {
		t.Fatal(err)
	}
	first := hub.Card()
	if rotated, err := hub.RotateSealing(start.Add(RotateEvery - time.Second)); rotated || err != nil {
		t.Fatalf("rotated %v too early, %v", rotated, err)
	}
	if rotated, err := hub.RotateSealing(start.Add(RotateEvery)); !rotated || err != nil {
		t.Fatalf("rotated %v, %v", rotated, err)
	}
	if hub.Incarnation() != first.Incarnation || bytes.Equal(hub.Card().SealingKey, first.SealingKey) {
		t.Error("rotation changed the incarnation or kept the key")
	}
	if serials, err := hub.EraseExpired(first.KeepUntil); len(serials) != 0 || err != nil {
		t.Fatalf("erased %v too early, %v", serials, err)
	}
	if _, _, err := hub.AcceptOffer(i.Offer, knows(camp), start.Add(100*day)); err != nil {
		t.Error("an offer to the previous key:", err)
	}
	serials, err := hub.EraseExpired(first.KeepUntil.Add(time.Second))
	if err != nil || len(serials) != 1 || serials[0] != first.Serial {
		t.Fatalf("erased %v, %v", serials, err)
	}
	for _, k := range []*Keyring{hub, reopen(t, hub)} {
		_, _, err = k.AcceptOffer(i.Offer, knows(camp), start)
		wantErr(t, "offer to an erased key", err, ErrErased)
		var erased *ErasedError
		if !errors.As(err, &erased) || erased.Serial != first.Serial {
			t.Errorf("the error names card %+v, want %d", erased, first.Serial)
		}
	}
	if err := hub.EraseKey(hub.Keys()[1].Serial); err == nil {
		t.Error("the key in use was erased")
	}
}

func answered(t testing.TB) (camp, hub *Keyring, i, r *Session, answer []byte) {
	t.Helper()
	camp, hub, i, r = pair(t)
	answer, err := hub.NewAnswer(r, camp.Card(), start)
	if err != nil {
		t.Fatal(err)
	}
	return camp, hub, i, r, answer
}

func TestAnswer(t *testing.T) {
	camp, hub, i, r, answer := answered(t)
	phase0 := mustItem(t, i, 1, false, []byte("sent before the answer came"))
	if len(answer) != OfferSize || r.Phase != 0 || !r.Answered() || i.Answered() {
		t.Fatalf("answer of %d bytes, phase %d", len(answer), r.Phase)
	}
	reply := mustItem(t, r, 1, false, answer)
	got, _, _, err := i.OpenSmall(reply)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second changes nothing
		if err := camp.AcceptAnswer(i, got); err != nil {
			t.Fatal(err)
		}
	}
	if i.Phase != 1 || i.root != r.root {
		t.Fatal("the roots of phase 1 differ")
	}
	item := mustItem(t, i, 2, false, []byte("phase 1"))
	again, err := i.InPhase(0)
	if err != nil || !bytes.Equal(mustItem(t, again, 1, false, []byte("sent before the answer came")), phase0) {
		t.Error("an item of phase 0 could not be sealed again:", err)
	}
	_, err = i.InPhase(2)
	if err == nil {
		t.Error("there is a phase 2")
	}
	for _, x := range []struct {
		item    []byte
		changed bool
	}{{phase0, false}, {item, true}, {item, false}} {
		_, h, _, err := r.OpenSmall(x.item)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Opened(h); got != x.changed {
			t.Errorf("Opened = %v in phase %d, want %v", got, r.Phase, x.changed)
		}
	}
	if r.Phase != 1 {
		t.Errorf("responder in phase %d", r.Phase)
	}
	if _, _, _, err := i.OpenSmall(mustItem(t, r, 9, false, nil)); err != nil {
		t.Error("responder's phase 1:", err)
	}
	_, err = hub.NewAnswer(r, camp.Card(), start)
	wantErr(t, "second answer", err, ErrAnswered)
}

func TestAnswerRefused(t *testing.T) {
	camp, hub, i, r, answer := answered(t)
	mallory := newNode(t, "mallory")

	_, err := hub.NewAnswer(i, camp.Card(), start)
	if err == nil {
		t.Error("the initiator answered")
	}
	r2, _, err := hub.AcceptOffer(i.Offer, knows(camp), start)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.NewAnswer(r2, mallory.Card(), start); err == nil {
		t.Error("answered somebody else")
	}
	second, err := hub.NewAnswer(r2, camp.Card(), start)
	if err != nil {
		t.Fatal(err)
	}
	other, err := camp.NewSession(hub.Card(), start)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "answer of another session", camp.AcceptAnswer(other, answer), ErrCorrupt)
	wantErr(t, "answer at the responder", hub.AcceptAnswer(r, answer), envelope.ErrFormat)
	wantErr(t, "offer as answer", camp.AcceptAnswer(i, i.Offer), envelope.ErrFormat)
	_, _, err = camp.AcceptOffer(answer, knows(hub), start)
	wantErr(t, "answer as offer", err, envelope.ErrFormat)
	asOffer := bytes.Clone(answer)
	asOffer[1] = kindOffer
	_, _, err = camp.AcceptOffer(asOffer, knows(hub), start)
	wantErr(t, "answer dressed as offer", err, ErrCorrupt)

	// mallory has learned the session id and answers in hub's place
	forger := &Session{ID: i.ID, Peer: camp.ID(), root: i.root}
	forged, err := mallory.NewAnswer(forger, camp.Card(), start)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "answer of another node", camp.AcceptAnswer(i, forged), ErrSignature)
	if i.Answered() || i.Phase != 0 {
		t.Error("a refused answer changed the session")
	}
	b := bytes.Clone(answer)
	for _, n := range []int{0, 1, 2, 5, 6, boxStart - 1, boxStart, OfferSize - 1} {
		b[n] ^= 0x10
		if camp.AcceptAnswer(i, b) == nil {
			t.Errorf("answer with byte %d changed was accepted", n)
		}
		b[n] ^= 0x10
	}
	if err := camp.AcceptAnswer(i, answer); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "second answer", camp.AcceptAnswer(i, second), ErrAnswered)
}

// An item sealed under phase 1 is nothing to a session that only has phase 0.
func TestPhase1UnderPhase0(t *testing.T) {
	camp, hub, i, r, answer := answered(t)
	old, err := UnmarshalSession(hub, mustAccept(t, hub, camp, i).Marshal(hub))
	if err != nil {
		t.Fatal(err)
	}
	if err := camp.AcceptAnswer(i, answer); err != nil {
		t.Fatal(err)
	}
	item := mustItem(t, i, 1, false, []byte("x"))
	if _, _, _, err := r.OpenSmall(item); err != nil {
		t.Error("with phase 1:", err)
	}
	_, _, _, err = old.OpenSmall(item)
	wantErr(t, "without phase 1", err, ErrNoMatch)
}

func mustAccept(t testing.TB, hub, camp *Keyring, i *Session) *Session {
	t.Helper()
	r, _, err := hub.AcceptOffer(i.Offer, knows(camp), start)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestMarshal(t *testing.T) {
	camp, hub, i, r, answer := answered(t)
	if err := camp.AcceptAnswer(i, answer); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		k *Keyring
		s *Session
	}{"initiator": {camp, i}, "responder": {hub, r}} {
		b := x.s.Marshal(x.k)
		got, err := UnmarshalSession(x.k, b)
		if err != nil {
			t.Fatal(name, err)
		}
		got.phases, x.s.phases = x.s.phases, got.phases
		if got.ID != x.s.ID || got.TH != x.s.TH || got.root != x.s.root || got.answerTH != x.s.answerTH || got.Phase != x.s.Phase ||
			got.PeerSerial != x.s.PeerSerial || got.KeySerial != x.s.KeySerial || got.Peer != x.s.Peer || got.Initiator != x.s.Initiator ||
			got.PeerIncarnation != x.s.PeerIncarnation || got.OwnIncarnation != x.s.OwnIncarnation || !got.Created.Equal(x.s.Created) ||
			!bytes.Equal(got.Offer, x.s.Offer) || got.offerSum != x.s.offerSum {
			t.Errorf("%s: stored and loaded differ", name)
		}
		for _, secret := range [][]byte{x.s.root[0][:], x.s.root[1][:], x.k.wrapCur.key[:], x.k.last().seed, x.k.identity.Seed()} {
			if bytes.Contains(b, secret) {
				t.Errorf("%s: a secret stands in what Marshal returns", name)
			}
		}
		for n := range b {
			b[n] ^= 1
			if _, err := UnmarshalSession(x.k, b); err == nil {
				t.Errorf("%s: byte %d changed, and accepted", name, n)
			}
			b[n] ^= 1
		}
		if _, err := UnmarshalSession(x.k, b[:len(b)-1]); err == nil {
			t.Errorf("%s: cut, and accepted", name)
		}
	}
	_, err := UnmarshalSession(hub, i.Marshal(camp))
	wantErr(t, "session of another node", err, ErrWrapped)
	_, err = UnmarshalSession(camp, camp.Wrap([]byte("x")))
	wantErr(t, "something else", err, envelope.ErrFormat)
	// the loaded keys work
	loaded, err := UnmarshalSession(hub, r.Marshal(hub))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := loaded.OpenSmall(mustItem(t, i, 5, true, []byte("x"))); err != nil {
		t.Error(err)
	}
}

func FuzzOffer(f *testing.F) {
	camp, hub, i, _, answer := answered(f)
	f.Add(i.Offer)
	f.Add(answer)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := hub.AcceptOffer(b, knows(camp), start)
		if (s != nil) != (err == nil) || s != nil && s.Peer != camp.ID() {
			t.Errorf("session %v, error %v", s != nil, err)
		}
	})
}
