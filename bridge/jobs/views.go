package jobs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// View is one job, for people.
type View struct {
	ID        envelope.ID
	Own       bool            // made here; else made by Peer, for here
	Peer      envelope.NodeID // the other node
	Job       *envelope.Job
	State     string // queued, sent, arrived, cancelling; waiting, running, deferred, held, refused; or an envelope.JobState
	Why       string
	Created   time.Time
	Expires   time.Time
	Size      int64 // of stdin
	Tries     int
	Next      time.Time        // not before
	Result    *envelope.Result // when anything is known
	ResultID  envelope.ID      // content of the result, at the origin
	Ended     bool
	Entered   time.Time
	Log       []spool.LogEntry
	HasStdin  bool
	Trust     string // trust class of who made it, where that is known still
	RunningAt time.Time
}

// Channel is one channel, for people.
type Channel struct {
	Own      bool
	Peer     envelope.NodeID
	Name     string
	Waiting  uint64 // jobs without outcome
	Next     uint64 // own: the next number to give out; else the lowest without outcome
	State    string // "", held, paused, gap, lost
	Why      string
	Since    time.Time
	Missing  uint64 // numbers, from Next on
	Epoch    string
	Reported time.Time // when the destination reported last: own, to this node; else this node to the origin
	Reports  uint64    // how many it has made; 0 where that is not known
}

// Channels lists every channel of both sides. It reads one record each.
func (j *Jobs) Channels() ([]Channel, error) {
	var list []Channel
	err := j.spool.Peek(func(tx *spool.Tx) error {
		err := tx.KV(tabOutChan).Each(nil, func(kb, v []byte) error {
			c, err := parseOutChan(v)
			if err != nil {
				return err
			}
			k := parseChanKey(kb)
			x := Channel{Own: true, Peer: k.peer, Name: k.channel, Waiting: c.waiting, Next: c.next, Epoch: hex.EncodeToString(c.epoch[:]), Reported: c.repAt, Reports: c.report}
			if c.repReason != "" && c.waiting > 0 {
				x.State, x.Why, x.Since = "held", "there: "+c.repReason, c.repAt
			}
			if c.paused {
				x.State = "paused"
			}
			list = append(list, x)
			return nil
		})
		if err != nil {
			return err
		}
		return tx.KV(tabInChan).Each(nil, func(kb, v []byte) error {
			c, err := parseInChan(v)
			if err != nil {
				return err
			}
			k := parseChanKey(kb)
			x := Channel{Peer: k.peer, Name: k.channel, Waiting: c.waiting, Next: c.next, Epoch: hex.EncodeToString(c.epoch[:]),
				Reported: c.repAt, Reports: c.reports}
			switch {
			case c.lost:
				x.State, x.Why = "lost", "this node was restored: waiting for the word of the origin"
			case c.status == held:
				x.State, x.Why, x.Since = "held", c.reason, c.since
			case c.status == paused:
				x.State, x.Why, x.Since = "paused", c.reason, c.since
			case c.gap:
				x.State, x.Since = "gap", c.since
			}
			if c.gap {
				p, ok, err := j.firstHeld(tx, c)
				if err != nil {
					return err
				}
				if x.Missing = 1; ok && p.epoch == c.epoch {
					x.Missing = p.seq - c.next
				}
				if x.Why == "" {
					x.Why = fmt.Sprintf("number %d is missing", c.next)
					if x.Missing > 1 {
						x.Why = fmt.Sprintf("numbers %d to %d are missing", c.next, c.next+x.Missing-1)
					}
				}
			}
			list = append(list, x)
			return nil
		})
	})
	return list, err
}

// Page is a part of a list, and where the next begins (nil: there is none).
type Page struct {
	Jobs []*View
	Next []byte
}

// Filter chooses jobs; zero fields choose all. Without Own and Peers' it is both sides.
type Filter struct {
	Side    string // "own", "peers", or "ended" for own jobs that have ended
	Peer    envelope.NodeID
	Channel string
	Trust   string // only jobs of this trust class
	After   []byte // Page.Next of the page before
	Limit   int
}

// shortList is how many jobs are looked at by Peek. More, or a search, would keep the spool's writer from work.
const shortList = 100

// List lists jobs without outcome, channel by channel in the order of their numbers, or jobs of this node that have
// ended, by age.
func (j *Jobs) List(f Filter) (*Page, error) {
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 100
	}
	p := &Page{Jobs: []*View{}}
	look := j.spool.View
	if f.Limit <= shortList && f.Trust == "" && f.Channel == "" && f.Peer.IsZero() {
		look = j.spool.Peek
	}
	err := look(func(tx *spool.Tx) error {
		if f.Side == "ended" {
			return j.listEnded(tx, f, p)
		}
		// the cursor is a letter for the table, then the last key
		tables := []struct{ letter, chans, table string }{{"a", tabOutChan, tabOut}, {"b", tabInChan, tabIn}, {"c", tabInChan, tabFree}}
		for _, t := range tables {
			if f.Side == "own" && t.letter != "a" || f.Side == "peers" && t.letter == "a" || len(f.After) > 0 && string(f.After[:1]) > t.letter {
				continue
			}
			if full, err := j.listTable(tx, f, p, t.letter, t.chans, t.table); err != nil || full {
				return err
			}
		}
		return nil
	})
	if err == nil && f.Side == "ended" {
		for i, v := range p.Jobs {
			if p.Jobs[i], err = j.Show(v.ID); err != nil {
				return nil, err
			}
			p.Jobs[i].Log = nil
		}
		if f.Trust != "" {
			p.Jobs = slices.DeleteFunc(p.Jobs, func(v *View) bool { return v.Trust != f.Trust })
		}
	}
	return p, err
}

