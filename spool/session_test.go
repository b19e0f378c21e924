package spool

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"mochila/internal/envelope"
)

func TestSessions(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	full := &Session{
		ID: [8]byte{1}, Peer: envelope.NodeID{2}, State: 3, Secret: []byte("wrapped"), NextSeq: 1 << 40,
		Acked: envelope.Ranges{{First: 0, Count: 5, Check: envelope.Check{1}}, {First: 9, Count: 1}}, OweHeld: true,
		Recv: envelope.Ranges{{First: 1 << 50, Count: 7}}, Created: epoch(), Heard: epoch().Add(time.Hour), Used: epoch().Add(2 * time.Hour),
		PeerIncarnation: [8]byte{4}, OwnIncarnation: [8]byte{5}, Extra: []byte{0},
	}
	empty := &Session{ID: [8]byte{9}}
	apply(t, s, func(tx *Tx) error { return errors.Join(tx.PutSession(full), tx.PutSession(empty)) })
	s.Close()
	s = open(t, dir, Options{})
	apply(t, s, func(tx *Tx) error {
		all, err := tx.Sessions()
		if err != nil || !reflect.DeepEqual(all, []*Session{full, empty}) {
			t.Errorf("got %+v, %v", all, err)
		}
		one, err := tx.Session(full.ID)
		if err != nil || !reflect.DeepEqual(one, full) {
			t.Errorf("got %+v, %v", one, err)
		}
		if err := tx.DeleteSession(full.ID); err != nil {
			return err
		}
		if _, err := tx.Session(full.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("deleted session: %v", err)
		}
		return tx.put(bkSession, []byte("12345678"), []byte("rubbish"))
	})
	s.View(func(tx *Tx) error {
		if all, err := tx.Sessions(); err != nil || len(all) != 1 {
			t.Errorf("one broken session: %v, %v", all, err)
		}
		return nil
	})
}

func TestSalts(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	a, b := [8]byte{1}, [8]byte{2}
	apply(t, s, func(tx *Tx) error {
		for seq := range uint64(saltsKept + 100) {
			if err := tx.PutSalt(a, seq, [16]byte{byte(seq), byte(seq >> 8)}); err != nil {
				return err
			}
		}
		return errors.Join(tx.PutSalt(a, 3, [16]byte{0xff}), tx.PutSalt(b, 3, [16]byte{3}))
	})
	check := func(tx *Tx, session [8]byte, seq uint64, want byte, known bool) {
		t.Helper()
		if got, ok := tx.Salt(session, seq); ok != known || ok && got[0] != want {
			t.Errorf("salt %d: %v, %v", seq, got, ok)
		}
	}
	apply(t, s, func(tx *Tx) error {
		check(tx, a, 3, 0, false)
		check(tx, a, 99, 0, false)
		check(tx, a, 100, 100, true)
		check(tx, a, saltsKept+3, 3, true)
		check(tx, a, saltsKept+100, 0, false)
		check(tx, b, 3, 3, true)
		return tx.DeleteSession(a)
	})
	s.View(func(tx *Tx) error {
		check(tx, a, 100, 0, false)
		check(tx, b, 3, 3, true)
		if n := tx.bucket(bkSalt).Stats().KeyN; n != 1 {
			t.Errorf("%d salts are left", n)
		}
		return nil
	})
}

func TestSent(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	a, b := [8]byte{1}, [8]byte{2}
	full := &Sent{
		Session: a, Seq: 7, Salt: [16]byte{3}, Kind: 4, Refs: []Ref{{envelope.ID{5}, 0}, {envelope.ID{6}, -1}, {envelope.ID{7}, 9999}},
		InnerSession: b, InnerSeq: 8, Packet: [32]byte{9}, Size: 10, Next: envelope.NodeID{11}, Carrier: "dir:/x", At: epoch(), Recipe: []byte("recipe"),
	}
	apply(t, s, func(tx *Tx) error {
		if err := tx.PutSent(full); err != nil {
			return err
		}
		for seq := range uint64(300) {
			if err := tx.PutSent(&Sent{Session: b, Seq: seq, Packet: [32]byte{1, byte(seq), byte(seq >> 8)}}); err != nil {
				return err
			}
		}
		return nil
	})
	apply(t, s, func(tx *Tx) error {
		if got, err := tx.Sent(a, 7); err != nil || !reflect.DeepEqual(got, full) {
			t.Errorf("got %+v, %v", got, err)
		}
		if got, err := tx.SentByPacket(full.Packet); err != nil || !reflect.DeepEqual(got, full) {
			t.Errorf("by packet %+v, %v", got, err)
		}
		if _, err := tx.Sent(a, 8); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown number: %v", err)
		}
		if _, err := tx.SentByPacket([32]byte{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown packet: %v", err)
		}
		var seqs []uint64
		err := tx.SentRange(b, 100, 50, func(x *Sent) error {
			seqs = append(seqs, x.Seq)
			return tx.DeleteSent(b, x.Seq)
		})
		if err != nil || len(seqs) != 50 || seqs[0] != 100 || seqs[49] != 149 {
			t.Errorf("range %v, %v", seqs, err)
		}
		if err := tx.SentRange(b, 100, 50, func(*Sent) error { return errWanted }); err != nil {
			t.Errorf("the range was not deleted")
		}
		if _, err := tx.SentByPacket([32]byte{1, 120}); !errors.Is(err, ErrNotFound) {
			t.Errorf("packet of a deleted item: %v", err)
		}
		n := 0
		if err := tx.EachSent(func(*Sent) error { n++; return nil }); err != nil || n != 251 {
			t.Errorf("%d items, %v", n, err)
		}
		// The same number sealed anew: the old packet is forgotten.
		moved := *full
		moved.Packet = [32]byte{99}
		if err := tx.PutSent(&moved); err != nil {
			return err
		}
		if _, err := tx.SentByPacket(full.Packet); !errors.Is(err, ErrNotFound) {
			t.Errorf("old packet: %v", err)
		}
		return tx.DeleteSession(b)
	})
	s.View(func(tx *Tx) error {
		if n, m := tx.bucket(bkSent).Stats().KeyN, tx.bucket(bkPacket).Stats().KeyN; n != 1 || m != 1 {
			t.Errorf("%d items and %d packets are left", n, m)
		}
		max := ^uint64(0)
		return tx.SentRange(a, max-1, max, func(*Sent) error { t.Error("found something beyond the end"); return nil })
	})
}

func FuzzSession(f *testing.F) {
	f.Add((&Session{NextSeq: 1, Recv: envelope.Ranges{{First: 1, Count: 1}}}).append(nil), (&Sent{Refs: []Ref{{}}}).append(nil))
	f.Fuzz(func(t *testing.T, ses, sent []byte) {
		if x, err := parseSession([8]byte{1}, ses); err == nil {
			if y, err := parseSession([8]byte{1}, x.append(nil)); err != nil || !reflect.DeepEqual(x, y) {
				t.Errorf("session %+v, %+v, %v", x, y, err)
			}
		}
		key := make([]byte, 16)
		if x, err := parseSent(key, sent); err == nil {
			if y, err := parseSent(key, x.append(nil)); err != nil || !reflect.DeepEqual(x, y) {
				t.Errorf("sent %+v, %+v, %v", x, y, err)
			}
		}
	})
}
