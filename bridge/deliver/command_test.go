package deliver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// script writes an executable shell script; $D is its folder.
func script(t *testing.T, text string) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	path = filepath.Join(dir, "prog")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nD='"+dir+"'\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPipe(t *testing.T) {
	path, dir := script(t, `{ echo "$# <$SENDER> $RECIPIENT $MOCHILA_ID $HOME"; cat; } >>"$D/out"`)
	tr := open(t, "pipe:"+path, Options{TempDir: dir})
	m := mail("", "Subject: hi\n\n.dot\n\u00e9", "b@y", `"c d"@y`)
	m.Header = []byte("Received: here\r\n")
	check(t, tr, m, "0 delivered 2.0.0 delivered to "+path, "1 delivered 2.0.0 delivered to "+path)
	body := "Received: here\nSubject: hi\n\n.dot\n\u00e9\n"
	id := m.Env.ID.String()
	want := "0 <> b@y " + id + " \n" + body + "0 <> \"c d\"@y " + id + " \n" + body
	if got := readFile(t, dir+"/out"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if left, _ := filepath.Glob(dir + "/.mochila*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestPipeExitCodes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"exit 0", "delivered 2.0.0 delivered to PATH"},
		{"echo fine; exit 0", "delivered 2.0.0 delivered to PATH"},
		{"exit 1", "pending 4.3.0 prog exited with status 1"},
		{"exit 65", "failed 5.6.0 prog exited with status 65"},
		{"echo; echo no such user >&2; exit 67", "failed 5.1.1 no such user"},
		{"exit 68", "failed 5.1.2 prog exited with status 68"},
		{"exit 69", "failed 5.3.0 prog exited with status 69"},
		{"exit 74", "pending 4.3.0 prog exited with status 74"},
		{"echo 4.4.1 link is down; exit 75", "pending 4.4.1 link is down"},
		{"echo 5.1.1 unknown; exit 75", "pending 4.1.1 unknown"},
		{"echo 5.7.1 not you; exit 1", "failed 5.7.1 not you"},
		{"echo 4.2.2 quota; exit 77", "pending 4.2.2 quota"},
		{"echo 2.0.0 fine; exit 77", "failed 5.7.0 2.0.0 fine"},
		{"exit 77", "failed 5.7.0 prog exited with status 77"},
		{"exit 127", "pending 4.3.0 prog exited with status 127"},
		{"kill -9 $$", "pending 4.3.0 prog was signal: killed"},
		{"echo 5.1.1 last words; kill -9 $$", "pending 4.1.1 prog was signal: killed: last words"},
		{"printf 'a\\033[31m\\001b\\n'; exit 65", "failed 5.6.0 a?[31m?b"},
		{"head -c 100000 /dev/zero | tr '\\0' x; exit 65", "failed 5.6.0 " + strings.Repeat("x", 1000)},
	} {
		path, _ := script(t, c.text)
		tr := open(t, "pipe:"+path, Options{})
		check(t, tr, mail("a@x", hello, "b@y"), "0 "+strings.ReplaceAll(c.want, "PATH", path))
	}
	tr := open(t, "pipe:/does/not/exist", Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 pending 4.3.0 cannot start /does/not/exist: no such file or directory")
}

func TestPipeTimeout(t *testing.T) {
	// The child in the same group must go too, and one that holds the output open must not hold us.
	path, dir := script(t, `sleep 1000 & echo $! >"$D/pid"; echo waiting; wait`)
	// A busy machine may not come to its first word in the time: then it gets more.
	for run := 300 * time.Millisecond; ; run *= 4 {
		got := show(open(t, "pipe:"+path, Options{Run: run}).Deliver(context.Background(), mail("a@x", hello, "b@y")))
		if got == fmt.Sprintf("0 pending 4.3.0 prog took longer than %s: waiting\n", run) {
			break
		}
		if strings.Contains(got, "waiting") || run > time.Minute {
			t.Fatalf("got %s", got)
		}
	}
	pid := strings.TrimSpace(readFile(t, dir+"/pid"))
	// It was sent the signal; the kernel takes it away when it next looks at it.
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the child is still there: %s", b)
		}
	}
}

