package jobs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// place of a job of a peer that waits here.
type waiting struct {
	k    chanKey
	c    *inChan
	r    *run
	item *spool.Item
	dead bool
}

// find finds a job of a peer by its id.
func (j *Jobs) find(tx *spool.Tx, id envelope.ID) (*waiting, error) {
	item, err := tx.Item(id)
	if errors.Is(err, spool.ErrNotFound) || err == nil && item.Env.Job == nil {
		return nil, fmt.Errorf("%w: %s has ended, or was never here", ErrNotFound, id)
	}
	if err != nil {
		return nil, err
	}
	if j.IsOwn(item) {
		return nil, fmt.Errorf("%w: %s is a job of this node: its destination decides, or cancel it", ErrState, id)
	}
	job := item.Env.Job
	w := &waiting{k: chanKey{item.Env.Origin, job.Channel}, item: item, dead: item.Legs[0].Dest == spool.DeadDest}
	if w.c, err = in(tx, w.k); err != nil || w.c == nil {
		return nil, fmt.Errorf("%w: its channel is not known", errors.Join(ErrState, err))
	}
	if w.dead {
		return w, nil
	}
	w.r = &run{lane: lane{chanKey: w.k}, item: item}
	if job.Seq != 0 {
		w.r.key = slotKey(w.c.no, job.Epoch, job.Seq)
		if s, ok := getSlot(tx, tabIn, w.r.key); ok && s.id == id && s.flags&slotFree == 0 {
			w.r.s = s
			return w, nil
		}
	}
	w.r.free = true
	found := false
	err = walk(tx.KV(tabFree), noKey(w.c.no), noKey(w.c.no), func(key, v []byte) error {
		if s, ok := parseSlot(v); ok && s.id == id {
			w.r.key, w.r.s, found = key, s, true
			return errStop
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: %s has no place in its channel", ErrState, id)
	}
	return w, err
}

// change finds a job of a peer and changes it in one commit; then its channel is looked at.
func (j *Jobs) change(id envelope.ID, what string, fn func(tx *spool.Tx, b *Batch, w *waiting) error) error {
	b := j.Batch()
	err := j.spool.ApplyUrgent(func(tx *spool.Tx) error {
		b.Reset()
		w, err := j.find(tx, id)
		if err != nil {
			return err
		}
		if !w.dead && tx.KV(tabRun).Get(id[:]) != nil {
			return fmt.Errorf("%w: %s is running", ErrState, id)
		}
		if err := fn(tx, b, w); err != nil {
			return err
		}
		b.kick(w.k)
		return putIn(tx, w.k, w.c)
	})
	if err != nil {
		return err
	}
	j.log.Info(fmt.Sprintf("%s: job %s by an operator", id, what), "service", "jobs")
	b.Committed()
	return nil
}

// isNext reports whether the job is the one its channel stands at.
func (w *waiting) isNext() bool {
	job := w.item.Env.Job
	return !w.r.free && job.Epoch == w.c.epoch && job.Seq == w.c.next
}

// Retry starts a job again that failed, waits for its next try, or is a dead letter.
func (j *Jobs) Retry(id envelope.ID) error {
	return j.change(id, "tried again", func(tx *spool.Tx, b *Batch, w *waiting) error {
		if w.dead {
			tries := uint32(1)
			if o, err := getOutcome(tx, tabEnd, id); err == nil && o != nil {
				tries = uint32(o.res.Tries)
			}
			w.item.Legs[0].Dest, w.item.Legs[0].State = WaitDest(w.k.peer), spool.Held
			w.item.AddLog(j.o.Now(), "retry", "by an operator")
			if err := tx.Save(w.item); err != nil {
				return err
			}
			w.c.arrived++
			w.c.free++
			w.c.waiting++
			return tx.KV(tabFree).Put(freeKey(w.c.no, w.c.arrived), slot{id: id, tries: tries}.encode())
		}
		if w.r.s.flags&slotRefused != 0 {
			return fmt.Errorf("%w: the content of %s was refused when it came: let its origin send it anew", ErrState, id)
		}
		w.r.s.flags &^= slotMaybe | slotCrash | slotHeld | slotDropped
		w.r.s.at = time.Time{}
		if w.isNext() && w.c.status == held {
			w.c.status, w.c.reason = open, ""
		}
		return tx.KV(w.r.table()).Put(w.r.key, w.r.s.encode())
	})
}

// Skip passes over a job that its channel stands at. What is known of it becomes its outcome.
func (j *Jobs) Skip(id envelope.ID) error {
	return j.change(id, "passed over", func(tx *spool.Tx, b *Batch, w *waiting) error {
		if w.dead {
			return fmt.Errorf("%w: %s is a dead letter: drop it", ErrState, id)
		}
		if !w.r.free && !w.isNext() {
			return fmt.Errorf("%w: %s is not next in its channel: drop passes over it in its turn", ErrState, id)
		}
		return j.skip(tx, b, w)
	})
}

func (j *Jobs) skip(tx *spool.Tx, b *Batch, w *waiting) error {
	id := w.item.Env.ID
	res := j.resultOf(w.item.Env, envelope.JobSkipped, j.o.Now())
	res.Reason = "passed over by an operator"
	o, err := getOutcome(tx, tabEnd, id)
	if err != nil {
		return err
	}
	if o != nil && o.res.Held {
		r := o.res
		r.Held, r.Ended = false, j.o.Now()
		r.DroppedOut, r.DroppedErr, r.Stdout, r.Stderr = r.DroppedOut+r.Stdout, r.DroppedErr+r.Stderr, 0, 0
		r.Reason = envelope.OneLine(strings.TrimPrefix(r.Reason+"; passed over by an operator", "; "), envelope.MaxReason)
		res = &r
	}
	if w.isNext() && w.c.status == held {
		w.c.status, w.c.reason = open, ""
	}
	return j.finish(tx, b, w.c, w.r, res, nil, false, false)
}

// Drop takes a job out that waits: in its turn the channel passes over it. A dead letter is gone at once.
func (j *Jobs) Drop(id envelope.ID) error {
	return j.change(id, "dropped", func(tx *spool.Tx, b *Batch, w *waiting) error {
		switch {
		case w.dead:
			return j.endItem(tx, id, "dropped by an operator")
		case w.r.free || w.isNext():
			return j.skip(tx, b, w)
		}
		w.r.s.flags |= slotDropped
		return tx.KV(tabIn).Put(w.r.key, w.r.s.encode())
	})
}

// changeChannel changes one channel of a peer in one commit.
func (j *Jobs) changeChannel(k chanKey, what string, fn func(tx *spool.Tx, c *inChan) error) error {
	err := j.spool.Apply(func(tx *spool.Tx) error {
		c, err := in(tx, k)
		if err != nil {
			return err
		}
		if c == nil {
			return fmt.Errorf("%w: there is no channel %s of %s here", ErrNotFound, k.channel, j.policy().node(k.peer))
		}
		if err := fn(tx, c); err != nil {
			return err
		}
		if err := j.gap(tx, c); err != nil {
			return err
		}
		return putIn(tx, k, c)
	})
	if err == nil {
		j.log.Info(fmt.Sprintf("channel %s of %s %s by an operator", k.channel, j.policy().node(k.peer), what), "service", "jobs")
		j.kick(k)
	}
	return err
}

// Pause keeps a channel of a peer from starting anything more.
func (j *Jobs) Pause(peer envelope.NodeID, channel string) error {
	return j.changeChannel(chanKey{peer, channel}, "paused", func(_ *spool.Tx, c *inChan) error {
		if c.status == held {
			return fmt.Errorf("%w: it stands already: %s", ErrState, c.reason)
		}
		c.status, c.reason, c.since = paused, "paused by an operator", j.o.Now()
		return nil
	})
}

// Resume lets a channel of a peer go on: one that was paused, that stands at a barrier, whose origin lost its memory, or
// that waits for the word of its origin. A channel that stands at a job that failed needs Retry or Skip.
func (j *Jobs) Resume(peer envelope.NodeID, channel string) error {
	return j.changeChannel(chanKey{peer, channel}, "resumed", func(tx *spool.Tx, c *inChan) error {
		c.lost = false
		if c.status != held {
			c.status, c.reason = open, ""
			return nil
		}
		key := slotKey(c.no, c.epoch, c.next)
		s, ok := getSlot(tx, tabIn, key)
		if !ok {
			_, why, err := j.crossing(tx, c)
			if err != nil {
				return err
			}
			if p, ok, err := j.firstHeld(tx, c); why != "" && err == nil && ok {
				c.epoch, c.next = p.epoch, 1
			}
			c.status, c.reason = open, ""
			return nil
		}
		item, err := tx.Item(s.id)
		if err == nil && item.Env.Job.Kind == envelope.JobBarrier {
			s.flags |= slotPass
			c.status, c.reason = open, ""
			return tx.KV(tabIn).Put(key, s.encode())
		}
		if o, err := getOutcome(tx, tabEnd, s.id); err != nil {
			return err
		} else if o != nil && o.res.Held {
			return fmt.Errorf("%w: it stands at job %s, which is %s: retry or skip that", ErrState, s.id, o.res.State)
		}
		c.status, c.reason = open, ""
		return nil
	})
}

// SkipGap passes over the numbers that are missing in front of the first job that is here. Their jobs are not started
// when they come later; their origin is told so.
func (j *Jobs) SkipGap(peer envelope.NodeID, channel string) (first, count uint64, err error) {
	err = j.changeChannel(chanKey{peer, channel}, "passed over its gap", func(tx *spool.Tx, c *inChan) error {
		p, ok, err := j.firstHeld(tx, c)
		if err != nil {
			return err
		}
		if !ok || !c.gap {
			return fmt.Errorf("%w: nothing is missing", ErrState)
		}
		first, count = c.next, p.seq-c.next
		if p.epoch != c.epoch {
			c.epoch, c.next, count = p.epoch, 1, p.seq-1
		}
		if count > 100_000 {
			return fmt.Errorf("%w: %d numbers are missing", ErrState, count)
		}
		for seq := c.next; seq < p.seq; seq++ {
			if err := tx.KV(tabPast).Put(slotKey(c.no, c.epoch, seq), make([]byte, 16)); err != nil {
				return err
			}
		}
		c.next = p.seq
		if c.status == held {
			c.status, c.reason = open, ""
		}
		return nil
	})
	return first, count, err
}
