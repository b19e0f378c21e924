package e2e

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// letter is a mail that must cross unchanged.
type letter struct {
	name string
	text string // CRLF lines
	from string // reverse-path with parameters; default <eve@camp.example>
	to   string // local part; default ana
	utf8 bool   // SMTPUTF8
}

// signed looks like what DKIM signs: everything about it must stay, down to the spaces.
const signed = "DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=camp.example;\r\n" +
	"\ts=x;  h=From:To:Subject;\r\n \t bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\r\n" +
	"  b=" + "YWJjZGVm" + "\r\n\tZ2hpamts \r\n" +
	"FROM:   Eve  <eve@camp.example>   \r\n" +
	"to: ana@hub.example\t\r\n" +
	"SubJect: odd  spaces \r\n" +
	"X-Empty:\r\n" +
	"Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n" +
	"\r\n" +
	"body with spaces at the end   \r\n\t\r\n\r\n\r\n"

// letters are mails of the kinds that programs break.
func letters() []letter {
	return []letter{
		{name: "plain", text: "Subject: plain\r\n\r\nhello\r\n"},
		{name: "8 bit", text: "Subject: eight\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\ncaf\xe9 \xff\xfe\x80\r\n",
			from: "<eve@camp.example> BODY=8BITMIME"},
		{name: "utf8", text: "Subject: Grüße\r\nFrom: éva@camp.example\r\nTo: añá@hub.example\r\n\r\n早上好\r\n",
			from: "<éva@camp.example> SMTPUTF8 BODY=8BITMIME", to: "añá", utf8: true},
		{name: "dots", text: "Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n \r\n. \r\n...\r\n.\r\n"},
		{name: "long lines", text: "Subject: long\r\nX-Long: " + strings.Repeat("h", 3000) + "\r\n\r\n" +
			strings.Repeat("x", 999) + "\r\n" + strings.Repeat("long ", 20000) + "\r\n." + strings.Repeat("y", 5000) + "\r\n"},
		{name: "empty body", text: "Subject: empty body\r\nX-Only: headers\r\n\r\n"},
		{name: "signed", text: signed},
		{name: "5 MB", text: big()},
	}
}

