package peertest

import (
	"bytes"
	"net/smtp"
	"strings"
	"testing"
)

// TestPostfixToPostfix proves that the harness works before mochila stands between the two.
func TestPostfixToPostfix(t *testing.T) {
	b := StartPostfix(t, Options{Hostname: "b.test", Mailboxes: []string{"ana@b.example", "bob@b.example"}})
	a := StartPostfix(t, Options{Hostname: "a.test", Relay: b.Addr})

	body := "Subject: from A to B\r\n\r\n.a dot first\r\nl" + strings.Repeat("o", 3000) + "ng\r\n"
	if err := smtp.SendMail(a.Addr, nil, "eve@a.example", []string{"ana@b.example", "bob@b.example"}, []byte(body)); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"ana@b.example", "bob@b.example"} {
		mail := b.WaitMails(to, 1)[0]
		if !bytes.HasSuffix(mail, []byte(strings.ReplaceAll(body, "\r\n", "\n"))) {
			t.Errorf("%s got a changed mail:\n%.2000q", to, mail)
		}
		if !bytes.Contains(mail, []byte("\nDelivered-To: "+to+"\n")) || !bytes.HasPrefix(mail, []byte("Return-Path: <eve@a.example>\n")) {
			t.Errorf("%s: headers of the delivery are missing:\n%.500q", to, mail)
		}
	}
	a.WaitLog("relay=127.0.0.1[127.0.0.1]", "to=<bob@b.example>", "status=sent")
}

// TestPostfixHoldsAndGoesOn: what a test needs to play an outage.
func TestPostfixHoldsAndGoesOn(t *testing.T) {
	b := StartPostfix(t, Options{Mailboxes: []string{"ana@b.example"}})
	a := StartPostfix(t, Options{Transports: map[string]string{"b.example": "smtp:" + bracket(b.Addr)}})
	b.Stop()
	cmd := a.Sendmail("-i", "-f", "eve@a.example", "ana@b.example")
	cmd.Stdin = strings.NewReader("Subject: queued\n\nhello\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v: %s", err, out)
	}
	a.WaitLog("to=<ana@b.example>", "status=deferred")
	if q := a.Queue(); !strings.Contains(q, "eve@a.example") {
		t.Errorf("mailq does not show the mail:\n%s", q)
	}
	b.Start()
	a.Flush()
	// Postfix adds Message-Id, Date and From to what sendmail takes.
	if mail := b.WaitMails("ana@b.example", 1)[0]; !bytes.Contains(mail, []byte("\nSubject: queued\n")) || !bytes.HasSuffix(mail, []byte("\n\nhello\n")) {
		t.Errorf("got %q", mail)
	}
	a.Set("default_transport", "error:5.1.2 nowhere")
	cmd = a.Sendmail("-i", "-f", "<>", "eve@elsewhere.example")
	cmd.Stdin = strings.NewReader("Subject: lost\n\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v: %s", err, out)
	}
	a.WaitLog("to=<eve@elsewhere.example>", "5.1.2", "status=bounced")
}
