package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/internal/peertest"
)

// A way is one carrier between two nodes. The scenario below is the same for all of them: a row for a carrier is
//
//	func TestScenarioX(t *testing.T) { scenario(t, way{join: …}) }
//
// in a file of its own.
type way struct {
	// join sets the carrier up between two nodes that are made and do not run yet.
	join func(t *testing.T, camp, hub *node) joined
}

// joined is a carrier that stands.
type joined struct {
	camp, hub side
	// carry is what somebody does who stands between: a courier, a mail server's queue run, uucico. It is called again
	// and again while the scenario waits, a fifth of a second after it came back. nil: the nodes do it all.
	carry func()
	// harm loses, damages, cuts short or repeats something of what is under way now, and says how much it has hit; it
	// is asked again while it finds nothing. nil: nothing can happen to this carrier, or it happens by itself.
	harm func(r *rand.Rand) int
	// faults says how many faults have happened by themselves. There must be some in the end. nil: none happen.
	faults func() int
}

// side is what one node needs.
type side struct {
	url  string // how it reaches the other; "": the other calls
	conf string // further configuration; no [smtp], no [limits]
}

// scenario sends mail and ordered jobs both ways over a carrier that is not kind: first by one node while the other is
// down, then the other way round, then both at once. In the end every mail has arrived once, byte for byte, and every
// job has run once, in order, with its result at home.
func scenario(t *testing.T, w way) {
	t.Parallel()
	r := random(t)
	camp, hub := newEnd(t, "camp"), newEnd(t, "hub")
	camp.far, hub.far = hub, camp
	j := w.join(t, camp.node, hub.node)
	camp.meets(j.camp)
	hub.meets(j.hub)

	n := count(5, 60)
	camp.serve()
	camp.sends(n, n)
	j.hurt(t, r, camp)
	camp.shutdown()
	hub.serve()
	hub.sends(n, n)
	j.hurt(t, r, hub)
	camp.serve()
	camp.sends(n, n)
	hub.sends(n, n)
	j.wait(t, "the first mail and the first job of each side", func() bool {
		return len(camp.mails()) > 0 && len(hub.mails()) > 0 && len(camp.ran()) > 0 && len(hub.ran()) > 0
	}, camp, hub)
	if j.harm != nil {
		j.harm(r)
	}
	camp.sends(2, 2)
	hub.sends(2, 2)

	for _, e := range []*end{camp, hub} {
		j.wait(t, "all mail of "+e.name, func() bool { return len(e.far.mails()) >= len(e.sent) }, camp, hub)
		for _, x := range e.jobs {
			j.wait(t, fmt.Sprintf("the result of job %d of %s", x.seq, e.name), func() bool {
				e.get("/v1/jobs/"+url.PathEscape(x.id), &x.view)
				return x.view.Ended
			}, camp, hub)
		}
	}
	j.wait(t, "empty queues", func() bool { return camp.queued() == 0 && hub.queued() == 0 }, camp, hub)
	camp.verify()
	hub.verify()
	if j.faults != nil {
		n := j.faults()
		t.Logf("%d faults happened to the carrier", n)
		if n == 0 {
			t.Error("nothing happened to the carrier: the test shows little")
		}
	}
}

// hurt waits until there is something of e to hurt, and hurts it.
func (j joined) hurt(t *testing.T, r *rand.Rand, e *end) {
	t.Helper()
	if j.harm == nil {
		return
	}
	hits := 0
	j.wait(t, "something of "+e.name+" to harm", func() bool { hits = j.harm(r); return hits > 0 }, e)
	t.Logf("%d packets of %s were lost, damaged or repeated", hits, e.name)
}

// wait is peertest.Await with the one who carries at work.
func (j joined) wait(t *testing.T, what string, done func() bool, ends ...*end) {
	t.Helper()
	var logs []func() string
	for _, e := range ends {
		logs = append(logs, func() string { return e.name + ":\n" + e.queue() + "\n" + tail(e.log.String()) })
	}
	var rested time.Time
	peertest.Await(t, what, func() bool {
		if done() {
			return true
		}
		if j.carry != nil && time.Since(rested) > 200*time.Millisecond {
			j.carry()
			rested = time.Now()
		}
		return false
	}, logs...)
}

