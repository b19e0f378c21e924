package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// stepsAtOnce bounds the jobs that end without a program in one commit.
const stepsAtOnce = 200

// verdict is what is to be done with the next job of a lane.
type verdict struct {
	run   *Handler          // start its program
	end   envelope.JobState // it ends so, without one
	why   string            // for people
	hold  bool              // and the channel, or the job in no order, waits for a person
	wake  time.Time         // not yet: look again then
	wait  bool              // not yet: something else must happen
	after bool              // namely the end of another job
}

// step records the outcome of last (nil: none) and finds what is next, in one commit. busy is closed when a place to run
// may be free.
func (j *Jobs) step(ctx context.Context, l lane, last *run) (next *run, busy <-chan struct{}, wake time.Time, err error) {
	b := j.Batch()
	p := j.policy()
	err = j.spool.ApplyUrgentHere(func(tx *spool.Tx) error {
		b.Reset()
		j.release(next) // an earlier run of this function
		next, busy, wake = nil, nil, time.Time{}
		c, err := in(tx, l.chanKey)
		if err != nil || c == nil {
			return err
		}
		if last != nil {
			if err := j.conclude(tx, b, c, last); err != nil {
				return err
			}
		}
		j.mu.Lock()
		stopped := j.ctx == nil || ctx.Err() != nil
		j.mu.Unlock()
		if !stopped {
			next, busy, wake, err = j.pick(tx, b, l, c, last, p)
		}
		if err != nil {
			return err
		}
		return putIfChanged(tx, l.chanKey, c)
	})
	if err != nil {
		j.release(next)
		return nil, nil, time.Time{}, err // last is still the caller's: what it did must not be forgotten
	}
	j.release(last)
	b.Committed()
	return next, busy, wake, nil
}

// putIfChanged stores a channel unless its record says the same already: a look costs no commit.
func putIfChanged(tx *spool.Tx, k chanKey, c *inChan) error {
	b := c.encode()
	if string(tx.KV(tabInChan).Get(k.bytes())) == string(b) {
		return nil
	}
	return tx.KV(tabInChan).Put(k.bytes(), b)
}

// pick finds the next job of a lane to run, and ends those before it that end without a program.
func (j *Jobs) pick(tx *spool.Tx, b *Batch, l lane, c *inChan, last *run, p *Policy) (next *run, busy <-chan struct{}, wake time.Time, err error) {
	if c.lost || c.status == paused || !l.free && c.status != open {
		return nil, nil, wake, nil
	}
	if l.free {
		return j.pickFree(tx, b, l, c, last, p)
	}
	for range stepsAtOnce {
		if c.epoch == ([8]byte{}) {
			return nil, nil, wake, nil
		}
		key := slotKey(c.no, c.epoch, c.next)
		s, ok := getSlot(tx, tabIn, key)
		if c.mayEp == c.epoch && c.ended.Contains(c.next) && (!ok || tx.KV(tabRun).Get(s.id[:]) == nil) {
			if ok {
				if err := j.endItem(tx, s.id, "it has ended at its origin"); err != nil {
					return nil, nil, wake, err
				}
				c.waiting -= min(c.waiting, 1)
			}
			if err := j.past(tx, c, key, s.id); err != nil {
				return nil, nil, wake, err
			}
			continue
		}
		if !ok {
			over, why, err := j.crossing(tx, c)
			if err != nil {
				return nil, nil, wake, err
			}
			if over {
				if p, ok, err := j.firstHeld(tx, c); err != nil || !ok {
					return nil, nil, wake, err
				} else {
					c.epoch, c.next = p.epoch, 1
					continue
				}
			}
			if why != "" {
				c.hold(why, true, j.o.Now())
				b.owe(l.peer)
			}
			return nil, nil, wake, j.gap(tx, c)
		}
		if s.flags&slotFree != 0 {
			if err := j.past(tx, c, key, s.id); err != nil {
				return nil, nil, wake, err
			}
			continue
		}
		r := &run{lane: l, key: key, s: s}
		busy, at, err := j.handle(tx, b, c, r, last, p)
		if err != nil || busy != nil || !at.IsZero() || r.handler != nil {
			if r.handler == nil {
				r = nil
			}
			return r, busy, at, err
		}
		if c.status != open || tx.KV(tabIn).Get(key) != nil {
			return nil, nil, wake, nil
		}
	}
	return nil, nil, j.o.Now(), nil
}

