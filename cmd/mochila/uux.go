package main

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"mochila/internal/control"
	"mochila/internal/submit"
)

// uuxCall is a command line of uux(1).
type uuxCall struct {
	site    string
	command string
	args    []string
	stdin   bool
	show    bool // -j: print the job's id
}

// parseUUX reads the command line as UUCP's uux does, as far as mail and commands with standard input go. What would
// copy files between machines is refused.
func parseUUX(args []string) (*uuxCall, error) {
	const hint = "mochila uux - hub!rmail '(ana@hub.example)' < message"
	u := &uuxCall{}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		a := args[0]
		args = args[1:]
		if a == "-" || a == "--stdin" {
			u.stdin = true
			continue
		}
		if strings.HasPrefix(a, "--") {
			switch name, _, set := strings.Cut(a[2:], "="); name {
			case "nouucico", "notification", "noexpand", "jobid", "copy", "nocopy", "link":
				u.show = u.show || name == "jobid"
			case "requestor", "grade", "config", "status", "debug":
				if !set && len(args) > 0 {
					args = args[1:]
				}
			default:
				return nil, usageError(hint, "uux: unknown option %q", a)
			}
			continue
		}
		for i := 1; i < len(a); i++ {
			switch a[i] {
			case 'p':
				u.stdin = true
			case 'j':
				u.show = true
			case 'r', 'n', 'z', 'c', 'C', 'l', 'W', 'b':
			case 'a', 'g', 's', 'x', 'I': // with a value, attached or apart
				if i == len(a)-1 && len(args) > 0 {
					args = args[1:]
				}
				i = len(a)
			default:
				return nil, usageError(hint, "uux: unknown option -%c", a[i])
			}
		}
	}
	words := uuxWords(strings.Join(args, " "))
	if len(words) == 0 {
		return nil, usageError(hint, "uux: the command is missing")
	}
	site, command, ok := strings.Cut(words[0], "!")
	if !ok || site == "" || command == "" || strings.Contains(command, "!") {
		return nil, usageError(hint, "uux: %q is not SITE!COMMAND", words[0])
	}
	u.site, u.command = site, command
	for _, w := range words[1:] {
		if inner, ok := strings.CutPrefix(w, "("); ok && strings.HasSuffix(inner, ")") {
			u.args = append(u.args, strings.TrimSuffix(inner, ")"))
			continue
		}
		if strings.ContainsAny(w, "!<>|;") {
			return nil, usageError("put an address in parentheses: '("+w+")'", "uux: %q would be a file of another machine, and only standard input travels", w)
		}
		u.args = append(u.args, w)
	}
	return u, nil
}

// uuxWords splits at blanks; what stands in parentheses is one word.
func uuxWords(s string) (words []string) {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		end := strings.IndexAny(s, " \t\n")
		if s[0] == '(' {
			if end = strings.IndexByte(s, ')') + 1; end == 0 {
				end = len(s)
			}
		}
		if end < 0 {
			end = len(s)
		}
		words = append(words, s[:end])
		s = s[end:]
	}
	return words
}

func (a *app) uuxCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "uux [OPTION…] [-] SITE!COMMAND [ARGUMENT…]",
		Short: "stand in for UUCP's uux",
		Long: `Takes the command line of UUCP's uux, so that the UUCP recipes of Postfix and Exim work with this program in uux's
place; linked under the name uux it is that. SITE is a node.

Mail for SITE!rmail, SITE!rsmtp, SITE!rcsmtp, SITE!rgsmtp and SITE!rbsmtp is submitted here as by sendmail, and goes
where this node's rules say: a [[route]] to the node SITE. Any other command becomes a job for SITE's handler of that name, in
the channel uucp. Options that say when to call, or whom to notify, are accepted and change nothing; -j prints the
job's id. Copying files is not supported.`,
		Example:            "  uux -r -n -z -a$sender - $nexthop!rmail ($recipient)      Postfix's uucp service\n  uux - -r -gC hub!rsmtp                                    Exim's",
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
				return c.Help()
			}
			return a.uux(c.Context(), args)
		},
	}
}