// end is a node of the scenario.
type end struct {
	*node
	far   *end
	smtp  string
	boxes string // its Maildirs
	notes string // what its handler wrote down

	sent []string // ids of mails
	jobs []*order
}

// order is a job that was made.
type order struct {
	id   string
	seq  uint64
	sum  string // of its input
	view control.JobItem
}

func newEnd(t *testing.T, name string) *end {
	e := &end{smtp: peertest.FreePort(t), boxes: t.TempDir()}
	e.node = newNode(t, name, "")
	e.notes = filepath.Join(e.dir, "notes")
	script := filepath.Join(e.dir, "note.sh")
	text := "#!/bin/sh\nsum=$(sha256sum | cut -c1-64)\necho \"$MOCHILA_SEQ $sum $1\" >>" + e.notes + "\necho $sum\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return e
}

// meets pairs e with the other side. What is lost is sent again after a few seconds, not after days.
func (e *end) meets(s side) {
	e.t.Helper()
	add := control.PeerAdd{Carrier: s.url, Routes: []string{e.far.name + ".example"}}
	if s.url == "" {
		add.When = "on-call"
	}
	e.knows(e.far.node, add)
	e.contacts(e.far.name, func(c *config.Contact) {
		c.Overdue = config.Duration(3 * time.Second)
		if s.url != "" {
			c.Every = config.Duration(time.Second)
		}
	})
	e.configure(fmt.Sprintf(`
name = "%[1]s"
domain = "%[1]s.example"
[smtp]
listen = [%[2]q]
[[deliver]]
to = ["%[1]s.example"]
via = %[3]q
[[handler]]
name = "note"
command = ["/bin/sh", %[4]q]
allow = ["*:*"]
args = true
%[5]s
[limits]
retry_min = "1s"
retry_max = "1s"
`, e.name, e.smtp, "maildir:"+e.boxes+"/%u", filepath.Join(e.dir, "note.sh"), s.conf))
}

// contacts changes all contacts with a peer.
func (n *node) contacts(peer string, change func(*config.Contact)) {
	n.t.Helper()
	f, err := config.ReadPeer(n.home, peer)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := range f.Contacts {
		change(&f.Contacts[i])
	}
	if err := config.WritePeer(n.home, f); err != nil {
		n.t.Fatal(err)
	}
}

// calls makes n call a peer each second, whatever is due: what ends at the other side after a contact has no other way home,
// and would wait for the next call, five minutes later.
func (n *node) calls(peer string) {
	n.t.Helper()
	n.contacts(peer, func(c *config.Contact) { c.Every = config.Duration(time.Second) })
}

// sends hands mails and jobs for the other side to the running node, in turn.
func (e *end) sends(mails, jobs int) {
	e.t.Helper()
	for range mails {
		id := fmt.Sprintf("%s-%d", e.name, len(e.sent))
		if err := send(e.smtp, sceneMail(id), "<eve@"+e.name+".example>", "<ana@"+e.far.name+".example>"); err != nil {
			e.t.Fatalf("%s: mail %s: %v", e.name, id, err)
		}
		e.sent = append(e.sent, id)
	}
	if jobs == 0 {
		return
	}
	var batch bytes.Buffer
	for i := range jobs {
		k := len(e.jobs) + i
		input := sceneInput(k)
		sum := sha256.Sum256([]byte(input))
		line, err := json.Marshal(control.RunRequest{Nodes: []string{e.far.name}, Handler: "note", Args: []string{"a b", strconv.Itoa(k)}, Stdin: input})
		if err != nil {
			e.t.Fatal(err)
		}
		batch.Write(append(line, '\n'))
		e.jobs = append(e.jobs, &order{sum: hex.EncodeToString(sum[:])})
	}
	cmd := e.command("run", e.far.name, "--channel", "work", "--batch", "--json")
	var says bytes.Buffer
	cmd.Stdin, cmd.Stderr = &batch, &says
	out, err := cmd.Output()
	if err != nil {
		e.t.Fatalf("%s: make jobs: %v: %s", e.name, err, says.String())
	}
	made := e.jobs[len(e.jobs)-jobs:]
	for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		var ticket control.RunTicket
		if err := json.Unmarshal([]byte(line), &ticket); err != nil || i >= len(made) {
			e.t.Fatalf("%s: what is this ticket: %q: %v", e.name, line, err)
		}
		made[i].id, made[i].seq = ticket.ID, ticket.Seq
	}
}

