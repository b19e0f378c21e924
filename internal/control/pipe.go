package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/envelope"
)

// A pipe is a stream of bytes both ways between a program here and one at another node: `mochila pipe`. Each piece travels
// as a job in no order for the handler "pipe" of the other node, which starts no program: it hands the bytes to whoever
// holds the pipe open there (docs/handlers.md, pipe). Every peer may bring pieces, and only those fit that name a pipe by its
// 128 random bits which this node has open with that very peer.

const (
	pipeName = "pipe" // the handler of pieces, and their channel

	// MaxPiece is how many bytes one piece of a pipe has at most.
	MaxPiece = 64 << 10
	// PipeTrailer is the HTTP trailer that tells how a stream of GET /v1/pipe ended: PipeEnd or PipeGone.
	PipeTrailer = "Mochila-Pipe"
	PipeEnd     = "end"  // the program at the other side has closed its output
	PipeGone    = "gone" // nobody holds the other side open any more

	maxHeld   = 1 << 20     // bytes of one pipe that nobody has taken yet
	roomWait  = time.Second // how long a piece waits for room
	pieceLife = time.Hour   // of a piece that does not get through
)

// Exit codes of pieces.
const (
	pieceTaken  = 0
	pieceBad    = ExitData
	pieceNoPipe = ExitUnavailable // nobody holds this pipe open
	pieceNoRoom = ExitTemp        // send it again
)

// pipeHandler is the handler of pieces as the engine sees it.
func pipeHandler() *jobs.Handler {
	return &jobs.Handler{Name: pipeName, Allow: []string{"*:" + pipeName}, Idempotent: true, Tries: 1, OnFailure: "skip", Unordered: true, Concurrency: 8, Light: true,
		Check: func(args []string, env [][2]string) error {
			if len(env) > 0 {
				return errors.New("a piece of a pipe has no variables")
			}
			_, err := parsePiece(args)
			return err
		}}
}

// piece is what the arguments of a piece say: ID OFFSET, ID OFFSET end, or ID gone.
type piece struct {
	id     string
	offset int64
	end    bool // nothing follows
	gone   bool // the program that would send more is gone
}

func parsePiece(args []string) (p piece, err error) {
	bad := errors.New("the arguments are those of no piece of a pipe")
	if len(args) < 2 || len(args) > 3 || !validPipe(args[0]) {
		return p, bad
	}
	p.id = args[0]
	if len(args) == 2 && args[1] == PipeGone {
		p.gone = true
		return p, nil
	}
	if p.offset, err = strconv.ParseInt(args[1], 10, 64); err != nil || p.offset < 0 {
		return p, bad
	}
	if len(args) == 3 {
		if args[2] != PipeEnd {
			return p, bad
		}
		p.end = true
	}
	return p, nil
}

// PieceArgs are the arguments of the job for a piece that begins at offset.
func PieceArgs(id string, offset int64, end bool) []string {
	args := []string{id, strconv.FormatInt(offset, 10)}
	if end {
		args = append(args, PipeEnd)
	}
	return args
}

// PieceRequest is the job for a piece.
func PieceRequest(node string, args []string, now time.Time) RunRequest {
	return RunRequest{Nodes: []string{node}, Channel: pipeName, Handler: pipeName, Args: args, Unordered: true, Priority: 9, Expires: now.Add(pieceLife)}
}

// validPipe reports whether s can name a pipe: 26 characters of those that rand.Text gives.
func validPipe(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return len(s) == 26
}

// pipes are the pipes that are open here.
type pipes struct {
	mu   sync.Mutex
	open map[string]*pipe
}

func newPipes() *pipes { return &pipes{open: map[string]*pipe{}} }

// pipe is one end of a stream. Its fields belong to the mutex of pipes.
type pipe struct {
	peer   envelope.NodeID
	next   int64            // the first byte that was not taken
	held   map[int64][]byte // pieces by their first byte
	size   int              // bytes in held
	end    int64            // where the stream ends; -1: not known yet
	gone   bool
	change chan struct{} // closed and made anew at each change
}

func (p *pipe) changed() {
	close(p.change)
	p.change = make(chan struct{})
}

// begin opens a pipe with a peer.
func (x *pipes) begin(id string, peer envelope.NodeID) (*pipe, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open[id] != nil {
		return nil, fmt.Errorf("pipe %s is open already", id)
	}
	p := &pipe{peer: peer, held: map[int64][]byte{}, end: -1, change: make(chan struct{})}
	x.open[id] = p
	return p, nil
}

func (x *pipes) finish(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.open[id]; p != nil {
		p.gone = true
		p.changed()
		delete(x.open, id)
	}
}

