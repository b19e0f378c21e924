// Package s3test is an S3-compatible store in the process of a test.
package s3test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// Store has one bucket, whose requests can be made to fail.
type Store struct {
	URL     string // of the endpoint
	Bucket  string
	Backend *s3mem.Backend

	mu       sync.Mutex
	requests int
	fault    func(n int, r *http.Request) Fault
}

// Fault is what happens to one request.
type Fault int

// The faults.
const (
	NoFault  Fault = iota
	Internal       // 500
	SlowDown       // 503, as a store that throttles says it
	CutBody        // the answer's body ends in the middle
	Forbid         // 403: unknown key
	Unknown        // 501: a header that the store does not know
)

// New starts a store.
func New(t testing.TB) *Store {
	t.Helper()
	s := &Store{Bucket: "sites", Backend: s3mem.New()}
	fake := gofakes3.New(s.Backend).Server()
	if err := s.Backend.CreateBucket(s.Bucket); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(fake, w, r) }))
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Fail makes requests fail from now on, as fault decides about the n-th since the start; nil: none.
func (s *Store) Fail(fault func(n int, r *http.Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// Requests is how many have come.
func (s *Store) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

func (s *Store) serve(fake http.Handler, w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests++
	f := NoFault
	if s.fault != nil {
		f = s.fault(s.requests, r)
	}
	s.mu.Unlock()
	if r.URL.Query().Has("partNumber") {
		unchunk(r)
	}
	refuse := func(status int, code string) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>as the test wants it</Message></Error>", code)
	}
	switch f {
	case Internal:
		refuse(500, "InternalError")
	case SlowDown:
		refuse(503, "SlowDown")
	case Forbid:
		refuse(403, "InvalidAccessKeyId")
	case Unknown:
		refuse(501, "NotImplemented")
	case CutBody:
		whole := httptest.NewRecorder()
		fake.ServeHTTP(whole, r)
		for k, v := range whole.Header() {
			w.Header()[k] = v
		}
		b := whole.Body.Bytes()
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.WriteHeader(whole.Code)
		w.Write(b[:len(b)/2])
		if len(b) > 1 {
			panic(http.ErrAbortHandler) // the connection breaks
		}
	default:
		fake.ServeHTTP(w, r)
	}
}

// unchunk undoes the signed chunks of a part's body, which gofakes3 does for whole objects only.
func unchunk(r *http.Request) {
	if !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return
	}
	var b bytes.Buffer
	for in := bufio.NewReader(r.Body); ; {
		line, err := in.ReadString('\n')
		size, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		n, bad := strconv.ParseInt(size, 16, 32)
		if err != nil || bad != nil || n == 0 {
			break
		}
		if _, err := io.CopyN(&b, in, n); err != nil {
			break
		}
		in.Discard(2)
	}
	r.Body, r.ContentLength = io.NopCloser(&b), int64(b.Len())
	r.Header.Set("Content-Length", strconv.Itoa(b.Len()))
}

// FailEvery makes each n-th request fail, in one way after the other.
func (s *Store) FailEvery(n int) {
	faults := []Fault{Internal, CutBody, SlowDown}
	s.Fail(func(i int, _ *http.Request) Fault {
		if i%n == 0 {
			return faults[i/n%len(faults)]
		}
		return NoFault
	})
}
