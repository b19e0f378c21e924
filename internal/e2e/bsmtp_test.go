package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// TestBatch: a mail goes out as a batch of SMTP, bare and inside a mail (RFC 2442), comes in through rsmtp at another node,
// and has lost neither an octet nor a parameter.
func TestBatch(t *testing.T) {
	t.Parallel()
	s := newSink(t, nil)
	hub := newNode(t, "hub", "domain = \"hub.example\"\n[[deliver]]\nto = [\"*\"]\nvia = \"smtp:"+s.Addr+"\"\n")
	hub.serve()
	dir := shortDir(t)
	// What lies between the two: first nothing, then a sendmail whose mail an alias pipes into rsmtp.
	rsmtp := fmt.Sprintf("MOCHILA_HOME=%s exec %s -bS\n", hub.dir, program("sendmail"))
	for name, text := range map[string]string{
		"rsmtp":    rsmtp,
		"sendmail": "[ \"$*\" = '-i -f postmaster@camp.example -- batch@hub.example' ] || exit 64\n" + rsmtp,
	} {
		if err := os.WriteFile(dir+"/"+name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	smtp := peertest.FreePort(t)
	camp := newNode(t, "camp", fmt.Sprintf("domain = \"camp.example\"\n[smtp]\nlisten = [%q]\n[[deliver]]\nto = [\"bare.example\"]\nvia = %q\n[[deliver]]\nto = [\"wrapped.example\"]\nvia = %q\n",
		smtp, "bsmtp:"+dir+"/rsmtp", "bsmtp:"+dir+"/sendmail?to=batch@hub.example"))
	camp.serve()
	text := "Subject: batch\r\nX-8: \xe9\r\n\r\n.\r\n..dots\r\nMAIL FROM:<no@command>\r\n" + strings.Repeat("x", 5000) + "\r\n\xff\r\n"
	for _, domain := range []string{"bare.example", "wrapped.example"} {
		if err := send(smtp, text, "<a@camp.example> BODY=8BITMIME RET=HDRS ENVID=id+2B1", `<"q u"@`+domain+"> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;q+20u@"+domain, "<b@"+domain+"> NOTIFY=NEVER"); err != nil {
			t.Fatal(err)
		}
		var got taken
		peertest.Await(t, "the mail for "+domain, func() bool {
			for _, m := range s.Mails() {
				if strings.Contains(strings.Join(m.Rcpt, " "), domain) {
					got = m
					return true
				}
			}
			return false
		}, camp.log.String, hub.log.String)
		if want := []string{`TO:<"q u"@` + domain + "> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;q+20u@" + domain, "TO:<b@" + domain + "> NOTIFY=NEVER"}; strings.Join(got.Rcpt, "|") != strings.Join(want, "|") {
			t.Errorf("RCPT %q, want %q", got.Rcpt, want)
		}
		if !strings.HasPrefix(got.Mail, "FROM:<a@camp.example> ") || !strings.Contains(got.Mail, " BODY=8BITMIME") || !strings.Contains(got.Mail, " RET=HDRS ENVID=id+2B1") {
			t.Errorf("MAIL %q", got.Mail)
		}
		if !strings.HasSuffix(got.Content, "\r\n"+text) {
			t.Errorf("content %q", got.Content)
		}
	}
}
