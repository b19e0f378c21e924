// Package handler runs one job as one process, and nothing else: it knows no queue, no node and no spool.
//
// A handler is a program with arguments, never a line for a shell. It starts in a session and process group of its
// own, with exactly the environment, directory, user, umask and limits of its Spec, its whole standard input ready,
// and its output counted and capped. It is over when its process has exited and nobody holds its output open; whoever
// of its group does so for longer than the grace is killed. docs/handlers.md is the contract with those who write
// handlers and those who configure them.
//
// What a job may ask for is decided before, by ArgPolicy and EnvPolicy. What a crash of the daemon leaves behind is
// found and killed by KillGroup.
//
// A program that sets limits is started by way of a second start of this binary: its main must call ShimMain first.
package handler

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// DefaultGrace is the time between SIGTERM and SIGKILL, and that for which output may stay open after the end.
const DefaultGrace = 10 * time.Second

// Spec says everything about one run.
type Spec struct {
	Command []string // the program, an absolute path that is not searched for, and its fixed arguments
	Args    []string // of the job, behind those; ArgPolicy has passed them
	Env     []string // the complete environment, "K=V", no name twice
	Dir     string   // working directory, absolute
	User    string   // name or number of the account to run as; "" is that of this process. Another one needs root
	Umask   int      // of the program, 0 to 0777; 0 makes its files writable for everybody

	Timeout time.Duration // then SIGTERM to the group; 0: none
	Grace   time.Duration // then SIGKILL; 0: DefaultGrace

	Limits     Limits
	NoNewPrivs bool // no set-user-id program, sudo for one, gives the handler or its children more rights

	// Stdin is the complete and verified input, StdinSize its bytes; nil and 0: /dev/null. A regular file opened for
	// reading only becomes the program's input itself, from its present offset. From another reader, an end or
	// error before StdinSize, or a byte after, kills the program before it sees an end of input. Reads must not
	// block for ever.
	Stdin     io.Reader
	StdinSize int64

	// Stdout and Stderr take the first OutputCap bytes of each stream (negative: all); nil takes none. They are
	// written to from two goroutines, so they must not be one writer. The rest is read and counted.
	Stdout, Stderr io.Writer
	OutputCap      int64
}

// Limits are resource limits (setrlimit(2)) of each process of a handler. 0 leaves what this process has, but no
// core file is ever written. None can be more than the hard limit of this process.
type Limits struct {
	CPU       time.Duration // of one process, in whole seconds, rounded up: SIGXCPU, and a second later SIGKILL
	Memory    int64         // address space, bytes
	FileSize  int64         // of each file written, bytes: SIGXFSZ
	Files     int           // open descriptors
	Processes int           // of the user on the whole machine, threads included: only with a User of its own, never root
}

// Outcome tells how a run went.
type Outcome struct {
	Exit   int // exit status, -1 when there is none
	Signal int // that ended the process, 0 for none

	Started time.Time // zero: nothing ever ran
	Ended   time.Time // never before Started, whatever the clock does

	StdoutBytes, StderrBytes int64 // produced, not only those kept
	Truncated                bool  // some of them were not kept

	TimedOut  bool // it was asked to end, or killed, because of Spec.Timeout
	Cancelled bool // the same, because the context ended
	Lingered  bool // its output stayed open for the grace after it had exited; what remained of its group was killed

	// Err says why the program could not start, or, with Started set, what of ours went wrong while it ran and made
	// us kill it: its outcome means nothing then.
	Err       string
	Temporary bool   // Err may pass by itself: no memory, too many processes or open files
	SinkErr   string // Stdout or Stderr failed; the rest of that stream was counted and dropped

	User, System time.Duration // CPU time of the process and the children it waited for
}

// Ran reports whether the program started.
func (o *Outcome) Ran() bool { return !o.Started.IsZero() }

// OK reports whether the program ran and ended by itself with status 0.
func (o *Outcome) OK() bool {
	return o.Ran() && o.Err == "" && o.Exit == 0 && !o.TimedOut && !o.Cancelled
}

// Status is the exit status as a shell has it: 128+N after signal N, 255 when the program did not start or we broke
// it off for a reason of ours.
func (o *Outcome) Status() int {
	switch {
	case o.Err != "" || !o.Ran():
		return 255
	case o.Signal != 0:
		return 128 + o.Signal
	}
	return o.Exit
}

// Check finds what is wrong with a Spec whatever the machine looks like, for use when a configuration is read and
// before every run.
func (s *Spec) Check() error {
	if len(s.Command) == 0 || s.Command[0] == "" {
		return errors.New("no command")
	}
	if !filepath.IsAbs(s.Command[0]) {
		return fmt.Errorf("command %q is not an absolute path", s.Command[0])
	}
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("working directory %q is not an absolute path", s.Dir)
	}
	for _, a := range s.argv() {
		if strings.IndexByte(a, 0) >= 0 {
			return fmt.Errorf("argument %q holds a NUL", a)
		}
	}
	if strings.IndexByte(s.Dir, 0) >= 0 || strings.IndexByte(s.User, 0) >= 0 {
		return errors.New("directory or user holds a NUL")
	}
	names := make(map[string]bool, len(s.Env))
	for _, e := range s.Env {
		name, _, ok := strings.Cut(e, "=")
		switch {
		case !ok || name == "" || strings.IndexByte(e, 0) >= 0:
			return fmt.Errorf("environment entry %q is not NAME=VALUE", e)
		case names[name]:
			return fmt.Errorf("environment holds %q twice", name)
		}
		names[name] = true
	}
	switch {
	case s.Umask < 0 || s.Umask > 0o777:
		return fmt.Errorf("umask %#o is out of range", s.Umask)
	case s.Timeout < 0 || s.Grace < 0:
		return errors.New("negative timeout or grace")
	case s.Limits.CPU < 0 || s.Limits.Memory < 0 || s.Limits.FileSize < 0 || s.Limits.Files < 0 || s.Limits.Processes < 0:
		return errors.New("negative limit")
	case s.Limits.Processes > 0 && s.User == "":
		return errors.New("a limit of processes needs a user of its own: it counts all processes of that user")
	case s.Stdin == nil && s.StdinSize != 0 || s.StdinSize < 0:
		return fmt.Errorf("input of %d bytes without a source", s.StdinSize)
	}
	return nil
}

func (s *Spec) argv() []string {
	return append(append(make([]string, 0, len(s.Command)+len(s.Args)), s.Command...), s.Args...)
}

func (s *Spec) grace() time.Duration {
	if s.Grace == 0 {
		return DefaultGrace
	}
	return s.Grace
}

// passing reports whether a failure to start may not be one the next time.
func passing(err error) bool {
	for _, e := range []error{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.ETXTBSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
