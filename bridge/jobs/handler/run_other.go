//go:build !linux

package handler

import (
	"context"
	"errors"
	"time"
)

// Handlers need what only Linux has: /proc, and limits and a umask for one thread or a process that is about to be.
var errOther = errors.New("handlers run on Linux only")

// NoCore does nothing here.
func NoCore() error { return nil }

// ShimMain does nothing here.
func ShimMain() {}

// Launcher starts nothing here.
type Launcher struct{}

// Close does nothing here.
func (*Launcher) Close() {}

// Run starts nothing here.
func (*Launcher) Run(context.Context, Spec, func(pid int, startTime uint64) error) Outcome {
	return Outcome{Exit: -1, Err: errOther.Error()}
}

// NotStarted is the outcome of a run that could not begin.
func NotStarted(err error) Outcome { return Outcome{Exit: -1, Err: err.Error()} }

// Prepared is nothing here.
type Prepared struct{}

// Prepare prepares nothing here.
func (*Launcher) Prepare(Spec) (*Prepared, error) { return nil, errOther }

// Close does nothing here.
func (*Prepared) Close() {}

// Run starts nothing here.
func (*Prepared) Run(context.Context, func(pid int, startTime uint64) error, func()) Outcome {
	return NotStarted(errOther)
}

// StartTime is unknown here.
func StartTime(int) (uint64, error) { return 0, errOther }

// Leftover finds nothing here.
func Leftover(int, uint64, string) ([]int, error) { return nil, nil }

// KillGroup finds nothing here.
func KillGroup(context.Context, int, uint64, string, time.Duration) (int, error) { return 0, nil }
