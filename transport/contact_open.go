package transport

import (
	"context"
	"errors"
	"io"
	"time"
)

// A big packet that comes fast is opened while it comes: its Station reads the partial file as it grows, so that the
// packet is decrypted and stored when its last byte is there. The Station learns that the packet is whole from
// the end of its reader, and acts on nothing before. On slow lines this would gain nothing and hold buffers for long.

const (
	openStep = 1 << 20                // the pace is looked at after so many bytes, and so many must be missing yet
	openWait = 125 * time.Millisecond // as long as a step may take: at 8 MiB/s, opening later costs few percent more
)

// pace measures how fast a packet comes.
type pace struct {
	from int64
	at   time.Time
	step time.Duration // what the last step took
}

// fast reports, once a step, whether the packet is worth opening early.
func (p *pace) fast(part *partial, now time.Time) bool {
	if p.at.IsZero() {
		p.from, p.at = part.off, now
	}
	if part.off-p.from < openStep {
		return false
	}
	took := now.Sub(p.at)
	p.from, p.at, p.step = part.off, now, took
	return took <= openWait && part.size-part.off >= openStep
}

// openEarly has the Station read a packet while the rest of it comes, unless too much is going on already. The packet
// is then ended by the goroutine that this starts, whatever happens.
func (c *contact) openEarly(ctx context.Context, r *receiving) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opening || c.stop || r.restarts > 0 || !c.o.Partials.mayOpen() {
		return
	}
	c.opening = true
	r.open = r.part.growing()
	r.open.may = time.Duration((r.part.size-r.part.off)/openStep)*r.pace.step < spareMost
	c.work.Go(func() {
		err := c.receiveEarly(ctx, r.part.size, r.open)
		c.o.Partials.opened()
		c.mu.Lock()
		c.opening = false
		if !r.complete {
			r.over = true
		}
		complete := r.complete
		c.mu.Unlock()
		c.concludeEarly(r, err)
		if complete {
			c.mu.Lock()
			c.busy--
			c.mu.Unlock()
		}
		c.progress()
		c.poke()
	})
}

// receiveEarly is Station.Receive for a packet that is still coming.
func (c *contact) receiveEarly(ctx context.Context, size int64, g *growing) error {
	err := c.st.Receive(ctx, size, g)
	switch {
	case err == nil:
		io.Copy(io.Discard, g) // what the Station did not want to read is waited for
	case errors.Is(err, ErrRefused):
		g.Verify(ctx) // only all of it shows that it was this packet
	}
	if bad := g.failure(); bad != nil {
		return bad // whatever the Station made of it
	}
	return err
}

// concludeEarly ends an offer that was opened early.
func (c *contact) concludeEarly(r *receiving, err error) {
	switch {
	case errors.Is(err, errCutShort):
		// no verdict can be sent any more: run keeps what is there
	case errors.Is(err, errOtherBytes):
		c.startAgain(r)
	case errors.Is(err, errCancelled):
		c.endOffer(r.n, verdictLater)
		if err := r.part.keep(); err != nil {
			c.o.Log.Warn("partial packet not kept", "packet", r.part.id, "err", err)
		}
	default:
		c.conclude(r, err)
	}
}

// endEarly has the opener of a packet end it because no more of it will come; false: it has none.
func (c *contact) endEarly(r *receiving, why error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.open == nil {
		return false
	}
	r.over = true
	r.open.end(why)
	return true
}

// cutEarly ends what is opened and did not come whole, when the contact is over.
func (c *contact) cutEarly() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.incoming {
		if r.open != nil {
			r.open.end(errCutShort)
		}
	}
}
