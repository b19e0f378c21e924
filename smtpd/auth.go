package smtpd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// Accounts knows who may log in (RFC 4954). It may be used from many goroutines. ErrCredentials says that the client
// is wrong; any other error is trouble of this node: the client hears 454, the log the text.
type Accounts interface {
	// Ready reports whether there is any account: without one, AUTH is not offered.
	Ready() bool
	// Login checks a name and a password.
	Login(ctx context.Context, name, password string) (*Account, error)
	// Exchange begins a login by SCRAM-SHA-256 (RFC 7677).
	Exchange() Exchange
}

// Exchange is one login by SCRAM-SHA-256.
type Exchange interface {
	// Step takes a message of the client and returns the server's; the account comes with the last one.
	Step(msg string) (reply string, who *Account, err error)
}

// Account is a client that has logged in. It may send to any recipient.
type Account struct {
	Name string
	// MaySend tells whether it may use a sender, wire text, "" for the null sender; nil: any.
	MaySend func(sender string) bool
}

// ErrCredentials is what Accounts returns for a wrong name or password, without telling which.
var ErrCredentials = errors.New("wrong name or password")

// errCancelled is the client's "*".
var errCancelled = errors.New("cancelled")

// mechanism is the server's side of one SASL exchange. next takes what the client said, nil for nothing yet, and
// returns the challenge, or the account at the end.
type mechanism interface {
	next(ctx context.Context, said []byte) (challenge []byte, who *Account, err error)
}

// mechanisms in the order of the EHLO reply.
const mechanisms = "PLAIN LOGIN SCRAM-SHA-256"

func (c *conn) mechanism(name string) mechanism {
	switch strings.ToUpper(name) {
	case "PLAIN":
		return &plain{c.srv.Accounts}
	case "LOGIN":
		return &login{accounts: c.srv.Accounts}
	case "SCRAM-SHA-256":
		return &scram{exchange: c.srv.Accounts.Exchange()}
	}
	return nil
}

// offersAuth reports whether this client may log in here and now: passwords do not cross a network in clear.
func (c *conn) offersAuth() bool {
	return c.srv.Accounts != nil && !c.srv.LMTP && (c.peer.TLS != "" || c.local || c.srv.AuthWithoutTLS) && c.srv.Accounts.Ready()
}

// mayRelay reports whether the client may send to anybody.
func (c *conn) mayRelay() bool { return c.trusted || c.account != nil }

// auth is AUTH.
func (c *conn) auth(args string) {
	name, initial, has := strings.Cut(args, " ")
	switch {
	case c.srv.Accounts == nil || c.srv.LMTP:
		c.fail(502, "5.5.1", "AUTH is not offered")
		return
	case !c.esmtp || c.mail != nil:
		c.fail(503, "5.5.1", "AUTH belongs between EHLO and MAIL")
		return
	case c.account != nil:
		c.fail(503, "5.5.1", "you are logged in already")
		return
	case !c.offersAuth():
		c.fail(538, "5.7.11", "encryption is required: STARTTLS first")
		return
	}
	if st := c.srv.gate.mayTry(time.Now(), c.key, c.trusted, c.lim); st != nil {
		c.replyStatus(st)
		return
	}
	m := c.mechanism(name)
	if m == nil {
		c.fail(504, "5.5.4", "there are PLAIN, LOGIN and SCRAM-SHA-256")
		return
	}
	who, err := c.converse(m, strings.TrimLeft(initial, " \t"), has)
	switch {
	case c.closing: // the connection broke; there is nobody to answer
	case err == nil:
		c.account, c.method = who, strings.ToUpper(name)
		c.reply(235, "2.7.0", "welcome")
	case errors.Is(err, errCancelled):
		c.fail(501, "5.0.0", "cancelled")
	case errors.Is(err, errPathSyntax):
		c.fail(501, "5.5.2", "not base64, or not what this mechanism says")
	case errors.Is(err, ErrCredentials):
		c.denied(strings.ToUpper(name))
	default:
		c.srv.log.Error("while authenticating " + c.who() + ": " + printable(err.Error(), maxReply))
		c.reply(454, "4.7.0", "cannot check passwords now, try again later")
	}
}

