package transport

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"slices"
	"sync"
	"time"

	"mochila/internal/envelope"
)

// topDir is the one directory that mochila uses on a shared medium.
const topDir = "mochila"

// defaultMaxSize bounds incoming packets where the caller sets no limit.
const defaultMaxSize = 64 << 30

// FolderOptions configures a FolderLink.
type FolderOptions struct {
	MaxSize  int64        // larger incoming files are passed over; 0: 64 GiB
	MaxFile  int64        // larger packets are written in parts; 0: 4 GiB - 1, what FAT32 holds
	Log      *slog.Logger // what was passed over, and why; nil: silent
	Progress func(Stats)  // called after each packet; nil: nobody looks
}

// FolderLink makes a Link of a Folder. Packets for the neighbour lie in mochila/SELF/PEER, those from it in
// mochila/PEER/SELF; each directory has one writer, and only the writer deletes.
//
// A FolderLink lives as long as its contact is configured: it remembers what it has read, so that a rescan opens
// only new files. Runs of one FolderLink do not overlap; a second call waits.
type FolderLink struct {
	f        Folder
	in, out  string
	o        FolderOptions
	running  sync.Mutex
	mu       sync.Mutex
	seen     map[ID]glance
	setAside map[string]*aside // by file name
}

// glance is what a packet looked like that the Station has (a name is a hash: the bytes do not change).
type glance struct {
	size int64
	head [HeadSize]byte
}

// aside is a file that could not be taken and is not read again at every rescan.
type aside struct {
	Stuck
	next time.Time     // when it is looked at again, unless its size changes
	wait time.Duration // doubles
}

// Stuck is an incoming file that has not become a packet.
type Stuck struct {
	Name   string
	Size   int64
	Since  time.Time // when this size was first seen
	Reason error     // wraps ErrIncomplete, ErrRefused, or tells why it could not be read
}

const (
	firstLookAgain = 10 * time.Second
	lastLookAgain  = time.Hour
)

// NewFolderLink returns the Link between this node, self, and its neighbour, peer, over f.
func NewFolderLink(f Folder, self, peer envelope.Label, o FolderOptions) *FolderLink {
	if o.MaxSize <= 0 {
		o.MaxSize = defaultMaxSize
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &FolderLink{
		f: f, o: o,
		in:       path.Join(topDir, peer.String(), self.String()),
		out:      path.Join(topDir, self.String(), peer.String()),
		seen:     make(map[ID]glance),
		setAside: make(map[string]*aside),
	}
}

// Senders lists the nodes that have a directory for self on f: who may have left something.
func Senders(ctx context.Context, f Folder, self envelope.Label) ([]envelope.Label, error) {
	from, err := f.Dirs(ctx, topDir)
	if err != nil {
		return nil, fmt.Errorf("list senders: %w", err)
	}
	var senders []envelope.Label
	for _, name := range from {
		label, err := envelope.ParseLabel(name)
		if err != nil || label == self {
			continue
		}
		to, err := f.Dirs(ctx, path.Join(topDir, name))
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, ErrAbsent) {
				return nil, fmt.Errorf("list senders: %w", err)
			}
			continue // one unreadable directory does not hide the others
		}
		for _, t := range to {
			if t == self.String() {
				senders = append(senders, label)
				break
			}
		}
	}
	return senders, nil
}

// Stuck returns the incoming files that could not be taken, as of the last Run. The caller decides from which age
// on that is a trouble to report.
func (l *FolderLink) Stuck() []Stuck {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Stuck
	for _, a := range l.setAside {
		all = append(all, a.Stuck)
	}
	return all
}

// Watch returns a channel that hints at new files from the neighbour, if the Folder can tell; nil otherwise. It is
// a hint only (nothing comes from a network mount), beside a Run every 10 seconds or so. The channel is closed
// when ctx is done.
func (l *FolderLink) Watch(ctx context.Context) <-chan struct{} {
	if w, ok := l.f.(Watcher); ok {
		return w.Watch(ctx, l.in)
	}
	return nil
}

