package export

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"mochila/internal/durable"
	"mochila/internal/envelope"
	"mochila/transport"
)

// ImporterOptions configures an Importer.
type ImporterOptions struct {
	Self envelope.Label
	// Peer reports whether blocks of a node are wanted. Required.
	Peer func(envelope.Label) bool
	// Room returns an error when the disk has none for more blocks. nil: nobody asks.
	Room     func() error
	MaxBytes int64 // kept of sets that are not complete; 0: 64 GiB
	Log      *slog.Logger
}

const (
	maxSets = 64
	setLife = 30 * 24 * time.Hour
)

// Importer puts the packets of export streams together, in a folder that outlives it: the rest of a set may come by another
// medium, weeks later. The folder may be emptied at any time; that costs another look at the media. Its methods may be called from
// several goroutines; one run at a time is under way.
type Importer struct {
	o    ImporterOptions
	dir  string
	root *os.Root

	mu   sync.Mutex
	sets map[string]*set
}

// OpenImporter uses dir, which it makes if it is missing.
func OpenImporter(dir string, o ImporterOptions) (*Importer, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 30
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open import folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open import folder: %w", err)
	}
	m := &Importer{o: o, dir: dir, root: root, sets: map[string]*set{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open import folder: %w", err)
	}
	now := time.Now()
	for _, e := range entries {
		x, err := m.load(e.Name())
		if err == nil && now.Sub(time.Unix(x.Used, 0)) < setLife && x.Used <= now.Add(setLife).Unix() {
			m.sets[e.Name()] = x
			if err := x.sweep(); err != nil {
				o.Log.Warn("import: old blocks not deleted", "set", e.Name(), "err", err)
			}
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			o.Log.Warn("import: a set that cannot be read is dropped", "set", e.Name(), "err", err)
		}
		if err := root.RemoveAll(e.Name()); err != nil {
			o.Log.Warn("import: old blocks not deleted", "set", e.Name(), "err", err)
		}
	}
	return m, nil
}

// Close lets go of the folder.
func (m *Importer) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(m.store(), m.root.Close())
}

// key is the name of a set's folder: a set is known by who made it, too, so that none can spoil another's.
func key(h *Header) string {
	return hex.EncodeToString(h.Set[:]) + "-" + h.From.String()
}

// load reads what is kept of a set.
func (m *Importer) load(name string) (*set, error) {
	b, err := m.root.ReadFile(name + "/state")
	if err != nil {
		return nil, err
	}
	x := &set{}
	if err := json.Unmarshal(b, &x.state); err != nil {
		return nil, err
	}
	h := x.Header
	h.Shard, h.Stripe, h.First, h.Last, h.Content = 0, 0, noPacket, false, h.whole()
	if err := h.check(); err != nil {
		return nil, err
	}
	if key(&h) != name {
		return nil, fmt.Errorf("it is set %s", key(&h))
	}
	valid := x.Whole.valid() && x.Done.valid() && x.Total >= 0 && x.Total <= maxContent
	for i, s := range x.Shards {
		valid = valid && i >= 0 && i < h.Data+h.Parity && s.valid() && len(s) > 0
	}
	for at, w := range x.Waiting {
		valid = valid && at >= 0 && w.To > at && w.Body <= w.To && (w.Body == 0 || w.Body > at)
	}
	if !valid {
		return nil, errors.New("its state makes no sense")
	}
	x.Header = h
	m.adopt(name, x)
	return x, nil
}

// adopt gives a set its place on disk.
func (m *Importer) adopt(name string, x *set) {
	x.seg = newSegments(m.root, name, x.Header)
	x.store = func() error { return m.storeOne(name, x) }
}

// store writes what is to be kept of each set: its blocks first.
func (m *Importer) store() (err error) {
	for name, x := range m.sets {
		e := x.seg.close(x.fresh && !x.Finished)
		x.enc, x.buf = nil, nil
		if x.fresh && e == nil {
			e = m.storeOne(name, x)
		}
		err = errors.Join(err, e)
	}
	return err
}

func (m *Importer) storeOne(name string, x *set) error {
	x.Used = time.Now().Unix()
	if x.Finished {
		x.Shards, x.Whole, x.Waiting = nil, nil, nil
	}
	b, err := json.Marshal(&x.state)
	if err != nil {
		return err
	}
	dir := filepath.Join(m.dir, name)
	err = durable.WriteFile(durable.OS{}, filepath.Join(dir, "state"), 0o600, func(w io.Writer) error { _, err := w.Write(b); return err })
	if err != nil {
		return fmt.Errorf("store import: %w", err)
	}
	x.fresh = false
	return nil
}

// Run is one import: blocks from one or more media.
type Run struct {
	m      *Importer
	t      Taker
	sets   map[string]*set // that were met
	Others int64           // blocks for other nodes
	Stray  int64           // blocks of nodes that are no peers
	Passed int64           // blocks of sets beyond those that can be kept
	seen   int
	full   bool
}

// lookAtRoom is after how many blocks the bound on what is kept is looked at again.
const lookAtRoom = 256

