package serial

import "slices"

// window is how many bytes of a direction may be in flight, and how many a receiver keeps out of order.
const window = 32 << 10

// The two directions of a connection, as pure state: no clock, no line. Offsets are those of the frames, modulo 2³².

// segment is bytes that were sent and are not acknowledged.
type segment struct {
	from, n uint32
	burst   int // in which it left last; in full duplex, a count of frames
	lost    bool
}

// outgoing is the sending direction.
type outgoing struct {
	buf    []byte // from acked on: in flight, then not sent
	acked  uint32
	flight []segment // ascending, without gaps, up to next
	next   uint32    // the first byte that was never sent
	ended  bool      // nothing is added any more
	endOut int       // burst in which END left last; 0: never
	endAck bool      // END is acknowledged
	size   int       // bytes of data in a frame
	tried  int       // frames since size was judged last
	failed int       // of these, lost
}

// unsent is how many bytes were never sent.
func (o *outgoing) unsent() int { return len(o.buf) - int(o.next-o.acked) }

// idle reports whether nothing is left to be sent or acknowledged.
func (o *outgoing) idle() bool { return len(o.buf) == 0 && (!o.ended || o.endAck) }

// pending reports whether a frame could be sent now.
func (o *outgoing) pending() bool {
	return slices.ContainsFunc(o.flight, func(s segment) bool { return s.lost }) ||
		o.unsent() > 0 && o.next-o.acked < window || o.ended && !o.endAck && o.endOut == 0
}

// take returns the next bytes to send, at most a frame of them, lost ones first; none when there are none or the window is full.
func (o *outgoing) take(burst int) (off uint32, data []byte) {
	if o.size == 0 {
		o.size = maxData
	}
	for i := range o.flight {
		s := &o.flight[i]
		if !s.lost {
			continue
		}
		if int(s.n) > o.size { // it did not come in one piece
			rest := segment{from: s.from + uint32(o.size), n: s.n - uint32(o.size), lost: true}
			s.n = uint32(o.size)
			o.flight = slices.Insert(o.flight, i+1, rest)
			s = &o.flight[i]
		}
		s.lost, s.burst = false, burst
		at := s.from - o.acked
		return s.from, o.buf[at : at+s.n]
	}
	n := min(o.unsent(), o.size, window-int(o.next-o.acked))
	if n <= 0 {
		return 0, nil
	}
	s := segment{from: o.next, n: uint32(n), burst: burst}
	o.flight = append(o.flight, s)
	at := o.next - o.acked
	o.next += uint32(n)
	return s.from, o.buf[at : int(at)+n]
}

// acknowledge takes the other side's account of what it has. Of what is missing in it, everything that left in burst lost or before is
// lost; with inOrder, everything that left before the last that came.
func (o *outgoing) acknowledge(f *frame, lost int, inOrder bool) (progress bool) {
	end := o.next
	if o.endOut > 0 {
		end++ // END counts as one byte behind the last
	}
	if d := f.off - o.acked; d > end-o.acked {
		return false // of another time
	}
	if f.off == o.next+1 && o.endOut > 0 {
		o.endAck, progress = true, true
		f.off--
	}
	if d := f.off - o.acked; d > 0 {
		o.buf = o.buf[d:]
		o.acked, progress = f.off, true
	}
	came := func(s segment) bool {
		return s.from-o.acked > window && s.from+s.n-o.acked-1 > window ||
			slices.ContainsFunc(f.runs, func(r run) bool { return s.from-r.from <= window && s.from+s.n-r.from <= r.n })
	}
	if inOrder {
		lost = -1
		for _, s := range o.flight {
			if s.burst > lost+1 && came(s) {
				lost = s.burst - 1
			}
		}
		if o.endAck {
			lost = max(lost, o.endOut-1)
		}
	}
	var left []segment
	for _, s := range o.flight {
		if s.from-o.acked > window { // before acked
			if s.from+s.n-o.acked > window || s.from+s.n == o.acked {
				if s.burst >= 0 {
					o.judge(false)
				}
				continue
			}
			s.n, s.from = s.from+s.n-o.acked, o.acked
		}
		if came(s) {
			if s.burst >= 0 {
				o.judge(false)
				progress = true
			}
			s.burst, s.lost = -1, false // it is there; it stays until all before it is
		}
		if s.burst >= 0 && !s.lost && s.burst <= lost {
			s.lost = true
			o.judge(true)
		}
		left = append(left, s)
	}
	o.flight = left
	if o.endOut > 0 && !o.endAck && o.endOut <= lost {
		o.endOut = 0
	}
	return progress
}

