package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// TestMilter: OpenDKIM as a filter signs what enters, by SMTP and from a program; when it is gone, mail waits outside.
func TestMilter(t *testing.T) {
	t.Parallel()
	program := "/usr/sbin/opendkim"
	if _, err := os.Stat(program); err != nil {
		t.Skip("SKIPPED: OpenDKIM is not installed: run .ci/peers")
	}
	version, _ := exec.Command(program, "-V").CombinedOutput()
	first, _, _ := strings.Cut(string(version), "\n")
	t.Logf("neighbour: %s", first)
	dir := shortDir(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "opendkim.conf")
	if err := os.WriteFile(conf, []byte("Domain camp.example\nKeyFile "+keyFile+"\nSelector s1\nMode s\nBackground no\nSyslog no\nRequireSafeKeys no\nPidFile "+dir+"/pid\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "milter.sock")
	cmd := exec.Command(program, "-f", "-x", conf, "-p", "local:"+socket)
	log := &logbook{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }()
	stop := func() { cmd.Process.Kill(); <-ended; os.Remove(socket) }
	t.Cleanup(stop)
	peertest.Await(t, "OpenDKIM", func() bool { c, err := net.Dial("unix", socket); closeConn(c); return err == nil }, log.String)

	home := newSink(t, nil)
	smtp := peertest.FreePort(t)
	n := newNode(t, "camp", fmt.Sprintf("domain = \"camp.example\"\n[smtp]\nlisten = [%q]\nmilters = [%q]\n[[deliver]]\nto = [\"*\"]\nvia = \"smtp:%s\"\n", smtp, "unix:"+socket, home.Addr))
	n.serve()
	text := "From: Ana <ana@camp.example>\r\nTo: bob@hub.example\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nMessage-Id: <1@camp.example>\r\nSubject: filtered\r\n\r\nhello\r\n"
	if err := send(smtp, text, "<ana@camp.example>", "<bob@hub.example>"); err != nil {
		t.Fatal(err)
	}
	n.submit(strings.ReplaceAll(text, "\r\n", "\n"), "-i", "-f", "ana@camp.example", "bob@hub.example")
	peertest.Await(t, "two mails", func() bool { return len(home.Mails()) >= 2 }, n.log.String, log.String)
	for _, m := range home.Mails() {
		if !strings.Contains(m.Content, "\r\nDKIM-Signature: v=1;") || !strings.Contains(m.Content, "d=camp.example; s=s1;") || !strings.HasSuffix(m.Content, text) && !strings.Contains(m.Content, "Subject: filtered\r\n") {
			t.Errorf("not as the filter left it: %q", m.Content)
		}
	}

	stop()
	err = send(smtp, text, "<ana@camp.example>", "<bob@hub.example>")
	if err == nil || !strings.Contains(err.Error(), "451 4.7.1") {
		t.Errorf("without the filter: %v", err)
	}
}

func closeConn(c net.Conn) {
	if c != nil {
		c.Close()
	}
}

// TestBorder: a site whose addresses look different from outside, with names for several people and a list of who
// exists; its backup server takes mail for days while the site is away.
func TestBorder(t *testing.T) {
	t.Parallel()
	inside, outside := newSink(t, nil), newSink(t, nil)
	campPort, hubPort := peertest.FreePort(t), peertest.FreePort(t)
	dir := shortDir(t)
	for name, text := range map[string]string{"aliases": "root: ana\nstaff: ana, bob\n", "users": "ana\nbob\nroot\nstaff\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stick := t.TempDir()
	camp, hub := newNode(t, "camp", ""), newNode(t, "hub", "")
	campConf := fmt.Sprintf("domain = \"camp.example\"\naliases = [%q]\narchive = \"archive@camp.example\"\n[smtp]\nlisten = [%q]\n[[rewrite]]\nfrom = \"camp.internal\"\nto = \"camp.example\"\nheaders = true\n[[deliver]]\nto = [\"camp.example\"]\nvia = \"smtp:%s\"\n",
		filepath.Join(dir, "aliases"), campPort, inside.Addr)
	hubConf := fmt.Sprintf("domain = \"hub.example\"\n[smtp]\nlisten = [%q]\nrelay_from = []\nopen_to = [\"camp.example\"]\n[[deliver]]\nto = [\"hub.example\"]\nvia = \"smtp:%s\"\n", hubPort, outside.Addr)
	camp.configure(campConf)
	hub.configure(hubConf)
	pair(camp, hub, stick)
	camp.configure(campConf + "[[route]]\nto = [\"hub.example\"]\nnode = \"hub\"\n")
	hub.configure(hubConf + fmt.Sprintf("[[route]]\nto = [\"camp.example\"]\nnode = \"camp\"\nrecipients = %q\n", filepath.Join(dir, "users")))
	hub.serve()
	logs := []func() string{camp.log.String, hub.log.String}

	// camp is away: its hub takes what is for those who exist, and nothing else
	text := "Subject: for camp\r\n\r\nhello\r\n"
	for _, to := range []string{"root", "STAFF"} {
		if err := send(hubPort, text, "<eve@else.example>", "<"+to+"@camp.example>"); err != nil {
			t.Fatal(err)
		}
	}
	for to, want := range map[string]string{"nobody@camp.example": "550 5.1.1", "eve@third.example": "550 5.7.1", "dora@hub.example": "550 5.7.1", "dora": "550 5.7.1"} {
		if err := send(hubPort, text, "<eve@else.example>", "<"+to+">"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", to, err, want)
		}
	}
	camp.serve()
	letter := "From: Ana <ana@pc.camp.internal>, b@camp.internal\r\nSubject: out of ana@camp.internal\r\n\r\nana@camp.internal\r\n"
	if err := send(campPort, letter, "<ana@camp.internal>", "<dora@hub.example>"); err != nil {
		t.Fatal(err)
	}
	count := func(s *sink) (n int) {
		for _, m := range s.Mails() {
			n += len(m.Rcpt)
		}
		return n
	}
	peertest.Await(t, "all mail at camp and hub", func() bool { return count(inside) >= 4 && count(outside) >= 1 }, logs...)
	drained(t, camp, hub)
	got := map[string]int{}
	for _, m := range inside.Mails() {
		for _, r := range m.Rcpt {
			addr, _, _ := strings.Cut(r, " ")
			got[addr]++
		}
	}
	for addr, n := range map[string]int{"TO:<ana@camp.example>": 2, "TO:<bob@camp.example>": 1, "TO:<archive@camp.example>": 1} {
		if got[addr] != n {
			t.Errorf("%s got %d mails, want %d: %v", addr, got[addr], n, got)
		}
	}
	out := outside.Mails()[0]
	want := "From: Ana <ana@pc.camp.internal>, b@camp.example\r\nSubject: out of ana@camp.internal\r\n\r\nana@camp.internal\r\n"
	if !strings.HasPrefix(out.Mail, "FROM:<ana@camp.example>") || !strings.HasSuffix(out.Content, want) {
		t.Errorf("outside it is %q %q", out.Mail, out.Content)
	}
}
