package letter

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"mochila/internal/durable"
)

// Box keeps parts on disk until their packets are whole: a folder per packet, a file per part. Its methods are safe
// for concurrent use; one process at a time has a box.
//
// Anybody who can write to the address can fill it. It is bounded, and what was touched longest ago goes first: that
// costs a packet another journey, and loses nothing.
type Box struct {
	dir string
	o   BoxOptions

	mu    sync.Mutex
	held  map[string]*packet // by key
	bytes int64
	done  map[string]time.Time // taken lately: late copies of their parts are not kept
	swept time.Time            // when what was too old was dropped last
}

// BoxOptions bound a Box; the zero value takes the defaults.
type BoxOptions struct {
	MaxBytes   int64         // of all parts, 4 GiB
	MaxPackets int           // that are not whole, 10,000
	MaxParts   int           // of one packet, 4096
	Age        time.Duration // parts of a packet that got no new one for so long are dropped, 60 days
	Now        func() time.Time
}

// packet is one that is not whole yet.
type packet struct {
	size  int64
	spans []span
	bytes int64
	used  time.Time
}

// span is a part on disk.
type span struct{ off, length int64 }

func (s span) file() string { return fmt.Sprintf("%x-%x", s.off, s.length) }

// ErrFull says that a part does not fit into the box, whatever were dropped.
var ErrFull = errors.New("the packet is too large for what is kept of letters")

// key is the folder of a packet. The size is in it, because a forged part could name another one.
func key(p Part) string { return p.Name() + "." + strconv.FormatInt(p.Size, 16) }

// OpenBox uses dir, which it makes if it is missing.
func OpenBox(dir string, o BoxOptions) (*Box, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = 4 << 30
	}
	if o.MaxPackets == 0 {
		o.MaxPackets = 10000
	}
	if o.MaxParts == 0 {
		o.MaxParts = 4096
	}
	if o.Age == 0 {
		o.Age = 60 * 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	b := &Box{dir: dir, o: o, held: map[string]*packet{}, done: map[string]time.Time{}}
	if err := (durable.OS{}).MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the parts of letters: %w", err)
	}
	folders, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open the parts of letters: %w", err)
	}
	for _, f := range folders {
		if err := b.load(f.Name()); err != nil {
			return nil, fmt.Errorf("open the parts of letters: %w", err)
		}
	}
	b.Expire()
	return b, nil
}

// load reads what is there of one packet.
func (b *Box) load(name string) error {
	_, text, ok := strings.Cut(name, ".")
	size, err := strconv.ParseInt(text, 16, 64)
	if !ok || err != nil || size < 1 || size > MaxPacket {
		return nil // not ours
	}
	files, err := os.ReadDir(filepath.Join(b.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	p := &packet{size: size}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), durable.TempPrefix) {
			os.Remove(filepath.Join(b.dir, name, f.Name()))
			continue
		}
		var s span
		fi, err := f.Info()
		if _, e := fmt.Sscanf(f.Name(), "%x-%x", &s.off, &s.length); e != nil || err != nil || !fi.Mode().IsRegular() || fi.Size() != s.length ||
			(Part{Size: size, Offset: s.off, Length: s.length}).check() != nil {
			continue
		}
		p.spans = append(p.spans, s)
		p.bytes += s.length
		if fi.ModTime().After(p.used) {
			p.used = fi.ModTime()
		}
	}
	b.held[name] = p
	b.bytes += p.bytes
	return nil
}

// Keep stores a part durably; data gives its bytes, and fails with ErrDamaged when they are not right. whole says that
// all of the packet is there now, or was taken before: then Open gives it.
func (b *Box) Keep(p Part, data io.Reader) (whole bool, err error) {
	k, s := key(p), span{p.Offset, p.Length}
	b.mu.Lock()
	if b.o.Now().Sub(b.swept) > time.Hour {
		b.sweep()
	}
	_, done := b.done[k]
	h := b.held[k]
	have := h != nil && slices.Contains(h.spans, s)
	if !done && !have {
		err = b.room(k, p.Length)
	}
	b.mu.Unlock()
	if err != nil {
		return false, err
	}
	if done || have {
		if _, err := io.Copy(io.Discard, data); err != nil {
			return false, err
		}
		return !done && b.whole(k), nil
	}
	dir := filepath.Join(b.dir, k)
	if err := (durable.OS{}).MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("keep a part: %w", err)
	}
	err = durable.WriteFile(durable.OS{}, filepath.Join(dir, s.file()), 0o600, func(w io.Writer) error {
		_, err := io.Copy(w, data)
		return err
	})
	if err != nil {
		os.Remove(dir) // if nothing else is in it
		return false, fmt.Errorf("keep a part: %w", err)
	}
	b.mu.Lock()
	if h = b.held[k]; h == nil {
		h = &packet{size: p.Size}
		b.held[k] = h
	}
	if !slices.Contains(h.spans, s) {
		h.spans = append(h.spans, s)
		h.bytes += s.length
		b.bytes += s.length
	}
	h.used = b.o.Now()
	b.mu.Unlock()
	return b.whole(k), nil
}

