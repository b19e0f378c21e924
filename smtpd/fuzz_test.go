package smtpd

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// FuzzAddress: an accepted path is plain text, and reads back to itself when it is put on the wire again.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"<a@b.example>", "<>", `<"x> NOTIFY=NEVER "@e.f> RET=FULL`, "a@b", "<@x,@y:z@w> A=B", `<"a\"b">`, "<postmaster>", "<j\xc3\xb6@x>", "<a@[IPv6:::1]>", `<"\`, "<a\x00@b>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, rest, err := parsePath(s)
		if err != nil {
			return
		}
		if len(addr) > maxAddress || hasControl(addr) {
			t.Fatalf("parsePath(%q) accepted %q", s, addr)
		}
		if !strings.HasSuffix(s, rest) {
			t.Fatalf("parsePath(%q) left %q", s, rest)
		}
		again, rest, err := parsePath("<" + addr + "> NOTIFY=NEVER")
		if err != nil || again != addr || rest != " NOTIFY=NEVER" {
			t.Fatalf("%q from %q reads back as %q, %q, %v", addr, s, again, rest, err)
		}
	})
}

// FuzzParams: whatever is accepted holds no character that could end a parameter on the wire.
func FuzzParams(f *testing.F) {
	f.Add("SIZE=10 BODY=8BITMIME RET=HDRS ENVID=a=b+ AUTH=<> BY=10;RT MT-PRIORITY=-3 HOLDFOR=60")
	f.Add("HOLDUNTIL=2000-01-01T00:00:00Z")
	f.Add("NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=x400;a=b+c")
	f.Add("NOTIFY=NEVER ORCPT=utf-8;j\xc3\xb6")
	f.Fuzz(func(t *testing.T, s string) {
		if hasControl(s) {
			return
		}
		var lim Limits
		lim = lim.filled()
		c := &conn{lim: &lim, trusted: true}
		m := mailFor(t, c, s)
		if m != nil && (!isXtext(m.EnvID) || m.Auth != nil && *m.Auth != "<>" && !isXtext(*m.Auth)) {
			t.Fatalf("%q gave envid %q, auth %v", s, m.EnvID, m.Auth)
		}
		r := recipientFor(s)
		if r == nil || r.ORcpt == "" {
			return
		}
		kind, value, ok := strings.Cut(r.ORcpt, ";")
		if !ok || value == "" || strings.ContainsAny(r.ORcpt, " \t") || !strings.EqualFold(kind, "utf-8") && !isXtext(value) {
			t.Fatalf("%q gave ORCPT %q", s, r.ORcpt)
		}
		if value = fromXtext(value); value == "" {
			t.Fatalf("ORCPT %q decodes to nothing", r.ORcpt)
		}
	})
}

