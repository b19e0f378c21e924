package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestCallers: the programs that call sendmail, from Debian's packages, find ours at /usr/sbin/sendmail, and the mail that
// they mean comes out of the node. It runs in a mount name space of its own, where /etc, /usr and /var are overlays and the
// machine's own crontabs are out of sight.
func TestCallers(t *testing.T) {
	if os.Getenv(insideEnv) == "" {
		t.Parallel()
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED LOUDLY: only root can put our sendmail in the place of the machine's: no caller was tried")
		}
		inNameSpace(t)
		return
	}
	m := newMachine(t)
	t.Run("callers", func(t *testing.T) {
		for _, c := range callers {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				m.try(t, c)
			})
		}
	})
}

// caller is a program that sends a mail to its own recipient, NAME@far.example, through sendmail.
type caller struct {
	name string
	path string // the program that must be there
	// call makes the mail; to is its recipient, dir an empty folder that everybody may read.
	call func(t *testing.T, to, dir string)
	pick string   // of several mails, the one that has this
	from string   // the sink's MAIL line has this
	rcpt string   // its RCPT lines, joined
	text []string // what the content must have
	not  []string // and must not have
}

// sh runs a shell line with $TO and $DIR in an environment that is otherwise all but empty.
func sh(line string) func(*testing.T, string, string) {
	return func(t *testing.T, to, dir string) {
		t.Helper()
		command(t, to, dir, "sh", "-ec", line)
	}
}

func command(t *testing.T, to, dir, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "TO=" + to, "DIR=" + dir, "LC_ALL=C.UTF-8"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// daemon runs a program until the test ends.
func daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, &out)
		}
	})
}

