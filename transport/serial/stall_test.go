package serial

import (
	"bytes"
	"context"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"mochila/internal/peertest"
	"mochila/transport"
	"mochila/transport/transporttest"
)

// stuckPort takes nothing from a call on, as a device that is told to wait, and is never told to go on.
type stuckPort struct {
	calls    [][]byte // what comes, a piece a Read
	free     chan struct{}
	closed   chan struct{}
	once     sync.Once
	resets   int
	stubborn bool // does not even let go when its buffer is emptied
}

func (p *stuckPort) Read(b []byte) (int, error) {
	if len(p.calls) > 0 {
		n := copy(b, p.calls[0])
		p.calls = p.calls[1:]
		return n, nil
	}
	<-p.closed
	return 0, os.ErrClosed
}

func (p *stuckPort) Write(b []byte) (int, error) {
	<-p.free
	return len(b), nil
}

func (p *stuckPort) ResetOutputBuffer() error {
	if p.resets++; p.resets == 1 && !p.stubborn {
		close(p.free)
	}
	return nil
}

func (p *stuckPort) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Close returns although the port takes nothing, at both ends, and the listener is told that its line is broken.
func TestCloseOfStalledPort(t *testing.T) {
	for _, full := range []bool{false, true} {
		for _, stubborn := range []bool{false, true} {
			for _, callee := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					p := &stuckPort{free: make(chan struct{}), closed: make(chan struct{}), stubborn: stubborn}
					o := Options{Full: full}
					start := time.Now()
					if callee {
						f := frame{t: frameTurn, caller: true, conn: 7}
						p.calls = [][]byte{f.append([]byte{0})}
						l := Listen(p, o)
						s, err := l.Accept(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						s.Write([]byte("hello"))
						s.Close()
						if _, err := l.Accept(t.Context()); err == nil {
							t.Error("the line is taken for a good one")
						}
						l.Close()
					} else {
						s := Call(p, o)
						s.Write([]byte("hello"))
						s.Close()
					}
					if took := time.Since(start); took > 100*time.Second || p.resets != 1 {
						t.Errorf("full %v, stubborn %v, callee %v: closed after %v, %d resets", full, stubborn, callee, took, p.resets)
					}
					if stubborn {
						close(p.free)
					}
				})
			}
		}
	}
}

// A listener that is closed does not wait for a port that takes nothing.
func TestListenerOfStalledPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := frame{t: frameTurn, caller: true, conn: 7}
		p := &stuckPort{free: make(chan struct{}), closed: make(chan struct{}), stubborn: true, calls: [][]byte{f.append([]byte{0})}}
		l := Listen(p, Options{})
		s, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte("hello"))
		time.Sleep(5 * time.Second)
		start := time.Now()
		l.Close()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("closed after %v", took)
		}
		if _, err := s.Write([]byte("more")); err == nil {
			t.Error("wrote to a closed line")
		}
		close(p.free)
	})
}

// TestCutOfStalledPort: a contact whose time is over, as when the daemon stops, ends within seconds although the port takes
// nothing, whether it is in the middle of something or waits already in Close.
func TestCutOfStalledPort(t *testing.T) {
	for _, full := range []bool{false, true} {
		for _, closing := range []bool{false, true} {
			for _, callee := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					p := &stuckPort{free: make(chan struct{}), closed: make(chan struct{}), stubborn: true}
					o := Options{Full: full}
					var s transport.Stream
					end := func() {}
					if callee {
						f := frame{t: frameTurn, caller: true, conn: 7}
						p.calls = [][]byte{f.append([]byte{0})}
						l := Listen(p, o)
						var err error
						if s, err = l.Accept(t.Context()); err != nil {
							t.Fatal(err)
						}
						end = func() { l.Close() }
					} else {
						s = Call(p, o)
					}
					s.Write([]byte("hello"))
					closed := make(chan struct{})
					go func() {
						defer close(closed)
						if closing {
							s.Close()
						}
					}()
					time.Sleep(4 * time.Second)
					start := time.Now()
					s.(transport.Cutter).Cut()
					<-closed
					end()
					if took := time.Since(start); took > 10*time.Second {
						t.Errorf("full %v, closing %v, callee %v: cut after %v", full, closing, callee, took)
					}
					close(p.free)
				})
			}
		}
	}
}

// shortPort takes a few bytes at a time.
type shortPort struct {
	stuckPort
	got bytes.Buffer
}

func (p *shortPort) Write(b []byte) (int, error) { return p.got.Write(b[:min(len(b), 3)]) }

func TestShortWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &shortPort{stuckPort: stuckPort{closed: make(chan struct{})}}
		l := newLine(p, Options{}, false)
		want := transporttest.Random(1, 100)
		if err := l.write(want); err != nil || !bytes.Equal(p.got.Bytes(), want) {
			t.Errorf("%d of %d bytes, %v", p.got.Len(), len(want), err)
		}
		l.close()
	})
}

// A real terminal whose other end is not read.
func TestStalledTerminal(t *testing.T) {
	stuck := make(chan struct{})
	cable := peertest.NewPTYs(t, func([]byte) bool { <-stuck; return false })
	t.Cleanup(func() { close(stuck) })
	fd, err := unix.Open(cable.A, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	peertest.Await(t, "the terminal to be full", func() bool {
		_, err := unix.Write(fd, make([]byte, 4096))
		return err == unix.EAGAIN
	})
	unix.Close(fd)
	p, err := Parse("serial:" + cable.A)
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Listen()
	if err != nil {
		t.Fatal(err)
	}
	go l.l.write(make([]byte, 100_000))
	peertest.Await(t, "the write to hang", func() bool { return !l.l.taken(50 * time.Millisecond) })
	closed := make(chan struct{})
	go func() { l.Close(); close(closed) }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case <-closed:
	case <-ctx.Done():
		t.Fatal("Close hangs")
	}
	if l, err = p.Listen(); err != nil {
		t.Fatalf("not free again: %v", err)
	}
	l.Close()
}
