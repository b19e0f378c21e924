//go:build unix && !linux

package submit

import "syscall"

func hostname() string {
	s, _ := syscall.Sysctl("kern.hostname")
	return s
}
