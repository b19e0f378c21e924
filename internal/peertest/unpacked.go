package peertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// jail is a mount name space in which an unpacked package looks installed: its files lie over /usr and /etc, and
// what is written there goes to a scratch folder. Nothing of it is seen from outside.
type jail struct {
	t      testing.TB
	dir    string // scratch folder of this instance
	log    string // file with what the daemon prints
	cmd    *exec.Cmd
	exited chan struct{}
}

// store is where .ci/peers unpacks what cannot be installed beside Postfix.
func store() string {
	if dir := os.Getenv("MOCHILA_PEERS"); dir != "" {
		return dir
	}
	return "/var/cache/mochila-peers"
}

// inside makes the name space: package folder, scratch folder, users as NAME:ID words; then the daemon.
const inside = `set -e
peer=$1 dir=$2 users=$3
shift 3
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$peer/etc:/etc,upperdir=$dir/etc,workdir=$dir/etc.work" /etc
mount -t overlay overlay -o "lowerdir=$peer/usr:/usr,upperdir=$dir/usr,workdir=$dir/usr.work" /usr
mount -t overlay overlay -o "lowerdir=/var,upperdir=$dir/var,workdir=$dir/var.work" /var
for u in $users; do
	grep -q "^${u%:*}:" /etc/passwd || echo "${u%:*}:x:${u#*:}:${u#*:}::/nonexistent:/usr/sbin/nologin" >>/etc/passwd
	grep -q "^${u%:*}:" /etc/group || echo "${u%:*}:x:${u#*:}:" >>/etc/group
done
for f in "$dir"/files/*; do
	[ -e "$f" ] || continue
	to=/$(basename "$f" | tr % /)
	mkdir -p "$(dirname "$to")"
	cp "$f" "$to"
done
exec "$@"`

// newJail prepares a name space for a package below store. It skips the test where that is missing, or where the
// caller may not make one.
func newJail(t testing.TB, pkg string) *jail {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIPPED: an unpacked %s needs root: run the tests as root", pkg)
	}
	versions, err := os.ReadFile(filepath.Join(store(), pkg, "versions"))
	if err != nil {
		t.Skipf("SKIPPED: %s is not there (%v): run .ci/peers", pkg, err)
	}
	version, _, _ := strings.Cut(string(versions), "\n")
	t.Logf("neighbour: %s", version)
	// Not t.TempDir, which the users of mail servers cannot enter.
	dir, err := os.MkdirTemp("", pkg+"-test-")
	if err != nil {
		t.Fatal(err)
	}
	j := &jail{t: t, dir: dir, log: filepath.Join(dir, "stderr")}
	t.Cleanup(func() {
		j.stop()
		if t.Failed() {
			t.Logf("log of %s:\n%s", pkg, tail(j.Log()))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the unpacked %s: %v", pkg, err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"etc", "etc.work", "usr", "usr.work", "var", "var.work", "files"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("unshare", "-m", "bash", "-c", inside+"\n", "jail", filepath.Join(store(), pkg), dir, "", "true").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no name space for %s (%v: %s)", pkg, err, out)
	}
	return j
}

// file puts a file at an absolute path inside.
func (j *jail) file(path, content string) {
	j.t.Helper()
	name := strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "%")
	if err := os.WriteFile(filepath.Join(j.dir, "files", name), []byte(content), 0o644); err != nil {
		j.t.Fatal(err)
	}
}

// start runs a daemon that stays in the foreground.
func (j *jail) start(pkg, users string, command ...string) {
	j.t.Helper()
	log, err := os.OpenFile(j.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		j.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"-m", "bash", "-c", inside, "jail", filepath.Join(store(), pkg), j.dir, users}, command...)
	j.cmd = exec.Command("unshare", args...)
	j.cmd.Stdout, j.cmd.Stderr = log, log
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := j.cmd.Start(); err != nil {
		j.t.Fatal(err)
	}
	j.exited = make(chan struct{})
	cmd, exited := j.cmd, j.exited
	go func() { defer close(exited); cmd.Wait() }()
}

// stop ends the daemon and whatever it has started.
func (j *jail) stop() {
	if j.cmd == nil {
		return
	}
	syscall.Kill(-j.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-j.exited:
	case <-time.After(10 * time.Second):
	}
	syscall.Kill(-j.cmd.Process.Pid, syscall.SIGKILL)
	<-j.exited
	j.cmd = nil
}

// Log is what the daemon printed.
func (j *jail) Log() string {
	b, err := os.ReadFile(j.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// await waits for an SMTP greeting.
func (j *jail) await(addr string) {
	j.t.Helper()
	Await(j.t, "an answer at "+addr, func() bool {
		select {
		case <-j.exited:
			j.t.Fatalf("it ends at its start: %v\n%s", j.cmd.ProcessState, tail(j.Log()))
		default:
		}
		return answers(addr)
	}, j.Log)
}