// room drops what was touched longest ago until n more bytes of packet k fit. The mutex is held.
func (b *Box) room(k string, n int64) error {
	h := b.held[k]
	if h != nil && len(h.spans) >= b.o.MaxParts {
		return fmt.Errorf("%w: more than %d parts", ErrFull, b.o.MaxParts)
	}
	for b.bytes+n > b.o.MaxBytes || h == nil && len(b.held) >= b.o.MaxPackets {
		oldest := ""
		for name, p := range b.held {
			if name != k && (oldest == "" || p.used.Before(b.held[oldest].used)) {
				oldest = name
			}
		}
		if oldest == "" {
			return ErrFull
		}
		b.drop(oldest)
	}
	return nil
}

// drop removes all of a packet. The mutex is held.
func (b *Box) drop(k string) {
	if h := b.held[k]; h != nil {
		b.bytes -= h.bytes
		delete(b.held, k)
	}
	os.RemoveAll(filepath.Join(b.dir, k)) // what stays after a crash is read again at the next start
}

// cover puts the parts in their order, each with how many bytes of it are needed; nil when some are missing.
func (h *packet) cover() []span {
	all := slices.Clone(h.spans)
	sort.Slice(all, func(i, j int) bool { return all[i].off < all[j].off })
	var out []span
	at := int64(0)
	for i := 0; at < h.size; {
		best := span{}
		for ; i < len(all) && all[i].off <= at; i++ {
			if all[i].off+all[i].length > best.off+best.length {
				best = all[i]
			}
		}
		if best.off+best.length <= at {
			return nil
		}
		out = append(out, best)
		at = best.off + best.length
	}
	return out
}

func (b *Box) whole(k string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.held[k]
	return h != nil && h.bytes >= h.size && h.cover() != nil
}

// Open reads a packet that is whole. Its bytes are what came, which need not be what its name says.
func (b *Box) Open(p Part) (io.ReadCloser, error) {
	k := key(p)
	b.mu.Lock()
	var spans []span
	if h := b.held[k]; h != nil {
		spans = h.cover()
	}
	b.mu.Unlock()
	if spans == nil {
		return nil, fmt.Errorf("packet %s: %w", p.Name(), fs.ErrNotExist)
	}
	return &chain{dir: filepath.Join(b.dir, k), spans: spans}, nil
}

// chain reads parts one after the other.
type chain struct {
	dir   string
	spans []span
	at    int64
	f     durable.File
}

func (c *chain) Read(b []byte) (int, error) {
	for {
		if c.f == nil {
			if len(c.spans) == 0 {
				return 0, io.EOF
			}
			f, err := durable.OS{}.Open(filepath.Join(c.dir, c.spans[0].file()))
			if err != nil {
				return 0, err
			}
			c.f = f
			if _, err := f.Seek(c.at-c.spans[0].off, io.SeekStart); err != nil {
				return 0, err
			}
		}
		n, err := c.f.Read(b)
		c.at += int64(n)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		c.f.Close()
		c.f = nil
		if end := c.spans[0].off + c.spans[0].length; c.at != end {
			return 0, fmt.Errorf("part of a packet ends at %d, not %d: %w", c.at, end, io.ErrUnexpectedEOF)
		}
		c.spans = c.spans[1:]
	}
}

func (c *chain) Close() error {
	if c.f == nil {
		return nil
	}
	return c.f.Close()
}

// Done forgets a packet that was taken, or that nobody will ever take.
func (b *Box) Done(p Part) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.o.Now()
	if len(b.done) >= b.o.MaxPackets {
		clear(b.done)
	}
	b.done[key(p)] = now
	b.drop(key(p))
}

// Forget drops what is there of a packet, which may come again.
func (b *Box) Forget(p Part) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(key(p))
}

// Waiting tells how many packets are not whole, and how many bytes are there of them.
func (b *Box) Waiting() (packets int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.held), b.bytes
}

// Expire drops what has waited too long; Keep does it now and then.
func (b *Box) Expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweep()
}

// sweep is Expire. The mutex is held.
func (b *Box) sweep() {
	now := b.o.Now()
	b.swept = now
	for k, h := range b.held {
		if now.Sub(h.used) > b.o.Age {
			b.drop(k)
		}
	}
	for k, t := range b.done {
		if now.Sub(t) > b.o.Age {
			delete(b.done, k)
		}
	}
}
