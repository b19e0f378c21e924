package handler

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Launcher runs handlers. It keeps the threads that start them: what a thread gives up so that a program starts without
// it cannot be taken back, and a new one for each program costs more than the start itself. The zero value is ready for
// use, from several goroutines.
type Launcher struct {
	once sync.Once
	own  traits // of the other threads of this process
	pure bool   // own is known, and there is nothing to give up
	boot bootID

	mu      sync.Mutex
	threads map[traits]*thread
	all     sync.WaitGroup
}

// traits are what a program inherits from the thread that starts it.
type traits struct {
	umask      int
	noNewPrivs bool
}

// maxThreads bounds what a Launcher keeps; a node has one or two. Who wants another gets one that ends with its program's
// start.
const maxThreads = 16

// thread is an operating system thread with certain traits, or the reason why there is none.
type thread struct {
	work chan func()
	err  error
}

// Close ends the threads. Nothing may run any more, and nothing be started after it.
func (l *Launcher) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t, th := range l.threads {
		close(th.work)
		delete(l.threads, t)
	}
	l.all.Wait()
}

// prepare looks, once, at what does not change while this process lives.
func (l *Launcher) prepare() {
	closeOnExec()
	mask, ambient, err := inherited()
	l.own, l.pure = traits{umask: mask}, err == nil && !ambient
	l.boot.id, l.boot.err = boot()
}

// plain starts the program from a thread that has the umask and the rights that the program shall inherit: from this one
// if only the umask is another, else from one that is kept for it.
func (l *Launcher) plain(s *Spec, acct *Account, fds [3]int) (c *child, err error) {
	attr, argv := attributes(acct, s.Env, s.Dir, fds[:]...), s.argv()
	want := traits{s.Umask, s.NoNewPrivs}
	if l.pure && want == l.own {
		return start(argv[0], argv, attr)
	}
	if l.pure && !want.noNewPrivs && l.masked(want.umask, func() { c, err = start(argv[0], argv, attr) }) {
		return c, err
	}
	th, kept := l.thread(want)
	if !kept {
		defer close(th.work)
	}
	if th.err != nil {
		return nil, th.err
	}
	done := make(chan struct{})
	th.work <- func() { c, err = start(argv[0], argv, attr); close(done) }
	<-done
	return c, err
}

// masked calls f while this thread alone has another umask; it reports false, and has not called it, where that is not
// possible. A thread that was told not to share its umask shares it with those that it makes itself: so it is told
// anew each time, and it makes none while a goroutine is locked to it. No program of ours changes its directory later,
// which those threads would not see.
func (l *Launcher) masked(umask int, f func()) bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Unshare(unix.CLONE_FS) != nil {
		return false
	}
	unix.Umask(umask)
	defer unix.Umask(l.own.umask)
	f()
	return true
}

// thread returns the one that has the traits. One that is not kept is the caller's, who closes its channel.
func (l *Launcher) thread(want traits) (th *thread, kept bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if th := l.threads[want]; th != nil {
		return th, true
	}
	th = &thread{work: make(chan func())}
	ready := make(chan error)
	l.all.Go(func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		err := restrict(want.noNewPrivs)
		if err == nil {
			err = private(want.umask)
		}
		ready <- err
		for f := range th.work {
			f()
		}
	})
	th.err = <-ready
	if len(l.threads) >= maxThreads {
		return th, false
	}
	if l.threads == nil {
		l.threads = map[traits]*thread{}
	}
	l.threads[want] = th
	return th, true
}

var errUmask = errors.New("a thread of its own umask is not possible here")

// private gives this thread the umask without touching the others.
func private(umask int) error {
	if err := unix.Unshare(unix.CLONE_FS); err == nil {
		unix.Umask(umask)
		return nil
	}
	// Some containers forbid unshare(2). The umask of the process may happen to be the right one.
	if mask, _, err := inherited(); err != nil || mask != umask {
		return errUmask
	}
	return nil
}

// inherited reads which umask this thread hands on, and whether capabilities too.
func inherited() (umask int, ambient bool, err error) {
	var buf [4096]byte
	b, err := readSmall("/proc/thread-self/status", buf[:])
	if err != nil {
		return 0, false, err
	}
	v, ok := statusLine(b, "Umask:")
	n, err := strconv.ParseUint(v, 8, 32)
	if !ok || err != nil {
		return 0, false, errUmask
	}
	caps, ok := statusLine(b, "CapAmb:")
	return int(n), ok && strings.Trim(caps, "0") != "", nil
}

// statusLine finds a value in a file like /proc/self/status (proc_pid_status(5)).
func statusLine(b []byte, name string) (string, bool) {
	_, b, ok := bytes.Cut(b, []byte("\n"+name))
	b, _, _ = bytes.Cut(b, []byte("\n"))
	return string(bytes.TrimSpace(b)), ok
}

// readSmall reads a file of /proc, as much as fits, in fewer system calls than os.ReadFile.
func readSmall(path string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return buf[:n], nil
}
