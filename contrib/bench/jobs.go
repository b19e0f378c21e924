package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// jobs measures remote jobs: how fast they are taken, run and listed, beside Filespooler, and beside a loop that does
// nothing but start the same program.
func (b *bench) jobs() error {
	turns := []struct {
		name string
		run  func() error
	}{
		{"fspl.enqueue", b.fsplEnqueue}, {"enqueue", b.jobsEnqueue}, {"drain.ch1", func() error { return b.jobsDrain(1) }},
		{"drain.ch4", func() error { return b.jobsDrain(4) }}, {"fspl.drain", b.fsplDrain}, {"listing", b.jobsListing}, {"large", b.jobsLarge},
	}
	for i := range b.reps {
		for _, t := range turns {
			if once := t.name == "listing" || t.name == "large"; once && i < b.reps-1 || !b.cases.MatchString("jobs."+t.name) {
				continue
			}
			if err := t.run(); err != nil {
				return err
			}
		}
	}
	b.fig.show("mochila.jobs.", "fspl.jobs.", "exec.jobs.")
	return nil
}

// jobHandlers are hub's.
const jobHandlers = `
[[handler]]
name = "true"
command = ["/bin/true"]
allow = ["camp:*"]
concurrency = 4
[[handler]]
name = "count"
command = ["/usr/bin/wc", "-c"]
allow = ["camp:*"]
`

// jobPair is a pair whose stick is away, with the daemon of camp at work.
func (b *bench) jobPair(dir string) (*pair, *mta, error) {
	p, err := b.newPair(dir, "maildir:"+dir+"/mail/%u")
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(appendTo(p.hubConfig, jobHandlers+"\n[[peer]]\nnode = \"camp\"\nmax_bytes = \"4GiB\"\n"), os.Rename(p.stick, p.stick+".away")); err != nil {
		return nil, nil, err
	}
	camp, err := b.serve(b.ctx, p.camp, p.campAddr)
	return p, camp, err
}

// batch makes n jobs of one channel by one process.
func (b *bench) batch(home, channel string, n int) error {
	c := exec.CommandContext(b.ctx, filepath.Join(b.bin, "mochila"), "--home", home, "run", "hub", "--channel", channel, "--batch", "--", "true")
	c.Stdin = strings.NewReader(strings.Repeat(`{"stdin":"some input\n"}`+"\n", n))
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("run --batch: %w: %s", err, out[max(0, len(out)-500):])
	}
	return nil
}

// nodeAPI is the control socket of a node.
type nodeAPI struct{ c http.Client }

func apiOf(home string) *nodeAPI {
	return &nodeAPI{http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(home, "run/control.sock"))
	}}}}
}

func (a *nodeAPI) do(method, path string, body io.Reader, out any) error {
	q, err := http.NewRequest(method, "http://mochila"+path, body)
	if err != nil {
		return err
	}
	r, err := a.c.Do(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(r.Body)
		return fmt.Errorf("%s: %s", r.Status, text)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, r.Body)
		return err
	}
	return json.NewDecoder(r.Body).Decode(out)
}

// jobChannels is what GET /v1/jobs tells of channels.
type jobChannels struct {
	Jobs     []json.RawMessage `json:"jobs"`
	Channels []struct {
		Own           bool
		Channel       string
		Waiting, Next int
		State         string
	} `json:"channels"`
}

