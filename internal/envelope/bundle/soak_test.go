package bundle

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// source is a content of any size, made as it is read: half noise, half text, or noise only.
type source struct {
	left  int64
	noise bool
	rng   *rand.ChaCha8
	block []byte
	at    int
}

func newSource(size int64, noise bool) *source {
	return &source{left: size, noise: noise, rng: rand.NewChaCha8([32]byte{42}), block: make([]byte, 64<<10), at: 64 << 10}
}

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	if s.at == len(s.block) {
		s.rng.Read(s.block)
		if !s.noise {
			copy(s.block[len(s.block)/2:], text(len(s.block)/2))
			binary.BigEndian.PutUint64(s.block[len(s.block)/2:], uint64(s.left))
		}
		s.at = 0
	}
	n := int(min(int64(len(p)), int64(len(s.block)-s.at), s.left))
	copy(p, s.block[s.at:s.at+n])
	s.at += n
	s.left -= int64(n)
	return n, nil
}

// passes sends one content of size bytes through a writer and a reader, and returns the most heap that was in use
// above what was in use before.
func passes(t *testing.T, size int64, noise bool) (heap, packed int64) {
	t.Helper()
	c := newCodec(t)
	h := envelope.NewSum()
	if _, err := io.Copy(h, newSource(size, noise)); err != nil {
		t.Fatal(err)
	}
	e := mail(1, nil)
	e.Size, e.Sum = size, [32]byte(h.Sum(nil))

	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak atomic.Int64
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), int64(m.HeapInuse)-int64(before.HeapInuse)))
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	pr, pw := io.Pipe()
	count := &counter{w: pw}
	wrote := make(chan error, 1)
	go func() {
		w := c.NewWriter(count, Header{Expires: t0}, Options{})
		err := w.Envelope(e, newSource(size, noise))
		wrote <- errors.Join(err, w.Close())
		pw.CloseWithError(err)
	}()
	r := c.NewReader(pr, Limits{MaxRaw: size + 1000})
	rec, err := r.Next()
	if err != nil || rec.Err != nil {
		t.Fatal(err, rec)
	}
	n, err := io.Copy(io.Discard, rec.Content)
	if err != nil || n != size {
		t.Fatalf("got %d bytes of %d, %v", n, size, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("got %v at the end, want io.EOF", err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	close(done)
	<-watched
	return peak.Load(), count.n
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

// TestLargeContentInConstantMemory passes 96 MiB, or 4 GiB with MOCHILA_SOAK=1, through a writer and a reader.
func TestLargeContentInConstantMemory(t *testing.T) {
	size := int64(96 << 20)
	if os.Getenv("MOCHILA_SOAK") != "" {
		size = 4 << 30
	}
	for _, noise := range []bool{false, true} {
		heap, packed := passes(t, size, noise)
		t.Logf("%d bytes (noise only: %v): %d on the wire, %.1f MiB of heap for both ends", size, noise, packed, float64(heap)/(1<<20))
		if heap > 64<<20 {
			t.Errorf("noise only %v: %d bytes of heap, more than 64 MiB", noise, heap)
		}
		if noise && packed > size+1000 {
			t.Errorf("noise of %d bytes became %d", size, packed)
		}
		if !noise && packed > size*55/100 {
			t.Errorf("half text of %d bytes became %d", size, packed)
		}
	}
}
