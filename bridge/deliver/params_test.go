package deliver

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

var everything = []string{"PIPELINING", "SIZE", "8BITMIME", "DSN", "SMTPUTF8", "REQUIRETLS", "AUTH PLAIN", "MT-PRIORITY MIXER",
	"DELIVERBY", "XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT"}

func fullMail() *Message {
	m := mail(`"a b"@x`, "Subject: \u00e9\n\nh\u00e9\n", "b@y", `"q> NOTIFY=NEVER "@z`)
	e, auth := m.Env, "<>"
	e.Priority = -3
	e.Mail.Ret, e.Mail.EnvID = "HDRS", "id+2B1"
	e.Mail.SMTPUTF8, e.Mail.RequireTLS, e.Mail.Body = true, true, "8BITMIME"
	e.Mail.Auth = &auth
	e.Mail.By = &envelope.By{Deadline: time.Now().Add(time.Hour), Trace: true}
	e.Mail.Recipients[0].Notify = envelope.NotifySuccess | envelope.NotifyFailure | envelope.NotifyDelay
	e.Mail.Recipients[0].ORcpt = "rfc822;B+2Bx@y"
	e.Mail.Recipients[1].Notify = envelope.NotifyNever
	e.Mail.Client = envelope.Client{
		Proto: "ESMTP", Name: "mx.far.example", Addr: "2001:db8::1", Port: "4711", Helo: "far (evil)\r\nQUIT", Ident: "4ABC+",
		Source: "REMOTE",
	}
	return m
}

func TestAllParameters(t *testing.T) {
	f := &fake{ext: everything, hold: true}
	tr := open(t, f.start(t), Options{})
	check(t, tr, fullMail(), "0 relayed 250 2.0.0 queued as 1 [dsn]", "1 delivered 250 2.0.0 queued as 1 [dsn]")
	f.checkCommands(t,
		"XFORWARD NAME=mx.far.example ADDR=IPV6:2001:db8::1 PORT=4711",
		"XFORWARD PROTO=ESMTP HELO=far+20(evil)+0D+0AQUIT IDENT=4ABC+2B SOURCE=REMOTE",
		`MAIL FROM:<"a b"@x> SIZE=20 BODY=8BITMIME SMTPUTF8 REQUIRETLS RET=HDRS ENVID=id+2B1 AUTH=<> MT-PRIORITY=-3 BY=3600;NT`,
		"RCPT TO:<b@y> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;B+2Bx@y",
		`RCPT TO:<"q> NOTIFY=NEVER "@z> NOTIFY=NEVER`,
		"DATA")
}

func TestParametersNotOffered(t *testing.T) {
	f := &fake{}
	tr := open(t, f.start(t), Options{})
	m := fullMail()
	check(t, tr, m, "0 failed 5.7.30 REQUIRETLS was asked for, and the server does not offer it",
		"1 failed 5.7.30 REQUIRETLS was asked for, and the server does not offer it")
	m.Env.Mail.RequireTLS = false
	check(t, tr, m, "0 failed 5.6.9 the header needs SMTPUTF8, and the server does not offer it",
		"1 failed 5.6.9 the header needs SMTPUTF8, and the server does not offer it")
	f.checkCommands(t)
	m.Env.Mail.SMTPUTF8 = false // raw 8-bit is sent as it is
	check(t, tr, m, "0 relayed 250 2.0.0 queued as 1", "1 delivered 250 2.0.0 queued as 1")
	f.checkCommands(t, `MAIL FROM:<"a b"@x>`, "RCPT TO:<b@y>", `RCPT TO:<"q> NOTIFY=NEVER "@z>`, "DATA")
	f.checkBodies(t, "Subject: \u00e9\r\n\r\nh\u00e9\r\n")

	g := &fake{lmtp: true}
	tr = open(t, g.startUnix(t), Options{})
	m = mail("a@x", hello, "b@y")
	m.Env.Mail.RequireTLS = true // a local socket is no network
	check(t, tr, m, "0 delivered 250 2.0.0 queued as 1")

	// What a server elsewhere offers in clear is worth nothing.
	for _, near := range []bool{true, false} {
		o := &offer{c: &client{near: near, ext: map[string]string{"REQUIRETLS": ""}}, ct: &content{m: m}, mail: m.Env.Mail}
		line, no := o.mailLine(time.Now())
		if near != (no == nil && line == "MAIL FROM:<a@x> REQUIRETLS") || !near && no.enhanced != "5.7.30" {
			t.Errorf("near %v: %q, %+v", near, line, no)
		}
	}
}

