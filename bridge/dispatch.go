package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"mochila/bridge/deliver"
	"mochila/internal/envelope"
	"mochila/spool"
)

// dispatcher empties the delivery queues: a few workers for each place, started when something is due and gone when
// nothing is. One place that hangs or is down holds up nothing but its own queue.
type dispatcher struct {
	b  *Bridge
	wg sync.WaitGroup

	mu     sync.Mutex
	ctx    context.Context // nil until run, and after it
	places map[spool.Dest]*place
	ended  chan struct{} // closed, and made anew, whenever a worker ends

	taking atomic.Int32 // callers that wait for their 250
	rush   atomic.Int64 // until when there is a rush of them, in nanoseconds since start
	rushed atomic.Int64 // since when there is
}

// place is one delivery target. Its fields belong to the dispatcher's mutex.
type place struct {
	workers int
	to      deliver.Transport
	down    time.Time     // no tries before; zero when up
	backoff time.Duration // what the next failure will wait
	last    envelope.Status
	timer   *time.Timer
	later   *time.Timer // looks again for what a rush held back; nil when nothing was
}

func (d *dispatcher) init(b *Bridge) {
	d.b, d.places, d.ended = b, map[spool.Dest]*place{}, make(chan struct{})
}

// In a rush, when several callers wait for their 250 at once, they go first: a place gets few workers, until a burst of mail
// has gathered for it. What a burst takes up quickly is delivered behind it; a stream that lasts is not held up.
const (
	rushWorkers = 2
	rushBurst   = 2000                  // due legs of a place
	rushEnds    = 5 * time.Millisecond  // after the last moment at which several waited
	rushPause   = 10 * time.Millisecond // until workers that were not started are thought of again
	rushMost    = 10 * time.Second      // what lasts longer is no burst
	rushApart   = time.Second           // what follows sooner is the same rush
)

var dispatchStart = time.Now()

// take commits what a caller is to get a 250 for.
func (d *dispatcher) take(commit func(*spool.Tx) error) error {
	if d.taking.Add(1) > 1 {
		now := int64(time.Since(dispatchStart))
		if now > d.rush.Load()+int64(rushApart) {
			d.rushed.Store(now)
		}
		d.rush.Store(now + int64(rushEnds))
	}
	defer d.taking.Add(-1)
	return d.b.spool.ApplyHere(commit)
}

// limit is how many workers a place may have now.
func (d *dispatcher) limit(q spool.Dest) (n int, rush bool) {
	n = d.b.Policy().Limits.Deliveries
	now := int64(time.Since(dispatchStart))
	if n <= rushWorkers || now >= d.rush.Load() || now-d.rushed.Load() >= int64(rushMost) || d.b.spool.DueCount(q) >= rushBurst {
		return n, false
	}
	return rushWorkers, true
}

// thinkAgain starts the workers of a place, a little later, that were refused to it in a rush. The mutex is held.
func (d *dispatcher) thinkAgain(q spool.Dest, p *place) {
	if p.later == nil {
		p.later = time.AfterFunc(rushPause, func() {
			d.mu.Lock()
			p.later = nil
			d.mu.Unlock()
			for n, _ := d.limit(q); n > 0 && d.b.spool.DueNow(q); n-- {
				d.due(q)
			}
		})
	}
}

// run lets workers start, and waits for them when ctx ends.
func (d *dispatcher) run(ctx context.Context) {
	d.mu.Lock()
	d.ctx = ctx
	d.mu.Unlock()
	d.kick()
	<-ctx.Done()
	d.mu.Lock()
	d.ctx = nil
	for _, p := range d.places {
		for _, t := range []*time.Timer{p.timer, p.later} {
			if t != nil {
				t.Stop()
			}
		}
		p.later = nil
	}
	d.mu.Unlock()
	d.wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.places {
		if p.to != nil {
			p.to.Close()
			p.to = nil
		}
	}
}

// kick looks at every queue again, as after a start, a flush or a reload; places that are down are tried at once.
func (d *dispatcher) kick() { d.kickFor("") }

// kickFor is kick for one queue; "" stands for all.
func (d *dispatcher) kickFor(dest spool.Dest) {
	d.mu.Lock()
	ctx := d.ctx
	for q, p := range d.places {
		if dest == "" || q == dest {
			p.down, p.backoff = time.Time{}, 0
		}
	}
	d.mu.Unlock()
	if ctx == nil {
		return
	}
	for _, q := range d.b.spool.Dests() {
		if _, ok := q.Via(); ok && (dest == "" || q == dest) {
			for range 4 {
				d.due(q)
			}
		}
	}
}

