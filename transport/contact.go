package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

const (
	maxReceiving = 4       // packets of one contact that are with the Station at a time
	maxOffers    = 8       // own offers without a verdict
	maxOffered   = 16      // the neighbour's offers without a verdict, before it is taken for hostile
	maxInFlight  = 4096    // small packets sent and not acknowledged
	maxUnheard   = 4 << 20 // bytes of them: the Station may keep what is in a packet until then
	ackPackets   = 64      // acknowledge at the latest after so many small packets
	ackBytes     = 512 << 10
	pingAfter    = 15 * time.Second
)

// contact is one live connection. Three goroutines share it: run's own writes every frame (contact_send.go), one
// reads every frame (contact_recv.go), one waits in Station.Next; and up to maxReceiving hand packets to the
// Station. The state between them is below mu; wake tells the writer that it changed.
type contact struct {
	o     StreamOptions
	s     *patientStream
	st    Greeter
	began time.Time
	in    frameReader
	out   frameWriter
	wake  chan struct{}
	slots chan struct{}
	work  sync.WaitGroup // Station.Receive calls

	mu      sync.Mutex
	stats   Stats // without the byte counts
	trouble error // own: what ended receiving
	failure error // what ended reading

	// sending
	inFlight []*Packet // PACKETs not acknowledged, in order
	unheard  int64     // bytes of them
	acked    uint64    // PACKETs acknowledged
	offers   map[uint64]*sending
	offered  uint64      // OFFERs sent
	ended    []*sending  // offers with a verdict, for the writer to clean up
	saidDone bool        // a DONE has left
	dones    [][2]uint64 // PACKETs and OFFERs that left before each DONE, without what was acknowledged long ago

	// the neighbour, as it said itself
	peerDone    bool   // nothing to send, and no packet since
	peerOffers  uint64 // own OFFERs that its last DONE covers
	peerLinger  time.Duration
	peerStopped bool
	closed      bool // hung up when nothing was open

	// receiving
	packetsIn   uint64 // PACKETs that came
	handled     uint64 // the first so many of them are dealt with
	early       map[uint64]bool
	unacked     int // bytes handled since the last acknowledgement
	incoming    map[uint64]*receiving
	offersIn    uint64 // OFFERs that came
	offersEnded uint64 // of these, how many have their verdict
	replies     []reply
	busy        int  // packets with the Station, all of whose bytes are there
	opening     bool // one is with the Station while it comes
	fresh       bool // something came in since Next was last asked
	stop        bool // receive nothing more
	afterStop   int  // PACKETs that came all the same
}

// reply is a WANT or a VERDICT that waits for the writer.
type reply struct {
	t       frameType
	numbers [2]uint64
	verdict verdict
}

// farewell is an error that the neighbour hears of before the contact ends. Only say goes over the line: an error
// may name files.
type farewell struct {
	error
	say string
}

func (f *farewell) Unwrap() error { return f.error }

// broken is the farewell to a neighbour that broke the protocol.
func broken(err error) error { return &farewell{err, err.Error()} }

// run speaks until the contact is over. greeted, if set, is called first by the reader.
func (c *contact) run(ctx context.Context, greeted func() error) (Stats, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		var err error
		if greeted != nil {
			err = greeted()
		}
		if err == nil {
			err = c.read(ctx, inner)
		}
		if err != nil {
			c.fail(err)
		}
	}()
	w := newWriter(inner, c)
	err := w.run(inner)
	if err != nil && !errors.As(err, new(*farewell)) {
		// If a write failed, what the neighbour said last may tell why.
		select {
		case <-reader:
		case <-time.After(lastWord):
		}
		if err = firstErr(c.failed(), err); c.hasClosed() {
			err = nil
		}
	}
	cancel()
	c.s.Close()
	w.close()
	<-reader
	c.cutEarly()
	c.work.Wait()
	if err == nil && !c.peerStopped {
		c.stats.Late = w.late()
	}
	for _, r := range c.incoming {
		if e := r.part.keep(); e != nil {
			c.o.Log.Warn("partial packet not kept", "packet", r.part.id, "err", e)
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return c.snapshot(), firstErr(err, c.trouble)
}

// fail notes why reading ended and stops the writer.
func (c *contact) fail(err error) {
	c.mu.Lock()
	if c.failure == nil {
		c.failure = err
	}
	c.mu.Unlock()
	c.s.end()
	c.poke()
}

func (c *contact) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

func (c *contact) hasClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// poke wakes the writer.
func (c *contact) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *contact) snapshot() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Began = c.began
	s.BytesIn, s.BytesOut = c.s.in.Load(), c.s.out.Load()
	return s
}

func (c *contact) progress() {
	if c.o.Progress != nil {
		c.o.Progress(c.snapshot())
	}
}

// settled reports whether a neighbour that hangs up now leaves nothing undone that it knew of. mu is held.
func (c *contact) settled() bool {
	in := c.stop || c.busy == 0 && len(c.incoming) == 0
	out := c.peerStopped || len(c.inFlight) == 0 && len(c.offers) == 0
	return c.peerDone && in && out
}

// crossed reports whether the neighbour hung up because all was said, while new work was on its way to it: that work is
// late, and no contact was cut. The neighbour has then dealt with exactly what came before one of this side's DONEs. mu
// is held.
func (c *contact) crossed() bool {
	in := c.stop || c.busy == 0 && len(c.incoming) == 0
	return in && c.peerDone && slices.Contains(c.dones, [2]uint64{c.acked, c.peerOffers})
}

// hungUp decides what the end of the incoming stream means.
func (c *contact) hungUp(err error) error {
	c.mu.Lock()
	clean := c.settled() || c.crossed()
	if clean {
		c.closed = true
	}
	c.mu.Unlock()
	if clean {
		c.poke()
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("contact was cut: %w", err)
}
