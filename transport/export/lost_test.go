package export

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// segmentFiles are the files with blocks below an importer's folder.
func segmentFiles(t *testing.T, dir string) (all []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return filepath.Base(f) == "state" })
}

// addAll adds blocks to a run, as a process does that may be killed before End.
func addAll(t *testing.T, run *Run, all [][]byte) {
	t.Helper()
	err := Merge(func(h Header, raw []byte) error { return run.Add(t.Context(), &Block{h, raw[HeaderSize:]}) }, NewScanner(bytes.NewReader(slices.Concat(all...))))
	if err != nil {
		t.Fatal(err)
	}
}

// A process that is killed when it has deleted blocks leaves a state that says so.
func TestKilledAfterDeleting(t *testing.T) {
	all, parts := someSet(t, Options{Block: 4096}, someSizes...)
	bs := blocks(t, parts[0])
	dir := t.TempDir()
	st := transporttest.NewStation("")
	m := importer(t, dir)
	feed(t, m, st, slices.Concat(bs[:3]...), slices.Concat(bs[4:]...))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = importer(t, dir)
	run, err := m.Begin(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	addAll(t, run, bs[3:4])
	transporttest.RequireReceived(t, st, all...)
	if left := segmentFiles(t, dir); len(left) > 0 {
		t.Fatalf("left: %q", left)
	}
	again := importer(t, dir) // the first one was killed: neither End nor Close
	defer again.Close()
	got, _ := feed(t, again, st, parts[0])
	if len(got) != 1 || !got[0].Complete || got[0].Repeats == 0 || got[0].Packets+got[0].Known > 0 {
		t.Errorf("after it was killed: %+v", got)
	}
}

// Blocks that are no longer there cost another look at the media, and block nothing: while a packet waits for its taker,
// while a stripe is restored, and when a hole is filled.
func TestBlocksLost(t *testing.T) {
	for _, harm := range []string{"deleted", "cut"} {
		for _, o := range []Options{{Block: 512}, {Data: 3, Parity: 2, Block: 512}} {
			all, parts := someSet(t, o, someSizes...)
			dir := t.TempDir()
			st := transporttest.NewStation("")
			full := errors.New("disk is full")
			st.OnReceive = func(transport.ID, int64) error {
				if st.Count() >= 4 {
					return full
				}
				return nil
			}
			m := importer(t, dir)
			run, err := m.Begin(t.Context(), st)
			if err != nil {
				t.Fatal(err)
			}
			var scanners []*Scanner
			for _, p := range parts[:max(o.Data, 1)] {
				scanners = append(scanners, NewScanner(bytes.NewReader(p)))
			}
			Merge(func(h Header, raw []byte) error { return run.Add(t.Context(), &Block{h, raw[HeaderSize:]}) }, scanners...)
			run.End()
			st.OnReceive = nil
			spoil := func() {
				t.Helper()
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				files := segmentFiles(t, dir)
				if len(files) == 0 {
					t.Fatal("no blocks are kept")
				}
				for _, f := range files {
					if harm == "cut" {
						err = os.Truncate(f, 0)
					} else {
						err = os.Remove(f)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				m = importer(t, dir)
			}
			spoil()
			feed(t, m, st) // the packet that waits cannot be read
			bs := blocks(t, parts[0])
			feed(t, m, st, append(slices.Clone(parts[1:max(o.Data, 1)]), slices.Concat(bs[:200]...), slices.Concat(bs[201:]...))...)
			spoil()
			feed(t, m, st, bs[200])
			got, _ := feed(t, m, st, parts[o.Parity:]...)
			transporttest.RequireReceived(t, st, all...)
			if len(got) != 1 || !got[0].Complete || got[0].Damaged > 0 {
				t.Errorf("%s, %d+%d: %+v", harm, o.Data, o.Parity, got)
			}
			m.Close()
		}
	}
}

// What is remembered of holes is bounded, also of those between packets; a block that fills one is taken.
func TestTooManyHoles(t *testing.T) {
	x := &set{}
	for i := range int64(maxGaps) {
		x.Done.add(i*3000, i*3000+100)
	}
	b := &Block{Header: Header{Data: 1, Block: 100, Content: 100, Stripe: 15}}
	if !x.crowded(b) {
		t.Error("a hole more was taken")
	}
	for _, b.Stripe = range []int64{29, 31} {
		if x.crowded(b) {
			t.Errorf("stripe %d joins what is there and was passed over", b.Stripe)
		}
	}
	for i := range int64(maxGaps) {
		x.Done.add(i*3000+1000, i*3000+1100)
	}
	if !x.crowded(b) {
		t.Error("no bound at all")
	}
}
