package spool

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Bounds of one commit: enough to amortise its sync, small enough to keep the wait short and memory bounded.
const (
	maxBatch      = 1024
	maxBatchBytes = 4 << 20
)

// What ApplySoon may wait for company, and how many of its callers are company enough. The wait is a few syncs of a
// fast disk long. More company would save little of the sync and cost those who wait, who are few: the workers of a place.
const (
	soonWait  = 3 * time.Millisecond
	soonCount = 8
)

// request is one call of Apply.
type request struct {
	fn     func(*Tx) error
	urgent bool
	alone  bool // no companions: fn looks at the transaction as a whole

	peek    func(*Tx) error // instead of fn: looks, and changes nothing
	release bool            // instead of fn: the index is to have everything

	err   error
	reply chan error
}

// batch is what one commit collects besides the pages of the index; it takes effect in memory after the commit.
type batch struct {
	tx       *Tx
	changes  []change
	newDests []uint32
	unlink   []discard
	adopted  []*Body
	finished int
	due      []uint32 // destinations that the commit gave something to
	redo     []byte   // the changes, as the log keeps them, behind room for the record's head; nil: not kept
	ops      int      // how many they are
	bytes    int
	wrote    bool
	recount  bool // the changes do not tell all: count anew

	space      [2]error // the disk's answer, for mail and for what is urgent
	spaceAsked [2]bool
}

// Apply runs fn in a transaction and commits it, together with what other callers want at the same moment. When it
// returns nil, all of fn's work is durable; when fn or the commit fails, none of it is. fn may run more than once
// and must not keep state from a run that failed. Without callers the goroutine that commits sleeps; a lone caller
// never waits for company.
func (s *Spool) Apply(fn func(*Tx) error) error { return s.apply(fn, false) }

// ApplyUrgent is Apply, with leave to add items while the disk reserve for mail is reached: for receipts and reports,
// which alone free space. A last reserve of 16 MiB is kept from them too.
func (s *Spool) ApplyUrgent(fn func(*Tx) error) error { return s.apply(fn, true) }

// ApplySoon is ApplyUrgent for work that nobody outside waits for, such as the end of a delivery: it rides along with
// the next commit, and waits a few milliseconds for one, so that a stream of mail needs half the syncs.
func (s *Spool) ApplySoon(fn func(*Tx) error) error { return s.send(s.soon, fn, true) }

func (s *Spool) apply(fn func(*Tx) error, urgent bool) error { return s.send(s.requests, fn, urgent) }

// ApplyHere is Apply for work that somebody outside waits for: when nobody commits, the caller does it itself, and saves two
// threads the time to wake each other. The caller must hold no lock that OnDue or a function given to Apply may wait for.
func (s *Spool) ApplyHere(fn func(*Tx) error) error { return s.here(&request{fn: fn}) }

// ApplyUrgentHere is ApplyHere with the leave of ApplyUrgent.
func (s *Spool) ApplyUrgentHere(fn func(*Tx) error) error {
	return s.here(&request{fn: fn, urgent: true})
}

func (s *Spool) here(r *request) error {
	if p := s.broken.Load(); p != nil {
		return *p
	}
	if !s.lead() {
		return s.submit(s.requests, r)
	}
	defer s.leave()
	r.reply = make(chan error, 1)
	s.commits(r)
	return <-r.reply
}

func (s *Spool) send(to chan<- *request, fn func(*Tx) error, urgent bool) error {
	if p := s.broken.Load(); p != nil {
		return *p
	}
	return s.submit(to, &request{fn: fn, urgent: urgent})
}

// errInside is a fault of this program: better an error than a writer that waits for itself for ever.
var errInside = errors.New("a function given to Apply or Peek asks the spool for a transaction of its own")

// insideAfter is how long a request waits for the writer before that fault is thought of.
var insideAfter = 10 * time.Second

// inWriter tells whether the caller does the writer's work.
func inWriter() bool {
	stack := make([]byte, 64<<10)
	stack = stack[:runtime.Stack(stack, false)]
	return bytes.Contains(stack, []byte("spool.(*Spool).commit(")) || bytes.Contains(stack, []byte("spool.(*Spool).answer("))
}

