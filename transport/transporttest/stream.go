package transporttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"mochila/transport"
)

// TestStream is the conformance suite of what a Dialer opens. pair returns the two ends of one stream.
func TestStream(t *testing.T, pair func(t *testing.T) (a, b transport.Stream)) {
	for name, test := range map[string]func(*testing.T, transport.Stream, transport.Stream){
		"both ways":            streamBothWays,
		"close":                streamClose,
		"close wakes a reader": streamCloseWakes,
		"read deadline":        streamReadDeadline,
		"write deadline":       streamWriteDeadline,
		"link":                 streamLink,
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			defer a.Close()
			defer b.Close()
			test(t, a, b)
		})
	}
}

// TestDialer is the conformance suite of a Dialer. accept returns the far end of the stream dialled last.
func TestDialer(t *testing.T, d transport.Dialer, accept func(t *testing.T) transport.Stream) {
	TestStream(t, func(t *testing.T) (a, b transport.Stream) {
		t.Helper()
		a, err := d.Dial(t.Context())
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		return a, accept(t)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if s, err := d.Dial(ctx); err == nil {
			s.Close()
			t.Error("dialled in spite of a cancelled context")
		}
	})
}

func streamBothWays(t *testing.T, a, b transport.Stream) {
	const size = 3 << 20
	var wg sync.WaitGroup
	send := func(s transport.Stream, seed uint64) {
		wg.Go(func() {
			data := Random(seed, size)
			for len(data) > 0 {
				n := min(len(data), 10_007)
				if m, err := s.Write(data[:n]); err != nil || m != n {
					t.Errorf("write: %d of %d, %v", m, n, err)
					return
				}
				data = data[n:]
			}
		})
	}
	receive := func(s transport.Stream, seed uint64) {
		wg.Go(func() {
			got := make([]byte, size)
			if _, err := io.ReadFull(s, got); err != nil {
				t.Errorf("read: %v", err)
			} else if !bytes.Equal(got, Random(seed, size)) {
				t.Error("other bytes came")
			}
		})
	}
	send(a, 1)
	send(b, 2)
	receive(a, 2)
	receive(b, 1)
	wg.Wait()
}

func streamClose(t *testing.T, a, b transport.Stream) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := a.Write([]byte("last words")); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	got := make([]byte, 10)
	if _, err := io.ReadFull(b, got); err != nil || string(got) != "last words" {
		t.Errorf("read %q, %v: what was written before Close must arrive", got, err)
	}
	if n, err := b.Read(got); n != 0 || err == nil {
		t.Errorf("read %d bytes after the end, %v", n, err)
	}
	wg.Wait()
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("wrote to a closed stream")
	}
}

func streamCloseWakes(t *testing.T, a, b transport.Stream) {
	done := make(chan error)
	go func() {
		_, err := a.Read(make([]byte, 1))
		done <- err
	}()
	time.Sleep(10 * time.Millisecond) // the reader may or may not wait yet: both must work
	a.Close()
	if err := <-done; err == nil {
		t.Error("read from a closed stream")
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

func streamReadDeadline(t *testing.T, a, b transport.Stream) {
	for range 2 {
		if err := a.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := a.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
			t.Fatalf("read %d bytes, %v, want a timeout", n, err)
		}
	}
	if err := a.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := b.Write([]byte("x")); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	if n, err := a.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("after a timeout, read %d bytes, %v", n, err)
	}
	wg.Wait()
}

// streamWriteDeadline fills the stream until a write times out; the bytes it reports must arrive, and no others.
func streamWriteDeadline(t *testing.T, a, b transport.Stream) {
	data := Random(5, 64<<20)
	sent := 0
	for sent < len(data) {
		if err := a.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := a.Write(data[sent:min(sent+1<<20, len(data))])
		sent += n
		if err != nil {
			if !isTimeout(err) {
				t.Fatalf("write: %v, want a timeout", err)
			}
			break
		}
	}
	if sent == len(data) {
		t.Fatal("64 MiB were taken that nobody read")
	}
	more := data[sent : sent+1000]
	var wg sync.WaitGroup
	wg.Go(func() {
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		if n, err := a.Write(more); n != len(more) || err != nil {
			t.Errorf("after a timeout, wrote %d bytes, %v", n, err)
		}
	})
	got := make([]byte, sent+len(more))
	b.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, data[:len(got)]) {
		t.Errorf("read %d of %d bytes, or others: %v", n, len(got), err)
	}
	wg.Wait()
}

