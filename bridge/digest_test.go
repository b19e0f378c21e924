package bridge

import (
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	netmail "net/mail"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// TestDigest fails forty mails of one sender at once: she gets a handful of notices and one digest, in which each of the
// others stands whole, also across a restart; another sender gets hers at once.
func TestDigest(t *testing.T) {
	l := newLab(t)
	a := l.node("alpha")
	a.sink.refuse["nobody@alpha.example"] = envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "unknown"}
	for i := range 40 {
		a.submit("ana@alpha.example", "nobody@alpha.example", fmt.Sprintf("Subject: number %d\r\n\r\nbody %d\r\n", i, i))
	}
	a.submit("eve@alpha.example", "nobody@alpha.example", "Subject: hers\r\n\r\nbody\r\n")
	a.deliver()
	a.deliver()
	if n := len(a.sink.notices("ana@alpha.example")); n != digestAfter {
		t.Errorf("%d notices at once, want %d", n, digestAfter)
	}
	if n := len(a.sink.notices("eve@alpha.example")); n != 1 {
		t.Errorf("%d notices for somebody else", n)
	}
	a.reopen()
	l.jump(digestPause+time.Minute, a)
	a.deliver()
	got := a.sink.notices("ana@alpha.example")
	if len(got) != digestAfter+1 {
		t.Fatalf("%d notices in all, want %d", len(got), digestAfter+1)
	}
	said := map[string]int{}
	single := func(text string) {
		d := parseDSN(t, text)
		if f := d.rcpts["rfc822; nobody@alpha.example"]; f.Get("Action") != "failed" || f.Get("Status") != "5.1.1" {
			t.Errorf("a report in the digest: %v", d.rcpts)
		}
		_, subject, _ := strings.Cut(d.parts[2], "Subject: ")
		subject, _, _ = strings.Cut(subject, "\r\n")
		said[subject]++
	}
	for _, n := range got[:digestAfter] {
		single(n)
	}
	m, err := netmail.ReadMessage(strings.NewReader(got[digestAfter]))
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Header.Get("Subject"); s != "Undelivered Mail: 35 reports" {
		t.Errorf("Subject: %s", s)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" {
		t.Fatal(kind, err)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	words, err := r.NextRawPart()
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(words)
	if n := strings.Count(string(text), "<nobody@alpha.example>: 5.1.1 (number "); n != 35 {
		t.Errorf("%d are listed in words:\n%s", n, text)
	}
	inner, err := r.NextRawPart()
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err = mime.ParseMediaType(inner.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/digest" {
		t.Fatal(kind, err)
	}
	for d := multipart.NewReader(inner, params["boundary"]); ; {
		part, err := d.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		one, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		single(string(one) + "\r\n")
	}
	for i := range 40 {
		if n := said[fmt.Sprintf("number %d", i)]; n != 1 {
			t.Errorf("mail %d is told of %d times", i, n)
		}
	}
	mustEmpty(t, a)
}

// TestByNotify tells the sender of a mail that was to be there by a time (RFC 2852, mode N) that it is not, once, and goes
// on; NOTIFY=NEVER keeps that, too, away.
func TestByNotify(t *testing.T) {
	l := newLab(t)
	a, c := l.node("alpha"), l.node("gamma")
	a.knows(c, "dir:none")
	by := func() *envelope.By { return &envelope.By{Deadline: l.clock().Add(time.Hour)} }
	a.send(&envelope.Mail{Sender: "ana@alpha.example", By: by(), Recipients: []envelope.Recipient{{Addr: "bob@gamma.example", Notify: envelope.NotifyFailure}}}, "Subject: a\r\n\r\n")
	a.send(&envelope.Mail{Sender: "ana@alpha.example", By: by(), Recipients: []envelope.Recipient{{Addr: "bob@gamma.example", Notify: envelope.NotifyNever}}}, "Subject: b\r\n\r\n")
	a.send(&envelope.Mail{Sender: "ana@alpha.example", Recipients: to("bob@gamma.example")}, "Subject: c\r\n\r\n")
	for _, step := range []struct {
		after time.Duration
		told  int
	}{{30 * time.Minute, 0}, {31 * time.Minute, 1}, {2 * time.Hour, 1}} {
		l.jump(step.after, a)
		a.deliver()
		if n := told(a, "Status: 4.4.7"); n != step.told || told(a, "") != step.told {
			t.Errorf("%s later: %d notices of %d, want %d", step.after, n, told(a, ""), step.told)
		}
	}
}
