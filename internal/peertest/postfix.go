// Package peertest starts the real mail servers that mochila must get along with: private instances with their own
// configuration, queue and log below a temporary folder, beside whatever mail server the machine has and without
// touching it. Everything is stopped and removed when the test ends.
//
// A test whose neighbour is not there is skipped, and the reason says what to install.
package peertest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Options shape a private Postfix. The zero value accepts mail from loopback and delivers nothing.
type Options struct {
	Hostname   string            // default postfix.test
	Relay      string            // relayhost as HOST:PORT; "" sends nothing out
	Transports map[string]string // transport_maps: "far.example" → "smtp:[127.0.0.1]:2525", "lmtp:unix:/run/x.sock"
	Mailboxes  []string          // addresses that end here, in Maildirs; their domains are virtual_mailbox_domains
	Main       map[string]string // further main.cf settings; they win
	Master     []string          // further master.cf lines
}

// Postfix is a running private instance.
type Postfix struct {
	Addr    string // HOST:PORT of its smtpd, which relays for loopback
	Version string

	t        testing.TB
	dir      string
	settings map[string]string
}

// the time that a test waits for something that takes well below a second on an idle machine
const patience = 5 * time.Minute

// StartPostfix starts an instance and waits until it answers. It skips the test where Postfix is missing or the caller
// is not root, which Postfix's master process has to be.
func StartPostfix(t testing.TB, o Options) *Postfix {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a private Postfix needs root: run the tests as root")
	}
	p := &Postfix{t: t}
	version, err := exec.Command(tool("postconf"), "-d", "-h", "mail_version").Output()
	if err != nil {
		t.Skipf("SKIPPED: Postfix is not installed (%v): run .ci/peers", err)
	}
	p.Version = strings.TrimSpace(string(version))
	t.Logf("neighbour: Postfix %s", p.Version)

	// Not t.TempDir, which the postfix user cannot enter.
	if p.dir, err = os.MkdirTemp("", "postfix-test-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.remove)
	p.Addr = FreePort(t)
	p.configure(o)
	t.Cleanup(p.Stop)
	p.Start()
	return p
}

