package spool

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// anonymous is how much memory of this process is not a mapped file, in bytes.
func anonymous(t testing.TB) int64 {
	t.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Skipf("SKIPPED LOUDLY: no /proc: memory was not measured: %v", err)
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		if text, ok := strings.CutPrefix(in.Text(), "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// queue adds n mails of 600 bytes for 20 nodes, a thousand in one commit.
func queue(t testing.TB, s *Spool, n int) {
	t.Helper()
	data := pattern(600)
	sum := envelope.SumOf(data)
	for done := 0; done < n; {
		part := min(n-done, 1000)
		err := s.Apply(func(tx *Tx) error {
			for i := range part {
				it := mail(nil, Dest(fmt.Sprintf("node:%d", (done+i)%20)))
				it.Env.Size, it.Env.Sum = int64(len(data)), sum
				b := &Body{s: s, buf: data, size: int64(len(data)), sum: sum, finished: true}
				if err := tx.Add(it, b); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		done += part
	}
}

// TestScale queues many mails and opens the spool again. The numbers are printed; only what must hold on any machine
// is asserted. MOCHILA_SOAK=1 makes it a million.
func TestScale(t *testing.T) {
	n := 50_000
	if os.Getenv("MOCHILA_SOAK") != "" {
		n = 1_000_000
	}
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	queue(t, s, n)
	t.Logf("queued %d in %v", n, time.Since(start))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = nil
	runtime.GC()
	debug.FreeOSMemory()
	before := anonymous(t)

	start = time.Now()
	s = open(t, dir, Options{})
	t.Logf("opened %d in %v", n, time.Since(start))
	runtime.GC()
	debug.FreeOSMemory()
	used := anonymous(t) - before
	t.Logf("anonymous memory: %d KiB for %d items, %.1f bytes each", used>>10, n, float64(used)/float64(n))
	if limit := int64(32<<20 + 24*n); used > limit {
		t.Errorf("an open spool of %d items takes %d KiB, more than %d KiB: something is kept per item", n, used>>10, limit>>10)
	}

	start = time.Now()
	page, more, err := s.List(Query{Limit: 100})
	if err != nil || !more || len(page) != 100 {
		t.Fatalf("%d items, more %v, %v", len(page), more, err)
	}
	t.Logf("first page in %v", time.Since(start))
	start = time.Now()
	all := 0
	if _, _, err := s.List(Query{Match: func(*Item) bool { all++; return false }}); err != nil || all != n {
		t.Fatalf("%d items, %v", all, err)
	}
	t.Logf("all in %v", time.Since(start))
	start = time.Now()
	counts, err := s.Counts()
	if err != nil || len(counts) != 20 || counts[3].Total() != n/20 || counts[3].Bytes != int64(n/20*600) {
		t.Fatalf("counts %+v, %v", counts, err)
	}
	t.Logf("counts in %v", time.Since(start))
	start = time.Now()
	got, err := s.Lease("node:7", 1000, 0)
	if err != nil || len(got) != 1000 {
		t.Fatalf("leased %d, %v", len(got), err)
	}
	t.Logf("1000 leased in %v", time.Since(start))
	start = time.Now()
	for s.NextWake().IsZero() {
		if _, err := s.Wake(time.Now(), 100); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("swept in %v", time.Since(start))
	st, err := os.Stat(s.path(indexFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("index has %d bytes, %d for each item", st.Size(), st.Size()/int64(n))
}
