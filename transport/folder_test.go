package transport_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"mochila/internal/envelope"
	"mochila/transport"
	"mochila/transport/transporttest"
)

var (
	ship  = envelope.Label{1, 2, 3, 4, 5, 6, 7, 8}
	shore = envelope.Label{8, 7, 6, 5, 4, 3, 2, 1}
)

func newDir(t *testing.T) (*transport.Dir, string) {
	t.Helper()
	root := t.TempDir()
	d, err := transport.NewDir(root, transport.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d, root
}

func TestStickThereAndBack(t *testing.T) {
	d, root := newDir(t)
	mail := []*transport.Packet{
		transporttest.Packet(0, transporttest.Random(1, 100)),
		transporttest.Packet(0, transporttest.Random(2, 3<<20)),
	}
	a, b := transporttest.NewStation("ship", mail...), transporttest.NewStation("shore")
	atShip := transport.NewFolderLink(d, ship, shore, transport.FolderOptions{})
	atShore := transport.NewFolderLink(d, shore, ship, transport.FolderOptions{})
	stats, err := atShip.Run(t.Context(), a)
	if err != nil || stats.PacketsOut != 2 || stats.Waiting != 2 || a.Left() != 0 {
		t.Fatalf("ship: %+v, %v", stats, err)
	}
	if _, err := os.Stat(filepath.Join(root, "mochila", "README.txt")); err != nil {
		t.Error(err)
	}
	stats, err = atShore.Run(t.Context(), b)
	if err != nil || stats.PacketsIn != 2 {
		t.Fatalf("shore: %+v, %v", stats, err)
	}
	transporttest.RequireReceived(t, b, mail...)
	stats, err = atShore.Run(t.Context(), b)
	if err != nil || stats.PacketsIn != 0 || stats.BytesIn != 0 || b.Received(mail[0].ID) != 1 {
		t.Fatalf("shore again: %+v, %v", stats, err)
	}
	a.Finish(mail[0].ID)
	stats, err = atShip.Run(t.Context(), a)
	if err != nil || stats.Removed != 1 || stats.Waiting != 1 {
		t.Fatalf("ship again: %+v, %v", stats, err)
	}
	senders, err := transport.Senders(t.Context(), d, shore)
	if err != nil || len(senders) != 1 || senders[0] != ship {
		t.Fatalf("senders: %v, %v", senders, err)
	}
}

func TestAbsentStickIsLeftAlone(t *testing.T) {
	root := filepath.Join(t.TempDir(), "usb")
	d, err := transport.NewDir(root, transport.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a := transporttest.NewStation("ship", transporttest.Packet(0, []byte("hello, packet")))
	_, err = transport.NewFolderLink(d, ship, shore, transport.FolderOptions{}).Run(t.Context(), a)
	if !errors.Is(err, transport.ErrAbsent) {
		t.Fatalf("got %v, want ErrAbsent", err)
	}
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("the root was made: %v", err)
	}
	if a.Left() != 1 {
		t.Error("the packet was taken from the station")
	}
}

func TestDirConforms(t *testing.T) {
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder { d, _ := newDir(t); return d })
}

func TestDirConformsOnFAT(t *testing.T) {
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder { d, _ := newDir(t); return transporttest.FATFolder{Folder: d} })
}

func TestMemFolderConforms(t *testing.T) {
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder { return transporttest.NewMemFolder(0) })
}

// curator is a Station that puts back what somebody took off the stick.
type curator struct {
	*transporttest.Station
	all   map[string]*transport.Packet
	calls int
}

func (c *curator) Present(own []transport.Entry) {
	c.calls++
	there := make(map[string]int64)
	for _, e := range own {
		there[e.Name] = e.Size
	}
	for name, p := range c.all {
		if there[name] != p.Size && !c.Finished(p.ID) {
			c.Add(p)
		}
	}
}

