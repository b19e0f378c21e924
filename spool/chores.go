package spool

import "sync"

// choreQueue runs small jobs that nobody waits for, one after the other: unlinking bodies, setting broken records
// aside. It never blocks the one who adds, because that one may be the writer for whom a job waits.
type choreQueue struct {
	mu     sync.Mutex
	jobs   []func()
	closed bool
	wake   chan struct{}
	ended  chan struct{}
}

func (q *choreQueue) start() {
	q.wake, q.ended = make(chan struct{}, 1), make(chan struct{})
	go q.loop()
}

// add queues a job; after close it is dropped.
func (q *choreQueue) add(job func()) {
	q.mu.Lock()
	if !q.closed {
		q.jobs = append(q.jobs, job)
	}
	q.mu.Unlock()
	q.poke()
}

func (q *choreQueue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *choreQueue) loop() {
	defer close(q.ended)
	for {
		q.mu.Lock()
		jobs, closed := q.jobs, q.closed
		q.jobs = nil
		q.mu.Unlock()
		for _, job := range jobs {
			job()
		}
		if len(jobs) == 0 {
			if closed {
				return
			}
			<-q.wake
		}
	}
}

// close waits until the queue is empty.
func (q *choreQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.poke()
	<-q.ended
}

// drain waits for the jobs queued so far.
func (q *choreQueue) drain() {
	done := make(chan struct{})
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	q.jobs = append(q.jobs, func() { close(done) })
	q.mu.Unlock()
	q.poke()
	<-done
}
