package maildrop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/submit"
	"mochila/internal/submit/frame"
)

// desk remembers what it took, by file name, as a spool would in one transaction.
type desk struct {
	mu      sync.Mutex
	taken   map[string]string // name to content
	times   map[string]int
	refused []string
	forgot  []string
	fail    error
	crash   bool // commits, but the collector never hears of it
	lost    bool // Refuse fails
}

func newDesk() *desk { return &desk{taken: map[string]string{}, times: map[string]int{}} }

type intake struct {
	d    *desk
	name string
	m    *envelope.Mail
	b    bytes.Buffer
}

func (d *desk) Submit(_ context.Context, name string, m *envelope.Mail) (frame.Intake, error) {
	if d.fail != nil {
		return nil, d.fail
	}
	return &intake{d: d, name: name, m: m}, nil
}

func (in *intake) Write(p []byte) (int, error) { return in.b.Write(p) }
func (in *intake) Abort()                      {}
func (in *intake) Commit(context.Context) (string, error) {
	in.d.mu.Lock()
	defer in.d.mu.Unlock()
	in.d.taken[in.name] = fmt.Sprintf("%s %d %s", in.m.Sender, in.m.Client.UID, in.b.String())
	in.d.times[in.name]++
	if in.d.crash {
		return "", errors.New("the process died here")
	}
	return "ID", nil
}

func (d *desk) Seen(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.taken[name] != ""
}

func (d *desk) Forget(names []string) error {
	d.forgot = append(d.forgot, names...)
	return nil
}

func (d *desk) Refuse(reason, from string, r io.Reader) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost {
		return errors.New("quarantine is full")
	}
	n, err := io.Copy(io.Discard, r)
	d.refused = append(d.refused, fmt.Sprintf("%s from %s, %d bytes", reason, from, n))
	return err
}

