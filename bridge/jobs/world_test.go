package jobs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// world is an origin and a destination with carriers between them that shuffle, repeat, drop, delay and cut what they
// carry. Time is virtual; nothing runs that a test does not run.
type world struct {
	t    testing.TB
	rnd  *rand.Rand
	now  time.Time
	a, b *side
	air  []*packet
	bad  float64 // chance that a packet is harmed

	mu      sync.Mutex
	crash   bool    // the destination is going down: programs of a killed node have no outcome
	crashes float64 // chance of that at a start
	ran     []effect
	count   map[envelope.ID]int
	behave  func(*Start) *Outcome // nil: success
	ready   int                   // starts that were prepared
	open    int                   // of these, those that were neither used nor given up
}

// effect is one start of one program.
type effect struct {
	channel string
	epoch   [8]byte
	seq     uint64
	id      envelope.ID
}

// side is one node.
type side struct {
	w       *world
	name    string
	id      envelope.NodeID
	dir     string
	inc     [8]byte
	sp      *spool.Spool
	j       *Jobs
	peer    *side
	knows   [8]byte // incarnation of the peer, as it was told
	policy  *Policy
	suspect bool
	took    map[envelope.ID]bool
	free    func() (free, total int64, err error) // of its disk; nil is what the system says
}

// packet is a bundle on its way, or a receipt for one.
type packet struct {
	to, from *side
	fromInc  [8]byte
	forInc   [8]byte
	items    [][]byte // header length, header, content
	records  []Record
	acks     []envelope.ID
	refused  bool // it was for an earlier life of the sender of this
	arrives  time.Time
}

func newWorld(t testing.TB, seed int64) *world {
	w := &world{t: t, rnd: rand.New(rand.NewSource(seed)), now: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC), count: map[envelope.ID]int{}}
	w.a, w.b = w.side("camp", 1), w.side("hub", 2)
	w.a.peer, w.b.peer = w.b, w.a
	w.a.knows, w.b.knows = w.b.inc, w.a.inc
	w.b.policy.Handlers = []*Handler{{Name: "do", Allow: []string{"camp:*"}}, {Name: "again", Allow: []string{"camp:*"}, Idempotent: true, Concurrency: 4}}
	w.b.policy.Handlers[0].Concurrency = 4
	for _, s := range []*side{w.a, w.b} {
		s.open()
	}
	t.Cleanup(func() { w.a.sp.Close(); w.b.sp.Close() })
	return w
}

func (w *world) side(name string, n byte) *side {
	s := &side{w: w, name: name, id: envelope.NodeID{n}, dir: filepath.Join(w.t.TempDir(), name), took: map[envelope.ID]bool{}}
	s.renew()
	s.policy = &Policy{Node: name, PeerName: func(id envelope.NodeID) (string, bool) {
		if s.peer != nil && id == s.peer.id {
			return s.peer.name, true
		}
		return "", false
	}}
	return s
}

// renew begins a new life.
func (s *side) renew() {
	binary.BigEndian.PutUint64(s.inc[:], binary.BigEndian.Uint64(s.inc[:])+uint64(s.w.now.Unix()))
}

func (s *side) open() {
	s.w.t.Helper()
	sp, err := spool.Open(s.dir, spool.Options{Reserve: 1, Free: s.free})
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.sp = sp
	var out io.Writer = io.Discard
	if os.Getenv("JOBS_LOG") != "" {
		out = os.Stderr
	}
	o := Options{Spool: sp, Self: s.id, Now: func() time.Time { return s.w.now }, Policy: func() *Policy { return s.policy }, Runner: s.w,
		Incarnation: func() [8]byte { return s.inc }, Suspect: func() bool { return s.suspect },
		PeerIncarnation: func(*spool.Tx, envelope.NodeID) ([8]byte, bool) { return s.knows, true },
		Log:             slog.New(slog.NewTextHandler(out, nil)).With("node", s.name)}
	if s.j, err = New(o); err != nil {
		s.w.t.Fatal(err)
	}
	if sp.Copied() {
		s.renew()
		if err := s.j.Restored(); err != nil {
			s.w.t.Fatal(err)
		}
		s.back()
		if err := sp.AcceptCopy(); err != nil {
			s.w.t.Fatal(err)
		}
	}
}

// reopen is a crash: what was committed is all that is left.
func (s *side) reopen() {
	s.w.t.Helper()
	if err := s.sp.Close(); err != nil {
		s.w.t.Fatal(err)
	}
	s.w.mu.Lock()
	s.w.crash = false
	s.w.mu.Unlock()
	s.open()
}

// save copies the spool; restore puts the copy in its place.
func (s *side) save(to string) {
	s.w.t.Helper()
	if err := s.sp.Close(); err != nil {
		s.w.t.Fatal(err)
	}
	if err := os.RemoveAll(to); err != nil {
		s.w.t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(s.dir)); err != nil {
		s.w.t.Fatal(err)
	}
	s.open()
}

