package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// submit measures sendmail as programs call it: a process for each mail, 2 KiB on its standard input, one after the
// other and eight at a time. xargs and a shell start all contestants, /bin/true among them: nobody can be faster.
// mochila-drop is mochila's sendmail while no daemon runs.
func (b *bench) submit() error {
	who := []struct {
		name  string
		start starter
	}{{"true", startTrue}, {"postfix", startPostfix}, {"mochila", startMochila}, {"mochila-drop", startNoDaemon}}
	n := b.scaled(200)
	for _, parallel := range []int{1, 8} {
		for range b.reps {
			for _, w := range who {
				rate, err := b.submitOnce(w.start, n, parallel)
				if b.missing(w.name, err) {
					continue
				}
				if err != nil {
					return fmt.Errorf("%s: %w", w.name, err)
				}
				b.fig.add(fmt.Sprintf("%s.submit.par%d.msgs_per_s", w.name, parallel), rate)
			}
		}
		for _, w := range who {
			b.fig.show(fmt.Sprintf("%s.submit.par%d.", w.name, parallel))
		}
	}
	return nil
}

func (b *bench) submitOnce(start starter, n, parallel int) (rate float64, err error) {
	dir, err := b.dir()
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	s, err := newSink(n)
	if err != nil {
		return 0, err
	}
	defer s.close()
	addr, err := freeAddr()
	if err != nil {
		return 0, err
	}
	m, err := start(b.ctx, b, dir, addr, s.addr())
	if err != nil {
		return 0, err
	}
	defer m.stop()
	return b.drive(dir, append(m.sendmail, "to@hub.example"), n, parallel)
}

// drive runs a command n times, and fails if it fails once.
func (b *bench) drive(dir string, argv []string, n, parallel int) (rate float64, err error) {
	mail := "From: from@camp.example\nTo: to@hub.example\nSubject: bench\n\n" + strings.Repeat(strings.Repeat("x", 63)+"\n", 31)
	script := fmt.Sprintf("#!/bin/sh\nexec %s <%s/mail >>%s/errors 2>&1\n", strings.Join(argv, " "), dir, dir)
	if err := os.WriteFile(filepath.Join(dir, "mail"), []byte(mail), 0o644); err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.sh"), []byte(script), 0o755); err != nil {
		return 0, err
	}
	start := time.Now()
	c := exec.CommandContext(b.ctx, "sh", "-c", fmt.Sprintf("seq %d | xargs -P%d -n1 %s/go.sh", n, parallel, dir))
	if err := c.Run(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, tail(filepath.Join(dir, "errors")))
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
