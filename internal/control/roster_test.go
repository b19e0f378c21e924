package control

import (
	"os"
	"path/filepath"
	"testing"

	"mochila/internal/envelope"
)

// TestRoster: what a life that was killed has noted is found by the next one, until that notes something of its own;
// what was cleared is not.
func TestRoster(t *testing.T) {
	path := filepath.Join(t.TempDir(), "running")
	id := func(b byte) envelope.ID { return envelope.ID{0: b} }
	find := func(r *roster, b byte) [2]uint64 {
		t.Helper()
		pid, start, err := r.find(id(b))
		if err != nil {
			t.Fatal(err)
		}
		return [2]uint64{uint64(pid), start}
	}
	r := &roster{path: path}
	if got := find(r, 1); got != [2]uint64{} {
		t.Errorf("found %v in nothing", got)
	}
	var places []int
	for b := byte(1); b <= 4; b++ {
		p, err := r.note(id(b), 100+int(b), 1<<60+uint64(b))
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, p)
	}
	r.clear(places[1])
	if p, err := r.note(id(5), 105, 5); err != nil || p != places[1] {
		t.Errorf("place %d was used again as %d, %v", places[1], p, err)
	}
	r.clear(places[3])

	next := &roster{path: path} // nobody closed the other
	for b, want := range map[byte][2]uint64{1: {101, 1<<60 + 1}, 2: {}, 3: {103, 1<<60 + 3}, 4: {}, 5: {105, 5}} {
		if got := find(next, b); got != want {
			t.Errorf("job %d: %v, want %v", b, got, want)
		}
	}
	if _, err := next.note(id(9), 1, 2); err != nil {
		t.Fatal(err)
	}
	if got := find(next, 1); got != [2]uint64{} {
		t.Errorf("what an earlier life noted is still there: %v", got)
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != rosterEntry {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// A place that could not be cleared serves the same job again, so that the older entry is never found.
	next.f.Close()
	next.clear(0)
	if next.places[0] != id(9) {
		t.Error("a place that was not cleared is given away")
	}
}
