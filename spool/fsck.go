package spool

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/envelope"
)

// Problem is one thing that Fsck found.
type Problem struct {
	Kind   string      // one word, see docs/spool.md
	ID     envelope.ID // zero when it is about no item
	Detail string
	Fixed  bool
}

// Report is what Fsck found.
type Report struct {
	Items    int   // not finished
	Trace    int   // finished
	Bodies   int   // contents, in the index and in files
	Bytes    int64 // of them
	Problems []Problem
}

// maxProblems bounds a report: a badly damaged spool need not be described a million times.
const maxProblems = 10_000

// OK reports whether nothing is wrong (any more).
func (r *Report) OK() bool {
	for _, p := range r.Problems {
		if !p.Fixed {
			return false
		}
	}
	return true
}

// checker carries one run of Fsck.
type checker struct {
	s   *Spool
	rep Report
	bad map[envelope.ID]bool // records or index entries to heal
	// broken items have lost their content.
	broken  map[envelope.ID]string
	loose   [][]byte   // content in the index without item
	noFile  [][]byte   // entries of bkFile without item
	orphans []fileName // files without entry
	lost    []fileID   // items whose file has no entry
}

type fileID struct {
	n  fileName
	id envelope.ID
}

func (c *checker) problem(kind string, id envelope.ID, format string, a ...any) {
	if len(c.rep.Problems) < maxProblems {
		c.rep.Problems = append(c.rep.Problems, Problem{Kind: kind, ID: id, Detail: fmt.Sprintf(format, a...)})
	}
}

// Fsck walks everything: pages, records, indexes, and every content with its hash. With fix it repairs what can be
// repaired without guessing: index entries and counts follow the records, leftovers are removed, broken records go to
// the quarantine, items with broken content are held. It may run beside other work, which waits while the
// pages and counts are checked: about a second per million items.
func (s *Spool) Fsck(fix bool) (Report, error) {
	c := &checker{s: s, bad: make(map[envelope.ID]bool), broken: make(map[envelope.ID]string)}
	if err := c.pages(); err != nil {
		return c.rep, err
	}
	if err := s.view(c.walk); err != nil {
		return c.rep, err
	}
	if err := c.folders(); err != nil {
		return c.rep, err
	}
	if err := c.contents(); err != nil {
		return c.rep, err
	}
	if err := c.confirm(); err != nil {
		return c.rep, err
	}
	if !fix {
		return c.rep, nil
	}
	return c.rep, c.repair()
}

// pages checks the tree of the file. Nobody may write meanwhile: free pages are only known to the writer.
func (c *checker) pages() error {
	return c.s.submit(c.s.requests, &request{alone: true, fn: func(tx *Tx) error {
		for err := range tx.tx.Check() {
			c.problem("page", envelope.ID{}, "%v", err)
		}
		return nil
	}})
}

// walk checks the index against itself.
func (c *checker) walk(b *bolt.Tx) error {
	tx := &Tx{s: c.s, tx: b}
	items := tx.bucket(bkItem).Cursor()
	for k, v := items.First(); k != nil; k, v = items.Next() {
		if len(k) != 16 {
			c.problem("record", envelope.ID{}, "key of %d bytes", len(k))
			continue
		}
		c.record(tx, envelope.ID(k), v)
	}
	c.entries(tx)
	traces := tx.bucket(bkTrace).Cursor()
	for k, v := traces.First(); k != nil; k, v = traces.Next() {
		c.rep.Trace++
		if _, _, err := parseRecord(v, c.s.dests.dest); err != nil && len(k) == 16 {
			c.problem("trace", envelope.ID(k), "%v", err)
		}
	}
	return nil
}

// record checks one record, and that the indexes have its entries.
func (c *checker) record(tx *Tx, id envelope.ID, v []byte) {
	c.rep.Items++
	it, h, err := parseRecord(v, c.s.dests.dest)
	if err == nil && it.Env.ID != id {
		err = fmt.Errorf("it is about %s", it.Env.ID)
	}
	if err != nil {
		c.problem("record", id, "%v", err)
		c.bad[id] = true
		return
	}
	if h.done() {
		c.problem("state", id, "every leg is done, and it is not in the trace")
	}
	for i := range h.nlegs {
		l := h.leg(i)
		if k := dueKey(l.dest, h.class, h.size1, id, i); l.state == Due && tx.bucket(bkDue).Get(k[:]) == nil {
			c.problem("due", id, "leg %d is due and not in the index", i)
			c.bad[id] = true
		}
		if at := l.wakes(); at != 0 {
			if k := waitKey(at, id, i); tx.bucket(bkWait).Get(k[:]) == nil {
				c.problem("wait", id, "leg %d has a time and is not in the index", i)
				c.bad[id] = true
			}
		}
	}
	if h.flags&flagFile != 0 {
		if k := fileKey(h.file); !bytes.Equal(tx.bucket(bkFile).Get(k[:]), id[:]) {
			c.problem("file", id, "its file %x is not in the index", h.file)
			c.lost = append(c.lost, fileID{h.file, id})
		}
	}
	if h.flags&flagInline != 0 {
		c.rep.Bodies++
		c.rep.Bytes += h.size
		body := tx.bucket(bkBody).Get(id[:])
		switch ref := h.body(it.Env.Sum); {
		case body == nil:
			c.content(id, "its content is missing")
		case int64(len(body)) != h.size:
			c.content(id, "its content has a wrong length")
		case envelope.SumOf(body) != ref.sum:
			c.content(id, "its content is damaged")
		}
	}
}