func TestPipeInterrupted(t *testing.T) {
	path, dir := script(t, `echo >"$D/started"; sleep 1000`)
	ctx, cancel := context.WithCancel(context.Background())
	if err := syscall.Mkfifo(dir+"/started", 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		os.ReadFile(dir + "/started")
		cancel()
	}()
	tr := open(t, "pipe:"+path, Options{Grace: 10 * time.Millisecond})
	checkCtx(t, ctx, tr, mail("a@x", hello, "b@y", "c@y"), "0 pending 4.3.0 interrupted", "1 pending 4.3.2 not tried: interrupted")

	// What ends within the grace is not lost.
	path, dir = script(t, `echo >"$D/started"; cat >/dev/null`)
	if err := syscall.Mkfifo(dir+"/started", 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	go func() {
		os.ReadFile(dir + "/started")
		cancel()
	}()
	tr = open(t, "pipe:"+path, Options{})
	checkCtx(t, ctx, tr, mail("a@x", hello, "b@y"), "0 delivered 2.0.0 delivered to "+path)
}

// A program never sees content that is not the mail.
func TestCommandContentTrouble(t *testing.T) {
	path, dir := script(t, `cat >>"$D/out"`)
	big := bytes.Repeat([]byte("0123456789abcdef\r\n"), 10_000)
	for _, kind := range []string{"pipe:", "sendmail:"} {
		tr := open(t, kind+path, Options{TempDir: dir})
		m := rawMail("a@x", big, "b@y")
		m.Env.Mail.Body = "7BIT"
		m.Open = func() (io.ReadCloser, error) { return &reader{append([]byte("X"), big[1:]...), len(big), io.EOF}, nil }
		check(t, tr, m, "0 pending 4.3.0 stored content does not match its checksum [corrupt]")
		m.Open = func() (io.ReadCloser, error) { return &reader{big, len(big) / 2, errDisk}, nil }
		check(t, tr, m, "0 pending 4.3.0 input/output error")
	}
	if _, err := os.Stat(dir + "/out"); err == nil {
		t.Error("the program was started")
	}
}

func TestSendmail(t *testing.T) {
	path, dir := script(t, `for a; do printf '[%s]' "$a"; done >>"$D/out"; [ "$1" = -bV ] && exit 64; { echo; cat; } >>"$D/out"`)
	tr := open(t, "sendmail:"+path, Options{TempDir: dir})
	m := mail("-fake@x", "Subject: hi\n\n.\nx\n", "b@y", "-odq@y", "never@y", "a\nb@y")
	m.Env.Mail.Ret, m.Env.Mail.EnvID = "HDRS", "id+2B1"
	m.Env.Mail.Recipients[2].Notify = envelope.NotifyNever
	for range 2 {
		check(t, tr, m, "0 relayed 2.0.0 taken by "+path, "1 relayed 2.0.0 taken by "+path, "2 relayed 2.0.0 taken by "+path,
			`3 failed 5.1.3 recipient address "a\nb@y" is none`)
	}
	body := "\nSubject: hi\n\n.\nx\n"
	run := "[-G][-i][-f][-fake@x][-R][hdrs][-V][id+1][--][b@y][-odq@y]" + body +
		"[-G][-i][-f][-fake@x][-N][never][-R][hdrs][-V][id+1][--][never@y]" + body
	if got := readFile(t, dir+"/out"); got != "[-bV]"+run+run {
		t.Errorf("got %q\nwant %q", got, "[-bV]"+run+run)
	}
	os.Remove(dir + "/out")
	m = mail("", "x: \u00e9\n\n", "b@y")
	check(t, tr, m, "0 relayed 2.0.0 taken by "+path)
	if got, want := readFile(t, dir+"/out"), "[-G][-i][-f][<>][-B][8BITMIME][--][b@y]\nx: \u00e9\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	m.Env.Mail.RequireTLS = true
	check(t, tr, m, "0 failed 5.7.30 REQUIRETLS was asked for, and sendmail has no way to say so")
}

// Exim takes -N for "do not deliver": it must never see it.
func TestSendmailExim(t *testing.T) {
	path, dir := script(t, `[ "$1" = -bV ] && { echo Exim version 4.96 "#2" built; exit 0; }; echo "$*" >>"$D/out"`)
	tr := open(t, "sendmail:"+path, Options{})
	m := mail("a@x", hello, "b@y")
	m.Env.Mail.Ret, m.Env.Mail.EnvID, m.Env.Mail.Recipients[0].Notify = "FULL", "x", envelope.NotifySuccess
	check(t, tr, m, "0 relayed 2.0.0 taken by "+path)
	if got := readFile(t, dir+"/out"); got != "-G -i -f a@x -- b@y\n" {
		t.Errorf("arguments %q", got)
	}
}

func TestSendmailWithoutG(t *testing.T) {
	path, dir := script(t, `[ "$1" = -G ] && { echo "prog: invalid option -- 'G'" >&2; exit 64; }; echo "$*" >>"$D/out"`)
	tr := open(t, "sendmail:"+path, Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 relayed 2.0.0 taken by "+path)
	check(t, tr, mail("a@x", hello, "c@y"), "0 relayed 2.0.0 taken by "+path)
	if got := readFile(t, dir+"/out"); got != "-i -f a@x -- b@y\n-i -f a@x -- c@y\n" {
		t.Errorf("arguments %q", got)
	}
}

func TestSendmailFailures(t *testing.T) {
	path, dir := script(t, `echo "$*" >>"$D/out"; case "$*" in *no@*) echo "prog: no@y... User unknown" >&2; exit 67;; *later@*) exit 75;; *usage@*) exit 64;; esac`)
	tr := open(t, "sendmail:"+path, Options{MaxRcpts: 3})
	check(t, tr, mail("a@x", hello, "b@y", "no@y", "c@y", "later@y", "d@y"),
		"0 relayed 2.0.0 taken by "+path, "1 failed 5.1.1 prog: no@y... User unknown", "2 relayed 2.0.0 taken by "+path,
		"3 pending 4.3.0 prog exited with status 75", "4 pending 4.3.0 prog exited with status 75")
	check(t, tr, mail("a@x", hello, "usage@y"), "0 pending 4.3.0 prog exited with status 64")
	if got := strings.Count(readFile(t, dir+"/out"), "\n"); got != 6 {
		t.Errorf("%d runs, want 6", got)
	}
}

func TestUnXtext(t *testing.T) {
	for in, want := range map[string]string{"": "", "abc": "abc", "a+2Bb+3D": "a+b=", "a+2": "a+2", "a+2b": "a+2b", "+": "+", "env+id=1": "env+id=1"} {
		if got, _ := UnXtext(in); got != want {
			t.Errorf("UnXtext(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNewErrors(t *testing.T) {
	for via, want := range map[string]string{
		"":                        "needs a kind",
		"localhost":               "needs a kind",
		"smtps:@mx.example":       "the user in front of @ is missing",
		"submission:a/b@hub":      "cannot be the name of a file with a password",
		"uucp:x":                  `unknown kind "uucp"`,
		"smtp:localhost":          "is not HOST:PORT",
		"smtp::25":                "is not HOST:PORT",
		"smtp:host:":              "is not HOST:PORT",
		"smtp:host:99999":         "is not a port",
		"smtp://host:25":          "leave the // out",
		"lmtp:host":               "is not HOST:PORT",
		"lmtp://path":             "leave the // out",
		"lmtp:run/lmtp.sock":      "is not an absolute path",
		"maildir:":                "path is missing",
		"maildir:Mail/%u":         "is not an absolute path",
		"maildir:/m/%x":           "%x means nothing",
		"maildir:/m/%":            "a % at the end",
		"pipe:prog":               "is not an absolute path",
		"pipe:/bin/prog --flag":   "arguments are not possible",
		"sendmail:/usr\x00/x":     "NUL",
		"maildir:///srv/mail/%u":  "leave the // out",
		"lmtp:/run/x\x00":         "NUL",
		"sendmail:sendmail":       "is not an absolute path",
		"smtp:[::1]:not-a-number": "is not a port",
	} {
		tr, err := New(via, Options{})
		if err == nil || tr != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%q): %v, want %q", via, err, want)
		}
	}
	for _, via := range []string{"smtp:[::1]:25", "smtp:localhost:smtp", "lmtp:run/l", "maildir:Mail/%u", "sendmail:bin/sendmail"} {
		if _, err := New(via, Options{Home: "/home/x"}); err != nil {
			t.Errorf("New(%q): %v", via, err)
		}
	}
}
