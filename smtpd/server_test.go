package smtpd

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"mochila/internal/envelope"
)

// talk is a client that reads replies line by line.
type talk struct {
	t  testing.TB
	nc net.Conn
	in *bufio.Reader
}

func dial(t testing.TB, network, addr string) *talk {
	t.Helper()
	nc, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(5 * time.Minute)) // the test hangs no longer than this
	return &talk{t, nc, bufio.NewReader(nc)}
}

func (c *talk) say(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, s); err != nil {
		c.t.Fatalf("write %.40q: %v", s, err)
	}
}

func (c *talk) expect(want ...string) {
	c.t.Helper()
	for _, w := range want {
		got, err := c.in.ReadString('\n')
		if err != nil || !glob(w, strings.TrimRight(got, "\r\n")) {
			c.t.Fatalf("got %q (%v), want %q", got, err, w)
		}
	}
}

func (c *talk) expectEOF() {
	c.t.Helper()
	if b, err := io.ReadAll(c.in); err != nil || len(b) > 0 {
		c.t.Fatalf("got %q, %v, want end of connection", b, err)
	}
}

// TestClient lets go-smtp's client bring mails over TCP, several connections at once.
func TestClient(t *testing.T) {
	a := &memory{}
	addr := startTCP(t, &Server{Acceptor: a})
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			c, err := smtp.Dial(addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for k := range 20 {
				body := fmt.Sprintf("Subject: %d/%d\r\n\r\n.dot\r\n%s\r\n", n, k, strings.Repeat("long ", 40000*(k%2)))
				from := fmt.Sprintf("s%d-%d@x.example", n, k)
				if err := c.SendMail(from, []string{"b@x.example", "c@x.example"}, strings.NewReader(body)); err != nil {
					t.Error(err)
					return
				}
			}
			if err := c.Quit(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, m := range a.got() {
		var n, k int
		fmt.Sscanf(m.mail.Sender, "s%d-%d@", &n, &k)
		if want := fmt.Sprintf("Subject: %d/%d\r\n\r\n.dot\r\n%s\r\n", n, k, strings.Repeat("long ", 40000*(k%2))); m.body != want {
			t.Errorf("mail %s has %d bytes, want %d", m.mail.Sender, len(m.body), len(want))
		}
		if seen[m.mail.Sender] || len(m.mail.Recipients) != 2 || m.mail.Body != "8BITMIME" {
			t.Errorf("bad or second mail %s", render(m.mail))
		}
		seen[m.mail.Sender] = true
	}
	if len(seen) != 160 {
		t.Errorf("got %d mails, want 160", len(seen))
	}
}

// TestLMTPSocket uses LMTP on a unix socket, where the permission to connect is the right to relay.
func TestLMTPSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lmtp.sock")
	ln, err := ListenUnix(path, SocketMode)
	if err != nil {
		t.Fatal(err)
	}
	a := &memory{}
	s := &Server{Acceptor: a, Hostname: "mx.test", LMTP: true}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := smtp.NewClientLMTP(nc)
	if err := c.Mail("a@x.example", &smtp.MailOptions{Return: smtp.DSNReturnHeaders, EnvelopeID: "id=1"}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []string{"b@x.example", "c@x.example"} {
		if err := c.Rcpt(r, &smtp.RcptOptions{Notify: []smtp.DSNNotify{smtp.DSNNotifyNever}}); err != nil {
			t.Fatal(err)
		}
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "hi\r\n")
	replies, err := w.CloseWithLMTPResponse()
	if err != nil || len(replies) != 2 {
		t.Fatalf("got replies %v, %v, want two", replies, err)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != ErrClosed {
		t.Errorf("Serve: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	want := "<a@x.example> ret=HDRS envid=id+3D1 body=8BITMIME proto=LMTP helo=localhost to:<b@x.example>/notify=1 to:<c@x.example>/notify=1"
	if got := renderAll(a.got()); got != "\n"+want+` "hi\r\n"` {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if err := s.Serve(context.Background(), &pipeListener{done: make(chan struct{})}); !errors.Is(err, ErrClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	ln, err := ListenUnix(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("got %v, %v, want a socket with mode 0660", fi.Mode(), err)
	}
	if got := ln.Addr().String(); got != path {
		t.Errorf("Addr is %q, want %q", got, path)
	}
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			nc.Close()
		}
	}()
	if _, err := ListenUnix(path, 0o660); err == nil {
		t.Error("a socket in use was taken away")
	}
	// A successor that has taken the name keeps its socket when the first listener closes.
	os.Remove(path)
	next, err := ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("closing removed the socket of the successor: %v", err)
	}
	// What a crash leaves behind is replaced.
	next.(*unixListener).UnixListener.Close()
	again, err := ListenUnix(path, 0o660)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	again.Close()
	again.Close()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(file, 0o660); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if _, err := ListenUnix(filepath.Join(dir, "none", "s"), 0o660); err == nil {
		t.Error("no error for a missing folder")
	}
}

// certificate makes a server certificate for "mx.test".
func certificate(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mx.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func TestStartTLS(t *testing.T) {
	a := &memory{}
	addr := startTCP(t, &Server{Acceptor: a, TLS: certificate(t), RequireTLS: true})
	c := dial(t, "tcp", addr)
	c.expect("220 *")
	c.say("EHLO before\r\n")
	c.expect("250-*", "250-*", "250-*", "250-*", "250-*", "250-*", "250-*", "250-STARTTLS", "250-*", "250-*", "250-*", "250-*", "250-*", "250 *")
	// What was said before TLS is forgotten. What comes behind STARTTLS: testdata/starttls-injection.dialog.
	c.say("MAIL FROM:<early@x.example>\r\nSTARTTLS\r\n")
	c.expect("250 *", "220 2.0.0 Ready to start TLS")
	tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	s := &talk{t, tc, bufio.NewReader(tc)}
	s.say("MAIL FROM:<a@x.example>\r\n")
	s.expect("503 5.5.1 say EHLO first")
	s.say("EHLO after\r\n")
	s.expect("250-*", "250-*", "250-*", "250-*", "250-*", "250-*", "250-*", "250-XFORWARD *", "250-REQUIRETLS", "250-*", "250-*", "250-*", "250-*", "250 *")
	s.say("STARTTLS\r\nMAIL FROM:<a@x.example> REQUIRETLS\r\nRCPT TO:<b@x.example>\r\nDATA\r\n")
	s.expect("503 5.5.1 TLS is on already", "250 *", "250 *", "354 *")
	s.say(".\r\nQUIT\r\n")
	s.expect("250 *", "221 *")
	s.expectEOF()
	got := a.got()
	if len(got) != 1 || !glob("<a@x.example> requiretls proto=ESMTPS addr=127.0.0.1 port=* helo=after tls=TLSv1.3 TLS_* to:<b@x.example>", render(got[0].mail)) {
		t.Errorf("got %s", renderAll(got))
	}
}

// TestStartTLSFails: after a failed handshake, not one word is spoken in clear.
func TestStartTLSFails(t *testing.T) {
	addr := startTCP(t, &Server{Acceptor: &memory{}, TLS: certificate(t)})
	c := dial(t, "tcp", addr)
	c.say("EHLO c\r\nSTARTTLS now\r\nSTARTTLS\r\n")
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "220 2.0.0") {
			break
		}
	}
	c.say("MAIL FROM:<a@x.example>\r\n")
	rest, _ := io.ReadAll(c.in) // a reset is as good as an end
	if strings.Contains(string(rest), "250") || strings.Contains(string(rest), "550") {
		t.Errorf("after a failed handshake the server said %q", rest)
	}
}

// TestImplicitTLS serves TLS from the first octet.
func TestImplicitTLS(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Acceptor: &memory{}, Hostname: "mx.test", TLS: certificate(t), ImplicitTLS: true, RelayFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	nc, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := &talk{t, nc, bufio.NewReader(nc)}
	c.expect("220 *")
	c.say("QUIT\r\n")
	c.expect("221 *")
	c.expectEOF()
	cancel() // the end of the context ends Serve as well
	if err := <-served; err != ErrClosed {
		t.Errorf("Serve: %v", err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestBDATReply: the reply arrives although the client is still sending its chunk.
func TestBDATReply(t *testing.T) {
	addr := startTCP(t, &Server{Acceptor: &memory{}})
	c := dial(t, "tcp", addr)
	c.expect("220 *")
	c.say("HELO c\r\n")
	c.expect("250 *")
	c.say("BDAT 1000000 LAST\r\n" + strings.Repeat("QUIT\r\n", 150000))
	c.expect("502 5.5.1 *")
	c.expectEOF()
}

// TestConnectionCaps: turned away with 421, and let in again when others have gone.
func TestConnectionCaps(t *testing.T) {
	s := &Server{Acceptor: &memory{}, Limits: Limits{Conns: 2}}
	addr := startTCP(t, s)
	one, two := dial(t, "tcp", addr), dial(t, "tcp", addr)
	one.expect("220 *")
	two.expect("220 *")
	three := dial(t, "tcp", addr)
	three.expect("421 4.3.2 too many connections")
	three.expectEOF()
	one.say("QUIT\r\n")
	one.expect("221 *")
	one.expectEOF()
	for { // the place is free a moment after the connection has ended
		again := dial(t, "tcp", addr)
		line, err := again.in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "220") {
			break
		}
	}
}

func TestGate(t *testing.T) {
	now := time.Unix(1e9, 0)
	lim := Limits{Conns: 8, ConnsPerClient: 2, ConnRate: 5}
	g := gate{clients: make(map[netip.Prefix]*visitor)}
	a, b := visitorKey(netip.MustParseAddr("192.0.2.1")), visitorKey(netip.MustParseAddr("2001:db8::1"))
	if b != visitorKey(netip.MustParseAddr("2001:db8::ffff:1")) || a == visitorKey(netip.MustParseAddr("192.0.2.2")) {
		t.Error("a client is an IPv4 address or an IPv6 /64")
	}
	enter := func(key netip.Prefix, trusted bool, want int) {
		t.Helper()
		got := 220
		if st := g.enter(now, key, trusted, &lim); st != nil {
			got = st.Code
		}
		if got != want {
			t.Errorf("got %d, want %d", got, want)
		}
	}
	enter(a, false, 220)
	enter(a, false, 220)
	enter(a, false, 421) // its third at the same time
	g.leave(a, false)
	enter(a, false, 220)
	g.leave(a, false)
	g.leave(a, false)
	enter(a, false, 220)
	g.leave(a, false)
	enter(a, false, 421) // its sixth in this minute
	now = now.Add(time.Minute)
	enter(a, false, 220)
	g.leave(a, false)
	for i := range 6 {
		enter(visitorKey(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})), false, 220)
	}
	enter(b, false, 421) // strangers have their three quarters
	enter(b, true, 220)
	enter(b, true, 220)
	enter(b, true, 421)
	if g.open != 8 || g.strange != 6 {
		t.Errorf("%d open, %d of strangers", g.open, g.strange)
	}
	lim.Conns, lim.ConnsPerClient = 1<<20, 1
	for i := range 3 * maxVisitors {
		enter(visitorKey(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})), false, 220)
		g.leave(visitorKey(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})), false)
	}
	if len(g.clients) > maxVisitors {
		t.Errorf("%d clients are remembered", len(g.clients))
	}
}