// content notes that an item's content is gone.
func (c *checker) content(id envelope.ID, what string) {
	c.problem("content", id, "%s", what)
	c.broken[id] = what
}

// entries checks that every entry of every index belongs to a record that asks for it.
func (c *checker) entries(tx *Tx) {
	each := func(k bucket, size int, check func(key, value []byte)) {
		cur := tx.bucket(k).Cursor()
		for key, v := cur.First(); key != nil; key, v = cur.Next() {
			if len(key) != size {
				c.problem(string(bucketNames[k].name), envelope.ID{}, "key of %d bytes", len(key))
				continue
			}
			check(key, v)
		}
	}
	each(bkDue, dueKeySize, func(key, _ []byte) {
		id := envelope.ID(key[6:22])
		h, err := parseHead(tx.bucket(bkItem).Get(id[:]))
		want := make(map[string]bool)
		if err == nil {
			tx.wantKeys(bkDue, id, &h, want)
		}
		if !want[string(key)] {
			c.problem("due", id, "the index has a leg that the record does not have")
			c.bad[id] = true
		}
	})
	each(bkWait, waitKeySize, func(key, _ []byte) {
		if at, r := parseWait(key); !tx.waits(at, r) {
			c.problem("wait", r.ID, "the index has a time that the record does not have")
			c.bad[r.ID] = true
		}
	})
	each(bkBody, 16, func(key, _ []byte) {
		h, err := parseHead(tx.bucket(bkItem).Get(key))
		if (err != nil || h.flags&flagInline == 0) && tx.bucket(bkBad).Get(key) == nil && !c.bad[envelope.ID(key)] {
			c.problem("orphan", envelope.ID(key), "content without item")
			c.loose = append(c.loose, clone(key))
		}
	})
	each(bkFile, 17, func(key, v []byte) {
		h, err := parseHead(tx.bucket(bkItem).Get(v))
		if (err != nil || h.flags&flagFile == 0 || h.file != fileName(key[1:])) && tx.bucket(bkBad).Get(v) == nil && !(len(v) == 16 && c.bad[envelope.ID(v)]) {
			c.problem("orphan", envelope.ID{}, "file %x without item", key[1:])
			c.noFile = append(c.noFile, clone(key))
		}
	})
}

// folders looks for files that no entry mentions.
func (c *checker) folders() error {
	for i := range 256 {
		dir := c.s.path(bodyDir, fmt.Sprintf("%02x", i))
		names, err := c.s.o.FS.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range names {
			b, err := hex.DecodeString(e.Name())
			if err != nil || len(b) != len(fileName{}) || fileName(b).folder() != byte(i) || e.IsDir() {
				c.problem("stranger", envelope.ID{}, "%s/%s is nothing of the spool's", dir, e.Name())
				continue
			}
			if n := fileName(b); !c.s.bodies.has(n) {
				c.orphans = append(c.orphans, n)
			}
		}
	}
	return nil
}

// contents compares every content file with what its record says; those of items that finish meanwhile are left out.
func (c *checker) contents() error {
	var from []byte
	for {
		var files []fileID
		err := c.s.view(func(b *bolt.Tx) error {
			cur := b.Bucket(bucketNames[bkFile].name).Cursor()
			k, v := cur.Seek(from)
			for ; k != nil && len(files) < 1000; k, v = cur.Next() {
				if len(k) == 17 && len(v) == 16 {
					files = append(files, fileID{fileName(k[1:]), envelope.ID(v)})
				}
				from = append(clone(k), 0)
			}
			return nil
		})
		if err != nil || len(files) == 0 {
			return err
		}
		for _, f := range files {
			if err := c.file(f); err != nil {
				return err
			}
		}
	}
}

