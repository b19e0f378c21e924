package peertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Rclone is a private configuration of the program rclone, with two remotes: plain, a folder of this machine, and secret,
// the same folder below "vault", encrypted by rclone.
type Rclone struct {
	Config string // for rclone --config
	Dir    string // where the files of plain: lie
}

// NewRclone makes one; the test is skipped where rclone is not installed.
func NewRclone(t testing.TB) *Rclone {
	t.Helper()
	version, err := exec.Command("rclone", "version").Output()
	if err != nil {
		t.Skipf("SKIPPED: rclone is not installed (%v): run .ci/peers", err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	t.Logf("neighbour: %s", first)
	r := &Rclone{Dir: t.TempDir(), Config: filepath.Join(t.TempDir(), "rclone.conf")}
	obscured, err := exec.Command("rclone", "obscure", "a password for tests").Output()
	if err != nil {
		t.Fatalf("rclone obscure: %v", err)
	}
	text := fmt.Sprintf(`[plain]
type = alias
remote = %[1]s

[secret]
type = crypt
remote = %[1]s/vault
password = %[2]s
filename_encryption = standard
`, r.Dir, strings.TrimSpace(string(obscured)))
	if err := os.WriteFile(r.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}
