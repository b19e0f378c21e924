package control

import (
	"context"
	"fmt"
	"strings"

	"mochila/bridge"
	"mochila/internal/envelope"
	"mochila/smtpd"
)

// mailDesk is the engine as the SMTP listeners see it, with ETRN.
type mailDesk struct {
	*bridge.Bridge
	node *Node
}

var (
	_ smtpd.Acceptor = mailDesk{}
	_ smtpd.Turner   = mailDesk{}
)

// Turn is ETRN (RFC 1985): what waits for the node where mail for name would go is tried now.
func (d mailDesk) Turn(ctx context.Context, name string) error {
	site := strings.TrimLeft(name, "@#")
	if site == "" {
		return envelope.NewStatus(501, "5.5.4", "ETRN needs a name")
	}
	t := d.node.routeTest("", "postmaster@"+site, 0)
	if _, peer := d.node.config().Peer(site); !t.OK && !peer {
		return envelope.NewStatus(459, "4.7.1", fmt.Sprintf("no mail for %s goes through here", site))
	}
	return d.node.flush(ctx, site)
}
