package smtpd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"mochila/internal/envelope"
)

// conn is the dialog with one client. One goroutine runs it; only what mu guards is touched by others.
type conn struct {
	srv     *Server
	lim     *Limits
	ctx     context.Context
	cancel  context.CancelFunc
	key     netip.Prefix    // as which client the gate counts it
	entered bool            // the gate counts it
	counted bool            // as trusted
	trusted bool            // inside RelayFrom or on a unix socket
	local   bool            // on this machine: no network is in between
	proxied bool            // a proxy is connected that will tell the client's address
	peer    envelope.Client // who is connected
	opened  time.Time

	buf  []byte // input; buf[r:w] is not used yet
	r, w int
	out  []byte // replies that wait for the input to run dry

	helo    string
	esmtp   bool
	account *Account         // who has logged in
	method  string           // and how
	denials int              // wrong passwords
	forward *envelope.Client // what XFORWARD said for the next mail
	mail    *envelope.Mail   // from MAIL on; nil outside a transaction
	size    int64            // SIZE= of mail
	refused int              // recipients of mail that were refused

	closing bool // no more commands
	linger  bool // the client may still be sending: see finish
	wary    bool // DATA was refused; a client that did not notice sends the message now

	errors, junk, commands int // since the last mail
	slowed                 int // errors that the client has waited for

	tally [numVerbs]struct{ all, good int }
	verb  verb // the command that is being answered
	good  bool // the last reply to it was not a refusal

	mu       sync.Mutex
	nc       net.Conn // replaced by STARTTLS
	busy     bool     // between 354 and the end of data
	draining bool
	wake     chan struct{} // closed when draining begins
}

var (
	errDraining = errors.New("server is shutting down")
	errLineLong = errors.New("line too long")
	errLineLF   = errors.New("line ends in a bare LF")
	errOverlong = errors.New("line does not end")
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func newConn(ctx context.Context, s *Server, nc net.Conn, peer envelope.Client, trusted bool) *conn {
	c := &conn{srv: s, lim: s.lim.Load(), nc: nc, peer: peer, trusted: trusted, local: peer.Addr == "", opened: time.Now(), wake: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// serve holds the dialog and closes the connection.
func (c *conn) serve() {
	array := buffers.Get().(*[bufferSize]byte)
	c.buf = array[:]
	defer func() {
		c.cancel()
		c.nc.Close()
		buffers.Put(array)
	}()
	if c.proxied && !c.meet() {
		return
	}
	c.srv.log.Info("connect from " + c.who())
	if c.srv.ImplicitTLS {
		c.replaceConn(tls.Server(c.nc, c.srv.TLS))
	}
	if t, ok := c.nc.(*tls.Conn); ok {
		if !c.handshake(t) {
			return
		}
	}
	c.greet()
	for !c.closing {
		line, err := c.readLine()
		switch {
		case err == nil:
			c.command(line)
			if c.good {
				c.tally[c.verb].good++
			}
		case errors.Is(err, errLineLong):
			c.verb = verbUnknown
			c.fail(500, "5.5.2", "line too long")
		default:
			c.hangUp(err)
		}
		c.police()
	}
	c.finish()
	c.srv.log.Info(c.farewell())
}

// police ends sessions that do not get anywhere.
func (c *conn) police() {
	if c.closing {
		return
	}
	switch {
	case c.errors > c.lim.Errors:
		c.reply(421, "4.7.0", "too many errors")
	case c.junk > c.lim.Junk:
		c.reply(421, "4.7.0", "too many commands without mail")
	case c.commands > c.lim.Commands:
		c.reply(421, "4.7.0", "too many commands")
	default:
		if c.errors > c.slowed && !c.mayRelay() {
			c.slowed = c.errors
			c.pause(min(time.Duration(c.errors-c.lim.FreeErrors), maxPauses) * c.lim.ErrorPause)
		}
		return
	}
	c.closing, c.linger = true, true
}

// maxPauses is how many ErrorPauses an error costs at most.
const maxPauses = 10

// pause keeps the client waiting for its reply; it costs this node a sleeping goroutine. Shutdown ends it.
func (c *conn) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.wake:
	}
}

// replaceConn puts TLS in place of the connection under it.
func (c *conn) replaceConn(nc net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nc = nc
}

// hangUp ends the dialog after a failed read.
func (c *conn) hangUp(err error) {
	c.closing = true
	c.linger = c.verb == verbData
	var st *envelope.Status
	switch {
	case errors.As(err, &st):
		c.replyStatus(st)
		c.srv.log.Warn("message from " + c.who() + " broken off: " + st.String())
	case errors.Is(err, errFalseEnd):
		c.reply(521, "5.5.2", "bare <LF> received, closing")
		c.srv.log.Warn("end of data with a bare <LF> received from " + c.who())
	case errors.Is(err, errDraining):
		c.reply(421, "4.3.2", "going away, try again later")
	case errors.Is(err, errLineLF):
		c.linger = true
		c.reply(521, "5.5.2", "lines must end in <CR><LF>")
		c.srv.log.Warn("bare <LF> received from " + c.who())
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.reply(421, "4.4.2", "timeout, closing")
		c.srv.log.Info("timeout after " + c.verb.String() + " from " + c.who())
	case errors.Is(err, errOverlong):
		c.linger = true
		c.reply(421, "4.7.0", "line too long")
	default:
		c.out = c.out[:0]
		if c.verb != verbQuit {
			c.srv.log.Info("lost connection after " + c.verb.String() + " from " + c.who())
		}
	}
}

// readLine returns the next command line without its end; it is valid until the next read.
func (c *conn) readLine() ([]byte, error) {
	deadline := time.Now().Add(c.lim.CommandTimeout)
	skipped, seen := 0, 0 // of a line that is too long; bytes after r without LF
	for {
		if n := bytes.IndexByte(c.buf[c.r+seen:c.w], '\n'); n >= 0 {
			line := c.buf[c.r : c.r+seen+n]
			c.r += seen + n + 1
			if skipped > 0 || len(line) > maxMailLine {
				return nil, errLineLong
			}
			if len(line) > 0 && line[len(line)-1] == '\r' {
				return line[:len(line)-1], nil
			}
			if c.srv.Normalize {
				return line, nil
			}
			return nil, errLineLF
		}
		seen = c.w - c.r
		if seen > maxMailLine {
			if skipped += seen; skipped > maxOverlong {
				return nil, errOverlong
			}
			c.r, c.w, seen = 0, 0, 0
		}
		if err := c.fill(deadline); err != nil {
			return nil, err
		}
	}
}

// fill sends what waits to be sent and reads more input, until deadline.
func (c *conn) fill(deadline time.Time) error {
	if err := c.flush(); err != nil {
		return err
	}
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	for range 100 {
		c.mu.Lock()
		if c.draining && !c.busy {
			c.mu.Unlock()
			return errDraining
		}
		c.nc.SetReadDeadline(deadline)
		c.mu.Unlock()
		n, err := c.nc.Read(c.buf[c.w:])
		c.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && c.interrupted() {
				return errDraining
			}
			return err
		}
	}
	return io.ErrNoProgress
}

