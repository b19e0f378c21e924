package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mochila/internal/control"
)

const (
	pipeHead   = "mochila-pipe 1 "      // the opening job's input is this and the name of the pipe
	pipeHello  = 1                      // the first byte of the answering side's stream: it is there
	pipeWindow = 8                      // pieces under way without an answer
	pipeAgain  = 500 * time.Millisecond // before a piece that found no room is sent again
	pipeGrace  = 30 * time.Second       // for the opening job's result when the pipe is broken
	hangUpWait = 5 * time.Second        // from SIGHUP to SIGKILL
)

func (a *app) pipeCmd() *cobra.Command {
	var channel string
	var answer bool
	c := &cobra.Command{
		Use:   "pipe NODE HANDLER [ARGUMENT…]",
		Short: "standard input and output are those of a program at another node",
		Long: `Runs a handler of another node, and connects its standard input and output with this command's: both ways, live, byte for byte,
sealed like everything else, over whatever leads there, relays included. It is for programs that bring a protocol of their own and
only lack the line: uucico, nncp-daemon, rsync, an ssh server in inetd's manner. The exit status is the program's.

The handler's command at the other node is mochila pipe --answer -- PROGRAM …, granted like any other. The bytes travel
as small jobs in no order, so that this needs contacts that stay open (linger), or a short way; over a stick it works
only for programs with the patience for it. When either side goes, the other one's program hears of it: its input ends, or
SIGHUP ends it.`,
		Example: `  mochila pipe hub uucico                       in UUCP's port: type pipe, command mochila pipe \Z uucico
  mochila pipe --answer -- /usr/sbin/uucico -l  the command of hub's handler`,
		Args: func(c *cobra.Command, args []string) error {
			if answer {
				return takes("PROGRAM", "[ARGUMENT…]")(c, args)
			}
			return takes("NODE", "HANDLER", "[ARGUMENT…]")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(c.Context(), func(n *control.Client) error {
				if !n.Daemon() {
					return &control.Error{Message: "no daemon runs: nobody would carry the pipe", Hint: "mochila serve", Exit: control.ExitUnavailable}
				}
				if answer {
					return a.answerPipe(c.Context(), n, args)
				}
				return a.callPipe(c.Context(), n, args[0], channel, args[1], args[2:])
			})
		},
		ValidArgsFunction: a.names,
	}
	c.Flags().StringVar(&channel, "channel", "", "`name` of the channel in which the handler is granted (default \"default\")")
	c.Flags().BoolVar(&answer, "answer", false, "as the command of a handler: run PROGRAM at this end of the pipe that the job opens")
	c.Flags().SetInterspersed(false)
	return c
}

// pipeEnd is this node's end of a pipe.
type pipeEnd struct {
	a        *app
	n        *control.Client
	id, node string
	window   chan struct{}

	mu  sync.Mutex
	err error // what ended sending
}

func (a *app) newPipeEnd(n *control.Client, id, node string) *pipeEnd {
	return &pipeEnd{a: a, n: n, id: id, node: node, window: make(chan struct{}, pipeWindow)}
}

// fell is how the bytes from the other side ended.
type fell struct {
	how string // control.PipeEnd, control.PipeGone, or "" with err
	err error
}

// receive copies what comes to w until it ends; it returns when this node is ready to take something.
func (p *pipeEnd) receive(ctx context.Context, w io.Writer) (<-chan fell, error) {
	ready := make(chan struct{})
	ended := make(chan fell, 1)
	go func() {
		how, err := p.n.Pipe(ctx, p.id, p.node, w, func() { close(ready) })
		ended <- fell{how, err}
	}()
	select {
	case <-ready:
		return ended, nil
	case f := <-ended:
		return nil, f.err
	}
}

