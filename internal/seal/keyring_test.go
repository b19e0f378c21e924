package seal

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

func reopen(t testing.TB, k *Keyring) *Keyring {
	t.Helper()
	got, err := Open(k.dir, Options{Rand: &counterRand{label: "reopened"}})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCreateOpen(t *testing.T) {
	k := newNode(t, "camp")
	got := reopen(t, k)
	if got.ID() != k.ID() || !bytes.Equal(got.Card().Bytes(), k.Card().Bytes()) {
		t.Error("another node came back")
	}
	if _, err := ParseCard(got.Card().Bytes()); err != nil {
		t.Error(err)
	}
	list, err := os.ReadDir(k.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), st.Mode(), err)
		}
	}
	if st, err := os.Stat(k.dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v, %v", st.Mode(), err)
	}
	_, err = Create(k.dir, Options{Name: "camp", Now: start})
	wantErr(t, "second Create", err, fs.ErrExist)
	if _, err := Create(t.TempDir(), Options{Name: "a b", Now: start}); err == nil {
		t.Error("a name with a space")
	}
	_, err = Open(t.TempDir(), Options{})
	wantErr(t, "no identity", err, fs.ErrNotExist)
}

// The sealing key file holds no secret in clear.
func TestKeyFileIsWrapped(t *testing.T) {
	k := newNode(t, "camp")
	for _, name := range []string{filepath.Base(k.keyPath(k.last().Serial)), fileRevoke} {
		b, err := os.ReadFile(filepath.Join(k.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range [][]byte{k.last().seed, k.identity.Seed(), k.wrapCur.key[:]} {
			if bytes.Contains(b, secret) {
				t.Errorf("%s holds a secret in clear", name)
			}
		}
	}
}

func TestIdentityText(t *testing.T) {
	seed := pattern(32)
	text := string(identityText(seed))
	for name, s := range map[string]string{
		"as written": text, "lower case": strings.ToLower(text), "crlf": strings.ReplaceAll(text, "\n", "\r\n"),
		"typed in groups": strings.Replace(text, identityPrefix, identityPrefix+" ", 1),
	} {
		if got, err := parseIdentity([]byte(s)); err != nil || !bytes.Equal(got, seed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range map[string]string{
		"empty": "", "comment": "# x\n", "cut": text[:len(text)-3], "typo": strings.Replace(text, "\n"+identityPrefix, "\n"+identityPrefix+"A", 1),
		"wrong letter": text[:len(text)-20] + swap(text[len(text)-20]) + text[len(text)-19:],
	} {
		_, err := parseIdentity([]byte(s))
		wantErr(t, name, err, envelope.ErrFormat)
	}
}

func swap(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

// Serials and incarnations rise even when the clock goes back.
func TestSerialsRise(t *testing.T) {
	k := newNode(t, "camp")
	last := k.Card()
	for n, now := range []time.Time{start, start.Add(time.Hour), start.Add(-1000 * day), time.Unix(0, 0), {}} {
		c, err := k.NewIncarnation(now)
		if err != nil {
			t.Fatal(err)
		}
		if c.Serial <= last.Serial || bytes.Compare(c.Incarnation[:], last.Incarnation[:]) <= 0 || bytes.Equal(c.SealingKey, last.SealingKey) {
			t.Errorf("step %d: card %d %x after %d %x", n, c.Serial, c.Incarnation, last.Serial, last.Incarnation)
		}
		last = c
	}
	if got := reopen(t, k).Card(); got.Serial != last.Serial {
		t.Errorf("card %d came back, not %d", got.Serial, last.Serial)
	}
}

func TestReissueKeepsKeyAndDates(t *testing.T) {
	k := newNode(t, "camp")
	first := k.Card()
	c, err := k.Reissue(start.Add(day), []string{"camp.example"}, []string{"dir:/media/usb"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Serial <= first.Serial || !bytes.Equal(c.SealingKey, first.SealingKey) || !c.KeepUntil.Equal(first.KeepUntil) || len(k.Keys()) != 1 {
		t.Errorf("reissued card %+v", c)
	}
	same, err := k.Reissue(start.Add(2*day), []string{"camp.example"}, []string{"dir:/media/usb"})
	if err != nil || same != c {
		t.Errorf("an unchanged card was issued again, %v", err)
	}
	if got := reopen(t, k).Card(); !bytes.Equal(got.Bytes(), c.Bytes()) {
		t.Error("the reissued card did not come back")
	}
}

func TestKeepAndLife(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "id")
	k, err := Create(dir, Options{Name: "x", Now: start, MaxLife: 10 * day, Keep: 5 * 365 * day, Flags: FlagOneWay})
	if err != nil {
		t.Fatal(err)
	}
	c := k.Card()
	if c.MaxLife != 10*day || !c.KeepUntil.Equal(start.Add(5*365*day)) || c.Flags != FlagOneWay {
		t.Errorf("card %+v", c)
	}
	again, err := Open(dir, Options{MaxLife: 20 * day})
	if err != nil {
		t.Fatal(err)
	}
	c, err = again.NewIncarnation(start.Add(day))
	if err != nil || c.MaxLife != 20*day || !c.KeepUntil.Equal(start.Add(day+(45+7+14+20)*day)) || c.Flags != FlagOneWay {
		t.Errorf("next card %+v, %v", c, err)
	}
}

// The cards of erased keys are remembered up to a bound.
func TestForgetErased(t *testing.T) {
	k := newNode(t, "camp")
	for n := range keepErased + 3 {
		if _, err := k.NewIncarnation(start.Add(time.Duration(n) * time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.EraseExpired(start.Add(1000 * day)); err != nil {
		t.Fatal(err)
	}
	if got := len(k.Keys()); got != keepErased+1 {
		t.Errorf("%d keys, want %d", got, keepErased+1)
	}
	if got := len(reopen(t, k).Keys()); got != keepErased+1 {
		t.Errorf("%d keys on disk, want %d", got, keepErased+1)
	}
}

// A folder from a backup has no wrapping key: old keys are gone, and a new incarnation begins.
func TestRestore(t *testing.T) {
	camp, hub, i, _ := pair(t)
	before := hub.Card()
	stored := i.Marshal(camp)
	if err := os.Remove(filepath.Join(hub.dir, fileWrap)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(hub.dir, Options{})
	wantErr(t, "open without wrapping key", err, ErrWrapLost)
	k, err := Restore(hub.dir, Options{Now: start.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if k.ID() != hub.ID() || CompareCards(before, k.Card()) != nil || k.Incarnation() == before.Incarnation {
		t.Errorf("restored card %+v", k.Card())
	}
	_, _, err = k.AcceptOffer(i.Offer, knows(camp), start)
	wantErr(t, "offer to the lost key", err, ErrErased)
	_, err = UnmarshalSession(k, stored)
	wantErr(t, "session of before", err, ErrWrapped)
	reopen(t, k)
}

// An interrupted Create leaves nothing in the way of the next one.
func TestCreateInterrupted(t *testing.T) {
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "identity")
		_, err := Create(dir, Options{Name: "camp", Now: start, FS: &failing{FS: durable.OS{}, after: n}})
		if err == nil {
			break
		}
		k, err := Open(dir, Options{})
		if err != nil {
			k, err = Create(dir, Options{Name: "camp", Now: start.Add(time.Second)})
		}
		if err != nil {
			t.Fatalf("after %d steps: %v", n, err)
		}
		if got := len(k.Keys()); got != 1 {
			t.Errorf("after %d steps: %d keys", n, got)
		}
		reopen(t, k)
	}
}

// failing is a file system that does a number of changes and then fails, as one does when the power goes: the change
// that fails may be half done.
type failing struct {
	durable.FS
	after int
}

var errPower = errors.New("power cut")

func (f *failing) step() error {
	if f.after <= 0 {
		return errPower
	}
	f.after--
	return nil
}

func (f *failing) Create(path string, perm fs.FileMode) (durable.File, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(path, perm)
	return &failingFile{file, f}, err
}

func (f *failing) OpenWrite(path string) (durable.File, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	return &failingFile{file, f}, err
}

func (f *failing) Rename(a, b string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.FS.Rename(a, b)
}

func (f *failing) Remove(path string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.FS.Remove(path)
}

func (f *failing) MkdirAll(path string, perm fs.FileMode) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.FS.MkdirAll(path, perm)
}

func (f *failing) SyncDir(path string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.FS.SyncDir(path)
}

type failingFile struct {
	durable.File
	f *failing
}

func (w *failingFile) Write(p []byte) (int, error) {
	if err := w.f.step(); err != nil {
		n, _ := w.File.Write(p[:len(p)/2])
		return n, err
	}
	return w.File.Write(p)
}

func (w *failingFile) Sync() error {
	if err := w.f.step(); err != nil {
		return err
	}
	return w.File.Sync()
}
