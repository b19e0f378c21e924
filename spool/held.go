package spool

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// The log alone makes a commit durable. So the transaction of the index is held open over several records of the log and
// committed once for all of them: a page that each of them changes is written once. That happens when it has grown to a
// bound, when a while has passed, and before a View, which must see everything that Apply has answered for.

// Bounds of what is held.
const (
	maxHeld      = 64
	maxHeldBytes = 4 << 20
	heldFor      = 100 * time.Millisecond
)

// holdRoom is how much more than the reserve the disk has free while anything is held: when the index takes it, it is too
// late to refuse anybody.
const holdRoom = 128 << 20

// held is the transaction of the index that is open, with the changes that the log has and the index has not. It is the
// writer's. Between two commits one is open only while it holds any.
type held struct {
	tx      *bolt.Tx // nil: none
	buckets [numBuckets]*bolt.Bucket
	may     bool   // there is room to hold what it changes
	commits int    // records of the log in it
	redo    []byte // their changes
	ops     int    // how many
	timer   *time.Timer

	// any tells everybody that there are some. It is set before memory follows the commit, and reset when the index has
	// them: who finds it unset sees in the index whatever memory has been told.
	any atomic.Bool
}

// openTx returns the open transaction, a new one if there is none.
func (s *Spool) openTx() (*bolt.Tx, error) {
	h := &s.held
	if h.tx != nil {
		return h.tx, nil
	}
	tx, err := s.db.Begin(true)
	if err != nil {
		return nil, fmt.Errorf("opening a transaction: %w", err)
	}
	h.tx, h.buckets, h.may = tx, [numBuckets]*bolt.Bucket{}, s.roomy()
	return tx, nil
}

// roomy tells whether the disk has room for the index to take later what is acknowledged now.
func (s *Spool) roomy() bool {
	if s.ballast.size > 0 && !s.ballast.held {
		return false
	}
	free, total, err := s.o.Free()
	return err == nil && free-s.reserve(total, false) >= holdRoom
}

// hold keeps the changes of b, which the log has, for later.
func (s *Spool) hold(b *batch) {
	h := &s.held
	if h.commits == 0 {
		h.timer.Reset(heldFor)
	}
	h.commits++
	h.ops += b.ops
	h.redo = append(h.redo, b.redo[walHead:]...)
	h.buckets = b.tx.buckets
	h.any.Store(true)
}

// grown tells whether it is time to commit what is held.
func (h *held) grown() bool { return h.commits >= maxHeld || len(h.redo) >= maxHeldBytes }

// release commits what is held to the index. The transaction must have nothing else.
func (s *Spool) release() error {
	h := &s.held
	if h.commits == 0 {
		return nil
	}
	if p := s.broken.Load(); p != nil {
		return *p
	}
	tx := h.tx
	h.tx = nil
	return s.released(tx.Commit())
}

// abandon undoes what the transaction has beyond what is held.
func (s *Spool) abandon(wrote bool) {
	h := &s.held
	if h.tx == nil || h.commits > 0 && !wrote {
		return
	}
	h.tx.Rollback()
	h.tx = nil
	if h.commits > 0 && s.broken.Load() == nil {
		s.released(s.remake())
	}
}

// released takes note that the index has what was held, or failed to take it with err. On a full disk it tries again with
// what room the spool can make. Else only a restart helps: the log has it.
func (s *Spool) released(err error) error {
	for isFull(err) && (s.dropSpares() || s.dropBallast()) {
		err = s.remake()
	}
	if err != nil {
		return s.breakDown(fmt.Errorf("writing to the index what its log has: %w", err))
	}
	h := &s.held
	h.commits, h.ops = 0, 0
	if h.redo = h.redo[:0]; cap(h.redo) > 2*maxHeldBytes {
		h.redo = nil
	}
	h.any.Store(false)
	s.cp.commits++
	return nil
}

// remake makes the held changes once more, from what the log has of them, and commits them.
func (s *Spool) remake() error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	b := &batch{}
	b.tx = &Tx{s: s, tx: tx, b: b, now: time.Now()}
	if err := b.tx.redo(s.held.redo); err != nil {
		tx.Rollback()
		return err
	}
	return tx.Commit()
}

// settled returns when the index has everything that was acknowledged before the call. The writer itself must not call
// it, nor anybody with a lock that a function given to Apply may wait for.
func (s *Spool) settled() error {
	if !s.held.any.Load() {
		return nil
	}
	err := s.submit(s.requests, &request{release: true})
	if errors.Is(err, ErrClosed) {
		return s.ended()
	}
	return err
}

// ended waits for the end of the writer, whose last act is to commit what is held.
func (s *Spool) ended() error {
	<-s.stopped
	if s.held.any.Load() {
		return ErrClosed
	}
	return nil
}

// Peek is View for a short look that many pieces of work need: what commits have left to be written to the index is
// looked at where it is. fn runs where the functions given to Apply run, and never beside one: it must be as short, and
// may wait for nothing that they wait for.
func (s *Spool) Peek(fn func(*Tx) error) error {
	if !s.held.any.Load() {
		return s.look(func(b *bolt.Tx) error { return fn(&Tx{s: s, tx: b}) })
	}
	return s.peek(fn)
}

// PeekNow is Peek for a look that is not worth waiting for: it does nothing, and returns false, while somebody commits.
func (s *Spool) PeekNow(fn func(*Tx) error) (bool, error) {
	if !s.lead() {
		return false, nil
	}
	defer s.leave()
	r := &request{peek: fn, reply: make(chan error, 1)}
	s.answer(r)
	return true, <-r.reply
}

// under is Peek with mu held until fn calls unlock or returns: what memory keeps under mu is of the same moment as the
// transaction, or older.
func (s *Spool) under(mu sync.Locker, fn func(tx *Tx, unlock func()) error) error {
	mu.Lock()
	unlock := sync.OnceFunc(mu.Unlock)
	defer unlock()
	if !s.held.any.Load() {
		return s.look(func(b *bolt.Tx) error { return fn(&Tx{s: s, tx: b}, unlock) })
	}
	unlock() // the writer may be waiting for it
	return s.peek(func(tx *Tx) error {
		mu.Lock()
		unlock := sync.OnceFunc(mu.Unlock)
		defer unlock()
		return fn(tx, unlock)
	})
}

// peek has the writer call fn.
func (s *Spool) peek(fn func(*Tx) error) error {
	var err error
	serr := s.submit(s.requests, &request{peek: func(tx *Tx) error { err = fn(tx); return nil }})
	if errors.Is(serr, ErrClosed) {
		if serr = s.ended(); serr == nil {
			return s.look(func(b *bolt.Tx) error { return fn(&Tx{s: s, tx: b}) })
		}
	}
	return errors.Join(serr, err)
}

// answer serves a request that changes nothing.
func (s *Spool) answer(r *request) {
	h := &s.held
	switch p := s.broken.Load(); {
	case h.commits > 0 && p != nil:
		r.reply <- *p
	case r.release:
		r.reply <- s.release()
	case h.commits > 0:
		tx := &Tx{s: s, tx: h.tx, buckets: h.buckets}
		err := r.peek(tx)
		h.buckets = tx.buckets
		r.reply <- err
	default:
		r.reply <- s.look(func(b *bolt.Tx) error { return r.peek(&Tx{s: s, tx: b}) })
	}
}
