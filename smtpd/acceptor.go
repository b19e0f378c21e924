package smtpd

import (
	"context"
	"io"

	"mochila/internal/envelope"
)

// Acceptor is what stands behind the listener. Errors that are (or wrap) *envelope.Status become that reply; any
// other error becomes 451 4.3.0 and its text goes to the log only.
type Acceptor interface {
	// Mail is asked once MAIL has been parsed; m has no recipients yet, m.Client is complete. declared is the
	// SIZE= parameter, 0 when absent.
	Mail(ctx context.Context, m *envelope.Mail, declared int64) error
	// Rcpt is asked for each RCPT before it is appended to m.Recipients; declared as above.
	Rcpt(ctx context.Context, m *envelope.Mail, r *envelope.Recipient, declared int64) error
	// Data is asked at DATA, with at least one recipient. What is written to the Intake is canonical: lines end
	// in CRLF, dots are unstuffed.
	Data(ctx context.Context, m *envelope.Mail) (Intake, error)
}

// Intake takes the content of one mail. Exactly one of Commit and Abort is called, once.
type Intake interface {
	io.Writer
	// Commit returns the queue id once the mail is durable, and not before.
	Commit(ctx context.Context) (id string, err error)
	// Abort drops what was written.
	Abort()
}
