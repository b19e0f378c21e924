package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"mochila/internal/control"
)

func (a *app) peerCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "peer",
		Short: "nodes whose cards this node holds",
		Long: `A peer is a node whose card this node holds. mochila invite and mochila join make peers; peer add does it from a
card that came some other way: check the id with the other side before you rely on it.`,
	})
	c.AddCommand(a.peerAddCmd(), a.peerListCmd(), a.peerShowCmd(), a.peerRemoveCmd())
	return c
}

func (a *app) peerAddCmd() *cobra.Command {
	var q control.PeerAdd
	c := &cobra.Command{
		Use:   "add NAME CARD",
		Short: "add a peer, or take a newer card of one",
		Long: `Adds the node of the card in the file CARD ("-" for standard input) as NAME. What the card says of domains makes
no route without --accept-domains; NAME.mochila is always routed to it.`,
		Example: "  mochila peer add hub hub.card --carrier tcp:hub.example:2424 --to hub.example\n  ssh hub mochila card | mochila peer add hub - --carrier ssh:hub",
		Args:    takes("NAME", "CARD"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			q.Name = args[0]
			if q.Card, err = a.readFile(args[1]); err != nil {
				return err
			}
			if q.Carrier != "" {
				if q.Carrier, err = a.carrier(q.Carrier); err != nil {
					return err
				}
			}
			p, err := post[control.PeerStatus](c.Context(), a, "/v1/peers", q)
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(p, false)
			}
			a.printf("%s is a peer now (%s)\n", safe(p.Name), p.ID)
			if len(p.Domains) > 0 && !q.AcceptDomains {
				a.printf("Its card names %s: --accept-domains, or --to, routes them to it.\n", list(p.Domains))
			}
			if len(p.Contacts) == 0 && q.When != "on-call" && len(q.Path) == 0 {
				a.printf("No contact leads to it yet: --carrier URL, or --when on-call if it calls this node.\n")
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&q.Carrier, "carrier", "", "how it is reached: a `URL` or folder")
	f.StringVar(&q.When, "when", "", "`when` it is reached: always, 5m, on-call, manual, or windows")
	f.StringSliceVar(&q.Routes, "to", nil, "route mail for these `patterns` to it")
	f.BoolVar(&q.AcceptDomains, "accept-domains", false, "route the domains that its card names to it")
	f.StringSliceVar(&q.SendAs, "send-as", nil, "sender `patterns` that it may use (default any)")
	f.StringSliceVar(&q.SendTo, "send-to", nil, "recipient `patterns` that it may reach (default: what is delivered here)")
	f.StringSliceVar(&q.RelayTo, "relay-to", nil, "`nodes` to which this node relays for it, * for all (default none)")
	f.StringSliceVar(&q.Path, "path", nil, "relay chain to it: `nodes`, first hop first")
	return c
}

func (a *app) peerListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list peers",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			peers, err := get[[]control.PeerStatus](c.Context(), a, "/v1/peers")
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(peers, false)
			}
			if len(*peers) == 0 {
				a.printf("No peers yet. mochila invite NAME DIR invites one.\n")
				return nil
			}
			rows := [][]string{{"NAME", "ID", "HEARD", "CARRIERS"}}
			for _, p := range *peers {
				rows = append(rows, []string{safe(p.Name), p.ID, a.ago(p.Heard), list(p.Contacts)})
			}
			a.table(rows)
			return nil
		},
	}
}

func (a *app) peerShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "show one peer",
		Args:              takes("NAME"),
		ValidArgsFunction: a.names,
		RunE: func(c *cobra.Command, args []string) error {
			peers, err := get[[]control.PeerStatus](c.Context(), a, "/v1/peers")
			if err != nil {
				return err
			}
			for _, p := range *peers {
				if p.Name != args[0] {
					continue
				}
				if a.json {
					return a.asJSON(p, false)
				}
				a.showPeer(p)
				return nil
			}
			return &control.Error{Message: fmt.Sprintf("there is no peer %q", args[0]), Hint: "mochila peer list", Exit: control.ExitData}
		},
	}
}

func (a *app) showPeer(p control.PeerStatus) {
	or := func(s []string, none string) string {
		if len(s) == 0 {
			return none
		}
		return list(s)
	}
	a.printf("%s\n", safe(p.Name))
	for _, row := range [][2]string{
		{"id", p.ID}, {"full id", p.Full},
		{"card", "to be used until " + clock(p.CardEnds)},
		{"last heard", clock(p.Heard) + when(!p.Heard.IsZero(), " ("+a.ago(p.Heard)+")")},
		{"carriers", or(p.Contacts, "none")},
		{"card's domains", or(p.Domains, "none")},
		{"may send as", or(p.SendAs, "anybody")},
		{"may send to", or(p.SendTo, "what is delivered here")},
		{"may relay to", or(p.RelayTo, "nobody")},
	} {
		a.printf("  %-15s %s\n", row[0], row[1])
	}
}

func (a *app) peerRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME",
		Short:             "remove a peer",
		Long:              "Removes a peer with its contacts and routes. Mail that waits for it stays in the queue until it expires, or is removed.",
		Args:              takes("NAME"),
		ValidArgsFunction: a.names,
		RunE: func(c *cobra.Command, args []string) error {
			return a.tell(c.Context(), "/v1/peers/remove", map[string]string{"name": args[0]}, safe(args[0])+" is no peer any more")
		},
	}
}

// list joins words, made safe.
func list(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = safe(w)
	}
	return strings.Join(out, ", ")
}

// when is s if ok.
func when(ok bool, s string) string {
	if ok {
		return s
	}
	return ""
}
