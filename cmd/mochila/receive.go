package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"mochila/internal/control"
	"mochila/transport"
)

func (a *app) receiveCmd() *cobra.Command {
	var from, sender string
	var link, mail bool
	c := &cobra.Command{
		Use:   "receive",
		Short: "take packets from standard input",
		Long: `Takes one packet from standard input, for whatever calls this node: an NNCP or UUCP handler, fspl, a pipe. The packet
names its sender; --from only says who handed it over.

With --mail, standard input is a mail of the mail: carrier, as an alias or a pipe transport of the mail server gives it. Parts
of a large packet are kept until it is whole. A bounce of one of this node's own letters shows on its contact.

With --link, standard input and output are a live contact in both directions: that is what the ssh: carrier runs at
the other side, and what its authorized_keys may force.

The exit status is 0 when all is durable here, 75 when it should be offered again, and 65 when it was refused and
should not; refused packets are in the quarantine. With --from nncp, uucp or fspl a refused packet is 0, too: these
programs would offer it for ever.`,
		Example: "  mochila receive < packet\n  mochila receive --mail --sender \"$SENDER\" < mail",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case link && mail:
				return usageError("give one of them", "--link and --mail contradict each other")
			case link:
				return a.link(c.Context())
			case mail:
				if sender == "" && c.Flags().Changed("sender") {
					sender = "<>" // as Postfix and Exim write the null sender
				}
				return a.receive(c.Context(), "/v1/receive/mail", url.Values{"sender": {sender}}, false)
			}
			carrier := carriers[from]
			if carrier {
				from = ""
			}
			return a.receive(c.Context(), "/v1/receive", url.Values{"from": {from}}, carrier)
		},
	}
	c.Flags().BoolVar(&link, "link", false, "a live contact, both ways")
	c.Flags().BoolVar(&mail, "mail", false, "a mail with a packet in it, or a bounce")
	c.Flags().StringVar(&sender, "sender", "", "with --mail: the envelope sender `address`")
	c.Flags().StringVar(&from, "from", "", "who hands it over: a node `name`, or nncp, uucp, fspl")
	_ = c.RegisterFlagCompletionFunc("from", a.names)
	return c
}

// carriers are the programs that offer a packet again, for ever, unless the exit status is 0.
var carriers = map[string]bool{"nncp": true, "uucp": true, "fspl": true}

// receive uploads standard input. Whatever goes wrong is temporary, unless the input itself is; with settle a refused
// packet counts as dealt with.
func (a *app) receive(ctx context.Context, path string, q url.Values, settle bool) error {
	var r control.ReceiveReply
	err := a.node(ctx, func(n *control.Client) error {
		return n.Upload(ctx, path+"?"+q.Encode(), a.env.Stdin, &r)
	})
	var e *control.Error
	switch {
	case err == nil:
		return a.received(r)
	case !errors.As(err, &e):
		return &control.Error{Message: "receive: " + err.Error(), Exit: control.ExitTemp}
	case e.Exit == control.ExitData && settle:
		a.note("mochila: %s", indent(e.Message))
		return nil
	case e.Exit == control.ExitData, e.Exit == control.ExitUsage:
		return err
	}
	return &control.Error{Message: e.Message, Hint: e.Hint, Exit: control.ExitTemp}
}

// received prints what became of the input.
func (a *app) received(r control.ReceiveReply) error {
	switch {
	case a.json:
		return a.asJSON(r, false)
	case r.Bounced:
		a.printf("a letter of this node came back\n")
	case r.Parts > r.Packets:
		a.printf("%s of a packet kept%s\n", count(r.Parts-r.Packets, "part"), when(r.Packets > 0, fmt.Sprintf(", %s taken", count(r.Packets, "packet"))))
	default:
		a.printf("%s taken\n", count(r.Packets, "packet"))
	}
	return nil
}

// link runs a live contact on standard input and output.
func (a *app) link(ctx context.Context) error {
	h, err := a.find()
	if err != nil {
		return err
	}
	return a.node(ctx, func(n *control.Client) error {
		return n.Link(ctx, h, transport.Stdio{In: a.env.Stdin, Out: a.env.Stdout})
	})
}
