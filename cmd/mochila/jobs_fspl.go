package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mochila/internal/control"
	"mochila/internal/durable"
	"mochila/internal/envelope"
	"mochila/transport/fspl"
)

// fsplSet is what Filespooler puts in front of the names of a job's variables.
const fsplSet = "FSPL_SET_"

func (a *app) jobsExportCmd() *cobra.Command {
	var seq string
	var env []string
	var kind struct{ nop, fail bool }
	c := &cobra.Command{
		Use:   "export QUEUE [flags] [-- ARGUMENT…]",
		Short: "append a job to a Filespooler queue",
		Long: `Writes standard input as a job into a queue of Filespooler, for fspl queue-process: what fspl prepare and fspl
queue-write do, in one step, so that input which breaks off takes no number and leaves no gap. Variables FSPL_SET_NAME go
along, as with fspl. No node is needed.

As the command of a handler it hands the jobs of a channel on to a Filespooler queue, in their order: a job that is
started again after a crash is written once, as long as no other was written after it.`,
		Example: `  tar -c /srv | mochila jobs export /srv/queue -- srv
  [[handler]] command = ["/usr/local/bin/mochila", "jobs", "export", "/srv/queue", "--"], args = true`,
		Args: takes("QUEUE", "[ARGUMENT…]"),
		RunE: func(c *cobra.Command, args []string) error {
			h := &fspl.Header{Time: a.now, Kind: fspl.Command, Params: args[1:]}
			switch {
			case kind.nop && kind.fail:
				return usageError("", "--nop and --fail contradict each other")
			case (kind.nop || kind.fail) && len(h.Params) > 0:
				return usageError("", "a job that runs nothing has no arguments")
			case kind.nop:
				h.Kind = fspl.NOP
			case kind.fail:
				h.Kind = fspl.Fail
			}
			if h.Kind == fspl.Command {
				for _, e := range append(os.Environ(), prefixed(fsplSet, env)...) {
					if name, value, ok := strings.Cut(e, "="); ok && strings.HasPrefix(name, fsplSet) {
						h.Env = append(h.Env, [2]string{strings.TrimPrefix(name, fsplSet), value})
					}
				}
			}
			return a.jobsExport(c.Context(), args[0], seq, h)
		},
	}
	c.Flags().StringVar(&seq, "seq", "", "the `file` with the next number, as of fspl prepare -s (default QUEUE/mochila.seq)")
	c.Flags().StringArrayVarP(&env, "env", "e", nil, "`NAME=VALUE`, which the job gets as FSPL_SET_NAME")
	c.Flags().BoolVar(&kind.nop, "nop", false, "a job that succeeds")
	c.Flags().BoolVar(&kind.fail, "fail", false, "a job that stops the queue until somebody takes it out")
	return c
}

func prefixed(prefix string, list []string) (out []string) {
	for _, s := range list {
		out = append(out, prefix+s)
	}
	return out
}

func (a *app) jobsExport(ctx context.Context, dir, seq string, h *fspl.Header) error {
	q, err := fspl.OpenQueue(dir)
	if err != nil {
		return &control.Error{Message: err.Error(), Hint: "fspl queue-init -q " + dir + " makes one", Exit: control.ExitNoInput}
	}
	if seq == "" {
		seq = filepath.Join(dir, "mochila.seq")
	}
	id := fspl.NewUUID()
	if s, ok := a.env.Getenv("MOCHILA_JOB_ID"); ok {
		job, err := envelope.ParseID(s)
		if err != nil {
			return usageError("", "MOCHILA_JOB_ID: %v", err)
		}
		id = fspl.UUID(job)
	}
	var in io.Reader = a.env.Stdin
	if _, person := isTerminal(a.env.Stdin); person || h.Kind != fspl.Command {
		in = strings.NewReader("")
	}
	if err := q.Write(seq, id, h, in); err != nil {
		return &control.Error{Message: err.Error(), Exit: control.ExitTemp}
	}
	return nil
}

// fsplImport is one run of mochila jobs import.
type fsplImport struct {
	channel      string
	again, skip  bool // what to do about a job of which nobody knows whether it was imported
	max          int
	queue        *fspl.Queue
	dir          string
	reader       *fspl.Reader
	request      control.RunRequest
	params       bool
	done, stale  int
	notePath     string
	gap, waiting uint64
}

