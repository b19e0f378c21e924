package e2e

import (
	"bytes"
	"fmt"
	"net/smtp"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"mochila/internal/control"
	"mochila/internal/envelope"
	"mochila/internal/peertest"
	carrier "mochila/transport/letter"
)

// contribFile reads a recipe and puts this test's own places into it.
func contribFile(t testing.TB, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "contrib", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(replace...).Replace(string(b))
}

// maildirConf is a node that delivers everything for its domain to Maildirs.
func maildirConf(domain, dir string) string {
	return fmt.Sprintf("\n[[deliver]]\nto = [%q]\nvia = %q\n", domain, "maildir:"+dir+"/%u")
}

// openTo lets programs of other users, such as those that a mail server or UUCP starts, talk to the node's daemon.
func (n *node) openTo() {
	n.t.Helper()
	for _, p := range []string{n.dir, filepath.Dir(n.home.ControlSocket())} {
		if err := os.Chmod(p, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, p := range []string{n.home.ControlSocket(), n.home.Config()} {
		mode := os.FileMode(0o666)
		if p == n.home.Config() {
			mode = 0o644
		}
		if err := os.Chmod(p, mode); err != nil {
			n.t.Fatal(err)
		}
	}
}

// contactError is what a contact shows as its error.
func (n *node) contactError(carrier string) string {
	var st control.Status
	n.get("/v1/status", &st)
	for _, c := range st.Contacts {
		if strings.HasPrefix(c.Carrier, carrier) {
			return c.Error
		}
	}
	return ""
}

// mailPair is camp and hub with a Postfix between them, by the files of contrib/mail: camp gets its letters by the pipe
// of Postfix and sends them by sendmail, hub by SMTP both ways.
func mailPair(t *testing.T, conf func(name, mail string) string) (camp, hub *node, p *peertest.Postfix, mail string) {
	t.Helper()
	mail = t.TempDir()
	camp, hub = newNode(t, "camp", ""), newNode(t, "hub", "")
	hubSMTP := peertest.FreePort(t)
	_, port, _ := strings.Cut(hubSMTP, ":")
	transports := map[string]string{"letters@hub.example": "smtp:[127.0.0.1]:" + port}
	for line := range strings.Lines(contribFile(t, "mail/transport")) {
		if addr, to, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			transports[addr] = to
		}
	}
	p = peertest.StartPostfix(t, peertest.Options{Hostname: "mx.test", Transports: transports, Mailboxes: []string{"nobody-else@hub.example"},
		Main:   map[string]string{"default_transport": "error:5.1.1 nobody here", "message_size_limit": "10240000"},
		Master: strings.Split(contribFile(t, "mail/master.cf", "user=mochila", "user=nobody", "/usr/local/bin/mochila", program("mochila")+" --home "+camp.dir), "\n")})
	wrapper := filepath.Join(t.TempDir(), "sendmail")
	line := strings.Join(p.Sendmail().Args, " ")
	if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+line+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	recipe := func(self, far, options string) string {
		s := contribFile(t, "mail/mochila.toml", "letters@hub.example?", "letters@FAR.example?"+options+"&", "letters@camp.example", "letters@SELF.example", `node = "hub"`, `node = "FAR"`)
		return strings.NewReplacer("SELF", self, "FAR", far).Replace(s)
	}
	camp.knows(hub, control.PeerAdd{})
	hub.knows(camp, control.PeerAdd{})
	campOnly, _, _ := strings.Cut(recipe("camp", "hub", "size=100k&sendmail="+wrapper), "# Letters that come by SMTP")
	camp.configure(campOnly + conf("camp", mail) + "[limits]\nretry_min = \"2s\"\nretry_max = \"4s\"\n")
	hub.configure(recipe("hub", "camp", "smtp="+p.Addr) + conf("hub", mail) + "\n[smtp]\nlisten = [" + toml(hubSMTP) + "]\n")
	for _, n := range []*node{camp, hub} {
		n.serve()
		n.openTo()
	}
	return camp, hub, p, mail
}

// TestMailCarrier: mails both ways between two nodes that only ordinary mail joins, carried by a real Postfix; a packet in many
// parts; a letter that comes back; no loops.
func TestMailCarrier(t *testing.T) {
	t.Parallel()
	camp, hub, p, mail := mailPair(t, func(name, mail string) string {
		far := map[string]string{"camp": "hub", "hub": "camp"}[name]
		return maildirConf(name+".example", filepath.Join(mail, name)) + fmt.Sprintf("[[route]]\nto = [%q]\nnode = %q\n", far+".example", far)
	})
	in := func(name, user, text string) func() bool {
		return func() bool {
			for _, m := range box(t, filepath.Join(mail, name, user)) {
				if strings.Contains(m, text) {
					return true
				}
			}
			return false
		}
	}
	logs := []func() string{camp.log.String, hub.log.String, p.Log}
	camp.submit("Subject: there\n\nhello\n", "-f", "eve@camp.example", "ana@hub.example")
	peertest.Await(t, "a mail at hub", in("hub", "ana", "Subject: there"), logs...)
	hub.submit("Subject: back\n\nhello\n", "-f", "ana@hub.example", "eve@camp.example")
	peertest.Await(t, "a mail at camp", in("camp", "eve", "Subject: back"), logs...)
	camp.submit("Subject: in many parts\n\n"+strings.TrimPrefix(strings.ReplaceAll(big(), "\r", ""), "Subject: big\n")[:1_200_000], "-f", "eve@camp.example", "ana@hub.example")
	peertest.Await(t, "a large mail at hub", in("hub", "ana", "Subject: in many parts"), logs...)
	drained(t, camp, hub)

	// A letter that this node sent comes back to its sender by sendmail -bs, SMTP, or as relay host: it is not taken.
	_, port, _ := strings.Cut(hub.smtpAddr(t), ":")
	for _, to := range []string{"letters@camp.example", "someone@camp.example"} {
		letter := "From: <letters@hub.example>\r\nMochila-Packet: x\r\n\r\nx\r\n"
		err := smtp.SendMail("127.0.0.1:"+port, nil, "letters@hub.example", []string{to}, []byte(letter))
		if err == nil || !strings.Contains(err.Error(), "5.4.6") {
			t.Errorf("a letter to %s that this node would carry itself: %v", to, err)
		}
	}

	// The far address vanishes: the contact says what the mail server said, and nothing is lost.
	p.Set("transport_maps", "inline:{letters@camp.example=mochila-letters:}")
	p.Set("virtual_mailbox_domains", "hub.example")
	camp.submit("Subject: returned\n\nhello\n", "-f", "eve@camp.example", "ana@hub.example")
	peertest.Await(t, "the bounce on the contact", func() bool { return strings.Contains(camp.contactError("mail:"), "came back") }, logs...)
	if e := camp.contactError("mail:"); !strings.Contains(e, "unknown user") {
		t.Errorf("the contact says %q", e)
	}
	p.Set("transport_maps", "inline:{letters@camp.example=mochila-letters:, {letters@hub.example=smtp:[127.0.0.1]:"+port+"}}")
	peertest.Await(t, "the mail that came back, at hub", in("hub", "ana", "Subject: returned"), logs...)
	drained(t, camp, hub)
	peertest.Await(t, "a contact without error", func() bool { return camp.contactError("mail:") == "" }, logs...)
	for name, want := range map[string]int{"hub/ana": 3, "camp/eve": 1} {
		if got := len(box(t, filepath.Join(mail, name))); got != want {
			t.Errorf("%s has %d mails, want %d", name, got, want)
		}
	}
}

// smtpAddr is the first listener of the node's configuration.
func (n *node) smtpAddr(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(n.home.Config())
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)\[smtp\]\nlisten = \["([^"]+)"`).FindSubmatch(b)
	if m == nil {
		t.Fatal("no listener")
	}
	return string(m[1])
}

