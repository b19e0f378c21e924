package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"mochila/internal/config"
	"mochila/internal/durable"
)

// Client talks to a node: over the control socket of its daemon, or, if none runs, over an in-memory connection to
// the same handlers in this process. The verbs cannot tell the difference.
type Client struct {
	http *http.Client
	node *Node // opened by this process
	stop func()
}

// ClientOptions are what Dial needs besides the home.
type ClientOptions struct {
	Version string
	Log     *slog.Logger // of a node opened in this process
}

// Dial finds the daemon of a home, or opens the node itself.
func Dial(ctx context.Context, home config.Home, o ClientOptions) (*Client, error) {
	path := home.ControlSocket()
	var d net.Dialer
	dial := func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
	conn, err := dial(ctx)
	if err == nil {
		return overSocket(conn, dial), nil
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, &Error{Message: fmt.Sprintf("control socket %s: permission denied", path), Hint: "be root, or a member of its group", Exit: ExitDenied}
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	n, err := Open(home, NodeOptions{Version: o.Version, Log: o.Log})
	if err != nil {
		if errors.Is(err, durable.ErrLocked) {
			return nil, &Error{Message: err.Error(), Hint: "another mochila is at work on this node: try again when it has finished", Exit: ExitTemp}
		}
		if errors.Is(err, os.ErrPermission) {
			return nil, &Error{Message: err.Error(), Hint: "be root or the daemon's user, or start the daemon", Exit: ExitDenied}
		}
		return nil, err
	}
	// What sendmail left while nobody ran is in the queue for whoever looks.
	if _, err := n.Collect(ctx); err != nil {
		n.log.Warn("maildrop", "err", err)
	}
	return inMemory(n), nil
}

// quiet is how long a new connection is good for when nothing has been said on it: servers end such ones.
const quiet = 5 * time.Second

// overSocket talks on conn, which was just made, and on what dial gives when one more is needed.
func overSocket(conn net.Conn, dial func(context.Context) (net.Conn, error)) *Client {
	first := make(chan net.Conn, 1)
	first <- conn
	unused := time.AfterFunc(quiet, func() { drop(first) })
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case conn := <-first:
			return conn, nil
		default:
			return dial(ctx)
		}
	}}
	return &Client{http: &http.Client{Transport: tr}, stop: func() {
		unused.Stop()
		drop(first)
		tr.CloseIdleConnections()
	}}
}

// drop closes a connection that nobody has taken.
func drop(c <-chan net.Conn) {
	select {
	case conn := <-c:
		conn.Close()
	default:
	}
}

// inMemory serves a node's handlers on connections that never leave the process.
func inMemory(n *Node) *Client {
	ln := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: n.Handler()}
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(ln) }()
	tr := &http.Transport{DialContext: ln.dial}
	return &Client{http: &http.Client{Transport: tr}, node: n, stop: func() {
		tr.CloseIdleConnections()
		srv.Close()
		<-served
	}}
}

// Daemon reports whether a daemon answers, not this process.
func (c *Client) Daemon() bool { return c.node == nil }

// Close ends the connection, and gives back a node that Dial opened.
func (c *Client) Close() error {
	c.stop()
	if c.node != nil {
		return c.node.Close()
	}
	return nil
}

// Get asks a verb and fills out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// Post asks a verb with in as its request and fills out, which may be nil.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	return c.do(ctx, http.MethodPost, path, body, out)
}

// Upload posts a stream.
func (c *Client) Upload(ctx context.Context, path string, body io.Reader, out any) error {
	return c.do(ctx, http.MethodPost, path, body, out)
}

// Raw copies what a verb answers to w.
func (c *Client) Raw(ctx context.Context, path string, w io.Writer) error {
	r, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_, err = io.Copy(w, r.Body)
	return err
}

// Pipe holds this node's end of a pipe open, and copies what comes to w until it ends (PipeEnd) or the other side is gone
// (PipeGone). ready is called when pieces are taken.
func (c *Client) Pipe(ctx context.Context, id, node string, w io.Writer, ready func()) (how string, err error) {
	r, err := c.send(ctx, http.MethodGet, "/v1/pipe/"+url.PathEscape(id)+"?node="+url.QueryEscape(node), nil)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	ready()
	if _, err := io.Copy(w, r.Body); err != nil {
		return "", err
	}
	if how = r.Trailer.Get(PipeTrailer); how == "" {
		return "", &Error{Message: "the daemon let go of the pipe", Hint: "mochila status; the daemon's log", Exit: ExitUnavailable}
	}
	return how, nil
}

// Export copies the stream of an export to w, which done then makes durable. When either fails, or the export does, the stream is
// worth nothing and everything is due again.
func (c *Client) Export(ctx context.Context, q ExportRequest, w io.Writer, done func() error) (*ExportReply, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.send(asking, http.MethodPost, "/v1/export", bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	reply := &ExportReply{}
	if _, err = io.Copy(w, r.Body); err == nil {
		if json.Unmarshal([]byte(r.Trailer.Get(ExportTrailer)), reply) != nil {
			err = &Error{Message: "the export broke off", Hint: "mochila status; the daemon's log", Exit: ExitTemp}
		} else if reply.Error != "" {
			return nil, &Error{Message: reply.Error, Hint: reply.Hint, Exit: reply.Exit}
		} else {
			err = done()
		}
	}
	if err == nil {
		return reply, nil
	}
	cancel() // a node that writes still gives up by itself
	names := map[string][]string{"exports": strings.Split(r.Header.Get(ExportNames), ",")}
	return nil, errors.Join(err, c.Post(context.WithoutCancel(ctx), "/v1/export/undo", names, nil))
}

// Stream posts in and hands each JSON line of the answer to each.
func (c *Client) Stream(ctx context.Context, path string, in any, each func(json.RawMessage) error) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := c.send(ctx, http.MethodPost, path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	d := json.NewDecoder(r.Body)
	for {
		var m json.RawMessage
		if err := d.Decode(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if err := each(m); err != nil {
			return err
		}
	}
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader, out any) error {
	r, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, r.Body)
		return err
	}
	if err := json.NewDecoder(r.Body).Decode(out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// send makes a request; an answer that is an error becomes one.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, method, "http://mochila"+path, body)
	if err != nil {
		return nil, err
	}
	r, err := c.http.Do(q)
	if err != nil {
		if ctx.Err() != nil {
			return nil, &Error{Message: "interrupted", Exit: ExitTemp}
		}
		return nil, &Error{Message: "talk to the daemon: " + err.Error(), Exit: ExitUnavailable}
	}
	if r.StatusCode/100 == 2 {
		return r, nil
	}
	defer r.Body.Close()
	e := &Error{Exit: ExitSoftware}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(e); err != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%s %s: %s", method, path, r.Status)
	}
	return nil, e
}

// pipeListener hands out the far ends of in-memory connections.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "in memory", Net: "unix"} }
