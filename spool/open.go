package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"mochila/internal/durable"
)

// formatVersion is the version of the index layout that this program writes.
const formatVersion = 2

// migrations lead from one version of the index to the next: element v makes version v+1 of version v. All of them run
// in one transaction with the new version number, so a crash leaves one version or the other.
var migrations = map[uint64]func(*bolt.Tx) error{1: emptyOnly}

// emptyOnly passes an index of version 1 that holds no items. Their contents were known by SHA-256 there, and nothing could
// be handed over that is compared with BLAKE3.
func emptyOnly(tx *bolt.Tx) error {
	if b := tx.Bucket(bucketNames[bkItem].name); b != nil {
		if n := b.Stats().KeyN; n > 0 {
			return fmt.Errorf("%d items are queued whose contents are known by another hash: have the program that wrote them deliver them first", n)
		}
	}
	return nil
}

// Keys of bucket meta that are the spool's own; those of its owner begin with "u:".
var (
	metaVersion  = []byte("version")
	metaIdentity = []byte("identity")
)

// mapSize is how much address space the index gets at once: growing it beyond waits for all views to end.
const mapSize = 1 << (26 + 6*(^uint(0)>>63)) // 4 GiB on 64 bits, 64 MiB on 32

// Open opens the spool in dir, made if missing, and brings it into order after whatever happened: temporary files and
// bodies that no item mentions are removed, records that cannot be read are set aside, items whose body is gone are
// held with Item.Problem set, and the index is compacted when more than half of it is free (Recovered tells).
// It fails with durable.ErrLocked while another process has it, and with ErrNewer for a later format.
func Open(dir string, o Options) (*Spool, error) {
	s := &Spool{dir: dir, o: o.withDefaults(dir)}
	s.syncer = &durable.DirSyncer{FS: s.o.FS}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("opening spool %q: %w", dir, err)
	}
	return s, nil
}

func (s *Spool) open() (err error) {
	if err := s.makeFolders(); err != nil {
		return err
	}
	if s.lock, err = durable.Lock(s.path("lock")); err != nil {
		return err
	}
	if err = s.openIndex(); err == nil {
		err = s.start()
	}
	if err != nil {
		if s.db != nil {
			s.unpin()
			s.db.Close()
		}
		if s.cp.wal != nil {
			s.cp.wal.close()
		}
		s.lock.Unlock()
	}
	return err
}

// start begins the work of the writer and brings everything into order.
func (s *Spool) start() error {
	s.requests = make(chan *request, maxBatch)
	s.soon = make(chan *request, maxBatch)
	s.quit, s.stopped = make(chan struct{}), make(chan struct{})
	s.timer, s.held.timer = time.NewTimer(soonWait), time.NewTimer(heldFor)
	s.openBallast()
	s.chores.start()
	go s.write()
	err := s.recover()
	if err != nil {
		close(s.quit)
		<-s.stopped
		s.chores.close()
	}
	return err
}

// makeFolders makes what is missing. The index and lock need real folders whatever lies below bodies.
func (s *Spool) makeFolders() error {
	if err := (durable.OS{}).MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	for _, d := range []string{tmpDir, quarantineDir, partialDir, bodyDir} {
		if err := s.o.FS.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	for i := range 256 {
		if err := s.o.FS.MkdirAll(s.path(bodyDir, fmt.Sprintf("%02x", i)), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// boltOptions are the same for every opening of the index.
func boltOptions() *bolt.Options {
	return &bolt.Options{
		Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, InitialMmapSize: mapSize,
	}
}

// openIndex opens or makes the index, checks its version and identity, and compacts it.
func (s *Spool) openIndex() error {
	os.Remove(s.path(indexFile + ".new")) // an unfinished compaction or birth
	path := s.path(indexFile)
	if err := s.recoverIndex(path); err != nil {
		return err
	}
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		if err := s.makeIndex(path); err != nil {
			return fmt.Errorf("making the index: %w", err)
		}
	case err != nil:
		return err
	case st.Size() == 0: // never our doing; bbolt would take it for a new one
		return fmt.Errorf("index %q is empty: restore it from a backup, or remove it to begin anew without what was queued", path)
	}
	if err := s.openDB(path); err != nil {
		return err
	}
	if err := s.checkVersion(); err != nil {
		return err
	}
	if err := s.checkIdentity(); err != nil {
		return err
	}
	return s.compact(path)
}

// makeIndex makes an empty index under another name first: half of one must never be found.
func (s *Spool) makeIndex(path string) error {
	tmp := path + ".new"
	db, err := bolt.Open(tmp, 0o600, boltOptions())
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketNames[bkMeta].name)
		if err != nil {
			return err
		}
		return b.Put(metaVersion, []byte(strconv.Itoa(formatVersion)))
	})
	if err == nil {
		err = db.Update(func(tx *bolt.Tx) error { return putIdentity(tx, tmp) })
	}
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return installIndex(tmp, path)
}

