// Package submission is the socket on which local programs hand mail to the daemon (docs/submission.md). Who they
// are is what the kernel says, never what they write. One connection carries one request; each has its own
// deadlines, and one user's connections cannot take the place of another's.
package submission

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/passwd"
	"mochila/internal/submit"
	"mochila/internal/submit/frame"
	"mochila/smtpd"
)

// Desk is what stands behind the socket. Errors that are (or wrap) *envelope.Status reach the client with a fitting
// exit status; the text of any other error goes to the log only.
type Desk interface {
	// Submit begins to take a mail. m is complete, m.Client tells who submits; addresses may lack a domain.
	// m.Body may still become "BINARYMIME" before Commit is called, when the content turns out to be binary.
	Submit(ctx context.Context, m *envelope.Mail) (smtpd.Intake, error)
	// List writes the queue as mailq prints it: the mail of one user, or all of it.
	List(ctx context.Context, uid int64, all bool, w io.Writer) error
	// Flush tries what is waiting now: all of it, or what goes to one site (a domain or node name).
	Flush(ctx context.Context, uid int64, site string) error
	// Verify tells in one line where mail to addr would go.
	Verify(ctx context.Context, addr string) (string, error)
	// ServeSMTP speaks SMTP with a local user until the connection ends, and closes it. It returns soon after ctx
	// is done.
	ServeSMTP(ctx context.Context, conn net.Conn, uid int64)
	// ServeJobs answers the verbs on remote jobs of the control API, within what the user may, and closes the
	// connection. user is the login name. It returns soon after ctx is done.
	ServeJobs(ctx context.Context, conn net.Conn, uid int64, user string)
}

// Options bound what local users may do. Zero values take the defaults.
type Options struct {
	MaxSize       int64                  // bytes of one message; default 50 MiB
	MaxRecipients int                    // of one message; default 1000
	PerUser       int                    // connections of one uid at a time; default 256. More are sent to the maildrop
	Total         int                    // connections at a time; default 1024
	Idle          time.Duration          // that a client may take for the next piece; default 1 minute
	Owner         int64                  // uid that sees the whole queue beside root; 0 is root itself
	User          func(uid int64) string // login name; nil asks the system
	Log           *slog.Logger           // nil discards
}

// Server answers on submission sockets.
type Server struct {
	desk Desk
	opt  Options

	mu    sync.Mutex
	conns map[net.Conn]*conn
	users map[int64]int
}

// New prepares a server. It starts nothing.
func New(desk Desk, o Options) *Server {
	if o.MaxSize <= 0 {
		o.MaxSize = 50 << 20
	}
	if o.MaxRecipients <= 0 {
		o.MaxRecipients = 1000
	}
	if o.PerUser <= 0 {
		o.PerUser = 256
	}
	if o.Total <= 0 {
		o.Total = 1024
	}
	if o.Idle <= 0 {
		o.Idle = time.Minute
	}
	if o.User == nil {
		o.User = LoginName
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{desk: desk, opt: o, conns: map[net.Conn]*conn{}, users: map[int64]int{}}
}

// LoginName asks the system for the name of a uid; it is "uid1000" when there is none.
func LoginName(uid int64) string {
	id := strconv.FormatInt(uid, 10)
	if u, err := passwd.LookupID(id); err == nil && u.Username != "" {
		return u.Username
	}
	return "uid" + id
}

// Serve answers on l until ctx is done, then closes l and returns when the last connection has ended: a mail that
// was whole by then is still committed and acknowledged, what is incomplete is dropped. It returns nil after ctx is
// done, else why the listener broke.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		s.interrupt()
	})
	defer stop()
	ended := make(chan error, 1)
	var next func()
	next = func() {
		nc, err := accept(ctx, l)
		if nc == nil {
			ended <- err
			return
		}
		wg.Go(next) // whoever is awake serves, and lets another one wait
		s.serve(ctx, nc)
	}
	wg.Go(next)
	return <-ended
}

