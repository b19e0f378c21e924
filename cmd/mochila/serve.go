package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mochila/internal/control"
	"mochila/internal/submit"
)

func (a *app) serveCmd() *cobra.Command {
	var debug, back bool
	var program, syslog string
	c := &cobra.Command{
		Use:   "serve",
		Short: "run the daemon",
		Long: `Runs the node in the foreground until SIGTERM or SIGINT: listeners, contacts by their timetables, deliveries, the
control and submission sockets. SIGHUP reads the configuration again, as mochila reload does.

The log goes to standard error, in the grammar of Postfix's: "Nov 23 10:00:00 host mochila/smtp[PID]: QUEUEID: …".
Under systemd it has priorities instead of times. --syslog sends it to the syslog daemon, as facility mail. Readiness, reloads
and the watchdog are notified (Type=notify or notify-reload), and sockets of a .socket unit are used for the addresses of
[smtp] and [link] listen: they stay open while the daemon restarts, so that no client is refused.

Where no service manager starts it, --background does: the command ends when the daemon serves, or with its exit status when
it cannot. Its log goes to syslog. sendmail -bd is this command.`,
		Example: "  mochila serve\n  mochila serve --background",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			child := a.getenv(detached) != ""
			if back && !child {
				return a.background(c.Context())
			}
			h, err := a.find()
			if err != nil {
				return err
			}
			o := logOptions{level: slog.LevelInfo, journal: toJournal(a.env), program: program}
			if debug || a.verbose {
				o.level = slog.LevelDebug
			}
			if program == "" || len(program) > 32 || strings.IndexFunc(program, func(r rune) bool {
				return r != '-' && r != '_' && (r < '0' || r > '9' && r < 'A' || r > 'Z' && r < 'a' || r > 'z')
			}) >= 0 {
				return usageError("letters, digits, - and _", "--log-name %q is no name for a program", program)
			}
			if a.getenv("GOGC") == "" {
				collectSeldom()
			}
			var dest io.Writer = a.env.Stderr
			if back && syslog == "" {
				syslog = defaultSyslog
			}
			if syslog != "" {
				w := &syslogWriter{path: syslog}
				if err := w.dial(); err != nil {
					a.note("warning: nothing is logged until there is a syslog daemon: %v", err)
				}
				defer w.Close()
				dest, o.syslog = w, true
			}
			log := newMailLog(dest, o)
			defer log.Close()
			logger := slog.New(log)

			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			ctx, stop := context.WithCancel(c.Context())
			reload := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-ctx.Done():
						return
					case <-hangup:
					}
					notify(a.getenv("NOTIFY_SOCKET"), reloading())
					select {
					case <-ctx.Done():
						return
					case reload <- struct{}{}:
					}
				}
			}()
			defer func() { stop(); <-done }()
			context.AfterFunc(ctx, func() { notify(a.getenv("NOTIFY_SOCKET"), "STOPPING=1") })

			sockets, err := sockets(a.getenv)
			if err != nil {
				return err
			}
			watchdog, _ := strconv.ParseInt(a.getenv("WATCHDOG_USEC"), 10, 64)
			err = control.Serve(ctx, h, control.ServeOptions{
				Version: a.env.Version, Log: logger, Reload: reload, Sockets: sockets,
				Watchdog: time.Duration(watchdog) * time.Microsecond / 2,
				Reloaded: func() { notify(a.getenv("NOTIFY_SOCKET"), "READY=1") },
				Alive:    func() { notify(a.getenv("NOTIFY_SOCKET"), "WATCHDOG=1") },
				Ready: func() {
					if child {
						if err := letGo(); err != nil {
							logger.Warn("go into the background", "err", err)
						}
					}
					if err := notify(a.getenv("NOTIFY_SOCKET"), "READY=1"); err != nil {
						logger.Warn("cannot tell the service manager that the daemon is ready", "err", err)
					}
				},
			})
			if errors.Is(err, context.Canceled) && ctx.Err() != nil {
				return nil
			}
			return err
		},
	}
	c.Flags().BoolVar(&debug, "debug", false, "log more")
	c.Flags().BoolVar(&back, "background", false, "go into the background, and log to syslog")
	c.Flags().StringVar(&syslog, "syslog", "", "log to the syslog daemon at this `socket`, default /dev/log")
	c.Flags().Lookup("syslog").NoOptDefVal = defaultSyslog
	c.Flags().StringVar(&program, "log-name", "mochila", "the `name` in front of log lines; postfix for tools that know no other")
	return c
}

// reloading is the state while the configuration is read again (Type=notify-reload wants the time).
func reloading() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return "RELOADING=1"
	}
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", t.Nano()/1000)
}

// firstSocket is the descriptor of the first socket that a service manager hands over (sd_listen_fds(3)).
const firstSocket = 3

// sockets are the listening sockets that a service manager has opened for this process. Programs that it starts in its
// turn do not get them.
func sockets(getenv func(string) string) ([]*os.File, error) {
	if pid, err := strconv.Atoi(getenv("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return nil, nil
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 100 {
		return nil, &control.Error{Message: "LISTEN_FDS is not a number of sockets", Exit: control.ExitConfig}
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	var files []*os.File
	for i := range n {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		syscall.CloseOnExec(firstSocket + i)
		files = append(files, os.NewFile(uintptr(firstSocket+i), name))
	}
	for _, key := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(key)
	}
	return files, nil
}

// collectSeldom trades memory for time: the daemon holds a few MiB, and its garbage is as short-lived as a mail. A tenth of
// its work was collecting that. Above 200 little time is left to gain, and 50 sessions take 10 MiB more.
func collectSeldom() {
	debug.SetGCPercent(200)
	debug.SetMemoryLimit(256 << 20)
}

// notify tells a service manager the state of this process (sd_notify(3)); without a manager it does nothing.
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}) // a leading @ is the abstract namespace
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(time.Second)) // a manager that does not read must not stop the mail
	_, err = io.WriteString(conn, state)
	return errors.Join(err, conn.Close())
}

func (a *app) sendmail(_ *cobra.Command, args []string) error {
	if err := a.out.flush(); err != nil {
		return err
	}
	e := &submit.Env{Args: append([]string{"sendmail"}, args...), Getenv: a.env.Getenv,
		Stdin: int(a.env.Stdin.Fd()), Stdout: int(a.env.Stdout.Fd()), Stderr: int(a.env.Stderr.Fd())}
	if code := submit.Run(e); code != 0 {
		return exit(code)
	}
	return nil
}
