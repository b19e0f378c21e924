package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"mochila/internal/envelope"
)

// Server speaks SMTP, or LMTP, on any number of listeners. Set the fields before the first Serve and leave them
// alone afterwards.
type Server struct {
	Acceptor Acceptor // required
	Hostname string   // what greetings call this server; required
	LMTP     bool     // speak RFC 2033
	Limits   Limits

	// RelayFrom names the clients that may send to any recipient and say XFORWARD. Clients on a unix socket may
	// too: permission to connect is the right to relay.
	RelayFrom []netip.Prefix
	// OpenTo tells which recipients clients outside RelayFrom may send to; addr is wire text. With nil, those
	// clients are turned away when they connect.
	OpenTo func(addr string) bool
	// Normalize repairs bare LF, bare CR and NUL instead of refusing them (docs/smtp.md).
	Normalize bool
	// TLS offers STARTTLS (RFC 3207) on TCP connections when set. GetCertificate may change the certificate at any time.
	TLS *tls.Config
	// ImplicitTLS begins every connection with a TLS handshake (RFC 8314 section 3.3); TLS must be set.
	ImplicitTLS bool
	// RequireTLS offers REQUIRETLS (RFC 8689) under TLS: the node promises what it means for the rest of the way.
	RequireTLS bool
	// Accounts offers AUTH when set: under TLS, and to clients on this machine.
	Accounts Accounts
	// AuthWithoutTLS offers AUTH to everybody.
	AuthWithoutTLS bool
	// Verify answers VRFY of clients that may relay with what RCPT would say.
	Verify bool
	// ProxyFrom names the proxies that tell the client's address first, by HAProxy's PROXY protocol, version 1 or 2.
	// Their connections must begin with it, everybody else's must not.
	ProxyFrom []netip.Prefix
	// Log gets one line per event, in the words of Postfix; nil logs nothing.
	Log *slog.Logger

	once sync.Once
	lim  atomic.Pointer[Limits]
	log  *slog.Logger
	gate gate
	wg   sync.WaitGroup

	mu        sync.Mutex
	draining  bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
}

// Turner is an Acceptor that can start a contact on request: the server then offers ETRN (RFC 1985) to trusted clients.
type Turner interface {
	// Turn starts what brings mail for name (a domain, "@domain" or "#queue") nearer. It does not wait for the contact.
	Turn(ctx context.Context, name string) error
}

// ErrClosed is what Serve returns after Shutdown or the end of its context.
var ErrClosed = errors.New("smtp server closed")

func (s *Server) init() {
	s.once.Do(func() {
		if s.lim.Load() == nil {
			s.SetLimits(s.Limits)
		}
		s.log = s.Log
		if s.log == nil {
			s.log = slog.New(slog.DiscardHandler)
		}
		s.gate.clients = make(map[netip.Prefix]*visitor)
		s.gate.accounts = make(map[string]*rate)
		s.listeners = make(map[net.Listener]struct{})
		s.conns = make(map[*conn]struct{})
	})
}

// SetLimits changes the limits of a server that is perhaps at work: connections that come from now on keep them.
func (s *Server) SetLimits(l Limits) {
	l = l.filled()
	s.lim.Store(&l)
}

// Serve accepts connections from ln until Shutdown is called or ctx ends, and closes ln. It always returns an error,
// ErrClosed in these two cases. Connections outlive it: only Shutdown waits for them. The end of ctx tells idle
// clients to go, as Shutdown does; a message that is on its way in still ends well.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.init()
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return errors.Join(ErrClosed, ln.Close())
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, s.drain)
	defer stop()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
		ln.Close()
	}()
	work := context.WithoutCancel(ctx)
	pause := 5 * time.Millisecond
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
			s.admit(work, nc)
		case s.isDraining():
			return ErrClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept SMTP connection: %w", err)
		default: // out of file descriptors, mostly: connections that end make room
			s.log.Error("accept: " + err.Error())
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
			}
			pause = min(2*pause, time.Second)
		}
	}
}

