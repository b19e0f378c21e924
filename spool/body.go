package spool

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

// Body is content on its way into the spool: written, finished, then given to Tx.Add. One goroutine may use it.
// What is neither added nor discarded is removed by the next Open.
type Body struct {
	s        *Spool
	buf      []byte // content while it is small
	f        durable.File
	w        *bufio.Writer
	h        *envelope.Summer
	name     fileName
	size     int64
	asked    int64 // size at which the disk was asked for room last
	sum      [32]byte
	vouched  bool // sum is given, and the content has been compared with it
	again    bool // the file was one
	reuse    bool // the content may go into a file of an item that has ended
	finished bool
	adopted  bool
	closed   bool // discarded
	err      error
}

// askEvery is how many bytes are written between two looks at the disk reserve.
const askEvery = 1 << 20

// NewBody begins the content of an item.
func (s *Spool) NewBody() *Body { return &Body{s: s} }

// NewMailBody is NewBody for the content of a mail: it may be put into a file that held an earlier one.
func (s *Spool) NewMailBody() *Body { return &Body{s: s, reuse: true} }

// Vouch says what the hash of the content is, before the first Write: whoever writes compares it, and discards the body if it is
// another. Large content is then not hashed a second time.
func (b *Body) Vouch(sum [32]byte) { b.sum, b.vouched = sum, true }

// Write appends content. It wraps ErrFull when the disk reserve is reached; after an error the body is useless.
func (b *Body) Write(p []byte) (int, error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case b.finished || b.closed:
		return 0, errors.New("writing to a finished body")
	}
	if b.f == nil && len(b.buf)+len(p) <= b.s.o.InlineMax {
		b.buf = append(b.buf, p...)
		b.size += int64(len(p))
		return len(p), nil
	}
	n, err := b.spill(p)
	if err != nil {
		b.err = fmt.Errorf("storing content: %w", b.s.diskError(err))
		return n, b.err
	}
	return n, nil
}

// spill writes p to the file, which it makes first.
func (b *Body) spill(p []byte) (int, error) {
	if b.f == nil {
		if err := b.s.room(false); err != nil {
			return 0, err
		}
		if err := b.openFile(); err != nil {
			return 0, err
		}
		if !b.vouched {
			b.h = envelope.NewSummer()
			b.h.Write(b.buf)
		}
		b.w = bufio.NewWriterSize(b.f, 32<<10)
		if _, err := b.w.Write(b.buf); err != nil {
			return 0, err
		}
		b.buf = nil
	}
	if b.size-b.asked >= askEvery {
		b.asked = b.size
		if f, ok := b.f.(durable.Beginner); ok {
			f.Begin(b.size - int64(b.w.Buffered()))
		}
		if err := b.s.room(false); err != nil {
			return 0, err
		}
	}
	n, err := b.w.Write(p)
	if b.h != nil {
		b.h.Write(p[:n])
	}
	b.size += int64(n)
	return n, err
}

// openFile makes the file, or takes one that was kept: its name and length are durable already.
func (b *Body) openFile() (err error) {
	if b.reuse {
		if f, name, ok := b.s.spareBody(); ok {
			b.f, b.name, b.again = f, name, true
			return nil
		}
	}
	b.name = newFileName(time.Now())
	b.s.bodies.add(b.name)
	if b.f, err = b.s.o.FS.Create(b.s.bodyPath(b.name), 0o600); err != nil {
		b.f = nil
		b.s.bodies.remove(b.name)
	}
	return err
}

// Finish makes the content durable (small content becomes so with Tx.Add). A second call does nothing.
func (b *Body) Finish() error {
	if b.err != nil || b.finished {
		return b.err
	}
	if b.closed {
		return errors.New("finishing a discarded body")
	}
	if b.f == nil {
		b.sum = envelope.SumOf(b.buf)
		b.finished = true
		return nil
	}
	if err := b.settle(); err != nil {
		b.err = fmt.Errorf("storing content: %w", b.s.diskError(err))
		return b.err
	}
	if b.h != nil {
		b.sum = b.h.Sum()
	}
	b.finished = true
	return nil
}

// settle is the second half of a durable write: length, fsync, close, fsync of the folder. There is no rename: until
// the index mentions a file its name is as good as a temporary one, and one sync of the journal is saved.
func (b *Body) settle() error {
	err := b.w.Flush()
	f := b.f
	if err != nil {
		f.Close()
		return err
	}
	if b.again {
		return durable.Reseal(f, b.size)
	}
	if err := durable.Seal(f, b.size); err != nil {
		return err
	}
	return b.s.syncer.Sync(b.s.bodyFolder(b.name))
}

// Discard gives the content up, unless a committed transaction has taken it over. A second call does nothing.
func (b *Body) Discard() {
	if b.adopted || b.closed {
		return
	}
	b.closed = true
	b.buf = nil
	if b.f == nil {
		return
	}
	b.f.Close() // closed already when it was finished
	if b.finished && b.s.broken.Load() != nil {
		return // nobody knows whether the index mentions it: the next start does
	}
	// A file is used again only when its name is durable, and when its blocks have shown no fault.
	b.s.retire(discard{b.name, b.reuse && b.err == nil && (b.again || b.finished)})
}

// Open reads the content, after Finish and before it is given to Tx.Add or discarded.
func (b *Body) Open() (io.ReadSeekCloser, error) {
	if _, _, err := b.ref(); err != nil {
		return nil, err
	}
	return b.Written()
}

