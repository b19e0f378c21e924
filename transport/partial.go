package transport

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"mochila/internal/envelope"
)

// Partials keeps the received beginnings of big packets, one file per packet, so that a contact goes on where the
// last one was cut. What a file holds is trusted by nobody: a packet is hashed whole before a Station has all of it,
// or the Station authenticates it. The folder may be emptied at any time; that costs bytes, nothing else.
//
// One Partials serves all links of a node. Its methods are safe for concurrent use.
type Partials struct {
	root *os.Root
	max  int64

	mu      sync.Mutex
	kept    map[ID]*kept
	tick    uint64
	opening int // packets that a Station reads while they come
}

// kept is one partial file.
type kept struct {
	bytes int64  // on disk, or promised to the packet being received
	open  bool   // being received now
	used  uint64 // tick of the last use: the least is dropped first
}

// maxPartials bounds the number of partial files.
const maxPartials = 1024

// maxOpening bounds the packets of all links that a Station reads while they come: each holds its buffers for as long
// as its line takes.
const maxOpening = 4

// errBusy says that a packet is being received over another connection.
var errBusy = errors.New("packet is being received over another connection")

// OpenPartials uses dir, which it makes if it is missing, for at most maxBytes of partial packets.
func OpenPartials(dir string, maxBytes int64) (*Partials, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open partial packets: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open partial packets: %w", err)
	}
	p := &Partials{root: root, max: maxBytes, kept: make(map[ID]*kept)}
	f, err := openDir(root, ".")
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open partial packets: %w", err)
	}
	defer f.Close()
	for {
		batch, err := f.ReadDir(512)
		for _, e := range batch {
			if strings.HasSuffix(e.Name(), holeSuffix) {
				root.Remove(e.Name()) // again at the next start
				continue
			}
			id, parse := ParseID(e.Name())
			fi, info := e.Info()
			if parse == nil && info == nil && fi.Mode().IsRegular() {
				p.kept[id] = &kept{bytes: fi.Size()}
			}
		}
		if err == io.EOF {
			return p, nil
		}
		if err != nil {
			root.Close()
			return nil, fmt.Errorf("read partial packets in %s: %w", filepath.Clean(dir), err)
		}
	}
}

// Close lets go of the folder, when no link uses it any more.
func (p *Partials) Close() error { return p.root.Close() }

// begin makes room for a packet and opens its file. errBusy, or ErrFull when it does not fit.
func (p *Partials) begin(id ID, size int64) (*partial, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kept[id]
	if k != nil && k.open {
		return nil, errBusy
	}
	if err := p.makeRoom(id, size); err != nil {
		return nil, err
	}
	f, err := p.root.OpenFile(id.String(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open partial packet: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open partial packet: %w", err)
	}
	w := &partial{owner: p, id: id, size: size, f: f, off: fi.Size()}
	if w.off > size {
		if err := w.restart(); err != nil {
			f.Close()
			return nil, err
		}
	}
	if w.off == 0 {
		w.sum = envelope.NewSum()
	}
	p.tick++
	p.kept[id] = &kept{bytes: size, open: true, used: p.tick}
	return w, nil
}

// makeRoom drops the partial packets used longest ago until size fits. The caller holds mu.
func (p *Partials) makeRoom(id ID, size int64) error {
	for {
		var sum int64
		var oldest ID
		var least *kept
		for other, k := range p.kept {
			if other == id {
				continue
			}
			sum += k.bytes
			if !k.open && (least == nil || k.used < least.used) {
				oldest, least = other, k
			}
		}
		if size <= p.max-sum && len(p.kept) < maxPartials {
			return nil
		}
		if least == nil || size > p.max {
			return fmt.Errorf("partial packets may take %d bytes, %d are in use: %w", p.max, sum, ErrFull)
		}
		if err := p.root.Remove(oldest.String()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("drop partial packet: %w", err)
		}
		delete(p.kept, oldest)
	}
}

// mayOpen asks for one of the places that maxOpening bounds; opened gives it back.
func (p *Partials) mayOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opening >= maxOpening {
		return false
	}
	p.opening++
	return true
}

func (p *Partials) opened() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opening--
}

// partial is the file of one packet being received. One goroutine at a time uses it, but for its end, which another may
// bring about.
type partial struct {
	owner *Partials
	id    ID
	size  int64
	f     *os.File
	off   int64     // bytes there
	sum   hash.Hash // over all of them, if they came in this contact and nobody reads them meanwhile; else nil

	mu       sync.Mutex // held by Write, and to close
	closed   bool
	hole     bool // bytes are missing from solid on (spared.go)
	hidden   bool // and some behind them are there: the file has its other name
	solid    int64
	synced   time.Time     // when the last sync began, or the first byte came
	syncing  chan error    // of the sync that runs; nil: none does
	lastSync time.Duration // how long the last one took
}

// syncEvery is how much time's worth of a partial packet may be lost when the power fails, and syncShare bounds the part of
// the time that the disk is kept busy for that: one of so many. On a fast line most packets are whole before the
// first sync, and their partial files never reach the disk.
const (
	syncEvery = 10 * time.Second
	syncShare = 10
)

