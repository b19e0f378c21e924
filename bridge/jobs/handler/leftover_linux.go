package handler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stat is what /proc/PID/stat says of a process (proc_pid_stat(5)).
type stat struct {
	pid, group, session int
	dead                bool   // a zombie, not waited for yet
	ticks               uint64 // since boot, when it started
}

func parseStat(b []byte) (stat, error) {
	bad := func() (stat, error) { return stat{}, fmt.Errorf("malformed process status %q", b[:min(len(b), 80)]) }
	// The second field is a name in parentheses that may hold anything, parentheses and newlines too.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return bad()
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return bad()
	}
	var s stat
	var errs [4]error
	s.pid, errs[0] = strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	s.group, errs[1] = strconv.Atoi(f[2])
	s.session, errs[2] = strconv.Atoi(f[3])
	s.ticks, errs[3] = strconv.ParseUint(f[19], 10, 64)
	if errors.Join(errs[:]...) != nil {
		return bad()
	}
	s.dead = f[0] == "Z" || f[0] == "X"
	return s, nil
}

func readStat(pid int) (stat, error) {
	var buf [1024]byte
	b, err := readSmall("/proc/"+strconv.Itoa(pid)+"/stat", buf[:])
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// tickBits of a start time are clock ticks since boot, enough for three hundred years. The bits above tell one boot
// from another.
const tickBits = 40

func boot() (uint64, error) {
	var buf [64]byte
	b, err := readSmall("/proc/sys/kernel/random/boot_id", buf[:])
	if err != nil {
		return 0, fmt.Errorf("telling this boot from others: %w", err)
	}
	if len(b) < 6 {
		return 0, fmt.Errorf("telling this boot from others: boot_id %q", b)
	}
	n, err := strconv.ParseUint(string(b[:6]), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("telling this boot from others: %w", err)
	}
	return n << tickBits, nil
}

// bootID is what boot says.
type bootID struct {
	id  uint64
	err error
}

// startTime is StartTime of a process that this one has started. Nearly always it did so within one tick of the clock,
// and need not ask.
func (b bootID) startTime(c *child) (uint64, error) {
	if c.born != 0 {
		return b.id | c.born, b.err
	}
	return StartTime(c.pid)
}

// bootTicks is the time since boot in the ticks in which the kernel tells of processes (USER_HZ), 0 when it is unknown.
func bootTicks() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return uint64(t.Nano()) / uint64(time.Second/userHZ)
}

// userHZ is USER_HZ, 100 on everything that Go runs on.
const userHZ = 100

// StartTime is a number that only this process with this pid has: not one that gets the pid later, nor one that had
// it before the machine was started. Apart from that it means nothing.
func StartTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	if err != nil {
		return 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	b, err := boot()
	return b | s.ticks, err
}

// Leftover finds the living processes of a run of which a crash left only a record: those in the group and session
// of the process that started was told of. A process that is not of this run is never among them, even if it has got
// the same number. pid 0 stands for a run of which not even that was recorded.
//
// mark is an entry of the run's environment that no other run has, such as MOCHILA_JOB_ID=…. It tells whose group it
// is when the first process of the group is gone, and finds the processes of a run that was not recorded. Without a
// mark, nothing is found in these cases.
func Leftover(pid int, startTime uint64, mark string) ([]int, error) {
	b, err := boot()
	if err != nil {
		return nil, err
	}
	since := uint64(0)
	if pid != 0 {
		if since = startTime - b; startTime < b || since >= 1<<tickBits {
			return nil, nil // before this boot
		}
	}
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var members []int
	ours := false
	for _, p := range all {
		if p.pid == pid {
			if p.ticks != since {
				return nil, nil // the number is another's: it was free, so the whole group was gone
			}
			ours = true
		}
		in := p.group == pid || p.session == pid
		if pid == 0 {
			in = !p.dead && marked(p.pid, mark)
		}
		if !in || p.ticks < since {
			continue
		}
		ours = ours || pid == 0 || marked(p.pid, mark)
		if !p.dead {
			members = append(members, p.pid)
		}
	}
	if !ours {
		return nil, nil
	}
	return members, nil
}

// marked reports whether a process was started with this entry in its environment. It is not when that cannot be
// told, because the process belongs to another user.
func marked(pid int, mark string) bool {
	if mark == "" || pid == os.Getpid() {
		return false
	}
	env, err := environ(pid)
	return err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+mark+"\x00"))
}

// bareRounds is how often, a millisecond apart, a process must be seen without an environment to have none. Of those that
// exec without end, 4 in a row were seen once in some thousand looks.
const bareRounds = 20

