package peertest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// NNCP is two NNCP nodes that know each other, with their own configurations and spools below a temporary folder, and a
// folder by which their packets travel.
type NNCP struct {
	Dir string

	t     testing.TB
	names []string
}

// nncpKeys are what nncp-cfgnew makes for a node.
var nncpKeys = regexp.MustCompile(`(?m)^\s*(id|exchpub|exchprv|signpub|signprv|noiseprv|noisepub):\s*(\S+)`)

// StartNNCP makes two nodes. settings are, for each node's name, what its configuration says about the other one: exec
// handles, incoming folder. It skips the test where NNCP is not installed. Nothing runs: Move moves.
func StartNNCP(t testing.TB, settings map[string]string) *NNCP {
	t.Helper()
	version, err := exec.Command("nncp-stat", "-version").Output()
	if err != nil {
		t.Skipf("SKIPPED: NNCP is not installed (%v): run .ci/peers", err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	t.Logf("neighbour: %s", first)
	n := &NNCP{t: t, Dir: t.TempDir(), names: slices.Sorted(maps.Keys(settings))}
	keys := map[string]map[string]string{}
	for _, name := range n.names {
		out, err := exec.Command("nncp-cfgnew", "-nocomments").Output()
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = map[string]string{}
		for _, m := range nncpKeys.FindAllStringSubmatch(string(out), -1) {
			keys[name][m[1]] = m[2]
		}
		if err := os.MkdirAll(n.Spool(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(n.Dir, "wire"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range n.names {
		var s strings.Builder
		list := func(k map[string]string, words ...string) {
			for _, w := range words {
				fmt.Fprintf(&s, "      %s: %s\n", w, k[w])
			}
		}
		fmt.Fprintf(&s, "{\n  spool: %s\n  log: %s\n  self: {\n", n.Spool(name), filepath.Join(n.Dir, name+".log"))
		list(keys[name], "id", "exchpub", "exchprv", "signpub", "signprv", "noiseprv", "noisepub")
		s.WriteString("  }\n  neigh: {\n")
		for _, other := range n.names {
			shown := other
			if other == name {
				shown = "self"
			}
			fmt.Fprintf(&s, "    %s: {\n", shown)
			list(keys[other], "id", "exchpub", "signpub", "noisepub")
			if other != name {
				s.WriteString(settings[name] + "\n")
			}
			s.WriteString("    }\n")
		}
		s.WriteString("  }\n}\n")
		if err := os.WriteFile(n.Config(name), []byte(s.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// Config is the configuration file of a node.
func (n *NNCP) Config(name string) string { return filepath.Join(n.Dir, name+".hjson") }

// Spool is the spool of a node.
func (n *NNCP) Spool(name string) string { return filepath.Join(n.Dir, name+"-spool") }

// Command is one of NNCP's programs for a node: Command("camp", "toss", "-seen").
func (n *NNCP) Command(name, program string, args ...string) *exec.Cmd {
	return exec.Command("nncp-"+program, append([]string{"-cfg", n.Config(name), "-noprogress", "-quiet"}, args...)...)
}

// Move carries what is queued at both nodes to the other one and tosses it there, once. What a toss says is returned:
// a handler that failed is no failure of the test.
func (n *NNCP) Move() string {
	n.t.Helper()
	n.Carry()
	var said strings.Builder
	for _, name := range n.names {
		out, _ := n.Command(name, "toss", "-seen").CombinedOutput()
		said.Write(out)
	}
	return said.String()
}

// Carry is Move without the toss.
func (n *NNCP) Carry() {
	n.t.Helper()
	wire := filepath.Join(n.Dir, "wire")
	for _, dir := range []string{"-tx", "-rx"} {
		for _, name := range n.names {
			args := []string{"-mkdir", dir, wire}
			if out, err := n.Command(name, "xfer", args...).CombinedOutput(); err != nil {
				n.t.Fatalf("nncp-xfer %s at %s: %v: %s", dir, name, err, out)
			}
		}
	}
}

// Packets lists the packets that wait in a node's spool: way is "rx" or "tx".
func (n *NNCP) Packets(name, way string) (paths []string) {
	found, err := filepath.Glob(filepath.Join(n.Spool(name), "*", way, "*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range found {
		real, err := filepath.EvalSymlinks(p) // a node's folder has its name, too
		if base := filepath.Base(p); err == nil && len(base) == 52 && !slices.Contains(paths, real) {
			paths = append(paths, real)
		}
	}
	return paths
}
