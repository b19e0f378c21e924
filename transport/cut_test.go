package transport_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// smallExchange is a handful of packets both ways, one of them big enough to be offered.
func smallExchange() (down, up []*transport.Packet) {
	down = []*transport.Packet{
		transporttest.Packet(0, transporttest.Random(1, 90)),
		transporttest.Packet(1, transporttest.Random(2, 700)),
	}
	up = []*transport.Packet{
		transporttest.Packet(0, transporttest.Random(3, 60)),
		transporttest.Packet(1, transporttest.Random(4, 500)),
	}
	return down, up
}

// A contact that breaks at any byte is finished by the next one. Nothing is lost, nothing is reported as sent that
// did not arrive, and the second contact ends well.
func TestCutAtEveryByte(t *testing.T) {
	dirA, dirB := t.TempDir(), t.TempDir()
	for _, hang := range []bool{false, true} {
		for _, fromCaller := range []bool{true, false} {
			for at := int64(1); ; at++ {
				if !cutAt(t, dirA, dirB, at, fromCaller, hang) {
					if at < 700 {
						t.Errorf("the exchange is over after %d bytes", at)
					}
					break
				}
				if t.Failed() {
					t.Fatalf("cut at byte %d, from caller: %v, hang: %v", at, fromCaller, hang)
				}
			}
		}
	}
}

// cutAt reports whether the first contact was hurt by the cut at all.
func cutAt(t *testing.T, dirA, dirB string, at int64, fromCaller, hang bool) (hurt bool) {
	partials := func(dir string) *transport.Partials {
		p, err := transport.OpenPartials(dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pa, pb := partials(dirA), partials(dirB)
	defer pa.Close()
	defer pb.Close()
	synctest.Test(t, func(t *testing.T) {
		down, up := smallExchange()
		m := &meeting{
			caller: transporttest.NewStation(greeting("ship"), down...), callee: transporttest.NewStation(greeting("shore"), up...),
			callerOpt: transport.StreamOptions{Partials: pa, Inline: 256},
			calleeOpt: transport.StreamOptions{Partials: pb, Inline: 256},
		}
		line := transporttest.Line{Latency: 10 * time.Millisecond, Cut: at, Hang: hang}
		if fromCaller {
			m.ab, m.ba = line, transporttest.Line{Latency: 10 * time.Millisecond}
		} else {
			m.ba, m.ab = line, transporttest.Line{Latency: 10 * time.Millisecond}
		}
		m.run(t.Context())
		hurt = m.callerErr != nil || m.calleeErr != nil
		for _, p := range down {
			if m.caller.SentCount(p.ID) > 0 && m.callee.Received(p.ID) == 0 {
				t.Errorf("packet of %d bytes was reported as sent and has not arrived", p.Size)
			}
		}
		if m.took > 30*time.Minute {
			t.Errorf("a broken contact took %v", m.took)
		}
		m.caller.Requeue()
		m.callee.Requeue()
		m.ab, m.ba = transporttest.Line{}, transporttest.Line{}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, down...)
		transporttest.RequireReceived(t, m.caller, up...)
		if n := m.caller.Left() + m.callee.Left(); n != 0 {
			t.Errorf("%d packets left", n)
		}
		for _, dir := range []string{dirA, dirB} {
			if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
				t.Errorf("partial packets are left: %q", left)
			}
		}
	})
	return hurt
}

// A big packet over a line that breaks twenty times costs hardly more than its size.
func TestBigPacketOverABreakingLine(t *testing.T) {
	const size = 64 << 20
	partials := openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		p := transporttest.Packet(0, transporttest.Random(9, size))
		m := &meeting{
			caller: transporttest.NewStation("ship", p), callee: transporttest.NewStation("shore"),
			calleeOpt: transport.StreamOptions{Partials: partials},
		}
		random := rand.New(rand.NewPCG(7, 7))
		var received int64
		for range 20 {
			m.ab = transporttest.Line{BitRate: 8e6, Latency: 100 * time.Millisecond, Cut: 1 + random.Int64N(size/15)}
			m.run(t.Context())
			if m.callerErr == nil {
				break
			}
			received += m.calleeStats.BytesIn
			m.caller.Requeue()
		}
		m.ab = transporttest.Line{BitRate: 8e6}
		m.run(t.Context())
		m.mustEndWell(t)
		received += m.calleeStats.BytesIn
		transporttest.RequireReceived(t, m.callee, p)
		if m.callee.Received(p.ID) != 1 {
			t.Errorf("received %d times", m.callee.Received(p.ID))
		}
		if limit := int64(size * 105 / 100); received > limit {
			t.Errorf("%d bytes came for a packet of %d, want at most %d", received, size, limit)
		}
		t.Logf("%.4f bytes received per byte of the packet", float64(received)/size)
	})
}

// Bytes that a partial file never had in truth are found out, and the packet comes whole in the same contact.
func TestPoisonedPartial(t *testing.T) {
	dir := t.TempDir()
	p := transporttest.Packet(0, transporttest.Random(10, 300_000))
	for name, junk := range map[string][]byte{
		"some":     transporttest.Random(11, 100_000),
		"complete": transporttest.Random(12, 300_000),
		"too long": transporttest.Random(13, 400_000),
		"good":     transporttest.Random(10, 200_000),
		"empty":    {},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, p.ID.String()), junk, 0o600); err != nil {
				t.Fatal(err)
			}
			partials, err := transport.OpenPartials(dir, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			defer partials.Close()
			synctest.Test(t, func(t *testing.T) {
				m := &meeting{
					caller: transporttest.NewStation("ship", p), callee: transporttest.NewStation("shore"),
					calleeOpt: transport.StreamOptions{Partials: partials},
				}
				m.run(t.Context())
				m.mustEndWell(t)
				transporttest.RequireReceived(t, m.callee, p)
			})
		})
	}
}

// A flipped bit anywhere ends the contact at once; the next one carries everything.
func TestFlippedBits(t *testing.T) {
	for at := int64(1); at < 1200; at += 7 {
		synctest.Test(t, func(t *testing.T) {
			down, up := smallExchange()
			m := &meeting{
				caller: transporttest.NewStation(greeting("ship"), down...), callee: transporttest.NewStation(greeting("shore"), up...),
				ab: transporttest.Line{Flip: at},
			}
			m.caller.WantHello, m.callee.WantHello = greeting("shore"), greeting("ship")
			m.run(t.Context())
			for _, p := range down {
				if m.caller.SentCount(p.ID) > 0 && m.callee.Received(p.ID) == 0 {
					t.Errorf("byte %d: packet was reported as sent and has not arrived", at)
				}
			}
			if n := m.callee.Partial(); n != 0 {
				t.Errorf("byte %d: the station saw %d damaged packets", at, n)
			}
			m.caller.Requeue()
			m.callee.Requeue()
			m.ab = transporttest.Line{}
			m.run(t.Context())
			m.mustEndWell(t)
			transporttest.RequireReceived(t, m.callee, down...)
			transporttest.RequireReceived(t, m.caller, up...)
		})
	}
}
