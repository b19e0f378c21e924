package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// lane is one line of work: a channel's ordered jobs, with one runner, or its jobs in no order, with several.
type lane struct {
	chanKey
	free bool
}

// Run starts programs until ctx ends, and returns when the last of them has ended.
func (j *Jobs) Run(ctx context.Context) {
	programs, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	j.mu.Lock()
	j.ctx = programs
	j.mu.Unlock()
	j.lookAtAll()
	j.replyAll()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Reset(j.nextWake())
		select {
		case <-ctx.Done():
		case <-j.poke:
		case <-timer.C:
			j.wakeUp(j.o.Now())
		}
	}
	j.mu.Lock()
	j.ctx = nil
	close(j.slots) // who waits for a place to run looks again, and goes
	j.slots = make(chan struct{})
	j.mu.Unlock()
	over := time.AfterFunc(j.o.Patience, stop)
	defer over.Stop()
	j.wg.Wait()
}

// lookAtAll is kickAll when starting begins: from now on nothing that can be started is unknown here.
func (j *Jobs) lookAtAll() {
	j.kickAll()
	j.mu.Lock()
	j.looked = true
	j.mu.Unlock()
}

// kickAll looks at every channel of every peer: after a start, and when the policy has changed.
func (j *Jobs) kickAll() {
	var keys []chanKey
	err := j.spool.View(func(tx *spool.Tx) error {
		return tx.KV(tabInChan).Each(nil, func(k, v []byte) error {
			c, err := parseInChan(v)
			if err == nil && (c.gap || c.lost || c.status == held) {
				j.mu.Lock()
				j.owing[parseChanKey(k).peer] = time.Time{}
				j.mu.Unlock()
			}
			keys = append(keys, parseChanKey(k))
			return nil
		})
	})
	if err == nil {
		err = j.spool.View(func(tx *spool.Tx) error {
			return tx.KV(tabOutChan).Each(nil, func(k, v []byte) error {
				if c, err := parseOutChan(v); err == nil && c.owed {
					j.mu.Lock()
					j.owing[parseChanKey(k).peer] = time.Time{}
					j.mu.Unlock()
				}
				return nil
			})
		})
	}
	if err != nil {
		j.log.Error("read the channels", "err", err)
	}
	for _, k := range keys {
		j.kick(k)
	}
}

// PolicyChanged looks again at what may run.
func (j *Jobs) PolicyChanged() { j.kickAll() }

// kick has a channel looked at.
func (j *Jobs) kick(k chanKey) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range []lane{{k, false}, {k, true}} {
		j.launch(l)
	}
}

// launch starts one more runner of a lane, within its limits. The mutex is held.
func (j *Jobs) launch(l lane) {
	if j.ctx == nil {
		j.looked = false
		return
	}
	limit := 1
	if l.free {
		limit = j.policy().Parallel
	}
	if j.active[l] >= limit {
		j.again[l] = true
		return
	}
	j.active[l]++
	j.wg.Add(1)
	ctx := j.ctx
	go func() {
		defer j.wg.Done()
		j.runner(ctx, l)
	}()
}

// runner works on a lane until nothing can be started.
func (j *Jobs) runner(ctx context.Context, l lane) {
	for {
		wake := j.advance(ctx, l)
		j.mu.Lock()
		if j.again[l] && j.ctx != nil {
			delete(j.again, l)
			j.mu.Unlock()
			continue
		}
		delete(j.again, l)
		if j.active[l]--; j.active[l] == 0 {
			delete(j.active, l)
		}
		close(j.idle)
		j.idle = make(chan struct{})
		j.mu.Unlock()
		j.wakeAt(l.chanKey, wake)
		return
	}
}

// wakeAt has a channel looked at again at a time.
func (j *Jobs) wakeAt(k chanKey, at time.Time) {
	if at.IsZero() {
		return
	}
	j.mu.Lock()
	if old, ok := j.wake[k]; !ok || at.Before(old) {
		j.wake[k] = at
	}
	j.mu.Unlock()
	select {
	case j.poke <- struct{}{}:
	default:
	}
}

// nextWake is how long the scheduler may sleep.
func (j *Jobs) nextWake() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	wait := time.Hour
	now := j.o.Now()
	for _, at := range j.wake {
		wait = min(wait, max(at.Sub(now), 0))
	}
	return wait
}

// wakeUp kicks the channels whose time has come.
func (j *Jobs) wakeUp(now time.Time) {
	var due []chanKey
	j.mu.Lock()
	for k, at := range j.wake {
		if !at.After(now) {
			due = append(due, k)
			delete(j.wake, k)
		}
	}
	j.mu.Unlock()
	for _, k := range due {
		j.kick(k)
	}
}

