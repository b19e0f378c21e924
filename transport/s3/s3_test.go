package s3

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/envelope"
	"mochila/transport"
	"mochila/transport/s3/s3test"
	"mochila/transport/transporttest"
)

// credentials writes a file of keys that only its owner can read.
func keyFile(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = test\naws_secret_access_key = secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func open(t testing.TB, s *s3test.Store, options string) *Folder {
	t.Helper()
	c, err := transport.Parse([]transport.Scheme{Scheme}, fmt.Sprintf("s3:%s/net?endpoint=%s&credentials=%s&part=5%s", s.Bucket, s.URL, keyFile(t), options))
	if err != nil {
		t.Fatal(err)
	}
	return c.Folder.(*Folder)
}

func TestConforms(t *testing.T) {
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder { return open(t, s3test.New(t), "") })
}

var ship, shore = envelope.Label{1}, envelope.Label{2}

var outbox = "mochila/" + ship.String() + "/" + shore.String()

func put(t testing.TB, f *Folder, p *transport.Packet) error {
	t.Helper()
	r, err := p.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return f.Put(t.Context(), outbox, p.ID.String(), p.Size, r)
}

func get(t testing.TB, f *Folder, name string) ([]byte, error) {
	t.Helper()
	r, err := f.Get(t.Context(), outbox, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// TestManyObjects: a directory of more than one page is listed, read and emptied, with few requests.
func TestManyObjects(t *testing.T) {
	s := s3test.New(t)
	f := open(t, s, "")
	const n = 2345
	var names []string
	for i := range n {
		p := transporttest.Packet(0, transporttest.Random(uint64(i), 20))
		names = append(names, p.ID.String())
		_, err := s.Backend.PutObject(s.Bucket, "net/"+outbox+"/"+p.ID.String(), map[string]string{}, bytes.NewReader(transporttest.Random(uint64(i), 20)), 20, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	before := s.Requests()
	files, err := f.List(t.Context(), outbox)
	if err != nil || len(files) != n {
		t.Fatalf("%d files, %v; want %d", len(files), err, n)
	}
	if got := s.Requests() - before; got > 4 {
		t.Errorf("a list of %d objects took %d requests", n, got)
	}
	before = s.Requests()
	if err := f.RemoveAll(t.Context(), outbox, append(names[5:], "not-there")); err != nil {
		t.Fatal(err)
	}
	if got := s.Requests() - before; got > 4 {
		t.Errorf("deleting %d objects took %d requests", n, got)
	}
	if files, err = f.List(t.Context(), outbox); err != nil || len(files) != 5 {
		t.Errorf("%d files are left, %v; want 5", len(files), err)
	}
}

// TestPutIsSentOnce: what lies there already is not stored a second time, and what lies there damaged is replaced.
func TestPutIsSentOnce(t *testing.T) {
	s := s3test.New(t)
	f := open(t, s, "")
	good := transporttest.Random(1, 3000)
	p := transporttest.Packet(0, good)
	name := p.ID.String()
	if err := put(t, f, p); err != nil {
		t.Fatal(err)
	}
	first, err := s.Backend.HeadObject(s.Bucket, "net/"+outbox+"/"+name)
	if err != nil {
		t.Fatal(err)
	}
	if err := put(t, f, p); err != nil {
		t.Fatal(err)
	}
	second, err := s.Backend.HeadObject(s.Bucket, "net/"+outbox+"/"+name)
	if err != nil {
		t.Fatal(err)
	}
	if first.Metadata["Last-Modified"] != second.Metadata["Last-Modified"] || !bytes.Equal(first.Hash, second.Hash) {
		t.Error("the object was stored twice")
	}
	for _, bad := range [][]byte{good[:2000], append([]byte{^good[0]}, good[1:]...)} {
		if _, err := s.Backend.PutObject(s.Bucket, "net/"+outbox+"/"+name, map[string]string{}, bytes.NewReader(bad), int64(len(bad)), nil); err != nil {
			t.Fatal(err)
		}
		if err := put(t, f, p); err != nil {
			t.Fatal(err)
		}
		if got, err := get(t, f, name); err != nil || !bytes.Equal(got, good) {
			t.Errorf("after a repair: %d bytes, %v", len(got), err)
		}
	}
}

// TestStoreWithoutConditions: a store that knows no If-None-Match takes packets all the same.
func TestStoreWithoutConditions(t *testing.T) {
	s := s3test.New(t)
	refused := 0
	s.Fail(func(_ int, r *http.Request) s3test.Fault {
		if r.Header.Get("If-None-Match") != "" {
			refused++
			return s3test.Unknown
		}
		return s3test.NoFault
	})
	f := open(t, s, "")
	for i := range 3 {
		if err := put(t, f, transporttest.Packet(0, transporttest.Random(uint64(i), 100))); err != nil {
			t.Fatal(err)
		}
	}
	if refused != 1 {
		t.Errorf("the condition was tried %d times", refused)
	}
}

// TestFaultsAreMet: errors of the store now and then are tried again inside a request; bodies that break off are not
// taken for packets.
func TestFaultsAreMet(t *testing.T) {
	s := s3test.New(t)
	f := open(t, s, "")
	s.Fail(func(n int, _ *http.Request) s3test.Fault {
		switch n % 3 {
		case 0:
			return s3test.Internal
		case 1:
			return s3test.SlowDown
		}
		return s3test.NoFault
	})
	big := transporttest.Packet(0, transporttest.Random(2, 6<<20)) // in parts
	for _, p := range []*transport.Packet{transporttest.Packet(0, transporttest.Random(1, 3000)), big} {
		if err := put(t, f, p); err != nil {
			t.Fatalf("put %d bytes: %v", p.Size, err)
		}
	}
	if files, err := f.List(t.Context(), outbox); err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	s.Fail(func(_ int, r *http.Request) s3test.Fault {
		if r.Method == "GET" && strings.Contains(r.URL.Path, big.ID.String()) {
			return s3test.CutBody
		}
		return s3test.NoFault
	})
	if b, err := get(t, f, big.ID.String()); err == nil {
		t.Errorf("a body that broke off was read as %d bytes without an error", len(b))
	}
	st := transporttest.NewStation("ship")
	link := transport.NewFolderLink(f, shore, ship, transport.FolderOptions{})
	stats, err := link.Run(t.Context(), st)
	if err != nil || stats.PacketsIn != 1 || stats.Incomplete != 1 {
		t.Fatalf("%+v, %v; want one in and one incomplete", stats, err)
	}
}

// TestUnfinishedUploads: an upload in parts that fails leaves nothing, and one that a dead process left is ended.
func TestUnfinishedUploads(t *testing.T) {
	s := s3test.New(t)
	f := open(t, s, "")
	p := transporttest.Packet(0, transporttest.Random(3, 12<<20))
	broken := errors.New("source is broken")
	err := f.Put(t.Context(), outbox, p.ID.String(), p.Size, io.MultiReader(bytes.NewReader(make([]byte, 11<<20)), &failing{broken}))
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want the error of the source", err)
	}
	if files, err := f.List(t.Context(), outbox); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	list, err := f.client.ListMultipartUploads(t.Context(), s.Bucket, "net/"+outbox+"/", "", "", "", 10)
	if err != nil || len(list.Uploads) != 0 {
		t.Errorf("unfinished uploads: %v, %v", list.Uploads, err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// TestWhatIsBroken: each trouble has its own words, and a hint that helps.
func TestWhatIsBroken(t *testing.T) {
	s := s3test.New(t)
	key := keyFile(t)
	loose := filepath.Join(t.TempDir(), "loose")
	if err := os.WriteFile(loose, []byte("[default]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	for _, x := range []struct {
		name, url  string
		fault      s3test.Fault
		words      string
		hint       string
		absent     bool
		mustBeTold bool
	}{
		{"no bucket", "s3:nowhere?endpoint=" + s.URL + "&credentials=" + key, s3test.NoFault, `there is no bucket "nowhere"`, "make it", false, true},
		{"wrong key", "s3:sites?endpoint=" + s.URL + "&credentials=" + key, s3test.Forbid, "does not accept the credentials", "AWS_ACCESS_KEY_ID", false, true},
		{"no key", "s3:sites?endpoint=" + s.URL, s3test.NoFault, "no credentials", "~/.aws/credentials", false, true},
		{"key file for all", "s3:sites?endpoint=" + s.URL + "&credentials=" + loose, s3test.NoFault, "others can read", "chmod 600", false, true},
		{"nobody there", "s3:sites?endpoint=http://127.0.0.1:1&credentials=" + key, s3test.NoFault, "127.0.0.1:1", "", true, false},
		{"slow down", "s3:sites?endpoint=" + s.URL + "&credentials=" + key, s3test.SlowDown, "slow down", "every=", false, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			s.Fail(func(int, *http.Request) s3test.Fault { return x.fault })
			c, err := transport.Parse([]transport.Scheme{Scheme}, x.url)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Folder.List(t.Context(), outbox)
			if err == nil || !strings.Contains(err.Error(), x.words) {
				t.Errorf("%v, want the words %q", err, x.words)
			}
			if errors.Is(err, transport.ErrAbsent) != x.absent {
				t.Errorf("%v: absent %v", err, !x.absent)
			}
			var h interface{ Hint() string }
			if x.mustBeTold && (!errors.As(err, &h) || !strings.Contains(h.Hint(), x.hint)) {
				t.Errorf("%v: hint %v, want %q", err, h, x.hint)
			}
		})
	}
	f := open(t, s, "")
	s.Fail(nil)
	if _, err := get(t, f, "missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing object: %v", err)
	}
}

func TestURLs(t *testing.T) {
	for _, bad := range []string{"s3:", "s3:/x", "s3:b?style=x", "s3:b?endpoint=ftp://x", "s3:b?part=1", "s3:b/../x", "s3:b?colour=red", "s3://b"} {
		if _, err := transport.Parse([]transport.Scheme{Scheme}, bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for url, want := range map[string]string{"s3:b": "s3:b", "s3:b/x/y/": "s3:b/x/y", "s3:b?prefix=z": "s3:b/z"} {
		c, err := transport.Parse([]transport.Scheme{Scheme}, url)
		if err != nil {
			t.Errorf("%q: %v", url, err)
		} else if got := c.Folder.(*Folder).String(); got != want {
			t.Errorf("%q is %q, want %q", url, got, want)
		}
	}
}
