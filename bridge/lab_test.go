package bridge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/internal/durable"
	"mochila/internal/envelope"
	"mochila/internal/envelope/bundle"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
	"mochila/transport/transporttest"
)

// lab is a small world for tests: nodes with a clock of the test's own, sticks in memory, and a mail system that
// remembers what it was given. Nothing happens by itself: a test moves the clock, makes contacts and delivers.
type lab struct {
	t *testing.T

	mu     sync.Mutex
	now    time.Time
	sticks map[string]transport.Folder
	free   map[string]int64 // bytes on a node's disk; not set: plenty
	log    *logBook
}

// labStart is after the build date, so that no clock is suspect at first.
var labStart = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// newLab makes a world of its own, beside which other tests may run.
func newLab(t *testing.T) *lab {
	t.Parallel()
	return newLoneLab(t)
}

// newLoneLab is newLab for tests that measure the process.
func newLoneLab(t *testing.T) *lab {
	return &lab{t: t, now: labStart, sticks: map[string]transport.Folder{}, free: map[string]int64{}, log: &logBook{}}
}

func (l *lab) clock() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// set moves the clock of all nodes.
func (l *lab) set(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = now
}

// stick returns the folder of that name, made when it is first asked for.
func (l *lab) stick(name string) transport.Folder {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sticks[name] == nil {
		l.sticks[name] = transporttest.NewMemFolder(0)
	}
	return l.sticks[name]
}

// mem is a stick that nothing wraps.
func (l *lab) mem(name string) *transporttest.MemFolder {
	l.t.Helper()
	m, ok := l.stick(name).(*transporttest.MemFolder)
	if !ok {
		l.t.Fatalf("stick %s is wrapped", name)
	}
	return m
}

// node makes a node of the lab. Its mail system takes everything unless told otherwise.
func (l *lab) node(name string) *node {
	l.t.Helper()
	return l.wrongNode(name, 0)
}

// wrongNode makes a node whose clock is ahead of the right time.
func (l *lab) wrongNode(name string, ahead time.Duration) *node {
	l.t.Helper()
	n := &node{t: l.t, name: name, dir: l.t.TempDir(), noContacts: true, lab: l, skew: ahead}
	n.now = func() time.Time { return l.clock().Add(n.skew) }
	n.sink = &sink{refuse: map[string]envelope.Status{}}
	var err error
	if n.keys, err = seal.Create(filepath.Join(n.dir, "identity"), seal.Options{Name: name, Now: n.now(), FS: quickFS{}}); err != nil {
		l.t.Fatal(err)
	}
	n.pol = &Policy{Name: name, Domain: name + ".example"}
	if n.pol.Routes, err = route.New([]route.Rule{{To: []string{name + ".example", name + ".mochila"}, Via: "maildir:/" + name}}, nil); err != nil {
		l.t.Fatal(err)
	}
	n.open()
	l.t.Cleanup(n.close)
	return n
}

// quickFS leaves out what costs time and shows only after a power cut: syncs, and folders that nothing is put into. What
// it costs to leave them out is the business of the spool's own tests.
type quickFS struct{ durable.OS }

type quickFile struct{ durable.File }

func (quickFile) Sync() error { return nil }

func (q quickFS) Create(path string, perm fs.FileMode) (durable.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := q.OS.Create(path, perm)
	if err != nil {
		return nil, err
	}
	return quickFile{f}, nil
}

func (quickFS) SyncDir(string) error { return nil }

func (quickFS) MkdirAll(path string, perm fs.FileMode) error {
	if filepath.Base(filepath.Dir(path)) == "body" {
		return nil // made when something is put there
	}
	return os.MkdirAll(path, perm)
}

func (q quickFS) Rename(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return q.OS.Rename(from, to)
}

func (q quickFS) ReadDir(path string) ([]fs.DirEntry, error) {
	list, err := q.OS.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return list, err
}

// sharedCodec is what all nodes of all labs compress with: its dictionary takes a while to load.
var sharedCodec = sync.OnceValues(bundle.NewCodec)

