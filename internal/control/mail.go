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

// Turn is ETRN (RFC 1985): what waits for the place where mail for name would go is tried now.
func (d mailDesk) Turn(ctx context.Context, name string) error {
	site := strings.TrimLeft(name, "@#")
	if _, ok := d.node.siteDest(site); !ok {
		return envelope.NewStatus(459, "4.7.1", fmt.Sprintf("no mail for %s goes through here", site))
	}
	return d.node.flush(ctx, site)
}
