package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sample makes a folder with something of everything.
func sample(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	top := filepath.Join(dir, "photos")
	do(os.MkdirAll(filepath.Join(top, "a", "b"), 0o755))
	do(os.Mkdir(filepath.Join(top, "a.b"), 0o750))
	do(os.WriteFile(filepath.Join(top, "a", "b", "x"), bytes.Repeat([]byte("x"), 100_000), 0o640))
	do(os.WriteFile(filepath.Join(top, "a-b"), nil, 0o600))
	do(os.WriteFile(filepath.Join(top, "not\xffutf8 \n"), []byte("n"), 0o755))
	do(os.Symlink("a/b/x", filepath.Join(top, "in")))
	do(os.Symlink("../a/b", filepath.Join(top, "a", "up")))
	do(os.Symlink("/etc/passwd", filepath.Join(top, "out")))
	do(os.Symlink("../../etc", filepath.Join(top, "a", "out")))
	do(syscall.Mkfifo(filepath.Join(top, "fifo"), 0o600))
	do(os.Chmod(filepath.Join(top, "a", "b"), 0o555))
	t.Cleanup(func() { os.Chmod(filepath.Join(top, "a", "b"), 0o755) })
	old := time.Date(1999, 12, 31, 23, 59, 59, 123456789, time.UTC)
	do(os.Chtimes(filepath.Join(top, "a", "b", "x"), old, old))
	do(os.Chtimes(filepath.Join(top, "a"), old, old))
	return dir
}

