package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
)

func TestPartNames(t *testing.T) {
	name := ID{1}.String()
	for s, want := range map[string][2]int{name + ".1-3": {1, 3}, name + ".1000-1000": {1000, 1000}} {
		packet, i, n, ok := parsePart(s)
		if !ok || packet != name || i != want[0] || n != want[1] {
			t.Errorf("%q: %q %d %d %v", s, packet, i, n, ok)
		}
	}
	for _, s := range []string{name, name + ".", name + ".1", name + ".0-3", name + ".4-3", name + ".01-3", name + ".1-1001", name + ".1-3.sync-conflict", name + ".-1-3", "x.1-3", name + ".1-3-3"} {
		if _, _, _, ok := parsePart(s); ok {
			t.Errorf("%q is a part", s)
		}
	}
}

// small is a folder in memory that takes no file above a size.
type small struct {
	most  int64
	files map[string][]byte
}

func (s *small) Put(_ context.Context, dir, name string, size int64, r io.Reader) error {
	if size > s.most {
		return ErrFull
	}
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != size {
		err = errors.New("other size")
	}
	if err == nil {
		s.files[dir+"/"+name] = b
	}
	return err
}

func (s *small) List(_ context.Context, dir string) (all []Entry, err error) {
	for k, b := range s.files {
		if name, ok := strings.CutPrefix(k, dir+"/"); ok {
			all = append(all, Entry{name, int64(len(b))})
		}
	}
	return all, nil
}

func (s *small) Dirs(context.Context, string) ([]string, error) { return nil, nil }

func (s *small) Get(_ context.Context, dir, name string) (io.ReadCloser, error) {
	if b, ok := s.files[dir+"/"+name]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	return nil, fs.ErrNotExist
}

func (s *small) Remove(_ context.Context, dir, name string) error {
	delete(s.files, dir+"/"+name)
	return nil
}

func (s *small) Flush(context.Context) error { return nil }

// TestPartsComeAndGo: a packet that is too large lies in parts, is read as one, waits for what is missing, and goes whole.
func TestPartsComeAndGo(t *testing.T) {
	ctx, f := t.Context(), &small{most: 100, files: map[string][]byte{}}
	name := ID{1}.String()
	data := bytes.Repeat([]byte("0123456789"), 25) // 250 bytes
	w := newParts(f, 100)
	if err := w.Put(ctx, "d", name, 250, bytes.NewReader(data)); err != nil || len(f.files) != 3 {
		t.Fatalf("%d files, %v", len(f.files), err)
	}
	r := newParts(f, 100) // another node
	read := func() (Entry, []byte, error) {
		all, err := r.List(ctx, "d")
		if err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
		in, err := r.Get(ctx, "d", name)
		if err != nil {
			return all[0], nil, err
		}
		defer in.Close()
		b, err := io.ReadAll(in)
		return all[0], b, err
	}
	if e, b, err := read(); err != nil || e != (Entry{name, 250}) || !bytes.Equal(b, data) {
		t.Errorf("%v, %d bytes, %v", e, len(b), err)
	}
	second := f.files["d/"+name+".2-3"]
	delete(f.files, "d/"+name+".2-3")
	if e, _, err := read(); !errors.Is(err, ErrIncomplete) || e.Size != 150 {
		t.Errorf("a part is missing: %v, %v", e, err)
	}
	f.files["d/"+name+".2-3"] = second
	f.files["d/"+name+".1-4"] = second // of another split: never mixed
	if _, _, err := read(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("two splits: %v", err)
	}
	if err := r.Remove(ctx, "d", name); err != nil || len(f.files) != 0 {
		t.Errorf("%d files are left, %v", len(f.files), err)
	}
	broken := errors.New("source is broken")
	err := w.Put(ctx, "d", name, 250, io.MultiReader(bytes.NewReader(data[:150]), errReader{broken}))
	if !errors.Is(err, broken) || len(f.files) != 0 {
		t.Errorf("%v, %d files are left", err, len(f.files))
	}
	if err := w.Put(ctx, "d", name, 100*maxParts+1, bytes.NewReader(data)); !errors.Is(err, ErrFull) {
		t.Errorf("too many parts: %v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }
