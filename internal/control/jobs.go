package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/envelope"
	"mochila/spool"
)

// Who may make jobs: whoever may open the control socket, that is root, the daemon's user, and its group. Others come
// through the submission socket, by mail or with the verbs of this file (jobuser.go), within [jobs] submit.

const (
	maxRunLine  = 4 << 20 // bytes of one request line; in a batch with its input
	batchAtOnce = 256     // jobs of one commit
	maxBatch    = 1_000_000
	maxJobWait  = 10 * time.Minute
)

// jobVerbs adds the verbs on jobs.
func (n *Node) jobVerbs(mux *http.ServeMux) {
	verb := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { answer(w, r, f) })
	}
	verb("POST /v1/run", func(r *http.Request) (any, error) { return n.run(makerOf(r), r.Body) })
	verb("POST /v1/run/batch", func(r *http.Request) (any, error) { return n.runBatch(makerOf(r), r.Body) })
	verb("GET /v1/jobs", n.jobList)
	verb("GET /v1/jobs/{id}", n.jobShow)
	verb("POST /v1/jobs", func(r *http.Request) (any, error) {
		var a JobAction
		if err := decode(r, &a); err != nil {
			return nil, err
		}
		return n.jobAct(makerOf(r), a)
	})
	mux.HandleFunc("GET /v1/jobs/{id}/mail", n.jobMail)
	mux.HandleFunc("GET /v1/jobs/{id}/{stream}", n.jobStream)
}

// jobError gives errors of the jobs their place in the API.
func jobError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jobs.ErrNotFound):
		return &Error{Message: err.Error(), Hint: "mochila jobs list shows what there is", Exit: ExitData}
	case errors.Is(err, jobs.ErrState), errors.Is(err, envelope.ErrFormat):
		return &Error{Message: err.Error(), Exit: ExitUsage}
	}
	return err
}

// run is POST /v1/run.
func (n *Node) run(by maker, body io.Reader) (*RunReply, error) {
	in := bufio.NewReaderSize(body, 64<<10)
	var q RunRequest
	if err := readLine(in, &q); err != nil {
		return nil, err
	}
	if q.Stdin != "" || q.RawStdin != nil {
		return nil, &Error{Message: "the input follows the request line", Exit: ExitUsage}
	}
	reqs, err := n.requests(by, q)
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done {
			discard(reqs)
		}
	}()
	var sinks []io.Writer
	for _, r := range reqs {
		r.Body = n.spool.NewBody()
		sinks = append(sinks, r.Body)
	}
	size, err := io.Copy(io.MultiWriter(sinks...), in)
	if err != nil {
		return nil, &Error{Message: "read the input of the job: " + err.Error(), Hint: "nothing was stored", Exit: ExitTemp}
	}
	if q.Size != nil && *q.Size != size {
		return nil, &Error{Message: fmt.Sprintf("the input has %d bytes, not %d", size, *q.Size), Hint: "nothing was stored", Exit: ExitData}
	}
	for _, r := range reqs {
		if err := r.Body.Finish(); err != nil {
			return nil, err
		}
	}
	done = true // Enqueue frees what it does not store
	tickets, err := n.bridge.Jobs().Enqueue(reqs)
	if err != nil {
		return nil, jobError(err)
	}
	return &RunReply{Jobs: n.tickets(reqs, tickets)}, nil
}

func discard(reqs []*jobs.Request) {
	for _, r := range reqs {
		if r.Body != nil {
			r.Body.Discard()
		}
	}
}

func (n *Node) tickets(reqs []*jobs.Request, tickets []jobs.Ticket) []RunTicket {
	out := make([]RunTicket, len(tickets))
	for i, t := range tickets {
		out[i] = RunTicket{ID: t.ID.String(), Node: n.nodeName(reqs[i].Dest), Channel: reqs[i].Job.Channel, Seq: t.Seq}
	}
	return out
}

// readLine reads one line of JSON; io.EOF at the end.
func readLine(in *bufio.Reader, v any) error {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxRunLine {
			return &Error{Message: fmt.Sprintf("a request line of more than %d bytes", maxRunLine), Exit: ExitData}
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF && len(bytes.TrimSpace(line)) == 0 {
			return io.EOF
		}
		if err != nil && err != io.EOF {
			return &Error{Message: "read the request: " + err.Error(), Exit: ExitTemp}
		}
		break
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &Error{Message: "read the request: " + err.Error(), Exit: ExitUsage}
	}
	return nil
}

