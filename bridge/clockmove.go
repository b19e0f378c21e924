package bridge

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// What the queue does when the clock is put right while the machine runs: a machine without a battery comes up with
// yesterday's or last year's date, takes mail, and hears the time a minute later. The mail that it took in between
// must be as old as it is, not a year.

const (
	clockRun  = "clock-run"  // the last look: how wall clock and time since boot stood
	clockMove = "clock-move" // steps that the queue is following
)

// move is a step of the clock: what entered between from and to, by the clock as it was, entered by that much later by
// the clock as it is. What entered inside keep may have entered after the step, and is left alone.
type move struct {
	from, to time.Time
	keep     [2]time.Time
	by       time.Duration
	after    envelope.ID // how far the queue has been gone through
}

const moveSize = 5*8 + 16

func (m move) append(b []byte) []byte {
	for _, t := range []time.Time{m.from, m.to, m.keep[0], m.keep[1]} {
		b = append(b, timeBytes(t)...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(m.by.Milliseconds()))
	return append(b, m.after[:]...)
}

func parseMove(v []byte) move {
	at := func(i int) time.Time { return time.UnixMilli(int64(binary.BigEndian.Uint64(v[8*i:]))) }
	return move{from: at(0), to: at(1), keep: [2]time.Time{at(2), at(3)},
		by: time.Duration(int64(binary.BigEndian.Uint64(v[32:]))) * time.Millisecond, after: envelope.ID(v[40:])}
}

// touches reports whether something entered before the step.
func (m move) touches(entered time.Time) bool {
	return !entered.Before(m.from) && !entered.After(m.to) && (entered.Before(m.keep[0]) || entered.After(m.keep[1]))
}

// resume goes on from the last look of an earlier process, if the machine has been up since. The mutex is held.
func (c *clock) resume(b *Bridge, now time.Time) error {
	c.era, c.moves = now.Round(0), nil
	if c.boot == nil {
		return nil
	}
	var ok bool
	if c.id, c.up, ok = c.boot(); !ok {
		c.boot = nil
		return nil
	}
	return b.spool.View(func(tx *spool.Tx) error {
		for v := tx.Meta(clockMove); len(v) >= moveSize; v = v[moveSize:] {
			c.moves = append(c.moves, parseMove(v))
		}
		v := tx.Meta(clockRun)
		if len(v) < 24 || string(v[24:]) != c.id {
			return nil
		}
		wall := time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
		ran := c.up - time.Duration(binary.BigEndian.Uint64(v[8:]))*time.Millisecond
		c.era = time.UnixMilli(int64(binary.BigEndian.Uint64(v[16:])))
		c.stepped(now.Round(0).Sub(wall)-ran, wall, now.Round(0), 0)
		return nil
	})
}

// stepped notes a step of the clock between two looks, ran apart. The mutex is held.
func (c *clock) stepped(by time.Duration, last, now time.Time, ran time.Duration) {
	if c.boot == nil || by.Abs() < clockBack {
		return
	}
	c.moves = append(c.moves, move{from: c.era, to: last.Add(ran), keep: [2]time.Time{now.Add(-ran), now.Add(time.Hour)}, by: by})
	c.era = c.era.Add(by)
}

// run is the last look as the spool keeps it: wall clock, time since boot, era, boot; nil where steps are not known.
// The mutex is held.
func (c *clock) run() []byte {
	if c.boot == nil {
		return nil
	}
	v := timeBytes(c.last)
	v = binary.BigEndian.AppendUint64(v, uint64(c.up.Milliseconds()))
	v = append(v, timeBytes(c.era)...)
	return append(v, c.id...)
}

// pending writes steps that the queue has not followed yet, as the spool keeps them.
func pending(moves []move) (v []byte) {
	for _, m := range moves {
		v = m.append(v)
	}
	return v
}

// watchClock looks at the clock, remembers how it stands, and lets the queue follow its steps.
func (b *Bridge) watchClock(now time.Time) error {
	b.clock.look(now)
	if err := b.clock.store(b, now); err != nil {
		return err
	}
	for {
		b.clock.mu.Lock()
		if len(b.clock.moves) == 0 {
			b.clock.mu.Unlock()
			return nil
		}
		m := b.clock.moves[0]
		b.clock.mu.Unlock()
		more, err := b.followClock(&m)
		if err != nil {
			return fmt.Errorf("follow a step of the clock: %w", err)
		}
		if !more {
			b.log.Warn("the clock was put right: what waits is as old as it was", "step", m.by.Round(time.Second).String())
		}
	}
}

// followClock moves the times of some items by a step, and reports whether there are more.
func (b *Bridge) followClock(m *move) (more bool, err error) {
	items, more, err := b.spool.List(spool.Query{After: m.after, Limit: 500})
	if err != nil {
		return false, err
	}
	if len(items) == 0 {
		more = false
	} else {
		m.after = items[len(items)-1].Env.ID
	}
	b.clock.mu.Lock()
	left := slices.Clone(b.clock.moves[1:]) // the timers alone add to them and take from them
	b.clock.mu.Unlock()
	if more {
		left = slices.Insert(left, 0, *m)
	}
	err = b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for _, it := range items {
			if !m.touches(it.Entered) {
				continue
			}
			item, err := tx.Item(it.Env.ID)
			if err != nil {
				if gone(err) == nil {
					continue
				}
				return err
			}
			b.moveItem(item, m.by)
			if err := tx.Save(item); err != nil {
				return err
			}
		}
		return tx.SetMeta(clockMove, pending(left))
	})
	if err == nil {
		b.clock.mu.Lock()
		b.clock.moves = left
		b.clock.mu.Unlock()
	}
	return more, err
}

// moveItem moves the times that were read off the clock before it was put right. What comes from elsewhere keeps its
// origin's.
func (b *Bridge) moveItem(item *spool.Item, by time.Duration) {
	item.Entered = item.Entered.Add(by)
	item.ExpirySeen = false
	if !b.own(item.Env) {
		return
	}
	env := *item.Env
	item.Env = &env
	env.Created, env.Expires = env.Created.Add(by), env.Expires.Add(by)
	if env.Mail != nil && env.Mail.By != nil {
		mail, y := *env.Mail, *env.Mail.By
		y.Deadline = y.Deadline.Add(by)
		mail.By, env.Mail = &y, &mail
	}
}