func (l *lab) spoolOptions(n *node, o *spool.Options) {
	o.FS = quickFS{}
	o.Reserve, o.Ballast, o.QuarantineMax = 100<<20, -1, 100_000
	o.TraceAge = 10 * 365 * 24 * time.Hour // the spool dates its trace by the real clock
	o.Free = func() (int64, int64, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if f, ok := l.free[n.name]; ok {
			return f, 10 << 30, nil
		}
		return 5 << 30, 10 << 30, nil
	}
}

// disk says how much room a node's disk has; below the lab's reserve of 100 MiB no mail is taken.
func (l *lab) disk(n *node, free int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free[n.name] = free
}

func (l *lab) options(n *node, o *Options) {
	o.Now, o.Boot = n.now, n.up
	o.Log = slog.New(slog.NewTextHandler(io.MultiWriter(testWriter{l.t}, l.log), &slog.HandlerOptions{Level: l.level()})).With("node", n.name)
	o.Link = func(c *Contact) (transport.Link, error) {
		name, ok := strings.CutPrefix(c.URL, "dir:")
		if !ok {
			return nil, fmt.Errorf("no such carrier in the lab: %s", c.URL)
		}
		if filepath.IsAbs(name) {
			carrier, err := transport.Parse(transport.Schemes(), c.URL)
			if err != nil {
				return nil, err
			}
			return carrier.Link(transport.LinkOptions{Self: n.keys.ID().Label(), Peer: c.Node.Label()}), nil
		}
		return transport.NewFolderLink(l.stick(name), n.keys.ID().Label(), c.Node.Label(), transport.FolderOptions{}), nil
	}
	o.Deliver = func(via string) (deliver.Transport, error) { return n.sink, nil }
}

