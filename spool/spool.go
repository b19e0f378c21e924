// Package spool is the durable queue: envelopes with their content and custody states, sessions, and the memory that
// makes a second copy harmless.
//
// It promises: when Apply returns nil, everything that its function did is on the disk, all or nothing; after a crash
// at any instant each item is there once, in the last state that was committed, with its whole content. Content that
// does not fit into the index lies in files that are durable before the index mentions them; leftovers are removed by
// Open. One broken record or file never keeps the others from going on: it is set aside with a reason.
//
// It knows custody states, times and queues, but not what an envelope means: deciding is the bridge's work. It never
// starts a delivery, never reads a clock to judge an expiry, and never drops an item by itself.
//
// The layout is in docs/spool.md. One process owns a spool; inside it every method may be called by several
// goroutines at once. Functions given to Apply, Peek and View must not call methods of the Spool.
package spool

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

var (
	// ErrNotFound is returned for an id that the spool does not hold.
	ErrNotFound = errors.New("not in the spool")
	// ErrExists is returned by Tx.Add for an id that is in the spool or its trace already.
	ErrExists = errors.New("already in the spool")
	// ErrFull is wrapped when the disk reserve would be touched.
	ErrFull = errors.New("disk reserve reached")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("spool is closed")
	// ErrBroken is wrapped when a failed write left it unknown what the disk holds: only a restart helps.
	ErrBroken = errors.New("spool index failed")
	// ErrPoisoned is wrapped for a record that cannot be decoded; it is being moved to the quarantine.
	ErrPoisoned = errors.New("record cannot be read")
	// ErrNoBody is returned by OpenBody for an item without content, or whose content is lost.
	ErrNoBody = errors.New("no content")
	// ErrNewer is wrapped by Open when the index was written by a newer version.
	ErrNewer = errors.New("spool format is newer than this program")
)

// Options tune a spool. The zero value of every field but Reserve means its default.
type Options struct {
	FS        durable.FS // for bodies and quarantine; default the real one. The index always lies on the real one
	InlineMax int        // content up to so many bytes lives in the index; default 8 KiB, negative: none
	// Reserve is how many bytes of the disk mail may not fill; -1: 5 % of the disk, at least 500 MiB; 0: none.
	Reserve int64
	// OnDue is called when a commit made a leg of a destination due. It must not block and may call nothing of the
	// Spool that waits for Apply.
	OnDue         func(Dest)
	TraceKeep     int           // finished items remembered; default 100,000, negative: none
	TraceAge      time.Duration // and for how long; default 90 days
	QuarantineMax int64         // bytes of quarantined input; default 1 GiB
	Ballast       int64         // bytes kept allocated for recording outcomes on a full disk; default 8 MiB, negative: none
	Log           int64         // bytes of log between two checkpoints; default 16 MiB, at most a hundredth of the disk
	Spare         int64         // bytes in files of ended mail that are kept to be written again; default 64 MiB, negative: none
	// Free tells how much room the disk has; default asks the system.
	Free func() (free, total int64, err error)
}

// withDefaults fills what is unset.
func (o Options) withDefaults(dir string) Options {
	if o.FS == nil {
		o.FS = durable.OS{}
	}
	if o.InlineMax == 0 {
		o.InlineMax = 8 << 10
	}
	if o.TraceKeep == 0 {
		o.TraceKeep = 100_000
	}
	o.TraceKeep = max(o.TraceKeep, 0)
	if o.TraceAge == 0 {
		o.TraceAge = 90 * 24 * time.Hour
	}
	if o.QuarantineMax == 0 {
		o.QuarantineMax = 1 << 30
	}
	if o.Ballast == 0 {
		o.Ballast = 8 << 20
	}
	if o.Log == 0 {
		o.Log = 16 << 20
		if _, total, err := durable.Free(dir); err == nil {
			o.Log = min(o.Log, total/100)
		}
	}
	if o.Spare == 0 {
		o.Spare = 64 << 20
	}
	if o.OnDue == nil {
		o.OnDue = func(Dest) {}
	}
	if o.Free == nil {
		o.Free = func() (int64, int64, error) { return durable.Free(dir) }
	}
	return o
}

