package transporttest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"

	"mochila/transport"
)

// Faults says how often each fault happens, as a probability between 0 and 1.
type Faults struct {
	Truncate  float64 // a file is stored short, under its final name
	Corrupt   float64 // a file is stored with one bit inverted
	Lose      float64 // Put reports success and stores nothing
	Late      float64 // a file becomes visible only some Lists later
	Duplicate float64 // a conflict copy appears beside the file
	PutError  float64 // Put fails
	GetError  float64 // reading a file fails somewhere
	Removal   float64 // Remove fails
	Reorder   bool    // List shuffles
}

// FaultyFolder damages what passes through it, in a way that depends on the seed alone (as long as its methods are
// not called concurrently).
type FaultyFolder struct {
	inner transport.Folder
	f     Faults

	mu   sync.Mutex
	rand *rand.Rand
	late map[string]int // dir/name: Lists until it appears
	hits int
}

// NewFaultyFolder wraps inner.
func NewFaultyFolder(inner transport.Folder, seed uint64, f Faults) *FaultyFolder {
	return &FaultyFolder{inner: inner, f: f, rand: rand.New(rand.NewPCG(seed, 1)), late: make(map[string]int)}
}

// Calm stops all faults; what is damaged stays damaged.
func (f *FaultyFolder) Calm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.f = Faults{}
	clear(f.late)
}

// Hits returns how many faults have happened.
func (f *FaultyFolder) Hits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits
}

// roll decides whether a fault of probability p happens. mu is held.
func (f *FaultyFolder) roll(p float64) bool {
	if p > 0 && f.rand.Float64() < p {
		f.hits++
		return true
	}
	return false
}

// Put implements transport.Folder.
func (f *FaultyFolder) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, size))
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.roll(f.f.PutError):
		return fmt.Errorf("put: %w", errInjected)
	case f.roll(f.f.Lose):
		return nil
	case len(b) > 1 && f.roll(f.f.Truncate):
		b = b[:f.rand.IntN(len(b)-1)+1]
	case len(b) > 0 && f.roll(f.f.Corrupt):
		b[f.rand.IntN(len(b))] ^= 1 << f.rand.IntN(8)
	}
	if f.roll(f.f.Late) {
		f.late[dir+"/"+name] = 1 + f.rand.IntN(4)
	}
	if f.roll(f.f.Duplicate) {
		copy := name + ".sync-conflict-20300101-000000-ABCDEFG"
		if err := f.inner.Put(ctx, dir, copy, int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	return f.inner.Put(ctx, dir, name, int64(len(b)), bytes.NewReader(b))
}

// List implements transport.Folder.
func (f *FaultyFolder) List(ctx context.Context, dir string) ([]transport.Entry, error) {
	all, err := f.inner.List(ctx, dir)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var shown []transport.Entry
	for _, e := range all {
		at := dir + "/" + e.Name
		if f.late[at] > 0 {
			f.late[at]--
			continue
		}
		shown = append(shown, e)
	}
	if f.f.Reorder {
		f.rand.Shuffle(len(shown), func(i, j int) { shown[i], shown[j] = shown[j], shown[i] })
	}
	return shown, nil
}

// Dirs implements transport.Folder.
func (f *FaultyFolder) Dirs(ctx context.Context, dir string) ([]string, error) {
	return f.inner.Dirs(ctx, dir)
}

// Get implements transport.Folder.
func (f *FaultyFolder) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	r, err := f.inner.Get(ctx, dir, name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.roll(f.f.GetError) {
		return r, nil
	}
	return struct {
		io.Reader
		io.Closer
	}{&failAfter{r, f.rand.IntN(5000)}, r}, nil
}

// failAfter fails after n bytes.
type failAfter struct {
	r io.Reader
	n int
}

func (f *failAfter) Read(b []byte) (int, error) {
	if f.n == 0 {
		return 0, fmt.Errorf("read: %w", errInjected)
	}
	n, err := f.r.Read(b[:min(len(b), f.n)])
	f.n -= n
	return n, err
}

// Remove implements transport.Folder.
func (f *FaultyFolder) Remove(ctx context.Context, dir, name string) error {
	f.mu.Lock()
	fail := f.roll(f.f.Removal)
	f.mu.Unlock()
	if fail {
		return fmt.Errorf("remove: %w", errInjected)
	}
	return f.inner.Remove(ctx, dir, name)
}

// Flush implements transport.Folder.
func (f *FaultyFolder) Flush(ctx context.Context) error { return f.inner.Flush(ctx) }
