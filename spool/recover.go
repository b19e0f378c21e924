package spool

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

// Recovery tells what Open found to do.
type Recovery struct {
	Temp      int           // temporary files removed
	Orphans   int           // body files removed that no item mentions
	Missing   []envelope.ID // items held because their content is gone
	Poisoned  []envelope.ID // records set aside because they cannot be read
	Compacted int64         // bytes of the index given back
	Redone    int           // commits that were in the log only
	LogDamage string        // what the log has lost, so that commits are gone that were durable; the files are in the quarantine
}

// Recovered tells what Open found to do.
func (s *Spool) Recovered() Recovery { return s.found }

// recover brings folders and index into agreement. The writer runs already, nobody else does.
func (s *Spool) recover() error {
	if err := s.emptyTemp(); err != nil {
		return err
	}
	if err := s.view(s.loadDests); err != nil {
		return err
	}
	bad, err := s.recount()
	if err != nil {
		return err
	}
	if err := s.heal(bad); err != nil {
		return err
	}
	for _, b := range bad {
		s.found.Poisoned = append(s.found.Poisoned, b.id)
	}
	return s.matchBodies()
}

// emptyTemp removes what was being written when the last process ended.
func (s *Spool) emptyTemp() error {
	for dir, prefix := range map[string]string{tmpDir: "", quarantineDir: durable.TempPrefix} {
		names, err := s.o.FS.ReadDir(s.path(dir))
		if err != nil {
			return err
		}
		for _, n := range names {
			if n.IsDir() || !strings.HasPrefix(n.Name(), prefix) {
				continue
			}
			if err := s.o.FS.Remove(s.path(dir, n.Name())); err != nil {
				return err
			}
			s.found.Temp++
		}
	}
	return nil
}

// badRecord is a record that cannot be read.
type badRecord struct {
	id     envelope.ID
	reason error
}

