package deliver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/internal/envelope"
)

var (
	postfix = []string{"PIPELINING", "SIZE 1000000", "ETRN", "8BITMIME", "DSN", "SMTPUTF8", "ENHANCEDSTATUSCODES"}
	wire    = "Subject: hi\r\n\r\nHello\r\n..dot\r\n...two\r\n"
)

func TestPlainServer(t *testing.T) {
	f := &fake{}
	tr := open(t, f.start(t), Options{})
	check(t, tr, mail("a@x", hello, "b@y", "c@z"), "0 delivered 250 2.0.0 queued as 1", "1 delivered 250 2.0.0 queued as 1")
	f.checkCommands(t, "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "RCPT TO:<c@z>", "DATA")
	f.checkBodies(t, wire)
}

func TestHeloFallback(t *testing.T) {
	f := &fake{reply: func(cmd string) string {
		if strings.HasPrefix(cmd, "EHLO") {
			return "502 what"
		}
		return ""
	}}
	tr := open(t, f.start(t), Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 delivered 250 2.0.0 queued as 1")
	f.stop()
	if got := strings.Join(f.log, "|"); got != "EHLO camp.example|HELO camp.example|MAIL FROM:<a@x>|RCPT TO:<b@y>|DATA" {
		t.Errorf("commands: %s", got)
	}
}

func TestPipelining(t *testing.T) {
	f := &fake{ext: postfix, hold: true}
	tr := open(t, f.start(t), Options{})
	m := mail("a@x", hello, "b@y", "c@z")
	m.Header = []byte("Received: from here\r\n")
	for range 2 {
		check(t, tr, m, "0 delivered 250 2.0.0 queued as 1 [dsn]", "1 delivered 250 2.0.0 queued as 1 [dsn]")
		f.checkCommands(t, "MAIL FROM:<a@x> SIZE=56", "RCPT TO:<b@y>", "RCPT TO:<c@z>", "DATA")
	}
	f.checkBodies(t, "Received: from here\r\n"+wire, "Received: from here\r\n"+wire)
	if conns, _ := f.seen(); conns != 1 {
		t.Errorf("%d connections, want 1", conns)
	}
}

func TestManyRecipients(t *testing.T) {
	for _, ext := range [][]string{{"PIPELINING"}, {"PIPELINING", "LIMITS RCPTMAX=70 MAILMAX=3"}} {
		f := &fake{ext: ext}
		tr := open(t, f.start(t), Options{MaxRcpts: 230})
		var rcpts []string
		for i := range 300 {
			rcpts = append(rcpts, fmt.Sprintf("u%d@y", i))
		}
		m := mail("a@x", hello, rcpts...)
		for i, r := range tr.Deliver(context.Background(), m) {
			if r.Action != envelope.ActionDelivered || r.Rcpt != i {
				t.Fatalf("%d: %+v", i, r)
			}
		}
		n := 0
		for _, c := range f.commands() {
			if strings.HasPrefix(c, "RCPT") {
				n++
			}
		}
		want := 2
		if len(ext) > 1 {
			want = 5
		}
		if _, mails := f.seen(); n != 300 || mails != want {
			t.Errorf("%d recipients in %d mails, want 300 in %d", n, mails, want)
		}
	}
}

func TestTooManyRecipients(t *testing.T) {
	n := 0
	f := &fake{ext: postfix, reply: func(cmd string) string {
		switch {
		case strings.HasPrefix(cmd, "MAIL"):
			n = 0
		case strings.HasPrefix(cmd, "RCPT"):
			if n++; n > 2 {
				return "452 4.5.3 Error: too many recipients"
			}
		}
		return ""
	}}
	tr := open(t, f.start(t), Options{})
	res := tr.Deliver(context.Background(), mail("a@x", hello, "1@y", "2@y", "3@y", "4@y", "5@y"))
	for _, r := range res {
		if r.Action != envelope.ActionDelivered {
			t.Errorf("%+v", r)
		}
	}
	if _, mails := f.seen(); mails != 3 {
		t.Errorf("%d mails, want 3", mails)
	}
	f.set(func(cmd string) string {
		if strings.HasPrefix(cmd, "RCPT") {
			return "552 5.5.3 too many recipients"
		}
		return ""
	}, nil)
	check(t, tr, mail("a@x", hello, "1@y"), "0 pending 452 4.5.3 too many recipients")
}

func TestRecipientVerdicts(t *testing.T) {
	reply := func(cmd string) string {
		switch {
		case strings.HasPrefix(cmd, "RCPT TO:<no@"):
			return "550-5.1.1 <no@y>: \x1b[31mRecipient address rejected:\r\n550 5.1.1 User unknown"
		case strings.HasPrefix(cmd, "RCPT TO:<late@"):
			return "450 4.2.0 greylisted"
		case strings.HasPrefix(cmd, "RCPT TO:<bare@"):
			return "550"
		case strings.HasPrefix(cmd, "RCPT TO:<lie@"):
			return "451 5.7.1 temporary, says the code"
		}
		return ""
	}
	for _, ext := range [][]string{nil, postfix} {
		f := &fake{ext: ext, reply: reply}
		tr := open(t, f.start(t), Options{})
		dsn := ""
		if ext != nil {
			dsn = " [dsn]"
		}
		check(t, tr, mail("a@x", hello, "ok@y", "no@y", "late@y", "bare@y", "lie@y"),
			"0 delivered 250 2.0.0 queued as 1"+dsn,
			"1 failed 550 5.1.1 <no@y>: ?[31mRecipient address rejected: User unknown",
			"2 pending 450 4.2.0 greylisted",
			"3 failed 550 5.0.0 ",
			"4 pending 451 4.0.0 5.7.1 temporary, says the code")
		// Nobody accepted, and the next mail on the same connection is not bothered by it.
		check(t, tr, mail("a@x", hello, "no@y"), "0 failed 550 5.1.1 <no@y>: ?[31mRecipient address rejected: User unknown")
		check(t, tr, mail("a@x", hello, "ok@y"), "0 delivered 250 2.0.0 queued as 1"+dsn)
		if conns, mails := f.seen(); conns != 1 || mails != 2 {
			t.Errorf("%d connections, %d mails", conns, mails)
		}
		if c := strings.Join(f.commands(), "|"); !strings.HasSuffix(c, "|RSET|MAIL FROM:<a@x>"+map[bool]string{true: " SIZE=35"}[ext != nil]+"|RCPT TO:<ok@y>|DATA") {
			t.Errorf("commands end in %s", c)
		}
	}
}

// A server may answer 354 although it has refused everybody: it gets an empty mail for nobody.
func TestDataForNobody(t *testing.T) {
	f := &fake{ext: postfix, reply: func(cmd string) string {
		switch {
		case strings.HasPrefix(cmd, "RCPT TO:<no@"):
			return "550 5.1.1 no"
		case cmd == "DATA":
			return "354 go"
		}
		return ""
	}}
	tr := open(t, f.start(t), Options{})
	check(t, tr, mail("a@x", hello, "no@y"), "0 failed 550 5.1.1 no")
	f.checkBodies(t, "")
	check(t, tr, mail("a@x", hello, "ok@y"), "0 delivered 250 2.0.0 queued as 1 [dsn]")
	f.checkBodies(t, "", wire)
}

func TestMailAndDataRefused(t *testing.T) {
	for _, ext := range [][]string{nil, {"PIPELINING"}} {
		for _, c := range []struct{ verb, reply, want string }{
			{"MAIL", "550 5.7.1 not you", "failed 550 5.7.1 not you"},
			{"MAIL", "451 4.3.0 later", "pending 451 4.3.0 later"},
			{"DATA", "550 5.7.1 not this", "failed 550 5.7.1 not this"},
			{"DATA", "451 try", "pending 451 4.0.0 try"},
			{".", "554 5.6.0 spam", "failed 554 5.6.0 spam"},
			{".", "452 4.3.1 full", "pending 452 4.3.1 full"},
		} {
			f := &fake{ext: ext}
			f.reply = func(cmd string) string {
				if strings.HasPrefix(cmd, c.verb) {
					return c.reply
				}
				if c.verb == "MAIL" && !strings.HasPrefix(cmd, "EHLO") {
					return "503 5.5.1 MAIL first"
				}
				return ""
			}
			if c.verb == "." {
				f.reply = nil
				f.body = func(int, string) []string { return []string{c.reply} }
			}
			tr := open(t, f.start(t), Options{})
			check(t, tr, mail("a@x", hello, "b@y", "c@y"), "0 "+c.want, "1 "+c.want)
			f.set(nil, nil)
			check(t, tr, mail("a@x", hello, "b@y"), "0 delivered 250 2.0.0 queued as 1")
			if conns, _ := f.seen(); conns != 1 {
				t.Errorf("%s %s: %d connections", c.verb, c.reply, conns)
			}
		}
	}
}

func TestLMTP(t *testing.T) {
	for _, unix := range []bool{false, true} {
		f := &fake{lmtp: true, ext: []string{"PIPELINING", "8BITMIME"}, reply: func(cmd string) string {
			if strings.HasPrefix(cmd, "RCPT TO:<no@") {
				return "550 5.1.1 no"
			}
			return ""
		}}
		f.body = func(int, string) []string {
			return []string{"250 2.0.0 one", "452 4.2.2 full", "550 5.7.1 sieve"}
		}
		via := ""
		if unix {
			via = f.startUnix(t)
		} else {
			via = f.start(t)
		}
		tr := open(t, via, Options{})
		m := mail("a@x", hello, "1@y", "no@y", "2@y", "3@y")
		m.Env.Mail.Recipients[0].Notify = envelope.NotifySuccess
		check(t, tr, m, "0 delivered 250 2.0.0 one", "1 failed 550 5.1.1 no", "2 pending 452 4.2.2 full", "3 failed 550 5.7.1 sieve")
		f.set(f.reply, func(int, string) []string { return []string{"250 2.0.0 one", "close"} })
		check(t, tr, m, "0 delivered 250 2.0.0 one", "1 failed 550 5.1.1 no",
			"2 pending 4.4.2 lost connection with ADDR while waiting for the answer to the final dot (the mail may have been taken): connection closed",
			"3 pending 4.4.2 lost connection with ADDR while waiting for the answer to the final dot (the mail may have been taken): connection closed")
	}
}

func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	tr := open(t, "smtp:"+addr, Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 pending 4.4.1 connect to ADDR: connection refused [down]")
	tr = open(t, "lmtp:/does/not/exist", Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 pending 4.4.1 connect to ADDR: no such file or directory [down]")
}

func TestGreetings(t *testing.T) {
	for _, c := range []struct{ greeting, ehlo, want string }{
		{"554 5.3.2 no mail here", "", "pending 554 4.3.2 5.3.2 no mail here"},
		{"421 4.3.2 busy", "", "pending 421 4.3.2 busy"},
		{"HTTP/1.1 400 Bad Request", "", `pending 4.4.2 greeting of ADDR: protocol error: unexpected reply "HTTP/1.1 400 Bad Request"`},
		{"220 ok", "421 4.3.2 shutting down", "pending 421 4.3.2 shutting down"},
		{"220 ok", "451 4.7.1 helo", "pending 451 4.7.1 helo"},
		{"220 ok", "close", "pending 4.4.2 greeting of ADDR: connection closed"},
		{"220-ok\r\n250 not the same", "", `pending 4.4.2 greeting of ADDR: protocol error: unexpected reply "250 not the same"`},
		{"220 " + strings.Repeat("x", 5000), "", "pending 4.4.2 greeting of ADDR: protocol error: reply line longer than 4096 bytes"},
		{strings.Repeat("220-x\r\n", 300) + "220 x", "", "pending 4.4.2 greeting of ADDR: protocol error: endless reply"},
	} {
		f := &fake{greeting: c.greeting, reply: func(cmd string) string {
			if strings.HasPrefix(cmd, "EHLO") {
				return c.ehlo
			}
			return ""
		}}
		tr := open(t, f.start(t), Options{})
		want := strings.Replace(c.want, "554 4.3.2 5.3.2", "554 4.3.2", 1)
		check(t, tr, mail("a@x", hello, "b@y"), "0 "+want+" [down]")
	}
}

func TestSilence(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	// All at once: the wait is long enough for a server that does answer, on a machine that is busy.
	const wait = 2 * time.Second
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range []struct{ verb, want string }{
		{"EHLO", "0 pending 4.4.2 greeting of ADDR: timed out [down]"},
		{"MAIL", "0 pending 4.4.2 lost connection with ADDR while sending MAIL FROM: timed out"},
		{"DATA", "0 pending 4.4.2 lost connection with ADDR while sending DATA: timed out"},
		{".", "0 pending 4.4.2 lost connection with ADDR while waiting for the answer to the final dot (the mail may have been taken): timed out"},
	} {
		f := &fake{}
		f.reply = func(cmd string) string {
			if strings.HasPrefix(cmd, c.verb) {
				<-release
				return "close"
			}
			return ""
		}
		f.body = func(int, string) []string { <-release; return []string{"close"} }
		via := f.start(t)
		tr := open(t, via, Options{Command: wait, Final: wait, Block: wait})
		all.Go(func() { check(t, tr, mail("a@x", hello, "b@y"), c.want) })
	}
}

func TestHangUps(t *testing.T) {
	for _, ext := range [][]string{nil, {"PIPELINING"}} {
		for _, verb := range []string{"MAIL", "RCPT", "DATA"} {
			f := &fake{ext: ext, reply: func(cmd string) string {
				if strings.HasPrefix(cmd, verb) {
					return "close"
				}
				return ""
			}}
			tr := open(t, f.start(t), Options{})
			got := tr.Deliver(context.Background(), mail("a@x", hello, "b@y"))
			if len(got) != 1 || got[0].Action != envelope.ActionPending || got[0].Status.Enhanced != "4.4.2" || got[0].Down {
				t.Errorf("%s: %s", verb, show(got))
			}
		}
	}
	f := &fake{body: func(int, string) []string { return []string{"close"} }}
	tr := open(t, f.start(t), Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 pending 4.4.2 lost connection with ADDR while waiting for the answer to the final dot (the mail may have been taken): connection closed")
}

// 421 before MAIL is about the server, after it perhaps about the mail: that must not stop all others.
func Test421(t *testing.T) {
	for _, c := range []struct {
		verb string
		down string
	}{{"MAIL", " [down]"}, {"RCPT", ""}, {"DATA", ""}} {
		f := &fake{reply: func(cmd string) string {
			if strings.HasPrefix(cmd, c.verb) {
				return "421 4.7.0 too much"
			}
			return ""
		}}
		tr := open(t, f.start(t), Options{})
		check(t, tr, mail("a@x", hello, "b@y"), "0 pending 421 4.7.0 too much"+c.down)
	}
	f := &fake{body: func(int, string) []string { return []string{"421 4.3.0 milter"} }}
	tr := open(t, f.start(t), Options{})
	check(t, tr, mail("a@x", hello, "b@y"), "0 pending 421 4.3.0 milter")
}

func TestContentTrouble(t *testing.T) {
	for _, size := range []int{1000, 300_000} {
		good := bytes.Repeat([]byte("0123456789abcdef\r\n"), size/18)
		for name, c := range map[string]struct {
			open func() (io.ReadCloser, error)
			want string
		}{
			"flipped bit": {func() (io.ReadCloser, error) {
				b := bytes.Clone(good)
				b[len(b)/2] ^= 1
				return io.NopCloser(bytes.NewReader(b)), nil
			}, "stored content does not match its checksum [corrupt]"},
			"short": {func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(good[:len(good)-2])), nil },
				fmt.Sprintf("stored content does not match its checksum: %d bytes, not %d [corrupt]", len(good)-2, len(good))},
			"long": {func() (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(append(bytes.Clone(good), '\n'))), nil
			}, fmt.Sprintf("stored content does not match its checksum: longer than %d bytes [corrupt]", len(good))},
			"read error":  {func() (io.ReadCloser, error) { return &reader{good, len(good) / 2, errDisk}, nil }, "input/output error"},
			"cannot open": {func() (io.ReadCloser, error) { return nil, errDisk }, "open the content: input/output error"},
		} {
			f := &fake{ext: postfix}
			tr := open(t, f.start(t), Options{})
			m := rawMail("a@x", good, "b@y")
			m.Env.Mail.Body = "7BIT"
			okOpen := m.Open
			m.Open = c.open
			check(t, tr, m, "0 pending 4.3.0 "+c.want)
			m.Open = okOpen
			check(t, tr, m, "0 delivered 250 2.0.0 queued as 1 [dsn]")
			f.stop()
			if len(f.bodies) != 1 || f.bodies[0] != string(good) {
				t.Errorf("%s, %d bytes: %d mails were accepted, want only the good one", name, size, len(f.bodies))
			}
		}
	}
}

// A server that refuses in the middle of the content is believed.
func TestEarlyAnswer(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef\r\n"), 2<<20/18)
	for reply, want := range map[string]string{
		"552 5.3.4 too big\r\n": "failed",
		"":                      "pending",
	} {
		f := &fake{cut: func(sofar int) (bool, string) { return sofar > 1<<20, reply }}
		tr := open(t, f.start(t), Options{})
		got := tr.Deliver(context.Background(), rawMail("a@x", big, "b@y"))
		// Whether the refusal outruns the closing of the connection is up to the network.
		if a := got[0].Action.String(); a != want && a != "pending" {
			t.Errorf("%q: %s", reply, show(got))
		}
	}
}

func TestStaleConnection(t *testing.T) {
	f := &fake{ext: postfix}
	tr := open(t, f.start(t), Options{Idle: time.Hour})
	ok := "0 delivered 250 2.0.0 queued as 1 [dsn]"
	check(t, tr, mail("a@x", hello, "b@y"), ok)
	f.hangUp()
	check(t, tr, mail("a@x", hello, "b@y"), ok)
	// 421 in answer to the first command of a mail is the same: the server has given up on the idle connection.
	n := 0
	f.set(func(cmd string) string {
		if strings.HasPrefix(cmd, "MAIL") {
			if n++; n == 1 {
				return "421 4.4.2 idle for too long"
			}
		}
		return ""
	}, nil)
	check(t, tr, mail("a@x", hello, "b@y"), ok)
	if conns, mails := f.seen(); conns != 3 || mails != 3 {
		t.Errorf("%d connections, %d mails, want 3 and 3", conns, mails)
	}
}

func TestIdleQuit(t *testing.T) {
	f := &fake{}
	quit := make(chan struct{}, 2)
	f.reply = func(cmd string) string {
		if cmd == "QUIT" {
			quit <- struct{}{}
		}
		return ""
	}
	tr := open(t, f.start(t), Options{Idle: time.Millisecond})
	check(t, tr, mail("a@x", hello, "b@y"), "0 delivered 250 2.0.0 queued as 1")
	<-quit
	tr = open(t, "smtp:"+f.ln.Addr().String(), Options{Idle: time.Hour})
	check(t, tr, mail("a@x", hello, "b@y"), "0 delivered 250 2.0.0 queued as 1")
	tr.Close()
	<-quit
	check(t, tr, mail("a@x", hello, "b@y"), "0 delivered 250 2.0.0 queued as 1") // Close only drops what is idle
	<-quit
}

func TestConcurrent(t *testing.T) {
	f := &fake{ext: postfix}
	tr := open(t, f.start(t), Options{MaxConns: 3})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if r := tr.Deliver(context.Background(), mail("a@x", hello, "b@y")); r[0].Action != envelope.ActionDelivered {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	wg.Wait()
	if conns, mails := f.seen(); conns > 3 || mails != 160 {
		t.Errorf("%d connections, %d mails", conns, mails)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fake{reply: func(cmd string) string {
		if strings.HasPrefix(cmd, "RCPT") {
			cancel()
			<-ctx.Done()
		}
		return ""
	}}
	f.lmtp = true
	tr := open(t, f.start(t), Options{})
	got := tr.Deliver(ctx, mail("a@x", hello, "b@y"))
	if _, mails := f.seen(); got[0].Action != envelope.ActionPending || mails != 0 {
		t.Errorf("%s, %d mails", show(got), mails)
	}
	checkCtx(t, ctx, tr, mail("a@x", hello, "b@y"), "0 pending 4.3.2 not tried")

	// After the dot the answer is waited for, so that a shutdown makes no duplicate.
	second, stop := context.WithCancel(context.Background()) // the server before may look at the first one still
	f = &fake{body: func(int, string) []string {
		stop()
		return nil
	}}
	tr = open(t, f.start(t), Options{})
	checkCtx(t, second, tr, mail("a@x", hello, "b@y"), "0 delivered 250 2.0.0 queued as 1")
	f.set(nil, nil)
	check(t, tr, mail("a@x", hello, "b@y"), "0 delivered 250 2.0.0 queued as 1") // that connection is not used again
}

func BenchmarkDeliver(b *testing.B) {
	f := &fake{ext: postfix}
	f.open = map[net.Conn]bool{}
	var err error
	if f.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		b.Fatal(err)
	}
	f.serve(b)
	tr, err := New("smtp:"+f.ln.Addr().String(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer tr.Close()
	m := mail("a@x", hello+strings.Repeat("0123456789abcdef 0123456789abcdef\n", 100), "b@y")
	b.ReportAllocs()
	for b.Loop() {
		if r := tr.Deliver(context.Background(), m); r[0].Action != envelope.ActionDelivered {
			b.Fatal(show(r))
		}
	}
}