func open(t *testing.T, d *desk, o Options) *Dir {
	t.Helper()
	o.User = func(uid int64) string { return fmt.Sprintf("user%d", uid) }
	dir, err := Open(filepath.Join(t.TempDir(), "maildrop"), "camp.example", d, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func letter(content string) []byte {
	b := submit.AppendRequest(nil, submit.VerbSubmit, &submit.Mail{Owner: true, Recipients: []submit.Recipient{{Addr: "root"}}})
	if content != "" {
		b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
		b = append(b, content...)
	}
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(len(content)))
	h := fnv.New64a()
	h.Write(b)
	return h.Sum(b)
}

// name makes a proper file name out of a letter.
func name(c byte) string { return strings.Repeat(string(c), nameLen) }

func (d *Dir) put(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.path, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (d *Dir) left(t *testing.T) []string {
	t.Helper()
	es, err := os.ReadDir(d.path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range es {
		if e.Name() != submit.DomainFile {
			out = append(out, e.Name())
		}
	}
	return out
}

func collect(t *testing.T, d *Dir) int {
	t.Helper()
	n, err := d.Collect(context.Background(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOpenMakesAWriteOnlyFolder(t *testing.T) {
	d := open(t, newDesk(), Options{})
	fi, err := os.Stat(d.Path())
	if err != nil || fi.Mode().Perm() != 0o733 || fi.Mode()&os.ModeSticky == 0 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	b, err := os.ReadFile(filepath.Join(d.Path(), submit.DomainFile))
	if err != nil || string(b) != "camp.example\n52428800\n" {
		t.Errorf("%q, %v", b, err)
	}
	// A domain file of somebody else's making is replaced, a link is not followed.
	victim := filepath.Join(t.TempDir(), "victim")
	os.Remove(filepath.Join(d.Path(), submit.DomainFile))
	if err := os.Symlink(victim, filepath.Join(d.Path(), submit.DomainFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d.Path(), "hub.example", newDesk(), Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(victim); err == nil {
		t.Error("the link was followed")
	}
	if left := d.left(t); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestCollectTakesAndForgets(t *testing.T) {
	desk := newDesk()
	d := open(t, desk, Options{})
	for i := range 26 {
		d.put(t, name(byte('a'+i)), letter(fmt.Sprintf("Subject: %d\r\n\r\n", i)))
	}
	if n := collect(t, d); n != 26 || len(d.left(t)) != 0 || len(desk.refused) != 0 {
		t.Fatalf("took %d, left %q, refused %q", n, d.left(t), desk.refused)
	}
	want := fmt.Sprintf("user%d %d Subject: 1\r\n\r\n", os.Getuid(), os.Getuid()+1)
	if got := desk.taken[name('b')]; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if len(desk.forgot) != 26 {
		t.Errorf("forgot %d", len(desk.forgot))
	}
	if n := collect(t, d); n != 0 {
		t.Errorf("took %d again", n)
	}
}

func TestCrashBetweenCommitAndRemovalTakesNothingTwice(t *testing.T) {
	desk := newDesk()
	d := open(t, desk, Options{})
	d.put(t, name('a'), letter("a: b\r\n\r\n"))
	desk.crash = true
	if _, err := d.Collect(context.Background(), time.Now()); err == nil {
		t.Fatal("no error")
	}
	desk.crash = false
	if n := collect(t, d); n != 0 || len(d.left(t)) != 0 || desk.times[name('a')] != 1 {
		t.Errorf("took %d, left %q, committed %v", n, d.left(t), desk.times)
	}
	if !slices.Equal(desk.forgot, []string{name('a')}) {
		t.Errorf("forgot %q", desk.forgot)
	}
}

// TestHostileEntries puts into the folder whatever a local user could.
func TestHostileEntries(t *testing.T) {
	desk := newDesk()
	d := open(t, desk, Options{MaxSize: 1 << 20})
	at := func(n string) string { return filepath.Join(d.path, n) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	good := letter("a: b\r\n\r\n")
	outside := filepath.Join(t.TempDir(), "outside")
	must(os.WriteFile(outside, good, 0o600))
	must(os.Symlink(outside, at(name('a'))))
	must(os.Link(outside, at(name('b'))))
	must(syscall.Mkfifo(at(name('c')), 0o666))
	must(os.Mkdir(at(name('d')), 0o700))
	must(os.Mkdir(at(name('e')), 0o700))
	must(os.WriteFile(at(name('e')+"/x"), nil, 0o600))
	must(os.WriteFile(at(name('f')), nil, 0o644))
	must(os.Truncate(at(name('f')), 1<<40))
	must(os.WriteFile(at(name('g')), nil, 0o644))
	must(os.Truncate(at(name('g')), 1<<20))
	d.put(t, name('h'), nil)
	d.put(t, name('i'), good[:len(good)-1])
	d.put(t, name('j'), append(slices.Clone(good), 0))
	d.put(t, name('k'), submit.AppendRequest(nil, submit.VerbFlush, &submit.Mail{}))
	d.put(t, name('l'), letter(strings.Repeat("x", 1<<20)+"\r\n"))
	d.put(t, "notes.txt", good)
	d.put(t, "../escape", good)
	must(os.Symlink("/etc/passwd", at(submit.TempPrefix+"x")))
	l, err := os.OpenFile(at(name('m')), os.O_CREATE|os.O_RDWR, 0o644)
	must(err)
	defer l.Close()
	d.put(t, name('z'), good)

	if n := collect(t, d); n != 1 || desk.times[name('z')] != 1 || len(desk.taken) != 1 {
		t.Errorf("took %d: %v", n, desk.taken)
	}
	if left := d.left(t); !slices.Equal(left, []string{name('e')}) {
		t.Errorf("left: %q", left)
	}
	slices.Sort(desk.refused)
	if len(desk.refused) != 7 {
		t.Errorf("refused %d:\n%s", len(desk.refused), strings.Join(desk.refused, "\n"))
	}
	if b, err := os.ReadFile(outside); err != nil || !bytes.Equal(b, good) {
		t.Errorf("the file outside: %v", err)
	}
	if n := collect(t, d); n != 0 {
		t.Errorf("took %d", n)
	}
}

func TestTemporaryTroubleLeavesTheMail(t *testing.T) {
	for _, fail := range []error{errors.New("x"), envelope.NewStatus(452, "4.3.1", "full")} {
		desk := newDesk()
		desk.fail = fail
		d := open(t, desk, Options{})
		d.put(t, name('a'), letter("a: b\r\n\r\n"))
		if _, err := d.Collect(context.Background(), time.Now()); !errors.Is(err, fail) {
			t.Errorf("%v", err)
		}
		desk.fail = nil
		if n := collect(t, d); n != 1 {
			t.Errorf("took %d later", n)
		}
	}
	desk := newDesk()
	desk.fail, desk.lost = envelope.NewStatus(550, "5.7.1", "never"), true
	d := open(t, desk, Options{})
	d.put(t, name('a'), letter("a: b\r\n\r\n"))
	if _, err := d.Collect(context.Background(), time.Now()); err == nil || len(d.left(t)) != 1 {
		t.Errorf("%v, left %q", err, d.left(t))
	}
	desk.lost = false
	if n := collect(t, d); n != 0 || len(d.left(t)) != 0 || len(desk.refused) != 1 || !strings.Contains(desk.refused[0], "never") {
		t.Errorf("left %q, refused %q", d.left(t), desk.refused)
	}
}

func TestSweepOfUnfinishedFiles(t *testing.T) {
	d := open(t, newDesk(), Options{Stale: time.Hour})
	d.put(t, submit.TempPrefix+"old", []byte("MSUB"))
	if n := collect(t, d); n != 0 || len(d.left(t)) != 1 {
		t.Fatalf("a fresh one went: %q", d.left(t))
	}
	if _, err := d.Collect(context.Background(), time.Now().Add(2*time.Hour)); err != nil || len(d.left(t)) != 0 {
		t.Errorf("%v, left %q", err, d.left(t))
	}
}

// TestKilledInOpen: a daemon that is killed while it writes the domain file leaves a temporary file, and the next one
// removes it, however young; what sendmail is writing stays, and what cannot be removed stops nobody.
func TestKilledInOpen(t *testing.T) {
	d := open(t, newDesk(), Options{})
	d.put(t, submit.TempPrefix+submit.DomainFile+"-2050858417", nil)
	d.put(t, submit.TempPrefix+submit.DomainFile+"-1", []byte("camp.exam"))
	writing := submit.TempPrefix + name('d')
	d.put(t, writing, []byte("MSUB"))
	full := submit.TempPrefix + submit.DomainFile + "-full"
	if err := os.MkdirAll(filepath.Join(d.Path(), full, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d.Path(), "camp.example", newDesk(), Options{}); err != nil {
		t.Fatal(err)
	}
	if left := d.left(t); !slices.Equal(left, []string{writing, full}) {
		t.Errorf("left %q, want %q and %q", left, writing, full)
	}
}

func TestCancel(t *testing.T) {
	d := open(t, newDesk(), Options{})
	d.put(t, name('a'), letter("a: b\r\n\r\n"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.Collect(ctx, time.Now()); !errors.Is(err, context.Canceled) || len(d.left(t)) != 1 {
		t.Errorf("%v, left %q", err, d.left(t))
	}
}
