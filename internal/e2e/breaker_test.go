package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// breaker passes connections on and breaks them after so many bytes.
type breaker struct {
	addr string
	to   func() (net.Conn, error)

	mu    sync.Mutex
	next  func(cuts int) int64 // bytes that a connection may carry after so many cuts; 0: all
	conns int
	cuts  int
}

// newBreaker listens at a loopback port and passes on to a dialled address.
func newBreaker(t testing.TB, network, to string, next func(cuts int) int64) *breaker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &breaker{addr: l.Addr().String(), next: next, to: func() (net.Conn, error) { return net.Dial(network, to) }}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() { b.pass(c) })
		}
	})
	t.Cleanup(func() { l.Close(); open.Wait() })
	return b
}

// pass joins one connection to the far side until either ends or its bytes are used up.
func (b *breaker) pass(c net.Conn) {
	defer c.Close()
	far, err := b.to()
	if err != nil {
		return
	}
	defer far.Close()
	b.mu.Lock()
	left := b.next(b.cuts)
	b.conns++
	b.mu.Unlock()
	cut := left > 0
	var both sync.WaitGroup
	half := func(to, from net.Conn) {
		buf := make([]byte, 16<<10)
		for {
			n, err := from.Read(buf)
			b.mu.Lock()
			over := cut && left <= int64(n)
			if over && left > 0 {
				b.cuts++
			}
			left -= int64(n)
			b.mu.Unlock()
			if !over && n > 0 {
				if _, e := to.Write(buf[:n]); e != nil {
					err = e
				}
			}
			if over || err != nil && err != io.EOF {
				for _, x := range []net.Conn{c, far} { // a cut, not an end
					if t, ok := x.(*net.TCPConn); ok {
						t.SetLinger(0)
					}
					x.Close()
				}
				return
			}
			if err == io.EOF {
				if h, ok := to.(interface{ CloseWrite() error }); ok {
					h.CloseWrite()
				}
				return
			}
		}
	}
	both.Go(func() { half(far, c) })
	both.Go(func() { half(c, far) })
	both.Wait()
}

// tally is how many connections and cuts there were.
func (b *breaker) tally() (conns, cuts int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conns, b.cuts
}
