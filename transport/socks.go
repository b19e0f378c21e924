package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"golang.org/x/net/proxy"
)

// Via returns a TCP dialer that goes through a SOCKS5 proxy (RFC 1928, with a user and password as in RFC 1929 where
// the address has them), to which it also leaves the resolving of names: so that Tor works.
func (t *TCP) Via(socks string) (*TCP, error) {
	u, err := url.Parse("socks5://" + socks)
	if err != nil || u.Port() == "" {
		return nil, withHint(fmt.Errorf("%q is not [USER:PASSWORD@]HOST:PORT of a SOCKS proxy", socks), "as in socks=127.0.0.1:9050")
	}
	var auth *proxy.Auth
	if u.User != nil {
		auth = &proxy.Auth{User: u.User.Username()}
		auth.Password, _ = u.User.Password()
	}
	d, err := proxy.SOCKS5("tcp", u.Host, auth, &net.Dialer{Timeout: t.timeout, Control: tuneSocket})
	if err != nil {
		return nil, err
	}
	cd, ok := d.(proxy.ContextDialer)
	if !ok {
		return nil, fmt.Errorf("the SOCKS dialer takes no context")
	}
	p := *t
	p.dial = func(ctx context.Context, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		conn, err := cd.DialContext(ctx, "tcp", addr)
		return conn, socksFault(err, u.Host)
	}
	return &p, nil
}

// socksFault says whether the proxy is the trouble or what lies behind it.
func socksFault(err error, at string) error {
	if err == nil {
		return nil
	}
	var op *net.OpError
	if errors.As(err, &op) && strings.HasPrefix(op.Op, "socks") && errors.As(op.Err, &op) && op.Op == "dial" {
		return withHint(fmt.Errorf("SOCKS proxy: %w", op), "is the proxy running at %s? Tor's is at 127.0.0.1:9050", at)
	}
	return fmt.Errorf("SOCKS proxy %s: %w", at, err)
}
