package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// LMTP is the Proto of a listener that speaks RFC 2033.
const LMTP = "lmtp"

// SMTPS is the Proto of a listener that speaks SMTP inside TLS from the first octet (RFC 8314).
const SMTPS = "smtps"

const protoSMTP = "smtp"

// Listen is where mail programs reach this node: HOST:PORT for SMTP, smtps:HOST:PORT for SMTP inside TLS,
// lmtp:HOST:PORT or lmtp:/path for LMTP. A path names a unix socket, whose permission 0660 is the right to relay; a
// relative one lies below the home.
type Listen struct {
	Proto   string // "smtp", SMTPS or LMTP
	Network string // "tcp" or "unix"
	Addr    string
}

// ParseListen reads the grammar above; "smtp:" in front of the bare form is allowed.
func ParseListen(s string) (Listen, error) {
	l := Listen{Proto: protoSMTP, Network: "tcp", Addr: s}
	for _, proto := range []string{protoSMTP, SMTPS, LMTP} {
		if rest, ok := strings.CutPrefix(s, proto+":"); ok && (strings.Contains(rest, "/") || strings.Contains(rest, ":")) {
			l.Proto, l.Addr = proto, rest
			break
		}
	}
	if strings.Contains(l.Addr, "/") {
		if l.Proto == SMTPS {
			return Listen{}, fmt.Errorf("%q: a socket needs no TLS, write smtp:%s", s, l.Addr)
		}
		l.Network = "unix"
		if len(l.Addr) > 100 {
			return Listen{}, fmt.Errorf("%q is too long for a socket path (100 bytes)", s)
		}
		return l, nil
	}
	if err := checkHostPort(l.Addr); err != nil {
		return Listen{}, fmt.Errorf("%q is not a place to listen, such as 127.0.0.1:2525, lmtp:127.0.0.1:2424 or lmtp:/run/mochila/lmtp.sock: %w", s, err)
	}
	return l, nil
}

// checkHostPort accepts HOST:PORT with a numeric port; the host may be empty.
func checkHostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("it has no port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("its port is not a number up to 65535")
	}
	return nil
}

// UnmarshalText is ParseListen.
func (l *Listen) UnmarshalText(b []byte) (err error) {
	*l, err = ParseListen(string(b))
	return err
}

// String is the form that ParseListen reads.
func (l Listen) String() string {
	if l.Proto == protoSMTP && l.Network == "tcp" {
		return l.Addr
	}
	return l.Proto + ":" + l.Addr
}

// below makes a relative unix path absolute.
func (l *Listen) below(dir string) {
	if l.Network == "unix" && !filepath.IsAbs(l.Addr) {
		l.Addr = filepath.Join(dir, l.Addr)
	}
}
