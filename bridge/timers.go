package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// runTimers is the one place where time passes: legs whose hour has come, expiry, the clock, erasure.
func (b *Bridge) runTimers(ctx context.Context) {
	b.startUp()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var minute, hour time.Time // of the last chores
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		now := b.now()
		if now.Sub(minute) >= time.Minute || now.Before(minute) {
			minute = now
			if err := b.watchClock(now); err != nil {
				b.log.Error("look at the clock", "err", err)
				if errors.Is(err, spool.ErrBroken) {
					b.fail(err)
				}
			}
		}
		if now.Sub(hour) >= time.Hour || now.Before(hour) {
			hour = now
			b.hourly(now)
		}
		b.delayNotices(now)
		b.Tick(now)
		wait := 10 * time.Second
		if next := b.spool.NextWake(); !next.IsZero() {
			wait = min(wait, max(next.Sub(b.now()), 10*time.Millisecond))
		}
		timer.Reset(wait)
	}
}

// startUp finishes what a crash may have left half said: recipients that lead nowhere have their DSN made again.
func (b *Bridge) startUp() {
	var after envelope.ID
	for {
		items, more, err := b.spool.List(spool.Query{Dest: spool.DeadDest, State: spool.Due, After: after, Limit: 200})
		if err != nil {
			b.log.Error("look for unfinished ends", "err", err)
			return
		}
		for _, it := range items {
			after = it.Env.ID
			b.bury(after)
		}
		if !more || len(items) == 0 {
			return
		}
	}
}

// Tick handles every leg and item whose time has come. Tests with a virtual clock call it directly.
func (b *Bridge) Tick(now time.Time) {
	for {
		refs, err := b.spool.Wake(now, 500)
		if err != nil {
			b.log.Error("look for what is due", "err", err)
			return
		}
		if progress := b.wakeAll(refs, now); len(refs) < 500 || !progress {
			return
		}
	}
}

// wakeAll handles due times: what only becomes due again in one commit, the rest one by one. It reports whether
// anything changed.
func (b *Bridge) wakeAll(refs []spool.Ref, now time.Time) (progress bool) {
	var again, rest []spool.Ref
	err := b.spool.View(func(tx *spool.Tx) error {
		for _, ref := range refs {
			if ref.Leg < 0 {
				rest = append(rest, ref)
				continue
			}
			item, err := tx.Item(ref.ID)
			if err != nil || ref.Leg >= len(item.Legs) {
				continue // it has ended
			}
			if _, expired := b.expiredNow(item); expired || item.Legs[ref.Leg].State == spool.Arrived || b.sentOut(item, ref.Leg) {
				rest = append(rest, ref)
			} else {
				again = append(again, ref)
			}
		}
		return nil
	})
	if err == nil {
		again = b.digest(again, now)
	}
	if err == nil && len(again) > 0 {
		err = b.spool.ApplyUrgent(func(tx *spool.Tx) error {
			for _, ref := range again {
				if err := dueAgain(tx, ref, now); err != nil {
					return err
				}
			}
			return nil
		})
		progress = err == nil
	}
	if err != nil {
		b.log.Error("wake what is due", "err", err)
	}
	for _, ref := range rest {
		if b.wakeRef(ref, now) {
			progress = true
		}
	}
	return progress
}

// dueAgain makes a leg due whose time has come: it was put off, or its receipt is overdue.
func dueAgain(tx *spool.Tx, ref spool.Ref, now time.Time) error {
	item, err := tx.Item(ref.ID)
	if err != nil {
		return gone(err)
	}
	leg := &item.Legs[ref.Leg]
	if leg.At.IsZero() || leg.At.After(now) {
		return nil
	}
	e := spool.Overdue
	if leg.State == spool.Deferred {
		e = spool.Wake
	}
	next, ok := spool.Next(leg.State, e)
	if !ok || next == spool.Due && item.Gone {
		return nil
	}
	if e == spool.Overdue {
		item.AddLog(now, "overdue", "no receipt, sending again")
		leg.Attempts++
	}
	leg.State, leg.At = next, time.Time{}
	return tx.Save(item)
}