// Drain runs what can be started now, and returns when nothing more can. It is for a node whose Run is not at work.
func (j *Jobs) Drain(ctx context.Context) {
	j.mu.Lock()
	j.ctx = ctx
	j.mu.Unlock()
	j.wakeUp(j.o.Now())
	j.lookAtAll()
	j.wg.Wait()
	j.mu.Lock()
	j.ctx = nil
	j.mu.Unlock()
}

// Settle waits until no program runs and none can be started, for at most the given time.
func (j *Jobs) Settle(ctx context.Context, atMost time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for {
		j.mu.Lock()
		idle, done := j.idle, len(j.active) == 0
		j.mu.Unlock()
		if done {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-idle:
		}
	}
}

// Idle reports whether no program runs and none could be started now. It does not before Run or Drain has looked at what
// waits from before.
func (j *Jobs) Idle() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.looked && len(j.active) == 0 && len(j.again) == 0
}

// run is one job on its way through a runner.
type run struct {
	lane
	key     []byte // of its slot
	s       slot
	item    *spool.Item
	stdin   []byte // the input, if it is small
	handler *Handler
	out     *Outcome
	ready   Ready           // for its start
	content *spool.Body     // of the result
	result  envelope.Result // what is known before the policy has spoken
}

// table is where the slot is.
func (l lane) table() string {
	if l.free {
		return tabFree
	}
	return tabIn
}

// advance works on a lane until nothing can be started, and returns when to look again. One commit holds the outcome of
// a job, its result, and the start of the next.
func (j *Jobs) advance(ctx context.Context, l lane) (wake time.Time) {
	var last *run
	var soon *ahead
	defer func() { soon.close() }()
	for {
		next, busy, at, err := j.step(ctx, l, last)
		if err != nil {
			if !errors.Is(err, spool.ErrClosed) {
				j.log.Error("jobs: record what was done", "channel", l.channel, "err", err)
			}
			if last != nil && j.insist(ctx, err) {
				continue
			}
			j.forget(last)
			return j.o.Now().Add(10 * time.Second)
		}
		last = nil
		ready := soon.take(next)
		soon = nil
		switch {
		case next != nil:
			if l.free {
				j.mu.Lock()
				j.launch(l) // perhaps there is another
				j.mu.Unlock()
			}
			next.ready = ready
			if !j.execute(ctx, next, func() { soon = j.lookAhead(next) }) {
				j.release(next)
				return time.Time{}
			}
			last = next
		case busy != nil && ctx.Err() == nil:
			j.mu.Lock()
			stopped := j.ctx == nil
			j.mu.Unlock()
			if stopped {
				return at
			}
			select {
			case <-ctx.Done():
			case <-busy:
			}
		default:
			return at
		}
	}
}

// recordPause is how long a disk that cannot take an outcome is left alone.
const recordPause = time.Second

// insist waits before an outcome that could not be stored is stored once more; false when that is of no use: the spool
// is closed or broken, or the node goes down. The next start finds the journal's entry then.
func (j *Jobs) insist(ctx context.Context, err error) bool {
	if errors.Is(err, spool.ErrClosed) || errors.Is(err, spool.ErrBroken) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(recordPause):
		return true
	}
}

// forget gives up an outcome that cannot be stored.
func (j *Jobs) forget(last *run) {
	if last == nil {
		return
	}
	if last.content != nil {
		last.content.Discard()
	}
	j.release(last)
}

// startOf is what a runner is told about a job. stdin is its input, if that is small.
func (j *Jobs) startOf(env *envelope.Envelope, try uint32, stdin []byte) *Start {
	job := env.Job
	s := &Start{ID: env.ID, Origin: env.Origin, Peer: j.policy().node(env.Origin), Channel: job.Channel, Epoch: job.Epoch, Seq: job.Seq,
		Try: int(try), Handler: job.Handler, Args: job.Args, Env: job.Env, Created: env.Created, Expires: env.Expires, Size: env.Size, Sum: env.Sum,
		Stdin: func() (io.ReadCloser, error) { return j.spool.OpenBody(env.ID) }}
	if stdin != nil {
		s.Stdin = func() (io.ReadCloser, error) { return atHand{bytes.NewReader(stdin)}, nil }
	}
	return s
}

// ahead is what was prepared for the job that will probably be next on a channel.
type ahead struct {
	id    envelope.ID
	try   uint32
	ready Ready
}

// take hands over what was prepared for a job. What was for another, or if r is nil, is given up.
func (a *ahead) take(r *run) Ready {
	if a != nil && r != nil && a.id == r.s.id && a.try == r.s.tries {
		return a.ready
	}
	a.close()
	return nil
}

// close gives up what nobody has taken.
func (a *ahead) close() {
	if a != nil {
		a.ready.Close()
	}
}

