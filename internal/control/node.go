package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mochila/bridge"
	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/internal/account"
	"mochila/internal/config"
	"mochila/internal/dkim"
	"mochila/internal/durable"
	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/smtpd"
	"mochila/smtpd/submission"
	"mochila/spool"
	"mochila/spool/maildrop"
	"mochila/transport"
	"mochila/transport/all"
	"mochila/transport/export"
	"mochila/transport/letter"
)

// Node is one home in use: its keys, its spool and the engine over them. One process at a time holds a node.
type Node struct {
	home     config.Home
	version  string
	log      *slog.Logger
	keys     *seal.Keyring
	spool    *spool.Spool
	bridge   *bridge.Bridge
	runner   *runner
	drop     *maildrop.Dir
	partials *transport.Partials
	accounts *account.Book // who may log in at the SMTP port
	letters  *letter.Box
	imports  *export.Importer
	pipes    *pipes // streams that programs here hold open with other nodes
	started  time.Time
	daemon   bool
	listens  []string

	delivered atomic.Int64 // mails handed to somebody here, for what a sync tells

	collect sync.Mutex // one Collect at a time
	reading sync.Mutex // one configuration at a time is read and put in force; taken before mu
	mu      sync.Mutex // guards what follows
	cfg     *config.Config
	warn    []string
	dkim    dkim.Keys
	paused  map[string]bool // contacts, by node name
	joined  []string        // guests that became peers, since the last look
	smtp    []*smtpd.Server // whose limits follow a reload
}

// NodeOptions are what opening a node needs besides its home.
type NodeOptions struct {
	Version string
	Log     *slog.Logger
	Daemon  bool // contacts are made by their timetables
}

// ErrNoNode says that there is no node at a home yet.
var ErrNoNode = errors.New("there is no node here yet")

