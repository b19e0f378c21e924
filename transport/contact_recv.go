package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// receiving is one big packet on its way in. The reader owns it until all bytes are there, then one worker. A packet
// that is opened while it comes (contact_open.go) is ended by its opener in any case.
type receiving struct {
	n        uint64
	part     *partial
	restarts int
	pace     pace

	complete bool     // all bytes are there; guarded by contact.mu
	over     bool     // nothing that still comes of it matters; guarded by contact.mu
	open     *growing // what the Station reads meanwhile; nil: it does not. guarded by contact.mu
}

// read handles frames until the stream ends. Packets are received under ctx, which outlives a cut connection: what
// is here whole may as well be kept.
func (c *contact) read(ctx, inner context.Context) error {
	for {
		f, err := c.in.next()
		if err != nil {
			switch {
			case errors.Is(err, errFrame):
				return broken(err)
			case inner.Err() != nil:
				return inner.Err() // the writer has closed it
			}
			return c.hungUp(err)
		}
		if err := c.handle(ctx, inner, f); err != nil {
			if errors.Is(err, errFrame) {
				err = broken(err)
			}
			return err
		}
	}
}

func (c *contact) handle(ctx, inner context.Context, f frame) error {
	switch f.t {
	case framePacket:
		return c.onPacket(ctx, inner, f.body)
	case frameOffer:
		return c.onOffer(ctx, inner, f)
	case frameData:
		return c.onData(ctx, inner, f)
	case frameCancel:
		return c.onCancel(f)
	case frameWant:
		return c.onWant(f)
	case frameVerdict:
		return c.onVerdict(f)
	case frameAck:
		var packets uint64
		if err := f.numbers(&packets); err != nil {
			return err
		}
		return c.acknowledge(packets)
	case frameDone:
		return c.onDone(f)
	case frameStop:
		c.o.Log.Info("neighbour takes nothing more in this contact", "reason", f.reason())
		c.mu.Lock()
		c.peerStopped = true
		c.mu.Unlock()
		c.poke()
		return nil
	case frameBye:
		return fmt.Errorf("neighbour ended the contact: %q", f.reason())
	case framePing:
		return nil
	}
	return fmt.Errorf("%w: %v after the greeting", errFrame, f.t)
}

// worker runs fn beside the reader as soon as a slot is free; the caller has counted it in c.busy.
func (c *contact) worker(inner context.Context, fn func()) error {
	select {
	case c.slots <- struct{}{}:
	case <-inner.Done():
		c.mu.Lock()
		c.busy--
		c.mu.Unlock()
		return inner.Err()
	}
	c.work.Go(func() {
		defer func() { <-c.slots }()
		fn()
		c.progress()
		c.poke()
	})
	return nil
}

func (c *contact) onPacket(ctx, inner context.Context, body []byte) error {
	c.mu.Lock()
	n := c.packetsIn
	c.packetsIn++
	c.busy++
	c.peerDone = false
	if c.stop {
		c.afterStop++ // some were under way; each is tried, it may be a receipt that still fits
	}
	tooMany := c.afterStop > maxInFlight
	c.mu.Unlock()
	if tooMany {
		return fmt.Errorf("%w: %d packets after STOP", errFrame, maxInFlight)
	}
	return c.worker(inner, func() {
		err := c.st.Receive(ctx, int64(len(body)), bytes.NewReader(body))
		c.mu.Lock()
		defer c.mu.Unlock()
		c.busy--
		c.fresh = true
		if !c.count(err) || c.stop {
			return // the count of the acknowledged ends before what could not be stored
		}
		c.unacked += len(body)
		c.early[n] = true
		for c.early[c.handled] {
			delete(c.early, c.handled)
			c.handled++
		}
	})
}

// count books what the Station said of a packet and reports whether it is dealt with. mu is held.
func (c *contact) count(err error) bool {
	switch {
	case err == nil:
		c.stats.PacketsIn++
	case errors.Is(err, ErrRefused):
		c.stats.Refused++
	case errors.Is(err, ErrIncomplete):
		c.stats.Incomplete++
	default:
		if c.trouble == nil {
			c.trouble = fmt.Errorf("receive packet: %w", err)
		}
		c.stop = true
		return false
	}
	return true
}

