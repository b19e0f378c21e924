package spool

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The write-ahead log makes a commit durable with one sync: its changes are appended here, and the index takes them
// without one. docs/spool.md, "Write-ahead log", has the format.
//
// Two files take turns. Each begins with two blocks, the header and the base, then come records. Everything begins at a
// block of its own, so that no write ever touches what an earlier sync made safe.

const (
	walBlock   = 4096
	walRecords = 2 * walBlock // offset of the first record
	walHead    = 32           // bytes before the changes in a record
	walMagic   = "mochila log 1\n\x00\x00"
	baseMagic  = "mochila base 1\n\x00"
	// walMax bounds the changes of one record, so that a damaged length asks for no memory.
	walMax = 1 << 30
)

var walNames = [2]string{"index.wal.0", "index.wal.1"}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// walNonce marks what belongs to one turn of a file. It is random: content that a stranger put into an earlier record,
// at an offset where a later turn ends, must not pass for a record.
type walNonce [16]byte

// walFile is one of the two files.
type walFile struct {
	f     *os.File
	order uint64   // counts turns
	nonce walNonce // of this turn
	prev  walNonce // of the turn before
	base  *walBase // nil until the index up to the beginning of this turn is durable
}

// walBase tells what the records of a turn are to be applied to.
type walBase struct {
	closed bool   // the index is whole by itself, and no record counts
	seq    uint64 // number of the last record that is in the index
	index  indexMark
}

// wal is the log of an open spool. Only the writer uses it, but for setBase.
type wal struct {
	files [2]*walFile
	cur   int
	seq   uint64 // number of the last record
	last  int64  // where it begins
	end   int64  // where the next one will begin
}

// walRecord is one commit.
type walRecord struct {
	seq     uint64
	changes []byte
}

// openWAL opens both files, made when missing.
func openWAL(path func(...string) string) (*wal, error) {
	w := &wal{}
	for i, name := range walNames {
		f, err := os.OpenFile(path(name), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			w.close()
			return nil, err
		}
		w.files[i] = &walFile{f: f}
		if err := w.files[i].readHead(); err != nil {
			w.close()
			return nil, err
		}
	}
	if w.files[1].order > w.files[0].order {
		w.cur = 1
	}
	return w, nil
}

// close gives up both files.
func (w *wal) close() error {
	var first error
	for _, f := range w.files {
		if f == nil {
			continue
		}
		if err := f.f.Close(); first == nil {
			first = err
		}
	}
	return first
}

// walReserve is how much of each file has blocks before it is used: on a full disk the log must be able to change files.
const walReserve = 1 << 20

