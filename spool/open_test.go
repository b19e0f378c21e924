package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

// edit changes the index behind the spool's back.
func edit(t *testing.T, dir string, fn func(*bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, indexFile), 0o600, boltOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(fn); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// fill makes a spool with items and closes it.
func fill(t *testing.T, dir string, items ...*Item) {
	t.Helper()
	s, err := Open(dir, Options{InlineMax: 8})
	if err != nil {
		t.Fatal(err)
	}
	for i, it := range items {
		add(t, s, it, bytes.Repeat([]byte("x"), 50*(i%2)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), "process") {
		t.Errorf("second opening: %v", err)
	}
	s.Close()
	open(t, dir, Options{})
}

func TestVersions(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, mail(nil, "node:a"))
	set := func(v string) {
		edit(t, dir, func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put(metaVersion, []byte(v)) })
	}
	set("3")
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "install") {
		t.Errorf("newer: %v", err)
	}
	for _, v := range []string{"0", "", "x", "-1"} {
		set(v)
		if s, err := Open(dir, Options{}); err == nil {
			s.Close()
			t.Errorf("version %q was opened", v)
		}
	}
	set("1")
	if s, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "1 items are queued") {
		s.Close()
		t.Errorf("with mail of version 1: %v", err)
	}
	dir = t.TempDir()
	fill(t, dir)
	set("0") // without mail all steps are gone
	migrations[0] = func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("u:migrated"), []byte("yes")) }
	defer delete(migrations, 0)
	s := open(t, dir, Options{})
	s.View(func(tx *Tx) error {
		if v, err := indexVersion(tx.tx); err != nil || v != formatVersion || string(tx.Meta("migrated")) != "yes" {
			t.Errorf("after the migration: %d, %v", v, err)
		}
		return nil
	})
	clean(t, s)
}

func TestNotAnIndex(t *testing.T) {
	for _, file := range [][]byte{nil, []byte("rubbish"), bytes.Repeat([]byte("rubbish!"), 1<<13)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, indexFile), file, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, Options{})
		if err == nil {
			s.Close()
			if len(file) > 0 {
				t.Errorf("%d bytes of rubbish were opened", len(file))
			}
			continue
		}
		if got, _ := os.ReadFile(filepath.Join(dir, indexFile)); !bytes.Equal(got, file) {
			t.Error("what could not be opened was changed")
		}
	}
}

func TestCopied(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, mail(nil, "node:a"))
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Copied() {
		t.Error("the original believes that it is a copy")
	}
	s.Close()
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // not accepted: it stays a copy
		if s, err = Open(other, Options{}); err != nil {
			t.Fatal(err)
		}
		if !s.Copied() {
			t.Error("a copy was not noticed")
		}
		s.Close()
	}
	if s, err = Open(other, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.AcceptCopy(); err != nil || s.Copied() {
		t.Errorf("accepted: %v", err)
	}
	s.Close()
	if s = open(t, other, Options{}); s.Copied() {
		t.Error("an accepted copy was noticed again")
	}
	if err := os.Rename(dir, dir+"-moved"); err != nil {
		t.Fatal(err)
	}
	if s = open(t, dir+"-moved", Options{}); s.Copied() {
		t.Error("a renamed folder is no copy")
	}
}

func TestSameIdentity(t *testing.T) {
	for _, x := range []struct {
		a, b string
		want bool
	}{
		{"1 2 m", "1 2 m", true}, {"1 2 m", "2 2 m", false}, {"1 2 m", "1 3 m", false}, {"1 2 m", "1 2 n", false},
		{"1  m", "1 2 m", true}, {"1 2 ", "1 2 m", true}, {"", "1 2 m", false}, {"1 2", "1 2 m", false},
	} {
		if got := sameIdentity(x.a, x.b); got != x.want {
			t.Errorf("%q and %q: %v", x.a, x.b, got)
		}
	}
}