// send carries r to the other side, to its end, and returns when all of it is there.
func (p *pipeEnd) send(ctx context.Context, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	piece := func(offset int64, data []byte, end bool) {
		select {
		case p.window <- struct{}{}:
		case <-ctx.Done():
			return
		}
		work.Go(func() {
			defer func() { <-p.window }()
			if err := p.deliver(ctx, control.PieceArgs(p.id, offset, end), data); err != nil {
				p.mu.Lock()
				if p.err == nil {
					p.err = err
				}
				p.mu.Unlock()
				cancel()
			}
		})
	}
	// What is read waits for nobody who may never write: a piece that is not taken ends it at once.
	type portion struct {
		b   []byte
		err error
	}
	read := make(chan portion)
	go func() {
		for {
			buf := make([]byte, control.MaxPiece)
			k, err := r.Read(buf)
			select {
			case read <- portion{buf[:k], err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	offset := int64(0)
	var err error
	for err == nil && ctx.Err() == nil {
		select {
		case x := <-read:
			if err = x.err; len(x.b) > 0 {
				piece(offset, x.b, false)
				offset += int64(len(x.b))
			}
		case <-ctx.Done():
		}
	}
	if err == io.EOF || errors.Is(err, os.ErrClosed) {
		piece(offset, nil, true)
		err = nil
	}
	work.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	return errors.Join(err, context.Cause(ctx))
}

// deliver sends one piece until the other side has it.
func (p *pipeEnd) deliver(ctx context.Context, args []string, data []byte) error {
	for {
		tickets, err := p.a.enqueue(ctx, p.n, control.PieceRequest(p.node, args, time.Now()), bytes.NewReader(data))
		if err != nil {
			return err
		}
		it, err := awaitOne(ctx, p.n, tickets[0].ID)
		if err != nil {
			return err
		}
		code := statusOf(it)
		switch {
		case code == 0:
			return nil
		case code == control.ExitTemp: // no room
		case it.Result != nil && it.Result.Reason != "":
			return fmt.Errorf("%s does not take what is sent: %s", p.node, it.Result.Reason)
		default:
			return fmt.Errorf("%s did not get what was sent: the piece is %s", p.node, it.State)
		}
		select {
		case <-time.After(pipeAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// callPipe opens a pipe to a handler of another node, and is this end of it.
func (a *app) callPipe(ctx context.Context, n *control.Client, node, channel, handler string, args []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := a.newPipeEnd(n, rand.Text(), node)
	first := &helloFirst{w: a.env.Stdout, there: make(chan struct{})}
	incoming, err := p.receive(ctx, first)
	if err != nil {
		return err
	}
	q := control.RunRequest{Nodes: []string{node}, Channel: channel, Handler: handler, Args: args, Unordered: true, Priority: 9}
	tickets, err := a.enqueue(ctx, n, q, strings.NewReader(pipeHead+p.id+"\n"))
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		select {
		case <-first.there:
			sent <- p.send(ctx, a.env.Stdin)
		case <-ctx.Done():
		}
	}()
	result := make(chan error, 1)
	var it control.JobItem
	go func() {
		var err error
		it, err = awaitOne(ctx, n, tickets[0].ID)
		result <- err
	}()
	var broken error
	var grace <-chan time.Time
	over := false // all has come
	for {
		select {
		case f := <-incoming:
			incoming, over = nil, f.how == control.PipeEnd
			if !over {
				broken = errors.Join(broken, f.err)
				grace = time.After(pipeGrace)
			}
		case err := <-sent:
			if sent = nil; err != nil && ctx.Err() == nil {
				broken = errors.Join(broken, err)
				grace = time.After(pipeGrace)
			}
		case err := <-result:
			if ctx.Err() != nil {
				first.forget(n, tickets[0].ID)
				return &control.Error{Message: "interrupted", Exit: control.ExitTemp}
			}
			if err != nil {
				return err
			}
			if err := a.pipeOver(ctx, n, it, incoming); err != nil {
				return err
			}
			return first.met(node, handler)
		case <-grace:
			if broken == nil {
				broken = errors.New("nobody is there any more")
			}
			return &control.Error{Message: fmt.Sprintf("the pipe to %s broke: %v", node, broken), Hint: "mochila jobs show " + tickets[0].ID, Exit: control.ExitUnavailable}
		}
	}
}

// pipeOver ends a pipe whose program has ended: what it wrote last may still be under way.
func (a *app) pipeOver(ctx context.Context, n *control.Client, it control.JobItem, incoming <-chan fell) error {
	ran := it.Result != nil && !it.Result.Started.IsZero()
	if incoming != nil && ran {
		select {
		case <-incoming:
		case <-time.After(pipeGrace):
		}
	}
	if err := a.passOn(ctx, n, it, false); err != nil {
		return err
	}
	if code := statusOf(it); code != 0 {
		return exit(code)
	}
	return nil
}

// answerPipe runs a program at this end of the pipe that the job on standard input opens.
func (a *app) answerPipe(ctx context.Context, n *control.Client, args []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	origin, _ := a.env.Getenv("MOCHILA_ORIGIN")
	line, err := bufio.NewReader(io.LimitReader(a.env.Stdin, 256)).ReadString('\n')
	id, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), pipeHead)
	if !ok || err != nil || origin == "" {
		return &control.Error{Message: "standard input opens no pipe", Hint: "mochila pipe --answer is the command of a handler; mochila pipe NODE HANDLER calls it", Exit: control.ExitData}
	}
	p := a.newPipeEnd(n, id, origin)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = a.env.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout = w
	incoming, err := p.receive(ctx, &inputOf{w: in})
	if err != nil {
		w.Close()
		return err
	}
	// Below nohup SIGHUP is ignored, and the program would inherit that. What is caught here it does not.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	err = cmd.Start()
	signal.Stop(caught)
	w.Close()
	if err != nil {
		return &control.Error{Message: err.Error(), Hint: "the program of this handler", Exit: control.ExitUnavailable}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	sent := make(chan error, 1)
	go func() { sent <- p.send(ctx, io.MultiReader(bytes.NewReader([]byte{pipeHello}), out)) }()
	for {
		select {
		case f := <-incoming:
			incoming = nil
			in.Close()
			if f.how != control.PipeEnd {
				hangUp(cmd.Process)
			}
		case err := <-sent:
			sent = nil
			if err != nil {
				hangUp(cmd.Process)
			}
		case err := <-ended:
			if sent != nil {
				err = errors.Join(err, <-sent) // what it wrote last
			}
			return programStatus(cmd, err)
		}
	}
}

// helloFirst passes on what follows the first byte, which says that the other side is there.
type helloFirst struct {
	w     io.Writer
	there chan struct{}
	seen  bool
}

func (h *helloFirst) Write(b []byte) (int, error) {
	if h.seen || len(b) == 0 {
		return h.w.Write(b)
	}
	if b[0] != pipeHello {
		return 0, fmt.Errorf("the other side speaks another version of this: %d", b[0])
	}
	h.seen = true
	close(h.there)
	n, err := h.w.Write(b[1:])
	return n + 1, err
}

// forget takes an opening back that nobody has answered yet.
func (h *helloFirst) forget(n *control.Client, job string) {
	select {
	case <-h.there:
	default:
		ctx, cancel := context.WithTimeout(context.Background(), hangUpWait)
		defer cancel()
		n.Post(ctx, "/v1/jobs", control.JobAction{Verb: "cancel", IDs: []string{job}}, nil) // if it cannot, the program there is hung up on
	}
}

// met says why there was no pipe when the handler has succeeded.
func (h *helloFirst) met(node, handler string) error {
	select {
	case <-h.there:
		return nil
	default:
		return &control.Error{Message: fmt.Sprintf("the handler %q at %s is no end of a pipe", handler, node),
			Hint: "its command there must be: mochila pipe --answer -- PROGRAM …", Exit: control.ExitData}
	}
}

// inputOf is the input of a program. One that reads no more, or has ended, may still write: what it does not want is dropped.
type inputOf struct {
	w    io.Writer
	deaf bool
}

func (i *inputOf) Write(b []byte) (int, error) {
	if !i.deaf {
		_, err := i.w.Write(b)
		i.deaf = err != nil
	}
	return len(b), nil
}

// hangUp asks a program to end, and makes it. It may have ended.
func hangUp(p *os.Process) {
	p.Signal(syscall.SIGHUP)
	time.AfterFunc(hangUpWait, func() { p.Kill() })
}

// programStatus passes on how a program ended.
func programStatus(cmd *exec.Cmd, err error) error {
	s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case ok && s.Signaled():
		return exit(128 + int(s.Signal()))
	case cmd.ProcessState.ExitCode() != 0:
		return exit(cmd.ProcessState.ExitCode())
	}
	return err
}
