package spool

import (
	"encoding/binary"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/envelope"
)

// Meta reads a small value of the spool's owner; nil when there is none.
func (tx *Tx) Meta(key string) []byte {
	if v := tx.bucket(bkMeta).Get([]byte("u:" + key)); v != nil {
		return append([]byte{}, v...)
	}
	return nil
}

// SetMeta stores a small value; nil removes it.
func (tx *Tx) SetMeta(key string, value []byte) error {
	if value == nil {
		return tx.del(bkMeta, []byte("u:"+key))
	}
	return tx.put(bkMeta, []byte("u:"+key), append([]byte{}, value...))
}

// KV is a small table of the spool's owner, valid as long as its transaction.
type KV struct {
	tx   *Tx
	name string
	b    *bolt.Bucket // nil while nothing was put
}

// KV opens a table. It comes to be with the first Put.
func (tx *Tx) KV(name string) *KV {
	return &KV{tx, name, tx.bucket(bkKV).Bucket([]byte(name))}
}

// Get reads a value; nil when there is none. The result is a copy.
func (t *KV) Get(key []byte) []byte {
	if t.b == nil {
		return nil
	}
	if v := t.b.Get(key); v != nil {
		return append([]byte{}, v...)
	}
	return nil
}

// Put stores a value under a key of 1 to 32,768 bytes.
func (t *KV) Put(key, value []byte) error {
	if t.tx.b == nil {
		return errReadOnly
	}
	t.tx.b.wrote = true
	t.tx.b.bytes += len(value)
	t.tx.b.log(walKVPut, bkKV, t.name, key, value)
	if t.b == nil {
		b, err := t.tx.bucket(bkKV).CreateBucketIfNotExists([]byte(t.name))
		if err != nil {
			return fmt.Errorf("making table %q: %w", t.name, err)
		}
		t.b = b
	}
	if err := t.b.Put(key, append([]byte{}, value...)); err != nil {
		return fmt.Errorf("writing to table %q: %w", t.name, err)
	}
	return nil
}

// Delete removes a key, if it is there.
func (t *KV) Delete(key []byte) error {
	if t.tx.b == nil {
		return errReadOnly
	}
	if t.b == nil {
		return nil
	}
	t.tx.b.wrote = true
	t.tx.b.log(walKVDel, bkKV, t.name, key, nil)
	if err := t.b.Delete(key); err != nil {
		return fmt.Errorf("removing from table %q: %w", t.name, err)
	}
	return nil
}

// Each calls fn with every key from prefix on that has it, in order, until fn fails; fn may change the table. Key and
// value are copies.
func (t *KV) Each(prefix []byte, fn func(key, value []byte) error) error {
	return t.EachFrom(prefix, prefix, fn)
}

// EachFrom is Each that begins at the key from.
func (t *KV) EachFrom(prefix, from []byte, fn func(key, value []byte) error) error {
	if t.b == nil {
		return nil
	}
	c := t.b.Cursor()
	k, v := c.Seek(from)
	for k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == string(prefix) {
		key := append([]byte{}, k...)
		if v != nil { // nil: a nested bucket, which is none of ours
			if err := fn(key, append([]byte{}, v...)); err != nil {
				return err
			}
		}
		if k, v = c.Seek(key); k != nil && string(k) == string(key) {
			k, v = c.Next()
		}
	}
	return nil
}

// seenKey leads with the envelope's id, which begins with its time: memory grows at the end of the tree.
func seenKey(origin envelope.NodeID, id envelope.ID) (k [48]byte) {
	copy(k[:], id[:])
	copy(k[16:], origin[:])
	return k
}

// Seen reports whether an envelope of that origin has been remembered.
func (tx *Tx) Seen(origin envelope.NodeID, id envelope.ID) bool {
	k := seenKey(origin, id)
	return tx.bucket(bkSeen).Get(k[:]) != nil
}

