//go:build !linux

package transport

import "syscall"

// tuneSocket has nothing to tune here.
func tuneSocket(network, address string, c syscall.RawConn) error { return nil }
