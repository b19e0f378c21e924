package spool

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/durable"
)

// With the log, commits reach the index file without a sync, in any order the kernel likes. What makes that safe is the
// base: a commit whose pages are all on the disk, and stay there unchanged, because a read transaction (pin) holds
// them. A checkpoint syncs the index in the background and moves the base to a newer commit. After a crash the index
// goes back to its base, by writing that commit's meta page again, and the records behind it are made again.

// indexMark identifies one commit of the index file: its meta page, and the hash of the root page it names, which is
// how a log knows the index that it belongs to.
type indexMark struct {
	meta [metaSize]byte
	root [sha256.Size]byte
}

// Layout of bbolt's meta page, in the byte order of the machine: page header 16 (number u64, flags u16, count u16,
// overflow u32), magic u32, version u32, page size u32, flags u32, root page u64, sequence u64, free list u64, pages u64,
// transaction u64, checksum u64.
const (
	metaSize      = 80
	metaPageSize  = 24
	metaRoot      = 32
	metaTx        = 64
	pageOverflow  = 12
	pageHeadSize  = 16
	maxIndexPage  = 1 << 16
	maxRootPages  = 1 << 10
	boltMetaMagic = 0xED0CDAED
)

func (m *indexMark) append(b []byte) []byte { return append(append(b, m.meta[:]...), m.root[:]...) }

func (m *indexMark) parse(b []byte) error {
	if len(b) < metaSize+sha256.Size {
		return io.ErrUnexpectedEOF
	}
	copy(m.meta[:], b)
	copy(m.root[:], b[metaSize:])
	return nil
}

func (m *indexMark) pageSize() int64 { return int64(binary.NativeEndian.Uint32(m.meta[metaPageSize:])) }

func (m *indexMark) tx() uint64 { return binary.NativeEndian.Uint64(m.meta[metaTx:]) }

// readMark reads the mark of transaction tx, which must be the last or the one before, or is held by a reader and was
// the last when this was called.
func readMark(path string, tx uint64, pageSize int) (m indexMark, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	if _, err := f.ReadAt(m.meta[:], int64(tx%2)*int64(pageSize)); err != nil {
		return m, err
	}
	if binary.NativeEndian.Uint32(m.meta[pageHeadSize:]) != boltMetaMagic || m.tx() != tx || m.pageSize() != int64(pageSize) {
		return m, fmt.Errorf("the index has no meta page of transaction %d where it should be", tx)
	}
	m.root, err = m.hashRoot(f)
	return m, err
}