// Shutdown closes the listeners, sends 421 to idle clients, lets messages that are inside DATA come to their end
// and waits for all connections. When ctx ends first, it closes what is left, waits for the Acceptor to notice, and
// returns the context's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.drain()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.kill()
	}
	s.mu.Unlock()
	<-done
	return fmt.Errorf("stop SMTP server: %w", ctx.Err())
}

// drain stops accepting and interrupts idle connections. It may be called twice.
func (s *Server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for ln := range s.listeners {
		ln.Close()
	}
	for c := range s.conns {
		c.drain()
	}
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// admit starts the dialog with a new client, or turns it away.
func (s *Server) admit(ctx context.Context, nc net.Conn) {
	peer, addr := peerOf(nc)
	c := newConn(ctx, s, nc, peer, false)
	var why *envelope.Status
	if c.proxied = addr.IsValid() && inside(s.ProxyFrom, addr); c.proxied {
		why = c.count(true) // until it has told who the client is
	} else {
		why = c.enter(addr, nc.RemoteAddr().Network() == "unix" || inside(s.RelayFrom, addr))
	}
	if why != nil {
		s.log.Warn("NOQUEUE: reject: CONNECT from " + c.who() + ": " + why.String())
		if _, isTLS := nc.(*tls.Conn); !isTLS && !s.ImplicitTLS { // a handshake would block the listener
			nc.SetWriteDeadline(time.Now().Add(time.Second))
			nc.Write(append([]byte(why.String()), '\r', '\n'))
		}
		c.cancel()
		nc.Close()
		return
	}
	if !s.register(c) {
		c.leave()
		c.cancel()
		nc.Close()
		return
	}
	go s.run(c)
}

// enter counts the client in, with what its address allows. The error is the reply that turns it away; then it is not
// counted.
func (c *conn) enter(addr netip.Addr, trusted bool) *envelope.Status {
	s := c.srv
	c.trusted = trusted
	c.local = c.peer.Addr == "" || addr.IsLoopback()
	c.key = visitorKey(addr)
	if why := c.count(trusted); why != nil {
		return why
	}
	if c.trusted || s.OpenTo != nil || s.Accounts != nil && (s.TLS != nil || c.local || s.AuthWithoutTLS) && s.Accounts.Ready() {
		return nil
	}
	c.leave()
	return envelope.NewStatus(554, "5.7.1", "access denied")
}

// count counts the connection at the gate, or returns the reply that turns it away.
func (c *conn) count(trusted bool) *envelope.Status {
	why := c.srv.gate.enter(time.Now(), c.key, trusted, c.lim)
	c.counted, c.entered = trusted, why == nil
	return why
}

// leave takes the connection off the gate's count.
func (c *conn) leave() {
	if c.entered {
		c.srv.gate.leave(c.key, c.counted)
		c.entered = false
	}
}

// ServeConn holds the dialog on a connection that something else has accepted, such as a sendmail -bs that runs
// over the submission socket, and returns when it is over. The client may relay; peer is what the node knows of it
// (UID and User, say) and goes into its mails. Shutdown waits for it.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn, peer envelope.Client) {
	s.init()
	c := newConn(context.WithoutCancel(ctx), s, nc, peer, true)
	if st := c.count(true); st != nil {
		c.cancel()
		c.replyStatus(st)
		c.flush()
		nc.Close()
		return
	}
	if !s.register(c) {
		c.leave()
		c.cancel()
		nc.Close()
		return
	}
	stop := context.AfterFunc(ctx, c.drain)
	defer stop()
	s.run(c)
}

// run holds a registered dialog and signs it off.
func (s *Server) run(c *conn) {
	defer s.wg.Done()
	c.serve()
	c.leave()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// register enters a connection into what Shutdown waits for; it reports false when that has begun.
func (s *Server) register(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return true
}

// inside reports whether one of the networks has the address.
func inside(networks []netip.Prefix, addr netip.Addr) bool {
	for _, p := range networks {
		if addr.IsValid() && p.Contains(addr) {
			return true
		}
	}
	return false
}

// peerOf reads the address of a client; it has none on a unix socket.
func peerOf(nc net.Conn) (envelope.Client, netip.Addr) {
	ap, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return envelope.Client{}, netip.Addr{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	return envelope.Client{Addr: addr.String(), Port: fmt.Sprint(ap.Port())}, addr
}
