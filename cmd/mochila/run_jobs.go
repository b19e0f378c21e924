package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mochila/internal/config"
	"mochila/internal/control"
)

// exitRun is the exit status of `mochila run --wait` for whatever is not the handler's own.
const exitRun = 255

// runFlags are the flags of mochila run.
type runFlags struct {
	channel, expires, notBefore, after, supersede, mailResult string
	env                                                       []string
	wait, batch, unordered, nop, barrier, asMail              bool
	mailFrom                                                  string
	size                                                      int64
	priority                                                  int
}

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run NODE[,NODE…] [flags] -- HANDLER ARGUMENT…",
		Short: "run a handler of another node, in the order of its channel",
		Long: `Stores a job for another node: the name of a handler there, its arguments, and standard input as its input. When the
command returns, the job is on this node's disk and has its number; it travels like mail, and the other node starts the
jobs of a channel in the order of their numbers, each at most once. What the program wrote comes back:
mochila jobs show ID.

Nothing is stored when the input breaks off, or has another length than --size says. A terminal is no input.

With --batch each line of standard input is one job, in JSON, with the keys of the API (docs/control.md): what the
command line says holds for lines that do not say otherwise.

With --as-mail the job is sealed for the other node as always, and written to standard output as a mail with one
attachment, which any mail system may carry: pipe it to sendmail, or give it to a mail program. At the other node
mochila receive --mail takes it. It cannot be combined with --wait, --batch, and several nodes.

With --wait the command waits for the result, passes on what the program wrote, and exits with its status: 128 and the
signal's number if a signal ended it, 255 for everything that is not the program's. An interrupt leaves the job alone.`,
		Example: `  dar -c - -R /srv | mochila run hub --channel backup -- store srv
  mochila run hub --wait -- uptime
  mochila run hub,shore --expires 2d -- reload < new.conf
  mochila run hub --as-mail -- uptime < /dev/null | sendmail mochila@hub.example`,
		Args: takes("NODE", "[ARGUMENT…]"),
		RunE: func(c *cobra.Command, args []string) error {
			err := a.run(c, f, args)
			var status exit
			var e *control.Error
			switch {
			case err == nil || !f.wait || errors.As(err, &status):
				return err
			case errors.As(err, &e):
				return &control.Error{Message: e.Message, Hint: e.Hint, Exit: exitRun}
			}
			return &control.Error{Message: err.Error(), Exit: exitRun}
		},
		ValidArgsFunction: a.names,
	}
	l := c.Flags()
	l.StringVar(&f.channel, "channel", "", "`name` of the channel (default \"default\")")
	l.StringArrayVarP(&f.env, "env", "e", nil, "set a variable for the program: `NAME=VALUE`, as often as needed")
	l.StringVar(&f.expires, "expires", "", "not started after this `time`: 2d, or 2026-12-24T18:00:00Z")
	l.StringVar(&f.notBefore, "not-before", "", "not started before this `time`")
	l.StringVar(&f.after, "after", "", "started only when the job with this `id` has succeeded there")
	l.StringVar(&f.supersede, "supersede", "", "takes the place of jobs of the channel with the same `key` that still wait")
	l.StringVar(&f.mailResult, "mail-result", "", "mail the outcome, with what the program wrote, to this `address`")
	l.BoolVar(&f.asMail, "as-mail", false, "no contact takes the job: write it, sealed, as a mail to standard output")
	l.StringVar(&f.mailFrom, "mail-from", "", "`address` that the mail comes from (default postmaster's)")
	l.BoolVar(&f.wait, "wait", false, "wait for the result, and exit with the program's status")
	l.BoolVar(&f.batch, "batch", false, "read jobs from standard input, one JSON object a line")
	l.BoolVar(&f.unordered, "no-order", false, "give it no number: it waits for none, and none waits for it")
	l.BoolVar(&f.nop, "nop", false, "a job that does nothing")
	l.BoolVar(&f.barrier, "barrier", false, "a job that stops the channel until somebody there resumes it")
	l.Int64Var(&f.size, "size", -1, "refuse any other length of the input than this many `bytes`")
	l.IntVar(&f.priority, "priority", 0, "-9 to 9: which bundles leave first; the order of a channel stays")
	return c
}

