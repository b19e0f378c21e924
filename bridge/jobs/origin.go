package jobs

import (
	"errors"
	"fmt"
	"math"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// Request is one job for one node.
type Request struct {
	Dest      envelope.NodeID
	Job       envelope.Job // Epoch, Seq and what came before are filled in
	Unordered bool         // it gets no number
	Expires   time.Time    // zero: the policy's lifetime
	Priority  int
	Trust     string      // trust class of the submitter
	Body      *spool.Body // finished; nil is no content
	Reply     *Reply      // where its outcome goes by mail; nil: nowhere
	Hold      bool        // no contact takes it: it is carried by hand (bridge.Mailing)
}

// Ticket says what became of a request.
type Ticket struct {
	ID  envelope.ID
	Seq uint64
}

// Enqueue stores jobs and gives them their numbers, all in one transaction: when it returns without error they are
// durable, and when it fails no number was taken. Jobs of concurrent callers share commits and have consecutive numbers.
func (j *Jobs) Enqueue(reqs []*Request) ([]Ticket, error) { return j.EnqueueWith(reqs, nil) }

// EnqueueWith is Enqueue with something more in the same commit; the function may run more than once.
func (j *Jobs) EnqueueWith(reqs []*Request, also func(*spool.Tx) error) ([]Ticket, error) {
	now := j.o.Now()
	p := j.policy()
	tickets := make([]Ticket, len(reqs))
	items := make([]*spool.Item, len(reqs))
	for i, r := range reqs {
		item, err := j.request(r, p, now)
		if err != nil {
			for _, r := range reqs {
				if r.Body != nil {
					r.Body.Discard()
				}
			}
			return nil, err
		}
		items[i], tickets[i].ID = item, item.Env.ID
	}
	err := j.spool.Apply(func(tx *spool.Tx) error {
		for i, r := range reqs {
			seq, err := j.place(tx, r, items[i])
			if err != nil {
				return err
			}
			tickets[i].Seq = seq
		}
		if also != nil {
			return also(tx)
		}
		return nil
	})
	if err != nil {
		for _, r := range reqs {
			if r.Body != nil {
				r.Body.Discard()
			}
		}
		return nil, fmt.Errorf("store the job: %w", err)
	}
	j.o.Wake()
	return tickets, nil
}

// request checks a request and makes its item, all but the number.
func (j *Jobs) request(r *Request, p *Policy, now time.Time) (*spool.Item, error) {
	if _, ok := p.PeerName(r.Dest); !ok {
		return nil, fmt.Errorf("%w: node %s is not a peer", ErrState, r.Dest)
	}
	if r.Body == nil {
		b, err := j.emptyBody()
		if err != nil {
			return nil, err
		}
		r.Body = b
	}
	job := r.Job
	job.Epoch, job.Seq, job.PrevEpoch, job.PrevSeq = [8]byte{}, 0, [8]byte{}, 0
	env := &envelope.Envelope{ID: envelope.NewID(now), Origin: j.o.Self, Kind: envelope.KindJob, Created: now, Expires: r.Expires,
		Priority: r.Priority, Size: r.Body.Size(), Sum: r.Body.Sum(), Job: &job}
	if env.Expires.IsZero() {
		env.Expires = now.Add(p.Lifetime)
	}
	check := *env
	numbered := job
	if !r.Unordered {
		numbered.Epoch, numbered.Seq = [8]byte{1}, 2
	}
	check.Job = &numbered
	if err := check.Check(); err != nil {
		return nil, err
	}
	if !env.Expires.After(now) {
		return nil, fmt.Errorf("%w: the job would be expired already", ErrState)
	}
	trust := r.Trust
	if trust == "" {
		trust = "control"
	}
	item := &spool.Item{Env: env, Trust: trust, Entered: now, Legs: []spool.Leg{{Dest: spool.NodeDest(r.Dest), State: spool.Due}}}
	return item, nil
}

// place gives a job its number and stores it.
func (j *Jobs) place(tx *spool.Tx, r *Request, item *spool.Item) (uint64, error) {
	k := chanKey{r.Dest, r.Job.Channel}
	c, err := j.outFor(tx, k)
	if err != nil {
		return 0, err
	}
	job := item.Env.Job
	job.Epoch, job.Seq, job.PrevEpoch, job.PrevSeq = [8]byte{}, 0, [8]byte{}, 0
	key := looseKey(c.no, item.Env.ID)
	if !r.Unordered {
		if c.next >= envelope.MaxSeq {
			return 0, fmt.Errorf("%w: the numbers of the channel are used up", ErrState)
		}
		job.Epoch, job.Seq = c.epoch, c.next
		if n := len(c.past); c.next == 1 && n > 0 {
			job.PrevEpoch, job.PrevSeq = c.past[n-1].epoch, c.past[n-1].last
		}
		key = slotKey(c.no, c.epoch, c.next)
		c.next++
	}
	item.Legs[0].State = spool.Due
	if c.paused || r.Hold {
		item.Legs[0].State = spool.Held
	}
	if err := tx.Add(item, r.Body); err != nil {
		return 0, err
	}
	if err := tx.KV(tabOut).Put(key, own{id: item.Env.ID}.encode()); err != nil {
		return 0, err
	}
	if r.Reply != nil {
		if err := tx.KV(tabReply).Put(item.Env.ID[:], r.Reply.encode()); err != nil {
			return 0, err
		}
	}
	c.waiting++
	return job.Seq, putOut(tx, k, c)
}

// outFor reads the record of a channel, made when it is missing, and begins a new epoch when this node has a new
// incarnation: a number that an older life may have given out is never given again.
func (j *Jobs) outFor(tx *spool.Tx, k chanKey) (*outChan, error) {
	c, err := out(tx, k)
	if err != nil {
		return nil, err
	}
	epoch := j.o.Incarnation()
	if c == nil {
		no, err := number(tx)
		if err != nil {
			return nil, err
		}
		return &outChan{no: no, epoch: epoch, next: 1}, nil
	}
	if c.epoch != epoch {
		if c.next > 1 {
			c.past = append(c.past, span{c.epoch, c.next - 1})
			if n := len(c.past) - maxSpans; n > 0 {
				c.past = c.past[n:]
			}
		}
		c.epoch, c.next = epoch, 1
	}
	return c, nil
}

// ownKey is where a job of this node stands among those without outcome.
func ownKey(c *outChan, epoch [8]byte, seq uint64, id envelope.ID) []byte {
	if seq == 0 {
		return looseKey(c.no, id)
	}
	return slotKey(c.no, epoch, seq)
}

// TakeResult takes what a peer says of a job of this node. Whether the result was taken before, and whether the job is
// known at all, changes nothing for the caller: the result may be acknowledged.
func (b *Batch) TakeResult(tx *spool.Tx, env *envelope.Envelope, body *spool.Body) error {
	j := b.j
	r := env.Result
	k := chanKey{env.Origin, r.Channel}
	c, err := out(tx, k)
	if err != nil || c == nil {
		return err
	}
	key := ownKey(c, r.Epoch, r.Seq, r.Ref)
	o, live := parseOwn(tx.KV(tabOut).Get(key))
	if live && o.id != r.Ref && o.void != r.Ref {
		b.note("a result names another job than the one with its number", "peer", j.policy().node(env.Origin), "channel", r.Channel, "seq", r.Seq)
		return nil
	}
	id := r.Ref
	if live {
		id = o.id
	}
	old, err := getOutcome(tx, tabDone, id)
	if err != nil {
		return err
	}
	if !live && old == nil {
		return nil // not ours, or ended longer ago than anybody remembers
	}
	// the same outcome, told again without what the program wrote, may have been faster
	fuller := old != nil && !live && !r.Held && r.State == old.res.State && old.result.IsZero() && env.Size > 0
	if old != nil && !fuller && (old.result == env.ID || !old.res.Held && r.Held || !live && r.Tries <= old.res.Tries || old.res.Held && r.Held && r.Ended.Before(old.res.Ended)) {
		return nil // old news; a dead letter that was tried again is new
	}
	now := j.o.Now()
	n := &outcome{at: now, res: *r, peer: env.Origin}
	n.res.Ref = id
	if env.Size > 0 {
		keep := *env
		keep.Expires = now.Add(j.policy().Lifetime)
		item := &spool.Item{Env: &keep, Trust: "peer:" + env.Origin.Label().String(), Entered: now, Parent: id,
			Legs: []spool.Leg{{Dest: ResultDest, State: spool.Held}}}
		if err := tx.Add(item, body); errors.Is(err, spool.ErrExists) {
			return nil
		} else if err != nil {
			return err
		}
		n.result = env.ID
		b.used[body] = true
	}
	if old != nil && !old.result.IsZero() {
		if err := tx.Drop(old.result); err != nil && !errors.Is(err, spool.ErrNotFound) {
			return err
		}
	}
	if err := putOutcome(tx, tabDone, id, n); err != nil {
		return err
	}
	if err := oweReply(tx, id); err != nil {
		return err
	}
	if live && !r.Held {
		if err := j.endOwn(tx, k, c, key, o, r.State.String()+" at "+j.policy().node(env.Origin)+b.way); err != nil {
			return err
		}
	}
	b.ended = append(b.ended, id)
	b.say(id, "job", r)
	return nil
}

// endOwn ends a job of this node: its number has an outcome.
func (j *Jobs) endOwn(tx *spool.Tx, k chanKey, c *outChan, key []byte, o own, how string) error {
	for _, id := range []envelope.ID{o.id, o.void} {
		if id.IsZero() {
			continue
		}
		item, err := tx.Item(id)
		if errors.Is(err, spool.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for i := range item.Legs {
			item.Legs[i].State, item.Legs[i].At = spool.Done, time.Time{}
		}
		item.AddLog(j.o.Now(), "ended", how)
		if err := tx.Save(item); err != nil {
			return err
		}
	}
	if err := tx.KV(tabOut).Delete(key); err != nil {
		return err
	}
	if c.waiting > 0 {
		c.waiting--
	}
	return putOut(tx, k, c)
}

// Arrived notes the destination's receipt for a job; the bridge calls it in the transaction that takes the receipt.
func (j *Jobs) Arrived(tx *spool.Tx, item *spool.Item) error {
	_, c, key, o, err := j.findOwn(tx, item)
	if err != nil || c == nil || o.naks == 0 {
		return err
	}
	o.naks = 0
	return tx.KV(tabOut).Put(key, o.encode())
}

// findOwn finds the entry of an item of this node; c is nil when it has ended.
func (j *Jobs) findOwn(tx *spool.Tx, item *spool.Item) (k chanKey, c *outChan, key []byte, o own, err error) {
	if item.Env.Job == nil || len(item.Legs) == 0 {
		return k, nil, nil, o, nil
	}
	peer, ok := item.Legs[0].Dest.Node()
	if !ok {
		return k, nil, nil, o, nil
	}
	job := item.Env.Job
	k = chanKey{peer, job.Channel}
	c, err = out(tx, k)
	if err != nil || c == nil {
		return k, nil, nil, o, err
	}
	key = ownKey(c, job.Epoch, job.Seq, item.Env.ID)
	o, ok = parseOwn(tx.KV(tabOut).Get(key))
	if !ok || o.id != item.Env.ID && o.void != item.Env.ID {
		return k, nil, nil, o, nil
	}
	return k, c, key, o, nil
}

// IsOwn reports whether an item is a job of this node, not one that waits here.
func (j *Jobs) IsOwn(item *spool.Item) bool {
	return item.Env.Kind == envelope.KindJob && (item.Env.Origin.IsZero() || item.Env.Origin == j.o.Self)
}

// Expire ends a job whose time is over: at its origin it has an outcome then; where it waits it stays in its place
// until its turn, so that order is kept, and is never started.
func (j *Jobs) Expire(item *spool.Item, why string) error {
	if !j.IsOwn(item) {
		j.kick(chanKey{item.Env.Origin, item.Env.Job.Channel})
		return nil
	}
	id := item.Env.ID
	err := j.spool.Apply(func(tx *spool.Tx) error {
		item, err := tx.Item(id)
		if errors.Is(err, spool.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		k, c, key, o, err := j.findOwn(tx, item)
		if err != nil {
			return err
		}
		if c == nil || o.void == id {
			item.Legs[0].State, item.Legs[0].At = spool.Done, time.Time{}
			return tx.Save(item)
		}
		if err := j.ownOutcome(tx, item, k.peer, envelope.JobExpired, why); err != nil {
			return err
		}
		return j.endOwn(tx, k, c, key, o, "expired: "+why)
	})
	if err == nil {
		j.log.Warn(fmt.Sprintf("%s: job expired (%s)", id, why), "service", "jobs")
		j.told(id)
	}
	return err
}

// ownOutcome records an outcome that this node decided itself.
func (j *Jobs) ownOutcome(tx *spool.Tx, item *spool.Item, peer envelope.NodeID, s envelope.JobState, why string) error {
	job := item.Env.Job
	now := j.o.Now()
	o := &outcome{at: now, peer: peer, res: envelope.Result{Ref: item.Env.ID, Node: j.policy().Node, Channel: job.Channel, Epoch: job.Epoch,
		Seq: job.Seq, State: s, Ended: now, Reason: envelope.OneLine(why, envelope.MaxReason)}}
	if old, err := getOutcome(tx, tabDone, item.Env.ID); err != nil {
		return err
	} else if old != nil && old.res.Held {
		// what the destination said is worth more than that nothing followed
		old.res.Held, old.res.Reason = false, envelope.OneLine(old.res.Reason+"; "+why, envelope.MaxReason)
		o = old
	}
	if err := oweReply(tx, item.Env.ID); err != nil {
		return err
	}
	return putOutcome(tx, tabDone, item.Env.ID, o)
}

// Cancel takes back a job of this node. One that was never exposed has ended at once; for another a void travels, and
// what has been started already runs to its end: its result says so.
func (j *Jobs) Cancel(id envelope.ID) error {
	now := j.o.Now()
	voidID := envelope.NewID(now)
	err := j.spool.Apply(func(tx *spool.Tx) error {
		item, err := tx.Item(id)
		if errors.Is(err, spool.ErrNotFound) {
			return fmt.Errorf("%w: %s has ended, or was never here", ErrNotFound, id)
		}
		if err != nil {
			return err
		}
		if !j.IsOwn(item) {
			return fmt.Errorf("%w: %s is not a job of this node; drop takes it out here", ErrState, id)
		}
		k, c, key, o, err := j.findOwn(tx, item)
		if err != nil {
			return err
		}
		if c == nil || o.void == id {
			return fmt.Errorf("%w: %s has ended", ErrNotFound, id)
		}
		if !o.void.IsZero() {
			return nil // once is enough
		}
		job := item.Env.Job
		fresh := item.Legs[0].Carrier == ""
		if job.Seq == 0 {
			if !fresh {
				return fmt.Errorf("%w: %s is in no order and has left already", ErrState, id)
			}
			if err := j.ownOutcome(tx, item, k.peer, envelope.JobCancelled, "cancelled before it left"); err != nil {
				return err
			}
			return j.endOwn(tx, k, c, key, o, "cancelled")
		}
		void := &envelope.Envelope{ID: voidID, Origin: j.o.Self, Kind: envelope.KindJob, Created: now, Expires: item.Env.Expires,
			Priority: item.Env.Priority, Job: &envelope.Job{Channel: job.Channel, Epoch: job.Epoch, Seq: job.Seq, Kind: envelope.JobVoid, Voids: id,
				PrevEpoch: job.PrevEpoch, PrevSeq: job.PrevSeq}}
		body, err := j.emptyBody()
		if err != nil {
			return err
		}
		void.Sum = body.Sum()
		next := &spool.Item{Env: void, Trust: item.Trust, Entered: now, Parent: id, Legs: []spool.Leg{{Dest: item.Legs[0].Dest, State: spool.Due}}}
		if err := tx.Add(next, body); err != nil {
			return err
		}
		o.void = voidID
		if err := tx.KV(tabOut).Put(key, o.encode()); err != nil {
			return err
		}
		switch {
		case fresh:
			if err := j.ownOutcome(tx, item, k.peer, envelope.JobCancelled, "cancelled before it left"); err != nil {
				return err
			}
			item.Legs[0].State, item.Legs[0].At = spool.Done, time.Time{}
		case item.Legs[0].State == spool.Due || item.Legs[0].State == spool.Deferred:
			item.Legs[0].State, item.Legs[0].At = spool.Held, time.Time{}
		}
		item.AddLog(now, "cancelled", "by an operator: "+voidID.String()+" takes its place")
		return tx.Save(item)
	})
	if err == nil {
		j.log.Info(fmt.Sprintf("%s: job cancelled", id), "service", "jobs")
		j.told(id)
		j.o.Wake()
	}
	return err
}

// TakeReport takes what the destination of a channel says of it: what it misses is due again, unless it may still be
// on its way; what this node no longer has is answered by a resume.
func (b *Batch) TakeReport(tx *spool.Tx, peer envelope.NodeID, r *envelope.ChannelReport) error {
	j := b.j
	k := chanKey{peer, r.Channel}
	c, err := out(tx, k)
	if err != nil || c == nil {
		return err
	}
	newer := laterEpoch(r.Incarnation, c.repBy) || r.Incarnation == c.repBy && r.Report > c.report
	if !newer {
		return nil
	}
	c.repBy, c.report, c.repNext, c.repEpoch, c.repReason, c.repAt = r.Incarnation, r.Report, r.Next, r.Epoch, r.Reason, j.o.Now()
	if r.Lost {
		if err := j.mark(tx, k, c, r.Incarnation); err != nil {
			return err
		}
		c.owed = true
	}
	end := c.end(r.Epoch)
	last := r.Next // a missing next number is asked for even when nothing behind it is named
	if n := len(r.Held); n > 0 {
		last = r.Held[n-1].First
	}
	for seq, n := r.Next, 0; seq <= last && n < 10000; seq, n = seq+1, n+1 {
		if r.Held.Contains(seq) {
			continue
		}
		if seq >= end {
			c.owed = c.owed || len(r.Held) > 0
			break
		}
		if err := j.resend(tx, c, r.Epoch, seq); err != nil {
			return err
		}
	}
	if c.owed {
		b.owe(peer)
	}
	return putOut(tx, k, c)
}

// resend makes one job due again that its destination misses.
func (j *Jobs) resend(tx *spool.Tx, c *outChan, epoch [8]byte, seq uint64) error {
	key := slotKey(c.no, epoch, seq)
	o, ok := parseOwn(tx.KV(tabOut).Get(key))
	if !ok {
		c.owed = true // it has ended here: the destination must hear that
		return nil
	}
	now := j.o.Now()
	sent := false
	for _, id := range []envelope.ID{o.id, o.void} {
		if id.IsZero() || id == o.id && !o.void.IsZero() {
			continue
		}
		item, err := tx.Item(id)
		if errors.Is(err, spool.ErrNotFound) {
			c.owed = true
			continue
		}
		if err != nil {
			return err
		}
		leg := &item.Legs[0]
		switch leg.State {
		case spool.Sealed, spool.Travelling:
			if leg.At.After(now) && o.naks < 2 {
				continue // it may still be on its way
			}
			leg.State, leg.At = spool.Due, time.Time{}
		case spool.Arrived:
			leg.State, leg.At = spool.Due, time.Time{}
		default:
			continue
		}
		leg.Attempts++
		sent = true
		item.AddLog(now, "missed", "the destination asks for it again")
		if err := tx.Save(item); err != nil {
			return err
		}
	}
	if sent {
		o.naks = 0
	} else if o.naks < math.MaxUint8 {
		o.naks++
	}
	return tx.KV(tabOut).Put(key, o.encode())
}

// mark notes, once for each new incarnation of a destination, which jobs may have been started in the life it lost.
func (j *Jobs) mark(tx *spool.Tx, k chanKey, c *outChan, inc [8]byte) error {
	if c.marked == inc {
		return nil
	}
	c.marked = inc
	kv := tx.KV(tabOut)
	return kv.Each(noKey(c.no), func(key, v []byte) error {
		o, ok := parseOwn(v)
		if !ok {
			return nil
		}
		item, err := tx.Item(o.id)
		if err != nil || item.Legs[0].Carrier == "" {
			return nil
		}
		o.maybe = true
		return kv.Put(key, o.encode())
	})
}

// PeerRenewed reacts to a peer's new incarnation: it may have forgotten what it started. The bridge makes what has no
// outcome due again.
func (j *Jobs) PeerRenewed(peer envelope.NodeID) error {
	err := j.spool.Apply(func(tx *spool.Tx) error {
		inc, ok := j.o.PeerIncarnation(tx, peer)
		if !ok {
			return nil
		}
		return tx.KV(tabOutChan).Each(peer[:], func(kb, v []byte) error {
			k := parseChanKey(kb)
			c, err := parseOutChan(v)
			if err != nil || c.marked == inc {
				return err
			}
			if err := j.mark(tx, k, c, inc); err != nil {
				return err
			}
			c.owed = true
			return putOut(tx, k, c)
		})
	})
	if err == nil {
		j.oweTo(peer)
	}
	return err
}

// nextResume gives the number of the next resume. It is not below the time: an origin that was put back from an older copy
// would begin with numbers that the destination has read already, and not be heard until it has counted past them.
func (j *Jobs) nextResume(c *outChan) { c.resumes = max(c.resumes+1, uint64(max(j.o.Now().Unix(), 1))) }

// resumes makes the resumes of one channel, one for each epoch that has jobs without outcome and the present one.
func (j *Jobs) resumes(tx *spool.Tx, c *outChan, channel string, inc [8]byte) ([]*envelope.Resume, error) {
	var list []*envelope.Resume
	add := func(epoch [8]byte, next uint64) error {
		j.nextResume(c)
		r := &envelope.Resume{Channel: channel, Epoch: epoch, Number: c.resumes, For: inc, Floor: next, Next: next}
		at := uint64(0) // all below is told
		err := walk(tx.KV(tabOut), epochKey(c.no, epoch), epochKey(c.no, epoch), func(key, v []byte) error {
			o, ok := parseOwn(v)
			if !ok || len(key) != 20 {
				return nil
			}
			_, _, seq := parseSlotKey(key)
			switch {
			case at == 0:
				r.Floor = seq
			case seq > at:
				r.Ended = append(r.Ended, envelope.Range{First: at, Count: seq - at})
			}
			at = seq + 1
			if len(r.Ended) >= envelope.MaxRanges-2 || len(r.Maybe) >= envelope.MaxRanges-2 {
				// more does not fit: whatever follows may have been started
				r.Maybe = append(r.Maybe, envelope.Range{First: seq, Count: next - seq})
				if n := len(r.Maybe); n > 1 && r.Maybe[n-2].End() == seq {
					r.Maybe[n-2].Count += next - seq
					r.Maybe = r.Maybe[:n-1]
				}
				at = next
				return errStop
			}
			if o.maybe {
				r.Maybe.Add(seq, envelope.Check{})
			}
			return nil
		})
		if at != 0 && at < next {
			r.Ended = append(r.Ended, envelope.Range{First: at, Count: next - at})
		}
		list = append(list, r)
		return err
	}
	for _, s := range c.past {
		if err := add(s.epoch, s.last+1); err != nil {
			return nil, err
		}
	}
	// a report on an epoch that this node does not know is answered too
	if c.repEpoch != ([8]byte{}) && c.end(c.repEpoch) == 0 {
		j.nextResume(c)
		list = append(list, &envelope.Resume{Channel: channel, Epoch: c.repEpoch, Number: c.resumes, For: inc, Floor: 1, Next: 1})
	}
	return list, add(c.epoch, c.next)
}
