package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// TestCorpus carries the corpus through two nodes: in by SMTP, over a folder, out by SMTP, by LMTP and into Maildirs. What
// comes out is what went in, to the byte, behind two trace lines; DKIM signatures are good still.
func TestCorpus(t *testing.T) {
	t.Parallel()
	bySMTP, byLMTP := newSink(t, nil), newSink(t, nil)
	byLMTP.LMTP = true
	smtp, boxes := peertest.FreePort(t), t.TempDir()
	conf := mailhouse(smtp, t.TempDir())
	camp := newNode(t, "camp", conf)
	hub := newNode(t, "hub", fmt.Sprintf("domain = \"hub.example\"\n[[deliver]]\nto = [\"smtp.hub.example\"]\nvia = \"smtp:%s\"\n"+
		"[[deliver]]\nto = [\"lmtp.hub.example\"]\nvia = \"lmtp:%s\"\n[[deliver]]\nto = [\"hub.example\", \"box.hub.example\"]\nvia = \"maildir:%s/%%u\"\n",
		bySMTP.Addr, byLMTP.Addr, boxes))
	pair(camp, hub, t.TempDir())
	camp.configure(conf + "[[route]]\nto = [\"*.hub.example\"]\nnode = \"hub\"\n")
	mails := corpus(t)
	if len(mails) < 200 {
		t.Fatalf("%d mails", len(mails))
	}
	camp.start()
	hub.start()
	w, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.say("EHLO client.test", "250"); err != nil {
		t.Fatal(err)
	}
	for i, m := range mails {
		var to []string
		for _, way := range []string{"smtp", "lmtp", "box"} {
			to = append(to, fmt.Sprintf("<m%d@%s.hub.example>", i, way))
		}
		if err := w.envelope("<ana@camp.example>", to...); err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		if err := w.content(m.text); err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
	}
	drained(t, camp, hub)
	for way, s := range map[string]*sink{"smtp": bySMTP, "lmtp": byLMTP} {
		got := map[string][]string{}
		for _, m := range s.Mails() {
			for _, r := range m.Rcpt {
				addr, _, _ := strings.Cut(r, ">")
				addr = strings.TrimPrefix(addr, "TO:<")
				got[addr] = append(got[addr], m.Content)
			}
		}
		for i, m := range mails {
			same(t, way, m, got[fmt.Sprintf("m%d@%s.hub.example", i, way)])
		}
	}
	for i, m := range mails {
		var got []string
		for _, text := range box(t, filepath.Join(boxes, fmt.Sprintf("m%d", i))) {
			text = strings.ReplaceAll(text, "\n", "\r\n")
			for _, h := range []string{"Return-Path: <ana@camp.example>\r\n", fmt.Sprintf("Delivered-To: m%d@box.hub.example\r\n", i)} {
				var ok bool
				if text, ok = strings.CutPrefix(text, h); !ok {
					t.Errorf("Maildir: %s does not begin with %q: %.200q", m.name, h, text)
				}
			}
			got = append(got, text)
		}
		same(t, "Maildir", m, got)
	}
}

// same wants a mail to have come once, as it was sent, behind the trace lines of its exit and of its entry.
func same(t *testing.T, way string, m corpusMail, got []string) {
	t.Helper()
	if len(got) != 1 {
		t.Errorf("%s: %s came %d times", way, m.name, len(got))
		return
	}
	front, ok := strings.CutSuffix(got[0], m.text)
	if !ok {
		t.Errorf("%s: %s is not what was sent: %d bytes, sent %d\n%.600q", way, m.name, len(got[0]), len(m.text), got[0])
		return
	}
	fields := 0
	for line := range strings.Lines(front) {
		if line[0] != ' ' && line[0] != '\t' {
			fields++
		}
	}
	if fields != 2 || !strings.HasPrefix(front, "Received: from camp by ") || !strings.Contains(front, "\r\nReceived: from client.test ") {
		t.Errorf("%s: %s has in front of it %q", way, m.name, front)
	}
	if strings.HasPrefix(m.name, "signed, ") {
		if err := verified(got[0]); err != nil {
			t.Errorf("%s: %s: %v", way, m.name, err)
		}
	}
}