// give takes a piece from a peer; code is the exit status of its job.
func (x *pipes) give(ctx context.Context, peer envelope.NodeID, a piece, data []byte) (code int, why string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.open[a.id]
	if p == nil || p.peer != peer {
		return pieceNoPipe, "nobody holds this pipe open"
	}
	if a.gone {
		p.gone = true
		p.changed()
		return pieceTaken, ""
	}
	if wrong := p.misfit(a, len(data)); wrong != "" {
		return pieceBad, wrong
	}
	timeout := time.NewTimer(roomWait)
	defer timeout.Stop()
	// The next one always finds room: without it nobody could make any.
	for !p.gone && a.offset > p.next && p.size+len(data) > maxHeld {
		change := p.change
		x.mu.Unlock()
		late := false
		select {
		case <-change:
		case <-timeout.C:
			late = true
		case <-ctx.Done():
			late = true
		}
		x.mu.Lock()
		if late {
			return pieceNoRoom, "the program here is slow: send it again"
		}
	}
	if p.gone {
		return pieceNoPipe, "nobody holds this pipe open"
	}
	if a.end {
		p.end = a.offset + int64(len(data))
	}
	if _, twice := p.held[a.offset]; !twice && a.offset >= p.next && len(data) > 0 {
		p.held[a.offset] = data
		p.size += len(data)
	}
	p.changed()
	return pieceTaken, ""
}

// misfit says why a piece contradicts what came before.
func (p *pipe) misfit(a piece, size int) string {
	end := a.offset + int64(size)
	switch {
	case p.end >= 0 && (end > p.end || a.end && end != p.end):
		return "this pipe has another end"
	case a.end && end < p.next:
		return "this pipe is longer already"
	}
	return ""
}

// take waits for the next bytes. how is PipeEnd or PipeGone when there are none any more, and "" while there are.
func (x *pipes) take(ctx context.Context, p *pipe) (b []byte, how string, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		if b = p.held[p.next]; b != nil {
			delete(p.held, p.next)
			p.next += int64(len(b))
			p.size -= len(b)
			p.changed()
			return b, "", nil
		}
		if p.end == p.next {
			return nil, PipeEnd, nil
		}
		if p.gone {
			return nil, PipeGone, nil
		}
		change := p.change
		x.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			err = ctx.Err()
		}
		x.mu.Lock()
		if err != nil {
			return nil, "", err
		}
	}
}

// piece is the job of a piece at the node where it has come.
func (r *runner) piece(ctx context.Context, s *jobs.Start) (*jobs.Outcome, error) {
	began := r.now()
	end := func(code int, why string) (*jobs.Outcome, error) {
		return &jobs.Outcome{Exit: code, Reason: why, Started: began, Ended: r.now()}, nil
	}
	a, err := parsePiece(s.Args)
	if err != nil {
		return end(pieceBad, err.Error())
	}
	if s.Size > MaxPiece {
		return end(pieceBad, fmt.Sprintf("a piece of %d bytes, more than %d", s.Size, MaxPiece))
	}
	var data []byte
	if s.Size > 0 {
		in, err := verified(s)
		if err == nil {
			data, err = io.ReadAll(in)
			in.Close()
		}
		if err != nil {
			return end(pieceNoRoom, envelope.OneLine(err.Error(), envelope.MaxReason))
		}
	}
	return end(r.pipes.give(ctx, s.Origin, a, data))
}

// servePipe is GET /v1/pipe/{id}: whoever asks holds this node's end of the pipe open, and gets what comes in.
func (n *Node) servePipe(w http.ResponseWriter, r *http.Request) {
	id, node := r.PathValue("id"), r.URL.Query().Get("node")
	p, err := n.openPipe(id, node)
	if err != nil {
		answer(w, r, func(*http.Request) (any, error) { return nil, err })
		return
	}
	how := ""
	defer func() {
		n.pipes.finish(id)
		if how == "" {
			n.partWith(id, node)
		}
	}()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", PipeTrailer)
	flusher := http.NewResponseController(w)
	for flusher.Flush() == nil {
		var b []byte
		if b, how, err = n.pipes.take(r.Context(), p); err != nil {
			return
		}
		if how != "" {
			w.Header().Set(PipeTrailer, how)
			return
		}
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

func (n *Node) openPipe(id, node string) (*pipe, error) {
	if !validPipe(id) {
		return nil, &Error{Message: fmt.Sprintf("%q is no name of a pipe", id), Exit: ExitUsage}
	}
	if !n.daemon {
		return nil, &Error{Message: "no daemon runs: nobody would carry the pipe", Hint: "mochila serve", Exit: ExitUnavailable}
	}
	peer, err := n.peerID(node)
	if err != nil {
		return nil, err
	}
	return n.pipes.begin(id, peer)
}

// partWith tells the other side that nobody holds this end open any more.
func (n *Node) partWith(id, node string) {
	reqs, err := n.requests(maker{}, PieceRequest(node, []string{id, PipeGone}, time.Now()))
	if err == nil {
		_, err = n.bridge.Jobs().Enqueue(reqs)
	}
	if err != nil {
		n.log.Warn("the other side of a pipe is not told that it was left", "pipe", id, "node", node, "err", err)
	}
}
