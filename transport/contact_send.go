package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// sending is one big packet on its way out. The reader sets wanted, from and verdict under contact.mu; the writer
// owns the rest.
type sending struct {
	n       uint64
	p       *Packet
	wanted  bool // the neighbour waits for bytes from offset from on
	from    int64
	wants   int
	verdict verdict

	cancelled bool // nothing more is sent; its verdict is awaited

	r   io.ReadCloser
	off int64
}

// writer is the sending half of a contact.
type writer struct {
	*contact
	box     outbox
	ask     chan struct{}
	got     chan fetched
	asking  bool // a Next is under way
	mayHave bool // Next might return a packet
	hinted  bool // it might even return a new one that is small or urgent
	gaveUp  bool // too much failed: nothing more is sent
	more    <-chan struct{}

	sentSince   bool // a packet or offer went out since the last DONE
	donePackets uint64
	doneOffers  uint64
	saidAck     uint64
	saidStop    bool

	slice    []byte // of the frame that is sent
	size     int    // bytes of the next slice
	wrote    time.Time
	overFrom time.Time // when the contact was first seen to be over
}

// fetched is what Station.Next returned.
type fetched struct {
	p   *Packet
	err error
}

const (
	minSlice   = 512
	firstSlice = 16 << 10
	enough     = 8 << 20              // bytes on offer beyond which only new packets are asked for
	firstWait  = 5 * time.Millisecond // what may share a flight is waited for so long
)

func newWriter(ctx context.Context, c *contact) *writer {
	w := &writer{
		contact: c, box: outbox{st: c.st}, mayHave: true, more: c.st.More(), size: firstSlice, wrote: time.Now(),
		ask: make(chan struct{}, 1), got: make(chan fetched, 1),
	}
	c.work.Go(func() {
		for range w.ask {
			p, err := w.box.st.Next(ctx)
			w.got <- fetched{p, err}
		}
	})
	return w
}

// close lets go of everything; the Next that still runs ends by its context.
func (w *writer) close() {
	close(w.ask)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.offers {
		o.close()
	}
	for _, o := range w.ended {
		o.close()
	}
}

// late counts, after the end of a good contact, what the neighbour's hanging up left behind: packets that were written
// meanwhile, even after the reader had seen the end, and the one that Next returned last.
func (w *writer) late() int {
	n := len(w.inFlight) + len(w.offers)
	select {
	case f := <-w.got:
		if f.p != nil {
			n++
		}
	default:
	}
	return n
}

func (o *sending) close() {
	if o.r != nil {
		o.r.Close()
		o.r = nil
	}
}

// run writes until the contact is over (nil) or has failed.
func (w *writer) run(ctx context.Context) error {
	for {
		over, err := w.step(ctx)
		if err != nil {
			var bye *farewell
			if errors.As(err, &bye) {
				w.s.end()
				w.out.write(frameBye, nil, []byte(cleanText([]byte(bye.say))))
				w.out.w.Flush() // a courtesy
			}
			return err
		}
		if over {
			return nil
		}
	}
}

// step does the most urgent thing: answer, small packet, slice of a big one, DONE, or wait.
func (w *writer) step(ctx context.Context) (over bool, err error) {
	if err := firstErr(ctx.Err(), w.failed()); err != nil {
		return false, err
	}
	if w.hasClosed() {
		return true, nil
	}
	if err := w.answer(); err != nil {
		return false, err
	}
	w.tidy()
	select {
	case _, open := <-w.more:
		w.heardMore(open)
	default:
	}
	w.fetch()
	select {
	case f := <-w.got:
		return false, w.send(ctx, f)
	default:
	}
	if o := w.best(); o != nil {
		return false, w.sendSlice(o)
	}
	if said, err := w.sayDone(); said || err != nil {
		w.overFrom = time.Time{} // something came since, even if that is settled before anybody looks
		return false, err
	}
	linger, over := w.over()
	if over && (linger == 0 || !w.overFrom.IsZero() && time.Since(w.overFrom) >= linger) {
		return true, w.flush()
	}
	switch {
	case !over:
		w.overFrom = time.Time{}
	case w.overFrom.IsZero():
		w.overFrom = time.Now()
	}
	return false, w.wait(ctx, over, linger)
}

func (w *writer) heardMore(open bool) {
	if !open {
		w.more = nil
		return
	}
	w.mayHave, w.hinted = true, true
}

// fetch asks the Station for a packet, if one could be sent.
func (w *writer) fetch() {
	if !w.mayHave || w.asking {
		return
	}
	w.mu.Lock()
	var offered int64
	for _, o := range w.offers {
		offered += o.p.Size - o.from
	}
	room := len(w.offers) < maxOffers && len(w.inFlight) < maxInFlight && w.unheard < maxUnheard && !w.peerStopped
	w.mu.Unlock()
	if room && (offered < enough || w.hinted) {
		w.asking, w.hinted = true, false
		w.ask <- struct{}{}
	}
}

