package peertest

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// UUCP is two sites of Taylor UUCP with their own configurations and spools below a temporary folder. Either calls the
// other over a pipe.
type UUCP struct {
	Dir string

	t        testing.TB
	names    [2]string
	uid, gid uint32
}

// StartUUCP makes two sites. commands are the programs that uuxqt may run, for each site by their names, as shell scripts; sys
// is what else their sys files say. It skips the test where Taylor UUCP is not installed, or the caller is not root, who
// alone can act as the user uucp. Nothing runs: Move moves.
func StartUUCP(t testing.TB, names [2]string, sys string, commands map[string]map[string]string) *UUCP {
	t.Helper()
	version, err := exec.Command("uux", "--version").CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: Taylor UUCP is not installed (%v): run .ci/peers", err)
	}
	who, err := user.Lookup("uucp")
	if err != nil || os.Geteuid() != 0 {
		t.Skipf("SKIPPED: UUCP needs root, and the user uucp (%v)", err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	t.Logf("neighbour: %s", first)
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	u := &UUCP{t: t, names: names, uid: uint32(uid), gid: uint32(gid)}
	if u.Dir, err = os.MkdirTemp("", "uucp-test-"); err != nil { // not t.TempDir, which uucp cannot enter
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range names {
				b, _ := os.ReadFile(u.path(name, "log"))
				t.Logf("log of UUCP at %s:\n%s", name, tail(string(b)))
			}
		}
		os.RemoveAll(u.Dir)
	})
	for i, name := range names {
		u.configure(name, names[1-i], sys, commands[name])
	}
	u.own()
	return u
}

func (u *UUCP) path(name, file string) string { return filepath.Join(u.Dir, name, file) }

// Config is the configuration file of a site.
func (u *UUCP) Config(name string) string { return u.path(name, "config") }

// Bin is the folder with the programs that uuxqt may run at a site.
func (u *UUCP) Bin(name string) string { return u.path(name, "bin") }

func (u *UUCP) configure(name, far, sys string, commands map[string]string) {
	u.t.Helper()
	for _, sub := range []string{"spool", "pub", "bin", "lock"} {
		if err := os.MkdirAll(u.path(name, sub), 0o755); err != nil {
			u.t.Fatal(err)
		}
	}
	write := func(file, text string, mode os.FileMode) {
		u.t.Helper()
		if err := os.WriteFile(u.path(name, file), []byte(text), mode); err != nil {
			u.t.Fatal(err)
		}
	}
	dir := filepath.Join(u.Dir, name)
	write("config", fmt.Sprintf("nodename %s\nspool %[2]s/spool\npubdir %[2]s/pub\nlockdir %[2]s/lock\nlogfile %[2]s/log\nstatfile %[2]s/stat\n"+
		"debugfile %[2]s/debug\nsysfile %[2]s/sys\nportfile %[2]s/port\nrun-uuxqt never\n", name, dir), 0o644)
	write("port", fmt.Sprintf("port wire\ntype pipe\ncommand /usr/sbin/uucico -I %s -u %s\n", u.Config(far), name), 0o644)
	write("sys", fmt.Sprintf("system %s\ntime any\nport wire\nchat \"\" \"\"\ncalled-login ANY\nprotocol i\n%s\ncommand-path %s\n", far, sys, u.Bin(name)), 0o644)
	for command, script := range commands {
		write("bin/"+command, "#!/bin/sh\nPATH=/usr/bin:/bin\n"+script+"\n", 0o755)
	}
}

// Port replaces the port file of a site: how it reaches the other one. Its port is called wire.
func (u *UUCP) Port(name, text string) {
	u.t.Helper()
	if err := os.WriteFile(u.path(name, "port"), []byte(text), 0o644); err != nil {
		u.t.Fatal(err)
	}
}

// own gives everything to the user uucp.
func (u *UUCP) own() {
	for _, name := range u.names { // UUCP writes only where everybody may
		if err := os.Chmod(u.path(name, "pub"), 0o777); err != nil {
			u.t.Fatal(err)
		}
	}
	err := filepath.WalkDir(u.Dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, int(u.uid), int(u.gid))
	})
	if err == nil {
		err = os.Chmod(u.Dir, 0o755)
	}
	if err != nil {
		u.t.Fatal(err)
	}
}

// Command is one of UUCP's programs for a site, run by the user uucp.
func (u *UUCP) Command(name, program string, args ...string) *exec.Cmd {
	if program == "uucico" || program == "uuxqt" {
		program = "/usr/sbin/" + program
	}
	cmd := exec.Command(program, append([]string{"-I", u.Config(name)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid}}
	return cmd
}

// Move is Call and Execute. What the programs say is returned: a command that failed is no failure of the test.
func (u *UUCP) Move() string { return u.Call() + u.Execute() }

// Call lets the first site call the second one, which moves what is queued both ways.
func (u *UUCP) Call() string { return u.run(u.names[0], "uucico", "-f", "-s", u.names[1]) }

// Execute runs what came, at both sites.
func (u *UUCP) Execute() string { return u.run(u.names[1], "uuxqt") + u.run(u.names[0], "uuxqt") }

func (u *UUCP) run(name, program string, args ...string) string {
	out, err := u.Command(name, program, args...).CombinedOutput()
	return fmt.Sprintf("%s at %s: %v: %s\n", program, name, err, out)
}

// Data lists the data that has come for commands at a site and was not run yet.
func (u *UUCP) Data(name string) []string {
	found, _ := filepath.Glob(u.path(name, "spool/*/D./*"))
	return found
}

// Failed lists the commands that uuxqt gave up at a site.
func (u *UUCP) Failed(name string) []string {
	found, _ := filepath.Glob(u.path(name, "spool/.Failed/*/X./*"))
	return found
}
