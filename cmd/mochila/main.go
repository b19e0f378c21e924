// Command mochila is the node: the daemon and every subcommand.
//
// Called by the name sendmail, mailq, newaliases, rmail, rsmtp (compressed: rcsmtp, rgsmtp, rbsmtp) or uux it is that
// program (docs/man/mochila-sendmail.1, mochila-uux.1).
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"mochila/bridge/jobs/builtin"
	"mochila/bridge/jobs/handler"
	"mochila/internal/submit"
)

//go:generate go test -run ^TestManPages$ -update

// version is set by the linker.
var version = "devel"

func main() { os.Exit(start()) }

func start() int {
	handler.ShimMain() // does not return in a process that becomes the program of a job
	builtin.Main()     // nor in one that is a built-in handler
	args := os.Args[1:]
	switch filepath.Base(os.Args[0]) {
	case "sendmail", "mailq", "newaliases", "rmail", "rsmtp", "bsmtp":
		return submit.Run(&submit.Env{Args: os.Args, Stdin: 0, Stdout: 1, Stderr: 2, Getenv: syscall.Getenv})
	case "rcsmtp", "rgsmtp", "rbsmtp":
		return front(os.Args, &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}, syscall.Getenv)
	case "uux":
		args = append([]string{"uux"}, args...)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	env := &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.LookupEnv, Version: version}
	if filepath.Base(os.Args[0]) == remoteHelper {
		return runHelper(ctx, env, args)
	}
	return Run(ctx, env, args)
}