// due starts one more worker for a place, within its limits.
func (d *dispatcher) due(q spool.Dest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil {
		return
	}
	p := d.places[q]
	if p == nil {
		p = &place{}
		d.places[q] = p
	}
	if !p.down.IsZero() {
		return
	}
	if n, rush := d.limit(q); p.workers >= n {
		if rush {
			d.thinkAgain(q, p)
		}
		return
	}
	if p.to == nil {
		via, _ := q.Via()
		open := d.b.opt.Deliver
		if open == nil {
			open = func(via string) (deliver.Transport, error) {
				return deliver.New(via, deliver.Options{Hostname: d.b.Policy().Domain})
			}
		}
		if via == viaAliases {
			open = func(string) (deliver.Transport, error) { return expander{d.b}, nil }
		}
		if via == viaSummaries {
			open = func(string) (deliver.Transport, error) { return reader{d.b}, nil }
		}
		to, err := open(via)
		if err != nil {
			d.failed(q, p, envelope.Status{Code: 451, Enhanced: "4.3.5", Text: err.Error()})
			return
		}
		p.to = to
	}
	p.workers++
	d.wg.Add(1)
	go d.work(d.ctx, q, p)
}

// failed puts a place aside for a while. The mutex is held.
func (d *dispatcher) failed(q spool.Dest, p *place, s envelope.Status) {
	l := d.b.Policy().Limits
	if p.down.IsZero() {
		p.backoff = min(max(p.backoff*2, l.RetryMin), l.RetryMax)
		p.down = d.b.now().Add(p.backoff)
		p.last = s
		if p.timer != nil {
			p.timer.Stop()
		}
		p.timer = time.AfterFunc(p.backoff, func() {
			d.mu.Lock()
			p.down = time.Time{}
			d.mu.Unlock()
			d.due(q)
		})
	}
}

// state tells why a place is not tried now; ok is false when it is up.
func (d *dispatcher) state(q spool.Dest) (s envelope.Status, until time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.places[q]; p != nil && !p.down.IsZero() {
		return p.last, p.down, true
	}
	return s, until, false
}

// settle waits until no delivery is under way, for at most the given time.
func (d *dispatcher) settle(ctx context.Context, atMost time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for {
		d.mu.Lock()
		ended, running := d.ended, d.ctx != nil
		d.mu.Unlock()
		if !running || d.idle() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
		}
	}
}

func (d *dispatcher) work(ctx context.Context, q spool.Dest, p *place) {
	defer d.wg.Done()
	for ctx.Err() == nil && !d.tooMany(q, p) {
		l, err := d.b.spool.Lease(q, 1, 0)
		if err != nil {
			d.b.log.Error("lease", "queue", string(q), "err", err)
			d.mu.Lock()
			d.failed(q, p, envelope.Status{Code: 451, Enhanced: "4.3.0", Text: "the spool cannot be read: " + err.Error()})
			d.mu.Unlock()
		}
		if len(l) == 0 {
			break
		}
		status, down := d.b.deliverOne(ctx, p.to, l[0], func() {
			if d.b.spool.DueNow(q) {
				d.due(q) // the place is up and there is more: each delivery calls one more worker
			}
		})
		d.mu.Lock()
		if down {
			d.failed(q, p, status)
			d.mu.Unlock()
			break
		}
		p.backoff = 0
		d.mu.Unlock()
	}
	d.mu.Lock()
	p.workers--
	close(d.ended)
	d.ended = make(chan struct{})
	up := p.down.IsZero()
	d.mu.Unlock()
	if up && d.b.spool.DueNow(q) {
		d.due(q) // what came between the last lease and the count above
	}
}

// tooMany tells a worker to end, in a rush that began after it.
func (d *dispatcher) tooMany(q spool.Dest, p *place) bool {
	n, rush := d.limit(q)
	d.mu.Lock()
	defer d.mu.Unlock()
	return rush && p.workers > n
}

// deliverOne tries one leg. It calls up, before it commits, when the place has answered. down says that the place itself
// did not answer: the leg stays due for when it does.
func (b *Bridge) deliverOne(ctx context.Context, to deliver.Transport, l spool.Leased, up func()) (s envelope.Status, down bool) {
	ref := spool.Ref{ID: l.Item.Env.ID, Leg: l.Leg}
	leg := &l.Item.Legs[l.Leg]
	began := b.now()
	if l.Item.Env.Kind != envelope.KindMail {
		b.insist(ctx, "quarantine", ref.ID, func() error { return b.quarantineItem(ref.ID, "not a mail, but queued for delivery") })
		return s, false
	}
	if st, expired := b.expiredNow(l.Item); expired {
		b.insist(ctx, "end an expired mail", ref.ID, func() error { return b.endLeg(ref, leg.Rcpts, st) })
		return s, false
	}
	var rcpts []int
	for _, i := range leg.Rcpts {
		if !l.Item.Outcomes[i].Action.Final() {
			rcpts = append(rcpts, i)
		}
	}
	if len(rcpts) == 0 {
		b.settle(ctx, ref, nil, began)
		return s, false
	}
	msg := &deliver.Message{
		Env: l.Item.Env, Rcpts: rcpts, Header: b.exitHeader(l.Item),
		Open: func() (io.ReadCloser, error) { return b.spool.OpenBody(ref.ID) },
		Left: func() time.Duration { return b.byLeft(l.Item) },
	}
	res := to.Deliver(ctx, msg)
	if ctx.Err() != nil && allPending(res) {
		b.spool.Release(ref)
		return s, false
	}
	down = len(res) > 0
	for _, r := range res {
		if r.Corrupt {
			why := "the content in the spool is not what was accepted: " + r.Status.Text
			b.insist(ctx, "quarantine", ref.ID, func() error { return b.quarantineItem(ref.ID, why) })
			return s, false
		}
		if r.Action == envelope.ActionPending && r.Down {
			s = r.Status
		} else {
			down = false
		}
	}
	if down {
		b.noteDown(ref, rcpts, res[0], began)
		return s, true
	}
	up()
	b.settle(ctx, ref, res, began)
	return s, false
}