// reserve allocates blocks for both files, where the file system can.
func (w *wal) reserve(size int64) error {
	for _, f := range w.files {
		err := unix.Fallocate(int(f.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, max(size, walRecords))
		if err != nil && isFull(err) {
			return fmt.Errorf("allocating %s: %w", f.f.Name(), err)
		}
	}
	return nil
}

// readHead reads header and base. What is not whole counts as absent: it never became valid.
func (f *walFile) readHead() error {
	var b [walRecords]byte
	if _, err := f.f.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head, base := b[:walBlock], b[walBlock:]
	if !sealedBlock(head, walMagic) {
		return nil
	}
	f.order = binary.BigEndian.Uint64(head[16:])
	f.nonce, f.prev = walNonce(head[24:]), walNonce(head[40:])
	if sealedBlock(base, baseMagic) && walNonce(base[16:]) == f.nonce {
		f.base = &walBase{closed: base[32] == 1, seq: binary.BigEndian.Uint64(base[33:])}
		return f.base.index.parse(base[41:])
	}
	return nil
}

// sealedBlock checks magic and checksum of a header or base.
func sealedBlock(b []byte, magic string) bool {
	n := walBlock - 4
	return string(b[:len(magic)]) == magic && crc32.Checksum(b[:n], castagnoli) == binary.BigEndian.Uint32(b[n:])
}

// sealBlock makes a block of what it says.
func sealBlock(b []byte) []byte {
	n := walBlock - 4
	b = append(b, make([]byte, n-len(b))...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// turn begins the next turn in the other file. What it holds becomes valid with the sync of its first record or of
// its base, whichever comes first.
func (w *wal) turn() error {
	old, next := w.files[w.cur], w.files[1-w.cur]
	f := &walFile{f: next.f, order: old.order + 1, prev: old.nonce}
	rand.Read(f.nonce[:])
	b := append(make([]byte, 0, walBlock), walMagic...)
	b = binary.BigEndian.AppendUint64(b, f.order)
	b = append(append(b, f.nonce[:]...), f.prev[:]...)
	if _, err := next.f.WriteAt(sealBlock(b), 0); err != nil {
		return fmt.Errorf("beginning %s: %w", walNames[1-w.cur], err)
	}
	w.files[1-w.cur] = f
	w.cur, w.last, w.end = 1-w.cur, 0, walRecords
	return nil
}

// setBase makes a base durable, and with it everything else that was written to the file.
func (f *walFile) setBase(base walBase) error {
	b := append(make([]byte, 0, walBlock), baseMagic...)
	b = append(b, f.nonce[:]...)
	if base.closed {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.BigEndian.AppendUint64(b, base.seq)
	b = base.index.append(b)
	if _, err := f.f.WriteAt(sealBlock(b), walBlock); err != nil {
		return fmt.Errorf("writing the base of %s: %w", f.f.Name(), err)
	}
	return f.sync()
}

func (f *walFile) sync() error {
	if err := unix.Fdatasync(int(f.f.Fd())); err != nil {
		return fmt.Errorf("syncing %s: %w", f.f.Name(), err)
	}
	return nil
}

// errUnsynced is wrapped when a record was written and its sync failed: it may be on the disk or not.
var errUnsynced = errors.New("the log's record may be on the disk or not")

// append makes one commit durable. rec has walHead free bytes in front of its changes.
func (w *wal) append(rec []byte) error {
	f := w.files[w.cur]
	w.seq++
	copy(rec, f.nonce[:])
	binary.BigEndian.PutUint64(rec[16:], w.seq)
	binary.BigEndian.PutUint32(rec[24:], uint32(len(rec)-walHead))
	binary.BigEndian.PutUint32(rec[28:], walSum(rec))
	if pad := -len(rec) & (walBlock - 1); pad != 0 {
		rec = append(rec, zeros[:pad]...)
	}
	if _, err := f.f.WriteAt(rec, w.end); err != nil {
		w.seq--
		return fmt.Errorf("writing to %s: %w", walNames[w.cur], err)
	}
	if err := f.sync(); err != nil {
		return fmt.Errorf("%w: %w", errUnsynced, err)
	}
	w.last, w.end = w.end, w.end+int64(len(rec))
	return nil
}

var zeros [walBlock]byte

// walSum is the checksum of a record: of its head but the sum itself, and of its changes.
func walSum(rec []byte) uint32 {
	return crc32.Update(crc32.Checksum(rec[:28], castagnoli), castagnoli, rec[walHead:])
}

// erase takes back the last record. It needs no room on the disk.
func (w *wal) erase() error {
	f := w.files[w.cur]
	if _, err := f.f.WriteAt(zeros[:], w.last); err != nil {
		return fmt.Errorf("erasing in %s: %w", walNames[w.cur], err)
	}
	if err := f.sync(); err != nil {
		return err
	}
	w.seq--
	w.end = w.last
	return nil
}

// pending finds what a crash left: the base that the index must go back to, and the files whose records follow it.
// Without base nothing is to be done: the index is whole by itself.
func (w *wal) pending() (*walBase, []*walFile) {
	top, old := w.files[w.cur], w.files[1-w.cur]
	switch {
	case top.order == 0:
		return nil, nil
	case top.base != nil && !top.base.closed:
		return top.base, []*walFile{top}
	case top.base != nil || old.base == nil || old.base.closed || old.order+1 != top.order || old.nonce != top.prev:
		return nil, nil
	}
	return old.base, []*walFile{old, top}
}

// errWALDamaged is wrapped when a record is followed by one that cannot follow it.
var errWALDamaged = errors.New("the log is damaged in the middle")

// read calls fn with every record behind base, in order. The first that is not whole ends the log, if no later one is
// whole: that would be damage, and what was read until then still counts.
func (w *wal) read(base *walBase, files []*walFile, fn func(walRecord) error) error {
	seq := base.seq
	for _, f := range files {
		off := int64(walRecords)
		for {
			rec, next, err := f.record(off)
			if err != nil {
				return err
			}
			if rec == nil {
				break
			}
			if rec.seq != seq+1 {
				return fmt.Errorf("%w: record %d of %s follows %d", errWALDamaged, rec.seq, f.f.Name(), seq)
			}
			if err := fn(*rec); err != nil {
				return err
			}
			seq, off = rec.seq, next
		}
		if later, err := f.laterThan(off); err != nil || later {
			if err == nil {
				err = fmt.Errorf("%w: %s, offset %d", errWALDamaged, f.f.Name(), off)
			}
			return err
		}
	}
	w.seq = seq
	return nil
}

// record reads the record at off; nil when there is no whole one.
func (f *walFile) record(off int64) (*walRecord, int64, error) {
	var head [walHead]byte
	if n, err := f.f.ReadAt(head[:], off); n < walHead {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return nil, 0, err
	}
	size := int64(binary.BigEndian.Uint32(head[24:]))
	st, err := f.f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if walNonce(head[:]) != f.nonce || size > walMax || off+walHead+size > st.Size() {
		return nil, 0, nil
	}
	rec := make([]byte, walHead+size)
	if _, err := f.f.ReadAt(rec, off); err != nil {
		return nil, 0, err
	}
	if walSum(rec) != binary.BigEndian.Uint32(rec[28:]) {
		return nil, 0, nil
	}
	next := off + (walHead+size+walBlock-1)&^(walBlock-1)
	return &walRecord{binary.BigEndian.Uint64(rec[16:]), rec[walHead:]}, next, nil
}

// laterThan tells whether a whole record of this turn begins behind off.
func (f *walFile) laterThan(off int64) (bool, error) {
	st, err := f.f.Stat()
	if err != nil {
		return false, err
	}
	var nonce walNonce
	for off += walBlock; off < st.Size(); off += walBlock {
		if n, err := f.f.ReadAt(nonce[:], off); n < len(nonce) {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return false, err
		}
		if nonce != f.nonce {
			continue
		}
		if rec, _, err := f.record(off); err != nil || rec != nil {
			return rec != nil, err
		}
	}
	return false, nil
}

// Changes of a record. Each is its kind, what it changes, and length and bytes of key and value.
const (
	walPut   = 1 // bucket u8, key, value
	walDel   = 2 // bucket u8, key
	walKVPut = 3 // name of the table, key, value
	walKVDel = 4 // name of the table, key
)

// errChanges is wrapped for a record that is whole and makes no sense: a later version wrote it, or a fault of ours.
var errChanges = errors.New("a record of the log cannot be read")

// log notes a change for the log.
func (b *batch) log(kind byte, k bucket, table string, key, value []byte) {
	if b.redo == nil {
		return
	}
	b.ops++
	b.redo = append(b.redo, kind)
	switch kind {
	case walPut, walDel:
		b.redo = append(b.redo, byte(k))
	default:
		b.redo = append(binary.AppendUvarint(b.redo, uint64(len(table))), table...)
	}
	b.redo = appendBytes(b.redo, key)
	if kind == walPut || kind == walKVPut {
		b.redo = appendBytes(b.redo, value)
	}
}

// appendBytes appends length and bytes.
func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// cutBytes takes off what appendBytes appended.
func cutBytes(b []byte) (v, rest []byte, err error) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) {
		return nil, nil, fmt.Errorf("%w: it is cut short", errChanges)
	}
	return b[k : k+int(n)], b[k+int(n):], nil
}

// redo makes the changes of a record again. They must not change until the commit.
func (tx *Tx) redo(changes []byte) (err error) {
	for len(changes) > 0 {
		kind := changes[0]
		var name, key, value []byte
		switch changes = changes[1:]; kind {
		case walPut, walDel:
			if len(changes) == 0 || bucket(changes[0]) >= numBuckets {
				return fmt.Errorf("%w: unknown bucket", errChanges)
			}
			name, changes = changes[:1], changes[1:]
		case walKVPut, walKVDel:
			if name, changes, err = cutBytes(changes); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: unknown change %d", errChanges, kind)
		}
		if key, changes, err = cutBytes(changes); err != nil {
			return err
		}
		if kind == walPut || kind == walKVPut {
			if value, changes, err = cutBytes(changes); err != nil {
				return err
			}
		}
		switch kind {
		case walPut:
			err = tx.put(bucket(name[0]), key, value)
		case walDel:
			err = tx.del(bucket(name[0]), key)
		case walKVPut:
			err = tx.KV(string(name)).Put(key, value)
		case walKVDel:
			err = tx.KV(string(name)).Delete(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
