package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// forge seals any content for a peer, as a hostile peer may.
func (n *node) forge(to *node, content []byte) []byte {
	n.t.Helper()
	x, err := n.b.number(to.keys.ID(), false)
	if err != nil {
		n.t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := x.ses.keys.SealItem(&b, x.seq, x.salt, x.offer, false)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return b.Bytes()
}

// forgeHop seals any hop box for a neighbour in front of a payload.
func (n *node) forgeHop(to *node, h seal.Hop, payload []byte) []byte {
	n.t.Helper()
	x, err := n.b.number(to.keys.ID(), false)
	if err != nil {
		n.t.Fatal(err)
	}
	h.Type = seal.PayloadBundle
	if h.Left == 0 {
		h.Left = seal.LeftMax
	}
	box, err := x.ses.keys.SealHop(x.seq, x.salt, x.offer, h)
	if err != nil {
		n.t.Fatal(err)
	}
	return append(box, payload...)
}

// hand gives bytes to a node as a program would, and wants them refused.
func (n *node) mustRefuse(prev *node, what string, data []byte) {
	n.t.Helper()
	items, mails := len(n.items()), len(n.sink.mails())
	err := n.b.ReceiveFrom(context.Background(), prev.keys.ID(), int64(len(data)), bytes.NewReader(data))
	if !errors.Is(err, transport.ErrRefused) {
		n.t.Errorf("%s: %v, not refused", what, err)
	}
	if len(n.items()) != items || len(n.sink.mails()) != mails {
		n.t.Errorf("%s: something was entered", what)
	}
}

// head is the beginning of a bundle's content.
func head(expires time.Time) []byte {
	b := binary.BigEndian.AppendUint32([]byte{2}, uint32(expires.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(labStart.Unix()))
}

// allocated runs f and returns how many bytes it has allocated in all.
func allocated(f func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	f()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

func TestStrangers(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	x := l.node("xeno")
	x.knows(c, "dir:x") // it knows us; we do not know it
	mail(x, c, "from a stranger")
	x.meet()
	p := l.take("x", x, c)[0]
	c.mustRefuse(x, "a stranger's bundle with offer", p.data)
	c.mustRefuse(x, "a stranger's bundle without offer", x.forgeFor(c))
	// the same in the folder of a neighbour, beside that neighbour's mail
	lay := file{dir: "mochila/" + a.keys.ID().Label().String() + "/" + c.keys.ID().Label().String(), name: packetID(p.data), data: p.data}
	l.put("one", lay)
	text := mail(a, c, "from a friend")
	a.meet()
	c.meet()
	once(t, c, text)
	if n := len(c.sink.mails()); n != 2 {
		t.Errorf("%d mails", n)
	}
	if q := c.quarantined(); !strings.Contains(strings.Join(q, "\n"), "unknown") { // in any order: the file system's clock is coarse
		t.Errorf("quarantine: %q", q)
	}
	q := len(c.quarantined())
	for range 3 { // what was refused once is not put aside again at every look
		c.meet()
	}
	if n := len(c.quarantined()); n != q {
		t.Errorf("quarantine grew from %d to %d", q, n)
	}
}

// forgeFor seals a bundle under a session that the other side has never seen, and leaves the offer out.
func (n *node) forgeFor(to *node) []byte {
	n.t.Helper()
	x, err := n.b.number(to.keys.ID(), false)
	if err != nil {
		n.t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := x.ses.keys.SealItem(&b, x.seq, x.salt, false, false)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return b.Bytes()
}

func TestLies(t *testing.T) {
	l := newLoneLab(t)
	a, c := l.pair()
	r := l.node("relay")
	a.knows(r, "dir:left")
	r.knows(a, "dir:left")
	r.knows(c, "dir:right")
	warmUp(l, a, r)
	exp := l.clock().Add(24 * time.Hour)
	huge := func(method byte, sizes ...uint64) []byte {
		b := append(head(exp), method)
		for _, s := range sizes {
			b = binary.AppendUvarint(b, s)
		}
		return append(b, noise(5, 300)...)
	}
	env := func(size uint64) []byte {
		b := binary.AppendUvarint([]byte{byte(envelope.RecordEnvelope)}, 10)
		b = binary.AppendUvarint(b, size)
		return append(b, "0123456789"...)
	}
	var bombed []byte // a frame of 1 MiB that is declared as one of 1 GiB
	bombed = append(append(head(exp), 1), binary.AppendUvarint(nil, 1<<30)...)
	bombed = append(bombed, make([]byte, 1<<20)...)
	n := allocated(func() {
		for _, m := range []byte{1, 2, 3, 4} {
			for _, s := range []uint64{1 << 63, math.MaxUint64, 1<<62 - 1, 1 << 48, 1 << 40} {
				c.mustRefuse(a, fmt.Sprintf("frame method %d of %d bytes", m, s), a.forge(c, huge(m, s, 100)))
				c.mustRefuse(a, fmt.Sprintf("frame method %d packed to %d bytes", m, s), a.forge(c, huge(m, 1000, s)))
				frame := env(s)
				b := append(append(head(exp), 1), binary.AppendUvarint(nil, uint64(len(frame)))...)
				c.mustRefuse(a, fmt.Sprintf("envelope of %d bytes", s), a.forge(c, append(b, frame...)))
			}
		}
		c.mustRefuse(a, "bomb", a.forge(c, bombed))
		c.mustRefuse(a, "empty bundle", a.forge(c, nil))
		c.mustRefuse(a, "a hop box's content as a bundle", a.forge(c, make([]byte, 40)))
		c.mustRefuse(a, "unknown kind", a.forge(c, []byte{9, 0, 0, 0, 1, 0}))
		big := seal.Hop{Dest: c.keys.ID().Label(), Length: 1<<48 - 1, Expiry: exp, HopLimit: 5}
		r.mustRefuse(a, "payload of 2^48 bytes for another", a.forgeHop(r, big, []byte("short")))
		big.Dest = r.keys.ID().Label()
		r.mustRefuse(a, "payload of 2^48 bytes", a.forgeHop(r, big, []byte("short")))
		none := seal.Hop{Dest: c.keys.ID().Label(), Expiry: exp, HopLimit: 0}
		r.mustRefuse(a, "no hops left", a.forgeHop(r, none, nil))
		nowhere := seal.Hop{Dest: envelope.Label{1, 2, 3}, Expiry: exp, HopLimit: 5}
		r.mustRefuse(a, "a destination nobody knows", a.forgeHop(r, nowhere, nil))
		late := seal.Hop{Dest: c.keys.ID().Label(), Expiry: l.clock().Add(-time.Hour), HopLimit: 5}
		r.mustRefuse(a, "expired", a.forgeHop(r, late, nil))
		inner := a.forge(r, head(exp))
		sum := sumOf(inner)
		nested := seal.Hop{Dest: r.keys.ID().Label(), Expiry: exp, HopLimit: 5, Length: int64(len(inner)), PayloadHash: [16]byte(sum[:])}
		r.mustRefuse(a, "a bundle that is cut, behind a good hop box", a.forgeHop(r, nested, inner))
		inner = a.forgeHop(r, nested, inner)
		sum = sumOf(inner)
		nested.Length, nested.PayloadHash = int64(len(inner)), [16]byte(sum[:])
		r.mustRefuse(a, "a hop box in a hop box", a.forgeHop(r, nested, inner))
	})
	if n > 256<<20 {
		t.Errorf("%d MiB were allocated", n>>20)
	}
	text := mail(a, c, "afterwards")
	l.settle(5, a, c)
	once(t, c, text)
}

// TestOfferReplayedAfterErasure shows an old offer and its bundle once more when everything about them is forgotten.
func TestOfferReplayedAfterErasure(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:one")
	c.knows(a, "dir:one")
	text := mail(a, c, "only once")
	a.meet()
	old := l.lying("one", a, c)
	c.meet()
	l.settle(5, a, c)
	once(t, c, text)
	for range 12 {
		l.jump(8*24*time.Hour, a, c)
		mail(a, c, "meanwhile")
		l.settle(2, a, c)
	}
	for i := range 2 {
		for _, p := range old {
			c.mustRefuse(a, "a replayed offer", p.data)
		}
		once(t, c, text)
		if i == 0 {
			c.reopen()
		}
	}
	more := mail(a, c, "and mail goes on")
	l.settle(5, a, c)
	once(t, c, more)
}

func TestRemovedPeer(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	pol := *c.pol
	pol.Peers, pol.Contacts = nil, nil
	c.b.SetPolicy(&pol)
	mail(a, c, "after the removal")
	a.meet()
	for _, p := range l.take("one", a, c) {
		c.mustRefuse(a, "a removed peer's bundle", p.data)
	}
	if n := len(c.items()); n != 0 {
		t.Errorf("%d items at the node that removed the peer", n)
	}
}

// TestQuota fills what a peer may queue; receipts still come in, and the rest goes when there is room.
func TestQuota(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	pol := *c.pol
	pol.Peers = []*Peer{{Name: "alpha", ID: a.keys.ID(), Card: a.keys.Card(), MaxBytes: 150_000, MaxCount: 1000}}
	c.pol = &pol
	c.b.SetPolicy(&pol)
	c.sink.refuse["bob@gamma.example"] = envelope.Status{Code: 452, Enhanced: "4.2.2", Text: "mailbox full"}
	back := mail(c, a, "c's own mail, whose receipt a over quota brings")
	var texts []string
	for i := range 4 {
		text := fmt.Sprintf("Subject: %d\r\n\r\n%s", i, noise(uint64(i), 60_000))
		a.submit("ana@alpha.example", "bob@gamma.example", text)
		texts = append(texts, text)
		a.meet()
		c.meet()
		l.set(l.clock().Add(2 * time.Minute))
	}
	a.meet()
	c.meet()
	if n := len(c.items()); n > 3 {
		t.Errorf("%d mails are queued at the receiver", n)
	}
	once(t, a, back)
	for _, it := range c.items() {
		if it.Env.Origin == c.keys.ID() && it.Env.Kind == envelope.KindMail {
			t.Errorf("the receipt of the peer over quota was not taken: %+v", it.Legs)
		}
	}
	delete(c.sink.refuse, "bob@gamma.example")
	l.settle(30, a, c)
	for i, text := range texts {
		if n := c.sink.count("bob@gamma.example", text); n != 1 {
			t.Errorf("mail %d came %d times", i, n)
		}
	}
	mustEmpty(t, a, c)
}

// TestRelayNotGranted refuses to relay; the origin learns why, and its mail goes once it may.
func TestRelayNotGranted(t *testing.T) {
	l := newLab(t)
	a, r, c := l.node("alpha"), l.node("relay"), l.node("gamma")
	chain(a, r, c)
	may := r.pol
	no := *r.pol
	no.Peers = nil
	for _, p := range r.pol.Peers {
		q := *p
		q.RelayAny = false
		no.Peers = append(no.Peers, &q)
	}
	r.b.SetPolicy(&no)
	text := mail(a, c, "by a relay that will not")
	other := mail(a, r, "for the relay itself")
	for range 3 {
		a.meet()
		r.meet()
		l.pass(2*time.Hour, a, r)
	}
	once(t, r, other)
	it := a.items()
	if len(it) != 1 || !strings.Contains(it[0].Legs[0].Last.Text, "may not relay") {
		t.Fatalf("at the origin: %+v", it)
	}
	if len(r.items()) != 0 {
		t.Error("the relay holds something")
	}
	r.b.SetPolicy(may)
	l.settle(10, a, r, c)
	once(t, c, text)
	mustEmpty(t, a, r, c)
}

// TestTransitRefused lets the second of two relays refuse: the refusal comes back to the origin, and the first relay
// keeps nothing.
func TestTransitRefused(t *testing.T) {
	l := newLab(t)
	a, r, s, c := l.node("alpha"), l.node("relay"), l.node("second"), l.node("gamma")
	a.knows(r, "dir:one")
	a.knows(c, "", r)
	r.knows(a, "dir:one")
	r.knows(s, "dir:two")
	r.knows(c, "", s)
	s.knows(r, "dir:two")
	c.knows(a, "", s)
	mail(a, c, "the second relay has no way to gamma")
	for range 4 {
		a.meet()
		r.meet()
		s.meet()
		r.meet()
		a.meet()
		l.pass(90*time.Minute, a, r, s)
	}
	it := a.items()
	if len(it) != 1 || !strings.Contains(it[0].Legs[0].Last.Text, "no path") {
		t.Errorf("at the origin: %+v", it[0].Legs)
	}
	for _, it := range r.items() {
		if it.Transit != nil && it.Legs[0].State != spool.Due && it.Legs[0].State != spool.Sealed {
			t.Errorf("at the relay: %+v", it.Legs)
		}
	}
}

// TestHostileStick puts things on a real stick that are no packets.
func TestHostileStick(t *testing.T) {
	l := newLoneLab(t)
	stick := t.TempDir()
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:"+stick)
	c.knows(a, "dir:"+stick)
	text := mail(a, c, "among the evil")
	a.meet()
	dir := filepath.Join(stick, "mochila", a.keys.ID().Label().String(), c.keys.ID().Label().String())
	name := func(i int) string { return filepath.Join(dir, packetID([]byte{byte(i)})) }
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("secret", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, make := range []func(string) error{
		func(p string) error { return os.Symlink(secret, p) },
		func(p string) error { return os.Symlink("../../../..", p) },
		func(p string) error { return syscall.Mkfifo(p, 0o666) },
		func(p string) error { return os.Mkdir(p, 0o777) },
		func(p string) error { return os.Link(secret, p) },
		func(p string) error { return os.WriteFile(p, nil, 0o666) },
		func(p string) error { return os.WriteFile(p, []byte("x"), 0o666) },
		func(p string) error { return os.WriteFile(p, make0(1000), 0o666) },
		func(p string) error { return sparse(p, 10<<30) },
		func(p string) error { return os.WriteFile(filepath.Join(dir, "..evil"), []byte("x"), 0o666) },
		func(p string) error { return os.WriteFile(filepath.Join(dir, "Packet\nname"), []byte("x"), 0o666) },
		func(p string) error { return sparse(filepath.Join(dir, strings.Repeat("a", 52)), 10<<30) },
	} {
		if err := make(name(i)); err != nil && !errors.Is(err, syscall.EFBIG) && !errors.Is(err, syscall.EPERM) {
			t.Fatalf("%d: %v", i, err)
		}
	}
	n := allocated(func() {
		for range 3 {
			for _, r := range c.contact() {
				if r.Err != nil {
					t.Errorf("contact: %v", r.Err)
				}
			}
			c.deliver()
		}
	})
	if n > 64<<20 {
		t.Errorf("%d MiB were allocated", n>>20)
	}
	once(t, c, text)
	l.settle(5, a, c)
	mustEmpty(t, a, c)
	if b, err := os.ReadFile(secret); err != nil || len(b) != 600 {
		t.Errorf("the file behind the link: %d bytes, %v", len(b), err)
	}
}

func make0(n int) []byte { return make([]byte, n) }

func sparse(p string, size int64) error {
	f, err := os.Create(p)
	if err == nil {
		err = f.Truncate(size)
		f.Close()
	}
	return err
}

// TestDamagedSpool damages contents in the spool itself: a mail that waits for a node, one that waits for delivery, a
// bundle in transit. Each ends honestly or comes again; others go on.
func TestDamagedSpool(t *testing.T) {
	l := newLab(t)
	a, r, c := l.node("alpha"), l.node("relay"), l.node("gamma")
	chain(a, r, c)
	damage := func(n *node) {
		t.Helper()
		k := 0
		filepath.WalkDir(filepath.Join(n.dir, "spool", "body"), func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				b, err := os.ReadFile(p)
				if err != nil {
					t.Fatal(err)
				}
				b[len(b)/2] ^= 1
				os.Chmod(p, 0o600)
				if err := os.WriteFile(p, b, 0o600); err != nil {
					t.Fatal(err)
				}
				k++
			}
			return nil
		})
		if k == 0 {
			t.Fatalf("%s: no body to damage", n.name)
		}
	}
	big := func(i int) string { return fmt.Sprintf("Subject: %d\r\n\r\n%s", i, noise(uint64(i), 50_000)) }
	a.submit("ana@alpha.example", "bob@gamma.example", big(1))
	damage(a)
	good := mail(a, c, "beside the damaged one")
	for range 6 {
		for _, n := range []*node{a, r, c} {
			n.meet()
		}
	}
	once(t, c, good)
	wantTold(t, a, 1, 0, 0)
	mustEmpty(t, a, r, c)

	a.submit("ana@alpha.example", "bob@gamma.example", big(2)) // in transit
	a.meet()
	for _, x := range r.contact(r.b.Policy().Contacts[0]) {
		if x.Err != nil {
			t.Fatal(x.Err)
		}
	}
	damage(r)
	good = mail(a, c, "after the damaged transit")
	l.settle(20, a, r, c)
	once(t, c, good)
	if n := c.sink.count("bob@gamma.example", big(2)); n != 1 {
		t.Errorf("the mail whose bundle was damaged at the relay came %d times", n)
	}
	mustEmpty(t, a, r, c)

	a.submit("ana@alpha.example", "bob@gamma.example", big(3)) // at the destination, before delivery
	for range 2 {
		for _, n := range []*node{a, r, c} {
			n.contact()
		}
	}
	damage(c)
	l.settle(20, a, r, c)
	if n := c.sink.count("bob@gamma.example", big(3)); n != 0 {
		t.Errorf("the damaged mail was delivered")
	}
	failed := 0 // beside them, the mail that the relay lost may have been called delayed
	for _, text := range a.sink.notices("ana@alpha.example") {
		if strings.Contains(text, "Action: failed") {
			failed++
		}
	}
	if failed != 2 {
		t.Errorf("%d failure notices, one each about two damaged mails wanted", failed)
	}
	mustEmpty(t, a, r, c)
	if len(a.quarantined()) == 0 || len(r.quarantined()) == 0 || len(c.quarantined()) == 0 {
		t.Error("a quarantine is empty")
	}
}

// TestSameID sends envelopes whose id is taken: by the same origin for others, by another origin, by a mail that comes
// back to where it began. None is lost, none stops a packet.
func TestSameID(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	x := l.node("xi")
	x.knows(c, "dir:x")
	c.knows(x, "dir:x")
	warmUp(l, x, c)
	text := mail(a, c, "of alpha")
	id := a.items()[0].Env.ID
	a.meet()
	c.contact()
	add := func(n *node, rcpt, text string) {
		t.Helper()
		body := n.sp.NewBody()
		body.Write([]byte(text))
		if err := body.Finish(); err != nil {
			t.Fatal(err)
		}
		e := &envelope.Envelope{ID: id, Kind: envelope.KindMail, Origin: n.keys.ID(), Created: l.clock(), Expires: l.clock().Add(24 * time.Hour),
			Size: body.Size(), Sum: body.Sum(), Mail: &envelope.Mail{Sender: "ana@" + n.name + ".example", Recipients: []envelope.Recipient{{Addr: rcpt}}}}
		it := &spool.Item{Env: e, Trust: "net", Entered: l.clock(), Outcomes: make([]envelope.Outcome, 1),
			Legs: []spool.Leg{{Dest: spool.NodeDest(c.keys.ID()), Rcpts: []int{0}, State: spool.Due}}}
		if err := n.sp.Apply(func(tx *spool.Tx) error { tx.Drop(id); return tx.Add(it, body) }); err != nil {
			t.Fatal(err)
		}
	}
	add(x, "bob@gamma.example", "Subject: x\r\n\r\nof xi\r\n")
	good := mail(x, c, "beside it")
	x.meet()
	c.meet()
	once(t, c, text, good, "of xi\r\n")
	l.settle(3, a, x, c)
	mustEmpty(t, a, x)

	l.settle(5, c)
	mustEmpty(t, c)
}

// TestSecondLeg routes a dead letter again, to where the rest of its mail has gone before: the same envelope comes to
// one node for others.
func TestSecondLeg(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	rules := []route.Rule{{To: []string{"gamma.example", "late.example"}, Via: "maildir:/gamma"}}
	pol := *c.pol
	var err error
	if pol.Routes, err = route.New(rules, c.pol.Routes.Route); err != nil {
		t.Fatal(err)
	}
	c.b.SetPolicy(&pol)
	text := "Subject: twice\r\n\r\nfor two\r\n"
	a.submit("", "bob@gamma.example,eve@late.example", text)
	id := a.items()[0].Env.ID
	l.settle(2, a, c)
	add := *a.pol
	if add.Routes, err = route.New(a.pol.Routes.Deliver, append(slices.Clip(a.pol.Routes.Route), route.Rule{To: []string{"late.example"}, Node: c.keys.ID(), NodeName: "gamma"})); err != nil {
		t.Fatal(err)
	}
	a.b.SetPolicy(&add)
	if err := a.b.Act(id, Act{Verb: VerbRelease}); err != nil {
		t.Fatal(err)
	}
	m := a.image()
	l.settle(5, a, c)
	a.rollBack(m) // and once more
	a.b.SetPolicy(&add)
	l.settle(20, a, c)
	for _, to := range []string{"bob@gamma.example", "eve@late.example"} {
		n := 0
		c.sink.mu.Lock()
		for _, d := range c.sink.got {
			if d.to == to && strings.HasSuffix(d.content, text) {
				n++
			}
		}
		c.sink.mu.Unlock()
		if n != 1 {
			t.Errorf("<%s> got it %d times", to, n)
		}
	}
	mustEmpty(t, a, c)
}

// TestFalseReceipts lets a peer acknowledge what was never sent, again and again.
func TestFalseReceipts(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	x := l.node("xi")
	x.knows(a, "dir:x")
	a.knows(x, "dir:x")
	warmUp(l, x, a)
	was := a.incarnation()
	under := mail(a, c, "to an innocent peer")
	a.meet()
	lives := map[string]bool{}
	for i := range 10 {
		x.b.ses.mu.Lock()
		var recs []record
		for _, s := range x.b.ses.all {
			h := envelope.Held{Session: s.keys.ID, Ranges: envelope.Ranges{{First: 0, Count: 1000 + uint64(i), Check: envelope.Check{byte(i)}}}}
			recs = append(recs, record{envelope.RecordHeld, h.Append(nil)})
		}
		x.b.ses.mu.Unlock()
		for _, r := range recs {
			x.b.later(a.keys.ID(), r)
		}
		x.meet()
		a.meet()
		lives[a.incarnation()] = true
		l.pass(time.Minute, a, c, x)
	}
	if len(lives) > 2 {
		t.Errorf("%d lives in ten minutes on the word of one peer", len(lives))
	}
	if len(lives) == 1 && lives[was] {
		t.Log("the first false receipt was not even believed")
	}
	l.settle(10, a, c, x)
	once(t, c, under)
	mustEmpty(t, a, c)
}

// TestWindow gives a session more gaps than its replay set may have: the sender begins another session.
func TestWindow(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	x, err := a.b.number(c.keys.ID(), false)
	if err != nil {
		t.Fatal(err)
	}
	// every other number arrives, with one bundle of nothing each
	in := &incoming{b: c.b, peer: a.keys.ID()}
	ses := c.b.ses.byID(x.ses.keys.ID)
	err = a.sp.Apply(func(tx *spool.Tx) error {
		rec, err := tx.Session(x.ses.keys.ID)
		if err != nil {
			return err
		}
		in.marks = nil
		for i := range uint64(envelope.MaxRanges) {
			m := mark{ses: ses, seq: x.seq + 1 + 2*i, salt: [16]byte{byte(i), byte(i >> 8)}}
			in.marks = append(in.marks, m)
			if err := tx.PutSent(&spool.Sent{Session: rec.ID, Seq: m.seq, Salt: m.salt, Kind: sentControl, Next: c.keys.ID()}); err != nil {
				return err
			}
		}
		rec.NextSeq = x.seq + 2*envelope.MaxRanges + 2
		return tx.PutSession(rec)
	})
	if err != nil {
		t.Fatal(err)
	}
	in.marks = in.marks[:envelope.MaxRanges-1] // the first range is there
	if err := in.enterMarks(context.Background()); err != nil {
		t.Fatal(err)
	}
	x.ses.next = x.seq + 2*envelope.MaxRanges + 4
	text := mail(a, c, "beyond the window")
	was := a.incarnation()
	l.settle(10, a, c)
	once(t, c, text)
	mustEmpty(t, a, c)
	if a.incarnation() != was {
		t.Error("a full window began a new life")
	}
}

// TestSenderDomains holds a peer to the senders it was given.
func TestSenderDomains(t *testing.T) {
	l := newLab(t)
	a, c := l.pair()
	pol := *c.pol
	p := *pol.Peers[0]
	only, err := route.ParsePattern("alpha.example")
	if err != nil {
		t.Fatal(err)
	}
	p.SendAs = []route.Pattern{only}
	pol.Peers = []*Peer{&p}
	c.b.SetPolicy(&pol)
	good := mail(a, c, "as myself")
	a.submit("boss@gamma.example", "bob@gamma.example", "Subject: as you\r\n\r\nforged\r\n")
	a.submit("ana@alpha.example", "bob@elsewhere.example,bob@gamma.example", "Subject: open relay\r\n\r\nrelayed\r\n")
	l.settle(5, a, c)
	once(t, c, good, "relayed\r\n")
	if n := c.sink.count("bob@gamma.example", "forged\r\n"); n != 0 {
		t.Error("a peer wrote as somebody it may not be")
	}
	if slices.ContainsFunc(c.sink.mails(), func(d delivery) bool { return d.to == "bob@elsewhere.example" }) {
		t.Error("mail for elsewhere was delivered here")
	}
	mustEmpty(t, c)
}
