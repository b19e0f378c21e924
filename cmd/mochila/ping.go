package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"mochila/internal/config"
	"mochila/internal/control"
)

// pinged is one round trip.
type pinged struct {
	Job      string      `json:"job"`
	Node     string      `json:"node"`
	Answered bool        `json:"answered"`
	State    string      `json:"state"`
	Trip     float64     `json:"trip_seconds,omitempty"` // there and back, by this node's clock
	Clock    float64     `json:"clock_seconds"`          // the other node's clock is at least about so far ahead; 0: it may be right
	Size     int64       `json:"size"`                   // bytes of payload that went there
	Events   []pingEvent `json:"events"`
}

// pingEvent is one station of the way, by the clock of the node that tells it.
type pingEvent struct {
	At     time.Time `json:"at"`
	Node   string    `json:"node"`
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
	other  bool
}

func (a *app) pingCmd() *cobra.Command {
	f := jobFlags{channel: "ping", handler: "ping"}
	var size, timeout, job string
	c := &cobra.Command{
		Use:   "ping NODE",
		Short: "send something there and back, and tell the way",
		Long: `Sends a job that does nothing, and shows what each node tells of its way: when it was sealed, on which carrier, which
neighbour had it when, when it arrived, and how the answer came back. Any peer is answered, unless it has
ping = false under [jobs]. Relays tell nothing but that they had it.

With a daemon the command waits for the answer, else it only queues the ping. --job ID shows the way of an earlier one, as far
as it has come. Times of the other node are by its clock; if that cannot be right, it is said by how much.`,
		Example: `  mochila ping hub
  mochila ping hub --size 100k --timeout 5m`,
		Args: func(c *cobra.Command, args []string) error {
			if job != "" {
				return takes()(c, args)
			}
			return takes("NODE")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			n, err := config.ParseSize(size)
			if err != nil || n > 64<<20 {
				return usageError("up to 64MiB", "--size %q is no size for this", size)
			}
			d, err := config.ParseDuration(timeout)
			if err != nil {
				return usageError("such as 30s or 2d", "--timeout %q is no duration", timeout)
			}
			return a.jobNode(c.Context(), func(cl *control.Client) error {
				if job != "" {
					return a.showPing(c.Context(), cl, job)
				}
				q, err := a.jobRequest(&f, args[0])
				if err != nil {
					return err
				}
				q.Unordered, q.Priority = true, f.priority
				list, err := a.enqueue(c.Context(), cl, q, io.LimitReader(rand.Reader, int64(n)))
				if err != nil {
					return err
				}
				if !cl.Daemon() {
					a.note("mochila: queued; no daemon runs. Later: mochila ping --job %s", list[0].ID)
					return a.showTickets(list)
				}
				ctx, cancel := context.WithTimeout(c.Context(), time.Duration(d))
				defer cancel()
				awaitOne(ctx, cl, list[0].ID)
				return a.showPing(context.WithoutCancel(c.Context()), cl, list[0].ID)
			})
		},
		ValidArgsFunction: a.names,
	}
	l := c.Flags()
	l.StringVar(&size, "size", "56", "`bytes` of random payload that goes there")
	l.StringVar(&timeout, "timeout", "1m", "how long to wait for the answer; the ping goes on after this `time`")
	l.StringVar(&f.expires, "expires", "", "not answered after this `time`")
	l.IntVar(&f.priority, "priority", 0, "-9 to 9: which bundles leave first")
	l.StringVar(&job, "job", "", "show the way of the ping with this `id`")
	return c
}

// showPing tells what is known of a ping. The exit status is 75 while there is no answer, and 69 when there will be none.
func (a *app) showPing(ctx context.Context, n *control.Client, id string) error {
	var it control.JobItem
	path := "/v1/jobs/" + url.PathEscape(id)
	if err := n.Get(ctx, path, &it); err != nil {
		return err
	}
	if it.Handler != "ping" || !it.Own {
		return usageError("mochila jobs show "+id, "job %s is no ping of this node", id)
	}
	p := pinged{Job: it.ID, Node: it.Node, State: it.State, Size: it.Size}
	for _, e := range it.Events {
		p.Events = append(p.Events, pingEvent{At: e.At, Node: "here", What: e.What, Detail: e.Detail})
	}
	if it.Result != nil && it.Result.State == "done" {
		var b bytes.Buffer
		var pong control.Pong
		if err := n.Raw(ctx, path+"/stdout", &b); err != nil {
			return err
		}
		if err := json.Unmarshal(b.Bytes(), &pong); err != nil {
			return fmt.Errorf("the answer of %s: %w", it.Node, err)
		}
		p.answer(it, &pong)
	}
	if a.json {
		if err := a.asJSON(p, true); err != nil {
			return err
		}
	} else {
		a.tellPing(&p, it)
	}
	switch {
	case p.Answered:
		return nil
	case it.Ended:
		return exit(control.ExitUnavailable)
	}
	return exit(control.ExitTemp)
}

// answer puts what the other node tells between what is known here.
func (p *pinged) answer(it control.JobItem, pong *control.Pong) {
	p.Answered = true
	sent, back := it.Created, time.Time{}
	for _, e := range it.Events {
		if e.What == "ended" {
			back = e.At
		}
	}
	if back.IsZero() {
		back = pong.Answered
	}
	p.Trip = back.Sub(sent).Seconds()
	// Its clock is wrong for certain if the answer was made before the question, or after it was here.
	if pong.Received.Before(sent.Add(-time.Second)) || pong.Answered.After(back.Add(time.Second)) {
		p.Clock = (pong.Received.Sub(sent) + pong.Answered.Sub(back)).Seconds() / 2
	}
	for _, e := range pong.Events {
		p.Events = append(p.Events, pingEvent{At: e.At, Node: p.Node, What: e.What, Detail: e.Detail, other: true})
	}
	p.Events = append(p.Events, pingEvent{At: pong.Answered, Node: p.Node, What: "answered", other: true})
	shift := time.Duration(p.Clock * float64(time.Second))
	at := func(e pingEvent) time.Time {
		if e.other {
			return e.At.Add(-shift)
		}
		return e.At
	}
	slices.SortStableFunc(p.Events, func(x, y pingEvent) int { return at(x).Compare(at(y)) })
}

func (a *app) tellPing(p *pinged, it control.JobItem) {
	rows := [][]string{}
	for _, e := range p.Events {
		rows = append(rows, []string{e.At.Local().Format("2006-01-02 15:04:05.000"), safe(e.Node), safe(e.What), safe(e.Detail)})
	}
	if len(rows) > 0 {
		a.table(append([][]string{{"WHEN", "WHERE", "WHAT", ""}}, rows...))
	}
	trip := time.Duration(p.Trip * float64(time.Second)).Round(time.Millisecond)
	switch {
	case p.Answered:
		a.printf("%s answers: %v there and back, %s\n", safe(p.Node), trip, bytesText(p.Size))
	case it.Ended:
		a.printf("%s does not answer: the ping is %s%s\n", safe(p.Node), safe(it.State), when(it.Why != "", ": "+safe(it.Why)))
	default:
		a.printf("no answer from %s yet; mochila ping --job %s\n", safe(p.Node), p.Job)
	}
	if p.Clock != 0 {
		a.printf("the clock of %s is about %v ahead of this one\n", safe(p.Node), time.Duration(p.Clock*float64(time.Second)).Round(time.Second))
	}
}