func root(t testing.TB, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func pack(t testing.TB, dir string, names ...string) (stream []byte, notes []string) {
	t.Helper()
	var sources []Source
	for _, n := range names {
		sources = append(sources, Source{Root: root(t, dir), Path: n, Name: n})
	}
	var b bytes.Buffer
	if _, err := Pack(&b, sources, func(s string) { notes = append(notes, s) }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), notes
}

// list is everything below a folder, one line each.
func list(t testing.TB, dir string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		line := fmt.Sprintf("%q %v", rel, fi.Mode())
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %.20q %v", len(b), b, fi.ModTime().UTC())
		case fi.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			line += " -> " + to
		default:
			line += fmt.Sprintf(" %v", fi.ModTime().UTC())
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func unpack(t testing.TB, dir string, stream []byte, how Overwrite) (*Placed, error) {
	t.Helper()
	return Unpack(bytes.NewReader(stream), Place{Root: root(t, dir), Dir: ".", Key: "JOB", Overwrite: how, Size: int64(len(stream))})
}

func TestRoundTrip(t *testing.T) {
	from, to := sample(t), t.TempDir()
	stream, notes := pack(t, from, "photos")
	if len(notes) != 3 || !strings.Contains(strings.Join(notes, "|"), "photos/fifo: neither file nor folder") {
		t.Errorf("notes: %q", notes)
	}
	done, err := unpack(t, to, stream, Never)
	if err != nil {
		t.Fatal(err)
	}
	if done.Files != 3 || done.Folders != 4 || done.Links != 2 || done.Bytes != 100_001 || !slices.Equal(done.Names, []string{"photos"}) {
		t.Errorf("%+v", done)
	}
	want := list(t, from)
	want = slices.DeleteFunc(want, func(s string) bool {
		return strings.Contains(s, "fifo") || strings.Contains(s, "-> /etc") || strings.Contains(s, "../../etc")
	})
	for i := range want {
		want[i] = strings.Replace(want[i], `"photos/a/b" dr-xr-xr-x`, `"photos/a/b" drwxr-xr-x`, 1)
	}
	if got := list(t, to); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// What is there already counts as done.
	done, err = unpack(t, to, stream, Never)
	if err != nil || !slices.Equal(done.Same, []string{"photos"}) {
		t.Errorf("again: %+v, %v", done, err)
	}
	// A tar program reads it.
	r := tar.NewReader(bytes.NewReader(stream))
	for n := 0; ; n++ {
		if _, err := r.Next(); err == io.EOF {
			if n != 3+4+2+2 {
				t.Errorf("a tar of %d entries", n)
			}
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestOverwrite(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(from, "f", "new")
	write(from, "d/x", "new")
	write(from, "z", "new")
	write(to, "d/y", "old")
	write(to, "f", "old")
	stream, _ := pack(t, from, "z", "f", "d")
	before := list(t, to)
	if _, err := unpack(t, to, stream, Never); !errors.Is(err, ErrTaken) {
		t.Fatalf("never: %v", err)
	}
	if got := list(t, to); !slices.Equal(got, before) {
		t.Errorf("never has left %q", got)
	}
	for range 2 { // the second time nothing changes
		done, err := unpack(t, to, stream, Rename)
		if err != nil || !slices.Equal(done.Names, []string{"d.2", "f.2", "z"}) {
			t.Fatalf("rename: %+v, %v", done, err)
		}
	}
	if _, err := unpack(t, to, stream, Replace); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range list(t, to) {
		names = append(names, strings.Fields(l)[0])
	}
	if want := []string{`"d"`, `"d/x"`, `"d.2"`, `"d.2/x"`, `"f"`, `"f.2"`, `"z"`}; !slices.Equal(names, want) {
		t.Errorf("replaced: %q, want %q", names, want)
	}
	if b, _ := os.ReadFile(filepath.Join(to, "f")); string(b) != "new" {
		t.Errorf("f is %q", b)
	}
	// into a folder that is not there, and one in whose way a file is
	done, err := Unpack(bytes.NewReader(stream), Place{Root: root(t, to), Dir: "deep/er", Key: "J", Size: -1})
	if err != nil || len(done.Names) != 3 {
		t.Errorf("deep: %+v, %v", done, err)
	}
	if _, err := Unpack(bytes.NewReader(stream), Place{Root: root(t, to), Dir: "f/er", Key: "J", Size: -1}); err == nil {
		t.Error("a folder in a file")
	}
}

// TestCut: a stream that ends anywhere, or has one bit wrong anywhere, leaves no trace.
func TestCut(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(from, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 600*i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stream, _ := pack(t, from, "0", "1", "2")
	whole := len(bytes.TrimRight(stream, "\x00")) // behind it are the zeros that end a tar
	for n := 0; n < whole; n += 97 {
		if _, err := unpack(t, to, stream[:n], Never); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut at %d of %d: %v", n, len(stream), err)
		}
	}
	accepted := 0
	for n := 0; n < whole; n += 41 {
		b := slices.Clone(stream)
		b[n] ^= 1
		if _, err := unpack(t, to, b, Rename); err == nil {
			accepted++ // in a field of tar that no entry has, and no checksum covers: padding
			if got := list(t, to); len(got) != 3 {
				t.Fatalf("flipped at %d: %q", n, got)
			}
			for i := range 3 {
				if got, _ := os.ReadFile(filepath.Join(to, fmt.Sprint(i))); !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, 600*i)) {
					t.Fatalf("flipped at %d: %d is wrong", n, i)
				}
				os.Remove(filepath.Join(to, fmt.Sprint(i)))
			}
		}
	}
	if accepted > whole/41/2 {
		t.Errorf("%d flips of %d make no difference", accepted, whole/41)
	}
	if got := list(t, to); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// forge makes a stream of headers with honest first and last records.
func forge(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	p := &packer{tar: w, sum: newDigest()}
	if err := p.global(map[string]string{recVersion: Version}); err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Format, h.ModTime = tar.FormatPAX, time.Unix(0, 0)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		e := &Entry{Kind: File, Name: strings.TrimSuffix(h.Name, "/"), Mode: fs.FileMode(h.Mode).Perm(), ModTime: h.ModTime, Size: h.Size, Target: h.Linkname}
		switch h.Typeflag {
		case tar.TypeDir:
			e.Kind = Folder
		case tar.TypeSymlink:
			e.Kind = Link
		}
		p.s.count(e)
		p.sum.entry(e)
		if h.Size > 0 {
			io.CopyN(io.MultiWriter(w, p.sum), zeros{}, min(h.Size, 1000))
		}
	}
	p.global(map[string]string{recEntries: fmt.Sprint(p.s.entries()), recSum: p.sum.text()})
	w.Close()
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHostile(t *testing.T) {
	dir := func(n string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: n + "/", Mode: 0o755} }
	file := func(n string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: n, Size: 5} }
	link := func(n, to string) *tar.Header { return &tar.Header{Typeflag: tar.TypeSymlink, Name: n, Linkname: to} }
	deep := make([]*tar.Header, 0, MaxDepth+2)
	for i := range MaxDepth + 1 {
		deep = append(deep, dir(strings.TrimSuffix(strings.Repeat("d/", i+1), "/")))
	}
	for name, h := range map[string][]*tar.Header{
		"up":                 {file("../x")},
		"up-inside":          {dir("d"), file("d/../../x")},
		"absolute":           {file("/tmp/mochila-x")},
		"dot":                {file(".")},
		"nothing":            {file("d//x")},
		"zero-length":        {&tar.Header{Typeflag: tar.TypeReg, Name: ""}},
		"ours":               {file(stagePrefix + "x")},
		"long-name":          {file(strings.Repeat("x", MaxName+1))},
		"deep":               deep,
		"no-folder":          {file("d/x")},
		"file-as-folder":     {file("d"), file("d/x")},
		"link-as-folder":     {dir("a"), link("a/l", "."), file("a/l/x")},
		"twice":              {file("x"), file("x")},
		"order":              {file("y"), file("x")},
		"back-into-a-folder": {dir("a"), file("b"), file("a/x")},
		"device":             {{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}},
		"char-device":        {{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}},
		"fifo":               {{Typeflag: tar.TypeFifo, Name: "fifo"}},
		"hard-link":          {file("a"), {Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}},
		"hard-link-out":      {{Typeflag: tar.TypeLink, Name: "b", Linkname: "/etc/passwd"}},
		"link-top":           {link("l", "x")},
		"link-absolute":      {dir("d"), link("d/l", "/etc")},
		"link-out":           {dir("d"), link("d/l", "../..")},
		"link-to-the-inbox":  {dir("d"), link("d/l", "..")},
		"link-chain":         {dir("d"), dir("d/a"), link("d/a/y", "../a/.."), file("d/b")},
		"huge":               {{Typeflag: tar.TypeReg, Name: "x", Size: 1 << 60}},
		"huge-second":        {file("a"), {Typeflag: tar.TypeReg, Name: "x", Size: 1<<63 - 6}},
	} {
		to := t.TempDir()
		if _, err := unpack(t, to, forge(t, h...), Replace); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		if got := list(t, to); len(got) != 0 {
			t.Errorf("%s has left %q", name, got)
		}
	}
	// Set-id bits do not travel.
	to := t.TempDir()
	h := file("sh")
	h.Mode = 0o6755
	if _, err := unpack(t, to, forge(t, h), Never); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(to, "sh")); err != nil || fi.Mode() != 0o755 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

// TestRace: somebody at the destination turns the folder into a link while the tree comes; nothing leaves the root.
func TestRace(t *testing.T) {
	from, to, outside := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(to, "in")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(to, "f")); err != nil {
		t.Fatal(err)
	}
	stream, _ := pack(t, from, "f")
	for _, dir := range []string{"in", "in/deeper"} {
		if _, err := Unpack(bytes.NewReader(stream), Place{Root: root(t, to), Dir: dir, Key: "J", Overwrite: Replace, Size: -1}); err == nil {
			t.Errorf("%s: went through a link that leads out", dir)
		}
	}
	swap := filepath.Join(to, "swap")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.RemoveAll(swap)
			os.Mkdir(swap, 0o755)
			os.RemoveAll(swap)
			os.Symlink(outside, swap)
			os.Remove(swap)
		}
	}()
	for range 200 {
		Unpack(bytes.NewReader(stream), Place{Root: root(t, to), Dir: "swap", Key: "J", Overwrite: Replace, Size: -1})
	}
	close(stop)
	<-stopped
	if _, err := unpack(t, to, stream, Replace); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(filepath.Join(to, "f")); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("the link was not replaced: %v, %v", fi, err)
	}
	if got := list(t, outside); len(got) != 0 {
		t.Errorf("outside: %q", got)
	}
}

