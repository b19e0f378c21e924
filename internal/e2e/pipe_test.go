package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/internal/peertest"
)

// livePair is camp, which calls hub and stays; handlers are for hub's configuration.
func livePair(t *testing.T, handlers string) (camp, hub *node) {
	t.Helper()
	link := peertest.FreePort(t)
	camp, hub = newNode(t, "camp", ""), newNode(t, "hub", fmt.Sprintf("[link]\nlisten = [%q]\n%s", link, handlers))
	camp.knows(hub, control.PeerAdd{Carrier: "tcp:" + link})
	hub.knows(camp, control.PeerAdd{When: "on-call"})
	camp.contacts("hub", func(c *config.Contact) { c.Linger = config.Duration(time.Hour) })
	hub.serve()
	camp.serve()
	return camp, hub
}

// piped is a handler of hub behind a pipe.
func piped(name string, hubDir string, command ...string) string {
	list := []string{toml(program("mochila")), `"--home"`, toml(hubDir), `"pipe"`, `"--answer"`, `"--"`}
	for _, c := range command {
		list = append(list, toml(c))
	}
	return fmt.Sprintf("[[handler]]\nname = %q\nconcurrency = 4\non_failure = \"skip\"\ncommand = [%s]\nallow = [\"camp:default\"]\n", name, strings.Join(list, ", "))
}

// TestPipe: standard input and output of a program at another node, to the last byte, with its status; and each side hears when the
// other is gone.
func TestPipe(t *testing.T) {
	t.Parallel()
	r := random(t)
	camp, hub := livePair(t, "")
	note := filepath.Join(t.TempDir(), "note")
	hub.configure(hubConf(t, hub) + piped("sum", hub.dir, "/bin/sh", "-c", "sha256sum; echo done >&2; exit 7") + piped("echo", hub.dir, "/bin/cat") +
		piped("wait", hub.dir, "/bin/sh", "-c", "trap 'echo hup >"+note+"; exit 1' HUP; echo here; while :; do sleep 0.1; done") +
		piped("gone", hub.dir, "/nonexistent/program") + "[[handler]]\nname = \"plain\"\non_failure = \"skip\"\ncommand = [\"/bin/cat\"]\nallow = [\"camp:default\"]\n")
	hub.post("/v1/reload", nil, nil)

	data := []byte(randomMail(r, count(200<<10, 4<<20)))
	cmd := camp.command("pipe", "hub", "sum")
	cmd.Stdin = bytes.NewReader(data)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(string(out), want) || cmd.ProcessState.ExitCode() != 7 || said.String() != "done\n" {
		t.Errorf("sum: %v, output %q, want %s; it said %q", err, out, want, said.String())
	}
	cmd = camp.command("pipe", "hub", "echo")
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, data) {
		t.Errorf("echo: %v, %d bytes came back of %d", err, len(out), len(data))
	}
	for handler, want := range map[string]string{"gone": "/nonexistent/program", "plain": "no end of a pipe", "nothing": "nothing"} {
		if out, err := camp.command("pipe", "hub", handler).CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s", handler, err, out)
		}
	}

	// Nobody holds this end: a program there that only waits for input is hung up on, not left waiting.
	cmd = camp.command("run", "hub", "--wait", "--no-order", "--", "echo")
	cmd.Stdin = strings.NewReader("mochila-pipe 1 " + strings.Repeat("A", 26) + "\n")
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 128+int(syscall.SIGHUP) {
		t.Errorf("a pipe without a caller: status %d: %s", cmd.ProcessState.ExitCode(), out)
	}

	// Who called is killed: the program there is hung up on.
	cmd = camp.command("pipe", "hub", "wait")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "here\n" {
		t.Fatalf("the program says %q, %v\n%s", line, err, tail(hub.log.String()))
	}
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
	peertest.Await(t, "the program to be hung up on", func() bool { b, _ := os.ReadFile(note); return string(b) == "hup\n" }, hub.log.String, camp.log.String)
	drained(t, camp, hub)
}

// hubConf is the [link] part of a node's configuration.
func hubConf(t *testing.T, hub *node) string {
	t.Helper()
	b, err := os.ReadFile(hub.home.Config())
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "[limits]\nreserve = \"1MiB\"\n", "")
}