// accept returns the next connection; none when ctx is done or the listener broke.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			return nc, nil
		case ctx.Err() != nil:
			return nil, nil
		case !temporary(err):
			return nil, fmt.Errorf("submission socket: %w", err)
		}
		// Out of descriptors: connections that end free some.
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// interrupt ends every read in progress.
func (s *Server) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.interrupt()
	}
}

// enter counts a connection in, unless its user or everybody together has too many.
func (s *Server) enter(nc net.Conn, uid int64) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.opt.Total || s.users[uid] >= s.opt.PerUser {
		return nil
	}
	c := &conn{Conn: nc, idle: s.opt.Idle}
	s.conns[nc] = c
	s.users[uid]++
	return c
}

func (s *Server) leave(nc net.Conn, uid int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, nc)
	if s.users[uid]--; s.users[uid] == 0 {
		delete(s.users, uid)
	}
}

// conn is a connection whose deadline moves with each piece, until it is interrupted.
type conn struct {
	net.Conn
	idle time.Duration

	mu   sync.Mutex
	done bool
}

func (c *conn) touch(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done {
		c.SetReadDeadline(now.Add(c.idle))
	}
	c.SetWriteDeadline(now.Add(c.idle))
}

func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	c.SetReadDeadline(time.Unix(1, 0))
}

func (s *Server) serve(ctx context.Context, nc net.Conn) {
	defer nc.Close()
	uid, err := peerUID(nc)
	if err != nil {
		s.opt.Log.Error("submission: who is it", "err", err)
		return
	}
	c := s.enter(nc, uid)
	if c == nil {
		nc.SetWriteDeadline(time.Now().Add(time.Second))
		frame.NewReply(nc).End(submit.Busy, "too many connections")
		return
	}
	defer s.leave(nc, uid)
	c.touch(time.Now())
	if ctx.Err() != nil {
		frame.NewReply(c).End(submit.Busy, "the daemon stops")
		return
	}
	b := buffers.Get().(*bufio.ReadWriter)
	b.Reader.Reset(c)
	b.Writer.Reset(c)
	reply := frame.NewReply(b.Writer)
	text, err := s.answer(ctx, c, uid, b.Reader, reply)
	if errors.Is(err, errTaken) {
		return
	}
	defer buffers.Put(b)
	code := uint8(0)
	if err != nil {
		code, text = s.fault(uid, err)
	}
	c.touch(time.Now())
	if err := errors.Join(reply.End(code, text), b.Flush()); err != nil {
		s.opt.Log.Info("submission: reply lost", "uid", uid, "err", err)
	}
}

// buffers are those of connections that have ended: a small mail would be a tenth of the memory that was made for it.
var buffers = sync.Pool{New: func() any {
	return bufio.NewReadWriter(bufio.NewReaderSize(nil, 16<<10), bufio.NewWriterSize(nil, 16<<10))
}}

// errTaken says that somebody else spoke with the client.
var errTaken = errors.New("connection taken over")

// answer does what one request asks for.
func (s *Server) answer(ctx context.Context, c *conn, uid int64, br *bufio.Reader, out io.Writer) (string, error) {
	fr := frame.NewReader(br)
	q, err := fr.Request()
	if err != nil {
		return "", err
	}
	c.touch(time.Now())
	switch q.Verb {
	case submit.VerbSubmit:
		return s.submit(ctx, c, uid, q, fr)
	case submit.VerbList:
		return "", s.desk.List(ctx, uid, uid == 0 || uid == s.opt.Owner, touching{out, c})
	case submit.VerbFlush:
		return "", s.desk.Flush(ctx, uid, q.Site)
	case submit.VerbVerify:
		return "", s.verify(ctx, q, out)
	}
	c.SetDeadline(time.Time{})
	if ctx.Err() != nil {
		return "", errTaken
	}
	if q.Verb == submit.VerbJobs {
		s.desk.ServeJobs(ctx, &buffered{Conn: c.Conn, r: br}, uid, s.opt.User(uid))
	} else {
		s.desk.ServeSMTP(ctx, &buffered{Conn: c.Conn, r: br}, uid)
	}
	return "", errTaken
}

