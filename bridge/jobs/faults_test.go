package jobs

import (
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// calm is a world whose carriers do their work.
func calm(t *testing.T) *world { return newWorld(t, 1) }

// turn runs a few rounds.
func (w *world) turn(n int) {
	for range n {
		w.step()
	}
}

func (w *world) show(s *side, id envelope.ID) *View {
	w.t.Helper()
	v, err := s.j.Show(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) expect(s *side, id envelope.ID, state string) *View {
	w.t.Helper()
	v := w.show(s, id)
	if v.State != state {
		w.t.Fatalf("%s: job is %q (%s), want %q: %+v", s.name, v.State, v.Why, state, v.Result)
	}
	return v
}

func (w *world) channel(s *side, name string) Channel {
	w.t.Helper()
	list, err := s.j.Channels()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range list {
		if c.Name == name {
			return c
		}
	}
	w.t.Fatalf("%s has no channel %s", s.name, name)
	return Channel{}
}

// cmd is a request for the handler "do" on channel x.
func cmd(change ...func(*Request)) *Request {
	r := &Request{Job: envelope.Job{Channel: "x"}}
	for _, f := range change {
		f(r)
	}
	return r
}

func TestTemporaryFailuresBackOff(t *testing.T) {
	w := calm(t)
	w.b.policy.Handlers[0].Tries = 3
	var at []time.Time
	w.behave = func(s *Start) *Outcome {
		if s.Seq != 1 {
			return nil
		}
		at = append(at, w.now)
		return &Outcome{Exit: 75, Started: w.now, Ended: w.now}
	}
	first, second := w.a.enqueue(cmd(), "1"), w.a.enqueue(cmd(), "2")
	w.turn(20)
	v := w.expect(w.a, first, "failed")
	if len(at) != 3 || !v.Result.Held || v.Result.Tries != 3 || v.Result.Exit != 75 {
		t.Errorf("started at %v, %+v", at, v.Result)
	}
	w.expect(w.b, second, "waiting")
	if c := w.channel(w.b, "x"); c.State != "held" || c.Next != 1 {
		t.Errorf("%+v", c)
	}
	w.behave = nil
	if err := w.b.j.Retry(first); err != nil {
		t.Fatal(err)
	}
	w.settle([]envelope.ID{first, second})
	w.expect(w.a, first, "done")
}

func TestPoliciesOnFailure(t *testing.T) {
	for policy, next := range map[string]string{"stop": "waiting", "skip": "done", "dead": "done"} {
		w := calm(t)
		w.b.policy.Handlers[0].OnFailure = policy
		w.behave = func(s *Start) *Outcome {
			if s.Seq == 1 && s.Try == 1 {
				return &Outcome{Signal: 9, Started: w.now, Ended: w.now}
			}
			return nil
		}
		first, second := w.a.enqueue(cmd(), "1"), w.a.enqueue(cmd(), "2")
		w.turn(8)
		if v := w.show(w.a, first); v.State != "failed" || v.Result.Signal != 9 || v.Result.Held != (policy == "stop") {
			t.Errorf("%s: %+v %+v", policy, v, v.Result)
		}
		if v := w.show(w.b, second); v.State != next {
			t.Errorf("%s: the next job is %s", policy, v.State)
		}
		if policy != "dead" {
			continue
		}
		w.expect(w.b, first, "dead")
		if err := w.b.j.Retry(first); err != nil {
			t.Fatal(err)
		}
		w.turn(8)
		w.expect(w.a, first, "done")
	}
}

func TestHangAndMissingProgram(t *testing.T) {
	w := calm(t)
	w.behave = func(s *Start) *Outcome {
		if s.Seq == 1 {
			return &Outcome{Timeout: true, Signal: 15, Started: w.now, Ended: w.now, Reason: "killed after 1h"}
		}
		return &Outcome{NotStarted: true, Exit: 127, Reason: "not started: no such file"}
	}
	hang := w.a.enqueue(cmd(), "")
	w.turn(6)
	if v := w.expect(w.a, hang, "timeout"); !v.Result.Held {
		t.Errorf("%+v", v.Result)
	}
	if err := w.b.j.Skip(hang); err != nil {
		t.Fatal(err)
	}
	missing := w.a.enqueue(cmd(), "")
	w.turn(6)
	if v := w.expect(w.a, missing, "failed"); !v.Result.Held || v.Result.Exit != 127 || !strings.Contains(v.Result.Reason, "no such file") {
		t.Errorf("%+v", v.Result)
	}
	w.expect(w.a, hang, "timeout")
}

// TestRevokedGrant: a job that was granted when it came is not started when the grant is gone at its turn.
func TestRevokedGrant(t *testing.T) {
	w := calm(t)
	gate := w.a.enqueue(cmd(func(r *Request) { r.Job.Kind = envelope.JobBarrier }), "")
	id := w.a.enqueue(cmd(), "")
	stranger := w.a.enqueue(cmd(func(r *Request) { r.Job.Handler = "rm" }), "secret")
	w.turn(4)
	w.expect(w.b, id, "waiting")
	if v := w.expect(w.b, stranger, "refused"); v.Size != 6 {
		t.Errorf("%+v", v)
	}
	w.b.policy.Handlers = w.b.policy.Handlers[1:]
	if err := w.b.j.Resume(w.a.id, "x"); err != nil {
		t.Fatal(err)
	}
	w.settle([]envelope.ID{gate, id, stranger})
	w.expect(w.a, gate, "done")
	if v := w.expect(w.a, id, "refused"); !strings.Contains(v.Result.Reason, `no handler "do"`) {
		t.Errorf("%+v", v.Result)
	}
	w.expect(w.a, stranger, "refused")
	if len(w.ran) != 0 {
		t.Errorf("ran: %v", w.ran)
	}
	other := w.a.enqueue(&Request{Job: envelope.Job{Channel: "y", Handler: "do"}}, "")
	w.b.policy.Handlers = nil
	w.settle([]envelope.ID{other})
	if list, _ := w.b.j.Channels(); len(list) != 1 {
		t.Errorf("a channel that nobody granted has a record: %+v", list)
	}
}

// TestGap: a lost job is seen, asked for, and sent again; nothing behind it runs before.
func TestGap(t *testing.T) {
	w := calm(t)
	first := w.a.enqueue(cmd(), "1")
	w.a.send(1)
	w.air = nil // lost
	second, third := w.a.enqueue(cmd(), "2"), w.a.enqueue(cmd(), "3")
	w.now = w.now.Add(time.Minute)
	w.a.send(10)
	w.now = w.now.Add(time.Hour)
	w.land()
	w.run()
	c := w.channel(w.b, "x")
	if c.State != "gap" || c.Next != 1 || c.Missing != 1 || c.Waiting != 2 || !c.Since.Equal(w.now) || len(w.ran) != 0 {
		t.Errorf("%+v, ran %v", c, w.ran)
	}
	w.settle([]envelope.ID{first, second, third})
	w.check([]envelope.ID{first, second, third})
}

// TestReportsAreRateLimited: while nothing changes a report goes after an hour, doubling to a day, and only once in a
// contact.
func TestReportsAreRateLimited(t *testing.T) {
	w := calm(t)
	w.a.enqueue(cmd(), "1")
	w.a.send(1)
	w.air = nil
	w.a.enqueue(cmd(), "2")
	w.a.send(1)
	w.now = w.now.Add(time.Hour)
	w.land()
	var sent []int
	began := w.now
	for h := range 24 * 6 {
		recs, err := w.b.j.Records(w.a.id, began)
		if err != nil {
			t.Fatal(err)
		}
		if len(recs) > 0 {
			sent = append(sent, h)
		}
		w.now = w.now.Add(time.Hour)
	}
	if len(sent) < 6 || len(sent) > 10 || sent[len(sent)-1]-sent[len(sent)-2] != 24 {
		t.Errorf("reports in hours %v", sent)
	}
}

// TestSameNumberOtherID: two jobs with one number are a fault that somebody must look into.
func TestSameNumberOtherID(t *testing.T) {
	w := calm(t)
	id := w.a.enqueue(cmd(), "1")
	w.turn(4)
	w.expect(w.b, id, "done")
	forged := w.show(w.b, id)
	env := &envelope.Envelope{ID: envelope.NewID(w.now), Origin: w.a.id, Kind: envelope.KindJob, Expires: w.now.Add(time.Hour), Job: forged.Job}
	body, err := w.b.j.emptyBody()
	if err != nil {
		t.Fatal(err)
	}
	batch := w.b.j.Batch()
	if err := w.b.sp.Apply(func(tx *spool.Tx) error { batch.Reset(); return batch.Arrive(tx, env, body) }); err != nil {
		t.Fatal(err)
	}
	batch.Committed()
	if c := w.channel(w.b, "x"); c.State != "held" || !strings.Contains(c.Why, "came twice") {
		t.Errorf("%+v", c)
	}
	q, err := w.b.sp.Quarantined()
	if err != nil || len(q) != 1 {
		t.Errorf("quarantine: %v, %v", q, err)
	}
	if len(w.ran) != 1 {
		t.Errorf("ran: %v", w.ran)
	}
}

func TestCancelSupersedeExpireAfter(t *testing.T) {
	w := calm(t)
	fresh := w.a.enqueue(cmd(), "never left")
	if err := w.a.j.Cancel(fresh); err != nil {
		t.Fatal(err)
	}
	w.expect(w.a, fresh, "cancelled")
	gate := w.a.enqueue(cmd(func(r *Request) { r.Job.Kind = envelope.JobBarrier }), "")
	gone := w.a.enqueue(cmd(), "cancelled there")
	old := w.a.enqueue(cmd(func(r *Request) { r.Job.Supersede = "k" }), "old")
	short := w.a.enqueue(cmd(func(r *Request) { r.Expires = w.now.Add(30 * time.Hour) }), "expires")
	young := w.a.enqueue(cmd(func(r *Request) { r.Job.Supersede = "k" }), "young")
	bad := w.a.enqueue(cmd(func(r *Request) { r.Job.After = old }), "after what was superseded")
	good := w.a.enqueue(cmd(func(r *Request) { r.Job.After = young; r.Job.NotBefore = w.now.Add(100 * time.Hour) }), "after young")
	nop := w.a.enqueue(cmd(func(r *Request) { r.Job.Kind = envelope.JobNop }), "")
	w.turn(5)
	w.expect(w.b, gone, "waiting")
	if err := w.a.j.Cancel(gone); err != nil {
		t.Fatal(err)
	}
	w.turn(5)
	w.now = w.now.Add(31 * time.Hour)
	if err := w.b.j.Resume(w.a.id, "x"); err != nil {
		t.Fatal(err)
	}
	all := []envelope.ID{gate, gone, old, short, young, bad, good, nop}
	w.settle(all)
	for i, want := range []string{"done", "cancelled", "superseded", "expired", "done", "refused", "done", "done"} {
		w.expect(w.a, all[i], want)
	}
	w.expect(w.a, fresh, "cancelled")
	if len(w.ran) != 2 || w.ran[0].id != young || w.ran[1].id != good {
		t.Errorf("ran: %v", w.ran)
	}
	if c := w.channel(w.a, "x"); c.Waiting != 0 || c.Next != 10 {
		t.Errorf("%+v", c)
	}
}

// TestUnordered: jobs without number, and those of a handler without order, wait for none.
func TestUnordered(t *testing.T) {
	w := calm(t)
	w.b.policy.Handlers[1].Unordered = true
	gate := w.a.enqueue(cmd(func(r *Request) { r.Job.Kind = envelope.JobBarrier }), "")
	loose := w.a.enqueue(cmd(func(r *Request) { r.Unordered = true }), "")
	behind := w.a.enqueue(cmd(func(r *Request) { r.Job.Handler = "again" }), "")
	ordered := w.a.enqueue(cmd(), "")
	w.turn(8)
	w.expect(w.a, loose, "done")
	w.expect(w.a, behind, "done")
	w.expect(w.b, ordered, "waiting")
	if err := w.b.j.Resume(w.a.id, "x"); err != nil {
		t.Fatal(err)
	}
	w.settle([]envelope.ID{gate, ordered})
	if c := w.channel(w.b, "x"); c.Waiting != 0 || c.Next != 4 {
		t.Errorf("%+v", c)
	}
}

// TestCrashWhileRunning: nobody knows how the job went. One that may run again does, the other waits for a person.
func TestCrashWhileRunning(t *testing.T) {
	w := calm(t)
	w.crashes = 1
	once := w.a.enqueue(cmd(), "")
	again := w.a.enqueue(&Request{Job: envelope.Job{Channel: "y", Handler: "again"}}, "")
	for len(w.air) > 0 || w.channel(w.a, "x").Waiting > 0 && !w.crash && w.crashes == 1 {
		w.step()
		if list, _ := w.b.j.Channels(); len(list) == 2 {
			w.crashes = 0
			break
		}
	}
	w.crashes = 0
	w.turn(8)
	if v := w.expect(w.a, once, "unknown"); !v.Result.Held || !strings.Contains(v.Result.Reason, "running when this node stopped") {
		t.Errorf("%+v", v.Result)
	}
	w.expect(w.a, again, "done")
}

func TestGapOfForgottenNumbers(t *testing.T) {
	w := calm(t)
	short := w.a.enqueue(cmd(func(r *Request) { r.Expires = w.now.Add(time.Hour) }), "expires before it leaves")
	w.now = w.now.Add(2 * time.Hour)
	items, _, err := w.a.sp.List(spool.Query{})
	if err != nil || len(items) != 1 {
		t.Fatal(items, err)
	}
	if err := w.a.j.Expire(items[0], "delivery time expired"); err != nil {
		t.Fatal(err)
	}
	w.expect(w.a, short, "expired")
	next := w.a.enqueue(cmd(), "2")
	w.settle([]envelope.ID{next})
	w.expect(w.a, next, "done")
}

// TestRestoredOriginIsHeard: what an origin answers after it was put back from an older copy is newer than all that it has
// answered before, however often that was.
func TestRestoredOriginIsHeard(t *testing.T) {
	w := calm(t)
	w.a.enqueue(cmd(), "1")
	w.turn(3)
	number := func() (n uint64) {
		t.Helper()
		err := w.a.sp.Apply(func(tx *spool.Tx) error {
			k := chanKey{w.b.id, "x"}
			c, err := out(tx, k)
			if err != nil {
				return err
			}
			list, err := w.a.j.resumes(tx, c, "x", w.b.inc)
			if err != nil {
				return err
			}
			n = list[len(list)-1].Number
			return putOut(tx, k, c)
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	copied := t.TempDir() + "/copy"
	w.a.save(copied)
	last := uint64(0)
	for range 100 {
		n := number()
		if n <= last {
			t.Fatalf("resume %d after %d", n, last)
		}
		last = n
	}
	w.now = w.now.Add(time.Hour)
	w.a.restore(copied)
	if n := number(); n <= last {
		t.Errorf("resume %d after the restore, %d before", n, last)
	}
}

// TestForgottenNumberComes: a channel that was held because its origin does not know a number goes on when that number comes
// after all, out of a packet of the life that was lost.
func TestForgottenNumberComes(t *testing.T) {
	w := calm(t)
	first := w.a.enqueue(cmd(), "1")
	w.turn(4)
	w.expect(w.a, first, "done")
	copied := t.TempDir() + "/copy"
	w.a.save(copied)
	w.a.enqueue(cmd(), "2, which camp will forget")
	w.a.send(1)
	late := w.air
	w.air = nil
	third := w.a.enqueue(cmd(), "3, which camp will forget, too")
	w.a.send(1)
	w.turn(1) // 3 arrives
	w.a.restore(copied)
	for range 30 {
		w.step()
		if w.channel(w.b, "x").State == "held" {
			break
		}
	}
	if c := w.channel(w.b, "x"); c.State != "held" || !strings.Contains(c.Why, "does not know number 2") {
		t.Fatalf("%+v", c)
	}
	for _, p := range late {
		p.arrives = w.now
		w.air = append(w.air, p)
	}
	w.turn(2)
	if c := w.channel(w.b, "x"); c.State != "" || c.Next != 4 {
		t.Errorf("%+v", c)
	}
	w.expect(w.b, third, "done")
}
