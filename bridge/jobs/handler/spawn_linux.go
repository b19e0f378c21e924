package handler

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// NoCore keeps this process from writing core files, once, at its start. Handlers never write any; in a process that
// would, each of them has to start in the slower way, through the shim.
func NoCore() error {
	var core unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_CORE, &core)
	if err == nil && core.Cur != 0 {
		core.Cur = 0
		err = unix.Setrlimit(unix.RLIMIT_CORE, &core)
	}
	if err != nil {
		return fmt.Errorf("turning core files off: %w", err)
	}
	return nil
}

// closeOnExec keeps from handlers the descriptors that this process got from whoever started it. Its own all have
// the flag already.
func closeOnExec() {
	unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
}

// limit is one resource limit as the kernel wants it.
type limit struct {
	Resource   int
	Soft, Hard uint64
}

// order lists the limits that differ from those of this process. Those that can stop the shim itself come last.
func (l Limits) order() ([]limit, error) {
	var list []limit
	add := func(resource int, soft, hard uint64) error {
		var now unix.Rlimit
		if err := unix.Getrlimit(resource, &now); err != nil {
			return fmt.Errorf("resource limit %d: %w", resource, err)
		}
		if soft, hard = min(soft, now.Max), min(hard, now.Max); soft != now.Cur || hard != now.Max {
			list = append(list, limit{resource, soft, hard})
		}
		return nil
	}
	var err error
	same := func(resource int, value uint64) {
		if value > 0 {
			err = errors.Join(err, add(resource, value, value))
		}
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return nil, fmt.Errorf("resource limit of core files: %w", err)
	}
	if core.Cur != 0 {
		list = append(list, limit{unix.RLIMIT_CORE, 0, 0})
	}
	same(unix.RLIMIT_FSIZE, uint64(l.FileSize))
	same(unix.RLIMIT_NOFILE, uint64(l.Files))
	if s := uint64((l.CPU + time.Second - 1) / time.Second); s > 0 {
		err = errors.Join(err, add(unix.RLIMIT_CPU, s, s+1))
	}
	same(unix.RLIMIT_AS, uint64(l.Memory))
	same(unix.RLIMIT_NPROC, uint64(l.Processes))
	return list, err
}

// child is a started process, not yet waited for: its number cannot become another's.
type child struct {
	pid  int
	born uint64   // clock ticks since boot when it started, 0 when only the kernel knows
	end  int      // a descriptor that is readable when the process has ended; -1 where the kernel cannot tell so
	gate *os.File // of the shim: the plan goes in, and out comes what stopped it. nil: the program runs already
	plan []byte
}

// spawn starts the program, or the shim that will become the program.
func (l *Launcher) spawn(s *Spec, acct *Account, fds [3]int, limits []limit) (*child, error) {
	if len(limits) == 0 {
		c, err := l.plain(s, acct, fds)
		if !errors.Is(err, errUmask) {
			return c, err
		}
	}
	return startShim(s, acct, fds, limits)
}

func attributes(acct *Account, env []string, dir string, fds ...int) *syscall.ProcAttr {
	a := &syscall.ProcAttr{Dir: dir, Env: env, Files: make([]uintptr, 0, len(fds)), Sys: &syscall.SysProcAttr{Setsid: true}}
	if a.Env == nil {
		a.Env = []string{}
	}
	for _, fd := range fds {
		a.Files = append(a.Files, uintptr(fd))
	}
	if acct != nil {
		a.Sys.Credential = &syscall.Credential{Uid: acct.UID, Gid: acct.GID, Groups: acct.Groups}
	}
	return a
}

// start makes the process.
func start(path string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	c := &child{end: -1}
	attr.Sys.PidFD = &c.end
	before := bootTicks()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c.pid = pid
	if after := bootTicks(); after == before {
		c.born = after
	}
	return c, nil
}