func (c *contact) onOffer(ctx, inner context.Context, f frame) error {
	o, err := f.offer()
	if err != nil {
		return err
	}
	c.mu.Lock()
	n := c.offersIn
	c.offersIn++
	c.peerDone = false
	open, stop := len(c.incoming)+len(c.replies), c.stop
	c.mu.Unlock()
	switch {
	case open >= maxOffered:
		return fmt.Errorf("%w: %d offers at once", errFrame, open)
	case c.st.Known(o.head[:], o.size):
		c.endOffer(n, verdictKnown)
		return nil
	case o.size > c.o.MaxSize:
		c.endOffer(n, verdictTooBig)
		return nil
	case stop || c.o.Partials == nil:
		c.endOffer(n, verdictLater)
		return nil
	}
	part, err := c.o.Partials.begin(o.id, o.size)
	if err != nil {
		c.o.Log.Warn("big packet put off", "packet", o.id, "size", o.size, "err", err)
		c.endOffer(n, verdictLater)
		return nil
	}
	r := &receiving{n: n, part: part}
	c.mu.Lock()
	c.incoming[n] = r
	c.mu.Unlock()
	if part.off == part.size {
		return c.complete(ctx, inner, r)
	}
	c.reply(reply{t: frameWant, numbers: [2]uint64{n, uint64(part.off)}})
	return nil
}

func (c *contact) reply(r reply) {
	c.mu.Lock()
	c.replies = append(c.replies, r)
	c.mu.Unlock()
	c.poke()
}

func (c *contact) endOffer(n uint64, v verdict) {
	c.mu.Lock()
	delete(c.incoming, n)
	c.offersEnded++
	c.fresh = true
	c.mu.Unlock()
	c.reply(reply{t: frameVerdict, numbers: [2]uint64{n}, verdict: v})
}

func (c *contact) onData(ctx, inner context.Context, f frame) error {
	n, err := f.number()
	if err != nil {
		return err
	}
	c.mu.Lock()
	r, known := c.incoming[n], n < c.offersIn
	complete := r != nil && r.complete
	gone := r == nil || r.over
	var open *growing
	if r != nil {
		open = r.open
	}
	c.mu.Unlock()
	switch {
	case !known:
		return fmt.Errorf("%w: DATA for offer %d, which was not made", errFrame, n)
	case gone:
		return nil // sent before the neighbour saw the verdict
	case len(f.body) > maxSlice, complete, int64(len(f.body)) > r.part.size-r.part.off:
		return fmt.Errorf("%w: DATA beyond the end of packet %s", errFrame, r.part.id)
	}
	if open == nil || !open.put(f.body) {
		if _, err := r.part.Write(f.body); err != nil {
			c.abandon(r, err)
			return nil
		}
	}
	c.progress()
	switch {
	case r.part.off == r.part.size:
		return c.complete(ctx, inner, r)
	case open != nil:
		open.grow(r.part.off)
	case r.pace.fast(r.part, time.Now()):
		c.openEarly(ctx, r)
	}
	return nil
}

// onCancel ends an offer that the neighbour cannot fulfil. The bytes stay: it may offer the packet again.
func (c *contact) onCancel(f frame) error {
	var n uint64
	if err := f.numbers(&n); err != nil {
		return err
	}
	c.mu.Lock()
	r, known := c.incoming[n], n < c.offersIn
	complete := r != nil && (r.complete || r.over)
	c.mu.Unlock()
	switch {
	case !known:
		return fmt.Errorf("%w: CANCEL of offer %d, which was not made", errFrame, n)
	case r == nil || complete, c.endEarly(r, errCancelled):
		return nil // its verdict is under way
	}
	c.endOffer(n, verdictLater)
	if err := r.part.keep(); err != nil {
		c.o.Log.Warn("partial packet not kept", "packet", r.part.id, "err", err)
	}
	return nil
}

// abandon ends receiving because of this node's own trouble; the bytes stay for a later contact.
func (c *contact) abandon(r *receiving, err error) {
	if c.endEarly(r, err) {
		return
	}
	c.mu.Lock()
	c.count(err)
	c.mu.Unlock()
	c.endOffer(r.n, verdictLater)
	if err := r.part.keep(); err != nil {
		c.o.Log.Warn("partial packet not kept", "packet", r.part.id, "err", err)
	}
}

// complete checks and hands over a big packet whose bytes are all there.
func (c *contact) complete(ctx, inner context.Context, r *receiving) error {
	c.mu.Lock()
	if r.over {
		c.mu.Unlock()
		return nil
	}
	r.complete = true
	c.busy++
	open := r.open
	c.mu.Unlock()
	if open != nil {
		open.end(io.EOF)
		return nil
	}
	return c.worker(inner, func() {
		c.handOver(ctx, r)
		c.mu.Lock()
		c.busy--
		c.mu.Unlock()
	})
}

func (c *contact) handOver(ctx context.Context, r *receiving) {
	whole, err := r.part.whole(ctx)
	switch {
	case err != nil:
		c.abandon(r, err)
	case !whole:
		c.startAgain(r)
	default:
		c.conclude(r, c.st.Receive(ctx, r.part.size, r.part.reader()))
	}
}

