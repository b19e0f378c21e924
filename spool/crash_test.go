package spool

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"mochila/internal/durable/durabletest"
	"mochila/internal/envelope"
)

// stage is what was true at one moment of a scenario.
type stage struct {
	from, to int               // operations of the disk before the commit, and when it had certainly been acknowledged
	index    map[string]sparse // index and log then
	live     map[envelope.ID][]byte
	done     map[envelope.ID]bool
	quar     int
}

// scenario is sequential work on a spool whose bodies lie on a crash disk.
type scenario struct {
	t      *testing.T
	dir    string
	disk   *durabletest.Disk
	s      *Spool
	now    stage
	stages []stage
}

// commit runs what ends in one Apply and notes the stage.
func (c *scenario) commit(change func(*stage), fn func(*Tx) error) {
	c.t.Helper()
	from := c.disk.Len()
	if err := c.s.Apply(fn); err != nil {
		c.t.Fatal(err)
	}
	// Inside Apply nothing happens on this disk before the commit, and unlinking only after it.
	c.s.chores.drain()
	change(&c.now)
	c.note(from, from+1)
}

func (c *scenario) note(from, to int) {
	c.t.Helper()
	st := stage{from: from, to: to, index: readSparse(c.t, c.dir), live: map[envelope.ID][]byte{}, done: map[envelope.ID]bool{}, quar: c.now.quar}
	for id, b := range c.now.live {
		st.live[id] = b
	}
	for id := range c.now.done {
		st.done[id] = true
	}
	c.stages = append(c.stages, st)
}

func (c *scenario) add(size int) envelope.ID {
	c.t.Helper()
	data := bytes.Repeat([]byte{byte(size)}, size)
	it := mail(data, "node:a")
	b := c.s.NewMailBody()
	for part := range 3 {
		b.Write(data[part*size/3 : (part+1)*size/3])
	}
	if err := b.Finish(); err != nil {
		c.t.Fatal(err)
	}
	c.commit(func(st *stage) { st.live[it.Env.ID] = data }, func(tx *Tx) error { return tx.Add(it, b) })
	return it.Env.ID
}

func (c *scenario) finish(id envelope.ID) {
	c.t.Helper()
	c.commit(func(st *stage) { delete(st.live, id); st.done[id] = true }, func(tx *Tx) error {
		it, err := tx.Item(id)
		if err != nil {
			return err
		}
		it.Legs[0].State = Done
		return tx.Save(it)
	})
}

// TestPowerCuts cuts the power behind every operation on body files, with every kind of loss, and opens what is left.
func TestPowerCuts(t *testing.T) {
	c := &scenario{t: t, dir: t.TempDir(), disk: durabletest.New()}
	c.now = stage{live: map[envelope.ID][]byte{}, done: map[envelope.ID]bool{}}
	var err error
	if c.s, err = Open(c.dir, Options{FS: c.disk, InlineMax: 8, Free: plenty}); err != nil {
		t.Fatal(err)
	}
	c.note(c.disk.Len(), c.disk.Len())
	a := c.add(100)
	c.add(5) // in the index
	b := c.add(70_000)
	unused := c.s.NewBody()
	unused.Write(make([]byte, 50))
	if err := unused.Finish(); err != nil {
		t.Fatal(err)
	}
	c.finish(a)
	unused.Discard()
	from := c.disk.Len()
	if _, err := c.s.Quarantine("test", "", bytes.NewReader(make([]byte, 40))); err != nil {
		t.Fatal(err)
	}
	c.now.quar++
	c.note(from, c.disk.Len())
	reused := len(c.s.spares.files)
	c.add(33)
	if reused -= len(c.s.spares.files); reused != 1 {
		t.Errorf("%d files were written again", reused)
	}
	c.finish(b)
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}

	opened := 0
	for n := c.stages[0].to; n <= c.disk.Len(); n++ {
		for i := range c.stages {
			// At the cut where a commit took place, the index may be the one before or after it.
			if n < c.stages[i].from || i+1 < len(c.stages) && n > c.stages[i+1].from {
				continue
			}
			acked := i
			for acked > 0 && c.stages[acked].to > n {
				acked--
			}
			for _, loss := range durabletest.Losses() {
				c.check(n, loss, &c.stages[i], &c.stages[acked])
				opened++
			}
		}
	}
	t.Logf("%d disks opened", opened)
}

