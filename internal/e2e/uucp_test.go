package e2e

import (
	"fmt"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// script is a recipe's shell script without its first line, with this test's program in it.
func (n *node) script(name string) string {
	n.t.Helper()
	_, body, _ := strings.Cut(contribFile(n.t, name, "/usr/local/bin/mochila", program("mochila")+" --home "+n.dir), "\n")
	return body
}

// uucpPair is camp and hub over UUCP, by the files of contrib/uucp.
func uucpPair(t *testing.T, conf func(name, mail string) string) (camp, hub *node, u *peertest.UUCP, mail string) {
	t.Helper()
	mail = t.TempDir()
	camp, hub = newNode(t, "camp", ""), newNode(t, "hub", "")
	u = peertest.StartUUCP(t, [2]string{"camp", "hub"}, contribFile(t, "uucp/sys"), map[string]map[string]string{
		"camp": {"rmochila": camp.script("uucp/rmochila")}, "hub": {"rmochila": hub.script("uucp/rmochila")}})
	camp.knows(hub, control.PeerAdd{})
	hub.knows(camp, control.PeerAdd{})
	for _, n := range []*node{camp, hub} {
		far := map[string]string{"camp": "hub", "hub": "camp"}[n.name]
		n.configure(conf(n.name, mail) + contribFile(t, "uucp/mochila.toml", `node = "hub"`, `node = `+toml(far), `"uucp:hub"`, toml("uucp:"+far+"?config="+u.Config(n.name))))
		n.serve()
		n.openTo()
	}
	return camp, hub, u, mail
}

// TestUUCPCarrier: mails both ways over a real Taylor UUCP.
func TestUUCPCarrier(t *testing.T) {
	t.Parallel()
	camp, hub, u, mail := uucpPair(t, mailConf)
	said := ""
	logs := []func() string{camp.log.String, hub.log.String, func() string { return said }}
	await := func(what string, cond func() bool) {
		t.Helper()
		peertest.Await(t, what, func() bool { said = u.Move(); return cond() }, logs...)
	}
	camp.submit("Subject: there\n\nhello\n", "-f", "eve@camp.example", "ana@hub.example")
	await("a mail at hub", boxHas(t, filepath.Join(mail, "hub/ana"), "Subject: there"))
	hub.submit("Subject: back\n\n"+strings.ReplaceAll(big()[:300_000], "\r", ""), "-f", "ana@hub.example", "eve@camp.example")
	await("a mail at camp", boxHas(t, filepath.Join(mail, "camp/eve"), "Subject: back"))
	await("empty queues", func() bool { return camp.queued()+hub.queued() == 0 })
	if f := append(u.Failed("camp"), u.Failed("hub")...); len(f) > 0 {
		t.Errorf("uuxqt gave up %v", f)
	}
}

// TestUUCPMail: a UUCP neighbour that knows no mochila. What camp gives to a stock uux, a stock uuxqt hands to hub's rmail,
// rsmtp and rgsmtp; a stock uux may compress by compress.
func TestUUCPMail(t *testing.T) {
	t.Parallel()
	mail := t.TempDir()
	camp, hub := newNode(t, "camp", ""), newNode(t, "hub", "")
	links := t.TempDir()
	commands := map[string]string{}
	for _, name := range []string{"rmail", "rsmtp", "rgsmtp", "rcsmtp", "rbsmtp"} {
		target := program("mochila")
		if name == "rmail" || name == "rsmtp" {
			target = program("sendmail")
		}
		if err := os.Symlink(target, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
		commands[name] = "MOCHILA_HOME=" + hub.dir + " exec " + filepath.Join(links, name) + ` "$@"`
	}
	for _, dir := range []string{links, filepath.Dir(links)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	u := peertest.StartUUCP(t, [2]string{"camp", "hub"}, contribFile(t, "uucp/sys"), map[string]map[string]string{"hub": commands})
	var rules strings.Builder
	for _, command := range []string{"rmail", "rsmtp", "rgsmtp"} {
		fmt.Fprintf(&rules, "[[deliver]]\nto = [%q]\nvia = %q\n", command+".example", "uux:hub!"+command+"?config="+u.Config("camp"))
	}
	camp.configure(rules.String())
	hub.configure(fmt.Sprintf("[[deliver]]\nto = [\"*\"]\nvia = %q\n", "maildir:"+mail+"/%u@%d"))
	camp.serve()
	hub.serve()
	if err := os.Chmod(hub.home.SubmitSocket(), 0o666); err != nil {
		t.Fatal(err)
	}
	hub.openTo()
	for _, command := range []string{"rmail", "rsmtp", "rgsmtp"} {
		camp.submit("Subject: by "+command+"\n\n.dot\nFrom here\n", "-f", "eve@camp.example", "ana@"+command+".example", "bob@"+command+".example")
	}
	camp.submit("Subject: null\n\nhello\n", "-f", "<>", "ana@rsmtp.example")
	said := ""
	arrived := func(to, text string) func() bool { return boxHas(t, filepath.Join(mail, to), text) }
	for _, command := range []string{"rmail", "rsmtp", "rgsmtp"} {
		for _, user := range []string{"ana", "bob"} {
			to := user + "@" + command + ".example"
			peertest.Await(t, "a mail for "+to, func() bool { said = u.Move(); return arrived(to, "Subject: by "+command+"\n")() },
				camp.log.String, hub.log.String, func() string { return said })
			for _, m := range box(t, filepath.Join(mail, to)) {
				if strings.Contains(m, "by "+command) && (!strings.HasSuffix(m, "\n\n.dot\nFrom here\n") || !strings.HasPrefix(m, "Return-Path: <eve@camp.example>\n")) {
					t.Errorf("%s got %q", to, m)
				}
			}
		}
	}
	if !arrived("ana@rsmtp.example", "Return-Path: <>\n")() {
		t.Error("the null sender's mail did not arrive as such")
	}
	// A stock uux with a batch that compress(1) made, as a UUCP neighbour sends it.
	for command, packed := range map[string][]byte{"rcsmtp": compressed(t), "rbsmtp": []byte("HELO old\nMAIL FROM:<old@x.example>\nRCPT TO:<ana@plain.example>\nDATA\nSubject: plain\n\nhello\n.\nQUIT\n")} {
		cmd := u.Command("camp", "uux", "-r", "-n", "-", "hub!"+command)
		cmd.Stdin = strings.NewReader(string(packed))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("uux: %v: %s", err, out)
		}
	}
	for _, to := range []string{"ana@compressed.example", "ana@plain.example"} {
		peertest.Await(t, "a mail for "+to, func() bool { said = u.Move(); return len(box(t, filepath.Join(mail, to))) == 1 }, hub.log.String, func() string { return said })
	}
	if f := u.Failed("hub"); len(f) > 0 {
		t.Errorf("uuxqt gave up %v", f)
	}
}

// compressed is a batch as compress(1) packs it: codes of nine bits, low bits first.
func compressed(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/batch.Z")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUUXFront: Postfix's recipe for UUCP with mochila's uux in it, and a command that becomes a job.
func TestUUXFront(t *testing.T) {
	t.Parallel()
	mail, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	camp, hub := newNode(t, "camp", ""), newNode(t, "hub", "")
	pair(camp, hub, t.TempDir())
	camp.configure(mailConf("camp", mail))
	hub.configure("name = \"hub\"\n" + mailConf("hub", mail) + fmt.Sprintf("[[handler]]\nname = \"note\"\ncommand = [\"/bin/sh\", \"-c\", 'echo \"$1\" >%s; cat >>%s', \"note\"]\nargs = true\nallow = [\"camp:uucp\"]\n", out, out))
	camp.serve()
	hub.serve()
	camp.openTo()
	if err := os.Chmod(camp.home.SubmitSocket(), 0o666); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "uux-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	uux := filepath.Join(dir, "uux")
	err = os.Chmod(dir, 0o755)
	if err == nil {
		err = os.Symlink(program("mochila"), uux+".link")
	}
	if err == nil { // the machine's node needs no variable, and no script
		err = os.WriteFile(uux, []byte("#!/bin/bash\nMOCHILA_HOME="+camp.dir+" exec -a uux "+uux+".link \"$@\"\n"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := peertest.StartPostfix(t, peertest.Options{Hostname: "mx.test", Transports: map[string]string{"hub.example": "uucp:hub"},
		Master: strings.Split(contribFile(t, "uucp/master.cf", "/usr/local/lib/mochila/uux", uux, "user=uucp", "user=nobody"), "\n")})
	if err := smtp.SendMail(p.Addr, nil, "eve@camp.example", []string{"ana@hub.example", "bob@hub.example"}, []byte("Subject: by uux\r\n\r\nhello\r\n")); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"ana", "bob"} {
		peertest.Await(t, "a mail for "+user, boxHas(t, filepath.Join(mail, "hub", user), "Subject: by uux"), p.Log, camp.log.String, hub.log.String)
		for _, m := range box(t, filepath.Join(mail, "hub", user)) {
			if !strings.HasPrefix(m, "Return-Path: <eve@camp.example>\n") {
				t.Errorf("%s got %q", user, m)
			}
		}
	}
	cmd := exec.Command(uux, "-r", "-gB", "-j", "-", "hub!note", "arg one")
	cmd.Stdin = strings.NewReader("input\n")
	if said, err := cmd.CombinedOutput(); err != nil || len(said) == 0 {
		t.Fatalf("uux -j: %v: %s", err, said)
	}
	peertest.Await(t, "the job", func() bool { b, _ := os.ReadFile(out); return string(b) == "arg\ninput\n" }, camp.log.String, hub.log.String)
	drained(t, camp, hub)
}
