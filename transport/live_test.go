package transport_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// A packet that becomes due while a big one is on its way overtakes it, even on a slow line.
func TestSmallOvertakesBig(t *testing.T) {
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		big := transporttest.Packet(1, transporttest.Random(1, 1<<20)) // 14 minutes at 9600 bit/s
		small := transporttest.Packet(1, transporttest.Random(2, 500))
		urgent := transporttest.Packet(0, transporttest.Random(3, 5000))
		m := &meeting{
			caller: transporttest.NewStation("ship", big), callee: transporttest.NewStation("shore"),
			ab:        transporttest.Line{BitRate: 9600, Latency: 300 * time.Millisecond},
			ba:        transporttest.Line{BitRate: 9600, Latency: 300 * time.Millisecond},
			callerOpt: transport.StreamOptions{Inline: 1024},
			calleeOpt: transport.StreamOptions{Partials: partials},
		}
		arrived := make(map[transport.ID]time.Time)
		m.callee.OnReceive = func(id transport.ID, _ int64) error { arrived[id] = time.Now(); return nil }
		var added time.Time
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(2 * time.Minute)
			added = time.Now()
			m.caller.Add(small, urgent)
		})
		m.run(t.Context())
		wg.Wait()
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, big, small, urgent)
		if d := arrived[small.ID].Sub(added); d > 15*time.Second {
			t.Errorf("the small packet took %v", d)
		}
		if d := arrived[urgent.ID].Sub(added); d > 20*time.Second {
			t.Errorf("the urgent packet took %v", d)
		}
		if !arrived[big.ID].After(arrived[urgent.ID]) {
			t.Error("the big packet arrived first")
		}
		if limit := int64(1<<20+5500) * 103 / 100; m.calleeStats.BytesIn > limit {
			t.Errorf("%d bytes on the line for %d of packets", m.calleeStats.BytesIn, 1<<20+5500)
		}
	})
}

// One mail of 500 bytes over 9600 bit/s with a slow turnaround is there in less than three seconds, contact over.
func TestOneMailOverAModem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meeting{
			caller: transporttest.NewStation(greeting("ship"), transporttest.Packet(0, transporttest.Random(1, 500))),
			callee: transporttest.NewStation(greeting("shore")),
			ab:     transporttest.Line{BitRate: 9600, Latency: 300 * time.Millisecond},
			ba:     transporttest.Line{BitRate: 9600, Latency: 300 * time.Millisecond},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		if m.took >= 3*time.Second {
			t.Errorf("took %v", m.took)
		}
	})
}

// What a packet calls forth (a receipt) travels in the same contact, without any waiting time.
func TestReceiptInTheSameContact(t *testing.T) {
	for _, size := range []int{300, 200_000} {
		partials := openPartials(t)
		synctest.Test(t, func(t *testing.T) {
			mail, receipt := transporttest.Packet(1, transporttest.Random(1, size)), transporttest.Packet(0, []byte("receipt, at least a head long...."))
			m := &meeting{
				caller: transporttest.NewStation(greeting("ship"), mail), callee: transporttest.NewStation(greeting("shore")),
				ab: transporttest.Line{Latency: time.Second, BitRate: 1e8}, ba: transporttest.Line{Latency: time.Second, BitRate: 1e8},
				calleeOpt: transport.StreamOptions{Partials: partials},
			}
			m.callee.OnReceive = func(transport.ID, int64) error { m.callee.Add(receipt); return nil }
			m.run(t.Context())
			m.mustEndWell(t)
			transporttest.RequireReceived(t, m.caller, receipt)
			if m.callee.Left() != 0 {
				t.Error("the receipt was not reported as sent")
			}
			limit := 4 * time.Second
			if size > 100_000 {
				limit = 6 * time.Second
			}
			if m.took > limit+time.Second/10 {
				t.Errorf("%d bytes: took %v on a line with a round trip of 2s", size, m.took)
			}
		})
	}
}