// denied answers a wrong password, later each time. The line is Postfix's, so that fail2ban knows it.
func (c *conn) denied(method string) {
	c.srv.log.Warn(c.who() + ": SASL " + method + " authentication failed: wrong name or password")
	c.srv.gate.failed(time.Now(), c.key, c.trusted)
	c.denials++
	c.pause(time.Duration(c.denials) * c.lim.AuthPause)
	if c.denials >= c.lim.Denials {
		c.reply(421, "4.7.0", "too many wrong passwords")
		c.closing, c.linger = true, true
		return
	}
	c.fail(535, "5.7.8", "wrong name or password")
}

// converse holds one SASL exchange. When the connection breaks, closing is set.
func (c *conn) converse(m mechanism, initial string, has bool) (*Account, error) {
	var said []byte
	if has {
		var err error
		if said, err = unbase64([]byte(initial)); err != nil {
			return nil, err
		}
	}
	for range 4 { // no mechanism needs more
		challenge, who, err := m.next(c.ctx, said)
		if err != nil || who != nil {
			return who, err
		}
		c.reply(334, "", base64.StdEncoding.EncodeToString(challenge))
		line, err := c.readLine()
		switch {
		case errors.Is(err, errLineLong):
			return nil, errPathSyntax
		case err != nil:
			c.hangUp(err)
			return nil, err
		case bytes.Equal(line, []byte("*")):
			return nil, errCancelled
		}
		if said, err = unbase64(line); err != nil {
			return nil, err
		}
	}
	return nil, errPathSyntax
}

// unbase64 decodes a response; "=" is an empty initial one. The result is never nil.
func unbase64(b []byte) ([]byte, error) {
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	if string(b) == "=" {
		return out[:0], nil
	}
	n, err := base64.StdEncoding.Strict().Decode(out, b)
	if err != nil {
		return nil, errPathSyntax
	}
	return out[:n], nil
}

// plain is RFC 4616: authorization identity, name, password.
type plain struct{ accounts Accounts }

func (p *plain) next(ctx context.Context, said []byte) ([]byte, *Account, error) {
	if said == nil {
		return nil, nil, nil
	}
	f := bytes.Split(said, []byte{0})
	if len(f) != 3 || len(f[1]) == 0 {
		return nil, nil, errPathSyntax
	}
	if len(f[0]) > 0 && !bytes.Equal(f[0], f[1]) {
		return nil, nil, ErrCredentials // nobody acts for somebody else
	}
	who, err := p.accounts.Login(ctx, string(f[1]), string(f[2]))
	return nil, who, err
}

// login is what Outlook and many devices speak; there is no RFC. A first response is the name.
type login struct {
	accounts Accounts
	name     []byte
	asked    bool
}

func (l *login) next(ctx context.Context, said []byte) ([]byte, *Account, error) {
	switch {
	case said == nil && !l.asked:
		l.asked = true
		return []byte("Username:"), nil, nil
	case l.name == nil:
		if len(said) == 0 {
			return nil, nil, errPathSyntax
		}
		l.name = said
		return []byte("Password:"), nil, nil
	}
	who, err := l.accounts.Login(ctx, string(l.name), string(said))
	return nil, who, err
}

// scram is RFC 7677. The server's last message is a challenge with an empty response (RFC 4954 section 4).
type scram struct {
	exchange Exchange
	who      *Account
}

func (s *scram) next(_ context.Context, said []byte) ([]byte, *Account, error) {
	if s.who != nil {
		if len(said) > 0 {
			return nil, nil, errPathSyntax
		}
		return nil, s.who, nil
	}
	if said == nil {
		return nil, nil, nil
	}
	reply, who, err := s.exchange.Step(string(said))
	s.who = who
	return []byte(reply), nil, err
}

// maySend checks the sender of a client that has logged in.
func (c *conn) maySend(sender string) *envelope.Status {
	if c.account == nil || c.account.MaySend == nil || c.account.MaySend(sender) {
		return nil
	}
	return envelope.NewStatus(553, "5.7.1", "sender address not allowed for "+c.account.Name)
}
