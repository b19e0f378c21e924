package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/klauspost/reedsolomon"

	"mochila/transport"
)

// Taker is what packets are brought to: a part of transport.Station.
type Taker interface {
	Known(head []byte, size int64) bool
	Receive(ctx context.Context, size int64, r io.Reader) error
}

// maxGaps bounds what is remembered of the holes of a set, and the packets that wait for a stripe.
const maxGaps = 1024

// Counts is what became of packets.
type Counts struct {
	Packets int // taken
	Known   int // were here before
	Refused int // went to quarantine
	Damaged int // whole, and not what their name says
	Bytes   int64
}

func (c Counts) plus(d Counts) Counts {
	return Counts{c.Packets + d.Packets, c.Known + d.Known, c.Refused + d.Refused, c.Damaged + d.Damaged, c.Bytes + d.Bytes}
}

// state is what is stored of a set between two runs.
type state struct {
	Header   Header            // shape and names; not of one block
	Shards   map[int]spans     // stripes of which a shard was stored
	Whole    spans             // stripes that are there
	Done     spans             // content that was taken or given up
	Total    int64             // bytes of content; 0: its end was not seen yet
	Waiting  map[int64]waiting // packets that are not all there, by where they begin
	Stored   int64             // bytes of blocks on disk, about
	Used     int64             // Unix seconds: when it brought something new last
	Finished bool
}

// waiting is a packet that is not all there. To is where it ends, or what has to be there to know that.
type waiting struct {
	To   int64
	Body int64 // where its bytes begin; 0: not known yet
	ID   transport.ID
}

// set puts the blocks of one set together.
type set struct {
	state
	seg   *segments
	store func() error // writes the state
	enc   reedsolomon.Encoder
	buf   []byte // one stripe, while shards are computed

	counts  Counts
	repeats int64   // blocks that came again
	passed  int64   // blocks that were passed over: too many gaps
	fresh   bool    // something changed since it was stored
	touched []int64 // segments of which something was taken
}

// add takes a block in, and every packet that it makes whole.
func (x *set) add(ctx context.Context, b *Block, t Taker) error {
	start := b.Stripe * int64(b.whole())
	have := x.Shards[b.Shard]
	if x.Finished || x.Whole.contains(b.Stripe) || have.contains(b.Stripe) || x.Done.covers(start, start+int64(b.Content)) {
		x.repeats++
		return nil
	}
	if x.crowded(b) {
		x.passed++
		return nil
	}
	if err := x.seg.put(b, !x.holds(b.Stripe/x.seg.stripes)); err != nil {
		return err
	}
	x.fresh = true
	x.Stored += int64(len(b.Payload))
	if x.Shards == nil {
		x.Shards = map[int]spans{}
	}
	have.add(b.Stripe, b.Stripe+1)
	x.Shards[b.Shard] = have
	if b.Last {
		x.Total = start + int64(b.Content)
	}
	if x.here(b.Stripe) < b.Data {
		return nil
	}
	if err := x.restore(b.Stripe, b.payload()); err != nil {
		return err
	}
	x.Whole.add(b.Stripe, b.Stripe+1)
	return x.take(ctx, b.Stripe, t)
}

// crowded reports whether a block would leave more holes than can be remembered. One that joins what is there may still come, up
// to twice as many, so that a set with too many holes is not lost when they are filled.
func (x *set) crowded(b *Block) bool {
	start := b.Stripe * int64(b.whole())
	beside := func(s spans) bool { return s.contains(b.Stripe-1) || s.contains(b.Stripe+1) }
	joins := beside(x.Whole) || x.Done.contains(start-1) || x.Done.contains(start+int64(b.Content))
	have, most := x.Shards[b.Shard], max(len(x.Whole), len(x.Done))
	return len(have) >= maxGaps && !beside(have) || most >= maxGaps && !joins || most >= 2*maxGaps
}

// holds reports whether there are blocks of a segment.
func (x *set) holds(n int64) bool {
	for _, s := range x.Shards {
		if i := s.find(n * x.seg.stripes); i < len(s) && s[i].From < (n+1)*x.seg.stripes {
			return true
		}
	}
	return false
}

// here is how many shards of a stripe are stored.
func (x *set) here(stripe int64) (n int) {
	for _, s := range x.Shards {
		if s.contains(stripe) {
			n++
		}
	}
	return n
}

// restore computes the data shards of a stripe that are missing.
func (x *set) restore(stripe int64, size int) error {
	n := x.Header.Data + x.Header.Parity
	missing := false
	for i := range x.Header.Data {
		missing = missing || !x.Shards[i].contains(stripe)
	}
	if !missing {
		return nil
	}
	if x.enc == nil {
		var err error
		if x.enc, err = reedsolomon.New(x.Header.Data, x.Header.Parity); err != nil {
			return fmt.Errorf("restore stripe: %w", err)
		}
		x.buf = make([]byte, n*x.Header.Block)
	}
	shards := make([][]byte, n)
	for i, k := 0, 0; i < n; i++ {
		shards[i] = x.buf[i*size : i*size : (i+1)*size]
		if !x.Shards[i].contains(stripe) || k == x.Header.Data {
			continue
		}
		k++
		shards[i] = shards[i][:size]
		if err := x.seg.shard(stripe, i, shards[i], false); err != nil {
			return err
		}
	}
	if err := x.enc.ReconstructData(shards); err != nil {
		return fmt.Errorf("restore stripe %d: %w", stripe, err)
	}
	for i := range x.Header.Data {
		if !x.Shards[i].contains(stripe) {
			if err := x.seg.shard(stripe, i, shards[i], true); err != nil {
				return err
			}
		}
	}
	return nil
}