// TestCompaction: an index that is mostly free is packed at start, keeps everything, and remains the original.
func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{InlineMax: 1 << 20, TraceKeep: -1})
	if err != nil {
		t.Fatal(err)
	}
	keep := mail([]byte("keep"), "node:a")
	add(t, s, keep, []byte("keep"))
	for range 30 {
		it := mail(nil, "node:a")
		add(t, s, it, make([]byte, 1<<20))
		if err := finish(s, it.Env.ID); err != nil {
			t.Fatal(err)
		}
	}
	var gone []*Item
	for range 30 {
		it := mail(nil, "node:a")
		add(t, s, it, make([]byte, 1<<20))
		gone = append(gone, it)
	}
	for _, it := range gone {
		if err := finish(s, it.Env.ID); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	before, err := os.Stat(filepath.Join(dir, indexFile))
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	after, err := os.Stat(filepath.Join(dir, indexFile))
	if err != nil {
		t.Fatal(err)
	}
	if after.Size()*2 > before.Size() || s.Recovered().Compacted == 0 {
		t.Errorf("%d bytes became %d, %+v", before.Size(), after.Size(), s.Recovered())
	}
	if s.Copied() {
		t.Error("compaction made a copy")
	}
	if b := content(t, s, keep.Env.ID); string(b) != "keep" {
		t.Errorf("content %q", b)
	}
	clean(t, s)
}

