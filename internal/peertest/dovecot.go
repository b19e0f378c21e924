package peertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Dovecot is a running private instance that takes mail by LMTP.
type Dovecot struct {
	Socket string // LMTP

	t   testing.TB
	dir string
	cmd *exec.Cmd
}

// StartDovecot starts an instance for some users, with a snippet of configuration at the end of its own. It skips the
// test where Dovecot is missing or the caller is not root.
func StartDovecot(t testing.TB, snippet string, users ...string) *Dovecot {
	t.Helper()
	program := "/usr/sbin/dovecot"
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a private Dovecot needs root: run the tests as root")
	}
	if !isFile(program) || !isFile("/usr/lib/dovecot/lmtp") {
		t.Skip("SKIPPED: Dovecot's LMTP server is not installed: run .ci/peers")
	}
	version, _ := exec.Command(program, "--version").Output()
	t.Logf("neighbour: Dovecot %s", strings.TrimSpace(string(version)))
	dir, err := os.MkdirTemp("", "dovecot-test-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Dovecot{t: t, dir: dir, Socket: filepath.Join(dir, "run", "lmtp")}
	t.Cleanup(d.remove)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	const nobody = 65534
	must(os.Mkdir(filepath.Join(dir, "mail"), 0o700))
	must(os.Chown(filepath.Join(dir, "mail"), nobody, nobody))
	var list strings.Builder
	for _, u := range users {
		fmt.Fprintf(&list, "%s::%d:%d::%s/mail/%s::\n", u, nobody, nobody, dir, u)
	}
	must(os.WriteFile(filepath.Join(dir, "users"), []byte(list.String()), 0o644))
	conf := fmt.Sprintf(`base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
listen = 127.0.0.1
protocols =
ssl = no
first_valid_uid = 1
mail_location = maildir:~/Maildir
userdb {
  driver = passwd-file
  args = %[1]s/users
}
passdb {
  driver = passwd-file
  args = %[1]s/users
}
%[2]s`, dir, snippet)
	must(os.WriteFile(filepath.Join(dir, "dovecot.conf"), []byte(conf), 0o644))
	d.cmd = exec.Command(program, "-F", "-c", filepath.Join(dir, "dovecot.conf"))
	out, err := os.Create(filepath.Join(dir, "stderr"))
	must(err)
	d.cmd.Stdout, d.cmd.Stderr = out, out
	must(d.cmd.Start())
	out.Close()
	Await(t, "Dovecot's LMTP socket", func() bool { return answers(d.Socket) }, d.Log)
	return d
}

// Mails returns the contents of a user's inbox, as Dovecot stored them (LF lines).
func (d *Dovecot) Mails(user string) [][]byte {
	d.t.Helper()
	var mails [][]byte
	files, err := filepath.Glob(filepath.Join(d.dir, "mail", user, "Maildir", "new", "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			d.t.Fatal(err)
		}
		mails = append(mails, b)
	}
	return mails
}

// Log is everything it has logged.
func (d *Dovecot) Log() string {
	all := ""
	for _, name := range []string{"stderr", "log"} {
		if b, err := os.ReadFile(filepath.Join(d.dir, name)); err == nil {
			all += string(b)
		}
	}
	return all
}

func (d *Dovecot) remove() {
	if d.cmd != nil && d.cmd.Process != nil {
		d.cmd.Process.Signal(syscall.SIGTERM)
		ended := make(chan struct{})
		go func() { defer close(ended); d.cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			d.cmd.Process.Kill()
			<-ended
		}
	}
	if d.t.Failed() {
		d.t.Logf("log of Dovecot:\n%s", tail(d.Log()))
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Errorf("remove the private Dovecot: %v", err)
	}
}
