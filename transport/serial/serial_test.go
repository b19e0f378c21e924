package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// pair opens a connection over a simulated line.
func pair(r transporttest.Radio, o Options) (caller transport.Stream, callee func() transport.Stream, end func()) {
	a, b := r.Ports()
	l := Listen(b, o)
	caller = Call(a, o)
	return caller, func() transport.Stream {
		s, err := l.Accept(context.Background())
		if err != nil {
			panic(err)
		}
		return s
	}, func() { l.Close() }
}

func TestFrames(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		f := frame{t: frameType(1 + r.IntN(int(frameLimit)-1)), caller: r.IntN(2) == 0, conn: uint16(r.Uint32()), off: r.Uint32()}
		switch f.t {
		case frameData:
			f.data = make([]byte, 1+r.IntN(maxData))
			for i := range f.data {
				f.data[i] = byte(r.IntN(3))
			}
		case frameAck, frameTurn, frameMore:
			at := f.off
			for range r.IntN(maxRuns + 1) {
				x := run{at + 1 + uint32(r.IntN(300)), 1 + uint32(r.IntN(300))}
				f.runs = append(f.runs, x)
				at = x.from + x.n
			}
			if at-f.off > window {
				continue
			}
		case frameReset:
			f.off = 0
		}
		wire := f.append(nil)
		if len(wire) > maxWire || bytes.IndexByte(wire, 0) != len(wire)-1 {
			t.Fatalf("%d bytes: %x", len(wire), wire)
		}
		got, err := parseFrame(wire[:len(wire)-1])
		if err != nil || got.t != f.t || got.caller != f.caller || got.conn != f.conn || got.off != f.off || !bytes.Equal(got.data, f.data) || !slices.Equal(got.runs, f.runs) {
			t.Fatalf("%+v became %+v, %v", f, got, err)
		}
		wire[r.IntN(len(wire)-1)] ^= 1 << r.IntN(8)
		if got, err := parseFrame(wire[:len(wire)-1]); err == nil {
			t.Fatalf("a spoiled frame was taken: %+v", got)
		}
	}
}

func FuzzFrame(f *testing.F) {
	for _, x := range []frame{{t: frameData, conn: 7, off: 9, data: []byte("hi")}, {t: frameTurn, off: 5, runs: []run{{8, 3}, {20, 1}}}, {t: frameReset, conn: 1}, {t: frameEnd, off: 1 << 31}} {
		wire := x.append(nil)
		f.Add(wire[:len(wire)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseFrame(b)
		if err != nil {
			return
		}
		again := x.append(nil)
		if y, err := parseFrame(again[:len(again)-1]); err != nil || fmt.Sprint(x) != fmt.Sprint(y) {
			t.Errorf("%x: %+v became %+v", b, x, y)
		}
	})
}

// The flows of both directions, without a line: frames are lost, repeated and split, and every byte arrives once, in order.
func TestFlow(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 2))
		data := transporttest.Random(seed, r.IntN(20_000))
		var o outgoing
		var i incoming
		o.acked, o.next, i.next = 1<<32-5000, 1<<32-5000, 1<<32-5000 // offsets go round
		var got []byte
		rest := data
		for burst := 1; !(o.ended && o.idle()); burst++ {
			if burst > 100_000 {
				t.Fatalf("seed %d does not end", seed)
			}
			n := min(len(rest), r.IntN(5000))
			o.buf = append(o.buf, rest[:n]...)
			rest = rest[n:]
			o.ended = len(rest) == 0
			for range 1 + r.IntN(60) {
				off, b := o.take(burst)
				if b == nil {
					break
				}
				for range min(r.IntN(8), 2) { // one in eight is lost, most come twice
					i.take(off, b)
				}
			}
			if o.ended && o.unsent() == 0 && o.endOut == 0 && !o.endAck {
				o.endOut = burst
				if r.IntN(2) == 0 {
					i.finish(o.next)
				}
			}
			got = append(got, i.ready...)
			i.ready = nil
			if r.IntN(3) > 0 {
				f := frame{t: frameTurn}
				f.off, f.runs = i.account()
				o.acknowledge(&f, burst, false)
			}
		}
		if !bytes.Equal(got, data) || !i.done {
			t.Fatalf("seed %d: %d bytes of %d, done %v", seed, len(got), len(data), i.done)
		}
	}
}

