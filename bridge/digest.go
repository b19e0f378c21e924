package bridge

import (
	"io"
	"sync"
	"time"

	"mochila/bridge/bounce"
	"mochila/internal/envelope"
	"mochila/spool"
)

// Many failures at once: a route is gone, a site is lost, and a sender who wrote to it five hundred times would get five
// hundred notices. The first few leave at once; what follows soon after waits a little, and leaves as one digest, each
// notice whole inside.
const (
	digestAfter  = 5                // notices of failure to one sender
	digestWithin = 10 * time.Minute // in this time
	digestPause  = 10 * time.Minute // how long further ones gather
	digestBytes  = 4 << 20          // of notices in one digest; the rest of it is listed in words
	gathered     = "gathered with further notices to this sender"
)

// gathering counts notices of failure by their receiver. It is memory only: after a start counting begins anew, and what
// was gathered leaves at its time.
type gathering struct {
	mu sync.Mutex
	by map[string]*gather
}

type gather struct {
	began time.Time // of the count
	n     int
	until time.Time // when what gathers now leaves
}

// wait tells until when a notice to a sender gathers; the zero time: it leaves at once.
func (g *gathering) wait(to string, tell []envelope.Outcome, now time.Time) time.Time {
	failed := false
	for _, o := range tell {
		failed = failed || o.Action == envelope.ActionFailed
	}
	if !failed {
		return time.Time{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.by == nil || len(g.by) > 10000 {
		g.by = map[string]*gather{}
	}
	x := g.by[to]
	if x == nil {
		x = &gather{began: now}
		g.by[to] = x
	}
	if now.Sub(x.began) > digestWithin && now.After(x.until) || now.Before(x.began) {
		*x = gather{began: now}
	}
	if x.n++; x.n <= digestAfter {
		return time.Time{}
	}
	if !x.until.After(now) {
		x.until = now.Add(digestPause)
	}
	return x.until
}

// digest makes one notice of those that have gathered for a sender and whose time has come, and returns the rest of refs.
// What it cannot do it leaves: each notice then goes for itself.
func (b *Bridge) digest(refs []spool.Ref, now time.Time) (rest []spool.Ref) {
	groups := map[string][]*spool.Item{}
	err := b.spool.View(func(tx *spool.Tx) error {
		for _, ref := range refs {
			item, err := tx.Item(ref.ID)
			if err != nil || !isGathered(item) {
				rest = append(rest, ref)
				continue
			}
			to := item.Env.Mail.Recipients[0].Addr
			groups[to] = append(groups[to], item)
		}
		return nil
	})
	if err != nil {
		b.log.Error("look for gathered notices", "err", err)
		return refs
	}
	for to, items := range groups {
		if len(items) > 1 {
			if err := b.digestOf(to, items, now); err == nil {
				continue
			} else {
				b.log.Error("make a digest of notices", "err", err)
			}
		}
		for _, it := range items {
			rest = append(rest, spool.Ref{ID: it.Env.ID, Leg: 0})
		}
	}
	return rest
}

// isGathered reports whether an item is a notice that waits for others.
func isGathered(it *spool.Item) bool {
	return it.Env.Mail != nil && it.Env.Mail.Sender == "" && len(it.Legs) == 1 && it.Legs[0].State == spool.Deferred && it.Legs[0].Last.Text == gathered
}

// digestOf replaces notices to one sender by one that holds them, in one commit.
func (b *Bridge) digestOf(to string, items []*spool.Item, now time.Time) error {
	p := b.Policy()
	d := bounce.Digest{ID: envelope.NewID(now), MTA: p.Domain, Node: p.Name, From: "MAILER-DAEMON@" + p.Domain, To: to, Now: now, MaxBytes: digestBytes}
	for _, it := range items {
		r, err := b.spool.OpenBody(it.Env.ID)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return err
		}
		d.Notices = append(d.Notices, text)
		d.SMTPUTF8 = d.SMTPUTF8 || it.Env.Mail.SMTPUTF8
	}
	mail, content := d.Compose()
	a, err := b.ownNotice(d.ID, mail, content, items[0].Env.ID, now)
	if err != nil {
		return err
	}
	err = b.spool.ApplyUrgent(func(tx *spool.Tx) error {
		for _, it := range items {
			item, err := tx.Item(it.Env.ID)
			if err != nil {
				return err
			}
			if !isGathered(item) {
				return errRace
			}
			item.Legs[0].State, item.Legs[0].At = spool.Done, time.Time{}
			item.Outcomes[0].Action, item.Outcomes[0].At = envelope.ActionDelivered, now
			item.Outcomes[0].Status = envelope.Status{Enhanced: "2.0.0", Text: "part of the digest " + d.ID.String()}
			item.AddLog(now, "gathered", "part of the digest "+d.ID.String())
			if err := tx.Save(item); err != nil {
				return err
			}
		}
		return tx.Add(a.item, a.body)
	})
	if err != nil {
		a.discard()
		return err
	}
	b.logFollow(items[0], a.item)
	return nil
}