func TestMissingPacketsComeBack(t *testing.T) {
	d, root := newDir(t)
	link := transport.NewFolderLink(d, ship, shore, transport.FolderOptions{})
	c := &curator{Station: transporttest.NewStation("ship"), all: make(map[string]*transport.Packet)}
	var due []*transport.Packet
	for i := range 4 {
		p := transporttest.Packet(0, transporttest.Random(uint64(i), 500))
		c.all[p.ID.String()] = p
		due = append(due, p)
	}
	run := func(out int) {
		t.Helper()
		stats, err := link.Run(t.Context(), c)
		if err != nil || stats.PacketsOut != out {
			t.Fatalf("%+v, %v, want %d packets out", stats, err, out)
		}
	}
	run(4)
	run(0)
	own := filepath.Join(root, "mochila", ship.String(), shore.String())
	if err := os.Remove(filepath.Join(own, due[0].ID.String())); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(own, due[1].ID.String()), 100); err != nil {
		t.Fatal(err)
	}
	c.Finish(due[2].ID)
	run(2)
	calls := c.calls
	if err := os.RemoveAll(own); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, nil, 0o644); err != nil { // cannot be listed: says nothing about what is there
		t.Fatal(err)
	}
	if _, err := link.Run(t.Context(), c); err == nil || c.calls != calls {
		t.Errorf("%v, told %d times of a folder that could not be listed", err, c.calls-calls)
	}
}

// TestDirConformsInParts: packets that are too large for one file of the medium look the same.
func TestDirConformsInParts(t *testing.T) {
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder { d, _ := newDir(t); return transport.WholeAbove(d, 100_000) })
}