// Run reads what is new, deletes what is finished, writes what is due, and flushes. Trouble with reading does not
// keep it from writing and the other way round; the first error is returned. ErrAbsent: nothing was done.
func (l *FolderLink) Run(ctx context.Context, st Station) (Stats, error) {
	l.running.Lock()
	defer l.running.Unlock()
	v := &visit{FolderLink: l, st: st, stats: Stats{Began: time.Now()}}
	folder := l.f
	if s, ok := l.f.(Session); ok {
		f, end, err := s.Open(ctx)
		if err != nil {
			return v.stats, fmt.Errorf("open carrier: %w", err)
		}
		defer end()
		folder = f
	}
	v.f = newParts(folder, l.o.MaxFile)
	lying, err := v.f.List(ctx, l.out) // tells also whether the medium is there
	if ctx.Err() != nil || errors.Is(err, ErrAbsent) {
		return v.stats, fmt.Errorf("open carrier: %w", firstErr(err, ctx.Err()))
	}
	v.fail(err)
	v.fail(v.read(ctx))
	if ctx.Err() == nil {
		v.fail(v.clean(ctx, lying))
		if p, ok := st.(Presence); ok && err == nil {
			p.Present(slices.DeleteFunc(lying, func(e Entry) bool { return !v.mine[e.Name] }))
		}
	}
	if ctx.Err() == nil {
		v.fail(v.write(ctx))
	}
	return v.stats, firstErr(ctx.Err(), v.err)
}

// visit is one Run.
type visit struct {
	*FolderLink
	f     *parts // for this contact
	st    Station
	stats Stats
	err   error // the first
	mine  map[string]bool
}

func (v *visit) fail(err error) { v.err = firstErr(v.err, err) }

func (v *visit) progress() {
	if v.o.Progress != nil {
		v.o.Progress(v.stats)
	}
}

// read takes every new packet. A file that cannot be taken is passed over; trouble of this node's own is met
// maxFailed times before reading stops, since a receipt that fits may lie behind a bundle that does not.
func (v *visit) read(ctx context.Context) error {
	files, err := v.f.List(ctx, v.in)
	if err != nil {
		return fmt.Errorf("list incoming packets: %w", err)
	}
	v.forget(files)
	slices.SortStableFunc(files, func(a, b Entry) int { return cmp.Compare(a.Size, b.Size) }) // small before big
	var own error
	failures := 0
	for _, e := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, err := ParseID(e.Name)
		if err != nil {
			continue // a conflict copy, or somebody's own file
		}
		if v.waiting(e) {
			v.stats.Incomplete++
			continue
		}
		err = v.take(ctx, id, e)
		v.progress()
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil, errors.Is(err, ErrAbsent):
			return err
		case errors.Is(err, ErrIncomplete):
			v.stats.Incomplete++
		case errors.Is(err, ErrRefused):
			v.stats.Refused++
		case errors.As(err, new(*readError)):
			v.stats.Incomplete++
		default:
			own = firstErr(own, err)
			if failures++; failures >= maxFailed {
				return own
			}
			continue
		}
		v.putAside(e, err)
	}
	return own
}

// readError is trouble with one file of the medium, not with this node.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// take brings one file to the Station.
func (v *visit) take(ctx context.Context, id ID, e Entry) error {
	if g, ok := v.glance(id); ok && g.size == e.Size && v.st.Known(g.head[:], g.size) {
		return nil
	}
	switch {
	case e.Size > v.o.MaxSize:
		return fmt.Errorf("packet %s: %d bytes, more than %d: %w", id, e.Size, v.o.MaxSize, ErrRefused)
	case e.Size < HeadSize:
		return fmt.Errorf("packet %s: only %d bytes: %w", id, e.Size, ErrIncomplete)
	}
	f, err := v.f.Get(ctx, v.in, e.Name)
	if err != nil {
		if errors.Is(err, ErrAbsent) {
			return err
		}
		return &readError{fmt.Errorf("open packet %s: %w", id, err)}
	}
	defer f.Close()
	g := glance{size: e.Size}
	if _, err := io.ReadFull(f, g.head[:]); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = ErrIncomplete
		}
		return &readError{fmt.Errorf("read packet %s: %w", id, err)}
	}
	v.stats.BytesIn += HeadSize
	if v.st.Known(g.head[:], e.Size) {
		v.remember(id, g)
		return nil
	}
	src := &mediumReader{r: f}
	r := newVerifier(ctx, io.MultiReader(bytes.NewReader(g.head[:]), src), id, e.Size, ErrIncomplete)
	err = v.st.Receive(ctx, e.Size, r)
	v.stats.BytesIn += src.n
	switch {
	case err == nil && r.left > 0:
		// The Station is satisfied without having read all (it knew the packet): fine, but nothing is remembered.
		return nil
	case err == nil:
		v.stats.PacketsIn++
		v.remember(id, g)
		return nil
	case src.err != nil:
		return &readError{fmt.Errorf("read packet %s: %w", id, src.err)}
	case r.err != nil && errors.Is(r.err, ErrIncomplete):
		return r.err // whatever the Station made of it
	}
	return fmt.Errorf("receive packet %s: %w", id, err)
}

// mediumReader keeps the read errors of the medium apart from the Station's own troubles.
type mediumReader struct {
	r   io.Reader
	n   int64
	err error
}