func (s *side) restore(from string) {
	s.w.t.Helper()
	if err := s.sp.Close(); err != nil {
		s.w.t.Fatal(err)
	}
	s.dir = from
	s.open()
}

// Run is the program of every job.
func (w *world) Run(_ context.Context, s *Start) (*Outcome, error) {
	in, err := s.Stdin()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	content, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	if p, ok := s.Ready.(*prepared); ok {
		if p.id != s.ID || p.try != s.Try || p.sum != s.Sum {
			w.t.Errorf("job %s, try %d, got what was prepared for %s, try %d", s.ID, s.Try, p.id, p.try)
		}
		p.Close()
	}
	if s.Meanwhile != nil {
		s.Meanwhile()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.crash && w.rnd.Float64() < w.crashes {
		w.crash = true
		if w.rnd.Intn(2) == 0 {
			return nil, errors.New("killed before it did anything")
		}
		w.note(s)
		return nil, errors.New("killed after it did its work")
	}
	if w.crash {
		return nil, errors.New("killed")
	}
	w.note(s)
	if w.behave != nil {
		if o := w.behave(s); o != nil {
			return o, nil
		}
	}
	return &Outcome{Started: w.now, Ended: w.now, Out: bytes.NewReader(content)}, nil
}

// prepared is what Prepare did for a job.
type prepared struct {
	w      *world
	id     envelope.ID
	try    int
	sum    [32]byte
	closed bool
}

// Prepare notes what was prepared (Preparer).
func (w *world) Prepare(s *Start) Ready {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready++
	w.open++
	return &prepared{w: w, id: s.ID, try: s.Try, sum: s.Sum}
}

func (p *prepared) Close() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.closed {
		p.w.t.Error("what was prepared was given up twice")
	}
	p.closed = true
	p.w.open--
}

func (w *world) note(s *Start) {
	w.ran = append(w.ran, effect{s.Channel, s.Epoch, s.Seq, s.ID})
	w.count[s.ID]++
}

// Kill finds nothing: the programs of this world end with their node.
func (w *world) Kill(envelope.ID) error { return nil }

// enqueue makes a job with its number as input.
func (s *side) enqueue(r *Request, stdin string) envelope.ID {
	s.w.t.Helper()
	r.Dest = s.peer.id
	if r.Job.Handler == "" && r.Job.Kind == envelope.JobCommand {
		r.Job.Handler = "do"
	}
	r.Body = s.sp.NewBody()
	if _, err := io.WriteString(r.Body, stdin); err != nil {
		s.w.t.Fatal(err)
	}
	if err := r.Body.Finish(); err != nil {
		s.w.t.Fatal(err)
	}
	t, err := s.j.Enqueue([]*Request{r})
	if err != nil {
		s.w.t.Fatal(err)
	}
	return t[0].ID
}

// overdue is how long a packet may travel.
const overdue = 6 * time.Hour

