package bridge

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mochila/bridge/jobs"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// node is one home with a bridge over it, for tests.
type node struct {
	t    *testing.T
	name string
	dir  string
	keys *seal.Keyring
	sp   *spool.Spool
	b    *Bridge
	pol  *Policy
	stop func()
	now  func() time.Time

	noContacts bool
	runner     jobs.Runner
	lab        *lab          // set for nodes of a lab, see lab_test.go
	sink       *sink         // their mail system
	skew       time.Duration // how far their clock is ahead
	up         func() (string, time.Duration, bool)
}

func newNode(t *testing.T, name string) *node {
	t.Helper()
	n := &node{t: t, name: name, dir: t.TempDir(), now: time.Now}
	var err error
	if n.keys, err = seal.Create(filepath.Join(n.dir, "identity"), seal.Options{Name: name, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	n.pol = &Policy{Name: name, Domain: name + ".example"}
	table, err := route.New([]route.Rule{{To: []string{name + ".example", name + ".mochila"}, Via: "maildir:" + n.mail("%u")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	n.pol.Routes = table
	n.open()
	t.Cleanup(n.close)
	return n
}

func (n *node) mail(user string) string { return filepath.Join(n.dir, "mail", user) }

func (n *node) open() {
	n.t.Helper()
	var b *Bridge
	so := spool.Options{Reserve: 1, OnDue: func(d spool.Dest) {
		if b != nil {
			b.OnDue(d)
		}
	}}
	if n.lab != nil {
		n.lab.spoolOptions(n, &so)
	}
	sp, err := spool.Open(filepath.Join(n.dir, "spool"), so)
	if err != nil {
		n.t.Fatal(err)
	}
	n.sp = sp
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(testWriter{n.t}, &slog.HandlerOptions{Level: level})).With("node", n.name)
	o := Options{Spool: sp, Keys: n.keys, Policy: n.pol, Log: log, Now: n.now, NoContacts: n.noContacts, Runner: n.runner}
	if n.lab != nil {
		n.lab.options(n, &o)
	} else {
		o.Stream = n.stream()
	}
	b, err = New(o)
	if err != nil {
		n.t.Fatal(err)
	}
	n.b = b
	if n.lab != nil {
		if b.codec, err = sharedCodec(); err != nil {
			n.t.Fatal(err)
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (n *node) close() {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
	if n.sp != nil {
		n.sp.Close()
		n.sp = nil
	}
}

// run starts the engine's own goroutines until the test or close ends them.
func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { n.b.Run(ctx); close(done) }()
	n.stop = func() { cancel(); <-done }
}

// knows makes m a peer of n, reached over url, with mail for m's domains routed to it.
func (n *node) knows(m *node, url string, path ...*node) {
	n.t.Helper()
	p := *n.pol
	p.Peers = append(p.Peers[:len(p.Peers):len(p.Peers)], &Peer{Name: m.name, ID: m.keys.ID(), Card: m.keys.Card(), RelayAny: true})
	if url != "" {
		p.Contacts = append(p.Contacts[:len(p.Contacts):len(p.Contacts)], &Contact{Node: m.keys.ID(), NodeName: m.name, URL: url, When: When{Always: true}})
	}
	rule := route.Rule{To: []string{m.name + ".example", m.name + ".mochila"}, Node: m.keys.ID(), NodeName: m.name}
	for _, x := range path {
		rule.Path = append(rule.Path, x.keys.ID())
	}
	table, err := route.New(p.Routes.Deliver, append(p.Routes.Route[:len(p.Routes.Route):len(p.Routes.Route)], rule))
	if err != nil {
		n.t.Fatal(err)
	}
	p.Routes = table
	n.pol = &p
	n.b.SetPolicy(&p)
}

func (n *node) submit(from, to, body string) string {
	n.t.Helper()
	m := &envelope.Mail{Sender: from, Client: envelope.Client{Proto: "local", UID: 1001}}
	for _, r := range strings.Split(to, ",") {
		m.Recipients = append(m.Recipients, envelope.Recipient{Addr: r})
	}
	id, err := n.enter(m, body)
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

// enter hands a mail to the node, as a local program does.
func (n *node) enter(m *envelope.Mail, body string) (string, error) {
	in, err := n.b.Submit(context.Background(), m)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(in, body); err != nil {
		in.Abort()
		return "", err
	}
	return in.Commit(context.Background())
}

// sync makes one contact and requires that it went well.
func (n *node) sync() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, r := range n.b.Sync(ctx, nil) {
		if r.Err != nil {
			n.t.Fatalf("%s: sync with %s: %v", n.name, r.Node, r.Err)
		}
		n.t.Logf("%s: %s: %+v", n.name, r.Carrier, r.Stats)
	}
}

// box returns the mails in a user's Maildir.
func (n *node) box(user string) []string {
	n.t.Helper()
	files, _ := filepath.Glob(filepath.Join(n.mail(user), "new", "*"))
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			n.t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute) // a bound for a machine that is busy, not a measure
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) empty() bool {
	items, _, err := n.sp.List(spool.Query{Limit: 1})
	if err != nil {
		n.t.Fatal(err)
	}
	return len(items) == 0
}

func TestStickRoundTrip(t *testing.T) {
	stick := t.TempDir()
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	camp.knows(hub, "dir:"+stick)
	hub.knows(camp, "dir:"+stick)
	camp.run()
	hub.run()
	body := "Subject: hello\r\n\r\nfirst\r\n.dot\r\n"
	camp.submit("ana@camp.example", "bob@hub.example", body)
	big := "Subject: big\r\n\r\n" + strings.Repeat("0123456789abcdef\r\n", 400000)
	camp.submit("ana@camp.example", "bob@hub.example", big)
	camp.submit("ana@camp.example", "nobody@elsewhere.example,carl@hub.example", "Subject: two\r\n\r\nx\r\n")
	eventually(t, "three mails at hub", func() bool { return len(hub.box("bob")) == 2 && len(hub.box("carl")) == 1 })
	for _, m := range hub.box("bob") {
		if !strings.HasSuffix(m, strings.ReplaceAll(body, "\r\n", "\n")) && !strings.HasSuffix(m, strings.ReplaceAll(big, "\r\n", "\n")) {
			t.Errorf("mail changed on the way: %.300q", m)
		}
	}
	eventually(t, "bounce for the unroutable recipient", func() bool { return len(camp.box("ana")) == 1 })
	eventually(t, "camp has nothing left", camp.empty)
	eventually(t, "hub has nothing left", hub.empty)
	eventually(t, "the stick is empty", func() bool {
		files, _ := filepath.Glob(stick + "/mochila/*/*/*")
		return len(files) <= 4 // each side's last receipts, and perhaps those before
	})
}

var _ = fmt.Sprint
var _ transport.Greeter = (*desk)(nil)

func wipe(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}