func (m *mediumReader) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.n += int64(n)
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

// clean deletes own packets that are finished, before writing, so that their room can be used again.
func (v *visit) clean(ctx context.Context, lying []Entry) error {
	var first error
	v.mine = make(map[string]bool)
	_, many := v.f.Folder.(Sweeper)
	var done []string
	for _, e := range lying {
		id, err := ParseID(e.Name)
		if err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !v.st.Finished(id) {
			v.mine[e.Name] = true
			continue
		}
		if many {
			done = append(done, e.Name)
			continue
		}
		if err := v.f.Remove(ctx, v.out, e.Name); err != nil {
			if errors.Is(err, ErrAbsent) {
				return err
			}
			first = firstErr(first, fmt.Errorf("delete finished packet %s: %w", id, err))
			v.mine[e.Name] = true
			continue
		}
		v.stats.Removed++
	}
	if len(done) > 0 {
		if err := v.f.RemoveAll(ctx, v.out, done); err != nil {
			for _, name := range done {
				v.mine[name] = true
			}
			done, first = nil, fmt.Errorf("delete finished packets: %w", err)
		}
		v.stats.Removed += len(done)
	}
	v.stats.Waiting = len(v.mine)
	return first
}

// flushEvery is how many packets are written between two flushes.
const flushEvery = 1024

// write puts all that is due. Packets count as sent when they are flushed.
func (v *visit) write(ctx context.Context) error {
	out := outbox{st: v.st}
	var first error
	var unflushed []*Packet
	flush := func() error {
		if len(unflushed) == 0 && v.stats.Removed == 0 {
			return nil
		}
		if err := v.f.Flush(ctx); err != nil {
			return fmt.Errorf("flush carrier: %w", err)
		}
		for _, p := range unflushed {
			v.st.Sent(p)
		}
		unflushed = unflushed[:0]
		return nil
	}
	for {
		p, err := out.next(ctx)
		if err != nil || p == nil {
			return firstErr(first, err, flush())
		}
		if err := v.put(ctx, p); err != nil {
			err = fmt.Errorf("write packet %s: %w", p.ID, err)
			first = firstErr(first, err)
			if !passOver(err) || out.failed(p) != nil {
				return firstErr(first, flush())
			}
			v.o.Log.Warn("packet not written", "packet", p.ID, "err", err)
			continue
		}
		v.stats.PacketsOut++
		v.stats.BytesOut += p.Size
		if name := p.ID.String(); !v.mine[name] {
			v.mine[name] = true
			v.stats.Waiting++
		}
		v.progress()
		if unflushed = append(unflushed, p); len(unflushed) >= flushEvery {
			if err := flush(); err != nil {
				return firstErr(first, err)
			}
		}
	}
}

func (v *visit) put(ctx context.Context, p *Packet) error {
	r, err := openWhole(ctx, p)
	if err != nil {
		if !errors.Is(err, errDamaged) {
			err = fmt.Errorf("%w: %w", errDamaged, err)
		}
		return err
	}
	defer r.Close()
	return v.f.Put(ctx, v.out, p.ID.String(), p.Size, r)
}

func (l *FolderLink) glance(id ID) (glance, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.seen[id]
	return g, ok
}

func (l *FolderLink) remember(id ID, g glance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[id] = g
	delete(l.setAside, id.String())
}

// waiting reports whether e was set aside, has not changed and is not to be looked at yet.
func (v *visit) waiting(e Entry) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := v.setAside[e.Name]
	return a != nil && a.Size == e.Size && v.stats.Began.Before(a.next)
}

func (v *visit) putAside(e Entry, reason error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := v.setAside[e.Name]
	if a == nil || a.Size != e.Size {
		a = &aside{Stuck: Stuck{Name: e.Name, Size: e.Size, Since: v.stats.Began}, wait: firstLookAgain}
		v.setAside[e.Name] = a
		v.o.Log.Info("packet set aside", "file", e.Name, "size", e.Size, "err", reason)
	} else if a.wait *= 2; a.wait > lastLookAgain {
		a.wait = lastLookAgain
	}
	a.Reason = reason
	a.next = v.stats.Began.Add(a.wait)
}

// forget drops what is remembered of files that are no longer there, which bounds the memory by the listing.
func (l *FolderLink) forget(files []Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.seen)+len(l.setAside) == 0 {
		return
	}
	there := make(map[string]bool, len(files))
	for _, e := range files {
		there[e.Name] = true
	}
	for id := range l.seen {
		if !there[id.String()] {
			delete(l.seen, id)
		}
	}
	for name := range l.setAside {
		if !there[name] {
			delete(l.setAside, name)
		}
	}
}
