package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestFullDisk: disks that are really full, under the spool, the stick, the Maildir. It runs in a mount name space of its
// own, where small disks cost nothing and vanish with it.
func TestFullDisk(t *testing.T) {
	if os.Getenv(insideEnv) == "" {
		inNameSpace(t)
		return
	}
	t.Run("reserve", fullReserve)
	t.Run("last byte", fullToTheLastByte)
	t.Run("destination", fullDestination)
	t.Run("stick", fullStick)
	t.Run("maildir", fullMaildir)
}

// inNameSpace runs the calling test again, in a name space of its own.
func inNameSpace(t *testing.T) {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("SKIPPED LOUDLY: unshare is not installed: nothing was tried on a full disk")
	}
	flags := "-m"
	if os.Geteuid() != 0 {
		flags = "-Urm"
	}
	if out, err := exec.Command(unshare, flags, "true").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED LOUDLY: no name space for a small disk (%v: %s): nothing was tried on a full disk", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(unshare, flags, self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+bin)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	switch {
	case err != nil:
		t.Fatal(err)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		t.Skip("SKIPPED LOUDLY: there, as it says above")
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")):
		t.Fatal("it did not run there")
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, "--- SKIP: ") {
			t.Run("a part", func(t *testing.T) { t.Skip(line) }) // or nobody would hear of it
		}
	}
}

// disk is a small one.
type disk struct {
	t   *testing.T
	dir string
}

func newDisk(t *testing.T, size string) *disk {
	t.Helper()
	dir := shortDir(t)
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return &disk{t, dir}
}

