package handler

import (
	"bytes"
	"io"
	"os/exec"
	"slices"
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

func byRun(b *testing.B, l *Launcher, limits Limits) {
	var out, errs bytes.Buffer
	o := l.Run(b.Context(), Spec{Command: []string{"/bin/true"}, Dir: "/", Env: CleanEnv("/", "nobody", ""), Umask: 0o77, Limits: limits,
		Stdin: strings.NewReader("input"), StdinSize: 5, Stdout: &out, Stderr: &errs, OutputCap: 1 << 16},
		func(int, uint64) error { return nil })
	if !o.OK() {
		b.Fatalf("%+v", o)
	}
}

// used is the processor time of this process and its dead children.
func used(b *testing.B) (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return d
}

// BenchmarkRun runs both in turn, each as often before as after the other, so that a busy machine slows both down. It
// reports the median of each, the speed of Run in relation to that of os/exec, and their processor time.
func BenchmarkRun(b *testing.B) {
	var l Launcher
	defer l.Close()
	both := []func(){func() { byExec(b) }, func() { byRun(b, &l, Limits{}) }}
	took, cpu := make([][]time.Duration, len(both)), make([]time.Duration, len(both))
	for turn := 0; b.Loop(); turn++ {
		for i := range both {
			i ^= turn & 1
			t, u := time.Now(), used(b)
			both[i]()
			took[i] = append(took[i], time.Since(t))
			cpu[i] += used(b) - u
		}
	}
	var median [2]float64
	for i, d := range took {
		slices.Sort(d)
		median[i] = float64(d[len(d)/2].Nanoseconds())
	}
	b.ReportMetric(median[0], "ns/exec")
	b.ReportMetric(median[1], "ns/run")
	b.ReportMetric(float64(cpu[0].Nanoseconds())/float64(b.N), "cpu-ns/exec")
	b.ReportMetric(float64(cpu[1].Nanoseconds())/float64(b.N), "cpu-ns/run")
	b.ReportMetric(median[0]/median[1], "ratio")
}

// BenchmarkShim is Run with limits, by way of a second start of this binary.
func BenchmarkShim(b *testing.B) {
	var l Launcher
	defer l.Close()
	for b.Loop() {
		byRun(b, &l, Limits{Files: 100})
	}
}