// lookAhead prepares, while the program of a job runs, the start of the one behind it, if it is for the same handler and
// its input is small. Whether that job may start, and does, is decided in its turn, as if this had not been. It waits for
// nobody: a program runs meanwhile that is not watched.
func (j *Jobs) lookAhead(r *run) *ahead {
	runner, ok := j.o.Runner.(Preparer)
	if !ok || r.free {
		return nil
	}
	var s slot
	var item *spool.Item
	var stdin []byte
	no, epoch, seq := parseSlotKey(r.key)
	looked, err := j.spool.PeekNow(func(tx *spool.Tx) (err error) {
		if s, ok = getSlot(tx, tabIn, slotKey(no, epoch, seq+1)); !ok {
			return nil
		}
		if item, err = tx.Item(s.id); err == nil {
			stdin, ok = tx.SmallBody(s.id)
		}
		return err
	})
	if !looked || err != nil || !ok {
		return nil
	}
	if job := item.Env.Job; job == nil || job.Kind != envelope.JobCommand || job.Handler != r.item.Env.Job.Handler {
		return nil
	}
	a := &ahead{id: s.id, try: s.tries + 1}
	if a.ready = runner.Prepare(j.startOf(item.Env, a.try, stdin)); a.ready == nil {
		return nil
	}
	return a
}

// execute runs one program, which is recorded as started. It reports false when nobody knows how that went.
func (j *Jobs) execute(ctx context.Context, r *run, meanwhile func()) bool {
	env := r.item.Env
	job := env.Job
	s := j.startOf(env, r.s.tries, r.stdin)
	s.Ready, s.Meanwhile = r.ready, meanwhile
	j.log.Info(fmt.Sprintf("%s: job started, channel=%s:%s, seq=%d, handler=%s, try=%d", env.ID, s.Peer, job.Channel, job.Seq, job.Handler, s.Try), "service", "jobs")
	out, err := j.o.Runner.Run(ctx, s)
	if err != nil {
		j.log.Warn(fmt.Sprintf("%s: job broken off", env.ID), "service", "jobs", "err", err)
		return false
	}
	r.out = out
	r.result = envelope.Result{Exit: out.Exit, Signal: out.Signal, Started: out.Started, Ended: out.Ended,
		DroppedOut: out.DroppedOut, DroppedErr: out.DroppedErr, Reason: out.Reason, Tries: int(r.s.tries)}
	if r.result.Ended.IsZero() {
		r.result.Ended = j.o.Now()
	}
	if err := j.gather(r); err != nil {
		// its output is lost, its outcome is not
		r.result.DroppedOut += r.result.Stdout
		r.result.DroppedErr += r.result.Stderr
		r.result.Stdout, r.result.Stderr = 0, 0
		r.result.Reason = envelope.OneLine(strings.TrimSpace(r.result.Reason+" output not kept: "+err.Error()), envelope.MaxReason)
		r.content = j.spool.NewBody()
		if err := r.content.Finish(); err != nil {
			j.log.Error("jobs: result", "id", env.ID.String(), "err", err)
		}
	}
	if out.Close != nil {
		out.Close()
	}
	return true
}

// atHand is input that is in memory already.
type atHand struct{ *bytes.Reader }

// Close does nothing.
func (atHand) Close() error { return nil }

// gather puts what the program wrote into the content of the result.
func (j *Jobs) gather(r *run) (err error) {
	r.content = j.spool.NewBody()
	defer func() {
		if err != nil {
			r.content.Discard()
		}
	}()
	for _, x := range []struct {
		src io.Reader
		n   *int64
	}{{r.out.Out, &r.result.Stdout}, {r.out.Err, &r.result.Stderr}} {
		if x.src == nil {
			continue
		}
		if *x.n, err = io.Copy(r.content, x.src); err != nil {
			return err
		}
	}
	return r.content.Finish()
}

// backoff is how long the n-th temporary failure in a row waits.
func (p *Policy) backoff(n int) time.Duration {
	d := p.RetryMin
	for i := 1; i < n && d < p.RetryMax; i++ {
		d *= 2
	}
	return min(d, p.RetryMax)
}

// release gives back the place of a program.
func (j *Jobs) release(r *run) {
	if r == nil || r.handler == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inUse[r.handler.Name]--
	if !r.handler.Light {
		j.total--
	}
	if r.free {
		delete(j.flying, string(r.key))
	}
	r.handler = nil
	close(j.slots)
	j.slots = make(chan struct{})
}

// reserve takes the place of a program, or returns what to wait for.
func (j *Jobs) reserve(r *run, h *Handler, limit int) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.inUse[h.Name] >= max(h.Concurrency, 1) || !h.Light && j.total >= limit {
		return j.slots
	}
	j.inUse[h.Name]++
	if !h.Light {
		j.total++
	}
	r.handler = h
	if r.free {
		j.flying[string(r.key)] = true
	}
	return nil
}
