package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/internal/peertest"
	"mochila/internal/submit"
)

// mailhouse is the configuration of a node that takes mail at an address and puts it into Maildirs below a folder.
func mailhouse(smtp, mail string) string {
	return fmt.Sprintf("domain = \"camp.example\"\n[smtp]\nlisten = [%q]\n[[deliver]]\nto = [\"camp.example\"]\nvia = %q\n", smtp, "maildir:"+mail+"/%u")
}

// exit waits for the daemon's process to end by itself and returns its status.
func (n *node) exit() int {
	n.t.Helper()
	peertest.Await(n.t, n.name+" to end", func() bool {
		select {
		case <-n.exited:
			return true
		default:
			return false
		}
	}, n.log.String)
	code := n.cmd.ProcessState.ExitCode()
	n.cmd = nil
	return code
}

// TestTermInsideData: a daemon that is told to end lets a mail that is on its way in come to its end, tells idle clients
// to come again, takes no new ones, and what it took is there after the next start.
func TestTermInsideData(t *testing.T) {
	smtp, mail := peertest.FreePort(t), t.TempDir()
	n := newNode(t, "camp", mailhouse(smtp, mail))
	n.start()
	busy, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	idle, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	for _, w := range []*wire{busy, idle} {
		if err := w.say("EHLO client.test", "250"); err != nil {
			t.Fatal(err)
		}
	}
	if err := busy.envelope("<eve@camp.example>", "<ana@camp.example>"); err != nil {
		t.Fatal(err)
	}
	text := "Subject: unfinished\r\n\r\nfirst half\r\n"
	if _, err := busy.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if reply, err := idle.reply(); err != nil || !strings.HasPrefix(reply, "421 4.") {
		t.Errorf("the idle client hears %q (%v), want 421", reply, err)
	}
	if c, err := net.Dial("tcp", smtp); err == nil {
		c.Close()
		t.Errorf("the daemon still takes connections while it stops")
	}
	if err := busy.content("second half\r\n"); err != nil {
		t.Errorf("the mail inside DATA: %v", err)
	}
	if code := n.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	n.start()
	drained(t, n)
	mails := box(t, filepath.Join(mail, "ana"))
	if len(mails) != 1 {
		t.Fatalf("%d mails, want 1", len(mails))
	}
	for _, m := range mails {
		if !unchanged([]byte(m), text+"second half\r\n") {
			t.Errorf("got %q", m)
		}
	}
}

// TestReload: new rules are in force at once, for sessions that are open, too, and no connection is dropped; a broken
// file changes nothing and says what is wrong.
func TestReload(t *testing.T) {
	smtp, mail := peertest.FreePort(t), t.TempDir()
	n := newNode(t, "camp", mailhouse(smtp, mail))
	n.start()
	w, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	inData, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer inData.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.say("EHLO client.test", "250"))
	must(w.say("MAIL FROM:<eve@camp.example>", "250"))
	must(w.say("RCPT TO:<ana@new.example>", "550 5.1.2"))
	must(inData.say("EHLO client.test", "250"))
	must(inData.envelope("<eve@camp.example>", "<old@camp.example>"))

	n.configure(strings.Replace(mailhouse(smtp, mail), `to = ["camp.example"]`, `to = ["camp.example", "new.example"]`, 1))
	out, err := n.command("reload").CombinedOutput()
	if err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
	must(w.say("RCPT TO:<ana@new.example>", "250"))
	must(w.say("DATA", "354"))
	must(w.content("Subject: new\r\n\r\n"))
	must(inData.content("Subject: old\r\n\r\n"))

	// limits, too: the listener stays, its next client meets them
	n.configure(strings.Replace(mailhouse(smtp, mail), "[smtp]\n", "[smtp]\nmax_size = \"30k\"\nmax_recipients = 1\n", 1))
	if out, err := n.command("reload").CombinedOutput(); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
	next, err := dial(smtp)
	must(err)
	defer next.Close()
	must(next.say("EHLO client.test", "250"))
	must(next.say("MAIL FROM:<eve@camp.example> SIZE=30001", "552 5.3.4"))
	must(next.say("MAIL FROM:<eve@camp.example> SIZE=30000", "250"))
	must(next.say("RCPT TO:<a@camp.example>", "250"))
	must(next.say("RCPT TO:<b@camp.example>", "452 4.5.3"))
	must(next.say("RSET", "250"))
	n.configure(strings.Replace(mailhouse(smtp, mail), `to = ["camp.example"]`, `to = ["camp.example", "new.example"]`, 1))
	if out, err := n.command("reload").CombinedOutput(); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}

	n.configure("domain = \"camp.example\"\n[smpt]\n")
	out, err = n.command("reload").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("smpt")) || !bytes.Contains(out, []byte("hint: ")) {
		t.Errorf("reload of a broken file: %v: %s", err, out)
	}
	if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	peertest.Await(t, "a line about the broken file", func() bool { return strings.Count(n.log.String(), "smpt") > 0 }, n.log.String)
	must(w.say("MAIL FROM:<eve@camp.example>", "250"))
	must(w.say("RCPT TO:<ana@new.example>", "250"))
	drained(t, n)
	if a, b := len(box(t, filepath.Join(mail, "ana"))), len(box(t, filepath.Join(mail, "old"))); a != 1 || b != 1 {
		t.Errorf("%d and %d mails, want 1 and 1", a, b)
	}
	if k := strings.Count(n.log.String(), ": client="); k != 2 {
		t.Errorf("the log names the clients of 2 mails in %d lines:\n%s", k, n.log)
	}
}

