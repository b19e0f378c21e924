// Command mochila is the node: the daemon and every subcommand.
//
// Called by the name sendmail, mailq, newaliases, rmail or rsmtp it is that program (docs/man/mochila-sendmail.1).
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
	switch filepath.Base(os.Args[0]) {
	case "sendmail", "mailq", "newaliases", "rmail", "rsmtp":
		return submit.Run(&submit.Env{Args: os.Args, Stdin: 0, Stdout: 1, Stderr: 2, Getenv: syscall.Getenv})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	env := &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.LookupEnv, Version: version}
	if filepath.Base(os.Args[0]) == remoteHelper {
		return runHelper(ctx, env, os.Args[1:])
	}
	return Run(ctx, env, os.Args[1:])
}
