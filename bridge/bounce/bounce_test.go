package bounce

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"mochila/internal/envelope"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	arrived = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	now     = time.Date(2026, 3, 5, 9, 30, 0, 0, time.FixedZone("", 3600))
)

const original = "Received: from a by b\r\nFrom: Ana <ana@camp.example>\r\nTo: bob@far.example\r\nSubject: a\r\n question\r\n\r\nHello Bob,\r\n.\r\nbye\r\n"

// notice is a failure of one of two recipients.
func notice() Notice {
	id := envelope.ID{1, 2, 3, 4, 5, 6, 7, 8}
	return Notice{
		ID: envelope.ID{9, 8, 7, 6, 5, 4, 3, 2}, MTA: "camp.example", Node: "camp", From: "MAILER-DAEMON@camp.example",
		Original: &envelope.Envelope{
			ID: id, Kind: envelope.KindMail, Created: arrived, Size: int64(len(original)),
			Mail: &envelope.Mail{
				Sender: "ana@camp.example", EnvID: "QQ314+2B159",
				Recipients: []envelope.Recipient{
					{Addr: "bob@far.example", ORcpt: "rfc822;Bob+2Bx@far.example"}, {Addr: "eve@far.example"},
				},
			},
		},
		Outcomes: []envelope.Outcome{{
			Addr: "bob@far.example", Action: envelope.ActionFailed, MTA: "192.0.2.1:25", At: now.Add(-time.Minute),
			Status: envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "<bob@far.example>: Recipient address rejected: User unknown in local recipient table"},
		}},
		Content: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(original)), nil },
		Now:     now,
	}
}

var golden = map[string]func(*Notice){
	"failed": func(*Notice) {},
	"failed-headers": func(n *Notice) {
		n.Original.Mail.Ret = "HDRS"
		n.Outcomes = append(n.Outcomes, envelope.Outcome{
			Addr: "eve@far.example", Action: envelope.ActionFailed,
			Status: envelope.Status{Enhanced: "4.4.7", Text: "not delivered within 60 days"},
		})
		n.Explain = []string{"Route: camp -> ferry -> far.", "Last contact with ferry: Sun, 1 Mar 2026 08:10."}
	},
	"delayed": func(n *Notice) {
		n.Outcomes[0].Action = envelope.ActionDelayed
		n.Outcomes[0].MTA = ""
		n.Outcomes[0].Status = envelope.Status{Enhanced: "4.4.1", Text: "waiting for the next visit of node ferry"}
		n.Until = arrived.AddDate(0, 0, 60)
		n.Explain = []string{"Next visit: not known. It was seen last on Sun, 1 Mar 2026."}
	},
	"relayed": func(n *Notice) {
		n.Outcomes[0].Action = envelope.ActionRelayed
		n.Outcomes[0].Status = envelope.Status{Code: 250, Enhanced: "2.0.0", Text: "Ok: queued as 4XYZ"}
	},
	"delivered": func(n *Notice) {
		n.Outcomes[0].Action = envelope.ActionDelivered
		n.Outcomes[0].Status = envelope.Status{Enhanced: "2.0.0", Text: "delivered to maildir"}
		n.Outcomes[0].MTA = "maildir"
	},
	"global": func(n *Notice) {
		n.Original.Mail.SMTPUTF8 = true
		n.Original.Mail.Sender = "ана@пример.рф"
		n.Original.Mail.Recipients[0] = envelope.Recipient{Addr: "боб@far.example", ORcpt: "utf-8;боб@far.example"}
		n.Outcomes[0].Addr = "боб@far.example"
		n.Outcomes[0].Status.Text = "неизвестный"
		n.Content = func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("Subject: привет\r\n\r\nтекст\r\n")), nil
		}
	},
}

func TestGolden(t *testing.T) {
	for name, change := range golden {
		n := notice()
		change(&n)
		m, got := Compose(n)
		if m.Sender != "" || len(m.Recipients) != 1 || m.Recipients[0].Addr != n.Original.Mail.Sender {
			t.Errorf("%s: envelope %+v", name, m)
		}
		if m.SMTPUTF8 != (name == "global") || (m.Body == "8BITMIME") != (name == "global") {
			t.Errorf("%s: SMTPUTF8 %v, BODY %s", name, m.SMTPUTF8, m.Body)
		}
		file := filepath.Join("testdata", name+".eml")
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
		checkLines(t, got)
	}
}