// FuzzDot compares the decoder, fed in two pieces cut anywhere, with one that looks at whole strings.
func FuzzDot(f *testing.F) {
	for _, s := range []string{"a\r\n.\r\n", ".\r\n", "..\r\n.\r\nNOOP\r\n", "a\n.\nb\r\n.\r\n", "a\r\r\n.\r\n", "\r\n.\r\r\n.\r\n", "a\x00\r\n.\r\n", "\n\r.\r\n", "x\r.\r\n.\rz\r\n.\r\n", "a\n..b\n.c\n.\r\n.\r\n"} {
		for cut := 0; cut < len(s); cut += 2 {
			f.Add([]byte(s), uint16(cut), cut%4 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint16, normalize bool) {
		var got collector
		d := dotDecoder{normalize: normalize}
		n := min(int(cut), len(data))
		used, end := d.feed(data[:n], &got)
		if end == dotMore {
			if used != n {
				t.Fatalf("used %d of %d without an end", used, n)
			}
			var more int
			more, end = d.feed(data[n:], &got)
			used += more
		}
		wantUsed, wantEnd, wantFault, want := decodeSlowly(data, normalize)
		if used != wantUsed || end != wantEnd {
			t.Fatalf("%q cut at %d: ended with %d after %d, want %d after %d", data, n, end, used, wantEnd, wantUsed)
		}
		if (d.fault != faultNone) != wantFault && end != dotMore {
			t.Fatalf("%q: fault %q, want %v", data, d.fault, wantFault)
		}
		if end == dotDone && (normalize || !wantFault) && got.String() != want {
			t.Fatalf("%q cut at %d: got %q, want %q", data, n, got.String(), want)
		}
	})
}

type collector struct{ bytes.Buffer }

func (c *collector) write(p []byte) { c.Buffer.Write(p) }

// decodeSlowly is the reference for FuzzDot: it splits data into lines at every LF and looks at each whole line.
func decodeSlowly(data []byte, normalize bool) (used int, end dotEnd, fault bool, content string) {
	var b strings.Builder
	afterCRLF, afterLF := true, false
	rest := string(data)
	for {
		line, tail, ok := strings.Cut(rest, "\n")
		if !ok {
			return len(data), dotMore, fault, ""
		}
		used += len(line) + 1
		rest = tail
		crlf := strings.HasSuffix(line, "\r")
		text := strings.TrimSuffix(line, "\r")
		if text == "." {
			if afterCRLF && crlf {
				return used, dotDone, fault, b.String()
			}
			if (afterCRLF || afterLF) && !normalize {
				return used, dotFalse, true, ""
			}
		}
		if !crlf {
			fault = true
		}
		if strings.ContainsAny(text, "\r\x00") {
			fault = true
		}
		if afterCRLF {
			text = strings.TrimPrefix(text, ".")
		} else if strings.HasPrefix(text, "..") {
			text = text[1:]
		}
		if crlf { // CR CR LF is one end of line
			text = strings.TrimRight(text, "\r")
		}
		text = strings.ReplaceAll(strings.ReplaceAll(text, "\x00", ""), "\r", "\r\n")
		b.WriteString(text + "\r\n")
		afterCRLF, afterLF = crlf, !crlf
	}
}

// FuzzSession: whatever a client sends, nothing panics, every intake ends once, and no mail is committed without its
// own CRLF "." CRLF.
func FuzzSession(f *testing.F) {
	f.Add([]byte("EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"), byte(0))
	f.Add([]byte("LHLO c\r\nXFORWARD NAME=x\r\nMAIL FROM:<a@b> SIZE=1\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\nDATA\r\nx\n.\r\n.\r\n"), byte(1))
	f.Add([]byte("EHLO c\nMAIL FROM:<>\nRCPT TO:<c@d>\nDATA\nx\n.\n\r\n.\r\nBDAT 10\r\n"), byte(2))
	f.Add([]byte("HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@full.example>\r\nDATA\r\nMAIL FROM:<a@b>\r\n.\r\n"), byte(4))
	f.Fuzz(func(t *testing.T, input []byte, mode byte) {
		a := &memory{}
		s := &Server{Acceptor: a, Hostname: "mx.test", LMTP: mode&1 != 0, Normalize: mode&2 != 0,
			RelayFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Limits: Limits{MessageSize: 2000, Recipients: 5}}
		s.init()
		piece := 1 << 20
		if mode&4 != 0 {
			piece = 7
		}
		nc := &scriptConn{in: bytes.NewReader(input), piece: piece}
		newConn(t.Context(), s, nc, peerless(), true).serve()
		mails := a.got()
		end := "\r\n.\r\n"
		if s.Normalize { // DATA itself may end in LF
			end = "\n.\r\n"
		}
		if ends := bytes.Count(input, []byte(end)); len(mails) > ends {
			t.Fatalf("%d mails from %d ends of data in %q", len(mails), ends, input)
		}
		for _, m := range mails {
			plain := strings.ReplaceAll(m.body, "\r\n", "")
			if strings.ContainsAny(plain, "\r\n\x00") || m.body != "" && !strings.HasSuffix(m.body, "\r\n") || len(m.body) > 2000 {
				t.Fatalf("committed %q", m.body)
			}
			if len(m.mail.Recipients) == 0 || len(m.mail.Recipients) > 5 {
				t.Fatalf("committed %d recipients", len(m.mail.Recipients))
			}
		}
		for line := range bytes.Lines(nc.out.Bytes()) {
			if len(line) > 512 || len(line) < 6 || !bytes.HasSuffix(line, []byte("\r\n")) || printable(string(line[:len(line)-2]), 600) != string(line[:len(line)-2]) {
				t.Fatalf("reply line %q", line)
			}
		}
	})
}

// scriptConn is a connection whose client has said everything already and then hangs up.
type scriptConn struct {
	in    *bytes.Reader
	piece int
	out   bytes.Buffer
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if c.in.Len() == 0 {
		return 0, io.EOF
	}
	return c.in.Read(p[:min(len(p), c.piece)])
}

func (c *scriptConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scriptConn) Close() error                     { return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scriptConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

func peerless() envelope.Client { return envelope.Client{Addr: "127.0.0.1", Port: "1"} }

// mailFor reads MAIL parameters; nil when they are refused.
func mailFor(t *testing.T, c *conn, s string) *envelope.Mail {
	t.Helper()
	m := &envelope.Mail{}
	if st := c.mailParams(m, s, time.Unix(1e9, 0)); st != nil {
		if st.Code < 500 || st.Enhanced == "" {
			t.Fatalf("%q refused with %v", s, st)
		}
		return nil
	}
	return m
}

// recipientFor reads RCPT parameters; nil when they are refused.
func recipientFor(s string) *envelope.Recipient {
	r := &envelope.Recipient{}
	if rcptParams(r, s) != nil {
		return nil
	}
	return r
}
