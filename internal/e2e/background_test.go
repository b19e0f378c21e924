package e2e

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mochila/internal/peertest"
)

// TestBackground starts the daemon as a script without a service manager does: the command is over when the daemon serves,
// nothing of it stays open, and the log goes to syslog. A second one fails and says why, as does one that cannot start.
func TestBackground(t *testing.T) {
	t.Parallel()
	n := newNode(t, "camp", "")
	sock := filepath.Join(n.dir, "log")
	var mu sync.Mutex
	var lines []string
	log := func() string { mu.Lock(); defer mu.Unlock(); return strings.Join(lines, "\n") }
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		for buf := make([]byte, 8192); ; {
			k, err := conn.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			lines = append(lines, string(buf[:k]))
			mu.Unlock()
		}
	}()
	start := func() (string, error) {
		cmd := n.command("serve", "--background", "--syslog="+sock)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out // a pipe: Run waits until nobody has it open any more
		err := cmd.Run()
		return out.String(), err
	}
	// Whatever happens, the daemon ends with the test.
	pid := 0
	t.Cleanup(func() {
		if pid > 0 {
			syscall.Kill(pid, syscall.SIGTERM)
			peertest.Await(t, "the daemon's end", func() bool { return ended(pid) }, log)
		}
	})
	out, err := start()
	pid = daemonAt(t, n.home.ControlSocket())
	if err != nil || out != "" {
		t.Fatalf("%v: %s\n%s", err, out, log())
	}
	line := regexp.MustCompile(`(?m)^<22>[A-Z][a-z][a-z] [ 0-9]\d \d\d:\d\d:\d\d mochila/master\[` + strconv.Itoa(pid) + `\]: daemon started -- version .*, node camp$`)
	peertest.Await(t, "the first line in syslog", func() bool { return line.MatchString(log()) }, log)
	for fd := range 3 {
		if to, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(fd)); err != nil || to != os.DevNull {
			t.Errorf("descriptor %d of the daemon is %s (%v)", fd, to, err)
		}
	}
	if sid, err := sessionOf(pid); err != nil || sid != pid {
		t.Errorf("the daemon is in session %d (%v), not in its own", sid, err)
	}
	if out, err := start(); err == nil || !strings.Contains(out, "mochila: error: ") {
		t.Errorf("a second daemon: %v: %s", err, out)
	}
	if again := daemonAt(t, n.home.ControlSocket()); again != pid {
		t.Errorf("now process %d is the daemon, not %d", again, pid)
	}
	broken := newNode(t, "broken", "nonsense = 1\n")
	cmd := broken.command("serve", "--background", "--syslog="+sock)
	if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.ExitCode() != 78 || !strings.Contains(string(out), "nonsense") {
		t.Errorf("a broken configuration: %v: %s", err, out)
	}
}

// daemonAt is the process that listens on a control socket, 0 when nobody does.
func daemonAt(t *testing.T, path string) int {
	t.Helper()
	c, err := net.DialTimeout("unix", path, 10*time.Second)
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if cred, cerr := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); cerr == nil {
			pid = int(cred.Pid)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// ended reports whether a process is gone; where nobody waits for orphans its entry stays.
func ended(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, rest, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

// sessionOf is field 6 of /proc/PID/stat.
func sessionOf(pid int) (int, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strconv.Atoi(strings.Fields(rest)[3])
}
