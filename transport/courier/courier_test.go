package courier

import (
	"bytes"
	"errors"
	"os"
	"path"
	"path/filepath"
	"testing"

	"mochila/internal/envelope"
	"mochila/transport"
	"mochila/transport/transporttest"
)

var camp, hub = envelope.Label{1}, envelope.Label{2}

// stick is a folder of the test with a way to put packets there as a node does.
type stick struct {
	t    *testing.T
	root string
	dir  *transport.Dir
}

func newStick(t *testing.T) *stick {
	t.Helper()
	s := &stick{t: t, root: t.TempDir()}
	var err error
	if s.dir, err = transport.NewDir(s.root, transport.DirOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stick) stop() Stop { return Stop{s.root, s.dir} }

func outbox(from, to envelope.Label) string { return path.Join(top, from.String(), to.String()) }

func (s *stick) put(from, to envelope.Label, data []byte) (at string) {
	s.t.Helper()
	name := transporttest.Packet(0, data).ID.String()
	if err := s.dir.Put(s.t.Context(), outbox(from, to), name, int64(len(data)), bytes.NewReader(data)); err != nil {
		s.t.Fatal(err)
	}
	return path.Join(outbox(from, to), name)
}

func (s *stick) has(at string) bool {
	_, err := os.Stat(filepath.Join(s.root, at))
	return err == nil
}

func round(t *testing.T, sticks ...*stick) []Result {
	t.Helper()
	var stops []Stop
	for _, s := range sticks {
		stops = append(stops, s.stop())
	}
	return Round(t.Context(), stops, nil)
}

// TestRoundCopies: what lies on one stick lies on all, whole, and a second round copies nothing.
func TestRoundCopies(t *testing.T) {
	a, b, c := newStick(t), newStick(t), newStick(t)
	x := a.put(camp, hub, transporttest.Random(1, 5000))
	y := b.put(hub, camp, transporttest.Random(2, 200_000))
	for i, r := range round(t, a, b, c) {
		want := []int{1, 1, 2}[i]
		if r.Err != nil || r.Copied != want || r.Packets != 2 || r.Damaged+r.Full+r.Removed != 0 {
			t.Errorf("stop %d: %+v", i, r)
		}
	}
	for _, s := range []*stick{a, b, c} {
		if !s.has(x) || !s.has(y) {
			t.Error("a stick lacks a packet")
		}
	}
	for i, r := range round(t, a, b, c) {
		if r.Err != nil || r.Copied != 0 || r.Removed != 0 {
			t.Errorf("again, stop %d: %+v", i, r)
		}
	}
}

// TestDeliveredGoes: what its writer has taken away is not brought back but taken away everywhere; a stick that was
// formatted takes nothing away.
func TestDeliveredGoes(t *testing.T) {
	a, b := newStick(t), newStick(t)
	x := a.put(camp, hub, transporttest.Random(1, 5000))
	y := a.put(camp, hub, transporttest.Random(2, 5000))
	round(t, a, b)
	if err := os.Remove(filepath.Join(a.root, x)); err != nil { // as camp does, when the receipt has come
		t.Fatal(err)
	}
	r := round(t, a, b)
	if a.has(x) || b.has(x) || !b.has(y) || r[1].Removed != 1 || r[0].Copied != 0 {
		t.Errorf("%+v", r)
	}
	if err := os.RemoveAll(filepath.Join(a.root, top)); err != nil { // formatted
		t.Fatal(err)
	}
	if r := round(t, a, b); !a.has(y) || !b.has(y) || r[0].Copied != 1 {
		t.Errorf("%+v", r)
	}
}

// TestDamagedStays: a packet that does not fit its name is not carried on; a whole copy of it is, and mends a short one.
func TestDamagedStays(t *testing.T) {
	a, b, c := newStick(t), newStick(t), newStick(t)
	good := transporttest.Random(1, 5000)
	x := a.put(camp, hub, good)
	bad := bytes.Clone(good)
	bad[77] ^= 1
	if err := os.WriteFile(filepath.Join(a.root, x), bad, 0o644); err != nil {
		t.Fatal(err)
	}
	r := round(t, a, b)
	if b.has(x) || r[0].Damaged != 1 || r[0].Err != nil || r[1].Err != nil {
		t.Errorf("%+v", r)
	}
	c.put(camp, hub, good)
	short := filepath.Join(b.root, x)
	if err := os.MkdirAll(filepath.Dir(short), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(short, good[:100], 0o644); err != nil {
		t.Fatal(err)
	}
	r = round(t, a, b, c)
	if got, err := os.ReadFile(short); err != nil || !bytes.Equal(got, good) {
		t.Errorf("%d bytes, %v: %+v", len(got), err, r)
	}
}

// TestAbsentAndFull: a stick that is not there, or has no room, does not keep the others waiting.
func TestAbsentAndFull(t *testing.T) {
	a, b := newStick(t), newStick(t)
	x := a.put(camp, hub, transporttest.Random(1, 5000))
	away, err := transport.NewDir(filepath.Join(t.TempDir(), "usb"), transport.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tight := transporttest.NewMemFolder(1000)
	r := Round(t.Context(), []Stop{a.stop(), {"away", away}, {"tight", tight}, b.stop()}, nil)
	if !errors.Is(r[1].Err, transport.ErrAbsent) || r[2].Full != 1 || r[2].Err != nil || r[3].Copied != 1 || !b.has(x) {
		t.Errorf("%+v", r)
	}
	if files, err := tight.List(t.Context(), outbox(camp, hub)); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
}

// TestForeignFiles: what is no packet is left where it is, whatever a note says.
func TestForeignFiles(t *testing.T) {
	a, b := newStick(t), newStick(t)
	a.put(camp, hub, transporttest.Random(1, 500))
	for _, name := range []string{"letter.txt", "mochila/letter.txt", outbox(camp, hub) + "/letter.txt", "mochila/invite/x.json"} {
		at := filepath.Join(a.root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte("dear"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(a.root, top, memo), []byte("../../letter.txt\nletter.txt\n/etc/passwd\n\x00\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, r := range round(t, a, b) {
		if r.Err != nil || r.Packets != 1 || r.Removed != 0 {
			t.Errorf("%+v", r)
		}
	}
	if b.has("letter.txt") || b.has("mochila/letter.txt") || b.has(outbox(camp, hub)+"/letter.txt") {
		t.Error("a letter was copied")
	}
}
