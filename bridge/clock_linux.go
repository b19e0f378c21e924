package bridge

import "golang.org/x/sys/unix"

// kernelSynced asks the kernel whether something keeps its clock (adjtimex(2): not STA_UNSYNC).
func kernelSynced() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}
