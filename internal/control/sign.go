package control

import (
	"bytes"
	"context"
	"io"
	"log/slog"

	"mochila/internal/config"
	"mochila/internal/dkim"
	"mochila/internal/envelope"
	"mochila/smtpd"
)

// dkimKeys loads the keys of the configuration.
func dkimKeys(c *config.Config) (dkim.Keys, error) {
	var keys dkim.Keys
	for _, d := range c.DKIM {
		k, err := dkim.Load(d.Domain, d.Selector, d.Key)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// DKIMRecord is one DNS record, for GET /v1/dkim.
type DKIMRecord struct {
	Domain string `json:"domain"`
	Name   string `json:"name"`   // of the TXT record
	Record string `json:"record"` // its text
}

func (n *Node) dkimRecords() ([]DKIMRecord, error) {
	out := []DKIMRecord{}
	for _, k := range n.signers() {
		name, text, err := k.Record()
		if err != nil {
			return nil, err
		}
		out = append(out, DKIMRecord{Domain: k.Domain, Name: name, Record: text})
	}
	return out, nil
}

func (n *Node) signers() dkim.Keys {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dkim
}

// signed makes the intake of a mail that starts here sign it. Mail that others bring stays as it is: a mail server that
// relays through this node signs its own mail, and a stranger's From field proves nothing.
func (n *Node) signed(in smtpd.Intake, m *envelope.Mail) smtpd.Intake {
	keys := n.signers()
	if len(keys) == 0 || !startsHere(&m.Client) {
		return in
	}
	return &signingIntake{in: in, mail: m, keys: keys, held: smtpd.Held{Dir: n.spool.TempDir()}, log: n.log.With("service", "pickup")}
}

// startsHere reports whether a mail was written by a local user or an account. What came by UUCP or in a batch has been
// elsewhere before.
func startsHere(c *envelope.Client) bool {
	switch c.Proto {
	case "rmail", "bsmtp":
		return false
	}
	return c.UID > 0 || c.User != ""
}

// signingIntake holds a mail back until its signature is known, in memory while it is small, and writes it behind its
// DKIM-Signature then.
type signingIntake struct {
	in   smtpd.Intake
	mail *envelope.Mail
	keys dkim.Keys
	log  *slog.Logger

	header []byte // until its end has come
	ended  bool
	sig    *dkim.Signature // nil: the mail is none of ours, and goes through
	held   smtpd.Held
}

func (s *signingIntake) Write(p []byte) (int, error) {
	var err error
	if s.ended {
		err = s.pass(p)
	} else {
		err = s.head(p)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// head gathers the header.
func (s *signingIntake) head(p []byte) error {
	from := max(0, len(s.header)-3) // the empty line may have begun before p
	s.header = append(s.header, p...)
	end := bytes.Index(s.header[from:], []byte("\r\n\r\n"))
	switch {
	case bytes.HasPrefix(s.header, []byte("\r\n")):
		return s.decide(0)
	case end >= 0:
		return s.decide(from + end + 2)
	case len(s.header) > dkim.MaxHeader:
		return s.decide(0)
	}
	return nil
}

// decide chooses the key once the header is there: its length is n, 0 for one that is too large, or none.
func (s *signingIntake) decide(n int) error {
	s.ended = true
	all := s.header
	s.header = nil
	if n > 0 && n <= dkim.MaxHeader {
		if k := s.keys.For(all[:n]); k != nil {
			sig, err := k.Sign(all[:n])
			if err != nil {
				s.log.Warn("a mail is not signed: " + err.Error())
			}
			s.sig = sig
		}
	}
	return s.pass(all)
}

// pass takes content after the decision.
func (s *signingIntake) pass(p []byte) error {
	if s.sig == nil {
		_, err := s.in.Write(p)
		return err
	}
	s.sig.Write(p)
	_, err := s.held.Write(p)
	return err
}

// Commit writes the signature and the mail, and commits them.
func (s *signingIntake) Commit(ctx context.Context) (string, error) {
	defer s.drop()
	if err := s.release(); err != nil {
		s.in.Abort()
		return "", err
	}
	return s.in.Commit(ctx)
}

// release passes on what was held. A mail that cannot be signed goes without a signature: that is no reason to lose it.
func (s *signingIntake) release() error {
	if !s.ended {
		if err := s.decide(0); err != nil {
			return err
		}
	}
	if s.sig == nil {
		return nil
	}
	field, err := s.sig.Field()
	switch {
	case err != nil:
		s.log.Warn("a mail is not signed: " + err.Error())
	case s.mail.Body == "BINARYMIME": // it may have to be encoded on its way
	default:
		if _, err := io.WriteString(s.in, field); err != nil {
			return err
		}
	}
	_, err = s.held.WriteTo(s.in)
	return err
}

// Abort drops the mail.
func (s *signingIntake) Abort() {
	s.drop()
	s.in.Abort()
}

func (s *signingIntake) drop() {
	if s.sig != nil {
		s.sig.Close() // ends its goroutine
	}
	s.held.Drop()
}

// Data is smtpd.Acceptor's, with the signature.
func (d mailDesk) Data(ctx context.Context, m *envelope.Mail) (smtpd.Intake, error) {
	in, err := d.Bridge.Data(ctx, m)
	if err != nil {
		return nil, err
	}
	return d.node.entering(in, m), nil
}
