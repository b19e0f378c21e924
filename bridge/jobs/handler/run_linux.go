package handler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long after SIGKILL the last output is waited for, from processes that left the group.
const settle = time.Second

// Run runs a handler to its end and returns when its process is gone. started, unless nil, gets the number of the
// process, which is also that of its group and session, and its start time as Leftover takes it, once and at once: an
// error kills the group. The program may run already then, so what must be durable before it runs must be so before
// Run; what started writes is for KillGroup after a crash of this process, and need not survive one of the machine.
//
// When ctx ends, the group is asked to end, and killed after the grace, as after the timeout. A process that cannot
// be killed, because it hangs in the kernel or because more privileges than ours started it, keeps Run waiting.
func (l *Launcher) Run(ctx context.Context, s Spec, started func(pid int, startTime uint64) error) Outcome {
	p, err := l.Prepare(s)
	if err != nil {
		return NotStarted(err)
	}
	return p.Run(ctx, started, nil)
}

// NotStarted is the outcome of a run that could not begin.
func NotStarted(err error) Outcome {
	return Outcome{Exit: -1, Err: err.Error(), Temporary: passing(err)}
}

// Prepared is a run of which nothing is left to do but the start: its input lies in a pipe, its outputs are open. Nothing
// of it is to be seen from outside.
type Prepared struct {
	l      *Launcher
	s      Spec
	acct   *Account
	limits []limit
	ends   *ends
}

// Prepare does everything that comes before the start. The result ends by Run or Close.
func (l *Launcher) Prepare(s Spec) (*Prepared, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	p := &Prepared{l: l, s: s}
	var err error
	if p.acct, err = s.credential(); err == nil {
		err = precheck(&s)
	}
	if err == nil {
		p.limits, err = s.Limits.order()
	}
	if err == nil {
		p.ends, err = s.open()
	}
	if err != nil {
		return nil, err
	}
	l.once.Do(l.prepare)
	return p, nil
}

// Close gives up a run that was not started.
func (p *Prepared) Close() { p.ends.close() }

// Run is Launcher.Run for what is prepared. meanwhile, unless nil, is called when the program runs: for short work, since
// nobody watches the program until it returns.
func (p *Prepared) Run(ctx context.Context, started func(pid int, startTime uint64) error, meanwhile func()) Outcome {
	o := Outcome{Exit: -1}
	if err := ctx.Err(); err != nil {
		p.Close()
		o = NotStarted(fmt.Errorf("not started: %w", err))
		o.Cancelled = true
		return o
	}
	began := time.Now()
	c, err := p.l.spawn(&p.s, p.acct, p.ends.child, p.limits)
	if err != nil {
		p.Close()
		var shim shimError
		if !errors.As(err, &shim) {
			err = explain(&p.s, err)
		}
		return NotStarted(err)
	}
	r := &run{s: &p.s, o: &o, ends: p.ends, child: c, began: began, meanwhile: meanwhile}
	p.ends.closeChild()
	r.supervise(ctx, p.l.boot, started)
	return o
}

// run is a program under supervision.
type run struct {
	s     *Spec
	o     *Outcome
	ends  *ends
	child *child
	began time.Time
	ended time.Time

	meanwhile func()

	stage  stage
	dead   bool        // the process has exited, and is not waited for yet
	open   int         // output streams that somebody may still write to
	timer  *time.Timer // of the stage
	ran    bool        // the program has started: the shim, if any, is no more
	failed error       // becomes Outcome.Err
	passed chan error  // what comes of the shim; nil: nobody waits for that
	all    sync.WaitGroup
}

// stage tells how far the end of a program has been forced.
type stage uint8

const (
	running stage = iota
	asked         // SIGTERM is sent, or the process has exited by itself: the grace runs
	killed        // SIGKILL is sent
	cut           // nobody listens to output any more
)

// briefly is how long a program may run before anybody listens to its output: most are over by then, and a pipe holds
// what they print. Waiting for one thing, not for three, is half the work.
const briefly = 3 * time.Millisecond

func (r *run) supervise(ctx context.Context, boot bootID, started func(int, uint64) error) {
	if err := r.record(boot, started); err != nil {
		r.failed = err
		r.kill()
	}
	if !r.brief() {
		r.attend(ctx)
	}
	r.kill() // whoever of the group is still there holds no output open; its leader is waited for last
	r.reap()
	r.ends.close()
	if r.passed != nil {
		r.become(<-r.passed)
	}
	r.all.Wait()
	r.report()
}

// record tells the caller which process this is.
func (r *run) record(boot bootID, started func(int, uint64) error) error {
	if started == nil {
		return nil
	}
	at, err := boot.startTime(r.child)
	if err == nil {
		err = started(r.child.pid, at)
	}
	if err != nil {
		return fmt.Errorf("recording the start: %w", err)
	}
	return nil
}

// brief waits for the end of a program that needs nothing of us meanwhile. It reports whether all is over: the process,
// and its output.
func (r *run) brief() bool {
	if r.child.gate != nil || r.ends.feed != nil || r.failed != nil || r.child.end < 0 {
		return false
	}
	r.ran = true
	if r.meanwhile != nil {
		r.meanwhile()
	}
	until := r.began.Add(briefly)
	if t := r.s.Timeout; t > 0 && t < briefly {
		until = r.began.Add(t)
	}
	r.dead = r.child.endsBy(until) && r.ends.soak()
	return r.dead
}

