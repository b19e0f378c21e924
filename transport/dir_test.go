package transport_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// inbox makes the directory that ship reads, and returns it with ship's link.
func inbox(t *testing.T, o transport.FolderOptions) (dir string, link *transport.FolderLink) {
	t.Helper()
	d, root := newDir(t)
	dir = filepath.Join(root, "mochila", shore.String(), ship.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, transport.NewFolderLink(d, ship, shore, o)
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestHostileDirectory(t *testing.T) {
	dir, link := inbox(t, transport.FolderOptions{MaxSize: 1 << 30})
	good := transporttest.Random(1, 5000)
	name := func(seed uint64) string { return transporttest.Packet(0, transporttest.Random(seed, 100)).ID.String() }
	at := func(name string) string { return filepath.Join(dir, name) }
	goodName := transporttest.Packet(0, good).ID.String()
	write(t, at(goodName), good)
	write(t, at(".tmp-0123456789"), good)
	write(t, at(".syncthing."+goodName+".tmp"), good)
	write(t, at("~syncthing~"+goodName+".tmp"), good)
	write(t, at(goodName+".sync-conflict-20300101-000000-ABCDEFG"), good)
	write(t, at(strings.ToUpper(goodName)), good)
	write(t, at("notes.txt"), []byte("hello"))
	write(t, at("new\nline"), []byte("hello"))
	write(t, at(name(2)), nil)                                       // empty
	write(t, at(name(3)), transporttest.Random(3, 31))               // shorter than a head
	write(t, at(name(4)), transporttest.Random(4, 99))               // truncated
	write(t, at(name(5)), transporttest.Random(6, 100))              // other bytes
	write(t, at(name(11)), append(transporttest.Random(11, 100), 0)) // a byte too many
	if err := os.Symlink(at(goodName), at(name(7))); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", at(name(8))); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at(name(9)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at(name(10)), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, at(name(12)), nil)
	if err := os.Truncate(at(name(12)), 10<<30); err != nil { // sparse, over the limit
		t.Fatal(err)
	}
	write(t, at(name(13)), nil)
	if err := os.Truncate(at(name(13)), 256<<20); err != nil { // sparse, within it
		t.Fatal(err)
	}
	before := allocated()
	began := time.Now()
	st := transporttest.NewStation("ship")
	stats, err := link.Run(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	if stats.PacketsIn != 1 || !bytes.Equal(st.Data(transporttest.Packet(0, good).ID), good) {
		t.Errorf("%+v", stats)
	}
	if stats.Incomplete != 6 || stats.Refused != 1 {
		t.Errorf("%d incomplete, %d refused; want 6 and 1", stats.Incomplete, stats.Refused)
	}
	if got := allocated() - before; got > 4<<20 {
		t.Errorf("%d bytes were allocated", got)
	}
	first := stats.BytesIn
	stats, err = link.Run(t.Context(), st)
	if err != nil || stats.BytesIn != 0 || stats.Incomplete != 7 {
		t.Errorf("a rescan reads what it has seen: %+v (first time %d bytes), %v", stats, first, err)
	}
	stuck := link.Stuck()
	if len(stuck) != 7 {
		t.Errorf("%d files are stuck, want 7", len(stuck))
	}
	for _, s := range stuck {
		if s.Reason == nil || s.Since.Before(began) {
			t.Errorf("%+v", s)
		}
	}
	// The truncated file is completed in place: it is taken at the next look, whatever its age.
	write(t, at(name(4)), transporttest.Random(4, 100))
	stats, err = link.Run(t.Context(), st)
	if err != nil || stats.PacketsIn != 1 {
		t.Errorf("after completion: %+v, %v", stats, err)
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestInboxThatIsNoDirectory(t *testing.T) {
	dir, link := inbox(t, transport.FolderOptions{})
	due := transporttest.Packet(0, transporttest.Random(1, 400))
	for name, spoil := range map[string]func() error{
		"a file":         func() error { return os.WriteFile(dir, []byte("x"), 0o644) },
		"a link":         func() error { return os.Symlink(t.TempDir(), dir) },
		"a fifo":         func() error { return syscall.Mkfifo(dir, 0o644) },
		"a dangling one": func() error { return os.Symlink("nowhere", dir) },
	} {
		os.RemoveAll(dir)
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		st := transporttest.NewStation("ship", due)
		stats, err := link.Run(t.Context(), st)
		if err == nil {
			t.Errorf("%s in the place of the inbox: no error", name)
		}
		if stats.PacketsOut != 1 {
			t.Errorf("%s in the place of the inbox kept ship from writing: %+v", name, stats)
		}
	}
}

// What the stick has truncated is written again; what is there already is not.
func TestDamagedCopyIsReplaced(t *testing.T) {
	d, root := newDir(t)
	link := transport.NewFolderLink(d, ship, shore, transport.FolderOptions{})
	data := transporttest.Random(1, 10_000)
	p := transporttest.Packet(0, data)
	file := filepath.Join(root, "mochila", ship.String(), shore.String(), p.ID.String())
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:5000] },
		func(b []byte) []byte { b[777] ^= 1; return b },
		func(b []byte) []byte { return append(b, 1) },
		func(b []byte) []byte { return nil },
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, file, damage(bytes.Clone(data)))
		if _, err := link.Run(t.Context(), transporttest.NewStation("ship", p)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes there, %v", len(got), err)
		}
	}
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := link.Run(t.Context(), transporttest.NewStation("ship", p)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("a good file was replaced: %v", err)
	}
}

func TestLeftoversAreSwept(t *testing.T) {
	d, root := newDir(t)
	own := filepath.Join(root, "mochila", ship.String(), shore.String())
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(own, ".tmp-old"), filepath.Join(own, ".tmp-young")
	write(t, old, []byte("x"))
	write(t, young, []byte("x"))
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	st := transporttest.NewStation("ship", transporttest.Packet(0, transporttest.Random(1, 100)))
	if _, err := transport.NewFolderLink(d, ship, shore, transport.FolderOptions{}).Run(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("an old temporary file is still there: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("a temporary file that somebody may be writing: %v", err)
	}
}

func TestUnmountedIsAbsent(t *testing.T) {
	root := t.TempDir()
	for _, mount := range []string{"require", root, "/nowhere/at/all"} {
		d, err := transport.NewDir(root, transport.DirOptions{Mount: mount})
		if err != nil {
			t.Fatal(err)
		}
		st := transporttest.NewStation("ship", transporttest.Packet(0, transporttest.Random(1, 100)))
		_, err = transport.NewFolderLink(d, ship, shore, transport.FolderOptions{}).Run(t.Context(), st)
		if !errors.Is(err, transport.ErrAbsent) {
			t.Errorf("mount=%s: got %v, want ErrAbsent", mount, err)
		}
		if left, _ := os.ReadDir(root); len(left) != 0 || st.Left() != 1 {
			t.Errorf("mount=%s: something was written: %v", mount, left)
		}
	}
	d, err := transport.NewDir("/proc", transport.DirOptions{Mount: "require"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.List(t.Context(), "sys"); err != nil && runtime.GOOS == "linux" {
		t.Errorf("a mounted file system is taken for absent: %v", err)
	}
}

func TestNoRoomIsSeenBeforeWriting(t *testing.T) {
	d, root := newDir(t)
	err := d.Put(t.Context(), "mochila", "x", 1<<60, bytes.NewReader(nil))
	if !errors.Is(err, transport.ErrFull) && runtime.GOOS == "linux" {
		t.Errorf("got %v, want ErrFull", err)
	}
	files, _ := filepath.Glob(filepath.Join(root, "mochila", "*"))
	if len(files) != 1 || filepath.Base(files[0]) != "README.txt" {
		t.Errorf("left behind: %q", files)
	}
}

// A medium that fills up says so, keeps what is whole on it, and takes the smaller packets that still fit.
func TestFullMedium(t *testing.T) {
	f := transporttest.NewMemFolder(10_000)
	small, big, tiny := transporttest.Packet(0, transporttest.Random(1, 6000)), transporttest.Packet(1, transporttest.Random(2, 8000)), transporttest.Packet(2, transporttest.Random(3, 300))
	a, b := transporttest.NewStation("ship", small, big, tiny), transporttest.NewStation("shore")
	atShip := transport.NewFolderLink(f, ship, shore, transport.FolderOptions{})
	atShore := transport.NewFolderLink(f, shore, ship, transport.FolderOptions{})
	stats, err := atShip.Run(t.Context(), a)
	if !errors.Is(err, transport.ErrFull) || stats.PacketsOut != 2 || a.Left() != 1 {
		t.Fatalf("%+v, %v, %d left", stats, err, a.Left())
	}
	if _, err := atShore.Run(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	a.Finish(small.ID)
	a.Requeue()
	stats, err = atShip.Run(t.Context(), a)
	if err != nil || stats.Removed != 1 || stats.PacketsOut != 1 {
		t.Fatalf("%+v, %v", stats, err)
	}
	if _, err := atShore.Run(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	transporttest.RequireReceived(t, b, small, big, tiny)
}

// A node whose disk is full still writes to the stick, and takes the receipts on it.
func TestFullReaderStillWrites(t *testing.T) {
	f := transporttest.NewMemFolder(0)
	var mail []*transport.Packet
	for i := range 10 {
		mail = append(mail, transporttest.Packet(0, transporttest.Random(uint64(i), 1000)))
	}
	receipt := transporttest.Packet(0, transporttest.Random(50, 1100)) // listed last
	a, b := transporttest.NewStation("ship", append(mail, receipt)...), transporttest.NewStation("shore", transporttest.Packet(0, transporttest.Random(60, 100)))
	if _, err := transport.NewFolderLink(f, ship, shore, transport.FolderOptions{}).Run(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	b.OnReceive = func(id transport.ID, _ int64) error {
		if id == receipt.ID {
			return nil
		}
		return errDiskFull
	}
	stats, err := transport.NewFolderLink(f, shore, ship, transport.FolderOptions{}).Run(t.Context(), b)
	if !errors.Is(err, errDiskFull) || stats.PacketsOut != 1 || b.Received(receipt.ID) != 1 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// Whatever a folder does to packets: nothing damaged is ever received, and once it behaves, everything arrives.
func TestFaultyFolderConverges(t *testing.T) {
	faults := transporttest.Faults{
		Truncate: 0.1, Corrupt: 0.1, Lose: 0.1, Late: 0.2, Duplicate: 0.2, PutError: 0.05, GetError: 0.1, Removal: 0.1, Reorder: true,
	}
	for seed := range uint64(40) {
		f := transporttest.NewFaultyFolder(transporttest.NewMemFolder(0), seed, faults)
		var down, up []*transport.Packet
		for i := range uint64(12) {
			down = append(down, transporttest.Packet(uint8(i%3), transporttest.Random(1000*seed+i, 40+int(i)*700)))
			up = append(up, transporttest.Packet(uint8(i%3), transporttest.Random(1000*seed+500+i, 33+int(i)*300)))
		}
		a, b := transporttest.NewStation("ship", down...), transporttest.NewStation("shore", up...)
		for round := range 12 {
			if round == 8 {
				f.Calm()
			}
			// New links each round: a restarted daemon, without memory of what it set aside.
			transport.NewFolderLink(f, ship, shore, transport.FolderOptions{}).Run(t.Context(), a)
			transport.NewFolderLink(f, shore, ship, transport.FolderOptions{}).Run(t.Context(), b)
			a.Requeue()
			b.Requeue()
			resend(a, b, down) // the sender's timers: no receipt, so it is due again
			resend(b, a, up)
		}
		transporttest.RequireReceived(t, b, down...)
		transporttest.RequireReceived(t, a, up...)
		if t.Failed() {
			t.Fatalf("seed %d, %d faults", seed, f.Hits())
		}
	}
}

func resend(from, to *transporttest.Station, all []*transport.Packet) {
	for _, p := range all {
		if to.Received(p.ID) > 0 {
			from.Finish(p.ID)
		} else if from.SentCount(p.ID) > 0 {
			from.Add(p)
		}
	}
}

func TestWatchHints(t *testing.T) {
	d, root := newDir(t)
	gone := filepath.Join(root, "later")
	late, err := transport.NewDir(gone, transport.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		d    *transport.Dir
		root string
	}{"there": {d, root}, "plugged in later": {late, gone}} {
		t.Run(name, func(t *testing.T) {
			link := transport.NewFolderLink(c.d, ship, shore, transport.FolderOptions{})
			hints := link.Watch(t.Context())
			if hints == nil {
				t.Fatal("no watch on a directory")
			}
			dir := filepath.Join(c.root, "mochila", shore.String(), ship.String())
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			// The watch starts beside us: files go on appearing until it has noticed one.
			for i := 0; ; i++ {
				write(t, filepath.Join(dir, fmt.Sprint("file-", i)), []byte("x"))
				select {
				case <-hints:
					return
				case <-time.After(50 * time.Millisecond):
				}
				if i > 6000 {
					t.Fatal("no hint in five minutes")
				}
			}
		})
	}
}
