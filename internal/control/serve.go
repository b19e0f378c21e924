package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"mochila/internal/config"
	"mochila/internal/durable"
	"mochila/internal/seal"
	"mochila/smtpd"
	"mochila/smtpd/submission"
	"mochila/spool"
	"mochila/transport"
)

// ServeOptions are what the daemon needs besides its home.
type ServeOptions struct {
	Version string
	Log     *slog.Logger
	Reload  <-chan struct{} // each value reads the configuration again
	Ready   func()          // called once everything listens
	// Reloaded is called after the configuration has been read again, or refused; nil: nobody wants to know.
	Reloaded func()
	// Sockets are listening sockets of a service manager, for the addresses of [smtp] and [link] listen. Serve closes
	// them.
	Sockets []*os.File
	// Alive is called each Watchdog, when that is not 0, as long as the daemon's loop runs and its index answers.
	Alive    func()
	Watchdog time.Duration
}

// grace is how long requests on the control socket may take to end after a shutdown began; for mail, [smtp] finish
// says so.
const grace = 10 * time.Second

// Serve runs the daemon of a home until ctx ends: SMTP and LMTP listeners, the submission socket and the maildrop,
// the control socket, neighbours' calls, contacts and deliveries.
func Serve(ctx context.Context, home config.Home, o ServeOptions) error {
	n, err := openPatiently(ctx, home, NodeOptions{Version: o.Version, Log: o.Log, Daemon: true})
	if err != nil {
		return err
	}
	defer n.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &daemon{Node: n, cancel: cancel}
	if d.sockets, err = inherit(o.Sockets); err == nil {
		err = d.start(ctx)
	}
	if err != nil {
		cancel(err)
		d.stop()
		return err
	}
	n.log.Info(fmt.Sprintf("daemon started -- version %s, node %s", o.Version, n.config().Name), "service", "master")
	if o.Ready != nil {
		o.Ready()
	}
	var pulse <-chan time.Time
	if o.Watchdog > 0 {
		t := time.NewTicker(o.Watchdog)
		defer t.Stop()
		pulse = t.C
	}
	for {
		select {
		case <-pulse:
			if n.spool.View(func(*spool.Tx) error { return nil }) == nil {
				o.Alive()
			}
		case <-ctx.Done():
			d.stop()
			n.log.Info("daemon stopped", "service", "master")
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
				return cause
			}
			return nil
		case <-o.Reload:
			if err := n.Reload(); err != nil {
				n.log.Error("reload", "err", err)
			} else {
				n.log.Info("configuration reloaded", "service", "master")
			}
			if d.cert != nil {
				d.cert.reload()
			}
			if o.Reloaded != nil {
				o.Reloaded()
			}
		}
	}
}

// lockPatience is how long a daemon that starts waits for a command that has the node open for a moment.
const lockPatience = 10 * time.Second

