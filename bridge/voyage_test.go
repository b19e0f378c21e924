package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/envelope"
	"mochila/transport"
	"mochila/transport/transporttest"
)

// voyage is camp, which makes jobs, and hub, which runs them, with three carriers between them that shuffle, repeat, drop,
// delay and cut packets. Both nodes are whole: spool, sessions, seals, the engine. They are killed at any of their steps.
type voyage struct {
	*lab
	rnd       *rand.Rand
	camp, hub *node
	bad       float64 // chance that a packet is harmed
	air       []parcel
	mems      map[string]*transporttest.MemFolder

	mu      sync.Mutex
	fuse    map[string]int // steps until a node dies, by name; 0: it lives
	crashes float64        // chance that hub dies while a program runs
	ran     []voyageRun
	count   map[envelope.ID]int
	broken  map[envelope.ID]bool // hub died while they ran
	kills   int
}

// voyageRun is one effect.
type voyageRun struct {
	channel string
	epoch   [8]byte
	seq     uint64
	id      envelope.ID
}

// parcel is a packet on its way.
type parcel struct {
	stick   string
	file    file
	arrives time.Time
}

var carriers = []string{"ferry", "plane", "radio"}

func newVoyage(t *testing.T, seed uint64) *voyage {
	v := &voyage{lab: newLab(t), rnd: rand.New(rand.NewPCG(seed, 5)), mems: map[string]*transporttest.MemFolder{}, fuse: map[string]int{},
		count: map[envelope.ID]int{}, broken: map[envelope.ID]bool{}}
	v.camp, v.hub = v.node("camp"), v.node("hub")
	v.hub.runner = v
	v.hub.reopen()
	v.camp.knows(v.hub, "")
	v.hub.knows(v.camp, "")
	for _, x := range [][2]*node{{v.camp, v.hub}, {v.hub, v.camp}} {
		p := *x[0].pol
		for _, c := range carriers {
			name := c + "-" + x[0].name
			v.mems[name] = transporttest.NewMemFolder(0)
			v.sticks[name] = fused{v.mems[name], v, x[0]}
			p.Contacts = append(p.Contacts[:len(p.Contacts):len(p.Contacts)], &Contact{Node: x[1].keys.ID(), NodeName: x[1].name, URL: "dir:" + name,
				When: When{Always: true}, Overdue: 8 * time.Hour})
		}
		x[0].pol = &p
		x[0].b.SetPolicy(&p)
	}
	v.hub.allow("do")
	return v
}

// fused is a node's end of a carrier. At its last step the node dies: nothing after it is stored.
type fused struct {
	*transporttest.MemFolder
	v *voyage
	n *node
}

// burn counts one step of a node.
func (v *voyage) burn(n *node) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fuse[n.name] == 0 {
		return false
	}
	v.fuse[n.name]--
	return v.fuse[n.name] == 0
}

func (f fused) step() {
	if f.v.burn(f.n) {
		f.n.sp.Close()
	}
}

func (f fused) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	f.step()
	err := f.MemFolder.Put(ctx, dir, name, size, r)
	f.step()
	return err
}

func (f fused) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	f.step()
	return f.MemFolder.Get(ctx, dir, name)
}

func (f fused) Remove(ctx context.Context, dir, name string) error {
	f.step()
	return f.MemFolder.Remove(ctx, dir, name)
}

// Run is the program of every job (jobs.Runner).
func (v *voyage) Run(_ context.Context, s *jobs.Start) (*jobs.Outcome, error) {
	in, err := s.Stdin()
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(in)
	in.Close()
	if err != nil {
		return nil, err
	}
	if want := sumOf(content); want != s.Sum {
		v.t.Errorf("job %s: its input is not what was sealed", s.ID)
	}
	v.mu.Lock()
	dies := v.fuse["hub"] == 0 && v.rnd.Float64() < v.crashes
	before := dies && v.rnd.IntN(2) == 0
	if !before {
		v.ran = append(v.ran, voyageRun{s.Channel, s.Epoch, s.Seq, s.ID})
		v.count[s.ID]++
	}
	if dies {
		v.broken[s.ID] = true
		v.kills++
		v.fuse["hub"] = -1 // dead: started again after this
	}
	v.mu.Unlock()
	if dies {
		go v.hub.sp.Close()
		return nil, errors.New("hub is killed")
	}
	return &jobs.Outcome{Started: v.clock(), Ended: v.clock(), Out: strings.NewReader(s.Channel + string(content))}, nil
}

// Kill finds nothing: these programs end with their node.
func (v *voyage) Kill(envelope.ID) error { return nil }

