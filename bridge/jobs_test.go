package bridge

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/envelope"
)

// scribe is a runner that writes down what was started, and does what the handler's name says.
type scribe struct {
	mu  sync.Mutex
	log []string
}

func (s *scribe) Run(_ context.Context, j *jobs.Start) (*jobs.Outcome, error) {
	in, err := j.Stdin()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.log = append(s.log, fmt.Sprintf("%s %d %s %s", j.Channel, j.Seq, strings.Join(j.Args, ","), b))
	s.mu.Unlock()
	o := &jobs.Outcome{Started: time.Now(), Ended: time.Now(), Out: strings.NewReader("out of " + string(b)), Err: strings.NewReader("err")}
	if j.Handler == "fail" {
		o.Exit = 3
	}
	return o, nil
}

func (*scribe) Kill(envelope.ID) error { return nil }

func (s *scribe) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.log...)
}

// allow gives every peer's channels the handlers of that name.
func (n *node) allow(names ...string) {
	n.t.Helper()
	p := *n.pol
	for _, x := range names {
		p.Jobs.Handlers = append(p.Jobs.Handlers[:len(p.Jobs.Handlers):len(p.Jobs.Handlers)], &jobs.Handler{Name: x, Allow: []string{"*:*"}})
	}
	n.pol = &p
	n.b.SetPolicy(&p)
}

// order makes a job for another node.
func (n *node) order(to *node, channel, handler, stdin string, args ...string) envelope.ID {
	n.t.Helper()
	body := n.sp.NewBody()
	if _, err := io.WriteString(body, stdin); err != nil {
		n.t.Fatal(err)
	}
	if err := body.Finish(); err != nil {
		n.t.Fatal(err)
	}
	t, err := n.b.Jobs().Enqueue([]*jobs.Request{{Dest: to.keys.ID(), Body: body, Job: envelope.Job{Channel: channel, Handler: handler, Args: args}}})
	if err != nil {
		n.t.Fatal(err)
	}
	return t[0].ID
}

func (n *node) job(id envelope.ID) *jobs.View {
	n.t.Helper()
	v, err := n.b.Jobs().Show(id)
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

func TestJobsOverTCP(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	s := &scribe{}
	hub.runner = s
	hub.close()
	hub.open()
	url := hub.listen()
	camp.knows(hub, url)
	hub.knows(camp, "")
	hub.allow("echo", "fail")
	camp.run()
	hub.run()
	var ids []envelope.ID
	for i := range 20 {
		ids = append(ids, camp.order(hub, fmt.Sprintf("ch%d", i%2), "echo", fmt.Sprintf("in%d", i), fmt.Sprint(i)))
	}
	bad := camp.order(hub, "ch2", "fail", "x")
	no := camp.order(hub, "ch3", "nothing", "x")
	eventually(t, "every result", func() bool {
		for _, id := range ids {
			if !camp.job(id).Ended {
				return false
			}
		}
		return camp.job(bad).Result != nil && camp.job(no).Ended
	})
	for _, ch := range []string{"ch0", "ch1"} {
		want := 1
		for _, l := range s.lines() {
			if strings.HasPrefix(l, ch+" ") {
				if !strings.HasPrefix(l, fmt.Sprintf("%s %d ", ch, want)) {
					t.Errorf("got %q as number %d of %s", l, want, ch)
				}
				want++
			}
		}
		if want != 11 {
			t.Errorf("%d jobs of %s ran, want 10", want-1, ch)
		}
	}
	v := camp.job(ids[7])
	r, err := camp.sp.OpenBody(v.ResultID)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	r.Close()
	if err != nil || string(b) != "out of in7err" || v.Result.Stdout != 10 || v.Result.Stderr != 3 || v.State != "done" {
		t.Errorf("got %q, %v, %+v", b, err, v.Result)
	}
	if v := camp.job(bad); v.Ended || !v.Result.Held || v.Result.Exit != 3 || v.State != "failed" {
		t.Errorf("failed job: %+v %+v", v, v.Result)
	}
	if v := camp.job(no); v.State != "refused" || !strings.Contains(v.Why, "no handler") {
		t.Errorf("refused job: %+v", v)
	}
	if err := hub.b.Jobs().Skip(bad); err != nil {
		t.Fatal(err)
	}
	last := camp.order(hub, "ch0", "echo", "camp calls again")
	eventually(t, "the skipped job ends", func() bool { return camp.job(bad).Ended })
	eventually(t, "the last job ends", func() bool { return camp.job(last).Ended })
	eventually(t, "camp is empty but for results", func() bool {
		counts, err := camp.sp.Counts()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counts {
			if c.Dest != jobs.ResultDest {
				return false
			}
		}
		return true
	})
	eventually(t, "hub is empty", hub.empty)
}

// TestRefusedInput: the input of jobs that are refused when they come is gone from the disk, of those that get a place in
// their channel and of those that do not.
func TestRefusedInput(t *testing.T) {
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	hub.runner = &scribe{}
	hub.close()
	hub.open()
	url := hub.listen()
	camp.knows(hub, url)
	hub.knows(camp, "")
	p := *hub.pol
	p.Jobs.Handlers = append(p.Jobs.Handlers, &jobs.Handler{Name: "echo", Allow: []string{"camp:mine"}, OnFailure: "skip"})
	p.Jobs.MaxStdin = 60_000
	hub.pol = &p
	hub.b.SetPolicy(&p)
	input := func(n int) string { return strings.Repeat("0123456789", n/10) }
	ids := []envelope.ID{
		camp.order(hub, "mine", "other", input(50_000)),
		camp.order(hub, "nobodys", "echo", input(50_000)),
		camp.order(hub, "mine", "echo", input(70_000)),
		camp.order(hub, "mine", "echo", input(50_000)),
	}
	camp.run()
	hub.run()
	eventually(t, "every result", func() bool {
		for _, id := range ids {
			if !camp.job(id).Ended {
				return false
			}
		}
		return true
	})
	for i, want := range []string{"refused", "refused", "refused", "done"} {
		if v := camp.job(ids[i]); v.State != want {
			t.Errorf("job %d is %s (%s), want %s", i, v.State, v.Why, want)
		}
	}
	eventually(t, "no input of a job to be left at hub", func() bool {
		left, err := filepath.Glob(filepath.Join(hub.dir, "spool", "body", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range left {
			if st, err := os.Stat(f); err == nil && st.Size() != 50_000+13 { // what echo says is a result
				return false
			}
		}
		return true
	})
}
