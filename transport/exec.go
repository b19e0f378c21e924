package transport

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"strings"
)

// Exec is a Submitter that starts a command for each packet, which it gets on standard input. Exit status 0 says that
// the command has it; 65 that it will not take this one; anything else that it should be offered again.
type Exec struct{ command string }

// NewExec returns the Submitter that runs a shell command.
func NewExec(command string) *Exec { return &Exec{command} }

// Submit implements Submitter. The command finds the packet's name in MOCHILA_PACKET and its size in MOCHILA_SIZE.
func (e *Exec) Submit(ctx context.Context, p *Packet) error {
	env := append(os.Environ(), "MOCHILA_PACKET="+p.ID.String(), "MOCHILA_SIZE="+decimal(p.Size))
	return feed(ctx, feedTime(p.Size), env, []string{"/bin/sh", "-c", e.command}, copyOf(p))
}

// copyOf writes all of a packet.
func copyOf(p *Packet) func(io.Writer) error {
	return func(w io.Writer) error {
		r, err := p.Open(0)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(w, r)
		return err
	}
}

// String is the carrier URL.
func (e *Exec) String() string { return "exec:" + e.command }

// parseExec reads exec:COMMAND. The command is the operator's own and goes to the shell.
func parseExec(rest string, _ url.Values) (Carrier, error) {
	if strings.TrimSpace(rest) == "" {
		return Carrier{}, withHint(errors.New("no command"), "as in exec:ssh hub mochila receive")
	}
	return Carrier{Submitter: NewExec(rest)}, nil
}
