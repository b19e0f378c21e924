package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mochila/internal/control"
)

// pageSize is how many envelopes are asked for at once.
const pageSize = 500

func (a *app) queueCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "queue",
		Short: "look at the queue, and change it",
		Long: `The queue holds every envelope that has not ended: mail, reports, and sealed bundles in transit. Ids may be cut to a
unique beginning; ALL means every envelope, and - reads ids from standard input. Options choose by sender, recipient,
place, state, age and size.`,
	})
	c.AddCommand(a.queueListCmd(), a.queueShowCmd(), a.queueFlushCmd(), a.queueBounceCmd(), a.queueRerouteCmd(), a.queuePriorityCmd())
	for _, v := range []struct{ verb, short, long, done string }{
		{"hold", "keep envelopes from going on", "Held envelopes stay until mochila queue release; they still expire.", "held"},
		{"release", "let held envelopes go on", "That is also the answer to a mail whose reader cannot ask for it himself, after its summary went ahead.", "released"},
		{"retry", "try envelopes again now", "What waits for its next try is due at once; what was sent without a receipt is sent again.", "to be tried now"},
		{"expire", "end envelopes with a notice to the sender", "", "expired"},
		{"remove", "delete envelopes without a notice to anybody", "Nobody is told: mochila queue expire ends them with a notice.", "removed"},
	} {
		c.AddCommand(a.queueActCmd(&control.QueueAction{Verb: v.verb}, v.short, v.long, v.done))
	}
	return c
}

// filter is which envelopes are meant.
type filter struct {
	state, dest, match, from, to, older, newer, larger, smaller string
	limit                                                       int
}

// flags adds what chooses envelopes.
func (f *filter) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.state, "state", "", "only in this `state`: due, deferred, held, sealed, travelling, arrived")
	c.Flags().StringVar(&f.dest, "dest", "", "only to this `node`, or delivery URL; dead for dead letters")
	c.Flags().StringVar(&f.match, "match", "", "only with this `text` in a sender or recipient")
	c.Flags().StringVar(&f.from, "from", "", "only from this `sender`; * stands for any text, <> for the null sender")
	c.Flags().StringVar(&f.to, "to", "", "only to this `recipient`; * stands for any text")
	c.Flags().StringVar(&f.older, "older", "", "only what entered longer ago than this `time`, such as 4h or 3d")
	c.Flags().StringVar(&f.newer, "newer", "", "only what entered within this `time`")
	c.Flags().StringVar(&f.larger, "larger", "", "only above this `size`, such as 20k or 10MiB")
	c.Flags().StringVar(&f.smaller, "smaller", "", "only below this `size`")
}

// limited adds --limit.
func (f *filter) limited(c *cobra.Command) {
	f.flags(c)
	c.Flags().IntVar(&f.limit, "limit", 0, "at most this `number`")
}

// where is the filter as an action has it; nil when it leaves nothing out.
func (f *filter) where() map[string]string {
	var m map[string]string
	for key, value := range map[string]string{"state": f.state, "dest": f.dest, "match": f.match, "from": f.from, "to": f.to,
		"older": f.older, "newer": f.newer, "larger": f.larger, "smaller": f.smaller} {
		if value != "" {
			if m == nil {
				m = map[string]string{}
			}
			m[key] = value
		}
	}
	return m
}

// values are the filter as a request has it, without its limit.
func (f *filter) values() url.Values {
	v := url.Values{}
	for key, value := range f.where() {
		v.Set(key, value)
	}
	return v
}

// each walks the queue page by page.
func (f filter) each(ctx context.Context, c *control.Client, fn func(control.QueueItem) error) error {
	after, seen := "", 0
	for {
		v := f.values()
		limit := pageSize
		if f.limit > 0 {
			limit = min(limit, f.limit-seen)
		}
		v.Set("limit", strconv.Itoa(limit))
		if after != "" {
			v.Set("after", after)
		}
		var page control.QueueList
		if err := c.Get(ctx, "/v1/queue?"+v.Encode(), &page); err != nil {
			return err
		}
		for _, it := range page.Items {
			if err := fn(it); err != nil {
				return err
			}
			after = it.QueueID
			seen++
		}
		if !page.More || len(page.Items) == 0 || f.limit > 0 && seen >= f.limit {
			return nil
		}
	}
}