// request is what the command line says.
func (a *app) runRequest(f runFlags, args []string) (q control.RunRequest, err error) {
	for _, n := range strings.Split(args[0], ",") {
		if n = strings.TrimSpace(n); n != "" {
			q.Nodes = append(q.Nodes, n)
		}
	}
	q.Channel, q.After, q.Supersede, q.Unordered, q.Priority = f.channel, f.after, f.supersede, f.unordered, f.priority
	q.MailResult = f.mailResult
	switch {
	case f.nop:
		q.Kind = "nop"
	case f.barrier:
		q.Kind = "barrier"
	}
	if rest := args[1:]; len(rest) > 0 {
		q.Handler, q.Args = rest[0], rest[1:]
	}
	for _, s := range q.Args {
		if !utf8.ValidString(s) {
			for _, s := range q.Args {
				q.RawArgs = append(q.RawArgs, []byte(s))
			}
			q.Args = nil
			break
		}
	}
	for _, e := range f.env {
		k, v, ok := strings.Cut(e, "=")
		if !ok || !utf8.ValidString(e) {
			return q, usageError("", "--env %q is not NAME=VALUE", e)
		}
		q.Env = append(q.Env, [2]string{k, v})
	}
	if q.Expires, err = a.when("--expires", f.expires); err != nil {
		return q, err
	}
	if q.NotBefore, err = a.when("--not-before", f.notBefore); err != nil {
		return q, err
	}
	if f.size >= 0 {
		q.Size = &f.size
	}
	if !f.batch && q.Handler == "" && q.Kind == "" {
		return q, usageError("mochila run NODE -- HANDLER", "no handler is named")
	}
	if q.Kind != "" && q.Handler != "" {
		return q, usageError("", "a %s runs no handler", q.Kind)
	}
	return q, nil
}

// when reads a duration from now, or a time.
func (a *app) when(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := config.ParseDuration(s)
	if err != nil {
		return time.Time{}, usageError("such as 12h, 2d, or 2026-12-24T18:00:00Z", "%s: %q is neither a duration nor a time", flag, s)
	}
	return a.now.Add(time.Duration(d)), nil
}

func (a *app) run(c *cobra.Command, f runFlags, args []string) error {
	if f.batch && f.wait {
		return usageError("", "--batch does not wait: mochila jobs list --ended shows the results")
	}
	q, err := a.runRequest(f, args)
	if err != nil {
		return err
	}
	if f.asMail {
		if f.batch || f.wait || len(q.Nodes) != 1 {
			return usageError("", "--as-mail makes one mail of one job: neither --batch nor --wait, nor several nodes")
		}
		q.Hold = true
	}
	return a.jobNode(c.Context(), func(n *control.Client) error {
		if f.wait && !n.Daemon() {
			return &control.Error{Message: "no daemon runs: nobody would carry the job while this waits", Hint: "mochila serve; or without --wait, and mochila sync", Exit: exitRun}
		}
		if f.batch {
			return a.runBatch(c.Context(), n, q)
		}
		head, err := json.Marshal(q)
		if err != nil {
			return err
		}
		var in io.Reader = a.env.Stdin
		if _, person := isTerminal(a.env.Stdin); person || q.Kind != "" {
			in = strings.NewReader("")
		}
		body, err := following(append(head, '\n'), in)
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		var r control.RunReply
		if err := n.Upload(c.Context(), "/v1/run", body, &r); err != nil {
			return err
		}
		if f.asMail {
			return a.jobMail(c.Context(), n, r.Jobs[0], f.mailFrom)
		}
		if f.wait {
			return a.await(c.Context(), n, r.Jobs)
		}
		return a.showTickets(r.Jobs)
	})
}

// following is head and then r. When r is short, its end is known at once: the request is one piece, with its length.
func following(head []byte, r io.Reader) (io.Reader, error) {
	b := make([]byte, len(head)+4<<10)
	n, err := io.ReadFull(r, b[copy(b, head):])
	switch err {
	case nil:
		return io.MultiReader(bytes.NewReader(b), r), nil
	case io.EOF, io.ErrUnexpectedEOF:
		return bytes.NewReader(b[:len(head)+n]), nil
	}
	return nil, err
}

// jobMail writes a job that waits for it as a mail.
func (a *app) jobMail(ctx context.Context, n *control.Client, t control.RunTicket, from string) error {
	err := n.Raw(ctx, "/v1/jobs/"+url.PathEscape(t.ID)+"/mail?from="+url.QueryEscape(from), a.out)
	if err == nil {
		err = a.out.flush()
	}
	if err != nil {
		a.note("mochila: job %s was stored, and no mail was made of it; mochila jobs mail %[1]s tries again, mochila jobs cancel %[1]s takes it back", t.ID)
		return err
	}
	a.note("mochila: job %s  %s:%s%s", t.ID, safe(t.Node), safe(t.Channel), when(t.Seq > 0, fmt.Sprintf(" #%d", t.Seq)))
	return nil
}