// requests turns a request into one job for each node.
func (n *Node) requests(by maker, q RunRequest) ([]*jobs.Request, error) {
	usage := func(format string, args ...any) error {
		return &Error{Message: fmt.Sprintf(format, args...), Exit: ExitUsage}
	}
	job := envelope.Job{Channel: q.Channel, Handler: q.Handler, Args: q.Args, Env: q.Env, NotBefore: q.NotBefore, Supersede: q.Supersede}
	if job.Channel == "" {
		job.Channel = "default"
	}
	switch q.Kind {
	case "", "command":
	case "nop":
		job.Kind = envelope.JobNop
	case "barrier":
		job.Kind = envelope.JobBarrier
	default:
		return nil, usage("a job cannot be a %q", q.Kind)
	}
	if len(q.RawArgs) > 0 {
		job.Args = nil
		for _, a := range q.RawArgs {
			job.Args = append(job.Args, string(a))
		}
	}
	if q.After != "" {
		id, err := envelope.ParseID(q.After)
		if err != nil {
			return nil, usage("%v", err)
		}
		job.After = id
	}
	if len(q.Nodes) == 0 {
		return nil, usage("no node is named")
	}
	var reply *jobs.Reply
	if q.MailResult != "" {
		to, err := n.resultAddress(q.MailResult)
		if err != nil {
			return nil, err
		}
		reply = &jobs.Reply{To: to}
	}
	var out []*jobs.Request
	for _, name := range q.Nodes {
		peer, err := n.peerID(name)
		if err != nil {
			return nil, err
		}
		if err := n.mayMake(by, name, job.Channel, job.Handler); err != nil {
			return nil, err
		}
		out = append(out, &jobs.Request{Dest: peer, Job: job, Unordered: q.Unordered, Expires: q.Expires, Priority: q.Priority, Trust: by.trust(), Reply: reply,
			Hold: q.Hold})
	}
	return out, nil
}

func (n *Node) peerID(name string) (envelope.NodeID, error) {
	for _, p := range n.bridge.Policy().Peers {
		if p.Name == name {
			return p.ID, nil
		}
	}
	return envelope.NodeID{}, &Error{Message: fmt.Sprintf("there is no peer %q", name), Hint: "mochila peer list", Exit: ExitUsage}
}

// runBatch is POST /v1/run/batch: a job in each line. Lines are stored in their order, some hundred in one commit; the
// first bad one ends it, and what was before it stays.
func (n *Node) runBatch(by maker, body io.Reader) (*RunReply, error) {
	in := bufio.NewReaderSize(body, 256<<10)
	reply := &RunReply{Jobs: []RunTicket{}}
	var group []*jobs.Request
	store := func() error {
		if len(group) == 0 {
			return nil
		}
		tickets, err := n.bridge.Jobs().Enqueue(group)
		if err != nil {
			return jobError(err)
		}
		reply.Jobs = append(reply.Jobs, n.tickets(group, tickets)...)
		group = nil
		return nil
	}
	for line := 1; ; line++ {
		reqs, err := n.batchLine(by, in)
		if err == io.EOF {
			if err := store(); err != nil {
				reply.Error = asError(err)
			}
			return reply, nil
		}
		if err == nil {
			group = append(group, reqs...)
			if len(group) >= batchAtOnce {
				err = store()
			}
		} else if serr := store(); serr != nil {
			err = serr
		}
		if err == nil && len(reply.Jobs) > maxBatch {
			err = &Error{Message: fmt.Sprintf("more than %d jobs in one batch", maxBatch), Exit: ExitUsage}
		}
		if err != nil {
			discard(group)
			e := *asError(err)
			e.Message = fmt.Sprintf("line %d: %s", line, e.Message)
			reply.Error = &e
			return reply, nil
		}
	}
}

func (n *Node) batchLine(by maker, in *bufio.Reader) ([]*jobs.Request, error) {
	var q RunRequest
	if err := readLine(in, &q); err != nil {
		return nil, err
	}
	reqs, err := n.requests(by, q)
	if err != nil {
		return nil, err
	}
	content := q.RawStdin
	if content == nil {
		content = []byte(q.Stdin)
	}
	for _, r := range reqs {
		r.Body = n.spool.NewBody()
		if _, err = r.Body.Write(content); err == nil {
			err = r.Body.Finish()
		}
		if err != nil {
			discard(reqs)
			return nil, err
		}
	}
	return reqs, nil
}