// TestShutdownKills: when patience ends, the Acceptor is told by its context and the client gets no 250.
func TestShutdownKills(t *testing.T) {
	committing := make(chan struct{})
	a := &memory{commit: func(ctx context.Context) error {
		close(committing)
		<-ctx.Done()
		return ctx.Err()
	}}
	s := &Server{Acceptor: a}
	addr := startTCP(t, s)
	c := dial(t, "tcp", addr)
	c.say("HELO c\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\nx\r\n.\r\n")
	<-committing
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v, want %v", err, context.Canceled)
	}
	c.expect("220 *", "250 *", "250 *", "250 *", "354 *")
	if rest, _ := io.ReadAll(c.in); len(rest) > 0 {
		t.Errorf("the server said %q", rest)
	}
	if n := len(a.got()); n != 0 {
		t.Errorf("%d mails were committed", n)
	}
}

// TestShutdownWaitsForCommit: a message whose end has been read is committed and answered.
func TestShutdownWaitsForCommit(t *testing.T) {
	committing, release := make(chan struct{}), make(chan struct{})
	a := &memory{commit: func(ctx context.Context) error {
		close(committing)
		<-release
		return ctx.Err()
	}}
	s := &Server{Acceptor: a}
	addr := startTCP(t, s)
	c := dial(t, "tcp", addr)
	c.say("HELO c\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\nx\r\n.\r\n")
	<-committing
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	for !s.isDraining() {
		time.Sleep(time.Millisecond)
	}
	close(release)
	c.expect("220 *", "250 *", "250 *", "250 *", "354 *", "250 2.0.0 Ok: queued as Q1", "421 4.3.2 *")
	c.expectEOF()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestAcceptErrors: a listener that fails for a moment is asked again.
func TestAcceptErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Acceptor: &memory{}, Hostname: "mx.test", RelayFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), &failingListener{Listener: ln, fails: 3}) }()
	c := dial(t, "tcp", ln.Addr().String())
	c.expect("220 *")
	ln.Close() // behind the server's back
	if err := <-served; err == nil || errors.Is(err, ErrClosed) {
		t.Errorf("Serve: %v, want the listener's error", err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	c.expect("421 *")
}

type failingListener struct {
	net.Listener
	fails int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.fails > 0 {
		l.fails--
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

// TestReplyOfCommit: a Status from Commit is the reply.
func TestReplyOfCommit(t *testing.T) {
	a := &memory{commit: func(context.Context) error { return envelope.NewStatus(452, "4.3.1", "disk full") }}
	c := dial(t, "tcp", startTCP(t, &Server{Acceptor: a}))
	c.say("HELO c\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n")
	c.expect("220 *", "250 *", "250 *", "250 *", "354 *", "452 4.3.1 disk full", "221 *")
}

// TestLHLOLength: whatever is offered and whatever the host is called, the LHLO reply fits into Exim's buffer.
func TestLHLOLength(t *testing.T) {
	for n := 1; n <= 240; n++ {
		s := &Server{Acceptor: &memory{}, Hostname: strings.Repeat("h", n), LMTP: true, TLS: &tls.Config{}, Limits: Limits{MessageSize: 1 << 60}}
		s.init()
		c := newConn(t.Context(), s, nil, envelope.Client{Addr: "127.0.0.1"}, true)
		size := 0
		for _, line := range c.capabilities(time.Now()) {
			size += len("250-") + len(line) + len("\r\n")
		}
		c.cancel()
		if size >= 250 {
			t.Fatalf("LHLO reply of %d octets with a host name of %d", size, n)
		}
	}
}

// TestServeConn: facts that the caller knows go into the mail, and the end of the context ends the dialog.
func TestServeConn(t *testing.T) {
	a := &memory{}
	s := &Server{Acceptor: a, Hostname: "mx.test", Limits: Limits{Conns: 1}}
	ctx, cancel := context.WithCancel(context.Background())
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { s.ServeConn(ctx, far, envelope.Client{UID: 1001, User: "ana"}) })
	c := &talk{t, near, bufio.NewReader(near)}
	c.expect("220 *")
	c.say("HELO c\r\n")
	c.expect("250 *")
	c.say("XFORWARD ADDR=192.0.2.1 NAME=else\r\n") // a user is who he is
	c.expect("550 5.7.1 *")
	near2, far2 := net.Pipe()
	wg.Go(func() { s.ServeConn(ctx, far2, envelope.Client{}) })
	(&talk{t, near2, bufio.NewReader(near2)}).expect("421 4.3.2 too many connections")
	for _, line := range []string{"MAIL FROM:<a@x.example>\r\n", "RCPT TO:<b@x.example>\r\n", "DATA\r\n", ".\r\n"} {
		c.say(line)
		c.expect("* *")
	}
	cancel()
	c.expect("421 4.3.2 *")
	c.expectEOF()
	wg.Wait()
	if got := a.got(); len(got) != 1 || got[0].mail.Client.UID != 1001 || got[0].mail.Client.User != "ana" {
		t.Errorf("got %s", renderAll(got))
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	near3, far3 := net.Pipe()
	wg.Go(func() { s.ServeConn(context.Background(), far3, envelope.Client{}) })
	if _, err := near3.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after Shutdown: %v, want EOF", err)
	}
	wg.Wait()
}

// TestProxyTLS: the PROXY header comes before the handshake, in the same segment if the proxy likes.
func TestProxyTLS(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &memory{}
	s := &Server{Acceptor: a, Hostname: "mx.test", TLS: certificate(t), ImplicitTLS: true,
		ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, RelayFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	tc := tls.Client(&prefixWriter{Conn: nc, prefix: "PROXY TCP4 192.0.2.7 192.0.2.1 4000 465\r\n"}, &tls.Config{InsecureSkipVerify: true})
	nc.SetDeadline(time.Now().Add(5 * time.Minute))
	c := &talk{t, tc, bufio.NewReader(tc)}
	c.expect("220 *")
	c.say("EHLO c\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@far.example>\r\nDATA\r\n")
	for line := ""; !strings.HasPrefix(line, "354"); {
		if line, err = c.in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	c.say("hi\r\n.\r\nQUIT\r\n")
	c.expect("250 *", "221 *")
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	<-served
	if got := renderAll(a.got()); !glob("\n<a@x.example> proto=ESMTPS addr=192.0.2.7 port=4000 helo=c tls=TLSv1.3 TLS_* to:<b@far.example> \"hi\\r\\n\"", got) {
		t.Errorf("got %s", got)
	}
}

// prefixWriter puts a text in front of the first write.
type prefixWriter struct {
	net.Conn
	prefix string
}

func (p *prefixWriter) Write(b []byte) (int, error) {
	if p.prefix == "" {
		return p.Conn.Write(b)
	}
	n := len(p.prefix)
	k, err := p.Conn.Write(append([]byte(p.prefix), b...))
	p.prefix = ""
	return k - n, err
}