// wakeRef ends, if its time has come, an item that has expired or a leg whose outcome never came.
func (b *Bridge) wakeRef(ref spool.Ref, now time.Time) bool {
	if b.clock.suspect() {
		return false
	}
	// what could not be ended now is told again: it must not be forgotten
	if ref.Leg < 0 {
		err := b.expire(ref.ID)
		if err == nil {
			err = gone(b.spool.ApplyUrgent(func(tx *spool.Tx) error {
				item, err := tx.Item(ref.ID)
				if err != nil {
					return err
				}
				item.ExpirySeen = true
				return tx.Save(item)
			}))
		}
		return b.noted(ref.ID, err)
	}
	var item *spool.Item
	if err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(ref.ID); return err }); err != nil {
		return false
	}
	leg := &item.Legs[ref.Leg]
	switch {
	case leg.At.IsZero() || leg.At.After(now):
		return false
	case b.sentOut(item, ref.Leg):
		return b.noted(ref.ID, b.unconfirmed(item, ref))
	case leg.State == spool.Arrived:
		s := envelope.Status{Code: 554, Enhanced: "5.4.7", Text: "it arrived, but no word of its delivery came back in time"}
		return b.noted(ref.ID, b.endAny(item, ref, leg, s))
	}
	return b.noted(ref.ID, b.expire(ref.ID))
}

// noted logs an error of something that the timers do; it reports whether there was none.
func (b *Bridge) noted(id envelope.ID, err error) bool {
	if err != nil {
		b.log.Error("timer", "id", id.String(), "err", err)
	}
	return err == nil
}

// hourly does the chores: duplicate memory, sessions, keys, delay notices, small tables.
func (b *Bridge) hourly(now time.Time) {
	if !b.clock.suspect() {
		if err := b.spool.Forget(now); err != nil {
			b.log.Error("forget old duplicates", "err", err)
		}
		if err := b.jobs.Forget(now); err != nil {
			b.log.Error("forget old jobs", "err", err)
		}
		b.prune(finishedPackets, now.Add(-400*24*time.Hour)) // a stick may be away for long
		b.prune(refusedHeads, now.Add(-90*24*time.Hour))
		b.prune(quietItems, now.Add(-90*24*time.Hour)) // no session lives longer
		b.prune("refusals", now.Add(-24*time.Hour))
		b.prune(tombstones, now)
		if err := b.pruneInvites(now); err != nil {
			b.log.Error("forget old invitations", "err", err)
		}
		b.prune(passedOn, now)
		b.prune(summaries, now)
		b.prune(payloads, now.Add(-90*24*time.Hour))
		b.prune(twins, now.Add(-90*24*time.Hour))
		b.keyChores(now)
	}
	if err := b.ses.erase(b, now); err != nil {
		b.log.Error("erase old sessions", "err", err)
	}
	b.delays = delayScan{under: true}
}

// prune removes entries whose first eight bytes are a time before limit, some at a time: others wait for the commit.
func (b *Bridge) prune(table string, limit time.Time) {
	for {
		var old [][]byte
		err := b.spool.View(func(tx *spool.Tx) error {
			return tx.KV(table).Each(nil, func(k, v []byte) error {
				if len(v) >= 8 && time.UnixMilli(int64(binary.BigEndian.Uint64(v))).Before(limit) {
					old = append(old, k)
				}
				if len(old) == 1000 {
					return errEnough
				}
				return nil
			})
		})
		if (err == nil || errors.Is(err, errEnough)) && len(old) > 0 {
			err = b.spool.ApplyUrgent(func(tx *spool.Tx) error {
				for _, k := range old {
					if err := tx.KV(table).Delete(k); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, errEnough) {
			b.log.Error("prune", "table", table, "err", err)
			return
		}
		if len(old) < 1000 {
			return
		}
	}
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")
