package export

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/reedsolomon"

	"mochila/internal/envelope"
	"mochila/transport"
)

// Options are what a set is written with.
type Options struct {
	Set          SetID
	From, To     envelope.Label
	Data, Parity int   // parts; 0: 1 and 0
	Block        int   // bytes; 0: 64 KiB
	Size         int64 // bytes of the stream, headers and parity included; 0: no limit
}

// recordHead is what stands in front of a packet in the content, at most.
const recordHead = 1 + len(transport.ID{}) + binary.MaxVarintLen64

const kindPacket = 1

// Writer writes one set. It holds one stripe in memory. Not safe for concurrent use.
type Writer struct {
	w       io.Writer
	h       Header
	size    int64
	enc     reedsolomon.Encoder
	buf     []byte // all shards of a stripe
	n       int    // bytes of content in it
	content int64  // bytes so far
	out     int64  // bytes written
	head    []byte
	err     error // the first of w: nothing more is written
}

// NewWriter returns the writer of a set.
func NewWriter(w io.Writer, o Options) (*Writer, error) {
	if o.Data == 0 {
		o.Data = 1
	}
	if o.Data < 1 || o.Parity < 0 || o.Data+o.Parity > 256 {
		return nil, fmt.Errorf("%d parts and %d more for parity: 1 to 256 in all are possible", o.Data, o.Parity)
	}
	if o.Block == 0 {
		o.Block = 64 << 10
	}
	h := Header{Data: o.Data, Parity: o.Parity, Block: o.Block, Set: o.Set, From: o.From, To: o.To, Content: o.Data * o.Block, First: noPacket}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("blocks of %d bytes: %d to %d are possible, and %d in all parts", o.Block, minBlock, maxBlock, maxStripe)
	}
	x := &Writer{w: w, h: h, size: o.Size, buf: make([]byte, (o.Data+o.Parity)*o.Block)}
	if o.Parity > 0 {
		var err error
		if x.enc, err = reedsolomon.New(o.Data, o.Parity); err != nil {
			return nil, fmt.Errorf("%d parts and %d for parity: %w", o.Data, o.Parity, err)
		}
	}
	return x, nil
}

// capacity is how much content fits into size bytes.
func (x *Writer) capacity() int64 {
	if x.size <= 0 {
		return maxContent
	}
	shards := int64(x.h.Data + x.h.Parity)
	stripe := shards * int64(HeaderSize+x.h.Block)
	left := (x.size % stripe / shards) - HeaderSize
	return min(x.size/stripe*int64(x.h.whole())+max(left, 0)*int64(x.h.Data), maxContent)
}

// Room is the size of the largest packet that still fits.
func (x *Writer) Room() int64 { return x.capacity() - x.content - int64(recordHead) }

// Written is how many bytes have left.
func (x *Writer) Written() int64 { return x.out }

// Packet writes a packet. transport.ErrFull: it has no room, and nothing was written. An error of p.Open leaves the stream in order.
func (x *Writer) Packet(ctx context.Context, p *transport.Packet) error {
	if p.Size < 1 || p.Size > x.Room() {
		return fmt.Errorf("packet of %d bytes, room for %d: %w", p.Size, max(x.Room(), 0), transport.ErrFull)
	}
	r, err := transport.OpenWhole(ctx, p)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := x.begin(); err != nil {
		return err
	}
	head := binary.AppendUvarint(append(append(make([]byte, 0, recordHead), kindPacket), p.ID[:]...), uint64(p.Size))
	if err := x.write(head); err != nil {
		return err
	}
	for left := p.Size; left > 0; {
		room, err := x.room()
		if err != nil {
			return err
		}
		n, err := r.Read(room[:min(int64(len(room)), left)])
		x.took(n)
		if left -= int64(n); left > 0 && err != nil {
			// Its place is filled, so that what follows is found; its hash gives it away.
			return errors.Join(fmt.Errorf("read packet %s: %w", p.ID, err), x.fill(left))
		}
	}
	return nil
}

// fill writes zero bytes.
func (x *Writer) fill(n int64) error {
	for n > 0 {
		room, err := x.room()
		if err != nil {
			return err
		}
		k := int(min(int64(len(room)), n))
		clear(room[:k])
		x.took(k)
		n -= int64(k)
	}
	return nil
}

// begin notes that a packet begins here.
func (x *Writer) begin() error {
	if _, err := x.room(); err != nil {
		return err
	}
	if x.h.First == noPacket {
		x.h.First = uint32(x.n)
	}
	return nil
}

// room returns where the next content goes: a stripe that is full is written first.
func (x *Writer) room() ([]byte, error) {
	if x.n == x.h.whole() {
		if err := x.flush(false); err != nil {
			return nil, err
		}
	}
	return x.buf[x.n:x.h.whole()], nil
}

func (x *Writer) took(n int) {
	x.n += n
	x.content += int64(n)
}

func (x *Writer) write(b []byte) error {
	for len(b) > 0 {
		room, err := x.room()
		if err != nil {
			return err
		}
		n := copy(room, b)
		x.took(n)
		b = b[n:]
	}
	return nil
}

// flush writes the stripe.
func (x *Writer) flush(last bool) error {
	if x.err != nil {
		return x.err
	}
	h := x.h
	h.Last, h.Content = last, x.n
	size := h.payload()
	clear(x.buf[x.n : size*h.Data])
	shards := make([][]byte, h.Data+h.Parity)
	for i := range shards {
		shards[i] = x.buf[i*size : (i+1)*size]
	}
	if x.enc != nil {
		if err := x.enc.Encode(shards); err != nil {
			return fmt.Errorf("compute parity: %w", err)
		}
	}
	for i, s := range shards {
		h.Shard = i
		x.head = h.append(x.head[:0], s)
		for _, b := range [][]byte{x.head, s} {
			n, err := x.w.Write(b)
			x.out += int64(n)
			if err != nil {
				x.err = fmt.Errorf("write stream: %w", err)
				return x.err
			}
		}
	}
	x.h.Stripe++
	x.h.First = noPacket
	x.n = 0
	return nil
}

// Close writes the last stripe. Of a set without packets nothing is written.
func (x *Writer) Close() error {
	if x.n == 0 {
		return x.err
	}
	return x.flush(true)
}

// Link makes a transport.Link of a Writer: one contact that writes all that is due and fits.
type Link struct {
	W        *Writer
	Progress func(transport.Stats) // called after each packet; nil: nobody looks
}

// Run writes what st has and ends the set. A packet counts as sent when it was written, which is not custody: the station keeps it
// until a receipt comes. After an error the whole stream is worth nothing.
func (l Link) Run(ctx context.Context, st transport.Station) (transport.Stats, error) {
	var stats transport.Stats
	for {
		p, err := st.Next(ctx)
		if err != nil {
			return stats, fmt.Errorf("next packet: %w", err)
		}
		if p == nil {
			break
		}
		if err := l.W.Packet(ctx, p); err != nil {
			return stats, fmt.Errorf("write packet %s: %w", p.ID, err)
		}
		stats.PacketsOut++
		stats.BytesOut = l.W.Written()
		st.Sent(p)
		if l.Progress != nil {
			l.Progress(stats)
		}
	}
	err := l.W.Close()
	stats.BytesOut = l.W.Written()
	return stats, err
}