// attend does everything that a program may need until it and its output are over.
func (r *run) attend(ctx context.Context) {
	eof := make(chan struct{}, 2)
	for _, s := range []*stream{r.ends.out, r.ends.err} {
		r.open++
		s.listen()
		r.all.Go(func() { s.drain(); eof <- struct{}{} })
	}
	exited := make(chan struct{})
	r.all.Go(func() { r.child.ends(); close(exited) })

	switch {
	case r.child.gate == nil:
		r.ran = true
	case r.failed != nil:
		r.child.gate.Close()
	default:
		passed := make(chan error, 1)
		r.passed = passed
		r.all.Go(func() { passed <- r.child.pass() })
	}
	fed := make(chan error, 1)
	if f := r.ends.feed; f != nil {
		r.all.Go(func() { fed <- f.feed() })
	}

	r.timer = time.NewTimer(time.Hour)
	r.timer.Stop()
	defer r.timer.Stop()
	if r.stage == killed {
		r.timer.Reset(settle)
	}
	var timeout <-chan time.Time
	if r.s.Timeout > 0 {
		t := time.NewTimer(r.s.Timeout - time.Since(r.began))
		defer t.Stop()
		timeout = t.C
	}
	done := ctx.Done()
	for !r.dead || r.open > 0 {
		select {
		case <-exited:
			exited, timeout = nil, nil
			r.exit()
		case <-eof:
			r.open--
		case err := <-r.passed:
			r.passed = nil
			r.become(err)
		case err := <-fed:
			if err == nil {
				r.ends.feed.pipe.Close() // now the program sees the end of its input
			} else if !r.dead && r.stage < killed {
				r.failed = fmt.Errorf("stdin: %w", err)
				r.end(killed)
			}
		case <-timeout:
			timeout = nil
			r.o.TimedOut = true
			r.end(asked)
		case <-done:
			done = nil
			if r.dead {
				r.end(killed)
			} else {
				r.o.Cancelled = true
				r.end(asked)
			}
		case <-r.timer.C:
			r.end(r.stage + 1)
		}
	}
}

// become notes what came of the shim.
func (r *run) become(err error) {
	var shim shimError
	switch {
	case err == nil:
		r.ran = true
	case r.failed != nil:
	case r.o.TimedOut:
		r.failed = fmt.Errorf("not started within %v", r.s.Timeout)
	case r.o.Cancelled:
		r.failed = fmt.Errorf("not started: %w", context.Canceled)
	case errors.As(err, &shim):
		r.failed = err
	default:
		r.failed = explain(r.s, err)
	}
}

// exit notes that the process has ended.
func (r *run) exit() {
	r.dead = true
	switch {
	case r.open == 0:
	case r.stage == running:
		r.stage = asked
		r.timer.Reset(r.s.grace())
	case r.stage == killed:
		r.timer.Reset(settle)
	}
}

// end forces the end, as far as the stage says.
func (r *run) end(to stage) {
	switch to {
	case asked:
		r.stage = asked
		unix.Kill(-r.child.pid, unix.SIGTERM)
		unix.Kill(-r.child.pid, unix.SIGCONT)
		r.timer.Reset(r.s.grace())
	case killed:
		r.o.Lingered = r.dead && r.failed == nil
		r.kill()
		killSession(r.child.pid)
		r.timer.Reset(settle)
	case cut:
		if r.dead { // else SIGKILL will come true some time, and exit goes on from there
			r.ends.out.pipe.SetReadDeadline(time.Unix(1, 0))
			r.ends.err.pipe.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// kill kills the group. Its number is ours for as long as the process is not waited for.
func (r *run) kill() {
	r.stage = killed
	unix.Kill(-r.child.pid, unix.SIGKILL)
}

// reap takes the exit status, and with it gives the number of the process back.
func (r *run) reap() {
	if r.child.end >= 0 {
		unix.Close(r.child.end)
	}
	var ws syscall.WaitStatus
	var ru syscall.Rusage
	var err error
	for {
		if _, err = syscall.Wait4(r.child.pid, &ws, 0, &ru); err != syscall.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		r.failed = errors.Join(r.failed, fmt.Errorf("waiting for process %d: %w", r.child.pid, err))
	case ws.Exited():
		r.o.Exit = ws.ExitStatus()
	case ws.Signaled():
		r.o.Signal = int(ws.Signal())
	}
	r.ended = r.began.Add(time.Since(r.began))
	r.o.User, r.o.System = time.Duration(ru.Utime.Nano()), time.Duration(ru.Stime.Nano())
}

// report fills in the rest.
func (r *run) report() {
	if r.ran {
		r.o.Started, r.o.Ended = r.began, r.ended
	} else {
		r.o.Exit, r.o.Signal = -1, 0
	}
	out, err := r.ends.out, r.ends.err
	r.o.StdoutBytes, r.o.StderrBytes = out.total, err.total
	r.o.Truncated = out.lost || err.lost
	for _, s := range []*stream{out, err} {
		if s.err != nil && r.o.SinkErr == "" {
			r.o.SinkErr = fmt.Sprintf("keeping %s: %v", s.name, s.err)
		}
	}
	if r.failed != nil {
		r.o.Err, r.o.Temporary = r.failed.Error(), passing(r.failed)
	}
}
