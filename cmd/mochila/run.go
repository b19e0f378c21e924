package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/internal/durable"
)

// Env is the process around one call of the command.
type Env struct {
	Stdin, Stdout, Stderr *os.File
	Getenv                func(string) (string, bool)
	Version               string
}

// Run does what args say, without the program's name, and returns the exit status (sysexits.h). Errors are on Stderr
// when it returns. It ends early when ctx does.
func Run(ctx context.Context, env *Env, args []string) int {
	a := &app{env: env, out: &screen{w: env.Stdout}, now: time.Now()}
	root := a.root(verb(args))
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(a.out.w)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if e := a.out.flush(); err == nil && e != nil && !errors.Is(e, errPipe) {
		err = &control.Error{Message: "write the output: " + e.Error(), Exit: control.ExitIO}
	}
	return report(env.Stderr, err)
}

// app is one run.
type app struct {
	env     *Env
	out     *screen
	now     time.Time
	home    string // --home
	json    bool
	verbose bool
}

// exit is an error that was shown already.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a mistake in the command line.
func usageError(hint, format string, args ...any) error {
	return &control.Error{Message: fmt.Sprintf(format, args...), Hint: hint, Exit: control.ExitUsage}
}

// report prints err as people get it, and chooses the exit status.
func report(w *os.File, err error) int {
	if err == nil {
		return 0
	}
	var status exit
	if errors.As(err, &status) {
		return int(status)
	}
	code, hint := control.ExitSoftware, ""
	var e *control.Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &e):
		code, hint = e.Exit, e.Hint
	case errors.Is(err, durable.ErrLocked):
		code, hint = control.ExitTemp, "another mochila is at work on this node: try again when it has finished"
	case errors.Is(err, fs.ErrPermission):
		code, hint = control.ExitDenied, "be root, or the user whose node it is"
	case errors.Is(err, context.Canceled):
		code = 128 + 2
		err = errors.New("interrupted")
	case errors.As(err, &errno):
		code = control.ExitIO
	}
	if code == 0 {
		code = control.ExitSoftware
	}
	text := "mochila: error: " + indent(err.Error()) + "\n"
	if hint != "" {
		text += "hint: " + indent(hint) + "\n"
	}
	fmt.Fprint(w, text)
	return code
}

// indent escapes the lines of a text, and sets the second and later ones in.
func indent(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range lines {
		lines[i] = safe(lines[i])
	}
	return strings.Join(lines, "\n  ")
}

// command is a subcommand before it is made.
type command struct {
	name, group string
	make        func() *cobra.Command
}

// commands are the subcommands in the order of the help text.
func (a *app) commands() []command {
	return []command{
		{"init", "node", a.initCmd}, {"serve", "node", a.serveCmd}, {"status", "node", a.statusCmd}, {"reload", "node", a.reloadCmd},
		{"version", "node", a.versionCmd},
		{"card", "pair", a.cardCmd}, {"invite", "pair", a.inviteCmd}, {"join", "pair", a.joinCmd}, {"peer", "pair", a.peerCmd},
		{"contact", "pair", a.contactCmd}, {"sync", "pair", a.syncCmd}, {"receive", "pair", a.receiveCmd}, {"courier", "pair", a.courierCmd},
		{"export", "pair", a.exportCmd}, {"import", "pair", a.importCmd},
		{"sendmail", "mail", a.sendmailCmd}, {"user", "mail", a.userCmd}, {"dkim", "mail", a.dkimCmd}, {"queue", "mail", a.queueCmd},
		{"mailq", "mail", a.mailqCmd}, {"qshape", "mail", a.qshapeCmd}, {"flush", "mail", a.flushCmd}, {"trace", "mail", a.traceCmd},
		{"route", "mail", a.routeCmd}, {"uux", "mail", a.uuxCmd},
		{"run", "jobs", a.runCmd}, {"jobs", "jobs", a.jobsCmd}, {"send", "jobs", a.sendCmd}, {"get", "jobs", a.getCmd},
		{"ping", "jobs", a.pingCmd}, {"pipe", "jobs", a.pipeCmd}, {"git", "jobs", a.gitCmd},
		{"check", "care", a.checkCmd}, {"fsck", "care", a.fsckCmd}, {"quarantine", "care", a.quarantineCmd}, {"clock", "care", a.clockCmd},
		{"restored", "care", a.restoredCmd},
	}
}

// verb is the subcommand that args name, behind flags that all have; "" when anything else stands before it.
func verb(args []string) string {
	for len(args) > 0 {
		switch a := args[0]; {
		case a == "--home" && len(args) > 1:
			args = args[1:]
		case a == "--json" || a == "--verbose" || a == "-v" || strings.HasPrefix(a, "--home="):
		default:
			return a
		}
		args = args[1:]
	}
	return ""
}