func (a *app) jobsImportCmd() *cobra.Command {
	var f fsplImport
	c := &cobra.Command{
		Use:   "import QUEUE NODE [flags] -- HANDLER [ARGUMENT…]",
		Short: "make jobs of what lies in a Filespooler queue",
		Long: `Takes the jobs out of a queue of Filespooler in their order, in place of fspl queue-process, and makes each a job for
another node's handler: payload, parameters (with --params, behind the arguments given here) and variables (where the handler allows
them; with fspl_env it gets them as FSPL_SET_NAME, too) go along; a NOP stays one, and a Fail becomes a barrier.
A job leaves the queue when it is durable here.

A copy of a job that was taken already is removed. Two different jobs with one number stop the queue (65), as does a number
that is missing (75), which is said; files that are no jobs stop nothing. A crash between the two queues leaves a job of
which nobody knows whether it was taken: the next run says so (75), and --again or --skip decides.

Filespooler knows neither who wrote a job nor whether its payload is whole: import only what you would run yourself.`,
		Example: "  mochila jobs import /srv/queue hub --channel backup -- restore",
		Args:    takes("QUEUE", "NODE", "HANDLER", "[ARGUMENT…]"),
		RunE: func(c *cobra.Command, args []string) error {
			if f.again && f.skip {
				return usageError("", "--again and --skip contradict each other")
			}
			f.request = control.RunRequest{Nodes: []string{args[1]}, Channel: f.channel, Handler: args[2], Args: args[3:]}
			return a.jobsImport(c.Context(), args[0], &f)
		},
	}
	c.Flags().StringVar(&f.channel, "channel", "", "`name` of the channel (default \"default\")")
	c.Flags().BoolVar(&f.again, "again", false, "import the job again of which nobody knows whether it was")
	c.Flags().BoolVar(&f.skip, "skip", false, "take that job for imported")
	c.Flags().BoolVar(&f.params, "params", false, "append the jobs' own parameters to the arguments")
	c.Flags().IntVar(&f.max, "max", 0, "at most this many jobs")
	return c
}

func (a *app) jobsImport(ctx context.Context, dir string, f *fsplImport) (err error) {
	f.dir, f.notePath = dir, filepath.Join(dir, "mochila.import")
	if f.queue, err = fspl.OpenQueue(dir); err != nil {
		return &control.Error{Message: err.Error(), Hint: "fspl queue-init -q " + dir + " makes one", Exit: control.ExitNoInput}
	}
	if f.reader, err = f.queue.Reader(); err != nil {
		return &control.Error{Message: err.Error(), Exit: control.ExitTemp}
	}
	defer f.reader.Close()
	if err := f.unknown(); err != nil {
		return err
	}
	err = a.jobNode(ctx, func(n *control.Client) error { return a.importAll(ctx, n, f) })
	a.printf("%s imported%s\n", count(f.done, "job"), when(f.stale > 0, fmt.Sprintf(", %d that were taken before removed", f.stale)))
	if err == nil && f.gap > 0 {
		return &control.Error{Message: fmt.Sprintf("job %d is missing; job %d and later ones wait for it", f.gap, f.waiting),
			Hint: "its writer has it, or fspl queue-set-next -q " + dir + " passes over it", Exit: control.ExitTemp}
	}
	return err
}