// judge counts frames, and makes them shorter when many are lost.
func (o *outgoing) judge(lost bool) {
	o.tried++
	if lost {
		o.failed++
	}
	if o.tried < 16 {
		return
	}
	switch {
	case o.failed*5 > o.tried*2:
		o.size = max(o.size/2, minData)
	case o.failed*7 < o.tried:
		o.size = min(o.size*5/4+8, maxData)
	}
	o.tried, o.failed = 0, 0
}

// incoming is the receiving direction.
type incoming struct {
	ready []byte // in order, not read yet
	next  uint32 // the first byte that is missing
	held  []run  // behind it, ascending
	bytes []byte // from next on, as far as held says
	end   uint32 // where it ends, once known
	ended bool   // end is known
	done  bool   // all of it came
}

// take takes bytes in. news is false when they were there already, or came out of turn.
func (i *incoming) take(off uint32, data []byte) (news bool) {
	if i.done || len(i.ready) > 2*window {
		return false
	}
	if d := i.next - off; d > 0 && d < 1<<31 { // from before
		if int(d) >= len(data) {
			return false
		}
		off, data = i.next, data[d:]
	}
	at := off - i.next
	if int64(at)+int64(len(data)) > window {
		return false
	}
	end := int(at) + len(data)
	if len(i.bytes) < end {
		i.bytes = append(i.bytes, make([]byte, end-len(i.bytes))...)
	}
	copy(i.bytes[at:end], data)
	news = i.hold(run{off, uint32(len(data))})
	if len(i.held) > 0 && i.held[0].from == i.next {
		n := i.held[0].n
		i.ready = append(i.ready, i.bytes[:n]...)
		i.bytes = append(i.bytes[:0], i.bytes[n:]...)
		i.next += n
		i.held = i.held[1:]
	}
	i.check()
	return news
}

// hold adds a run to those that are there.
func (i *incoming) hold(r run) (news bool) {
	rel := func(x uint32) uint32 { return x - i.next }
	var all []run
	placed := false
	news = true
	for _, h := range i.held {
		switch {
		case rel(h.from)+h.n < rel(r.from):
			all = append(all, h)
		case rel(r.from)+r.n < rel(h.from):
			if !placed {
				all, placed = append(all, r), true
			}
			all = append(all, h)
		default:
			if rel(h.from) <= rel(r.from) && rel(r.from)+r.n <= rel(h.from)+h.n {
				news = false
			}
			from, to := min(rel(h.from), rel(r.from)), max(rel(h.from)+h.n, rel(r.from)+r.n)
			r = run{i.next + from, to - from}
		}
	}
	if !placed {
		all = append(all, r)
	}
	i.held = all
	return news
}

// finish notes where the stream ends.
func (i *incoming) finish(end uint32) {
	if d := end - i.next; d <= window {
		i.end, i.ended = end, true
	}
	i.check()
}

func (i *incoming) check() { i.done = i.done || i.ended && i.next == i.end }

// account is what an ACK or TURN says.
func (i *incoming) account() (off uint32, runs []run) {
	if i.done {
		return i.end + 1, nil
	}
	return i.next, i.held[:min(len(i.held), maxRuns)]
}