// Write appends b. What comes after keep or drop is forgotten.
func (w *partial) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(b), nil
	}
	if w.hole && !w.hidden {
		if err := w.hide(); err != nil {
			return 0, fmt.Errorf("write partial packet: %w", err)
		}
	}
	n, err := w.f.WriteAt(b, w.off)
	w.off += int64(n)
	if err != nil {
		return n, fmt.Errorf("write partial packet: %w", mediumError(err))
	}
	if w.sum != nil {
		w.sum.Write(b)
	}
	now := time.Now()
	if w.synced.IsZero() {
		w.synced = now
	}
	if err := w.begun(now); err != nil {
		return n, fmt.Errorf("write partial packet: %w", mediumError(err))
	}
	return n, nil
}

// pass counts n bytes that came and were not written (spared.go).
func (w *partial) pass(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.hole {
		w.hole, w.solid = true, w.off
	}
	w.off += int64(n)
}

// mend says that the file has all bytes up to off, and if whole that none is missing behind it.
func (w *partial) mend(off int64, whole bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.solid = off; !whole || w.closed {
		return nil
	}
	return w.show()
}

// holeSuffix ends the name of a file that has bytes behind missing ones.
const holeSuffix = ".hole"

// hide gives the file its other name. mu is held.
func (w *partial) hide() error {
	err := w.owner.root.Rename(w.id.String(), w.id.String()+holeSuffix)
	w.hidden = err == nil
	return err
}

// show ends the hole and gives the file its name back. mu is held, or nobody else has the partial.
func (w *partial) show() error {
	w.hole = false
	if !w.hidden {
		return nil
	}
	err := w.owner.root.Rename(w.id.String()+holeSuffix, w.id.String())
	w.hidden = err != nil
	return err
}

// begun has what is there brought to the disk when it is time to, while the line goes on. It returns what was wrong with the last time.
func (w *partial) begun(now time.Time) error {
	if w.syncing != nil {
		select {
		case err := <-w.syncing:
			w.syncing, w.lastSync = nil, now.Sub(w.synced)
			if err != nil {
				return err
			}
		default:
			return nil
		}
	}
	if now.Sub(w.synced) < max(syncEvery, syncShare*w.lastSync) || w.off == w.size {
		return nil
	}
	done := make(chan error, 1)
	w.synced, w.syncing = now, done
	go func() { done <- w.f.Sync() }()
	return nil
}

// settle waits for the sync that runs.
func (w *partial) settle() error {
	if w.syncing == nil {
		return nil
	}
	err := <-w.syncing
	w.syncing = nil
	return err
}

// restart forgets all bytes.
func (w *partial) restart() error {
	if err := firstErr(w.f.Truncate(0), w.show()); err != nil {
		return fmt.Errorf("restart partial packet: %w", err)
	}
	w.off, w.synced, w.sum = 0, time.Time{}, envelope.NewSum()
	return nil
}

// whole reports whether the file, complete now, is the packet.
func (w *partial) whole(ctx context.Context) (bool, error) {
	if w.sum != nil {
		return ID(w.sum.Sum(nil)) == w.id, nil
	}
	return hashesTo(ctx, w.f, w.size, w.id)
}

// hashesTo reports whether the first size bytes of f are the packet id.
func hashesTo(ctx context.Context, f io.ReaderAt, size int64, id ID) (bool, error) {
	sum := envelope.NewSum()
	if _, err := copyContext(ctx, sum, io.NewSectionReader(f, 0, size)); err != nil {
		return false, fmt.Errorf("read partial packet: %w", err)
	}
	return ID(sum.Sum(nil)) == id, nil
}

func (w *partial) reader() io.Reader { return &wholeFile{*io.NewSectionReader(w.f, 0, w.size), w.id} }

// wholeFile reads a packet that has been hashed.
type wholeFile struct {
	io.SectionReader
	id ID
}

// ID is the packet's name (Named).
func (r *wholeFile) ID() ID { return r.id }

// keep closes the file for a later contact. A second call, or one after unlink, does nothing.
func (w *partial) keep() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	if w.hole {
		w.off = w.solid
		if err := firstErr(w.f.Truncate(w.off), w.show()); err != nil {
			return firstErr(err, w.unlink(), w.close())
		}
	}
	if w.off == 0 {
		return firstErr(w.unlink(), w.close())
	}
	w.closed = true
	err := firstErr(w.settle(), w.f.Sync(), w.f.Close())
	w.owner.mu.Lock()
	defer w.owner.mu.Unlock()
	if k := w.owner.kept[w.id]; k != nil {
		k.open, k.bytes = false, w.off
	}
	return err
}

// drop takes the file out of the folder, then calls said, and only then gives its pages and blocks back, which takes a while for
// a large one. said may be nil.
func (w *partial) drop(said func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	err := w.unlink()
	if said != nil {
		said()
	}
	return firstErr(err, w.close())
}

func (w *partial) unlink() error {
	w.owner.mu.Lock()
	defer w.owner.mu.Unlock()
	delete(w.owner.kept, w.id)
	name := w.id.String()
	if w.hidden {
		name += holeSuffix
	}
	if err := w.owner.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// close closes the file, which is gone: a sync that still runs has the file for itself until it ends.
func (w *partial) close() error {
	w.closed = true
	return w.f.Close()
}

// growing reads the packet while it is still coming, and hashes it instead of Write.
func (w *partial) growing() *growing {
	w.sum = nil
	return newGrowing(w)
}
