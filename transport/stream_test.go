package transport_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// meeting is one contact between two stations over a simulated line.
type meeting struct {
	caller, callee           *transporttest.Station
	ab, ba                   transporttest.Line
	callerOpt, calleeOpt     transport.StreamOptions
	callerStats, calleeStats transport.Stats
	callerErr, calleeErr     error
	took                     time.Duration
}

func (m *meeting) run(ctx context.Context) {
	began := time.Now()
	a, b := transporttest.Pipe(m.ab, m.ba)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.calleeStats, m.calleeErr = transport.Answer(ctx, b, m.callee, m.calleeOpt)
	}()
	link := transport.NewStreamLink(transporttest.DialFunc(func() (transport.Stream, error) { return a, nil }), m.callerOpt)
	m.callerStats, m.callerErr = link.Run(ctx, m.caller)
	<-done
	m.took = time.Since(began)
}

func (m *meeting) mustEndWell(t *testing.T) {
	t.Helper()
	if m.callerErr != nil || m.calleeErr != nil {
		t.Fatalf("caller: %v, callee: %v", m.callerErr, m.calleeErr)
	}
}

func openPartials(t *testing.T) *transport.Partials {
	t.Helper()
	p, err := transport.OpenPartials(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func greeting(name string) string { return fmt.Sprintf("%-70s", name) }

func TestIdleContactIsSmallAndShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meeting{
			caller: transporttest.NewStation(greeting("ship")), callee: transporttest.NewStation(greeting("shore")),
			ab: transporttest.Line{Latency: time.Second}, ba: transporttest.Line{Latency: time.Second},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		if sum := m.callerStats.BytesOut + m.callerStats.BytesIn; sum >= 200 {
			t.Errorf("an idle contact took %d bytes, want less than 200", sum)
		}
		if m.took > 3*time.Second+100*time.Millisecond {
			t.Errorf("took %v on a line with a round trip of 2s", m.took)
		}
	})
}

func TestSmallAndBigBothWays(t *testing.T) {
	partialsA, partialsB := openPartials(t), openPartials(t)
	synctest.Test(t, func(t *testing.T) {
		var down, up []*transport.Packet
		for i := range 20 {
			down = append(down, transporttest.Packet(uint8(i%3), transporttest.Random(uint64(i), 50+i*13000)))
			up = append(up, transporttest.Packet(uint8(i%3), transporttest.Random(uint64(100+i), 40+i*21000)))
		}
		m := &meeting{
			caller: transporttest.NewStation(greeting("ship"), down...), callee: transporttest.NewStation(greeting("shore"), up...),
			ab: transporttest.Line{Latency: 50 * time.Millisecond, BitRate: 1e6}, ba: transporttest.Line{Latency: 50 * time.Millisecond, BitRate: 1e6},
			callerOpt: transport.StreamOptions{Partials: partialsA}, calleeOpt: transport.StreamOptions{Partials: partialsB},
		}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, down...)
		transporttest.RequireReceived(t, m.caller, up...)
		if n := m.caller.Left() + m.callee.Left(); n != 0 {
			t.Errorf("%d packets were never reported as sent", n)
		}
	})
}

func TestWrongNodeAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meeting{caller: transporttest.NewStation("ship"), callee: transporttest.NewStation("shore")}
		m.caller.WantHello = "other"
		p := transporttest.Packet(0, []byte("for the right node only"))
		m.callee.Add(p)
		m.run(t.Context())
		if m.callerErr == nil || m.calleeErr == nil {
			t.Fatalf("caller: %v, callee: %v", m.callerErr, m.calleeErr)
		}
		if m.caller.Count() != 0 || m.callee.Left() != 1 {
			t.Errorf("caller received %d packets, callee thinks that it sent %d", m.caller.Count(), 1-m.callee.Left())
		}
	})
}

func TestStrangerHearsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meeting{caller: transporttest.NewStation("stranger"), callee: transporttest.NewStation("shore")}
		m.callee.WantHello = "ship"
		m.run(t.Context())
		if m.callerErr == nil || m.calleeErr == nil {
			t.Fatalf("caller: %v, callee: %v", m.callerErr, m.calleeErr)
		}
		if m.calleeStats.BytesOut != 0 {
			t.Errorf("a stranger was sent %d bytes", m.calleeStats.BytesOut)
		}
		var h interface{ Hint() string }
		if !errors.As(m.callerErr, &h) {
			t.Errorf("error of a refused caller has no hint: %v", m.callerErr)
		}
	})
}
