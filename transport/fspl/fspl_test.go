package fspl

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestVectors: packets that fspl 1.2.2 wrote, and broken ones named after their defect. What was read and is written
// again is the same bytes.
func TestVectors(t *testing.T) {
	at := time.Unix(0x6b09f8f0, 0x1264b288).UTC()
	want := map[string]*Header{
		"ok-command": {Seq: 1, Time: at, Kind: Command, Params: []string{"p1", "é"}, Env: [][2]string{{"A", "b"}}},
		"ok-nop":     {Seq: 2, Time: time.Unix(0x6b09f8f0, 0x13611bd4).UTC(), Kind: NOP},
	}
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d vectors, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".hex")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(b)
		h, err := ReadHeader(r)
		if !strings.HasPrefix(name, "ok-") {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%s: %+v, %v, want ErrFormat", name, h, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if w := want[name]; w != nil && !reflect.DeepEqual(h, w) {
			t.Errorf("%s: %+v", name, h)
		}
		rest, _ := io.ReadAll(r)
		if again := append(h.Append(nil), rest...); !bytes.Equal(again, b) {
			t.Errorf("%s: written again it is\n%x", name, again)
		}
	}
}

// TestLongValues: every length of array and number.
func TestLongValues(t *testing.T) {
	long := &Header{Seq: 1<<64 - 1, Time: time.Unix(5_000_000_000, 999_999_999).UTC(), Kind: Command, Env: [][2]string{{"E", strings.Repeat("\xff", 70_000)}}}
	for range 300 {
		long.Params = append(long.Params, strings.Repeat("x", 20))
	}
	got, err := ReadHeader(bytes.NewReader(long.Append(nil)))
	if err != nil || !reflect.DeepEqual(got, long) {
		t.Errorf("%v", err)
	}
	for _, seq := range []uint64{0, 127, 128, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32} {
		h := &Header{Seq: seq, Time: time.Unix(1, 0).UTC(), Kind: Fail}
		if got, err := ReadHeader(bytes.NewReader(h.Append(nil))); err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("%d: %+v, %v", seq, got, err)
		}
	}
	many := &Header{Kind: Command, Params: make([]string, maxList+1)}
	if _, err := ReadHeader(bytes.NewReader(many.Append(nil))); !errors.Is(err, ErrFormat) {
		t.Errorf("too many parameters: %v", err)
	}
}

func FuzzReadHeader(f *testing.F) {
	h := &Header{Seq: 300, Time: time.Unix(1e9, 7).UTC(), Kind: Command, Params: []string{"a", "\xff"}, Env: [][2]string{{"K", "v"}}}
	f.Add(h.Append(nil))
	f.Add((&Header{Kind: NOP, Time: time.Unix(0, 0)}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		// the sums would keep the fuzzer out: it gets the part behind them, too
		for _, meta := range [][]byte{b, b[min(len(b), prefixSize):]} {
			d := decoder{meta}
			h, err := d.header()
			if err != nil {
				continue
			}
			got, err := ReadHeader(bytes.NewReader(h.Append(nil)))
			if err != nil && len(h.Append(nil)) < maxMeta || err == nil && !reflect.DeepEqual(got, h) {
				t.Errorf("%+v read again is %+v, %v", h, got, err)
			}
		}
		ReadHeader(bytes.NewReader(b))
	})
}

func newQueue(t testing.TB) (*Queue, string) {
	t.Helper()
	dir := t.TempDir()
	q, err := InitQueue(filepath.Join(dir, "q"))
	if err != nil {
		t.Fatal(err)
	}
	return q, filepath.Join(dir, "seq")
}

func list(t testing.TB, q *Queue) (seqs []uint64) {
	t.Helper()
	jobs, bad, err := q.List(t.Context())
	if err != nil || len(bad) > 0 {
		t.Fatal(bad, err)
	}
	for _, j := range jobs {
		seqs = append(seqs, j.Seq)
	}
	return seqs
}

// TestWriteTakesNoNumberInVain: what fails leaves no gap, and fifty writers at once get fifty numbers.
func TestWriteTakesNoNumberInVain(t *testing.T) {
	q, seq := newQueue(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			var in io.Reader = strings.NewReader("payload")
			if i%5 == 0 {
				in = io.MultiReader(in, broken{})
			}
			err := q.Write(seq, NewUUID(), &Header{Time: time.Unix(1, 0), Kind: Command}, in)
			if (err != nil) != (i%5 == 0) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := list(t, q)
	for i, n := range got {
		if n != uint64(i+1) {
			t.Fatalf("numbers %v", got)
		}
	}
	if len(got) != 40 {
		t.Errorf("%d jobs", len(got))
	}
	if left, _ := filepath.Glob(filepath.Join(q.jobs(), "tmp-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("the pipe broke") }

// TestWriteAfterACrash: at whatever step a writer dies, the next one finds the right number, and the same job again is
// one job.
func TestWriteAfterACrash(t *testing.T) {
	a, b := NewUUID(), NewUUID()
	write := func(q *Queue, seq string, id UUID) {
		t.Helper()
		if err := q.Write(seq, id, &Header{Time: time.Unix(1, 0), Kind: Command}, strings.NewReader(id.String())); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []string{"before the note", "before it appears", "before the counter", "after all"} {
		q, seq := newQueue(t)
		write(q, seq, a)
		temp, final := filepath.Join(q.jobs(), "tmp-fspl-"+b.String()+".fspl.tmp"), filepath.Join(q.jobs(), "fspl-"+b.String()+".fspl")
		h := &Header{Seq: 2, Time: time.Unix(1, 0), Kind: Command}
		put := func(path string, data []byte) {
			t.Helper()
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		switch step {
		case "before the note":
			put(temp, h.Append(nil)[:20])
		case "before it appears":
			put(temp, h.Append(nil))
			put(seq+".last", fmt.Appendf(nil, "2 %s\n", b))
		case "before the counter":
			put(final, h.Append(nil))
			put(seq+".last", fmt.Appendf(nil, "2 %s\n", b))
		case "after all":
			write(q, seq, b)
		}
		write(q, seq, b) // its maker tries again
		write(q, seq, b)
		write(q, seq, NewUUID())
		if got := fmt.Sprint(list(t, q)); got != "[1 2 3]" {
			t.Errorf("%s: numbers %s", step, got)
		}
	}
}

// TestListIsNotStopped: junk, links, fifos and huge headers stop nothing.
func TestListIsNotStopped(t *testing.T) {
	q, seq := newQueue(t)
	if err := q.Write(seq, NewUUID(), &Header{Time: time.Unix(1, 0), Kind: NOP}, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{"fspl-a.fspl": "junk", "fspl-b.fspl": magic, "tmp-fspl-c.fspl.tmp": "x", "README": "x"} {
		if err := os.WriteFile(filepath.Join(q.jobs(), name), []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(q.jobs(), "fspl-d.fspl")); err != nil {
		t.Fatal(err)
	}
	if err := syscallMkfifo(filepath.Join(q.jobs(), "fspl-e.fspl")); err != nil {
		t.Fatal(err)
	}
	jobs, bad, err := q.List(t.Context())
	if err != nil || len(jobs) != 1 || len(bad) != 4 {
		t.Errorf("%d jobs, bad %v, %v", len(jobs), bad, err)
	}
	r, err := q.Reader()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Reader(); !errors.Is(err, ErrBusy) {
		t.Errorf("a second reader: %v", err)
	}
	r.Close()
	if r, err = q.Reader(); err != nil {
		t.Fatal(err)
	}
	r.Close()
}