// TestPoisonedRecord: a record that cannot be read is set aside at start, the others go on, and it can come back.
func TestPoisonedRecord(t *testing.T) {
	for _, when := range []string{"head", "rest", "other id"} {
		t.Run(when, func(t *testing.T) {
			dir := t.TempDir()
			items := []*Item{mail(nil, "node:a"), mail(nil, "node:a", "node:b"), mail(nil, "node:a")}
			fill(t, dir, items...)
			bad := items[1].Env.ID
			var whole []byte
			edit(t, dir, func(tx *bolt.Tx) error {
				b := tx.Bucket([]byte("item"))
				whole = clone(b.Get(bad[:]))
				broken := clone(whole)
				switch when {
				case "head":
					broken[0] = 99
				case "rest":
					broken = broken[:len(broken)-5]
				case "other id":
					broken = clone(b.Get(items[0].Env.ID[:]))
				}
				return b.Put(bad[:], broken)
			})
			s := open(t, dir, Options{InlineMax: 8})
			got, err := s.Lease("node:a", 10, 0)
			if err != nil || len(got) != 2 {
				t.Fatalf("leased %d, %v", len(got), err)
			}
			if got, err := s.Lease("node:b", 10, 0); err != nil || len(got) != 0 {
				t.Fatalf("leased %d, %v", len(got), err)
			}
			s.chores.drain()
			if _, _, err := s.Find(bad); !errors.Is(err, ErrNotFound) {
				t.Errorf("the poisoned one: %v", err)
			}
			if s.DueNow("node:b") {
				t.Error("the poisoned one is due")
			}
			clean(t, s)
			q, err := s.Quarantined()
			if err != nil || len(q) != 1 || q[0].Name != "record-"+bad.String() || q[0].Reason == "" {
				t.Fatalf("quarantine %+v, %v", q, err)
			}
			r, e, err := s.OpenQuarantined(q[0].Name)
			if err != nil || e.Size != q[0].Size {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(r); int64(len(b)) != e.Size {
				t.Errorf("%d bytes, want %d", len(b), e.Size)
			}
			if err := s.ReleaseRecord(q[0].Name); !errors.Is(err, ErrPoisoned) {
				t.Errorf("releasing what cannot be read: %v", err)
			}
			if err := s.Apply(func(tx *Tx) error { return tx.Add(items[1], nil) }); !errors.Is(err, ErrExists) {
				t.Errorf("adding under its id: %v", err)
			}
			// A version that can read it:
			apply(t, s, func(tx *Tx) error {
				return tx.put(bkBad, bad[:], appendBad(nil, time.Now(), errIndex, whole))
			})
			if err := s.ReleaseRecord(q[0].Name); err != nil {
				t.Fatal(err)
			}
			if b := content(t, s, bad); len(b) != 50 {
				t.Errorf("content of %d bytes", len(b))
			}
			if got, err := s.Lease("node:b", 10, 0); err != nil || len(got) != 1 {
				t.Errorf("leased %d, %v", len(got), err)
			}
			clean(t, s)
		})
	}
}

// TestRemoveRecord: a record that was set aside goes with its content.
func TestRemoveRecord(t *testing.T) {
	dir := t.TempDir()
	items := []*Item{mail(nil, "node:a"), mail(nil, "node:a")}
	fill(t, dir, items...)
	edit(t, dir, func(tx *bolt.Tx) error {
		for _, it := range items {
			if err := tx.Bucket([]byte("item")).Put(it.Env.ID[:], []byte("rubbish")); err != nil {
				return err
			}
		}
		return nil
	})
	s := open(t, dir, Options{InlineMax: 8})
	for _, it := range items {
		if err := s.RemoveQuarantined("record-" + it.Env.ID.String()); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveQuarantined("record-" + it.Env.ID.String()); !errors.Is(err, ErrNotFound) {
			t.Errorf("twice: %v", err)
		}
	}
	s.chores.drain()
	if r := clean(t, s); r.Items+r.Bodies != 0 {
		t.Errorf("left %+v", r)
	}
	s.View(func(tx *Tx) error {
		if n := tx.bucket(bkBody).Stats().KeyN + tx.bucket(bkFile).Stats().KeyN; n != 0 {
			t.Errorf("%d contents are left", n)
		}
		return nil
	})
}

// TestFsckRepairs damages every index in turn.
func TestFsckRepairs(t *testing.T) {
	due, deferred, filed := mail(nil, "node:a"), mail(nil, "node:a"), mail(nil, "node:a")
	soon := mail(nil, "node:a")
	soon.Env.Expires = time.Now().Add(time.Hour)
	deferred.Legs[0].State, deferred.Legs[0].At = Deferred, epoch()
	id := due.Env.ID
	dueK, ghostK := dueKey(1, class(due.Env), 0, id, 0), dueKey(1, 3, 0, envelope.ID{7}, 2)
	waitK, ghostW := waitKey(milli(epoch()), deferred.Env.ID, 0), waitKey(5, id, 0)
	bucketOf := func(name string, fn func(*bolt.Bucket) error) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error { return fn(tx.Bucket([]byte(name))) }
	}
	damages := map[string]func(*bolt.Tx) error{
		"due entry lost":  bucketOf("due", func(b *bolt.Bucket) error { return b.Delete(dueK[:]) }),
		"due ghost":       bucketOf("due", func(b *bolt.Bucket) error { return b.Put(ghostK[:], nil) }),
		"wait entry lost": bucketOf("wait", func(b *bolt.Bucket) error { return b.Delete(waitK[:]) }),
		"wait ghost":      bucketOf("wait", func(b *bolt.Bucket) error { return b.Put(ghostW[:], nil) }),
		"loose content":   bucketOf("body", func(b *bolt.Bucket) error { return b.Put(bytes.Repeat([]byte{9}, 16), []byte("x")) }),
		"content lost":    bucketOf("body", func(b *bolt.Bucket) error { return b.Delete(id[:]) }),
		"content damaged": bucketOf("body", func(b *bolt.Bucket) error { return b.Put(id[:], []byte("y")) }),
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := Open(dir, Options{InlineMax: 8})
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range []*Item{due, deferred, filed, soon} {
				add(t, s, it, []byte("x"))
			}
			s.Close()
			edit(t, dir, damage)
			s = open(t, dir, Options{InlineMax: 8})
			r, err := s.Fsck(false)
			if err != nil || len(r.Problems) != 1 || r.OK() {
				t.Fatalf("found %+v, %v", r, err)
			}
			if r, err = s.Fsck(true); err != nil || !r.OK() {
				t.Fatalf("repaired %+v, %v", r, err)
			}
			r, err = s.Fsck(false)
			if held := strings.HasPrefix(name, "content"); err != nil || len(r.Problems) > 0 && !held {
				t.Fatalf("after the repair %+v, %v", r, err)
			} else if held {
				if it, _, err := s.Find(id); err != nil || it.Problem == "" || it.Legs[0].State != Held {
					t.Errorf("item with broken content: %+v, %v", it, err)
				}
			}
			if got, err := s.Wake(epoch(), 10); err != nil || len(got) == 0 {
				t.Errorf("woken by %v, %v", got, err)
			}
		})
	}
}

