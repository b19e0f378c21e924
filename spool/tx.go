package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/envelope"
)

// bucket numbers the top buckets of the index.
type bucket int

const (
	bkMeta      bucket = iota // key → value
	bkDest                    // number u32 → Dest
	bkItem                    // id → record
	bkBody                    // id → small content
	bkFile                    // folder, file name → id
	bkDue                     // destination, class, size class, id, leg → nothing
	bkWait                    // time, id, leg (or 0xffff: expiry) → nothing
	bkTrace                   // id → record of a finished item
	bkTraceTime               // time finished, id → nothing
	bkBad                     // id → reason and bytes of a record that could not be read
	bkSeen                    // envelope id, origin → until, seconds
	bkSession                 // id → session
	bkSalt                    // session, sequence number mod 4096 → number, salt
	bkSent                    // session, sequence number → Sent
	bkPacket                  // packet hash → session, sequence number
	bkKV                      // nested buckets of the bridge
	numBuckets
)

// bucketNames are the buckets' names in the file, and how full their pages are packed: those that grow at the end are
// packed tightly, the others keep room for insertions.
var bucketNames = [numBuckets]struct {
	name []byte
	fill float64
}{
	bkMeta: {[]byte("meta"), 0.5}, bkDest: {[]byte("dest"), 0.9}, bkItem: {[]byte("item"), 0.9},
	bkBody: {[]byte("body"), 0.9}, bkFile: {[]byte("file"), 0.5}, bkDue: {[]byte("due"), 0.7},
	bkWait: {[]byte("wait"), 0.5}, bkTrace: {[]byte("trace"), 0.9}, bkTraceTime: {[]byte("tracetime"), 0.9},
	bkBad: {[]byte("bad"), 0.9}, bkSeen: {[]byte("seen"), 0.9}, bkSession: {[]byte("session"), 0.5},
	bkSalt: {[]byte("salt"), 0.5}, bkSent: {[]byte("sent"), 0.7}, bkPacket: {[]byte("packet"), 0.5},
	bkKV: {[]byte("kv"), 0.5},
}

// Tx is a transaction, valid until the function it was given to returns. One goroutine may use it.
type Tx struct {
	s       *Spool
	tx      *bolt.Tx
	b       *batch // nil in View
	now     time.Time
	urgent  bool
	buckets [numBuckets]*bolt.Bucket
}

// bucket opens a top bucket.
func (tx *Tx) bucket(k bucket) *bolt.Bucket {
	if tx.buckets[k] == nil {
		b := tx.tx.Bucket(bucketNames[k].name)
		b.FillPercent = bucketNames[k].fill
		tx.buckets[k] = b
	}
	return tx.buckets[k]
}

// errReadOnly is returned by every change inside View.
var errReadOnly = errors.New("change in a read-only transaction")

// put stores a value, which must not change until the commit.
func (tx *Tx) put(k bucket, key, value []byte) error {
	if tx.b == nil {
		return errReadOnly
	}
	tx.b.wrote = true
	tx.b.bytes += len(value)
	tx.b.log(walPut, k, "", key, value)
	if value == nil {
		value = []byte{} // until the index has it, Get returns this very slice, and nil stands for nothing
	}
	if err := tx.bucket(k).Put(key, value); err != nil {
		return fmt.Errorf("writing to index %q: %w", bucketNames[k].name, err)
	}
	return nil
}

// del removes a key, if it is there.
func (tx *Tx) del(k bucket, key []byte) error {
	if tx.b == nil {
		return errReadOnly
	}
	tx.b.wrote = true
	tx.b.log(walDel, k, "", key, nil)
	if err := tx.bucket(k).Delete(key); err != nil {
		return fmt.Errorf("removing from index %q: %w", bucketNames[k].name, err)
	}
	return nil
}