// meetAll lets a node make its contacts; perhaps it dies in the middle of them.
func (v *voyage) meetAll(n *node) {
	v.mu.Lock()
	if v.rnd.IntN(8) == 0 {
		v.fuse[n.name] = 1 + v.rnd.IntN(12)
	}
	lit := v.fuse[n.name] > 0
	v.mu.Unlock()
	n.contact()
	v.mu.Lock()
	died := lit && v.fuse[n.name] == 0
	v.fuse[n.name] = 0
	if died {
		v.kills++
	}
	v.mu.Unlock()
	if died {
		n.reopen()
	}
}

// run lets hub start what it can; when it dies, it is started again.
func (v *voyage) run() {
	v.hub.b.Jobs().Drain(context.Background())
	v.mu.Lock()
	died := v.fuse["hub"] != 0
	v.fuse["hub"] = 0
	v.mu.Unlock()
	if died {
		v.hub.reopen()
	}
}

// fly takes what lies at one end of every carrier towards the other.
func (v *voyage) fly() {
	for _, c := range carriers {
		for _, x := range [][2]*node{{v.camp, v.hub}, {v.hub, v.camp}} {
			for _, f := range v.lying(c+"-"+x[0].name, x[0], x[1]) {
				if v.rnd.IntN(3) > 0 {
					continue // the courier comes another day
				}
				copies := 1
				if v.rnd.Float64() < v.bad {
					copies = v.rnd.IntN(3)
				}
				for range copies {
					p := parcel{stick: c + "-" + x[1].name, file: f, arrives: v.now.Add(time.Duration(v.rnd.IntN(90)) * time.Minute)}
					if v.rnd.Float64() < v.bad {
						p.arrives = p.arrives.Add(time.Duration(v.rnd.IntN(30)) * time.Hour)
					}
					if v.rnd.Float64() < v.bad/3 {
						p.file.data = f.data[:v.rnd.IntN(len(f.data))]
					}
					v.air = append(v.air, p)
				}
			}
		}
	}
	v.rnd.Shuffle(len(v.air), func(i, k int) { v.air[i], v.air[k] = v.air[k], v.air[i] })
	v.air = slices.DeleteFunc(v.air, func(p parcel) bool {
		if p.arrives.After(v.now) {
			return false
		}
		v.mems[p.stick].Set(p.file.dir, p.file.name, p.file.data)
		return true
	})
}

// step is one round of everything.
func (v *voyage) step() {
	v.jump(time.Duration(20+v.rnd.IntN(90))*time.Minute, v.camp, v.hub)
	v.meetAll(v.camp)
	v.fly()
	v.meetAll(v.hub)
	v.run()
	v.meetAll(v.hub)
	v.fly()
	v.meetAll(v.camp)
	for _, c := range carriers { // bags are emptied where they arrive
		v.empty(c+"-hub", v.camp, v.hub)
		v.empty(c+"-camp", v.hub, v.camp)
	}
}

func (v *voyage) empty(stick string, from, to *node) {
	for _, f := range v.lying(stick, from, to) {
		if err := v.mems[stick].Remove(context.Background(), f.dir, f.name); err != nil {
			v.t.Fatal(err)
		}
	}
}

// order makes n jobs on four channels, some at a time; now and then the input of one more breaks off.
func (v *voyage) order(n int) (ids []envelope.ID) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			id := v.camp.order(v.hub, fmt.Sprintf("ch%d", i%4), "do", strings.Repeat(strconv.Itoa(i), 1+i%7))
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, id)
		})
	}
	all.Wait()
	if v.rnd.IntN(3) == 0 {
		b := v.camp.sp.NewBody()
		io.WriteString(b, "half of")
		b.Discard()
	}
	return ids
}

// operate decides at hub as a careful person does: what is unknown is looked into, and started again only if it has not run.
func (v *voyage) operate() {
	v.t.Helper()
	for range 40 {
		if !v.decide() {
			return
		}
		v.run()
	}
}

// decide is one round of that; it reports whether there was anything.
func (v *voyage) decide() (any bool) {
	v.t.Helper()
	j := v.hub.b.Jobs()
	list, err := j.Channels()
	if err != nil {
		v.t.Fatal(err)
	}
	for _, c := range list {
		if c.Own || c.State != "held" {
			continue
		}
		any = true
		page, err := j.List(jobs.Filter{Side: "peers", Channel: c.Name, Limit: 1})
		if err != nil {
			v.t.Fatal(err)
		}
		switch {
		case len(page.Jobs) == 1 && page.Jobs[0].State == "held":
			w := page.Jobs[0]
			if w.Result == nil || w.Result.State != envelope.JobUnknown {
				v.t.Fatalf("held, and not unknown: %+v", w)
			}
			act := j.Retry
			if v.count[w.ID] > 0 {
				act = j.Skip
			}
			err = act(w.ID)
		case strings.Contains(c.Why, "does not know number"):
			_, _, err = j.SkipGap(c.Peer, c.Name)
		default:
			err = j.Resume(c.Peer, c.Name)
		}
		if err != nil {
			v.t.Fatalf("%v: %+v", err, c)
		}
	}
	return any
}