// conclude ends an offer by what the Station said of the whole packet.
func (c *contact) conclude(r *receiving, err error) {
	c.mu.Lock()
	dealt := c.count(err)
	c.mu.Unlock()
	if !dealt {
		c.endOffer(r.n, verdictLater)
		if err := r.part.keep(); err != nil {
			c.o.Log.Warn("partial packet not kept", "packet", r.part.id, "err", err)
		}
		return
	}
	v := verdictLater
	switch {
	case err == nil:
		v = verdictTaken
	case errors.Is(err, ErrRefused):
		v = verdictRefused
	}
	if err := r.part.drop(func() { c.endOffer(r.n, v) }); err != nil {
		c.o.Log.Warn("partial packet not deleted", "packet", r.part.id, "err", err)
	}
}

// startAgain asks once more for a packet whose bytes did not hash to its name.
func (c *contact) startAgain(r *receiving) {
	r.restarts++
	if r.restarts > 1 {
		c.o.Log.Warn("big packet came damaged twice", "packet", r.part.id, "size", r.part.size)
		r.part.drop(nil)
		c.endOffer(r.n, verdictCorrupt)
		return
	}
	c.o.Log.Info("big packet did not match its name, asking again", "packet", r.part.id, "size", r.part.size)
	if err := r.part.restart(); err != nil {
		c.abandon(r, err)
		return
	}
	c.mu.Lock()
	r.complete, r.open = false, nil
	c.mu.Unlock()
	c.reply(reply{t: frameWant, numbers: [2]uint64{r.n, 0}})
}

func (c *contact) onWant(f frame) error {
	var n, off uint64
	if err := f.numbers(&n, &off); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.offers[n]
	switch {
	case o == nil:
		return fmt.Errorf("%w: WANT of offer %d, which is not open", errFrame, n)
	case off >= uint64(o.p.Size):
		return fmt.Errorf("%w: WANT from byte %d of %d", errFrame, off, o.p.Size)
	case o.wants > 2, o.wanted:
		return fmt.Errorf("%w: WANT of offer %d again", errFrame, n)
	}
	o.wants++
	o.wanted, o.from = true, int64(off)
	c.poke()
	return nil
}

func (c *contact) onVerdict(f frame) error {
	n, err := f.number()
	if err != nil {
		return err
	}
	if len(f.body) != 1 || f.body[0] >= byte(verdictLimit) {
		return fmt.Errorf("%w: VERDICT % x", errFrame, f.body)
	}
	v := verdict(f.body[0])
	c.mu.Lock()
	o := c.offers[n]
	if o == nil {
		c.mu.Unlock()
		return fmt.Errorf("%w: VERDICT on offer %d, which is not open", errFrame, n)
	}
	delete(c.offers, n)
	o.verdict = v
	c.ended = append(c.ended, o)
	if v.carried() {
		c.stats.PacketsOut++
	}
	c.mu.Unlock()
	if v.carried() {
		c.st.Sent(o.p)
	} else {
		c.o.Log.Warn("neighbour did not take a packet", "packet", o.p.ID, "size", o.p.Size, "verdict", v)
	}
	c.progress()
	c.poke()
	return nil
}

// acknowledge takes the neighbour's count of PACKETs dealt with.
func (c *contact) acknowledge(packets uint64) error {
	c.mu.Lock()
	if packets < c.acked || packets > c.acked+uint64(len(c.inFlight)) {
		defer c.mu.Unlock()
		return fmt.Errorf("%w: %d packets acknowledged, between %d and %d expected", errFrame,
			packets, c.acked, c.acked+uint64(len(c.inFlight)))
	}
	k := int(packets - c.acked)
	sent := c.inFlight[:k:k]
	c.inFlight = c.inFlight[k:]
	for _, p := range sent {
		c.unheard -= p.Size
	}
	c.acked = packets
	c.stats.PacketsOut += k
	c.mu.Unlock()
	for _, p := range sent {
		c.st.Sent(p)
	}
	c.poke()
	return nil
}

func (c *contact) onDone(f frame) error {
	var packets, offers, linger uint64
	if err := f.numbers(&packets, &offers, &linger); err != nil {
		return err
	}
	if err := c.acknowledge(packets); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if offers > c.offered {
		return fmt.Errorf("%w: %d offers ended, %d were made", errFrame, offers, c.offered)
	}
	c.peerOffers = offers
	c.peerLinger = time.Duration(min(linger, uint64(c.o.MaxLinger/time.Second))) * time.Second
	c.peerDone = true
	return nil
}