var callers = []caller{
	{
		name: "cron", path: "/usr/sbin/cron", // as daemon, a user of the system: the mail is hers, not root's, whatever From says
		call: func(t *testing.T, to, dir string) {
			tab := "/var/spool/cron/crontabs/daemon"
			text := "MAILTO=" + to + "\nCONTENT_TYPE=\"text/plain; charset=utf-8\"\n@reboot echo hello from cron; echo .; echo after the dot\n"
			if err := os.WriteFile(tab, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			command(t, to, dir, "chown", "daemon:crontab", tab)
			daemon(t, "/usr/sbin/cron", "-f")
		},
		from: "<daemon@camp.example>",
		text: []string{"From: root@camp.example (Cron Daemon)\r\n", "Subject: Cron <daemon@", "\r\n\r\nhello from cron\r\n.\r\nafter the dot\r\n",
			"(mochila, from userid 1)", "\r\nMessage-Id: <", "\r\nDate: "},
	},
	{
		name: "at", path: "/usr/sbin/atd", // mails its user, who has no domain
		call: func(t *testing.T, to, dir string) {
			daemon(t, "/usr/sbin/atd", "-f", "-b", "1", "-l", "100000")
			peertest.Await(t, "atd", func() bool { _, err := os.Stat("/run/atd.pid"); return err == nil })
			command(t, to, dir, "sh", "-ec", "echo 'echo hello from at' | at -m now")
		},
		from: "<root@camp.example>", rcpt: "<root@camp.example>",
		text: []string{"To: root\r\n", "Subject: Output from your job", "hello from at\r\n", "(mochila, from userid 0)"},
	},
	{
		name: "mutt", path: "/usr/bin/mutt",
		call: sh(`printf 'set from=mutt@camp.example\nset use_envelope_from=yes\nset dsn_notify="failure,delay"\nset dsn_return=hdrs\nset copy=no\n' >rc
echo body | mutt -n -F rc -s 'from mutt' -b "hidden@far.example" -- "$TO"`),
		from: "<mutt@camp.example> SIZE=* RET=HDRS",
		rcpt: "<mutt@far.example> NOTIFY=FAILURE,DELAY <hidden@far.example> NOTIFY=FAILURE,DELAY",
		text: []string{"Subject: from mutt\r\n"}, not: []string{"hidden@far.example"},
	},
	{
		name: "s-nail", path: "/usr/bin/s-nail",
		call: sh(`printf 'body\n.\nmore\n' | s-nail -n -s 'from s-nail' -r snail@camp.example "$TO"`),
		from: "<snail@camp.example>",
		text: []string{"Subject: from s-nail\r\n", "\r\n\r\nbody\r\n.\r\nmore\r\n"},
	},
	{
		name: "s-nail without a sender", path: "/usr/bin/s-nail",
		call: sh(`echo body | s-nail -n -s 'no sender' "$TO"`),
		from: "<root@camp.example>",
		text: []string{"\r\nFrom: ", "\r\nMessage-Id: <", "\r\nDate: "},
	},
	{
		name: "bsd-mailx", path: "/usr/bin/bsd-mailx",
		call: sh(`echo body | bsd-mailx -n -s 'from mailx' -b hidden@far.example -c other@far.example "$TO"`),
		from: "<root@camp.example>", rcpt: "<bsd-mailx@far.example> <other@far.example> <hidden@far.example>",
		text: []string{"Subject: from mailx\r\n", "\r\nCc: other@far.example\r\n", "\r\nFrom: ", "\r\nDate: "}, not: []string{"hidden", "Bcc"},
	},
	{
		name: "git send-email", path: "/usr/lib/git-core/git-send-email",
		call: sh(`git init -q repo; cd repo
git config user.name 'Zoë Q'; git config user.email zoe@camp.example
git commit -q --allow-empty -m 'first patch'
echo text >file; git add file; git commit -q -m 'add file'
git format-patch -q -1
git -c sendemail.confirm=never -c sendemail.suppresscc=all send-email --quiet --envelope-sender=bounce@camp.example --to="$TO" 0001-add-file.patch`),
		from: "<bounce@camp.example>",
		text: []string{"Subject: [PATCH] add file\r\n", "\r\nMessage-Id: <", "\r\n+text\r\n"},
	},
	{
		name: "php", path: "/usr/bin/php",
		call: sh(`php -n -r 'exit(mail(getenv("TO"), "from php", "body\n.\nmore", "From: web@camp.example\r\nBcc: hidden@far.example", "-f web@camp.example") ? 0 : 1);'`),
		from: "<web@camp.example>", rcpt: "<php@far.example> <hidden@far.example>",
		text: []string{"Subject: from php\r\n", "\r\n\r\nbody\r\n.\r\nmore\r\n"}, not: []string{"Bcc", "hidden"},
	},
	{
		name: "logwatch", path: "/usr/sbin/logwatch",
		call: sh(`mkdir -p /var/cache/logwatch log
date '+%b %e %H:%M:%S host sshd[1]: Accepted publickey for root from 192.0.2.1 port 22 ssh2: RSA SHA256:x' >log/auth.log
logwatch --output mail --format text --mailto "$TO" --service sshd --range all --logdir "$DIR/log"`),
		from: "<root@camp.example>",
		text: []string{"Subject: Logwatch for ", "192.0.2.1: 1 Time"},
	},
	{
		name: "reportbug", path: "/usr/bin/reportbug",
		call: sh(`python3 -c '
import os
from reportbug import submit
submit.send_report("Package: none\n\nbody of reportbug\n", [], None, "Bug Reporter <bug@camp.example>", os.environ["TO"], "", "hidden@far.example",
    [("Subject", "from reportbug")], "none", mta="/usr/sbin/sendmail", smtphost="")
' </dev/null`),
		from: "<bug@camp.example>", rcpt: "<reportbug@far.example> <hidden@far.example>",
		text: []string{"Subject: from reportbug\r\n", "body of reportbug\r\n"}, not: []string{"hidden"},
	},
	{
		name: "smartd", path: "/usr/sbin/smartd", // its warning script, which calls mail
		call: sh(`export SMARTD_MAILER=/usr/bin/mail SMARTD_ADDRESS="$TO" SMARTD_FAILTYPE=FailedReadSmartData SMARTD_MESSAGE='body of smartd'
export SMARTD_TFIRST= SMARTD_PREVCNT=0 SMARTD_NEXTDAYS= SMARTD_DEVICEINFO=disk
/usr/share/smartmontools/smartd_warning.sh`),
		from: "<root@camp.example>",
		text: []string{"Subject: SMART error", "body of smartd\r\n"},
	},
	{
		name: "fail2ban", path: "/usr/bin/fail2ban-server",
		call: func(t *testing.T, to, dir string) {
			command(t, to, dir, "sh", "-ec", `mkdir -p conf/filter.d conf/action.d
cp /etc/fail2ban/action.d/sendmail.conf /etc/fail2ban/action.d/sendmail-common.conf conf/action.d/
printf '[Definition]\nloglevel = INFO\nlogtarget = STDERR\nsyslogsocket = auto\nsocket = %s/f.sock\npidfile = %s/f.pid\ndbfile = None\n' "$DIR" "$DIR" >conf/fail2ban.conf
printf '[Definition]\nfailregex = ^<HOST> bad$\n' >conf/filter.d/test.conf
printf '[test]\nenabled = true\nbackend = polling\nfilter = test\nlogpath = %s/log\naction = sendmail[name=test, sender=ban@camp.example, dest=%s]\n' "$DIR" "$TO" >conf/jail.conf
: >log`)
			daemon(t, "/usr/bin/fail2ban-server", "-f", "-c", dir+"/conf", "-s", dir+"/f.sock", "-p", dir+"/f.pid", "start")
			client := func(args ...string) error {
				return exec.Command("/usr/bin/fail2ban-client", append([]string{"-c", dir + "/conf", "-s", dir + "/f.sock"}, args...)...).Run()
			}
			peertest.Await(t, "fail2ban", func() bool { return client("status", "test") == nil })
			if err := client("set", "test", "banip", "192.0.2.77"); err != nil {
				t.Fatal(err)
			}
		},
		pick: "192.0.2.77", // the others tell that the jail starts and stops
		from: "<ban@camp.example>",
		text: []string{"Subject: [Fail2Ban] test: banned 192.0.2.77 from ", "\r\nFrom: Fail2Ban <ban@camp.example>\r\n"},
	},
	{
		name: "systemd OnFailure", path: "/usr/sbin/sendmail", // its command line, in an empty environment, as nobody
		call: func(t *testing.T, to, dir string) {
			cmd := exec.Command("/usr/sbin/sendmail", "-t")
			cmd.Env = []string{}
			cmd.Dir = "/"
			cmd.Stdin = strings.NewReader("To: " + to + "\nFrom: systemd <root>\nSubject: unit failed\n\nbody\n")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		},
		from: "<nobody@camp.example>",
		text: []string{"From: systemd <root@camp.example>\r\n", "Subject: unit failed\r\n", "(mochila, from userid 65534)"},
	},
}

// machine is the name space with a node as the machine's own.
type machine struct {
	node *node
	sink *sink
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	scratch := shortDir(t)
	mount := func(source, target, kind, options string, flags uintptr) {
		t.Helper()
		if err := syscall.Mount(source, target, kind, flags, options); err != nil {
			t.Fatalf("mount %s on %s: %v", kind, target, err)
		}
	}
	mount("none", scratch, "tmpfs", "", 0)
	t.Cleanup(func() { syscall.Unmount(scratch, syscall.MNT_DETACH) })
	for _, dir := range []string{"etc", "usr", "var"} {
		upper, work := filepath.Join(scratch, dir), filepath.Join(scratch, dir+".work")
		for _, d := range []string{upper, work} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		target := "/" + dir
		mount("overlay", target, "overlay", "lowerdir="+target+",upperdir="+upper+",workdir="+work, 0)
		t.Cleanup(func() { syscall.Unmount(target, syscall.MNT_DETACH) })
	}
	mount("none", "/run", "tmpfs", "mode=755", 0)
	t.Cleanup(func() { syscall.Unmount("/run", syscall.MNT_DETACH) })
	for _, tabs := range []string{"/etc/cron.d/*", "/etc/crontab", "/var/spool/cron/crontabs/*", "/var/spool/cron/atjobs/[a-z]*"} {
		found, _ := filepath.Glob(tabs)
		for _, f := range found {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	ours, err := os.ReadFile(program("sendmail"))
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"/usr/sbin/sendmail", "/usr/lib/sendmail"} {
		if err := errors.Join(os.RemoveAll(place), os.WriteFile(place, ours, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	m := &machine{sink: newSink(t, nil)}
	home := config.SystemHome()
	for _, dir := range []string{home.ConfigDir, home.Base, home.SpoolDir, home.RunDir} {
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil { // of the overlay
			t.Fatal(err)
		}
	}
	m.node = &node{t: t, name: "camp", dir: home.ConfigDir, home: home, log: &logbook{}}
	if _, err := control.Init(t.Context(), home, control.InitOptions{Name: "camp"}); err != nil {
		t.Fatal(err)
	}
	m.node.configure(fmt.Sprintf("domain = \"camp.example\"\n[[deliver]]\nto = [\"*\"]\nvia = %q\n", "smtp:"+m.sink.Addr))
	m.node.serve()
	t.Cleanup(m.node.shutdown)
	return m
}

// try runs one caller and looks at what the sink got.
func (m *machine) try(t *testing.T, c caller) {
	if _, err := os.Stat(c.path); err != nil {
		t.Skipf("SKIPPED LOUDLY: %s is not installed: run .ci/peers", c.path)
	}
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	to := strings.ReplaceAll(c.name, " ", "-") + "@far.example"
	if c.rcpt == "" {
		c.rcpt = "<" + to + ">"
	}
	first, _, _ := strings.Cut(c.rcpt, ">")
	c.call(t, to, dir)
	var got taken
	peertest.Await(t, "the mail of "+c.name, func() bool {
		for _, mail := range m.sink.Mails() {
			if strings.HasPrefix(strings.Join(mail.Rcpt, " "), "TO:"+first+">") {
				if got = mail; c.pick == "" || strings.Contains(mail.Content, c.pick) {
					return true
				}
			}
		}
		return false
	}, func() string { return tail(m.node.log.String()) })
	if from, _ := strings.CutPrefix(got.Mail, "FROM:"); !glob(c.from, from) && !glob(c.from+" *", from) {
		t.Errorf("MAIL %s, want %s", got.Mail, c.from)
	}
	if rcpt := strings.ReplaceAll(strings.Join(got.Rcpt, " "), "TO:", ""); !sameRcpt(rcpt, c.rcpt) {
		t.Errorf("RCPT %s, want %s", rcpt, c.rcpt)
	}
	for _, want := range append(c.text, "\r\n\r\n") {
		if !strings.Contains(got.Content, want) {
			t.Errorf("no %q in %q", want, got.Content)
		}
	}
	header, _, _ := strings.Cut(got.Content, "\r\n\r\n")
	for _, name := range []string{"From", "Date", "Message-Id"} {
		if n := strings.Count(strings.ToLower("\r\n"+header), "\r\n"+strings.ToLower(name)+":"); n != 1 {
			t.Errorf("%d fields %s in %q", n, name, header)
		}
	}
	for _, bad := range c.not {
		if strings.Contains(got.Content, bad) {
			t.Errorf("%q in %q", bad, got.Content)
		}
	}
}

// sameRcpt compares RCPT lines; ORCPT, which the node adds, does not matter.
func sameRcpt(got, want string) bool {
	var kept []string
	for _, w := range strings.Fields(got) {
		if !strings.HasPrefix(w, "ORCPT=") {
			kept = append(kept, w)
		}
	}
	return strings.Join(kept, " ") == want
}

// glob matches s against a pattern in which "*" stands for anything.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		_, rest, ok := strings.Cut(s, p)
		if !ok {
			return false
		}
		s = rest
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}
