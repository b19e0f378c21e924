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
	utf8 bool   // SMTPUTF8: for añá, else for ana
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

// letters are mails of the kinds that programs break. Each round has its own.
func letters(round string) []letter {
	all := []letter{
		{name: "plain", text: "Subject: plain\r\n\r\nhello\r\n"},
		{name: "8 bit", text: "Subject: eight\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\ncaf\xe9 \xff\xfe\x80\r\n",
			from: "<eve@camp.example> BODY=8BITMIME"},
		{name: "utf8", text: "Subject: Grüße\r\nFrom: éva@camp.example\r\nTo: añá@hub.example\r\n\r\n早上好\r\n",
			from: "<éva@camp.example> SMTPUTF8 BODY=8BITMIME", utf8: true},
		{name: "dots", text: "Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n \r\n. \r\n...\r\n.\r\n"},
		{name: "long lines", text: "Subject: long\r\nX-Long: " + strings.Repeat("h", 3000) + "\r\n\r\n" +
			strings.Repeat("x", 999) + "\r\n" + strings.Repeat("long ", 20000) + "\r\n." + strings.Repeat("y", 5000) + "\r\n"},
		{name: "empty body", text: "Subject: empty body\r\nX-Only: headers\r\n\r\n"},
		{name: "signed", text: signed},
		{name: "5 MB", text: big()},
	}
	for i := range all {
		all[i].text = "X-Round: " + round + "\r\n" + all[i].text
	}
	return all
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

// sites are camp and hub with a Postfix each. At camp, the recipes for relayhost and for a transport map are in use
// together: far.example takes the first way, the rest the second.
func sites(t *testing.T) (camp, hub *site, inner *sink) {
	t.Helper()
	inner = newSink(t, func(rcpt string) string {
		if strings.Contains(rcpt, "late@") {
			return "550 5.2.1 mailbox closed"
		}
		return ""
	})
	_, port, _ := strings.Cut(inner.Addr, ":")
	camp = newSite(t, siteOptions{name: "camp", far: "hub",
		main:      map[string]string{"local_header_rewrite_clients": ""}, // the test plays a client that is not local
		mailboxes: []string{"eve@camp.example", "éva@camp.example"}})
	var boxes []string
	for _, w := range ways {
		boxes = append(boxes, "ana@"+w.domain, "añá@"+w.domain)
	}
	hub = newSite(t, siteOptions{name: "hub", far: "camp", relayhost: true, mailboxes: boxes,
		domains: `, "*.hub.example", "box.example", "far.example"`,
		main: map[string]string{
			// a server behind Postfix: Postfix takes mail for it and learns later what it thinks
			"relay_domains": "inner.hub.example", "relay_recipient_maps": "",
			"transport_maps": "inline:{inner.hub.example=smtp:[127.0.0.1]:" + port + "}"},
	})
	return camp, hub, inner
}

// ways from camp's Postfix into its node.
var ways = []struct {
	domain string
	log    []string // words of the line that tells of the delivery
	few    bool     // the same transport as another one: not all letters
}{
	{"hub.example", []string{"/smtp[", "to=<ana@hub.example>", "relay=127.0.0.1[127.0.0.1]:"}, false},
	{"ship.hub.example", []string{"/smtp[", "to=<ana@ship.hub.example>", "relay=127.0.0.1[127.0.0.1]:"}, true},
	{"box.example", []string{"/lmtp[", "to=<ana@box.example>", "[mochila/lmtp.sock]"}, false},
	{"far.example", []string{"/smtp[", "to=<ana@far.example>", "relay=127.0.0.1[127.0.0.1]:"}, false},
}

// TestPostfixBothWays: what one Postfix was given comes out of another one, byte for byte, whichever way it goes into
// the node and whatever lies between the nodes; and so does what goes wrong there.
func TestPostfixBothWays(t *testing.T) {
	camp, hub, inner := sites(t)
	for _, carrier := range []string{"dir", "tcp"} {
		join(t, carrier, camp, hub)
		t.Run(carrier, func(t *testing.T) {
			var again func(*testing.T)
			t.Run("content", func(t *testing.T) { again = content(t, carrier, camp, hub) })
			t.Run("bounces", func(t *testing.T) { bounces(t, carrier, camp, hub) })
			t.Run("envelope", func(t *testing.T) { parameters(t, carrier, camp, hub, inner) })
			t.Run("NUL", func(t *testing.T) { nul(t, carrier, camp, hub) })
			drained(t, camp.node, hub.node)
			again(t)
		})
	}
}

// content sends every letter over SMTP to the Postfix at camp, for every way. What it returns looks at the mailboxes
// again.
func content(t *testing.T, carrier string, camp, hub *site) (again func(*testing.T)) {
	sent, before := map[string][]letter{}, map[string]int{}
	for _, w := range ways {
		for _, user := range []string{"ana@", "añá@"} {
			before[user+w.domain] = hub.postfix.Count(user + w.domain)
		}
		for _, l := range letters(carrier) {
			if w.few && len(l.text) > 100 {
				continue
			}
			from, to := "<eve@camp.example>", "ana"
			if l.from != "" {
				from = l.from
			}
			if l.utf8 {
				to = "añá"
			}
			to += "@" + w.domain
			sent[to] = append(sent[to], l)
			if err := send(camp.postfix.Addr, l.text, from, "<"+to+">"); err != nil {
				t.Fatalf("%s for %s: %v", l.name, to, err)
			}
		}
	}
	for to, list := range sent {
		compare(t, to, hub.postfix.WaitMails(to, before[to]+len(list)), list)
	}
	for _, w := range ways {
		camp.postfix.WaitLog(append(w.log, "status=sent")...)
	}
	// One mail in both logs: the queue id of camp's Postfix, at hub's.
	line := camp.postfix.WaitLog("/smtpd[", "client=")
	_, line, _ = strings.Cut(line, "]: ")
	id, _, _ := strings.Cut(line, ":")
	hub.postfix.WaitLog("client=", "orig_queue_id="+id, "orig_client=")
	return func(t *testing.T) {
		for to, list := range sent {
			compare(t, to, hub.postfix.Mails(to), list)
		}
	}
}

// bounces: what hub's Postfix refuses at RCPT comes back as a report of mochila, and what it takes and cannot deliver as
// a report of its own.
func bounces(t *testing.T, carrier string, camp, hub *site) {
	text := "Subject: nobody home\r\nMessage-Id: <one-" + carrier + "@camp.example>\r\n\r\nhello\r\n"
	if err := send(camp.postfix.Addr, text, "<eve@camp.example> ENVID=one", "<nobody@hub.example> ORCPT=rfc822;No.Body@hub.example"); err != nil {
		t.Fatal(err)
	}
	dsn := camp.postfix.WaitMail("eve@camp.example", "one-"+carrier+"@camp.example")
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

	if err := send(camp.postfix.Addr, strings.ReplaceAll(text, "one-", "two-"), "<eve@camp.example>", "<late@inner.hub.example>"); err != nil {
		t.Fatal(err)
	}
	dsn = camp.postfix.WaitMail("eve@camp.example", "two-"+carrier+"@camp.example")
	for _, want := range []string{"Return-Path: <>\n", "MAILER-DAEMON@hub.test", "\nReporting-MTA: dns; hub.test\n", "late@inner.hub.example", "5.2.1"} {
		if !strings.Contains(dsn, want) {
			t.Errorf("the report of hub's Postfix has no %q:\n%s", want, dsn)
		}
	}
}

// parameters: ESMTP parameters come out as they went in, at a server behind hub's Postfix; and hub's Postfix acts on
// them.
func parameters(t *testing.T, carrier string, camp, hub *site, inner *sink) {
	before := len(inner.Mails())
	text := "Subject: envelope\r\nMessage-Id: <p-" + carrier + "@camp.example>\r\n\r\nhello\r\n"
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
	text = strings.ReplaceAll(text, "<p-", "<ok-")
	if err := send(camp.postfix.Addr, text, "<eve@camp.example> ENVID=yes", "<ana@box.example> NOTIFY=SUCCESS ORCPT=rfc822;Ana@box.example"); err != nil {
		t.Fatal(err)
	}
	dsn := camp.postfix.WaitMail("eve@camp.example", "ok-"+carrier+"@camp.example")
	for _, want := range []string{"\nReporting-MTA: dns; hub.test\n", "\nOriginal-Envelope-Id: yes\n", "\nOriginal-Recipient: rfc822;Ana@box.example\n", "\nAction: delivered\n"} {
		if !strings.Contains(dsn, want) {
			t.Errorf("the report of success has no %q:\n%s", want, dsn)
		}
	}
}

// nul: a mail with NUL in it is refused over SMTP, as is right, but a local program may send it.
func nul(t *testing.T, carrier string, camp, hub *site) {
	text := "Subject: NUL\r\n\r\na\x00b\r\n"
	err := send(camp.smtp, text, "<eve@camp.example>", "<ana@hub.example>")
	if u, ok := err.(*unexpected); !ok || !strings.HasPrefix(u.reply, "5") {
		t.Errorf("NUL over SMTP: %v", err)
	}
	camp.submit("Subject: NUL\nFrom: eve@camp.example\nDate: Thu, 1 Jan 2026 00:00:00 +0000\nMessage-Id: <nul-"+carrier+"@camp.example>\n\na\x00b\n", "-i", "-f", "eve@camp.example", "ana@hub.example")
	mail := hub.postfix.WaitMail("ana@hub.example", "nul-"+carrier+"@camp.example")
	if !strings.HasSuffix(mail, "\n\na\x00b\n") {
		t.Errorf("the mail with NUL is changed: %q", mail)
	}
}
