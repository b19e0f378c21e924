package submit

import "syscall"

// daemon becomes the mochila program as the daemon: -bD in the foreground, -bd in the background, where it returns once
// the daemon serves. How often the queue is looked at (-q15m) is the daemon's own matter.
func daemon(o *Options) *Fault {
	var room [512]byte
	n, err := syscall.Readlink("/proc/self/exe", room[:])
	if err != nil || n == len(room) {
		n = 0
	}
	path := beside(string(room[:n]))
	if path == "" {
		return &Fault{Code: ExUnavailable, Text: "cannot find the program mochila, which is the daemon", Hint: "mochila serve"}
	}
	args := []string{path}
	if o.Home != "" {
		args = append(args, "--home", o.Home)
	}
	args = append(args, "serve")
	if !o.Foreground {
		args = append(args, "--background")
	}
	return asFault(syscall.Exec(path, args, syscall.Environ()), "starting "+path)
}

// beside finds the program mochila: this one, or one where "make install" puts it beside this one, or in the usual places.
func beside(self string) string {
	dir, name := "", self
	for i := len(self) - 1; i >= 0; i-- {
		if self[i] == '/' {
			dir, name = self[:i], self[i+1:]
			break
		}
	}
	if name == "mochila" {
		return self
	}
	paths := [...]string{dir + "/mochila", dir + "/../../bin/mochila", "/usr/local/bin/mochila", "/usr/bin/mochila"}
	for i, path := range paths {
		const executable = 1
		if i < 2 && dir == "" {
			continue
		}
		if syscall.Access(path, executable) == nil {
			return path
		}
	}
	return ""
}