// TestReloadUnderLoad: reloads while mail flows cost no mail and no connection.
func TestReloadUnderLoad(t *testing.T) {
	r := random(t)
	smtp, mail := peertest.FreePort(t), t.TempDir()
	n := newNode(t, "camp", mailhouse(smtp, mail))
	n.serve()
	l := newLoad(smtp, "ana@camp.example")
	l.start(4, r)
	for i := range 10 {
		l.more(20)
		n.configure(fmt.Sprintf("%s[[deliver]]\nto = [\"n%d.example\"]\nvia = \"maildir:/nowhere\"\n", mailhouse(smtp, mail), i))
		n.reload <- struct{}{}
	}
	l.end()
	drained(t, n)
	if len(l.unsure) > 0 {
		t.Errorf("%d connections were dropped", len(l.unsure))
	}
	l.verify(t, inBox(t, filepath.Join(mail, "ana")), nil)
}

// TestPlaceTaken: whatever the daemon cannot have is named, with a hint, and nothing is left behind that disturbs the
// one that has it.
func TestPlaceTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	busy := ln.Addr().String()
	for name, conf := range map[string]string{
		"mail": "[smtp]\nlisten = [" + toml(busy) + "]\n",
		"link": "[link]\nlisten = [" + toml(busy) + "]\n",
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "camp", conf)
			n.launch()
			code := n.exit()
			if log := n.log.String(); code != control.ExitUnavailable || !strings.Contains(log, "mochila: error: ") || !strings.Contains(log, busy) || !strings.Contains(log, "\nhint: ") {
				t.Errorf("exit status %d, want %d:\n%s", code, control.ExitUnavailable, log)
			}
			n.queued() // the spool is free again
		})
	}
	t.Run("home", func(t *testing.T) {
		smtp := peertest.FreePort(t)
		n := newNode(t, "camp", mailhouse(smtp, t.TempDir()))
		n.start()
		out, err := n.command("serve").CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("mochila: error: ")) || !bytes.Contains(out, []byte("\nhint: ")) {
			t.Errorf("a second daemon of the same home: %v: %s", err, out)
		}
		if !n.answers() {
			t.Error("the first daemon has lost its control socket")
		}
		if err := send(smtp, "Subject: x\r\n\r\n", "<eve@camp.example>", "<ana@camp.example>"); err != nil {
			t.Errorf("the first daemon has lost its listener: %v", err)
		}
		n.submit("Subject: y\n\n", "-f", "eve@camp.example", "ana@camp.example")
		drained(t, n)
	})
}

// TestMaildropAtStart: what sendmail takes while no daemon runs is in the maildrop, durably, and the daemon takes it
// when it starts; each mail once, whatever is killed meanwhile.
func TestMaildropAtStart(t *testing.T) {
	r := random(t)
	mail := t.TempDir()
	n := newNode(t, "camp", mailhouse(peertest.FreePort(t), mail))
	const each, programs = 10, 4
	var wg sync.WaitGroup
	for k := range programs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range each {
				id := fmt.Sprintf("drop%d-%d", k, i)
				if out, err := n.sendmail(strings.NewReader(strings.ReplaceAll(body(id), "\r\n", "\n")), "-i", "-f", "eve@camp.example", "ana@camp.example"); err != nil {
					t.Errorf("sendmail without a daemon: %v: %s", err, out)
				}
			}
		}()
	}
	wg.Wait()
	files, err := os.ReadDir(n.home.MaildropDir)
	if err != nil || len(files) < each*programs {
		t.Fatalf("%d files in the maildrop, want %d: %v", len(files), each*programs, err)
	}
	if files, err := filepath.Glob(filepath.Join(mail, "*", "new", "*")); len(files) > 0 {
		t.Fatalf("delivered without a daemon: %q %v", files, err)
	}
	// The daemon is killed while it collects, at moments that only chance knows.
	for range 4 {
		n.launch()
		select {
		case <-time.After(time.Duration(r.IntN(150_000)) * time.Microsecond):
		case <-n.exited:
			t.Fatalf("the daemon ends at its start:\n%s", n.log)
		}
		n.kill()
	}
	n.start()
	peertest.Await(t, "all mails", func() bool { return len(box(t, filepath.Join(mail, "ana"))) >= each*programs }, n.log.String)
	drained(t, n)
	seen := map[string]int{}
	for _, m := range box(t, filepath.Join(mail, "ana")) {
		seen[loadID.FindStringSubmatch(m)[1]]++
		if id := loadID.FindStringSubmatch(m)[1]; !strings.Contains(m, "\n"+strings.SplitN(strings.ReplaceAll(body(id), "\r\n", "\n"), "\n\n", 2)[1]) {
			t.Errorf("%s is changed: %.500q", id, m)
		}
	}
	for k := range programs {
		for i := range each {
			if id := fmt.Sprintf("drop%d-%d", k, i); seen[id] != 1 {
				t.Errorf("%s came %d times", id, seen[id])
			}
		}
	}
	files, err = os.ReadDir(n.home.MaildropDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != submit.DomainFile {
			t.Errorf("%s is left in the maildrop", f.Name())
		}
	}
}

