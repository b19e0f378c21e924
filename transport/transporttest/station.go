package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"mochila/internal/envelope"
	"mochila/transport"
)

// Packet makes a packet of these bytes.
func Packet(class uint8, data []byte) *transport.Packet {
	return &transport.Packet{
		ID: envelope.SumOf(data), Size: int64(len(data)), Class: class,
		Open: func(off int64) (io.ReadCloser, error) {
			if off < 0 || off > int64(len(data)) {
				return nil, fmt.Errorf("open at %d of %d", off, len(data))
			}
			return io.NopCloser(bytes.NewReader(data[off:])), nil
		},
	}
}

// Random returns size bytes that depend on the seed alone.
func Random(seed uint64, size int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, size)
	rand.NewChaCha8(key).Read(b)
	return b
}

// maxKept is the size up to which a Station keeps the bytes of a packet for Data.
const maxKept = 1 << 20

// Station is a transport.Greeter that hands out the packets it was given and records what it receives. The zero
// value is not usable: call NewStation.
//
// Packets that were handed out and never reported as sent come back with Requeue, which is what a real station does
// at the end of a contact.
type Station struct {
	// Hello is this station's greeting. WantHello, if not empty, is the only greeting it accepts.
	Hello, WantHello string
	// OnReceive, if set, is asked after a packet was read whole; its error is Receive's. Set it before use.
	OnReceive func(id transport.ID, size int64) error
	// OnRead, if set, is called when a packet is about to be read and returns what it is read from. Set it before use.
	OnRead func(size int64, r io.Reader) io.Reader

	more chan struct{}

	mu       sync.Mutex
	due      []*transport.Packet
	out      map[transport.ID]*transport.Packet
	sent     map[transport.ID]int
	received map[transport.ID]int
	data     map[transport.ID][]byte
	heads    map[string]int64
	finished map[transport.ID]bool
	partial  int
	nexts    int
}

var _ transport.Greeter = (*Station)(nil)

// NewStation returns a Station that greets with hello and has these packets to send.
func NewStation(hello string, due ...*transport.Packet) *Station {
	s := &Station{
		Hello: hello, more: make(chan struct{}, 1),
		out:      make(map[transport.ID]*transport.Packet),
		sent:     make(map[transport.ID]int),
		received: make(map[transport.ID]int),
		data:     make(map[transport.ID][]byte),
		heads:    make(map[string]int64),
		finished: make(map[transport.ID]bool),
	}
	s.Add(due...)
	return s
}

// Add gives the station more packets to send.
func (s *Station) Add(due ...*transport.Packet) {
	s.mu.Lock()
	s.due = append(s.due, due...)
	slices.SortStableFunc(s.due, func(a, b *transport.Packet) int {
		if a.Class != b.Class {
			return int(a.Class) - int(b.Class)
		}
		return int(min(max(a.Size-b.Size, -1), 1))
	})
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// Requeue makes every packet due again that was handed out and not reported as sent; it returns how many.
func (s *Station) Requeue() int {
	s.mu.Lock()
	back := slices.Collect(maps.Values(s.out))
	clear(s.out)
	s.mu.Unlock()
	s.Add(back...)
	return len(back)
}

// Finish makes the station say that a packet is no longer needed on the carrier.
func (s *Station) Finish(id transport.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished[id] = true
}

// Received returns how often a packet was received whole.
func (s *Station) Received(id transport.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received[id]
}

// Count returns how many different packets were received whole.
func (s *Station) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.received)
}

// Data returns the bytes of a received packet of at most 1 MiB.
func (s *Station) Data(id transport.ID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data[id]
}

// SentCount returns how often a packet was reported as sent.
func (s *Station) SentCount(id transport.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[id]
}

// Left returns how many packets are not reported as sent yet.
func (s *Station) Left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.due) + len(s.out)
}

// Partial returns how many packets began to come and did not come whole.
func (s *Station) Partial() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.partial
}

// Greeting implements transport.Greeter.
func (s *Station) Greeting(context.Context) ([]byte, error) { return []byte(s.Hello), nil }

// Greeted implements transport.Greeter.
func (s *Station) Greeted(_ context.Context, hello []byte) error {
	if s.WantHello != "" && string(hello) != s.WantHello {
		return fmt.Errorf("greeting is %q, want %q", hello, s.WantHello)
	}
	return nil
}

// Admit implements transport.Reception: the one caller it knows is WantHello.
func (s *Station) Admit(ctx context.Context, hello []byte) (transport.Greeter, error) {
	if err := s.Greeted(ctx, hello); err != nil {
		return nil, err
	}
	return s, nil
}

// Next implements transport.Station.
func (s *Station) Next(ctx context.Context) (*transport.Packet, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nexts++
	if len(s.due) == 0 {
		return nil, nil
	}
	p := s.due[0]
	s.due = s.due[1:]
	s.out[p.ID] = p
	return p, nil
}

// More implements transport.Station.
func (s *Station) More() <-chan struct{} { return s.more }

// Sent implements transport.Station.
func (s *Station) Sent(p *transport.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[p.ID]++
	delete(s.out, p.ID)
}

// Finished implements transport.Station.
func (s *Station) Finished(id transport.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finished[id]
}

// Known implements transport.Station: a packet is known when one with this head and size was received.
func (s *Station) Known(head []byte, size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.heads[string(head)]
	return ok && known == size
}

// Receive implements transport.Station. It reads all, and records nothing of a packet that does not come whole.
func (s *Station) Receive(ctx context.Context, size int64, r io.Reader) error {
	if s.OnRead != nil {
		r = s.OnRead(size, r)
	}
	sum := envelope.NewSum()
	var kept bytes.Buffer
	w := io.Writer(sum)
	if size <= maxKept {
		w = io.MultiWriter(sum, &kept)
	}
	head := make([]byte, min(size, transport.HeadSize))
	n, err := io.ReadFull(r, head)
	if err == nil {
		w.Write(head)
		var m int64
		m, err = io.Copy(w, r)
		n += int(m)
	}
	if err == nil && int64(n) != size {
		err = fmt.Errorf("got %d of %d bytes without an error", n, size)
	}
	id := transport.ID(sum.Sum(nil))
	if err == nil && s.OnReceive != nil {
		err = s.OnReceive(id, size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.partial++
		if errors.Is(err, transport.ErrIncomplete) {
			return transport.ErrIncomplete
		}
		return err
	}
	s.received[id]++
	s.heads[string(head)] = size
	if size <= maxKept {
		s.data[id] = kept.Bytes()
	}
	return nil
}

// RequireReceived fails the test unless s has received each packet at least once, and nothing else.
func RequireReceived(t testing.TB, s *Station, want ...*transport.Packet) {
	t.Helper()
	for _, p := range want {
		if s.Received(p.ID) == 0 {
			t.Errorf("packet %s of %d bytes was not received", p.ID, p.Size)
		}
	}
	if n := s.Count(); n != len(want) {
		t.Errorf("%d different packets were received, want %d", n, len(want))
	}
}
