package jobs

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"testing"

	"mochila/internal/envelope"
)

// jobsPerSeed is how many jobs one run of the property test makes.
func jobsPerSeed() int {
	if os.Getenv("MOCHILA_SOAK") != "" {
		return 25_000
	}
	return 400
}

// TestOrderAndOnce sends the jobs of four channels through carriers that shuffle, repeat, drop, delay and cut, while both
// nodes are killed at random points: what ran is what was ordered, in order, each once.
func TestOrderAndOnce(t *testing.T) {
	for seed := range int64(4) {
		t.Run(strconv.FormatInt(seed, 10), func(t *testing.T) {
			w := newWorld(t, seed)
			w.bad, w.crashes = 0.2, 0.01
			ids := w.work(jobsPerSeed(), func(i, n int) {
				if w.rnd.Intn(10) == 0 {
					w.a.reopen()
				}
				if w.rnd.Intn(20) == 0 {
					w.b.reopen()
				}
			})
			w.settle(ids)
			w.check(ids)
		})
	}
}

// work makes n jobs, some at a time and from several goroutines, and lets the world turn meanwhile.
func (w *world) work(n int, between func(i, n int)) []envelope.ID {
	var mu sync.Mutex
	var ids []envelope.ID
	for i := 0; i < n; {
		k := min(1+w.rnd.Intn(16), n-i)
		broken := w.rnd.Intn(3)
		var wg sync.WaitGroup
		for x := range k {
			wg.Add(1)
			go func() {
				defer wg.Done()
				id := w.a.enqueue(&Request{Job: envelope.Job{Channel: fmt.Sprintf("ch%d", (i+x)%4)}}, fmt.Sprint(i+x))
				mu.Lock()
				ids = append(ids, id)
				mu.Unlock()
			}()
		}
		if broken == 0 { // input that breaks off takes no number
			b := w.a.sp.NewBody()
			io.WriteString(b, "half of")
			b.Discard()
		}
		wg.Wait()
		i += k
		if w.rnd.Intn(4) == 0 {
			w.step()
			w.operate()
		}
		between(i, n)
	}
	return ids
}

// TestDestinationRestored puts an old copy of the destination's spool back while jobs are on their way.
func TestDestinationRestored(t *testing.T) {
	for seed := range int64(4) {
		t.Run(strconv.FormatInt(seed, 10), func(t *testing.T) {
			w := newWorld(t, 100+seed)
			w.bad, w.crashes = 0.15, 0.005
			copied := t.TempDir() + "/copy"
			ids := w.work(300, func(i, n int) {
				switch {
				case i-16 < n/3 && i >= n/3:
					w.b.save(copied)
				case i-16 < 2*n/3 && i >= 2*n/3:
					w.b.restore(copied)
				}
			})
			w.settle(ids)
			w.check(ids)
		})
	}
}

// TestOriginRestored puts an old copy of the origin's spool back: the jobs made since are lost with it, unless they had
// arrived; all others run, and none twice.
func TestOriginRestored(t *testing.T) {
	for seed := range int64(4) {
		t.Run(strconv.FormatInt(seed, 10), func(t *testing.T) {
			w := newWorld(t, 200+seed)
			w.bad, w.crashes = 0.15, 0.005
			copied := t.TempDir() + "/copy"
			var before, after int
			ids := w.work(300, func(i, n int) {
				switch {
				case before == 0 && i >= n/3:
					before = i
					w.a.save(copied)
				case after == 0 && i >= n/2:
					after = i
					w.a.restore(copied)
				}
			})
			ids = append(ids[:before:before], ids[after:]...)
			w.settle(ids)
			w.check(ids)
		})
	}
}
