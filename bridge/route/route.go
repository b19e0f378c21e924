// Package route decides where a recipient's mail goes: it ends here (Deliver), travels to a node (Node), or is
// refused. It is a pure function of the configuration.
package route

import (
	"time"

	"mochila/internal/envelope"
)

// Rule is one [[route]] or [[deliver]] table of the configuration.
type Rule struct {
	To       []string          // patterns: "user@domain", "domain", "*.domain" (not the domain itself), "*"
	From     []string          // sender patterns; empty matches all; "<>" the null sender
	MaxSize  int64             // bytes; larger mail is refused (552 5.3.4) at this rule; 0 no limit
	Via      string            // deliver rules: "smtp:127.0.0.1:10026" …
	Node     envelope.NodeID   // route rules
	NodeName string            // its local name
	Path     []envelope.NodeID // relay chain to Node; empty means Node is a neighbour, or its contact's own path
	Lifetime time.Duration     // 0: the default
	KeepHop  bool              // keep = "hop"
}

// Table holds the rules in the order they are tried: deliver rules first, then route rules, each in file order.
type Table struct {
	Deliver []Rule
	Route   []Rule
}
