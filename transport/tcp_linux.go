package transport

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// tuneSocket keeps little unsent data in the kernel, so that an urgent packet overtakes a big one there, too.
func tuneSocket(network, address string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 2*maxSlice) // only speed is lost without
	})
}
