package transport_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// TestMain lets the test binary play the program at the other end of a pipe: it joins its standard input and output
// to a unix socket.
func TestMain(m *testing.M) {
	if path := os.Getenv("MOCHILA_TEST_JOIN"); path != "" {
		conn, err := net.Dial("unix", path)
		if err != nil {
			os.Stderr.WriteString("cannot reach the test\n")
			os.Exit(7)
		}
		done := make(chan struct{}, 2)
		go func() { io.Copy(conn, os.Stdin); done <- struct{}{} }()
		go func() { io.Copy(os.Stdout, conn); done <- struct{}{} }()
		<-done
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func unixListen(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

func acceptFrom(l net.Listener) func(t *testing.T) transport.Stream {
	return func(t *testing.T) transport.Stream {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
}

func TestUnixConforms(t *testing.T) {
	l, path := unixListen(t)
	transporttest.TestDialer(t, transport.NewUnix(path), acceptFrom(l))
}

func TestCommandConforms(t *testing.T) {
	l, path := unixListen(t)
	t.Setenv("MOCHILA_TEST_JOIN", path)
	d := transport.NewCommand("pipe:test", os.Args[0])
	accept := acceptFrom(l)
	transporttest.TestStream(t, func(t *testing.T) (a, b transport.Stream) {
		a, err := d.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return a, accept(t)
	})
}

func TestCommandTellsWhyItFailed(t *testing.T) {
	s, err := transport.NewCommand("pipe:x", "/bin/sh", "-c", "echo no route to camp >&2; exit 3").Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = io.ReadAll(s)
	if err == nil || !strings.Contains(err.Error(), "no route to camp") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	if _, err := transport.NewCommand("pipe:y", "/no/such/program").Dial(t.Context()); err == nil {
		t.Error("a missing program was started")
	}
}

func TestLiveURLs(t *testing.T) {
	for _, url := range []string{"ssh:hub", "ssh:me@hub.example:2222", "ssh:me@hub?home=/srv/m", "unix:/run/x.sock", "pipe:socat - TCP:hub:2424?x", "tcp:hub:2424?socks=127.0.0.1:9050"} {
		c, err := transport.Parse(transport.Schemes(), url)
		if err != nil || c.Dialer == nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{"ssh:", "ssh:-oProxyCommand=x", "ssh:me@-x", "ssh:hub;reboot", "ssh:hub:99999", "ssh:hub?home=/a b", "unix:relative", "pipe:", "tcp:hub?socks=nowhere"} {
		if _, err := transport.Parse(transport.Schemes(), url); err == nil {
			t.Errorf("%s was accepted", url)
		}
	}
}

// TestSOCKS reaches a listener through a proxy that speaks just enough of RFC 1928.
func TestSOCKS(t *testing.T) {
	target := listen(t)
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go socks(c, target.Addr().String())
		}
	}()
	d, err := transport.NewTCP("hub.example:2424", 0).Via(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	far, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	go s.Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// socks answers one CONNECT by name and joins it to addr.
func socks(c net.Conn, addr string) {
	defer c.Close()
	head := make([]byte, 2)
	if _, err := io.ReadFull(c, head); err != nil {
		return
	}
	io.CopyN(io.Discard, c, int64(head[1]))
	c.Write([]byte{5, 0})
	req := make([]byte, 5)
	if _, err := io.ReadFull(c, req); err != nil || req[3] != 3 {
		return
	}
	name := make([]byte, int(req[4])+2)
	if _, err := io.ReadFull(c, name); err != nil || !bytes.HasPrefix(name, []byte("hub.example")) {
		return
	}
	far, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer far.Close()
	c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	go io.Copy(far, c)
	io.Copy(c, far)
}
