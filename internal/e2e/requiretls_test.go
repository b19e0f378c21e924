package e2e

import (
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestRequireTLS takes mail with REQUIRETLS (RFC 8689) at one node, under TLS, and delivers it from another one: where the
// last server is encrypted, has the right certificate and offers REQUIRETLS it passes; elsewhere it comes back as a header,
// or waits for a certificate that is right.
func TestRequireTLS(t *testing.T) {
	t.Parallel()
	certs := t.TempDir()
	writeCertificate(t, certs, 1)
	pair1, err := tls.LoadX509KeyPair(filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	server := func(secret string) *sink {
		s := newSink(t, nil)
		s.TLS, s.Secret = &tls.Config{Certificates: []tls.Certificate{pair1}}, secret
		return s
	}
	good, lax, plain := server("250-REQUIRETLS\r\n"), server(""), newSink(t, nil)
	_, port, _ := strings.Cut(good.Addr, ":")
	box1, smtp := t.TempDir(), peertest.FreePort(t)
	conf := fmt.Sprintf("domain = \"camp.example\"\n[smtp]\nlisten = [%q]\ntls_cert = %q\ntls_key = %q\nrequiretls = true\n[[deliver]]\nto = [\"camp.example\"]\nvia = %q\n",
		smtp, filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem"), "maildir:"+box1)
	camp := newNode(t, "camp", conf)
	hubConf := "domain = \"hub.example\"\n"
	for domain, via := range map[string]string{"good.example": "submission:" + good.Addr, "lax.example": "submission:" + lax.Addr, "plain.example": "smtp:" + plain.Addr,
		"wrong.example": "submission:localhost:" + port} { // a name that is not in the certificate
		hubConf += fmt.Sprintf("[[deliver]]\nto = [%q]\nvia = %q\n", domain, via)
	}
	hub := newNode(t, "hub", hubConf)
	hub.env = []string{"SSL_CERT_FILE=" + filepath.Join(certs, "cert.pem"), "SSL_CERT_DIR=" + t.TempDir()}
	stick := t.TempDir()
	camp.knows(hub, control.PeerAdd{Carrier: "dir:" + stick})
	hub.knows(camp, control.PeerAdd{Carrier: "dir:" + stick})
	camp.configure(conf + "[[route]]\nto = [\"*\"]\nnode = \"hub\"\n")
	camp.start()
	hub.start()

	w, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.want(t, "EHLO c", "250")
	w.want(t, "MAIL FROM:<eve@camp.example> REQUIRETLS", "555") // nobody is told of it in clear
	w.want(t, "STARTTLS", "220")
	w, _ = secure(t, w.Conn)
	if reply := w.ask(t, "EHLO c"); !strings.Contains(reply, "REQUIRETLS") {
		t.Fatalf("EHLO under TLS: %q", reply)
	}
	for _, domain := range []string{"good", "lax", "plain", "wrong"} {
		if err := w.envelope("<eve@camp.example> REQUIRETLS RET=FULL ENVID="+domain, "<ana@"+domain+".example>"); err != nil {
			t.Fatal(err)
		}
		if err := w.content("Subject: secret\r\nMessage-Id: <" + domain + "@camp.example>\r\n\r\nthe secret itself\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	logs := []func() string{camp.log.String, hub.log.String, camp.queue, hub.queue}
	peertest.Await(t, "the mail at the server that offers REQUIRETLS", func() bool { return len(good.Mails()) > 0 }, logs...)
	if m := good.Mails(); len(m) != 1 || !strings.Contains(m[0].Mail, " REQUIRETLS") || !strings.HasSuffix(m[0].Content, "the secret itself\r\n") {
		t.Errorf("it got %+v", m)
	}
	peertest.Await(t, "two mails back", func() bool { return len(box(t, box1)) >= 2 }, logs...)
	for _, domain := range []string{"lax", "plain"} {
		n := 0
		for _, dsn := range box(t, box1) {
			if !strings.Contains(dsn, "Original-Envelope-Id: "+domain+"\n") {
				continue
			}
			n++
			for _, want := range []string{"Final-Recipient: rfc822; ana@" + domain + ".example\n", "Action: failed\nStatus: 5.7.30\n", "Content-Type: text/rfc822-headers\n", "Message-Id: <" + domain + "@camp.example>\n"} {
				if !strings.Contains(dsn, want) {
					t.Errorf("%s: the notice has no %q:\n%s", domain, want, dsn)
				}
			}
			if strings.Contains(dsn, "the secret itself") {
				t.Errorf("%s: the content comes back in a mail that nothing protects:\n%s", domain, dsn)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d notices", domain, n)
		}
	}
	if n := len(lax.Mails()) + len(plain.Mails()); n > 0 {
		t.Errorf("%d mails went to servers without REQUIRETLS", n)
	}
	// A certificate may be put right: that mail waits.
	peertest.Await(t, "the wrong certificate to be noticed", func() bool { return strings.Contains(hub.queue(), "TLS with localhost") }, logs...)
	if len(good.Mails()) != 1 {
		t.Errorf("a mail went to a server with the wrong certificate")
	}
}