// destNo is the number of a destination; a new one gets the next number.
func (tx *Tx) destNo(d Dest) (uint32, error) {
	if no, ok := tx.s.dests.number(d); ok {
		return no, nil
	}
	if d == "" || len(d) > 4096 {
		return 0, fmt.Errorf("%q is not a destination", d)
	}
	no := tx.s.dests.count() + 1
	var key [4]byte
	binary.BigEndian.PutUint32(key[:], no)
	if err := tx.put(bkDest, key[:], []byte(d)); err != nil {
		return 0, err
	}
	tx.s.dests.set(no, d)
	tx.b.newDests = append(tx.b.newDests, no)
	return no, nil
}

const dueKeySize = 4 + 1 + 1 + 16 + 2

// dueKey is the place of a leg in the order of its destination.
func dueKey(dest uint32, class, size uint8, id envelope.ID, leg int) (k [dueKeySize]byte) {
	binary.BigEndian.PutUint32(k[:], dest)
	k[4], k[5] = class, size
	copy(k[6:], id[:])
	binary.BigEndian.PutUint16(k[22:], uint16(leg))
	return k
}

const (
	waitKeySize = 8 + 16 + 2
	wholeItem   = 0xffff // the leg number of an expiry
)

// waitKey is the place of a time in the wake index.
func waitKey(at int64, id envelope.ID, leg int) (k [waitKeySize]byte) {
	binary.BigEndian.PutUint64(k[:], uint64(at))
	copy(k[8:], id[:])
	binary.BigEndian.PutUint16(k[24:], uint16(leg))
	return k
}

// Add puts a new item with at least one leg into the spool, with the content in body (nil: none), which must be
// finished. It sets it.BodySize. It fails with ErrExists if the id is here already, also in the trace, and wraps
// ErrFull when the disk reserve is reached; see ApplyUrgent.
func (tx *Tx) Add(it *Item, body *Body) error {
	if tx.b == nil {
		return errReadOnly
	}
	if it.Env == nil || it.Env.ID.IsZero() {
		return errors.New("adding an item without id")
	}
	id := it.Env.ID
	for _, k := range []bucket{bkItem, bkTrace, bkBad} {
		if tx.bucket(k).Get(id[:]) != nil {
			return itemError("adding", id, ErrExists)
		}
	}
	if err := tx.admit(); err != nil {
		return itemError("adding", id, err)
	}
	ref, err := tx.addBody(id, body)
	if err != nil {
		return itemError("adding", id, err)
	}
	it.BodySize = ref.size
	rec, err := appendRecord(make([]byte, 0, 512), it, ref, tx.destNo)
	if err != nil {
		return itemError("adding", id, err)
	}
	h, err := parseHead(rec)
	if err != nil {
		return itemError("adding", id, err)
	}
	if h.done() {
		if ref.flags != 0 {
			return itemError("adding", id, errors.New("finished item with content"))
		}
		return tx.trace(id, rec)
	}
	if err := tx.put(bkItem, id[:], rec); err != nil {
		return err
	}
	return tx.reindex(id, &head{}, &h)
}

// addBody stores what body holds under id.
func (tx *Tx) addBody(id envelope.ID, body *Body) (bodyRef, error) {
	if body == nil {
		return bodyRef{}, nil
	}
	ref, content, err := body.ref()
	if err != nil {
		return ref, err
	}
	if ref.flags == flagFile {
		key := fileKey(ref.file)
		if tx.bucket(bkFile).Get(key[:]) != nil {
			return ref, errors.New("body belongs to another item")
		}
		err = tx.put(bkFile, key[:], append([]byte(nil), id[:]...))
	} else {
		err = tx.put(bkBody, id[:], content)
	}
	tx.b.adopted = append(tx.b.adopted, body)
	return ref, err
}

// Item reads an item that has not finished. It fails with ErrNotFound, or with ErrPoisoned when the record cannot be
// decoded.
func (tx *Tx) Item(id envelope.ID) (*Item, error) {
	rec := tx.bucket(bkItem).Get(id[:])
	if rec == nil {
		return nil, itemError("reading", id, ErrNotFound)
	}
	return tx.parse(id, rec)
}