func (c *checker) file(f fileID) error {
	it, done, err := c.s.Find(f.id)
	if err != nil || done {
		return nil // finished or set aside
	}
	c.rep.Bodies++
	c.rep.Bytes += it.BodySize
	var want [32]byte
	err = c.s.View(func(tx *Tx) error {
		h, err := parseHead(tx.bucket(bkItem).Get(f.id[:]))
		want = h.body(it.Env.Sum).sum
		return err
	})
	if err != nil {
		return nil
	}
	r, err := c.s.o.FS.Open(c.s.bodyPath(f.n))
	if errors.Is(err, fs.ErrNotExist) {
		c.content(f.id, "its content is missing")
		return nil
	}
	if err != nil {
		c.content(f.id, "its content cannot be opened")
		return nil
	}
	defer r.Close()
	sum := envelope.NewSum()
	n, err := io.Copy(sum, io.LimitReader(r, it.BodySize)) // what follows is of an earlier mail
	switch {
	case err != nil:
		c.content(f.id, "its content cannot be read")
	case n != it.BodySize:
		c.content(f.id, "its content has a wrong length")
	case [32]byte(sum.Sum(nil)) != want:
		c.content(f.id, "its content is damaged")
	}
	return nil
}

// confirm drops findings that other work has overtaken, and compares the counts: in the writer, while all stand still.
func (c *checker) confirm() error {
	return c.s.submit(c.s.requests, &request{alone: true, fn: func(tx *Tx) error {
		orphans := c.orphans[:0:0]
		for _, n := range c.orphans {
			k := fileKey(n)
			if tx.bucket(bkFile).Get(k[:]) == nil && !c.s.bodies.has(n) {
				if _, err := c.s.o.FS.Lstat(c.s.bodyPath(n)); err == nil {
					orphans = append(orphans, n)
					c.problem("orphan", envelope.ID{}, "file %x is not in the index", n)
				}
			}
		}
		c.orphans = orphans
		problems := c.rep.Problems[:0]
		for _, p := range c.rep.Problems {
			if p.Kind == "content" && tx.bucket(bkItem).Get(p.ID[:]) == nil {
				delete(c.broken, p.ID)
				continue
			}
			problems = append(problems, p)
		}
		c.rep.Problems = problems
		return c.counts(tx)
	}})
}

// counts compares what memory counts with the records.
func (c *checker) counts(tx *Tx) error {
	is, _, err := c.s.countItems(tx.tx)
	if err != nil {
		return err
	}
	was := c.s.tally.clone()
	for no := uint32(1); no <= c.s.dests.count(); no++ {
		a, b := was.by[no], is[no]
		if a == nil {
			a = &tallyOf{}
		}
		if b == nil {
			b = &tallyOf{}
		}
		if a.n != b.n || a.bytes != b.bytes {
			d, _ := c.s.dests.dest(no)
			c.problem("count", envelope.ID{}, "%s has legs %v of %d bytes, counted were %v of %d bytes", d, b.n, b.bytes, a.n, a.bytes)
		}
	}
	return nil
}

// repair does what Fsck promises; every step looks again before it changes anything.
func (c *checker) repair() error {
	s := c.s
	var bad []badRecord
	for id := range c.bad {
		bad = append(bad, badRecord{id, errIndex})
	}
	if err := s.heal(bad); err != nil {
		return err
	}
	err := s.Apply(func(tx *Tx) error {
		tx.b.wrote, tx.b.recount = true, true
		for _, k := range c.loose {
			h, err := parseHead(tx.bucket(bkItem).Get(k))
			if err == nil && h.flags&flagInline != 0 {
				continue
			}
			if err := tx.del(bkBody, k); err != nil {
				return err
			}
		}
		for _, k := range c.noFile {
			if h, err := parseHead(tx.bucket(bkItem).Get(tx.bucket(bkFile).Get(k))); err == nil && h.file == fileName(k[1:]) {
				continue
			}
			tx.b.unlink = append(tx.b.unlink, discard{name: fileName(k[1:])})
			if err := tx.del(bkFile, k); err != nil {
				return err
			}
		}
		for _, f := range c.lost {
			h, err := parseHead(tx.bucket(bkItem).Get(f.id[:]))
			if err != nil || h.file != f.n {
				continue
			}
			k := fileKey(f.n)
			if err := tx.put(bkFile, k[:], clone(f.id[:])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	lost := make(map[fileName]bool)
	for _, f := range c.lost {
		lost[f.n] = true
	}
	for _, n := range c.orphans {
		if lost[n] {
			continue
		}
		if err := s.o.FS.Remove(s.bodyPath(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for id, what := range c.broken {
		if err := s.holdBroken(id, what); err != nil {
			return err
		}
	}
	for i := range c.rep.Problems {
		p := &c.rep.Problems[i]
		p.Fixed = p.Kind != "page" && p.Kind != "stranger" && p.Kind != "trace" && p.Kind != "state"
	}
	return nil
}