// root is the tree of commands: only the named subcommand of it, for making all takes longer than most of them do, or
// all when there is none of that name.
func (a *app) root(only string) *cobra.Command {
	if !slices.ContainsFunc(a.commands(), func(c command) bool { return c.name == only }) {
		only = ""
	}
	root := &cobra.Command{
		Use:   "mochila",
		Short: "mail that travels in a locked pouch, hop by hop, over whatever carrier passes",
		Long: `mochila takes mail at once, durably, and carries it to other nodes over whatever passes: a network, a stick, a
radio link, days later if need be. It seals mail end to end, and reports what cannot be delivered.

Three commands make a node and a neighbour:

  mochila init camp --maildir ~/Mail
  mochila invite hub /media/usb        then, at hub: mochila join /media/usb
  mochila sync /media/usb              at each trip of the stick`,
		Version:           a.env.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SetVersionTemplate("mochila {{.Version}}\n")
	root.PersistentFlags().StringVar(&a.home, "home", "", "the node's `folder` (default $MOCHILA_HOME, the machine's node, or ~/.mochila)")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print the API's JSON")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "show the log of what this command does itself")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError(c.CommandPath()+" --help", "%s: %v", c.CommandPath(), err)
	})
	root.AddGroup(
		&cobra.Group{ID: "node", Title: "The node:"},
		&cobra.Group{ID: "pair", Title: "Other nodes:"},
		&cobra.Group{ID: "mail", Title: "Mail:"},
		&cobra.Group{ID: "jobs", Title: "Remote jobs:"},
		&cobra.Group{ID: "care", Title: "Care:"},
	)
	for _, e := range a.commands() {
		if only != "" && e.name != only {
			continue
		}
		c := e.make()
		c.GroupID = e.group
		root.AddCommand(c)
	}
	root.CompletionOptions.DisableDefaultCmd = only != ""
	root.SetHelpCommandGroupID("node")
	root.SetCompletionCommandGroupID("node")
	group(root)
	return root
}

// group makes a command that only has subcommands: without one it shows its help, with an unknown one it suggests.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := c.CommandPath() + " --help"
		c.SuggestionsMinimumDistance = 2
		if s := c.SuggestionsFor(args[0]); len(s) > 0 {
			hint = c.CommandPath() + " " + strings.Join(s, ", or "+c.CommandPath()+" ")
		}
		return usageError(hint, "unknown command %q for %s", args[0], c.CommandPath())
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

// takes checks the number of arguments; names are what they are called: "[X]" may be missing, "X…" may repeat.
func takes(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		rest := len(args)
		for _, name := range names {
			switch {
			case rest > 0 && strings.Contains(name, "…"):
				rest = 0
			case rest > 0:
				rest--
			case !strings.HasPrefix(name, "["):
				return usageError(c.UseLine(), "%s: %s is missing", c.CommandPath(), strings.TrimSuffix(name, "…"))
			}
		}
		if rest > 0 {
			return usageError(c.UseLine(), "%s: unexpected argument %q", c.CommandPath(), args[len(args)-rest])
		}
		return nil
	}
}

// getenv reads the environment as config wants it.
func (a *app) getenv(key string) string {
	v, _ := a.env.Getenv(key)
	return v
}

// find is the home that this call speaks of.
func (a *app) find() (config.Home, error) {
	h, err := config.FindHome(a.home, a.getenv)
	if err != nil {
		return h, &control.Error{Message: err.Error(), Hint: "--home DIR says where the node is", Exit: control.ExitConfig}
	}
	return h, nil
}

// node talks to the node while fn runs.
func (a *app) node(ctx context.Context, fn func(*control.Client) error) error {
	return a.dial(ctx, control.Dial, fn)
}

// jobNode is node for verbs on jobs that users have who may not open the control socket.
func (a *app) jobNode(ctx context.Context, fn func(*control.Client) error) error {
	return a.dial(ctx, control.DialJobs, fn)
}

func (a *app) dial(ctx context.Context, dial func(context.Context, config.Home, control.ClientOptions) (*control.Client, error), fn func(*control.Client) error) (err error) {
	h, err := a.find()
	if err != nil {
		return err
	}
	o := control.ClientOptions{Version: a.env.Version}
	if a.verbose {
		log := newMailLog(a.env.Stderr, logOptions{level: slog.LevelDebug, short: true})
		defer log.Close()
		o.Log = slog.New(log)
	}
	c, err := dial(ctx, h, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return fn(c)
}

// get asks the node for one answer.
func get[T any](ctx context.Context, a *app, path string) (*T, error) {
	out := new(T)
	err := a.node(ctx, func(c *control.Client) error { return c.Get(ctx, path, out) })
	return out, err
}

// post tells the node to do something.
func post[T any](ctx context.Context, a *app, path string, in any) (*T, error) {
	out := new(T)
	err := a.node(ctx, func(c *control.Client) error { return c.Post(ctx, path, in, out) })
	return out, err
}
