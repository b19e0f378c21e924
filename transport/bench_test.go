package transport_test

import (
	"fmt"
	"testing"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// BenchmarkTCP moves 64 MiB per contact in packets of one size, over loopback.
func BenchmarkTCP(b *testing.B) {
	for _, size := range []int{200, 4 << 10, 60 << 10, 1 << 20, 64 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			partials, err := transport.OpenPartials(b.TempDir(), 1<<30)
			if err != nil {
				b.Fatal(err)
			}
			defer partials.Close()
			n := min((64<<20)/size, 20_000)
			var due []*transport.Packet
			for i := range n {
				due = append(due, transporttest.Packet(0, transporttest.Random(uint64(i), size)))
			}
			b.SetBytes(int64(n * size))
			for b.Loop() {
				l := listen(b)
				done := make(chan error)
				callee := transporttest.NewStation("callee")
				go func() {
					conn, err := l.Accept()
					if err == nil {
						_, err = transport.Answer(b.Context(), conn, callee, transport.StreamOptions{Partials: partials})
					}
					done <- err
				}()
				link := transport.NewStreamLink(transport.NewTCP(l.Addr().String(), 0), transport.StreamOptions{})
				if _, err := link.Run(b.Context(), transporttest.NewStation("caller", due...)); err != nil {
					b.Fatal(err)
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				if callee.Count() != n {
					b.Fatalf("%d of %d packets", callee.Count(), n)
				}
				l.Close()
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "packets/s")
		})
	}
}
