package peertest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// SSHDOptions shape a private OpenSSH server.
type SSHDOptions struct {
	// Restrict is the one command that the client's key may run, whatever it asks for. "": anything, SFTP too.
	Restrict string
}

// SSHD is a running OpenSSH server on loopback, with one key that opens it for the user who runs the test.
type SSHD struct {
	Addr    string // HOST:PORT
	User    string
	Config  string // a client's configuration for ssh -F: key, known host, nothing of the user's own
	Version string

	words *lockedBuffer
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// StartSSHD starts a server and waits until it answers; the test is skipped where there is none.
func StartSSHD(t testing.TB, o SSHDOptions) *SSHD {
	t.Helper()
	sshd := tool("sshd")
	if _, err := exec.LookPath(sshd); err != nil {
		t.Skipf("SKIPPED: sshd is not installed (%v): run .ci/peers", err)
	}
	if !filepath.IsAbs(sshd) {
		sshd, _ = exec.LookPath(sshd)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // where it confines itself; the package makes it when the service starts
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	d := &SSHD{Addr: FreePort(t), User: me.Username, Config: filepath.Join(dir, "client"), words: &lockedBuffer{}}
	version, _ := exec.Command("ssh", "-V").CombinedOutput()
	d.Version = strings.TrimSpace(string(version))
	t.Logf("neighbour: %s", d.Version)
	host, port, _ := net.SplitHostPort(d.Addr)
	for _, key := range []string{"host", "key"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", filepath.Join(dir, key)).CombinedOutput()
		if err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	grant := ""
	if o.Restrict != "" {
		grant = fmt.Sprintf("restrict,command=%q ", o.Restrict)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	write("authorized_keys", grant+read("key.pub"))
	write("known_hosts", "* "+read("host.pub")) // whatever port a line in between has
	write("client", fmt.Sprintf("Host *\nIdentityFile %[1]s/key\nIdentitiesOnly yes\nUserKnownHostsFile %[1]s/known_hosts\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nLogLevel ERROR\n", dir))
	write("sshd", fmt.Sprintf(`Port %s
ListenAddress %s
HostKey %[3]s/host
AuthorizedKeysFile %[3]s/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
Subsystem sftp internal-sftp
`, port, host, dir))
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd"))
	cmd.Stdout, cmd.Stderr = d.words, d.words
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("log of sshd:\n%s", tail(d.Log()))
		}
	})
	Await(t, "sshd to answer", func() bool {
		c, err := net.Dial("tcp", d.Addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, d.Log)
	return d
}

// Log is what the server wrote.
func (d *SSHD) Log() string { return d.words.String() }
