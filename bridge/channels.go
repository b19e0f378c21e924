package bridge

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/envelope"
	"mochila/internal/envelope/bundle"
	"mochila/spool"
)

// Jobs is this node's channels of remote jobs.
func (b *Bridge) Jobs() *jobs.Jobs { return b.jobs }

// newJobs prepares the channels over the node's spool.
func (b *Bridge) newJobs() (*jobs.Jobs, error) {
	patience := 5 * time.Second
	if b.opt.NoContacts {
		patience = 365 * 24 * time.Hour // a command that opens the node for a moment breaks no job off
	}
	return jobs.New(jobs.Options{
		Spool: b.spool, Self: b.ID(), Now: b.now, Log: b.log, Runner: b.opt.Runner, Suspect: b.clock.suspect,
		Policy:          func() *jobs.Policy { return b.Policy().jobs() },
		Incarnation:     func() [8]byte { return b.keys.Card().Incarnation },
		PeerIncarnation: b.peerIncarnation,
		Wake:            b.kickContacts,
		Patience:        patience,
		Compose:         b.resultMail,
	})
}

// peerIncarnation is the life in which a peer says it is, by its card.
func (b *Bridge) peerIncarnation(tx *spool.Tx, peer envelope.NodeID) (inc [8]byte, ok bool) {
	c, err := b.cardIn(tx, peer)
	if err != nil || c == nil {
		return inc, false
	}
	return c.Incarnation, true
}

// jobs is the part of the policy that channels need.
func (p *Policy) jobs() *jobs.Policy {
	q := p.Jobs
	q.Node = p.Name
	q.RetryMin, q.RetryMax, q.Lifetime = p.Limits.RetryMin, p.Limits.RetryMax, p.Limits.Lifetime
	q.PeerName = func(id envelope.NodeID) (string, bool) {
		if x := p.peer(id); x != nil {
			return x.Name, true
		}
		return "", false
	}
	return &q
}

// job stages a job or a result of a bundle: its content is read, and enters the spool with the rest.
func (in *incoming) job(rec *bundle.Record) error {
	b := in.b
	e := rec.Envelope
	if in.guest != nil {
		// a guest has nothing here yet: what it was to run comes again
		_, err := io.Copy(io.Discard, rec.Content)
		return err
	}
	if in.noRoom == nil && e.Kind == envelope.KindJob && b.spool.Full() {
		in.noRoom = spool.ErrFull
	}
	if in.noRoom == nil && e.Kind == envelope.KindJob {
		if err := in.charge(e.Origin, e.Size); err != nil {
			in.noRoom = bad(envelope.ReasonQuota, err)
		}
	}
	if in.noRoom != nil {
		_, err := io.Copy(io.Discard, rec.Content)
		return err
	}
	body := b.spool.NewBody()
	if err := in.store(body, rec); err != nil {
		if !errors.Is(err, spool.ErrFull) {
			return err
		}
		in.noRoom = err
		_, err = io.Copy(io.Discard, rec.Content)
		return err
	}
	in.mails = in.mails || e.Kind == envelope.KindJob
	in.jobs = append(in.jobs, &addition{item: &spool.Item{Env: e}, body: body})
	return nil
}

// enterJobs takes the jobs, results and channel records of a packet, inside the transaction that takes the packet.
func (in *incoming) enterJobs(tx *spool.Tx, batch *jobs.Batch) error {
	batch.From(in.way())
	for _, a := range in.jobs {
		e := a.item.Env
		var err error
		if e.Kind == envelope.KindResult {
			if tx.Seen(e.Origin, e.ID) {
				continue
			}
			if err = tx.Remember(e.Origin, e.ID, e.Expires.Add(14*24*time.Hour)); err == nil {
				err = batch.TakeResult(tx, e, a.body)
			}
		} else {
			err = batch.Arrive(tx, e, a.body)
		}
		if err != nil {
			return err
		}
	}
	for _, r := range in.reported {
		if err := batch.TakeReport(tx, in.peer, r); err != nil {
			return err
		}
	}
	for _, r := range in.resumes {
		if err := batch.TakeResume(tx, in.peer, r); err != nil {
			return err
		}
	}
	return nil
}

// way says how a packet came, in words: its neighbour, the kind of carrier, its size.
func (in *incoming) way() string {
	s := ""
	if !in.prev.IsZero() {
		s = ", brought by " + in.b.Policy().nodeName(in.prev)
	}
	if in.desk != nil {
		scheme, _, _ := strings.Cut(in.desk.carrier, ":")
		s += " over " + scheme
	}
	return fmt.Sprintf("%s, in a packet of %d bytes", s, in.size)
}

// leaveJobs frees what the spool did not take over.
func (in *incoming) leaveJobs(batch *jobs.Batch) {
	for _, a := range in.jobs {
		if batch == nil || !batch.Used(a.body) {
			a.discard()
		}
	}
	in.jobs = nil
}

// channelRecords puts what is to be said about channels in front of a load.
func (d *desk) channelRecords(l *load, peer envelope.NodeID) error {
	recs, err := d.b.jobs.Records(peer, d.began)
	for _, r := range recs {
		l.records = append(l.records, record{r.Type, r.Body})
	}
	return err
}

// hasJobs reports whether the packet brings jobs; results are admitted even where mail is not.
func (in *incoming) hasJobs() bool {
	for _, a := range in.jobs {
		if a.item.Env.Kind == envelope.KindJob {
			return true
		}
	}
	return false
}

// jobBytes is how large a bundle of a peer may be that is granted handlers: its input has no limit but the peer's quota.
func (p *Policy) jobBytes(peer envelope.NodeID) int64 {
	x := p.peer(peer)
	if x == nil || len(p.Jobs.Handlers) == 0 {
		return 0
	}
	if x.MaxBytes == 0 {
		return 1 << 30
	}
	return x.MaxBytes
}
