package bridge

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/spool"
	"mochila/transport"
	"mochila/transport/transporttest"
)

// TestManyNeighbours: one node has packets for many neighbours, all of whom it calls at once. One of them takes the call and then hangs.
// The others get everything meanwhile, and neither goroutines nor memory grow with the queue.
func TestManyNeighbours(t *testing.T) {
	neighbours, packets, look := 16, 25, 50*time.Millisecond
	if os.Getenv("MOCHILA_SOAK") == "1" {
		neighbours, packets, look = 200, 1000, 5*time.Second
	}
	l := newLoneLab(t)
	l.set(time.Now())
	live := func(name string) *node { // its clock goes by itself
		n := l.node(name)
		n.now, n.noContacts = time.Now, name != "hub"
		n.close()
		n.open()
		return n
	}
	hub := live("hub")
	others := map[string]*node{}
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	hub.b.opt.Link = func(c *Contact) (transport.Link, error) {
		dial := transporttest.DialFunc(func() (transport.Stream, error) {
			line := transporttest.Line{}
			if c.NodeName == "n0" {
				line = transporttest.Line{Cut: -1, Hang: true} // what n0 says never comes
			}
			a, b := transporttest.Pipe(transporttest.Line{}, line)
			calls.Go(func() { transport.Answer(ctx, b, others[c.NodeName].b, transport.StreamOptions{}) })
			return a, nil
		})
		return transport.NewStreamLink(dial, transport.StreamOptions{Idle: time.Hour}), nil
	}
	for i := range neighbours {
		name := fmt.Sprintf("n%d", i)
		others[name] = live(name)
		hub.knows(others[name], "tcp:"+name)
		others[name].knows(hub, "")
	}
	p := *hub.pol
	p.Limits.BundleBytes = 1 // a mail a packet
	p.Limits.RetryMin = time.Second
	hub.pol = &p
	hub.b.SetPolicy(&p)
	var submit sync.WaitGroup
	for i := range neighbours {
		submit.Go(func() {
			for k := range packets {
				hub.submit("ana@hub.example", fmt.Sprintf("bob@n%d.example", i), fmt.Sprintf("Subject: %d\r\n\r\n%s\r\n", k, strings.Repeat("x", 2000)))
			}
		})
	}
	submit.Wait()
	l.log.forget()
	before := held()
	resting := runtime.NumGoroutine()

	hub.run()
	most, heap := 0, uint64(0)
	left := func() (n int) {
		counts, err := hub.sp.Counts()
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range counts {
			node, ok := q.Dest.Node()
			if ok && node != others["n0"].keys.ID() {
				n += q.States[spool.Due] + q.States[spool.Deferred] + q.States[spool.Sealed]
			}
		}
		return n
	}
	deadline := time.Now().Add(time.Hour)
	for left() > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d packets are left", left())
		}
		l.log.forget()
		most, heap = max(most, runtime.NumGoroutine()), max(heap, held())
		time.Sleep(look)
	}
	hung := false
	for _, c := range hub.b.Contacts() {
		hung = hung || c.Contact.NodeName == "n0" && c.Running
	}
	if !hung {
		t.Error("the neighbour that hangs has ended its contact")
	}
	grown := int64(heap) - int64(before)
	t.Logf("%d neighbours with %d packets each: %d goroutines at rest, %d at most; the heap grew by %d KiB at most", neighbours, packets, resting, most, grown>>10)
	// Both ends of every contact are in this process: 4 goroutines each, 4 that receive at most, and the caller's scheduler.
	if most > resting+neighbours*20+50 {
		t.Errorf("%d goroutines for %d contacts", most-resting, neighbours)
	}
	if grown > 32<<20+int64(neighbours)*(2<<20) { // buffers, frames under way, the codec: of both ends
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	cancel()
}

// held is how many bytes of the heap are in use: not what is garbage already, however much of it a busy machine lets pile up
// until somebody looks.
func held() uint64 {
	runtime.GC()
	m := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(m)
	return m[0].Value.Uint64()
}
