package control

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"strings"

	"mochila/bridge/route"
	"mochila/internal/config"
	"mochila/internal/envelope"
	"mochila/smtpd"
)

// authored holds the author of an account's mail, which its header names, to the senders that the account may use; its
// reverse-path was held to them at MAIL. Mail of others passes: of them nobody knows what they may call themselves.
func (n *Node) authored(in smtpd.Intake, m *envelope.Mail, c *config.Config) smtpd.Intake {
	if !c.SMTP.CheckFrom || m.Client.User == "" || m.Client.UID > 0 {
		return in
	}
	name := m.Client.User
	return &headIntake{in: in, change: func(header []byte) ([]byte, error) {
		list, err := n.accounts.List()
		if err != nil {
			return nil, fmt.Errorf("read the accounts: %w", err)
		}
		for _, a := range list {
			if a.Name != name {
				continue
			}
			if len(a.SendAs) == 0 {
				return header, nil
			}
			ps, err := patterns(a.SendAs)
			if err != nil {
				return nil, fmt.Errorf("account %q: %w", name, err)
			}
			return header, checkAuthors(header, ps, name, c.Domain)
		}
		return nil, envelope.NewStatus(553, "5.7.1", "the account "+name+" is gone")
	}}
}

// checkAuthors compares every address in From and Sender with what an account may use. header is nil where it was too long.
func checkAuthors(header []byte, ps []route.Pattern, name, domain string) error {
	if header == nil {
		return envelope.NewStatus(554, "5.6.0", "the header is too long to see who wrote the mail")
	}
	parser := mail.AddressParser{WordDecoder: &mime.WordDecoder{CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil }}}
	for field := range fields(header) {
		key, value, _ := strings.Cut(field, ":")
		if key = strings.TrimRight(key, " \t"); !strings.EqualFold(key, "from") && !strings.EqualFold(key, "sender") {
			continue
		}
		list, err := parser.ParseList(value)
		if err != nil {
			return envelope.NewStatus(553, "5.7.1", "the field "+key+" cannot be read, and "+name+" may not write as anybody")
		}
		for _, a := range list {
			if !matchSender(ps, complete(a.Address, domain)) {
				return envelope.NewStatus(553, "5.7.1", fmt.Sprintf("%s: <%s> is not allowed for %s", key, envelope.OneLine(a.Address, 200), name))
			}
		}
	}
	return nil
}

// complete gives an address without a domain the node's.
func complete(addr, domain string) string {
	if addr != "" && route.Domain(addr) == "" {
		addr += "@" + domain
	}
	return addr
}

// fields yields the fields of a header, unfolded.
func fields(header []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		var field strings.Builder
		for line := range bytes.Lines(header) {
			if line[0] != ' ' && line[0] != '\t' && field.Len() > 0 {
				if !yield(field.String()) {
					return
				}
				field.Reset()
			}
			field.Write(bytes.TrimRight(line, "\r\n"))
		}
		if field.Len() > 0 {
			yield(field.String())
		}
	}
}
