package bridge

import (
	"encoding/binary"
	"sync"
	"time"

	"mochila/spool"
)

// buildDate bounds the clock from below: no build can run before it was written.
var buildDate = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

const (
	clockBack    = 5 * time.Minute    // a step back larger than this is suspect
	clockForward = 7 * 24 * time.Hour // a step forward larger than this that running time does not cover
	clockKey     = "clock"            // newest trusted wall time stored, Unix milliseconds
	clockAccept  = "clock-accepted"   // the wall time a person declared right
)

// clock watches the wall clock. While it is suspect nothing expires, bounces, is refused for age or is erased: a wrong
// date must not cost anybody a mail (docs/custody.md). It becomes trusted again when the kernel reports
// synchronisation, when two peers' authenticated times agree with it, or when a person says so.
type clock struct {
	mu     sync.Mutex
	why    string    // "" = trusted
	last   time.Time // wall clock at the last look
	mono   time.Time // the same with Go's monotonic reading
	agreed map[string]bool
	kernel func() bool // whether the kernel says the clock is synchronised

	boot  func() (id string, up time.Duration, ok bool) // nil: steps are seen only while the process runs, and move nothing
	up    time.Duration                                 // since boot, at the last look
	id    string                                        // of the boot
	era   time.Time                                     // by the present clock, since when all its readings are of one row
	moves []move                                        // steps of the clock that the queue has not followed yet
}

// load compares the clock with what the spool remembers.
func (c *clock) load(b *Bridge) error {
	var stored, accepted time.Time
	err := b.spool.View(func(tx *spool.Tx) error {
		if v := tx.Meta(clockKey); len(v) == 8 {
			stored = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
		}
		if v := tx.Meta(clockAccept); len(v) == 8 {
			accepted = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.kernel == nil {
		c.kernel = kernelSynced
	}
	now := b.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.mono = now.Round(0), now
	newest := stored // trusted time
	if accepted.After(newest) {
		newest = accepted
	}
	switch {
	case !accepted.IsZero() && now.After(newest.Add(-clockBack)) && now.Before(newest.Add(clockForward)):
		// it goes on from what a person declared right, whatever the build date
	case now.Before(buildDate):
		c.why = "the clock is before this program's build date"
	case !stored.IsZero() && now.Before(stored.Add(-clockBack)):
		c.why = "the clock is before the newest time in the spool, " + stored.UTC().Format(time.RFC3339)
	case !stored.IsZero() && now.After(stored.Add(clockForward)):
		c.why = "the clock is more than a week ahead of the newest time in the spool, " + stored.UTC().Format(time.RFC3339)
	}
	if c.why != "" && c.kernel() {
		c.why = ""
	}
	if c.why != "" {
		b.log.Warn("clock is suspect: nothing expires or bounces", "why", c.why)
	}
	return c.resume(b, now)
}

// suspect reports whether the wall clock is not to be trusted.
func (c *clock) suspect() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why != ""
}

// reason is why the clock is suspect, "" when it is not.
func (c *clock) reason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// look compares wall time and running time since the last look; a minute's timer calls it.
func (c *clock) look(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ran := now.Sub(c.mono)           // monotonic where the time has such a reading
	wall := now.Round(0).Sub(c.last) // wall clock
	if c.boot != nil {
		if _, up, ok := c.boot(); ok {
			slept := up - c.up // the monotonic clock does not count sleep
			if now == now.Round(0) {
				ran = slept
			}
			ran, c.up = max(ran, slept), up
		}
	}
	switch step := wall - ran; {
	case step < -clockBack:
		c.why = "the clock went back by " + (-step).Round(time.Second).String()
	case step > clockForward:
		c.why = "the clock jumped forward by " + step.Round(time.Second).String()
	}
	if c.why != "" && c.kernel() {
		c.why = ""
	}
	c.stepped(wall-ran, c.last, now.Round(0), ran)
	c.last, c.mono = now.Round(0), now
}

// accept is a person's word that the clock is right.
func (c *clock) accept() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.why, c.agreed = "", nil
}

// peerTime takes the authenticated time at which a peer made something that has just come; two peers within a day of
// our clock end the suspicion. What was long on its way says nothing.
func (c *clock) peerTime(peer string, theirs, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == "" {
		return
	}
	d := theirs.Sub(now)
	if d < -24*time.Hour || d > 24*time.Hour {
		return
	}
	if c.agreed == nil {
		c.agreed = map[string]bool{}
	}
	c.agreed[peer] = true
	if len(c.agreed) >= 2 {
		c.why, c.agreed = "", nil
	}
}

// store remembers the newest trusted wall time, and the last look; it is called each minute.
func (c *clock) store(b *Bridge, now time.Time) error {
	trusted := !c.suspect()
	c.mu.Lock()
	run, moves := c.run(), pending(c.moves)
	c.mu.Unlock()
	if !trusted && run == nil {
		return nil
	}
	return b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		if run != nil {
			if err := tx.SetMeta(clockRun, run); err != nil {
				return err
			}
			if err := tx.SetMeta(clockMove, moves); err != nil {
				return err
			}
		}
		if !trusted {
			return nil
		}
		return tx.SetMeta(clockKey, timeBytes(now))
	})
}

// AcceptClock declares the wall clock right ("mochila clock accept").
func (b *Bridge) AcceptClock() error {
	now := b.now()
	b.clock.accept()
	return b.spool.Apply(func(tx *spool.Tx) error {
		var v [8]byte
		binary.BigEndian.PutUint64(v[:], uint64(now.UnixMilli()))
		if err := tx.SetMeta(clockKey, v[:]); err != nil {
			return err
		}
		return tx.SetMeta(clockAccept, v[:])
	})
}

// ClockSuspect tells why the wall clock is not trusted, "" when it is.
func (b *Bridge) ClockSuspect() string { return b.clock.reason() }
