package e2e

import (
	"bytes"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// TestDovecot: mail that crossed two nodes ends in Dovecot's mailboxes, unchanged; who has none there is reported.
func TestDovecot(t *testing.T) {
	t.Parallel()
	d := peertest.StartDovecot(t, snippet(t, "dovecot/90-mochila.conf", "group = mochila", "group = root"), "ana@camp.example")
	home := newSink(t, nil)
	smtp := peertest.FreePort(t)
	hub := newNode(t, "hub", "")
	camp := newNode(t, "camp", "")
	stick := t.TempDir()
	conf := snippet(t, "dovecot/mochila.toml", "/run/dovecot/lmtp", d.Socket, "listen = [\"127.0.0.1:2525\"]", "listen = []")
	hubConf := "domain = \"hub.example\"\n[smtp]\nlisten = [" + toml(smtp) + "]\n[[deliver]]\nto = [\"hub.example\"]\nvia = \"smtp:" + home.Addr + "\"\n"
	hub.configure(hubConf)
	pair(hub, camp, stick)
	hub.configure(hubConf + "[[route]]\nto = [\"camp.example\"]\nnode = \"camp\"\n")
	camp.configure(conf)
	hub.serve()
	camp.serve()

	sent := letters("dovecot")
	for _, l := range sent {
		if err := send(smtp, l.text, "<eve@hub.example> BODY=8BITMIME", "<ana@camp.example>"); err != nil {
			t.Fatalf("%s: %v", l.name, err)
		}
	}
	if err := send(smtp, "Subject: nobody\r\nMessage-Id: <nobody@hub.example>\r\n\r\nhello\r\n", "<eve@hub.example>", "<nobody@camp.example>"); err != nil {
		t.Fatal(err)
	}
	// Dovecot 2.3 knows no SMTPUTF8: an address that needs it comes back
	if err := send(smtp, "Subject: utf8\r\nMessage-Id: <utf8@hub.example>\r\n\r\nhello\r\n", "<éva@hub.example> SMTPUTF8", "<ana@camp.example>"); err != nil {
		t.Fatal(err)
	}
	all := func() [][]byte { return d.Mails("ana@camp.example") }
	peertest.Await(t, "all letters in Dovecot's mailboxes", func() bool { return len(all()) >= len(sent) }, hub.log.String, camp.log.String, d.Log)
	compare(t, "Dovecot", all(), sent)
	reports := ""
	peertest.Await(t, "two reports at hub", func() bool {
		reports = ""
		for _, m := range home.Mails() {
			reports += m.Content
		}
		return len(home.Mails()) >= 2
	}, hub.log.String, camp.log.String, d.Log)
	for _, want := range []string{"Action: failed", "nobody@camp.example", "Status: 5.1.1", "Status: 5.6.7", "nobody@hub.example", "utf8@hub.example"} {
		if !strings.Contains(reports, want) {
			t.Errorf("the reports have no %q:\n%s", want, reports)
		}
	}
	for _, m := range all() {
		if !bytes.Contains(m, []byte("Delivered-To: ")) {
			t.Errorf("no Delivered-To: %.200q", m)
		}
	}
	drained(t, hub, camp)
}