// wait flushes and sleeps until something can be done.
func (w *writer) wait(ctx context.Context, over bool, linger time.Duration) error {
	if w.asking && w.out.w.Buffered() > 0 {
		t := time.NewTimer(firstWait)
		defer t.Stop()
		select {
		case f := <-w.got:
			return w.send(ctx, f)
		case <-w.wake:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	sleep := time.Until(w.wrote.Add(pingAfter))
	if over {
		sleep = min(sleep, time.Until(w.overFrom.Add(linger)))
	}
	t := time.NewTimer(max(sleep, 0))
	defer t.Stop()
	select {
	case f := <-w.got:
		return w.send(ctx, f)
	case _, open := <-w.more:
		w.heardMore(open)
	case <-w.wake:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		if time.Since(w.wrote) >= pingAfter {
			return firstErr(w.write(framePing, nil), w.flush())
		}
	}
	return nil
}

func (w *writer) write(t frameType, numbers []uint64, parts ...[]byte) error {
	w.wrote = time.Now()
	if err := w.out.write(t, numbers, parts...); err != nil {
		return fmt.Errorf("send %v: %w", t, err)
	}
	return nil
}

func (w *writer) flush() error {
	if err := w.out.w.Flush(); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// answer sends what the reader has left to say.
func (w *writer) answer() error {
	w.mu.Lock()
	replies := w.replies
	w.replies = nil
	ack := w.handled > w.saidAck && (w.handled-w.saidAck >= ackPackets || w.unacked >= ackBytes)
	handled := w.handled
	if ack {
		w.unacked = 0
	}
	var stop error
	if w.stop && !w.saidStop {
		w.saidStop = true
		stop = w.trouble
	}
	w.mu.Unlock()
	for _, r := range replies {
		var err error
		if r.t == frameWant {
			err = w.write(frameWant, r.numbers[:])
		} else {
			err = w.write(frameVerdict, r.numbers[:1], []byte{byte(r.verdict)})
		}
		if err != nil {
			return err
		}
	}
	if ack {
		w.saidAck = handled
		if err := w.write(frameAck, []uint64{handled}); err != nil {
			return err
		}
	}
	if stop != nil {
		reason := "not now"
		if errors.Is(stop, ErrFull) {
			reason = "no space left"
		}
		return w.write(frameStop, nil, []byte(reason))
	}
	return nil
}

// tidy closes offers that have a verdict, and all of them when the neighbour takes nothing more.
func (w *writer) tidy() {
	w.mu.Lock()
	ended := w.ended
	w.ended = nil
	if w.peerStopped {
		for n, o := range w.offers {
			o.close()
			delete(w.offers, n)
		}
	}
	if w.peerStopped || w.gaveUp {
		w.mayHave = false
	}
	w.mu.Unlock()
	for _, o := range ended {
		o.close()
		if !o.verdict.carried() {
			w.failedToSend(o.p)
		}
	}
}

// failedToSend passes over a packet. When too many fail, this side sends nothing more and goes on receiving.
func (w *writer) failedToSend(p *Packet) {
	err := w.box.failed(p)
	if err == nil || w.gaveUp {
		return
	}
	w.gaveUp, w.mayHave = true, false
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trouble == nil {
		w.trouble = err
	}
}

// send sends a packet that Next returned, or offers it.
func (w *writer) send(ctx context.Context, f fetched) error {
	w.asking = false
	switch {
	case f.err != nil:
		return fmt.Errorf("next packet: %w", f.err)
	case f.p == nil || w.box.bad[f.p.ID]:
		w.mayHave = false
		return nil
	}
	var err error
	if f.p.Size > int64(w.o.Inline) {
		err = w.offer(f.p)
	} else {
		err = w.sendWhole(ctx, f.p)
	}
	if errors.Is(err, errDamaged) {
		w.o.Log.Error("packet cannot be sent", "packet", f.p.ID, "size", f.p.Size, "err", err)
		w.failedToSend(f.p)
		return nil
	}
	return err
}

func (w *writer) sendWhole(ctx context.Context, p *Packet) error {
	r, err := openWhole(ctx, p)
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	defer r.Close()
	body := make([]byte, p.Size)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	w.mu.Lock()
	w.inFlight = append(w.inFlight, p)
	w.unheard += p.Size
	w.mu.Unlock()
	w.sentSince = true
	return w.write(framePacket, nil, body)
}

func (w *writer) offer(p *Packet) error {
	r, err := p.Open(0)
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	o := &sending{p: p, r: r}
	var head [HeadSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		r.Close()
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	o.off = HeadSize
	w.mu.Lock()
	o.n = w.offered
	w.offered++
	w.offers[o.n] = o
	w.mu.Unlock()
	w.sentSince = true
	body := append(append(append(make([]byte, 0, 80), p.ID[:]...), head[:]...), p.Class)
	return w.write(frameOffer, nil, body, uvarint(uint64(p.Size)))
}

// best returns the offer whose next slice goes first: highest class, then the one with the fewest bytes left.
func (w *writer) best() *sending {
	w.mu.Lock()
	defer w.mu.Unlock()
	var best *sending
	for _, o := range w.offers {
		if !o.wanted || o.cancelled {
			continue
		}
		if best == nil || o.before(best) {
			best = o
		}
	}
	return best
}

func (o *sending) before(other *sending) bool {
	if o.p.Class != other.p.Class {
		return o.p.Class < other.p.Class
	}
	if l, m := o.p.Size-o.from, other.p.Size-other.from; l != m {
		return l < m
	}
	return o.n < other.n
}

// sendSlice sends the next bytes of a big packet and learns from the time it took how many are good to send at once.
func (w *writer) sendSlice(o *sending) error {
	w.mu.Lock()
	from := o.from
	w.mu.Unlock()
	n, err := w.readSlice(o, from)
	if err != nil {
		w.o.Log.Error("packet cannot be read", "packet", o.p.ID, "offset", from, "err", err)
		w.mu.Lock()
		o.cancelled = true
		w.mu.Unlock()
		return w.write(frameCancel, []uint64{o.n})
	}
	w.mu.Lock()
	o.from = from + int64(n)
	if o.from == o.p.Size {
		o.wanted = false // before the last byte leaves: the neighbour may want all of it again at once
	}
	w.mu.Unlock()
	began := time.Now()
	w.wrote = began
	if err := w.out.writeData(o.n, w.slice, n); err != nil {
		return fmt.Errorf("send %v: %w", frameData, err)
	}
	if err := w.flush(); err != nil {
		return err
	}
	switch took := time.Since(began); {
	case took < 100*time.Millisecond:
		w.size = min(2*w.size, maxSlice)
	case took > time.Second:
		w.size = max(w.size/2, minSlice)
	}
	w.progress()
	return nil
}

// readSlice reads the next bytes of an offer into w.slice, behind the room for the head of a frame.
func (w *writer) readSlice(o *sending, from int64) (int, error) {
	if o.r != nil && o.off != from {
		o.close()
	}
	if o.r == nil {
		r, err := o.p.Open(from)
		if err != nil {
			return 0, err
		}
		o.r, o.off = r, from
	}
	if w.slice == nil {
		w.slice = make([]byte, dataHead+maxSlice+dataTail)
	}
	n := min(int64(w.size), o.p.Size-from)
	if n == maxSlice {
		n -= from % maxSlice // the neighbour writes whole pages
	}
	got, err := io.ReadFull(o.r, w.slice[dataHead:dataHead+n])
	o.off += int64(got)
	return got, cut(err)
}

// sayDone tells the neighbour that nothing is left to send, and how much of its own is dealt with, when that is
// news. The Station is asked once more first if something has come in: it may owe a receipt.
func (w *writer) sayDone() (said bool, err error) {
	w.mu.Lock()
	idle := !w.asking && !w.mayHave && len(w.offers) == 0 && w.busy == 0
	if idle && w.fresh && w.peerDone && len(w.incoming) == 0 && !w.peerStopped {
		w.fresh = false
		w.mayHave = true
		w.mu.Unlock()
		return true, nil
	}
	packets, offers := w.handled, w.offersEnded
	news := !w.saidDone || w.sentSince ||
		w.peerDone && len(w.incoming) == 0 && (w.donePackets != packets || w.doneOffers != offers)
	if idle && news {
		w.unacked = 0
		w.saidDone = true
		w.dones = slices.DeleteFunc(w.dones, func(d [2]uint64) bool { return d[0] < w.acked || d[1] < w.peerOffers })
		if d := [2]uint64{w.acked + uint64(len(w.inFlight)), w.offered}; !slices.Contains(w.dones, d) {
			w.dones = append(w.dones, d)
		}
	}
	w.mu.Unlock()
	if !idle || !news {
		return false, nil
	}
	w.sentSince = false
	w.donePackets, w.doneOffers, w.saidAck = packets, offers, packets
	return true, w.write(frameDone, []uint64{packets, offers, uint64(w.o.Linger / time.Second)})
}

// over reports whether both sides are done with everything, and how long to stay for something new.
func (w *writer) over() (linger time.Duration, over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	mine := !w.asking && !w.mayHave && w.saidDone && !w.sentSince &&
		(w.stop || w.donePackets == w.packetsIn && w.doneOffers == w.offersIn)
	theirs := w.peerStopped || w.peerOffers == w.offered
	return max(w.o.Linger, w.peerLinger), mine && theirs && w.settled() && len(w.replies) == 0
}
