package smtpd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// SocketMode is the usual permission of a unix socket for mail: who may connect may relay.
const SocketMode fs.FileMode = 0o660

// ListenUnix listens on a unix socket at path with the given permission. The socket appears there complete, by
// rename: at no time can others connect, and a socket that a crash left behind is replaced. A socket on which
// somebody answers, or anything that is not a socket, is an error. Closing the listener removes the socket.
func ListenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	if err := freeSocket(path); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	temp := filepath.Join(filepath.Dir(path), "."+rand.Text()[:10])
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	u := &unixListener{UnixListener: ln, path: path}
	err = os.Chmod(temp, mode)
	if err == nil {
		u.info, err = os.Lstat(temp)
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, errors.Join(err, os.Remove(temp), ln.Close()))
	}
	return u, nil
}

// freeSocket reports why path cannot be taken.
func freeSocket(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return errors.New("there is a file that is not a socket")
	}
	nc, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		nc.Close()
	}
	if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
		return errors.New("somebody else listens there")
	}
	return nil
}

// unixListener removes its own socket, and only that, when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
	once sync.Once
}

// Close stops listening and removes the socket.
func (u *unixListener) Close() error {
	u.once.Do(func() {
		if fi, err := os.Lstat(u.path); err == nil && os.SameFile(fi, u.info) {
			os.Remove(u.path)
		}
	})
	return u.UnixListener.Close()
}

// Addr is where clients find the socket.
func (u *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: u.path, Net: "unix"} }
