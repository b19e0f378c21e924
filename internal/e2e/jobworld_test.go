package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/durable"
	"mochila/internal/peertest"
)

// jobWorld is camp, which makes jobs, and hub, which runs them with real programs. Each has a stick of its own; a test is
// the courier between them. No daemon runs: each step is one command.
type jobWorld struct {
	t              *testing.T
	camp, hub      *node
	near, far      string // camp's stick, and hub's
	out            string // what programs leave: CHANNEL.log
	there, return_ string // folders of packets below a stick: from camp to hub, and back
	seen           map[string]bool
}

// packet is a file from camp to hub.
type packet struct {
	name string
	data []byte
}

// rowHandlers are the programs at hub. OUT is the folder of their effects.
const rowHandlers = `
[limits]
reserve = "1MiB"
retry_min = "1h"

[[handler]]
name = "note"
command = ["/bin/sh", "-c", "{ echo \"$MOCHILA_SEQ $(cat) $*\"; } >>OUT/$MOCHILA_CHANNEL.log", "note"]
allow = ["camp:*"]
args = true
env = ["X"]

[[handler]]
name = "env"
command = ["/usr/bin/env", "-0"]
allow = ["camp:*"]
env = ["X"]

[[handler]]
name = "exit"
command = ["/bin/sh", "-c", "echo to stdout; echo to stderr >&2; echo ran >>OUT/$MOCHILA_CHANNEL.log; exit $(cat)"]
allow = ["camp:*"]
retry = 1

[[handler]]
name = "exit-dead"
command = ["/bin/sh", "-c", "echo ran >>OUT/$MOCHILA_CHANNEL.log; [ $MOCHILA_ATTEMPT != 1 ]"]
allow = ["camp:*"]
on_failure = "dead"

[[handler]]
name = "head"
command = ["/usr/bin/head", "-c", "3"]
allow = ["camp:*"]

[[handler]]
name = "hang"
command = ["/bin/sh", "-c", "sleep 1000 & echo $! >OUT/$MOCHILA_CHANNEL.log; wait"]
allow = ["camp:*"]
timeout = "3s"
retry = 0

[[handler]]
name = "meet"
command = ["/bin/sh", "-c", "touch OUT/meet.$MOCHILA_CHANNEL; next=$(cat); until [ -e OUT/meet.$next ]; do sleep 0.05; done"]
allow = ["camp:*"]
concurrency = 4
timeout = "10m"
`

func newJobWorld(t *testing.T) *jobWorld {
	t.Helper()
	w := &jobWorld{t: t, near: t.TempDir(), far: t.TempDir(), out: t.TempDir(), seen: map[string]bool{}}
	w.camp, w.hub = newNode(t, "camp", ""), newNode(t, "hub", "")
	w.camp.knows(w.hub, control.PeerAdd{Carrier: "dir:" + w.near})
	w.hub.knows(w.camp, control.PeerAdd{Carrier: "dir:" + w.far})
	w.hub.configure("name = \"hub\"\n" + strings.ReplaceAll(rowHandlers, "OUT", w.out))
	// sessions are made, so that packets say nothing else
	w.run("warm", "note", "")
	w.sync(w.camp)
	w.there = w.only(w.near)
	w.move(w.near, w.far, w.there)
	w.sync(w.hub)
	for _, d := range w.folders(w.far) {
		if d != w.there {
			w.return_ = d
		}
	}
	w.home()
	w.pack()
	return w
}

// folders lists the folders of packets on a stick.
func (w *jobWorld) folders(stick string) (list []string) {
	w.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(stick, "mochila", "*", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range dirs {
		rel, err := filepath.Rel(stick, d)
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, rel)
	}
	return list
}

func (w *jobWorld) only(stick string) string {
	w.t.Helper()
	list := w.folders(stick)
	if len(list) != 1 {
		w.t.Fatalf("folders on the stick: %v", list)
	}
	return list[0]
}

// move copies a folder of one stick to another.
func (w *jobWorld) move(from, to, dir string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(to, dir), 0o755); err != nil {
		w.t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(from, dir))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, dir, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, dir, e.Name()), b, 0o644)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// with opens a node for a moment.
func (w *jobWorld) with(n *node, f func(*control.Client) error) error {
	w.t.Helper()
	var c *control.Client
	peertest.Await(w.t, n.name+" to be free", func() bool {
		var err error
		// a program that another test of this process is about to start holds the lock for a moment
		if c, err = control.Dial(w.t.Context(), n.home, control.ClientOptions{Version: "test"}); err != nil && !errors.Is(err, durable.ErrLocked) && !strings.Contains(err.Error(), "lock") {
			w.t.Fatalf("speak to %s: %v", n.name, err)
		}
		return err == nil
	})
	defer c.Close()
	return f(c)
}

// sync makes a node's contact and returns what it tells.
func (w *jobWorld) sync(n *node) (lines []control.SyncLine) {
	w.t.Helper()
	err := w.with(n, func(c *control.Client) error {
		return c.Stream(w.t.Context(), "/v1/sync", control.SyncRequest{}, func(b json.RawMessage) error {
			var l control.SyncLine
			lines = append(lines, l)
			return json.Unmarshal(b, &lines[len(lines)-1])
		})
	})
	if err != nil {
		w.t.Fatalf("%s: sync: %v", n.name, err)
	}
	return lines
}

// order makes a job at camp.
func (w *jobWorld) order(q control.RunRequest, stdin io.Reader) (control.RunTicket, error) {
	w.t.Helper()
	q.Nodes = []string{"hub"}
	head, err := json.Marshal(q)
	if err != nil {
		w.t.Fatal(err)
	}
	var r control.RunReply
	err = w.with(w.camp, func(c *control.Client) error {
		return c.Upload(context.Background(), "/v1/run", io.MultiReader(strings.NewReader(string(head)+"\n"), stdin), &r)
	})
	if err != nil {
		return control.RunTicket{}, err
	}
	return r.Jobs[0], nil
}

