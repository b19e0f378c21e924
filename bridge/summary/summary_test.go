package summary

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// testNote is what the tests write.
func testNote() Note {
	return Note{ID: "QUEUEID", MessageID: "new@hub.example", ReplyTo: "release+token@hub.example", Node: "hub", Boundary: "=_frontier",
		Until: time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC)}
}

// b64 is base64 of n bytes, in lines.
func b64(n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(7, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return lines(base64.StdEncoding.EncodeToString(b), 76)
}

func lines(s string, n int) string {
	var out strings.Builder
	for len(s) > n {
		out.WriteString(s[:n] + "\n")
		s = s[n:]
	}
	return out.String() + s + "\n"
}

// part is a part of a multipart with the boundary b.
func part(b, header, body string) string { return "--" + b + "\n" + header + "\n\n" + body }

const top = "From: Ana <ana@hub.example>\nTo: bob@camp.example\nSubject: photos\nMessage-ID: <1@hub.example>\nDate: Mon, 1 Mar 2027 12:00:00 +0000\nMIME-Version: 1.0\n"

// kind is a multipart with that boundary.
func kind(sub, b string) string {
	return top + "Content-Type: multipart/" + sub + "; boundary=\"" + b + "\"\n\n"
}

const plain = "Content-Type: text/plain; charset=utf-8"

// crlf makes lines as a mail has them.
func crlf(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n")
}

// summarise reads a mail and writes its summary; "" when it would go whole.
func summarise(t *testing.T, text string, limit int64) (*Mail, *Choice, string) {
	t.Helper()
	r := strings.NewReader(text)
	m, err := Read(r)
	if err != nil {
		t.Fatal(err)
	}
	c := m.Choose(limit)
	if c == nil {
		return m, nil, ""
	}
	var w bytes.Buffer
	if err := c.Write(&w, r, testNote()); err != nil {
		t.Fatal(err)
	}
	return m, c, w.String()
}

// read takes a summary apart as a mail program would: its header, the note, and the parts behind it as "TYPE|NAME|text".
func read(t *testing.T, text string) (mail.Header, string, []string) {
	t.Helper()
	for _, l := range strings.SplitAfter(text, "\n") {
		if l != "" && !strings.HasSuffix(l, "\r\n") || strings.Count(l, "\r") > 1 {
			t.Fatalf("line %.100q", l)
		}
	}
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%.2000s", err, text)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	mr := multipart.NewReader(m.Body, params["boundary"])
	var all []string
	note := ""
	for {
		p, err := mr.NextRawPart()
		if err == io.EOF {
			return m.Header, note, all
		}
		if err != nil {
			t.Fatalf("%v in\n%.3000s", err, text)
		}
		var r io.Reader = p
		switch p.Header.Get("Content-Transfer-Encoding") {
		case "quoted-printable":
			r = quotedprintable.NewReader(p)
		case "base64":
			r = base64.NewDecoder(base64.StdEncoding, p)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("part %q: %v", p.Header, err)
		}
		ct, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if note == "" {
			note = strings.ReplaceAll(string(b), "\r\n", "\n")
			continue
		}
		all = append(all, ct+"|"+strings.TrimSpace(strings.ReplaceAll(string(b), "\r\n", "\n")))
	}
}

// TestMails makes summaries of mails of the shapes that there are. Each wanted part is the begin of what is there.
func TestMails(t *testing.T) {
	const held = "text/plain|[Held at hub: "
	jpeg := "Content-Type: image/jpeg; name=\"a.jpg\"\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"a.jpg\""
	latin := "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: 8bit"
	for _, c := range []struct {
		name, mail string
		limit      int64
		want       []string // nil: it goes whole
		note       []string // what the note says
		not        string   // what stands nowhere
	}{
		{"text and a photo", kind("mixed", "b") + part("b", plain, "Hello Bob\n") + part("b", jpeg, b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|Hello Bob", held + "a.jpg (image/jpeg, 9.0 kB). Reply to this mail to get it.]"},
			[]string{"One part of it, 9.0 kB, is held at hub", "Ana <ana@hub.example>", "4 March 2027, 05:06 UTC"}, b64(9000)[:40]},
		{"small attachments stay", kind("mixed", "b") + part("b", plain, "two\n") + part("b", jpeg, b64(30)) + part("b", jpeg, b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|two", "image/jpeg|", held + "a.jpg"}, nil, ""},
		{"all fits", kind("mixed", "b") + part("b", plain, "two\n") + part("b", jpeg, b64(9000)) + "--b--\n", 64 << 10, nil, nil, ""},
		{"too little would be held", kind("mixed", "b") + part("b", plain, strings.Repeat("eight by\n", 900)) + part("b", jpeg, b64(900)) + "--b--\n", 8 << 10, nil, nil, ""},
		{"alternative", kind("alternative", "b") + part("b", plain, "plain\n") + part("b", "Content-Type: text/html", "<p>"+strings.Repeat("html ", 2000)+"</p>\n") + "--b--\n", 8 << 10,
			[]string{"text/plain|plain"}, []string{"the same text as HTML (text/html, 10.0 kB)"}, "<p>"},
		{"nested as Outlook does", kind("mixed", "m") + part("m", "Content-Type: multipart/related; boundary=r", part("r", "Content-Type: multipart/alternative; boundary=a",
			part("a", plain, "inner\n")+part("a", "Content-Type: text/html", "<b>x</b>\n")+"--a--\n")+part("r", jpeg, b64(5000))+"--r--\n") +
			part("m", "Content-Type: application/pdf; name=big.pdf\nContent-Transfer-Encoding: base64", b64(30000)) + "--m--\n", 8 << 10,
			[]string{"text/plain|inner", "image/jpeg|", held + "big.pdf (application/pdf, 30.0 kB)"}, []string{"2 parts of it"}, ""},
		{"html only", kind("mixed", "b") + part("b", "Content-Type: text/html; charset=utf-8", "<p>only</p>\n") + part("b", jpeg, b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/html|<p>only</p>", held + "a.jpg"}, nil, ""},
		{"no text at all", kind("mixed", "b") + part("b", jpeg, b64(9000)) + part("b", jpeg, b64(12000)) + "--b--\n", 8 << 10, []string{held + "a.jpg", held + "a.jpg"}, nil, ""},
		{"the whole body is a PDF", top + "Content-Type: application/pdf; name=\"scan.pdf\"\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=scan.pdf\n\n" + b64(9000), 8 << 10,
			[]string{held + "scan.pdf (application/pdf, 9.0 kB)"}, nil, "Content-Disposition: attachment"},
		{"a long text", top + plain + "\n\n" + strings.Repeat("a line of the log\n", 2000), 8 << 10,
			[]string{"text/plain|a line of the log", "text/plain|[The text goes on: 29."}, []string{"the rest of a text (text/plain, 29."}, ""},
		{"without any MIME", "From: ana@hub.example\nSubject: log\n\n" + strings.Repeat("a line of the log\n", 2000), 8 << 10,
			[]string{"|a line of the log", "text/plain|[The text goes on: 29."}, nil, ""},
		{"a text in base64 that is cut", top + plain + "\nContent-Transfer-Encoding: base64\n\n" + lines(base64.StdEncoding.EncodeToString([]byte(strings.Repeat("Grüße ", 4000))), 77), 8 << 10,
			[]string{"text/plain|Grüße Grüße", "text/plain|[The text goes on"}, nil, ""},
		{"quoted-printable in one line", top + plain + "\nContent-Transfer-Encoding: quoted-printable\n\n" + strings.Repeat("=C3=BC", 680) + "\n", 1000,
			[]string{"text/plain|üüüü", "text/plain|[The text goes on"}, nil, ""},
		{"eight bits of another charset", kind("mixed", "b") + part("b", latin, "caf\xe9\n") + part("b", jpeg, b64(9000)) + "--b--\n", 8 << 10, []string{"text/plain|caf\xe9", held + "a.jpg"}, nil, ""},
		{"no last boundary", kind("mixed", "b") + part("b", plain, "cut off\n") + part("b", jpeg, b64(9000)), 8 << 10, []string{"text/plain|cut off", held + "a.jpg (image/jpeg, 9.0 kB)"}, nil, ""},
		{"inner multipart left open", kind("mixed", "m") + part("m", "Content-Type: multipart/alternative; boundary=a", part("a", plain, "open\n")) + part("m", jpeg, b64(9000)) + "--m--\n", 8 << 10,
			[]string{"text/plain|open", held + "a.jpg"}, nil, ""},
		{"preamble, epilogue, spaces behind the boundary", kind("mixed", "b") + "This is MIME.\n--b \n" + plain + "\n\nhere\n" + part("b", jpeg, b64(9000)) + "--b-- \nafter all\n--b\nnot a part\n", 8 << 10,
			[]string{"text/plain|here", held + "a.jpg"}, nil, "after all"},
		{"no boundary", top + "Content-Type: multipart/mixed\n\n--b\n\nx\n" + b64(9000), 8 << 10,
			[]string{held + "the whole mail (multipart/mixed, "}, []string{"cannot be taken apart (its parts have no boundary)"}, "--b\n"},
		{"no parts", kind("mixed", "b") + b64(9000), 8 << 10, []string{held + "the whole mail"}, []string{"no part of it was found"}, ""},
		{"too many parts", kind("mixed", "b") + strings.Repeat(part("b", plain, "x\n"), 1001) + "--b--\n", 8 << 10, []string{held + "the whole mail"}, []string{"more than 1000 parts"}, ""},
		{"a type that is none", kind("mixed", "b") + part("b", "Content-Type: \x01rubbish; =", "odd\n") + part("b", jpeg, b64(9000)) + "--b--\n", 8 << 10,
			[]string{"|odd", held + "a.jpg"}, nil, ""},
		{"a header line without a colon", kind("mixed", "b") + part("b", "rubbish\n"+plain, "still text\n") + part("b", jpeg, b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|still text", held + "a.jpg"}, nil, ""},
		{"a name with blanks and no quotes", kind("mixed", "b") + part("b", plain, "t\n") + part("b", "Content-Type: application/pdf; name=my big file.pdf\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment", b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|t", held}, nil, ""},
		{"RFC 2231", kind("mixed", "b") + part("b", plain, "t\n") + part("b", "Content-Type: image/png\nContent-Disposition: attachment;\n filename*0*=utf-8''Gr%C3%BC;\n filename*1*=%C3%9Fe.png\nContent-Transfer-Encoding: base64", b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|t", held + "Grüße.png (image/png, "}, nil, ""},
		{"RFC 2047 in a parameter", kind("mixed", "b") + part("b", plain, "t\n") + part("b", "Content-Type: image/png; name=\"=?utf-8?q?Gr=C3=BC=C3=9Fe.png?=\"\nContent-Transfer-Encoding: base64", b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|t", held + "Grüße.png"}, nil, ""},
		{"a name that turns and injects", kind("mixed", "b") + part("b", plain, "t\n") + part("b", "Content-Type: image/png\nContent-Disposition: attachment;\n filename*=utf-8''a%E2%80%AEgnp.exe%0D%0ABcc%3A%20evil%40x.example%00%1B%5B2J\nContent-Transfer-Encoding: base64", b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|t", held + "a?gnp.exe  Bcc: evil@x.example??[2J (image/png"}, nil, "\nBcc:"},
		{"a forwarded mail is one part", kind("mixed", "b") + part("b", plain, "see below\n") + part("b", "Content-Type: message/rfc822", "From: x@y.example\nContent-Type: multipart/signed; boundary=z\n\n--z\n\n"+b64(9000)+"--z--\n") + "--b--\n", 8 << 10,
			[]string{"text/plain|see below", held + "a part without a name (message/rfc822"}, nil, ""},
		{"inline text with a file name", kind("mixed", "b") + part("b", plain, "t\n") + part("b", "Content-Type: text/plain; name=log.txt\nContent-Disposition: inline; filename=log.txt", strings.Repeat("log log\n", 3000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|t", held + "log.txt (text/plain, 27.0 kB)"}, nil, "log log"},
		{"signed", kind("signed; protocol=\"application/pgp-signature\"", "b") + part("b", "Content-Type: multipart/mixed; boundary=m", part("m", plain, "trust me\n")+part("m", jpeg, b64(9000))+"--m--\n") +
			part("b", "Content-Type: application/pgp-signature", "-----BEGIN PGP SIGNATURE-----\n") + "--b--\n", 8 << 10,
			[]string{"text/plain|trust me", held + "a.jpg", held + "a part without a name (application/pgp-signature"}, []string{"is SIGNED. Nothing in this summary is signed or verified"}, ""},
		{"encrypted", kind("encrypted; protocol=\"application/pgp-encrypted\"", "b") + part("b", "Content-Type: application/pgp-encrypted", "Version: 1\n") + part("b", "Content-Type: application/octet-stream", b64(9000)) + "--b--\n", 8 << 10,
			[]string{held + "a part without a name (application/pgp-encrypted", held + "a part without a name (application/octet-stream"}, []string{"is ENCRYPTED. Nothing of it can be shown"}, "\nVersion: 1\n"},
		{"DKIM", "DKIM-Signature: v=1; b=abc\n" + kind("mixed", "b") + part("b", plain, "Hello\n") + part("b", jpeg, b64(9000)) + "--b--\n", 8 << 10,
			[]string{"text/plain|Hello", held + "a.jpg"}, []string{"(DKIM). This summary has none; the whole mail still verifies"}, "b=abc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, got := summarise(t, crlf(c.mail), c.limit)
			if c.want == nil {
				if got != "" {
					t.Fatalf("a summary:\n%.2000s", got)
				}
				return
			}
			if got == "" {
				t.Fatal("it goes whole")
			}
			h, note, parts := read(t, got)
			for i := range max(len(parts), len(c.want)) {
				if i >= len(parts) || i >= len(c.want) || !strings.HasPrefix(parts[i], c.want[i]) {
					t.Fatalf("parts %.300q\nwant  %q", parts, c.want)
				}
			}
			for _, w := range c.note {
				if !strings.Contains(note, w) {
					t.Errorf("the note lacks %q:\n%s", w, note)
				}
			}
			if c.not != "" && strings.Contains(strings.ReplaceAll(got, "\r\n", "\n"), c.not) {
				t.Errorf("%q is in\n%s", c.not, got)
			}
			if int64(len(got)) > c.limit+8<<10 {
				t.Errorf("%d bytes", len(got))
			}
			if h.Get("Reply-To") != "<release+token@hub.example>" || h.Get("Message-Id") != "<new@hub.example>" || h.Get("X-Mochila-Summary") != "QUEUEID" || h.Get("Bcc") != "" {
				t.Errorf("header %v", h)
			}
		})
	}
}

// TestHeader: what is repeated, what is not, and in which thread the summary stands.
func TestHeader(t *testing.T) {
	long := strings.Repeat(" someone.with.a.long.name@hub.example,\n", 150)
	_, _, got := summarise(t, crlf("Received: from a by b; today\nReceived: from x by y; yesterday\nDKIM-Signature: v=1; d=x\n h=from\nARC-Seal: i=1\n"+
		"From: =?utf-8?q?Gr=C3=BCn?= <g@hub.example>\nfrom: second@hub.example\nReply-To: list@hub.example\nTo:"+long+" end@hub.example\nSUBJECT: =?utf-8?q?caf=C3=A9?=\n folded\n"+
		"Message-ID: <4@h>\nIn-Reply-To: <3@h>\nReferences: <1@h>\n <2@h> nonsense <3@h>\nDisposition-Notification-To: <spy@hub.example>\nBcc: secret@hub.example\n"+
		"X-Odd: 1\nList-Id: <l.hub.example>\nbad line\nX\x01Y: z\n\n"+strings.Repeat("text\n", 4000)), 8<<10)
	h, note, _ := read(t, got)
	for name, want := range map[string]string{"Received": "from a by b; today", "From": "=?utf-8?q?Gr=C3=BCn?= <g@hub.example>", "Subject": "=?utf-8?q?caf=C3=A9?= folded",
		"In-Reply-To": "<4@h>", "References": "<1@h> <2@h> <3@h> <4@h>", "List-Id": "<l.hub.example>"} {
		if g := h.Get(name); g != want {
			t.Errorf("%s: %q, want %q", name, g, want)
		}
	}
	if len(h["Received"]) != 2 || len(h["From"]) != 1 {
		t.Errorf("Received %q, From %q", h["Received"], h["From"])
	}
	for _, name := range []string{"To", "Dkim-Signature", "Arc-Seal", "Disposition-Notification-To", "Bcc", "X-Odd"} {
		if g := h.Get(name); g != "" {
			t.Errorf("%s: %q", name, g)
		}
	}
	if !strings.Contains(note, "Left out because they are too long: To.") || !strings.Contains(note, "list@hub.example") {
		t.Errorf("note %s", note)
	}
	for _, raw := range []string{"SUBJECT: =?utf-8?q?caf=C3=A9?=\r\n folded\r\n"} {
		if !strings.Contains(got, raw) {
			t.Errorf("%q is not as it was", raw)
		}
	}
}

// TestSealing tells signed and encrypted mail from others.
func TestSealing(t *testing.T) {
	enc := func(s string) string { return lines(base64.StdEncoding.EncodeToString([]byte(s)), 76) }
	pgp := "hello\n-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nx\n"
	for _, c := range []struct {
		mail string
		want Sealing
	}{
		{top + "\nhello\n", Open},
		{top + "\n> -----BEGIN PGP MESSAGE-----\n", Open},
		{top + "\n" + pgp, Signed},
		{top + "\n-----BEGIN PGP MESSAGE-----\n\nabc\n", Encrypted},
		{top + "Content-Transfer-Encoding: quoted-printable\n\n=2D----BEGIN PGP SIGNED MESSAGE-----\n", Signed},
		{top + "Content-Transfer-Encoding: base64\n\n" + enc(strings.Repeat("long ", 300)+pgp), Signed},
		{top + "Content-Type: text/html\nContent-Transfer-Encoding: base64\n\n" + enc("<pre>\n-----BEGIN PGP MESSAGE-----\n"), Encrypted},
		{top + "Content-Type: application/pkcs7-mime; smime-type=signed-data; name=smime.p7m\n\nabc\n", Signed},
		{top + "Content-Type: application/x-pkcs7-mime;\n smime-type=enveloped-data\n\nabc\n", Encrypted},
		{top + "Content-Type: application/octet-stream; name=\"smime.p7m\"\n\nabc\n", Encrypted},
		{kind("signed", "b") + part("b", plain, "x\n") + "--b--\n", Signed},
		{kind("mixed", "m") + part("m", "Content-Type: multipart/signed; boundary=b", part("b", plain, "x\n")+"--b--\n") + part("m", plain, "list footer\n") + "--m--\n", Signed},
		{kind("mixed", "m") + part("m", "Content-Type: Multipart/Encrypted; boundary=b", part("b", plain, "x\n")+"--b--\n") + "--m--\n", Encrypted},
		{kind("mixed", "m") + part("m", plain+"; name=key.asc\nContent-Disposition: attachment", "-----BEGIN PGP MESSAGE-----\n") + "--m--\n", Open},
		{top + "Content-Type: multipart/signed\n\nno boundary\n", Signed},
	} {
		m, err := Read(strings.NewReader(crlf(c.mail)))
		if err != nil || m.Sealing != c.want {
			t.Errorf("%v, %v, want %v:\n%s", m.Sealing, err, c.want, c.mail[len(top):])
		}
	}
	m, err := Read(strings.NewReader(crlf(kind("report; report-type=delivery-status", "b") + part("b", plain, "x\n") + "--b--\n")))
	if err != nil || !m.Report {
		t.Errorf("a report: %v, %v", m.Report, err)
	}
}

// made gives a mail of any size without keeping it.
type made struct {
	head, line, end string
	n               int64 // lines
	pos             int64
}

func (m *made) size() int64 { return int64(len(m.head)) + m.n*int64(len(m.line)) + int64(len(m.end)) }

func (m *made) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && m.pos < m.size() {
		at := m.pos
		var from string
		switch body := int64(len(m.head)) + m.n*int64(len(m.line)); {
		case at < int64(len(m.head)):
			from = m.head[at:]
		case at < body:
			from = m.line[(at-int64(len(m.head)))%int64(len(m.line)):]
		default:
			from = m.end[at-body:]
		}
		k := copy(p[n:], from)
		n += k
		m.pos += int64(k)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (m *made) Seek(to int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, fmt.Errorf("whence %d", whence)
	}
	m.pos = to
	return to, nil
}

// TestMemory: neither a large attachment, nor a header or a line without end, takes memory.
func TestMemory(t *testing.T) {
	long := strings.Repeat("x", 100)
	for name, m := range map[string]*made{
		"attachment": {head: crlf(kind("mixed", "b") + part("b", plain, "hi\n") + part("b", "Content-Type: image/png\nContent-Transfer-Encoding: base64", "")), line: strings.Repeat("QUJD", 19) + "\r\n", end: "--b--\r\n", n: 400_000},
		"text":       {head: crlf(top + "\n"), line: long + "\r\n", n: 300_000},
		"one line":   {head: crlf(top + "\n"), line: long, n: 300_000},
		"header":     {head: crlf(top), line: "Received: " + long + "\r\n", end: "\r\n", n: 250_000},
		"field":      {head: crlf(top) + "Cc: x\r\n", line: " " + long + ",\r\n", end: "\r\nx\r\n", n: 300_000},
		"part head":  {head: crlf(kind("mixed", "b") + "--b\nContent-Type: text/plain;\n"), line: " a=" + long + ";\r\n", end: "\r\nx\r\n--b--\r\n", n: 300_000},
	} {
		if m.size() < 28_000_000 {
			t.Fatalf("%s: only %d bytes", name, m.size())
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f, err := Read(m)
		if err != nil {
			t.Fatal(err)
		}
		if c := f.Choose(64 << 10); c != nil {
			if err := c.Write(io.Discard, m, testNote()); err != nil {
				t.Fatal(err)
			}
		} else if name != "header" && name != "part head" && name != "field" {
			t.Errorf("%s: no summary", name)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 4<<20 {
			t.Errorf("%s: %d bytes were allocated for a mail of %d", name, got, m.size())
		}
		if f.Size != m.size() {
			t.Errorf("%s: size %d, want %d", name, f.Size, m.size())
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"a.txt": "a.txt", "a\r\nb": "a  b", "\u202egnp.exe": "?gnp.exe", "x\u200by\u2066z": "x?y?z", "\xff": "?", "a\u2028b": "a b", " t ": "t",
		strings.Repeat("n", 50) + ".tar.gz": strings.Repeat("n", 14) + "…" + "ar.gz",
	} {
		if got := Clean(in, 20); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzRead: whatever a mail is, its parts lie inside of it, in order, and its summary can be read again and is no larger
// than the limit and the note allow.
func FuzzRead(f *testing.F) {
	jpeg := "Content-Type: image/jpeg; name=\"a.jpg\"\nContent-Transfer-Encoding: base64"
	f.Add([]byte(crlf(kind("mixed", "b")+part("b", plain, "Hello\n")+part("b", jpeg, b64(4000))+"--b--\n")), uint16(500))
	f.Add([]byte(crlf(kind("alternative", "b")+part("b", plain, "Hello\n")+part("b", "Content-Type: text/html", "<p>\n")+"--b--\n")), uint16(9))
	f.Add([]byte(crlf(top+plain+"\nContent-Transfer-Encoding: quoted-printable\n\n"+strings.Repeat("=C3=BC", 1000))), uint16(700))
	f.Add([]byte("\r\n\r\n--\r\n"), uint16(0))
	f.Fuzz(func(t *testing.T, data []byte, limit uint16) {
		r := bytes.NewReader(data)
		m, err := Read(r)
		if err != nil {
			t.Fatal(err)
		}
		at := int64(0)
		for _, p := range m.Parts {
			if p.from < at || p.to < p.from || p.to > int64(len(data)) {
				t.Fatalf("part %d-%d behind %d in %d bytes", p.from, p.to, at, len(data))
			}
			at = p.to
		}
		c := m.Choose(int64(limit))
		if c == nil {
			return
		}
		var w bytes.Buffer
		if err := c.Write(&w, r, testNote()); err != nil {
			t.Fatal(err)
		}
		// header, note and a line for each part come on top; part headers of those that go do, too
		if most := int(limit) + 60<<10 + 9<<10*len(m.Parts); w.Len() > most {
			t.Fatalf("%d bytes, limit %d", w.Len(), limit)
		}
		if again, err := Read(bytes.NewReader(w.Bytes())); err != nil || again.Broken != "" || len(again.Parts) < 2 {
			t.Fatalf("the summary: %v, %q, %d parts", err, again.Broken, len(again.Parts))
		}
		if !slices.Equal(ids(again(t, w.Bytes()).value("message-id")), []string{"<new@hub.example>"}) {
			t.Fatalf("message id of\n%s", w.Bytes())
		}
	})
}

func again(t *testing.T, b []byte) *Mail {
	t.Helper()
	m, err := Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// BenchmarkRead looks through a mail of 30 MB, which is what a route with a summary costs at the mail's acceptance.
func BenchmarkRead(b *testing.B) {
	m := &made{head: crlf(kind("mixed", "b") + part("b", plain, "hi\n") + part("b", "Content-Type: image/png\nContent-Transfer-Encoding: base64", "")), line: strings.Repeat("QUJD", 19) + "\r\n", end: "--b--\r\n", n: 400_000}
	b.SetBytes(m.size())
	b.ReportAllocs()
	for b.Loop() {
		m.pos = 0
		if _, err := Read(m); err != nil {
			b.Fatal(err)
		}
	}
}
