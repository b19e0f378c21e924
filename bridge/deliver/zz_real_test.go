package deliver

import ("testing";"context";"os";"strings";"sync")

func TestRealSink(t *testing.T) {
	for _, via := range strings.Fields(os.Getenv("VIA")) {
		tr := open(t, via, Options{})
		m := mail("a@x", hello+strings.Repeat("0123456789abcdef 0123456789abcdef\n", 100), "b@y", "c@y")
		first := show(tr.Deliver(context.Background(), m))
		t.Logf("%s: %s", via, first)
		if !strings.Contains(first, "delivered") { continue }
		var wg sync.WaitGroup
		for range 8 { wg.Go(func() { for range 500 { if r := tr.Deliver(context.Background(), m); r[0].Action.String() != "delivered" { t.Error(show(r)); return } } }) }
		wg.Wait()
	}
}
