package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"mochila/internal/control"
)

// detached marks the process that background starts.
const detached = "MOCHILA_DETACHED"

// background starts this program once more as the daemon, in a session of its own, and waits until it serves or has
// failed; then what it said on standard error has been seen.
func (a *app) background(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@mochila-%d-%d", os.Getpid(), time.Now().UnixNano()), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listen for the daemon: %w", err)
	}
	defer ready.Close()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), detached+"=1", "NOTIFY_SOCKET="+ready.LocalAddr().String())
	cmd.Stderr = a.env.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	serves := make(chan struct{})
	go func() {
		defer close(serves)
		for buf := make([]byte, 4096); ; {
			n, err := ready.Read(buf)
			if err != nil || strings.HasPrefix(string(buf[:n]), "READY=1") {
				return
			}
		}
	}()
	select {
	case <-serves:
		return nil
	case err := <-ended:
		if code := cmd.ProcessState.ExitCode(); code > 0 {
			return exit(code) // it has said why
		}
		return fmt.Errorf("the daemon ended at its start: %v", err)
	case <-ctx.Done():
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return &control.Error{Message: "interrupted: the daemon is stopped again", Exit: control.ExitTemp}
	}
}

// letGo is the end of the start of a process in the background: nothing of its parent's stays open.
func letGo() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := syscall.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return os.Chdir("/")
}
