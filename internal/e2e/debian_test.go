package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestDebianPackages: the packages are the same bytes each time they are made; installed on a machine that had another
// mail server, they make it one whose cron mail goes through mochila. All of it happens in a mount name space where
// /usr, /etc and /var are overlays: nothing of this machine changes.
func TestDebianPackages(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: installing a package needs root: run the tests as root")
	}
	for _, tool := range []string{"dpkg", "unshare", "setpriv", "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
	}
	top := filepath.Join("..", "..")
	made := func() []string {
		t.Helper()
		out := t.TempDir()
		cmd := exec.Command("make", "-C", top, "deb", "DIST="+out, "DEBVERSION=1.0~test")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make deb: %v\n%s", err, b)
		}
		return []string{filepath.Join(out, "mochila_1.0~test_"+arch(t)+".deb"), filepath.Join(out, "mochila-mta_1.0~test_"+arch(t)+".deb")}
	}
	first, second := made(), made()
	for i := range first {
		if a, b := sum(t, first[i]), sum(t, second[i]); a != b {
			t.Errorf("%s is not reproducible: %x, then %x", filepath.Base(first[i]), a, b)
		}
	}
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "bash", filepath.Join("testdata", "debian.sh"), dir, first[0], first[1])
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func arch(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOARCH").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out[:len(out)-1])
}

func sum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		t.Fatal(fmt.Errorf("%q is empty", path))
	}
	return sha256.Sum256(b)
}
