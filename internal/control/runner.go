package control

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mochila/bridge/jobs"
	"mochila/bridge/jobs/builtin"
	"mochila/bridge/jobs/handler"
	"mochila/internal/config"
	"mochila/internal/envelope"
)

// jobsPolicy is what the configuration says about jobs, in the engine's terms.
func jobsPolicy(c *config.Config) jobs.Policy {
	p := jobs.Policy{}
	if c.Jobs.Answers() && !slices.ContainsFunc(c.Handlers, func(h config.Handler) bool { return h.Name == pingName }) {
		p.Handlers = append(p.Handlers, pingHandler())
	}
	if !slices.ContainsFunc(c.Handlers, func(h config.Handler) bool { return h.Name == pipeName }) {
		p.Handlers = append(p.Handlers, pipeHandler())
	}
	for i := range c.Handlers {
		h := &c.Handlers[i]
		x := &jobs.Handler{Name: h.Name, Allow: h.Allow, Idempotent: h.Idempotent, Tries: *h.Retry + 1, OnFailure: h.OnFailure,
			Unordered: h.Order == "none", Concurrency: h.Concurrency}
		if h.Builtin != "" {
			x.Check = builtinOf(h).Check
			p.Handlers = append(p.Handlers, x)
			continue
		}
		args := argPolicy(h)
		env := handler.EnvPolicy{Allow: h.Env}
		x.Check = func(a []string, v [][2]string) error {
			if err := args.Check(a); err != nil {
				return err
			}
			return env.Check(joinEnv(v))
		}
		p.Handlers = append(p.Handlers, x)
	}
	for _, s := range c.Jobs.Submit {
		g := jobs.Grant{Node: "*", Channel: "*", Handler: "*"}
		var what string
		var limited bool
		if g.User, what, limited = strings.Cut(s, "="); limited {
			part := strings.Split(what, ":")
			g.Node, g.Channel, g.Handler = part[0], part[1], part[2]
		}
		p.Submit = append(p.Submit, g)
	}
	return p
}

// builtinOf is a handler that comes with the program, in that one's terms.
func builtinOf(h *config.Handler) builtin.Settings {
	return builtin.Settings{Kind: h.Builtin, Folders: h.Folders, Overwrite: h.Overwrite, Output: int64(h.Output), Push: h.Push, Force: h.Force}
}

// argPolicy is what the configuration, which was checked, says about arguments.
func argPolicy(h *config.Handler) handler.ArgPolicy {
	p := handler.ArgPolicy{Mode: handler.ArgsNone, Dash: h.ArgsDash, Repeat: h.ArgsRepeat}
	switch {
	case h.Args:
		p.Mode = handler.ArgsFree
	case h.ArgsFixed != nil:
		p.Mode, p.Fixed = handler.ArgsFixed, h.ArgsFixed
	case h.ArgsPattern != nil:
		if re, err := h.Patterns(); err == nil {
			p.Mode, p.Patterns = handler.ArgsPattern, re
		}
	}
	return p
}

// limits are a handler's resource limits.
func limits(h *config.Handler) handler.Limits {
	return handler.Limits{CPU: time.Duration(h.CPU), Memory: int64(h.Memory), FileSize: int64(h.FileSize), Files: h.Files, Processes: h.Processes}
}

func joinEnv(v [][2]string) []string {
	var out []string
	for _, x := range v {
		out = append(out, x[0]+"="+x[1])
	}
	return out
}

// runner starts the programs of jobs as the configuration says at that moment (jobs.Runner). Each job has a folder
// below dir to itself while it runs: its working directory.
type runner struct {
	config  func() *config.Config
	base    string // relative directories of handlers are below it
	dir     string
	scratch string // folder for output that is too long for memory; every start empties it
	now     func() time.Time
	events  func(envelope.ID) ([]TraceEvent, error) // what is known of an envelope
	pipes   *pipes

	launch handler.Launcher
	roster roster
	rooms  rooms
}

