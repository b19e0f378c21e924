package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"mochila/bridge/deliver"
	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
	"mochila/transport/letter"
)

// receive takes one packet from a program: an NNCP or UUCP handler, a pipe. from is a peer, or "".
func (n *Node) receive(ctx context.Context, from string, body io.Reader) (*ReceiveReply, error) {
	var prev envelope.NodeID
	if from != "" {
		for _, p := range n.bridge.Policy().Peers {
			if p.Name == from {
				prev = p.ID
			}
		}
		if prev.IsZero() {
			return nil, &Error{Message: fmt.Sprintf("there is no peer %q", from), Hint: "mochila peer list", Exit: ExitUsage}
		}
	}
	if err := n.bridge.ReceiveFrom(ctx, prev, -1, unbroken{body}); err != nil {
		return nil, takenError(err)
	}
	return &ReceiveReply{Packets: 1}, nil
}

// unbroken makes of a stream that breaks off a packet that is not complete yet: nothing of it is kept, nor blamed.
type unbroken struct{ r io.Reader }

func (u unbroken) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", transport.ErrIncomplete, err)
	}
	return n, err
}

// takenError says whether a packet should be offered again: only one that was refused should not.
func takenError(err error) *Error {
	switch {
	case errors.Is(err, transport.ErrRefused):
		return &Error{Message: err.Error(), Hint: "mochila quarantine list", Exit: ExitData}
	case errors.Is(err, letter.ErrDamaged), errors.Is(err, letter.ErrNoLetter), errors.Is(err, letter.ErrFull):
		return &Error{Message: err.Error(), Exit: ExitData}
	case errors.Is(err, spool.ErrFull):
		return &Error{Message: err.Error(), Hint: "make room on the disk of the spool", Exit: ExitTemp}
	}
	return &Error{Message: err.Error(), Exit: ExitTemp}
}

// receiveMail takes a letter of the mail: carrier, or what a mail server says about one of ours. sender is the
// envelope sender, "<>" for the null sender, "" when it is not known. nil: what it held is durable.
func (n *Node) receiveMail(ctx context.Context, sender string, body io.Reader) (*ReceiveReply, error) {
	r, err := n.openMail(ctx, sender, unbroken{body})
	if err != nil {
		return nil, takenError(err)
	}
	return r, nil
}

func (n *Node) openMail(ctx context.Context, sender string, body io.Reader) (*ReceiveReply, error) {
	m, err := letter.Open(body)
	if err != nil {
		return nil, err
	}
	reply := &ReceiveReply{}
	if m.IsBounce(sender) {
		bounce, err := m.Bounce()
		if err != nil {
			return nil, err
		}
		if bounce.Failed && bounce.Packet != ([32]byte{}) {
			if reply.Bounced, err = n.bridge.Bounced(bounce.Packet, bounce.Text); err != nil {
				return nil, err
			}
		}
		if !reply.Bounced {
			n.log.Info("a mail about a letter changes nothing", "text", printable(bounce.Text))
		}
		return reply, nil
	}
	err = m.Parts(func(p letter.Part, data io.Reader) error {
		whole, err := n.part(ctx, p, data)
		if whole {
			reply.Packets++
		}
		reply.Parts++
		return err
	})
	if errors.Is(err, letter.ErrNoLetter) || errors.Is(err, letter.ErrDamaged) {
		n.log.Warn("a mail to the address of this node's letters is none", "from", printable(m.From()), "err", err)
	}
	return reply, err
}

// part takes one part of a packet; whole says that it was the last one missing.
func (n *Node) part(ctx context.Context, p letter.Part, data io.Reader) (whole bool, err error) {
	if p.Whole() {
		return true, n.bridge.ReceiveFrom(ctx, envelope.NodeID{}, p.Size, data)
	}
	if n.spool.Full() {
		return false, spool.ErrFull
	}
	if whole, err = n.letters.Keep(p, data); err != nil || !whole {
		return false, err
	}
	r, err := n.letters.Open(p)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // another one was as late, and took it
	}
	if err != nil {
		return false, err
	}
	defer r.Close()
	err = n.bridge.ReceiveFrom(ctx, envelope.NodeID{}, p.Size, r)
	switch {
	case err == nil:
		n.letters.Done(p)
	case errors.Is(err, transport.ErrRefused):
		n.letters.Forget(p) // perhaps one of its parts was forged: it may come again
	}
	return err == nil, err
}

// viaPackets is the delivery URL of an address whose mails are letters.
const viaPackets = "receive:packets"

// packetsDesk opens mails as letters instead of delivering them.
type packetsDesk struct{ n *Node }

// Deliver implements deliver.Transport.
func (d packetsDesk) Deliver(ctx context.Context, m *deliver.Message) []deliver.Result {
	out := deliver.Result{Action: envelope.ActionDelivered, MTA: viaPackets, Status: envelope.Status{Code: 250, Enhanced: "2.0.0", Text: "taken"}}
	if err := d.open(ctx, m); err != nil {
		text := envelope.OneLine(err.Error(), 200)
		out.Action, out.Status = envelope.ActionPending, envelope.Status{Code: 451, Enhanced: "4.3.0", Text: text}
		if takenError(err).Exit == ExitData {
			out.Action, out.Status = envelope.ActionFailed, envelope.Status{Code: 554, Enhanced: "5.6.0", Text: text}
		}
		if ctx.Err() != nil {
			out.Down = true
		}
	}
	var all []deliver.Result
	for _, i := range m.Rcpts {
		out.Rcpt = i
		all = append(all, out)
	}
	return all
}

func (d packetsDesk) open(ctx context.Context, m *deliver.Message) error {
	r, err := m.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	sender := m.Env.Mail.Sender
	if sender == "" {
		sender = "<>"
	}
	_, err = d.n.openMail(ctx, sender, r)
	return err
}

// Close implements deliver.Transport.
func (packetsDesk) Close() error { return nil }
