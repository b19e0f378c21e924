package bridge

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/transport/transporttest"
)

// soak reports whether tests are to do all they can.
func soak() bool { return os.Getenv("MOCHILA_SOAK") != "" }

// seeds returns how a random test is to run: the one seed of MOCHILA_SEED, or as many as there is time for.
func seeds(t *testing.T, few, many int) []uint64 {
	t.Helper()
	if s := os.Getenv("MOCHILA_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{n}
	}
	n := few
	if soak() {
		n = many
	} else if testing.Short() {
		n = 1
	}
	first := uint64(time.Now().UnixNano())
	out := make([]uint64, n)
	for i := range out {
		out[i] = first + uint64(i)
	}
	return out
}

// TestThreeCouriers lets three sticks travel between two nodes, each copied from the others now and then, and arriving
// in any order: every mail comes once, the origin's queue empties, and the sticks end up without mail.
func TestThreeCouriers(t *testing.T) {
	for _, seed := range seeds(t, 3, 60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			l := newLab(t)
			a, c := l.node("alpha"), l.node("gamma")
			sticks := []string{"one", "two", "three"}
			for _, s := range sticks {
				a.knows(c, "dir:"+s)
				c.knows(a, "dir:"+s)
			}
			contact := func(n *node, stick string) {
				var only []*Contact
				for _, x := range n.b.Policy().Contacts {
					if x.URL == "dir:"+stick {
						only = append(only, x)
					}
				}
				for _, res := range n.contact(only...) {
					if res.Err != nil {
						t.Fatal(res.Err)
					}
				}
				n.deliver()
			}
			var want []string
			for i := range 60 {
				switch r.IntN(4) {
				case 0:
					text := fmt.Sprintf("Subject: %d\r\n\r\nmail %d\r\n", i, i)
					if r.IntN(8) == 0 {
						text += noise(uint64(i), 100_000)
					}
					want = append(want, text)
					a.submit("ana@alpha.example", "bob@gamma.example", text)
				case 1: // a courier copies what lies on one stick to another
					from, to := sticks[r.IntN(3)], sticks[r.IntN(3)]
					l.put(to, l.lying(from, a, c)...)
					l.put(to, l.lying(from, c, a)...)
				case 2:
					contact(a, sticks[r.IntN(3)])
				case 3:
					contact(c, sticks[r.IntN(3)])
				}
				l.set(l.clock().Add(time.Duration(r.IntN(120)) * time.Minute))
				a.tick()
				c.tick()
			}
			l.settle(20, a, c)
			for _, text := range want {
				if n := c.sink.count("bob@gamma.example", text); n != 1 {
					t.Errorf("%.20q came %d times", text, n)
				}
			}
			if n := len(c.sink.mails()); n != len(want) {
				t.Errorf("%d mails delivered, %d were written", n, len(want))
			}
			mustEmpty(t, a, c)
			for _, s := range sticks { // couriers have copied: what they put back is cleared away too
				contact(a, s)
				contact(c, s)
				contact(a, s)
			}
			for _, s := range sticks {
				for _, p := range l.lying(s, a, c) {
					if len(p.data) > 1000 {
						t.Errorf("stick %s still holds %d bytes for gamma", s, len(p.data))
					}
				}
			}
		})
	}
}

