package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// DefaultPort is where neighbours listen when nothing else is said.
const DefaultPort = "2424"

// TCP is a Dialer for a neighbour that listens on a TCP port. The stream is not encrypted and needs not be: packets
// are sealed and greetings are authenticated.
type TCP struct {
	addr    string
	timeout time.Duration
	dial    func(ctx context.Context, addr string) (net.Conn, error) // through a proxy; nil: directly
}

// NewTCP returns the Dialer for addr, "host:port". timeout bounds one attempt to connect; 0: 30 s.
func NewTCP(addr string, timeout time.Duration) *TCP {
	if timeout <= 0 {
		timeout = 30 * time.Second
	}
	return &TCP{addr: addr, timeout: timeout}
}

// String is the carrier URL without options.
func (t *TCP) String() string { return "tcp:" + t.addr }

// Dial implements Dialer. Whatever keeps it from connecting is ErrAbsent.
func (t *TCP) Dial(ctx context.Context) (Stream, error) {
	dial := t.dial
	if dial == nil {
		d := net.Dialer{Timeout: t.timeout, Control: tuneSocket}
		dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	conn, err := dial(ctx, t.addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return conn, nil
}

// Server answers neighbours that call over TCP, or over any other net.Listener.
type Server struct {
	// Reception admits callers. Required.
	Reception Reception
	// Stream configures the contacts.
	Stream StreamOptions
	// MaxConns bounds the open connections, MaxPerHost those from one address (an IPv6 /64 counts as one).
	// 0: 256 and 16.
	MaxConns, MaxPerHost int
	// Log gets one line per contact, and per caller turned away. nil: silent.
	Log *slog.Logger
	// Done, if set, is called after each contact.
	Done func(remote net.Addr, s Stats, err error)
}

// Serve accepts connections on l until ctx is done or l fails for good, closes l, and waits for its contacts to end.
// It returns nil when ctx ended it. The contacts end with ctx, too.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	desk := &frontDesk{Server: s, log: s.Log, perHost: make(map[netip.Prefix]int)}
	if desk.log == nil {
		desk.log = slog.New(slog.DiscardHandler)
	}
	defer desk.contacts.Wait()
	defer cancel()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		if err == nil {
			pause = 0
			desk.receive(ctx, conn)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("listen for neighbours: %w", err)
		}
		// Out of file descriptors, or a caller that was gone before it was accepted.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		desk.log.Warn("cannot accept a connection", "err", err, "again", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// frontDesk is one Serve.
type frontDesk struct {
	*Server
	log      *slog.Logger
	contacts sync.WaitGroup

	mu      sync.Mutex
	conns   int
	perHost map[netip.Prefix]int
}

func (d *frontDesk) receive(ctx context.Context, conn net.Conn) {
	host := hostOf(conn.RemoteAddr())
	if !d.enter(host) {
		d.log.Warn("too many connections, caller turned away", "remote", conn.RemoteAddr())
		conn.Close()
		return
	}
	d.contacts.Go(func() {
		defer d.leave(host)
		stats, err := Answer(ctx, conn, d.Reception, d.Stream)
		level := slog.LevelInfo
		if err != nil {
			level = slog.LevelWarn
		}
		d.log.Log(ctx, level, "contact over", "remote", conn.RemoteAddr(), "in", stats.PacketsIn,
			"out", stats.PacketsOut, "bytes_in", stats.BytesIn, "bytes_out", stats.BytesOut, "err", err)
		if d.Done != nil {
			d.Done(conn.RemoteAddr(), stats, err)
		}
	})
}

func (d *frontDesk) enter(host netip.Prefix) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	most, perHost := d.MaxConns, d.MaxPerHost
	if most <= 0 {
		most = 256
	}
	if perHost <= 0 {
		perHost = 16
	}
	if d.conns >= most || d.perHost[host] >= perHost {
		return false
	}
	d.conns++
	d.perHost[host]++
	return true
}

func (d *frontDesk) leave(host netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns--
	if d.perHost[host]--; d.perHost[host] == 0 {
		delete(d.perHost, host)
	}
}

// hostOf is the address that connections are counted by; the zero Prefix for addresses that are not IP.
func hostOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