// tool finds a program of Postfix even where PATH has no sbin.
func tool(name string) string {
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path := filepath.Join(dir, name); isFile(path) {
			return path
		}
	}
	return name
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// services is a master.cf without chroot and without anything that tests do not need. pickup and qmgr look each second,
// in case a trigger is lost while they restart.
const services = `pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
lmtp unix - - n - - lmtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

func (p *Postfix) configure(o Options) {
	p.t.Helper()
	nobody := p.user("nobody")
	postfix := p.user("postfix")
	must := func(err error) {
		p.t.Helper()
		if err != nil {
			p.t.Fatal(err)
		}
	}
	must(os.Chmod(p.dir, 0o755))
	for _, sub := range []string{"conf", "queue", "data", "mail"} {
		must(os.Mkdir(p.path(sub), 0o755))
	}
	must(os.Chown(p.path("data"), postfix.uid, -1))
	must(os.Chown(p.path("mail"), nobody.uid, nobody.gid))

	p.settings = map[string]string{
		"compatibility_level":                 "3.6",
		"queue_directory":                     p.path("queue"),
		"data_directory":                      p.path("data"),
		"maillog_file":                        p.path("log"),
		"maillog_file_prefixes":               p.dir,
		"multi_instance_enable":               "yes",
		"myhostname":                          "postfix.test",
		"mydestination":                       "",
		"inet_interfaces":                     "127.0.0.1",
		"inet_protocols":                      "ipv4",
		"mynetworks":                          "127.0.0.0/8",
		"smtpd_relay_restrictions":            "permit_mynetworks, reject",
		"smtpd_peername_lookup":               "no",
		"smtpd_tls_security_level":            "none",
		"smtpd_authorized_xforward_hosts":     "127.0.0.0/8",
		"smtpd_client_connection_count_limit": "0",
		"smtp_tls_security_level":             "none",
		"smtp_line_length_limit":              "0",
		"smtp_host_lookup":                    "native",
		"alias_maps":                          "",
		"alias_database":                      "",
		"local_recipient_maps":                "",
		"default_transport":                   "error:5.7.0 this test instance sends nothing out",
		"append_dot_mydomain":                 "no",
		"local_header_rewrite_clients":        "", // SMTP mail passes unchanged
		"in_flow_delay":                       "0",
		"message_size_limit":                  "0",
		"mailbox_size_limit":                  "0",
		"virtual_mailbox_limit":               "0",
		"virtual_mailbox_base":                p.path("mail"),
		"virtual_minimum_uid":                 "1",
		"virtual_uid_maps":                    fmt.Sprintf("static:%d", nobody.uid),
		"virtual_gid_maps":                    fmt.Sprintf("static:%d", nobody.gid),
	}
	if o.Hostname != "" {
		p.settings["myhostname"] = o.Hostname
	}
	if o.Relay != "" {
		p.settings["relayhost"] = bracket(o.Relay)
		p.settings["default_transport"] = "smtp"
	}
	if len(o.Transports) > 0 {
		p.settings["transport_maps"] = p.table("transport", o.Transports)
	}
	if len(o.Mailboxes) > 0 {
		boxes, domains := map[string]string{}, map[string]bool{}
		for _, addr := range o.Mailboxes {
			boxes[addr] = boxPath(addr)
			domains[addr[strings.LastIndexByte(addr, '@')+1:]] = true
		}
		p.settings["virtual_mailbox_domains"] = strings.Join(slices.Sorted(maps.Keys(domains)), " ")
		p.settings["virtual_mailbox_maps"] = p.table("mailboxes", boxes)
	}
	maps.Copy(p.settings, o.Main)
	p.writeMain()
	master := p.Addr + " inet n - n - - smtpd\n" + services + strings.Join(o.Master, "\n") + "\n"
	must(os.WriteFile(p.path("conf/master.cf"), []byte(master), 0o644))
}

func (p *Postfix) path(sub string) string { return filepath.Join(p.dir, sub) }

type ids struct{ uid, gid int }

func (p *Postfix) user(name string) (id ids) {
	p.t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		p.t.Skipf("SKIPPED: a private Postfix needs the user %s: %v", name, err)
	}
	if id.uid, err = strconv.Atoi(u.Uid); err == nil {
		id.gid, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

// bracket writes HOST:PORT as Postfix wants it, without MX lookup.
func bracket(hostport string) string {
	host, port, _ := strings.Cut(hostport, ":")
	return "[" + host + "]:" + port
}

// boxPath is the Maildir of an address below virtual_mailbox_base.
func boxPath(addr string) string { return strings.ReplaceAll(addr, "/", "_") + "/" }

// table writes a lookup table and returns its name in main.cf.
func (p *Postfix) table(name string, entries map[string]string) string {
	p.t.Helper()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(entries)) {
		fmt.Fprintf(&b, "%s %s\n", k, entries[k])
	}
	if err := os.WriteFile(p.path("conf/"+name), []byte(b.String()), 0o644); err != nil {
		p.t.Fatal(err)
	}
	return "texthash:" + p.path("conf/"+name)
}

func (p *Postfix) writeMain() {
	p.t.Helper()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(p.settings)) {
		fmt.Fprintf(&b, "%s = %s\n", k, p.settings[k])
	}
	if err := os.WriteFile(p.path("conf/main.cf"), []byte(b.String()), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// run runs one of Postfix's programs on this instance.
func (p *Postfix) run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	flag := "-c"
	if name == "sendmail" {
		flag = "-C"
	}
	out, err := exec.CommandContext(ctx, tool(name), append([]string{flag, p.path("conf")}, args...)...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// Start starts the instance, if it does not run, and waits until it answers.
func (p *Postfix) Start() {
	p.t.Helper()
	if _, err := p.run("postfix", "start"); err != nil {
		p.t.Fatalf("%v\n%s", err, p.Log())
	}
	p.await("an answer of Postfix at "+p.Addr, func() bool { return answers(p.Addr) })
}

// answers reports whether an SMTP or LMTP server greets at the address, HOST:PORT or the path of a socket.
func answers(addr string) bool {
	network := "tcp"
	if filepath.IsAbs(addr) {
		network = "unix"
	}
	c, err := net.DialTimeout(network, addr, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	greeting := make([]byte, 4)
	n, _ := c.Read(greeting)
	return string(greeting[:n]) == "220 "
}

// Stop stops the instance; its queue stays, and Start goes on with it.
func (p *Postfix) Stop() {
	if _, err := p.run("postfix", "status"); err != nil {
		return // it does not run
	}
	if _, err := p.run("postfix", "stop"); err != nil {
		p.t.Errorf("%v\n%s", err, p.Log())
	}
}

func (p *Postfix) remove() {
	if p.t.Failed() {
		p.t.Logf("log of Postfix:\n%s", tail(p.Log()))
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.t.Errorf("removing the private Postfix: %v", err)
	}
}

// Set changes a main.cf setting of the running instance.
func (p *Postfix) Set(key, value string) {
	p.t.Helper()
	p.settings[key] = value
	p.writeMain()
	if _, err := p.run("postfix", "reload"); err != nil {
		p.t.Fatal(err)
	}
}

// Sendmail is a command line of this instance's sendmail, to be run with a mail on its stdin.
func (p *Postfix) Sendmail(args ...string) *exec.Cmd {
	return exec.Command(tool("sendmail"), append([]string{"-C", p.path("conf")}, args...)...)
}

// GroupFolder makes a folder below its queue_directory in which new files, and sockets, belong to Postfix's group.
func (p *Postfix) GroupFolder(name string) string {
	p.t.Helper()
	dir := filepath.Join(p.path("queue"), name)
	err := os.Mkdir(dir, 0o750)
	if err == nil {
		err = os.Chown(dir, -1, p.user("postfix").gid)
	}
	if err == nil {
		err = os.Chmod(dir, 0o750|fs.ModeSetgid)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// Flush makes it try everything in its queue now.
func (p *Postfix) Flush() {
	p.t.Helper()
	if _, err := p.run("postqueue", "-f"); err != nil {
		p.t.Fatal(err)
	}
}

// Queue is what mailq prints.
func (p *Postfix) Queue() string {
	p.t.Helper()
	out, err := p.run("postqueue", "-p")
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// Log is everything it has logged.
func (p *Postfix) Log() string {
	b, err := os.ReadFile(p.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Mails returns the contents of a mailbox, oldest file name first, as Postfix stored them (LF lines, with the headers
// that virtual(8) adds).
func (p *Postfix) Mails(addr string) [][]byte {
	p.t.Helper()
	var mails [][]byte
	for _, sub := range []string{"new", "cur"} {
		dir := filepath.Join(p.path("mail"), boxPath(addr), sub)
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			p.t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				p.t.Fatal(err)
			}
			mails = append(mails, b)
		}
	}
	return mails
}

// Files lists the mails of a mailbox, for whoever takes them out.
func (p *Postfix) Files(addr string) (paths []string) {
	p.t.Helper()
	for _, sub := range []string{"new", "cur"} {
		found, err := filepath.Glob(filepath.Join(p.path("mail"), boxPath(addr), sub, "*"))
		if err != nil {
			p.t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	return paths
}

// Count is how many mails a mailbox has.
func (p *Postfix) Count(addr string) int {
	p.t.Helper()
	n := 0
	for _, sub := range []string{"new", "cur"} {
		entries, err := os.ReadDir(filepath.Join(p.path("mail"), boxPath(addr), sub))
		if err != nil && !os.IsNotExist(err) {
			p.t.Fatal(err)
		}
		n += len(entries)
	}
	return n
}

// WaitMails waits until a mailbox has n mails and returns them; more, or none in time, fails the test.
func (p *Postfix) WaitMails(addr string, n int) [][]byte {
	p.t.Helper()
	p.await(fmt.Sprintf("%d mails for %s", n, addr), func() bool { return p.Count(addr) >= n })
	mails := p.Mails(addr)
	if len(mails) > n {
		p.t.Fatalf("%s has %d mails, want %d", addr, len(mails), n)
	}
	return mails
}

// WaitMail waits until a mailbox has a mail with the text in it, and returns that.
func (p *Postfix) WaitMail(addr, text string) string {
	p.t.Helper()
	found := ""
	p.await(fmt.Sprintf("a mail with %q for %s", text, addr), func() bool {
		for _, m := range p.Mails(addr) {
			if bytes.Contains(m, []byte(text)) {
				found = string(m)
				return true
			}
		}
		return false
	})
	return found
}

// WaitLog waits until the log has a line with all the words.
func (p *Postfix) WaitLog(words ...string) string {
	p.t.Helper()
	found := ""
	p.await(fmt.Sprintf("a log line with %q", words), func() bool {
		for line := range strings.Lines(p.Log()) {
			missing := func(w string) bool { return !strings.Contains(line, w) }
			if !slices.ContainsFunc(words, missing) {
				found = strings.TrimSpace(line)
				return true
			}
		}
		return false
	})
	return found
}

// await polls until done, or fails the test when its patience ends.
func (p *Postfix) await(what string, done func() bool) {
	p.t.Helper()
	Await(p.t, what, done, p.Log)
}

// Await polls until done, or fails the test when the patience of this package ends; then it prints the logs.
func Await(t testing.TB, what string, done func() bool, logs ...func() string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			var b strings.Builder
			for _, log := range logs {
				b.WriteString("\n" + tail(log()))
			}
			t.Fatalf("waited %v in vain for %s%s", patience, what, b.String())
		}
	}
}

// tail is the end of a log.
func tail(s string) string {
	const most = 16 << 10
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}

// Setting is what a main.cf setting of the instance says, "" for one that it leaves alone.
func (p *Postfix) Setting(key string) string { return p.settings[key] }

// Config is its configuration folder, for MAIL_CONFIG.
func (p *Postfix) Config() string { return p.path("conf") }

// Run runs one of Postfix's programs on this instance and returns what it prints.
func (p *Postfix) Run(name string, args ...string) (string, error) { return p.run(name, args...) }
