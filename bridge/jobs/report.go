package jobs

import (
	"hash/fnv"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// How often the same report on a channel goes out.
const (
	reportMin = time.Hour
	reportMax = 24 * time.Hour
)

// Record is one channel record for a peer.
type Record struct {
	Type envelope.RecordType
	Body []byte
}

// Due lists the peers for whom a channel record should go now.
func (j *Jobs) Due(now time.Time) []envelope.NodeID {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []envelope.NodeID
	for p, at := range j.owing {
		if !at.After(now) {
			out = append(out, p)
		}
	}
	return out
}

// Records makes the channel records that a bundle for peer takes along: reports on channels that miss something or do
// not go on, once in a contact (began is its start) and, while nothing changes, after an hour, doubling to a day; and
// the resumes that are owed. What it returns is recorded as sent.
func (j *Jobs) Records(peer envelope.NodeID, began time.Time) ([]Record, error) {
	now := j.o.Now()
	j.mu.Lock()
	_, any := j.owing[peer]
	j.mu.Unlock()
	if !any {
		return nil, nil
	}
	var recs []Record
	var next time.Time
	err := j.spool.ApplyUrgent(func(tx *spool.Tx) error {
		recs, next = nil, time.Time{}
		ins, outs := tx.KV(tabInChan), tx.KV(tabOutChan)
		err := ins.Each(peer[:], func(kb, v []byte) error {
			c, err := parseInChan(v)
			if err != nil || c.epoch == ([8]byte{}) || !c.gap && !c.lost && c.status != held {
				return err
			}
			k := parseChanKey(kb)
			r, sum, err := j.report(tx, k, c)
			if err != nil {
				return err
			}
			changed := sum != c.repSum
			if c.repAt.Before(began) && changed || !c.repAt.Add(c.repWait).After(now) {
				if changed {
					c.repWait = reportMin
				} else {
					c.repWait = min(max(2*c.repWait, reportMin), reportMax)
				}
				c.reports++
				c.repSum, c.repAt = sum, now
				r.Report = c.reports
				recs = append(recs, Record{envelope.RecordChannel, r.Append(nil)})
				if err := ins.Put(kb, c.encode()); err != nil {
					return err
				}
			}
			if at := c.repAt.Add(c.repWait); next.IsZero() || at.Before(next) {
				next = at
			}
			return nil
		})
		if err != nil {
			return err
		}
		return outs.Each(peer[:], func(kb, v []byte) error {
			c, err := parseOutChan(v)
			if err != nil || !c.owed {
				return err
			}
			k := parseChanKey(kb)
			inc, _ := j.o.PeerIncarnation(tx, peer)
			if laterEpoch(c.repBy, inc) {
				inc = c.repBy
			}
			list, err := j.resumes(tx, c, k.channel, inc)
			if err != nil {
				return err
			}
			for _, r := range list {
				recs = append(recs, Record{envelope.RecordResume, r.Append(nil)})
			}
			c.owed = false
			return outs.Put(kb, c.encode())
		})
	})
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if next.IsZero() {
		delete(j.owing, peer)
	} else {
		j.owing[peer] = next
	}
	return recs, nil
}

// report describes a channel as it stands, and a sum of what it says.
func (j *Jobs) report(tx *spool.Tx, k chanKey, c *inChan) (*envelope.ChannelReport, uint64, error) {
	r := &envelope.ChannelReport{Channel: k.channel, Epoch: c.epoch, Incarnation: j.o.Incarnation(), Next: c.next, Lost: c.lost}
	if c.status != open {
		r.Reason = c.reason
	}
	err := walk(tx.KV(tabIn), epochKey(c.no, c.epoch), slotKey(c.no, c.epoch, c.next), func(key, _ []byte) error {
		_, _, seq := parseSlotKey(key)
		if !r.Held.Add(seq, envelope.Check{}) {
			return errStop
		}
		return nil
	})
	h := fnv.New64a()
	h.Write(r.Append(nil))
	return r, h.Sum64() | 1, err
}