// New work that crosses the neighbour's hanging up is late: no error, and it is not taken for sent.
func TestNewWorkMeetsAClosedLine(t *testing.T) {
	for _, size := range []int{300, 200_000} {
		for _, after := range []time.Duration{1500 * time.Millisecond, 2 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				first, late := transporttest.Packet(0, transporttest.Random(1, 300)), transporttest.Packet(0, transporttest.Random(2, size))
				m := &meeting{
					caller: transporttest.NewStation("ship", first), callee: transporttest.NewStation("shore"),
					ab: transporttest.Line{Latency: time.Second}, ba: transporttest.Line{Latency: time.Second},
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					time.Sleep(after)
					m.caller.Add(late)
				})
				m.run(t.Context())
				wg.Wait()
				m.mustEndWell(t)
				transporttest.RequireReceived(t, m.callee, first)
				if m.callerStats.PacketsOut != 1 || m.caller.Left() != 1 {
					t.Errorf("%d bytes after %v: %d packets out, %d left", size, after, m.callerStats.PacketsOut, m.caller.Left())
				}
				if after < 2*time.Second && m.callerStats.Late != 1 {
					t.Errorf("%d bytes after %v: %d packets were late", size, after, m.callerStats.Late)
				}
			})
		}
	}
}

func TestLingerCarriesWhatComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := transporttest.Packet(0, []byte("late, but not too late for this contact"))
		m := &meeting{
			caller: transporttest.NewStation("ship"), callee: transporttest.NewStation("shore"),
			callerOpt: transport.StreamOptions{Linger: 10 * time.Minute},
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(7 * time.Minute)
			m.callee.Add(late)
		})
		m.run(t.Context())
		wg.Wait()
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.caller, late)
		if m.took < 17*time.Minute || m.took > 18*time.Minute {
			t.Errorf("took %v, want 10 minutes after the late packet", m.took)
		}
	})
}

func TestLingerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meeting{
			caller: transporttest.NewStation("ship"), callee: transporttest.NewStation("shore"),
			callerOpt: transport.StreamOptions{Linger: 24 * time.Hour},
			calleeOpt: transport.StreamOptions{MaxLinger: time.Minute},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		if m.took > 2*time.Minute {
			t.Errorf("took %v", m.took)
		}
	})
}

var errDiskFull = errors.New("disk is full")

// A node that cannot store anything says so, takes nothing more, and still gets rid of its own packets.
func TestFullReceiverStillSends(t *testing.T) {
	partials := openPartials(t)
	for _, size := range []int{400, 150_000} {
		synctest.Test(t, func(t *testing.T) {
			var down, up []*transport.Packet
			for i := range 30 {
				down = append(down, transporttest.Packet(0, transporttest.Random(uint64(i), size+i)))
				up = append(up, transporttest.Packet(0, transporttest.Random(uint64(100+i), 300)))
			}
			m := &meeting{
				caller: transporttest.NewStation("ship", down...), callee: transporttest.NewStation("shore", up...),
				ab: transporttest.Line{Latency: 20 * time.Millisecond, BitRate: 1e6}, ba: transporttest.Line{Latency: 20 * time.Millisecond, BitRate: 1e6},
				calleeOpt: transport.StreamOptions{Partials: partials},
			}
			m.callee.OnReceive = func(transport.ID, int64) error { return errDiskFull }
			m.run(t.Context())
			if !errors.Is(m.calleeErr, errDiskFull) {
				t.Errorf("callee: %v, want its own trouble", m.calleeErr)
			}
			if m.callerErr != nil {
				t.Errorf("caller: %v", m.callerErr)
			}
			transporttest.RequireReceived(t, m.caller, up...)
			if m.callee.Left() != 0 {
				t.Errorf("%d packets of the full node are left", m.callee.Left())
			}
			if n := m.caller.Left(); n != len(down) {
				t.Errorf("%d packets are left to be sent again, want %d", n, len(down))
			}
		})
	}
}

func TestRefusedPacketsDoNotStopTheRest(t *testing.T) {
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		bad, bigBad := transporttest.Packet(0, transporttest.Random(1, 100)), transporttest.Packet(0, transporttest.Random(2, 100_000))
		good, bigGood := transporttest.Packet(1, transporttest.Random(3, 100)), transporttest.Packet(1, transporttest.Random(4, 100_000))
		m := &meeting{
			caller: transporttest.NewStation("ship", bad, good, bigBad, bigGood), callee: transporttest.NewStation("shore"),
			calleeOpt: transport.StreamOptions{Partials: partials},
		}
		m.callee.OnReceive = func(id transport.ID, _ int64) error {
			if id == bad.ID || id == bigBad.ID {
				return transport.ErrRefused
			}
			return nil
		}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, good, bigGood)
		if m.calleeStats.Refused != 2 || m.caller.Left() != 0 {
			t.Errorf("callee %+v, caller has %d left", m.calleeStats, m.caller.Left())
		}
	})
}