// Remember makes Seen say so until Forget is called with a time after until. An earlier memory is only ever
// prolonged.
func (tx *Tx) Remember(origin envelope.NodeID, id envelope.ID, until time.Time) error {
	k := seenKey(origin, id)
	sec := uint64(max(until.Unix(), 0))
	if v := tx.bucket(bkSeen).Get(k[:]); len(v) == 8 && binary.BigEndian.Uint64(v) >= sec {
		return nil
	}
	return tx.put(bkSeen, k[:], binary.BigEndian.AppendUint64(nil, sec))
}

// forgetChunk bounds what Forget looks at in one view, and deletes in one transaction.
const forgetChunk = 20_000

// Forget drops duplicate memory that has expired, and finished items older than the trace keeps. It must not be
// called while the clock is suspect. It walks the whole memory: call it hourly or less.
func (s *Spool) Forget(now time.Time) error {
	if err := s.forgetSeen(now); err != nil {
		return err
	}
	return s.forgetTrace(now)
}

func (s *Spool) forgetSeen(now time.Time) error {
	sec := uint64(max(now.Unix(), 0))
	var from []byte
	for {
		var old [][]byte
		var next []byte
		err := s.view(func(b *bolt.Tx) error {
			c := b.Bucket(bucketNames[bkSeen].name).Cursor()
			n := 0
			for k, v := c.Seek(from); k != nil; k, v = c.Next() {
				if n++; n > forgetChunk {
					next = clone(k)
					return nil
				}
				if len(v) != 8 || binary.BigEndian.Uint64(v) < sec {
					old = append(old, clone(k))
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := s.forgetKeys(old, sec); err != nil {
			return err
		}
		if next == nil {
			return nil
		}
		from = next
	}
}

// forgetKeys deletes memory, unless it has been prolonged meanwhile.
func (s *Spool) forgetKeys(keys [][]byte, sec uint64) error {
	for len(keys) > 0 {
		n := min(len(keys), 1000) // others share the commit: keep it short
		part := keys[:n]
		keys = keys[n:]
		err := s.Apply(func(tx *Tx) error {
			for _, k := range part {
				if v := tx.bucket(bkSeen).Get(k); len(v) == 8 && binary.BigEndian.Uint64(v) >= sec {
					continue
				}
				if err := tx.del(bkSeen, k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// trimSlack is by how much the trace may outgrow its bound, so that its end is cut in runs.
const trimSlack = 256

// trimTrace forgets the longest finished items beyond Options.TraceKeep.
func (s *Spool) trimTrace(b *batch) error {
	excess := int(s.done.Load()) + b.finished - s.o.TraceKeep
	if b.finished == 0 || excess < trimSlack {
		return nil
	}
	// A bound that was lowered is reached in steps, not in one huge commit.
	return b.tx.cutTrace(min(excess, 2*b.finished+2*trimSlack), nil)
}

// cutTrace removes up to n of the longest finished items, while stop (nil: never) does not object to their time.
func (tx *Tx) cutTrace(n int, stop func(finished int64) bool) error {
	var keys [][]byte
	c := tx.bucket(bkTraceTime).Cursor()
	for k, _ := c.First(); len(k) == 24 && len(keys) < n; k, _ = c.Next() {
		if stop != nil && stop(int64(binary.BigEndian.Uint64(k))) {
			break
		}
		keys = append(keys, clone(k))
	}
	for _, k := range keys {
		if err := tx.del(bkTraceTime, k); err != nil {
			return err
		}
		if err := tx.del(bkTrace, k[8:]); err != nil {
			return err
		}
	}
	tx.b.finished -= len(keys)
	return nil
}

// forgetTrace drops finished items by age.
func (s *Spool) forgetTrace(now time.Time) error {
	limit := now.Add(-s.o.TraceAge).UnixMilli()
	for more := true; more; {
		err := s.Apply(func(tx *Tx) error {
			before := tx.b.finished
			err := tx.cutTrace(1000, func(finished int64) bool { return finished >= limit })
			more = before-tx.b.finished == 1000
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