// check opens the disk after operation n with the index of stage st.
func (c *scenario) check(n int, loss durabletest.Loss, st, acked *stage) {
	t := c.t
	t.Helper()
	writeSparse(t, c.dir, st.index)
	disk := c.disk.At(n, loss)
	s, err := Open(c.dir, Options{FS: disk, InlineMax: 8})
	if err != nil {
		t.Fatalf("after operation %d, %s: %v", n, loss, err)
	}
	defer s.Close()
	if f := s.Recovered(); len(f.Missing)+len(f.Poisoned) != 0 {
		t.Errorf("after operation %d, %s: recovery found %+v", n, loss, f)
	}
	for id, want := range st.live {
		it, done, err := s.Find(id)
		if err != nil || done || it.Legs[0].State != Due {
			t.Errorf("after operation %d, %s: %s: done %v, %v", n, loss, id, done, err)
			continue
		}
		if got := content(t, s, id); !bytes.Equal(got, want) {
			t.Errorf("after operation %d, %s: content of %s has %d bytes of %d", n, loss, id, len(got), len(want))
		}
	}
	for id := range st.done {
		if _, done, err := s.Find(id); err != nil || !done {
			t.Errorf("after operation %d, %s: finished %s: %v", n, loss, id, err)
		}
	}
	r, err := s.Fsck(false)
	if err != nil || len(r.Problems) > 0 || r.Items != len(st.live) {
		t.Errorf("after operation %d, %s: %+v, %v", n, loss, r, err)
	}
	if q, err := s.Quarantined(); err != nil || len(q) < acked.quar {
		t.Errorf("after operation %d, %s: quarantine has %d, %v", n, loss, len(q), err)
	}
	if names, _ := disk.ReadDir(filepath.Join(c.dir, tmpDir)); len(names) != 0 {
		t.Errorf("after operation %d, %s: %d temporary files left", n, loss, len(names))
	}
}

// TestLostFile: what the disk loses against all promises is noticed, held and does not stop the rest.
func TestLostFile(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{InlineMax: 8})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 100)
	lost, cut, bad, good := mail(data, "node:a"), mail(data, "node:a"), mail(data, "node:a", "node:b"), mail(data, "node:a")
	for _, it := range []*Item{lost, cut, bad, good} {
		add(t, s, it, data)
	}
	paths := map[envelope.ID]string{}
	s.View(func(tx *Tx) error {
		for _, it := range []*Item{lost, cut, bad} {
			h, err := parseHead(tx.bucket(bkItem).Get(it.Env.ID[:]))
			if err != nil {
				t.Fatal(err)
			}
			paths[it.Env.ID] = s.bodyPath(h.file)
		}
		return nil
	})
	s.Close()
	if err := os.Remove(paths[lost.Env.ID]); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(paths[cut.Env.ID], 50); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(data)
	damaged[99] ^= 1
	if err := os.WriteFile(paths[bad.Env.ID], damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, bodyDir, "00", "README")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir, Options{InlineMax: 8})
	if f := s.Recovered(); len(f.Missing) != 1 || f.Missing[0] != lost.Env.ID || f.Orphans != 0 {
		t.Fatalf("recovery found %+v", f)
	}
	got, _, err := s.Find(lost.Env.ID)
	if err != nil || got.Legs[0].State != Held || got.Problem == "" {
		t.Errorf("item without content: %+v, %v", got, err)
	}
	r, err := s.Fsck(true)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, p := range r.Problems {
		kinds[p.Kind]++
	}
	if fmt.Sprint(kinds) != "map[content:3 stranger:1]" {
		t.Errorf("fsck found %v: %+v", kinds, r.Problems)
	}
	for _, it := range []*Item{cut, bad} {
		got, _, err := s.Find(it.Env.ID)
		if err != nil || got.Legs[0].State != Held || got.Problem == "" {
			t.Errorf("item with broken content: %+v, %v", got, err)
		}
	}
	if l, err := s.Lease("node:a", 10, 0); err != nil || len(l) != 1 || l[0].Item.Env.ID != good.Env.ID {
		t.Errorf("leased %v, %v", l, err)
	}
	if b := content(t, s, good.Env.ID); envelope.SumOf(b) != good.Env.Sum {
		t.Error("the good one is not good")
	}
	if _, err := os.Stat(stray); err != nil {
		t.Errorf("a stranger's file was removed: %v", err)
	}
}