// newRunner makes one. It is closed when nothing runs any more.
func newRunner(n *Node) *runner {
	dir := filepath.Join(n.home.SpoolDir, "jobs")
	return &runner{config: n.config, base: n.home.Base, dir: dir, scratch: n.spool.TempDir(), now: time.Now, events: n.events, pipes: n.pipes,
		roster: roster{path: filepath.Join(dir, "running")}, rooms: rooms{dir: dir}}
}

// Close ends the threads that start programs, and removes the directories that are kept.
func (r *runner) Close() error {
	r.launch.Close()
	r.rooms.Close()
	return r.roster.Close()
}

// killGrace is how long what a crash left running has to end by itself.
const killGrace = 2 * time.Second

// mark is the entry of a job's environment by which its processes are known.
func mark(id envelope.ID) string { return "MOCHILA_JOB_ID=" + id.String() }

// program is a job for which everything is ready but the start.
type program struct {
	r      *runner
	s      *jobs.Start
	c      *config.Config
	h      *config.Handler
	made   time.Time
	in     io.ReadCloser
	home   *room
	away   string // working directory outside of the node's folders
	ends   *handler.Prepared
	stdout *spill
	stderr *spill
}

// notStarted is the outcome of a job whose program cannot be started.
func notStarted(temporary bool, format string, args ...any) *jobs.Outcome {
	o := &jobs.Outcome{NotStarted: true, Exit: 127, Reason: envelope.OneLine("not started: "+fmt.Sprintf(format, args...), envelope.MaxReason)}
	if temporary {
		o.Exit = 75
	}
	return o
}

// handlerOf finds a handler by its name.
func handlerOf(c *config.Config, name string) *config.Handler {
	for i := range c.Handlers {
		if c.Handlers[i].Name == name {
			return &c.Handlers[i]
		}
	}
	return nil
}

// Run runs one program to its end.
func (r *runner) Run(ctx context.Context, s *jobs.Start) (*jobs.Outcome, error) {
	c := r.config()
	p, _ := s.Ready.(*program)
	if p != nil && !p.fits(c, s) {
		p.Close()
		p = nil
	}
	h := handlerOf(c, s.Handler)
	switch {
	case p != nil:
	case h == nil && s.Handler == pingName:
		return r.pong(s)
	case h == nil && s.Handler == pipeName:
		return r.piece(ctx, s)
	case h == nil:
		return notStarted(false, "there is no handler %q", s.Handler), nil
	default:
		var failed *jobs.Outcome
		if p, failed = r.program(c, h, s); failed != nil {
			return failed, nil
		}
	}
	return p.run(ctx, s.Meanwhile)
}

// Prepare makes ready what Run needs (jobs.Preparer). Handlers with a user of their own, and those that come with the
// program, are left to Run: what they depend on may be what the job before them is about.
func (r *runner) Prepare(s *jobs.Start) jobs.Ready {
	c := r.config()
	h := handlerOf(c, s.Handler)
	if h == nil || h.User != "" || h.Builtin != "" {
		return nil
	}
	p, failed := r.program(c, h, s)
	if failed != nil {
		return nil // Run looks again, and says why
	}
	return p
}

// keepsFor is how long what was prepared is taken for what it was.
const keepsFor = time.Second

// fits reports whether what was prepared is still what s needs.
func (p *program) fits(c *config.Config, s *jobs.Start) bool {
	return p.c == c && p.s.ID == s.ID && p.s.Try == s.Try && p.s.Peer == s.Peer && time.Since(p.made) < keepsFor && p.home.untouched()
}

