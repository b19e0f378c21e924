package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// nobody is the uid and gid of the user of that name.
const nobody = 65534

// as runs a program as another user, and returns what it says and its exit status.
func (n *node) as(uid uint32, stdin, name string, args ...string) (stdout, stderr string, status int) {
	n.t.Helper()
	cmd := exec.Command(program(name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"MOCHILA_HOME=" + n.dir, "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// open lets every local user reach the node's submission socket, as a packaged node does.
func (n *node) open() {
	n.t.Helper()
	for _, d := range []string{n.dir, n.home.RunDir} {
		if err := os.Chmod(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
}

// camp and hub, where hub runs jobs, over a folder.
func jobPair(t *testing.T, campConf, hubConf string) (camp, hub *node) {
	t.Helper()
	camp, hub = newNode(t, "camp", ""), newNode(t, "hub", "")
	pair(camp, hub, t.TempDir())
	camp.configure("name = \"camp\"\n" + campConf)
	hub.configure("name = \"hub\"\n" + hubConf)
	return camp, hub
}

const echoHandler = `
[[handler]]
name = "echo"
command = ["/bin/sh", "-c", "cat; echo to $MOCHILA_CHANNEL number $MOCHILA_SEQ; echo an error >&2"]
allow = ["camp:*"]

[[handler]]
name = "secret"
command = ["/bin/true"]
allow = ["camp:*"]
`

// TestJobsOfOrdinaryUsers: a user in [jobs] submit makes jobs with mochila run and by mail, and nobody else does.
func TestJobsOfOrdinaryUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can act as another user")
	}
	t.Parallel()
	boxes := t.TempDir()
	camp, hub := jobPair(t, `
[jobs]
submit = ["nobody=hub:*:echo"]
[[deliver]]
to = ["camp.mochila"]
via = "maildir:`+boxes+`/%u"
`, echoHandler)
	camp.serve()
	hub.serve()
	camp.open()

	out, errs, code := camp.as(nobody, "hello\n", "mochila", "run", "hub", "--channel", "a", "--wait", "--", "echo")
	if out != "hello\nto a number 1\n" || errs != "an error\n" || code != 0 {
		t.Errorf("run: got %q, %q, %d", out, errs, code)
	}
	if _, errs, code := camp.as(nobody, "", "mochila", "run", "hub", "--", "secret"); code != control.ExitDenied || !strings.Contains(errs, "nobody may not make jobs for hub:default:secret") {
		t.Errorf("a handler that was not granted: %q, %d", errs, code)
	}
	if _, errs, code := camp.as(nobody, "", "mochila", "run", "hub", "--nop"); code != control.ExitDenied {
		t.Errorf("a nop: %q, %d", errs, code)
	}
	if _, errs, code := camp.as(12345, "", "mochila", "run", "hub", "--", "echo"); code != control.ExitDenied || !strings.Contains(errs, "uid12345 may not") {
		t.Errorf("another user: %q, %d", errs, code)
	}
	if _, errs, code := camp.as(nobody, "", "mochila", "status"); code != control.ExitDenied {
		t.Errorf("status by a user: %q, %d", errs, code)
	}

	// others' jobs are none of theirs
	var r control.RunReply
	c := camp.client()
	defer c.Close()
	if err := c.Upload(t.Context(), "/v1/run", strings.NewReader(`{"nodes":["hub"],"channel":"root","handler":"echo"}`+"\nsecret words"), &r); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := camp.as(nobody, "", "mochila", "jobs", "show", r.Jobs[0].ID, "--stdin"); code != control.ExitData || strings.Contains(errs, "secret") {
		t.Errorf("the job of another: %q, %d", errs, code)
	}
	if _, _, code := camp.as(nobody, "", "mochila", "jobs", "cancel", r.Jobs[0].ID); code != control.ExitData {
		t.Errorf("cancel the job of another: %d", code)
	}
	if _, _, code := camp.as(nobody, "", "mochila", "jobs", "pause", "hub:a"); code != control.ExitDenied {
		t.Errorf("pause a channel: %d", code)
	}
	out, _, code = camp.as(nobody, "", "mochila", "jobs", "list", "--ended", "--json")
	var it control.JobItem
	if err := json.Unmarshal([]byte(out), &it); err != nil || code != 0 || it.Channel != "a" || it.State != "done" {
		t.Errorf("own jobs: %q, %d, %v", out, code, err)
	}

	// by mail
	mail := "From: nobody@camp.mochila\nSubject: please\nMessage-ID: <1@camp>\n\nby mail\n"
	if out, errs, code := camp.as(nobody, mail, "sendmail", "-f", "nobody@camp.mochila", "echo+post@run.hub.mochila"); code != 0 {
		t.Fatalf("sendmail: %q %q %d", out, errs, code)
	}
	if _, errs, code := camp.as(nobody, mail, "sendmail", "secret+post@run.hub.mochila"); code != control.ExitDenied || !strings.Contains(errs, "[jobs] submit") {
		t.Errorf("sendmail to a handler that was not granted: %q, %d", errs, code)
	}
	if _, errs, code := camp.as(12345, mail, "sendmail", "echo+post@run.hub.mochila"); code != control.ExitDenied {
		t.Errorf("sendmail of another user: %q, %d", errs, code)
	}
	var got map[string]string
	peertest.Await(t, "the reply", func() bool { got = box(t, filepath.Join(boxes, "nobody")); return len(got) == 1 }, camp.log.String)
	for _, m := range got {
		for _, want := range []string{"Subject: Re: please\n", "In-Reply-To: <1@camp>\n", "hub:post number 1): done, exit status 0.", "by mail\nto post number 1\n", "an error\n"} {
			if !strings.Contains(m, want) {
				t.Errorf("no %q in the reply:\n%s", want, m)
			}
		}
	}
}

// TestOrdersInTheMaildrop: while no daemon runs, sendmail leaves a mail to a job in the maildrop; the next start takes it,
// with the owner of the file as its maker, and bounces what that one may not do.
func TestOrdersInTheMaildrop(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can act as another user")
	}
	t.Parallel()
	boxes := t.TempDir()
	camp, hub := jobPair(t, `
[jobs]
submit = ["nobody"]
[[deliver]]
to = ["camp.mochila"]
via = "maildir:`+boxes+`/%u"
`, echoHandler)
	hub.serve()
	camp.serve() // makes the maildrop
	camp.open()
	camp.shutdown()
	for _, d := range []string{camp.home.SpoolDir} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	mail := "Subject: x\n\nin the drop\n"
	for _, uid := range []uint32{nobody, 12345} {
		if _, errs, code := camp.as(uid, mail, "sendmail", "-f", "user@camp.mochila", "echo@run.hub.mochila"); code != 0 {
			t.Fatalf("uid %d: %q, %d", uid, errs, code)
		}
	}
	camp.serve()
	var got map[string]string
	peertest.Await(t, "the reply and the bounce", func() bool { got = box(t, filepath.Join(boxes, "user")); return len(got) == 2 }, camp.log.String)
	all := ""
	for _, m := range got {
		all += m
	}
	for _, want := range []string{"in the drop\nto default number 1\n", "no job for node hub", "Status: 5.7.1"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in:\n%s", want, all)
		}
	}
}

// TestJobsByAuth: a client that has authenticated under a name of [jobs] submit makes jobs by mail; one that only comes from a
// network that may relay does not.
func TestJobsByAuth(t *testing.T) {
	t.Parallel()
	boxes, port := t.TempDir(), peertest.FreePort(t)
	camp, hub := jobPair(t, `
[smtp]
listen = ["`+port+`"]
[jobs]
submit = ["ana=hub:*:echo"]
[[deliver]]
to = ["camp.mochila"]
via = "maildir:`+boxes+`/%u"
`, echoHandler)
	camp.serve()
	hub.serve()
	camp.post("/v1/users", control.User{Name: "ana", Password: "open sesame"}, nil)
	talk := func(login bool) *wire {
		w, err := dial(port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		w.want(t, "EHLO c", "250")
		if login {
			w.want(t, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00ana\x00open sesame")), "235")
		}
		w.want(t, "MAIL FROM:<ana@camp.mochila>", "250")
		return w
	}
	w := talk(false)
	w.want(t, "RCPT TO:<echo+a@run.hub.mochila>", "550 5.7.1")
	w = talk(true)
	w.want(t, "RCPT TO:<secret+a@run.hub.mochila>", "550 5.7.1")
	w.want(t, "RCPT TO:<echo+a@run.shore.mochila>", "550 5.1.2")
	w.want(t, "RCPT TO:<echo+a@run.hub.mochila>", "250")
	w.want(t, "DATA", "354")
	if err := w.content("Subject: job\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n\r\nplease run\r\n--B\r\n" +
		"Content-Disposition: attachment; filename=x\r\nContent-Transfer-Encoding: base64\r\n\r\nZnJvbSB0aGUgYXR0YWNobWVudAo=\r\n--B--\r\n"); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	peertest.Await(t, "the reply", func() bool { got = box(t, filepath.Join(boxes, "ana")); return len(got) == 1 }, camp.log.String)
	for _, m := range got {
		if !strings.Contains(m, "from the attachment\nto a number 1\n") || !strings.Contains(m, "Auto-Submitted: auto-replied\n") {
			t.Errorf("the reply:\n%s", m)
		}
	}
}
