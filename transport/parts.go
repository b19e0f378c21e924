package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	largestFile  = 1<<32 - 1 // FAT32 holds no larger file
	ordinaryPart = 1 << 30
	maxParts     = 1000
)

// parts lays a packet that is too large for one file of the medium in several, NAME.1-3, NAME.2-3, NAME.3-3, and shows them
// as the one file that they are. While some are missing, it shows what there is of them, which is too short to be taken.
type parts struct {
	Folder
	most int64 // largest file
	part int64 // size of each part but the last

	mu    sync.Mutex
	files map[string][]Entry // by directory and packet name: the parts as last listed
}

func newParts(f Folder, most int64) *parts {
	p := &parts{Folder: f, most: most, part: ordinaryPart, files: map[string][]Entry{}}
	if most <= 0 {
		p.most = largestFile
	}
	p.part = min(p.part, p.most)
	return p
}

// Whole shows a folder with every packet as one file, in however many parts it lies there, as a FolderLink sees it.
func Whole(f Folder) Folder { return newParts(f, 0) }

// WholeAbove is Whole for a medium whose files hold at most most bytes.
func WholeAbove(f Folder, most int64) Folder { return newParts(f, most) }

// parsePart reads NAME.I-N.
func parsePart(name string) (packet string, i, n int, ok bool) {
	packet, tail, found := strings.Cut(name, ".")
	if !found || len(tail) > 9 {
		return "", 0, 0, false
	}
	if _, err := ParseID(packet); err != nil {
		return "", 0, 0, false
	}
	first, last, _ := strings.Cut(tail, "-")
	i, err1 := strconv.Atoi(first)
	n, err2 := strconv.Atoi(last)
	if err1 != nil || err2 != nil || i < 1 || i > n || n > maxParts || tail != fmt.Sprintf("%d-%d", i, n) {
		return "", 0, 0, false
	}
	return packet, i, n, true
}

// Put implements Folder. Parts that lie there in their length are not written again.
func (p *parts) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	if size <= p.most {
		return p.Folder.Put(ctx, dir, name, size, r)
	}
	if _, err := ParseID(name); err != nil {
		return p.Folder.Put(ctx, dir, name, size, r)
	}
	part := max(p.part, (size+maxParts-1)/maxParts)
	if part > p.most {
		return fmt.Errorf("%d bytes do not fit into %d files of this medium: %w", size, maxParts, ErrFull)
	}
	n := int((size + part - 1) / part)
	src := Exactly(r, size)
	var done []Entry
	for i := 1; i <= n; i++ {
		length := min(part, size-int64(i-1)*part)
		e := Entry{Name: fmt.Sprintf("%s.%d-%d", name, i, n), Size: length}
		if err := p.Folder.Put(ctx, dir, e.Name, length, io.LimitReader(src, length)); err != nil {
			for _, e := range append(done, e) {
				p.Folder.Remove(context.WithoutCancel(ctx), dir, e.Name)
			}
			return firstErr(src.Err(), err)
		}
		done = append(done, e)
	}
	p.remember(dir+"/"+name, done)
	return nil
}

func (p *parts) remember(key string, files []Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[key] = files
}

// of returns the parts of a packet as they were last listed, in their order.
func (p *parts) of(dir, name string) []Entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files[dir+"/"+name]
}

// List implements Folder.
func (p *parts) List(ctx context.Context, dir string) ([]Entry, error) {
	files, err := p.Folder.List(ctx, dir)
	if err != nil {
		return nil, err
	}
	pieces := map[string][]Entry{}
	whole := map[string]bool{}
	var shown []Entry
	for _, e := range files {
		if packet, _, _, ok := parsePart(e.Name); ok {
			pieces[packet] = append(pieces[packet], e)
			continue
		}
		whole[e.Name] = true
		shown = append(shown, e)
	}
	for packet, list := range pieces {
		slices.SortFunc(list, func(a, b Entry) int {
			_, i, n, _ := parsePart(a.Name)
			_, j, m, _ := parsePart(b.Name)
			return cmp.Or(cmp.Compare(n, m), cmp.Compare(i, j))
		})
		p.remember(dir+"/"+packet, list)
		if !whole[packet] {
			shown = append(shown, Entry{Name: packet, Size: total(list)})
		}
	}
	return shown, nil
}

func total(files []Entry) (sum int64) {
	for _, e := range files {
		sum += e.Size
	}
	return sum
}

// complete reports whether files are all parts of one packet.
func complete(files []Entry) bool {
	for k, e := range files {
		if _, i, n, _ := parsePart(e.Name); i != k+1 || n != len(files) {
			return false
		}
	}
	return len(files) > 0
}

// Get implements Folder.
func (p *parts) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	files := p.of(dir, name)
	if len(files) == 0 {
		return p.Folder.Get(ctx, dir, name)
	}
	if !complete(files) {
		return nil, fmt.Errorf("packet %s: %d of its parts are there: %w", name, len(files), ErrIncomplete)
	}
	return &joined{ctx: ctx, f: p.Folder, dir: dir, left: files}, nil
}

// joined reads one part after the other.
type joined struct {
	ctx  context.Context
	f    Folder
	dir  string
	left []Entry
	now  io.ReadCloser
}

func (j *joined) Read(b []byte) (int, error) {
	for {
		if j.now == nil {
			if len(j.left) == 0 {
				return 0, io.EOF
			}
			r, err := j.f.Get(j.ctx, j.dir, j.left[0].Name)
			if err != nil {
				return 0, err
			}
			j.now, j.left = r, j.left[1:]
		}
		n, err := j.now.Read(b)
		if err == io.EOF {
			err = j.now.Close()
			j.now = nil
			if n == 0 && err == nil {
				continue
			}
		}
		return n, err
	}
}

func (j *joined) Close() error {
	if j.now == nil {
		return nil
	}
	return j.now.Close()
}

// Remove implements Folder: all files of the packet.
func (p *parts) Remove(ctx context.Context, dir, name string) error {
	return p.RemoveAll(ctx, dir, []string{name})
}

// RemoveAll implements Sweeper, at once where the folder below can.
func (p *parts) RemoveAll(ctx context.Context, dir string, names []string) error {
	var files []string
	for _, name := range names {
		files = append(files, name)
		for _, e := range p.of(dir, name) {
			files = append(files, e.Name)
		}
	}
	if s, ok := p.Folder.(Sweeper); ok {
		return s.RemoveAll(ctx, dir, files)
	}
	var first error
	for _, name := range files {
		err := p.Folder.Remove(ctx, dir, name)
		if errors.Is(err, ErrAbsent) || ctx.Err() != nil {
			return firstErr(ctx.Err(), err)
		}
		first = firstErr(first, err)
	}
	return first
}
