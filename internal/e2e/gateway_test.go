package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	mathbig "math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/xdg-go/scram"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// writeCertificate puts a certificate for mx.test and 127.0.0.1 with the given serial number into dir.
func writeCertificate(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: mathbig.NewInt(serial), DNSNames: []string{"mx.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// secure makes TLS of a connection, and tells the serial number of the server's certificate.
func secure(t *testing.T, nc net.Conn) (*wire, int64) {
	t.Helper()
	c := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return &wire{Conn: c, r: bufio.NewReader(c)}, c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// ask says a line and returns the reply.
func (w *wire) ask(t *testing.T, line string) string {
	t.Helper()
	if _, err := fmt.Fprintf(w, "%s\r\n", line); err != nil {
		t.Fatal(err)
	}
	reply, err := w.reply()
	if err != nil {
		t.Fatalf("after %q: %v", line, err)
	}
	return reply
}

func (w *wire) want(t *testing.T, line, want string) {
	t.Helper()
	if err := w.say(line, want); err != nil {
		t.Fatal(err)
	}
}

// scramLogin logs in by SCRAM-SHA-256 and checks that the server knows the password, too.
func scramLogin(t *testing.T, w *wire, name, password string) {
	t.Helper()
	client, err := scram.SHA256.NewClient(name, password, "")
	if err != nil {
		t.Fatal(err)
	}
	conv := client.NewConversation()
	said, err := conv.Step("")
	line := "AUTH SCRAM-SHA-256 " + base64.StdEncoding.EncodeToString([]byte(said))
	for err == nil {
		reply := w.ask(t, line)
		if strings.HasPrefix(reply, "235 ") && conv.Valid() {
			return
		}
		challenge, bad := base64.StdEncoding.DecodeString(strings.TrimSpace(strings.TrimPrefix(reply, "334 ")))
		if bad != nil {
			t.Fatalf("reply %q", reply)
		}
		said, err = conv.Step(string(challenge))
		line = base64.StdEncoding.EncodeToString([]byte(said))
	}
	t.Fatal(err)
}

// writeSigningKey makes a key for DKIM.
func writeSigningKey(t *testing.T, path string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// verifyDKIM checks the one signature of a mail with LF lines against the record that the node prints.
func (n *node) verifyDKIM(mail string) error {
	var records []control.DKIMRecord
	n.get("/v1/dkim", &records)
	checks, err := dkim.VerifyWithOptions(strings.NewReader(strings.ReplaceAll(mail, "\n", "\r\n")), &dkim.VerifyOptions{
		LookupTXT: func(domain string) ([]string, error) {
			if len(records) != 1 || records[0].Name != domain {
				return nil, fmt.Errorf("asked for %s, the record is %+v", domain, records)
			}
			return []string{records[0].Record}, nil
		}})
	if err == nil && len(checks) != 1 {
		err = fmt.Errorf("%d signatures", len(checks))
	}
	if err == nil {
		err = checks[0].Err
	}
	return err
}

// TestLogin: an account sends through STARTTLS and through implicit TLS, held to its senders, and to nobody but it the
// port is open. Its mail is signed and does not tell where it came from. A renewed certificate is used without a restart.
func TestLogin(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	writeCertificate(t, dir, 1)
	writeSigningKey(t, dir+"/dkim.pem")
	port, secured := peertest.FreePort(t), peertest.FreePort(t)
	n := nodeAt(t, "camp", dir, fmt.Sprintf(`domain = "camp.example"
[smtp]
listen = [%q, %q]
relay_from = []
tls_cert = "cert.pem"
tls_key = "key.pem"
hide_clients = true
check_from = true
[[dkim]]
domain = "camp.example"
selector = "s1"
key = "dkim.pem"
[[deliver]]
to = ["*"]
via = %q
`, port, "smtps:"+secured, "maildir:"+dir+"/mail/%u"))
	n.serve()
	n.post("/v1/users", control.User{Name: "ana", Password: "open sesame", SendAs: []string{"ana@camp.example"}}, nil)

	w, err := dial(port)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.want(t, "EHLO c", "250")
	w.want(t, "MAIL FROM:<ana@camp.example>", "530") // loopback, but in no network that may relay
	w.want(t, "STARTTLS", "220")
	w, serial := secure(t, w.Conn)
	if serial != 1 {
		t.Errorf("certificate %d", serial)
	}
	if reply := w.ask(t, "EHLO c"); !strings.Contains(reply, "AUTH PLAIN LOGIN SCRAM-SHA-256") || strings.Contains(reply, "REQUIRETLS") {
		t.Errorf("EHLO: %q", reply)
	}
	w.want(t, "MAIL FROM:<ana@camp.example>", "530")
	w.want(t, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00ana\x00wrong one")), "535")
	scramLogin(t, w, "ana", "open sesame")
	w.want(t, "MAIL FROM:<ben@camp.example>", "553")
	w.want(t, "MAIL FROM:<>", "553")
	for i, from := range []string{"<ana@camp.example>", "<ana>"} { // the second is completed before it is compared
		if err := w.envelope(from, "<box@far.example>"); err != nil {
			t.Fatal(err)
		}
		if err := w.content(fmt.Sprintf("From: Ana <ana@camp.example>\r\nSubject: %d\r\n\r\nhi  \r\n\r\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.envelope("<ana@camp.example>", "<box@far.example>"); err != nil {
		t.Fatal(err)
	}
	w.want(t, "From: The Boss <boss@camp.example>\r\nSubject: pay\r\n\r\nhi\r\n.", "553 5.7.1 From: <boss@camp.example> is not allowed for ana")
	w.want(t, "VRFY box@far.example", "252 2.0.0")
	w.want(t, "ETRN nowhere", "250")

	writeCertificate(t, dir, 2)
	n.reload <- struct{}{}
	peertest.Await(t, "the new certificate", func() bool {
		nc, err := net.Dial("tcp", secured)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		w, serial := secure(t, nc)
		if serial != 2 {
			return false
		}
		if reply, err := w.reply(); err != nil || !strings.HasPrefix(reply, "220") {
			t.Fatalf("greeting %q, %v", reply, err)
		}
		w.want(t, "EHLO c", "250")
		w.want(t, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00ana\x00open sesame")), "235")
		return true
	}, n.log.String)

	drained(t, n)
	mails := box(t, dir+"/mail/box")
	if len(mails) != 2 {
		t.Fatalf("%d mails in the box: %q", len(mails), mails)
	}
	for _, m := range mails {
		if !strings.Contains(m, "\nReceived: by camp.example (mochila) with ESMTPSA id") || !strings.Contains(m, "Return-Path: <ana@camp.example>") || strings.Contains(m, "127.0.0.1") {
			t.Errorf("mail %q", m)
		}
		if err := n.verifyDKIM(m); err != nil {
			t.Errorf("signature: %v\n%s", err, m)
		}
	}
	for _, want := range []string{"sasl_method=SCRAM-SHA-256, sasl_username=ana", "SASL PLAIN authentication failed"} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("no %q in the log", want)
		}
	}
	if strings.Contains(n.log.String(), "sesame") {
		t.Error("the password is in the log")
	}
}

// TestRestart: while a daemon with a socket of a service manager is restarted, the client inside DATA gets its 250 from
// the old one, idle clients get 421, and new ones wait for the new daemon instead of being refused.
func TestRestart(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	addr := ln.Addr().String()
	dir := shortDir(t)
	n := nodeAt(t, "camp", dir, fmt.Sprintf("[smtp]\nlisten = [%q]\n[[deliver]]\nto = [\"*\"]\nvia = %q\n", addr, "maildir:"+dir+"/mail/%u"))
	start := func() (*exec.Cmd, chan error) {
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=smtp exec "$0" --home "$1" serve`, program("mochila"), dir)
		cmd.ExtraFiles = []*os.File{f}
		cmd.Stdout, cmd.Stderr = n.log, n.log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		t.Cleanup(func() { cmd.Process.Kill() })
		return cmd, exited
	}
	old, exited := start()
	inside, err := dial(addr) // waits in the backlog until the daemon is there
	if err != nil {
		t.Fatalf("%v\n%s", err, n.log)
	}
	defer inside.Close()
	inside.want(t, "EHLO c", "250")
	if err := inside.envelope("<a@x.example>", "<box@x.example>"); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(inside, "Subject: first half\r\n")
	idle, err := dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := old.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if reply, err := idle.reply(); err != nil || !strings.HasPrefix(reply, "421 4.3.2") {
		t.Errorf("an idle client hears %q, %v", reply, err)
	}
	late, err := net.Dial("tcp", addr) // the old daemon does not listen any more, the socket does
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := inside.content("\r\nsecond half\r\n"); err != nil {
		t.Fatalf("the client inside DATA: %v\n%s", err, n.log)
	}
	if err := <-exited; err != nil {
		t.Errorf("the old daemon: %v", err)
	}
	now, exited := start()
	w := &wire{Conn: late, r: bufio.NewReader(late)}
	late.SetDeadline(time.Now().Add(2 * time.Minute))
	if reply, err := w.reply(); err != nil || !strings.HasPrefix(reply, "220") {
		t.Fatalf("a client that waited hears %q, %v\n%s", reply, err, n.log)
	}
	w.want(t, "QUIT", "221")
	peertest.Await(t, "the mail", func() bool {
		for _, m := range box(t, dir+"/mail/box") {
			if strings.Contains(m, "first half") && strings.Contains(m, "second half") {
				return true
			}
		}
		return false
	}, n.log.String)
	now.Process.Signal(syscall.SIGTERM)
	if err := <-exited; err != nil {
		t.Errorf("the new daemon: %v", err)
	}
}
