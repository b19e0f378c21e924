package jobs

import (
	"fmt"
	"sync/atomic"
	"testing"

	"mochila/internal/envelope"
)

// BenchmarkEnqueue: eight callers at once, each job durable before its call returns.
func BenchmarkEnqueue(b *testing.B) {
	w := newWorld(b, 1)
	b.SetParallelism(4)
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w.a.enqueue(&Request{Job: envelope.Job{Channel: fmt.Sprintf("ch%d", n.Add(1)%4)}}, "a little input")
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// BenchmarkList: the first page and every channel, with 50,000 jobs waiting.
func BenchmarkList(b *testing.B) {
	w := newWorld(b, 1)
	var reqs []*Request
	for i := range 50_000 {
		reqs = append(reqs, &Request{Dest: w.b.id, Job: envelope.Job{Channel: fmt.Sprintf("ch%d", i%4), Handler: "do"}})
		if len(reqs) == 500 {
			if _, err := w.a.j.Enqueue(reqs); err != nil {
				b.Fatal(err)
			}
			reqs = nil
		}
	}
	for b.Loop() {
		p, err := w.a.j.List(Filter{Limit: 100})
		if err != nil || len(p.Jobs) != 100 || p.Next == nil {
			b.Fatal(len(p.Jobs), err)
		}
		if c, err := w.a.j.Channels(); err != nil || len(c) != 4 || c[0].Waiting != 12_500 {
			b.Fatal(c, err)
		}
	}
}

// BenchmarkDrain: from the buffer through a program that does nothing to the stored result.
func BenchmarkDrain(b *testing.B) {
	w := newWorld(b, 1)
	var reqs []*Request
	for range b.N {
		reqs = append(reqs, &Request{Dest: w.b.id, Job: envelope.Job{Channel: "x", Handler: "do"}})
	}
	if _, err := w.a.j.Enqueue(reqs); err != nil {
		b.Fatal(err)
	}
	for range b.N/100 + 1 {
		w.a.send(100)
	}
	for len(w.air) > 0 {
		w.now = w.now.Add(overdue / 6)
		w.land()
	}
	b.ResetTimer()
	w.run()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	if len(w.ran) != b.N {
		b.Fatalf("%d of %d ran", len(w.ran), b.N)
	}
}