// Begin starts a run, and tries again what an earlier one could not hand over. The importer is taken until End.
func (m *Importer) Begin(ctx context.Context, t Taker) (*Run, error) {
	m.mu.Lock()
	r := &Run{m: m, t: t, sets: map[string]*set{}}
	for name, x := range m.sets {
		x.counts, x.repeats, x.passed = Counts{}, 0, 0
		if x.Finished || len(x.Waiting) == 0 {
			continue
		}
		before := x.counts
		err := x.retry(ctx, t)
		if errors.Is(err, errLost) {
			if err = m.lose(name, err); err == nil {
				continue
			}
		}
		if err != nil {
			m.mu.Unlock()
			return nil, err
		}
		if x.counts != before {
			r.sets[name] = x
		}
	}
	return r, nil
}

// Add takes one block in. An error is trouble of this node's own: the block is to be offered again. A set whose blocks are lost
// begins anew.
func (r *Run) Add(ctx context.Context, b *Block) error {
	err := r.add(ctx, b)
	if !errors.Is(err, errLost) {
		return err
	}
	name := key(&b.Header)
	old := r.sets[name]
	delete(r.sets, name)
	if err := r.m.lose(name, err); err != nil {
		return err
	}
	err = r.add(ctx, b)
	if x := r.sets[name]; x != nil {
		x.counts, x.repeats, x.passed = x.counts.plus(old.counts), x.repeats+old.repeats, x.passed+old.passed
	}
	return err
}

func (r *Run) add(ctx context.Context, b *Block) error {
	switch {
	case b.To != r.m.o.Self:
		r.Others++
		return nil
	case !r.m.o.Peer(b.From):
		r.Stray++
		return nil
	}
	name := key(&b.Header)
	x := r.sets[name]
	if x == nil {
		var err error
		if x, err = r.set(name, b); err != nil {
			return err
		}
		if x == nil {
			r.Passed++
			return nil
		}
		r.sets[name] = x
	}
	h := &x.Header
	if h.Data != b.Data || h.Parity != b.Parity || h.Block != b.Block {
		x.passed++
		return nil
	}
	if r.m.o.Room != nil {
		if err := r.m.o.Room(); err != nil {
			return err
		}
	}
	if r.seen++; r.seen%lookAtRoom == 0 {
		ok, err := r.makeRoom(0)
		if err != nil {
			return err
		}
		r.full = !ok
	}
	if r.full {
		x.passed++
		return nil
	}
	return x.add(ctx, b, r.t)
}

// set returns the set of a block, a new one if need be; nil when too many are there.
func (r *Run) set(name string, b *Block) (*set, error) {
	m := r.m
	if x := m.sets[name]; x != nil {
		return x, nil
	}
	if ok, err := r.makeRoom(1); !ok {
		return nil, err
	}
	if err := m.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("import: %w", err)
	}
	h := b.Header
	h.Shard, h.Stripe, h.First, h.Last, h.Content = 0, 0, noPacket, false, h.whole()
	x := &set{state: state{Header: h, Used: time.Now().Unix()}, fresh: true}
	m.adopt(name, x)
	m.sets[name] = x
	return x, nil
}

// makeRoom drops the oldest sets that this run does not touch until the bounds hold with so many more sets; false when they cannot.
func (r *Run) makeRoom(more int) (bool, error) {
	m := r.m
	for {
		var sum, least int64
		oldest := ""
		for name, x := range m.sets {
			sum += x.Stored
			if r.sets[name] == nil && (oldest == "" || x.Used < least) {
				oldest, least = name, x.Used
			}
		}
		if sum <= m.o.MaxBytes && len(m.sets)+more <= maxSets {
			return true, nil
		}
		if oldest == "" {
			return false, nil
		}
		m.o.Log.Warn("import: an old set is dropped to make room", "set", oldest)
		if err := m.drop(oldest); err != nil {
			return false, err
		}
	}
}

// lose drops a set whose blocks are lost. What was not taken of it comes when its media are read again.
func (m *Importer) lose(name string, why error) error {
	m.o.Log.Warn("import: a set whose blocks cannot be read is dropped; read its media again", "set", name, "err", why)
	return m.drop(name)
}

func (m *Importer) drop(name string) error {
	m.sets[name].seg.close(false)
	delete(m.sets, name)
	if err := m.root.RemoveAll(name); err != nil {
		return fmt.Errorf("drop an old import: %w", err)
	}
	return nil
}

// SetReport is what a run knows of one set.
type SetReport struct {
	Set          string
	From         envelope.Label
	Counts             // of this run
	Repeats      int64 // blocks that had come before
	Passed       int64 // blocks that were passed over: too many gaps
	Data, Parity int   // parts that are needed, and more of them
	Parts        []int // of which something is kept; not told when all is complete
	Waiting      int   // packets that are not all there
	Missing      int64 // stripes that are not there
	End          bool  // its end was seen
	Complete     bool
}

// End stores what is kept, and reports every set that was met.
func (r *Run) End() ([]SetReport, error) {
	m := r.m
	defer m.mu.Unlock()
	var all []SetReport
	for _, x := range r.sets {
		h := &x.Header
		s := SetReport{Set: hex.EncodeToString(h.Set[:]), From: h.From, Counts: x.counts, Repeats: x.repeats, Passed: x.passed,
			Data: h.Data, Parity: h.Parity, Parts: x.parts(), Waiting: len(x.Waiting), Missing: x.missing(), End: x.Total > 0, Complete: x.Finished}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b SetReport) int { return slices.Compare([]byte(a.Set), []byte(b.Set)) })
	return all, m.store()
}

var _ Taker = transport.Station(nil)