// run makes a job that must be taken.
func (w *jobWorld) run(channel, handler, stdin string, args ...string) string {
	w.t.Helper()
	t, err := w.order(control.RunRequest{Channel: channel, Handler: handler, Args: args}, strings.NewReader(stdin))
	if err != nil {
		w.t.Fatal(err)
	}
	return t.ID
}

// pack lets camp write what is due, and takes the new packets off its stick.
func (w *jobWorld) pack() (list []packet) {
	w.t.Helper()
	w.sync(w.camp)
	dir := filepath.Join(w.near, w.there)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || w.seen[d.Name()] || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			w.seen[d.Name()] = true
			list = append(list, packet{d.Name(), b})
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// one is pack for what must be one packet.
func (w *jobWorld) one() packet {
	w.t.Helper()
	list := w.pack()
	if len(list) != 1 {
		w.t.Fatalf("%d packets, want 1", len(list))
	}
	return list[0]
}

// show lays packets on hub's stick and lets hub read it.
func (w *jobWorld) show(list ...packet) []control.SyncLine {
	w.t.Helper()
	w.lay(list...)
	lines := w.sync(w.hub)
	for range 100 { // on a slow machine one sync ends before everything that could run has run
		if !w.busy() {
			break
		}
		w.sync(w.hub)
	}
	return lines
}

// busy reports whether a job at hub could run now, or runs.
func (w *jobWorld) busy() bool {
	w.t.Helper()
	var l control.JobList
	if err := w.with(w.hub, func(c *control.Client) error { return c.Get(w.t.Context(), "/v1/jobs?side=peers&limit=1000", &l) }); err != nil {
		w.t.Fatal(err)
	}
	next := map[string]uint64{}
	for _, c := range l.Channels {
		if !c.Own && c.State == "" {
			next[c.Channel] = c.Next
		}
	}
	for _, it := range l.Jobs {
		if n, open := next[it.Channel]; it.State == "running" || it.State == "waiting" && (it.Seq == 0 || open && it.Seq == n) {
			return true
		}
	}
	return false
}

// lay lays packets on hub's stick.
func (w *jobWorld) lay(list ...packet) {
	w.t.Helper()
	for _, p := range list {
		if err := os.WriteFile(filepath.Join(w.far, w.there, p.name), p.data, 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
}

// home brings what hub has to say to camp.
func (w *jobWorld) home() {
	w.t.Helper()
	w.move(w.far, w.near, w.return_)
	w.sync(w.camp)
}

// trip brings everything to hub, and back.
func (w *jobWorld) trip() {
	w.t.Helper()
	w.show(w.pack()...)
	w.home()
}

// did is what the jobs of a channel have done, a line each.
func (w *jobWorld) did(channel string) []string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.out, channel+".log"))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n")
}

// wants compares the numbers that have run on a channel.
func (w *jobWorld) wants(channel string, numbers ...int) {
	w.t.Helper()
	var got []string
	for _, l := range w.did(channel) {
		n, _, _ := strings.Cut(l, " ")
		got = append(got, n)
	}
	if want := fmt.Sprint(numbers); fmt.Sprint(got) != want {
		w.t.Errorf("channel %s: ran %v, want %s", channel, got, want)
	}
}

// job is how a job stands at a node.
func (w *jobWorld) job(n *node, id string) (it control.JobItem) {
	w.t.Helper()
	if err := w.with(n, func(c *control.Client) error { return c.Get(w.t.Context(), "/v1/jobs/"+id, &it) }); err != nil {
		w.t.Fatalf("%s: job %s: %v", n.name, id, err)
	}
	return it
}

// output is what a program wrote, at camp.
func (w *jobWorld) output(id, stream string) string {
	w.t.Helper()
	var b strings.Builder
	if err := w.with(w.camp, func(c *control.Client) error { return c.Raw(w.t.Context(), "/v1/jobs/"+id+"/"+stream, &b) }); err != nil {
		w.t.Fatal(err)
	}
	return b.String()
}

// channel is how a channel stands at hub.
func (w *jobWorld) channel(name string) (x control.JobChannel) {
	w.t.Helper()
	var l control.JobList
	err := w.with(w.hub, func(c *control.Client) error {
		return c.Get(w.t.Context(), "/v1/jobs?limit=1&channel="+url.QueryEscape(name), &l)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, x := range l.Channels {
		if x.Channel == name && !x.Own {
			return x
		}
	}
	w.t.Fatalf("hub has no channel %s", name)
	return x
}

// act decides at a node about jobs.
func (w *jobWorld) act(n *node, verb string, ids ...string) {
	w.t.Helper()
	err := w.with(n, func(c *control.Client) error {
		return c.Post(w.t.Context(), "/v1/jobs", control.JobAction{Verb: verb, IDs: ids}, nil)
	})
	if err != nil {
		w.t.Fatalf("%s %v: %v", verb, ids, err)
	}
}

// quarantine is what hub has put aside.
func (w *jobWorld) quarantine() (list []control.QuarantineItem) {
	w.t.Helper()
	if err := w.with(w.hub, func(c *control.Client) error { return c.Get(w.t.Context(), "/v1/quarantine", &list) }); err != nil {
		w.t.Fatal(err)
	}
	return list
}

// quarantined is how many things hub has put aside.
func (w *jobWorld) quarantined() int {
	w.t.Helper()
	var s control.Status
	if err := w.with(w.hub, func(c *control.Client) error { return c.Get(w.t.Context(), "/v1/status", &s) }); err != nil {
		w.t.Fatal(err)
	}
	return s.Quarantine
}
