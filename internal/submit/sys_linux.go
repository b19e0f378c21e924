package submit

import (
	"runtime"
	"syscall"
	"unsafe"
)

//go:linkname enterBlocking runtime.entersyscallblock
func enterBlocking()

//go:linkname leaveBlocking runtime.exitsyscall
func leaveBlocking()

// blocking does a system call that is known to wait. During syscall.Syscall a thread of the runtime wakes up every
// 0.1 ms to see whether it waits: half of all context switches of this process, most of which it spends waiting for its
// mail to be durable. Between the two calls the stack must not grow.
//
//go:nosplit
func blocking(call uintptr, fd int, p unsafe.Pointer, n int) (int, syscall.Errno) {
	enterBlocking()
	r, _, e := syscall.RawSyscall(call, uintptr(fd), uintptr(p), uintptr(n))
	leaveBlocking()
	return int(r), e
}

// readSlow is read(2) for what takes a while.
func readSlow(fd int, b []byte) (int, error) {
	n, e := blocking(syscall.SYS_READ, fd, unsafe.Pointer(unsafe.SliceData(b)), len(b))
	if e != 0 {
		return 0, e
	}
	return n, nil
}

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
		_, e := blocking(n, fd, nil, 0)
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

func fsync(fd int) error {
	for {
		switch _, e := blocking(syscall.SYS_FSYNC, fd, nil, 0); e {
		case 0:
			return nil
		case syscall.EINTR:
		default:
			return e
		}
	}
}

func newSocket() (int, error) {
	return syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
}