// lead makes it the caller's turn, if nobody else has it or wants it.
func (s *Spool) lead() bool { return len(s.requests) == 0 && !s.asked.Load() && s.turn.TryLock() }

// leave ends the turn of a caller. A panic in it ends the process, as one of the writer does: nobody knows what it has left
// in the transaction, and whoever serves the caller, as SMTP and HTTP do, would recover from it and go on.
func (s *Spool) leave() {
	if p := recover(); p != nil {
		go panic(fmt.Sprintf("%v, in a commit or a look:\n%s", p, debug.Stack()))
		select {}
	}
	s.turn.Unlock()
}

// serve does what needs no commit, without the writer if it is nobody's turn: a look, and beginning to wait for company.
func (s *Spool) serve(r *request, soon bool) bool {
	if r.fn != nil && !soon || !s.lead() {
		return false
	}
	defer s.leave()
	if r.fn == nil {
		s.answer(r)
		return true
	}
	if len(s.waiting)+1 >= soonCount {
		return false
	}
	s.wait(r)
	return true
}

// submit hands a request to the writer and waits for its answer.
func (s *Spool) submit(to chan<- *request, r *request) error {
	r.reply = make(chan error, 1)
	if !s.serve(r, to == s.soon) {
		select {
		case to <- r:
		case <-s.quit:
			return ErrClosed
		}
	} else if r.fn == nil {
		return <-r.reply
	}
	select {
	case err := <-r.reply:
		return err
	case <-s.stopped:
	case <-time.After(insideAfter):
		if inWriter() {
			return errInside
		}
		select {
		case err := <-r.reply:
			return err
		case <-s.stopped:
		}
	}
	select { // the writer may have answered in its last breath
	case err := <-r.reply:
		return err
	default:
		return ErrClosed
	}
}

// View runs fn in a read-only transaction over the last commit. It may wait for the commit that runs: whoever calls it
// holds no lock that a function given to Apply may wait for. Keep it short: pages that it can see are not reused.
func (s *Spool) View(fn func(*Tx) error) error {
	return s.view(func(b *bolt.Tx) error { return fn(&Tx{s: s, tx: b}) })
}

func (s *Spool) view(fn func(*bolt.Tx) error) error {
	if err := s.settled(); err != nil {
		return err
	}
	return s.look(fn)
}