func lines() map[string]struct {
	transporttest.Radio
	o Options
} {
	type line = struct {
		transporttest.Radio
		o Options
	}
	radio := func(rate int, errors float64, turn time.Duration) transporttest.Radio {
		return transporttest.Radio{Seed: uint64(rate), BitRate: rate, BitErrors: errors, Half: true, Turnaround: turn, Latency: 20 * time.Millisecond}
	}
	return map[string]line{
		"9600 half":          {radio(9600, 0, time.Second), Options{Baud: 9600, Turnaround: time.Second}},
		"9600 half, dirty":   {radio(9600, 3e-4, time.Second), Options{Baud: 9600, Turnaround: time.Second}},
		"1200 half, filthy":  {radio(1200, 2e-3, 300*time.Millisecond), Options{Baud: 1200, Turnaround: 300 * time.Millisecond}},
		"300 half, dirty":    {radio(300, 3e-4, 2*time.Second), Options{Baud: 300, Turnaround: 2 * time.Second}},
		"9600 half, no wait": {radio(9600, 1e-4, 0), Options{Baud: 9600}},
		"9600 full":          {transporttest.Radio{Seed: 1, BitRate: 9600, Latency: 50 * time.Millisecond}, Options{Baud: 9600, Full: true}},
		"9600 full, dirty":   {transporttest.Radio{Seed: 2, BitRate: 9600, BitErrors: 5e-4, Lose: 1e-3, Noise: 1e-3, Latency: 300 * time.Millisecond}, Options{Baud: 9600, Full: true}},
		"300 full, dirty":    {transporttest.Radio{Seed: 3, BitRate: 300, BitErrors: 5e-4, Latency: time.Second}, Options{Baud: 300, Full: true}},
	}
}

// Bytes both ways arrive whole, in order, and the ends are seen; how much of the line is used is told.
func TestBothWays(t *testing.T) {
	for name, x := range lines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				size := 60 * x.BitRate / 10 // a minute's worth
				a, accept, end := pair(x.Radio, x.o)
				down, up := transporttest.Random(1, size), transporttest.Random(2, size/10)
				var wg sync.WaitGroup
				start := time.Now()
				var took [2]time.Duration
				wg.Go(func() {
					if _, err := a.Write(down); err != nil {
						t.Errorf("caller writes: %v", err)
					}
					got, err := readAll(a, len(up))
					if err != nil || !bytes.Equal(got, up) {
						t.Errorf("caller got %d bytes of %d, %v", len(got), len(up), err)
					}
					took[0] = time.Since(start)
					a.Close()
				})
				b := accept()
				wg.Go(func() {
					if _, err := b.Write(up); err != nil {
						t.Errorf("callee writes: %v", err)
					}
					got, err := readAll(b, len(down))
					if err != nil || !bytes.Equal(got, down) {
						t.Errorf("callee got %d bytes of %d, %v", len(got), len(down), err)
					}
					took[1] = time.Since(start)
					if n, err := b.Read(make([]byte, 1)); err != io.EOF {
						t.Errorf("at the end: %d bytes, %v", n, err)
					}
					b.Close()
				})
				wg.Wait()
				closed := time.Since(start)
				end()
				t.Logf("a minute's worth down and six seconds up took %v and %v, closed after %v", took[1], took[0], closed)
				if limit := 5 * time.Minute; closed > limit && !strings.Contains(name, "filthy") || closed > 20*time.Minute {
					t.Errorf("took %v", closed)
				}
			})
		})
	}
}

func readAll(s io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	k, err := io.ReadFull(s, b)
	return b[:k], err
}

