package submit

import "syscall"

// Thin wrappers around system calls: they retry EINTR, and wait where a descriptor was made non-blocking by
// somebody who shares it.

func readFD(fd int, b []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, b)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			if err := wait(fd, false); err != nil {
				return 0, err
			}
		default:
			return 0, err
		}
	}
}

func writeFD(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if n > 0 {
			b = b[n:]
		}
		switch err {
		case nil, syscall.EINTR:
		case syscall.EAGAIN:
			if err := wait(fd, true); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

func openFD(path string, flags int, perm uint32) (int, error) {
	for {
		fd, err := syscall.Open(path, flags|syscall.O_CLOEXEC, perm)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

func fsync(fd int) error {
	for {
		if err := syscall.Fsync(fd); err != syscall.EINTR {
			return err
		}
	}
}

// readFile reads the beginning of a file into b, as far as both go.
func readFile(path string, b []byte) (int, error) {
	fd, err := openFD(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	return readFD(fd, b)
}

// readAll reads a file of up to limit bytes.
func readAll(path string, limit int) ([]byte, error) {
	fd, err := openFD(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	b := make([]byte, 4<<10)
	for n := 0; ; {
		k, err := readFD(fd, b[n:])
		if err != nil {
			return nil, err
		}
		n += k
		if k == 0 || n >= limit {
			return b[:n], nil
		}
		if n == len(b) {
			b = append(b, make([]byte, len(b))...)
		}
	}
}

// random fills b from the kernel. The names in the maildrop rest on it: there is no lesser source to fall back to.
func random(b []byte) error {
	fd, err := openFD("/dev/urandom", syscall.O_RDONLY, 0)
	if err != nil {
		return fault(ExOSErr, "/dev/urandom: "+err.Error())
	}
	defer syscall.Close(fd)
	for n := 0; n < len(b); {
		k, err := readFD(fd, b[n:])
		if err != nil || k == 0 {
			return fault(ExOSErr, "reading /dev/urandom")
		}
		n += k
	}
	return nil
}

// appendBase32 writes b in the lower-case alphabet that survives every file system (RFC 4648, no padding).
func appendBase32(out, b []byte) []byte {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567"
	var acc uint
	bits := 0
	for _, c := range b {
		acc = acc<<8 | uint(c)
		for bits += 8; bits >= 5; {
			bits -= 5
			out = append(out, alphabet[acc>>bits&31])
		}
	}
	if bits > 0 {
		out = append(out, alphabet[acc<<(5-bits)&31])
	}
	return out
}