// environ is the environment that a process was started with. In the middle of an exec there is none for a moment, nor
// arguments, and a process must not pass for another's in that moment: environ waits until it is over.
func environ(pid int) ([]byte, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	for round, bare := 0, 0; ; round++ {
		env, err := os.ReadFile(dir + "/environ")
		if err != nil || len(env) > 0 {
			return env, err
		}
		if _, err := os.Readlink(dir + "/exe"); err != nil {
			return nil, nil // one of the kernel's own, or dead
		}
		// The arguments come an instant before the environment. Who has them and no environment was given none, if that
		// lasts: one look at each may be from both sides of an exec, and programs may follow each other fast.
		args, err := os.ReadFile(dir + "/cmdline")
		if bare++; len(args) == 0 {
			bare = 0
		}
		if err != nil || bare >= bareRounds || round >= 1000 {
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
}

// processes reads the whole process table.
func processes() ([]stat, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var all []stat
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil { // else it has just ended
			all = append(all, s)
		}
	}
	return all, nil
}

// killRounds bounds how often processes are looked for that were started while the others were killed.
const killRounds = 50

// maxHandles bounds the descriptors that one round holds.
const maxHandles = 256

// KillGroup ends what Leftover finds: SIGTERM, after the grace SIGKILL, until nothing is left. Grace 0 kills at
// once. It returns how many processes it found, and an error when some are still there: they are not ours to kill,
// or hang in the kernel, or ctx ended.
func KillGroup(ctx context.Context, pid int, startTime uint64, mark string, grace time.Duration) (int, error) {
	find := func() ([]int, error) { return Leftover(pid, startTime, mark) }
	found := map[int]bool{}
	for round := range killRounds {
		held, err := hold(find)
		if err != nil || len(held) == 0 {
			return len(found), err
		}
		sig, wait := unix.SIGKILL, DefaultGrace
		if round == 0 && grace > 0 {
			sig, wait = unix.SIGTERM, grace
		}
		// At once for the whole group, so that none of it escapes by a fork. hold has just seen that it is ours.
		if pid > 0 {
			unix.Kill(-pid, sig)
		}
		for p, fd := range held {
			found[p] = true
			unix.PidfdSendSignal(fd, sig, nil, 0)
			unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0)
		}
		alive, err := await(ctx, held, wait)
		release(held)
		switch {
		case err != nil:
			return len(found), fmt.Errorf("ending process group %d: %w", pid, err)
		case alive > 0 && sig == unix.SIGKILL:
			return len(found), fmt.Errorf("%d processes of group %d do not die", alive, pid)
		}
	}
	return len(found), fmt.Errorf("group %d starts processes faster than they can be killed", pid)
}

// killSession kills the processes that left the group, but not the session, of a process that is not waited for yet.
func killSession(pid int) {
	told := map[int]bool{pid: true}
	for range killRounds {
		held, err := hold(func() ([]int, error) {
			all, err := processes()
			var in []int
			for _, p := range all {
				if p.session == pid && !p.dead && !told[p.pid] {
					in = append(in, p.pid)
				}
			}
			return in, err
		})
		if err != nil || len(held) == 0 {
			return
		}
		for p, fd := range held {
			told[p] = true
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		release(held)
	}
}

// hold returns descriptors of processes that find names. It asks again once it has them: who is named then is the one
// that the descriptor stands for, even if numbers were given away in between, or is gone.
func hold(find func() ([]int, error)) (map[int]int, error) {
	first, err := find()
	if err != nil {
		return nil, err
	}
	held := map[int]int{}
	for _, p := range first[:min(len(first), maxHandles)] {
		if fd, err := unix.PidfdOpen(p, 0); err == nil {
			held[p] = fd
		} else if !errors.Is(err, unix.ESRCH) {
			release(held)
			return nil, fmt.Errorf("process %d: %w", p, err)
		}
	}
	if len(held) == 0 {
		return nil, nil
	}
	again, err := find()
	if err != nil {
		release(held)
		return nil, err
	}
	for p, fd := range held {
		if !slices.Contains(again, p) {
			unix.Close(fd)
			delete(held, p)
		}
	}
	return held, nil
}

func release(held map[int]int) {
	for _, fd := range held {
		unix.Close(fd)
	}
}

// await waits until all have ended and returns how many have not.
func await(ctx context.Context, held map[int]int, wait time.Duration) (int, error) {
	var fds []unix.PollFd
	for _, fd := range held {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	const slice = 100 * time.Millisecond // ctx is looked at as often
	for end := time.Now().Add(wait); ; {
		left := min(time.Until(end), slice)
		_, err := unix.Poll(fds, int(max(left, 0)/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return len(fds), err
		}
		if err == nil {
			fds = slices.DeleteFunc(fds, func(f unix.PollFd) bool { return f.Revents != 0 })
		}
		if len(fds) == 0 || left <= 0 {
			return len(fds), nil
		}
		if err := ctx.Err(); err != nil {
			return len(fds), err
		}
	}
}