// Open opens the node of a home. The spool's lock is taken: an error names who holds it.
func Open(home config.Home, o NodeOptions) (*Node, error) {
	if !home.Initialized() {
		return nil, &Error{Message: fmt.Sprintf("no node at %s: %s", home.ConfigDir, ErrNoNode), Hint: "mochila init NAME makes one", Exit: ExitConfig}
	}
	if err := becomeOwner(home); err != nil {
		return nil, err
	}
	cfg, warnings, err := config.Load(home)
	if err != nil {
		return nil, &Error{Message: "read the configuration: " + err.Error(), Hint: "mend the file; mochila check shows all problems", Exit: ExitConfig}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{accounts: account.Open(home.Accounts()), home: home, version: o.Version, log: o.Log, cfg: cfg, started: time.Now(), daemon: o.Daemon, paused: map[string]bool{}}
	for _, w := range warnings {
		n.warn = append(n.warn, w.Error())
	}
	if err := n.open(o); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) open(o NodeOptions) (err error) {
	reserve := int64(n.cfg.Limits.Reserve)
	if n.cfg.Limits.Reserve == 0 {
		reserve = -1
	}
	var engine atomic.Pointer[bridge.Bridge] // the spool's writer looks at it from its own goroutine
	n.spool, err = spool.Open(n.home.SpoolDir, spool.Options{
		Reserve: reserve, QuarantineMax: int64(n.cfg.Limits.Quarantine), TraceKeep: n.cfg.Limits.TraceKeep,
		TraceAge: time.Duration(n.cfg.Limits.TraceAge),
		OnDue: func(d spool.Dest) {
			if b := engine.Load(); b != nil {
				b.OnDue(d)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("open the spool: %w", err)
	}
	if n.keys, err = seal.Open(n.home.IdentityDir, seal.Options{}); err != nil {
		return err
	}
	if n.partials, err = transport.OpenPartials(n.spool.PartialDir(), 4<<30); err != nil {
		return err
	}
	if n.letters, err = letter.OpenBox(filepath.Join(n.home.SpoolDir, "letters"), letter.BoxOptions{}); err != nil {
		return err
	}
	if n.imports, err = n.openImporter(); err != nil {
		return err
	}
	if n.dkim, err = dkimKeys(n.cfg); err != nil {
		return &Error{Message: err.Error(), Hint: "mend the file, or take its [[dkim]] out", Exit: ExitConfig}
	}
	policy, err := n.policy(n.cfg)
	if err != nil {
		return err
	}
	n.pipes = newPipes()
	n.runner = newRunner(n)
	b, err := bridge.New(bridge.Options{
		Spool: n.spool, Keys: n.keys, Policy: policy, Log: n.log, Joined: n.joinedBy, NoContacts: !o.Daemon,
		Runner: n.runner,
		Stream: n.stream(), Schemes: all.Schemes(),
		Deliver: func(via string) (deliver.Transport, error) {
			if via == viaPackets {
				return packetsDesk{n}, nil
			}
			t, err := deliver.New(via, deliver.Options{Hostname: n.config().SMTP.Hostname, Domain: n.config().Domain, Home: n.home.Base,
				TempDir: n.spool.TempDir(), MaxConns: n.config().Limits.Deliveries})
			if err != nil {
				return nil, err
			}
			return counted{t, &n.delivered}, nil
		},
	})
	if err != nil {
		return err
	}
	n.bridge = b
	engine.Store(b)
	n.drop, err = maildrop.Open(n.home.MaildropDir, n.cfg.Domain, (*dropDesk)(n), maildrop.Options{
		MaxSize: int64(n.cfg.SMTP.MaxSize), Owner: int64(os.Geteuid()), User: submission.LoginName, Log: n.log,
	})
	return err
}

// counted counts the mails that a delivery hands over.
type counted struct {
	deliver.Transport
	n *atomic.Int64
}

func (c counted) Deliver(ctx context.Context, m *deliver.Message) []deliver.Result {
	rs := c.Transport.Deliver(ctx, m)
	for _, r := range rs {
		if r.Action == envelope.ActionDelivered || r.Action == envelope.ActionRelayed {
			c.n.Add(1)
			break
		}
	}
	return rs
}

// Close gives the node back.
func (n *Node) Close() error {
	var errs []error
	if n.partials != nil {
		errs = append(errs, n.partials.Close())
	}
	if n.imports != nil {
		errs = append(errs, n.imports.Close())
	}
	if n.runner != nil {
		errs = append(errs, n.runner.Close())
	}
	if n.spool != nil {
		errs = append(errs, n.spool.Close())
	}
	return errors.Join(errs...)
}

func (n *Node) config() *config.Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cfg
}

// Reload reads the configuration again. A broken one changes nothing.
func (n *Node) Reload() error {
	n.reading.Lock()
	defer n.reading.Unlock()
	cfg, warnings, err := config.Load(n.home)
	if err != nil {
		return &Error{Message: "read the configuration: " + err.Error(), Hint: "the old configuration stays in force", Exit: ExitConfig}
	}
	p, err := n.policy(cfg)
	if err != nil {
		return &Error{Message: err.Error(), Hint: "the old configuration stays in force", Exit: ExitConfig}
	}
	keys, err := dkimKeys(cfg)
	if err != nil {
		return &Error{Message: err.Error(), Hint: "the old configuration stays in force", Exit: ExitConfig}
	}
	n.mu.Lock()
	old := n.cfg
	n.cfg, n.warn, n.dkim = cfg, nil, keys
	for _, w := range warnings {
		n.warn = append(n.warn, w.Error())
	}
	was, is := old.SMTP, cfg.SMTP
	was.MaxSize, was.MaxRecipients = is.MaxSize, is.MaxRecipients // these follow at once
	if n.daemon && (!reflect.DeepEqual(was, is) || !reflect.DeepEqual(old.Link, cfg.Link)) {
		n.log.Warn("[smtp] or [link] changed: listeners and who may use them follow at the next start of the daemon")
	}
	servers := n.smtp
	n.mu.Unlock()
	n.bridge.SetPolicy(p)
	for _, s := range servers {
		s.SetLimits(n.smtpLimits())
	}
	return nil
}

// limited notes a server whose limits follow the configuration.
func (n *Node) limited(s *smtpd.Server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.smtp = append(n.smtp, s)
}

// policy converts a configuration into the engine's terms.
func (n *Node) policy(c *config.Config) (*bridge.Policy, error) {
	p := &bridge.Policy{HideClients: c.SMTP.HideClients, Name: c.Name, Domain: c.Domain, Postmaster: c.Postmaster, BounceVia: c.Bounce.Via,
		Limits: bridge.Limits{
			MessageSize: int64(c.SMTP.MaxSize), Recipients: c.SMTP.MaxRecipients, Lifetime: time.Duration(c.Limits.Lifetime),
			DelayNotice: time.Duration(c.Limits.Delay), RetryMin: time.Duration(c.Limits.RetryMin), RetryMax: time.Duration(c.Limits.RetryMax),
			Hops: c.Limits.Hops, Passes: c.Limits.Passes, Deliveries: c.Limits.Deliveries, BundleBytes: int64(c.Limits.Bundle), ReturnGrace: time.Duration(c.Limits.Grace),
			UserCount: c.Limits.UserCount, UserBytes: int64(c.Limits.UserBytes),
		}}
	p.Jobs = jobsPolicy(c)
	var err error
	if p.Local, err = localPolicy(c); err != nil {
		return nil, err
	}
	ids := map[string]envelope.NodeID{}
	for i := range c.Peers {
		x := &c.Peers[i]
		peer, err := convertPeer(x)
		if err != nil {
			return nil, err
		}
		ids[x.Node] = peer.ID
		p.Peers = append(p.Peers, peer)
	}
	for i := range c.Peers {
		for _, name := range c.Peers[i].RelayTo {
			if name == "*" {
				p.Peers[i].RelayAny = true
			} else if id, ok := ids[name]; ok {
				p.Peers[i].RelayTo = append(p.Peers[i].RelayTo, id.Label())
			}
		}
	}
	for i := range c.Contacts {
		k := &c.Contacts[i]
		x := &bridge.Contact{Node: ids[k.Node], NodeName: k.Node, URL: n.absCarrier(k.Carrier), Linger: time.Duration(k.Linger),
			Overdue: time.Duration(k.Overdue), MaxPacket: int64(k.MaxPacket), MaxBytes: int64(k.MaxBytes), Paused: n.isPaused(k.Name) || n.isPaused(k.Node),
			When: bridge.When{Always: k.When.Always(), Every: time.Duration(k.Every), OnCall: k.When.OnCall(), Manual: k.When.Manual()}}
		if k.When.Every() > 0 {
			x.When.Always = false
		}
		week, utc := k.When.Week()
		x.When.UTC = utc
		for _, w := range week {
			x.When.Windows = append(x.When.Windows, bridge.Window{From: w[0], To: w[1]})
		}
		for _, r := range k.Reaches {
			x.Via = append(x.Via, ids[r])
		}
		p.Contacts = append(p.Contacts, x)
	}
	var delivers, routes []route.Rule
	for i := range c.Delivers {
		d := &c.Delivers[i]
		delivers = append(delivers, route.Rule{To: d.To, From: d.From, MaxSize: int64(d.MaxSize), Via: d.Via, UpTo: int64(d.UpTo), Known: addresses(d.Known), CatchAll: d.CatchAll})
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		x := route.Rule{To: r.To, From: r.From, MaxSize: int64(r.MaxSize), Node: ids[r.Node], NodeName: r.Node, Lifetime: time.Duration(r.Lifetime), KeepHop: r.Keep == "hop", OneWay: r.Repeat,
			UpTo: int64(r.UpTo), Known: addresses(r.Known), Summary: route.Summary{Above: int64(r.Summary), Signed: r.SumSigned == "hold", Anyone: r.SumAsk == "node"}}
		for _, name := range r.Path {
			x.Path = append(x.Path, ids[name])
		}
		routes = append(routes, x)
	}
	delivers, routes = defaultRules(c, ids, delivers, routes)
	byContact(c, ids, routes)
	table, err := route.New(delivers, routes)
	if err != nil {
		return nil, err
	}
	p.Routes = table
	return p, nil
}

// localPolicy is what changes addresses.
func localPolicy(c *config.Config) (bridge.Local, error) {
	l := bridge.Local{Aliases: c.LocalNames, Archive: c.Archive}
	for _, r := range c.Rewrites {
		from, err := route.ParsePattern(r.From)
		if err != nil {
			return l, err
		}
		l.Rewrite = append(l.Rewrite, bridge.Rewrite{From: from, To: r.To, Out: r.Where == "out", Headers: r.Headers})
	}
	return l, nil
}

// addresses makes the set of a rule's recipients, nil when anybody may be one.
func addresses(list []string) route.Addresses {
	if list == nil {
		return nil
	}
	return route.NewAddresses(list)
}

// byContact gives routes without a summary of their own that of the contacts on their first hop, if all of these have one:
// the largest.
func byContact(c *config.Config, ids map[string]envelope.NodeID, routes []route.Rule) {
	for i := range routes {
		r := &routes[i]
		if r.Summary.Above > 0 {
			continue
		}
		hop, direct := r.Node, len(r.Path) == 0
		if !direct {
			hop = r.Path[0]
		}
		all, most := true, config.Size(0)
		for k := range c.Contacts {
			t := &c.Contacts[k]
			reaches := func(name string) bool { return ids[name] == hop }
			if reaches(t.Node) || direct && slices.ContainsFunc(t.Reaches, reaches) {
				all, most = all && t.Summary > 0, max(most, t.Summary)
			}
		}
		if all {
			r.Summary.Above = int64(most)
		}
	}
}

// defaultRules adds what pairing promises: NAME.mochila of every peer is routed to it, and this node's own name ends
// where its domain ends.
func defaultRules(c *config.Config, ids map[string]envelope.NodeID, delivers, routes []route.Rule) ([]route.Rule, []route.Rule) {
	own := c.Name + ".mochila"
	if !c.DeliversDomain(own) && len(c.Delivers) > 0 {
		via := c.Delivers[0].Via
		for i := range c.Delivers {
			for _, to := range c.Delivers[i].To {
				if to == c.Domain {
					via = c.Delivers[i].Via
				}
			}
		}
		delivers = append(delivers, route.Rule{To: []string{own}, Via: via})
	}
	for _, p := range c.Peers {
		routes = append(routes, route.Rule{To: []string{p.Node + ".mochila"}, Node: ids[p.Node], NodeName: p.Node})
	}
	return delivers, routes
}

func convertPeer(x *config.Peer) (*bridge.Peer, error) {
	peer := &bridge.Peer{Name: x.Node, MaxBytes: int64(x.MaxBytes), MaxCount: x.MaxCount}
	if x.Card != "" {
		card, err := seal.ParseCardText([]byte(x.Card))
		if err != nil {
			return nil, fmt.Errorf("card of peer %q: %w", x.Node, err)
		}
		peer.Card, peer.ID = card, card.ID
	}
	if x.ID != "" {
		id, err := envelope.ParseNodeID(x.ID)
		if err != nil {
			return nil, fmt.Errorf("peer %q: %w", x.Node, err)
		}
		if !peer.ID.IsZero() && id != peer.ID {
			return nil, fmt.Errorf("peer %q: its card is of another node than its id", x.Node)
		}
		peer.ID = id
	}
	var err error
	if peer.SendAs, err = patterns(x.SendAs); err != nil {
		return nil, fmt.Errorf("send_as of peer %q: %w", x.Node, err)
	}
	if peer.SendTo, err = patterns(x.SendTo); err != nil {
		return nil, fmt.Errorf("send_to of peer %q: %w", x.Node, err)
	}
	return peer, nil
}

func patterns(list []string) ([]route.Pattern, error) {
	var out []route.Pattern
	for _, s := range list {
		p, err := route.ParsePattern(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// absCarrier makes a relative folder of a dir: carrier relative to the home.
func (n *Node) absCarrier(url string) string {
	const dir = "dir:"
	if len(url) > len(dir) && url[:len(dir)] == dir && url[len(dir)] != '/' {
		return dir + filepath.Join(n.home.Base, url[len(dir):])
	}
	return url
}

func (n *Node) isPaused(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.paused[name]
}

// joinedBy stores a guest that proved an invitation: peers/NAME.toml, and the policy with it.
func (n *Node) joinedBy(name, url string, card *seal.Card) (*bridge.Policy, error) {
	n.reading.Lock()
	defer n.reading.Unlock()
	if p, ok := n.config().Peer(name); ok {
		return nil, fmt.Errorf("there is a peer %q already (%s)", name, p.ID)
	}
	if err := config.WritePeer(n.home, peerFile(name, card, url)); err != nil {
		return nil, err
	}
	cfg, _, err := config.Load(n.home)
	if err != nil {
		return nil, err
	}
	p, err := n.policy(cfg)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.cfg = cfg
	n.joined = append(n.joined, name)
	n.mu.Unlock()
	return p, nil
}

// peerFile is what pairing writes of a peer.
func peerFile(name string, card *seal.Card, url string) config.PeerFile {
	f := config.PeerFile{Peer: config.Peer{Node: name, ID: card.ID.Text(), Card: card.Text()}}
	if url != "" {
		f.Contacts = []config.Contact{{Node: name, Carrier: url}}
	}
	return f
}

// dropDesk is the node as the maildrop sees it.
type dropDesk Node

// Collect takes what lies in the maildrop.
func (n *Node) Collect(ctx context.Context) (int, error) {
	n.collect.Lock()
	defer n.collect.Unlock()
	return n.drop.Collect(ctx, time.Now())
}

// quarantine keeps bad input for a person.
func (n *Node) quarantine(reason, from string, r io.Reader) error {
	_, err := n.spool.Quarantine(reason, from, r)
	return err
}

// makeHome creates the folders of a home that pairing and serving expect.
func makeHome(h config.Home) error {
	mode := os.FileMode(0o700)
	if h.System {
		mode = 0o755
	}
	for _, d := range []string{h.PeersDir, h.RunDir, h.SpoolDir} {
		if err := (durable.OS{}).MkdirAll(d, mode); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	return nil
}
