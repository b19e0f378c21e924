package handler

import (
	"bytes"
	"context"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"
)

func somePlan() *plan {
	return &plan{Umask: 0o27, NoNewPrivs: true, Limits: []limit{{1, 2, 3}, {6, 1 << 40, 1<<64 - 1}}, Dir: "/tmp",
		Argv: []string{"/bin/x", "", "a\nb"}, Env: []string{"A=1", "B=\xff"}}
}

func TestPlan(t *testing.T) {
	for _, p := range []*plan{somePlan(), {Dir: "/", Argv: []string{"x"}}} {
		b := p.marshal()
		got, err := parsePlan(b)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("%+v came back as %+v, %v", p, got, err)
		}
		for n := range b { // the daemon died while it wrote
			if got, err := parsePlan(b[:n]); err == nil {
				t.Errorf("%d of %d bytes are %+v", n, len(b), got)
			}
		}
		if _, err := parsePlan(append(b, 0)); err == nil {
			t.Error("a byte too many was taken")
		}
	}
	if _, err := parsePlan((&plan{Dir: "/"}).marshal()); err == nil {
		t.Error("a plan without a program was taken")
	}
	if _, err := parsePlan(bytes.Repeat([]byte{0xff}, 100)); err == nil {
		t.Error("huge numbers were taken")
	}
}

func FuzzParsePlan(f *testing.F) {
	f.Add(somePlan().marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parsePlan(b); err == nil && !bytes.Equal(p.marshal(), b) {
			t.Errorf("%x is %+v, which is %x", b, p, p.marshal())
		}
	})
}

func TestVerdict(t *testing.T) {
	for said, want := range map[string]string{
		"drlx": "", "drlx8": "exec format error", "d2": "working directory: no such file", "drl1": "setting limits: operation not permitted",
		"dr1": "giving up rights", "drlxz": "died at step", "dr": "died at step", "": "the shim died", "99": "the shim died",
	} {
		err := verdict(said)
		if err == nil && want != "" || err != nil && (want == "" || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", said, err, want)
		}
	}
}

// TestShimByHand: the shim without the process that starts it does nothing.
func TestShimByHand(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{shimName}
	out, err := cmd.CombinedOutput()
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 64 || !strings.Contains(string(out), "by mochila only") {
		t.Errorf("%q, %v", out, err)
	}
}

// TestNotStartedInTime: the time limit counts from the start of the shim.
func TestNotStartedInTime(t *testing.T) {
	o := Run(t.Context(), Spec{Command: []string{"/bin/true"}, Dir: "/", Limits: Limits{Files: 50}, Timeout: time.Nanosecond, Grace: time.Nanosecond}, nil)
	if !o.TimedOut || o.OK() || o.Ran() != (o.Err == "") {
		t.Errorf("%+v", o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o = Run(ctx, Spec{Command: []string{"/bin/sleep", "1000"}, Dir: "/", Limits: Limits{Files: 50}}, func(int, uint64) error { cancel(); return nil })
	if !o.Cancelled || o.OK() || o.Ran() != (o.Err == "") {
		t.Errorf("%+v", o)
	}
}