// pickFree is pick for jobs in no order: the first that can go.
func (j *Jobs) pickFree(tx *spool.Tx, b *Batch, l lane, c *inChan, last *run, p *Policy) (next *run, busy <-chan struct{}, wake time.Time, err error) {
	if c.free == 0 {
		return nil, nil, wake, nil
	}
	type entry struct {
		key []byte
		s   slot
	}
	var list []entry
	err = walk(tx.KV(tabFree), noKey(c.no), noKey(c.no), func(key, v []byte) error {
		s, ok := parseSlot(v)
		j.mu.Lock()
		flying := j.flying[string(key)]
		j.mu.Unlock()
		if ok && !flying && s.flags&slotHeld == 0 {
			list = append(list, entry{key, s})
		}
		if len(list) >= stepsAtOnce {
			return errStop
		}
		return nil
	})
	if err != nil {
		return nil, nil, wake, err
	}
	for _, e := range list {
		r := &run{lane: l, key: e.key, s: e.s}
		wait, at, err := j.handle(tx, b, c, r, last, p)
		if err != nil || r.handler != nil {
			return r, nil, wake, err
		}
		if wait != nil {
			busy = wait
		}
		if !at.IsZero() && (wake.IsZero() || at.Before(wake)) {
			wake = at
		}
	}
	return nil, busy, wake, nil
}

// handle does what the verdict on one job says. After it the job has ended, or is recorded as started (r.handler is
// set), or waits.
func (j *Jobs) handle(tx *spool.Tx, b *Batch, c *inChan, r *run, last *run, p *Policy) (busy <-chan struct{}, wake time.Time, err error) {
	now := j.o.Now()
	v, err := j.judge(tx, c, r, p, now)
	if err != nil {
		return nil, wake, err
	}
	switch {
	case !v.wake.IsZero():
		return nil, v.wake, nil
	case v.wait:
		if v.after {
			j.mu.Lock()
			j.depend[r.chanKey] = true
			j.mu.Unlock()
		}
		return nil, wake, nil
	case v.hold && v.end == 0:
		// a barrier: nothing has happened, and nothing will
		c.hold(v.why, false, now)
		b.owe(r.peer)
		return nil, wake, nil
	case v.run == nil:
		res := j.resultOfSlot(r, c, v.end, now)
		res.Reason, res.Held, res.Tries = v.why, v.hold, int(r.s.tries)
		return nil, wake, j.finish(tx, b, c, r, res, nil, v.hold, false)
	}
	if last != nil {
		j.release(last) // its place may be the one
	}
	if busy := j.reserve(r, v.run, p.Parallel); busy != nil {
		return busy, wake, nil
	}
	r.stdin, _ = tx.SmallBody(r.s.id)
	r.s.tries++
	r.s.flags &^= slotMaybe | slotCrash
	if err := tx.KV(r.table()).Put(r.key, r.s.encode()); err != nil {
		return nil, wake, err
	}
	entry := &started{key: r.chanKey, slot: r.key, free: r.free, at: now}
	return nil, wake, tx.KV(tabRun).Put(r.s.id[:], entry.encode())
}

// judge decides on one job. Grants are looked at now, whatever they were when it came.
func (j *Jobs) judge(tx *spool.Tx, c *inChan, r *run, p *Policy, now time.Time) (v verdict, err error) {
	item, err := tx.Item(r.s.id)
	if errors.Is(err, spool.ErrNotFound) {
		return verdict{end: envelope.JobSkipped, why: "it was removed here"}, nil
	}
	if err != nil {
		return v, err
	}
	if tx.KV(tabRun).Get(r.s.id[:]) != nil {
		return verdict{wait: true}, nil
	}
	r.item = item
	job := item.Env.Job
	if job.Kind == envelope.JobVoid {
		return verdict{end: envelope.JobCancelled}, nil
	}
	if r.s.flags&slotDropped != 0 {
		return verdict{end: envelope.JobSkipped, why: "passed over by an operator"}, nil
	}
	if !j.o.Suspect() && now.After(item.Deadline()) {
		return verdict{end: envelope.JobExpired, why: "it expired before its turn"}, nil
	}
	if j.superseded(tx, c, job) {
		return verdict{end: envelope.JobSuperseded, why: "a later job with the same key has come"}, nil
	}
	if job.NotBefore.After(now) {
		return verdict{wake: job.NotBefore}, nil
	}
	if r.s.at.After(now) {
		return verdict{wake: r.s.at}, nil
	}
	if !job.After.IsZero() {
		o, err := getOutcome(tx, tabEnd, job.After)
		switch {
		case err != nil:
			return v, err
		case o == nil || o.res.Held:
			return verdict{wait: true, after: true}, nil
		case o.res.State != envelope.JobDone:
			return verdict{end: envelope.JobRefused, why: fmt.Sprintf("job %s, which must succeed first, is %s", job.After, o.res.State)}, nil
		}
	}
	switch job.Kind {
	case envelope.JobNop:
		return verdict{end: envelope.JobDone}, nil
	case envelope.JobBarrier:
		if r.s.flags&slotPass != 0 {
			return verdict{end: envelope.JobDone, why: "opened by an operator"}, nil
		}
		return verdict{hold: true, why: "a barrier"}, nil
	}
	h, reason := p.handler(r.peer, r.channel, job.Handler)
	switch {
	case h == nil:
		return verdict{end: envelope.JobRefused, why: reason}, nil
	case r.s.flags&slotRefused != 0:
		return verdict{end: envelope.JobRefused, why: "it was not granted, or too large, when it came"}, nil
	case j.o.Runner == nil:
		return verdict{wait: true}, nil
	case r.s.flags&slotMaybe != 0 && !h.Idempotent:
		return verdict{end: envelope.JobUnknown, hold: true, why: "it may have run before this node was restored from an older copy"}, nil
	case r.s.flags&slotCrash != 0 && !h.Idempotent:
		return verdict{end: envelope.JobUnknown, hold: true, why: "it was running when this node stopped"}, nil
	}
	if h.Check != nil {
		if err := h.Check(job.Args, job.Env); err != nil {
			return verdict{end: envelope.JobRefused, why: envelope.OneLine(err.Error(), envelope.MaxReason)}, nil
		}
	}
	return verdict{run: h}, nil
}

