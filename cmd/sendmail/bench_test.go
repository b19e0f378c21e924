package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mochila/smtpd/submission"
)

// cronMail is what a cron job makes.
var cronMail = "From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@camp> /usr/local/bin/backup\nMIME-Version: 1.0\n" +
	"Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n" + strings.Repeat("one line of output of a job\n", 40)

// benchRun starts a program b.N times, one after the other, as xargs does.
func benchRun(b *testing.B, cmd func() *exec.Cmd) {
	msg := filepath.Join(b.TempDir(), "msg")
	if err := os.WriteFile(msg, []byte(cronMail), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c := cmd()
		f, err := os.Open(msg)
		if err != nil {
			b.Fatal(err)
		}
		c.Stdin = f
		if err := c.Run(); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkTrue is what a process costs at all: compare with the others.
func BenchmarkTrue(b *testing.B) {
	benchRun(b, func() *exec.Cmd { return exec.Command("/bin/true") })
}

func BenchmarkSocket(b *testing.B) {
	n := newNode(b)
	n.start(b, submission.Options{})
	benchRun(b, func() *exec.Cmd { return n.command("sendmail", "-i", "-oem", "root") })
	if got := len(n.desk.take()); got < b.N {
		b.Fatalf("%d mails of %d runs", got, b.N)
	}
}

func BenchmarkMaildrop(b *testing.B) {
	n := newNode(b)
	benchRun(b, func() *exec.Cmd { return n.command("sendmail", "-i", "-oem", "root") })
	if got := len(n.collect(b)); got < b.N {
		b.Fatalf("%d mails of %d runs", got, b.N)
	}
}