// TestMany: many entries in one folder, in bounded memory and within a few seconds.
func TestMany(t *testing.T) {
	n := 10_000
	if os.Getenv("MOCHILA_SOAK") == "1" {
		n = 100_000
	}
	headers := []*tar.Header{{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}}
	for i := range n {
		headers = append(headers, &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d/%06d", i), Mode: 0o600})
	}
	to := t.TempDir()
	done, err := unpack(t, to, forge(t, headers...), Never)
	if err != nil || done.Files != n {
		t.Fatalf("%+v, %v", done, err)
	}
}

func TestOrderOfNames(t *testing.T) {
	l := []string{"a", "a/b", "a/b/c", "a/c", "a-b", "a.b", "a.b/c", "b"}
	for i := range l {
		for j := range l {
			if got := after(l[i], l[j]); got != (i < j) {
				t.Errorf("%q after %q: %v", l[j], l[i], got)
			}
		}
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{stagePrefix + "old": staleAfter * 2, stagePrefix + "new": time.Hour, "kept": staleAfter * 2} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	sweep(root(t, dir), ".", time.Now())
	d, err := os.ReadDir(dir)
	if err != nil || len(d) != 2 {
		t.Errorf("%v, %v", d, err)
	}
}

// FuzzReader: whatever comes, what passes is a tree that Pack could have made.
func FuzzReader(f *testing.F) {
	dir := f.TempDir()
	for _, n := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	stream, _ := pack(f, dir, "a", "b")
	f.Add(stream)
	f.Add(forge(f, &tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 5}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b), int64(len(b)))
		last, total := "", int64(0)
		for {
			e, err := r.Next()
			if err != nil {
				break
			}
			if err := CheckName(e.Name); err != nil || last != "" && !after(last, e.Name) {
				t.Fatalf("%q after %q: %v", e.Name, last, err)
			}
			if e.Kind == Link && CheckLink(e.Name, e.Target) != nil {
				t.Fatalf("link %q to %q", e.Name, e.Target)
			}
			last = e.Name
			n, _ := io.Copy(io.Discard, r)
			if total += n; total > int64(len(b)) {
				t.Fatalf("%d bytes out of %d", total, len(b))
			}
		}
	})
}
