//go:build unix && !linux

package submit

import "syscall"

const oPath = syscall.O_RDONLY

func wait(fd int, write bool) error { return syscall.SetNonblock(fd, false) }

func syncfs(int) error { syscall.Sync(); return nil }

func newSocket() (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	return fd, err
}