// program makes a program ready, or says why it cannot be started.
func (r *runner) program(c *config.Config, h *config.Handler, s *jobs.Start) (p *program, failed *jobs.Outcome) {
	p = &program{r: r, s: s, c: c, h: h, made: time.Now()}
	defer func() {
		if failed != nil {
			p.Close()
		}
	}()
	in, err := verified(s)
	if err != nil {
		return p, notStarted(false, "standard input: %v", err)
	}
	p.in = in
	if p.home, err = r.rooms.take(s.Handler, s.ID.String()); err != nil {
		return p, notStarted(true, "working directory: %v", err)
	}
	work := p.home.path
	umask, err := h.Mask()
	if err != nil {
		return p, notStarted(false, "%v", err)
	}
	spec := handler.Spec{Command: h.Command, Args: s.Args, Dir: h.Dir, User: h.User, Umask: umask, Timeout: time.Duration(h.Timeout),
		StdinSize: s.Size, OutputCap: int64(h.Output), Limits: limits(h), NoNewPrivs: h.NoNewPrivs}
	account, owner := "mochila", work
	if h.User != "" {
		a, err := handler.LookupAccount(h.User)
		if err != nil {
			return p, notStarted(false, "%v", err)
		}
		account, owner = a.Name, a.Home
		if h.Dir == "" && h.Builtin == "" {
			work = elsewhere(s.ID)
			p.away = work
			if err := errors.Join(os.RemoveAll(work), os.Mkdir(work, 0o700), os.Chown(work, int(a.UID), int(a.GID))); err != nil {
				return p, notStarted(true, "working directory: %v", err)
			}
		}
	}
	switch {
	case spec.Dir == "":
		spec.Dir = work
	case !filepath.IsAbs(spec.Dir):
		spec.Dir = filepath.Join(r.base, spec.Dir)
	}
	if h.Builtin != "" {
		b := builtinOf(h)
		b.Peer = s.Peer
		spec.Dir = "/" // they need none, and their user may not be able to enter the node's folders
		if spec.Command, err = b.Command(); err != nil {
			return p, notStarted(false, "%v", err)
		}
	}
	if s.Size > 0 {
		spec.Stdin = in
	}
	names := handler.Names{JobID: s.ID.String(), Node: c.Name, Origin: s.Peer, OriginID: s.Origin.Text(), Channel: s.Channel, Seq: s.Seq,
		Handler: s.Handler, Attempt: s.Try, Created: s.Created, Expires: s.Expires, StdinSize: s.Size}
	if s.Seq != 0 {
		names.Epoch = hex.EncodeToString(s.Epoch[:])
	}
	spec.Env = handler.MergeEnv(handler.CleanEnv(owner, account, ""), joinEnv(s.Env), names.Env())
	if h.FsplEnv {
		spec.Env = handler.MergeEnv(spec.Env, names.Filespooler(s.Args, joinEnv(s.Env)))
	}
	p.stdout, p.stderr = &spill{dir: r.scratch}, &spill{dir: r.scratch}
	spec.Stdout, spec.Stderr = p.stdout, p.stderr
	if p.ends, err = r.launch.Prepare(spec); err != nil {
		o := handler.NotStarted(err)
		return p, p.outcome(&o)
	}
	return p, nil
}

// Close gives back what the program had, or would have had.
func (p *program) Close() {
	if p.ends != nil {
		p.ends.Close()
	}
	if p.away != "" {
		os.RemoveAll(p.away)
	}
	if p.home != nil {
		p.r.rooms.give(p.s.Handler, p.home)
	}
	if p.in != nil {
		p.in.Close()
	}
}

