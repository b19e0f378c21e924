package transport

import (
	"context"
	"fmt"
	"net"
	"net/url"

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
		return cd.DialContext(ctx, "tcp", addr)
	}
	return &p, nil
}
