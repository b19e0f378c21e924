package e2e

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// asNobody runs the sendmail program as another user, and returns its exit status and output.
func (n *node) asNobody(mail string, args ...string) (int, string) {
	n.t.Helper()
	cmd := exec.Command(program("sendmail"), args...)
	cmd.Env = []string{"MOCHILA_HOME=" + n.dir}
	cmd.Stdin = strings.NewReader(mail)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestLocalUsers: what one local user has in the queue is bounded, over the socket and over the maildrop; -bv explains a
// way and sends nothing; -qR makes what goes to one site due, and nothing else.
func TestLocalUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED LOUDLY: only root can be somebody else: no quota was tried")
	}
	dir := shortDir(t)
	n := nodeAt(t, "camp", dir, "domain = \"camp.example\"\n[[deliver]]\nto = [\"away.example\"]\nvia = \"smtp:127.0.0.1:1\"\n[[deliver]]\nto = [\"gone.example\"]\nvia = \"lmtp:127.0.0.1:1\"\n[limits]\nuser_count = 2\nretry_min = \"1h\"\nretry_max = \"2h\"\n")
	for _, d := range []string{dir, dir + "/run", dir + "/spool"} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	hub := newNode(t, "hub", "")
	n.serve()
	n.knows(hub, control.PeerAdd{Carrier: "dir:" + dir + "/none", Routes: []string{"hub.example"}})
	const mail = "Subject: x\n\nx\n"
	for i, want := range []int{0, 0, 75} {
		if code, out := n.asNobody(mail, "a@away.example"); code != want || code == 75 && !strings.Contains(out, "too much mail in the queue") {
			t.Errorf("mail %d: exit %d, %s", i, code, out)
		}
	}
	n.submit(mail, "a@gone.example") // root has no quota

	if code, out := n.asNobody("", "-bv", "bob@hub.example", "a@away.example"); code != 0 ||
		!strings.Contains(out, "bob@hub.example: to node hub, next hop hub, next contact over dir:"+dir+"/none") ||
		!strings.Contains(out, "a@away.example: delivered here via smtp:127.0.0.1:1\n") {
		t.Errorf("-bv: exit %d, %s", code, out)
	}
	if code, out := n.asNobody("", "-bv", "bob@nowhere.example"); code == 0 || !strings.Contains(out, "bob@nowhere.example ... 5") {
		t.Errorf("-bv of nobody: exit %d, %s", code, out)
	}
	if got := n.queued(); got != 3 {
		t.Errorf("%d mails are queued:\n%s", got, n.queue())
	}

	attempts := func(what string) int { return strings.Count(n.log.String(), "to=<"+what+">, relay=") }
	peertest.Await(t, "the first attempts", func() bool { return attempts("a@away.example") >= 1 && attempts("a@gone.example") >= 1 }, n.log.String)
	away, gone := attempts("a@away.example"), attempts("a@gone.example")
	if code, out := n.asNobody("", "-qRgone.example"); code != 0 {
		t.Errorf("-qR: exit %d, %s", code, out)
	}
	peertest.Await(t, "another attempt", func() bool { return attempts("a@gone.example") > gone }, n.log.String)
	if now := attempts("a@away.example"); now != away {
		t.Errorf("-qR of another site made %d attempts", now-away)
	}

	n.shutdown() // over the maildrop, the daemon counts when it takes
	for range 2 {
		if code, out := n.asNobody(mail, "a@away.example"); code != 0 {
			t.Errorf("without a daemon: exit %d, %s", code, out)
		}
	}
	n.serve()
	peertest.Await(t, "the maildrop to be read", func() bool { return strings.Contains(n.log.String(), "over the quota") }, n.log.String)
	if got := n.queued(); got != 3 {
		t.Errorf("%d mails are queued after a look at the maildrop:\n%s", got, n.queue())
	}
}
