package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// sparingStation can make again what it has read of a packet, but for the last lag bytes.
type sparingStation struct {
	*transporttest.Station
	lag    int
	forget bool                   // it gives up without filling the hole
	pause  func(read int)         // before each Read
	fault  func(data []byte) bool // it finds the packet bad
	spared atomic.Int32
	late   int
	data   []byte // of the last packet
	whole  int
}

func (s *sparingStation) Receive(ctx context.Context, size int64, r io.Reader) error {
	sp, ok := r.(transport.Sparing)
	if !ok {
		s.data, _ = io.ReadAll(r)
		s.whole++
		return nil
	}
	sp.Vouch()
	if sp.Spare() {
		s.spared.Add(1)
	}
	s.data = nil
	again := func(w io.Writer, from int64) error {
		made := int64(max(0, len(s.data)-s.lag))
		_, err := w.Write(s.data[min(from, made):made])
		return err
	}
	for b := make([]byte, 50000); ; {
		if s.pause != nil {
			s.pause(len(s.data))
		}
		n, err := r.Read(b)
		s.data = append(s.data, b[:n]...)
		if sp.Late() {
			s.late++
			if err := sp.Refill(again); err != nil {
				return err
			}
		}
		if err == nil && s.fault != nil && s.fault(s.data) {
			if err := sp.Refill(again); err != nil {
				return err
			}
			if err := sp.Verify(ctx); err != nil {
				return err
			}
			return transport.ErrRefused
		}
		if err == io.EOF {
			s.whole++
			return nil
		}
		if err != nil {
			if !s.forget {
				err = errors.Join(err, sp.Refill(again))
			}
			return err
		}
	}
}

func (s *sparingStation) Admit(context.Context, []byte) (transport.Greeter, error) { return s, nil }

// sparedContact is one contact in which st is offered p, over a line that is cut after some bytes; 0: never.
func sparedContact(t *testing.T, p *transport.Packet, st *sparingStation, partials *transport.Partials, cut int64) (callee transport.Stats) {
	t.Helper()
	st.Station = transporttest.NewStation("shore")
	line := transporttest.Line{BitRate: 80e6, Latency: time.Millisecond, Cut: cut}
	_, callee, err, answer := meetOver(t, p, st, partials, line, transporttest.Line{Latency: time.Millisecond})
	if cut == 0 && (err != nil || answer != nil) {
		t.Errorf("caller: %v, callee: %v", err, answer)
	}
	return callee
}