// TestReceiveExit: the exit status of mochila receive is what programs that call it go by.
func TestReceiveExit(t *testing.T) {
	t.Parallel()
	camp := newNode(t, "camp", "")
	camp.serve()
	run := func(in []byte, args ...string) (int, string) {
		cmd := camp.command(append([]string{"receive"}, args...)...)
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	junk := bytes.Repeat([]byte("junk"), 8<<20)
	for _, c := range []struct {
		in   []byte
		args []string
		want int
	}{
		{junk, nil, 65},
		{[]byte("x"), nil, 65},
		{nil, nil, 65},
		{junk, []string{"--from", "nncp"}, 0},
		{[]byte("x"), []string{"--from", "nobody"}, 64},
		{[]byte("Subject: x\n\nhello\n"), []string{"--mail"}, 65},
		{junk, []string{"--mail"}, 65},
		{[]byte("From: MAILER-DAEMON\n\nhello\n"), []string{"--mail", "--sender", ""}, 0},
	} {
		if got, out := run(c.in, c.args...); got != c.want {
			t.Errorf("receive %v of %d bytes: exit %d, want %d: %s", c.args, len(c.in), got, c.want, out)
		}
	}
	// another process at work on a node without a daemon: come again
	camp.shutdown()
	held, err := control.Open(camp.home, control.NodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for _, args := range [][]string{nil, {"--mail"}, {"--from", "uucp"}} {
		if got, out := run([]byte("x"), args...); got != 75 {
			t.Errorf("receive %v while the node is in use: exit %d, want 75: %s", args, got, out)
		}
	}
}

// TestReceivePacket: one real packet, offered in every way: cut, flipped, to a full spool, whole, and again.
func TestReceivePacket(t *testing.T) {
	t.Parallel()
	mail, out := t.TempDir(), t.TempDir()
	camp, hub := newNode(t, "camp", ""), newNode(t, "hub", "")
	hub.knows(camp, control.PeerAdd{Carrier: "exec:cat >" + out + "/$MOCHILA_PACKET"})
	camp.knows(hub, control.PeerAdd{When: "on-call"})
	hub.configure("[[route]]\nto = [\"camp.example\"]\nnode = \"camp\"\n")
	hub.submit("Subject: one\n\nhello\n", "-f", "ana@hub.example", "eve@camp.example")
	if said, err := hub.command("sync", "camp").CombinedOutput(); err != nil {
		t.Fatalf("sync: %v: %s", err, said)
	}
	files, err := filepath.Glob(filepath.Join(out, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("packets %v, %v", files, err)
	}
	packet, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	letters := letterOf(t, packet, int64(len(packet)/3+1))
	offer := func(want int, in []byte, args ...string) {
		t.Helper()
		cmd := camp.command(append([]string{"receive"}, args...)...)
		cmd.Stdin = bytes.NewReader(in)
		said, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("receive %v: exit %d, want %d: %s", args, got, want, said)
		}
	}
	mails := func() int { return len(box(t, filepath.Join(mail, "camp/eve"))) }

	conf := maildirConf("camp.example", filepath.Join(mail, "camp"))
	camp.configure(conf + "[limits]\nreserve = \"1000TiB\"\n")
	camp.serve()
	for _, args := range [][]string{nil, {"--from", "hub"}, {"--from", "nncp"}} {
		offer(75, packet, args...)
	}
	offer(75, letters[0], "--mail")
	camp.shutdown()

	camp.configure(conf)
	camp.serve()
	for n := range len(packet) {
		if n%101 == 7 {
			offer(65, packet[:n])
			flipped := bytes.Clone(packet)
			flipped[n] ^= 4
			offer(0, flipped, "--from", "nncp") // refused, and settled
		}
	}
	if n := mails(); n != 0 {
		t.Fatalf("%d mails of damaged packets", n)
	}
	for _, i := range []int{2, 0, 0, 1} {
		offer(0, letters[i], "--mail", "--sender", "letters@hub.example")
	}
	peertest.Await(t, "the mail", func() bool { return mails() == 1 }, camp.log.String)
	offer(0, packet)
	offer(0, packet, "--from", "hub")
	offer(0, letters[1], "--mail")
	if n := mails(); n != 1 {
		t.Errorf("%d mails, want one", n)
	}
}

// letterOf writes a packet as letters.
func letterOf(t *testing.T, packet []byte, size int64) (letters [][]byte) {
	t.Helper()
	for off := int64(0); off < int64(len(packet)); off += size {
		var b bytes.Buffer
		p := carrier.Part{Packet: envelope.SumOf(packet), Size: int64(len(packet)), Offset: off, Length: min(size, int64(len(packet))-off)}
		if err := carrier.Write(&b, carrier.Cover{From: "letters@hub.example", To: "letters@camp.example", Date: time.Now()}, p, bytes.NewReader(packet[off:])); err != nil {
			t.Fatal(err)
		}
		letters = append(letters, b.Bytes())
	}
	return letters
}