// parse decodes a record and has it set aside if that fails.
func (tx *Tx) parse(id envelope.ID, rec []byte) (*Item, error) {
	it, _, err := parseRecord(rec, tx.s.dests.dest)
	if err == nil && it.Env.ID != id {
		err = fmt.Errorf("%w: it is about %s", errRecord, it.Env.ID)
	}
	if err != nil {
		tx.s.poison(id, err)
		return nil, itemError("reading", id, fmt.Errorf("%w: %w", ErrPoisoned, err))
	}
	return it, nil
}

// Save stores a changed item. Its content, Env.ID and Env.Sum stay as they were. A leg whose state or destination
// changes loses its lease. When every leg is done the item moves to the trace and its content is dropped; with Gone set the
// content alone is.
// It fails with ErrNotFound if the item has finished or was never added.
func (tx *Tx) Save(it *Item) error {
	if tx.b == nil {
		return errReadOnly
	}
	id := it.Env.ID
	old := tx.bucket(bkItem).Get(id[:])
	if old == nil {
		return itemError("saving", id, ErrNotFound)
	}
	oh, err := parseHead(old)
	if err != nil {
		tx.s.poison(id, err)
		return itemError("saving", id, fmt.Errorf("%w: %w", ErrPoisoned, err))
	}
	ref := oh.body(it.Env.Sum)
	done := it.Done() && len(it.Legs) > 0
	if done || it.Gone {
		if err := tx.dropBody(id, &oh, done && it.Env.Kind == envelope.KindMail); err != nil {
			return err
		}
		ref = bodyRef{size: ref.size}
	}
	rec, err := appendRecord(make([]byte, 0, len(old)+128), it, ref, tx.destNo)
	if err != nil {
		return itemError("saving", id, err)
	}
	nh, err := parseHead(rec)
	if err != nil {
		return itemError("saving", id, err)
	}
	if err := tx.reindex(id, &oh, &nh); err != nil {
		return err
	}
	if !done {
		return tx.put(bkItem, id[:], rec)
	}
	if err := tx.del(bkItem, id[:]); err != nil {
		return err
	}
	return tx.trace(id, rec)
}

// Drop removes an item and its content without a trace. It fails with ErrNotFound.
func (tx *Tx) Drop(id envelope.ID) error {
	if tx.b == nil {
		return errReadOnly
	}
	rec := tx.bucket(bkItem).Get(id[:])
	if rec == nil {
		return itemError("dropping", id, ErrNotFound)
	}
	h, err := parseHead(rec)
	if err != nil {
		tx.s.poison(id, err)
		return itemError("dropping", id, fmt.Errorf("%w: %w", ErrPoisoned, err))
	}
	if err := tx.dropBody(id, &h, false); err != nil {
		return err
	}
	if err := tx.reindex(id, &h, &head{}); err != nil {
		return err
	}
	return tx.del(bkItem, id[:])
}

// dropBody removes the content of an item; a file is removed after the commit, or written again.
func (tx *Tx) dropBody(id envelope.ID, h *head, again bool) error {
	switch {
	case h.flags&flagInline != 0:
		return tx.del(bkBody, id[:])
	case h.flags&flagFile != 0:
		key := fileKey(h.file)
		tx.b.unlink = append(tx.b.unlink, discard{h.file, again})
		return tx.del(bkFile, key[:])
	}
	return nil
}

// trace files the record of a finished item.
func (tx *Tx) trace(id envelope.ID, rec []byte) error {
	if tx.s.o.TraceKeep == 0 {
		return nil
	}
	if err := tx.put(bkTrace, id[:], rec); err != nil {
		return err
	}
	var key [24]byte
	binary.BigEndian.PutUint64(key[:], uint64(milli(tx.now)))
	copy(key[8:], id[:])
	tx.b.finished++
	return tx.put(bkTraceTime, key[:], nil)
}

