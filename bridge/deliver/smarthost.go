package deliver

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/emersion/go-sasl"
)

// smarthost is how a server elsewhere is spoken to: encrypted, its certificate checked, and perhaps as a user of it.
type smarthost struct {
	implicit bool   // TLS from the first byte; else STARTTLS, which must succeed
	host     string // whose certificate it must be
	user     string // "" = without AUTH
	secret   string // the file with the user's password
}

// newSmarthost reads [USER@]HOST[:PORT], the user up to the last "@".
func newSmarthost(implicit bool, rest string, o Options) (Transport, error) {
	user, addr := "", rest
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		if user, addr = rest[:i], rest[i+1:]; user == "" {
			return nil, errors.New("the user in front of @ is missing")
		}
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), map[bool]string{true: "465", false: "587"}[implicit])
	}
	host, _, _ := net.SplitHostPort(addr)
	h := &smarthost{implicit: implicit, host: host, user: user}
	if user != "" {
		name := user + "@" + host
		if strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
			return nil, fmt.Errorf("%q cannot be the name of a file with a password", name)
		}
		var err error
		if h.secret, err = localPath(filepath.Join("secrets", name), o); err != nil {
			return nil, err
		}
	}
	t, err := newSMTP("tcp", addr, false, o)
	if err != nil {
		return nil, err
	}
	t.(*smtp).o.host = h
	return t, nil
}

// password reads the file of the user's password. A file that others can read is refused.
func (h *smarthost) password() (string, error) {
	fi, err := os.Stat(h.secret)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no password for %s: put it into %s, mode 600", h.user, h.secret)
	}
	if err != nil {
		return "", err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("others can read %s: chmod 600 %s", h.secret, h.secret)
	}
	if fi.Size() > 4096 {
		return "", fmt.Errorf("%s is too long for a password", h.secret)
	}
	b, err := os.ReadFile(h.secret)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// wrap starts TLS on a connection.
func (h *smarthost) wrap(ctx context.Context, c *client) error {
	conf := &tls.Config{ServerName: h.host, MinVersion: tls.VersionTLS12, RootCAs: c.o.RootCAs}
	t := tls.Client(c.nc, conf)
	ctx, cancel := context.WithTimeout(ctx, c.o.Connect)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return &down{ours("4.7.5", fmt.Sprintf("TLS with %s: %s", h.host, reason(err)))}
	}
	c.nc = t
	c.r.Reset(t)
	return nil
}

// secure brings a greeted connection to where mail may be sent: encrypted, and logged in.
func (h *smarthost) secure(ctx context.Context, c *client) error {
	if !h.implicit {
		if !c.has("STARTTLS") {
			return &down{ours("4.7.4", h.host+" offers no STARTTLS")}
		}
		if err := c.expect("STARTTLS", 220); err != nil {
			return err
		}
		if c.r.Buffered() > 0 {
			return &down{ours("4.7.5", h.host+" sent more before the encryption began")}
		}
		if err := h.wrap(ctx, c); err != nil {
			return err
		}
		clear(c.ext) // what was said in clear counts for nothing
		if err := c.hello(); err != nil {
			return err
		}
	}
	if h.user == "" {
		return nil
	}
	password, err := h.password()
	if err != nil {
		return &down{ours("4.7.8", err.Error())}
	}
	return c.login(h.user, password)
}

// login is AUTH (RFC 4954), by PLAIN or LOGIN: both say the password itself, and the connection is encrypted.
func (c *client) login(user, password string) error {
	var s sasl.Client
	mechs := strings.Fields(strings.ToUpper(c.ext["AUTH"]))
	offered := func(name string) bool {
		for _, m := range mechs {
			if m == name {
				return true
			}
		}
		return false
	}
	switch {
	case offered("PLAIN"):
		s = sasl.NewPlainClient("", user, password)
	case offered("LOGIN"):
		s = sasl.NewLoginClient(user, password)
	default:
		return &down{ours("4.7.4", "the server offers neither AUTH PLAIN nor AUTH LOGIN")}
	}
	mech, first, err := s.Start()
	if err != nil {
		return &down{ours("4.7.8", "AUTH: "+err.Error())}
	}
	cmd := "AUTH " + mech
	if mech == sasl.Login {
		// some servers take no initial response here: the name answers the first challenge
	} else if first != nil {
		cmd += " " + base64.StdEncoding.EncodeToString(first)
	}
	for round := 1; ; round++ {
		code, lines, err := c.ask(cmd)
		if err != nil {
			return err
		}
		switch {
		case code == 235:
			return nil
		case code != 334:
			st := later(status(code, lines))
			st.Text = "the login of " + user + " is refused: " + st.Text
			return &down{st}
		}
		if round == 1 && mech == sasl.Login {
			cmd = base64.StdEncoding.EncodeToString(first)
			continue
		}
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(lines[0]))
		if err != nil {
			return &down{ours("4.7.8", "AUTH: the server's challenge is not base64")}
		}
		answer, err := s.Next(challenge)
		if err != nil {
			return &down{ours("4.7.8", "AUTH: "+err.Error())}
		}
		cmd = base64.StdEncoding.EncodeToString(answer)
	}
}
