package handler

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
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
	gate *os.File // of the shim: the plan goes in, and out comes what stopped it. nil: the program runs already
	plan []byte
}

// spawn starts the program, or the shim that will become the program.
func spawn(s *Spec, acct *Account, fds [3]int) (*child, error) {
	limits, err := s.Limits.order()
	if err != nil {
		return nil, err
	}
	if len(limits) == 0 {
		pid, err := plain(s, acct, fds)
		if !errors.Is(err, errUmask) {
			return &child{pid: pid}, err
		}
	}
	return startShim(s, acct, fds, limits)
}

func attributes(acct *Account, env []string, dir string, fds ...int) *syscall.ProcAttr {
	a := &syscall.ProcAttr{Dir: dir, Env: env, Sys: &syscall.SysProcAttr{Setsid: true}}
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

var errUmask = errors.New("a thread of its own umask is not possible here")

// plain starts the program from a thread that has the umask and the rights that the program shall inherit: any
// thread if this process happens to have them, else a new one that ends then, because they cannot be taken back.
func plain(s *Spec, acct *Account, fds [3]int) (int, error) {
	closeOnExec()
	attr, argv := attributes(acct, s.Env, s.Dir, fds[:]...), s.argv()
	if suits(s) {
		return syscall.ForkExec(argv[0], argv, attr)
	}
	type result struct {
		pid int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		var r result
		if r.err = restrict(s.NoNewPrivs); r.err == nil {
			r.err = private(s.Umask)
		}
		if r.err == nil {
			r.pid, r.err = syscall.ForkExec(argv[0], argv, attr)
		}
		done <- r
	}()
	r := <-done
	return r.pid, r.err
}

// suits reports whether what this process starts gets the right umask, and no rights that it has to give up.
func suits(s *Spec) bool {
	mask, ambient, err := inherited()
	return err == nil && mask == s.Umask && !ambient && !s.NoNewPrivs
}

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