// send packs what is due, at most max envelopes.
func (s *side) send(max int) {
	w := s.w
	w.t.Helper()
	leased, err := s.sp.Lease(spool.NodeDest(s.peer.id), max, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	p := &packet{to: s.peer, from: s, fromInc: s.inc, forInc: s.knows}
	var ids []envelope.ID
	for _, l := range leased {
		r, err := s.sp.OpenBody(l.Item.Env.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		head := envelope.AppendEnvelope(nil, l.Item.Env)
		p.items = append(p.items, append(binary.AppendUvarint(nil, uint64(len(head))), append(head, content...)...))
		ids = append(ids, l.Item.Env.ID)
	}
	err = s.sp.Apply(func(tx *spool.Tx) error {
		for _, id := range ids {
			it, err := tx.Item(id)
			if err != nil {
				return err
			}
			it.Legs[0].State, it.Legs[0].At, it.Legs[0].Carrier = spool.Sealed, w.now.Add(overdue), "air"
			if err := tx.Save(it); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if p.records, err = s.j.Records(s.peer.id, w.now); err != nil {
		w.t.Fatal(err)
	}
	if len(p.items)+len(p.records) > 0 {
		w.launch(p)
	}
}

// launch hands a packet to a carrier: it may be lost, come twice, late or cut.
func (w *world) launch(p *packet) {
	copies := 1
	if w.rnd.Float64() < w.bad {
		copies = w.rnd.Intn(3) // none, one, or two
	}
	for range copies {
		q := *p
		delay := time.Duration(w.rnd.Intn(60)) * time.Minute
		if w.rnd.Float64() < w.bad {
			delay = time.Duration(w.rnd.Intn(20)) * time.Hour
		}
		q.arrives = w.now.Add(delay)
		if n := len(q.items); n > 0 && w.rnd.Float64() < w.bad/4 {
			last := q.items[n-1]
			q.items = append(append([][]byte{}, q.items[:n-1]...), last[:w.rnd.Intn(len(last))]) // cut
		}
		w.air = append(w.air, &q)
	}
}

// land takes what has arrived, in any order.
func (w *world) land() {
	w.rnd.Shuffle(len(w.air), func(i, k int) { w.air[i], w.air[k] = w.air[k], w.air[i] })
	var rest []*packet
	var due []*packet
	for _, p := range w.air {
		if p.arrives.After(w.now) {
			rest = append(rest, p)
		} else {
			due = append(due, p)
		}
	}
	w.air = rest
	for _, p := range due {
		p.to.receive(p)
	}
}

// receive verifies a packet, then takes all of it in one transaction.
func (s *side) receive(p *packet) {
	w := s.w
	w.t.Helper()
	if laterEpoch(p.fromInc, s.knows) {
		s.knows = p.fromInc
		if err := s.j.PeerRenewed(s.peer.id); err != nil {
			w.t.Fatal(err)
		}
		s.back()
	}
	if p.refused {
		s.back()
	}
	type item struct {
		env  *envelope.Envelope
		body *spool.Body
	}
	var items []item
	for _, raw := range p.items {
		n, k := binary.Uvarint(raw)
		if k <= 0 || uint64(len(raw)-k) < n {
			return // cut: nothing of it counts
		}
		env, err := envelope.ParseEnvelope(raw[k : k+int(n)])
		if err != nil || env.Size != int64(len(raw)-k-int(n)) {
			return
		}
		env.Origin = p.from.id
		if env.Kind == envelope.KindJob && p.forInc != s.inc {
			w.launch(&packet{to: p.from, from: s, fromInc: s.inc, forInc: s.knows, refused: true})
			return // sealed for a life that is lost
		}
		body := s.sp.NewBody()
		if _, err := body.Write(raw[k+int(n):]); err != nil {
			w.t.Fatal(err)
		}
		if err := body.Finish(); err != nil {
			w.t.Fatal(err)
		}
		items = append(items, item{env, body})
	}
	batch := s.j.Batch()
	err := s.sp.Apply(func(tx *spool.Tx) error {
		batch.Reset()
		for _, x := range items {
			var err error
			if x.env.Kind == envelope.KindResult {
				if tx.Seen(x.env.Origin, x.env.ID) {
					continue
				}
				if err = tx.Remember(x.env.Origin, x.env.ID, x.env.Expires); err == nil {
					err = batch.TakeResult(tx, x.env, x.body)
				}
			} else {
				err = batch.Arrive(tx, x.env, x.body)
			}
			if err != nil {
				return err
			}
		}
		for _, r := range p.records {
			var err error
			switch r.Type {
			case envelope.RecordChannel:
				var c *envelope.ChannelReport
				if c, err = envelope.ParseChannelReport(r.Body); err == nil {
					err = batch.TakeReport(tx, p.from.id, c)
				}
			case envelope.RecordResume:
				var c *envelope.Resume
				if c, err = envelope.ParseResume(r.Body); err == nil {
					err = batch.TakeResume(tx, p.from.id, c)
				}
			}
			if err != nil {
				return err
			}
		}
		for _, id := range p.acks {
			it, err := tx.Item(id)
			if errors.Is(err, spool.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			e := spool.DestHeld
			if it.Env.Kind == envelope.KindResult {
				e = spool.Finish
			} else if err := s.j.Arrived(tx, it); err != nil {
				return err
			}
			next, ok := spool.Next(it.Legs[0].State, e)
			if !ok || next == it.Legs[0].State || it.Legs[0].State == spool.Due && p.forInc != s.inc {
				continue
			}
			it.Legs[0].State, it.Legs[0].At = next, time.Time{}
			if err := tx.Save(it); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	batch.Committed()
	if len(items) > 0 {
		ack := &packet{to: p.from, from: s, fromInc: s.inc, forInc: s.knows}
		for _, x := range items {
			ack.acks = append(ack.acks, x.env.ID)
		}
		w.launch(ack)
	}
}

// back makes what has no outcome due again, as the bridge does when a life was lost.
func (s *side) back() {
	items, _, err := s.sp.List(spool.Query{Dest: spool.NodeDest(s.peer.id)})
	if err != nil {
		s.w.t.Fatal(err)
	}
	err = s.sp.Apply(func(tx *spool.Tx) error {
		for _, x := range items {
			it, err := tx.Item(x.Env.ID)
			if err != nil {
				continue
			}
			if next, ok := spool.Next(it.Legs[0].State, spool.PeerRenewed); ok {
				it.Legs[0].State, it.Legs[0].At = next, time.Time{}
				if err := tx.Save(it); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		s.w.t.Fatal(err)
	}
}

// late makes what is overdue due again.
func (s *side) late() {
	refs, err := s.sp.Wake(s.w.now, 10000)
	if err != nil {
		s.w.t.Fatal(err)
	}
	err = s.sp.Apply(func(tx *spool.Tx) error {
		for _, r := range refs {
			it, err := tx.Item(r.ID)
			if err != nil || r.Leg < 0 {
				continue
			}
			if next, ok := spool.Next(it.Legs[0].State, spool.Overdue); ok && !it.Legs[0].At.After(s.w.now) {
				it.Legs[0].State, it.Legs[0].At = next, time.Time{}
				if err := tx.Save(it); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		s.w.t.Fatal(err)
	}
}

// run starts what can be started at the destination; a crash there is followed by a new start.
func (w *world) run() {
	w.b.j.Drain(context.Background())
	w.mu.Lock()
	crash, open := w.crash, w.open
	w.mu.Unlock()
	if open != 0 {
		w.t.Errorf("%d starts were prepared and forgotten", open)
	}
	if crash {
		w.b.reopen()
	}
}

// step is one round of everything.
func (w *world) step() {
	w.now = w.now.Add(time.Duration(10+w.rnd.Intn(50)) * time.Minute)
	w.land()
	w.run()
	w.a.late()
	w.b.late()
	w.a.send(1 + w.rnd.Intn(30))
	w.b.send(1 + w.rnd.Intn(30))
}

// operate decides as a careful person does: a job that is unknown is looked into, and started again only when it has
// not run; what the origin has forgotten is passed over.
func (w *world) operate() {
	w.t.Helper()
	list, err := w.b.j.Channels()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range list {
		if c.Own || c.State != "held" {
			continue
		}
		page, err := w.b.j.List(Filter{Side: "peers", Channel: c.Name, Limit: 1})
		if err != nil {
			w.t.Fatal(err)
		}
		if len(page.Jobs) == 1 && page.Jobs[0].State == "held" {
			v := page.Jobs[0]
			if v.Result == nil {
				w.t.Fatalf("held without a result: %+v", v)
			}
			act := w.b.j.Retry
			if w.count[v.ID] > 0 {
				act = w.b.j.Skip
			}
			if err := act(v.ID); err != nil {
				w.t.Fatal(err)
			}
			continue
		}
		if strings.Contains(c.Why, "does not know number") {
			if _, _, err := w.b.j.SkipGap(c.Peer, c.Name); err != nil {
				w.t.Fatal(err)
			}
			continue
		}
		if err := w.b.j.Resume(c.Peer, c.Name); err != nil {
			w.t.Fatalf("%v: %+v", err, c)
		}
	}
}

// settle runs the world until every job of ids has ended at its origin.
func (w *world) settle(ids []envelope.ID) {
	w.t.Helper()
	for i := range 2000 {
		w.step()
		if i%5 == 0 {
			w.operate()
		}
		if left := w.left(ids); left == 0 {
			return
		}
	}
	for _, s := range []*side{w.a, w.b} {
		list, _ := s.j.Channels()
		for _, c := range list {
			w.t.Logf("%s: %+v", s.name, c)
		}
		page, _ := s.j.List(Filter{Limit: 5})
		for _, v := range page.Jobs {
			w.t.Logf("%s: %s %s %d %s %s", s.name, v.ID, v.Job.Channel, v.Job.Seq, v.State, v.Why)
		}
	}
	w.t.Fatalf("%d of %d jobs have no outcome although the carriers have met often enough", w.left(ids), len(ids))
}

func (w *world) left(ids []envelope.ID) (n int) {
	w.t.Helper()
	err := w.a.sp.View(func(tx *spool.Tx) error {
		for _, id := range ids {
			o, err := getOutcome(tx, tabDone, id)
			if err != nil {
				return err
			}
			if o == nil || o.res.Held {
				n++
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// check compares what ran with what was promised: in order, each at most once, none of the named missing.
func (w *world) check(ids []envelope.ID) {
	w.t.Helper()
	last := map[string]effect{}
	for _, e := range w.ran {
		p, ok := last[e.channel]
		if ok && (laterEpoch(p.epoch, e.epoch) || p.epoch == e.epoch && e.seq <= p.seq) {
			w.t.Errorf("channel %s: number %d of epoch %x after number %d of %x", e.channel, e.seq, e.epoch, p.seq, p.epoch)
		}
		last[e.channel] = e
	}
	for id, n := range w.count {
		if n > 1 {
			w.t.Errorf("job %s was started %d times", id, n)
		}
	}
	missing := 0
	for _, id := range ids {
		if w.count[id] == 0 {
			missing++
			v, err := w.a.j.Show(id)
			w.t.Errorf("job %s never ran: %+v, %v", id, v, err)
			if missing > 5 {
				w.t.FailNow()
			}
		}
	}
}