// left is how many of the jobs have no last outcome at camp.
func (v *voyage) left(ids []envelope.ID) []envelope.ID {
	return slices.DeleteFunc(slices.Clone(ids), func(id envelope.ID) bool { return v.camp.job(id).Ended })
}

// settle goes on until every job has ended at camp.
func (v *voyage) settle(ids []envelope.ID) {
	v.t.Helper()
	left := ids
	for i := range 600 {
		v.step()
		if i%4 == 3 {
			v.operate()
		}
		if left = v.left(left); len(left) == 0 {
			return
		}
	}
	for _, n := range []*node{v.camp, v.hub} {
		list, err := n.b.Jobs().Channels()
		v.t.Logf("%s: %+v %v", n.name, list, err)
	}
	v.t.Fatalf("%d of %d jobs have no outcome although the carriers have met often enough, the first: %+v", len(left), len(ids), v.camp.job(left[0]))
}

// check compares what ran with what was ordered.
func (v *voyage) check(ids []envelope.ID) {
	v.t.Helper()
	last := map[string]voyageRun{}
	for _, e := range v.ran {
		p, ok := last[e.channel]
		if c := strings.Compare(string(e.epoch[:]), string(p.epoch[:])); ok && (c < 0 || c == 0 && e.seq <= p.seq) {
			v.t.Errorf("channel %s: number %d of epoch %x after number %d of %x", e.channel, e.seq, e.epoch, p.seq, p.epoch)
		}
		last[e.channel] = e
	}
	for id, n := range v.count {
		if n > 1 {
			v.t.Errorf("job %s had its effect %d times", id, n)
		}
	}
	for _, id := range ids {
		w := v.camp.job(id)
		switch {
		case v.count[id] == 0:
			v.t.Errorf("job %s never ran: %s, %s", id, w.State, w.Why)
		case v.broken[id] && w.State != "unknown" && w.State != "done":
			v.t.Errorf("job %s ran while hub died, and camp is told %s", id, w.State)
		case !v.broken[id] && w.State != "done" && w.State != "unknown":
			v.t.Errorf("job %s ran, and camp is told %s, %s", id, w.State, w.Why)
		}
	}
}

// voyages is how many jobs one run makes: 10^4 in all in an ordinary run would take minutes.
func voyages() int {
	if os.Getenv("MOCHILA_SOAK") == "1" {
		return 17_000
	}
	return 600
}

// TestVoyage: whatever three bad carriers and killed nodes do, the effects are those that were ordered: in order, each at
// most once, none missing, and what nobody knows is told. In half of the runs one of the nodes is put back from an old copy.
func TestVoyage(t *testing.T) {
	for seed, restored := range []string{"", "hub", "camp", "", "hub", "camp"} {
		if seed > 2 && os.Getenv("MOCHILA_SOAK") != "1" {
			break
		}
		t.Run(fmt.Sprintf("%d%s", seed, restored), func(t *testing.T) {
			v := newVoyage(t, uint64(seed))
			v.bad, v.crashes = 0.25, 0.01
			total := voyages()
			var ids, lost []envelope.ID
			var copied image
			done := false
			for len(ids)+len(lost) < total {
				ids = append(ids, v.order(min(1+v.rnd.IntN(40), total-len(ids)-len(lost)))...)
				v.step()
				if v.rnd.IntN(3) == 0 {
					v.operate()
				}
				at := map[string]*node{"hub": v.hub, "camp": v.camp}[restored]
				switch made := len(ids) + len(lost); {
				case at == nil || done:
				case copied == nil && made > total/3:
					copied = at.image()
					if restored == "camp" {
						lost = ids // none of these is lost
						ids = nil
					}
				case copied != nil && made > 2*total/3:
					done = true
					at.close()
					wipe(t, filepath.Join(at.dir, "spool"))
					at.putBack(copied)
					at.open()
					if restored == "camp" {
						ids, lost = lost, ids // those made since are lost with the disk, unless they had left
					}
				}
			}
			v.settle(ids)
			v.check(ids)
			t.Logf("%d jobs, %d effects, %d kills, %d of them while a program ran", total, len(v.ran), v.kills, len(v.broken))
			if v.kills == 0 {
				t.Error("nobody was killed: the test is void")
			}
		})
	}
}

var _ transport.Folder = fused{}
