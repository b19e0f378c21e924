package control

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/config"
	"mochila/internal/envelope"
)

// TestPrepared: what was prepared for a job is used if it fits still, else everything is made anew; and all of it is
// given back.
func TestPrepared(t *testing.T) {
	dir := t.TempDir()
	conf := func(command ...string) *config.Config {
		return &config.Config{Handlers: []config.Handler{{Name: "h", Command: command, Umask: "077", Output: 1 << 10}}}
	}
	c := conf("/bin/cat")
	r := &runner{config: func() *config.Config { return c }, dir: dir, scratch: dir, roster: roster{path: filepath.Join(dir, "running")}, rooms: rooms{dir: dir}}
	const input = "some input"
	start := func(id byte) *jobs.Start {
		return &jobs.Start{ID: envelope.ID{id}, Try: 1, Handler: "h", Size: int64(len(input)), Sum: envelope.SumOf([]byte(input)),
			Stdin: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(input)), nil }}
	}
	run := func(s *jobs.Start, want string) {
		t.Helper()
		o, err := r.Run(context.Background(), s)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(o.Out)
		o.Close()
		if o.NotStarted || o.Exit != 0 || string(out) != want {
			t.Errorf("%q, not %q: %+v", out, want, o)
		}
	}
	run(start(1), input) // opens what stays open
	files := func() int { l, _ := os.ReadDir("/proc/self/fd"); return len(l) }
	before := files()

	for name, change := range map[string]func(s *jobs.Start, p *program){
		"nothing":       func(*jobs.Start, *program) {},
		"another try":   func(s *jobs.Start, _ *program) { s.Try++ },
		"another job":   func(s *jobs.Start, _ *program) { s.ID[0]++ },
		"too old":       func(_ *jobs.Start, p *program) { p.made = p.made.Add(-time.Minute) },
		"its directory": func(_ *jobs.Start, p *program) { os.WriteFile(filepath.Join(p.home.path, "x"), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			p := r.Prepare(start(2)).(*program)
			s := start(2)
			s.Ready = p
			change(s, p)
			if p.fits(c, s) != (name == "nothing") {
				t.Error("fits:", p.fits(c, s))
			}
			run(s, input)
		})
	}
	s := start(3)
	s.Ready = r.Prepare(s)
	c = conf("/bin/echo", "another program")
	run(s, "another program\n")
	r.Prepare(start(4)).Close()
	if after := files(); after != before {
		t.Errorf("%d files are open, %d before", after, before)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if l, _ := os.ReadDir(dir); len(l) != 1 {
		t.Error("left behind:", l)
	}
}
