package control

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"mochila/internal/config"
)

// countingListener counts the connections that it takes.
type countingListener struct {
	net.Listener
	n atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// TestDialMakesOneConnection: the connection by which the daemon was found serves the requests.
func TestDialMakesOneConnection(t *testing.T) {
	dir, err := os.MkdirTemp("", "m") // t.TempDir is too long for a socket on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	home, err := config.HomeAt(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(home.ControlSocket()), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", home.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	l := &countingListener{Listener: ln}
	closed := make(chan struct{}, 10)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) }),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				closed <- struct{}{}
			}
		},
	}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	for _, requests := range []int{2, 0} {
		l.n.Store(0)
		c, err := Dial(context.Background(), home, ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for range requests {
			var out struct{}
			if err := c.Get(context.Background(), "/v1/any", &out); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-closed // what was not used is closed, too
		if n := l.n.Load(); n != 1 {
			t.Errorf("%d requests made %d connections", requests, n)
		}
	}
}
