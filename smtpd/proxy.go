package smtpd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// The PROXY protocol (haproxy.org, proxy-protocol.txt): a proxy says first whose connection it brings.
const (
	proxyV1Max = 107  // octets of a version 1 line
	proxyV2Max = 2048 // octets behind the fixed part of a version 2 header: addresses, and TLVs that are skipped
)

var proxyV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")

var errProxy = errors.New("not a PROXY header")

// meet lets the proxy say who the client is, and admits that one. It reports false when the connection must end.
func (c *conn) meet() bool {
	c.nc.SetReadDeadline(time.Now().Add(c.lim.ProxyTimeout))
	if c.interrupted() { // Shutdown's deadline came before this one
		return false
	}
	client, err := readProxy(c.nc)
	if err != nil {
		c.srv.log.Warn("proxy " + c.who() + ": " + printable(err.Error(), 200))
		return false
	}
	proxy := c.who()
	addr := client.Addr()
	c.peer = envelope.Client{Addr: c.peer.Addr, Port: c.peer.Port}
	if addr.IsValid() {
		c.peer = envelope.Client{Addr: addr.String(), Port: strconv.Itoa(int(client.Port()))}
	}
	c.leave()
	// A proxy that does not know the client speaks for a stranger: its own address must not make it trusted.
	why := c.enter(addr, inside(c.srv.RelayFrom, addr))
	if why == nil {
		c.srv.log.Debug("proxy " + proxy + " brings " + c.who())
		return true
	}
	c.srv.log.Warn("NOQUEUE: reject: CONNECT from " + c.who() + ": " + why.String())
	if !c.srv.ImplicitTLS {
		c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		c.nc.Write(append([]byte(why.String()), '\r', '\n'))
	}
	return false
}

// readProxy reads a header of either version, and not one octet more: what follows may be a TLS handshake. The zero
// value stands for a client that the proxy does not know (UNKNOWN, LOCAL, or a family that is not IP).
func readProxy(r io.Reader) (netip.AddrPort, error) {
	head := make([]byte, len(proxyV2), proxyV1Max)
	if _, err := io.ReadFull(r, head); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
	}
	if bytes.Equal(head, proxyV2) {
		return readProxyV2(r)
	}
	if !bytes.HasPrefix(head, []byte("PROXY ")) {
		return netip.AddrPort{}, errProxy
	}
	for !bytes.HasSuffix(head, []byte("\r\n")) {
		if len(head) == proxyV1Max {
			return netip.AddrPort{}, errProxy
		}
		head = head[:len(head)+1]
		if _, err := io.ReadFull(r, head[len(head)-1:]); err != nil {
			return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
		}
	}
	return parseProxyV1(string(head[:len(head)-2]))
}

// parseProxyV1 reads "PROXY TCP4 SRC DST SPORT DPORT", or "PROXY UNKNOWN" and anything.
func parseProxyV1(line string) (netip.AddrPort, error) {
	if line == "PROXY UNKNOWN" || strings.HasPrefix(line, "PROXY UNKNOWN ") {
		return netip.AddrPort{}, nil
	}
	f := strings.Split(line, " ")
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return netip.AddrPort{}, errProxy
	}
	src, err1 := netip.ParseAddr(f[2])
	dst, err2 := netip.ParseAddr(f[3])
	port, ok1 := digits(f[4], 5)
	to, ok2 := digits(f[5], 5)
	if err1 != nil || err2 != nil || !ok1 || !ok2 || port > 65535 || to > 65535 || src.Zone() != "" || dst.Zone() != "" ||
		src.Is4() != (f[1] == "TCP4") || dst.Is4() != src.Is4() {
		return netip.AddrPort{}, errProxy
	}
	return netip.AddrPortFrom(src.Unmap(), uint16(port)), nil
}

// readProxyV2 reads what follows the signature of version 2.
func readProxyV2(r io.Reader) (netip.AddrPort, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if head[0]>>4 != 2 || head[0]&15 > 1 || n > proxyV2Max {
		return netip.AddrPort{}, errProxy
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
	}
	if head[0]&15 == 0 { // LOCAL: the proxy speaks for itself
		return netip.AddrPort{}, nil
	}
	size := 0
	switch head[1] {
	case 0x11: // TCP over IPv4
		size = 4
	case 0x21: // TCP over IPv6
		size = 16
	case 0x00, 0x12, 0x22, 0x31, 0x32:
		return netip.AddrPort{}, nil
	default:
		return netip.AddrPort{}, errProxy
	}
	if n < 2*size+4 {
		return netip.AddrPort{}, errProxy
	}
	addr, _ := netip.AddrFromSlice(body[:size])
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(body[2*size:])), nil
}