// buffered is a connection of which some bytes were read ahead.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// touching moves the deadline with each piece of output.
type touching struct {
	w io.Writer
	c *conn
}

func (t touching) Write(p []byte) (int, error) {
	t.c.touch(time.Now())
	return t.w.Write(p)
}

func (s *Server) verify(ctx context.Context, q *frame.Request, out io.Writer) error {
	var first error
	for i := range q.Mail.Recipients {
		addr := q.Mail.Recipients[i].Addr
		line, err := s.desk.Verify(ctx, addr)
		if err != nil {
			if first == nil {
				first = err
			}
			var st *envelope.Status
			if !errors.As(err, &st) {
				return err
			}
			line = addr + " ... " + st.Error()
		}
		if _, err := io.WriteString(out, envelope.OneLine(line, submit.MaxText)+"\n"); err != nil {
			return err
		}
	}
	return first
}

func (s *Server) submit(ctx context.Context, c *conn, uid int64, q *frame.Request, fr *frame.Reader) (string, error) {
	if q.Size > s.opt.MaxSize {
		return "", fmt.Errorf("%w: more than %d bytes", frame.ErrTooBig, s.opt.MaxSize)
	}
	if n := len(q.Mail.Recipients); n > s.opt.MaxRecipients {
		return "", envelope.NewStatus(554, "5.5.3", fmt.Sprintf("%d recipients, more than %d", n, s.opt.MaxRecipients))
	}
	q.Stamp(frame.Submitter{UID: uid, Name: s.opt.User(uid), Trusted: uid == 0 || uid == s.opt.Owner})
	in, err := s.desk.Submit(ctx, q.Mail)
	if err != nil {
		return "", err
	}
	content := fr.Content(s.opt.MaxSize)
	content.Touch = c.touch
	return content.Into(ctx, in, q.Mail)
}

// fault turns an error into an exit status of sysexits.h and a text for the user.
func (s *Server) fault(uid int64, err error) (code uint8, text string) {
	var st *envelope.Status
	switch {
	case errors.As(err, &st):
		return exitOf(st), st.Text
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.Canceled):
		// The client is too slow for this connection, or the daemon stops: nothing is committed.
		s.opt.Log.Info("submission: broken off", "uid", uid, "err", err)
		return submit.Busy, "broken off"
	case errors.Is(err, frame.ErrTooBig):
		return submit.ExDataErr, err.Error()
	case errors.Is(err, frame.ErrFormat):
		s.opt.Log.Info("submission: refused", "uid", uid, "err", err)
		return submit.ExProtocol, err.Error()
	}
	s.opt.Log.Error("submission: failed", "uid", uid, "err", err)
	return submit.ExTempFail, "temporary failure; the log of the daemon has the reason"
}

// exitOf is the exit status that sendmail gives for a reply.
func exitOf(st *envelope.Status) uint8 {
	if st.Temporary() {
		return submit.ExTempFail
	}
	switch st.Enhanced {
	case "5.1.1", "5.1.3", "5.1.6":
		return submit.ExNoUser
	case "5.1.2", "5.1.10", "5.4.4":
		return submit.ExNoHost
	}
	if len(st.Enhanced) > 3 && st.Enhanced[:4] == "5.7." {
		return submit.ExNoPerm
	}
	return submit.ExDataErr
}

// Listen opens the submission socket at path for every local user, in place of a dead one. The caller holds the
// lock of the spool: no other daemon of this node lives. Paths that are too long for a socket address work where
// there is /proc.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old submission socket: %w", err)
	}
	at := path
	if len(path) > 107 {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, fmt.Errorf("submission socket: %w", err)
		}
		defer dir.Close()
		at = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("submission socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("submission socket: %w", err)
	}
	return l, nil
}
