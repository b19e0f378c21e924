package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"mochila/internal/peertest"
)

// TestEveryParameter says everything that ESMTP knows about a mail to one node, and hears it again from another: the
// parameters of MAIL and RCPT, XFORWARD, and addresses that no careless relay survives.
func TestEveryParameter(t *testing.T) {
	t.Parallel()
	out := newSink(t, nil)
	out.More = "250-AUTH PLAIN\r\n250-MT-PRIORITY\r\n250-DELIVERBY 60\r\n250-REQUIRETLS\r\n"
	plain := newSink(t, nil)
	plain.ASCII = true
	smtp := peertest.FreePort(t)
	mail := t.TempDir()
	conf := mailhouse(smtp, mail)
	camp := newNode(t, "camp", conf)
	hub := newNode(t, "hub", fmt.Sprintf("domain = \"hub.example\"\n[[deliver]]\nto = [\"old.hub.example\"]\nvia = \"smtp:%s\"\n[[deliver]]\nto = [\"hub.example\"]\nvia = \"smtp:%s\"\n",
		plain.Addr, out.Addr))
	pair(camp, hub, t.TempDir())
	camp.configure(conf + "[[route]]\nto = [\"*.hub.example\", \"hub.example\"]\nnode = \"hub\"\n")
	camp.start()
	hub.start()
	w, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	dialog := func(lines ...string) {
		t.Helper()
		for _, l := range lines {
			if err := w.say(l, "250"); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.say("DATA", "354"); err != nil {
			t.Fatal(err)
		}
		if err := w.content("Subject: a\u00f1o\r\n\r\nbody\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	dialog("EHLO client.test",
		"XFORWARD NAME=pc.camp.example ADDR=192.0.2.9 PORT=4711",
		"XFORWARD PROTO=ESMTPSA HELO=pc IDENT=4XqZ SOURCE=REMOTE",
		`MAIL FROM:<"odd sender"@camp.example> SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B314 AUTH=ana+40camp.example BY=3600;NT MT-PRIORITY=4 HOLDFOR=2`,
		"RCPT TO:<bob@hub.example> NOTIFY=SUCCESS,DELAY ORCPT=x400;/c=fr/s=bob",
		"RCPT TO:<\u00f1and\u00fa@hub.example> NOTIFY=NEVER ORCPT=utf-8;\u00f1and\u00fa@hub.example",
		`RCPT TO:<"x> NOTIFY=NEVER "@hub.example> ORCPT=rfc822;"x"@y`,
		`RCPT TO:<"a b\"c"@hub.example>`,
		"RCPT TO:<-dash|pipe@hub.example>",
		"RCPT TO:<postmaster>", // this node's own
	)
	dialog("MAIL FROM:<> BODY=7BIT RET=FULL BY=7200;N", "RCPT TO:<eve@old.hub.example>")
	drained(t, camp, hub)
	if d := time.Since(began); d < 2*time.Second {
		t.Errorf("HOLDFOR=2 was over after %s", d)
	}
	got := out.Mails()
	if len(got) != 1 {
		t.Fatalf("%d mails", len(got))
	}
	m := got[0]
	line := regexp.MustCompile(`^FROM:<"odd sender"@camp\.example> SIZE=\d+ BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ\+2B314 AUTH=ana\+40camp\.example MT-PRIORITY=4 BY=3[0-5][0-9][0-9];NT$`)
	if !line.MatchString(m.Mail) {
		t.Errorf("MAIL %s", m.Mail)
	}
	want := []string{
		"TO:<bob@hub.example> NOTIFY=SUCCESS,DELAY ORCPT=x400;/c+3Dfr/s+3Dbob",
		"TO:<\u00f1and\u00fa@hub.example> NOTIFY=NEVER ORCPT=utf-8;\u00f1and\u00fa@hub.example",
		`TO:<"x> NOTIFY=NEVER "@hub.example> ORCPT=rfc822;"x"@y`,
		`TO:<"a b\"c"@hub.example>`,
		"TO:<-dash|pipe@hub.example>",
	}
	if !slices.Equal(m.Rcpt, want) {
		t.Errorf("RCPT %q\nwant %q", m.Rcpt, want)
	}
	wantX := []string{"NAME=pc.camp.example ADDR=192.0.2.9 PORT=4711", "PROTO=ESMTPSA HELO=pc IDENT=4XqZ SOURCE=REMOTE"}
	if !slices.Equal(m.Xforward, wantX) {
		t.Errorf("XFORWARD %q", m.Xforward)
	}
	got = plain.Mails()
	if len(got) != 1 || !strings.HasPrefix(got[0].Mail, "FROM:<> SIZE=") || !strings.HasSuffix(got[0].Mail, " RET=FULL") || strings.Contains(got[0].Mail, "BY=") {
		t.Errorf("to a server that knows less: %+v", got)
	}
	// What a server without SMTPUTF8 cannot take comes back, with the address as it is (RFC 6533).
	dialog("MAIL FROM:<se\u00f1ora@camp.example> SMTPUTF8 ENVID=u8", "RCPT TO:<\u00f1@old.hub.example>", "RCPT TO:<n@old.hub.example>")
	drained(t, camp, hub)
	dsns := box(t, mail+"/se%C3%B1ora")
	if len(dsns) != 1 {
		t.Errorf("%d notices for a sender with an address in UTF-8", len(dsns))
	}
	for _, d := range dsns {
		for _, want := range []string{"Content-Type: message/global-delivery-status\n", "Final-Recipient: utf-8; \u00f1@old.hub.example\n", "Action: failed\nStatus: 5.6.7\n", "Original-Envelope-Id: u8\n"} {
			if !strings.Contains(d, want) {
				t.Errorf("no %q in\n%s", want, d)
			}
		}
	}
	if n := len(box(t, mail+"/postmaster")); n != 1 {
		t.Errorf("%d mails for postmaster", n)
	}
}
