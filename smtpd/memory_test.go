package smtpd

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"

	"mochila/internal/envelope"
)

// memory is an Acceptor that keeps what it gets. Local parts starting with "no-" are refused with 550, "later-" with
// 450, "broken-" with an error that is not a Status; the domain full.example has no room at Data, and
// stuck.example none at Commit.
type memory struct {
	mu      sync.Mutex
	mails   []stored
	aborted int
	commit  func(ctx context.Context) error // called before a commit, when set
	discard bool                            // count only
	count   int
	turned  []string
}

type stored struct {
	mail *envelope.Mail
	body string
}

func (a *memory) Mail(ctx context.Context, m *envelope.Mail, declared int64) error {
	return verdictFor(m.Sender)
}

func (a *memory) Rcpt(ctx context.Context, m *envelope.Mail, r *envelope.Recipient, _ int64) error {
	return verdictFor(r.Addr)
}

func verdictFor(addr string) error {
	switch {
	case strings.HasPrefix(addr, "no-"):
		return fmt.Errorf("lookup: %w", envelope.NewStatus(550, "5.1.1", "<"+addr+"> is not here"))
	case strings.HasPrefix(addr, "later-"):
		return envelope.NewStatus(450, "4.2.0", "come\r\n250 later")
	case strings.HasPrefix(addr, "broken-"):
		return fmt.Errorf("open /var/secret: no such file")
	case strings.HasPrefix(addr, "away-"):
		return envelope.NewStatus(421, "4.3.2", "closing")
	}
	return nil
}

func (a *memory) Data(ctx context.Context, m *envelope.Mail) (Intake, error) {
	if strings.HasSuffix(m.Recipients[0].Addr, "@full.example") {
		return nil, envelope.NewStatus(452, "4.3.1", "disk reserve touched")
	}
	return &memoryIntake{acceptor: a, mail: m}, nil
}

func (a *memory) Turn(ctx context.Context, name string) error {
	if name == "nobody.example" {
		return envelope.NewStatus(459, "4.5.1", "not a name here")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turned = append(a.turned, name)
	return nil
}

type memoryIntake struct {
	acceptor *memory
	mail     *envelope.Mail
	body     bytes.Buffer
	size     int
	ended    bool
}

func (in *memoryIntake) Write(p []byte) (int, error) {
	if in.ended {
		panic("write after the end")
	}
	if strings.HasSuffix(in.mail.Recipients[0].Addr, "@small.example") && in.size+len(p) > 8 {
		return 0, envelope.NewStatus(452, "4.3.1", "no room")
	}
	in.size += len(p)
	if in.acceptor.discard {
		return len(p), nil
	}
	return in.body.Write(p)
}

func (in *memoryIntake) Commit(ctx context.Context) (string, error) {
	in.end()
	if f := in.acceptor.commit; f != nil {
		if err := f(ctx); err != nil {
			return "", err
		}
	}
	if strings.HasSuffix(in.mail.Recipients[0].Addr, "@stuck.example") {
		return "", fmt.Errorf("fsync: input/output error")
	}
	a := in.acceptor
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	if !a.discard {
		a.mails = append(a.mails, stored{in.mail, in.body.String()})
	}
	return fmt.Sprintf("Q%d", a.count), nil
}

func (in *memoryIntake) Abort() {
	in.end()
	in.acceptor.mu.Lock()
	defer in.acceptor.mu.Unlock()
	in.acceptor.aborted++
}

func (in *memoryIntake) end() {
	if in.ended {
		panic("intake ended twice")
	}
	in.ended = true
}

// got returns what has been committed.
func (a *memory) got() []stored {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]stored(nil), a.mails...)
}
