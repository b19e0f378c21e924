package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/config"
	"mochila/internal/envelope"
	"mochila/internal/submit"
)

// maker is who asks for something about jobs. The zero value is whoever may open the control socket.
type maker struct {
	limited bool   // to [jobs] submit, and to jobs of their own
	uid     int64  // local uid + 1
	user    string // its login name
}

// trust is the class that the jobs of a maker have.
func (m maker) trust() string {
	if m.limited {
		return fmt.Sprintf("uid:%d", m.uid-1)
	}
	return "control"
}

// makerKey is the key of the maker in the context of a request.
type makerKey struct{}

func makerOf(r *http.Request) maker {
	m, _ := r.Context().Value(makerKey{}).(maker)
	return m
}

// jobsFor serves the verbs on jobs for one local user.
func (n *Node) jobsFor(m maker) http.Handler {
	mux := http.NewServeMux()
	n.jobVerbs(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), makerKey{}, m)))
	})
}

// mayMake returns why a maker may not make a job.
func (n *Node) mayMake(m maker, node, channel, handler string) error {
	if !m.limited {
		return nil
	}
	p := n.bridge.Policy()
	if p.Jobs.MaySubmit(m.user, node, channel, handler) {
		return nil
	}
	what := handler
	if what == "" {
		what = "*"
	}
	return &Error{Message: fmt.Sprintf("%s may not make jobs for %s:%s:%s", m.user, node, channel, what),
		Hint: fmt.Sprintf("[jobs] submit = [%q] in the configuration of this node allows it", m.user+"="+node+":"+channel+":"+what), Exit: ExitDenied}
}

// ownJob finds the job that an id, or a unique beginning of one, names, if the maker may see it.
func (n *Node) ownJob(m maker, text string) (envelope.ID, error) {
	id, err := n.resolve(text)
	if err != nil || !m.limited {
		return id, err
	}
	v, err := n.bridge.Jobs().Show(id)
	if errors.Is(err, jobs.ErrNotFound) || err == nil && (!v.Own || v.Trust != m.trust()) {
		return id, &Error{Message: fmt.Sprintf("no job %q of %s", printable(text), m.user), Hint: "mochila jobs list shows what there is", Exit: ExitData}
	}
	return id, err
}

// resultAddress checks where a result is to be mailed.
func (n *Node) resultAddress(addr string) (string, error) {
	to := n.bridge.Qualify(addr)
	m := &envelope.Mail{Recipients: []envelope.Recipient{{Addr: to}}}
	if err := m.Check(); err != nil || strings.ContainsAny(to, "<>\" \t") {
		return "", &Error{Message: fmt.Sprintf("%q is no address that a result could be mailed to", printable(addr)), Exit: ExitUsage}
	}
	return to, nil
}

// handlerUsers names the handlers that this process cannot run as their user.
func handlerUsers(c *config.Config) (problems []string) {
	for i := range c.Handlers {
		if h := &c.Handlers[i]; h.User != "" && os.Geteuid() != 0 {
			problems = append(problems, fmt.Sprintf("handler %q has user = %q, and this node does not run as root: its jobs would not start", h.Name, h.User))
		}
	}
	return problems
}

// serveOne answers HTTP on one connection until it ends or ctx is done.
func serveOne(ctx context.Context, conn net.Conn, h http.Handler) {
	ln := &oneListener{conn: conn, done: make(chan struct{})}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, IdleTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				ln.Close()
			}
		}}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	srv.Serve(ln)
	srv.Close()
}

// oneListener gives out one connection, and ends when that has ended.
type oneListener struct {
	mu   sync.Mutex
	conn net.Conn
	done chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.conn
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *oneListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// DialJobs is Dial for the verbs on jobs: who may not open the control socket asks on the submission socket, where the
// daemon knows who it is, and grants what [jobs] submit says.
func DialJobs(ctx context.Context, home config.Home, o ClientOptions) (*Client, error) {
	c, err := Dial(ctx, home, o)
	var denied *Error
	if err == nil || !errors.As(err, &denied) || denied.Exit != ExitDenied {
		return c, err
	}
	path := home.SubmitSocket()
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		if _, err := conn.Write(submit.AppendRequest(nil, submit.VerbJobs, &submit.Mail{})); err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
	conn, derr := dial(ctx)
	if derr != nil {
		return nil, err
	}
	return overSocket(conn, dial), nil
}