// openPatiently is Open, but waits for a command that is at work on the node. It does not wait for another daemon.
func openPatiently(ctx context.Context, home config.Home, o NodeOptions) (*Node, error) {
	for end := time.Now().Add(lockPatience); ; {
		n, err := Open(home, o)
		if !errors.Is(err, durable.ErrLocked) || time.Now().After(end) {
			return n, err
		}
		if conn, err2 := net.Dial("unix", home.ControlSocket()); err2 == nil {
			conn.Close()
			return n, err
		}
		select {
		case <-ctx.Done():
			return n, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// daemon is a node with its listeners.
type daemon struct {
	*Node
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup
	servers []*smtpd.Server
	sockets inherited    // of the service manager, not yet used
	cert    *certificate // of [smtp] tls_cert; nil: none
	http    *http.Server
	metrics []*http.Server
}

// go_ runs one part of the daemon; its failure ends all.
func (d *daemon) run(ctx context.Context, what string, f func(context.Context) error) {
	d.wg.Add(1)
	go func() {
		defer d.wg.Done()
		if err := f(ctx); err != nil && ctx.Err() == nil {
			d.cancel(fmt.Errorf("%s: %w", what, err))
		}
	}()
}

func (d *daemon) start(ctx context.Context) error {
	if err := makeHome(d.home); err != nil {
		return err
	}
	if err := d.listenMail(ctx); err != nil {
		return err
	}
	if err := d.listenSubmission(ctx); err != nil {
		return err
	}
	if err := d.listenLinks(ctx); err != nil {
		return err
	}
	if err := d.listenSocket(ctx); err != nil {
		return err
	}
	if err := d.listenMetrics(ctx); err != nil {
		return err
	}
	if err := d.listenControl(ctx); err != nil {
		return err
	}
	for _, ln := range d.sockets {
		d.log.Warn(fmt.Sprintf("the service manager listens on %s, which is neither in [smtp] listen nor in [link] listen", ln.Addr()))
	}
	d.sockets.close()
	d.sockets = nil
	d.run(ctx, "engine", d.bridge.Run)
	d.run(ctx, "maildrop", d.watchMaildrop)
	return nil
}

// stop waits for what is under way: mails inside DATA are finished, the rest is told to come again.
func (d *daemon) stop() {
	d.sockets.close()
	mail, cancelMail := context.WithTimeout(context.Background(), time.Duration(d.config().SMTP.Finish))
	defer cancelMail()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range d.servers {
		wg.Add(1)
		go func() { defer wg.Done(); s.Shutdown(mail) }()
	}
	if d.http != nil {
		d.http.Shutdown(ctx)
	}
	for _, s := range d.metrics {
		s.Shutdown(ctx)
	}
	wg.Wait()
	d.wg.Wait()
}

func (n *Node) smtpLimits() smtpd.Limits {
	c := n.config()
	return smtpd.Limits{Recipients: c.SMTP.MaxRecipients, MessageSize: int64(c.SMTP.MaxSize), Received: c.Limits.Received,
		Conns: c.SMTP.Conns, ConnsPerClient: c.SMTP.ClientConns, ConnRate: c.SMTP.ClientRate, MailRate: c.SMTP.MailRate}
}

// server makes the server of one listener of the configuration.
func (d *daemon) server(proto string) (*smtpd.Server, error) {
	n := d.Node
	c := n.config()
	s := &smtpd.Server{Acceptor: mailDesk{n.bridge, n}, Hostname: c.SMTP.Hostname, LMTP: proto == config.LMTP, ImplicitTLS: proto == config.SMTPS,
		Limits: n.smtpLimits(), RelayFrom: c.SMTP.Prefixes(), ProxyFrom: c.SMTP.Proxies(), Normalize: c.SMTP.Normalize,
		Accounts: accounts{n.accounts, c.Domain}, AuthWithoutTLS: c.SMTP.AuthWithoutTLS, RequireTLS: c.SMTP.RequireTLS, Verify: c.SMTP.Vrfy,
		Log: n.log.With("service", "smtpd")}
	if len(c.SMTP.OpenTo) > 0 {
		open, err := patterns(c.SMTP.OpenTo)
		if err != nil {
			return nil, fmt.Errorf("[smtp] open_to: %w", err)
		}
		s.OpenTo = func(addr string) bool {
			if strings.EqualFold(addr, "postmaster") {
				return true // RFC 5321 section 4.5.1
			}
			addr = n.bridge.Qualify(addr) // what it stands for
			for _, p := range open {
				if p.Match(addr) {
					return true
				}
			}
			return false
		}
	}
	if c.SMTP.TLSCert != "" {
		if d.cert == nil {
			var err error
			if d.cert, err = newCertificate(c.SMTP.TLSCert, c.SMTP.TLSKey, n.log.With("service", "smtpd")); err != nil {
				return nil, err
			}
		}
		s.TLS = d.cert.config()
	}
	return s, nil
}

func (d *daemon) listenMail(ctx context.Context) error {
	for _, l := range d.config().SMTP.Listen {
		var ln net.Listener
		var err error
		if ln = d.sockets.take(l.Network, l.Addr); ln != nil {
			d.log.Info(fmt.Sprintf("socket %s was handed over", l))
		} else if l.Network == "unix" {
			if err = os.MkdirAll(filepath.Dir(l.Addr), 0o755); err == nil {
				ln, err = smtpd.ListenUnix(l.Addr, smtpd.SocketMode)
			}
		} else {
			ln, err = net.Listen("tcp", l.Addr)
		}
		if err != nil {
			return &Error{Message: fmt.Sprintf("listen on %s: %v", l, err), Hint: "is another daemon there? change [smtp] listen", Exit: ExitUnavailable}
		}
		s, err := d.server(l.Proto)
		if err != nil {
			ln.Close()
			return err
		}
		d.servers = append(d.servers, s)
		d.limited(s)
		d.listens = append(d.listens, l.String())
		d.run(ctx, "listener "+l.String(), func(ctx context.Context) error {
			// the server drains in stop, not when ctx ends: a mail inside DATA is finished
			err := s.Serve(context.WithoutCancel(ctx), ln)
			if errors.Is(err, smtpd.ErrClosed) {
				return nil
			}
			return err
		})
	}
	return nil
}

func (d *daemon) listenSubmission(ctx context.Context) error {
	ln, err := submission.Listen(d.home.SubmitSocket())
	if err != nil {
		return err
	}
	smtp, err := d.server("")
	if err != nil {
		ln.Close()
		return err
	}
	d.servers = append(d.servers, smtp)
	d.limited(smtp)
	c := d.config()
	srv := submission.New(&submitDesk{Node: d.Node, smtp: smtp}, submission.Options{MaxSize: int64(c.SMTP.MaxSize),
		MaxRecipients: c.SMTP.MaxRecipients, Owner: int64(os.Geteuid()), Log: d.log.With("service", "pickup")})
	d.run(ctx, "submission socket", func(ctx context.Context) error { return srv.Serve(ctx, ln) })
	return nil
}

func (d *daemon) listenLinks(ctx context.Context) error {
	for _, addr := range d.config().Link.Listen {
		if strings.HasPrefix(addr, "serial:") {
			if err := d.listenSerial(ctx, addr); err != nil {
				return err
			}
			continue
		}
		ln, err := d.sockets.listen(addr)
		if err != nil {
			return &Error{Message: fmt.Sprintf("listen for neighbours on %s: %v", addr, err), Hint: "change [link] listen", Exit: ExitUnavailable}
		}
		d.listens = append(d.listens, "link:"+addr)
		srv := d.linkServer()
		d.run(ctx, "link listener "+addr, func(ctx context.Context) error { return srv.Serve(ctx, ln) })
	}
	return nil
}

// listenSocket answers live contacts on run/link.sock: mochila receive --link joins its standard input and output to
// it, for ssh and whatever else calls this node with a stream.
func (d *daemon) listenSocket(ctx context.Context) error {
	ln, err := smtpd.ListenUnix(d.home.LinkSocket(), smtpd.SocketMode)
	if err != nil {
		return fmt.Errorf("link socket: %w", err)
	}
	srv := d.linkServer()
	d.run(ctx, "link socket", func(ctx context.Context) error { return srv.Serve(ctx, ln) })
	return nil
}

// linkServer answers neighbours' calls.
func (n *Node) linkServer() *transport.Server {
	return &transport.Server{Reception: n.bridge, Log: n.log.With("service", "link"), Stream: n.stream()}
}

func (n *Node) stream() transport.StreamOptions {
	return transport.StreamOptions{Partials: n.partials, MaxSize: 1 << 40, Log: n.log}
}

// Link runs one live contact with whoever called over s: through the daemon, or with the node opened here.
func (c *Client) Link(ctx context.Context, home config.Home, s transport.Stream) error {
	if c.node != nil {
		run, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); c.node.bridge.Run(run) }()
		_, err := transport.Answer(ctx, s, c.node.bridge, c.node.stream())
		c.node.settle(ctx)
		cancel()
		<-done
		return err
	}
	conn, err := transport.NewUnix(home.LinkSocket()).Dial(ctx)
	if err != nil {
		return &Error{Message: fmt.Sprintf("link socket of the daemon: %v", err), Exit: ExitUnavailable}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); s.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, s)
		if h, ok := conn.(interface{ CloseWrite() error }); ok {
			h.CloseWrite()
		}
		sent <- err
	}()
	_, err = io.Copy(s, conn)
	s.Close()
	<-sent
	return err
}

