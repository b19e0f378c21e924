// Package mochila has no code: this test keeps the order of the packages.
package mochila

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// below says which packages of this module a package may import: arrows point down only. A pattern that ends in /...
// is a tree. Test support (names that end in "test") may be imported by tests only.
var below = map[string][]string{
	// The nouns import nothing.
	"internal/envelope":        {},
	"internal/envelope/bundle": {"internal/envelope"},
	"internal/durable":         {},

	"internal/seal":         {"internal/envelope", "internal/durable"},
	"internal/config":       {"internal/envelope", "internal/durable"},
	"internal/account":      {"internal/durable"}, // password hashes: no key of the node
	"internal/dkim":         {},                   // keys of mail policy, which sign for a domain; it knows no node and no session
	"internal/passwd":       {},                   // users of this machine
	"internal/submit":       {},
	"internal/submit/frame": {"internal/envelope", "internal/submit"},
	"spool":                 {"internal/envelope", "internal/durable"},
	"spool/maildrop":        {"internal/envelope", "internal/durable", "internal/submit/..."},
	"transport":             {"internal/envelope", "internal/durable", "transport/letter", "transport/fspl"}, // for labels: it knows neither mail nor keys
	"transport/letter":      {"internal/durable"},
	"transport/fspl":        {"internal/durable"},
	"transport/s3":          {"transport"},
	"transport/sftp":        {"transport"},
	"transport/dav":         {"transport"},
	"transport/rclone":      {"transport"},
	"transport/nats":        {"transport"},
	"transport/courier":     {"transport", "internal/envelope"},
	"transport/all":         {"transport/..."},
	"transport/serial":      {"transport"},
	"transport/export":      {"internal/envelope", "internal/durable", "transport"},
	"smtpd":                 {"internal/envelope"},
	"smtpd/milter":          {"internal/envelope", "smtpd"},
	"smtpd/submission":      {"internal/envelope", "internal/passwd", "internal/submit/...", "smtpd"},

	"bridge/route":   {"internal/envelope"},
	"bridge/deliver": {"internal/envelope", "internal/durable", "bridge/route"},
	"bridge/bounce":  {"internal/envelope"},
	"bridge/letter":  {},
	"bridge/summary": {"internal/envelope"},
	"bridge/jobs":    {"internal/envelope", "internal/durable", "spool", "bridge/jobs/..."},

	"bridge/jobs/handler": {"internal/passwd"},  // runs a program: it knows no queue, no node, no spool
	"bridge/jobs/tree":    {},                   // files and folders as a stream
	"bridge/jobs/repo":    {"internal/durable"}, // bundles of git
	"bridge/jobs/builtin": {"bridge/jobs/tree", "bridge/jobs/repo", "internal/durable"},
	// smtpd for the interface that it implements
	"bridge": {"internal/envelope/...", "internal/durable", "internal/seal", "spool", "transport", "transport/letter", "smtpd", "bridge/..."},

	"internal/e2e": {}, // tests only

	// From here on things are wired together.
	"internal/control": {"internal/...", "bridge/...", "spool/...", "transport/...", "smtpd/..."},
	"cmd/mochila":      {"..."},
	// the drop-in is small: see TestSendmailIsSmall
	"cmd/sendmail": {"internal/submit/...", "internal/config", "internal/envelope", "internal/durable", "spool/maildrop"},

	// They use the programs, as a user does.
	"contrib/demo/mailbox": {},
	"contrib/bench":        {"internal/seal"},
}

// pkg is what `go list -json` tells about a package.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	watchSources(t)
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// watchSources makes the cached result of these tests depend on every source file: the test cache knows what a test
// looks at itself, but not what `go list` does.
func watchSources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return nil // a temporary file that vanished is no source
		}
		os.Stat(path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

const module = "mochila/"

func matches(pattern, path string) bool {
	tree, ok := strings.CutSuffix(pattern, "...")
	if !ok {
		return path == pattern
	}
	return strings.HasPrefix(path+"/", tree)
}

func isTestSupport(path string) bool { return strings.HasSuffix(path, "test") }

func TestArrowsPointDown(t *testing.T) {
	for _, p := range list(t) {
		name, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours || isTestSupport(name) {
			continue
		}
		allowed, known := below[name]
		if !known {
			t.Errorf("%s has no place in the order of packages: give it one in arrows_test.go", name)
			continue
		}
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			if isTestSupport(imp) {
				t.Errorf("%s imports %s, which is for tests", name, imp)
			} else if !slices.ContainsFunc(allowed, func(a string) bool { return matches(a, imp) }) {
				t.Errorf("%s must not import %s", name, imp)
			}
		}
	}
}

// mailPolicy are keys that belong to mail, not to the node: they sign for a domain, and nothing between nodes depends on them.
var mailPolicy = map[string][]string{module + "internal/dkim": {"crypto/ed25519"}}

// TestKeysStayInSeal: whoever else imports these wants to touch a key.
func TestKeysStayInSeal(t *testing.T) {
	secret := []string{
		"crypto/hpke", "crypto/ed25519", "crypto/ecdh", "crypto/mlkem", "crypto/hkdf", "crypto/cipher", "crypto/aes",
		"golang.org/x/crypto/chacha20poly1305", "golang.org/x/crypto/curve25519",
	}
	for _, p := range list(t) {
		if p.ImportPath == module+"internal/seal" || !strings.HasPrefix(p.ImportPath, module) {
			continue
		}
		for _, imp := range p.Imports {
			if slices.Contains(mailPolicy[p.ImportPath], imp) {
				continue
			}
			if slices.Contains(secret, imp) {
				t.Errorf("%s imports %s: only internal/seal touches keys", p.ImportPath, imp)
			}
		}
	}
}

// TestSendmailIsSmall: the drop-in reaches a socket or the maildrop and nothing else, so that it starts fast and links
// neither the index nor the network carriers nor keys.
func TestSendmailIsSmall(t *testing.T) {
	heavy := []string{"go.etcd.io/bbolt", "net/http", "crypto/tls", module + "bridge", module + "transport", module + "spool", module + "internal/seal"}
	for _, p := range list(t) {
		if p.ImportPath != module+"cmd/sendmail" {
			continue
		}
		for _, dep := range p.Deps {
			if slices.Contains(heavy, dep) {
				t.Errorf("cmd/sendmail links %s", dep)
			}
		}
	}
}
