package submit

import (
	"runtime"
	"syscall"
	"unsafe"
)

// oPath opens a directory that one may pass but not read.
const oPath = 0x200000

// wait blocks until fd can be read or written. select(2) cannot watch descriptors from 1024 on; those are tried again
// at once, which costs time but loses nothing.
func wait(fd int, write bool) error {
	var set syscall.FdSet
	const word = int(8 * unsafe.Sizeof(set.Bits[0]))
	if fd >= word*len(set.Bits) {
		return nil
	}
	set.Bits[fd/word] |= 1 << (fd % word)
	r, w := &set, (*syscall.FdSet)(nil)
	if write {
		r, w = w, r
	}
	if _, err := syscall.Select(fd+1, r, w, nil, nil); err != nil && err != syscall.EINTR {
		return err
	}
	return nil
}

// syncfsCall is the number of syncfs(2), which package syscall does not name everywhere; 0 where we do not know it.
func syncfsCall() uintptr {
	switch runtime.GOARCH {
	case "amd64":
		return 306
	case "386":
		return 344
	case "arm":
		return 373
	case "arm64", "riscv64", "loong64":
		return 267
	case "ppc64", "ppc64le":
		return 348
	case "s390x":
		return 338
	case "mips", "mipsle":
		return 4342
	case "mips64", "mips64le":
		return 5301
	}
	return 0
}

// syncfs makes everything on the file system of fd durable, the directory that an ordinary user may not open
// included.
func syncfs(fd int) error {
	n := syncfsCall()
	if n == 0 {
		syscall.Sync()
		return nil
	}
	for {
		_, _, e := syscall.Syscall(n, uintptr(fd), 0, 0)
		switch e {
		case 0:
			return nil
		case syscall.EINTR:
		case syscall.ENOSYS:
			syscall.Sync()
			return nil
		default:
			return e
		}
	}
}

func newSocket() (int, error) {
	return syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
}
