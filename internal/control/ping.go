package control

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/envelope"
)

// pingName is the handler, and the channel, that answers `mochila ping`. Every peer may use it unless [jobs] says
// otherwise or the configuration has a handler of this name: it starts no program and tells a peer only what became of its own
// job.
const pingName = "ping"

// Pong is what the other node tells about a ping: the output of its job.
type Pong struct {
	Node     string       `json:"node"`     // as it calls itself
	Origin   string       `json:"origin"`   // as it calls the node that asked
	Received time.Time    `json:"received"` // by its clock, as the next
	Answered time.Time    `json:"answered"`
	Size     int64        `json:"size"`   // bytes of the input that came, and were checked
	Sum      string       `json:"sum"`    // their SHA-256, in hex
	Events   []TraceEvent `json:"events"` // what it knows of the way
}

// pingHandler is the handler as the engine sees it.
func pingHandler() *jobs.Handler {
	return &jobs.Handler{Name: pingName, Allow: []string{"*:" + pingName}, Idempotent: true, Tries: 1, OnFailure: "skip", Unordered: true, Concurrency: 4, Light: true,
		Check: func(args []string, env [][2]string) error {
			if len(args)+len(env) > 0 {
				return errors.New("ping takes no arguments")
			}
			return nil
		}}
}

// pong answers a ping.
func (r *runner) pong(s *jobs.Start) (*jobs.Outcome, error) {
	began := r.now()
	sum := sha256.New()
	in, err := verified(s)
	if err == nil {
		_, err = io.Copy(sum, in)
		in.Close()
	}
	var events []TraceEvent
	if err == nil {
		events, err = r.events(s.ID)
	}
	if err != nil {
		return &jobs.Outcome{NotStarted: true, Exit: 127, Reason: envelope.OneLine("not answered: "+err.Error(), envelope.MaxReason)}, nil
	}
	p := Pong{Node: r.config().Name, Origin: s.Peer, Answered: r.now(), Size: s.Size, Sum: hex.EncodeToString(sum.Sum(nil)), Events: events}
	for _, e := range events {
		if e.What == "arrived" {
			p.Received = e.At
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("answer a ping: %w", err)
	}
	return &jobs.Outcome{Started: began, Ended: p.Answered, Out: bytes.NewReader(append(b, '\n'))}, nil
}

// events is what this node has noted of one envelope.
func (n *Node) events(id envelope.ID) ([]TraceEvent, error) {
	it, _, err := n.spool.Find(id)
	if err != nil {
		return nil, err
	}
	var list []TraceEvent
	for _, l := range it.Log {
		list = append(list, TraceEvent{At: l.At, What: l.What, Detail: strings.ToValidUTF8(l.Detail, "?")})
	}
	return list, nil
}