// resultOfSlot begins the result of a job whose item may be gone.
func (j *Jobs) resultOfSlot(r *run, c *inChan, s envelope.JobState, now time.Time) *envelope.Result {
	if r.item != nil {
		return j.resultOf(r.item.Env, s, now)
	}
	res := &envelope.Result{Ref: r.s.id, Node: j.policy().Node, Channel: r.channel, State: s, Ended: now}
	if !r.free {
		_, res.Epoch, res.Seq = parseSlotKey(r.key)
	}
	return res
}

// conclude records how a program ended: its outcome and result, or that it is to be tried again.
func (j *Jobs) conclude(tx *spool.Tx, b *Batch, c *inChan, r *run) error {
	p := j.policy()
	now := j.o.Now()
	h, _ := p.handler(r.peer, r.channel, r.item.Env.Job.Handler)
	if h == nil {
		h = &Handler{}
	}
	if _, ok := getSlot(tx, r.table(), r.key); !ok {
		return tx.KV(tabRun).Delete(r.s.id[:]) // somebody has ended it meanwhile
	}
	out := r.out
	res := r.result
	base := j.resultOf(r.item.Env, envelope.JobDone, now)
	res.Ref, res.Node, res.Channel, res.Epoch, res.Seq, res.State = base.Ref, base.Node, base.Channel, base.Epoch, base.Seq, base.State
	switch {
	case out.Unknown:
		res.State = envelope.JobUnknown
	case out.NotStarted:
		res.State = envelope.JobFailed
	case out.Timeout:
		res.State = envelope.JobTimeout
	case out.Exit != 0 || out.Signal != 0:
		res.State = envelope.JobFailed
	}
	temporary := out.Timeout || out.Exit == 75 && out.Signal == 0 || out.Unknown && h.Idempotent
	if res.State != envelope.JobDone && temporary && int(r.s.tries) < max(h.Tries, 1) {
		r.s.at = now.Add(p.backoff(int(r.s.tries)))
		if err := tx.KV(tabRun).Delete(r.s.id[:]); err != nil {
			return err
		}
		b.notes = append(b.notes, note{text: fmt.Sprintf("%s: job deferred, try=%d, next=%s%s", r.s.id, r.s.tries, r.s.at.Format(time.RFC3339), detail(&res))})
		if r.content != nil {
			b.after = append(b.after, r.content.Discard)
		}
		b.wakes[r.chanKey] = r.s.at
		return tx.KV(r.table()).Put(r.key, r.s.encode())
	}
	hold, dead := false, false
	if res.State == envelope.JobUnknown {
		hold = true
	} else if res.State != envelope.JobDone {
		switch h.OnFailure {
		case "dead":
			dead = true
		case "skip":
		default:
			hold = true
		}
	}
	res.Held = hold
	return j.finish(tx, b, c, r, &res, r.content, hold, dead)
}

