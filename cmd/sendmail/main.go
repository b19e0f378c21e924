// Command sendmail is the drop-in for sendmail(1), mailq, newaliases, rmail and rsmtp, by the name it is called
// with. It hands mail to the mochila daemon over a socket, or leaves it in the maildrop.
//
// Most of its run time is the start of the process, so package os stays out: it costs a tenth of that. Hence the
// links to what the runtime keeps for package os and syscall.
package main

import (
	"syscall"
	_ "unsafe" // for go:linkname

	"mochila/internal/submit"
)

//go:linkname runtimeArgs os.runtime_args
func runtimeArgs() []string

//go:linkname runtimeEnvs syscall.runtime_envs
func runtimeEnvs() []string

// env is no piece of the heap: that would give it a span of its own, and each span is two page faults more.
var env submit.Env

func main() {
	env.Args, env.Getenv = runtimeArgs(), getenv
	env.Stdin, env.Stdout, env.Stderr = 0, 1, 2
	syscall.Exit(submit.Run(&env))
}

// getenv looks at the four variables that matter without the map that syscall.Getenv makes of all.
func getenv(key string) (string, bool) {
	for _, e := range runtimeEnvs() {
		if len(e) > len(key) && e[len(key)] == '=' && e[:len(key)] == key {
			return e[len(key)+1:], true
		}
	}
	return "", false
}
