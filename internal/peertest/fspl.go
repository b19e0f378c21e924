package peertest

import (
	"os/exec"
	"strings"
	"testing"
)

// Filespooler makes a queue of Filespooler in a folder, by fspl itself. It skips the test where fspl is not installed.
func Filespooler(t testing.TB, dir string) {
	t.Helper()
	version, err := exec.Command("fspl", "--version").Output()
	if err != nil {
		t.Skipf("SKIPPED: Filespooler is not installed (%v): run .ci/peers", err)
	}
	t.Logf("neighbour: %s", strings.TrimSpace(string(version)))
	if out, err := exec.Command("fspl", "queue-init", "-q", dir).CombinedOutput(); err != nil {
		t.Fatalf("fspl queue-init: %v: %s", err, out)
	}
}