// sceneMail is the mail of an id. One in five needs a file of its own, one in five is larger than what a carrier sends
// without asking.
func sceneMail(id string) string {
	sum := crc32.ChecksumIEEE([]byte(id))
	r := rand.New(rand.NewPCG(uint64(sum), 2))
	_, number, _ := strings.Cut(id, "-")
	k, _ := strconv.Atoi(number)
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: scene\r\nX-Scene-Id: %s\r\n\r\n", id)
	switch k % 5 {
	case 0: // short, with everything that mail systems trip over
		b.WriteString(".\r\n..\r\nFrom the start\r\n \r\n\t\r\n" + strings.Repeat("x", 990) + "\r\n\r\n\r\n")
	case 1:
		b.WriteString("gr\xc3\xbc\xc3\x9fe \xff\xfe\r\n") // 8 bits, and not even UTF-8
	case 2:
		noiseLines(&b, r, 20_000)
	case 3:
		noiseLines(&b, r, 200_000)
	}
	return b.String()
}

func noiseLines(b *strings.Builder, r *rand.Rand, size int) {
	for b.Len() < size {
		fmt.Fprintf(b, "%016x%016x%016x\r\n", r.Uint64(), r.Uint64(), r.Uint64())
	}
}

// sceneInput is the input of the job k of a channel.
func sceneInput(k int) string {
	r := rand.New(rand.NewPCG(uint64(k), 3))
	var b strings.Builder
	if k%4 == 3 {
		noiseLines(&b, r, 100_000)
	}
	fmt.Fprintf(&b, "job %d", k)
	return b.String()
}

var sceneID = regexp.MustCompile(`(?m)^X-Scene-Id: (\S+)\r?$`)

// mails are those that have arrived.
func (e *end) mails() map[string]string {
	e.t.Helper()
	return box(e.t, filepath.Join(e.boxes, "ana"))
}

// ran are the jobs of the other side that have run here, as the handler wrote them down.
func (e *end) ran() []string {
	e.t.Helper()
	b, err := os.ReadFile(e.notes)
	if err != nil && !os.IsNotExist(err) {
		e.t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(b)))
}

// verify compares what e sent with what happened at the other side.
func (e *end) verify() {
	e.t.Helper()
	copies := map[string]int{}
	for _, text := range e.far.mails() {
		m := sceneID.FindStringSubmatch(text)
		if m == nil || !slices.Contains(e.sent, m[1]) {
			e.t.Errorf("%s has a mail that nobody sent: %.300q", e.far.name, text)
			continue
		}
		copies[m[1]]++
		if !unchanged([]byte(text), sceneMail(m[1])) {
			e.t.Errorf("mail %s came changed: %.1000q", m[1], text)
		}
	}
	for _, id := range e.sent {
		if copies[id] != 1 {
			e.t.Errorf("mail %s came %d times", id, copies[id])
		}
	}
	var want []string
	for i, x := range e.jobs {
		want = append(want, fmt.Sprintf("%d %s a b\n", x.seq, x.sum))
		if x.seq != uint64(i+1) {
			e.t.Errorf("job %d of %s has number %d", i, e.name, x.seq)
		}
		e.get("/v1/jobs/"+url.PathEscape(x.id), &x.view) // one without the output may have been faster than the one with it
		r := x.view.Result
		if r == nil || r.State != "done" || r.Exit != 0 || r.Stdout != 65 {
			e.t.Errorf("job %d of %s ended so: %+v, result %+v", x.seq, e.name, x.view, r)
		}
	}
	if got := e.far.ran(); !slices.Equal(got, want) {
		e.t.Errorf("at %s these jobs ran:\n%swant:\n%s", e.far.name, strings.Join(got, ""), strings.Join(want, ""))
	}
	e.t.Logf("%s: %d mails arrived once, %d jobs ran in order, and their results came back", e.name, len(e.sent), len(e.jobs))
}
