package smtpd

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// FuzzProxy: no header makes the reader fail in another way than by an error, or take one octet too many.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.7 198.51.100.1 4000 25\r\nEHLO c\r\n"))
	f.Add([]byte("PROXY TCP6 2001:db8::7 2001:db8::1 4000 25\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x0f\xa0\x00\x19EHLO c\r\n"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		client, err := readProxy(r)
		if err != nil {
			if client != (netip.AddrPort{}) {
				t.Errorf("client %v in spite of %v", client, err)
			}
			return
		}
		head := b[:len(b)-r.Len()]
		if bytes.HasPrefix(head, []byte("PROXY ")) && (!bytes.HasSuffix(head, []byte("\r\n")) || bytes.Count(head, []byte("\n")) != 1 || len(head) > proxyV1Max) {
			t.Errorf("header %q", head)
		}
		if a := client.Addr(); a.Is4In6() || strings.Contains(a.String(), "%") {
			t.Errorf("client %v is not plain", client)
		}
	})
}

// BenchmarkMailRate is what MAIL costs at the gate: nothing for the upstream mail server.
func BenchmarkMailRate(b *testing.B) {
	s := &Server{}
	s.init()
	c := &conn{srv: s, lim: s.lim.Load(), trusted: true}
	for b.Loop() {
		if c.srv.gate.mail(c.opened, c) != nil {
			b.Fatal("refused")
		}
	}
}
