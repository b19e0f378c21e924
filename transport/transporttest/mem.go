package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"mochila/transport"
)

// MemFolder is a Folder in memory, for tests of what stands above a carrier. It is safe for concurrent use.
type MemFolder struct {
	mu     sync.Mutex
	dirs   map[string]map[string][]byte
	absent bool
	room   int64 // bytes it may hold; 0: any
}

// NewMemFolder returns an empty MemFolder that holds at most room bytes (0: any number).
func NewMemFolder(room int64) *MemFolder {
	return &MemFolder{dirs: make(map[string]map[string][]byte), room: room}
}

// Unplug takes the folder away, or brings it back.
func (m *MemFolder) Unplug(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.absent = away
}

// Set puts bytes in place as a careless program would, under any name.
func (m *MemFolder) Set(dir, name string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dirs[dir] == nil {
		m.dirs[dir] = make(map[string][]byte)
	}
	m.dirs[dir][name] = b
}

func (m *MemFolder) check(ctx context.Context, dir, name string) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case m.absent:
		return transport.ErrAbsent
	case !fs.ValidPath(dir) || strings.ContainsAny(name, "/\x00") || name == "" || name[0] == '.' || name[0] == '~':
		return fmt.Errorf("bad name %q in %q", name, dir)
	}
	return nil
}

// Put implements transport.Folder.
func (m *MemFolder) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	m.mu.Lock()
	err := m.check(ctx, dir, name)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return err
	}
	if int64(len(b)) != size {
		return fmt.Errorf("%d bytes came, %d were announced", len(b), size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	used := size
	for _, files := range m.dirs {
		for _, f := range files {
			used += int64(len(f))
		}
	}
	if m.room > 0 && used > m.room {
		return transport.ErrFull
	}
	if m.dirs[dir] == nil {
		m.dirs[dir] = make(map[string][]byte)
	}
	m.dirs[dir][name] = b
	return nil
}

// List implements transport.Folder.
func (m *MemFolder) List(ctx context.Context, dir string) ([]transport.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx, dir, "x"); err != nil {
		return nil, err
	}
	var all []transport.Entry
	for name, b := range m.dirs[dir] {
		if name[0] != '.' && name[0] != '~' {
			all = append(all, transport.Entry{Name: name, Size: int64(len(b))})
		}
	}
	slices.SortFunc(all, func(a, b transport.Entry) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Dirs implements transport.Folder.
func (m *MemFolder) Dirs(ctx context.Context, dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx, dir, "x"); err != nil {
		return nil, err
	}
	var all []string
	for d := range m.dirs {
		if rest, ok := strings.CutPrefix(d, dir+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Get implements transport.Folder.
func (m *MemFolder) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx, dir, name); err != nil {
		return nil, err
	}
	b, ok := m.dirs[dir][name]
	if !ok {
		return nil, fmt.Errorf("open %s/%s: %w", dir, name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Remove implements transport.Folder.
func (m *MemFolder) Remove(ctx context.Context, dir, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx, dir, name); err != nil {
		return err
	}
	delete(m.dirs[dir], name)
	return nil
}

// Flush implements transport.Folder.
func (m *MemFolder) Flush(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.check(ctx, "x", "x")
}

var errInjected = errors.New("injected fault")