// TestTwoHomes: two daemons on one machine do not see each other but through what lies between them, and sendmail finds
// the node of its environment.
func TestTwoHomes(t *testing.T) {
	mails := map[string]string{"camp": t.TempDir(), "hub": t.TempDir()}
	var nodes []*node
	for _, name := range []string{"camp", "hub"} {
		n := newNode(t, name, fmt.Sprintf("[smtp]\nlisten = [%q]\n[[deliver]]\nto = [%q]\nvia = %q\n", peertest.FreePort(t), name+".mochila", "maildir:"+mails[name]+"/%u"))
		nodes = append(nodes, n)
	}
	camp, hub := nodes[0], nodes[1]
	pair(camp, hub, t.TempDir())
	camp.start()
	hub.start()
	camp.submit("Subject: there\n\n", "-f", "ana", "bob@hub.mochila")
	hub.submit("Subject: here\n\n", "-f", "eve", "eve")
	hub.submit("Subject: back\n\n", "-f", "bob", "ana@camp.mochila")
	peertest.Await(t, "three mails", func() bool {
		return len(box(t, mails["hub"]+"/bob")) == 1 && len(box(t, mails["hub"]+"/eve")) == 1 && len(box(t, mails["camp"]+"/ana")) == 1
	}, camp.log.String, hub.log.String)
	drained(t, camp, hub)
	for _, m := range box(t, mails["hub"]+"/bob") {
		if !strings.HasPrefix(m, "Return-Path: <ana@camp.mochila>\nDelivered-To: bob@hub.mochila\n") {
			t.Errorf("the envelope is not camp's: %q", m)
		}
	}
	for _, n := range nodes {
		var st control.Status
		n.get("/v1/status", &st)
		if st.Name != n.name || !st.Daemon {
			t.Errorf("%s answers as %q, daemon %v", n.name, st.Name, st.Daemon)
		}
	}
	// One of them stopped: the other goes on.
	if err := camp.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := camp.exit(); code != 0 {
		t.Errorf("exit status %d after SIGINT", code)
	}
	if _, err := os.Stat(camp.home.ControlSocket()); !os.IsNotExist(err) {
		t.Errorf("the control socket of a stopped daemon: %v", err)
	}
	hub.submit("Subject: still here\n\n", "-f", "eve", "eve")
	drained(t, hub)
	if len(box(t, mails["hub"]+"/eve")) != 2 {
		t.Error("hub does not go on alone")
	}
}

// TestRecipe: the files of contrib/postfix are what programs accept: the configuration passes `mochila check`.
func TestRecipe(t *testing.T) {
	n := newNode(t, "camp", "")
	hub := newNode(t, "hub", "")
	pair(n, hub, t.TempDir())
	if err := os.WriteFile(n.home.Config(), []byte(recipe(t, "mochila.toml")), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := n.command("check")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("mochila check of contrib/postfix/mochila.toml: %v: %s", err, out)
	}
	c, _, err := config.Load(n.home)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.SMTP.Listen[0].String(); got != "127.0.0.1:2525" {
		t.Errorf("it listens on %s, the snippets of Postfix's configuration say 127.0.0.1:2525", got)
	}
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mochila.toml", "relayhost.cf", "transport.cf", "transport", "master.cf"} {
		if !strings.Contains(string(readme), "contrib/postfix/"+name) {
			t.Errorf("README.md does not name contrib/postfix/%s", name)
		}
		for line := range strings.Lines(recipe(t, name)) {
			if key, _, ok := strings.Cut(line, " = "); ok && strings.Contains(string(readme), "\n"+key+" = ") && !strings.Contains(string(readme), "\n"+line) {
				t.Errorf("README.md shows another %q than contrib/postfix/%s", key, name)
			}
		}
	}
}