func (a *app) queueListCmd() *cobra.Command {
	var f filter
	c := &cobra.Command{
		Use:   "list",
		Short: "list envelopes",
		Long:  "Lists envelopes, the oldest id first. With --json one line for each, with the keys of postqueue -j first.",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(c.Context(), func(n *control.Client) error {
				if a.json {
					return f.each(c.Context(), n, func(it control.QueueItem) error { return a.postqueueJSON(it) })
				}
				return a.queueTable(c.Context(), n, f)
			})
		},
	}
	f.limited(c)
	return c
}

// postqueueJSON prints an envelope as a line of postqueue -j, which has a word for the null sender.
func (a *app) postqueueJSON(it control.QueueItem) error {
	if it.Kind == "mail" && it.Sender == "" {
		it.Sender = "MAILER-DAEMON"
	}
	return a.asJSON(it, true)
}

// queueTable prints a table for each page: widths fit what is there, and a long queue is not held in memory.
func (a *app) queueTable(ctx context.Context, n *control.Client, f filter) error {
	heading := []string{"ID", ">AGE", ">SIZE", "FROM", "TO", "STATE"}
	rows := [][]string{slices.Clone(heading)}
	total := 0
	var bytes int64
	err := f.each(ctx, n, func(it control.QueueItem) error {
		rows = append(rows, a.queueRow(it))
		total, bytes = total+1, bytes+it.MessageSize
		if len(rows) > pageSize {
			a.table(rows)
			rows = [][]string{slices.Clone(heading)}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if total == 0 {
		a.printf("The queue is empty.\n")
		return nil
	}
	if len(rows) > 1 {
		a.table(rows)
	}
	a.printf("%s, %s\n", count(total, "envelope"), bytesText(bytes))
	return nil
}

func (a *app) queueRow(it control.QueueItem) []string {
	var to, states []string
	for _, r := range it.Recipients {
		to = append(to, safe(r.Address))
	}
	for _, l := range it.Legs {
		if l.State == "done" {
			continue
		}
		s := l.State
		switch l.State {
		case "deferred":
			s += " until " + a.ago(l.At) + " for " + safe(l.Dest)
		case "sealed", "travelling":
			s += " to " + safe(l.Dest)
		case "arrived":
			s += " at " + safe(l.Dest)
		default:
			if strings.HasPrefix(l.Reason, control.ForReader) {
				s = "held until a reader asks,"
			}
			s += " for " + safe(l.Dest)
		}
		if !slices.Contains(states, s) {
			states = append(states, s)
		}
		if len(it.Recipients) == 0 {
			to = append(to, safe(l.Dest))
		}
	}
	if len(to) > 2 {
		to = append(to[:2:2], fmt.Sprintf("+%d", len(to)-2))
	}
	return []string{it.QueueID, a.age(time.Unix(it.ArrivalTime, 0)), bytesText(it.MessageSize), sender(it), strings.Join(to, " "), strings.Join(states, "; ")}
}

// sender is who an envelope is from, in angle brackets when it is the null sender.
func sender(it control.QueueItem) string {
	switch {
	case it.Kind != "mail":
		return "(" + it.Kind + " of " + safe(it.Origin) + ")"
	case it.Sender == "":
		return "<>"
	}
	return safe(it.Sender)
}

func (a *app) queueShowCmd() *cobra.Command {
	var content bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "show one envelope",
		Long:  "Shows the facts of one envelope. With --content it prints the message itself, byte by byte unless that is on a terminal.",
		Args:  takes("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(c.Context(), func(n *control.Client) error {
				if content {
					return a.content(c.Context(), n, args[0])
				}
				var t control.Trace
				if err := n.Get(c.Context(), "/v1/trace/"+url.PathEscape(args[0]), &t); err != nil {
					return err
				}
				if a.json {
					return a.asJSON(t.Item, false)
				}
				a.showItem(t.Item)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&content, "content", false, "print the message")
	return c
}

// content copies a message to the output; on a terminal line by line, made safe.
func (a *app) content(ctx context.Context, n *control.Client, id string) error {
	path := "/v1/content/" + url.PathEscape(id)
	if _, person := isTerminal(a.env.Stdout); !person {
		return n.Raw(ctx, path, a.out)
	}
	w := &lineWriter{emit: func(line string) {
		line = strings.TrimRight(line, "\r\n")
		parts := strings.Split(line, "\t")
		for i := range parts {
			parts[i] = safe(parts[i])
		}
		a.printf("%s\n", strings.Join(parts, "\t"))
	}}
	err := n.Raw(ctx, path, w)
	w.end()
	return err
}

// lineWriter cuts what is written into lines of at most 64 KiB.
type lineWriter struct {
	buf  []byte
	emit func(string)
}

func (l *lineWriter) Write(p []byte) (int, error) {
	for _, c := range p {
		l.buf = append(l.buf, c)
		if c == '\n' || len(l.buf) == 64<<10 {
			l.emit(string(l.buf))
			l.buf = l.buf[:0]
		}
	}
	return len(p), nil
}

func (l *lineWriter) end() {
	if len(l.buf) > 0 {
		l.emit(string(l.buf))
		l.buf = nil
	}
}

func (a *app) showItem(it control.QueueItem) {
	a.printf("%s  %s, %s\n", it.QueueID, it.Kind, it.QueueName)
	row := func(key, format string, args ...any) { a.printf("  %-10s %s\n", key, fmt.Sprintf(format, args...)) }
	row("from", "%s", sender(it))
	row("origin", "%s", safe(it.Origin))
	row("entered", "%s (%s)", clock(time.Unix(it.ArrivalTime, 0)), a.ago(time.Unix(it.ArrivalTime, 0)))
	row("size", "%s", bytesText(it.MessageSize))
	if it.Priority != 0 {
		row("priority", "%d", it.Priority)
	}
	if it.UID > 0 {
		row("submitter", "uid %d", it.UID-1)
	}
	if !it.Expires.IsZero() {
		row("expires", "%s (%s)", clock(it.Expires), a.ago(it.Expires))
	}
	for _, r := range it.Recipients {
		row("to", "%s%s", safe(r.Address), when(r.State != "", ", "+r.State))
	}
	for _, l := range it.Legs {
		s := safe(l.Dest) + ": " + l.State
		if l.Attempts > 0 {
			s += ", " + count(l.Attempts, "attempt")
		}
		if !l.At.IsZero() {
			s += ", looked at again " + a.ago(l.At)
		}
		if l.Reason != "" {
			s += ": " + safe(l.Reason)
		}
		row("way", "%s", s)
	}
}

// queueActCmd does something to envelopes, chosen by ids or by a filter.
func (a *app) queueActCmd(act *control.QueueAction, short, long, done string) *cobra.Command {
	var f filter
	var dry bool
	c := &cobra.Command{
		Use:   act.Verb + " [ID…|ALL|-]",
		Short: short,
		Args:  cobra.ArbitraryArgs, // ids, ALL, or - for ids on standard input
		Long: strings.TrimSpace(strings.ToUpper(short[:1])+short[1:]+". "+long) + `

Which envelopes, their ids say, or the options that choose by sender, recipient, place, state, age and size; all that are
given must fit. With --dry-run nothing happens but their list.`,
		Example: "  mochila queue " + act.Verb + " QR7A\n  mochila queue " + act.Verb + " --from '*@spam.example' --older 2d --dry-run",
		RunE: func(c *cobra.Command, args []string) error {
			q := *act
			q.DryRun, q.Where = dry, f.where()
			for _, id := range args {
				if id != "-" {
					q.IDs = append(q.IDs, id)
					continue
				}
				ids, err := readIDs(a.env.Stdin)
				if err != nil {
					return err
				}
				q.IDs = append(q.IDs, ids...)
			}
			switch {
			case q.Where != nil && len(args) > 0:
				return usageError(c.UseLine(), "%s: ids and a filter at once", c.CommandPath())
			case q.Where == nil && len(args) == 0:
				return usageError("name ids, ALL, or a filter such as --from", "%s: which envelopes?", c.CommandPath())
			case q.Where == nil && len(q.IDs) == 0:
				a.printf("No ids, nothing %s.\n", done)
				return nil
			}
			r, err := a.act(c.Context(), q)
			if err != nil && len(r.Done) > 0 {
				a.note("%s %s before this:", count(len(r.Done), "envelope"), done)
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(r, false)
			}
			if dry {
				for _, id := range r.Done {
					a.printf("%s\n", id)
				}
				a.note("%s would be %s", count(len(r.Done), "envelope"), done)
				return nil
			}
			a.printf("%s %s\n", count(len(r.Done), "envelope"), done)
			return nil
		},
	}
	f.flags(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "only print the ids")
	return c
}

func (a *app) queueBounceCmd() *cobra.Command {
	act := &control.QueueAction{Verb: "bounce"}
	c := a.queueActCmd(act, "return envelopes to their senders", "The notice gives the reason of --reason.", "returned")
	c.Flags().StringVar(&act.Reason, "reason", "", "what to tell the sender, one `line`")
	return c
}

func (a *app) queueRerouteCmd() *cobra.Command {
	act := &control.QueueAction{Verb: "reroute"}
	c := a.queueActCmd(act, "send envelopes another way", `What has not left goes where the rules of the
configuration lead now, or with --via to one node or delivery. What is sealed or travelling is left alone.`, "routed again")
	c.Flags().StringVar(&act.To, "via", "", "the `node`, or a delivery that the configuration has")
	return c
}

func (a *app) queuePriorityCmd() *cobra.Command {
	act := &control.QueueAction{Verb: "priority"}
	c := a.queueActCmd(act, "move envelopes forward or back in the queue", "Levels are those of MT-PRIORITY (RFC 6710).", "moved")
	c.Flags().IntVar(&act.Priority, "level", 0, "from -9 to 9; 9 goes first")
	return c
}

// act does q, a thousand ids at a time: the API bounds the length of a request.
func (a *app) act(ctx context.Context, q control.QueueAction) (control.QueueActed, error) {
	all := control.QueueActed{Done: []string{}}
	err := a.node(ctx, func(n *control.Client) error {
		if q.Where != nil {
			return n.Post(ctx, "/v1/queue", q, &all)
		}
		for ids := range slices.Chunk(q.IDs, 1000) {
			var r control.QueueActed
			part := q
			part.IDs = ids
			if err := n.Post(ctx, "/v1/queue", part, &r); err != nil {
				return err
			}
			all.Done = append(all.Done, r.Done...)
		}
		return nil
	})
	return all, err
}

// readIDs reads words, up to a million.
func readIDs(r io.Reader) ([]string, error) {
	var ids []string
	s := bufio.NewScanner(r)
	s.Split(bufio.ScanWords)
	for s.Scan() {
		if len(ids) == 1_000_000 {
			return nil, usageError("ALL means every envelope", "standard input has more than a million ids")
		}
		ids = append(ids, s.Text())
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read ids: %w", err)
	}
	return ids, nil
}

func (a *app) queueFlushCmd() *cobra.Command {
	c := a.flushCmd()
	c.Short += " (also mochila flush)"
	return c
}

func (a *app) flushCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "flush [SITE]",
		Short: "try everything again now, or what goes to one site",
		Long: `Makes everything that waits for its next try due, as postqueue -f does; with SITE, as postqueue -s, only what goes where mail
for it goes. SITE is a peer, a domain, or an address. Contacts keep their timetables: mochila sync makes them.`,
		Args: takes("[SITE]"),
		RunE: func(c *cobra.Command, args []string) error {
			site := strings.Join(args, "")
			said := "Everything deferred is due now."
			if site != "" {
				said = fmt.Sprintf("What is deferred on its way to %s is due now.", site)
			}
			return a.tell(c.Context(), "/v1/flush", control.FlushRequest{Site: site}, said)
		},
	}
}

func (a *app) mailqCmd() *cobra.Command {
	var f filter
	c := &cobra.Command{
		Use:   "mailq",
		Short: "print the queue as Postfix's mailq does",
		Long: `Prints the queue in the layout of Postfix's mailq, for eyes and programs that know it: "*" marks what is active, which
is all that goes at the next contact or is being delivered, and "!" what is held. The columns are those of Postfix's long
queue ids.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(c.Context(), func(n *control.Client) error {
				if a.json {
					return f.each(c.Context(), n, func(it control.QueueItem) error { return a.postqueueJSON(it) })
				}
				v := f.values()
				if f.limit > 0 {
					v.Set("limit", strconv.Itoa(f.limit))
				}
				return n.Raw(c.Context(), "/v1/mailq?"+v.Encode(), a.out)
			})
		},
	}
	f.limited(c)
	return c
}
