package transport

import "syscall"

// ownGroup puts a program into a process group of its own, and ends it when this process dies.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
