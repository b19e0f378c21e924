package jobs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// memory is how long after its expiry a job is remembered, as the bridge remembers envelopes.
const memory = 14 * 24 * time.Hour

// Arrive takes a job of a peer into its channel, in the transaction that takes the bundle it came in. The body must be
// finished. What is not granted is refused in its turn, without its content; a job that came before has its result
// told again when that may be lost.
func (b *Batch) Arrive(tx *spool.Tx, env *envelope.Envelope, body *spool.Body) error {
	j := b.j
	now := j.o.Now()
	k := chanKey{env.Origin, env.Job.Channel}
	if tx.Seen(env.Origin, env.ID) {
		return b.repeat(tx, env)
	}
	if err := tx.Remember(env.Origin, env.ID, env.Expires.Add(memory)); err != nil {
		return err
	}
	p := j.policy()
	c, err := in(tx, k)
	if err != nil {
		return err
	}
	if c == nil && !p.knows(k.peer, k.channel) {
		// no record of a channel that nobody asked for
		reason := fmt.Sprintf("no handler is granted to channel %s of node %s", k.channel, p.node(k.peer))
		return b.refuse(tx, env, reason, now)
	}
	if c == nil {
		if c, err = j.newIn(tx, now); err != nil {
			return err
		}
	}
	b.kick(k)
	var flags uint8
	if env.Job.Kind == envelope.JobCommand {
		if h, _ := p.handler(k.peer, k.channel, env.Job.Handler); h == nil {
			flags, body = slotRefused, nil
		} else if h.Unordered {
			flags = slotFree
		}
	}
	if p.MaxStdin > 0 && env.Size > p.MaxStdin {
		flags, body = flags|slotRefused, nil
	}
	if env.Job.Seq == 0 {
		return b.loose(tx, k, c, env, body, flags&^slotFree)
	}
	return b.numbered(tx, k, c, env, body, flags)
}

// newIn begins the record of a channel. A node that lost its memory not long ago starts nothing on a channel that it
// does not know before the origin has told what may have run.
func (j *Jobs) newIn(tx *spool.Tx, now time.Time) (*inChan, error) {
	no, err := number(tx)
	if err != nil {
		return nil, err
	}
	c := &inChan{no: no, next: 1}
	if v := tx.Meta(metaLost); len(v) == 8 {
		at := time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
		c.lost = now.Before(at.Add(j.policy().Lifetime + memory))
	}
	return c, nil
}

// refuse answers a job that gets no place at all.
func (b *Batch) refuse(tx *spool.Tx, env *envelope.Envelope, reason string, now time.Time) error {
	r := b.j.resultOf(env, envelope.JobRefused, now)
	r.Reason = reason
	b.say(env.ID, "job refused", r)
	return b.j.tell(tx, env.Origin, env.ID, r, nil, nil)
}

// resultOf begins a result.
func (j *Jobs) resultOf(env *envelope.Envelope, s envelope.JobState, now time.Time) *envelope.Result {
	job := env.Job
	r := &envelope.Result{Ref: env.ID, Node: j.policy().Node, Channel: job.Channel, Epoch: job.Epoch, Seq: job.Seq, State: s, Ended: now}
	if job.Kind == envelope.JobVoid {
		r.Ref = job.Voids
	}
	return r
}

// repeat handles a job that came before.
func (b *Batch) repeat(tx *spool.Tx, env *envelope.Envelope) error {
	id := env.ID
	if env.Job.Kind == envelope.JobVoid {
		id = env.Job.Voids
	}
	o, err := getOutcome(tx, tabEnd, id)
	if err != nil || o == nil {
		return err // it waits, or nobody remembers
	}
	// Sealed anew: the origin does not know the outcome. Even when its result is on its way, what acknowledges that may
	// be a life of the origin that is lost; a result made now is acknowledged by this one.
	r := o.res
	r.DroppedOut, r.DroppedErr = r.DroppedOut+r.Stdout, r.DroppedErr+r.Stderr
	r.Stdout, r.Stderr = 0, 0
	return b.j.tell(tx, env.Origin, id, &r, nil, nil)
}