// jobItem is a job in the API's terms.
func (n *Node) jobItem(v *jobs.View) JobItem {
	j := v.Job
	it := JobItem{ID: v.ID.String(), Own: v.Own, Node: n.nodeName(v.Peer), Channel: j.Channel, Seq: j.Seq, Kind: j.Kind.String(), Handler: j.Handler,
		Args: j.Args, Env: j.Env, State: v.State, Why: v.Why, Ended: v.Ended, Created: v.Created, Expires: v.Expires, Next: v.Next, Tries: v.Tries,
		Size: v.Size, Supersede: j.Supersede}
	if j.Seq != 0 {
		it.Epoch = hex.EncodeToString(j.Epoch[:])
	}
	if !j.After.IsZero() {
		it.After = j.After.String()
	}
	if r := v.Result; r != nil {
		it.Result = &JobResult{State: r.State.String(), Exit: r.Exit, Signal: r.Signal, Held: r.Held, Started: r.Started, Ended: r.Ended,
			Stdout: r.Stdout, Stderr: r.Stderr, DroppedStdout: r.DroppedOut, DroppedStderr: r.DroppedErr, Reason: r.Reason}
	}
	for _, l := range v.Log {
		it.Events = append(it.Events, TraceEvent{At: l.At, What: l.What, Detail: l.Detail})
	}
	return it
}

// jobChannels lists every channel.
func (n *Node) jobChannels() ([]JobChannel, error) {
	list, err := n.bridge.Jobs().Channels()
	out := []JobChannel{}
	for _, c := range list {
		out = append(out, JobChannel{Own: c.Own, Node: n.nodeName(c.Peer), Channel: c.Name, Waiting: c.Waiting, Next: c.Next, State: c.State,
			Why: c.Why, Since: c.Since, Missing: c.Missing, Reported: c.Reported, Reports: c.Reports})
	}
	return out, err
}

// jobList is GET /v1/jobs.
func (n *Node) jobList(r *http.Request) (any, error) {
	f := jobs.Filter{Side: r.FormValue("side"), Channel: r.FormValue("channel")}
	switch f.Side {
	case "", "own", "peers", "ended":
	default:
		return nil, &Error{Message: fmt.Sprintf("there is no side %q", f.Side), Hint: "own, peers or ended", Exit: ExitUsage}
	}
	f.Limit, _ = strconv.Atoi(r.FormValue("limit"))
	by := makerOf(r)
	if by.limited {
		f.Trust = by.trust()
		if f.Side == "" {
			f.Side = "own"
		}
	}
	var err error
	if s := r.FormValue("node"); s != "" {
		if f.Peer, err = n.peerID(s); err != nil {
			return nil, err
		}
	}
	if f.After, err = hex.DecodeString(r.FormValue("after")); err != nil {
		return nil, &Error{Message: "not a cursor of an earlier page", Exit: ExitUsage}
	}
	page, err := n.bridge.Jobs().List(f)
	if err != nil {
		return nil, err
	}
	l := &JobList{Jobs: []JobItem{}, Next: hex.EncodeToString(page.Next)}
	for _, v := range page.Jobs {
		l.Jobs = append(l.Jobs, n.jobItem(v))
	}
	if by.limited {
		l.Channels = []JobChannel{} // they are others', too
		return l, nil
	}
	l.Channels, err = n.jobChannels()
	return l, err
}

// jobShow is GET /v1/jobs/ID?wait=60s: with wait it answers when there is a result, or after that time.
func (n *Node) jobShow(r *http.Request) (any, error) {
	id, err := n.ownJob(makerOf(r), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	var v *jobs.View
	if s := r.FormValue("wait"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return nil, &Error{Message: fmt.Sprintf("%q is not a duration", s), Exit: ExitUsage}
		}
		ctx, cancel := context.WithTimeout(r.Context(), min(d, maxJobWait))
		defer cancel()
		v, err = n.bridge.Jobs().Await(ctx, id)
		if err != nil {
			return nil, jobError(err)
		}
	} else if v, err = n.bridge.Jobs().Show(id); err != nil {
		return nil, jobError(err)
	}
	return n.jobItem(v), nil
}

