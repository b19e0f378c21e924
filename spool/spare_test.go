package spool

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"mochila/internal/envelope"
)

// end finishes an item and waits until its file is gone or kept.
func end(t *testing.T, s *Spool, id envelope.ID) {
	t.Helper()
	err := s.Apply(func(tx *Tx) error {
		it, err := tx.Item(id)
		if err != nil {
			return err
		}
		for i := range it.Legs {
			it.Legs[i].State = Done
		}
		return tx.Save(it)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.chores.drain()
}

// bodyFiles lists the body files of a spool.
func bodyFiles(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, bodyDir, "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// plenty is a disk with room.
func plenty() (free, total int64, err error) { return 1 << 40, 1 << 41, nil }

// TestSpare: the file of a mail that has ended holds the next one, which sees nothing of the first.
func TestSpare(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{InlineMax: 8, Free: plenty})
	a, b := bytes.Repeat([]byte("a"), 5000), bytes.Repeat([]byte("b"), 3000)
	first, second := mail(a, "node:a"), mail(b, "node:a")
	add(t, s, first, a)
	before := bodyFiles(t, dir)
	end(t, s, first.Env.ID)
	add(t, s, second, b)
	if after := bodyFiles(t, dir); len(before) != 1 || len(after) != 1 || before[0] != after[0] {
		t.Errorf("files %q, then %q", before, after)
	}
	if got := content(t, s, second.Env.ID); !bytes.Equal(got, b) {
		t.Errorf("read %d bytes, want %d", len(got), len(b))
	}
	r, err := s.OpenBody(second.Env.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := r.Seek(-10, io.SeekEnd); n != 2990 || err != nil {
		t.Errorf("seek: %d, %v", n, err)
	}
	if rest, err := io.ReadAll(r); string(rest) != "bbbbbbbbbb" || err != nil {
		t.Errorf("the end is %q, %v", rest, err)
	}
	clean(t, s)

	// a longer one makes the file grow
	r.Close()
	end(t, s, second.Env.ID)
	c := bytes.Repeat([]byte("c"), 70_000)
	third := mail(c, "node:a")
	add(t, s, third, c)
	if got := content(t, s, third.Env.ID); !bytes.Equal(got, c) || len(bodyFiles(t, dir)) != 1 {
		t.Errorf("read %d bytes from %q", len(got), bodyFiles(t, dir))
	}
	// given up before it was added: the file is kept again, with its length
	x := s.NewMailBody()
	x.Write(a)
	if err := x.Finish(); err != nil {
		t.Fatal(err)
	}
	x.Discard()
	if n := len(s.spares.files); n != 1 || s.spares.bytes != 5000 {
		t.Errorf("%d files of %d bytes are kept", n, s.spares.bytes)
	}
	y := s.NewMailBody()
	y.Write(b)
	y.Discard() // its file was one, and is durable
	if n := len(s.spares.files); n != 1 {
		t.Errorf("%d files are kept", n)
	}
	z := s.NewMailBody()
	w := s.NewMailBody()
	z.Write(b)
	w.Write(b) // a new file, never synced
	w.Discard()
	z.Discard()
	if n := len(s.spares.files); n != 1 {
		t.Errorf("%d files are kept", n)
	}
	// read before it is added, from a file that is longer
	end(t, s, third.Env.ID)
	v := s.NewMailBody()
	v.Write(a)
	if err := v.Finish(); err != nil {
		t.Fatal(err)
	}
	in, err := v.Open()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, a) {
		t.Errorf("read %d bytes of a body of %d, %v", len(got), len(a), err)
	}
	in.Close()
	v.Discard()
	clean(t, s)
}

// TestSpareReader: a file that somebody reads keeps what is in it.
func TestSpareReader(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{InlineMax: 8, Free: plenty})
	a, b := bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 100_000)
	first, second := mail(a, "node:a"), mail(b, "node:a")
	add(t, s, first, a)
	r, err := s.OpenBody(first.Env.ID)
	if err != nil {
		t.Fatal(err)
	}
	end(t, s, first.Env.ID)
	add(t, s, second, b)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, a) {
		t.Errorf("the reader got other content: %v", err)
	}
	r.Close()
	r.Close() // twice: counted once
	if len(s.spares.readers) != 0 || len(s.spares.files) != 0 {
		t.Errorf("readers %v, kept %v", s.spares.readers, s.spares.files)
	}
}

// TestSpareKinds: what is no mail is never kept, gets a new file, and is handed out as the file itself.
func TestSpareKinds(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{InlineMax: 8, Free: plenty})
	data := bytes.Repeat([]byte("j"), 4000)
	bundle := mail(data, "node:a")
	bundle.Env.Kind, bundle.Env.Mail, bundle.Outcomes, bundle.Legs[0].Rcpts = envelope.KindTransit, nil, nil, nil
	b := s.NewBody()
	b.Write(data)
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(func(tx *Tx) error { return tx.Add(bundle, b) }); err != nil {
		t.Fatal(err)
	}
	r, err := s.OpenBody(bundle.Env.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := r.(*os.File); !ok {
		t.Errorf("content is handed out as %T", r)
	}
	r.Close()
	end(t, s, bundle.Env.ID)
	if n := len(bodyFiles(t, dir)); n != 0 || len(s.spares.files) != 0 {
		t.Errorf("%d files are left", n)
	}
	m := mail(data, "node:a")
	add(t, s, m, data)
	end(t, s, m.Env.ID)
	if len(s.spares.files) != 1 {
		t.Fatal("the file of a mail was not kept")
	}
	c := s.NewBody()
	c.Write(data)
	if c.again {
		t.Error("what may be no mail was put into a kept file")
	}
	c.Discard()
}

// TestSpareLimits: kept files are few, give way to a disk that gets full, and do not outlive the process.
func TestSpareLimits(t *testing.T) {
	dir := t.TempDir()
	var free atomic.Int64
	free.Store(1 << 40)
	s := open(t, dir, Options{InlineMax: 8, Reserve: 1 << 20, Spare: 100_000, Free: func() (int64, int64, error) { return free.Load(), 1 << 41, nil }})
	var ids []envelope.ID
	data := make([]byte, 30_000)
	for range 5 {
		m := mail(data, "node:a")
		add(t, s, m, data)
		ids = append(ids, m.Env.ID)
	}
	for _, id := range ids {
		end(t, s, id)
	}
	if len(s.spares.files) != 3 || s.spares.bytes != 90_000 || len(bodyFiles(t, dir)) != 3 {
		t.Errorf("%d files of %d bytes are kept, %d are there", len(s.spares.files), s.spares.bytes, len(bodyFiles(t, dir)))
	}
	free.Store(1000)
	if !s.Full() || len(bodyFiles(t, dir)) != 0 {
		t.Errorf("on a full disk %d files are kept", len(bodyFiles(t, dir)))
	}
	free.Store(1 << 40)
	m := mail(data, "node:a")
	add(t, s, m, data)
	free.Store(2 << 20) // above the reserve, but not by much
	end(t, s, m.Env.ID)
	if n := len(bodyFiles(t, dir)); n != 1 {
		t.Errorf("%d files are kept while 2 MiB are free", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(bodyFiles(t, dir)); n != 0 {
		t.Errorf("%d files outlive the process", n)
	}
}