// tell stores an outcome and the envelope that brings it to the origin. content and body are what the program wrote;
// nil is nothing.
func (j *Jobs) tell(tx *spool.Tx, to envelope.NodeID, id envelope.ID, r *envelope.Result, env *envelope.Envelope, body *spool.Body) error {
	now := j.o.Now()
	if env == nil {
		var err error
		if body, err = j.emptyBody(); err != nil {
			return err
		}
		env = &envelope.Envelope{ID: envelope.NewID(now)}
	}
	env.Origin, env.Kind, env.Created, env.Expires = j.o.Self, envelope.KindResult, now, now.Add(j.policy().Lifetime)
	env.Size, env.Sum, env.Result = body.Size(), body.Sum(), r
	if err := env.Check(); err != nil {
		return fmt.Errorf("result of %s: %w", id, err)
	}
	item := &spool.Item{Env: env, Trust: "control", Entered: now, Parent: id, Legs: []spool.Leg{{Dest: spool.NodeDest(to), State: spool.Due}}}
	if err := tx.Add(item, body); err != nil {
		return err
	}
	return putOutcome(tx, tabEnd, id, &outcome{at: now, res: *r, peer: to, result: env.ID})
}

// keep stores a job that waits for its turn.
func (b *Batch) keep(tx *spool.Tx, env *envelope.Envelope, body *spool.Body) error {
	item := &spool.Item{Env: env, Trust: "peer:" + env.Origin.Label().String(), Entered: b.j.o.Now(),
		Legs: []spool.Leg{{Dest: WaitDest(env.Origin), State: spool.Held}}}
	item.AddLog(item.Entered, "arrived", "from "+b.j.policy().node(env.Origin)+b.way)
	if err := tx.Add(item, body); err != nil {
		return err
	}
	if body != nil {
		b.used[body] = true
	}
	return nil
}

// loose takes a job in no order.
func (b *Batch) loose(tx *spool.Tx, k chanKey, c *inChan, env *envelope.Envelope, body *spool.Body, flags uint8) error {
	if err := b.keep(tx, env, body); err != nil {
		return err
	}
	if c.lost {
		flags |= slotMaybe // it may have run in the life that was lost
	}
	c.arrived++
	c.free++
	c.waiting++
	if err := tx.KV(tabFree).Put(freeKey(c.no, c.arrived), slot{id: env.ID, flags: flags}.encode()); err != nil {
		return err
	}
	return putIn(tx, k, c)
}

// numbered takes a job with a number.
func (b *Batch) numbered(tx *spool.Tx, k chanKey, c *inChan, env *envelope.Envelope, body *spool.Body, flags uint8) error {
	job := env.Job
	j := b.j
	switch {
	case c.epoch == [8]byte{}:
		c.epoch, c.next = job.Epoch, 1
	case laterEpoch(c.epoch, job.Epoch) && c.next == 1 && !j.anyPast(tx, c):
		c.epoch = job.Epoch // the older one comes first, and nothing of the other has ended
	}
	if job.Epoch == c.epoch && c.next == 1 && job.Seq == 1 && job.PrevSeq != 0 && laterEpoch(c.epoch, job.PrevEpoch) && !j.anyPast(tx, c) {
		c.epoch = job.PrevEpoch // there was something before, which has not come yet: ask
	}
	key := slotKey(c.no, job.Epoch, job.Seq)
	if laterEpoch(c.epoch, job.Epoch) || c.epoch == job.Epoch && job.Seq < c.next {
		return b.late(tx, k, c, key, env, body)
	}
	if s, ok := getSlot(tx, tabIn, key); ok {
		return b.contest(tx, k, c, key, s, env, body)
	}
	if job.Epoch == c.mayEp && c.maybe.Contains(job.Seq) {
		flags |= slotMaybe
	}
	if err := b.keep(tx, env, body); err != nil {
		return err
	}
	if flags&slotFree != 0 && flags&slotRefused == 0 {
		c.arrived++
		c.free++
		s := slot{id: env.ID, flags: flags &^ slotFree}
		if err := tx.KV(tabFree).Put(freeKey(c.no, c.arrived), s.encode()); err != nil {
			return err
		}
	}
	c.waiting++
	if err := tx.KV(tabIn).Put(key, slot{id: env.ID, flags: flags}.encode()); err != nil {
		return err
	}
	if job.Supersede != "" {
		if err := j.noteKey(tx, c, job); err != nil {
			return err
		}
	}
	if c.status == held && c.lack && job.Epoch == c.epoch && job.Seq == c.next {
		c.status, c.reason = open, "" // what nobody knew of has come after all
	}
	if err := j.gap(tx, c); err != nil {
		return err
	}
	if c.gap || c.lost {
		b.owe(k.peer)
	}
	return putIn(tx, k, c)
}

// anyPast reports whether any number of a channel has ended here.
func (j *Jobs) anyPast(tx *spool.Tx, c *inChan) bool {
	any := false
	tx.KV(tabPast).Each(noKey(c.no), func(_, _ []byte) error { any = true; return errStop })
	return any
}