// Spool is an open spool.
type Spool struct {
	dir    string
	o      Options
	lock   *durable.Locked
	db     *bolt.DB
	syncer *durable.DirSyncer
	copied atomic.Bool
	found  Recovery

	dests  destTable
	tally  tallies
	leases leaseTable
	wakes  wakeTable
	bodies bodyTable
	spares spareFiles
	cp     checkpoints
	held   held
	redo   []byte // the writer's buffer for records of the log

	requests chan *request
	soon     chan *request
	turn     sync.Mutex    // of who commits, the writer or a caller of ApplyHere; what is called the writer's is his
	asked    atomic.Bool   // the writer waits for its turn
	waiting  []*request    // callers of ApplySoon; the writer's
	timer    *time.Timer   // of theirs
	quit     chan struct{} // closed by Close
	stopped  chan struct{} // closed when the writer has ended
	broken   atomic.Pointer[error]
	ballast  ballast // the writer's
	chores   choreQueue
	healing  healing
	done     atomic.Int64 // records in the trace
	quarMu   sync.Mutex   // held while something enters the quarantine, so that its bound holds
	quarHas  *quarantined // what the quarantine holds; nil: not counted yet
	closing  sync.Once
	closeErr error
}

// Folders of a spool.
const (
	indexFile     = "index.db"
	bodyDir       = "body"
	tmpDir        = "tmp"
	quarantineDir = "quarantine"
	partialDir    = "partial"
)

// path is a name inside the spool.
func (s *Spool) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// TempDir is a folder for the scratch files of the spool's owner. Open empties it.
func (s *Spool) TempDir() string { return s.path(tmpDir) }

// PartialDir is a folder for packets that have come in part. The spool never touches what lies there.
func (s *Spool) PartialDir() string { return s.path(partialDir) }

// Close waits for the commit that runs, refuses what comes later, and gives the spool to the next process.
func (s *Spool) Close() error {
	s.closing.Do(func() {
		close(s.quit)
		<-s.stopped
		s.chores.close()
		s.dropSpares()
		s.closeErr = s.closeIndex()
		if err := s.lock.Unlock(); s.closeErr == nil {
			s.closeErr = err
		}
	})
	return s.closeErr
}

// closeIndex settles and closes index and log. After a failure the log stays as it is: the next start reads it.
func (s *Spool) closeIndex() error {
	var err error
	if s.broken.Load() == nil {
		err = s.settle()
	}
	s.unpin()
	if cerr := s.db.Close(); err == nil {
		err = cerr
	}
	if cerr := s.cp.wal.close(); err == nil {
		err = cerr
	}
	return err
}

// destTable numbers destinations: the index holds numbers.
type destTable struct {
	mu sync.RWMutex
	no map[Dest]uint32
	by map[uint32]Dest
}

func (t *destTable) number(d Dest) (uint32, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	no, ok := t.no[d]
	return no, ok
}

func (t *destTable) dest(no uint32) (Dest, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	d, ok := t.by[no]
	return d, ok
}

func (t *destTable) set(no uint32, d Dest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.no == nil {
		t.no, t.by = make(map[Dest]uint32), make(map[uint32]Dest)
	}
	t.no[d], t.by[no] = no, d
}

func (t *destTable) forget(no uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.no, t.by[no])
	delete(t.by, no)
}

// count is the highest number so far: numbers are given in order from 1.
func (t *destTable) count() uint32 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return uint32(len(t.by))
}

// change is what a transaction did to one leg; states 0 mean that the leg did not exist before, or does not any more.
type change struct {
	id       envelope.ID
	leg      int
	dest     uint32
	from, to State
	size     int64
	retimed  bool // the time of its wake-up changed
}

// itemError names the item that an operation failed on.
func itemError(what string, id envelope.ID, err error) error {
	return fmt.Errorf("%s %s: %w", what, id, err)
}
