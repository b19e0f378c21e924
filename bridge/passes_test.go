package bridge

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"mochila/internal/envelope"
)

// TestPasses counts the Received lines of entries of this node, and no others, however the content is cut.
func TestPasses(t *testing.T) {
	own := "Received: from pc (unknown [192.0.2.1])\r\n\tby camp.example (mochila) with ESMTP id AAAA;\r\n\tMon, 1 Jan 2024 00:00:00 +0000 (UTC)\r\n"
	for name, c := range map[string]struct {
		header string
		want   int
	}{
		"none":            {"Subject: hi\r\n", 0},
		"own":             {own, 1},
		"folded":          {"RECEIVED:\r\n from pc\r\n by\r\n camp.example\r\n (mochila) with ESMTP id X;\r\n now\r\nSubject: x\r\n", 1},
		"local":           {"Received: by camp.example (mochila, from userid 1000)\r\n\tid X; now\r\n", 1},
		"three and more":  {own + "Received: from x by postfix.test (Postfix) with ESMTP id 1; now\r\n" + own + "X-Received: by camp.example (mochila)\r\n" + own, 3},
		"exit":            {"Received: from hub by camp.example (mochila) with mochila id X; now\r\n", 0},
		"other domain":    {"Received: from x by hub.camp.example (mochila) with ESMTP id X; now\r\n", 0},
		"similar field":   {"Received-SPF: pass by camp.example (mochila)\r\n", 0},
		"endless":         {"Received: " + strings.Repeat("x", 2*maxTrace) + " by camp.example (mochila)\r\n" + own, 1},
		"last field":      {"Subject: x\r\nReceived: by camp.example (mochila)", 1},
		"in the body":     {"Subject: x\r\n\r\n" + own, 0},
		"bare line feeds": {strings.ReplaceAll(own, "\r\n", "\n") + "\n" + own, 1},
	} {
		for _, step := range []int{1, 7, 1 << 20} {
			h := newPasses("camp.example")
			for rest := c.header; rest != ""; {
				n := min(step, len(rest))
				h.Write([]byte(rest[:n]))
				rest = rest[n:]
			}
			h.end()
			if h.count != c.want {
				t.Errorf("%s by %d: %d, want %d", name, step, h.count, c.want)
			}
		}
	}
}

// TestOwnLoop: a mail that comes in once too often is refused, whoever brings it; one that sendmail accepted while the
// daemon was down goes back to its sender.
func TestOwnLoop(t *testing.T) {
	l := newLab(t)
	a := l.node("alpha")
	line := fmt.Sprintf("Received: by %s (mochila, from userid 0)\r\n\tid X; now\r\n", a.b.Policy().Domain)
	mail := func() *envelope.Mail {
		return &envelope.Mail{Sender: "ana@alpha.example", Client: envelope.Client{Proto: "local", UID: 1001},
			Recipients: []envelope.Recipient{{Addr: "u@alpha.example"}}}
	}
	if _, err := a.enter(mail(), strings.Repeat(line, 4)+"Subject: four\r\n\r\nhi\r\n"); err != nil {
		t.Errorf("the fifth time: %v", err)
	}
	round := strings.Repeat(line, 5) + "Subject: five\r\n\r\nhi\r\n"
	_, err := a.enter(mail(), round)
	st := statusOf(err)
	if err == nil || st.Code != 554 || st.Enhanced != "5.4.6" || !strings.Contains(st.Text, "mail loop") {
		t.Fatalf("the sixth time: %v", err)
	}
	in, err := a.b.ReturnFile(context.Background(), "file", mail(), &st)
	if err == nil {
		_, err = in.Write([]byte(round))
	}
	if err == nil {
		_, err = in.Commit(context.Background())
	}
	if err != nil {
		t.Fatalf("sending it back: %v", err)
	}
	l.settle(10, a)
	wantTold(t, a, 1, 0, 0)
	if told(a, "5.4.6") != 1 {
		t.Error("the notice does not say that it is a loop")
	}
	mustEmpty(t, a)
}
