package submit

import (
	"io/fs"
	"path"
	"strings"
	"syscall"
	"testing"

	"mochila/internal/durable"
	"mochila/internal/durable/durabletest"
)

// cutDisk writes a maildrop on a disk in memory. syncfs is a sync of the folder there: the only names on it.
type cutDisk struct {
	*durabletest.Disk
	files []durable.File
	fail  map[string]error
}

func (d *cutDisk) create(p string) (int, error) {
	f, err := d.Create(p, 0o644)
	if err != nil {
		return -1, err
	}
	d.files = append(d.files, f)
	return len(d.files) - 1, d.fail["create"]
}

func (d *cutDisk) write(fd int, b []byte) error {
	if err := d.fail["write"]; err != nil {
		return err
	}
	_, err := d.files[fd].Write(b)
	return err
}

func (d *cutDisk) read(int, []byte, int64) (int, error) { return 0, syscall.EIO }

func (d *cutDisk) fsync(fd int) error {
	if err := d.fail["fsync"]; err != nil {
		return err
	}
	return d.files[fd].Sync()
}

func (d *cutDisk) rename(from, to string) error {
	if err := d.fail["rename"]; err != nil {
		return err
	}
	return d.Rename(from, to)
}

func (d *cutDisk) syncfs(fd int) error {
	if err := d.fail["syncfs"]; err != nil {
		return err
	}
	return d.SyncDir(path.Dir(d.files[fd].Name()))
}

func (d *cutDisk) unlink(p string) error { return d.Remove(p) }
func (d *cutDisk) close(fd int)          { d.files[fd].Close() }

// drop submits one message to a node whose daemon is down.
func drop(t *testing.T, d *cutDisk, size int) error {
	t.Helper()
	n := &Node{Socket: "/nonexistent/submit.sock", Maildrop: "/drop", disk: d}
	w := &writer{}
	w.begin(n, &Mail{Owner: true, Recipients: []Recipient{{Addr: "root"}}}, nil)
	defer w.abort()
	for range size / 10 {
		if err := w.line([]byte("12345678")); err != nil {
			return err
		}
	}
	_, err := w.finish()
	return err
}

func newDisk(t *testing.T) *cutDisk {
	t.Helper()
	d := &cutDisk{Disk: durabletest.New(), fail: map[string]error{}}
	if err := d.MkdirAll("/drop", 0o733); err != nil {
		t.Fatal(err)
	}
	return d
}

// visible lists what the daemon would look at after a power cut, and how long it is.
func visible(t *testing.T, d durable.FS) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	es, err := d.ReadDir("/drop")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if !strings.HasPrefix(e.Name(), TempPrefix) {
			fi, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			out[e.Name()] = fi.Size()
		}
	}
	return out
}

// TestPowerCutAnywhere: at no moment does half a mail become visible, and when sendmail has said yes, the whole of
// it is there whatever the disk loses.
func TestPowerCutAnywhere(t *testing.T) {
	for _, size := range []int{100, 3 << 20} {
		d := newDisk(t)
		begin := d.Len()
		if err := drop(t, d, size); err != nil {
			t.Fatal(err)
		}
		var whole int64
		for _, n := range visible(t, d) {
			whole = n
		}
		if whole < int64(size/10*10) {
			t.Fatalf("%d bytes of %d in the maildrop", whole, size)
		}
		for n := begin; n <= d.Len(); n++ {
			for _, loss := range durabletest.Losses() {
				got := visible(t, d.At(n, loss))
				for name, size := range got {
					if size != whole {
						t.Errorf("cut after %d (%s): %s has %d bytes of %d\n%s", n, loss, name, size, whole, strings.Join(d.Trace(n), "\n"))
					}
				}
				if n == d.Len() && len(got) != 1 {
					t.Errorf("%s after the end: %d mails", loss, len(got))
				}
			}
		}
	}
}

// TestFailingDisk: each error ends in its exit status, and nothing stays behind.
func TestFailingDisk(t *testing.T) {
	for op, want := range map[string]int{"write": ExIOErr, "fsync": ExIOErr, "rename": ExIOErr, "syncfs": ExIOErr} {
		for _, size := range []int{100, 3 << 20} {
			d := newDisk(t)
			d.fail[op] = syscall.ENOSPC
			err := drop(t, d, size)
			if f := asFault(err, ""); err == nil || f.Code != want {
				t.Errorf("%s: %v", op, err)
			}
			if es, err := d.ReadDir("/drop"); err != nil || len(es) != 0 {
				t.Errorf("%s: left %v, %v", op, names(es), err)
			}
		}
	}
	for _, c := range []struct {
		err  error
		want int
	}{{syscall.EACCES, ExUnavailable}, {syscall.ENOENT, ExUnavailable}, {syscall.EROFS, ExCantCreat}, {syscall.EDQUOT, ExIOErr}} {
		if f := dropFault("x", c.err); f.Code != c.want {
			t.Errorf("%v: exit %d, want %d", c.err, f.Code, c.want)
		}
	}
}

func names(es []fs.DirEntry) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.Name())
	}
	return out
}