// finish commits an outcome with the result that tells it. hold keeps the job in its place for a person; dead keeps it
// among the dead letters.
func (j *Jobs) finish(tx *spool.Tx, b *Batch, c *inChan, r *run, res *envelope.Result, content *spool.Body, hold, dead bool) error {
	var env *envelope.Envelope
	if content != nil {
		env = &envelope.Envelope{ID: envelope.NewID(j.o.Now())}
	}
	if err := j.tell(tx, r.peer, res.Ref, res, env, content); err != nil {
		return err
	}
	if r.s.id != res.Ref {
		// a void: the cancelled job and the void both have ended
		if err := putOutcome(tx, tabEnd, r.s.id, &outcome{at: j.o.Now(), res: *res, peer: r.peer}); err != nil {
			return err
		}
	}
	if err := tx.KV(tabRun).Delete(r.s.id[:]); err != nil {
		return err
	}
	b.say(res.Ref, "job ended", res)
	b.here = append(b.here, res.Ref)
	if hold {
		if r.free {
			r.s.flags |= slotHeld
		} else {
			c.hold(fmt.Sprintf("job %s is %s%s", res.Ref, res.State, detail(&envelope.Result{State: res.State, Exit: res.Exit, Signal: res.Signal, Reason: res.Reason})), false, j.o.Now())
			b.owe(r.peer)
		}
		return tx.KV(r.table()).Put(r.key, r.s.encode())
	}
	if dead && r.item != nil {
		item, err := tx.Item(r.s.id)
		if err != nil {
			return err
		}
		item.Legs[0].Dest, item.Legs[0].State = spool.DeadDest, spool.Held
		item.Legs[0].Last = envelope.Status{Code: 554, Enhanced: "5.3.0", Text: envelope.OneLine("job "+res.State.String()+detail(res), 200)}
		item.AddLog(j.o.Now(), "dead letter", res.State.String())
		if err := tx.Save(item); err != nil {
			return err
		}
	} else if err := j.endItem(tx, r.s.id, res.State.String()); err != nil {
		return err
	}
	if c.waiting > 0 {
		c.waiting--
	}
	if !r.free {
		if job := r.item; job != nil {
			if err := j.dropKey(tx, c, job.Env.Job); err != nil {
				return err
			}
		}
		return j.past(tx, c, r.key, r.s.id)
	}
	if c.free > 0 {
		c.free--
	}
	return tx.KV(tabFree).Delete(r.key)
}

// past moves the channel over its next number.
func (j *Jobs) past(tx *spool.Tx, c *inChan, key []byte, id envelope.ID) error {
	if err := tx.KV(tabIn).Delete(key); err != nil {
		return err
	}
	if err := tx.KV(tabPast).Put(key, id[:]); err != nil {
		return err
	}
	_, _, seq := parseSlotKey(key)
	c.next = max(c.next, seq+1)
	return j.gap(tx, c)
}

// dropKey forgets a supersede key whose latest job has ended.
func (j *Jobs) dropKey(tx *spool.Tx, c *inChan, job *envelope.Job) error {
	if job.Supersede == "" || j.superseded(tx, c, job) {
		return nil
	}
	return tx.KV(tabKey).Delete(append(noKey(c.no), job.Supersede...))
}

// recover takes up what an earlier life of this node left running: its processes are ended, and nobody knows how the
// jobs went.
func (j *Jobs) recover() error {
	type left struct {
		id envelope.ID
		s  *started
	}
	var list []left
	err := j.spool.View(func(tx *spool.Tx) error {
		return tx.KV(tabRun).Each(nil, func(k, v []byte) error {
			s, err := parseStarted(v)
			if err != nil || len(k) != 16 {
				return fmt.Errorf("journal: %w", err)
			}
			list = append(list, left{envelope.ID(k), s})
			return nil
		})
	})
	if err != nil || len(list) == 0 {
		return err
	}
	for _, x := range list {
		if j.o.Runner == nil {
			break
		}
		if err := j.o.Runner.Kill(x.id); err != nil {
			j.log.Error("end what a job left running", "id", x.id.String(), "err", err)
		}
		j.log.Warn(fmt.Sprintf("%s: job was running when this node stopped", x.id), "service", "jobs")
	}
	return j.spool.Apply(func(tx *spool.Tx) error {
		for _, x := range list {
			table := lane{free: x.s.free}.table()
			if s, ok := getSlot(tx, table, x.s.slot); ok && s.id == x.id {
				s.flags |= slotCrash
				if err := tx.KV(table).Put(x.s.slot, s.encode()); err != nil {
					return err
				}
			}
			if err := tx.KV(tabRun).Delete(x.id[:]); err != nil {
				return err
			}
		}
		return nil
	})
}
