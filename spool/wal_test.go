package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/envelope"
)

// crash ends a spool as kill -9 does: nothing is written any more.
func crash(t *testing.T, s *Spool) {
	t.Helper()
	lost := fmt.Errorf("%w: the test has killed it", ErrBroken)
	s.broken.Store(&lost)
	s.Close()
}

// logged adds n mails of size bytes to a spool in dir, one commit each, and crashes. It returns them in order.
func logged(t *testing.T, dir string, o Options, n, size int) (ids []envelope.ID) {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		data := pattern(size)
		it := mail(data, "node:a")
		add(t, s, it, data)
		ids = append(ids, it.Env.ID)
	}
	crash(t, s)
	return ids
}

// here checks that the spool has the first n of ids, whole, and none of the others.
func here(t *testing.T, s *Spool, ids []envelope.ID, n int) {
	t.Helper()
	for i, id := range ids {
		_, _, err := s.Find(id)
		if (err == nil) != (i < n) {
			t.Errorf("mail %d of %d, %d are to be here: %v", i+1, len(ids), n, err)
		}
	}
	clean(t, s)
}

// TestLogAfterCrash: what the log alone knows is there after a crash, over any number of checkpoints, and once more
// after a crash of the start itself.
func TestLogAfterCrash(t *testing.T) {
	dir := t.TempDir()
	ids := logged(t, dir, Options{Log: 64 << 10}, 100, 3000)
	for round := range 3 {
		s, err := Open(dir, Options{Log: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		if f := s.Recovered(); (f.Redone > 0) != (round == 0) || f.LogDamage != "" {
			t.Errorf("opening %d: %+v", round, f)
		}
		here(t, s, ids, len(ids))
		if s.Copied() {
			t.Error("a crash made it a copy")
		}
		crash(t, s)
	}
}

// TestLogTables: every kind of change is made again, and destinations keep their numbers.
func TestLogTables(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	commit := func(fn func(tx *Tx) error) {
		t.Helper()
		if err := s.Apply(fn); err != nil {
			t.Fatal(err)
		}
	}
	commit(func(tx *Tx) error { return tx.KV("a table").Put([]byte("stays"), []byte("value")) })
	commit(func(tx *Tx) error { return tx.KV("a table").Put([]byte("goes"), nil) })
	commit(func(tx *Tx) error { return tx.KV("a table").Delete([]byte("goes")) })
	commit(func(tx *Tx) error { return tx.SetMeta("m", bytes.Repeat([]byte{0}, 300)) })
	commit(func(tx *Tx) error { return tx.SetMeta("n", []byte("x")) })
	commit(func(tx *Tx) error { return tx.SetMeta("n", nil) })
	first, second := mail(nil, "node:b", "via:c"), mail(nil, "via:c")
	add(t, s, first, nil)
	add(t, s, second, nil)
	if err := finish(s, second.Env.ID); err != nil {
		t.Fatal(err)
	}
	crash(t, s)
	s = open(t, dir, Options{})
	s.View(func(tx *Tx) error {
		kv := tx.KV("a table")
		if string(kv.Get([]byte("stays"))) != "value" || kv.Get([]byte("goes")) != nil || len(tx.Meta("m")) != 300 || tx.Meta("n") != nil {
			t.Errorf("%q %q %q %q", kv.Get([]byte("stays")), kv.Get([]byte("goes")), tx.Meta("m"), tx.Meta("n"))
		}
		return nil
	})
	if it, done, err := s.Find(first.Env.ID); err != nil || done || it.Legs[0].Dest != "node:b" || it.Legs[1].Dest != "via:c" {
		t.Errorf("%+v, %v", it, err)
	}
	if _, done, err := s.Find(second.Env.ID); err != nil || !done {
		t.Errorf("finished: %v, %v", done, err)
	}
	clean(t, s)
}

// TestLogDamage: rot in the middle of the log is not taken for its end in silence. What came before counts, the logs
// are kept for people, and the spool is one that may have forgotten what its peers saw.
func TestLogDamage(t *testing.T) {
	for name, offset := range map[string]int64{"nonce": 0, "number": 16, "length": 24, "sum": 28, "changes": 200} {
		dir := t.TempDir()
		ids := logged(t, dir, Options{}, 5, 100)
		path := logInUse(t, dir)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[walRecords+2*walBlock+offset] ^= 0x40 // of the third record
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, Options{})
		if f := s.Recovered(); !strings.Contains(f.LogDamage, "damaged in the middle") || f.Redone != 2 {
			t.Errorf("%s: %+v", name, f)
		}
		here(t, s, ids, 2)
		if !s.Copied() {
			t.Errorf("%s: the spool does not know that it has forgotten something", name)
		}
		if q, err := s.Quarantined(); err != nil || len(q) != 2 {
			t.Errorf("%s: %d files in the quarantine, %v", name, len(q), err)
		}
		if err := s.AcceptCopy(); err != nil {
			t.Error(err)
		}
		s.Close()
		if s = open(t, dir, Options{}); s.Copied() || s.Recovered().LogDamage != "" {
			t.Errorf("%s: still damaged after it was accepted", name)
		}
	}
}

// logInUse is the log with records.
func logInUse(t *testing.T, dir string) string {
	t.Helper()
	w, err := openWAL(func(name ...string) string { return filepath.Join(append([]string{dir}, name...)...) })
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	return filepath.Join(dir, walNames[w.cur])
}

// TestLogEnd: the last record is there whole or not at all; its loss is no damage.
func TestLogEnd(t *testing.T) {
	for _, cut := range []int64{1, walHead, walHead + 1, 300, walBlock - 1} {
		dir := t.TempDir()
		ids := logged(t, dir, Options{}, 3, 100)
		path := logInUse(t, dir)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		last := walRecords + 2*walBlock
		want := 2
		copy(b[last+int(cut):last+walBlock], make([]byte, walBlock))
		if cut == walBlock-1 {
			want = 3 // only padding is gone
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, Options{})
		if f := s.Recovered(); f.LogDamage != "" || f.Redone != want {
			t.Errorf("cut at %d: %+v", cut, f)
		}
		here(t, s, ids, want)
	}
}

// TestLogForged: mail that looks like a record of the log, at the place where the log of a later turn ends, is not made
// a commit by a crash.
func TestLogForged(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{InlineMax: 1 << 20, Log: 1 << 20})
	// Blocks that are records of the very turn that is under way, but for its nonce.
	forged := make([]byte, 200*walBlock)
	for off := 0; off < len(forged); off += walBlock {
		rec := forged[off : off+walHead+4]
		rec[23], rec[27] = 2, 4
		copy(rec[walHead:], []byte{walPut, byte(bkMeta), 0, 0})
		sum := walSum(rec)
		rec[28], rec[29], rec[30], rec[31] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	}
	for range 4 { // through both files
		add(t, s, mail(forged, "node:a"), forged)
	}
	add(t, s, mail(nil, "node:a"), nil)
	crash(t, s)
	s = open(t, dir, Options{InlineMax: 1 << 20})
	if f := s.Recovered(); f.LogDamage != "" {
		t.Error(f.LogDamage)
	}
	if r := clean(t, s); r.Items != 5 {
		t.Errorf("%d items", r.Items)
	}
}