// TestTooLargeForFAT: a packet of more than a file may hold crosses the stick in parts.
func TestTooLargeForFAT(t *testing.T) {
	d, root := newDir(t)
	p := transporttest.Packet(0, transporttest.Random(1, 1<<20))
	a, b := transporttest.NewStation("ship", p), transporttest.NewStation("shore")
	o := transport.FolderOptions{MaxFile: 300_000}
	atShip, atShore := transport.NewFolderLink(d, ship, shore, o), transport.NewFolderLink(d, shore, ship, transport.FolderOptions{})
	if stats, err := atShip.Run(t.Context(), a); err != nil || stats.PacketsOut != 1 || stats.Waiting != 1 {
		t.Fatalf("%+v, %v", stats, err)
	}
	files, err := filepath.Glob(filepath.Join(root, "mochila", ship.String(), shore.String(), "*"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%q, %v", files, err)
	}
	late := files[2] + ".late"
	if err := os.Rename(files[2], late); err != nil {
		t.Fatal(err)
	}
	if stats, err := atShore.Run(t.Context(), b); err != nil || stats.PacketsIn != 0 || stats.Incomplete != 1 {
		t.Fatalf("a part is missing: %+v, %v", stats, err)
	}
	if err := os.Rename(late, files[2]); err != nil {
		t.Fatal(err)
	}
	if stats, err := atShore.Run(t.Context(), b); err != nil || stats.PacketsIn != 1 {
		t.Fatalf("all are there: %+v, %v", stats, err)
	}
	transporttest.RequireReceived(t, b, p)
	a.Finish(p.ID)
	if stats, err := atShip.Run(t.Context(), a); err != nil || stats.Removed != 1 || stats.Waiting != 0 {
		t.Fatalf("%+v, %v", stats, err)
	}
	if files, _ := filepath.Glob(filepath.Join(root, "mochila", ship.String(), shore.String(), "*")); len(files) != 0 {
		t.Errorf("left: %q", files)
	}
}

// readOnly is a medium that cannot be written, such as a CD or a snapshot.
type readOnly struct{ transport.Folder }

func (readOnly) Put(context.Context, string, string, int64, io.Reader) error { return syscall.EROFS }

func (readOnly) Remove(context.Context, string, string) error { return syscall.EROFS }

// TestReadOnlyMedium: what lies there is taken, what is due stays due.
func TestReadOnlyMedium(t *testing.T) {
	d, _ := newDir(t)
	there := transporttest.Packet(0, transporttest.Random(1, 5000))
	if _, err := transport.NewFolderLink(d, shore, ship, transport.FolderOptions{}).Run(t.Context(), transporttest.NewStation("shore", there)); err != nil {
		t.Fatal(err)
	}
	own := transporttest.Packet(0, transporttest.Random(2, 5000))
	st := transporttest.NewStation("ship", own)
	_, err := transport.NewFolderLink(readOnly{d}, ship, shore, transport.FolderOptions{}).Run(t.Context(), st)
	if !errors.Is(err, syscall.EROFS) || st.Left() != 1 {
		t.Errorf("%v, %d packets are left", err, st.Left())
	}
	transporttest.RequireReceived(t, st, there)
	// with nothing to write it is no trouble at all
	st = transporttest.NewStation("ship")
	if _, err := transport.NewFolderLink(readOnly{d}, ship, shore, transport.FolderOptions{}).Run(t.Context(), st); err != nil {
		t.Error(err)
	}
}

// TestFanOut: several readers on one folder, at the same time, on FAT as well: each gets its own, nobody touches what is another's,
// and what one has confirmed leaves alone.
func TestFanOut(t *testing.T) {
	for name, wrap := range map[string]func(transport.Folder) transport.Folder{
		"plain": func(f transport.Folder) transport.Folder { return f },
		"FAT":   func(f transport.Folder) transport.Folder { return transporttest.FATFolder{Folder: f} },
	} {
		t.Run(name, func(t *testing.T) {
			d, root := newDir(t)
			folder := wrap(d)
			const readers, packets = 3, 4
			type reader struct {
				label envelope.Label
				mine  []*transport.Packet // for it
				sends *transport.Packet   // by it
				from  *transporttest.Station
				st    *transporttest.Station
				write *transport.FolderLink // shore's link to it
				read  *transport.FolderLink
			}
			var list []*reader
			for i := range readers {
				r := &reader{label: envelope.Label{byte(i + 1)}, sends: transporttest.Packet(0, transporttest.Random(uint64(100+i), 300))}
				for k := range packets {
					r.mine = append(r.mine, transporttest.Packet(0, transporttest.Random(uint64(10*i+k), 200+i)))
				}
				r.from, r.st = transporttest.NewStation("shore", r.mine...), transporttest.NewStation("reader", r.sends)
				r.write = transport.NewFolderLink(folder, shore, r.label, transport.FolderOptions{})
				r.read = transport.NewFolderLink(folder, r.label, shore, transport.FolderOptions{})
				list = append(list, r)
			}
			all := func(visit func(*reader) (transport.Stats, error)) {
				t.Helper()
				var wg sync.WaitGroup
				for _, r := range list {
					wg.Go(func() {
						if _, err := visit(r); err != nil {
							t.Errorf("%x: %v", r.label, err)
						}
					})
				}
				wg.Wait()
			}
			all(func(r *reader) (transport.Stats, error) { return r.write.Run(t.Context(), r.from) })
			for range 2 {
				all(func(r *reader) (transport.Stats, error) { return r.read.Run(t.Context(), r.st) })
			}
			for _, r := range list {
				transporttest.RequireReceived(t, r.st, r.mine...)
				if n := r.st.Count(); n != packets {
					t.Errorf("%x has received %d packets, want its own %d", r.label, n, packets)
				}
			}
			lying := func(from, to envelope.Label) int {
				entries, err := os.ReadDir(filepath.Join(root, "mochila", from.String(), to.String()))
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				return len(entries)
			}
			// One has confirmed: its packets leave, and nobody else's.
			for _, p := range list[0].mine {
				list[0].from.Finish(p.ID)
			}
			all(func(r *reader) (transport.Stats, error) { return r.write.Run(t.Context(), r.from) })
			for i, r := range list {
				want := packets
				if i == 0 {
					want = 0
				}
				if got := lying(shore, r.label); got != want {
					t.Errorf("%d packets lie for %x, want %d", got, r.label, want)
				}
				if got := lying(r.label, shore); got != 1 || r.from.Received(r.sends.ID) != 1 {
					t.Errorf("of %x's own packet %d lie there, and it came %d times", r.label, got, r.from.Received(r.sends.ID))
				}
			}
		})
	}
}