// await looks at the channels of a node until ok says so: not so often that the looking counts.
func (b *bench) await(a *nodeAPI, ok func(*jobChannels) bool) error {
	for begin := time.Now(); ; {
		var l jobChannels
		err := a.do("GET", "/v1/jobs?limit=1", nil, &l)
		if err != nil && time.Since(begin) > 20*time.Second { // the socket comes last when a daemon starts
			return err
		}
		if err == nil && ok(&l) {
			return nil
		}
		select {
		case <-b.ctx.Done():
			return b.ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// jobsEnqueue: eight clients on the socket, one job each time; a batch by one process; a process for each job.
func (b *bench) jobsEnqueue() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, camp, err := b.jobPair(dir)
	if err != nil {
		return err
	}
	defer camp.stop()
	n := b.scaled(5000)
	var all sync.WaitGroup
	errs := make([]error, 8)
	start := time.Now()
	for i := range errs {
		all.Go(func() {
			a := apiOf(p.camp)
			line := []byte(fmt.Sprintf(`{"nodes":["hub"],"channel":"c%d","handler":"true"}`+"\nsome input\n", i%4))
			for range n / 8 {
				if errs[i] = a.do("POST", "/v1/run", bytes.NewReader(line), nil); errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	b.fig.add("mochila.jobs.clients8.enqueue_per_s", float64(n/8*8)/time.Since(start).Seconds())

	n = b.scaled(10_000)
	start = time.Now()
	if err := b.batch(p.camp, "batch", n); err != nil {
		return err
	}
	b.fig.add("mochila.jobs.batch.enqueue_per_s", float64(n)/time.Since(start).Seconds())

	rate, err := b.drive(dir, []string{filepath.Join(b.bin, "mochila"), "--home", p.camp, "run", "hub", "--channel", "single", "--", "true"}, b.scaled(300), 1)
	if err != nil {
		return err
	}
	b.fig.add("mochila.jobs.process.enqueue_per_s", rate)
	floor, err := b.drive(dir, []string{filepath.Join(b.bin, "mochila"), "version"}, b.scaled(300), 1)
	if err == nil {
		b.fig.add("mochila.jobs.version.starts_per_s", floor)
	}
	return err
}

// fspl finds Filespooler.
func fspl() (string, error) {
	path, err := exec.LookPath("fspl")
	if err != nil {
		return "", fmt.Errorf("peer Filespooler: %w: %w", errMissing, err)
	}
	return path, nil
}

// fsplEnqueue is prepare | queue-write, a pair of processes for each job.
func (b *bench) fsplEnqueue() error {
	bin, err := fspl()
	if b.missing("fspl", err) {
		return nil
	}
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := command(b.ctx, nil, bin, "queue-init", "-q", filepath.Join(dir, "queue")); err != nil {
		return err
	}
	script := filepath.Join(dir, "prepare.sh")
	text := fmt.Sprintf("#!/bin/sh\n%[1]s prepare -s %[2]s/seq -i - | %[1]s queue-write -q %[2]s/queue\n", bin, dir)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		return err
	}
	rate, err := b.drive(dir, []string{script}, b.scaled(200), 1)
	if err == nil {
		b.fig.add("fspl.jobs.process.enqueue_per_s", rate)
	}
	return err
}

// fsplDrain runs jobs by queue-process.
func (b *bench) fsplDrain() error {
	bin, err := fspl()
	if b.missing("fspl", err) {
		return nil
	}
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	queue := filepath.Join(dir, "queue")
	if _, err := command(b.ctx, nil, bin, "queue-init", "-q", queue); err != nil {
		return err
	}
	n := b.scaled(500)
	fill := fmt.Sprintf("for i in $(seq %[1]d); do echo some input | %[2]s prepare -s %[3]s/seq -i - | %[2]s queue-write -q %[4]s; done", n, bin, dir, queue)
	if _, err := command(b.ctx, nil, "sh", "-c", fill); err != nil {
		return err
	}
	start := time.Now()
	if _, err := command(b.ctx, nil, bin, "queue-process", "-q", queue, "/bin/true"); err != nil {
		return err
	}
	b.fig.add("fspl.jobs.drain_per_s", float64(n)/time.Since(start).Seconds())
	return nil
}

// jobsDrain: channels of jobs stand at a barrier at hub; the barriers are opened. In the same run the same program is
// started as often by a loop of os/exec.
func (b *bench) jobsDrain(channels int) error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, camp, err := b.jobPair(dir)
	if err != nil {
		return err
	}
	n := b.scaled(3000) / channels * channels
	for i := range channels {
		name := fmt.Sprint("d", i)
		if err := b.mochila(p.camp, "run", "hub", "--channel", name, "--barrier"); err != nil {
			return err
		}
		if err := b.batch(p.camp, name, n/channels); err != nil {
			return err
		}
	}
	if err := errors.Join(camp.stop(), os.Rename(p.stick+".away", p.stick), b.mochila(p.camp, "sync")); err != nil {
		return err
	}
	if _, _, err := execLoop(n); err != nil { // warm
		return err
	}
	start := time.Now()
	hub, err := b.serve(b.ctx, p.hub, p.hubAddr)
	if err != nil {
		return err
	}
	defer hub.stop()
	a := apiOf(p.hub)
	waiting := func(want int) func(*jobChannels) bool {
		return func(l *jobChannels) bool {
			all, sum := 0, 0
			for _, x := range l.Channels {
				if !x.Own {
					all, sum = all+1, sum+x.Waiting
				}
			}
			return all == channels && sum == want
		}
	}
	if err := b.await(a, waiting(n+channels)); err != nil {
		return err
	}
	opened := time.Since(start)
	loop, loopUsed, err := execLoop(n)
	if err != nil {
		return err
	}
	used := cpu(hub.pid)
	start = time.Now()
	for i := range channels {
		if err := a.do("POST", "/v1/jobs", strings.NewReader(fmt.Sprintf(`{"verb":"resume","node":"camp","channel":"d%d"}`, i)), nil); err != nil {
			return err
		}
	}
	if err := b.await(a, waiting(0)); err != nil {
		return err
	}
	drain := time.Since(start)
	used = cpu(hub.pid) - used
	again, againUsed, err := execLoop(n)
	if err != nil {
		return err
	}
	loop, loopUsed = (loop+again)/2, (loopUsed+againUsed)/2 // one before and one after: a machine that slows down slows both
	name := fmt.Sprintf("mochila.jobs.ch%d.", channels)
	b.fig.add(name+"drain_per_s", float64(n)/drain.Seconds())
	b.fig.add(name+"cpu_ms_per_job", used.Seconds()*1e3/float64(n)) // with that of the programs
	b.fig.add("exec.jobs.drain_per_s", float64(n)/loop.Seconds())
	b.fig.add("exec.jobs.cpu_ms_per_job", loopUsed.Seconds()*1e3/float64(n))
	b.fig.add(name+"drain_of_exec", loop.Seconds()/drain.Seconds())
	// with reading, opening and storing the sealed packets, and the start of the daemon
	b.fig.add(name+"sealed_more_pct", 100*opened.Seconds()/drain.Seconds())
	return nil
}

// execLoop starts /bin/true n times as a handler is started: input and both outputs by pipes, a group of its own. It
// returns how long that took, and the processor time of this process and of the programs.
func execLoop(n int) (took, used time.Duration, err error) {
	start, before := time.Now(), ownCPU()
	for range n {
		c := exec.Command("/bin/true")
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var out, errs bytes.Buffer
		c.Stdin, c.Stdout, c.Stderr = strings.NewReader("some input\n"), &out, &errs
		if err := c.Run(); err != nil {
			return 0, 0, err
		}
	}
	return time.Since(start), ownCPU() - before, nil
}

// waitingJobs is how many jobs wait when they are listed.
const waitingJobs = 50_000

// jobsListing lists a long queue: its first page, and the channels with their counts.
func (b *bench) jobsListing() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, camp, err := b.jobPair(dir)
	if err != nil {
		return err
	}
	defer camp.stop()
	n := b.scaled(waitingJobs)
	for i := range 4 {
		if err := b.batch(p.camp, fmt.Sprint("c", i), n/4); err != nil {
			return err
		}
	}
	a := apiOf(p.camp)
	timed := func(name string, f func() error) error {
		for range 5 {
			start := time.Now()
			if err := f(); err != nil {
				return err
			}
			b.fig.add("mochila.jobs.waiting."+name+"_ms", time.Since(start).Seconds()*1e3)
		}
		return nil
	}
	var l jobChannels
	return errors.Join(
		timed("first_page", func() error { return b.mochila(p.camp, "jobs", "list", "--limit", "100") }),
		timed("counts", func() error { return b.mochila(p.camp, "jobs", "list", "--channels") }),
		timed("api_first_page", func() error {
			err := a.do("GET", "/v1/jobs?limit=100", nil, &l)
			if err == nil && (len(l.Jobs) != 100 || len(l.Channels) != 4 || l.Channels[0].Waiting != n/4) {
				err = fmt.Errorf("%d jobs, channels %+v", len(l.Jobs), l.Channels)
			}
			return err
		}))
}

// jobsLarge takes a job with a lot of input, carries it and runs it: what the processes hold in memory meanwhile.
func (b *bench) jobsLarge() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, camp, err := b.jobPair(dir)
	if err != nil {
		return err
	}
	size := int64(b.scaled(1 << 30))
	c := exec.CommandContext(b.ctx, filepath.Join(b.bin, "mochila"), "--home", p.camp, "run", "hub", "--channel", "big", "--", "count")
	c.Stdin = io.LimitReader(noise{}, size)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	watchCamp := watch(camp.pid)
	start := time.Now()
	if err := c.Start(); err != nil {
		return err
	}
	watchRun := watch(c.Process.Pid)
	if err := c.Wait(); err != nil {
		return fmt.Errorf("run: %w: %s", err, out.String())
	}
	b.fig.add("mochila.jobs.large.enqueue_MB_per_s", float64(size)/1e6/time.Since(start).Seconds())
	_, anonRun := watchRun()
	_, anonCamp := watchCamp()
	if err := errors.Join(camp.stop(), os.Rename(p.stick+".away", p.stick), b.mochila(p.camp, "sync")); err != nil {
		return err
	}
	hub, err := b.serve(b.ctx, p.hub, p.hubAddr)
	if err != nil {
		return err
	}
	defer hub.stop()
	watchHub := watch(hub.pid)
	start = time.Now()
	err = b.await(apiOf(p.hub), func(l *jobChannels) bool {
		for _, x := range l.Channels {
			if x.Channel == "big" && !x.Own {
				return x.Next == 2 || x.State == "held"
			}
		}
		return time.Since(start) > 5*time.Minute
	})
	_, anonHub := watchHub()
	if err != nil {
		return err
	}
	const mib = 1 << 20
	b.fig.add("mochila.jobs.large.run_anon_MiB", float64(anonRun)/mib)
	b.fig.add("mochila.jobs.large.camp_anon_MiB", float64(anonCamp)/mib)
	b.fig.add("mochila.jobs.large.hub_anon_MiB", float64(anonHub)/mib)
	b.fig.add("mochila.jobs.large.most_anon_MiB", float64(max(anonRun, anonCamp, anonHub))/mib)
	return b.checkLarge(p, size)
}

// checkLarge wants the program to have counted every byte.
func (b *bench) checkLarge(p *pair, size int64) error {
	id := ""
	for end := time.Now().Add(20 * time.Second); id == "" && time.Now().Before(end); { // hub writes the result when it has it
		if err := b.mochila(p.camp, "sync"); err != nil {
			return err
		}
		list, err := command(b.ctx, nil, filepath.Join(b.bin, "mochila"), "--home", p.camp, "jobs", "list", "--ended", "--json")
		if err != nil {
			return err
		}
		for line := range strings.Lines(list) {
			var it struct{ ID string }
			if json.Unmarshal([]byte(line), &it) == nil && it.ID != "" {
				id = it.ID
			}
		}
	}
	out, err := command(b.ctx, nil, filepath.Join(b.bin, "mochila"), "--home", p.camp, "jobs", "show", id, "--stdout")
	if err == nil && strings.TrimSpace(out) != fmt.Sprint(size) {
		err = fmt.Errorf("wc counted %q of %d bytes", strings.TrimSpace(out), size)
	}
	return err
}

// noise is bytes that do not compress, without end.
type noise struct{}

func (noise) Read(p []byte) (int, error) {
	x := uint64(time.Now().UnixNano()) | 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x)
	}
	return len(p), nil
}
