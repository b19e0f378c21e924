package e2e

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// load is several SMTP sessions that send all the time, whatever happens to the server, and note what they were told.
type load struct {
	addr string
	to   string
	full bool // the disk may be full: temporary refusals are to be expected

	ctl  sync.WaitGroup
	stop chan struct{}

	mu     sync.Mutex
	told   *sync.Cond
	taken  map[string]bool // answered 250
	unsure map[string]bool // the final dot was sent and no answer came
	torn   map[string]bool // the connection ended before the final dot
	odd    []error         // answers that were not to be expected

	refused int // temporary refusals, with full
}

func newLoad(addr, to string) *load {
	l := &load{addr: addr, to: to, stop: make(chan struct{}), taken: map[string]bool{}, unsure: map[string]bool{}, torn: map[string]bool{}}
	l.told = sync.NewCond(&l.mu)
	return l
}

// start sends in n sessions until end.
func (l *load) start(n int, r *rand.Rand) {
	for k := range n {
		r := rand.New(rand.NewPCG(r.Uint64(), uint64(k)))
		l.ctl.Add(1)
		go func() {
			defer l.ctl.Done()
			for i := 0; ; {
				select {
				case <-l.stop:
					return
				default:
				}
				l.session(fmt.Sprintf("s%d", k), &i, r)
			}
		}()
	}
}

// end stops all sessions.
func (l *load) end() {
	close(l.stop)
	l.ctl.Wait()
}

// session is one connection: some mails, until it breaks.
func (l *load) session(name string, i *int, r *rand.Rand) {
	w, err := dial(l.addr)
	if err != nil {
		select { // nobody there: the server is being started
		case <-l.stop:
		case <-time.After(time.Duration(1+r.IntN(20)) * time.Millisecond):
		}
		return
	}
	defer w.Close()
	if w.say("EHLO load.test", "250") != nil {
		return
	}
	for range 1 + r.IntN(20) {
		select {
		case <-l.stop:
			w.say("QUIT", "221")
			return
		default:
		}
		id := fmt.Sprintf("%s-%d", name, *i)
		*i++
		if err := l.one(w, id, r); err != nil {
			return
		}
	}
	w.say("QUIT", "221")
}

// one sends one mail and books it.
func (l *load) one(w *wire, id string, r *rand.Rand) error {
	if err := w.envelope("<eve@camp.example>", "<"+l.to+">"); err != nil {
		l.unexpected(err)
		return err
	}
	mail := body(id)
	if r.IntN(50) == 0 {
		// a client that goes away in the middle
		fmt.Fprint(w, mail[:len(mail)/2])
		l.book(l.torn, id)
		return errors.New("torn")
	}
	if _, err := w.Write([]byte(mail)); err != nil {
		l.book(l.torn, id)
		return err
	}
	if _, err := w.Write([]byte(".\r\n")); err != nil {
		l.book(l.unsure, id)
		return err
	}
	reply, err := w.reply()
	switch {
	case err != nil:
		l.book(l.unsure, id)
		return err
	case !strings.HasPrefix(reply, "250"):
		l.book(l.torn, id)
		l.unexpected(&unexpected{".", reply})
		return errors.New(reply)
	}
	l.book(l.taken, id)
	return nil
}

func (l *load) book(m map[string]bool, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m[id] = true
	l.told.Broadcast()
}

func (l *load) unexpected(err error) {
	var u *unexpected
	if !errors.As(err, &u) {
		return // the connection broke
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full && (strings.HasPrefix(u.reply, "452 4.3.1") || strings.HasPrefix(u.reply, "421 4.")) {
		l.refused++
		l.told.Broadcast()
		return
	}
	if len(l.odd) < 10 {
		l.odd = append(l.odd, err)
	}
}

// more waits until so many more mails were answered 250.
func (l *load) more(n int) { l.wait(n, func() int { return len(l.taken) }) }

// refusals waits for so many temporary refusals.
func (l *load) refusals(n int) { l.wait(n, func() int { return l.refused }) }

// wait waits until a count has grown; it gives up after a while, as the server may be down.
func (l *load) wait(n int, count func() int) {
	timeout := time.AfterFunc(10*time.Second, func() { l.mu.Lock(); l.told.Broadcast(); l.mu.Unlock() })
	defer timeout.Stop()
	until := time.Now().Add(10 * time.Second)
	l.mu.Lock()
	defer l.mu.Unlock()
	for want := count() + n; count() < want && time.Now().Before(until); {
		l.told.Wait()
	}
}

// count is how many mails were answered 250 so far.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.taken)
}