func TestTooBigAndKnownPacketsAreNotSent(t *testing.T) {
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		huge := transporttest.Packet(0, transporttest.Random(1, 5<<20))
		known := transporttest.Packet(0, transporttest.Random(2, 2<<20))
		m := &meeting{
			caller: transporttest.NewStation("ship", known), callee: transporttest.NewStation("shore"),
			calleeOpt: transport.StreamOptions{Partials: partials, MaxSize: 4 << 20},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		m.caller.Add(huge, known)
		m.run(t.Context())
		m.mustEndWell(t)
		if m.calleeStats.BytesIn > 1000 {
			t.Errorf("%d bytes came", m.calleeStats.BytesIn)
		}
		if m.caller.SentCount(known.ID) != 2 || m.caller.SentCount(huge.ID) != 0 {
			t.Errorf("known: sent %d times, huge: %d", m.caller.SentCount(known.ID), m.caller.SentCount(huge.ID))
		}
	})
}

func TestWithoutRoomForPartials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big, small := transporttest.Packet(0, transporttest.Random(1, 1<<20)), transporttest.Packet(1, []byte("small enough to go without asking"))
		m := &meeting{caller: transporttest.NewStation("ship", big, small), callee: transporttest.NewStation("shore")}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, small)
		if m.caller.Left() != 1 {
			t.Errorf("%d packets left, want the big one", m.caller.Left())
		}
	})
}

// A packet whose bytes are not those of its ID stays here; the others go.
func TestDamagedOwnPacketIsPassedOver(t *testing.T) {
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		damaged, good := transporttest.Packet(0, transporttest.Random(1, 900)), transporttest.Packet(1, transporttest.Random(2, 900))
		bigDamaged := transporttest.Packet(0, transporttest.Random(3, 200_000))
		gone := transporttest.Packet(0, transporttest.Random(5, 700))
		damaged.Open = transporttest.Packet(0, transporttest.Random(4, 900)).Open
		bigDamaged.Open = transporttest.Packet(0, transporttest.Random(4, 200_000)).Open
		gone.Open = func(int64) (io.ReadCloser, error) { return nil, errors.New("file is gone") }
		m := &meeting{
			caller: transporttest.NewStation("ship", damaged, gone, bigDamaged, good), callee: transporttest.NewStation("shore"),
			calleeOpt: transport.StreamOptions{Partials: partials},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, good)
		if m.caller.Left() != 3 {
			t.Errorf("%d packets left, want the three broken ones", m.caller.Left())
		}
	})
}

// A big packet that turns out to be unreadable in the middle is withdrawn, and costs the others nothing.
func TestUnreadableBigPacketIsCancelled(t *testing.T) {
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		bad, good := transporttest.Packet(0, transporttest.Random(1, 400_000)), transporttest.Packet(1, transporttest.Random(2, 500_000))
		whole := bad.Open
		bad.Open = func(off int64) (io.ReadCloser, error) {
			r, err := whole(off)
			return io.NopCloser(io.LimitReader(r, 150_000-off)), err
		}
		m := &meeting{
			caller: transporttest.NewStation("ship", bad, good), callee: transporttest.NewStation("shore"),
			calleeOpt: transport.StreamOptions{Partials: partials},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, good)
		if m.caller.Left() != 1 {
			t.Errorf("%d packets left, want the unreadable one", m.caller.Left())
		}
		// Repaired, it goes on where it stopped.
		bad.Open = whole
		m.caller.Requeue()
		m.run(t.Context())
		m.mustEndWell(t)
		if m.callee.Received(bad.ID) != 1 || m.calleeStats.BytesIn > 290_000 {
			t.Errorf("received %d times, %d bytes came", m.callee.Received(bad.ID), m.calleeStats.BytesIn)
		}
	})
}

// A neighbour that puts off every big packet is offered a few of them only, and is still listened to.
func TestManyPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down, up []*transport.Packet
		for i := range 40 {
			down = append(down, transporttest.Packet(0, transporttest.Random(uint64(i), 80_000)))
			up = append(up, transporttest.Packet(0, transporttest.Random(uint64(100+i), 3000)))
		}
		m := &meeting{
			caller: transporttest.NewStation("ship", down...), callee: transporttest.NewStation("shore", up...),
			ba: transporttest.Line{BitRate: 9600},
		}
		m.run(t.Context())
		if m.calleeErr != nil || m.callerErr == nil {
			t.Errorf("caller: %v, callee: %v", m.callerErr, m.calleeErr)
		}
		transporttest.RequireReceived(t, m.caller, up...)
	})
}