// checkLines checks what RFC 5322 asks of lines.
func checkLines(t *testing.T, b []byte) {
	t.Helper()
	if !bytes.HasSuffix(b, []byte("\r\n")) || strings.ContainsAny(strings.ReplaceAll(string(b), "\r\n", ""), "\r\n") {
		t.Errorf("bare CR or LF, or no end: %q", b)
	}
}

// parsed is a notification as a mail reader sees it.
type parsed struct {
	head    mail.Header
	kinds   []string
	parts   []string
	message textproto.MIMEHeader
	rcpts   []textproto.MIMEHeader
}

func parse(t *testing.T, b []byte) parsed {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	p := parsed{head: m.Header}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("Content-Type %q: %v", m.Header.Get("Content-Type"), err)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := r.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%v in %q", err, b)
		}
		text, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(part.Header.Get("Content-Type"))
		p.kinds, p.parts = append(p.kinds, kind), append(p.parts, string(text))
	}
	if len(p.parts) != 3 {
		t.Fatalf("%d parts in %q", len(p.parts), b)
	}
	fields := textproto.NewReader(bufio.NewReader(strings.NewReader(p.parts[1] + "\r\n")))
	for i := 0; ; i++ {
		h, err := fields.ReadMIMEHeader()
		if len(h) == 0 {
			break
		}
		if err != nil && err != io.EOF {
			t.Fatalf("status part: %v in %q", err, p.parts[1])
		}
		if i == 0 {
			p.message = h
		} else {
			p.rcpts = append(p.rcpts, h)
		}
	}
	return p
}

func want(t *testing.T, h interface{ Get(string) string }, fields ...string) {
	t.Helper()
	for i := 0; i < len(fields); i += 2 {
		if got := h.Get(fields[i]); got != fields[i+1] {
			t.Errorf("%s: %q, want %q", fields[i], got, fields[i+1])
		}
	}
}

func TestFields(t *testing.T) {
	n := notice()
	_, b := Compose(n)
	p := parse(t, b)
	want(t, p.head, "From", "Mail Delivery System <MAILER-DAEMON@camp.example>", "To", "<ana@camp.example>",
		"Subject", "Undelivered Mail Returned to Sender", "Auto-Submitted", "auto-replied",
		"Date", "Thu, 05 Mar 2026 09:30:00 +0100", "Message-Id", "<"+n.ID.String()+"@camp.example>")
	if got := strings.Join(p.kinds, " "); got != "text/plain message/delivery-status message/rfc822" {
		t.Errorf("parts: %s", got)
	}
	want(t, p.message, "Reporting-Mta", "dns; camp.example", "Original-Envelope-Id", "QQ314+159",
		"Arrival-Date", "Sun, 01 Mar 2026 08:00:00 +0000", "X-Mochila-Queue-Id", n.Original.ID.String(),
		"X-Mochila-Sender", "rfc822; ana@camp.example")
	if len(p.rcpts) != 1 {
		t.Fatalf("recipients: %v", p.rcpts)
	}
	want(t, p.rcpts[0], "Final-Recipient", "rfc822; bob@far.example", "Original-Recipient", "rfc822; Bob+x@far.example",
		"Action", "failed", "Status", "5.1.1", "Remote-Mta", "dns; [192.0.2.1]", "Last-Attempt-Date", "Thu, 05 Mar 2026 09:29:00 +0100",
		"Diagnostic-Code", "smtp; 550 5.1.1 <bob@far.example>: Recipient address rejected: User unknown in local recipient table",
		"Will-Retry-Until", "")
	if p.parts[2] != original {
		t.Errorf("returned %q", p.parts[2])
	}
	golden["delayed"](&n)
	_, b = Compose(n)
	p = parse(t, b)
	want(t, p.head, "Subject", "Delayed Mail (still being retried)")
	want(t, p.rcpts[0], "Action", "delayed", "Status", "4.4.1", "Will-Retry-Until", "Thu, 30 Apr 2026 08:00:00 +0000",
		"Diagnostic-Code", "X-Mochila; waiting for the next visit of node ferry", "Remote-Mta", "")
	if p.kinds[2] != "text/rfc822-headers" || strings.Contains(p.parts[2], "Hello") || !strings.Contains(p.parts[2], "Subject: a\r\n question\r\n") {
		t.Errorf("returned %s %q", p.kinds[2], p.parts[2])
	}
}