// look runs fn over what the index has; the writer itself may call it.
func (s *Spool) look(fn func(*bolt.Tx) error) error {
	err := s.db.View(fn)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// write is the writer goroutine; Close waits for it.
func (s *Spool) write() {
	defer close(s.stopped)
	defer s.timer.Stop()
	defer s.held.timer.Stop()
	defer s.release()
	for {
		select {
		case <-s.held.timer.C:
			s.take()
			s.release()
		case r := <-s.requests:
			s.take()
			s.commits(r)
		case r := <-s.soon:
			s.take()
			if s.wait(r); len(s.waiting) >= soonCount {
				s.commits(s.company())
			}
		case <-s.timer.C:
			s.take()
			s.commits(s.company())
		case <-s.quit:
			s.take() // for good
			for r := s.company(); r != nil; r = s.company() {
				r.reply <- ErrClosed
			}
			return
		}
		s.turn.Unlock()
	}
}

// wait puts r among those that wait for company.
func (s *Spool) wait(r *request) {
	if len(s.waiting) == 0 {
		s.timer.Reset(soonWait)
	}
	s.waiting = append(s.waiting, r)
}

// take makes it the writer's turn to commit. Callers of ApplyHere that come meanwhile leave it to the writer.
func (s *Spool) take() {
	s.asked.Store(true)
	s.turn.Lock()
	s.asked.Store(false)
}

// commits commits r (nil: nothing) and those that wanted a commit of their own. A full commit may leave callers of
// ApplySoon behind: the timer comes back for them.
func (s *Spool) commits(r *request) {
	for r != nil {
		r = s.commit(r)
	}
	if len(s.waiting) > 0 {
		s.timer.Reset(soonWait)
	}
}

// company returns the next caller of ApplySoon that waits, or nil.
func (s *Spool) company() *request {
	if len(s.waiting) > 0 {
		r := s.waiting[0]
		s.waiting[0] = nil
		if s.waiting = s.waiting[1:]; len(s.waiting) == 0 {
			s.waiting = nil
		}
		return r
	}
	select {
	case r := <-s.soon:
		return r
	default:
		return nil
	}
}

// commit runs r and whatever else waits in one transaction. It returns the request that wants one of its own next.
func (s *Spool) commit(r *request) (next *request) {
	if r.fn == nil {
		s.answer(r)
		return nil
	}
	if r.alone {
		s.release() // its error is that of begin
	}
	var looks []*request // they must not see what is not durable yet
	defer func() {
		for _, r := range looks {
			s.answer(r)
		}
	}()
	b, err := s.begin()
	if err != nil {
		r.reply <- err
		return nil
	}
	ok := make([]*request, 0, 64)
	full := r.alone
	for r != nil {
		if r.alone && !full { // it has company already
			next = r
			break
		}
		if r.fn == nil {
			looks = append(looks, r)
			r = s.more(len(ok), b, full)
			continue
		}
		before := b.wrote
		b.wrote = false
		if r.err = s.run(b, r); r.err == nil {
			ok = append(ok, r)
		} else {
			r.reply <- r.err
			if b.wrote {
				// Undo it by starting over without it. One such start per commit keeps a stream of failing callers
				// from costing the others more than twice their work.
				full = true
				if b, ok, err = s.restart(b, ok); err != nil {
					return nil
				}
				before = b.wrote
			}
		}
		b.wrote = b.wrote || before
		r = s.more(len(ok), b, full)
	}
	s.finish(b, ok)
	return next
}

// more returns the next request for a commit that holds n already, or nil when nobody waits.
func (s *Spool) more(n int, b *batch, full bool) *request {
	if full || n >= maxBatch || b.bytes >= maxBatchBytes {
		return nil
	}
	for try := 0; ; try++ {
		select {
		case r := <-s.requests:
			return r
		default:
		}
		if try == 1 {
			return s.company()
		}
		runtime.Gosched() // those whom the last commit woke are about to come back
	}
}

// restart rolls b back and runs the requests in ok again.
func (s *Spool) restart(b *batch, ok []*request) (*batch, []*request, error) {
	for {
		s.rollback(b)
		nb, err := s.begin()
		if err != nil {
			for _, r := range ok {
				r.reply <- err
			}
			return nil, nil, err
		}
		b = nb
		good := ok[:0]
		failed := false
		for i, r := range ok {
			b.wrote = false
			if r.err = s.run(b, r); r.err == nil {
				good = append(good, r)
				continue
			}
			r.reply <- r.err
			if b.wrote {
				good = append(good, ok[i+1:]...)
				failed = true
				break
			}
		}
		ok = good
		if !failed {
			b.wrote = len(ok) > 0
			return b, ok, nil
		}
	}
}

func (s *Spool) begin() (*batch, error) {
	if p := s.broken.Load(); p != nil {
		return nil, *p
	}
	tx, err := s.openTx()
	if err != nil {
		return nil, err
	}
	b := &batch{redo: append(s.redo[:0], zeros[:walHead]...)}
	b.tx = &Tx{s: s, tx: tx, b: b, now: time.Now(), buckets: s.held.buckets}
	return b, nil
}

// run calls one function.
func (s *Spool) run(b *batch, r *request) error {
	b.tx.urgent = r.urgent
	return r.fn(b.tx)
}

func (s *Spool) rollback(b *batch) {
	s.held.buckets = b.tx.buckets
	s.abandon(b.ops > 0)
	for _, no := range b.newDests {
		s.dests.forget(no)
	}
}

// finish commits b, lets memory follow, and answers.
func (s *Spool) finish(b *batch, ok []*request) {
	err := s.flush(b, ok)
	for errors.Is(err, errHeld) && s.release() == nil || errors.Is(err, ErrFull) && (s.saveRoom() || s.dropSpares() || s.dropBallast()) {
		// Once more. On a full disk what ends mail goes through now, new mail is refused.
		if b, ok, err = s.restart(b, ok); err != nil {
			return
		}
		err = s.flush(b, ok)
	}
	if err == nil && b.wrote { // first: who has its answer may wait for the chores
		for _, d := range b.unlink {
			s.chores.add(func() { s.retire(d) })
		}
	}
	for _, r := range ok {
		r.reply <- err
	}
	if err != nil || !b.wrote {
		return
	}
	for _, no := range b.due {
		if d, ok := s.dests.dest(no); ok {
			s.o.OnDue(d)
		}
	}
}

// flush commits b, unless it holds nothing, and lets memory follow.
func (s *Spool) flush(b *batch, ok []*request) error {
	if len(ok) == 0 || !b.wrote {
		b.wrote = false
		s.rollback(b)
		return nil
	}
	if err := s.trimTrace(b); err != nil {
		s.rollback(b)
		return err
	}
	for _, d := range b.unlink {
		s.bodies.add(d.name)
	}
	if err := s.makeDurable(b); err != nil {
		for _, d := range b.unlink {
			s.bodies.remove(d.name)
		}
		s.rollback(b)
		return err
	}
	s.done.Add(int64(b.finished))
	for _, body := range b.adopted {
		body.adopt()
	}
	b.due = s.tally.apply(b.changes)
	if b.recount && s.release() == nil {
		s.recount() // its error would be that of a closed index, which the next Apply reports
	}
	s.leases.apply(b.changes)
	s.wakes.apply(b.changes)
	return nil
}

// errHeld tells that b has to begin anew in a transaction of its own.
var errHeld = errors.New("the index is to have first what it holds")

// makeDurable commits b: by the log, and then or later to the index without a sync; or by the index alone, when its map
// may have to grow, or the disk was full.
func (s *Spool) makeDurable(b *batch) error {
	if cap(b.redo) <= 2*maxBatchBytes {
		s.redo = b.redo
	}
	c, h := &s.cp, &s.held
	if c.plain = max(c.plain-1, 0); c.plain > 0 || s.tight(b) {
		return s.makePlain(b)
	}
	if !c.logging {
		if err := s.startLog(); err != nil {
			return s.logFailed(err)
		}
	}
	if err := c.wal.append(b.redo); err != nil {
		return s.logFailed(err)
	}
	if !h.may {
		if err := s.commitIndex(b); err != nil {
			if errors.Is(err, ErrFull) {
				if eerr := c.wal.erase(); eerr != nil {
					return s.breakDown(eerr)
				}
			}
			return err
		}
		c.commits++
		return s.follow()
	}
	s.hold(b)
	if h.grown() {
		if err := s.release(); err != nil {
			return err
		}
	}
	return s.follow()
}

// makePlain commits b by the index alone.
func (s *Spool) makePlain(b *batch) error {
	if s.held.commits > 0 {
		return errHeld // else closing the log would forget it
	}
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.commitIndex(b); err != nil {
		return err
	}
	return s.look(func(tx *bolt.Tx) error {
		s.cp.mapped = max(s.cp.mapped, mappedFor(tx.Size()))
		return nil
	})
}

// commitIndex commits b alone to the index.
func (s *Spool) commitIndex(b *batch) error {
	id := b.tx.tx.ID()
	s.held.tx = nil
	if err := b.tx.tx.Commit(); err != nil {
		return s.commitFailed(id, err)
	}
	return nil
}

// logFailed decides whether the spool can go on: a record that found no room is not there.
func (s *Spool) logFailed(err error) error {
	if isFull(err) && !errors.Is(err, errUnsynced) {
		return fmt.Errorf("%w: writing the log: %w", ErrFull, err)
	}
	return s.breakDown(err)
}

// commitFailed decides whether the index can go on. A full disk is noticed while pages are written that nothing
// refers to yet: the transaction is undone and that is all. But once the page that makes the transaction valid may
// have been written, or a sync has failed, memory and disk may differ for good, and every further write could
// overwrite pages in use.
func (s *Spool) commitFailed(id int, err error) error {
	safe := isFull(err)
	if safe {
		verr := s.db.View(func(tx *bolt.Tx) error {
			if tx.ID() >= id {
				safe = false
			}
			return nil
		})
		safe = safe && verr == nil
	}
	if safe {
		return fmt.Errorf("%w: writing the index: %w", ErrFull, err)
	}
	return s.breakDown(err)
}

// breakDown makes an error final.
func (s *Spool) breakDown(err error) error {
	err = fmt.Errorf("%w: %w; restart to read what the disk holds", ErrBroken, err)
	s.broken.Store(&err)
	return err
}
