package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ErrLocked is wrapped by Lock when another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// Locked is a held lock. It ends with Unlock or with the process.
type Locked struct{ f *os.File }

// Lock takes an advisory lock (flock) on the file path, made if missing, without waiting. The file holds the owner's
// process number, which the error of whoever comes second names. The file stays when the lock is given up: removing
// it would let two processes lock two files of one name.
func Lock(path string) (*Locked, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	if err := flock(f); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %q: %w", path, err)
		}
		b, _ := io.ReadAll(io.LimitReader(f, 32))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			return nil, fmt.Errorf("%q is held by process %d: %w", path, pid, ErrLocked)
		}
		return nil, fmt.Errorf("%q: %w", path, ErrLocked)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	// The number is for people: a full disk must not keep a node from starting.
	if err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		f.Close()
		return nil, fmt.Errorf("locking %q: %w", path, err)
	}
	return &Locked{f}, nil
}

// flock repeats the call when a signal interrupts it.
func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			return err
		}
	}
}

// Unlock gives the lock up. A second call does nothing.
func (l *Locked) Unlock() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	// Not by closing alone: a process that is being started at this moment has a copy of the file until its exec.
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	return errors.Join(err, f.Close())
}
