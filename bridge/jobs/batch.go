package jobs

import (
	"fmt"
	"io"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// Batch gathers what follows from one transaction of the bridge: its function may run more than once, and nothing may
// be said before the commit.
type Batch struct {
	j     *Jobs
	kicks map[chanKey]bool
	owes  map[envelope.NodeID]bool
	ended []envelope.ID // jobs of this node
	here  []envelope.ID // jobs of peers
	notes []note
	trash []trash
	used  map[*spool.Body]bool
	wakes map[chanKey]time.Time
	after []func()
	way   string // how the packet came, for people
}

// From says how the packet came: by which neighbour, over which carrier. It is noted in the life of the jobs in it.
func (b *Batch) From(way string) { b.way = way }

// note is one log line.
type note struct {
	text string
	args []any
	warn bool
}

// trash is content for the quarantine.
type trash struct {
	why, from string
	id        envelope.ID
	body      io.Reader
}

// Batch begins one; call Reset first thing in the transaction's function, and Committed after the commit.
func (j *Jobs) Batch() *Batch { b := &Batch{j: j}; b.Reset(); return b }

// Reset forgets what an earlier run of the function left.
func (b *Batch) Reset() {
	b.kicks, b.owes, b.used = map[chanKey]bool{}, map[envelope.NodeID]bool{}, map[*spool.Body]bool{}
	b.ended, b.here, b.notes, b.trash, b.after, b.wakes = nil, nil, nil, nil, nil, map[chanKey]time.Time{}
}

// Used reports whether the spool has taken over a body that was given to the batch.
func (b *Batch) Used(body *spool.Body) bool { return b.used[body] }

func (b *Batch) kick(k chanKey)           { b.kicks[k] = true }
func (b *Batch) owe(peer envelope.NodeID) { b.owes[peer] = true }

func (b *Batch) note(text string, args ...any) { b.notes = append(b.notes, note{text, args, true}) }

// say notes the log line of an outcome.
func (b *Batch) say(id envelope.ID, what string, r *envelope.Result) {
	b.notes = append(b.notes, note{text: fmt.Sprintf("%s: %s, channel=%s, seq=%d, status=%s%s", id, what, r.Channel, r.Seq, r.State, detail(r))})
}

// detail is what a log line or a person reads beside the state.
func detail(r *envelope.Result) string {
	s := ""
	switch {
	case r.Signal != 0:
		s = fmt.Sprintf(" (signal %d", r.Signal)
	case r.State == envelope.JobFailed:
		s = fmt.Sprintf(" (exit status %d", r.Exit)
	}
	if r.Reason != "" {
		if s == "" {
			s = " (" + r.Reason
		} else {
			s += ": " + r.Reason
		}
	}
	if s != "" {
		s += ")"
	}
	if r.Held {
		s += ", the channel waits for a person"
	}
	return s
}

// Committed does what follows from the commit.
func (b *Batch) Committed() {
	j := b.j
	for _, n := range b.notes {
		if n.warn {
			j.log.Warn(n.text, append(n.args, "service", "jobs")...)
		} else {
			j.log.Info(n.text, "service", "jobs")
		}
	}
	for _, t := range b.trash {
		if _, err := j.spool.Quarantine(t.why, t.from, t.body); err != nil {
			j.log.Error("quarantine", "id", t.id.String(), "err", err)
		}
	}
	for p := range b.owes {
		j.oweTo(p)
	}
	for _, id := range b.ended {
		j.told(id)
	}
	for _, id := range b.here {
		j.news(id)
	}
	for _, f := range b.after {
		f()
	}
	for k, at := range b.wakes {
		j.wakeAt(k, at)
	}
	for k := range b.kicks {
		j.kick(k)
	}
	if len(b.ended)+len(b.here) > 0 {
		j.kickDependent()
	}
	b.Reset()
}

// kickDependent looks again at channels that wait for the end of a job of another.
func (j *Jobs) kickDependent() {
	j.mu.Lock()
	keys := make([]chanKey, 0, len(j.depend))
	for k := range j.depend {
		keys = append(keys, k)
	}
	clear(j.depend)
	j.mu.Unlock()
	for _, k := range keys {
		j.kick(k)
	}
}

// told wakes whoever waits for news of a job of this node, and writes the mail that was asked for.
func (j *Jobs) told(id envelope.ID) {
	j.reply(id)
	j.news(id)
}

// news wakes whoever waits for news of a job.
func (j *Jobs) news(id envelope.ID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range j.waiters[id] {
		close(c)
	}
	delete(j.waiters, id)
	delete(j.awaited, id)
}

// oweTo notes that a channel record for a peer may be due.
func (j *Jobs) oweTo(peer envelope.NodeID) {
	j.mu.Lock()
	j.owing[peer] = time.Time{}
	j.mu.Unlock()
	j.o.Wake()
}
