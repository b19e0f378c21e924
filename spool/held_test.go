package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// holds adds n mails, which the index does not have yet.
func holds(t testing.TB, s *Spool, n int) (ids []envelope.ID) {
	t.Helper()
	data := pattern(2000)
	for range n {
		it := mail(data, "node:a")
		add(t, s, it, data)
		ids = append(ids, it.Env.ID)
	}
	if !s.held.any.Load() {
		t.Fatal("nothing is held")
	}
	return ids
}

// TestHeldSeen: what Apply has answered for is seen by every way to look, and only View has the index take it.
func TestHeldSeen(t *testing.T) {
	s := open(t, t.TempDir(), Options{Free: plenty})
	ids := holds(t, s, 3)
	l, err := s.Lease("node:a", 10, 0)
	if err != nil || len(l) != len(ids) {
		t.Fatalf("%d leased: %v", len(l), err)
	}
	content(t, s, ids[2])
	if err := s.Peek(func(tx *Tx) error { _, err := tx.Item(ids[2]); return err }); err != nil {
		t.Error(err)
	}
	if err := s.Peek(func(tx *Tx) error { return tx.SetMeta("x", []byte("y")) }); !errors.Is(err, errReadOnly) {
		t.Errorf("a change in Peek: %v", err)
	}
	if err := s.Peek(func(*Tx) error { return errWanted }); !errors.Is(err, errWanted) {
		t.Errorf("Peek returned %v", err)
	}
	empty := mail(nil, "node:b")
	add(t, s, empty, []byte{})
	if b := content(t, s, empty.Env.ID); len(b) != 0 {
		t.Errorf("content %q", b)
	}
	if _, err := s.Wake(epoch(), 10); err != nil {
		t.Error(err)
	}
	holds(t, s, 1)
	if err := s.View(func(tx *Tx) error { _, err := tx.Item(ids[1]); return err }); err != nil {
		t.Error(err)
	}
	if s.held.any.Load() {
		t.Error("View has left something held")
	}
	clean(t, s)
}

// TestHeldUndo: a function that fails after it has written is undone, and what was held before it stays.
func TestHeldUndo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Free: plenty})
	var ids []envelope.ID
	for range 3 {
		ids = append(ids, holds(t, s, 2)...)
		bad := mail(nil, "node:unheard")
		err := s.Apply(func(tx *Tx) error {
			if err := tx.Add(bad, nil); err != nil {
				return err
			}
			return errWanted
		})
		if !errors.Is(err, errWanted) {
			t.Fatal(err)
		}
		if _, _, err := s.Find(bad.Env.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("what failed: %v", err)
		}
		ids = append(ids, holds(t, s, 1)...)
	}
	here(t, s, ids, len(ids))
	ids = append(ids, holds(t, s, 2)...)
	crash(t, s)
	here(t, open(t, dir, Options{}), ids, len(ids))
}

// TestHeldClose: Close leaves nothing to the log, and a crash everything.
func TestHeldClose(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Free: plenty})
	ids := holds(t, s, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{Free: plenty})
	if n := s.Recovered().Redone; n != 0 {
		t.Errorf("%d records made again after Close", n)
	}
	ids = append(ids, holds(t, s, 5)...)
	crash(t, s)
	s = open(t, dir, Options{})
	if n := s.Recovered().Redone; n != 5 {
		t.Errorf("%d records made again after a crash, want 5", n)
	}
	here(t, s, ids, len(ids))
}

// TestHeldBounds: a small disk holds nothing, an idle spool not for long, a busy one not much.
func TestHeldBounds(t *testing.T) {
	s := open(t, t.TempDir(), Options{Free: func() (int64, int64, error) { return holdRoom - 1, 1 << 40, nil }, Ballast: -1})
	add(t, s, mail(nil, "node:a"), nil)
	if s.held.any.Load() {
		t.Error("held without room")
	}
	s = open(t, t.TempDir(), Options{Free: plenty})
	for range 10 * maxHeld {
		holds := 0
		add(t, s, mail(nil, "node:a"), nil)
		s.Peek(func(*Tx) error { holds = s.held.commits; return nil })
		if holds >= maxHeld {
			t.Fatalf("%d commits held", holds)
		}
	}
	add(t, s, mail(nil, "node:a"), nil)
	for s.held.any.Load() {
		syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 1000})
	}
	clean(t, s)
}

