package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"mochila/internal/control"
	"mochila/internal/submit"
)

func (a *app) serveCmd() *cobra.Command {
	var debug bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "run the daemon",
		Long: `Runs the node in the foreground until SIGTERM or SIGINT: listeners, contacts by their timetables, deliveries, the
control and submission sockets. SIGHUP reads the configuration again, as mochila reload does.

The log goes to standard error, in the grammar of Postfix's: "Nov 23 10:00:00 host mochila/smtp[PID]: QUEUEID: …".
Under systemd it has priorities instead of times, and readiness is notified (Type=notify).`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := a.find()
			if err != nil {
				return err
			}
			o := logOptions{level: slog.LevelInfo, journal: toJournal(a.env)}
			if debug || a.verbose {
				o.level = slog.LevelDebug
			}
			log := newMailLog(a.env.Stderr, o)
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
					select {
					case <-ctx.Done():
						return
					case reload <- struct{}{}:
					}
				}
			}()
			defer func() { stop(); <-done }()
			context.AfterFunc(ctx, func() { notify(a.getenv("NOTIFY_SOCKET"), "STOPPING=1") })

			err = control.Serve(ctx, h, control.ServeOptions{
				Version: a.env.Version, Log: logger, Reload: reload,
				Ready: func() {
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
	return c
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
