package main

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mochila/internal/control"
)

func (a *app) jobsCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "jobs",
		Short: "look at remote jobs, and decide about them",
		Long: `Jobs that were made here are kept until their result; jobs of other nodes wait here for their turn. A channel stops at a
number that is missing, at a barrier, and at a job that failed (unless its handler says otherwise): then somebody decides,
at the node where the jobs run. Ids may be cut to a unique beginning.`,
	})
	c.AddCommand(a.jobsListCmd(), a.jobsShowCmd(), a.jobsLogCmd(), a.jobsMailCmd())
	c.AddCommand(a.jobsImportCmd(), a.jobsExportCmd())
	for _, v := range []struct{ verb, use, short, long, done string }{
		{"retry", "ID…", "start jobs again that failed", "At the node where they run.\nThe channel stands at such a job; dead letters and jobs that wait for their next try go at once.", "to be tried again"},
		{"skip", "ID…|NODE:CHANNEL", "pass over the job that a channel stands at, or over missing numbers", "At the node where they run.\nWhat is known of the job becomes its outcome. With NODE:CHANNEL the missing numbers in front of the first job that is\nhere are passed over; what comes later for them is not started.", "passed over"},
		{"drop", "ID…", "take waiting jobs out", "At the node where they run: in their turn they are passed over.", "dropped"},
		{"cancel", "ID…", "take back jobs of this node", "What has left already is followed by a notice; a job that was started before it comes runs to its end.", "cancelled"},
	} {
		c.AddCommand(a.jobsActCmd(v.verb, v.use, v.short, v.long, v.done))
	}
	c.AddCommand(
		a.jobsActCmd("pause", "NODE:CHANNEL", "start nothing more on a channel", "What runs goes on to its end.", "paused"),
		a.jobsActCmd("resume", "NODE:CHANNEL", "let a channel go on", "One that was paused, that stands at a barrier, or that waits because a node\nlost its memory. A channel that stands at a job that failed needs retry or skip.", "resumed"))
	return c
}

