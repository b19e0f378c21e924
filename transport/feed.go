package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"
)

// A Submitter that is a program gets a packet on its standard input and says by its exit status what became of it
// (sysexits.h). It is killed with its whole process group when it takes too long, when the contact ends, and when the
// packet turns out damaged: then before it sees the end of its input, so that it never takes half a packet for one.

const (
	exitData        = 65 // this packet is not wanted
	exitUnavailable = 69
)

// feedTime is how long a program may take for n bytes: ten minutes, and a second more for each 10 kB.
func feedTime(n int64) time.Duration { return 10*time.Minute + time.Duration(n/10_000)*time.Second }

// feed runs argv with what write produces on its standard input. name stands for the program in errors: it is absent
// when it cannot be started, the packet is refused with exit status 65.
func feed(ctx context.Context, limit time.Duration, env []string, argv []string, write func(io.Writer) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s did not end within %v and was killed", argv[0], limit))
	defer cancel()
	cmd := exec.Command(argv[0], argv[1:]...)
	words := &lastWords{}
	cmd.Stdout, cmd.Stderr = words, words
	cmd.Env = env
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = killAfter // a grandchild may keep the output open
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	if err := cmd.Start(); err != nil {
		in.Close()
		return fmt.Errorf("%w: run %s: %w", ErrAbsent, argv[0], err)
	}
	kill := func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	written := make(chan error, 1)
	go func() {
		p := &pipeEnd{w: in}
		err := write(p)
		if err != nil && !p.broken { // not the program's fault: it must not see the end
			kill()
		}
		in.Close()
		if p.broken {
			err = nil // what it did not read it did not want: its exit status tells
		}
		written <- err
	}()
	stop := context.AfterFunc(ctx, kill)
	ended := cmd.Wait()
	stop()
	in.Close()
	source := <-written
	switch {
	case source != nil:
		return source
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return exited(argv[0], ended, words)
}

// pipeEnd notes whether it was the reader who went away.
type pipeEnd struct {
	w      io.Writer
	broken bool
}

func (p *pipeEnd) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err != nil {
		p.broken = true
	}
	return n, err
}

// exited makes an error of a program's end.
func exited(name string, err error, words *lastWords) error {
	var exit *exec.ExitError
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	if !errors.As(err, &exit) {
		return fmt.Errorf("run %s: %w", name, err)
	}
	text := ""
	if w := words.String(); w != "" {
		text = ": " + w
	}
	switch exit.ExitCode() {
	case exitData:
		return fmt.Errorf("%w by %s (%v)%s", ErrRefused, name, err, text)
	case 127:
		return fmt.Errorf("%w: %s (%v)%s", ErrAbsent, name, err, text)
	}
	return fmt.Errorf("%s: %w%s", name, err, text)
}
