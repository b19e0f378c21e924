package main

import (
	"bufio"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mochila/internal/control"
)

func (a *app) userCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "user",
		Short: "accounts that may log in at the SMTP port",
		Long: `People and programs that are not in [smtp] relay_from log in with a name and a password: AUTH PLAIN, LOGIN or
SCRAM-SHA-256, under TLS or from this machine. They may send to anybody, under the senders that --send-as allows.

The file "accounts" (mode 0600) keeps argon2id hashes and SCRAM keys, no passwords.`,
	})
	c.AddCommand(a.userAddCmd(), a.userListCmd(), a.userPasswdCmd(), a.userRemoveCmd())
	return c
}

func (a *app) userAddCmd() *cobra.Command {
	q := control.User{}
	var generate bool
	c := &cobra.Command{
		Use:     "add NAME",
		Short:   "add an account",
		Long:    "Adds an account. The password is asked for on a terminal, else it is the first line of standard input.",
		Example: "  mochila user add ana --send-as ana@camp.example\n  mochila user add printer --generate",
		Args:    takes("NAME"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			q.Name = args[0]
			if !generate {
				if q.Password, err = a.newPassword(); err != nil {
					return err
				}
			}
			return a.tellUser(c, "/v1/users", q, "may log in now")
		},
	}
	c.Flags().StringSliceVar(&q.SendAs, "send-as", nil, "sender `patterns` that it may use (default any)")
	c.Flags().BoolVar(&generate, "generate", false, "make up a password, and print it")
	return c
}

func (a *app) userPasswdCmd() *cobra.Command {
	var generate bool
	c := &cobra.Command{
		Use:   "passwd NAME",
		Short: "give an account another password",
		Long:  "Replaces the password, which is asked for on a terminal, else it is the first line of standard input.",
		Args:  takes("NAME"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			q := control.User{Name: args[0]}
			if !generate {
				if q.Password, err = a.newPassword(); err != nil {
					return err
				}
			}
			return a.tellUser(c, "/v1/users/password", q, "has another password now")
		},
	}
	c.Flags().BoolVar(&generate, "generate", false, "make up a password, and print it")
	return c
}

// tellUser posts a request about an account, and shows what came of it.
func (a *app) tellUser(c *cobra.Command, path string, q control.User, done string) error {
	u, err := post[control.User](c.Context(), a, path, q)
	if err != nil {
		return err
	}
	if a.json {
		return a.asJSON(u, false)
	}
	a.printf("%s %s.\n", safe(q.Name), done)
	if u.Password != "" {
		a.printf("Its password is %s: it is not shown again.\n", u.Password)
	}
	return nil
}

func (a *app) userListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list accounts",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			users, err := get[[]control.User](c.Context(), a, "/v1/users")
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(users, false)
			}
			if len(*users) == 0 {
				a.printf("No accounts yet. mochila user add NAME makes one.\n")
				return nil
			}
			rows := [][]string{{"NAME", "MAY SEND AS"}}
			for _, u := range *users {
				as := "anybody"
				if len(u.SendAs) > 0 {
					as = list(u.SendAs)
				}
				rows = append(rows, []string{safe(u.Name), as})
			}
			a.table(rows)
			return nil
		},
	}
}

func (a *app) userRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "remove an account",
		Long:  "Removes an account. Sessions that it has open go on until they end; its mail stays in the queue.",
		Args:  takes("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.tell(c.Context(), "/v1/users/remove", map[string]string{"name": args[0]}, safe(args[0])+" cannot log in any more")
		},
	}
}

// newPassword asks for a password, twice on a terminal.
func (a *app) newPassword() (string, error) {
	fd := int(a.env.Stdin.Fd())
	if !term.IsTerminal(fd) {
		line, err := bufio.NewReader(io.LimitReader(a.env.Stdin, 2048)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", &control.Error{Message: "read the password: " + err.Error(), Exit: control.ExitNoInput}
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			return "", &control.Error{Message: "there is no password on standard input", Hint: "--generate makes one up", Exit: control.ExitNoInput}
		}
		return line, nil
	}
	var got [2]string
	for i, ask := range []string{"Password: ", "Again: "} {
		io.WriteString(a.env.Stderr, ask)
		b, err := term.ReadPassword(fd)
		io.WriteString(a.env.Stderr, "\n")
		if err != nil {
			return "", &control.Error{Message: "read the password: " + err.Error(), Exit: control.ExitNoInput}
		}
		got[i] = string(b)
	}
	if got[0] != got[1] {
		return "", &control.Error{Message: "the two passwords differ", Exit: control.ExitUsage}
	}
	return got[0], nil
}