// body is the mail of an id: nobody can change it unnoticed. One in ten is large enough for a file of its own in the
// spool, one in a hundred large enough to be offered on a wire.
func body(id string) string {
	sum := crc32.ChecksumIEEE([]byte(id))
	size := 200 + int(sum%1500)
	switch {
	case sum%100 == 0:
		size = 200_000
	case sum%10 == 0:
		size = 20_000
	}
	r := rand.New(rand.NewPCG(uint64(sum), 1))
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: load\r\nX-Load-Id: %s\r\n\r\n", id)
	for b.Len() < size {
		fmt.Fprintf(&b, "%016x%016x%016x\r\n", r.Uint64(), r.Uint64(), r.Uint64())
	}
	return b.String()
}

var loadID = regexp.MustCompile(`(?m)^X-Load-Id: (\S+)\r?$`)

// arrival is one copy of a mail where mails end.
type arrival struct {
	where string
	text  string // LF lines
	at    time.Time
}

// verify compares what arrived with what was answered: everything answered 250 once, the rest at most once, what was
// torn never. duplicate is asked about every mail that came more than once; nil forbids it.
func (l *load) verify(t *testing.T, arrived []arrival, duplicate func(copies []arrival) bool) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, err := range l.odd {
		t.Errorf("an odd answer: %v", err)
	}
	copies := map[string][]arrival{}
	for _, a := range arrived {
		m := loadID.FindStringSubmatch(a.text)
		if m == nil {
			t.Errorf("what is this: %.300q", a.text)
			continue
		}
		if !unchanged([]byte(a.text), body(m[1])) {
			t.Errorf("%s came changed: %.1000q", m[1], a.text)
		}
		copies[m[1]] = append(copies[m[1]], a)
	}
	lost, unsure, twice := 0, 0, 0
	for id := range l.taken {
		if len(copies[id]) == 0 {
			if lost++; lost < 10 {
				t.Errorf("%s was answered 250 and is lost", id)
			}
		}
	}
	for id := range maps.Keys(copies) {
		c := copies[id]
		switch {
		case l.torn[id]:
			t.Errorf("%s was never finished and came", id)
		case !l.taken[id] && !l.unsure[id]:
			t.Errorf("%s came and was never sent", id)
		case l.unsure[id]:
			unsure++
		}
		if len(c) > 1 {
			twice++
			if duplicate == nil || !duplicate(c) {
				t.Errorf("%s came %d times: %s", id, len(c), places(c))
			}
		}
	}
	t.Logf("%d answered 250: %d lost; %d without answer: %d of them came; %d torn; %d came twice", len(l.taken), lost, len(l.unsure), unsure, len(l.torn), twice)
}

func places(c []arrival) string {
	var s []string
	for _, a := range c {
		s = append(s, a.where+" "+a.at.Format("15:04:05.000"))
	}
	return strings.Join(s, ", ")
}

// inBox are the mails of a Maildir as arrivals.
func inBox(t *testing.T, dir string) (list []arrival) {
	t.Helper()
	for name, text := range box(t, dir) {
		list = append(list, arrival{where: name, text: text})
	}
	return list
}

// inSink are the mails of a sink as arrivals.
func inSink(s *sink) (list []arrival) {
	for _, m := range s.Mails() {
		list = append(list, arrival{where: "sink", text: strings.ReplaceAll(m.Content, "\r\n", "\n"), at: m.At})
	}
	return list
}