// TestStrangeLog: index and log that were not left together are not put together, and the way out is told.
func TestStrangeLog(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	logged(t, dir, Options{}, 3, 100)
	fill(t, other, mail(nil, "node:a"))
	index := filepath.Join(dir, indexFile)
	mine, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	strange, err := os.ReadFile(filepath.Join(other, indexFile))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(want string) {
		t.Helper()
		if s, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "move ") {
			t.Errorf("opened, or not told why: %v", err)
			if s != nil {
				s.Close()
			}
		}
	}
	if err := os.WriteFile(index, strange, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("not the index that its log continues")
	if got, _ := os.ReadFile(index); !bytes.Equal(got, strange) {
		t.Error("it was changed")
	}
	if err := os.Remove(index); err != nil {
		t.Fatal(err)
	}
	refused("is gone")
	if err := os.WriteFile(index, mine, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, Options{})
	if r := clean(t, s); r.Items != 3 {
		t.Errorf("%d items after all was put back", r.Items)
	}
}

// TestMapGrows: when the map of the index may have to grow, commits go without the log, since the log's pin would have
// them wait for ever; then the log goes on.
func TestMapGrows(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	data := pattern(5000)
	var ids []envelope.ID
	put := func(logging bool) {
		t.Helper()
		it := mail(data, "node:a")
		add(t, s, it, data)
		ids = append(ids, it.Env.ID)
		if s.cp.logging != logging {
			t.Errorf("after mail %d: logging %v", len(ids), s.cp.logging)
		}
	}
	put(true)
	for range 3 {
		s.cp.mapped = 1 << 20
		put(false)
		put(true)
		put(true)
	}
	crash(t, s)
	s = open(t, dir, Options{})
	here(t, s, ids, len(ids))
}

// FuzzRedo: no bytes in a record make more of it than an error.
func FuzzRedo(f *testing.F) {
	f.Add([]byte{walPut, byte(bkMeta), 1, 'a', 1, 'b', walDel, byte(bkSeen), 1, 'a'})
	f.Add([]byte{walKVPut, 1, 't', 1, 'a', 0, walKVDel, 1, 't', 1, 'a'})
	f.Add([]byte{walPut, byte(numBuckets), 0, 0})
	f.Add([]byte{9})
	f.Add([]byte{walDel, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	s, err := Open(f.TempDir(), Options{})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	undo := errors.New("enough")
	f.Fuzz(func(t *testing.T, changes []byte) {
		s.Apply(func(tx *Tx) error {
			if tx.redo(changes) != nil {
				return undo
			}
			noted := bytes.Clone(tx.b.redo[walHead:])
			tx.b.redo = tx.b.redo[:walHead]
			if err := tx.redo(noted); err != nil || !bytes.Equal(tx.b.redo[walHead:], noted) {
				t.Errorf("%x is noted as %x, and that as %x, %v", changes, noted, tx.b.redo[walHead:], err)
			}
			return undo
		})
	})
}