func (j *Jobs) listTable(tx *spool.Tx, f Filter, p *Page, letter, chans, table string) (full bool, err error) {
	byNo := map[uint32]chanKey{}
	err = tx.KV(chans).Each(nil, func(kb, v []byte) error {
		var no uint32
		if chans == tabOutChan {
			c, err := parseOutChan(v)
			if err != nil {
				return err
			}
			no = c.no
		} else {
			c, err := parseInChan(v)
			if err != nil {
				return err
			}
			no = c.no
		}
		if k := parseChanKey(kb); (f.Peer.IsZero() || f.Peer == k.peer) && (f.Channel == "" || f.Channel == k.channel) {
			byNo[no] = k
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	var from []byte
	if len(f.After) > 1 && string(f.After[:1]) == letter {
		from = append(append(from, f.After[1:]...), 0)
	}
	var last []byte
	err = walk(tx.KV(table), nil, from, func(key, v []byte) error {
		k, ok := byNo[beUint32(key)]
		if !ok {
			return nil
		}
		var id envelope.ID
		var s slot
		if table == tabOut {
			o, ok := parseOwn(v)
			if !ok {
				return nil
			}
			id = o.id
		} else if s, ok = parseSlot(v); !ok || s.flags&slotFree != 0 {
			return nil
		} else {
			id = s.id
		}
		if len(p.Jobs) == f.Limit {
			p.Next, full = append([]byte(letter), last...), true
			return errStop
		}
		w, err := j.viewOf(tx, id, k)
		if err != nil {
			return err
		}
		if w != nil && (f.Trust == "" || f.Trust == w.Trust) {
			w.Log = nil
			p.Jobs = append(p.Jobs, w)
		}
		last = key
		return nil
	})
	return full, err
}

func (j *Jobs) listEnded(tx *spool.Tx, f Filter, p *Page) error {
	var last []byte
	var from []byte
	if len(f.After) > 0 {
		from = append(append(from, f.After...), 0)
	}
	return walk(tx.KV(tabDone), nil, from, func(key, v []byte) error {
		o, err := parseOutcome(v)
		if err != nil || len(key) != 16 || o.res.Held || !f.Peer.IsZero() && f.Peer != o.peer || f.Channel != "" && f.Channel != o.res.Channel {
			return nil
		}
		if len(p.Jobs) == f.Limit {
			p.Next = last
			return errStop
		}
		p.Jobs = append(p.Jobs, &View{ID: envelope.ID(key)}) // List completes it
		last = key
		return nil
	})
}

func beUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// viewOf describes a job that is in the spool; nil when it is not.
func (j *Jobs) viewOf(tx *spool.Tx, id envelope.ID, k chanKey) (*View, error) {
	item, err := tx.Item(id)
	if errors.Is(err, spool.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return j.describe(tx, item, false)
}

// describe tells everything about a job whose item is known; done says that it comes from the trace.
func (j *Jobs) describe(tx *spool.Tx, item *spool.Item, done bool) (*View, error) {
	env := item.Env
	v := &View{ID: env.ID, Own: j.IsOwn(item), Peer: env.Origin, Job: env.Job, Created: env.Created, Expires: env.Expires, Size: env.Size,
		Entered: item.Entered, Log: item.Log, Trust: item.Trust, HasStdin: !done, Ended: done}
	leg := &item.Legs[0]
	table := tabEnd
	if v.Own {
		table = tabDone
		v.Peer, _ = leg.Dest.Node()
	}
	o, err := getOutcome(tx, table, env.ID)
	if err != nil {
		return nil, err
	}
	if o != nil {
		v.Result, v.Tries = &o.res, o.res.Tries
		if v.Own {
			v.ResultID = o.result
		}
		v.Why = o.res.Reason
		v.Ended = v.Ended || !o.res.Held && !v.Own
	}
	switch {
	case done && o != nil:
		v.State = o.res.State.String()
	case done:
		v.State = "ended"
	case v.Own:
		err = j.describeOwn(tx, item, v, o)
	default:
		err = j.describeWaiting(tx, item, v)
	}
	return v, err
}

func (j *Jobs) describeOwn(tx *spool.Tx, item *spool.Item, v *View, o *outcome) error {
	_, c, _, own, err := j.findOwn(tx, item)
	if err != nil {
		return err
	}
	switch leg := &item.Legs[0]; {
	case o != nil && o.res.Held:
		v.State, v.Why = o.res.State.String(), strings.TrimSuffix("its channel waits for somebody there: "+o.res.Reason, ": ")
	case c != nil && !own.void.IsZero():
		v.State = "cancelling"
	case leg.State == spool.Due || leg.State == spool.Deferred:
		v.State = "queued"
	case leg.State == spool.Held:
		v.State = "paused"
	case leg.State == spool.Arrived:
		v.State = "arrived"
	default:
		v.State = "sent"
	}
	return nil
}

func (j *Jobs) describeWaiting(tx *spool.Tx, item *spool.Item, v *View) error {
	id := item.Env.ID
	if b := tx.KV(tabRun).Get(id[:]); b != nil {
		if s, err := parseStarted(b); err == nil {
			v.State, v.RunningAt = "running", s.at
			return nil
		}
	}
	if item.Legs[0].Dest == spool.DeadDest {
		v.State = "dead"
		return nil
	}
	w, err := j.find(tx, id)
	if err != nil {
		v.State, v.Why = "stray", err.Error()
		return nil
	}
	s := w.r.s
	v.Tries = int(s.tries)
	now := j.o.Now()
	switch {
	case s.flags&slotRefused != 0:
		v.State, v.Why = "refused", "in its turn"
	case s.flags&slotDropped != 0:
		v.State, v.Why = "dropped", "in its turn"
	case s.flags&slotHeld != 0, w.r.key != nil && w.isNext() && w.c.status == held:
		v.State = "held"
		if v.Why == "" {
			v.Why = w.c.reason
		}
	case s.at.After(now):
		v.State, v.Next = "deferred", s.at
	case item.Env.Job.NotBefore.After(now):
		v.State, v.Next = "waiting", item.Env.Job.NotBefore
	default:
		v.State = "waiting"
	}
	return nil
}

// Show describes one job. It fails with ErrNotFound.
func (j *Jobs) Show(id envelope.ID) (*View, error) {
	item, done, err := j.spool.Find(id)
	if err != nil && !errors.Is(err, spool.ErrNotFound) {
		return nil, err
	}
	if err == nil && item.Env.Kind != envelope.KindJob {
		return nil, fmt.Errorf("%w: %s is not a job", ErrNotFound, id)
	}
	var v *View
	verr := j.spool.View(func(tx *spool.Tx) (err error) {
		if item != nil {
			v, err = j.describe(tx, item, done)
			return err
		}
		for _, table := range []string{tabDone, tabEnd} {
			o, err := getOutcome(tx, table, id)
			if err != nil {
				return err
			}
			if o != nil {
				v = &View{ID: id, Own: table == tabDone, Peer: o.peer, Ended: true, State: o.res.State.String(), Why: o.res.Reason, Result: &o.res, Created: id.Time()}
				v.Job = &envelope.Job{Channel: o.res.Channel, Epoch: o.res.Epoch, Seq: o.res.Seq}
				if v.Own {
					v.ResultID = o.result
				}
				return nil
			}
		}
		return fmt.Errorf("%w: %s was never here, or ended longer ago than is remembered", ErrNotFound, id)
	})
	return v, verr
}

// Await waits until a job of this node has a result, the last one or one that waits for a person, or ctx ends.
func (j *Jobs) Await(ctx context.Context, id envelope.ID) (*View, error) {
	for {
		c := make(chan struct{})
		j.mu.Lock()
		j.waiters[id] = append(j.waiters[id], c)
		j.mu.Unlock()
		v, err := j.Show(id)
		if err != nil || v.Result != nil && (v.Ended || v.Result.Held || v.Own) || v.Ended {
			j.forgetWaiter(id, c)
			return v, err
		}
		j.await(id, v)
		select {
		case <-ctx.Done():
			j.forgetWaiter(id, c)
			return v, nil
		case <-c:
		}
	}
}

// Awaited is a job at another node whose result somebody here is waiting for.
type Awaited struct {
	Peer    envelope.NodeID
	Entered time.Time
}

// Awaited lists the jobs of this node for whose results somebody waits now.
func (j *Jobs) Awaited() []Awaited {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.awaited))
}

// await notes that somebody waits for a job that has not ended, unless it has ended meanwhile.
func (j *Jobs) await(id envelope.ID, v *View) {
	j.mu.Lock()
	_, told := j.awaited[id]
	if v.Own && len(j.waiters[id]) > 0 {
		j.awaited[id] = Awaited{v.Peer, v.Entered}
	}
	j.mu.Unlock()
	if !told {
		j.o.Wake()
	}
}

func (j *Jobs) forgetWaiter(id envelope.ID, c chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := j.waiters[id]
	for i := range list {
		if list[i] == c {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(j.waiters, id)
		delete(j.awaited, id)
	} else {
		j.waiters[id] = list
	}
}
