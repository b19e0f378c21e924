package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestTCPConforms(t *testing.T) {
	l := listen(t)
	transporttest.TestDialer(t, transport.NewTCP(l.Addr().String(), 0), func(t *testing.T) transport.Stream {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return conn
	})
}

func TestPipeConforms(t *testing.T) {
	for name, line := range map[string]transporttest.Line{
		"perfect": {}, "slow": {BitRate: 1e9, Latency: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			transporttest.TestStream(t, func(*testing.T) (a, b transport.Stream) { return transporttest.Pipe(line, line) })
		})
	}
}

func TestNobodyListensIsAbsent(t *testing.T) {
	l := listen(t)
	addr := l.Addr().String()
	l.Close()
	_, err := transport.NewStreamLink(transport.NewTCP(addr, 0), transport.StreamOptions{}).Run(t.Context(), transporttest.NewStation("ship"))
	if !errors.Is(err, transport.ErrAbsent) {
		t.Errorf("got %v, want ErrAbsent", err)
	}
}

// serve runs a Server for the time of the test and waits for its end.
func serve(t *testing.T, s *transport.Server) (addr string, stop func()) {
	t.Helper()
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func TestServer(t *testing.T) {
	partials := openPartials(t)
	hub := transporttest.NewStation("hub", transporttest.Packet(0, transporttest.Random(1, 1<<20)))
	const callers = 5
	ended := make(chan error, callers)
	addr, _ := serve(t, &transport.Server{
		Reception: hub, Stream: transport.StreamOptions{Partials: partials},
		Done: func(_ net.Addr, _ transport.Stats, err error) { ended <- err },
	})
	var wg sync.WaitGroup
	var sent []*transport.Packet
	for i := range callers {
		p := transporttest.Packet(0, transporttest.Random(uint64(10+i), 2<<20))
		sent = append(sent, p)
		wg.Go(func() {
			ship := transporttest.NewStation("ship", p)
			own, err := transport.OpenPartials(t.TempDir(), 1<<30)
			if err != nil {
				t.Error(err)
				return
			}
			defer own.Close()
			link := transport.NewStreamLink(transport.NewTCP(addr, 0), transport.StreamOptions{Partials: own})
			if _, err := link.Run(t.Context(), ship); err != nil {
				t.Errorf("caller: %v", err)
			}
		})
	}
	wg.Wait()
	for range callers {
		if err := <-ended; err != nil {
			t.Errorf("contact: %v", err)
		}
	}
	transporttest.RequireReceived(t, hub, sent...)
}

// Connections beyond the limit are closed at once; those within it still work, and room comes back.
func TestServerBounds(t *testing.T) {
	addr, _ := serve(t, &transport.Server{
		Reception: transporttest.NewStation("hub"), MaxPerHost: 3, Stream: transport.StreamOptions{Greet: 30 * time.Second},
	})
	open := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(5 * time.Minute))
		return c
	}
	idle := []net.Conn{open(), open(), open()}
	if _, err := open().Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the fourth connection: %v, want it closed", err)
	}
	for _, c := range idle {
		c.Close()
	}
	link := transport.NewStreamLink(transport.NewTCP(addr, 0), transport.StreamOptions{})
	for deadline := time.Now().Add(5 * time.Minute); ; {
		_, err := link.Run(t.Context(), transporttest.NewStation("ship"))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no room came back: %v", err)
		}
	}
}

func TestServerEndsSilentCallers(t *testing.T) {
	addr, _ := serve(t, &transport.Server{
		Reception: transporttest.NewStation("hub"), Stream: transport.StreamOptions{Greet: 100 * time.Millisecond},
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	c.Write([]byte("mch"))
	said, err := io.ReadAll(c)
	if isTimeout(err) || len(said) != 0 {
		t.Errorf("heard %q, %v, want to be hung up on", said, err)
	}
}

// A server that is told to stop ends its contacts, even those that hang.
func TestServerStops(t *testing.T) {
	addr, stop := serve(t, &transport.Server{Reception: transporttest.NewStation("hub")})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(join([]byte(hello), rawFrame(1, []byte("ship"))))
	answer := make([]byte, 4)
	if _, err := io.ReadFull(c, answer); err != nil || !bytes.Equal(answer, []byte(hello)) {
		t.Fatalf("answer % x, %v", answer, err)
	}
	stop()
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
