package peertest

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// PTYs is a cable between two pseudo terminals, which programs open as they open serial devices.
type PTYs struct {
	A, B   string // device paths
	Faults atomic.Int64
}

// NewPTYs makes a cable. harm, if set, may change what is on its way, a handful of bytes at a time, and says whether it did; it is
// called from two goroutines.
func NewPTYs(t testing.TB, harm func(b []byte) bool) *PTYs {
	t.Helper()
	p := &PTYs{}
	a, slaveA := openPTY(t, &p.A)
	b, slaveB := openPTY(t, &p.B)
	var both sync.WaitGroup
	pass := func(from, to *os.File) {
		buf := make([]byte, 256)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if harm != nil && harm(buf[:n]) {
				p.Faults.Add(1)
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	both.Go(func() { pass(a, b) })
	both.Go(func() { pass(b, a) })
	t.Cleanup(func() {
		for _, f := range []*os.File{a, b, slaveA, slaveB} {
			f.Close()
		}
		both.Wait()
	})
	return p
}

// openPTY opens a pseudo terminal in raw mode. The slave stays open, so that the master does not see an end between two programs.
func openPTY(t testing.TB, path *string) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("SKIPPED: no pseudo terminals here: %v", err)
	}
	c, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		var n int
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		*path = fmt.Sprintf("/dev/pts/%d", n)
	})
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(*path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED: pseudo terminal %s: %v", *path, err)
	}
	mode, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	mode.Cflag = mode.Cflag&^unix.CSIZE | unix.CS8
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	return master, slave
}
