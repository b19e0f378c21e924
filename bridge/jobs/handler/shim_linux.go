package handler

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// shimName is the argv[0] that makes this binary the shim.
const shimName = "mochila-handler"

// gateFD is the shim's end of the socket to the process that started it.
const gateFD = 3

// maxPlan bounds what the shim reads. The kernel takes 2 MiB of arguments and environment at most.
const maxPlan = 8 << 20

// What the shim says on the gate: one step byte before each step, then the number of the error, if one stopped it.
const (
	stepDir    = 'd'
	stepLimit  = 'l'
	stepRights = 'r'
	stepExec   = 'x'
)

// plan is what the shim has to do, as it travels through the gate.
type plan struct {
	Umask      int
	NoNewPrivs bool
	Limits     []limit
	Dir        string
	Argv, Env  []string
}

// marshal writes big-endian numbers, and strings behind their length.
func (p *plan) marshal() []byte {
	var b []byte
	num := func(n uint64) { b = binary.BigEndian.AppendUint64(b, n) }
	text := func(s string) { num(uint64(len(s))); b = append(b, s...) }
	num(uint64(p.Umask))
	if p.NoNewPrivs {
		num(1)
	} else {
		num(0)
	}
	num(uint64(len(p.Limits)))
	for _, l := range p.Limits {
		num(uint64(l.Resource))
		num(l.Soft)
		num(l.Hard)
	}
	text(p.Dir)
	for _, list := range [][]string{p.Argv, p.Env} {
		num(uint64(len(list)))
		for _, s := range list {
			text(s)
		}
	}
	return b
}

var errPlan = errors.New("malformed plan")

// parsePlan refuses anything but the bytes of marshal: a daemon that died while it wrote starts nothing.
func parsePlan(b []byte) (*plan, error) {
	bad := false
	num := func(limit uint64) uint64 {
		if len(b) < 8 {
			bad = true
			return 0
		}
		n := binary.BigEndian.Uint64(b)
		b = b[8:]
		if n > limit {
			bad = true
			return 0
		}
		return n
	}
	text := func() string {
		n := num(uint64(len(b)))
		if n > uint64(len(b)) {
			bad = true
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	p := &plan{Umask: int(num(0o777)), NoNewPrivs: num(1) == 1}
	for n := num(16); n > 0 && !bad; n-- {
		p.Limits = append(p.Limits, limit{int(num(64)), num(math.MaxUint64), num(math.MaxUint64)})
	}
	p.Dir = text()
	list := func() (l []string) {
		for n := num(uint64(len(b) / 8)); n > 0 && !bad; n-- {
			l = append(l, text())
		}
		return l
	}
	p.Argv, p.Env = list(), list()
	if bad || len(b) > 0 || len(p.Argv) == 0 {
		return nil, errPlan
	}
	return p, nil
}

// startShim starts this binary again, which waits for its plan. It runs as the program's user already, with an empty
// environment.
func startShim(s *Spec, acct *Account, fds [3]int, limits []limit) (*child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket to the shim: %w", err)
	}
	defer unix.Close(pair[1])
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("socket to the shim: %w", err)
	}
	gate := os.NewFile(uintptr(pair[0]), "gate")
	c, err := start("/proc/self/exe", []string{shimName}, attributes(acct, nil, "/", fds[0], fds[1], fds[2], pair[1]))
	if err != nil {
		gate.Close()
		return nil, shimError{fmt.Errorf("starting %s again, to set limits: %w", os.Args[0], err)}
	}
	p := plan{Umask: s.Umask, NoNewPrivs: s.NoNewPrivs, Limits: limits, Dir: s.Dir, Argv: s.argv(), Env: s.Env}
	c.gate, c.plan = gate, p.marshal()
	return c, nil
}

// shimError is about the shim, not about the program.
type shimError struct{ error }

// Unwrap is what went wrong.
func (e shimError) Unwrap() error { return e.error }

// pass sends the plan and returns when the program has taken the place of the shim, or with what stopped it.
func (c *child) pass() error {
	if c.gate == nil {
		return nil
	}
	defer c.gate.Close()
	_, err := c.gate.Write(c.plan)
	if err == nil {
		var raw syscall.RawConn
		if raw, err = c.gate.SyscallConn(); err == nil {
			cerr := raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) })
			err = errors.Join(err, cerr)
		}
	}
	if err != nil {
		return shimError{fmt.Errorf("telling the shim what to start: %w", err)}
	}
	said, err := io.ReadAll(io.LimitReader(c.gate, 64))
	if err != nil {
		return shimError{fmt.Errorf("waiting for the shim: %w", err)}
	}
	return verdict(string(said))
}

// verdict reads what the shim said.
func verdict(said string) error {
	i := strings.LastIndexAny(said, string([]byte{stepDir, stepLimit, stepRights, stepExec}))
	if i < 0 {
		return shimError{errors.New("the shim died (does main call handler.ShimMain first?)")}
	}
	step, number := said[i], said[i+1:]
	if step == stepExec && number == "" {
		return nil
	}
	n, err := strconv.Atoi(number)
	if err != nil {
		return shimError{fmt.Errorf("the shim died at step %q", step)}
	}
	switch errno := syscall.Errno(n); step {
	case stepDir:
		return fmt.Errorf("working directory: %w", errno)
	case stepLimit:
		return shimError{fmt.Errorf("setting limits: %w", errno)}
	case stepRights:
		return shimError{fmt.Errorf("giving up rights: %w", errno)}
	default:
		return errno
	}
}

// ShimMain must be the first call of main in a binary whose process calls Run, and of TestMain in its tests. In a
// process that Run started to set limits it becomes the handler's program, or ends; in any other it does nothing.
func ShimMain() {
	if len(os.Args) == 1 && os.Args[0] == shimName {
		os.Exit(shim())
	}
}

func shim() int {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // no new threads or memory once the limits are there
	unix.CloseOnExec(gateFD)
	closeOnExec()
	if _, err := unix.GetsockoptInt(gateFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		fmt.Fprintln(os.Stderr, shimName+": this program is started by mochila only")
		return 64
	}
	b, err := readGate()
	if err == nil && len(b) == 0 {
		return 0 // the start was called off, or the daemon is gone
	}
	var p *plan
	if err == nil {
		p, err = parsePlan(b)
	}
	if err != nil {
		return 70
	}
	return p.become()
}

func readGate() ([]byte, error) {
	var b []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(gateFD, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == 0:
			return b, nil
		case len(b)+n > maxPlan:
			return nil, errPlan
		default:
			b = append(b, buf[:n]...)
		}
	}
}

// become carries the plan out. It returns only when something failed, and has said what.
func (p *plan) become() int {
	unix.Umask(p.Umask)
	steps := []struct {
		name byte
		do   func() error
	}{
		{stepDir, func() error { return unix.Chdir(p.Dir) }},
		{stepRights, func() error { return restrict(p.NoNewPrivs) }},
		{stepLimit, func() error {
			for _, l := range p.Limits {
				if err := unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
					return err
				}
			}
			return nil
		}},
		{stepExec, func() error { return syscall.Exec(p.Argv[0], p.Argv, p.Env) }},
	}
	for _, s := range steps {
		unix.Write(gateFD, []byte{s.name})
		if err := s.do(); err != nil {
			var errno syscall.Errno
			if !errors.As(err, &errno) {
				errno = unix.EIO
			}
			unix.Write(gateFD, strconv.AppendInt(nil, int64(errno), 10))
			break
		}
	}
	return 127
}