// A line of 300 bit/s moves a slice in far more than the idle time, and nobody gives up.
func TestVerySlowLine(t *testing.T) {
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		down := transporttest.Packet(0, transporttest.Random(1, 64<<10)) // goes as one frame: half an hour
		up := transporttest.Packet(0, transporttest.Random(2, 90_000))
		slow := transporttest.Line{BitRate: 300, Latency: 2 * time.Second, Buffer: 64}
		m := &meeting{
			caller: transporttest.NewStation(greeting("ship"), down), callee: transporttest.NewStation(greeting("shore"), up),
			ab: slow, ba: slow,
			callerOpt: transport.StreamOptions{Partials: partials}, calleeOpt: transport.StreamOptions{Partials: partials},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, down)
		transporttest.RequireReceived(t, m.caller, up)
		t.Logf("took %v", m.took)
	})
}

// A neighbour that takes its time with a packet (fsync on a slow disk) is not taken for dead.
func TestSlowStation(t *testing.T) {
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		big := transporttest.Packet(0, transporttest.Random(1, 100_000))
		var small []*transport.Packet
		for i := range 12 {
			small = append(small, transporttest.Packet(1, transporttest.Random(uint64(i+10), 60_000)))
		}
		m := &meeting{
			caller: transporttest.NewStation("ship", append(small, big)...), callee: transporttest.NewStation("shore"),
			calleeOpt: transport.StreamOptions{Partials: partials},
		}
		m.callee.OnReceive = func(transport.ID, int64) error { time.Sleep(5 * time.Minute); return nil }
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, append(small, big)...)
	})
}

// A neighbour that takes every byte and never says anything, or takes nothing at all, holds nobody for ever.
func TestHungNeighbourTimesOut(t *testing.T) {
	for name, lines := range map[string][2]transporttest.Line{
		"silent":           {{}, {Cut: -1, Hang: true}},
		"takes nothing":    {{Cut: -1, Hang: true}, {Cut: -1, Hang: true}},
		"after greeting":   {{}, {Cut: 82, Hang: true}},
		"slow and silent":  {{BitRate: 1200}, {Cut: 40, Hang: true}},
		"in first packets": {{BitRate: 9600, Cut: 3000, Hang: true}, {BitRate: 9600, Cut: 500, Hang: true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var down []*transport.Packet
				for i := range 50 {
					down = append(down, transporttest.Packet(0, transporttest.Random(uint64(i), 10_000)))
				}
				m := &meeting{
					caller: transporttest.NewStation(greeting("ship"), down...),
					callee: transporttest.NewStation(greeting("shore"), transporttest.Packet(0, transporttest.Random(99, 1000))),
					ab:     lines[0], ba: lines[1],
				}
				m.run(t.Context())
				if m.callerErr == nil {
					t.Error("the caller noticed nothing")
				}
				if m.took > 25*time.Minute {
					t.Errorf("took %v", m.took)
				}
				t.Logf("took %v: %v, %v", m.took, m.callerErr, m.calleeErr)
			})
		})
	}
}

func TestCancelEndsAContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		m := &meeting{
			caller: transporttest.NewStation("ship"), callee: transporttest.NewStation("shore"),
			callerOpt: transport.StreamOptions{Linger: time.Hour},
		}
		m.run(ctx)
		if !errors.Is(m.callerErr, context.DeadlineExceeded) || m.took != time.Minute {
			t.Errorf("caller: %v after %v", m.callerErr, m.took)
		}
	})
}

// Thousands of small packets need few acknowledgements.
func TestManySmall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down []*transport.Packet
		sum := int64(0)
		for i := range 6000 {
			down = append(down, transporttest.Packet(0, transporttest.Random(uint64(i), 100+i%400)))
			sum += down[i].Size
		}
		m := &meeting{
			caller: transporttest.NewStation("ship", down...), callee: transporttest.NewStation("shore"),
			ab: transporttest.Line{Latency: 300 * time.Millisecond, BitRate: 1e8}, ba: transporttest.Line{Latency: 300 * time.Millisecond, BitRate: 1e8},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, down...)
		if m.caller.Left() != 0 {
			t.Errorf("%d left", m.caller.Left())
		}
		if over := m.callerStats.BytesOut - sum; over > 8*6000 {
			t.Errorf("%d bytes of framing for 6000 packets", over)
		}
		if m.callerStats.BytesIn > 2000 {
			t.Errorf("%d bytes of acknowledgements", m.callerStats.BytesIn)
		}
		if m.took > 5*time.Second {
			t.Errorf("took %v", m.took)
		}
	})
}
