package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net/mail"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// pictures is a mail with a text and an attachment of n lines, that sendmail has no reason to complete.
func pictures(subject string, n int) string {
	return "From: Ana <ana@hub.example>\nTo: bob@camp.example\nSubject: " + subject + "\nMessage-ID: <" + subject + "@hub.example>\n" +
		"Date: Mon, 1 Mar 2027 12:00:00 +0000\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b 1\"\n\n" +
		"--b 1\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße, " + subject + "   \n\n" +
		"--b 1\nContent-Type: image/jpeg\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment;\n filename*=utf-8''sch%C3%B6n.jpg\n\n" +
		strings.Repeat(strings.Repeat("QUJDREVG", 9)+"QUJD\n", n) + "--b 1--\n"
}

// TestSummaryFirst: hub sends a summary to a camp whose readers use Postfix. One answers it as a mail program does, and
// gets the mail as it was, with its DKIM signature whole; others get nothing by the same address.
func TestSummaryFirst(t *testing.T) {
	t.Parallel()
	camp := newSite(t, siteOptions{name: "camp", far: "hub", relayhost: true, mailboxes: []string{"bob@camp.example", "eve@camp.example"}})
	dir, link := shortDir(t), peertest.FreePort(t)
	writeSigningKey(t, filepath.Join(dir, "key.pem"))
	conf := "domain = \"hub.example\"\n[link]\nlisten = [" + toml(link) + "]\n[[dkim]]\ndomain = \"hub.example\"\nselector = \"s\"\nkey = " + toml(filepath.Join(dir, "key.pem")) +
		"\n[[deliver]]\nto = [\"hub.example\"]\nvia = " + toml("maildir:"+dir+"/mail/%u") + "\n"
	hub := newNode(t, "hub", conf)
	hub.knows(camp.node, control.PeerAdd{Carrier: "tcp:" + camp.link})
	camp.knows(hub, control.PeerAdd{Carrier: "tcp:" + link})
	hub.configure(conf + "[[route]]\nto = [\"camp.example\"]\nnode = \"camp\"\nsummary = \"16KiB\"\n")
	camp.configure(camp.conf)
	hub.serve()
	camp.serve()

	whole := pictures("one", 40_000) // 3 MB
	hub.submit(whole, "-f", "ana@hub.example", "-N", "success,failure", "bob@camp.example")
	got := camp.postfix.WaitMail("bob@camp.example", "X-Mochila-Summary: ")
	m, err := mail.ReadMessage(strings.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) > 16<<10 || !strings.Contains(got, "Grüße, one   \n") || !strings.Contains(got, "sch=C3=B6n.jpg (image/jpeg, 2.3 MB)") || m.Header.Get("DKIM-Signature") != "" ||
		m.Header.Get("In-Reply-To") != "<one@hub.example>" || m.Header.Get("Subject") != "one" {
		t.Errorf("the summary, %d bytes:\n%.5000s", len(got), got)
	}
	for _, args := range [][]string{{"queue", "list"}, {"mailq"}, {"trace", m.Header.Get("X-Mochila-Summary")}, {"status"}} {
		if out, err := hub.command(args...).CombinedOutput(); err != nil || !strings.Contains(string(out), "until a reader asks") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	if out, err := hub.command("route", "test", "bob@camp.example").CombinedOutput(); err != nil || !strings.Contains(string(out), "a summary goes ahead") {
		t.Errorf("route test: %v\n%s", err, out)
	}

	to, err := mail.ParseAddress(m.Header.Get("Reply-To"))
	if err != nil {
		t.Fatal(err)
	}
	answer := func(from, text string) {
		t.Helper()
		cmd := camp.postfix.Sendmail("-f", from, to.Address)
		cmd.Stdin = strings.NewReader("From: " + from + "\nTo: " + to.Address + "\nSubject: Re: one\nIn-Reply-To: " + m.Header.Get("Message-ID") + "\n\n" + text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	answer("eve@camp.example", "let me see\n")
	if n := camp.postfix.WaitMail("eve@camp.example", "Action: failed"); !strings.Contains(n, "only those to whom the mail is") {
		t.Errorf("eve is told\n%s", n)
	}
	answer("bob@camp.example", "please\n\n> quoted\n")
	camp.postfix.WaitMails("bob@camp.example", 3) // the summary, the answer, the mail
	full := camp.postfix.WaitMail("bob@camp.example", "sch%C3%B6n.jpg")
	if !strings.HasSuffix(full, whole) {
		t.Errorf("the mail is not as it was: %d bytes of %d\n%.2000s", len(full), len(whole), full)
	}
	if err := hub.verifyDKIM(full); err != nil {
		t.Errorf("its signature: %v", err)
	}
	camp.postfix.WaitMail("bob@camp.example", "read by nobody. To write to t")

	peertest.Await(t, "the report of success", func() bool { return len(box(t, dir+"/mail/ana")) > 0 }, hub.log.String)
	drained(t, hub, camp.node)
	for _, n := range box(t, dir+"/mail/ana") {
		if !strings.Contains(n, "Action: delivered") && !strings.Contains(n, "Action: relayed") {
			t.Errorf("ana is told\n%s", n)
		}
	}
	var metrics bytes.Buffer
	c := hub.client()
	defer c.Close()
	if err := c.Raw(t.Context(), "/metrics", &metrics); err != nil || !strings.Contains(metrics.String(), "mochila_summaries_total 1\n") || !strings.Contains(metrics.String(), "mochila_summaries_released_total 1\n") {
		t.Errorf("metrics: %v\n%s", err, metrics.String())
	}
}

// TestSummaryKilled: kill -9 of both nodes while mail is accepted, asked for and released: each mail has one summary and
// comes once, and nothing is left.
func TestSummaryKilled(t *testing.T) {
	t.Parallel()
	r := random(t)
	dir, stick := shortDir(t), t.TempDir()
	conf := func(name string) string {
		return "domain = \"" + name + ".example\"\n[[deliver]]\nto = [\"" + name + ".example\"]\nvia = " + toml("maildir:"+dir+"/"+name+"/%u") + "\n"
	}
	hub, camp := newNode(t, "hub", conf("hub")), newNode(t, "camp", conf("camp"))
	pair(hub, camp, stick)
	hub.configure(conf("hub") + "[[route]]\nto = [\"camp.example\"]\nnode = \"camp\"\nsummary = \"8KiB\"\n")
	camp.configure(conf("camp") + "[[route]]\nto = [\"hub.example\"]\nnode = \"hub\"\n")
	again := func() { // both may die at any moment
		for _, n := range []*node{hub, camp} {
			if r.IntN(2) == 0 {
				n.kill()
				n.start()
			}
		}
	}
	hub.start()
	camp.start()
	mails := count(6, 60)
	sent := map[string]string{}
	for i := range mails {
		name := fmt.Sprintf("m%03d", i)
		sent[name] = pictures(name, 300)
		hub.submit(sent[name], "-f", "ana@hub.example", "bob@camp.example")
		again()
	}
	inbox := func(what string) map[string][]string { // by subject
		out := map[string][]string{}
		for _, text := range box(t, dir+"/camp/bob") {
			m, err := mail.ReadMessage(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if (m.Header.Get("X-Mochila-Summary") != "") == (what == "summary") {
				out[m.Header.Get("Subject")] = append(out[m.Header.Get("Subject")], text)
			}
		}
		return out
	}
	peertest.Await(t, "all summaries", func() bool { return len(inbox("summary")) == mails }, hub.log.String, camp.log.String)
	if n := len(inbox("mail")); n != 0 {
		t.Errorf("%d mails came though nobody asked", n)
	}
	for _, name := range slices.Sorted(maps.Keys(sent)) {
		m, err := mail.ReadMessage(strings.NewReader(inbox("summary")[name][0]))
		if err != nil {
			t.Fatal(err)
		}
		to, err := mail.ParseAddress(m.Header.Get("Reply-To"))
		if err != nil {
			t.Fatal(err)
		}
		camp.submit("From: bob@camp.example\nSubject: please\n\n", "-f", "bob@camp.example", to.Address)
		again()
	}
	came := func() bool {
		got := inbox("mail")
		for name := range sent {
			if len(got[name]) == 0 {
				return false
			}
		}
		return true
	}
	peertest.Await(t, "all mails", came, hub.log.String, camp.log.String)
	drained(t, hub, camp)
	for name, text := range sent {
		if got := inbox("mail")[name]; len(got) != 1 || !strings.HasSuffix(got[0], text) {
			t.Errorf("%s came %d times", name, len(got))
		}
		if got := inbox("summary")[name]; len(got) != 1 {
			t.Errorf("%s has %d summaries", name, len(got))
		}
	}
	if told := box(t, dir+"/hub/ana"); len(told) != 0 {
		t.Errorf("ana is told %q", told)
	}
}
