package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// TestPostfixLoop: Postfix's relayhost is the node, and the node gives everything back to the same Postfix. check says so
// before; the mail ends after a few rounds, with one report to its sender that names the loop; mail that ends at this
// Postfix is none of it.
func TestPostfixLoop(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteOptions{name: "camp", far: "hub", relayhost: true, mailboxes: []string{"eve@camp.example"}})
	conf := "domain = \"camp.example\"\n[smtp]\nlisten = [" + toml(s.smtp) + ", " + toml("lmtp:"+s.lmtp) + "]\n[bounce]\nvia = " + toml("smtp:"+s.back) + "\n[[deliver]]\nto = "
	check := func(to string) string {
		t.Helper()
		s.configure(conf + to + "\nvia = " + toml("smtp:"+s.back) + "\n")
		cmd := s.command("check")
		cmd.Env = append(os.Environ(), "MAIL_CONFIG="+s.postfix.Config())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("check: %v: %s", err, out)
		}
		return string(out)
	}
	_, port, _ := strings.Cut(s.smtp, ":")
	loops := regexp.MustCompile(`warning: \[\[deliver\]\] via smtp:` + s.back + `: Postfix \(\S+\) gives mail for \* back to this node \(relayhost = \[127\.0\.0\.1\]:` + port + `\)`)
	if out := check(`["*"]`); !loops.MatchString(out) || !strings.Contains(out, "[[route]]") {
		t.Errorf("check is silent about the loop:\n%s", out)
	}
	if out := check(`["camp.example"]`); strings.Contains(out, "circles") || strings.Contains(out, "does not answer") {
		t.Errorf("check warns of what is right:\n%s", out)
	}
	if out := check(`["camp.example", "*.camp.example"]`); !strings.Contains(out, "gives mail for *.camp.example back") {
		t.Errorf("check is silent about domains that do not end at Postfix:\n%s", out)
	}
	for how, setting := range map[string][2]string{
		"default_transport = lmtp:unix:mochila/lmtp.sock":      {"default_transport", "lmtp:unix:mochila/lmtp.sock"},
		"transport_maps: .camp.example smtp:127.0.0.1:" + port: {"transport_maps", "inline:{ { .camp.example = smtp:127.0.0.1:" + port + " } }"},
	} {
		before := s.postfix.Setting(setting[0])
		s.postfix.Set(setting[0], setting[1])
		if out := check(`["*.camp.example"]`); !strings.Contains(out, "gives mail for *.camp.example back to this node ("+how+")") {
			t.Errorf("check is silent about %s:\n%s", how, out)
		}
		s.postfix.Set(setting[0], before)
	}

	check(`["*"]`)
	s.serve()
	text := "Subject: round\r\nMessage-Id: <round@camp.example>\r\n\r\nand round\r\n"
	if err := send(s.postfix.Addr, text, "<eve@camp.example> ENVID=circle", "<far@away.example>", "<eve@camp.example>"); err != nil {
		t.Fatal(err)
	}
	dsn := s.postfix.WaitMail("eve@camp.example", "Action: failed")
	for _, want := range []string{"Return-Path: <>\n", "Final-Recipient: rfc822; far@away.example\n", "Status: 5.4.6\n", "554 5.4.6 mail loop:", "Message-Id: <round@camp.example>"} {
		if !strings.Contains(dsn, want) {
			t.Errorf("the report has no %q:\n%s", want, dsn)
		}
	}
	if n := strings.Count(dsn, "by camp.example (mochila)"); n != 5 {
		t.Errorf("the mail went round %d times, want 5:\n%s", n, dsn)
	}
	// Nothing goes on, and there is one report beside the one mail that had somewhere to go.
	drained(t, s.node)
	peertest.Await(t, "an empty queue of Postfix", func() bool { return strings.Contains(s.postfix.Queue(), "Mail queue is empty") }, s.postfix.Log)
	s.postfix.WaitMails("eve@camp.example", 2)
}
