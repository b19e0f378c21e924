package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// TestIdleKnowsWhatWaits: a node that has just been opened is not idle while a job waits that nobody has looked at, or
// sync would end before it has run.
func TestIdleKnowsWhatWaits(t *testing.T) {
	w := calm(t)
	if w.b.j.Idle() {
		t.Error("idle before anything was looked at")
	}
	w.run()
	if !w.b.j.Idle() {
		t.Error("not idle although nothing waits")
	}
	id := w.a.enqueue(cmd(), "1")
	w.a.send(1)
	w.now = w.now.Add(overdue)
	w.land()
	if w.b.j.Idle() {
		t.Error("idle although a job has come")
	}
	w.b.reopen()
	if w.b.j.Idle() {
		t.Error("idle after a start although a job waits")
	}
	w.run()
	if !w.b.j.Idle() || w.count[id] != 1 {
		t.Errorf("idle: %v, ran %d times", w.b.j.Idle(), w.count[id])
	}
	w.settle([]envelope.ID{id})
}

// TestOutcomeOnFullDisk: an outcome that the disk cannot take is stored when it can; the program is not started again, and
// the next not before.
func TestOutcomeOnFullDisk(t *testing.T) {
	t.Parallel()
	w := calm(t)
	var short atomic.Int32 // how often there will be no room
	w.b.free = func() (int64, int64, error) {
		if short.Add(-1) >= 0 {
			return 0, 1 << 40, nil
		}
		short.Store(0)
		return 1 << 40, 1 << 40, nil
	}
	w.b.reopen()
	full := false
	w.behave = func(s *Start) *Outcome {
		if s.Seq == 1 {
			short.Store(2)
			full = true
		} else if short.Load() > 0 {
			t.Error("the next job was started although the outcome of the one before could not be stored")
		}
		return nil
	}
	ids := []envelope.ID{w.a.enqueue(cmd(), "1"), w.a.enqueue(cmd(), "2")}
	w.settle(ids)
	if !full || short.Load() > 0 {
		t.Errorf("the disk was full: %v, and will be %d times more", full, short.Load())
	}
	w.check(ids)
	for _, id := range ids {
		if v := w.expect(w.a, id, "done"); v.Result.Stdout != 1 || v.Result.Tries != 1 {
			t.Errorf("%+v", v.Result)
		}
	}
}

// TestOutcomeNotStored: when the node goes down, or its spool is closed, while an outcome cannot be stored, nobody waits
// for the disk any longer. The next start finds that the job was started, and does not start it again.
func TestOutcomeNotStored(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *world, stop func()){
		"going down": func(_ *world, stop func()) { stop() },
		"closed": func(w *world, _ func()) {
			if err := w.b.sp.Close(); err != nil {
				w.t.Error(err)
			}
		},
	} {
		w := calm(t)
		var full atomic.Bool
		w.b.free = func() (int64, int64, error) {
			if full.Load() {
				return 0, 1 << 40, nil
			}
			return 1 << 40, 1 << 40, nil
		}
		w.b.reopen()
		ctx, stop := context.WithCancel(t.Context())
		w.behave = func(*Start) *Outcome {
			full.Store(true)
			end(w, stop)
			return nil
		}
		id := w.a.enqueue(cmd(), "1")
		w.a.send(1)
		w.now = w.now.Add(overdue)
		w.land()
		w.b.j.Drain(ctx)
		stop()
		if !full.Load() {
			t.Errorf("%s: it was not started", name)
		}
		w.b.sp.Close()
		full.Store(false)
		w.behave = nil
		w.b.open()
		w.run()
		if v := w.expect(w.b, id, "held"); v.Result == nil || v.Result.State != envelope.JobUnknown {
			t.Errorf("%s: %+v", name, v.Result)
		}
		w.settle([]envelope.ID{id})
		if v := w.expect(w.a, id, "unknown"); w.count[id] != 1 {
			t.Errorf("%s: started %d times, %+v", name, w.count[id], v.Result)
		}
	}
}

// contents counts the files of a node's bodies.
func (s *side) contents() (n int) {
	s.w.t.Helper()
	err := filepath.WalkDir(filepath.Join(s.dir, "body"), func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed just now
		}
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil {
		s.w.t.Fatal(err)
	}
	return n
}

// TestPreparedIsNotStarted: a job whose start was prepared while the one before it ran is decided on in its turn like any
// other.
func TestPreparedIsNotStarted(t *testing.T) {
	w := calm(t)
	var ids []envelope.ID
	for i := range 12 {
		ids = append(ids, w.a.enqueue(cmd(), fmt.Sprint(i)))
	}
	w.a.send(20)
	w.now = w.now.Add(overdue)
	w.land()
	w.behave = func(s *Start) *Outcome {
		switch s.ID {
		case ids[8]:
			if err := w.b.j.Drop(ids[9]); err != nil {
				t.Error(err)
			}
		case ids[10]:
			p := *w.b.policy
			p.Handlers = nil
			w.b.policy = &p
		}
		return nil
	}
	w.run()
	if w.ready == 0 {
		t.Error("nothing was prepared")
	}
	for i, id := range ids {
		want := 1
		if i == 9 || i == 11 {
			want = 0
		}
		if got := w.count[id]; got != want {
			t.Errorf("job %d ran %d times", i, got)
		}
	}
}

// TestRefusedRequests: the input of jobs that are refused, for whatever reason, also of those that came with one that is,
// is gone from the disk, and no number was taken.
func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	w := calm(t)
	input := func() *spool.Body {
		t.Helper()
		b := w.a.sp.NewBody()
		if _, err := io.WriteString(b, strings.Repeat("too long for the index\n", 2000)); err != nil {
			t.Fatal(err)
		}
		if err := b.Finish(); err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := func() *Request {
		return &Request{Dest: w.b.id, Job: envelope.Job{Channel: "x", Handler: "do"}, Body: input()}
	}
	reason := errors.New("a reason of the caller's")
	for name, c := range map[string]struct {
		spoil func(*Request)
		also  func(*spool.Tx) error
	}{
		"no peer":        {spoil: func(r *Request) { r.Dest = envelope.NodeID{77} }},
		"expired":        {spoil: func(r *Request) { r.Expires = w.now.Add(-time.Hour) }},
		"no channel":     {spoil: func(r *Request) { r.Job.Channel = "" }},
		"in the commit":  {also: func(*spool.Tx) error { return reason }},
		"used up before": {spoil: func(r *Request) { r.Body.Discard() }},
	} {
		reqs := []*Request{good(), good(), good()}
		if c.spoil != nil {
			c.spoil(reqs[1])
		}
		if n := w.a.contents(); n < 2 {
			t.Fatalf("%s: %d contents are files: the test shows nothing", name, n)
		}
		if tickets, err := w.a.j.EnqueueWith(reqs, c.also); err == nil {
			t.Errorf("%s: taken as %v", name, tickets)
		}
		for end := time.Now().Add(20 * time.Second); w.a.contents() > 0; time.Sleep(10 * time.Millisecond) { // removing may be a chore
			if time.Now().After(end) {
				t.Fatalf("%s: %d contents are left", name, w.a.contents())
			}
		}
	}
	tickets, err := w.a.j.Enqueue([]*Request{good(), good()})
	if err != nil || tickets[0].Seq != 1 || tickets[1].Seq != 2 || w.a.contents() != 2 {
		t.Errorf("%v, %v, %d contents", tickets, err, w.a.contents())
	}
}