func (a *app) jobsListCmd() *cobra.Command {
	var node, channel string
	var own, peers, ended, channels bool
	var limit int
	c := &cobra.Command{
		Use:   "list",
		Short: "list jobs without outcome, and channels",
		Long: `Lists every channel with what it waits for, then the jobs without outcome, in the order of their numbers: those made
here, and those of other nodes. --ended lists jobs of this node that have ended, the oldest first.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			v := url.Values{"limit": {"500"}}
			set := func(key, value string) {
				if value != "" {
					v.Set(key, value)
				}
			}
			set("node", node)
			set("channel", channel)
			switch {
			case ended:
				v.Set("side", "ended")
			case own && !peers:
				v.Set("side", "own")
			case peers && !own:
				v.Set("side", "peers")
			}
			return a.jobNode(c.Context(), func(n *control.Client) error { return a.listJobs(c.Context(), n, v, limit, channels) })
		},
	}
	l := c.Flags()
	l.StringVar(&node, "node", "", "only with this `node`")
	l.StringVar(&channel, "channel", "", "only of this `channel`")
	l.BoolVar(&own, "own", false, "only jobs made here")
	l.BoolVar(&peers, "peers", false, "only jobs of other nodes")
	l.BoolVar(&ended, "ended", false, "jobs of this node that have ended")
	l.BoolVar(&channels, "channels", false, "only the channels")
	l.IntVar(&limit, "limit", 0, "at most this `number`")
	return c
}

func (a *app) listJobs(ctx context.Context, n *control.Client, v url.Values, limit int, channelsOnly bool) error {
	rows := [][]string{{"ID", "NODE:CHANNEL", ">#", "WHAT", ">AGE", "STATE"}}
	total := 0
	for first := true; ; first = false {
		if limit > 0 {
			v.Set("limit", strconv.Itoa(min(500, limit-total)))
		}
		var page control.JobList
		if err := n.Get(ctx, "/v1/jobs?"+v.Encode(), &page); err != nil {
			return err
		}
		if first {
			if err := a.showChannels(page.Channels); err != nil || channelsOnly {
				return err
			}
		}
		for _, it := range page.Jobs {
			total++
			if a.json {
				if err := a.asJSON(it, true); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, a.jobRow(it))
		}
		if page.Next == "" || limit > 0 && total >= limit {
			break
		}
		v.Set("after", page.Next)
	}
	if a.json {
		return nil
	}
	if total == 0 {
		a.printf("No jobs.\n")
		return nil
	}
	a.table(rows)
	a.printf("%s\n", count(total, "job"))
	return nil
}

func (a *app) showChannels(list []control.JobChannel) error {
	if a.json {
		for _, c := range list {
			if err := a.asJSON(map[string]any{"channel": c}, true); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) > 0 {
		a.channelTable(list)
		a.printf("\n")
	}
	return nil
}

func (a *app) channelTable(list []control.JobChannel) {
	rows := [][]string{{"CHANNEL", ">NEXT", ">WAITING", "STATE"}}
	for _, c := range list {
		name := safe(c.Node + ":" + c.Channel)
		if c.Own {
			name = "to " + name
		} else {
			name = "from " + name
		}
		s := c.State
		if s == "" {
			s = "open"
		}
		if c.Why != "" {
			s += ": " + safe(c.Why)
		}
		if !c.Since.IsZero() {
			s += ", since " + a.age(c.Since)
		}
		if !c.Own && c.State != "" && c.State != "paused" {
			s += a.asked(c)
		}
		rows = append(rows, []string{name, strconv.FormatUint(c.Next, 10), strconv.FormatUint(c.Waiting, 10), s})
	}
	a.table(rows)
}

// asked says whether the origin of a channel that does not go on was told so.
func (a *app) asked(c control.JobChannel) string {
	if c.Reported.IsZero() {
		return "; " + safe(c.Node) + " was not told yet"
	}
	return fmt.Sprintf("; %s was told %s (report %d)", safe(c.Node), a.ago(c.Reported), c.Reports)
}

func (a *app) jobRow(it control.JobItem) []string {
	name := "from "
	if it.Own {
		name = "to "
	}
	what := it.Kind
	if it.Handler != "" {
		what = safe(strings.Join(append([]string{it.Handler}, it.Args...), " "))
	}
	if len(what) > 40 {
		what = what[:37] + "..."
	}
	seq := "-"
	if it.Seq > 0 {
		seq = strconv.FormatUint(it.Seq, 10)
	}
	s := it.State
	if !it.Next.IsZero() {
		s += " until " + a.ago(it.Next)
	}
	if it.Why != "" {
		s += ": " + safe(it.Why)
	}
	return []string{it.ID, name + safe(it.Node+":"+it.Channel), seq, what, a.age(it.Created), s}
}

func (a *app) jobsShowCmd() *cobra.Command {
	var stdin, stdout, stderr bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "show one job, its input, or what its program wrote",
		Long: `Shows one job. --stdin prints its input without running anything; --stdout and --stderr print what its program wrote, at
the node where it was made.`,
		Args: takes("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			path := "/v1/jobs/" + url.PathEscape(args[0])
			return a.jobNode(c.Context(), func(n *control.Client) error {
				for _, s := range []struct {
					on   bool
					name string
				}{{stdin, "stdin"}, {stdout, "stdout"}, {stderr, "stderr"}} {
					if s.on {
						return n.Raw(c.Context(), path+"/"+s.name, a.out)
					}
				}
				var it control.JobItem
				if err := n.Get(c.Context(), path, &it); err != nil {
					return err
				}
				if a.json {
					return a.asJSON(it, false)
				}
				a.showJob(it)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&stdin, "stdin", false, "print its input")
	c.Flags().BoolVar(&stdout, "stdout", false, "print what its program wrote to standard output")
	c.Flags().BoolVar(&stderr, "stderr", false, "print what its program wrote to standard error")
	return c
}

func (a *app) showJob(it control.JobItem) {
	a.printf("%s  %s\n", it.ID, it.State)
	row := func(key, format string, args ...any) { a.printf("  %-10s %s\n", key, fmt.Sprintf(format, args...)) }
	dir := "from"
	if it.Own {
		dir = "to"
	}
	row(dir, "%s, channel %s%s", safe(it.Node), safe(it.Channel), when(it.Seq > 0, fmt.Sprintf(", number %d", it.Seq)))
	if it.Handler != "" {
		row("handler", "%s", safe(it.Handler))
	} else {
		row("kind", "%s", it.Kind)
	}
	for _, x := range it.Args {
		row("argument", "%s", safe(x))
	}
	for _, e := range it.Env {
		row("variable", "%s=%s", safe(e[0]), safe(e[1]))
	}
	row("input", "%s", bytesText(it.Size))
	row("created", "%s (%s)", clock(it.Created), a.ago(it.Created))
	if !it.Expires.IsZero() {
		row("expires", "%s (%s)", clock(it.Expires), a.ago(it.Expires))
	}
	if it.After != "" {
		row("after", "%s", it.After)
	}
	if it.Supersede != "" {
		row("key", "%s", safe(it.Supersede))
	}
	if !it.Next.IsZero() {
		row("not before", "%s (%s)", clock(it.Next), a.ago(it.Next))
	}
	if it.Tries > 0 {
		row("tries", "%d", it.Tries)
	}
	if it.Why != "" {
		row("why", "%s", safe(it.Why))
	}
	r := it.Result
	if r == nil {
		return
	}
	s := r.State
	switch {
	case r.Signal > 0:
		s += fmt.Sprintf(", signal %d", r.Signal)
	case r.State == "failed" || r.State == "done":
		s += fmt.Sprintf(", exit status %d", r.Exit)
	}
	if r.Held {
		s += "; the channel waits for somebody"
	}
	row("result", "%s", s)
	if !r.Started.IsZero() {
		row("ran", "%s, for %s", clock(r.Started), r.Ended.Sub(r.Started).Round(time.Millisecond))
	}
	row("output", "%s, %s of errors%s", bytesText(r.Stdout), bytesText(r.Stderr), when(r.DroppedStdout+r.DroppedStderr > 0, fmt.Sprintf("; %s not kept", bytesText(r.DroppedStdout+r.DroppedStderr))))
}

func (a *app) jobsLogCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "log ID",
		Short: "tell the life of one job",
		Args:  takes("ID"),
		Long:  "Shows every event of one job that this node knows of, and how it stands.",
		RunE: func(c *cobra.Command, args []string) error {
			it := new(control.JobItem)
			err := a.jobNode(c.Context(), func(n *control.Client) error { return n.Get(c.Context(), "/v1/jobs/"+url.PathEscape(args[0]), it) })
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(it.Events, false)
			}
			a.printf("%s  %-10s\n", it.Created.Local().Format("2006-01-02 15:04:05"), "created")
			for _, e := range it.Events {
				a.printf("%s  %-10s %s\n", e.At.Local().Format("2006-01-02 15:04:05"), safe(e.What), safe(e.Detail))
			}
			a.printf("now: %s%s\n", it.State, when(it.Why != "", ": "+safe(it.Why)))
			return nil
		},
	}
}

func (a *app) jobsMailCmd() *cobra.Command {
	var from string
	c := &cobra.Command{
		Use:   "mail ID",
		Short: "write a job of this node as a mail",
		Long: `Writes one job that has not left yet, sealed for its node, as a mail to standard output, as mochila run --as-mail does.
No contact takes it any more, until it is overdue.`,
		Args: takes("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(c.Context(), func(n *control.Client) error {
				return n.Raw(c.Context(), "/v1/jobs/"+url.PathEscape(args[0])+"/mail?from="+url.QueryEscape(from), a.out)
			})
		},
	}
	c.Flags().StringVar(&from, "mail-from", "", "`address` that the mail comes from (default postmaster's)")
	return c
}

func (a *app) jobsActCmd(verb, use, short, long, done string) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " " + use,
		Short: short,
		Long:  strings.TrimSpace(strings.ToUpper(short[:1]) + short[1:] + ". " + long),
		Args:  takes(strings.SplitN(use, "|", 2)[0]),
		RunE: func(c *cobra.Command, args []string) error {
			q := control.JobAction{Verb: verb}
			if node, channel, ok := strings.Cut(args[0], ":"); ok {
				if len(args) > 1 {
					return usageError("", "one channel at a time")
				}
				q.Node, q.Channel = node, channel
			} else {
				q.IDs = args
			}
			r := new(control.JobActed)
			err := a.jobNode(c.Context(), func(n *control.Client) error { return n.Post(c.Context(), "/v1/jobs", q, r) })
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(r, false)
			}
			for _, x := range r.Done {
				a.printf("%s: %s\n", safe(x), done)
			}
			return nil
		},
	}
}
