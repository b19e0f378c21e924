package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// clockTicks is USER_HZ, which Linux has fixed at 100 on everything that this runs on.
const clockTicks = 100

// stat is what /proc/PID/stat tells, in clock ticks; dead children that were waited for are in kids.
type stat struct {
	parent    int
	own, kids int64
}

func readStat(pid string) (stat, bool) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return stat{}, false
	}
	// the name in parentheses may hold anything
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 15 || f[0] == "Z" {
		return stat{}, false
	}
	n := func(i int) int64 { v, _ := strconv.ParseInt(f[i], 10, 64); return v }
	return stat{int(n(1)), n(11) + n(12), n(13) + n(14)}, true
}

// tree finds a process and all that descend from it.
func tree(root int) map[int]stat {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	all := map[int]stat{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if s, ok := readStat(filepath.Base(d)); ok {
			all[pid] = s
		}
	}
	out := map[int]stat{}
	for pid, s := range all {
		for at, hops := pid, 0; hops < 20; hops++ {
			if at == root {
				out[pid] = s
				break
			}
			up, ok := all[at]
			if !ok {
				break
			}
			at = up.parent
		}
	}
	return out
}

// cpu is the processor time that a process, its descendants and its dead children have used.
func cpu(root int) time.Duration {
	var ticks int64
	for _, s := range tree(root) {
		ticks += s.own + s.kids
	}
	return time.Duration(ticks) * time.Second / clockTicks
}

// ownCPU is the processor time that this process and its dead children have used.
func ownCPU() time.Duration {
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// memory is the resident memory of a process and its descendants in bytes: all of it, its peak as the kernel keeps it,
// and now without the pages of files. Pages that several processes share count for each of them.
func memory(root int) (rss, peak, anon int64) {
	for pid := range tree(root) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			v, _ := strconv.ParseInt(f[1], 10, 64)
			switch f[0] {
			case "VmRSS:":
				rss += v << 10
			case "VmHWM:":
				peak += v << 10
			case "RssAnon:":
				anon += v << 10
			}
		}
	}
	return rss, peak, anon
}

// watch samples the memory of a process tree until stop, which returns the peaks.
func watch(root int) (stop func() (rss, anon int64)) {
	end := make(chan struct{})
	var wg sync.WaitGroup
	var rss, anon int64
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			_, r, a := memory(root)
			rss, anon = max(rss, r), max(anon, a)
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	})
	return func() (int64, int64) {
		close(end)
		wg.Wait()
		_, r, a := memory(root)
		return max(rss, r), max(anon, a)
	}
}
