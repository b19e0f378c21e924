package control

import "time"

// RunRequest is the first line of POST /v1/run; what follows it is the job's standard input, to the end of the request.
// A request that is cut off stores nothing and takes no number. It is also one line of POST /v1/run/batch, with Stdin.
type RunRequest struct {
	Nodes     []string    `json:"nodes"`             // by their local names: one job for each
	Channel   string      `json:"channel,omitempty"` // default "default"
	Kind      string      `json:"kind,omitempty"`    // command (default), nop or barrier
	Handler   string      `json:"handler,omitempty"`
	Args      []string    `json:"args,omitempty"`
	RawArgs   [][]byte    `json:"raw_args,omitempty"` // instead of Args, where they are not UTF-8: base64
	Env       [][2]string `json:"env,omitempty"`      // pairs of name and value
	Expires   time.Time   `json:"expires,omitzero"`   // default [limits] lifetime
	NotBefore time.Time   `json:"not_before,omitzero"`
	After     string      `json:"after,omitempty"`     // id of a job that must have succeeded
	Supersede string      `json:"supersede,omitempty"` // key
	Unordered bool        `json:"unordered,omitempty"` // no number
	Priority  int         `json:"priority,omitempty"`
	Size      *int64      `json:"size,omitempty"` // bytes of standard input; any other length is refused

	MailResult string `json:"mail_result,omitempty"` // address that gets the outcome by mail
	Hold       bool   `json:"hold,omitempty"`        // no contact takes it: it is fetched as a mail

	Stdin    string `json:"stdin,omitempty"`     // only in a batch
	RawStdin []byte `json:"raw_stdin,omitempty"` // instead of Stdin: base64
}

// RunReply is the answer: the jobs are durable.
type RunReply struct {
	Jobs  []RunTicket `json:"jobs"`
	Error *Error      `json:"error,omitempty"` // of a batch: what ended it after these jobs
}

// RunTicket is one stored job.
type RunTicket struct {
	ID      string `json:"id"`
	Node    string `json:"node"`
	Channel string `json:"channel"`
	Seq     uint64 `json:"seq,omitempty"` // 0: no order
}

// JobItem is one job: GET /v1/jobs/ID, or one of GET /v1/jobs.
type JobItem struct {
	ID        string       `json:"id"`
	Own       bool         `json:"own"`  // made here, to run at Node; else made at Node, to run here
	Node      string       `json:"node"` // the other node
	Channel   string       `json:"channel"`
	Seq       uint64       `json:"seq,omitempty"`
	Epoch     string       `json:"epoch,omitempty"`
	Kind      string       `json:"kind"`
	Handler   string       `json:"handler,omitempty"`
	Args      []string     `json:"args,omitempty"`
	Env       [][2]string  `json:"env,omitempty"`
	State     string       `json:"state"`
	Why       string       `json:"why,omitempty"`
	Ended     bool         `json:"ended"`
	Created   time.Time    `json:"created"`
	Expires   time.Time    `json:"expires,omitzero"`
	Next      time.Time    `json:"next,omitzero"` // not before
	Tries     int          `json:"tries,omitempty"`
	Size      int64        `json:"size"` // of stdin
	After     string       `json:"after,omitempty"`
	Supersede string       `json:"supersede,omitempty"`
	Result    *JobResult   `json:"result,omitempty"`
	Events    []TraceEvent `json:"events,omitempty"`
}

// JobResult is what is known of a job's end.
type JobResult struct {
	State         string    `json:"state"`
	Exit          int       `json:"exit"`
	Signal        int       `json:"signal,omitempty"`
	Held          bool      `json:"held,omitempty"` // the channel waits for a person: it is not the last word
	Started       time.Time `json:"started,omitzero"`
	Ended         time.Time `json:"ended,omitzero"`
	Stdout        int64     `json:"stdout"` // bytes kept
	Stderr        int64     `json:"stderr"`
	DroppedStdout int64     `json:"dropped_stdout,omitempty"`
	DroppedStderr int64     `json:"dropped_stderr,omitempty"`
	Reason        string    `json:"reason,omitempty"`
}

// JobChannel is one channel.
type JobChannel struct {
	Own     bool      `json:"own"`
	Node    string    `json:"node"`
	Channel string    `json:"channel"`
	Waiting uint64    `json:"waiting"`         // jobs without outcome
	Next    uint64    `json:"next"`            // own: the next number; else the lowest without outcome
	State   string    `json:"state,omitempty"` // held, paused, gap, lost
	Why     string    `json:"why,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Missing uint64    `json:"missing,omitempty"`

	Reported time.Time `json:"reported,omitzero"` // when the node where the jobs run told the other about the channel last
	Reports  uint64    `json:"reports,omitempty"` // how often
}

// JobList is GET /v1/jobs?side=own|peers|ended&node=N&channel=C&after=CURSOR&limit=N: one page, and every channel.
type JobList struct {
	Jobs     []JobItem    `json:"jobs"`
	Next     string       `json:"next,omitempty"` // cursor of the next page
	Channels []JobChannel `json:"channels"`
}

// JobAction is POST /v1/jobs. Verbs on jobs: retry, skip, drop, cancel; on channels of peers: pause, resume, skip (its
// gap).
type JobAction struct {
	Verb    string   `json:"verb"`
	IDs     []string `json:"ids,omitempty"`
	Node    string   `json:"node,omitempty"`
	Channel string   `json:"channel,omitempty"`
}

// JobActed is its answer.
type JobActed struct {
	Done []string `json:"done"`
}