// Contacts of the link over each line: packets both ways, small and big.
func TestLink(t *testing.T) {
	for name, x := range lines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partials, err := transport.OpenPartials(t.TempDir(), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				var down, up []*transport.Packet
				for i := range 3 {
					down = append(down, transporttest.Packet(0, transporttest.Random(uint64(i), 300)))
					up = append(up, transporttest.Packet(0, transporttest.Random(uint64(i+50), 200)))
				}
				down = append(down, transporttest.Packet(1, transporttest.Random(9, 6000)))
				ship, shore := transporttest.NewStation("ship", down...), transporttest.NewStation("shore", up...)
				ship.WantHello, shore.WantHello = "shore", "ship"
				pa, pb := x.Radio.Ports()
				l := Listen(pb, x.o)
				var wg sync.WaitGroup
				so := transport.StreamOptions{Partials: partials, Inline: 1024, Idle: 10 * time.Minute, Greet: 5 * time.Minute}
				wg.Go(func() {
					s, err := l.Accept(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := transport.Answer(context.Background(), s, shore, so); err != nil {
						t.Errorf("callee: %v", err)
					}
				})
				d := transporttest.DialFunc(func() (transport.Stream, error) { return Call(pa, x.o), nil })
				start := time.Now()
				st, err := transport.NewStreamLink(d, so).Run(context.Background(), ship)
				if err != nil {
					t.Errorf("caller: %v", err)
				}
				took := time.Since(start)
				wg.Wait()
				l.Close()
				transporttest.RequireReceived(t, shore, down...)
				transporttest.RequireReceived(t, ship, up...)
				t.Logf("%d bytes out, %d in, took %v", st.BytesOut, st.BytesIn, took)
			})
		})
	}
}

// A first packet needs no answer: it is there after the time that it takes on the air.
func TestFirstFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, accept, end := pair(transporttest.Radio{BitRate: 9600, Half: true, Turnaround: time.Second}, Options{Baud: 9600, Turnaround: time.Second})
		start := time.Now()
		flight := transporttest.Random(1, 600)
		go a.Write(flight)
		b := accept()
		if got, err := readAll(b, len(flight)); err != nil || !bytes.Equal(got, flight) {
			t.Error(err)
		}
		if took := time.Since(start); took > 700*time.Millisecond {
			t.Errorf("took %v, on the air %v", took, 600*time.Second/960)
		}
		var wg sync.WaitGroup
		wg.Go(func() { a.Close() })
		wg.Go(func() { b.Close() })
		wg.Wait()
		end()
	})
}

// A caller that comes again after a crash is answered, and the connection of before is over.
func TestCallsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pa, pb := transporttest.Radio{BitRate: 9600, Half: true}.Ports()
		l := Listen(pb, Options{})
		first := newLine(pa, Options{}, false)
		c := newConn(first, 4711)
		c.turn = true
		first.conn = c
		c.start()
		c.Write([]byte("first"))
		s1, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readAll(s1, 5); err != nil || string(got) != "first" {
			t.Error(string(got), err)
		}
		// Its program dies; the port is opened anew.
		second := newConn(first, 815)
		second.turn = true
		first.mu.Lock()
		c.end(errors.New("killed"))
		first.conn = second
		first.mu.Unlock()
		second.start()
		second.Write([]byte("second"))
		s2, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readAll(s2, 6); err != nil || string(got) != "second" {
			t.Error(string(got), err)
		}
		if _, err := s1.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "another connection") {
			t.Errorf("the old connection: %v", err)
		}
		s1.Close()
		var wg sync.WaitGroup
		wg.Go(func() { second.Close() })
		wg.Go(func() { s2.Close() })
		wg.Wait()
		first.close()
		l.Close()
	})
}

// A line without an answer says so, and tells silence from noise.
func TestNobodyAnswers(t *testing.T) {
	for want, noise := range map[string]float64{"nothing was heard": 0, "is the speed right": 1} {
		for _, full := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				pa, pb := transporttest.Radio{BitRate: 9600}.Ports()
				stop := make(chan struct{})
				var wg sync.WaitGroup
				if noise > 0 {
					wg.Go(func() {
						for i := range uint64(100) {
							pb.Write(transporttest.Random(i, 50))
							time.Sleep(time.Second)
							select {
							case <-stop:
								return
							default:
							}
						}
					})
				}
				s := Call(pa, Options{Name: "ttyX", Full: full})
				start := time.Now()
				s.Write([]byte("hello"))
				_, err := s.Read(make([]byte, 1))
				if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "ttyX") {
					t.Errorf("full %v: %v", full, err)
				}
				if took := time.Since(start); took > 2*time.Minute {
					t.Errorf("took %v", took)
				}
				s.Close()
				close(stop)
				wg.Wait()
				pb.Close()
			})
		}
	}
}