// run runs the program to its end.
func (p *program) run(ctx context.Context, meanwhile func()) (*jobs.Outcome, error) {
	defer p.Close()
	ends := p.ends
	p.ends = nil
	place := -1
	o := ends.Run(ctx, func(pid int, start uint64) (err error) {
		place, err = p.r.roster.note(p.s.ID, pid, start)
		return err
	}, meanwhile)
	if place >= 0 {
		p.r.roster.clear(place)
	}
	if o.Cancelled {
		p.stdout.Close()
		p.stderr.Close()
		return nil, fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	return p.outcome(&o), nil
}

// outcome says how it went in the terms of jobs.
func (p *program) outcome(o *handler.Outcome) *jobs.Outcome {
	stdout, stderr := p.stdout, p.stderr
	out := &jobs.Outcome{Exit: max(o.Exit, 0), Signal: o.Signal, Timeout: o.TimedOut, Started: o.Started, Ended: o.Ended, Reason: o.Err,
		DroppedOut: max(o.StdoutBytes-stdout.n, 0), DroppedErr: max(o.StderrBytes-stderr.n, 0),
		Close: func() { stdout.Close(); stderr.Close() }}
	switch {
	case !o.Ran():
		out.NotStarted = true
		out.Exit = 127
		if o.Temporary {
			out.Exit = 75
		}
	case o.Err != "":
		out.Unknown = true
	case o.TimedOut:
		out.Reason = fmt.Sprintf("killed after %v", time.Duration(p.h.Timeout))
	case o.Lingered:
		out.Reason = "what it left running was killed"
	}
	if o.SinkErr != "" {
		out.Reason = strings.TrimSpace(out.Reason + " output: " + o.SinkErr)
	}
	var err error
	if out.Out, err = stdout.reader(); err == nil {
		out.Err, err = stderr.reader()
	}
	if err != nil {
		out.Reason = strings.TrimSpace(out.Reason + " output: " + err.Error())
	}
	out.Reason = envelope.OneLine(out.Reason, envelope.MaxReason)
	return out
}

// elsewhere is the working directory of a job that runs as another user: that one cannot enter the folders of the node.
func elsewhere(id envelope.ID) string {
	return filepath.Join(os.TempDir(), "mochila-job-"+id.String())
}

// verified opens the input of a job and compares it with what was accepted: no program sees a byte of a content that the
// disk has spoiled.
func verified(s *jobs.Start) (io.ReadCloser, error) {
	in, err := s.Stdin()
	if err != nil || s.Size == 0 {
		return in, err
	}
	h := envelope.NewSum()
	n, err := io.Copy(h, in)
	switch {
	case err != nil:
	case n != s.Size || [32]byte(h.Sum(nil)) != s.Sum:
		err = errors.New("the content in the spool is not what was accepted")
	default:
		if k, ok := in.(io.Seeker); ok {
			_, err = k.Seek(0, io.SeekStart)
			break
		}
		in.Close()
		return s.Stdin()
	}
	if err != nil {
		in.Close()
		return nil, err
	}
	return in, nil
}

// Kill ends what a crash left running of a job.
func (r *runner) Kill(id envelope.ID) error {
	pid, start, err := r.roster.find(id) // without it, it is looked for by its mark
	_, kerr := handler.KillGroup(context.Background(), pid, start, mark(id), killGrace)
	return errors.Join(err, kerr, os.RemoveAll(filepath.Join(r.dir, id.String())), os.RemoveAll(elsewhere(id)))
}

// spillAt is how much output of a program is kept in memory.
const spillAt = 256 << 10

// spill keeps what is written in memory, and in a file when it is more.
type spill struct {
	dir string
	n   int64
	mem bytes.Buffer
	f   *os.File
}

func (s *spill) Write(p []byte) (int, error) {
	if s.f == nil && s.mem.Len()+len(p) > spillAt {
		f, err := os.CreateTemp(s.dir, "out-")
		if err != nil {
			return 0, err
		}
		os.Remove(f.Name())
		if _, err := f.Write(s.mem.Bytes()); err != nil {
			f.Close()
			return 0, err
		}
		s.f, s.mem = f, bytes.Buffer{}
	}
	var n int
	var err error
	if s.f != nil {
		n, err = s.f.Write(p)
	} else {
		n, err = s.mem.Write(p)
	}
	s.n += int64(n)
	return n, err
}

// reader returns what was written, from its beginning.
func (s *spill) reader() (io.Reader, error) {
	if s.f == nil {
		return &s.mem, nil
	}
	_, err := s.f.Seek(0, io.SeekStart)
	return s.f, err
}

// Close frees the file.
func (s *spill) Close() error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}

var (
	_ jobs.Runner   = (*runner)(nil)
	_ jobs.Preparer = (*runner)(nil)
)