// uux submits mail, or makes a job.
func (a *app) uux(ctx context.Context, args []string) error {
	u, err := parseUUX(args)
	if err != nil {
		return err
	}
	switch u.command {
	case "rmail":
		return a.mailFront(append([]string{"rmail"}, u.args...))
	case "rsmtp", "bsmtp", "rcsmtp", "rgsmtp", "rbsmtp":
		return a.mailFront([]string{u.command})
	}
	run := []string{}
	if a.home != "" {
		run = append(run, "--home", a.home)
	}
	run = append(run, "run", u.site, "--channel", "uucp", "--", u.command)
	env := *a.env
	if !u.stdin || !u.show {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return &control.Error{Message: err.Error(), Exit: control.ExitIO}
		}
		defer null.Close()
		if !u.stdin {
			env.Stdin = null
		}
		if !u.show {
			env.Stdout = null
		}
	}
	if code := Run(ctx, &env, append(run, u.args...)); code != 0 {
		return exit(code)
	}
	return nil
}

// mailFront is the sendmail drop-in under one of its names.
func (a *app) mailFront(args []string) error {
	getenv := a.env.Getenv
	if a.home != "" {
		getenv = func(k string) (string, bool) {
			if k == "MOCHILA_HOME" {
				return a.home, true
			}
			return a.env.Getenv(k)
		}
	}
	if code := front(args, a.env, getenv); code != 0 {
		return exit(code)
	}
	return nil
}

// front does one call of sendmail, mailq, newaliases, rmail, rsmtp, or of one of the compressed forms of rsmtp.
func front(args []string, env *Env, getenv func(string) (string, bool)) int {
	e := &submit.Env{Args: args, Stdin: int(env.Stdin.Fd()), Stdout: int(env.Stdout.Fd()), Stderr: int(env.Stderr.Fd()), Getenv: getenv}
	unpack := unpackers[baseName(args[0])]
	if unpack == nil {
		return submit.Run(e)
	}
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(env.Stderr, "mochila: error: %v\n", err)
		return submit.ExTempFail
	}
	broken := make(chan error, 1)
	go func() {
		err := decompress(w, env.Stdin, unpack)
		if err != nil {
			io.WriteString(w, brokenBatch)
		}
		w.Close()
		broken <- err
	}()
	e.Args, e.Stdin = append([]string{"rsmtp"}, args[1:]...), int(r.Fd())
	code := submit.Run(e)
	r.Close()
	if err := <-broken; err != nil && code != 0 {
		fmt.Fprintf(env.Stderr, "mochila: error: the batch cannot be unpacked: %v\n", err)
		return submit.ExDataErr
	}
	return code
}

// brokenBatch is no command of a batch and, behind half a mail, not the end of one.
const brokenBatch = "\n\x01broken\n"

// unpackers are the programs' names and how their batches are compressed.
var unpackers = map[string]func(io.Reader) (io.Reader, error){
	"rgsmtp": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	"rcsmtp": func(r io.Reader) (io.Reader, error) { return newZReader(r) },
	"rbsmtp": unpackAny,
}

// unpackAny looks at the first bytes: compress, gzip, bzip2, or none.
func unpackAny(r io.Reader) (io.Reader, error) {
	br := bufio.NewReader(r)
	switch head, _ := br.Peek(3); {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x9d:
		return newZReader(br)
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return gzip.NewReader(br)
	case string(head) == "BZh":
		return bzip2.NewReader(br), nil
	}
	return br, nil
}

func decompress(w io.Writer, r io.Reader, unpack func(io.Reader) (io.Reader, error)) error {
	u, err := unpack(r)
	if err != nil {
		return err
	}
	if _, err = io.Copy(w, u); isPipe(err) {
		return nil // the batch was refused: its own error tells
	}
	return err
}

func isPipe(err error) bool {
	return err != nil && strings.Contains(err.Error(), syscall.EPIPE.Error())
}

func baseName(s string) string { return s[strings.LastIndexByte(s, '/')+1:] }