func TestReturned(t *testing.T) {
	header := strings.SplitAfter(original, "question\r\n")[0]
	for name, c := range map[string]struct {
		change     func(*Notice)
		kind, want string
		text       string // in the part for people
	}{
		"whole":        {func(n *Notice) { n.Original.Mail.Ret = "FULL" }, "message/rfc822", original, "attached below"},
		"RET=HDRS":     {func(n *Notice) { n.Original.Mail.Ret = "HDRS" }, "text/rfc822-headers", header, "Its header is"},
		"REQUIRETLS":   {func(n *Notice) { n.Original.Mail.RequireTLS = true }, "text/rfc822-headers", header, "Its header is"},
		"too large":    {func(n *Notice) { n.MaxReturn = 20 }, "text/rfc822-headers", header, "only its header is attached"},
		"just fits":    {func(n *Notice) { n.MaxReturn = int64(len(original)) }, "message/rfc822", original, ""},
		"gone":         {func(n *Notice) { n.Content = nil }, "text/rfc822-headers", "", "not kept here any more"},
		"header kept":  {func(n *Notice) { n.Content, n.Header = nil, []byte(header) }, "text/rfc822-headers", header, "not kept here any more"},
		"cannot read":  {func(n *Notice) { n.Content = func() (io.ReadCloser, error) { return nil, errors.New("disk") } }, "text/rfc822-headers", "", "not kept here any more"},
		"not canonic":  {content("A: b\nC: d\n\nx\ry\r\r\nz"), "message/rfc822", "A: b\r\nC: d\r\n\r\nx y\r\nz\r\n", ""},
		"no body":      {func(n *Notice) { content("A: b\r\n")(n); n.Original.Mail.Ret = "HDRS" }, "text/rfc822-headers", "A: b\r\n", ""},
		"empty header": {func(n *Notice) { content("\r\nx\r\n")(n); n.Original.Mail.Ret = "HDRS" }, "text/rfc822-headers", "", ""},
		"huge header": {func(n *Notice) {
			content("A: b\r\n" + strings.Repeat("B: cccccc\r\n", 20_000))(n)
			n.Original.Mail.Ret = "HDRS"
		},
			"text/rfc822-headers", "A: b\r\n" + strings.Repeat("B: cccccc\r\n", (64<<10-6)/11), ""},
	} {
		n := notice()
		c.change(&n)
		_, b := Compose(n)
		p := parse(t, b)
		if p.kinds[2] != c.kind || p.parts[2] != c.want {
			t.Errorf("%s: %s %.200q, want %s %.200q", name, p.kinds[2], p.parts[2], c.kind, c.want)
		}
		if !strings.Contains(strings.Join(strings.Fields(p.parts[0]), " "), c.text) {
			t.Errorf("%s: no %q in %q", name, c.text, p.parts[0])
		}
	}
}

func content(s string) func(*Notice) {
	return func(n *Notice) {
		n.Original.Size = int64(len(s))
		n.MaxReturn = 1 << 20
		n.Content = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
	}
}

