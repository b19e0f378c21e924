//go:build unix && !linux

package submit

import "syscall"

const oPath = syscall.O_RDONLY

func wait(fd int, write bool) error { return syscall.SetNonblock(fd, false) }

func syncfs(int) error { syscall.Sync(); return nil }
