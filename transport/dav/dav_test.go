package dav

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/webdav"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// serve starts a server of a folder, in which filter may answer instead.
func serve(t testing.TB, filter func(w http.ResponseWriter, r *http.Request) bool) (addr, dir string) {
	t.Helper()
	dir = t.TempDir()
	h := &webdav.Handler{FileSystem: webdav.Dir(dir), LockSystem: webdav.NewMemLS()}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if filter == nil || !filter(w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	if err := os.Mkdir(filepath.Join(dir, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(s.URL, "http://"), dir
}

func open(t testing.TB, url string) *Folder {
	t.Helper()
	c, err := transport.Parse(Schemes(), url)
	if err != nil {
		t.Fatal(err)
	}
	return c.Folder.(*Folder)
}

func put(t testing.TB, f *Folder, p *transport.Packet) error {
	t.Helper()
	r, err := p.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return f.Put(t.Context(), outbox, p.ID.String(), p.Size, r)
}

const outbox = "mochila/aaaaaaaaaaaaa/bbbbbbbbbbbbb"

func TestConforms(t *testing.T) {
	transporttest.TestFolder(t, func(t *testing.T) transport.Folder {
		addr, _ := serve(t, nil)
		return open(t, "dav:"+addr+"/net")
	})
}

// TestInPlace: a server that has no MOVE says so, and takes inplace=yes.
func TestInPlace(t *testing.T) {
	addr, _ := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == "MOVE" {
			w.WriteHeader(http.StatusNotImplemented)
		}
		return r.Method == "MOVE"
	})
	p := transporttest.Packet(0, transporttest.Random(1, 50_000))
	var h interface{ Hint() string }
	if err := put(t, open(t, "dav:"+addr+"/net"), p); !errors.As(err, &h) || !strings.Contains(h.Hint(), "inplace=yes") {
		t.Errorf("without MOVE: %v", err)
	}
	f := open(t, "dav:"+addr+"/net?inplace=yes")
	for range 2 {
		if err := put(t, f, p); err != nil {
			t.Fatal(err)
		}
		if files, err := f.List(t.Context(), outbox); err != nil || len(files) != 1 || files[0].Size != p.Size {
			t.Errorf("%v, %v", files, err)
		}
	}
}

// TestPartialUploads: a server that keeps half of what it was given does not make a packet of it.
func TestPartialUploads(t *testing.T) {
	var half atomic.Bool
	addr, dir := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == "PUT" && half.Load() {
			r.Body = io.NopCloser(io.LimitReader(r.Body, r.ContentLength/2))
		}
		return false
	})
	f := open(t, "dav:"+addr+"/net")
	p := transporttest.Packet(0, transporttest.Random(1, 50_000))
	half.Store(true)
	if err := put(t, f, p); err == nil || !strings.Contains(err.Error(), "25000 bytes are there") {
		t.Errorf("half an upload: %v", err)
	}
	if files, err := f.List(t.Context(), outbox); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "net", outbox)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	half.Store(false)
	old := filepath.Join(dir, "net", outbox, transport.TempName())
	if err := os.WriteFile(old, []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	f = open(t, "dav:"+addr+"/net") // another life
	if err := put(t, f, p); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("what a dead process left: %v", err)
	}
}

// TestWhatIsBroken: each trouble has its own words, and a hint that helps.
func TestWhatIsBroken(t *testing.T) {
	answer := func(code int) string {
		addr, _ := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", "https://elsewhere.example/")
			w.WriteHeader(code)
			return true
		})
		return "dav:" + addr + "/net"
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("camp:wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, nil)
	for _, x := range []struct {
		name, url, words, hint string
		is                     error
	}{
		{"no password", answer(401), "401", "secret=/FILE", nil},
		{"wrong password", answer(401) + "?secret=" + secret, "401", secret, nil},
		{"forbidden", answer(403), "403", "right", nil},
		{"no such folder", "dav:" + addr + "/nowhere", "there is no folder dav:" + addr + "/nowhere", "make it there", nil},
		{"full", answer(507), "507", "", transport.ErrFull},
		{"moved", answer(301), "301", "https://elsewhere.example/", nil},
		{"nobody there", "dav:127.0.0.1:1/x", "refused", "", transport.ErrAbsent},
	} {
		f := open(t, x.url)
		_, err := f.List(t.Context(), outbox)
		var h interface{ Hint() string }
		switch {
		case err == nil || !strings.Contains(err.Error(), x.words):
			t.Errorf("%s: %v, want %q", x.name, err, x.words)
		case x.is != nil && !errors.Is(err, x.is):
			t.Errorf("%s: %v is not %v", x.name, err, x.is)
		case x.hint != "" && (!errors.As(err, &h) || !strings.Contains(h.Hint(), x.hint)):
			t.Errorf("%s: hint of %v, want %q", x.name, err, x.hint)
		}
	}
	if err := put(t, open(t, "dav:"+addr+"/nowhere"), transporttest.Packet(0, []byte("hello, packet"))); err == nil || !strings.Contains(err.Error(), "there is no folder") {
		t.Errorf("put below a root that is not there: %v", err)
	}
}

func TestSecretIsUsed(t *testing.T) {
	addr, _ := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		if user == "camp" && password == "pass:word" {
			return false
		}
		w.WriteHeader(401)
		return true
	})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("camp:pass:word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, fmt.Sprintf("dav:%s/net?secret=%s", addr, secret))
	if err := put(t, f, transporttest.Packet(0, []byte("hello, packet"))); err != nil {
		t.Error(err)
	}
}

func TestURLs(t *testing.T) {
	for _, bad := range []string{"dav:", "dav:/x", "davs:user@host/x", "dav:h/x?colour=red", "davs://h/x", "dav:far.example/x?secret=/etc/s"} {
		if _, err := transport.Parse(Schemes(), bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for url, want := range map[string]string{"dav:h/a/b/": "dav:h/a/b", "davs:h:8443": "davs:h:8443/", "dav:far.example/x?secret=/etc/s&insecure=yes": "dav:far.example/x"} {
		if got := open(t, url).String(); got != want {
			t.Errorf("%q is %q, want %q", url, got, want)
		}
	}
}