func TestXforward(t *testing.T) {
	f := &fake{ext: []string{"XFORWARD NAME ADDR PORT SOURCE"}, reply: func(cmd string) string {
		if strings.HasPrefix(cmd, "XFORWARD") {
			return "550 5.7.0 not you" // is no reason to keep the mail
		}
		return ""
	}}
	tr := open(t, f.start(t), Options{})
	m := mail("a@x", hello, "b@y")
	m.Env.Mail.Client = envelope.Client{UID: 1001, User: "ana", Addr: "not an address", Port: "99999"}
	check(t, tr, m, "0 delivered 250 2.0.0 queued as 1")
	f.checkCommands(t, "XFORWARD NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE]", "XFORWARD SOURCE=LOCAL",
		"MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
	o := &offer{c: &client{ext: map[string]string{"XFORWARD": "IDENT ADDR"}}, ct: &content{m: m}, mail: m.Env.Mail}
	m.Env.Mail.Client = envelope.Client{Addr: "::ffff:192.0.2.1", Helo: strings.Repeat("x", 300)}
	if got := strings.Join(o.xforward(), "|"); got != "XFORWARD ADDR=192.0.2.1|XFORWARD IDENT="+m.Env.ID.String() {
		t.Errorf("xforward: %s", got)
	}
}

func TestSMTPUTF8(t *testing.T) {
	f := &fake{ext: []string{"PIPELINING", "DSN"}}
	tr := open(t, f.start(t), Options{})
	m := mail("a@x", hello, "ана@пример.рф", "b@y")
	m.Env.Mail.SMTPUTF8 = true
	check(t, tr, m, "0 failed 5.6.7 the recipient address needs SMTPUTF8, and the server does not offer it",
		"1 delivered 250 2.0.0 queued as 1 [dsn]")
	m.Env.Mail.Sender = "ана@x"
	check(t, tr, m, "0 failed 5.6.7 the sender address needs SMTPUTF8, and the server does not offer it",
		"1 failed 5.6.7 the sender address needs SMTPUTF8, and the server does not offer it")
	f.commands()

	f = &fake{ext: []string{"PIPELINING", "DSN", "SMTPUTF8"}}
	tr = open(t, f.start(t), Options{})
	m.Env.Mail.Recipients[0].ORcpt = "utf-8;ана@пример.рф"
	check(t, tr, m, "0 delivered 250 2.0.0 queued as 1 [dsn]", "1 delivered 250 2.0.0 queued as 1 [dsn]")
	f.checkCommands(t, "MAIL FROM:<ана@x> SMTPUTF8", "RCPT TO:<ана@пример.рф> ORCPT=utf-8;ана@пример.рф", "RCPT TO:<b@y>", "DATA")
}

func TestSizeAndDeadline(t *testing.T) {
	f := &fake{ext: []string{"SIZE 30", "DELIVERBY 240"}}
	tr := open(t, f.start(t), Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 failed 5.3.4 message size 35 exceeds size limit 30 of the server")
	m := mail("a@x", "x\n", "b@y")
	past := time.Now().Add(-90 * time.Second)
	m.Env.Mail.By = &envelope.By{Deadline: past, Return: true}
	check(t, tr, m, "0 failed 5.4.7 delivery time expired: requested by "+past.UTC().Format(time.RFC3339))
	f.checkCommands(t)
	now := time.Now()
	for _, c := range []struct {
		by   envelope.By
		want string
	}{
		{envelope.By{Deadline: now.Add(-90 * time.Second)}, "-90;N"},
		{envelope.By{Deadline: now.Add(500 * time.Millisecond), Return: true}, "1;R"},
		{envelope.By{Deadline: now.Add(time.Minute), Return: true, Trace: true}, "60;RT"},
		{envelope.By{Deadline: now.AddDate(200, 0, 0)}, "999999999;N"},
	} {
		if got := byValue(&c.by, c.by.Deadline.Sub(now)); got != c.want {
			t.Errorf("BY %+v: %s, want %s", c.by, got, c.want)
		}
	}
}

func TestEightBit(t *testing.T) {
	f := &fake{ext: []string{"8BITMIME"}}
	tr := open(t, f.start(t), Options{})
	filler := bytes.Repeat([]byte("0123456789abcdef\r\n"), 200_000/18)
	for _, c := range []struct {
		content, declared string
		eight             bool
	}{
		{"Subject: x\r\n\r\nabc\r\n", "", false},
		{"Subject: x\r\n\r\n\xe9\r\n", "", true},
		{"Subject: x\r\n\r\n\xe9\r\n", "7BIT", true},
		{"Subject: x\r\n\r\nabc\r\n", "8BITMIME", true},
		{"Subject: x\r\n\r\n" + string(filler), "", false},
		{"Subject: x\r\n\r\n" + string(filler) + "\xe9\r\n", "", true},
	} {
		m := rawMail("a@x", []byte(c.content), "b@y")
		m.Env.Mail.Body = c.declared
		check(t, tr, m, "0 delivered 250 2.0.0 queued as 1")
		cmds := strings.Join(f.commands(), "|")
		if got := strings.Contains(cmds, "BODY=8BITMIME"); got != c.eight {
			t.Errorf("%.30q %q: %s", c.content, c.declared, cmds)
		}
	}
}

// The survey of large content finds the end of the header wherever the blocks are cut.
func TestSurvey(t *testing.T) {
	for _, pad := range []int{0, 10, 65500, 65518, 65519, 65520, 65521, 65522, 65530, 140_000} {
		for _, c := range []struct {
			header, body string
			h8, b8       bool
		}{
			{"a", "\xe9", false, true}, {"\xe9", "a", true, true}, {"a", "a", false, false},
		} {
			head := "X: " + strings.Repeat("x", pad) + "\r\nY: " + c.header + "\r\n\r\n"
			text := head + strings.Repeat("y", SmallContent) + c.body
			for _, nohead := range []bool{false, true} {
				b, h8 := text, c.h8
				if nohead {
					b, h8 = "\r\n"+text, false
				}
				m := rawMail("a@x", []byte(b), "b@y")
				m.Env.Mail.SMTPUTF8 = true
				got, err := load(m, true)
				if err != nil {
					t.Fatal(err)
				}
				if got.inMem || got.header8 != h8 || got.eight != c.b8 {
					t.Errorf("pad %d, %q %q, without header %v: header8 %v, eight %v", pad, c.header, c.body, nohead, got.header8, got.eight)
				}
			}
		}
	}
}

// Nothing of an envelope can become a command or parameter of its own.
func TestInjection(t *testing.T) {
	f := &fake{ext: everything}
	tr := open(t, f.start(t), Options{})
	for _, evil := range []string{
		"b@y>\r\nRCPT TO:<evil@z", "b@y\r\nDATA", "b@y> NOTIFY=NEVER ORCPT=rfc822;x", "b@y\n", "b\x00@y", "b @y", "<b@y>", `"b@y`, "b@y\x7f", "b@\xff",
	} {
		m := mail("a@x", hello, evil, "ok@y")
		got := tr.Deliver(context.Background(), m)
		if got[0].Action != envelope.ActionFailed || got[0].Status.Enhanced != "5.1.3" || got[1].Action != envelope.ActionDelivered {
			t.Errorf("recipient %q: %s", evil, show(got))
		}
		m = mail(evil, hello, "ok@y")
		got = tr.Deliver(context.Background(), m)
		if got[0].Action != envelope.ActionFailed || got[0].Status.Enhanced != "5.1.7" {
			t.Errorf("sender %q: %s", evil, show(got))
		}
		for name, set := range map[string]func(*Message){
			"ENVID": func(m *Message) { m.Env.Mail.EnvID = evil },
			"AUTH":  func(m *Message) { m.Env.Mail.Auth = &evil },
			"ORCPT": func(m *Message) { m.Env.Mail.Recipients[0].ORcpt = evil },
		} {
			m = mail("a@x", hello, "ok@y")
			set(m)
			got = tr.Deliver(context.Background(), m)
			printable := evil == "<b@y>" || evil == `"b@y`
			if !printable && (got[0].Action != envelope.ActionFailed || got[0].Status.Enhanced != "5.5.4") {
				t.Errorf("%s %q: %s", name, evil, show(got))
			}
		}
		m = mail("a@x", hello, "ok@y")
		m.Env.Mail.Ret, m.Env.Mail.Body = evil, evil
		m.Env.Mail.Client = envelope.Client{Proto: evil, Name: evil, Addr: evil, Port: evil, Helo: evil, Ident: evil, Source: evil}
		tr.Deliver(context.Background(), m)
	}
	for _, c := range f.commands() {
		verb, _, _ := strings.Cut(c, " ")
		if !strings.Contains("MAIL RCPT DATA RSET XFORWARD", verb) || verb != "XFORWARD" && strings.Contains(c, "evil") || strings.Contains(c, "NEVER ORCPT") || verb == "XFORWARD" && strings.Count(c, " ") > 4 {
			t.Errorf("command on the wire: %q", c)
		}
	}
}