// TestFsckFiles: files without entry, entries without item, items without entry.
func TestFsckFiles(t *testing.T) {
	s := open(t, t.TempDir(), Options{InlineMax: 8})
	data := make([]byte, 50)
	lost, ghost := mail(data, "node:a"), mail(data, "node:a")
	add(t, s, lost, data)
	add(t, s, ghost, data)
	waiting := s.NewBody() // finished, not added: none of fsck's business
	waiting.Write(data)
	if err := waiting.Finish(); err != nil {
		t.Fatal(err)
	}
	orphan := newFileName(time.Now())
	if err := os.WriteFile(s.bodyPath(orphan), data, 0o600); err != nil {
		t.Fatal(err)
	}
	apply(t, s, func(tx *Tx) error {
		h, err := parseHead(tx.bucket(bkItem).Get(lost.Env.ID[:]))
		if err != nil {
			return err
		}
		k := fileKey(h.file)
		if err := tx.del(bkFile, k[:]); err != nil {
			return err
		}
		tx.b.recount = true
		return tx.heal(nil)
	})
	apply(t, s, func(tx *Tx) error { // the item vanishes, its entries do not
		tx.b.recount = true
		if err := tx.del(bkItem, ghost.Env.ID[:]); err != nil {
			return err
		}
		return tx.healKeys(map[envelope.ID]head{ghost.Env.ID: {}})
	})
	r, err := s.Fsck(true)
	if err != nil || !r.OK() || len(r.Problems) < 3 {
		t.Fatalf("repaired %+v, %v", r, err)
	}
	s.chores.drain()
	clean(t, s)
	if b := content(t, s, lost.Env.ID); !bytes.Equal(b, data) {
		t.Error("the content of the item without entry is gone")
	}
	if _, err := os.Stat(s.bodyPath(orphan)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the orphan: %v", err)
	}
	it := mail(data, "node:a")
	apply(t, s, func(tx *Tx) error { return tx.Add(it, waiting) })
	if b := content(t, s, it.Env.ID); !bytes.Equal(b, data) {
		t.Error("the waiting content is gone")
	}
}

// TestFsckBusy runs Fsck beside working callers: it must not report what is merely in motion.
func TestFsckBusy(t *testing.T) {
	s := open(t, t.TempDir(), Options{InlineMax: 100})
	stop := make(chan struct{})
	ended := make(chan error)
	for range 4 {
		go func() {
			for {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				it := mail(nil, "node:a")
				b := s.NewBody()
				b.Write(make([]byte, 60+len(it.Env.ID)*4))
				err := b.Finish()
				if err == nil {
					err = s.Apply(func(tx *Tx) error { return tx.Add(it, b) })
				}
				if err == nil {
					err = finish(s, it.Env.ID)
				}
				if err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	for range 20 {
		r, err := s.Fsck(true)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Problems {
			t.Errorf("fsck: %s %s: %s", p.Kind, p.ID, p.Detail)
		}
	}
	close(stop)
	for range 4 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestQuarantine(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{QuarantineMax: 1000})
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("line one\nline two\x00")
	name, err := s.Quarantine("not a packet: \"\n\xff", "peer:abc", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.WriteFile(filepath.Join(dir, quarantineDir, durable.TempPrefix+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{QuarantineMax: 1000})
	if s.Recovered().Temp != 1 {
		t.Errorf("recovery %+v", s.Recovered())
	}
	q, err := s.Quarantined()
	if err != nil || len(q) != 1 || q[0].Name != name || q[0].From != "peer:abc" || q[0].Size != int64(len(data)) || !strings.HasPrefix(q[0].Reason, "not a packet: \"\n") {
		t.Fatalf("quarantine %+v, %v", q, err)
	}
	r, _, err := s.OpenQuarantined(name)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, data) {
		t.Errorf("got %q, %v", b, err)
	}
	r.Close()
	if _, err := s.Quarantine("flood", "peer:abc", bytes.NewReader(make([]byte, 2000))); !errors.Is(err, ErrFull) {
		t.Errorf("flood: %v", err)
	}
	if _, err := s.Quarantine("rest", "peer:abc", bytes.NewReader(make([]byte, 1000-len(data)))); err != nil {
		t.Errorf("up to the limit: %v", err)
	}
	if _, err := s.Quarantine("more", "", bytes.NewReader(nil)); !errors.Is(err, ErrFull) {
		t.Errorf("beyond the limit: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, quarantineDir, "strange"), []byte("no head"), 0o600); err != nil {
		t.Fatal(err)
	}
	if q, err := s.Quarantined(); err != nil || len(q) != 3 {
		t.Errorf("quarantine %+v, %v", q, err)
	}
	for _, n := range []string{"", ".", "..", "../index.db", ".tmp-1", "nothing", "record-x"} {
		if _, _, err := s.OpenQuarantined(n); err == nil {
			t.Errorf("%q was opened", n)
		}
		if err := s.RemoveQuarantined(n); err == nil {
			t.Errorf("%q was removed", n)
		}
	}
	for _, n := range []string{name, "strange"} {
		if err := s.RemoveQuarantined(n); err != nil {
			t.Error(err)
		}
	}
}
