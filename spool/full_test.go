package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"mochila/internal/durable/durabletest"
)

// TestReserve: mail is refused at the reserve, receipts are not, and finishing is always possible.
func TestReserve(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	s := open(t, t.TempDir(), Options{Reserve: -1, InlineMax: 8, Free: func() (int64, int64, error) { return free.Load(), 100 << 30, nil }})
	first := mail([]byte("x"), "node:a")
	add(t, s, first, []byte("x"))
	open := s.NewBody()
	if _, err := open.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if s.Full() {
		t.Fatal("full with a terabyte free")
	}

	free.Store(5<<30 - 1) // 5 % of 100 GiB
	if !s.Full() {
		t.Error("not full below the reserve")
	}
	second := mail(nil, "node:a")
	err := s.Apply(func(tx *Tx) error { return tx.Add(second, nil) })
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("adding at the reserve: %v", err)
	}
	if _, err := s.NewBody().Write(make([]byte, 100)); !errors.Is(err, ErrFull) {
		t.Errorf("a new body at the reserve: %v", err)
	}
	for range 3 { // an open one notices on the way
		_, err = open.Write(make([]byte, askEvery))
	}
	if !errors.Is(err, ErrFull) || !errors.Is(open.Finish(), ErrFull) {
		t.Errorf("a long body at the reserve: %v", err)
	}
	open.Discard()
	if err := s.ApplyUrgent(func(tx *Tx) error { return tx.Add(second, nil) }); err != nil {
		t.Errorf("a receipt at the reserve: %v", err)
	}
	third := mail(nil, "node:a")
	free.Store(urgentReserve - 1)
	if err := s.ApplyUrgent(func(tx *Tx) error { return tx.Add(third, nil) }); !errors.Is(err, ErrFull) {
		t.Errorf("a receipt at the last reserve: %v", err)
	}
	if _, err := s.Quarantine("x", "y", bytes.NewReader(make([]byte, 10))); !errors.Is(err, ErrFull) {
		t.Errorf("quarantine at the reserve: %v", err)
	}
	if err := finish(s, first.Env.ID); err != nil {
		t.Errorf("finishing at the reserve: %v", err)
	}
	free.Store(1 << 40)
	if err := s.Apply(func(tx *Tx) error { return tx.Add(third, nil) }); err != nil {
		t.Errorf("adding when there is room again: %v", err)
	}
	clean(t, s)
}

// TestBodyErrors has every operation on a body's file fail once, with a full disk and with a broken one: the caller
// hears it, nothing is left, and the next mail goes through.
func TestBodyErrors(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		for i := 0; ; i++ {
			disk := durabletest.New()
			s := open(t, t.TempDir(), Options{FS: disk, InlineMax: 8})
			n, failed := 0, ""
			disk.FailWith(func(o durabletest.Op) error {
				if n++; n-1 != i {
					return nil
				}
				failed = o.Kind
				return fmt.Errorf("injected: %w", cause)
			})
			data := make([]byte, 100)
			it := mail(data, "node:a")
			b := s.NewBody()
			_, err := b.Write(data)
			if err == nil {
				err = b.Finish()
			}
			if err == nil {
				err = s.Apply(func(tx *Tx) error { return tx.Add(it, b) })
			}
			if failed == "" {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if !errors.Is(err, cause) || errors.Is(err, ErrFull) != (cause == syscall.ENOSPC) {
				t.Errorf("%s failed: %v", failed, err)
			}
			if err := s.Apply(func(tx *Tx) error { return tx.Add(it, b) }); err == nil {
				t.Errorf("%s failed, and the body was taken", failed)
			}
			b.Discard()
			disk.FailWith(nil)
			add(t, s, it, data)
			if r := clean(t, s); r.Items != 1 || r.Bodies != 1 {
				t.Errorf("%s failed, left %+v", failed, r)
			}
			if names, _ := disk.ReadDir(s.path(tmpDir)); len(names) != 0 {
				t.Errorf("%s failed, left %v", failed, names)
			}
		}
	}
}

// childFull fills a tiny disk to the last byte, finishes one mail when it is full, and expects room again.
func childFull(dir string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=30m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	s, err := Open(dir, Options{InlineMax: 1 << 20, TraceKeep: -1, Ballast: 1 << 20})
	if err != nil {
		return err
	}
	data := pattern(20_000)
	var items []*Item
	for round := range 3 {
		for {
			it := mail(data, "node:a")
			body := s.NewBody()
			body.Write(data)
			if err := body.Finish(); err != nil {
				return err
			}
			err := s.Apply(func(tx *Tx) error { return tx.Add(it, body) })
			if errors.Is(err, ErrFull) {
				break
			}
			if err != nil {
				return fmt.Errorf("expected a full disk: %w", err)
			}
			items = append(items, it)
			if len(items) > 3000 {
				return errors.New("the disk is never full")
			}
		}
		say("round %d: %d items", round, len(items))
		if err := checkFull(s, items, data); err != nil {
			return err
		}
		// Ending mail must always work, though it needs pages first.
		for _, it := range items[:len(items)/2] {
			if err := finish(s, it.Env.ID); err != nil {
				return fmt.Errorf("ending mail on a full disk: %w", err)
			}
		}
		items = items[len(items)/2:]
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = Open(dir, Options{InlineMax: 1 << 20, TraceKeep: -1, Ballast: 1 << 20}); err != nil {
		return err
	}
	if err := checkFull(s, items, data); err != nil {
		return err
	}
	return s.Close()
}

// checkFull compares the spool with the list of what was acknowledged.
func checkFull(s *Spool, items []*Item, data []byte) error {
	r, err := s.Fsck(false)
	if err != nil || len(r.Problems) > 0 {
		return fmt.Errorf("fsck on the full disk: %+v, %v", r.Problems, err)
	}
	if r.Items != len(items) {
		return fmt.Errorf("%d items, want %d", r.Items, len(items))
	}
	for _, it := range items {
		if _, done, err := s.Find(it.Env.ID); err != nil || done {
			return fmt.Errorf("%s is lost: %v", it.Env.ID, err)
		}
	}
	return nil
}

// TestFullDisk runs a spool on a disk that is really full, in a name space of its own.
func TestFullDisk(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("SKIPPED LOUDLY: unshare is not installed: the spool was not tried on a full disk")
	}
	if out, err := exec.Command(unshare, "-Urm", "mount", "-t", "tmpfs", "none", t.TempDir()).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED LOUDLY: no name space for a small disk (%v: %s): the spool was not tried on a full disk", err, out)
	}
	out, err := child(t, "full", t.TempDir(), unshare, "-Urm").Output()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// TestWritten: what has been written to a body can be read before it is finished, and until it is used up.
func TestWritten(t *testing.T) {
	s := open(t, t.TempDir(), Options{InlineMax: 8})
	all := bytes.Repeat([]byte("0123456789"), 10000)
	b, at := s.NewBody(), 0
	check := func() {
		t.Helper()
		r, err := b.Written()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, all[:at]) {
			t.Errorf("%d bytes of %d: %v", len(got), at, err)
		}
	}
	for _, n := range []int{0, 8, 9, 10000, 70000, len(all)} {
		if _, err := b.Write(all[at:n]); err != nil {
			t.Fatal(err)
		}
		at = n
		check()
	}
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	check()
	b.Discard()
	if _, err := b.Written(); err == nil {
		t.Error("a discarded body can be read")
	}
}