// recount rebuilds what memory knows of the index, and lists records whose head is broken.
func (s *Spool) recount() (bad []badRecord, err error) {
	var by map[uint32]*tallyOf
	traced := 0
	err = s.look(func(b *bolt.Tx) error {
		traced = b.Bucket(bucketNames[bkTrace].name).Stats().KeyN
		by, bad, err = s.countItems(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.done.Store(int64(traced))
	s.tally.mu.Lock()
	s.tally.by = by
	s.tally.mu.Unlock()
	return bad, nil
}

// countItems counts the legs of every destination.
func (s *Spool) countItems(b *bolt.Tx) (by map[uint32]*tallyOf, bad []badRecord, err error) {
	by = make(map[uint32]*tallyOf)
	err = b.Bucket(bucketNames[bkItem].name).ForEach(func(k, v []byte) error {
		if len(k) != 16 {
			return nil
		}
		id := envelope.ID(k)
		h, err := parseHead(v)
		if err == nil {
			err = s.knownDests(&h)
		}
		if err != nil {
			bad = append(bad, badRecord{id, err})
			return nil
		}
		for i := range h.nlegs {
			l := h.leg(i)
			t := by[l.dest]
			if t == nil {
				t = &tallyOf{}
				by[l.dest] = t
			}
			t.count(&change{id: id, to: l.state, size: h.size})
		}
		return nil
	})
	return by, bad, err
}

// knownDests checks that every leg goes somewhere.
func (s *Spool) knownDests(h *head) error {
	for i := range h.nlegs {
		if no := h.leg(i).dest; no == 0 || no > s.dests.count() {
			return fmt.Errorf("%w: leg %d goes to the unknown destination %d", errRecord, i, no)
		}
	}
	return nil
}

// matchBodies walks body files and the index of files side by side, folder by folder.
func (s *Spool) matchBodies() error {
	for i := range 256 {
		if err := s.matchFolder(byte(i)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spool) matchFolder(folder byte) error {
	dir := s.path(bodyDir, hex.EncodeToString([]byte{folder}))
	entries, err := s.o.FS.ReadDir(dir)
	if err != nil {
		return err
	}
	var missing []envelope.ID
	have := make(map[fileName]bool, len(entries))
	for _, e := range entries {
		b, err := hex.DecodeString(e.Name())
		if err != nil || len(b) != len(fileName{}) || e.IsDir() {
			continue // nothing of ours; fsck reports it
		}
		have[fileName(b)] = true
	}
	err = s.view(func(b *bolt.Tx) error {
		c := b.Bucket(bucketNames[bkFile].name).Cursor()
		for k, v := c.Seek([]byte{folder}); len(k) == 17 && k[0] == folder; k, v = c.Next() {
			n := fileName(k[1:])
			if !have[n] && len(v) == 16 {
				missing = append(missing, envelope.ID(v))
			}
			delete(have, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for n := range have { // only orphans are left
		if err := s.o.FS.Remove(s.bodyPath(n)); err != nil {
			return err
		}
		s.found.Orphans++
	}
	for _, id := range missing {
		if err := s.holdBroken(id, "its content is missing"); err != nil {
			return err
		}
		s.found.Missing = append(s.found.Missing, id)
	}
	return nil
}

// holdBroken stops the legs of an item that cannot go on by itself; its owner decides.
func (s *Spool) holdBroken(id envelope.ID, problem string) error {
	return s.Apply(func(tx *Tx) error {
		it, err := tx.Item(id)
		if errors.Is(err, ErrPoisoned) || errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil || it.Problem == problem {
			return err
		}
		it.Problem = problem
		it.AddLog(tx.now, "problem", problem)
		for i := range it.Legs {
			if l := &it.Legs[i]; l.State == Due || l.State == Deferred {
				l.State, l.At = Held, fromMilli(0)
			}
		}
		return tx.Save(it)
	})
}

// errIndex is the reason for healing an item whose index entries and record disagree.
var errIndex = errors.New("index and record disagree")

// healing holds the ids that are being set right, so that a busy reader does not ask for it a thousand times.
type healing struct {
	mu  sync.Mutex
	ids map[envelope.ID]bool
}

func (h *healing) begin(id envelope.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ids[id] {
		return false
	}
	if h.ids == nil {
		h.ids = make(map[envelope.ID]bool)
	}
	h.ids[id] = true
	return true
}

func (h *healing) end(id envelope.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ids, id)
}

// poison has an item set right by the chores: it may be called inside any transaction.
func (s *Spool) poison(id envelope.ID, reason error) {
	if !s.healing.begin(id) {
		return
	}
	s.chores.add(func() {
		defer s.healing.end(id)
		s.heal([]badRecord{{id, reason}}) // if the index cannot be written, the next reader will ask again
	})
}

// healChunk is how many items are set right in one transaction.
const healChunk = 1000

// heal makes the index entries of items agree with their records. A record that cannot be decoded is moved to the
// quarantine; its content stays until somebody decides (ReleaseRecord, RemoveQuarantined).
func (s *Spool) heal(bad []badRecord) error {
	for len(bad) > 0 {
		part := bad[:min(len(bad), healChunk)]
		bad = bad[len(part):]
		if err := s.Apply(func(tx *Tx) error { return tx.heal(part) }); err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) heal(bad []badRecord) error {
	want := make(map[envelope.ID]head, len(bad))
	for _, b := range bad {
		id := b.id
		rec := tx.bucket(bkItem).Get(id[:])
		it, h, err := parseRecord(rec, tx.s.dests.dest)
		if err == nil && it.Env.ID != id {
			err = b.reason
		}
		if err == nil {
			want[id] = h
			continue
		}
		want[id] = head{}
		if rec == nil {
			continue
		}
		if err := tx.put(bkBad, id[:], appendBad(nil, tx.now, err, rec)); err != nil {
			return err
		}
		if err := tx.del(bkItem, id[:]); err != nil {
			return err
		}
	}
	tx.b.recount = true
	return tx.healKeys(want)
}

// healKeys removes every entry of the due and wake indexes about these items that their heads do not ask for, and
// adds those that are missing. It walks both indexes whole.
func (tx *Tx) healKeys(want map[envelope.ID]head) error {
	for k, off := range map[bucket]int{bkDue: 6, bkWait: 8} {
		keys := make(map[string]bool)
		for id, h := range want {
			tx.wantKeys(k, id, &h, keys)
		}
		var wrong [][]byte
		c := tx.bucket(k).Cursor()
		for key, _ := c.First(); key != nil; key, _ = c.Next() {
			if len(key) >= off+16 {
				if _, ours := want[envelope.ID(key[off:off+16])]; !ours {
					continue
				}
			}
			if keys[string(key)] {
				delete(keys, string(key))
			} else {
				wrong = append(wrong, clone(key))
			}
		}
		for _, key := range wrong {
			if err := tx.del(k, key); err != nil {
				return err
			}
		}
		for key := range keys {
			if err := tx.put(k, []byte(key), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// wantKeys collects what index k (bkDue or bkWait) must hold of an item.
func (tx *Tx) wantKeys(k bucket, id envelope.ID, h *head, keys map[string]bool) {
	for i := range h.nlegs {
		l := h.leg(i)
		if k == bkDue && l.state == Due {
			key := dueKey(l.dest, h.class, h.size1, id, i)
			keys[string(key[:])] = true
		}
		if at := l.wakes(); k == bkWait && at != 0 {
			key := waitKey(at, id, i)
			keys[string(key[:])] = true
		}
	}
	if at := h.wakes(); k == bkWait && at != 0 && at <= tx.now.Add(expiryIndexed).UnixMilli() {
		key := waitKey(at, id, wholeItem)
		keys[string(key[:])] = true
	}
}

// appendBad encodes a record that was set aside: time, length of the reason, reason, bytes.
func appendBad(b []byte, now time.Time, reason error, rec []byte) []byte {
	text := reason.Error()
	b = binary.BigEndian.AppendUint64(b, uint64(milli(now)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	return append(b, rec...)
}

// parseBad reads what appendBad wrote.
func parseBad(b []byte) (at int64, reason string, rec []byte, err error) {
	if len(b) < 12 || uint64(len(b)-12) < uint64(binary.BigEndian.Uint32(b[8:])) {
		return 0, "", nil, fmt.Errorf("%w: set aside, and cut short", errRecord)
	}
	n := int(binary.BigEndian.Uint32(b[8:]))
	return int64(binary.BigEndian.Uint64(b)), string(b[12 : 12+n]), b[12+n:], nil
}
