// Command sendmail is the drop-in for sendmail(1), mailq, newaliases, rmail and rsmtp, by the name it is called
// with. It hands mail to the mochila daemon over a socket, or leaves it in the maildrop.
//
// Its imports are part of its speed: package os alone costs a tenth of a run. Hence the link to the arguments that
// the runtime keeps for package os.
package main

import (
	"syscall"
	_ "unsafe" // for go:linkname

	"mochila/internal/submit"
)

//go:linkname runtimeArgs os.runtime_args
func runtimeArgs() []string

func main() {
	syscall.Exit(submit.Run(&submit.Env{Args: runtimeArgs(), Stdin: 0, Stdout: 1, Stderr: 2, Getenv: syscall.Getenv}))
}