// Horizons of the wake index: an expiry enters it when it is less than expiryIndexed away. A sweep looks every hour
// for those that have come so near.
const (
	expiryIndexed = 25 * time.Hour
	sweepEvery    = time.Hour
)

// reindex brings the due and wake indexes from what they say of o to what they must say of n, and notes the changes.
// A head without legs stands for an item that is not there.
func (tx *Tx) reindex(id envelope.ID, o, n *head) error {
	for i := range max(o.nlegs, n.nlegs) {
		var ol, nl legHead
		if i < o.nlegs {
			ol = o.leg(i)
		}
		if i < n.nlegs {
			nl = n.leg(i)
		}
		if err := tx.reindexLeg(id, i, o, n, ol, nl); err != nil {
			return err
		}
	}
	return tx.reindexExpiry(id, o, n)
}

func (tx *Tx) reindexLeg(id envelope.ID, i int, o, n *head, ol, nl legHead) error {
	ok, nk := dueKey(ol.dest, o.class, o.size1, id, i), dueKey(nl.dest, n.class, n.size1, id, i)
	wasDue, isDue := ol.state == Due, nl.state == Due
	if wasDue && (!isDue || ok != nk) {
		if err := tx.del(bkDue, ok[:]); err != nil {
			return err
		}
	}
	if isDue && (!wasDue || ok != nk) {
		if err := tx.put(bkDue, nk[:], nil); err != nil {
			return err
		}
	}
	oAt, nAt := ol.wakes(), nl.wakes()
	if oAt != nAt {
		if oAt != 0 {
			k := waitKey(oAt, id, i)
			if err := tx.del(bkWait, k[:]); err != nil {
				return err
			}
		}
		if nAt != 0 {
			k := waitKey(nAt, id, i)
			if err := tx.put(bkWait, k[:], nil); err != nil {
				return err
			}
		}
	}
	if ol.state == nl.state && ol.dest == nl.dest && oAt == nAt && o.size == n.size {
		return nil
	}
	c := change{id: id, leg: i, dest: nl.dest, from: ol.state, to: nl.state, size: n.size, retimed: oAt != nAt}
	if nl.state == 0 {
		c.dest, c.size = ol.dest, o.size
	} else if ol.state != 0 && (ol.dest != nl.dest || o.size != n.size) {
		tx.b.changes = append(tx.b.changes, change{id: id, leg: i, dest: ol.dest, from: ol.state, size: o.size})
		c.from = 0
	}
	tx.b.changes = append(tx.b.changes, c)
	return nil
}

// wakes is the time at which the leg wants attention, 0 for never.
func (l legHead) wakes() int64 {
	if l.state == Done {
		return 0
	}
	return l.at
}

// wakes is the time at which the item's expiry wants attention, 0 for never.
func (h *head) wakes() int64 {
	if h.nlegs == 0 || h.flags&flagExpirySeen != 0 || h.done() {
		return 0
	}
	return h.expires
}

// reindexExpiry keeps the expiry in the wake index when it is near. Whether the old one is there is not recorded: what
// was near depends on a clock that may have been wrong.
func (tx *Tx) reindexExpiry(id envelope.ID, o, n *head) error {
	horizon := tx.now.Add(expiryIndexed).UnixMilli()
	oAt, nAt := o.wakes(), n.wakes()
	if oAt != 0 && oAt != nAt {
		k := waitKey(oAt, id, wholeItem)
		if err := tx.del(bkWait, k[:]); err != nil {
			return err
		}
		tx.b.changes = append(tx.b.changes, change{id: id, leg: -1, retimed: true})
	}
	if nAt != 0 && nAt <= horizon && (oAt != nAt || o.nlegs == 0) {
		k := waitKey(nAt, id, wholeItem)
		return tx.put(bkWait, k[:], nil)
	}
	return nil
}