// streamLink runs a contact over the stream.
func streamLink(t *testing.T, a, b transport.Stream) {
	partials, err := transport.OpenPartials(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer partials.Close()
	down := []*transport.Packet{Packet(0, Random(10, 100)), Packet(0, Random(11, 64<<10)), Packet(1, Random(12, 5<<20))}
	up := []*transport.Packet{Packet(0, Random(13, 200)), Packet(1, Random(14, 3<<20))}
	caller, callee := NewStation("caller", down...), NewStation("callee", up...)
	o := transport.StreamOptions{Partials: partials}
	done := make(chan error)
	go func() {
		_, err := transport.Answer(t.Context(), b, callee, o)
		done <- err
	}()
	link := transport.NewStreamLink(DialFunc(func() (transport.Stream, error) { return a, nil }), o)
	if _, err := link.Run(t.Context(), caller); err != nil {
		t.Errorf("caller: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("callee: %v", err)
	}
	RequireReceived(t, callee, down...)
	RequireReceived(t, caller, up...)
	if n := caller.Left() + callee.Left(); n != 0 {
		t.Errorf("%d packets were not reported as sent", n)
	}
}

// TestSubmitter is the conformance suite of a Submitter. open returns one that works, and a function that returns
// the bytes of all packets that have arrived at its far end by then, in any order.
func TestSubmitter(t *testing.T, open func(t *testing.T) (s transport.Submitter, arrived func() [][]byte)) {
	t.Run("all arrive", func(t *testing.T) {
		s, arrived := open(t)
		var due []*transport.Packet
		for i, n := range []int{1, 33, 1000, 65537, 2 << 20} {
			due = append(due, Packet(0, Random(uint64(40+i), n)))
		}
		st := NewStation("", due...)
		stats, err := transport.NewSubmitLink(s, transport.SubmitOptions{}).Run(t.Context(), st)
		if err != nil || stats.PacketsOut != len(due) || st.Left() != 0 {
			t.Fatalf("%+v, %v, %d left", stats, err, st.Left())
		}
		got := make(map[string]bool)
		for _, b := range arrived() {
			got[string(b)] = true
		}
		for i, n := range []int{1, 33, 1000, 65537, 2 << 20} {
			if !got[string(Random(uint64(40+i), n))] {
				t.Errorf("the packet of %d bytes did not arrive", n)
			}
		}
		if len(got) != len(due) {
			t.Errorf("%d different packets arrived, want %d", len(got), len(due))
		}
	})
	t.Run("damaged packets are not submitted", func(t *testing.T) {
		s, arrived := open(t)
		damaged := Packet(0, Random(50, 5000))
		damaged.Open = Packet(0, Random(51, 5000)).Open
		short := Packet(0, Random(52, 5000))
		short.Open = Packet(0, Random(52, 4000)).Open
		st := NewStation("", damaged, short)
		_, err := transport.NewSubmitLink(s, transport.SubmitOptions{}).Run(t.Context(), st)
		if err == nil || st.SentCount(damaged.ID)+st.SentCount(short.ID) != 0 {
			t.Errorf("sent, or no error: %v", err)
		}
		if n := len(arrived()); n != 0 {
			t.Errorf("%d packets arrived", n)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		s, arrived := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Submit(ctx, Packet(0, Random(53, 100))); err == nil {
			t.Error("submitted in spite of a cancelled context")
		}
		if n := len(arrived()); n != 0 {
			t.Errorf("%d packets arrived", n)
		}
	})
}