// TestAloneBehindALook: who must have no company gets none either when somebody who only looks stands before it.
func TestAloneBehindALook(t *testing.T) {
	s := open(t, t.TempDir(), Options{Free: plenty})
	in, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 3)
	go func() {
		done <- s.Apply(func(tx *Tx) error {
			close(in)
			<-goOn
			return tx.Add(mail(nil, "node:a"), nil)
		})
	}()
	<-in
	c := &checker{s: s}
	for i, r := range []*request{
		{peek: func(*Tx) error { return nil }},
		{alone: true, fn: c.counts},
	} {
		go func() { done <- s.submit(s.requests, r) }()
		for len(s.requests) <= i {
			syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 1000})
		}
	}
	close(goOn)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if len(c.rep.Problems) > 0 {
		t.Errorf("counts while a commit is under way: %v", c.rep.Problems)
	}
}

// TestHeldApplyRace: whoever looks, in whatever way, beside any others, sees what was acknowledged before.
func TestHeldApplyRace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Free: plenty, Log: 256 << 10})
	var wg sync.WaitGroup
	all := make([][]envelope.ID, 8)
	for g := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			dest := Dest(fmt.Sprint("node:", g))
			for i := range 60 {
				it := mail(nil, dest)
				apply := s.Apply
				if i%2 == 0 {
					apply = s.ApplyHere
				}
				err := apply(func(tx *Tx) error {
					if err := tx.Add(it, nil); err != nil {
						return err
					}
					if i%11 == g {
						return errWanted
					}
					return nil
				})
				if i%11 == g {
					if !errors.Is(err, errWanted) {
						t.Error(err)
					}
					continue
				}
				if err != nil {
					t.Error(err)
				}
				all[g] = append(all[g], it.Env.ID)
				look := s.Peek
				if i%5 == 0 {
					look = s.View
				}
				if err := look(func(tx *Tx) error { _, err := tx.Item(it.Env.ID); return err }); err != nil {
					t.Errorf("%d of %d: %v", i, g, err)
				}
				l, err := s.Lease(dest, 1, 0)
				if err != nil || len(l) != 1 || l[0].Item.Env.ID != it.Env.ID {
					t.Errorf("%d of %d: leased %v: %v", i, g, l, err)
				}
				if i%3 == 0 {
					if _, err := s.Wake(epoch(), 5); err != nil {
						t.Error(err)
					}
					s.NextWake()
				}
			}
		}()
	}
	wg.Wait()
	var ids []envelope.ID
	for _, x := range all {
		ids = append(ids, x...)
	}
	crash(t, s)
	here(t, open(t, dir, Options{}), ids, len(ids))
}

// fillDisk makes a file that takes what the disk has left.
func fillDisk(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(zeros[:512])
	}
	if !isFull(err) {
		return err
	}
	return nil
}

