package bridge

import (
	"maps"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// DelayBounds are the upper bounds of the classes in Numbers.Delays.
var DelayBounds = [...]time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour,
	24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour}

// Numbers counts what has happened since the process began, recipient by recipient.
type Numbers struct {
	Mails, Recipients, Bytes uint64                       // that entered the queue, notices included
	Tries                    map[string]uint64            // by the word of the log: sent, bounced, deferred, arrived, expired
	Sealed                   uint64                       // recipients given to carriers, again ones included
	Notices                  uint64                       // DSNs written here
	Summaries, Released      uint64                       // summaries that went ahead; mails that readers asked for
	Delays                   [len(DelayBounds) + 1]uint64 // of those sent: how long after they entered, by class
	Delay                    time.Duration                // of them, in all
}

// counters keep Numbers.
type counters struct {
	mu sync.Mutex
	n  Numbers
}

func (c *counters) entered(e *envelope.Envelope) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n.Mails++
	c.n.Recipients += uint64(len(e.Mail.Recipients))
	c.n.Bytes += uint64(max(e.Size, 0))
}

func (c *counters) tried(word string, delay time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n.Tries == nil {
		c.n.Tries = make(map[string]uint64)
	}
	c.n.Tries[word]++
	if word != "sent" {
		return
	}
	k := 0
	for k < len(DelayBounds) && delay > DelayBounds[k] {
		k++
	}
	c.n.Delays[k]++
	c.n.Delay += max(delay, 0)
}

func (c *counters) sealed(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n.Sealed += uint64(n)
}

func (c *counters) noticed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n.Notices++
}

func (c *counters) summarised() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n.Summaries++
}

func (c *counters) released() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n.Released++
}

// Numbers tells what has been counted.
func (b *Bridge) Numbers() Numbers {
	b.counts.mu.Lock()
	defer b.counts.mu.Unlock()
	n := b.counts.n
	n.Tries = maps.Clone(n.Tries)
	return n
}

// ReceiptLag is how long the oldest envelope to a destination has been out of this node's hands without a receipt that it
// is there; 0 when none is.
func (b *Bridge) ReceiptLag(d spool.Dest) (time.Duration, error) {
	var lag time.Duration
	for _, st := range []spool.State{spool.Sealed, spool.Travelling} {
		items, _, err := b.spool.List(spool.Query{Dest: d, State: st, Limit: 1})
		if err != nil {
			return 0, err
		}
		for _, it := range items {
			lag = max(lag, b.now().Sub(handedOver(it)))
		}
	}
	return lag, nil
}

// handedOver is when an item was sealed last.
func handedOver(it *spool.Item) time.Time {
	for k := len(it.Log) - 1; k >= 0; k-- {
		if it.Log[k].What == "sealed" {
			return it.Log[k].At
		}
	}
	return it.Entered
}
