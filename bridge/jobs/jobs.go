// Package jobs keeps the ordered channels of remote jobs: at the origin it numbers them, in one transaction with the
// job itself, and keeps each until its result or expiry; at the destination it holds what came too early, starts what
// is next, and tells the origin how it ended (docs/jobs.md).
//
// It promises that the jobs of a channel start in the order of their numbers, each at most once unless its handler is
// idempotent, and that nothing is passed over but by a person, by the job's own words (expiry, key, cancellation) or by
// the handler's policy. It runs no program itself (Runner does), seals nothing and opens no link: the bridge carries
// its envelopes and records.
package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// ResultDest is the queue of results that have come home: they are kept there, with what programs wrote, until they
// expire. Nothing leases from it.
const ResultDest spool.Dest = "results"

// WaitDest is the queue of jobs of one origin that wait here for their turn. Nothing leases from it.
func WaitDest(origin envelope.NodeID) spool.Dest { return spool.Dest("jobs:" + origin.Text()) }

// Waits is the other way of WaitDest.
func Waits(d spool.Dest) (envelope.NodeID, bool) {
	text, ok := strings.CutPrefix(string(d), "jobs:")
	if !ok {
		return envelope.NodeID{}, false
	}
	id, err := envelope.ParseNodeID(text)
	return id, err == nil
}

// Handler is a program that peers may run here, as far as the order of jobs is concerned.
type Handler struct {
	Name        string
	Allow       []string // "PEER:CHANNEL", with the local names of peers; "*" is any
	Idempotent  bool     // may be started again when nobody knows whether it ran
	Tries       int      // starts of one job that end in EX_TEMPFAIL or a timeout, at most; 0 means 1
	OnFailure   string   // "stop" (default) the channel, "dead" letter, "skip"
	Unordered   bool     // its jobs wait for none before them
	Concurrency int      // jobs at once over all channels; 0 means 1
	Light       bool     // starts no program, and takes no place among those that run at once
	// Check says why a job may not bring these arguments and variables; nil: it may bring any.
	Check func(args []string, env [][2]string) error
}

// Policy is the configuration as this package needs it: an immutable value.
type Policy struct {
	Node     string                               // this node's name
	PeerName func(envelope.NodeID) (string, bool) // local names; false for a node that is no peer
	Handlers []*Handler                           // in the order of the configuration
	RetryMin time.Duration                        // first wait after a temporary failure; 0 means 1 min
	RetryMax time.Duration                        // doubling ends here; 0 means 4 h
	Lifetime time.Duration                        // of jobs and results; 0 means 60 days
	Parallel int                                  // programs at once; 0 means 8
	MaxStdin int64                                // bytes, 0 no limit
	Submit   []Grant                              // who may make jobs here, beside root and the node's user
}

// Grant allows a local user, or who authenticated by that name, to make jobs; "*" is any node, channel or handler.
type Grant struct{ User, Node, Channel, Handler string }

// MaySubmit reports whether a user may make a job for a channel of a node, by its local name. A job without handler (nop,
// barrier) needs a grant for any.
func (p *Policy) MaySubmit(user, node, channel, handler string) bool {
	if user == "" {
		return false
	}
	is := func(grant, x string) bool { return grant == "*" || x != "" && grant == x }
	for _, g := range p.Submit {
		if g.User == user && is(g.Node, node) && is(g.Channel, channel) && is(g.Handler, handler) {
			return true
		}
	}
	return false
}

// handler finds the handler of a job and the grant to use it. The reason says why there is none.
func (p *Policy) handler(origin envelope.NodeID, channel, name string) (h *Handler, reason string) {
	peer, ok := p.PeerName(origin)
	if !ok {
		return nil, "the sending node is not a peer (any more)"
	}
	for _, x := range p.Handlers {
		if x.Name != name {
			continue
		}
		if x.allows(peer, channel) {
			return x, ""
		}
		reason = fmt.Sprintf("handler %q is not granted to channel %s of node %s", name, channel, peer)
	}
	if reason == "" {
		reason = fmt.Sprintf("there is no handler %q", name)
	}
	return nil, reason
}

// knows reports whether any handler is granted to a channel of a node.
func (p *Policy) knows(origin envelope.NodeID, channel string) bool {
	peer, ok := p.PeerName(origin)
	if !ok {
		return false
	}
	for _, x := range p.Handlers {
		if x.allows(peer, channel) {
			return true
		}
	}
	return false
}

func (h *Handler) allows(peer, channel string) bool {
	for _, a := range h.Allow {
		if n, c, ok := strings.Cut(a, ":"); ok && (n == peer || n == "*") && (c == channel || c == "*") {
			return true
		}
	}
	return false
}

func (p *Policy) node(id envelope.NodeID) string {
	if n, ok := p.PeerName(id); ok {
		return n
	}
	return id.String()
}

// Start is one start of one job's program.
type Start struct {
	ID      envelope.ID
	Origin  envelope.NodeID
	Peer    string // local name of Origin
	Channel string
	Epoch   [8]byte
	Seq     uint64
	Try     int // 1 for the first
	Handler string
	Args    []string
	Env     [][2]string
	Created time.Time
	Expires time.Time
	Size    int64    // of stdin
	Sum     [32]byte // hash of stdin, as envelope.SumOf has it
	Stdin   func() (io.ReadCloser, error)

	Meanwhile func() // may be called, once, while the program runs: for work that is short and waits for nothing
	Ready     Ready  // what Prepare has made of an equal Start; it is Run's. May be nil
}