// A packet whose file is spared arrives whole, however the Station keeps up.
func TestSparedPacket(t *testing.T) {
	for name, pause := range map[string]func(int){
		"fast": nil,
		"slow": func(int) { time.Sleep(6 * time.Millisecond) }, // here and below by the clock of synctest
		"late": func(read int) {
			if read > bigSize/2 && read < bigSize/2+50001 {
				time.Sleep(time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			partials, dir := folder(t)
			synctest.Test(t, func(t *testing.T) {
				data := transporttest.Random(1, bigSize)
				holes := 0
				st := &sparingStation{lag: 400000, pause: func(read int) {
					if pause != nil {
						pause(read)
					}
					if left, _ := filepath.Glob(filepath.Join(dir, "*.hole")); len(left) == 1 {
						holes++
					}
				}}
				sparedContact(t, transporttest.Packet(0, data), st, partials, 0)
				if st.whole != 1 || !bytes.Equal(st.data, data) {
					t.Errorf("%d packets, %d bytes of %d", st.whole, len(st.data), bigSize)
				}
				if want := name == "late"; st.spared.Load() != 1 || (holes > 0) != want || (st.late == 1) != want {
					t.Errorf("spared %d times, seen with a hole %d times, late %d times", st.spared.Load(), holes, st.late)
				}
				wantFiles(t, dir, 0)
			})
		})
	}
}

// What came before a cut is made again: the next contact goes on there.
func TestSparedPacketIsCut(t *testing.T) {
	for _, lag := range []int{0, 1, 400000} {
		partials, dir := folder(t)
		synctest.Test(t, func(t *testing.T) {
			data := transporttest.Random(1, bigSize)
			p := transporttest.Packet(0, data)
			st := &sparingStation{lag: lag}
			first := sparedContact(t, p, st, partials, bigSize/2)
			wantFiles(t, dir, 1)
			kept, err := os.ReadFile(filepath.Join(dir, p.ID.String()))
			if err != nil || len(kept) < bigSize*2/5 || !bytes.Equal(kept, data[:len(kept)]) {
				t.Errorf("%d bytes kept of %d: %v", len(kept), bigSize/2, err)
			}
			second := sparedContact(t, p, st, partials, 0)
			if st.whole != 1 || !bytes.Equal(st.data, data) {
				t.Errorf("%d packets, %d bytes of %d", st.whole, len(st.data), bigSize)
			}
			if sum := first.BytesIn + second.BytesIn; st.spared.Load() != 2 || sum > bigSize*105/100 { // a slice or two was under way
				t.Errorf("spared %d times; %d bytes came for %d", st.spared.Load(), sum, bigSize)
			}
			wantFiles(t, dir, 0)
		})
	}
}

// Where a hole is not filled the file ends: when its Station forgets it, or cannot make enough. What a crash leaves with a hole is removed.
func TestHoleIsNotKept(t *testing.T) {
	late := func(read int) {
		if read > bigSize/2 && read < bigSize/2+50001 {
			time.Sleep(time.Second)
		}
	}
	for _, st := range []*sparingStation{{forget: true}, {lag: bigSize}, {lag: bigSize, pause: late}} {
		partials, dir := folder(t)
		synctest.Test(t, func(t *testing.T) {
			data := transporttest.Random(1, bigSize)
			p := transporttest.Packet(0, data)
			sparedContact(t, p, st, partials, bigSize*9/10)
			kept, err := os.ReadFile(filepath.Join(dir, p.ID.String()))
			if err != nil || len(kept) < 1<<20 || len(kept) > 2<<20 || !bytes.HasPrefix(data, kept) {
				t.Errorf("%d bytes kept: %v", len(kept), err)
			}
			wantFiles(t, dir, 1)
			st.pause = nil
			sparedContact(t, p, st, partials, 0)
			if st.whole != 1 || !bytes.Equal(st.data, data) {
				t.Errorf("%d packets, %d bytes of %d", st.whole, len(st.data), bigSize)
			}
			wantFiles(t, dir, 0)
		})
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, transport.ID{1}.String()+".hole"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := transport.OpenPartials(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	wantFiles(t, dir, 0)
}

// A spared packet that its Station finds bad is looked at whole: a damaged copy is asked for again, a bad packet is refused.
func TestSparedPacketIsBad(t *testing.T) {
	good := transporttest.Random(1, bigSize)
	bad := bytes.Clone(good)
	bad[bigSize/2] ^= 4
	for name, c := range map[string]struct {
		first       []byte
		fault       func(data []byte) bool
		in, refused int
	}{
		"damaged": {bad, func(data []byte) bool { return len(data) > bigSize/2 && data[bigSize/2] != good[bigSize/2] }, 1, 0},
		"bad":     {good, func(data []byte) bool { return len(data) > bigSize/2 }, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			partials, dir := folder(t)
			synctest.Test(t, func(t *testing.T) {
				p := transporttest.Packet(0, good)
				p.Open = passes(good, c.first, good)
				st := &sparingStation{fault: c.fault, lag: 300000}
				stats := sparedContact(t, p, st, partials, 0)
				if stats.PacketsIn != c.in || stats.Refused != c.refused || st.spared.Load() != 1 {
					t.Errorf("stats: %+v, spared %d times", stats, st.spared.Load())
				}
				wantFiles(t, dir, 0)
			})
		})
	}
}