// interrupted reports whether a read ended because the server is shutting down.
func (c *conn) interrupted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining && !c.busy
}

// flush sends the replies that have gathered.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	c.nc.SetWriteDeadline(time.Now().Add(c.lim.WriteTimeout))
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err
}

// setBusy marks the connection as being inside DATA, where Shutdown does not interrupt it. It reports false when
// the server is shutting down already.
func (c *conn) setBusy(busy bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if busy && c.draining {
		return false
	}
	c.busy = busy
	return true
}

// drain asks the connection to end at the next moment when no message is on its way.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		close(c.wake)
	}
	c.draining = true
	if !c.busy {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// kill ends the connection now.
func (c *conn) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		close(c.wake)
	}
	c.draining = true
	c.cancel()
	c.nc.Close()
}

// finish sends what is left to say. Where the client may still be sending, its bytes are read and dropped for a
// moment: closing a socket with unread input would destroy the reply on its way.
func (c *conn) finish() {
	if c.flush() != nil || !c.linger {
		return
	}
	if half, ok := c.nc.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	for n := 0; n < lingerSize; {
		m, err := c.nc.Read(c.buf)
		if n += m; err != nil {
			return
		}
	}
}

// handshake runs the TLS handshake; when it fails, nothing more is said to the client.
func (c *conn) handshake(t *tls.Conn) bool {
	t.SetDeadline(time.Now().Add(c.lim.WriteTimeout))
	if err := t.HandshakeContext(c.ctx); err != nil {
		c.srv.log.Warn("TLS handshake with " + c.who() + " failed: " + printable(err.Error(), 200))
		return false
	}
	t.SetDeadline(time.Time{})
	st := t.ConnectionState()
	version := strings.Replace(tls.VersionName(st.Version), "TLS ", "TLSv", 1)
	c.peer.TLS = version + " " + tls.CipherSuiteName(st.CipherSuite)
	return true
}

// who names the client as Postfix does in its log.
func (c *conn) who() string {
	if c.peer.Addr == "" && c.peer.UID > 0 {
		return fmt.Sprintf("localhost[uid %d]", c.peer.UID-1)
	}
	if c.peer.Addr == "" {
		return "localhost[unix]"
	}
	return "unknown[" + c.peer.Addr + "]"
}

// farewell is the log line at the end: how often each command was said, good/all where they differ.
func (c *conn) farewell() string {
	b := []byte("disconnect from " + c.who())
	var all, good int
	for v, n := range c.tally {
		if n.all == 0 {
			continue
		}
		all += n.all
		good += n.good
		b = fmt.Appendf(b, " %s=%s", verb(v).lower(), fraction(n.good, n.all))
	}
	return string(fmt.Appendf(b, " commands=%s", fraction(good, all)))
}

func fraction(good, all int) string {
	if good == all {
		return fmt.Sprint(all)
	}
	return fmt.Sprintf("%d/%d", good, all)
}