// Ready is what a runner has done for a start before it may happen.
type Ready interface {
	Close() // gives it up
}

// Preparer is a Runner that can do part of its work before a job is recorded as started: what nobody can see, and what is
// found out and done once more in Run if it no longer fits. nil: nothing.
type Preparer interface {
	Prepare(s *Start) Ready
}

// Outcome is how a program ended. Out and Err may be nil.
type Outcome struct {
	NotStarted             bool // the program never ran: Reason says why. Temporary if Exit is 75
	Exit, Signal           int
	Timeout                bool
	Unknown                bool // it ran, and something of ours went wrong: its status means nothing
	Started, Ended         time.Time
	Out, Err               io.Reader // what it wrote, up to the cap
	DroppedOut, DroppedErr int64
	Reason                 string // one line, for people
	Close                  func() // frees Out and Err; may be nil
}

// Runner runs programs.
type Runner interface {
	// Run starts the program and waits for its end. That it was started is durable before. An error, as when ctx
	// ends, means that nobody knows more than that.
	Run(ctx context.Context, s *Start) (*Outcome, error)
	// Kill ends what is left of the processes of a job that an earlier life of this node started.
	Kill(id envelope.ID) error
}

// Options are what a Jobs is built from.
type Options struct {
	Spool           *spool.Spool
	Self            envelope.NodeID
	Now             func() time.Time
	Log             *slog.Logger
	Policy          func() *Policy
	Runner          Runner                                           // nil: nothing is started here
	Incarnation     func() [8]byte                                   // of this node
	PeerIncarnation func(*spool.Tx, envelope.NodeID) ([8]byte, bool) // of a peer, by its card
	Suspect         func() bool                                      // the clock is not to be trusted
	Wake            func()                                           // there is something to send
	Patience        time.Duration                                    // how long programs may run on when Run ends
	// Compose makes the mail that tells how a job of this node ended; nil: nobody is told so.
	Compose func(*Letter) (*spool.Item, *spool.Body, error)
}

// Jobs is both sides of every channel of one node. Its methods may be called from several goroutines.
type Jobs struct {
	o     Options
	spool *spool.Spool
	log   *slog.Logger

	mu      sync.Mutex
	ctx     context.Context // of programs; nil while nothing may start
	looked  bool            // every channel was looked at since something may start
	wg      sync.WaitGroup
	active  map[lane]int                  // runners
	again   map[lane]bool                 // kicked while their runners were at work
	wake    map[chanKey]time.Time         // when to look again
	depend  map[chanKey]bool              // wait for the end of a job of another channel
	flying  map[string]bool               // jobs in no order that a runner has, by their keys
	inUse   map[string]int                // running programs by handler
	total   int                           // running programs
	slots   chan struct{}                 // closed and made anew when a program ends
	owing   map[envelope.NodeID]time.Time // when channel records for a peer are due
	waiters map[envelope.ID][]chan struct{}
	awaited map[envelope.ID]Awaited // those of waiters that are at another node
	poke    chan struct{}
	idle    chan struct{} // closed and made anew when a runner ends
}

// chanKey names a channel together with the node at its other end.
type chanKey struct {
	peer    envelope.NodeID
	channel string
}

// Errors of this package; what went wrong with a request is in the text.
var (
	ErrNotFound = errors.New("no such job")
	ErrState    = errors.New("not possible now")
)

// New prepares the channels of a spool. It starts nothing; Run does.
func New(o Options) (*Jobs, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Suspect == nil {
		o.Suspect = func() bool { return false }
	}
	if o.Wake == nil {
		o.Wake = func() {}
	}
	if o.PeerIncarnation == nil {
		o.PeerIncarnation = func(*spool.Tx, envelope.NodeID) (i [8]byte, ok bool) { return i, false }
	}
	j := &Jobs{o: o, spool: o.Spool, log: o.Log, active: map[lane]int{}, again: map[lane]bool{},
		wake: map[chanKey]time.Time{}, depend: map[chanKey]bool{}, flying: map[string]bool{}, inUse: map[string]int{},
		slots: make(chan struct{}), owing: map[envelope.NodeID]time.Time{}, waiters: map[envelope.ID][]chan struct{}{}, awaited: map[envelope.ID]Awaited{},
		poke: make(chan struct{}, 1), idle: make(chan struct{})}
	if err := j.recover(); err != nil {
		return nil, fmt.Errorf("take up the jobs that were running: %w", err)
	}
	return j, nil
}

// limits returns the policy with its defaults.
func (j *Jobs) policy() *Policy {
	p := *j.o.Policy()
	set := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	set(&p.RetryMin, time.Minute)
	set(&p.RetryMax, 4*time.Hour)
	set(&p.Lifetime, 60*24*time.Hour)
	if p.Parallel == 0 {
		p.Parallel = 8
	}
	if p.PeerName == nil {
		p.PeerName = func(envelope.NodeID) (string, bool) { return "", false }
	}
	return &p
}

// emptyBody is content of no bytes.
func (j *Jobs) emptyBody() (*spool.Body, error) {
	b := j.spool.NewBody()
	return b, b.Finish()
}

// laterEpoch reports whether a began after b.
func laterEpoch(a, b [8]byte) bool { return bytes.Compare(a[:], b[:]) > 0 }
