// Package deliver hands mail that ends at this node to the local mail system: SMTP, LMTP, sendmail, a Maildir or a
// command. It reports one result per recipient and never retries by itself: the queue does.
//
// What it promises: a mail whose content cannot be read to its end, or is not what its envelope's checksum says, is
// never accepted by anybody in part. SMTP connections are dropped before the final dot, Maildir files are removed
// before they appear, programs are not started.
//
// What it cannot promise: when a connection breaks between the final dot and the answer to it, nobody knows whether
// the server took the mail. Such a recipient stays pending and may get the mail twice.
package deliver

import (
	"context"
	"io"
	"time"

	"mochila/internal/envelope"
)

// Message is one mail with the recipients to try now.
type Message struct {
	Env    *envelope.Envelope
	Rcpts  []int  // indexes into Env.Mail.Recipients, at least one
	Header []byte // trace lines to put in front of the content, CRLF-terminated; may be empty
	// Open returns the content, canonical CRLF lines; it may be called again for a second connection.
	Open func() (io.ReadCloser, error)
	// Fresh says that no earlier attempt, of this process or one before it, can have delivered this mail. It only
	// saves Maildir the search for a copy that a reader has moved meanwhile; leave it false when in doubt.
	Fresh bool
	// Left is what is left, now, of the time of Env.Mail.By; nil reads it off the clock.
	Left func() time.Duration
}

// left is what is left of a deadline that the mail has.
func (m *Message) left(now time.Time) time.Duration {
	if m.Left != nil {
		return m.Left()
	}
	return m.Env.Mail.By.Deadline.Sub(now)
}

// unsupported is the reason why a mail cannot go to a system that does not know deadlines, nil if it can: a sender who
// wants it back when it is late wants it back rather than out of sight (RFC 2852, mode R).
func (m *Message) unsupported() *refusal {
	if by := m.Env.Mail.By; by != nil && by.Return {
		return &refusal{"5.3.3", "it was to be delivered by " + by.Deadline.UTC().Format(time.RFC3339) + " or returned (BY=;R), and the next mail system does not know deadlines (DELIVERBY)"}
	}
	return nil
}

// Result is what happened to one recipient.
type Result struct {
	Rcpt   int             // index into Env.Mail.Recipients
	Action envelope.Action // ActionDelivered, ActionRelayed (taken by a system without DSN), ActionFailed, or ActionPending: try again later
	// Status is the deciding reply. Its Code is 0 where there was none; Enhanced then tells the kind of trouble.
	// Enhanced is always set when Action is Failed or Pending.
	Status  envelope.Status
	MTA     string // who gave it: "127.0.0.1:10026", "maildir"
	DSN     bool   // the next system took over the NOTIFY duties (RFC 3461 section 5.2.2)
	Down    bool   // the place takes no mail at all now: not this mail's fault, others need not be tried
	Corrupt bool   // the stored content is not what Env.Size and Env.Sum say: trying again is of no use
}

// Transport delivers to one place. It is used by several goroutines at once and keeps connections between calls.
type Transport interface {
	// Deliver tries the recipients of m and returns one Result for each, in any order. It never returns fewer: a
	// broken connection makes every undecided recipient pending.
	Deliver(ctx context.Context, m *Message) []Result
	// Close drops idle connections.
	Close() error
}
