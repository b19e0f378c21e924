package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
)

const stickScript = "../../contrib/courier/mochila-stick"

// plugIn runs the script of contrib/courier for a folder as udev does for a stick.
func plugIn(t *testing.T, home, conf, folder string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", stickScript, folder)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MOCHILA_HOME="+home, "MOCHILA_STICK_CONF="+file)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("mochila-stick %s: %v: %s", folder, err, out)
	}
	return string(out)
}

// TestPlugIn: camp and hub have no wire; a courier with two sticks and a machine without keys walks between them, and
// types nothing.
func TestPlugIn(t *testing.T) {
	t.Parallel()
	mail, first, second, pouch := t.TempDir(), t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "pouch")
	camp := newNode(t, "camp", "")
	hub := newNode(t, "hub", fmt.Sprintf("[[deliver]]\nto = [\"hub.mochila\"]\nvia = %q\n", "maildir:"+mail+"/%u"))
	camp.knows(hub, control.PeerAdd{Carrier: "dir:" + first, When: "manual"})
	hub.knows(camp, control.PeerAdd{Carrier: "dir:" + second, When: "manual"})
	for _, dir := range []string{first, second} {
		if err := os.Mkdir(filepath.Join(dir, "mochila"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	signal := filepath.Join(t.TempDir(), "signal")
	said := filepath.Join(t.TempDir(), "said")
	if err := os.WriteFile(signal, []byte("#!/bin/sh\necho \"$@\" >>"+said+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	camp.submit("Subject: hello\n\nby stick\n", "-f", "eve@camp.mochila", "ana@hub.mochila")
	courier := "POUCH=" + pouch + "\n"
	plugIn(t, camp.dir, "SIGNAL="+signal, first)
	plugIn(t, "/nonexistent", courier, first)
	plugIn(t, "/nonexistent", courier, second)
	plugIn(t, hub.dir, "", second)
	if got := box(t, filepath.Join(mail, "ana")); len(got) != 1 {
		t.Fatalf("%d mails at hub", len(got))
	}
	plugIn(t, "/nonexistent", courier, second) // the receipt goes back
	plugIn(t, "/nonexistent", courier, first)
	plugIn(t, camp.dir, "", first)
	if n := camp.queued(); n != 0 {
		t.Errorf("%d are queued at camp:\n%s", n, camp.queue())
	}
	if b, err := os.ReadFile(said); err != nil || string(b) != "done "+first+"\n" {
		t.Errorf("the signal: %q, %v", b, err)
	}

	foreign := t.TempDir()
	if out := plugIn(t, camp.dir, "", foreign); !strings.Contains(out, "left alone") {
		t.Errorf("a stick of somebody else: %s", out)
	}
	if files, err := os.ReadDir(foreign); err != nil || len(files) != 0 {
		t.Errorf("a stick of somebody else: %v, %v", files, err)
	}
}

// TestStickUnit: systemd takes the unit, and the rule names it.
func TestStickUnit(t *testing.T) {
	t.Parallel()
	rule, err := os.ReadFile("../../contrib/courier/99-mochila-stick.rules")
	if err != nil || !strings.Contains(string(rule), "mochila-stick@%k.service") {
		t.Errorf("the rule: %q, %v", rule, err)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED: systemd-analyze is not installed: install systemd")
	}
	unit, err := os.ReadFile("../../contrib/courier/mochila-stick@.service")
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs(stickScript)
	if err != nil {
		t.Fatal(err)
	}
	const installed = "/usr/local/lib/mochila/mochila-stick"
	if !strings.Contains(string(unit), "ExecStart="+installed+" ") {
		t.Fatalf("the unit does not start %s", installed)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mochila-stick@.service"), []byte(strings.ReplaceAll(string(unit), installed, script)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, "mochila-stick@sdb1.service")).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "mochila-stick") {
			t.Errorf("systemd-analyze: %s", line)
		}
	}
	if err != nil && !strings.Contains(string(out), "mochila-stick") {
		t.Logf("systemd-analyze has other troubles: %v: %s", err, out)
	}
}

// TestSyncDrawsLots: where two sticks lead to one node, a sync that names none does not always give it all to the first one,
// which may never come back.
func TestSyncDrawsLots(t *testing.T) {
	t.Parallel()
	camp := newNode(t, "camp", "")
	conf := ""
	var sticks []string
	for _, name := range []string{"ada", "bob"} {
		stick := t.TempDir()
		sticks = append(sticks, stick)
		conf += fmt.Sprintf("[[contact]]\nnode = %q\nreaches = [\"hub\"]\ncarrier = %q\nwhen = \"manual\"\n", name, "dir:"+stick)
		camp.knows(newNode(t, name, ""), control.PeerAdd{})
	}
	camp.knows(newNode(t, "hub", ""), control.PeerAdd{})
	camp.configure(conf)
	lying := func(stick string) int {
		list, err := filepath.Glob(filepath.Join(stick, "mochila", "*", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	for i := range 20 {
		camp.submit(fmt.Sprintf("Subject: %d\n\nx\n", i), "-f", "eve@camp.mochila", "ana@hub.mochila")
		camp.must("sync")
		if lying(sticks[0]) > 1 && lying(sticks[1]) > 1 {
			return
		}
	}
	t.Errorf("on the sticks: %d and %d", lying(sticks[0]), lying(sticks[1]))
}
