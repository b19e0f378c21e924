// Package bridge is the engine between a mail system and the carriers: it accepts mail into the spool, packs and
// seals it when a contact opens, takes packets from neighbours, delivers what ends here, and tells every origin how
// its envelopes ended.
//
// Stages never call each other: each leases from one queue of the spool and commits to the next in one transaction
// (docs/flow.md). All goroutines belong to Run, which waits for them.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"mochila/bridge/deliver"
	"mochila/bridge/jobs"
	"mochila/internal/envelope"
	"mochila/internal/envelope/bundle"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// Options are what a Bridge is built from.
type Options struct {
	Spool  *spool.Spool
	Keys   *seal.Keyring
	Policy *Policy
	Log    *slog.Logger
	Now    func() time.Time // nil = time.Now
	// Boot names this run of the machine and tells how long it has lasted, sleep included; nil: asked of the system where
	// Now is nil.
	Boot   func() (id string, up time.Duration, ok bool)
	Stream transport.StreamOptions // of live contacts
	// Link opens the link of a contact; nil = transport.Open of its URL.
	Link func(c *Contact) (transport.Link, error)
	// NoContacts leaves contacts to Sync: for a command that opens the node for a moment.
	NoContacts bool
	// Joined stores a peer that has come by invitation and returns the policy with it; nil = no invitations.
	Joined func(name, url string, card *seal.Card) (*Policy, error)
	// Schemes are the carriers that contacts may name; nil = transport.Schemes().
	Schemes []transport.Scheme
	// Deliver opens a delivery; nil = deliver.New.
	Deliver func(via string) (deliver.Transport, error)
	// Runner starts the programs of jobs; nil = none is started here.
	Runner jobs.Runner
}

// Bridge is one node at work. Its methods may be called from several goroutines.
type Bridge struct {
	spool   *spool.Spool
	keys    *seal.Keyring
	log     *slog.Logger
	now     func() time.Time
	opt     Options
	codec   *bundle.Codec
	benches chan struct{} // places where small loads are sealed: as many at a time as there are processors for
	policy  atomic.Pointer[Policy]
	clock   clock
	ses     sessions
	out     dispatcher
	quota   quotas
	errors  budgets
	counts  counters
	gather  gathering
	jobs    *jobs.Jobs

	mu       sync.Mutex
	contacts map[string]*contactState // by contact key
	desks    map[*desk]struct{}       // open stations
	heard    map[envelope.NodeID]time.Time
	ways     ways
	pending  map[envelope.NodeID][]record // control records that wait for a bundle

	stop context.CancelCauseFunc // ends Run; nil when it does not run

	retold map[envelope.ID]time.Time // whose end was told again lately

	delays     delayScan
	kicked     chan struct{}
	background sync.WaitGroup // carriers' watchers
}

// New prepares the engine over an open spool. It starts nothing: Run does.
func New(o Options) (*Bridge, error) {
	realClock := o.Now == nil
	if realClock {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Schemes == nil {
		o.Schemes = transport.Schemes()
	}
	b := &Bridge{
		spool: o.Spool, keys: o.Keys, log: o.Log, now: o.Now, opt: o,
		contacts: map[string]*contactState{},
		desks:    map[*desk]struct{}{},
		heard:    map[envelope.NodeID]time.Time{},
		kicked:   make(chan struct{}, 1),
	}
	if b.opt.Boot == nil && realClock {
		b.opt.Boot = sinceBoot
	}
	b.clock.boot = b.opt.Boot
	var err error
	if b.codec, err = bundle.NewCodec(); err != nil {
		return nil, fmt.Errorf("prepare the compressor: %w", err)
	}
	b.benches = make(chan struct{}, max(4, 2*runtime.GOMAXPROCS(0)))
	b.out.init(b)
	b.SetPolicy(o.Policy)
	if err := b.clock.load(b); err != nil {
		return nil, fmt.Errorf("read the clock record: %w", err)
	}
	if err := b.ses.load(b); err != nil {
		return nil, fmt.Errorf("read the sessions: %w", err)
	}
	if b.jobs, err = b.newJobs(); err != nil {
		return nil, err
	}
	if err := b.checkLife(); err != nil {
		return nil, err
	}
	if err := b.greetInviters(); err != nil {
		return nil, fmt.Errorf("look for invitations: %w", err)
	}
	return b, nil
}

// Policy returns the rules in force.
func (b *Bridge) Policy() *Policy { return b.policy.Load() }

// SetPolicy puts new rules in force at once; contacts and deliveries under way finish by the old ones.
func (b *Bridge) SetPolicy(p *Policy) {
	q := *p
	q.Limits = q.Limits.withDefaults()
	b.policy.Store(&q)
	b.out.kick()
	if b.jobs != nil {
		b.jobs.PolicyChanged()
	}
	b.kickContacts()
}

// ID is this node's id.
func (b *Bridge) ID() envelope.NodeID { return b.keys.ID() }

// Keys is this node's keyring, for cards and pairing.
func (b *Bridge) Keys() *seal.Keyring { return b.keys }

// Spool is this node's queue, for the views of the control socket.
func (b *Bridge) Spool() *spool.Spool { return b.spool }

// OnDue is the spool's callback: some legs of d became due. It never blocks.
func (b *Bridge) OnDue(d spool.Dest) {
	if _, ok := d.Via(); ok {
		b.out.due(d)
		return
	}
	if _, ok := d.Node(); ok {
		b.kickContacts()
	}
}

// Run works until ctx ends: deliveries, contacts, timers. It returns after all its goroutines have ended, with the cause
// of ctx, or spool.ErrBroken when the index failed and only a restart helps.
func (b *Bridge) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.mu.Lock()
	b.stop = cancel
	b.mu.Unlock()
	var wg sync.WaitGroup
	start := func(f func(context.Context)) {
		wg.Add(1)
		go func() { defer wg.Done(); f(ctx) }()
	}
	start(b.out.run)
	start(b.runTimers)
	start(b.runContacts)
	start(b.jobs.Run)
	wg.Wait()
	b.background.Wait() // nobody starts a watch any more
	return context.Cause(ctx)
}

// fail ends Run: the spool takes nothing any more.
func (b *Bridge) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		b.stop(err)
	}
}

// errShutdown is what a station says when the node is going down.
var errShutdown = errors.New("node is shutting down")

// origin returns the node whose envelope this is; the zero id stands for this node.
func (b *Bridge) own(e *envelope.Envelope) bool { return e.Origin.IsZero() || e.Origin == b.ID() }
