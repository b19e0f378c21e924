package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"mochila/bridge/jobs/builtin"
	"mochila/bridge/jobs/handler"
	"mochila/internal/peertest"
)

func TestMain(m *testing.M) {
	handler.ShimMain()
	builtin.Main() // daemons of these tests start this binary for their built-in handlers
	run := func() { os.Exit(start()) }
	testscript.Main(m, map[string]func(){"mochila": run, "mailq": run, remoteHelper: run})
}

// readyTime bounds how long a daemon may take to start.
const readyTime = 5 * time.Minute

// TestScripts types what people type. Besides the commands of testscript there are:
//
//	status N PROGRAM…   run, and compare the exit status
//	ready               wait until a daemon in the background has notified that it is ready
//	hup                 send SIGHUP to what runs in the background
//	until REGEXP PROGRAM…  run again and again until the output matches
//	mask FILE           replace ids and times in a file, columns kept
//	capture VAR REGEXP  take the first group out of the last standard output
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status, "ready": ready, "hup": hup, "until": until, "mask": mask, "capture": capture,
		},
	})
}

// notified is the key of the socket that daemons notify.
type notified struct{}

func setup(e *testscript.Env) error {
	path := filepath.Join(e.WorkDir, ".notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	e.Defer(func() { c.Close() })
	e.Values[notified{}] = c
	port, hold, err := peertest.TakePort()
	if err != nil {
		return err
	}
	e.Defer(func() { hold.Close() })
	// A script that forgets to name its home must not make or touch the machine's own node, which is root's default.
	e.Vars = append(e.Vars, "MOCHILA_HOME="+filepath.Join(e.WorkDir, "home"))
	e.Vars = append(e.Vars, "NOTIFY_SOCKET="+path, "TZ=UTC", "PORT="+strconv.Itoa(port), "TERM=dumb")
	for _, node := range []string{"camp", "hub"} {
		e.Vars = append(e.Vars, strings.ToUpper(node)+"="+filepath.Join(e.WorkDir, node))
	}
	return nil
}

func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM [ARGUMENT...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == want, err == nil && want == 0:
	case errors.As(err, &exit):
		ts.Fatalf("exit status %d, want %d", exit.ExitCode(), want)
	default:
		ts.Fatalf("%v, want exit status %d", err, want)
	}
}

func ready(ts *testscript.TestScript, _ bool, _ []string) {
	c := ts.Value(notified{}).(*net.UnixConn)
	c.SetReadDeadline(time.Now().Add(readyTime))
	var b [100]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			ts.Fatalf("no daemon became ready: %v", err)
		}
		if string(b[:n]) == "READY=1" {
			return
		}
	}
}

func hup(ts *testscript.TestScript, _ bool, _ []string) {
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(syscall.SIGHUP))
	}
}

func until(ts *testscript.TestScript, _ bool, args []string) {
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(readyTime); ; {
		err := ts.Exec(args[1], args[2:]...)
		if re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("no output matched %q: %v", args[0], err)
		}
	}
}

var (
	idMask   = regexp.MustCompile(`\b[0-9A-V]{26}\b`)
	timeMask = regexp.MustCompile(`\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ 0-9][0-9] \d\d:\d\d:\d\d\b`)
	sizeMask = regexp.MustCompile(`(?m)^(I{26}[ *!]) [ 0-9]{8} `) // depends on who runs the test
	workMask = regexp.MustCompile(`(?m)(^ *\()?([^ /]*)/[^ ]*/script-[a-z]+`)
	reason   = regexp.MustCompile(`(?m)^ +(\(.*/WORK)`) // it is set right, hence its place depends on the folder's length
)

func mask(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := ts.ReadFile(name)
		text = idMask.ReplaceAllString(text, strings.Repeat("I", 26))
		text = sizeMask.ReplaceAllString(text, "$1     SIZE ")
		text = timeMask.ReplaceAllString(text, "Day Mon DD HH:MM:SS")
		text = workMask.ReplaceAllString(text, "$1$2/WORK")
		text = reason.ReplaceAllString(text, "$1")
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o666))
	}
}

func capture(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: capture VAR REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("%s", fmt.Sprintf("no match of %q in the output", args[1]))
	}
	ts.Setenv(args[0], m[1])
}