// errStop ends a walk.
var errStop = errors.New("enough")

// walk is EachFrom that may end early.
func walk(kv *spool.KV, prefix, from []byte, fn func(k, v []byte) error) error {
	err := kv.EachFrom(prefix, from, fn)
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// gap notes whether the next number is missing while something behind it is here.
func (j *Jobs) gap(tx *spool.Tx, c *inChan) error {
	is := false
	if c.waiting > 0 && c.epoch != ([8]byte{}) && tx.KV(tabIn).Get(slotKey(c.no, c.epoch, c.next)) == nil {
		next, ok, err := j.firstHeld(tx, c)
		if err != nil {
			return err
		}
		is = ok
		if e := next.epoch; ok && e != c.epoch {
			// what is here belongs to a later epoch: a gap only if this one is not over
			over, _, err := j.crossing(tx, c)
			if err != nil {
				return err
			}
			is = !over
		}
	}
	switch {
	case is && !c.gap:
		c.gap, c.since = true, j.o.Now()
	case !is:
		c.gap = false
	}
	return nil
}

// place is one number.
type place struct {
	epoch [8]byte
	seq   uint64
}

// firstHeld finds the first number in the buffer.
func (j *Jobs) firstHeld(tx *spool.Tx, c *inChan) (p place, ok bool, err error) {
	err = walk(tx.KV(tabIn), noKey(c.no), slotKey(c.no, c.epoch, c.next), func(k, _ []byte) error {
		_, p.epoch, p.seq = parseSlotKey(k)
		ok = true
		return errStop
	})
	return p, ok, err
}

// crossing tells whether the present epoch is over, because the first job of the next one says so; why is set when it
// never can be.
func (j *Jobs) crossing(tx *spool.Tx, c *inChan) (over bool, why string, err error) {
	var next place
	found := false
	err = walk(tx.KV(tabIn), noKey(c.no), slotKey(c.no, c.epoch, 1<<63), func(k, _ []byte) error {
		_, next.epoch, next.seq = parseSlotKey(k)
		found = true
		return errStop
	})
	if err != nil || !found || next.seq != 1 {
		return false, "", err
	}
	s, _ := getSlot(tx, tabIn, slotKey(c.no, next.epoch, 1))
	item, err := tx.Item(s.id)
	if err != nil {
		return false, "", nil
	}
	job := item.Env.Job
	switch {
	case job.PrevEpoch == c.epoch && job.PrevSeq+1 == c.next:
		return true, "", nil
	case job.PrevEpoch == c.epoch && job.PrevSeq+1 > c.next:
		return false, "", nil // more of this epoch is to come
	case job.PrevEpoch == c.epoch:
		return false, fmt.Sprintf("the origin was restored from an older copy: it knows of %d jobs, %d have ended here", job.PrevSeq, c.next-1), nil
	case job.PrevSeq == 0 && c.next == 1:
		return true, "", nil
	}
	return false, "the origin begins a new order and does not know the one before it", nil
}

// late handles a number that has an outcome here, or was passed over.
func (b *Batch) late(tx *spool.Tx, k chanKey, c *inChan, key []byte, env *envelope.Envelope, body *spool.Body) error {
	past := tx.KV(tabPast).Get(key)
	switch {
	case env.Job.Kind == envelope.JobVoid:
		return b.repeat(tx, env) // too late: what the other job came to is told again
	case len(past) == 16 && envelope.ID(past) == env.ID:
		return b.repeat(tx, env)
	case len(past) == 16 && envelope.ID(past) != envelope.ID{}:
		if o, err := getOutcome(tx, tabEnd, env.ID); err != nil || o != nil {
			return err // its void was here before it
		}
		return b.conflict(tx, k, c, env, body, envelope.ID(past))
	}
	r := b.j.resultOf(env, envelope.JobSkipped, b.j.o.Now())
	r.Reason = "its number was passed over before it came"
	b.say(env.ID, "job", r)
	return b.j.tell(tx, env.Origin, env.ID, r, nil, nil)
}

// contest handles a number that waits here already under another id.
func (b *Batch) contest(tx *spool.Tx, k chanKey, c *inChan, key []byte, s slot, env *envelope.Envelope, body *spool.Body) error {
	if env.Job.Kind == envelope.JobVoid && env.Job.Voids == s.id {
		if tx.KV(tabRun).Get(s.id[:]) != nil || s.flags&slotFree != 0 {
			return nil // it is running: its result says how that went
		}
		if err := b.j.endItem(tx, s.id, "cancelled by its origin"); err != nil {
			return err
		}
		if err := b.keep(tx, env, body); err != nil {
			return err
		}
		if c.status == held && env.Job.Epoch == c.epoch && env.Job.Seq == c.next {
			c.status, c.reason = open, ""
			if err := putIn(tx, k, c); err != nil {
				return err
			}
		}
		return tx.KV(tabIn).Put(key, slot{id: env.ID}.encode())
	}
	waits, err := tx.Item(s.id)
	if err == nil && waits.Env.Job.Kind == envelope.JobVoid && waits.Env.Job.Voids == env.ID {
		return nil // it was cancelled before it came
	}
	return b.conflict(tx, k, c, env, body, s.id)
}

// conflict puts a second job under one number into quarantine and holds the channel: somebody must find out.
func (b *Batch) conflict(tx *spool.Tx, k chanKey, c *inChan, env *envelope.Envelope, body *spool.Body, first envelope.ID) error {
	name := b.j.policy().node(k.peer)
	why := fmt.Sprintf("number %d of channel %s came twice: as %s and as %s", env.Job.Seq, k.channel, first, env.ID)
	b.trash = append(b.trash, trash{why: why, from: name, id: env.ID, body: bytes.NewReader(envelope.AppendEnvelope(nil, env))})
	b.note("two jobs with one number: channel held", "peer", name, "channel", k.channel, "seq", env.Job.Seq, "first", first.String(), "second", env.ID.String())
	r := b.j.resultOf(env, envelope.JobRefused, b.j.o.Now())
	r.Reason = why
	if err := b.j.tell(tx, env.Origin, env.ID, r, nil, nil); err != nil {
		return err
	}
	c.hold(why, false, b.j.o.Now())
	return putIn(tx, k, c)
}

// endItem ends a job that waits here.
func (j *Jobs) endItem(tx *spool.Tx, id envelope.ID, how string) error {
	item, err := tx.Item(id)
	if errors.Is(err, spool.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for i := range item.Legs {
		item.Legs[i].State, item.Legs[i].At = spool.Done, time.Time{}
	}
	item.AddLog(j.o.Now(), "ended", how)
	return tx.Save(item)
}

// noteKey remembers the latest job with a supersede key.
func (j *Jobs) noteKey(tx *spool.Tx, c *inChan, job *envelope.Job) error {
	key := append(noKey(c.no), job.Supersede...)
	kv := tx.KV(tabKey)
	mine := slotKey(c.no, job.Epoch, job.Seq)[4:]
	if v := kv.Get(key); v != nil && bytes.Compare(v, mine) >= 0 {
		return nil
	}
	return kv.Put(key, mine)
}

// superseded reports whether a later job with the same key has come.
func (j *Jobs) superseded(tx *spool.Tx, c *inChan, job *envelope.Job) bool {
	if job.Supersede == "" {
		return false
	}
	v := tx.KV(tabKey).Get(append(noKey(c.no), job.Supersede...))
	return v != nil && bytes.Compare(v, slotKey(c.no, job.Epoch, job.Seq)[4:]) > 0
}

// TakeResume takes the origin's word on what has ended, and on what may have been started in a life that was lost.
func (b *Batch) TakeResume(tx *spool.Tx, peer envelope.NodeID, r *envelope.Resume) error {
	j := b.j
	k := chanKey{peer, r.Channel}
	c, err := in(tx, k)
	if err != nil || c == nil {
		return err
	}
	own := j.o.Incarnation()
	if r.For != own || c.resBy == own && r.Number <= c.resume {
		return nil
	}
	c.resBy, c.resume = own, r.Number
	if c.epoch == ([8]byte{}) {
		c.epoch, c.next = r.Epoch, 1
	}
	if r.Epoch == c.epoch || !laterEpoch(c.epoch, r.Epoch) && len(r.Maybe)+len(r.Ended) > 0 {
		if err := b.maybe(tx, c, r); err != nil {
			return err
		}
	}
	if r.Epoch == c.epoch && r.Floor > c.next {
		if err := b.raise(tx, c, r.Floor); err != nil {
			return err
		}
	}
	// The origin may have given out more numbers since it wrote this, but not in an epoch that is over.
	inc, known := j.o.PeerIncarnation(tx, peer)
	if over := known && laterEpoch(inc, r.Epoch); over && r.Epoch == c.epoch && c.next >= r.Next && c.gap {
		if p, ok, err := j.firstHeld(tx, c); err != nil {
			return err
		} else if ok && p.epoch == c.epoch && p.seq >= r.Next {
			c.hold(fmt.Sprintf("the origin does not know number %d: it was restored from an older copy", c.next), true, j.o.Now())
		}
	}
	if !laterEpoch(c.epoch, r.Epoch) {
		c.lost = false
	}
	if err := j.gap(tx, c); err != nil {
		return err
	}
	b.note("a channel goes on where its origin says", "peer", j.policy().node(peer), "channel", r.Channel, "floor", r.Floor, "maybe", r.Maybe.Count())
	b.kick(k)
	return putIn(tx, k, c)
}

// maybe marks the jobs that may have been started in a life that was lost.
func (b *Batch) maybe(tx *spool.Tx, c *inChan, r *envelope.Resume) error {
	c.maybe, c.ended, c.mayEp = r.Maybe, r.Ended, r.Epoch
	kv := tx.KV(tabIn)
	return kv.Each(epochKey(c.no, r.Epoch), func(key, v []byte) error {
		_, _, seq := parseSlotKey(key)
		s, ok := parseSlot(v)
		if !ok || !r.Maybe.Contains(seq) {
			return nil
		}
		s.flags |= slotMaybe
		return kv.Put(key, s.encode())
	})
}

// raise passes over numbers that have ended at their origin.
func (b *Batch) raise(tx *spool.Tx, c *inChan, floor uint64) error {
	kv := tx.KV(tabIn)
	err := walk(kv, epochKey(c.no, c.epoch), slotKey(c.no, c.epoch, c.next), func(key, v []byte) error {
		_, _, seq := parseSlotKey(key)
		if seq >= floor {
			return errStop
		}
		if s, ok := parseSlot(v); ok {
			if tx.KV(tabRun).Get(s.id[:]) != nil {
				floor = seq
				return errStop
			}
			if err := b.j.endItem(tx, s.id, "it has ended at its origin"); err != nil {
				return err
			}
		}
		if c.waiting > 0 {
			c.waiting--
		}
		return kv.Delete(key)
	})
	if floor > c.next {
		c.next = floor
		if c.status == held {
			c.status, c.reason = open, ""
		}
	}
	return err
}

// Restored makes every channel wait for the word of its origin: this node has lost a part of its memory, and what it
// holds may have run already. The bridge calls it when a new incarnation begins.
func (j *Jobs) Restored() error {
	now := j.o.Now()
	var peers []envelope.NodeID
	err := j.spool.Apply(func(tx *spool.Tx) error {
		peers = peers[:0]
		if err := tx.SetMeta(metaLost, binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))); err != nil {
			return err
		}
		free := tx.KV(tabFree)
		err := free.Each(nil, func(key, v []byte) error {
			s, ok := parseSlot(v)
			if !ok {
				return nil
			}
			s.flags |= slotMaybe
			return free.Put(key, s.encode())
		})
		if err != nil {
			return err
		}
		kv := tx.KV(tabInChan)
		return kv.Each(nil, func(kb, v []byte) error {
			c, err := parseInChan(v)
			if err != nil {
				return err
			}
			c.lost, c.repWait, c.repSum = true, 0, 0
			peers = append(peers, parseChanKey(kb).peer)
			return kv.Put(kb, c.encode())
		})
	})
	for _, p := range peers {
		j.oweTo(p)
	}
	return err
}

