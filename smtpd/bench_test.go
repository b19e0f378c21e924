package smtpd

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// startTCP runs a server on a loopback port until the test ends.
func startTCP(t testing.TB, s *Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if s.Hostname == "" {
		s.Hostname = "mx.test"
	}
	if s.RelayFrom == nil {
		s.RelayFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ctx)
		if err := <-served; err != ErrClosed {
			t.Errorf("Serve: %v, want %v", err, ErrClosed)
		}
	})
	return ln.Addr().String()
}

// BenchmarkSession sends mails of 4 KiB over one connection, as a mail server with a cached connection does.
func BenchmarkSession(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			addr := startTCP(b, &Server{Acceptor: &memory{discard: true}})
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			defer nc.Close()
			line := strings.Repeat("x", 76) + "\r\n"
			body := []byte(strings.Repeat(line, size/len(line)) + ".\r\n")
			in := bufio.NewReader(nc)
			expect := func(code string, n int) {
				for range n {
					s, err := in.ReadString('\n')
					if err != nil || s[:3] != code {
						b.Fatalf("got %q (%v), want %s", s, err, code)
					}
				}
			}
			expect("220", 1)
			fmt.Fprintf(nc, "HELO bench\r\n")
			expect("250", 1)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				nc.Write([]byte("MAIL FROM:<a@bench.example>\r\nRCPT TO:<b@bench.example>\r\nDATA\r\n"))
				expect("250", 2)
				expect("354", 1)
				nc.Write(body)
				expect("250", 1)
			}
		})
	}
}