// take takes the packets that a stripe, whole now, completes.
func (x *set) take(ctx context.Context, stripe int64, t Taker) error {
	whole := int64(x.Header.whole())
	from, to := stripe*whole, (stripe+1)*whole
	first, size, err := x.seg.meta(stripe)
	if err != nil {
		return err
	}
	starts := []int64{}
	for at, w := range x.Waiting {
		if at < to && w.To > from {
			starts = append(starts, at)
		}
	}
	if at := from + int64(first); first != noPacket && int64(first) < int64(size) {
		starts = append(starts, at)
	}
	return x.chain(ctx, starts, t)
}

// retry takes the packets that are all there and were not taken: their taker was in trouble.
func (x *set) retry(ctx context.Context, t Taker) error {
	return x.chain(ctx, slices.Collect(maps.Keys(x.Waiting)), t)
}

// chain takes the packets that begin at these places, and those that follow them.
func (x *set) chain(ctx context.Context, starts []int64, t Taker) error {
	slices.Sort(starts)
	for _, at := range slices.Compact(starts) {
		for !x.Done.contains(at) && (x.Total == 0 || at < x.Total) {
			next, err := x.packet(ctx, at, t)
			if err != nil {
				return err
			}
			if next == 0 {
				break
			}
			at = next
		}
	}
	return x.clean()
}

// there is the end of the content that is there without a gap from at on; at itself when it is not there.
func (x *set) there(at int64) int64 {
	whole := int64(x.Header.whole())
	s, ok := x.Whole.around(at / whole)
	if !ok {
		return at
	}
	if end := s.To * whole; x.Total == 0 || end < x.Total {
		return end
	}
	return x.Total
}

// packet takes the packet that begins at an offset, if it is all there, and returns where the next one begins; 0: it is not, or not
// now.
func (x *set) packet(ctx context.Context, at int64, t Taker) (next int64, err error) {
	w, known := x.Waiting[at]
	end := x.there(at)
	if !known || w.Body == 0 {
		head := make([]byte, min(int64(recordHead), end-at))
		if _, err := io.ReadFull(&content{x.seg, at, end}, head); err != nil && len(head) > 0 {
			return 0, fmt.Errorf("read blocks: %w", err)
		}
		var size int64
		var n int
		w, n, size, err = parseRecord(head)
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF) && end != x.Total:
			return 0, x.wait(at, waiting{To: end + 1})
		case err != nil:
			return x.broken(at, end), nil
		}
		w.Body = at + int64(n)
		w.To = w.Body + size
	}
	if x.Total > 0 && w.To > x.Total {
		return x.broken(at, end), nil
	}
	if w.To > end {
		return 0, x.wait(at, w)
	}
	taken, err := x.hand(ctx, w, t)
	if err != nil || !taken {
		return 0, errors.Join(err, x.wait(at, w))
	}
	delete(x.Waiting, at)
	x.done(at, w.To)
	return w.To, nil
}

// parseRecord reads what stands in front of a packet: n bytes. io.ErrUnexpectedEOF: there is more of it.
func parseRecord(head []byte) (w waiting, n int, size int64, err error) {
	const fixed = 1 + len(transport.ID{})
	switch {
	case len(head) > 0 && head[0] != kindPacket:
		return w, 0, 0, fmt.Errorf("%w: a record of kind %d", errBlock, head[0])
	case len(head) <= fixed:
		return w, 0, 0, io.ErrUnexpectedEOF
	}
	w.ID = transport.ID(head[1:fixed])
	u, k := binary.Uvarint(head[fixed:])
	switch {
	case k == 0:
		return w, 0, 0, io.ErrUnexpectedEOF
	case k < 0 || u < 1 || u > maxContent || k > 1 && head[fixed+k-1] == 0:
		return w, 0, 0, fmt.Errorf("%w: a packet of %d bytes", errBlock, u)
	}
	return w, fixed + k, int64(u), nil
}

// wait notes that a packet is not all there.
func (x *set) wait(at int64, w waiting) error {
	if x.Waiting == nil {
		x.Waiting = map[int64]waiting{}
	}
	if _, known := x.Waiting[at]; !known && len(x.Waiting) >= maxGaps {
		return nil // the stripe where it begins is met again when the rest of it comes, or the medium is read again
	}
	x.Waiting[at] = w
	x.fresh = true
	return nil
}