// Forget drops what is remembered of ended jobs longer than anybody may ask for it. It must not be called while the
// clock is suspect.
func (j *Jobs) Forget(now time.Time) error {
	limit := now.Add(-2 * (j.policy().Lifetime + memory))
	for _, table := range []string{tabDone, tabEnd} {
		for more := true; more; {
			err := j.spool.Apply(func(tx *spool.Tx) error {
				more = false
				kv := tx.KV(table)
				n := 0
				return walk(kv, nil, nil, func(k, v []byte) error {
					if len(v) >= 8 && time.UnixMilli(int64(binary.BigEndian.Uint64(v))).Before(limit) {
						if n++; n > 1000 {
							more = true
							return errStop
						}
						return kv.Delete(k)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
		}
	}
	return j.forgetPast()
}

// forgetPast drops the ids of ended numbers, but for the last 10,000 of each channel.
func (j *Jobs) forgetPast() error {
	return j.spool.Apply(func(tx *spool.Tx) error {
		count := map[uint32]int{}
		kv := tx.KV(tabPast)
		if err := kv.Each(nil, func(k, _ []byte) error { count[binary.BigEndian.Uint32(k)]++; return nil }); err != nil {
			return err
		}
		return kv.Each(nil, func(k, _ []byte) error {
			no := binary.BigEndian.Uint32(k)
			if count[no] <= 10000 {
				return nil
			}
			count[no]--
			return kv.Delete(k)
		})
	})
}
