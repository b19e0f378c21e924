package handler

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The same program with the same pipes, by os/exec and by Run. The target is 0.8 of the speed of the first, and Run
// also counts and caps output, sets the umask, and kills what stays behind.

func byExec(b *testing.B) {
	var out, errs bytes.Buffer
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Dir, cmd.Env = "/", CleanEnv("/", "nobody", "")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("input"), struct{ io.Writer }{&out}, struct{ io.Writer }{&errs}
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
}

func byRun(b *testing.B, limits Limits) {
	var out, errs bytes.Buffer
	o := Run(b.Context(), Spec{Command: []string{"/bin/true"}, Dir: "/", Env: CleanEnv("/", "nobody", ""), Umask: 0o22, Limits: limits,
		Stdin: strings.NewReader("input"), StdinSize: 5, Stdout: &out, Stderr: &errs, OutputCap: 1 << 16},
		func(int, uint64) error { return nil })
	if !o.OK() {
		b.Fatalf("%+v", o)
	}
}

// BenchmarkRun runs both in turn, so that a busy machine slows both down, and reports the speed of Run in relation to
// that of os/exec.
func BenchmarkRun(b *testing.B) {
	var exec, run time.Duration
	for b.Loop() {
		t := time.Now()
		byExec(b)
		exec += time.Since(t)
		t = time.Now()
		byRun(b, Limits{})
		run += time.Since(t)
	}
	b.ReportMetric(float64(exec)/float64(run), "ratio")
	b.ReportMetric(float64(exec.Nanoseconds())/float64(b.N), "ns/exec")
	b.ReportMetric(float64(run.Nanoseconds())/float64(b.N), "ns/run")
}

// BenchmarkShim is Run with limits, by way of a second start of this binary.
func BenchmarkShim(b *testing.B) {
	for b.Loop() {
		byRun(b, Limits{Files: 100})
	}
}
