package deliver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mochila/internal/envelope"
)

// client is one connection to an SMTP or LMTP server, greeted and ready for a transaction. One goroutine uses it at
// a time.
type client struct {
	nc    net.Conn
	raw   net.Conn // the connection below TLS; it never changes
	r     *bufio.Reader
	w     *bufio.Writer
	o     *Options
	lmtp  bool
	local bool              // behind a unix socket
	near  bool              // on this machine: no network in between
	ext   map[string]string // EHLO keywords, upper case, with their arguments

	reused bool         // has carried a mail before
	dirty  bool         // needs RSET before the next MAIL
	stop   atomic.Int64 // no deadline after this, Unix nanoseconds; 0 = none
	since  time.Time    // when it became idle
}

// down is trouble with the place as a whole.
type down struct{ st envelope.Status }

// Error is the status that the place is down with.
func (d *down) Error() string { return d.st.Error() }

// dial connects and says EHLO, LHLO or HELO. Every error is a *down.
func dial(ctx context.Context, network, addr string, lmtp bool, o *Options) (*client, error) {
	d := net.Dialer{Timeout: o.Connect}
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		code := "4.4.1"
		var dns *net.DNSError
		if errors.As(err, &dns) {
			code = "4.4.3"
		}
		return nil, &down{ours(code, fmt.Sprintf("connect to %s: %s", addr, reason(err)))}
	}
	c := &client{nc: nc, raw: nc, o: o, lmtp: lmtp, local: network == "unix", near: onMachine(nc), ext: map[string]string{}}
	c.r = bufio.NewReaderSize(nc, maxReplyLine)
	c.w = bufio.NewWriterSize((*blockWriter)(c), 64<<10)
	defer onDone(ctx, c.cancel)()
	if err := c.begin(ctx); err != nil {
		c.nc.Close()
		var refused *down
		if !errors.As(err, &refused) {
			err = &down{ours("4.4.2", fmt.Sprintf("greeting of %s: %s", addr, reason(err)))}
		}
		return nil, err
	}
	return c, nil
}

// onMachine reports whether the other end is on this machine.
func onMachine(nc net.Conn) bool {
	a, ok := nc.RemoteAddr().(*net.TCPAddr)
	return !ok || a.IP.IsLoopback()
}

// encrypted reports whether the connection is TLS with a checked certificate.
func (c *client) encrypted() bool {
	_, ok := c.nc.(*tls.Conn)
	return ok
}

// begin brings a new connection to where a mail may be sent.
func (c *client) begin(ctx context.Context) error {
	h := c.o.host
	if h != nil && h.implicit {
		if err := h.wrap(ctx, c); err != nil {
			return err
		}
	}
	if err := c.greet(); err != nil || h == nil {
		return err
	}
	return h.secure(ctx, c)
}

// greet reads the greeting and learns what the server can do. A refusal is never final here, whatever its code: it
// says nothing about a mail.
func (c *client) greet() error {
	if err := c.expect("", 220); err != nil {
		return err
	}
	return c.hello()
}

// hello says EHLO, LHLO or HELO.
func (c *client) hello() error {
	hello := "EHLO "
	if c.lmtp {
		hello = "LHLO "
	}
	code, lines, err := c.ask(hello + c.o.Hostname)
	if err != nil {
		return err
	}
	if code/100 == 5 && !c.lmtp {
		return c.expect("HELO "+c.o.Hostname, 250)
	}
	if code != 250 {
		return &down{later(status(code, lines))}
	}
	for _, l := range lines[1:] {
		word, args, _ := strings.Cut(strings.TrimSpace(l), " ")
		if k, v, ok := strings.Cut(word, "="); ok { // AUTH=LOGIN, as old servers write it
			word, args = k, v
		}
		c.ext[strings.ToUpper(word)] = args
	}
	return nil
}

func (c *client) has(ext string) bool { _, ok := c.ext[ext]; return ok }

// later makes a refusal of the whole place temporary.
func later(st envelope.Status) envelope.Status {
	if st.Enhanced == "" || st.Enhanced[0] != '4' {
		st.Enhanced = "4.3.2"
	}
	return st
}

// ask sends one command, or none when cmd is empty, and reads the reply.
func (c *client) ask(cmd string) (int, []string, error) {
	if cmd != "" {
		c.w.WriteString(cmd)
		c.w.WriteString("\r\n")
		if err := c.w.Flush(); err != nil {
			return 0, nil, err
		}
	}
	return c.reply(c.o.Command)
}

func (c *client) expect(cmd string, want int) error {
	code, lines, err := c.ask(cmd)
	if err == nil && code != want {
		err = &down{later(status(code, lines))}
	}
	return err
}

// reply reads one reply within the limit.
func (c *client) reply(limit time.Duration) (int, []string, error) {
	c.arm(limit)
	return readReply(c.r)
}

// arm gives reads and writes a new deadline, but never one after stop.
func (c *client) arm(d time.Duration) {
	t := time.Now().Add(d)
	c.nc.SetDeadline(t)
	if stop := c.stop.Load(); stop != 0 && stop < t.UnixNano() {
		c.nc.SetDeadline(time.Unix(0, stop))
	}
}

// endBy makes every read and write fail from t on. It may be called while they run.
func (c *client) endBy(t time.Time) {
	c.stop.Store(t.UnixNano())
	c.raw.SetDeadline(t)
}

// cancel is endBy(now).
func (c *client) cancel() { c.endBy(time.Unix(1, 0)) }

// quit ends an idle connection without waiting for the answer.
func (c *client) quit() {
	c.arm(time.Second)
	c.nc.Write([]byte("QUIT\r\n"))
	c.nc.Close()
}

// blockWriter is the client's connection with a fresh deadline for every write.
type blockWriter client

// Write sends a block under the time limit of one.
func (b *blockWriter) Write(p []byte) (int, error) {
	c := (*client)(b)
	c.arm(c.o.Block)
	return c.nc.Write(p)
}

// onDone calls f when ctx ends, unless release comes first. release reports whether it did; when it did not, f has
// returned by then. It may be called again.
func onDone(ctx context.Context, f func()) (release func() bool) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		f()
	})
	return sync.OnceValue(func() bool {
		if stop() {
			return true
		}
		<-done
		return false
	})
}

// reason is the innermost cause of a network error, without the addresses that net puts around it.
func reason(err error) string {
	var dns *net.DNSError
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timed out"
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "connection closed"
	case errors.As(err, &dns):
		return dns.Err
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}
