package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// open opens a spool for a test and closes it at its end.
func open(t testing.TB, dir string, o Options) *Spool {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return s
}

// epoch is the time at which test items are made.
func epoch() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) }

// mail makes an item with one leg for each destination, due, with content.
func mail(content []byte, dests ...Dest) *Item {
	e := &envelope.Envelope{
		ID: envelope.NewID(time.Now()), Kind: envelope.KindMail, Created: time.Now().Truncate(time.Millisecond).UTC(),
		Expires: time.Now().Add(60 * 24 * time.Hour).Truncate(time.Second).UTC(),
		Size:    int64(len(content)), Sum: envelope.SumOf(content),
		Mail: &envelope.Mail{Sender: "ana@camp.example"},
	}
	it := &Item{Env: e, Trust: "uid:1000", Entered: e.Created}
	for i, d := range dests {
		e.Mail.Recipients = append(e.Mail.Recipients, envelope.Recipient{Addr: fmt.Sprintf("r%d@hub.example", i)})
		it.Legs = append(it.Legs, Leg{Dest: d, Rcpts: []int{i}, State: Due})
		it.Outcomes = append(it.Outcomes, envelope.Outcome{Addr: e.Mail.Recipients[i].Addr})
	}
	return it
}

// add stores an item with its content.
func add(t testing.TB, s *Spool, it *Item, content []byte) {
	t.Helper()
	b := s.NewMailBody()
	if _, err := b.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(func(tx *Tx) error { return tx.Add(it, b) }); err != nil {
		t.Fatal(err)
	}
}

// content reads what OpenBody gives.
func content(t testing.TB, s *Spool, id envelope.ID) []byte {
	t.Helper()
	r, err := s.OpenBody(id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// clean fails the test unless Fsck finds nothing.
func clean(t testing.TB, s *Spool) Report {
	t.Helper()
	r, err := s.Fsck(false)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Errorf("fsck: %s %s: %s", p.Kind, p.ID, p.Detail)
	}
	return r
}

func TestLifeOfAMail(t *testing.T) {
	for _, size := range []int{0, 100, 100_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			s, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte("x"), size)
			hub := NodeDest(envelope.NodeID{1})
			it := mail(data, hub, ViaDest("smtp:127.0.0.1:25"))
			add(t, s, it, data)
			clean(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			s = open(t, dir, Options{})
			got, err := s.Lease(hub, 10, 0)
			if err != nil || len(got) != 1 || got[0].Item.Env.ID != it.Env.ID || got[0].Leg != 0 {
				t.Fatalf("leased %v, %v", got, err)
			}
			if again, _ := s.Lease(hub, 10, 0); len(again) != 0 || s.DueNow(hub) {
				t.Fatal("a leased leg was leased again")
			}
			if b := content(t, s, it.Env.ID); !bytes.Equal(b, data) {
				t.Fatalf("content has %d bytes, want %d", len(b), len(data))
			}
			err = s.View(func(tx *Tx) error {
				if b, ok := tx.SmallBody(it.Env.ID); ok != (size <= s.o.InlineMax) || ok && !bytes.Equal(b, data) {
					t.Errorf("small content: %v, %d bytes, want %d", ok, len(b), len(data))
				}
				if _, ok := tx.SmallBody(envelope.ID{1}); ok {
					t.Error("content of an item that is not there")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Apply(func(tx *Tx) error {
				x, err := tx.Item(it.Env.ID)
				if err != nil {
					return err
				}
				for i := range x.Legs {
					x.Legs[i].State = Done
				}
				return tx.Save(x)
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, done, err := s.Find(it.Env.ID); err != nil || !done {
				t.Fatalf("finished item: done %v, %v", done, err)
			}
			if _, err := s.OpenBody(it.Env.ID); !errors.Is(err, ErrNotFound) {
				t.Fatalf("content of a finished item: %v", err)
			}
			s.chores.drain()
			if r := clean(t, s); r.Items != 0 || r.Trace != 1 || r.Bodies != 0 {
				t.Fatalf("report %+v", r)
			}
		})
	}
}