// broken gives up content that makes no sense: only a writer with a fault makes such. It goes on with the next stripe.
func (x *set) broken(at, end int64) (next int64) {
	x.counts.Damaged++
	delete(x.Waiting, at)
	whole := int64(x.Header.whole())
	x.done(at, max(min(end, (at/whole+1)*whole), at+1))
	return 0
}

// hand brings a packet to the station; taken is false when it is to be offered again.
func (x *set) hand(ctx context.Context, w waiting, t Taker) (taken bool, err error) {
	size := w.To - w.Body
	src := &content{x.seg, w.Body, w.To}
	head := make([]byte, min(size, transport.HeadSize))
	if _, err := io.ReadFull(src, head); err != nil {
		return false, fmt.Errorf("read blocks: %w", err)
	}
	if len(head) == transport.HeadSize && t.Known(head, size) {
		x.counts.Known++
		return true, nil
	}
	r := &witness{r: transport.Verified(ctx, io.MultiReader(bytes.NewReader(head), src), w.ID, size)}
	err = t.Receive(ctx, size, r)
	switch {
	case err == nil:
		x.counts.Packets++
		x.counts.Bytes += size
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(r.err, transport.ErrIncomplete):
		x.counts.Damaged++
		return true, nil
	case r.err != nil && r.err != io.EOF:
		return false, fmt.Errorf("read blocks: %w", r.err)
	case errors.Is(err, transport.ErrRefused):
		x.counts.Refused++
		return true, nil
	case errors.Is(err, transport.ErrIncomplete):
		return false, nil
	}
	return false, fmt.Errorf("receive packet %s: %w", w.ID, err)
}

// witness keeps the error of the reader behind it.
type witness struct {
	r   io.Reader
	err error
}

func (w *witness) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil {
		w.err = err
	}
	return n, err
}

// clean deletes the files of which everything was taken. The state that no longer needs them is stored first, and the blocks that
// it does need before it: whenever this is cut short, the next run finds what the state says.
func (x *set) clean() error {
	if x.Total > 0 && x.Done.covers(0, x.Total) {
		x.Finished = true
	}
	per := x.seg.stripes * int64(x.Header.whole())
	slices.Sort(x.touched)
	var gone []int64
	for _, n := range slices.Compact(x.touched) {
		end := (n + 1) * per
		if x.Total > 0 {
			end = min(end, x.Total)
		}
		if x.Done.covers(n*per, end) {
			gone = append(gone, n)
			x.forget(n)
		}
	}
	x.touched = gone // looked at again if this fails
	if len(gone) == 0 {
		return nil
	}
	if err := errors.Join(x.seg.sync(gone), x.store()); err != nil {
		return err
	}
	for _, n := range gone {
		if err := x.seg.remove(n); err != nil {
			return err
		}
	}
	x.touched = nil
	return nil
}

// sweep deletes the files that an earlier process was about to delete.
func (x *set) sweep() (err error) {
	if x.touched, err = x.seg.there(); err != nil {
		return err
	}
	return x.clean()
}

// done notes that content was taken or given up.
func (x *set) done(from, to int64) {
	x.Done.add(from, to)
	x.fresh = true
	per := x.seg.stripes * int64(x.Header.whole())
	for n := from / per; n <= (to-1)/per; n++ {
		x.touched = append(x.touched, n)
	}
}

// forget drops what is known of the blocks of a segment that was deleted: Done says all that matters.
func (x *set) forget(n int64) {
	from, to := n*x.seg.stripes, (n+1)*x.seg.stripes
	for i, s := range x.Shards {
		left := s.cut(from, to)
		x.Stored -= (s.sum() - left.sum()) * int64(x.Header.Block)
		if x.Shards[i] = left; len(left) == 0 {
			delete(x.Shards, i)
		}
	}
	x.Whole = x.Whole.cut(from, to)
	x.Stored = max(x.Stored, 0)
}

// cut is the set without the numbers from a up to b.
func (s spans) cut(a, b int64) (left spans) {
	for _, x := range s {
		if x.From < min(x.To, a) {
			left = append(left, span{x.From, min(x.To, a)})
		}
		if max(x.From, b) < x.To {
			left = append(left, span{max(x.From, b), x.To})
		}
	}
	return left
}

// parts are the numbers, from 1, of the parts of which something is there.
func (x *set) parts() (have []int) {
	for i := range x.Shards {
		have = append(have, i+1)
	}
	slices.Sort(have)
	return have
}

// missing is how many stripes are not there, as far as can be told: up to the last one that was seen.
func (x *set) missing() int64 {
	whole := int64(x.Header.whole())
	end := (x.Total + whole - 1) / whole
	if x.Total == 0 {
		for _, s := range x.Shards {
			end = max(end, s[len(s)-1].To)
		}
		if len(x.Done) > 0 {
			end = max(end, x.Done[len(x.Done)-1].To/whole)
		}
	}
	var here spans
	for _, s := range x.Whole {
		here.add(s.From, s.To)
	}
	for _, s := range x.Done {
		here.add((s.From+whole-1)/whole, s.To/whole)
		if x.Total > 0 && s.To == x.Total {
			here.add(s.From/whole, end) // its last stripe is not full
		}
	}
	return max(end-here.sum(), 0)
}
