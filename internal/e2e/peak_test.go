package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// peakEnv tells a child of this test binary that it stands between the tests and a program, and where to write how much
// memory that took.
const peakEnv = "MOCHILA_E2E_PEAK"

// peakOf runs a program and returns the most memory that it, or one of the programs that it ran and waited for, had
// resident, in KiB, and what it printed.
//
// The kernel begins the count of a program with that of the process which started it (getrusage(2) of Linux keeps it
// over exec): the tests, with all that runs beside this one in the same process, may have had a gigabyte. So another
// process starts the program, one that has done nothing else.
func peakOf(t testing.TB, program *exec.Cmd) (kib int64, out []byte, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "peak")
	cmd := exec.Command(self, append([]string{program.Path}, program.Args[1:]...)...)
	cmd.Dir, cmd.Stdin = program.Dir, program.Stdin
	cmd.Env = append(program.Environ(), peakEnv+"="+report)
	if out, err = cmd.CombinedOutput(); err != nil {
		return 0, out, err
	}
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if kib, err = strconv.ParseInt(string(b), 10, 64); err != nil || kib == 0 {
		t.Fatalf("the peak of %q is %q: %v", program.Args, b, err)
	}
	return kib, out, nil
}

// peakMain is the process in between. It returns when this is not one.
func peakMain() {
	report := os.Getenv(peakEnv)
	if report == "" {
		return
	}
	os.Unsetenv(peakEnv)
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if err == nil {
		kib := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
		err = os.WriteFile(report, fmt.Append(nil, kib), 0o600)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%q: %v\n", os.Args[1:], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestPeakIsOfTheProgram: what the tests themselves have in memory does not count, and what the program has does.
func TestPeakIsOfTheProgram(t *testing.T) {
	const own = 200 << 20
	ballast, err := syscall.Mmap(-1, 0, own, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(ballast)
	for i := 0; i < own; i += os.Getpagesize() {
		ballast[i] = 1
	}
	small, out, err := peakOf(t, exec.Command("true"))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	large, out, err := peakOf(t, exec.Command("dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("true: %d MiB, dd with a block of 100 MiB: %d MiB", small>>10, large>>10)
	if small > 64<<10 {
		t.Errorf("true took %d MiB", small>>10)
	}
	if large < 100<<10 || large > 164<<10 {
		t.Errorf("dd with a block of 100 MiB took %d MiB", large>>10)
	}
}