func (a *app) showTickets(list []control.RunTicket) error {
	for _, t := range list {
		if a.json {
			if err := a.asJSON(t, true); err != nil {
				return err
			}
			continue
		}
		a.printf("%s  %s:%s%s\n", t.ID, safe(t.Node), safe(t.Channel), when(t.Seq > 0, fmt.Sprintf(" #%d", t.Seq)))
	}
	return nil
}

// runBatch sends lines of jobs, completed by what the command line says.
func (a *app) runBatch(ctx context.Context, n *control.Client, q control.RunRequest) error {
	r, w := io.Pipe()
	go func() {
		d := json.NewDecoder(a.env.Stdin)
		d.DisallowUnknownFields()
		e := json.NewEncoder(w)
		for i := 1; ; i++ {
			line := q
			err := d.Decode(&line)
			if err == io.EOF {
				w.Close()
				return
			}
			if err == nil {
				err = e.Encode(line)
			}
			if err != nil {
				w.CloseWithError(fmt.Errorf("job %d: %w", i, err))
				return
			}
		}
	}()
	var reply control.RunReply
	err := n.Upload(ctx, "/v1/run/batch", r, &reply)
	r.Close()
	if err != nil {
		return err
	}
	if err := a.showTickets(reply.Jobs); err != nil {
		return err
	}
	if reply.Error != nil {
		return reply.Error
	}
	return nil
}

// await waits for results, and passes them on.
func (a *app) await(ctx context.Context, n *control.Client, list []control.RunTicket) error {
	code := 0
	for _, t := range list {
		it, err := awaitOne(ctx, n, t.ID)
		if ctx.Err() != nil {
			a.note("mochila: the job goes on; mochila jobs show %s tells how", t.ID)
			return exit(exitRun)
		}
		if err != nil {
			return err
		}
		if a.json {
			if err := a.asJSON(it, true); err != nil {
				return err
			}
		} else if err := a.passOn(ctx, n, it, len(list) > 1); err != nil {
			return err
		}
		if code == 0 {
			code = statusOf(it)
		}
	}
	if code != 0 {
		return exit(code)
	}
	return nil
}

func awaitOne(ctx context.Context, n *control.Client, id string) (it control.JobItem, err error) {
	for ctx.Err() == nil {
		it = control.JobItem{}
		if err = n.Get(ctx, "/v1/jobs/"+url.PathEscape(id)+"?wait=5m", &it); err != nil || it.Result != nil || it.Ended {
			break
		}
	}
	return it, err
}

// passOn copies what a program wrote to where this program writes.
func (a *app) passOn(ctx context.Context, n *control.Client, it control.JobItem, name bool) error {
	r := it.Result
	if r == nil {
		a.note("mochila: job %s is %s", it.ID, safe(it.State))
		return nil
	}
	path := "/v1/jobs/" + url.PathEscape(it.ID)
	if r.Stdout > 0 {
		if err := n.Raw(ctx, path+"/stdout", a.out); err != nil {
			return err
		}
	}
	if err := a.out.flush(); err != nil && !errors.Is(err, errPipe) {
		return err
	}
	if r.Stderr > 0 {
		if err := n.Raw(ctx, path+"/stderr", a.env.Stderr); err != nil {
			return err
		}
	}
	where := when(name, " at "+safe(it.Node))
	if r.State != "done" && r.State != "failed" || r.Held || r.Reason != "" {
		a.note("mochila: job %s%s is %s%s%s", it.ID, where, r.State, when(r.Reason != "", ": "+safe(r.Reason)), when(r.Held, "; the channel waits for somebody there"))
	}
	if r.DroppedStdout+r.DroppedStderr > 0 {
		a.note("mochila: %s of its output were not kept", bytesText(r.DroppedStdout+r.DroppedStderr))
	}
	return nil
}

// statusOf is the exit status that a job passes on.
func statusOf(it control.JobItem) int {
	r := it.Result
	switch {
	case r == nil:
		return exitRun
	case r.State == "done":
		return 0
	case r.State == "failed" && r.Signal > 0:
		return 128 + r.Signal
	case r.State == "failed" && !r.Started.IsZero():
		return r.Exit
	}
	return exitRun
}