func TestGlobal(t *testing.T) {
	n := notice()
	golden["global"](&n)
	_, b := Compose(n)
	p := parse(t, b)
	if got := strings.Join(p.kinds, " "); got != "text/plain message/global-delivery-status message/global" {
		t.Errorf("parts: %s", got)
	}
	want(t, p.rcpts[0], "Final-Recipient", "utf-8; боб@far.example", "Original-Recipient", "utf-8; боб@far.example",
		"Diagnostic-Code", "smtp; 550 5.1.1 неизвестный")
	want(t, p.head, "To", "<ана@пример.рф>")

	// An ASCII mail stays one, whatever the other side says in its refusals.
	n = notice()
	n.Outcomes[0].Status.Text = "неизвестный"
	n.Original.Mail.SMTPUTF8 = true
	m, b := Compose(n)
	p = parse(t, b)
	if m.SMTPUTF8 || p.kinds[1] != "message/delivery-status" || !isASCII(p.parts[1]) {
		t.Errorf("SMTPUTF8 %v, %s %q", m.SMTPUTF8, p.kinds[1], p.parts[1])
	}
	if !strings.Contains(p.parts[0], "неизвестный") {
		t.Errorf("people see %q", p.parts[0])
	}
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] > 127 {
			return false
		}
	}
	return true
}

func TestStatusCode(t *testing.T) {
	for _, c := range []struct {
		action envelope.Action
		st     envelope.Status
		want   string
	}{
		{envelope.ActionFailed, envelope.Status{Enhanced: "5.1.1"}, "5.1.1"},
		{envelope.ActionFailed, envelope.Status{Enhanced: "4.4.7"}, "4.4.7"},
		{envelope.ActionFailed, envelope.Status{Code: 550}, "5.0.0"},
		{envelope.ActionFailed, envelope.Status{}, "5.0.0"},
		{envelope.ActionFailed, envelope.Status{Enhanced: "evil\r\nX: y"}, "5.0.0"},
		{envelope.ActionFailed, envelope.Status{Enhanced: "2.0.0"}, "5.0.0"},
		{envelope.ActionDelayed, envelope.Status{Enhanced: "5.4.1"}, "4.4.1"},
		{envelope.ActionDelayed, envelope.Status{}, "4.0.0"},
		{envelope.ActionDelivered, envelope.Status{Enhanced: "5.4.1"}, "2.0.0"},
		{envelope.ActionDelivered, envelope.Status{Code: 250, Enhanced: "2.1.5"}, "2.1.5"},
		{envelope.ActionRelayed, envelope.Status{}, "2.0.0"},
	} {
		if got := statusCode(envelope.Outcome{Action: c.action, Status: c.st}); got != c.want {
			t.Errorf("%v %+v: %s, want %s", c.action, c.st, got, c.want)
		}
	}
}