// childHeld fills the disk while something is held. With ballast the index can take it all the same; without, the log
// keeps it for the next start.
func childHeld(dir string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=24m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	for _, ballast := range []int64{2 << 20, -1} {
		o := Options{Free: plenty, Ballast: ballast, Log: 1 << 20}
		home := filepath.Join(dir, fmt.Sprint("ballast", ballast))
		s, err := Open(home, o)
		if err != nil {
			return err
		}
		data := pattern(3000)
		var items []*Item
		put := func() error {
			it := mail(data, "node:a")
			body := s.NewBody()
			body.Write(data)
			if err := body.Finish(); err != nil {
				return err
			}
			err := s.Apply(func(tx *Tx) error { return tx.Add(it, body) })
			if err == nil {
				items = append(items, it)
			}
			return err
		}
		if err := put(); err != nil {
			return err
		}
		filler := filepath.Join(dir, "filler")
		if err := fillDisk(filler); err != nil {
			return err
		}
		for range maxHeld - 5 {
			if err = put(); err != nil {
				break // the while was over
			}
		}
		say("ballast %d: %d mails, %d held: %v", ballast, len(items), s.held.commits, err)
		err = s.View(func(tx *Tx) error { _, err := tx.Item(items[len(items)-1].Env.ID); return err })
		if (err == nil) != (ballast > 0) || err != nil && !errors.Is(err, ErrBroken) {
			return fmt.Errorf("looking on a full disk: %w", err)
		}
		if ballast > 0 {
			if err := checkFull(s, items, data); err != nil {
				return err
			}
			if err := finish(s, items[0].Env.ID); err != nil {
				return fmt.Errorf("ending mail on a full disk: %w", err)
			}
			items = items[1:]
		} else if err := put(); !errors.Is(err, ErrBroken) {
			return fmt.Errorf("a broken spool takes mail: %w", err)
		}
		if err := s.Close(); err != nil {
			return err
		}
		if err := os.Remove(filler); err != nil {
			return err
		}
		if s, err = Open(home, o); err != nil {
			return err
		}
		if err := checkFull(s, items, data); err != nil {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	return nil
}

// TestHeldFullDisk: a disk that somebody else fills while commits are held costs nothing that was acknowledged.
func TestHeldFullDisk(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("SKIPPED LOUDLY: unshare is not installed: held commits were not tried on a full disk")
	}
	if out, err := exec.Command(unshare, "-Urm", "mount", "-t", "tmpfs", "none", t.TempDir()).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED LOUDLY: no name space for a small disk (%v: %s): held commits were not tried on a full disk", err, out)
	}
	out, err := child(t, "held", t.TempDir(), unshare, "-Urm").Output()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// childFault has a function panic that its caller runs itself, below somebody who recovers.
func childFault(dir string) error {
	s, err := Open(dir, Options{Free: plenty})
	if err != nil {
		return err
	}
	good := mail(nil, "node:a")
	if err := s.Apply(func(tx *Tx) error { return tx.Add(good, nil) }); err != nil {
		return err
	}
	say("%s", good.Env.ID)
	bad := mail(nil, "node:a")
	func() {
		defer func() { recover() }()
		s.ApplyHere(func(tx *Tx) error {
			if err := tx.Add(bad, nil); err != nil {
				return err
			}
			panic("a fault of this test")
		})
	}()
	// Never come to: the caller does not return while the process ends.
	_, _, err = s.Find(bad.Env.ID)
	return fmt.Errorf("the spool goes on; looking for what the fault has left: %v", err)
}

// TestFaultHere: a panic while a caller commits is not recovered from: what it left in the transaction would enter the
// index with the next commit, without being in the log.
func TestFaultHere(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "fault", dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil || !strings.Contains(said.String(), "panic: a fault of this test") || !strings.Contains(said.String(), "childFault") {
		t.Errorf("%v: %s", err, said.String())
	}
	id, err := envelope.ParseID(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	here(t, open(t, dir, Options{}), []envelope.ID{id}, 1)
}

// TestInside: a View inside Apply would wait for the writer that runs it. It fails instead, and the spool goes on.
func TestInside(t *testing.T) {
	defer func(d time.Duration) { insideAfter = d }(insideAfter)
	insideAfter = 10 * time.Millisecond
	s := open(t, t.TempDir(), Options{Free: plenty})
	nothing := func(*Tx) error { return nil }
	for outer, apply := range map[string]func(func(*Tx) error) error{"Apply": s.Apply, "ApplyHere": s.ApplyHere, "Peek": s.Peek} {
		for inner, call := range map[string]func() error{
			"View":      func() error { return s.View(nothing) },
			"Apply":     func() error { return s.Apply(nothing) },
			"ApplyHere": func() error { return s.ApplyHere(nothing) },
		} {
			err := errWanted
			for n := 0; errors.Is(err, errWanted) && n < 100; n++ {
				add(t, s, mail(nil, "node:a"), nil)
				err = apply(func(*Tx) error {
					if !s.held.any.Load() {
						return errWanted // the index has it already, and a View would wait for nobody
					}
					return call()
				})
			}
			if !errors.Is(err, errInside) {
				t.Errorf("%s in %s: %v", inner, outer, err)
			}
		}
	}
	add(t, s, mail(nil, "node:b"), nil)
	clean(t, s)
}