// Written opens what has been written so far, until the body is given to Tx.Add or discarded. No more is written while it is read.
func (b *Body) Written() (io.ReadSeekCloser, error) {
	switch {
	case b.closed || b.adopted:
		return nil, errors.New("reading a body that is used up")
	case b.f == nil:
		return memoryBody{bytes.NewReader(b.buf)}, nil
	case !b.finished:
		if err := b.w.Flush(); err != nil {
			return nil, err
		}
	}
	f, err := b.s.o.FS.Open(b.s.bodyPath(b.name))
	if err != nil {
		return nil, err
	}
	return &bodyFile{File: f, size: b.size, done: func() {}}, nil // the file may be longer
}

// Size is how many bytes were written.
func (b *Body) Size() int64 { return b.size }

// Sum is the hash (envelope.SumOf) of the content, after Finish.
func (b *Body) Sum() [32]byte { return b.sum }

// ref describes the finished content, and returns it when it is small.
func (b *Body) ref() (bodyRef, []byte, error) {
	if b.err != nil || !b.finished || b.closed || b.adopted {
		return bodyRef{}, nil, errors.New("body is not finished, or used up")
	}
	r := bodyRef{flags: flagInline, size: b.size, sum: b.sum}
	if b.f != nil {
		r.flags, r.file = flagFile, b.name
	}
	return r, b.buf, nil
}

// adopt is called when a commit has made the content part of the spool.
func (b *Body) adopt() {
	b.adopted = true
	if b.f != nil {
		b.s.bodies.remove(b.name)
	}
}

// bodyTable knows the body files that no commit mentions yet, or any more.
type bodyTable struct {
	mu sync.Mutex
	by map[fileName]struct{}
}

func (t *bodyTable) add(n fileName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = make(map[fileName]struct{})
	}
	t.by[n] = struct{}{}
}

func (t *bodyTable) remove(n fileName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by, n)
}

func (t *bodyTable) has(n fileName) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.by[n]
	return ok
}

// newFileName is 6 bytes of milliseconds and 10 random bytes.
func newFileName(now time.Time) (n fileName) {
	binary.BigEndian.PutUint64(n[:], uint64(now.UnixMilli())<<16)
	rand.Read(n[6:])
	return n
}

// folder is one of 256 folders. It changes every 4 seconds, so that bodies which come together share the fsync of
// their folder.
func (n fileName) folder() byte { return byte(uint64(binary.BigEndian.Uint64(n[:])>>16) >> 12) }

// fileKey is the place of a file in the index, ordered as the folders are walked.
func fileKey(n fileName) (k [17]byte) {
	k[0] = n.folder()
	copy(k[1:], n[:])
	return k
}

func (s *Spool) bodyFolder(n fileName) string {
	return s.path(bodyDir, hex.EncodeToString([]byte{n.folder()}))
}

func (s *Spool) bodyPath(n fileName) string {
	return s.path(bodyDir, hex.EncodeToString([]byte{n.folder()}), hex.EncodeToString(n[:]))
}

// OpenBody opens the content of an item that has not finished. The caller compares
// length and sum as it reads: what was durable may still have been damaged since. Content of a kind other than mail that
// has a file is that *os.File, and nothing else is in it. It fails with ErrNotFound or ErrNoBody.
func (s *Spool) OpenBody(id envelope.ID) (io.ReadSeekCloser, error) {
	r, err := s.openBody(id)
	if err != nil {
		return nil, itemError("opening the content of", id, err)
	}
	return r, nil
}

func (s *Spool) openBody(id envelope.ID) (io.ReadSeekCloser, error) {
	s.spares.gate.RLock()
	defer s.spares.gate.RUnlock()
	var h head
	var content []byte
	mail := false
	err := s.Peek(func(tx *Tx) error {
		rec := tx.bucket(bkItem).Get(id[:])
		if rec == nil {
			return ErrNotFound
		}
		var err error
		if h, err = parseHead(rec); err != nil {
			s.poison(id, err)
			return fmt.Errorf("%w: %w", ErrPoisoned, err)
		}
		switch {
		case h.flags&flagInline != 0:
			v := tx.bucket(bkBody).Get(id[:])
			if v == nil {
				return fmt.Errorf("%w: it is missing in the index", ErrNoBody)
			}
			content = append([]byte{}, v...)
		case h.flags&flagFile == 0:
			return ErrNoBody
		default:
			it, err := tx.parse(id, rec)
			mail = err == nil && it.Env.Kind == envelope.KindMail
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if h.flags&flagInline != 0 {
		return memoryBody{bytes.NewReader(content)}, nil
	}
	f, err := s.o.FS.Open(s.bodyPath(h.file))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNoBody, err)
	}
	if err != nil || !mail {
		return f, err
	}
	return &bodyFile{File: f, size: h.size, done: s.spares.read(h.file)}, nil
}

// SmallBody reads the content of an item that has not finished if it is so small that the index holds it; false: there is
// none, or it has a file, and OpenBody tells. It opens nothing and looks at nothing outside of the transaction.
func (tx *Tx) SmallBody(id envelope.ID) ([]byte, bool) {
	v := tx.bucket(bkBody).Get(id[:])
	if v == nil {
		return nil, false
	}
	return append([]byte{}, v...), true
}

// memoryBody is small content, read from a copy.
type memoryBody struct{ *bytes.Reader }

// Close does nothing.
func (memoryBody) Close() error { return nil }
