package jobs

import (
	"testing"

	"mochila/internal/envelope"
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