// installIndex syncs a new index and gives it its name.
func installIndex(tmp, path string) error {
	f, err := os.Open(tmp)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return durable.OS{}.SyncDir(filepath.Dir(path))
}

// openDB opens the index file; what bbolt panics about becomes an error.
func (s *Spool) openDB(path string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("index %q is damaged: %v", path, p)
		}
	}()
	s.db, err = bolt.Open(path, 0o600, boltOptions())
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("index %q: %w", path, durable.ErrLocked)
	case err != nil:
		return fmt.Errorf("index %q is damaged or not an index: %w", path, err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	s.cp.mapped, s.cp.limit = mappedFor(st.Size()), s.o.Log
	return nil
}

// checkVersion refuses what is newer, migrates what is older, and makes missing buckets.
func (s *Spool) checkVersion() error {
	ready := true
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, n := range bucketNames {
			ready = ready && tx.Bucket(n.name) != nil
		}
		if !ready {
			return nil
		}
		v, err := indexVersion(tx)
		ready = v == formatVersion
		return err
	})
	if err != nil || ready {
		return err
	}
	return s.db.Update(migrate)
}

// indexVersion reads the format version and refuses a newer one.
func indexVersion(tx *bolt.Tx) (uint64, error) {
	var text []byte
	if b := tx.Bucket(bucketNames[bkMeta].name); b != nil {
		text = b.Get(metaVersion)
	}
	v, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("index has no format version: %q", text)
	}
	if v > formatVersion {
		return v, fmt.Errorf("%w: its version is %d, this program knows %d; install the program that wrote it, or drain the spool with that one first", ErrNewer, v, formatVersion)
	}
	return v, nil
}

// migrate brings the index to this version, all steps in one transaction.
func migrate(tx *bolt.Tx) error {
	v, err := indexVersion(tx)
	if err != nil {
		return err
	}
	for ; v < formatVersion; v++ {
		step, ok := migrations[v]
		if !ok {
			return fmt.Errorf("no way leads from index version %d to %d", v, v+1)
		}
		if err := step(tx); err != nil {
			return fmt.Errorf("migrating the index from version %d: %w", v, err)
		}
	}
	for _, n := range bucketNames {
		if _, err := tx.CreateBucketIfNotExists(n.name); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketNames[bkMeta].name).Put(metaVersion, []byte(strconv.Itoa(formatVersion)))
}

// loadDests reads the numbers of destinations.
func (s *Spool) loadDests(tx *bolt.Tx) error {
	return tx.Bucket(bucketNames[bkDest].name).ForEach(func(k, v []byte) error {
		if len(k) == 4 {
			s.dests.set(binary.BigEndian.Uint32(k), Dest(v))
		}
		return nil
	})
}

// Bounds of compaction at start: below so much free space it is not worth the writing.
const compactAbove = 16 << 20

// compact copies the index into a new file when more than half of it is free and the disk has room for the copy.
func (s *Spool) compact(path string) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	size := tx.Size()
	tx.Rollback() // ending a transaction refreshes the statistics
	free := int64(s.db.Stats().FreePageN+s.db.Stats().PendingPageN) * int64(s.db.Info().PageSize)
	if free <= compactAbove || free*2 <= size {
		return nil
	}
	if left, _, err := s.o.Free(); err != nil || left < (size-free)*5/4+compactAbove {
		return nil
	}
	tmp := path + ".new"
	if err := s.copyIndex(tmp); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("compacting the index: %w", err)
	}
	if err := s.db.Close(); err != nil {
		return err
	}
	s.db = nil
	if err := installIndex(tmp, path); err != nil {
		return fmt.Errorf("compacting the index: %w", err)
	}
	s.found.Compacted = free
	return s.openDB(path)
}

// copyIndex writes a packed copy. Unless the spool is a copy itself, the new file's identity is inside.
func (s *Spool) copyIndex(tmp string) error {
	o := boltOptions()
	o.NoSync = true
	dst, err := bolt.Open(tmp, 0o600, o)
	if err != nil {
		return err
	}
	err = bolt.Compact(dst, s.db, 1<<20)
	if err == nil && !s.copied.Load() {
		err = dst.Update(func(tx *bolt.Tx) error { return putIdentity(tx, tmp) })
	}
	if err == nil {
		err = dst.Sync()
	}
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	return err
}