// big is 5 MB that do not compress to nothing.
func big() string {
	r := rand.New(rand.NewPCG(5, 5))
	var b strings.Builder
	b.WriteString("Subject: big\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	line := make([]byte, 76)
	for b.Len() < 5_000_000 {
		for i := range line {
			line[i] = alphabet[r.IntN(64)]
		}
		b.Write(line)
		b.WriteString("\r\n")
	}
	return b.String()
}

// trace are the headers that mail systems put in front of a mail.
var trace = []string{"return-path:", "delivered-to:", "x-original-to:", "received:"}

// unchanged reports whether a delivered mail (LF lines) is the one that was sent, with nothing but trace headers in
// front.
func unchanged(got []byte, sent string) bool {
	front, ok := bytes.CutSuffix(got, []byte(strings.ReplaceAll(sent, "\r\n", "\n")))
	if !ok {
		return false
	}
	for line := range strings.Lines(string(front)) {
		isTrace := func(h string) bool { return strings.HasPrefix(strings.ToLower(line), h) }
		if line[0] != ' ' && line[0] != '\t' && !slices.ContainsFunc(trace, isTrace) {
			return false
		}
	}
	return true
}

// compare wants each letter exactly once in a mailbox.
func compare(t *testing.T, where string, mails [][]byte, sent []letter) {
	t.Helper()
	for _, l := range sent {
		n := 0
		for _, m := range mails {
			if unchanged(m, l.text) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s: the mail %q came %d times unchanged", where, l.name, n)
		}
	}
	if t.Failed() {
		for _, m := range mails {
			t.Logf("%s: %.1500q", where, m)
		}
	}
}

// sites are camp and hub with a Postfix each. At hub, *.example of the transport recipe ends.
func sites(t *testing.T, carrier string, relayhost bool) (camp, hub *site, inner *sink) {
	t.Helper()
	inner = newSink(t, func(rcpt string) string {
		if strings.Contains(rcpt, "late@") {
			return "550 5.2.1 mailbox closed"
		}
		return ""
	})
	_, port, _ := strings.Cut(inner.Addr, ":")
	camp = newSite(t, siteOptions{name: "camp", far: "hub", relayhost: relayhost,
		main:      map[string]string{"local_header_rewrite_clients": ""}, // the test plays a client that is not local
		mailboxes: []string{"eve@camp.example", "éva@camp.example"}})
	hub = newSite(t, siteOptions{name: "hub", far: "camp", relayhost: true,
		domains:   `, "*.hub.example", "box.example"`,
		mailboxes: []string{"ana@hub.example", "añá@hub.example", "ana@box.example", "añá@box.example", "ana@ship.hub.example", "añá@ship.hub.example"},
		main: map[string]string{
			// a server behind Postfix: Postfix takes mail for it and learns later what it thinks
			"relay_domains": "inner.hub.example", "relay_recipient_maps": "",
			"transport_maps": "inline:{inner.hub.example=smtp:[127.0.0.1]:" + port + "}"},
	})
	join(t, carrier, camp, hub)
	return camp, hub, inner
}

// TestPostfixBothWays: what one Postfix was given comes out of another one, byte for byte, whether it goes into the node
// by SMTP or by LMTP and whatever lies between the nodes; and so does what goes wrong there.
func TestPostfixBothWays(t *testing.T) {
	for _, c := range []struct {
		carrier   string
		relayhost bool
	}{{"dir", true}, {"dir", false}, {"tcp", true}, {"tcp", false}} {
		name, ways := c.carrier+" transport map", []string{"/smtp[", "mochila/lmtp.sock]"}
		if c.relayhost {
			name, ways = c.carrier+" relayhost", []string{"/smtp["}
		}
		t.Run(name, func(t *testing.T) {
			camp, hub, inner := sites(t, c.carrier, c.relayhost)
			t.Run("content", func(t *testing.T) { content(t, camp, hub, ways...) })
			t.Run("bounces", func(t *testing.T) { bounces(t, camp, hub) })
			t.Run("envelope", func(t *testing.T) { parameters(t, camp, hub, inner) })
			t.Run("NUL", func(t *testing.T) { nul(t, camp, hub) })
			drained(t, camp.node, hub.node)
		})
	}
}

// content sends every letter over SMTP to the Postfix at camp, for two domains: the second goes by LMTP in the transport
// map.
func content(t *testing.T, camp, hub *site, ways ...string) {
	all := letters()
	domains := []string{"hub.example", "box.example", "ship.hub.example"}
	for k, domain := range domains {
		for _, l := range all {
			if k == 2 && l.name != "plain" && l.name != "utf8" {
				continue // the line with the dot: same transport
			}
			from, to := l.from, l.to
			if from == "" {
				from = "<eve@camp.example>"
			}
			if to == "" {
				to = "ana"
			}
			if err := send(camp.postfix.Addr, l.text, from, "<"+to+"@"+domain+">"); err != nil {
				t.Fatalf("%s for %s: %v", l.name, domain, err)
			}
		}
	}
	for k, domain := range domains {
		var plain, wide []letter
		for _, l := range all {
			switch {
			case k == 2 && l.name != "plain" && l.name != "utf8":
			case l.utf8:
				wide = append(wide, l)
			default:
				plain = append(plain, l)
			}
		}
		compare(t, domain, hub.postfix.WaitMails("ana@"+domain, len(plain)), plain)
		compare(t, domain, hub.postfix.WaitMails("añá@"+domain, len(wide)), wide)
	}
	for _, way := range ways {
		camp.postfix.WaitLog(way)
	}
	// One mail in both logs: the queue id of camp's Postfix, at hub's.
	line := camp.postfix.WaitLog("/smtpd[", "client=")
	_, line, _ = strings.Cut(line, "]: ")
	id, _, _ := strings.Cut(line, ":")
	hub.postfix.WaitLog("client=", "orig_queue_id="+id, "orig_client=")
}

// bounces: what hub's Postfix refuses at RCPT comes back as a report of mochila, and what it takes and cannot deliver as
// a report of its own.
func bounces(t *testing.T, camp, hub *site) {
	text := "Subject: nobody home\r\nMessage-Id: <one@camp.example>\r\n\r\nhello\r\n"
	if err := send(camp.postfix.Addr, text, "<eve@camp.example> ENVID=one", "<nobody@hub.example> ORCPT=rfc822;No.Body@hub.example"); err != nil {
		t.Fatal(err)
	}
	dsn := camp.postfix.WaitMail("eve@camp.example", "one@camp.example")
	for _, want := range []string{"Return-Path: <>\n", "\nContent-Type: multipart/report; report-type=delivery-status", "\nAuto-Submitted: auto-replied",
		"\nOriginal-Envelope-Id: one\n", "\nOriginal-Recipient: rfc822; No.Body@hub.example\n", "nobody@hub.example", "\nAction: failed\n", "\nStatus: 5.1.1\n",
		"\nDiagnostic-Code: smtp; 550 5.1.1", "Subject: nobody home"} {
		if !strings.Contains(dsn, want) {
			t.Errorf("the report of the unknown user has no %q:\n%s", want, dsn)
		}
	}
	if !strings.Contains(camp.log.String(), "status=bounced") && !strings.Contains(hub.log.String(), "status=bounced") {
		t.Errorf("the bounce is in no log")
	}

	if err := send(camp.postfix.Addr, strings.ReplaceAll(text, "one@", "two@"), "<eve@camp.example>", "<late@inner.hub.example>"); err != nil {
		t.Fatal(err)
	}
	dsn = camp.postfix.WaitMail("eve@camp.example", "two@camp.example")
	for _, want := range []string{"Return-Path: <>\n", "MAILER-DAEMON@hub.test", "\nReporting-MTA: dns; hub.test\n", "late@inner.hub.example", "5.2.1"} {
		if !strings.Contains(dsn, want) {
			t.Errorf("the report of hub's Postfix has no %q:\n%s", want, dsn)
		}
	}
}

// parameters: ESMTP parameters come out as they went in, at a server behind hub's Postfix; and hub's Postfix acts on
// them.
func parameters(t *testing.T, camp, hub *site, inner *sink) {
	before := len(inner.Mails())
	text := "Subject: envelope\r\nMessage-Id: <p@camp.example>\r\n\r\nhello\r\n"
	err := send(camp.postfix.Addr, text, "<eve@camp.example> RET=HDRS ENVID=QQ314159+3D",
		"<ana@inner.hub.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ana.Old+2B@else.example",
		"<bob@inner.hub.example> NOTIFY=NEVER",
		"<carl@inner.hub.example> NOTIFY=FAILURE")
	if err != nil {
		t.Fatal(err)
	}
	peertest.Await(t, "a mail behind hub's Postfix", func() bool { return len(inner.Mails()) > before }, camp.log.String, hub.log.String, hub.postfix.Log)
	got := inner.Mails()[before:]
	if len(got) != 1 {
		t.Fatalf("it came %d times", len(got))
	}
	said := got[0].Mail + "\n" + strings.Join(got[0].Rcpt, "\n") + "\n"
	for _, want := range []string{"RET=HDRS", "ENVID=QQ314159+3D",
		"TO:<ana@inner.hub.example> ORCPT=rfc822;Ana.Old+2B@else.example NOTIFY=SUCCESS,DELAY",
		"TO:<bob@inner.hub.example> ORCPT=rfc822;bob@inner.hub.example NOTIFY=NEVER",
		"TO:<carl@inner.hub.example> ORCPT=rfc822;carl@inner.hub.example NOTIFY=FAILURE"} { // in Postfix's order
		if !strings.Contains(said, want) {
			t.Errorf("the last server was not told %q:\n%s", want, said)
		}
	}
	if !strings.HasSuffix(got[0].Content, text) {
		t.Errorf("the content is changed: %q", got[0].Content)
	}

	// A success report, made by hub's Postfix, reaches the mailbox at camp.
	text = strings.ReplaceAll(text, "p@camp", "ok@camp")
	if err := send(camp.postfix.Addr, text, "<eve@camp.example> ENVID=yes", "<ana@box.example> NOTIFY=SUCCESS ORCPT=rfc822;Ana@box.example"); err != nil {
		t.Fatal(err)
	}
	dsn := camp.postfix.WaitMail("eve@camp.example", "ok@camp.example")
	for _, want := range []string{"\nReporting-MTA: dns; hub.test\n", "\nOriginal-Envelope-Id: yes\n", "\nOriginal-Recipient: rfc822;Ana@box.example\n", "\nAction: delivered\n"} {
		if !strings.Contains(dsn, want) {
			t.Errorf("the report of success has no %q:\n%s", want, dsn)
		}
	}
}

// nul: a mail with NUL in it is refused over SMTP, as is right, but a local program may send it.
func nul(t *testing.T, camp, hub *site) {
	text := "Subject: NUL\r\n\r\na\x00b\r\n"
	err := send(camp.smtp, text, "<eve@camp.example>", "<ana@hub.example>")
	if u, ok := err.(*unexpected); !ok || !strings.HasPrefix(u.reply, "5") {
		t.Errorf("NUL over SMTP: %v", err)
	}
	camp.submit("Subject: NUL\nFrom: eve@camp.example\nDate: Thu, 1 Jan 2026 00:00:00 +0000\nMessage-Id: <nul@camp.example>\n\na\x00b\n", "-i", "-f", "eve@camp.example", "ana@hub.example")
	mail := hub.postfix.WaitMail("ana@hub.example", "nul@camp.example")
	if !strings.HasSuffix(mail, "\n\na\x00b\n") {
		t.Errorf("the mail with NUL is changed: %q", mail)
	}
}
