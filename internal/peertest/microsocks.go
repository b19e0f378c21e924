package peertest

import (
	"net"
	"os/exec"
	"testing"
)

// SOCKS is a running private microsocks, which asks for a user and a password (RFC 1929).
type SOCKS struct {
	Addr           string // HOST:PORT
	User, Password string

	t   testing.TB
	cmd *exec.Cmd
}

// StartSOCKS starts a SOCKS5 server on loopback. It skips the test where microsocks is missing.
func StartSOCKS(t testing.TB) *SOCKS {
	t.Helper()
	path, err := exec.LookPath("microsocks")
	if err != nil {
		t.Skip("SKIPPED: microsocks is not installed: run .ci/peers")
	}
	s := &SOCKS{Addr: FreePort(t), User: "camp", Password: "mule", t: t}
	host, port, _ := net.SplitHostPort(s.Addr)
	s.cmd = exec.Command(path, "-i", host, "-p", port, "-u", s.User, "-P", s.Password)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	Await(t, "microsocks to listen", func() bool {
		c, err := net.Dial("tcp", s.Addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return s
}

// Stop ends the server and every connection through it. It may be called twice.
func (s *SOCKS) Stop() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}
