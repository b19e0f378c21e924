package transport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// bigSize is a packet of which most comes after it is opened.
const bigSize = 4 << 20

// early watches what a Station is given to read.
type early struct {
	begun, full, ended atomic.Int64 // packets, those of which all bytes were handed out, those whose reader said io.EOF
	first              func()       // at the first packet
}

func (e *early) onRead(size int64, r io.Reader) io.Reader {
	if e.begun.Add(1) == 1 && e.first != nil {
		e.first()
	}
	var read int64
	return readerFunc(func(b []byte) (int, error) {
		n, err := r.Read(b)
		if read += int64(n); n > 0 && read == size {
			e.full.Add(1)
		}
		if err == io.EOF {
			e.ended.Add(1)
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// bigMeeting is one big packet on a line so fast that it is opened while it comes.
func bigMeeting(p *transport.Packet, partials *transport.Partials, e *early) *meeting {
	m := &meeting{
		caller: transporttest.NewStation("ship", p), callee: transporttest.NewStation("shore"),
		calleeOpt: transport.StreamOptions{Partials: partials},
	}
	m.callee.OnRead = e.onRead
	return m
}

// folder opens partial packets in a folder that the test can look into.
func folder(t *testing.T) (*transport.Partials, string) {
	t.Helper()
	dir := t.TempDir()
	p, err := transport.OpenPartials(dir, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := p.Opening(); n != 0 {
			t.Errorf("%d packets are still being opened", n)
		}
		p.Close()
	})
	return p, dir
}

func wantFiles(t *testing.T, dir string, want int) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != want {
		t.Errorf("partial packets: %q, want %d", left, want)
	}
}

// A packet is read while it comes, whether the line or the reader is the slower one, and its end is said once it is all there.
func TestOpenedWhileItComes(t *testing.T) {
	for _, rate := range []int64{0, 80e6} {
		partials, dir := folder(t)
		synctest.Test(t, func(t *testing.T) {
			p := transporttest.Packet(0, transporttest.Random(1, bigSize))
			var e early
			var began time.Time
			e.first = func() { began = time.Now() }
			m := bigMeeting(p, partials, &e)
			m.ab.BitRate = rate
			start := time.Now()
			var end time.Time
			m.callee.OnReceive = func(transport.ID, int64) error { end = time.Now(); return nil }
			m.run(t.Context())
			m.mustEndWell(t)
			transporttest.RequireReceived(t, m.callee, p)
			if e.begun.Load() != 1 || e.ended.Load() != 1 {
				t.Errorf("begun %d times, ended %d times, want once", e.begun.Load(), e.ended.Load())
			}
			if rate > 0 && (began.Sub(start) > 200*time.Millisecond || end.Sub(began) < 200*time.Millisecond) {
				t.Errorf("opened after %v, all there %v later", began.Sub(start), end.Sub(began))
			}
			if m.callerStats.PacketsOut != 1 || m.calleeStats.PacketsIn != 1 || m.calleeStats.Incomplete != 0 {
				t.Errorf("stats: %+v, %+v", m.callerStats, m.calleeStats)
			}
			wantFiles(t, dir, 0)
		})
	}
}

// On a slow line nothing is held open for long: the packet is opened when it is all there.
func TestSlowPacketIsOpenedAtItsEnd(t *testing.T) {
	partials, _ := folder(t)
	synctest.Test(t, func(t *testing.T) {
		p := transporttest.Packet(0, transporttest.Random(1, bigSize))
		var e early
		var began time.Time
		e.first = func() { began = time.Now() }
		m := bigMeeting(p, partials, &e)
		m.ab.BitRate = 8e6
		start := time.Now()
		m.run(t.Context())
		m.mustEndWell(t)
		if d := began.Sub(start); d < 4*time.Second {
			t.Errorf("opened after %v of more than four seconds", d)
		}
	})
}

// A reader that takes its time holds up nobody: what is small passes it, and the big packet comes to its end.
func TestSlowOpenerHoldsUpNobody(t *testing.T) {
	partials, _ := folder(t)
	synctest.Test(t, func(t *testing.T) {
		p := transporttest.Packet(9, transporttest.Random(1, bigSize))
		small := make([]*transport.Packet, 20) // more than there are places for receivers
		for i := range small {
			small[i] = transporttest.Packet(1, transporttest.Random(uint64(100+i), 1000))
		}
		var e early
		m := bigMeeting(p, partials, &e)
		var arrived sync.WaitGroup
		arrived.Add(len(small))
		e.first = func() { m.caller.Add(small...) }
		m.callee.OnReceive = func(_ transport.ID, size int64) error {
			if size < bigSize {
				arrived.Done()
			}
			return nil
		}
		m.callee.OnRead = func(size int64, r io.Reader) io.Reader {
			if size < bigSize {
				return r
			}
			r = e.onRead(size, r)
			return readerFunc(func(b []byte) (int, error) {
				arrived.Wait() // for ever, if the line waited for this reader
				return r.Read(b)
			})
		}
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, append(small, p)...)
	})
}

// A contact that breaks while its packet is being opened: the opener hears of it and keeps nothing, the bytes are kept,
// and the next contact brings the rest.
func TestCutWhileItIsOpened(t *testing.T) {
	for _, hang := range []bool{false, true} {
		partials, dir := folder(t)
		synctest.Test(t, func(t *testing.T) {
			p := transporttest.Packet(0, transporttest.Random(1, bigSize))
			var e early
			m := bigMeeting(p, partials, &e)
			m.ab = transporttest.Line{Cut: bigSize / 2, Hang: hang}
			m.run(t.Context())
			if m.calleeErr == nil {
				t.Fatal("the line was not cut")
			}
			if e.begun.Load() != 1 || e.ended.Load() != 0 || m.callee.Count() != 0 || m.callee.Partial() != 1 {
				t.Errorf("begun %d times, ended %d times; %d packets taken, %d given up", e.begun.Load(), e.ended.Load(), m.callee.Count(), m.callee.Partial())
			}
			wantFiles(t, dir, 1)
			first := m.calleeStats.BytesIn
			m.caller.Requeue()
			m.ab = transporttest.Line{}
			m.run(t.Context())
			m.mustEndWell(t)
			transporttest.RequireReceived(t, m.callee, p)
			if sum := first + m.calleeStats.BytesIn; sum > bigSize*105/100 { // a slice or two was under way
				t.Errorf("%d bytes came for %d", sum, bigSize)
			}
			if e.ended.Load() != 1 {
				t.Errorf("ended %d times", e.ended.Load())
			}
			wantFiles(t, dir, 0)
		})
	}
}

// passes opens a packet first for its head, then once for each time that it is sent, with other bytes each time.
func passes(head []byte, sent ...[]byte) func(off int64) (io.ReadCloser, error) {
	n := -1
	return func(off int64) (io.ReadCloser, error) {
		data := head
		if n >= 0 {
			data = sent[min(n, len(sent)-1)]
		}
		n++
		return io.NopCloser(bytes.NewReader(data[off:])), nil
	}
}

// resumed is a packet whose beginning lies there already.
func resumed(t *testing.T, dir string, p *transport.Packet, beginning []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, p.ID.String()), beginning, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Bytes that do not hash to the packet's name are never read to their end: not those that come, nor those that lay there.
func TestOpenedPacketIsAnotherOne(t *testing.T) {
	good := transporttest.Random(1, bigSize)
	last, inside := bytes.Clone(good), bytes.Clone(good)
	last[bigSize-1] ^= 1
	inside[bigSize/2] ^= 0x80
	for name, c := range map[string]struct {
		sent [][]byte // one after the other
		lies []byte
		want int
	}{
		"last byte":          {sent: [][]byte{last, good}, want: 1},
		"a byte inside":      {sent: [][]byte{inside, good}, want: 1},
		"twice":              {sent: [][]byte{last, inside}, want: 0},
		"beginning lies":     {sent: [][]byte{good, good}, lies: transporttest.Random(2, 1<<20), want: 1},
		"good beginning":     {sent: [][]byte{good}, lies: good[:1<<20], want: 1},
		"only the last lies": {sent: [][]byte{last, good}, lies: good[:1<<20], want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := transporttest.Packet(0, good)
			if c.lies != nil {
				resumed(t, dir, p, c.lies)
			}
			partials, err := transport.OpenPartials(dir, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			defer partials.Close()
			synctest.Test(t, func(t *testing.T) {
				p.Open = passes(good, c.sent...)
				var e early
				m := bigMeeting(p, partials, &e)
				m.run(t.Context())
				if m.calleeErr != nil || c.want == 1 && m.callerErr != nil {
					t.Fatalf("caller: %v, callee: %v", m.callerErr, m.calleeErr)
				}
				if got := m.callee.Count(); got != c.want || int(e.ended.Load()) != c.want || int(e.full.Load()) != c.want {
					t.Errorf("%d packets received, %d handed out in full, ended %d times, want %d", got, e.full.Load(), e.ended.Load(), c.want)
				}
				if e.begun.Load() == 0 {
					t.Error("nothing was opened")
				}
				if c.want == 0 && m.caller.SentCount(p.ID) != 0 {
					t.Error("reported as sent")
				}
				wantFiles(t, dir, 0)
			})
		})
	}
}

// A Station that refuses a packet by its first bytes is believed when all of the packet has come and is what its name says.
func TestRefusedWhileItComes(t *testing.T) {
	good := transporttest.Random(1, bigSize)
	bad := bytes.Clone(good)
	bad[bigSize-7] ^= 4
	for _, damaged := range []bool{false, true} {
		partials, dir := folder(t)
		synctest.Test(t, func(t *testing.T) {
			p := transporttest.Packet(0, good)
			if damaged {
				p.Open = passes(good, bad, good)
			}
			st := &pickyStation{Station: transporttest.NewStation("shore"), say: transport.ErrRefused}
			stats, calleeStats := meet(t, p, st, partials)
			if stats.PacketsOut != 1 || calleeStats.Refused != 1 || calleeStats.PacketsIn != 0 {
				t.Errorf("stats: %+v, %+v", stats, calleeStats)
			}
			want := 1
			if damaged {
				want = 2
			}
			if st.asked != want {
				t.Errorf("asked %d times, want %d", st.asked, want)
			}
			wantFiles(t, dir, 0)
		})
	}
}

// A Station that vouches for a packet has it without its hash; before it is refused, its copy is looked at after all.
func TestVouchedWhileItComes(t *testing.T) {
	good := transporttest.Random(1, bigSize)
	bad := bytes.Clone(good)
	bad[bigSize-7] ^= 4
	fault := errors.New("not authentic")
	for name, c := range map[string]struct {
		first           []byte // what comes when the packet is sent first
		open            func(data []byte) error
		verify          bool // the Station has its copy looked at, not only the contact
		asked, in, refd int
	}{
		"good":              {first: good, asked: 1, in: 1},
		"damaged":           {first: bad, verify: true, asked: 2, in: 1},
		"damaged, no check": {first: bad, asked: 2, in: 1},
		"bad":               {first: good, open: func([]byte) error { return fault }, verify: true, asked: 1, refd: 1},
	} {
		t.Run(name, func(t *testing.T) {
			partials, dir := folder(t)
			if c.open == nil {
				c.open = func(data []byte) error {
					if !bytes.Equal(data, good) {
						return fault
					}
					return nil
				}
			}
			synctest.Test(t, func(t *testing.T) {
				p := transporttest.Packet(0, good)
				p.Open = passes(good, c.first, good)
				st := &vouchingStation{Station: transporttest.NewStation("shore"), open: c.open, verify: c.verify}
				stats, calleeStats := meet(t, p, st, partials)
				if st.asked != c.asked || calleeStats.PacketsIn != c.in || calleeStats.Refused != c.refd || stats.PacketsOut != 1 {
					t.Errorf("asked %d times; %+v, %+v", st.asked, stats, calleeStats)
				}
				wantFiles(t, dir, 0)
			})
		})
	}
}

// vouchingStation finds out itself whether a packet is what it should be.
type vouchingStation struct {
	*transporttest.Station
	open   func(data []byte) error
	verify bool
	asked  int
}

func (s *vouchingStation) Receive(ctx context.Context, _ int64, r io.Reader) error {
	s.asked++
	v, vouched := r.(transport.Vouched)
	if vouched {
		v.Vouch()
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	err = s.open(data)
	if err == nil {
		return nil
	}
	if vouched && s.verify {
		if err := v.Verify(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: %w", transport.ErrRefused, err)
}

func (s *vouchingStation) Admit(context.Context, []byte) (transport.Greeter, error) { return s, nil }

// A Station with trouble of its own ends receiving at once: the sender hears it before it has sent all, and what came is kept.
func TestTroubleWhileItComes(t *testing.T) {
	partials, dir := folder(t)
	synctest.Test(t, func(t *testing.T) {
		p := transporttest.Packet(0, transporttest.Random(1, bigSize))
		st := &pickyStation{Station: transporttest.NewStation("shore"), say: fmt.Errorf("store: %w", transport.ErrFull)}
		stats, calleeStats := meet(t, p, st, partials)
		if stats.PacketsOut != 0 || calleeStats.PacketsIn != 0 || calleeStats.BytesIn > bigSize*3/4 {
			t.Errorf("stats: %+v, %+v", stats, calleeStats)
		}
		wantFiles(t, dir, 1)
		m := bigMeeting(p, partials, &early{})
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, p)
		if sum := calleeStats.BytesIn + m.calleeStats.BytesIn; sum > bigSize*105/100 { // a slice or two was under way
			t.Errorf("%d bytes came for %d", sum, bigSize)
		}
	})
}

// pickyStation answers every packet without reading more than its head.
type pickyStation struct {
	*transporttest.Station
	say   error
	asked int
}

func (s *pickyStation) Receive(_ context.Context, _ int64, r io.Reader) error {
	s.asked++
	if _, err := io.ReadFull(r, make([]byte, transport.HeadSize)); err != nil {
		return err
	}
	return s.say
}

func (s *pickyStation) Admit(context.Context, []byte) (transport.Greeter, error) { return s, nil }

// meet runs one contact in which a station is called and offered p. The line has a delay: what is said takes effect later.
func meet(t *testing.T, p *transport.Packet, st transport.Reception, partials *transport.Partials) (caller, callee transport.Stats) {
	t.Helper()
	line := transporttest.Line{BitRate: 80e6, Latency: time.Millisecond}
	caller, callee, err, answer := meetOver(t, p, st, partials, line, line)
	if err != nil {
		t.Errorf("caller: %v", err)
	}
	if answer != nil && !errors.Is(answer, transport.ErrFull) {
		t.Errorf("callee: %v", answer)
	}
	return caller, callee
}

// meetOver is meet over any line. It returns how both sides fared, and what their ends said.
func meetOver(t *testing.T, p *transport.Packet, st transport.Reception, partials *transport.Partials, there, back transporttest.Line) (caller, callee transport.Stats, called, answered error) {
	a, b := transporttest.Pipe(there, back)
	done := make(chan error, 1)
	go func() {
		var err error
		callee, err = transport.Answer(t.Context(), b, st, transport.StreamOptions{Partials: partials})
		done <- err
	}()
	link := transport.NewStreamLink(transporttest.DialFunc(func() (transport.Stream, error) { return a, nil }), transport.StreamOptions{})
	caller, called = link.Run(t.Context(), transporttest.NewStation("ship", p))
	answered = <-done
	return caller, callee, called, answered
}

// A packet that its sender cannot read to the end is given up by the opener, too, and goes on later where it stopped.
func TestCancelWhileItIsOpened(t *testing.T) {
	partials, dir := folder(t)
	synctest.Test(t, func(t *testing.T) {
		data := transporttest.Random(1, bigSize)
		p := transporttest.Packet(0, data)
		open := p.Open
		p.Open = func(off int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(data[off:bigSize/2]), errReader{})), nil
		}
		var e early
		m := bigMeeting(p, partials, &e)
		m.run(t.Context())
		if m.calleeErr != nil {
			t.Fatal(m.calleeErr)
		}
		if e.begun.Load() != 1 || e.ended.Load() != 0 || m.callee.Count() != 0 || m.calleeStats.PacketsIn != 0 {
			t.Errorf("begun %d times, ended %d times, %d taken", e.begun.Load(), e.ended.Load(), m.callee.Count())
		}
		wantFiles(t, dir, 1)
		first := m.calleeStats.BytesIn
		p.Open = open
		m.caller.Requeue()
		m.run(t.Context())
		m.mustEndWell(t)
		transporttest.RequireReceived(t, m.callee, p)
		if sum := first + m.calleeStats.BytesIn; sum > bigSize*105/100 { // a slice or two was under way
			t.Errorf("%d bytes came for %d", sum, bigSize)
		}
	})
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

// The same packet comes over several connections at once: it is received over one of them, and entered once.
func TestOpenedOverTwoContacts(t *testing.T) {
	partials, dir := folder(t)
	synctest.Test(t, func(t *testing.T) {
		p := transporttest.Packet(0, transporttest.Random(1, bigSize))
		callee := transporttest.NewStation("shore")
		var e early
		callee.OnRead = e.onRead
		var all sync.WaitGroup
		for range 3 {
			m := &meeting{
				caller: transporttest.NewStation("ship", p), callee: callee,
				ab:        transporttest.Line{BitRate: 80e6},
				calleeOpt: transport.StreamOptions{Partials: partials},
			}
			all.Go(func() {
				m.run(t.Context())
				if m.calleeErr != nil {
					t.Error(m.calleeErr)
				}
			})
		}
		all.Wait()
		if n := callee.Received(p.ID); n != 1 || e.begun.Load() != 1 {
			t.Errorf("received %d times, begun %d times", n, e.begun.Load())
		}
		wantFiles(t, dir, 0)
	})
}

// More packets come fast, over different lines, than are opened while they come: the others are opened at their ends.
func TestManyOpened(t *testing.T) {
	partials, dir := folder(t)
	synctest.Test(t, func(t *testing.T) {
		var all sync.WaitGroup
		var most atomic.Int64
		for i := range 8 {
			p := transporttest.Packet(0, transporttest.Random(uint64(i), bigSize))
			var e early
			m := bigMeeting(p, partials, &e)
			m.ab.BitRate = 80e6
			m.callee.OnRead = func(_ int64, r io.Reader) io.Reader {
				most.Store(max(most.Load(), int64(partials.Opening())))
				return r
			}
			all.Go(func() {
				m.run(t.Context())
				if m.callerErr != nil || m.calleeErr != nil {
					t.Errorf("caller: %v, callee: %v", m.callerErr, m.calleeErr)
				}
				transporttest.RequireReceived(t, m.callee, p)
			})
		}
		all.Wait()
		if most.Load() != 4 {
			t.Errorf("%d packets were opened at a time, want 4", most.Load())
		}
		wantFiles(t, dir, 0)
	})
}

// A node that goes down while a packet is being opened waits for the opener, and keeps the bytes.
func TestShutdownWhileItIsOpened(t *testing.T) {
	partials, dir := folder(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p := transporttest.Packet(0, transporttest.Random(1, bigSize))
		e := early{first: cancel}
		m := bigMeeting(p, partials, &e)
		m.ab.BitRate = 80e6
		m.run(ctx)
		if !errors.Is(m.calleeErr, context.Canceled) {
			t.Errorf("callee: %v", m.calleeErr)
		}
		if m.callee.Count() != 0 || e.ended.Load() != 0 {
			t.Errorf("%d packets taken", m.callee.Count())
		}
		wantFiles(t, dir, 1)
	})
}