// unknown deals with what a crash left.
func (f *fsplImport) unknown() error {
	b, err := os.ReadFile(f.notePath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	next, err2 := f.reader.Next()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	number := strings.TrimSpace(string(b))
	if number == fmt.Sprint(next) {
		switch {
		case f.skip:
			if err := f.reader.Done(next); err != nil {
				return err
			}
		case !f.again:
			return &control.Error{Message: "nobody knows whether job " + number + " was imported: the last run was cut off",
				Hint: "mochila jobs list shows; then --again, or --skip", Exit: control.ExitTemp}
		}
	}
	return f.unnote()
}

func (f *fsplImport) note(n uint64) error {
	return durable.WriteFile(durable.OS{}, f.notePath, 0o644, func(w io.Writer) error { _, err := fmt.Fprintln(w, n); return err })
}

func (f *fsplImport) unnote() error {
	if err := os.Remove(f.notePath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.OS{}.SyncDir(f.dir)
}

func (a *app) importAll(ctx context.Context, n *control.Client, f *fsplImport) error {
	jobs, bad, err := f.queue.List(ctx)
	if err != nil {
		return &control.Error{Message: err.Error(), Exit: control.ExitIO}
	}
	for _, b := range bad {
		a.note("mochila: passed over: %s", indent(b.Error()))
	}
	next, err := f.reader.Next()
	if err != nil {
		return &control.Error{Message: err.Error(), Exit: control.ExitIO}
	}
	for i, j := range jobs {
		switch {
		case f.max > 0 && f.done >= f.max:
			return nil
		case j.Seq < next:
			f.stale++
			if err := j.Remove(); err != nil {
				return err
			}
			continue
		case j.Seq > next:
			f.gap, f.waiting = next, j.Seq
			return nil
		}
		for _, k := range jobs[i+1:] {
			if k.Seq != j.Seq {
				break
			}
			if same, err := sameFile(j.Path, k.Path); err != nil || !same {
				return &control.Error{Message: fmt.Sprintf("two different jobs have number %d: %s and %s", j.Seq, filepath.Base(j.Path), filepath.Base(k.Path)),
					Hint: "take the wrong one out of the queue", Exit: control.ExitData}
			}
		}
		if err := a.importOne(ctx, n, f, j); err != nil {
			return err
		}
		f.done++
		next++
	}
	return nil
}

// importOne makes one job, and takes it out of the queue.
func (a *app) importOne(ctx context.Context, n *control.Client, f *fsplImport, j *fspl.Job) error {
	q, err := f.jobRequest(j)
	if err != nil {
		return err
	}
	head, err := json.Marshal(q)
	if err != nil {
		return err
	}
	r, err := j.Open()
	if err != nil {
		return &control.Error{Message: err.Error(), Exit: control.ExitIO}
	}
	defer r.Close()
	if err := f.note(j.Seq); err != nil {
		return err
	}
	var reply control.RunReply
	if err := n.Upload(ctx, "/v1/run", io.MultiReader(bytes.NewReader(append(head, '\n')), r), &reply); err != nil {
		var e *control.Error
		if errors.As(err, &e) && ctx.Err() == nil && e.Exit != control.ExitUnavailable {
			err = errors.Join(err, f.unnote()) // it said no
		}
		return err
	}
	if err := f.reader.Done(j.Seq); err != nil {
		return err
	}
	if err := f.unnote(); err != nil {
		return err
	}
	return j.Remove()
}

// jobRequest is a job of Filespooler in the terms of this program.
func (f *fsplImport) jobRequest(j *fspl.Job) (control.RunRequest, error) {
	q := f.request
	switch j.Kind {
	case fspl.NOP:
		q.Kind, q.Handler, q.Args = "nop", "", nil
		return q, nil
	case fspl.Fail:
		q.Kind, q.Handler, q.Args = "barrier", "", nil
		return q, nil
	}
	size := j.Payload()
	q.Size = &size
	if f.params {
		raw := false
		all := append(append([]string{}, q.Args...), j.Params...)
		for _, s := range all {
			raw = raw || !utf8.ValidString(s)
		}
		if q.Args = all; raw {
			q.Args = nil
			for _, s := range all {
				q.RawArgs = append(q.RawArgs, []byte(s))
			}
		}
	}
	for _, e := range j.Env {
		if !utf8.ValidString(e[0]) || !utf8.ValidString(e[1]) {
			return q, &control.Error{Message: fmt.Sprintf("job %d: variable %q is not UTF-8", j.Seq, e[0]), Exit: control.ExitData}
		}
		q.Env = append(q.Env, [2]string{e[0], e[1]})
	}
	return q, nil
}

// sameFile compares the bytes of two files.
func sameFile(a, b string) (bool, error) {
	var sums [2][]byte
	for i, path := range []string{a, b} {
		f, err := durable.OS{}.Open(path)
		if err != nil {
			return false, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return false, err
		}
		sums[i] = h.Sum(nil)
	}
	return bytes.Equal(sums[0], sums[1]), nil
}