func (l *lab) level() slog.Level {
	if testing.Verbose() {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// pass lets time go by in at most twelve steps or steps of a day, with all that a node does by the clock.
func (l *lab) pass(d time.Duration, nodes ...*node) {
	every := max(24*time.Hour, d/12)
	l.t.Helper()
	for d > 0 {
		step := min(d, every)
		d -= step
		l.set(l.clock().Add(step))
		for _, n := range nodes {
			n.tick()
		}
	}
}

// jump lets time go by in one step.
func (l *lab) jump(d time.Duration, nodes ...*node) {
	l.t.Helper()
	l.set(l.clock().Add(d))
	for _, n := range nodes {
		n.tick()
	}
}

// tick does what the engine's timer does.
func (n *node) tick() {
	now := n.now()
	if err := n.b.watchClock(now); err != nil {
		n.t.Fatal(err)
	}
	n.b.hourly(now)
	for n.b.delays.under && !n.b.clock.suspect() {
		n.b.delayNotices(now)
	}
	n.b.Tick(now)
}

// meet makes all contacts of a node, with links that remember nothing, and delivers what came.
func (n *node) meet() {
	n.t.Helper()
	for _, r := range n.contact() {
		if r.Err != nil {
			n.t.Fatalf("%s: contact with %s: %v", n.name, r.Node, r.Err)
		}
	}
	n.deliver()
}

func (n *node) contact(only ...*Contact) []SyncResult {
	n.b.mu.Lock()
	for _, s := range n.b.contacts {
		s.link = nil
	}
	n.b.mu.Unlock()
	return n.b.Sync(context.Background(), only)
}

// deliver hands everything that is due to the node's mail system.
func (n *node) deliver() {
	n.t.Helper()
	if n.b.out.idle() {
		return
	}
	n.drain()
}

// reopen ends the process of a node and starts another.
func (n *node) reopen() {
	n.t.Helper()
	n.close()
	n.open()
}

// sink is a mail system.
type sink struct {
	mu     sync.Mutex
	got    []delivery
	refuse map[string]envelope.Status // by recipient: 5yz fails, 4yz is tried again
	dsn    bool                       // it takes over the duty to notify
	action envelope.Action            // of what it takes; 0: delivered
}

type delivery struct {
	from, to, content string
	id                envelope.ID
}

func (s *sink) Deliver(_ context.Context, m *deliver.Message) []deliver.Result {
	var out []deliver.Result
	all := func(r deliver.Result) []deliver.Result {
		for _, i := range m.Rcpts {
			r.Rcpt = i
			out = append(out, r)
		}
		return out
	}
	r, err := m.Open()
	if err != nil {
		return all(deliver.Result{Action: envelope.ActionPending, Status: envelope.Status{Code: 451, Enhanced: "4.3.0", Text: err.Error()}})
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil {
		return all(deliver.Result{Action: envelope.ActionPending, Status: envelope.Status{Code: 451, Enhanced: "4.3.0", Text: err.Error()}})
	}
	if sum := sumOf(content); sum != m.Env.Sum {
		return all(deliver.Result{Action: envelope.ActionPending, Corrupt: true, Status: envelope.Status{Code: 451, Enhanced: "4.3.0", Text: "wrong sum"}})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range m.Rcpts {
		to := m.Env.Mail.Recipients[i].Addr
		if st, no := s.refuse[to]; no {
			res := deliver.Result{Rcpt: i, Action: envelope.ActionFailed, Status: st, MTA: "sink"}
			if st.Code/100 == 4 {
				res.Action = envelope.ActionPending
			}
			out = append(out, res)
			continue
		}
		s.got = append(s.got, delivery{from: m.Env.Mail.Sender, to: to, content: string(content), id: m.Env.ID})
		out = append(out, deliver.Result{Rcpt: i, Action: cmp.Or(s.action, envelope.ActionDelivered), MTA: "sink", DSN: s.dsn, Status: envelope.Status{Code: 250, Enhanced: "2.0.0", Text: "taken"}})
	}
	return out
}

func (s *sink) Close() error { return nil }

// all returns what the mail system has got, without the notifications.
func (s *sink) mails() (out []delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.got {
		if d.from != "" {
			out = append(out, d)
		}
	}
	return out
}

// notices returns the notifications that came for an address.
func (s *sink) notices(to string) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.got {
		if d.from == "" && d.to == to {
			out = append(out, d.content)
		}
	}
	return out
}

// count returns how often a mail with that text was delivered to somebody.
func (s *sink) count(to, text string) (n int) {
	for _, d := range s.mails() {
		if d.to == to && strings.HasSuffix(d.content, text) {
			n++
		}
	}
	return n
}

// logBook keeps what the nodes of a lab log.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (k *logBook) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.b.Write(p)
}

// forget makes room: what is measured is not the log.
func (k *logBook) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.b = bytes.Buffer{}
}

func (k *logBook) has(text string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Contains(k.b.String(), text)
}

// file is one packet as it lies on a stick.
type file struct {
	dir, name string
	data      []byte
}

// lying returns the packets from one node for another on a stick, by name.
func (l *lab) lying(stick string, from, to *node) (out []file) {
	l.t.Helper()
	f := l.stick(stick)
	dir := "mochila/" + from.keys.ID().Label().String() + "/" + to.keys.ID().Label().String()
	list, err := f.List(context.Background(), dir)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range list {
		if _, err := transport.ParseID(e.Name); err != nil {
			continue
		}
		r, err := f.Get(context.Background(), dir, e.Name)
		if err != nil {
			l.t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			l.t.Fatal(err)
		}
		out = append(out, file{dir, e.Name, data})
	}
	return out
}

// take removes the packets from one node for another from a stick and returns them.
func (l *lab) take(stick string, from, to *node) []file {
	l.t.Helper()
	out := l.lying(stick, from, to)
	for _, p := range out {
		if err := l.stick(stick).Remove(context.Background(), p.dir, p.name); err != nil {
			l.t.Fatal(err)
		}
	}
	return out
}

// put lays packets on a stick.
func (l *lab) put(stick string, files ...file) {
	for _, p := range files {
		l.mem(stick).Set(p.dir, p.name, p.data)
	}
}

// items lists what a node's queues hold.
func (n *node) items() []*spool.Item {
	n.t.Helper()
	items, _, err := n.sp.List(spool.Query{})
	if err != nil {
		n.t.Fatal(err)
	}
	return items
}

// mustEmpty fails unless nothing is left in the queues of the nodes.
func mustEmpty(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		for _, it := range n.items() {
			to := ""
			if it.Env.Mail != nil {
				to = it.Env.Mail.Recipients[0].Addr
			}
			t.Errorf("left at %s: %s %v to <%s>: %+v", n.name, it.Env.ID, it.Env.Kind, to, it.Legs)
			for _, e := range it.Log {
				t.Logf("    %s %s %s", e.At.Format(time.RFC3339), e.What, e.Detail)
			}
		}
	}
}

