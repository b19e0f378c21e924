package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"mochila/bridge/jobs/builtin"
	"mochila/bridge/jobs/handler"
)

// bin is the folder with the programs under test, built once.
var bin string

func TestMain(m *testing.M) {
	handler.ShimMain() // … and for handlers with limits
	builtin.Main()     // daemons in this process start this binary for their built-in handlers
	peakMain()
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("8") // what runs in parallel here waits most of the time: for timers, contacts and other programs
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if dir := os.Getenv(insideEnv); dir != "" {
		bin = dir // built by the process outside of the name space
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "mochila-e2e-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	build := exec.Command("go", "build", "-o", dir, "mochila/cmd/mochila", "mochila/cmd/sendmail")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs under test: %v\n%s", err, out)
		return 1
	}
	bin = dir
	return m.Run()
}

func program(name string) string { return filepath.Join(bin, name) }

// count is how often something is done: few times in an ordinary run, many with MOCHILA_SOAK=1.
func count(few, many int) int {
	if os.Getenv("MOCHILA_SOAK") == "1" {
		return many
	}
	return few
}

// random is a source whose seed is printed, and set by MOCHILA_SEED.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MOCHILA_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("MOCHILA_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("MOCHILA_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// insideEnv tells a child of this test binary where the programs under test are.
const insideEnv = "MOCHILA_E2E_BIN"