// insist repeats a commit that has to be made before anything else happens to a leg: the leg stays leased meanwhile,
// for what was delivered and not recorded would be delivered again. It gives up when ctx ends or the spool is broken.
func (b *Bridge) insist(ctx context.Context, what string, id envelope.ID, commit func() error) bool {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		err := commit()
		if err == nil {
			return true
		}
		b.log.Error(what, "id", id.String(), "err", err)
		if errors.Is(err, spool.ErrBroken) || errors.Is(err, spool.ErrClosed) {
			b.fail(err)
			return false
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
	}
}

func allPending(res []deliver.Result) bool {
	for _, r := range res {
		if r.Action != envelope.ActionPending {
			return false
		}
	}
	return true
}

// exitHeader is the one trace line added where a mail leaves the mochila network; a mail that never left this node
// has the line of its entry already.
func (b *Bridge) exitHeader(item *spool.Item) []byte {
	if b.own(item.Env) {
		return nil
	}
	p := b.Policy()
	return fmt.Appendf(nil, "Received: from %s by %s (mochila) with mochila id %s;\r\n\t%s\r\n",
		clean(p.nodeName(item.Env.Origin)), p.Domain, item.Env.ID, item.Entered.Format("Mon, 2 Jan 2006 15:04:05 -0700 (MST)"))
}

// noteDown writes the reason into the one leg that found the place down; it stays due.
func (b *Bridge) noteDown(ref spool.Ref, rcpts []int, r deliver.Result, began time.Time) {
	var item *spool.Item
	err := b.spool.Apply(func(tx *spool.Tx) (err error) {
		if item, err = tx.Item(ref.ID); err != nil {
			return err
		}
		leg := &item.Legs[ref.Leg]
		leg.Attempts++
		leg.Last = r.Status
		item.AddLog(b.now(), "deferred", r.MTA+": "+r.Status.String())
		return tx.Save(item)
	})
	b.spool.Release(ref)
	if err != nil {
		b.log.Error("note a failed delivery", "id", ref.ID.String(), "err", err)
		return
	}
	for _, i := range rcpts {
		b.logDelivery(item, i, "deferred", r.MTA, r.Status, began)
	}
}

// settle commits what a delivery decided: outcomes, the leg's next state, and what follows from them (DSN or report).
func (b *Bridge) settle(ctx context.Context, ref spool.Ref, res []deliver.Result, began time.Time) {
	now := b.now()
	final := map[int]envelope.Outcome{}
	var pending *deliver.Result
	for i, r := range res {
		if r.Action.Final() {
			final[r.Rcpt] = envelope.Outcome{Action: r.Action, Status: r.Status, MTA: r.MTA, At: now}
		} else {
			pending = &res[i]
		}
	}
	dsnTaken := map[int]bool{}
	for _, r := range res {
		dsnTaken[r.Rcpt] = r.DSN
	}
	putOff := func(item *spool.Item, leg *spool.Leg) {
		if pending == nil {
			return
		}
		leg.Attempts++
		leg.Last = pending.Status
		if next, ok := spool.Next(leg.State, spool.Defer); ok { // not when an operator holds it meanwhile
			leg.State, leg.At = next, now.Add(b.backoff(leg.Attempts))
		}
		item.AddLog(now, "deferred", pending.MTA+": "+pending.Status.String())
	}
	var item *spool.Item
	recorded := b.insist(ctx, "record a delivery", ref.ID, func() (err error) {
		item, err = b.conclude(ref, final, dsnTaken, putOff)
		return err
	})
	if !recorded {
		for _, r := range res {
			if r.Action.Final() {
				b.log.Error(fmt.Sprintf("%s: recipient %d was handed over (%s) and this could not be recorded: it may happen again", ref.ID, r.Rcpt, r.Status))
			}
		}
		return
	}
	for _, r := range res {
		word := "deferred"
		switch r.Action {
		case envelope.ActionDelivered, envelope.ActionRelayed, envelope.ActionExpanded:
			word = "sent"
		case envelope.ActionFailed:
			word = "bounced"
		}
		b.logDelivery(item, r.Rcpt, word, r.MTA, r.Status, began)
	}
}

// backoff is how long the n-th failure in a row waits: RetryMin, doubling, up to RetryMax.
func (b *Bridge) backoff(n int) time.Duration {
	l := b.Policy().Limits
	d := l.RetryMin
	for i := 1; i < n && d < l.RetryMax; i++ {
		d *= 2
	}
	return min(d, l.RetryMax)
}
