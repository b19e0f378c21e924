package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// record logs one line at a fixed time.
func record(h slog.Handler, level slog.Level, msg string, args ...any) error {
	r := slog.NewRecord(time.Date(2026, 11, 3, 9, 5, 7, 0, time.Local), level, msg, 0)
	r.Add(args...)
	return h.Handle(context.Background(), r)
}

func TestLogLines(t *testing.T) {
	const id = "06H0FOAU8PEQNF603CUHENQ5LS"
	for _, c := range []struct {
		level slog.Level
		msg   string
		args  []any
		want  string
	}{
		{slog.LevelInfo, id + ": to=<ana@camp.example>, relay=none, dsn=2.0.0, status=sent (ok)", []any{"service", "smtp"},
			"mochila/smtp[42]: " + id + ": to=<ana@camp.example>, relay=none, dsn=2.0.0, status=sent (ok)"},
		{slog.LevelWarn, "NOQUEUE: reject: RCPT from x[192.0.2.1]", []any{"service", "smtpd"}, "mochila/smtpd[42]: NOQUEUE: reject: RCPT from x[192.0.2.1]"},
		{slog.LevelWarn, "contact failed", []any{"node", "hub", "err", errors.New(`dial "x": no`)}, `mochila/bridge[42]: warning: contact failed node=hub err="dial \"x\": no"`},
		{slog.LevelError, "lease", []any{"queue", "", "n", 3, "ok", true, "in", 90 * time.Second}, `mochila/bridge[42]: error: lease queue="" n=3 ok=true in=1m30s`},
		{slog.LevelError, id + ": quarantined", nil, "mochila/bridge[42]: " + id + ": quarantined"},
		{slog.LevelWarn, "CLOCK: jumped", nil, "mochila/bridge[42]: warning: CLOCK: jumped"}, // too short for an id
		{slog.LevelInfo, "helo=<\x1b[2J\r\nNov  3 forged>", []any{"a", "x\ny", "b", "\u202eevil", "c", "\xff", "d", "grün"},
			`mochila/bridge[42]: helo=<\033[2J\015\012Nov  3 forged> a=x\012y b=\u202eevil c=\377 d=grün`},
		{slog.LevelInfo, "groups", []any{slog.Group("peer", "name", "hub", "id", uint64(7))}, "mochila/bridge[42]: groups peer.name=hub peer.id=7"},
		{slog.LevelInfo, "when", []any{"at", time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}, "mochila/bridge[42]: when at=2026-01-02T03:04:05Z"},
	} {
		var b bytes.Buffer
		log := newMailLog(&b, logOptions{host: "ship", pid: 42})
		if err := record(log, c.level, c.msg, c.args...); err != nil {
			t.Error(err)
		}
		log.Close()
		if want := "Nov  3 09:05:07 ship " + c.want + "\n"; b.String() != want {
			t.Errorf("got  %swant %s", b.String(), want)
		}
	}
}

func TestLogForJournal(t *testing.T) {
	var b bytes.Buffer
	log := newMailLog(&b, logOptions{journal: true, pid: 42, level: slog.LevelDebug})
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		record(log, l, "x")
	}
	log.Close()
	want := "<7>mochila/bridge[42]: x\n<6>mochila/bridge[42]: x\n<4>mochila/bridge[42]: warning: x\n<3>mochila/bridge[42]: error: x\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestLogWith(t *testing.T) {
	var b bytes.Buffer
	log := newMailLog(&b, logOptions{short: true})
	l := slog.New(log).With("service", "smtpd", "a", 1).WithGroup("g").With("b", 2)
	l.Info("x", "c", 3)
	l.Info("y", "service", "not the service")
	slog.New(log).With("service", "smtpd").Info("z", "service", "qmgr")
	log.Close()
	want := "mochila/smtpd: x a=1 g.b=2 g.c=3\nmochila/smtpd: y a=1 g.b=2 g.service=\"not the service\"\nmochila/qmgr: z\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	if log.Enabled(context.Background(), slog.LevelDebug) {
		t.Error("debug lines are logged without being asked for")
	}
}

// writes counts what reaches the file.
type writes struct{ sizes []int }

func (w *writes) Write(p []byte) (int, error) {
	w.sizes = append(w.sizes, bytes.Count(p, []byte{'\n'}))
	return len(p), nil
}

// TestLogGathers: lines wait a moment for others, but not behind a warning, nor when there are many.
func TestLogGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &writes{}
		log := newMailLog(w, logOptions{})
		l := slog.New(log)
		check := func(what string, want ...int) {
			t.Helper()
			log.mu.Lock()
			defer log.mu.Unlock()
			if fmt.Sprint(w.sizes) != fmt.Sprint(want) {
				t.Errorf("%s: lines written at once: %v, want %v", what, w.sizes, want)
			}
			w.sizes = nil
		}
		l.Info("one")
		time.Sleep(logDelay / 2)
		synctest.Wait()
		l.Info("two")
		check("early")
		time.Sleep(logDelay)
		synctest.Wait()
		check("after the delay", 2)
		l.Info("three")
		l.Warn("four")
		check("warning", 2)
		time.Sleep(2 * logDelay)
		synctest.Wait()
		check("nothing waits")
		line := strings.Repeat("x", 1<<10)
		for range 2 * logBatch >> 10 {
			l.Info(line)
		}
		log.Close()
		total := 0
		for _, n := range w.sizes {
			total += n
		}
		if len(w.sizes) < 2 || total != 2*logBatch>>10 {
			t.Errorf("a flood was written as %v lines", w.sizes)
		}
		w.sizes = nil
		l.Info("late")
		check("after Close", 1)
	})
}

func TestToJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	for value, want := range map[string]bool{"": false, "1:2": false, fmt.Sprintf("%d:%d", st.Dev, st.Ino): true} {
		env := &Env{Stderr: f, Getenv: func(string) (string, bool) { return value, value != "" }}
		if got := toJournal(env); got != want {
			t.Errorf("JOURNAL_STREAM=%q: %v, want %v", value, got, want)
		}
	}
}

// BenchmarkLog is one line about a delivery.
func BenchmarkLog(b *testing.B) {
	log := newMailLog(io.Discard, logOptions{host: "ship"})
	defer log.Close()
	l := slog.New(log)
	b.ReportAllocs()
	for b.Loop() {
		l.Info("06H0FOAU8PEQNF603CUHENQ5LS: to=<ana@camp.example>, relay=127.0.0.1[127.0.0.1]:25, delay=0.31, delays=0.3/0/0/0.01, dsn=2.0.0, status=sent (250 2.0.0 ok)", "service", "smtp")
	}
}

// TestLogName: lines may have another program's name in front.
func TestLogName(t *testing.T) {
	var b bytes.Buffer
	l := newMailLog(&b, logOptions{program: "postfix", host: "h", pid: 7})
	slog.New(l).Info("connect from x[192.0.2.1]", "service", "smtpd")
	if err := l.Close(); err != nil || !strings.HasSuffix(b.String(), " h postfix/smtpd[7]: connect from x[192.0.2.1]\n") {
		t.Errorf("%q, %v", b.String(), err)
	}
}
