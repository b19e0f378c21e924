// Package deliver hands mail that ends at this node to the local mail system: SMTP, LMTP, sendmail, a Maildir or a
// command. It reports one result per recipient and never retries by itself: the queue does.
package deliver

import (
	"context"
	"io"

	"mochila/internal/envelope"
)

// Message is one mail with the recipients to try now.
type Message struct {
	Env    *envelope.Envelope
	Rcpts  []int  // indexes into Env.Mail.Recipients, at least one
	Header []byte // trace lines to put in front of the content, CRLF-terminated; may be empty
	// Open returns the content, canonical CRLF lines; it may be called again for a second connection.
	Open func() (io.ReadCloser, error)
}

// Result is what happened to one recipient.
type Result struct {
	Rcpt   int             // index into Env.Mail.Recipients
	Action envelope.Action // ActionDelivered, ActionRelayed (taken by a system without DSN), ActionFailed, or ActionPending: try again later
	Status envelope.Status // the deciding reply
	MTA    string          // who gave it: "127.0.0.1:10026", "maildir"
	DSN    bool            // the next system took over the NOTIFY duties (RFC 3461 section 5.2.2)
}

// Transport delivers to one place. It is used by several goroutines at once and keeps connections between calls.
type Transport interface {
	// Deliver tries the recipients of m and returns one Result for each, in any order. It never returns fewer: a
	// broken connection makes every undecided recipient pending.
	Deliver(ctx context.Context, m *Message) []Result
	// Close drops idle connections.
	Close() error
}