// jobStream is GET /v1/jobs/ID/stdin, …/stdout and …/stderr.
func (n *Node) jobStream(w http.ResponseWriter, r *http.Request) {
	c, part, err := n.openStream(makerOf(r), r.PathValue("id"), r.PathValue("stream"))
	if err != nil {
		answer(w, r, func(*http.Request) (any, error) { return nil, err })
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if c != nil {
		defer c.Close()
		io.Copy(w, part)
	}
}

func (n *Node) openStream(by maker, text, stream string) (io.Closer, io.Reader, error) {
	id, err := n.ownJob(by, text)
	if err != nil {
		return nil, nil, err
	}
	v, err := n.bridge.Jobs().Show(id)
	if err != nil {
		return nil, nil, jobError(err)
	}
	body := id
	skip, size := int64(0), v.Size
	switch stream {
	case "stdin":
		if !v.HasStdin {
			return nil, nil, &Error{Message: fmt.Sprintf("job %s has ended: its input is kept no longer", id), Exit: ExitData}
		}
	case "stdout", "stderr":
		switch {
		case v.Result == nil:
			return nil, nil, &Error{Message: fmt.Sprintf("job %s has no result yet", id), Hint: "it is " + v.State, Exit: ExitTemp}
		case !v.Own:
			return nil, nil, &Error{Message: fmt.Sprintf("the output of job %s has gone to its origin", id), Exit: ExitData}
		case v.ResultID.IsZero():
			return nil, nil, nil
		}
		body, size = v.ResultID, v.Result.Stdout
		if stream == "stderr" {
			skip, size = v.Result.Stdout, v.Result.Stderr
		}
	default:
		return nil, nil, &Error{Message: fmt.Sprintf("a job has no %q", stream), Exit: ExitUsage}
	}
	c, err := n.spool.OpenBody(body)
	if errors.Is(err, spool.ErrNoBody) || errors.Is(err, spool.ErrNotFound) {
		return nil, nil, &Error{Message: fmt.Sprintf("what job %s wrote is kept no longer", id), Exit: ExitData}
	}
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.Seek(skip, io.SeekStart); err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, io.LimitReader(c, size), nil
}

// jobAct is POST /v1/jobs.
func (n *Node) jobAct(by maker, a JobAction) (*JobActed, error) {
	if by.limited && (a.Verb != "cancel" || len(a.IDs) == 0) {
		return nil, &Error{Message: fmt.Sprintf("%s may only cancel jobs of their own", by.user), Hint: "be root, or in the group of the control socket", Exit: ExitDenied}
	}
	j := n.bridge.Jobs()
	out := &JobActed{Done: []string{}}
	if len(a.IDs) == 0 {
		return out, n.channelAct(a, out)
	}
	verbs := map[string]func(envelope.ID) error{"retry": j.Retry, "skip": j.Skip, "drop": j.Drop, "cancel": j.Cancel}
	f, ok := verbs[a.Verb]
	if !ok {
		return nil, &Error{Message: fmt.Sprintf("a job cannot be %q", a.Verb), Hint: "retry, skip, drop or cancel", Exit: ExitUsage}
	}
	for _, text := range a.IDs {
		id, err := n.ownJob(by, text)
		if err != nil {
			return nil, err
		}
		if err := f(id); err != nil {
			return nil, jobError(err)
		}
		out.Done = append(out.Done, id.String())
	}
	return out, nil
}

// channelAct does something to a channel of a peer.
func (n *Node) channelAct(a JobAction, out *JobActed) error {
	if a.Node == "" || a.Channel == "" {
		return &Error{Message: "neither a job nor a channel is named", Exit: ExitUsage}
	}
	peer, err := n.peerID(a.Node)
	if err != nil {
		return err
	}
	j := n.bridge.Jobs()
	name := a.Node + ":" + a.Channel
	switch a.Verb {
	case "pause":
		err = j.Pause(peer, a.Channel)
	case "resume":
		err = j.Resume(peer, a.Channel)
	case "skip":
		var first, count uint64
		first, count, err = j.SkipGap(peer, a.Channel)
		name = fmt.Sprintf("%s, %d numbers from %d on", name, count, first)
	default:
		return &Error{Message: fmt.Sprintf("a channel cannot be %q", a.Verb), Hint: "pause, resume or skip", Exit: ExitUsage}
	}
	if err != nil {
		return jobError(err)
	}
	out.Done = append(out.Done, name)
	return nil
}