func (d *disk) free() int64 {
	d.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves so many bytes; others may write meanwhile.
func (d *disk) fill(left int64) {
	d.t.Helper()
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	zeros := make([]byte, 64<<10)
	for d.free() > left {
		_, err := f.Write(zeros[:min(int64(len(zeros)), max(d.free()-left, 1))])
		if errors.Is(err, syscall.ENOSPC) {
			return
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

// empty takes the filler away.
func (d *disk) empty() {
	d.t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		d.t.Fatal(err)
	}
}

// campAndHub are two nodes over a folder, at these homes. What hub gets goes into a Maildir, what camp gets too.
func campAndHub(t *testing.T, campHome, hubHome, stick, smtp, mail, limits string) (camp, hub *node) {
	t.Helper()
	conf := func(name, listen string) string {
		return fmt.Sprintf("domain = %q\n[smtp]\nlisten = [%s]\n[[deliver]]\nto = [%q]\nvia = %q\n[limits]\n%s", name+".example", listen, name+".example", "maildir:"+mail+"/"+name, limits)
	}
	camp = nodeAt(t, "camp", campHome, conf("camp", toml(smtp)))
	hub = nodeAt(t, "hub", hubHome, conf("hub", ""))
	camp.knows(hub, control.PeerAdd{Carrier: "dir:" + stick, Routes: []string{"hub.example"}})
	hub.knows(camp, control.PeerAdd{Carrier: "dir:" + stick, Routes: []string{"camp.example"}})
	return camp, hub
}

// fullReserve: when mail has filled the disk down to the reserve, new mail hears 452 at MAIL, receipts are taken still,
// and space makes it go on.
func fullReserve(t *testing.T) {
	d, stick, mail, smtp := newDisk(t, "80m"), t.TempDir(), t.TempDir(), peertest.FreePort(t)
	camp, hub := campAndHub(t, filepath.Join(d.dir, "camp"), shortDir(t), stick, smtp, mail, "reserve = \"30MiB\"\n")
	camp.start()
	for i := range 5 {
		if err := send(smtp, fmt.Sprintf("Subject: before %d\r\n\r\n", i), "<eve@camp.example>", "<ana@hub.example>"); err != nil {
			t.Fatal(err)
		}
	}
	d.fill(25 << 20)

	w, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.say("EHLO client.test", "250"))
	must(w.say("MAIL FROM:<eve@camp.example>", "452 4.3.1"))
	if out, err := camp.sendmail(strings.NewReader("Subject: by sendmail\n\n"), "-f", "eve@camp.example", "ana@hub.example"); err == nil {
		t.Logf("sendmail on a full disk takes the mail: %s", out)
	} else if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 75 {
		t.Errorf("sendmail on a full disk: %v: %s, want exit status 75", err, out)
	} else {
		t.Logf("sendmail on a full disk: %v: %s", err, out)
	}
	var st control.Status
	camp.get("/v1/status", &st)
	t.Logf("status: %+v", st.Spool)

	hub.start()
	peertest.Await(t, "the mails at hub", func() bool { return len(box(t, filepath.Join(mail, "hub"))) >= 5 }, camp.log.String, hub.log.String)
	// their receipts find room at camp
	drained(t, hub)
	peertest.Await(t, "receipts at camp, whose disk is full", func() bool { return camp.queued() == 0 }, camp.queue, camp.log.String)
	must(w.say("RSET", "250"))
	must(w.say("MAIL FROM:<eve@camp.example>", "452 4.3.1"))

	d.empty()
	must(w.say("RSET", "250"))
	must(w.envelope("<eve@camp.example>", "<ana@hub.example>"))
	must(w.content("Subject: after\r\n\r\n"))
	drained(t, camp, hub)
	for _, m := range box(t, filepath.Join(mail, "hub")) {
		if strings.Contains(m, "Subject: by sendmail") {
			return // it was put aside, and taken later
		}
	}
	if n := len(box(t, filepath.Join(mail, "hub"))); n != 6 {
		t.Errorf("%d mails at hub, want 6", n)
	}
}

// fullToTheLastByte: somebody else fills the disk of the spool, again and again, while mail flows. Every answer is
// 250 or a temporary one, and what was answered 250 comes out once.
func fullToTheLastByte(t *testing.T) {
	r := random(t)
	d, stick, mail, smtp := newDisk(t, "80m"), t.TempDir(), t.TempDir(), peertest.FreePort(t)
	camp, hub := campAndHub(t, filepath.Join(d.dir, "camp"), shortDir(t), stick, smtp, mail, "reserve = \"256KiB\"\nretry_min = \"1s\"\nretry_max = \"1s\"\n")
	camp.start()
	hub.start()
	l := newLoad(smtp, "ana@hub.example")
	l.full = true
	l.start(4, r)
	rounds := count(5, 50)
	for k := range rounds {
		l.more(20)
		d.fill(0)
		l.refusals(10)
		if k%2 == 1 { // a restart on a full disk
			camp.kill()
			camp.launch()
			peertest.Await(t, "camp to start on a full disk", func() bool {
				select {
				case <-camp.exited:
					return true
				default:
				}
				return camp.answers()
			}, camp.log.String)
			select {
			case <-camp.exited:
				t.Errorf("it does not start on a full disk: %s", tail(camp.log.String()))
				d.empty()
				camp.start()
				continue
			default:
			}
		}
		d.empty()
	}
	l.more(20)
	l.end()
	t.Logf("%d rounds, %d refusals", rounds, l.refused)
	drained(t, camp, hub)
	l.verify(t, inBox(t, filepath.Join(mail, "hub")), nil)
	if q := quarantined(camp) + quarantined(hub); q != 0 {
		t.Errorf("%d items in quarantine", q)
	}
}

// quarantined is how much a node has put into quarantine.
func quarantined(n *node) int {
	n.t.Helper()
	var list []control.QuarantineItem
	n.get("/v1/quarantine", &list)
	return len(list)
}

// fullDestination: a node whose disk is full takes nothing from the stick, leaves it there, and takes it when there is
// room; receipts for its own mail it takes all the time.
func fullDestination(t *testing.T) {
	d, stick, mail, smtp := newDisk(t, "80m"), t.TempDir(), t.TempDir(), peertest.FreePort(t)
	camp, hub := campAndHub(t, shortDir(t), filepath.Join(d.dir, "hub"), stick, smtp, mail, "reserve = \"30MiB\"\n")
	hub.submit("Subject: from hub\n\n", "-f", "ana@hub.example", "eve@camp.example")
	if out, err := hub.command("sync").CombinedOutput(); err != nil {
		t.Fatalf("sync: %v: %s", err, out)
	}
	camp.start()
	peertest.Await(t, "hub's mail at camp", func() bool { return len(box(t, filepath.Join(mail, "camp"))) == 1 }, camp.log.String)
	d.fill(25 << 20)
	packets := func() int {
		all, err := filepath.Glob(filepath.Join(stick, "mochila", "*", "*", "[a-z2-7]*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := packets()
	for i := range 5 {
		if err := send(smtp, fmt.Sprintf("Subject: %d\r\n\r\n", i), "<eve@camp.example>", "<ana@hub.example>"); err != nil {
			t.Fatal(err)
		}
	}
	peertest.Await(t, "camp to write", func() bool { return strings.Contains(camp.queue(), "no receipt") && packets() > before }, camp.queue, camp.log.String)
	// Receipts alone fit on the full disk, and may lie there before the mail.
	peertest.Await(t, "sync to say that the disk is full", func() bool {
		out, err := hub.command("sync").CombinedOutput()
		return err != nil && strings.Contains(string(out), "\nhint: make room on the disk of ")
	}, camp.queue, camp.log.String)
	if n := len(box(t, filepath.Join(mail, "hub"))); n != 0 {
		t.Errorf("%d mails were delivered at hub, whose disk is full", n)
	}
	// The receipt for hub's own mail may have been written a moment after the first of camp's packets.
	peertest.Await(t, "the receipt that lies on the stick", func() bool {
		hub.command("sync").Run()
		return hub.queued() == 0
	}, hub.queue, camp.log.String)
	d.empty()
	hub.start()
	drained(t, camp, hub)
	if n := len(box(t, filepath.Join(mail, "hub"))); n != 5 {
		t.Errorf("%d mails at hub, want 5", n)
	}
}

// noise is a mail of about so many bytes that does not compress.
func noise(t *testing.T, name string, size int) string {
	t.Helper()
	f, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw := make([]byte, size/2)
	if _, err := io.ReadFull(f, raw); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: %s\r\n\r\n", name)
	for len(raw) > 0 {
		n := min(len(raw), 38)
		fmt.Fprintf(&b, "%x\r\n", raw[:n])
		raw = raw[n:]
	}
	return b.String()
}

// fullStick: what does not fit on the stick is named, and goes with the next trip.
func fullStick(t *testing.T) {
	d, mail, smtp := newDisk(t, "3m"), t.TempDir(), peertest.FreePort(t)
	camp, hub := campAndHub(t, shortDir(t), shortDir(t), d.dir, smtp, mail, "bundle = \"100KiB\"\n")
	sent := map[string]string{}
	for i := range 12 {
		name := fmt.Sprintf("noise %d", i)
		sent[name] = noise(t, name, 900_000) // half of it on the stick
		camp.submit(strings.ReplaceAll(sent[name], "\r\n", "\n"), "-i", "-f", "eve@camp.example", "ana@hub.example")
	}
	trips, full := 0, 0
	for ; trips < 20 && len(box(t, filepath.Join(mail, "hub"))) < len(sent); trips++ {
		out, err := camp.command("sync").CombinedOutput()
		if err != nil {
			full++
			exit := new(exec.ExitError)
			if !errors.As(err, &exit) || !strings.Contains(string(out), "no space left") || !strings.Contains(string(out), "\nhint: ") || !strings.Contains(string(out), "Safe to remove.") {
				t.Errorf("sync on a full stick says %v: %s", err, out)
			}
			t.Logf("sync on a full stick: %v: %s", err, out)
		}
		if out, err := hub.command("sync").CombinedOutput(); err != nil {
			t.Logf("sync at hub: %v: %s", err, out)
		}
	}
	if full == 0 {
		t.Error("the stick was never full")
	}
	t.Logf("%d trips, %d with a full stick", trips, full)
	for range 3 {
		camp.command("sync").Run()
		hub.command("sync").Run()
	}
	drained(t, camp, hub)
	got := box(t, filepath.Join(mail, "hub"))
	for name, text := range sent {
		n := 0
		for _, m := range got {
			if strings.Contains(m, "Subject: "+name+"\n") && strings.HasSuffix(m, strings.ReplaceAll(text[strings.Index(text, "\r\n\r\n"):], "\r\n", "\n")) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s came %d times", name, n)
		}
	}
	err := filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.HasPrefix(e.Name(), ".") {
			t.Errorf("a temporary file is left on the stick: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fullMaildir: a full disk under the mailboxes is a temporary failure; nothing appears in part.
func fullMaildir(t *testing.T) {
	d, smtp := newDisk(t, "2m"), peertest.FreePort(t)
	n := newNode(t, "camp", mailhouse(smtp, d.dir))
	n.serve()
	d.fill(64 << 10)
	text := noise(t, "too much", 300_000)
	if err := send(smtp, text, "<eve@camp.example>", "<ana@camp.example>"); err != nil {
		t.Fatal(err)
	}
	peertest.Await(t, "a deferred delivery", func() bool { return strings.Contains(n.log.String(), "status=deferred") }, n.log.String)
	if !strings.Contains(n.log.String(), "dsn=4.3.1") {
		t.Errorf("the reason is not that of a full disk: %s", n.log)
	}
	if mails := box(t, filepath.Join(d.dir, "ana")); len(mails) != 0 {
		t.Errorf("%d mails in a full Maildir", len(mails))
	}
	d.empty()
	n.post("/v1/flush", nil, nil)
	drained(t, n)
	mails := box(t, filepath.Join(d.dir, "ana"))
	if len(mails) != 1 {
		t.Fatalf("%d mails, want 1", len(mails))
	}
	for _, m := range mails {
		if !unchanged([]byte(m), text) {
			t.Error("the mail is changed")
		}
	}
	if left, err := os.ReadDir(filepath.Join(d.dir, "ana", "tmp")); err != nil || len(left) != 0 {
		t.Errorf("%d files left in tmp, %v", len(left), err)
	}
}