// hashRoot hashes the root page that the mark names.
func (m *indexMark) hashRoot(f *os.File) (sum [sha256.Size]byte, err error) {
	size := m.pageSize()
	if size < pageHeadSize || size > maxIndexPage {
		return sum, fmt.Errorf("pages of %d bytes", size)
	}
	off := int64(binary.NativeEndian.Uint64(m.meta[metaRoot:])) * size
	var head [pageHeadSize]byte
	if _, err := f.ReadAt(head[:], off); err != nil {
		return sum, err
	}
	n := int64(binary.NativeEndian.Uint32(head[pageOverflow:])) + 1
	if n > maxRootPages {
		return sum, fmt.Errorf("a root of %d pages", n)
	}
	h := sha256.New()
	if got, err := io.Copy(h, io.NewSectionReader(f, off, n*size)); err != nil || got != n*size {
		return sum, fmt.Errorf("the root page is cut short: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	h.Sum(sum[:0])
	return sum, nil
}

// restore leads the index file back to the mark. It may be repeated.
func (m *indexMark) restore(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if sum, err := m.hashRoot(f); err != nil || sum != m.root {
		return fmt.Errorf("%w (%v)", errStrangeIndex, err)
	}
	for slot := range int64(2) {
		page := make([]byte, m.pageSize())
		copy(page, m.meta[:])
		binary.NativeEndian.PutUint64(page, uint64(slot))
		if _, err := f.WriteAt(page, slot*m.pageSize()); err != nil {
			return err
		}
	}
	return f.Sync()
}

// errStrangeIndex is wrapped when index and log do not belong together.
var errStrangeIndex = errors.New("it is not the index that its log continues")

// checkpoints is how the index follows the log. It is the writer's, or that of who opens and closes the spool.
type checkpoints struct {
	wal     *wal
	logging bool       // commits are in the log, and the index is not synced
	pin     *bolt.Tx   // holds the pages of the base
	next    *bolt.Tx   // holds those of the base that is becoming durable
	done    chan error // how the checkpoint ended; nil when none runs
	plain   int        // so many commits go without the log
	limit   int64      // bytes of log after which a checkpoint begins
	commits int        // of the index, since the last one began
	mapped  int64      // bytes of the index that are surely mapped: growing the map waits for readers, and the pin is one
}

// recoverIndex brings the index to what the log says, before anybody opens it.
func (s *Spool) recoverIndex(path string) error {
	w, err := openWAL(s.path)
	if err != nil {
		return fmt.Errorf("opening the log of the index: %w", err)
	}
	s.cp.wal = w
	base, files := w.pending()
	if base == nil {
		return nil
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the index %q is gone, and its log %s holds changes that were to go into it: put it back, or move both logs away to begin anew without what was queued",
			path, w.files[w.cur].f.Name())
	}
	if err := base.index.restore(path); err != nil {
		return fmt.Errorf("index %q: %w; put back index and log (%s, %s) as they were together, or move the logs away to go on with what the index holds by itself",
			path, err, walNames[0], walNames[1])
	}
	if err := s.openDB(path); err != nil {
		return err
	}
	err = s.replay(base, files)
	if isFull(err) && os.Remove(s.path("ballast")) == nil {
		err = s.replay(base, files)
	}
	if err != nil {
		return fmt.Errorf("bringing the index up to its log: %w", err)
	}
	if err := s.db.Close(); err != nil {
		return err
	}
	s.db = nil
	if s.found.LogDamage != "" {
		s.keepLogs()
	}
	return s.closeLog()
}

// keepLogs puts copies of both logs into the quarantine, if there is room: the way on does not depend on them.
func (s *Spool) keepLogs() {
	for _, f := range s.cp.wal.files {
		st, err := f.f.Stat()
		if err == nil {
			s.Quarantine(s.found.LogDamage, f.f.Name(), io.NewSectionReader(f.f, 0, st.Size()))
		}
	}
}

// replay makes the records behind base again, all in one transaction: until it is durable the pages of the base are
// needed.
func (s *Spool) replay(base *walBase, files []*walFile) error {
	b, err := s.begin()
	if err != nil {
		return err
	}
	b.redo = nil // nobody logs it again
	n := 0
	err = s.cp.wal.read(base, files, func(r walRecord) error {
		n++
		return b.tx.redo(r.changes)
	})
	if errors.Is(err, errWALDamaged) {
		s.found.LogDamage = err.Error()
		err = b.tx.put(bkMeta, metaIdentity, []byte("log damaged")) // as after a restored backup: see Copied
	}
	if err == nil {
		s.held.tx = nil
		err = b.tx.tx.Commit()
	}
	if err != nil {
		s.rollback(b)
		return err
	}
	s.found.Redone = n
	return nil
}

// closeLog notes that the index is whole by itself.
func (s *Spool) closeLog() error {
	w := s.cp.wal
	if err := w.turn(); err != nil {
		return err
	}
	base := walBase{closed: true, seq: w.seq}
	if err := w.files[w.cur].setBase(base); err != nil {
		return err
	}
	w.files[w.cur].base = &base
	return nil
}

// isFull tells a full disk from other trouble.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// startLog makes the last commit, which is durable, the base of a log.
func (s *Spool) startLog() error {
	c := &s.cp
	if err := c.wal.reserve(min(c.limit, walReserve)); err != nil {
		return err
	}
	pin, base, err := s.mark()
	if err != nil {
		return err
	}
	err = c.wal.turn()
	if err == nil {
		err = c.wal.files[c.wal.cur].setBase(base)
	}
	if err == nil {
		err = durable.OS{}.SyncDir(s.dir) // the files may be new
	}
	if err != nil {
		pin.Rollback()
		return err
	}
	c.wal.files[c.wal.cur].base = &base
	c.pin, c.logging, s.db.NoSync = pin, true, true
	return nil
}

// mark pins the last commit and describes it as a base.
func (s *Spool) mark() (*bolt.Tx, walBase, error) {
	pin, err := s.db.Begin(false)
	if err != nil {
		return nil, walBase{}, err
	}
	m, err := readMark(s.path(indexFile), uint64(pin.ID()), s.db.Info().PageSize)
	if err != nil {
		pin.Rollback()
		return nil, walBase{}, fmt.Errorf("marking the index: %w", err)
	}
	return pin, walBase{seq: s.cp.wal.seq, index: m}, nil
}

// beginCheckpoint lets the log continue in its other file, and syncs the index in the background. None may run.
func (s *Spool) beginCheckpoint() error {
	c := &s.cp
	pin, base, err := s.mark()
	if err != nil {
		return err
	}
	if err := c.wal.turn(); err != nil {
		pin.Rollback()
		return err
	}
	f := c.wal.files[c.wal.cur]
	c.commits = 0
	c.next, c.done = pin, make(chan error, 1)
	go func() {
		err := s.db.Sync()
		if err == nil {
			err = f.setBase(base)
		}
		if err == nil {
			f.base = &base
		}
		c.done <- err
	}()
	return nil
}

// endCheckpoint takes the result of one that runs, and waits for it when wait is set. A failure is final: nobody knows
// which pages the disk has.
func (s *Spool) endCheckpoint(wait bool) error {
	c := &s.cp
	if c.done == nil {
		return nil
	}
	var err error
	if wait {
		err = <-c.done
	} else {
		select {
		case err = <-c.done:
		default:
			return nil
		}
	}
	c.done = nil
	if err != nil {
		c.next.Rollback()
		c.next = nil
		return s.breakDown(err)
	}
	c.pin.Rollback()
	c.pin, c.next = c.next, nil
	return nil
}

// checkpointCommits is after how many commits a checkpoint begins at the latest: bbolt looks at every one since the
// pin whenever a transaction begins.
const checkpointCommits = 400

// checkpointBacklog is how many times its usual length a log may reach while a checkpoint runs.
const checkpointBacklog = 4

// follow begins a checkpoint when the log is long enough; called behind a record of it.
func (s *Spool) follow() error {
	c := &s.cp
	if !c.logging {
		return nil
	}
	if err := s.endCheckpoint(c.wal.end > checkpointBacklog*c.limit); err != nil {
		return err
	}
	if c.done == nil && (c.wal.end >= c.limit || c.commits >= checkpointCommits) {
		if err := s.release(); err != nil {
			return err
		}
		s.beginCheckpoint() // when there is no room for it now, the log grows until there is
	}
	return nil
}

// plainCommits is how many commits go without the log after the disk was full.
const plainCommits = 4096

// saveRoom gives back the pages and the log that only the base needs, and has commits go without a log for a while:
// then the pages that one commit frees serve the next. It returns false when that is so already.
func (s *Spool) saveRoom() bool {
	c := &s.cp
	plain := c.plain > 0
	c.plain = plainCommits
	return !plain && c.logging && s.settle() == nil
}

// settle ends logging: the index is synced and stands by itself.
func (s *Spool) settle() error {
	c := &s.cp
	if !c.logging {
		return nil
	}
	if err := s.release(); err != nil {
		return err
	}
	if err := s.endCheckpoint(true); err != nil {
		return err
	}
	if err := s.db.Sync(); err != nil {
		return s.breakDown(err)
	}
	if err := s.closeLog(); err != nil {
		return s.breakDown(err)
	}
	c.pin.Rollback()
	c.pin, c.logging, s.db.NoSync = nil, false, false
	return nil
}

// unpin ends every transaction, so that the index can be closed also when it cannot be settled. No writer runs.
func (s *Spool) unpin() {
	c := &s.cp
	if c.done != nil {
		<-c.done
		c.done = nil
	}
	for _, tx := range []**bolt.Tx{&c.pin, &c.next, &s.held.tx} {
		if *tx != nil {
			(*tx).Rollback()
			*tx = nil
		}
	}
}

// mapSlack and mapPerChange bound from above how far one commit may lead the index file: rewritten pages of the trees.
const (
	mapSlack     = 8 << 20
	mapPerChange = 32 << 10
)

// mapStep is bbolt's: the map grows by doubling up to it, then by it.
const mapStep = 1 << 30

// mappedFor is the size of the map for an index of size bytes.
func mappedFor(size int64) int64 {
	size = max(size, mapSize)
	for n := int64(1 << 15); n <= mapStep; n <<= 1 {
		if size <= n {
			return n
		}
	}
	return (size + mapStep - 1) / mapStep * mapStep
}

// tight tells whether the commit of b, and of what is held, may have to enlarge the map.
func (s *Spool) tight(b *batch) bool {
	n, ops := int64(len(b.redo)+len(s.held.redo)), int64(b.ops+s.held.ops)
	return len(b.redo) > walMax || b.tx.tx.Size()+mapSlack+4*n+mapPerChange*ops > s.cp.mapped
}
