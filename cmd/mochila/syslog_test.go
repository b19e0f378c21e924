package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSyslog: each line is a datagram with the priority of facility mail; a syslog daemon that is restarted gets the lines
// that come then.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	listen := func() *net.UnixConn {
		t.Helper()
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(time.Minute))
		return c
	}
	got := func(c *net.UnixConn) string {
		t.Helper()
		buf := make([]byte, 4096)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	w := &syslogWriter{path: path}
	log := newMailLog(w, logOptions{syslog: true, pid: 42, host: "ship", level: slog.LevelDebug})
	if record(log, slog.LevelWarn, "nobody listens yet") == nil {
		t.Error("no error without a syslog daemon")
	}
	c := listen()
	record(log, slog.LevelInfo, "one", "service", "smtp")
	record(log, slog.LevelDebug, "two")
	record(log, slog.LevelError, "three")
	for _, want := range []string{"<22>Nov  3 09:05:07 mochila/smtp[42]: one", "<23>Nov  3 09:05:07 mochila/bridge[42]: two",
		"<19>Nov  3 09:05:07 mochila/bridge[42]: error: three"} {
		if line := got(c); line != want {
			t.Errorf("got  %q\nwant %q", line, want)
		}
	}
	c.Close()
	if record(log, slog.LevelWarn, "nobody listens any more") == nil {
		t.Error("no error when the syslog daemon is gone")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c = listen()
	defer c.Close()
	record(log, slog.LevelWarn, "again")
	if line, want := got(c), "<20>Nov  3 09:05:07 mochila/bridge[42]: warning: again"; line != want {
		t.Errorf("got  %q\nwant %q", line, want)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