// TestSameMailAtOnce has several packets with the same mail come in at the same moment.
func TestSameMailAtOnce(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	text := mail(a, c, "in five packets")
	var packets []file
	for range 5 {
		a.meet()
		packets = append(packets, l.take("one", a, c)...)
		for _, it := range a.items() { // overdue: it is sealed once more
			if err := a.b.Act(it.Env.ID, Act{Verb: VerbRetry}); err != nil {
				t.Fatal(err)
			}
		}
		l.set(l.clock().Add(time.Minute))
	}
	if len(packets) < 5 {
		t.Fatalf("%d packets", len(packets))
	}
	var wg sync.WaitGroup
	for i := range 3 * len(packets) {
		wg.Go(func() {
			p := packets[i%len(packets)]
			if err := c.b.ReceiveFrom(t.Context(), a.keys.ID(), int64(len(p.data)), bytes.NewReader(p.data)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c.deliver()
	once(t, c, text)
	l.settle(10, a, c)
	once(t, c, text)
	mustEmpty(t, a, c)
}

// storm is a random history of three nodes, alpha - relay - gamma with a stick between the ends besides, over folders
// that lose, cut, invert, delay and double, with power cuts.
type storm struct {
	t      *testing.T
	l      *lab
	r      *rand.Rand
	nodes  []*node
	faulty []*transporttest.FaultyFolder
	want   []sentMail
}

type sentMail struct {
	from, to *node
	addr     string // of the sender
	rcpt     string
	text     string
}

func newStorm(t *testing.T, seed uint64) *storm {
	s := &storm{t: t, l: newLab(t), r: rand.New(rand.NewPCG(seed, 3))}
	l := s.l
	for i, name := range []string{"left", "right", "direct"} {
		f := transporttest.NewFaultyFolder(transporttest.NewMemFolder(0), seed+uint64(i), transporttest.Faults{
			Truncate: 0.05, Corrupt: 0.05, Lose: 0.05, Late: 0.1, Duplicate: 0.05, PutError: 0.02, GetError: 0.05, Removal: 0.05, Reorder: true,
		})
		l.sticks[name] = f
		s.faulty = append(s.faulty, f)
	}
	a, r, c := l.node("alpha"), l.node("relay"), l.node("gamma")
	s.nodes = []*node{a, r, c}
	chain(a, r, c)
	for _, p := range [][2]*node{{a, c}, {c, a}} {
		pol := *p[0].pol
		pol.Contacts = append(slices.Clip(pol.Contacts), &Contact{Node: p[1].keys.ID(), NodeName: p[1].name, URL: "dir:direct", When: When{Always: true}})
		p[0].pol = &pol
		p[0].b.SetPolicy(&pol)
	}
	return s
}

func (s *storm) step(i int) {
	n := s.nodes[s.r.IntN(3)]
	switch k := s.r.IntN(20); {
	case k < 6:
		to := s.nodes[s.r.IntN(3)]
		if to == n {
			return
		}
		m := sentMail{from: n, to: to, addr: fmt.Sprintf("u%d@%s.example", i, n.name), rcpt: "box@" + to.name + ".example",
			text: fmt.Sprintf("Subject: %d\r\n\r\nfrom %s to %s\r\n", i, n.name, to.name)}
		if s.r.IntN(10) == 0 {
			m.text += noise(uint64(i), 90_000)
		}
		s.want = append(s.want, m)
		n.submit(m.addr, m.rcpt, m.text)
	case k < 14:
		cs := n.b.Policy().Contacts
		n.contact(cs[s.r.IntN(len(cs))])
	case k < 16:
		n.deliver()
	case k < 18:
		s.l.set(s.l.clock().Add(time.Duration(s.r.IntN(36)) * time.Hour))
		for _, x := range s.nodes {
			x.tick()
		}
	case k == 18:
		n.rollBack(n.image()) // the power fails: what was committed is there
	case k == 19:
		n.reopen()
	}
}

// check wants every mail to have come once, or its sender to have been told.
func (s *storm) check() {
	s.t.Helper()
	for _, m := range s.want {
		n := m.to.sink.count(m.rcpt, m.text)
		told := len(m.from.sink.notices(m.addr))
		failed := 0
		for _, d := range m.from.sink.notices(m.addr) {
			if strings.Contains(d, "Action: failed") {
				failed++
			}
		}
		if n > 1 || n == 0 && failed == 0 || n == 1 && failed > 0 || failed > 1 {
			s.t.Errorf("%.40q from %s: came %d times, %d notices, %d of them of failure", m.text, m.from.name, n, told, failed)
		}
	}
	mustEmpty(s.t, s.nodes...)
}

func TestStorm(t *testing.T) {
	for _, seed := range seeds(t, 3, 200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("MOCHILA_SEED=%d", seed)
			s := newStorm(t, seed)
			steps := 120
			if soak() {
				steps = 600
			}
			for i := range steps {
				s.step(i)
			}
			for _, f := range s.faulty {
				f.Calm()
			}
			s.l.settle(45, s.nodes...)
			s.check()
			hits := 0
			for _, f := range s.faulty {
				hits += f.Hits()
			}
			t.Logf("%d mails, %d faults", len(s.want), hits)
		})
	}
}

// TestRewindStorm is a storm in which disks are put back to an earlier moment, unnoticed. What was written at a node
// after that moment, and had not left it, is lost with the disk; everything else must come, and what comes twice was
// handed over before the moment that was gone back to.
func TestRewindStorm(t *testing.T) {
	for _, seed := range seeds(t, 2, 200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("MOCHILA_SEED=%d", seed)
			s := newStorm(t, seed)
			images := map[*node]image{}
			written := map[*node]int{} // mails written when the image was taken
			rewound := map[*node]int{}
			doubtful := map[int]bool{} // mails that may be lost with a disk
			steps := 100
			if soak() {
				steps = 300
			}
			for i := range steps {
				n := s.nodes[s.r.IntN(3)]
				switch k := s.r.IntN(40); {
				case k == 0 || images[n] == nil:
					images[n], written[n] = n.image(), len(s.want)
				case k == 1 && i < steps/2:
					for j := written[n]; j < len(s.want); j++ {
						if s.want[j].from == n {
							doubtful[j] = true
						}
					}
					n.rollBack(images[n])
					rewound[n]++
				default:
					s.step(i)
				}
			}
			for _, f := range s.faulty {
				f.Calm()
			}
			s.l.settle(90, s.nodes...)
			for j, m := range s.want {
				came := m.to.sink.count(m.rcpt, m.text)
				failed := 0
				for _, d := range m.from.sink.notices(m.addr) {
					if strings.Contains(d, "Action: failed") {
						failed++
					}
				}
				if came == 0 && failed == 0 && !doubtful[j] {
					t.Errorf("lost: %.40q from %s", m.text, m.from.name)
				}
				if came > 1+rewound[m.to] {
					t.Errorf("%.40q from %s came %d times to %s, which was put back %d times", m.text, m.from.name, came, m.to.name, rewound[m.to])
				}
				if came > 0 && failed > 0 && rewound[m.to] == 0 {
					t.Errorf("%.40q from %s came and was called failed", m.text, m.from.name)
				}
			}
			mustEmpty(t, s.nodes...)
			t.Logf("%d mails, put back: alpha %d, relay %d, gamma %d", len(s.want), rewound[s.nodes[0]], rewound[s.nodes[1]], rewound[s.nodes[2]])
		})
	}
}