// endsBy returns true when the process has ended, and leaves it to be waited for; false when it has not until then, or
// that cannot be told. This thread waits: for a short time that is less work than to have the others wake it.
func (c *child) endsBy(until time.Time) bool {
	for c.end >= 0 {
		left := time.Until(until)
		if left <= 0 {
			break
		}
		wait := unix.NsecToTimespec(left.Nanoseconds())
		n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(c.end), Events: unix.POLLIN}}, &wait, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			return false
		default:
			return waitFor(c.pid, unix.WNOHANG)
		}
	}
	return false
}

// ends returns when the process has ended, and leaves it to be waited for. It needs no thread if the kernel allows that.
func (c *child) ends() {
	handle := c.end
	c.end = -1
	if f := watched(handle); f != nil {
		defer f.Close()
		gone := false
		if raw, err := f.SyscallConn(); err == nil {
			raw.Read(func(uintptr) bool { gone = waitFor(c.pid, unix.WNOHANG); return gone })
		}
		if gone {
			return
		}
	}
	waitFor(c.pid, 0)
}

// watched makes a file of a descriptor that stands for a process, for which no thread has to wait; nil if that is not
// possible. The descriptor is the file's, or closed.
func watched(handle int) *os.File {
	if handle < 0 {
		return nil
	}
	if unix.SetNonblock(handle, true) != nil {
		unix.Close(handle)
		return nil
	}
	f := os.NewFile(uintptr(handle), "process")
	if f.SetReadDeadline(time.Time{}) != nil { // it cannot be polled
		f.Close()
		return nil
	}
	return f
}

// waitFor reports whether a child has ended.
func waitFor(pid, options int) bool {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT|options, nil)
		if err != unix.EINTR {
			return err != nil || info.Signo != 0
		}
	}
}

// restrict takes from this thread, and from what it starts, the capabilities that a service manager gave this
// process to hand on, and if wanted the gain of rights by set-user-id programs.
func restrict(noNewPrivs bool) error {
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: Linux before 4.3 has none
		return fmt.Errorf("giving up capabilities: %w", err)
	}
	if noNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no new privileges: %w", err)
		}
	}
	return nil
}

// precheck looks whether directory and program are there. It says so in better words than exec, and a dead network
// file system hangs this one run here: inside of fork it would hang the whole process.
func precheck(s *Spec) error {
	d, err := os.Stat(s.Dir)
	if err != nil {
		return fmt.Errorf("working directory %q: %w", s.Dir, bare(err))
	} else if !d.IsDir() {
		return fmt.Errorf("working directory %q: %w", s.Dir, unix.ENOTDIR)
	}
	p, err := os.Stat(s.Command[0])
	switch {
	case err != nil:
		return fmt.Errorf("program %q: %w", s.Command[0], bare(err))
	case !p.Mode().IsRegular():
		return fmt.Errorf("program %q is not a file", s.Command[0])
	case p.Mode()&0o111 == 0:
		return fmt.Errorf("program %q is not executable", s.Command[0])
	}
	return nil
}

// bare strips the path from an error that is about to be told with it.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// explain puts an error of exec into words.
func explain(s *Spec, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	if perr := precheck(s); perr != nil {
		return perr
	}
	what := fmt.Sprintf("program %q", s.Command[0])
	switch errno {
	case unix.ENOENT:
		return fmt.Errorf("%s: its interpreter (%s) is missing: %w", what, interpreter(s.Command[0]), err)
	case unix.ENOEXEC:
		return fmt.Errorf("%s is neither a binary for this machine nor a script with #! in its first line: %w", what, err)
	case unix.EACCES:
		who := "the user of this node"
		if s.User != "" {
			who = fmt.Sprintf("user %q", s.User)
		}
		return fmt.Errorf("%s may not be run, or directory %q not be entered, by %s: %w", what, s.Dir, who, err)
	case unix.E2BIG:
		return fmt.Errorf("%s: arguments and environment are too long for this system: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// interpreter reads the first line of a script.
func interpreter(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	head := make([]byte, 256)
	n, _ := f.Read(head)
	line, ok := bytes.CutPrefix(head[:n], []byte("#!"))
	if !ok {
		return "its loader or a library"
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	return strconv.Quote(string(bytes.TrimSpace(line)))
}