func (d *daemon) listenControl(ctx context.Context) error {
	ln, err := smtpd.ListenUnix(d.home.ControlSocket(), smtpd.SocketMode)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	d.http = &http.Server{Handler: d.Handler(), ReadHeaderTimeout: time.Minute, BaseContext: func(net.Listener) context.Context { return ctx }}
	d.run(ctx, "control socket", func(context.Context) error {
		if err := d.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

// watchMaildrop collects what sendmail left while no daemon answered: at start, at a hint, and each half minute.
func (d *daemon) watchMaildrop(ctx context.Context) error {
	var hints chan fsnotify.Event
	if w, err := fsnotify.NewWatcher(); err == nil {
		defer w.Close()
		if w.Add(d.drop.Path()) == nil {
			hints = w.Events
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-hints:
			if e.Op&(fsnotify.Create|fsnotify.Rename) == 0 {
				continue
			}
		case <-timer.C:
		}
		if _, err := d.Collect(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("maildrop", "err", err)
		}
		timer.Reset(30 * time.Second)
	}
}

// InitOptions are what a new node is made of.
type InitOptions struct {
	Name    string
	Domain  string   // default NAME.mochila
	Maildir string   // mail that ends here goes to a Maildir per user below this folder
	Via     string   // or to this delivery URL
	Bounce  string   // where error reports go that nothing else takes
	Listen  []string // [smtp] listen
}

// InitReply tells what was made.
type InitReply struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	Home string `json:"home"`
	Card string `json:"card"`
}

// Init makes a node: identity, configuration, spool. An existing one is left alone.
func Init(_ context.Context, home config.Home, o InitOptions) (*InitReply, error) {
	if home.Initialized() {
		return nil, &Error{Message: fmt.Sprintf("there is a node at %s already", home.ConfigDir), Hint: "choose another --home, or edit " + home.Config(), Exit: ExitCreate}
	}
	if err := config.CheckName(o.Name); err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitUsage}
	}
	via := o.Via
	if o.Maildir != "" {
		if via != "" {
			return nil, &Error{Message: "both a Maildir and a delivery URL were given", Hint: "give one of --maildir and --deliver", Exit: ExitUsage}
		}
		abs, err := filepath.Abs(o.Maildir)
		if err != nil {
			return nil, err
		}
		via = "maildir:" + filepath.Join(abs, "%u")
	}
	domain := o.Domain
	if domain == "" {
		domain = o.Name + ".mochila"
	}
	keys, err := seal.Create(home.IdentityDir, seal.Options{Name: o.Name, Domains: []string{domain}, Now: time.Now()})
	if err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitCreate}
	}
	if err := config.WriteInitial(home, config.Initial{Name: o.Name, Domain: o.Domain, Listen: o.Listen, Via: via, Bounce: o.Bounce}); err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitCreate}
	}
	if err := makeHome(home); err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitCreate}
	}
	if err := giveToDaemon(home); err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitCreate}
	}
	n, err := Open(home, NodeOptions{})
	if err != nil {
		return nil, err
	}
	defer n.Close()
	return &InitReply{Name: o.Name, ID: keys.ID().String(), Home: home.ConfigDir, Card: keys.Card().Text()}, nil
}
