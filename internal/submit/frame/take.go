package frame

import (
	"context"
	"fmt"
	"io"
	"sync"

	"mochila/internal/envelope"
)

// Submitter is who hands in a mail, by the word of the kernel.
type Submitter struct {
	UID     int64
	Name    string // login name
	Trusted bool   // may say how the mail came (Client.Proto)
}

// Stamp completes the mail of a request with what its submitter cannot say of himself.
func (q *Request) Stamp(by Submitter) {
	m := q.Mail
	m.Client.UID, m.Client.User = by.UID+1, by.Name
	switch m.Client.Proto {
	case "bsmtp", "rmail":
	case "":
		m.Client.Proto = "local"
	default:
		if !by.Trusted {
			m.Client.Proto = "local"
		}
	}
	if q.Owner {
		m.Sender = by.Name
	}
}

// Intake takes the content of one mail. Exactly one of Commit and Abort is called, once.
type Intake interface {
	io.Writer
	Commit(ctx context.Context) (id string, err error)
	Abort()
}

// rooms are what contents were copied through: new for each, they would be most of the memory that a small mail takes.
var rooms = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Into copies the content into an intake and commits it when all of it was there, else aborts. m is the mail that
// the intake was opened for: binary content sets its Body. A commit that has begun is not interrupted by ctx.
func (c *Content) Into(ctx context.Context, in Intake, m *envelope.Mail) (id string, err error) {
	room := rooms.Get().(*[32 << 10]byte)
	defer rooms.Put(room)
	buf := room[:]
	for {
		n, err := c.Read(buf)
		if n > 0 && (err == nil || err == io.EOF) {
			if _, werr := in.Write(buf[:n]); werr != nil {
				in.Abort()
				return "", fmt.Errorf("storing a submission: %w", werr)
			}
		}
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			in.Abort()
			return "", err
		}
	}
	if c.Binary() {
		m.Body = "BINARYMIME"
	}
	id, err = in.Commit(context.WithoutCancel(ctx))
	if err != nil {
		return "", fmt.Errorf("storing a submission: %w", err)
	}
	return id, nil
}