// TestUUCPOverPipe: two Taylor UUCP sites that know nothing of mochila, with mochila as the line of their uucico: files and commands
// both ways in one call.
func TestUUCPOverPipe(t *testing.T) {
	t.Parallel()
	r := random(t)
	camp, hub := livePair(t, "")
	u := peertest.StartUUCP(t, [2]string{"camp", "hub"}, "remote-send /\nremote-receive /\nlocal-send /\nlocal-receive /\nprotocol-parameter i timeout 60\ncommands note\n",
		map[string]map[string]string{"camp": {"note": "cat >>" + os.DevNull}, "hub": {"note": `cat >"$0.got"`}})
	hub.configure(hubConf(t, hub) + contribFile(t, "uucp/handler.toml", `"/usr/local/bin/mochila", `, toml(program("mochila"))+`, "--home", `+toml(hub.dir)+`, `,
		`"/usr/sbin/uucico"`, `"/usr/sbin/uucico", "-I", `+toml(u.Config("hub"))))
	hub.post("/v1/reload", nil, nil)
	camp.openTo()
	port := contribFile(t, "uucp/port", "/usr/local/bin/mochila", program("mochila")+" --home "+camp.dir)
	u.Port("camp", strings.Replace(port, "\nport mochila\n", "\nport wire\n", 1))

	there, back := []byte(randomMail(r, 300_000)), []byte(randomMail(r, 200_000))
	queue := func(site, far, name string, data []byte) (target string) {
		t.Helper()
		source := filepath.Join(u.Dir, site, "pub", name)
		if err := os.WriteFile(source, data, 0o644); err != nil {
			t.Fatal(err)
		}
		target = filepath.Join(u.Dir, far, "pub", name)
		if out, err := u.Command(site, "uucp", "-r", "-C", source, far+"!"+target).CombinedOutput(); err != nil {
			t.Fatalf("uucp at %s: %v: %s", site, err, out)
		}
		return target
	}
	goes, comes := queue("camp", "hub", "there", there), queue("hub", "camp", "back", back)
	cmd := u.Command("camp", "uux", "-r", "-n", "-", "hub!note")
	cmd.Stdin = strings.NewReader("a command\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("uux: %v: %s", err, out)
	}
	said := ""
	has := func(file string, want []byte) bool { b, _ := os.ReadFile(file); return bytes.Equal(b, want) }
	peertest.Await(t, "files at both sites", func() bool {
		if !has(goes, there) || !has(comes, back) {
			said = u.Call()
		}
		return has(goes, there) && has(comes, back)
	}, camp.log.String, hub.log.String, func() string { return said })
	u.Execute()
	if b, err := os.ReadFile(filepath.Join(u.Bin("hub"), "note.got")); string(b) != "a command\n" {
		t.Errorf("the command got %q, %v", b, err)
	}
}

// TestNNCPOverPipe: nncp-call at one node, nncp-daemon at the other, and mochila in between.
func TestNNCPOverPipe(t *testing.T) {
	t.Parallel()
	r := random(t)
	camp, hub := livePair(t, "")
	line := fmt.Sprintf("      addrs: { mochila: \"|%s --home %s pipe hub nncp-daemon\" }", program("mochila"), camp.dir)
	incoming := t.TempDir()
	n := peertest.StartNNCP(t, map[string]string{"a": line + "\n      incoming: " + toml(incoming), "b": "      incoming: " + toml(incoming)})
	hub.configure(hubConf(t, hub) + contribFile(t, "nncp/pipe-handler.toml", `"/usr/local/bin/mochila", `, toml(program("mochila"))+`, "--home", `+toml(hub.dir)+`, `,
		`"-quiet", "-ucspi"`, `"-cfg", `+toml(n.Config("b"))+`, "-quiet", "-ucspi"`))
	hub.post("/v1/reload", nil, nil)
	for i, name := range []string{"a", "b"} {
		file := filepath.Join(t.TempDir(), "from-"+name)
		if err := os.WriteFile(file, []byte(randomMail(r, 150_000)), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := n.Command(name, "file", file, []string{"b", "a"}[i]+":").CombinedOutput(); err != nil {
			t.Fatalf("nncp-file: %v: %s", err, out)
		}
	}
	said := ""
	peertest.Await(t, "packets at both nodes", func() bool {
		if len(n.Packets("a", "rx")) == 1 && len(n.Packets("b", "rx")) == 1 {
			return true
		}
		out, err := exec.Command("nncp-call", "-cfg", n.Config("a"), "-noprogress", "-quiet", "-onlinedeadline", "10", "b").CombinedOutput()
		said = fmt.Sprintf("%v: %s", err, out)
		return len(n.Packets("a", "rx")) == 1 && len(n.Packets("b", "rx")) == 1
	}, camp.log.String, hub.log.String, func() string { return said })
	for _, name := range []string{"a", "b"} {
		if out, err := n.Command(name, "toss", "-seen").CombinedOutput(); err != nil {
			t.Errorf("nncp-toss: %v: %s", err, out)
		}
	}
	for _, name := range []string{"from-a", "from-b"} {
		if b, err := os.ReadFile(filepath.Join(incoming, name)); err != nil || len(b) < 150_000 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}