func TestRemote(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:25": "[127.0.0.1]", "[::1]:24": "[IPv6:::1]", "mx.example:25": "mx.example", "mx.example": "mx.example",
		"/run/lmtp.sock": "", "": "", "hub: mx:25": "", "evil\r\nX: y": "", "fe80::1": "[IPv6:fe80::1]",
	} {
		if got := remote(in); got != want {
			t.Errorf("remote(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestWanted(t *testing.T) {
	all := []envelope.Action{envelope.ActionFailed, envelope.ActionDelayed, envelope.ActionDelivered, envelope.ActionRelayed, envelope.ActionExpanded, envelope.ActionPending}
	for _, c := range []struct {
		sender string
		notify envelope.Notify
		want   string // one letter for each of all
	}{
		{"a@x", 0, "yynnnn"},
		{"", 0, "nnnnnn"},
		{"", envelope.NotifySuccess | envelope.NotifyFailure, "nnnnnn"},
		{"a@x", envelope.NotifyNever, "nnnnnn"},
		{"a@x", envelope.NotifyNever | envelope.NotifyFailure, "nnnnnn"},
		{"a@x", envelope.NotifyFailure, "ynnnnn"},
		{"a@x", envelope.NotifyDelay, "nynnnn"},
		{"a@x", envelope.NotifySuccess, "nnyyyn"},
		{"a@x", envelope.NotifySuccess | envelope.NotifyDelay | envelope.NotifyFailure, "yyyyyn"},
	} {
		env := &envelope.Envelope{Mail: &envelope.Mail{Sender: c.sender, Recipients: []envelope.Recipient{{Addr: "b@y", Notify: c.notify}}}}
		got := ""
		for _, a := range all {
			if Wanted(env, 0, a) {
				got += "y"
			} else {
				got += "n"
			}
		}
		if got != c.want {
			t.Errorf("<%s> NOTIFY %b: %s, want %s", c.sender, c.notify, got, c.want)
		}
		if Wanted(env, 1, envelope.ActionFailed) || Wanted(env, -1, envelope.ActionFailed) {
			t.Error("a recipient that is none")
		}
	}
	if Wanted(&envelope.Envelope{Kind: envelope.KindReport}, 0, envelope.ActionFailed) {
		t.Error("a report is no mail")
	}
}

func TestAutoSubmitted(t *testing.T) {
	for header, want := range map[string]bool{
		"":                                       false,
		"Subject: x\r\n":                         false,
		"Auto-Submitted: no\r\n":                 false,
		"Auto-Submitted: No (really); a=b\r\n":   false,
		"Auto-Submitted: auto-replied\r\n":       true,
		"auto-submitted:\r\n auto-generated\r\n": true,
		"AUTO-SUBMITTED: auto-notified; x=y\n\n": true,
		"Precedence: bulk\r\n":                   false,
		"Precedence: LIST\r\n":                   false,
		"Precedence: first-class\r\n":            false,
		"List-Id: <x.y>\r\n":                     false,
		"A: b\r\n\r\nList-Id: <x.y>\r\n":         false,
		"A: b\r\n List-Id: <x.y>\r\n":            false,
		"no colon\r\nPrecedence: junk":           false,
	} {
		if got := AutoSubmitted([]byte(header)); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

// Whatever strangers write, the notification stays one well-formed mail to one person.
func FuzzCompose(f *testing.F) {
	f.Add("ana@x", "bob@y", "id", "rfc822;bob@y", "no such user", "5.1.1", "mx:25", "A: b\r\n\r\nc\r\n", uint8(2))
	f.Add("ana@x\r\nBcc: evil@x", "b\r\n\r\n--x", "+0D+0A", "rfc822;+0D+0AX: y", "a\r\nb\x00\xff", "5", "a b:c", "\n.\n\r", uint8(5))
	f.Add(strings.Repeat("a", 2000), strings.Repeat("b ", 600), strings.Repeat("ж", 600), "utf-8;ж", strings.Repeat("ж", 1200), "2.0.0", "[::1]:25", "--", uint8(1))
	f.Fuzz(func(t *testing.T, sender, rcpt, envid, orcpt, text, code, mta, body string, action uint8) {
		n := notice()
		n.Original.Mail.Sender, n.Original.Mail.EnvID = sender, envid
		n.Original.Mail.Recipients[0] = envelope.Recipient{Addr: rcpt, ORcpt: orcpt}
		n.Original.Mail.SMTPUTF8 = action&64 != 0
		n.Outcomes[0] = envelope.Outcome{
			Addr: rcpt, Action: envelope.Action(1 + action%5), MTA: mta, At: now,
			Status: envelope.Status{Code: int(action) * 5, Enhanced: code, Text: text},
		}
		n.Explain = []string{text}
		content(body)(&n)
		m, b := Compose(n)
		checkLines(t, b)
		if m.Body == "7BIT" && !isASCII(string(b)) || m.Sender != "" || len(m.Recipients) != 1 {
			t.Errorf("envelope %+v", m)
		}
		p := parse(t, b)
		if len(p.rcpts) != 1 || len(p.head) != 8 && len(p.head) != 9 {
			t.Errorf("%d recipients, %d header fields: %q", len(p.rcpts), len(p.head), b)
		}
		for _, k := range []string{"Final-Recipient", "Action", "Status"} {
			if len(p.rcpts[0][k]) != 1 {
				t.Errorf("%s: %q", k, p.rcpts[0][k])
			}
		}
		for k := range p.rcpts[0] {
			if !strings.Contains("Final-Recipient Original-Recipient Action Status Remote-Mta Diagnostic-Code Last-Attempt-Date Will-Retry-Until", k) {
				t.Errorf("field %q", k)
			}
		}
		if !utf8.ValidString(p.parts[0] + p.parts[1]) {
			t.Errorf("not UTF-8: %q", p.parts[0]+p.parts[1])
		}
	})
}
