package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// mta is a mail server beside a node. It takes mail from clients and gives it to the node; it takes mail from the node
// and hands on what ends at its site.
type mta struct {
	Addr string
	Log  func() string
}

// beside says what a mail server of a test needs to know.
type beside struct {
	name string // of the site; its domain is NAME.example
	addr string // where clients hand over mail
	back string // where the node does
	smtp string // where the node takes mail
	lmtp string // the same, a socket
	home string // the server where mail for NAME.example ends
	node string // the node's folder
}

func port(hostport string) string {
	_, p, _ := strings.Cut(hostport, ":")
	return p
}

// snippet reads a file of contrib and puts a test's own places into it: old and new by turns.
func snippet(t *testing.T, path string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "contrib", path))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("contrib/%s has no %q any more", path, replace[i])
		}
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	return text
}

// mtaPair makes two sites, each with a mail server that start makes, a node and a server where mail ends.
func mtaPair(t *testing.T, start func(t *testing.T, b beside) mta) (camp, hub mta, campHome, hubHome *sink, nodes [2]*node) {
	t.Helper()
	stick := t.TempDir()
	homes := [2]*sink{newSink(t, nil), newSink(t, func(rcpt string) string {
		if strings.Contains(rcpt, "late@") {
			return "550 5.2.1 mailbox closed"
		}
		return ""
	})}
	var servers [2]mta
	names := [2]string{"camp", "hub"}
	for i, name := range names {
		b := beside{name: name, addr: peertest.FreePort(t), back: peertest.FreePort(t), smtp: peertest.FreePort(t),
			lmtp: filepath.Join(shortDir(t), "lmtp.sock"), home: homes[i].Addr, node: shortDir(t)}
		// as `install -d -g GROUP -m 2755` makes it: the socket belongs to the mail server's group
		if err := os.Chown(filepath.Dir(b.lmtp), -1, peertest.EximUser); err != nil && os.Geteuid() == 0 {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(b.lmtp), 0o755|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(b.node, 0o755); err != nil {
			t.Fatal(err)
		}
		servers[i] = start(t, b)
		nodes[i] = nodeAt(t, name, b.node, fmt.Sprintf("domain = \"%s.example\"\n[smtp]\nlisten = [%q, %q]\n[bounce]\nvia = \"smtp:%s\"\n[[deliver]]\nto = [\"%s.example\", \"*.%s.example\"]\nvia = \"smtp:%s\"\n[limits]\nretry_min = \"1s\"\n",
			name, b.smtp, "lmtp:"+b.lmtp, b.back, name, name, b.back))
	}
	for i, n := range nodes {
		far := names[1-i]
		n.post("/v1/peers", control.PeerAdd{Name: far, Card: nodes[1-i].card(), Carrier: "dir:" + stick, Routes: []string{far + ".example", "*." + far + ".example"}}, nil)
		n.serve()
		// the sockets of a machine's node can be reached by its users
		if err := os.Chmod(filepath.Join(n.dir, "run"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return servers[0], servers[1], homes[0], homes[1], nodes
}

// throughMTA sends letters and a bounce through a pair of sites.
func throughMTA(t *testing.T, sent []letter, camp, hub mta, campHome, hubHome *sink, nodes [2]*node) {
	logs := []func() string{camp.Log, hub.Log, nodes[0].log.String, nodes[1].log.String}
	for _, l := range sent {
		// One at a time: OpenSMTPD 6.8 refuses NEVER after a recipient with other wishes.
		for _, to := range []string{"<ana@hub.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ana.Old+2B@else.example", "<bob@hub.example> NOTIFY=NEVER"} {
			if err := send(camp.Addr, l.text, "<eve@camp.example> RET=HDRS ENVID=QQ314159+3D", to); err != nil {
				t.Fatalf("%s: %v", l.name, err)
			}
		}
	}
	count := func() int {
		n := 0
		for _, m := range hubHome.Mails() {
			n += len(m.Rcpt)
		}
		return n
	}
	peertest.Await(t, "all letters at hub", func() bool { return count() >= 2*len(sent) }, logs...)
	var mails [][]byte
	var said strings.Builder
	for _, m := range hubHome.Mails() {
		for _, r := range m.Rcpt {
			said.WriteString(m.Mail + " | " + r + "\n")
			mails = append(mails, []byte(strings.ReplaceAll(m.Content, "\r\n", "\n")))
		}
	}
	for _, l := range sent {
		n := 0
		for _, m := range mails {
			if unchanged(m, l.text) {
				n++
			}
		}
		if n != 2 {
			t.Errorf("the mail %q came unchanged for %d recipients, want 2", l.name, n)
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(said.String()), "\n") {
		wants := []string{"RET=HDRS", "ENVID=QQ314159+3D", "ORCPT=rfc822;Ana.Old+2B@else.example"}
		if strings.Contains(line, "<bob@") {
			wants = []string{"RET=HDRS", "ENVID=QQ314159+3D", "NOTIFY=NEVER"}
		}
		for _, w := range wants {
			if !strings.Contains(line, w) {
				t.Errorf("the last server was not told %q: %s", w, line)
			}
		}
		if strings.Contains(line, "<ana@") && !strings.Contains(line, "NOTIFY=SUCCESS,DELAY") && !strings.Contains(line, "NOTIFY=DELAY,SUCCESS") {
			t.Errorf("the last server was not told of NOTIFY: %s", line)
		}
	}

	// What the far mail server cannot deliver comes back to the sender.
	if err := send(camp.Addr, "Subject: too late\r\nMessage-Id: <late@camp.example>\r\n\r\nhello\r\n", "<eve@camp.example>", "<late@hub.example>"); err != nil {
		t.Fatal(err)
	}
	report := ""
	peertest.Await(t, "a report at camp", func() bool {
		for _, m := range campHome.Mails() {
			if strings.Contains(m.Content, "late@camp.example") {
				report = m.Mail + "\n" + strings.Join(m.Rcpt, "\n") + "\n" + m.Content
				return true
			}
		}
		return false
	}, logs...)
	for _, want := range []string{"FROM:<>", "TO:<eve@camp.example>", "late@hub.example", "5.2.1"} {
		if !strings.Contains(report, want) {
			t.Errorf("the report has no %q:\n%s", want, report)
		}
	}
	drained(t, nodes[0], nodes[1])
}

// TestExim: an Exim at each site, hooked up by the files of contrib/exim4.
func TestExim(t *testing.T) {
	t.Parallel()
	camp, hub, campHome, hubHome, nodes := mtaPair(t, func(t *testing.T, b beside) mta {
		x := peertest.StartExim(t, b.addr, func(dir string) string { return eximConf(t, b, dir) })
		return mta{x.Addr, x.Log}
	})
	throughMTA(t, letters("exim"), camp, hub, campHome, hubHome, nodes)
	t.Run("LMTP", func(t *testing.T) { eximOther(t, camp, hub, hubHome, nodes, "lmtp.hub.example") })
	t.Run("BSMTP", func(t *testing.T) { eximOther(t, camp, hub, hubHome, nodes, "bsmtp.hub.example") })
}

// eximConf is the least that an Exim needs, with the recipes in their places.
func eximConf(t *testing.T, b beside, dir string) string {
	t.Helper()
	rsmtp := filepath.Join(dir, "rsmtp")
	if err := os.Symlink(program("sendmail"), rsmtp); err != nil {
		t.Fatal(err)
	}
	return "primary_hostname = " + b.name + ".test\nspool_directory = " + dir + "/spool\nlog_file_path = " + dir + "/%slog\n" +
		"local_interfaces = 127.0.0.1\ntls_advertise_hosts =\nhost_lookup =\nrfc1413_hosts =\nsmtputf8_advertise_hosts = *\n" +
		"domainlist local_domains = @\nkeep_environment =\nacl_smtp_rcpt = acl_check_rcpt\nqueue_run_in_order = false\nmessage_size_limit = 0\n" +
		snippet(t, "exim4/main", "25 : 10026", port(b.addr)+" : "+port(b.back)) +
		"begin acl\nacl_check_rcpt:\n" + snippet(t, "exim4/acl", "10026", port(b.back)) + "  accept hosts = 127.0.0.1\n" +
		"begin routers\nhome:\n  driver = manualroute\n  domains = " + b.name + ".example : *." + b.name + ".example\n  transport = home\n  route_list = * 127.0.0.1 byname\n  self = send\n" +
		"by_lmtp:\n  driver = accept\n  domains = lmtp.hub.example\n  transport = mochila_lmtp\n" +
		"by_bsmtp:\n  driver = accept\n  domains = bsmtp.hub.example\n  transport = mochila_bsmtp\n" +
		snippet(t, "exim4/router", "10026", port(b.back)) +
		"begin transports\nhome:\n  driver = smtp\n  port = " + port(b.home) + "\n  hosts_try_chunking =\n  message_linelength_limit = 1G\n" +
		snippet(t, "exim4/transport", "port = 2525", "port = "+port(b.smtp), "/run/mochila/lmtp.sock", b.lmtp,
			"command = /usr/lib/mochila/rsmtp", "user = Debian-exim\n  environment = MOCHILA_HOME="+b.node+"\n  command = "+rsmtp) +
		"begin retry\n" + snippet(t, "exim4/retry")
}

// eximOther: the other transports of contrib/exim4 lose nothing but the DSN requests.
func eximOther(t *testing.T, camp, hub mta, hubHome *sink, nodes [2]*node, domain string) {
	before := len(hubHome.Mails())
	sent := slices.DeleteFunc(letters(domain), func(l letter) bool { return l.name == "5 MB" })
	for _, l := range sent {
		if err := send(camp.Addr, l.text, "<eve@camp.example>", "<ana@"+domain+">", "<bob@"+domain+">"); err != nil {
			t.Fatalf("%s: %v", l.name, err)
		}
	}
	var mails [][]byte
	peertest.Await(t, "all letters at hub", func() bool {
		mails = nil
		for _, m := range hubHome.Mails()[before:] {
			for range m.Rcpt {
				mails = append(mails, []byte(strings.ReplaceAll(m.Content, "\r\n", "\n")))
			}
		}
		return len(mails) >= 2*len(sent)
	}, camp.Log, hub.Log, nodes[0].log.String, nodes[1].log.String)
	for _, l := range sent {
		n := 0
		for _, m := range mails {
			if unchanged(m, l.text) {
				n++
			}
		}
		if n != 2 {
			t.Errorf("the mail %q came unchanged for %d recipients, want 2", l.name, n)
		}
	}
}

// TestOpenSMTPD: an OpenSMTPD at each site, hooked up by contrib/opensmtpd.
func TestOpenSMTPD(t *testing.T) {
	t.Parallel()
	camp, hub, campHome, hubHome, nodes := mtaPair(t, func(t *testing.T, b beside) mta {
		o := peertest.StartOpenSMTPD(t, b.addr, snippet(t, "opensmtpd/smtpd.conf", "port 25", "port "+port(b.addr), "10026", port(b.back),
			"127.0.0.1:2525", b.smtp, "action \"local\" maildir", "action \"local\" relay host \"smtp://"+b.home+"\"",
			"\"camp.example\"", "{ \""+b.name+".example\", \"*."+b.name+".example\" }"))
		return mta{o.Addr, o.Log}
	})
	// OpenSMTPD refuses lines of more than 65535 bytes, and completes what comes from loopback
	sent := slices.DeleteFunc(letters("opensmtpd"), func(l letter) bool { return l.name == "long lines" })
	for i := range sent {
		sent[i].text = fmt.Sprintf("Message-Id: <%d@camp.example>\r\n", i) + sent[i].text
		if sent[i].name != "signed" {
			sent[i].text = "Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n" + sent[i].text
		}
	}
	throughMTA(t, sent, camp, hub, campHome, hubHome, nodes)
}
