package bridge

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelSynced asks the kernel whether something keeps its clock (adjtimex(2): not STA_UNSYNC).
func kernelSynced() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}

// sinceBoot names this run of the machine and tells how long it has lasted, sleep included (CLOCK_BOOTTIME).
func sinceBoot() (boot string, up time.Duration, ok bool) {
	var t unix.Timespec
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return "", 0, false
	}
	return strings.TrimSpace(string(id)), time.Duration(t.Nano()), true
}