// quarantined returns the reasons of what a node has in quarantine.
func (n *node) quarantined() (out []string) {
	n.t.Helper()
	list, err := n.sp.Quarantined()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, q := range list {
		out = append(out, q.Reason)
	}
	return out
}

// settle lets nodes meet, deliver and age by a day, until nothing is left or rounds are over.
func (l *lab) settle(rounds int, nodes ...*node) {
	l.t.Helper()
	for range rounds {
		for range 3 {
			for _, n := range nodes {
				for _, r := range n.contact() {
					if r.Err != nil && !errors.Is(r.Err, transport.ErrAbsent) {
						l.t.Logf("%s: contact with %s: %v", n.name, r.Node, r.Err)
					}
				}
				n.deliver()
			}
		}
		if !slices.ContainsFunc(nodes, func(n *node) bool { return !n.empty() }) {
			return
		}
		l.pass(24*time.Hour, nodes...)
	}
}

// image is a hard copy of a spool: its files, as a snapshot of the disk between two commits has them.
type image map[string][]byte

// image copies the node's spool.
func (n *node) image() image {
	n.t.Helper()
	var m image
	err := n.sp.Apply(func(*spool.Tx) error { // the writer waits: nothing changes meanwhile
		m = image{}
		root := filepath.Join(n.dir, "spool")
		return filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err == nil {
				m[rel], err = os.ReadFile(p)
			}
			return err
		})
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return m
}

// putBack replaces the spool of a closed node by an image, keeping the inode of every file that is there still: as when
// the disk itself is put back, and nobody inside can see it.
func (n *node) putBack(m image) {
	n.t.Helper()
	root := filepath.Join(n.dir, "spool")
	if err := os.MkdirAll(root, 0o700); err != nil {
		n.t.Fatal(err)
	}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if rel, err := filepath.Rel(root, p); err != nil || m[rel] == nil {
			return errors.Join(err, os.Remove(p))
		}
		return nil
	})
	for rel, b := range m {
		to := filepath.Join(root, rel)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o700)
		}
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// rollBack ends a node's process, puts its disk back, and starts it again.
func (n *node) rollBack(m image) {
	n.t.Helper()
	n.close()
	n.putBack(m)
	n.open()
}

// incarnation is a short name of a node's life.
func (n *node) incarnation() string { return fmt.Sprintf("%x", n.keys.Incarnation()) }

func sumOf(b []byte) [32]byte { return envelope.SumOf(b) }

// packetID is the name of a packet with these bytes.
func packetID(b []byte) string { return transport.ID(sumOf(b)).String() }

// sends routes a domain to another node, and lets every peer of n do the same through n.
func (n *node) sends(domain string, m *node) {
	n.t.Helper()
	p := *n.pol
	rule := route.Rule{To: []string{domain}, Node: m.keys.ID(), NodeName: m.name}
	var err error
	if p.Routes, err = route.New(p.Routes.Deliver, append(slices.Clip(p.Routes.Route), rule)); err != nil {
		n.t.Fatal(err)
	}
	any, err := route.ParsePattern("*")
	if err != nil {
		n.t.Fatal(err)
	}
	p.Peers = nil
	for _, x := range n.pol.Peers {
		y := *x
		y.SendTo = []route.Pattern{any}
		p.Peers = append(p.Peers, &y)
	}
	n.pol = &p
	n.b.SetPolicy(&p)
}
