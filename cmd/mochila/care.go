package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mochila/internal/config"
	"mochila/internal/control"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "show the node: queues, contacts, peers, what needs care",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := get[control.Status](c.Context(), a, "/v1/status")
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(s, false)
			}
			a.showStatus(s)
			return nil
		},
	}
}

func (a *app) showStatus(s *control.Status) {
	daemon := "no daemon runs"
	if s.Daemon {
		daemon = "daemon up " + span(a.now.Sub(s.Started)) + ", version " + safe(s.Version)
	}
	a.printf("%s  %s\n%s; disk %s free of %s\n", safe(s.Name), s.ID, daemon, bytesText(s.Spool.Free), bytesText(s.Spool.Total))
	if len(s.Listen) > 0 {
		a.printf("listening on %s\n", list(s.Listen))
	}
	a.statusQueues(s)
	a.statusContacts(s)
	if len(s.Jobs) > 0 {
		a.printf("\n")
		a.channelTable(s.Jobs)
	}
	var lost []string
	for _, p := range s.Peers {
		lost = append(lost, fmt.Sprintf("%s (heard %s)", safe(p.Name), a.ago(p.Heard)))
	}
	if len(lost) == 0 {
		lost = []string{"none; mochila invite NAME DIR invites one"}
	}
	a.printf("\npeers: %s\n", strings.Join(lost, ", "))
	warn := func(format string, args ...any) { a.printf("! "+format+"\n", args...) }
	if s.Clock != "" {
		warn("the clock is suspect, nothing expires: %s (mochila clock accept, when it is right)", safe(s.Clock))
	}
	for _, w := range s.Warnings {
		warn("%s", indent(w))
	}
	if s.Dead > 0 {
		warn("%s (mochila queue list --dest dead)", count(s.Dead, "dead letter"))
	}
	if s.ForReaders.Mails > 0 {
		a.printf("%s, %s, held until a reader asks (mochila queue list --state held)\n", count(s.ForReaders.Mails, "mail"), bytesText(s.ForReaders.Bytes))
	}
	if s.Quarantine > 0 {
		warn("%s in quarantine (mochila quarantine list)", count(s.Quarantine, "item"))
	}
	if !s.Card.UseUntil.IsZero() && s.Card.UseUntil.Before(a.now) {
		warn("this node's card is older than its use date, %s", clock(s.Card.UseUntil))
	}
}

func (a *app) statusQueues(s *control.Status) {
	if len(s.Queues) == 0 {
		a.printf("\nThe queue is empty.\n")
		return
	}
	n := func(v int) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprint(v)
	}
	rows := [][]string{{"QUEUE", ">DUE", ">DEFERRED", ">HELD", ">SEALED", ">TRAVELLING", ">ARRIVED", ">SIZE", ">OLDEST"}}
	for _, q := range s.Queues {
		rows = append(rows, []string{safe(q.Dest), n(q.Due), n(q.Deferred), n(q.Held), n(q.Sealed), n(q.Travelling), n(q.Arrived), bytesText(q.Bytes), a.age(q.Oldest)})
	}
	a.printf("\n")
	a.table(rows)
}

func (a *app) statusContacts(s *control.Status) {
	if len(s.Contacts) == 0 {
		return
	}
	rows := [][]string{{"CONTACT", "CARRIER", "WHEN", "LAST GOOD", "NEXT", ""}}
	for _, c := range s.Contacts {
		next, last, note := a.ago(c.Next), a.ago(c.OK), safe(c.Error)
		if c.Next.IsZero() {
			next = "-"
		}
		if c.OK.IsZero() { // none of this process: there may have been one before
			last = "-"
		}
		if c.Running {
			next = "now"
		}
		rows = append(rows, []string{safe(c.Node), safe(noSecret(c.Carrier)), safe(c.When), last, next, note})
	}
	a.printf("\n")
	a.table(rows)
}

func (a *app) reloadCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "make the daemon read its configuration again",
		Long:  "Puts a changed configuration in force without dropping a connection. A broken one is refused whole, and the old one stays.",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.daemonOnly(c, "it reads its configuration when it starts", func(n *control.Client) error {
				return n.Post(c.Context(), "/v1/reload", empty{}, nil)
			}, "The configuration is in force.")
		},
	}
}

// daemonOnly does what makes sense for a running daemon only.
func (a *app) daemonOnly(c *cobra.Command, why string, fn func(*control.Client) error, done string) error {
	err := a.node(c.Context(), func(n *control.Client) error {
		if !n.Daemon() {
			return &control.Error{Message: c.CommandPath() + ": no daemon runs: " + why, Hint: "mochila serve", Exit: control.ExitUnavailable}
		}
		return fn(n)
	})
	if err != nil {
		return err
	}
	if a.json {
		return a.asJSON(map[string]bool{"ok": true}, false)
	}
	a.printf("%s\n", done)
	return nil
}

func (a *app) contactCmd() *cobra.Command {
	c := group(&cobra.Command{Use: "contact", Short: "pause contacts, and resume them"})
	for _, v := range [][2]string{{"pause", "Contacts with %s pause until mochila contact resume, or the next start of the daemon."}, {"resume", "Contacts with %s go on."}} {
		c.AddCommand(&cobra.Command{
			Use:               v[0] + " NAME",
			Short:             v[0] + " the contacts with a node, or one contact by its name",
			Args:              takes("NAME"),
			ValidArgsFunction: a.names,
			RunE: func(c *cobra.Command, args []string) error {
				return a.daemonOnly(c, "it alone makes contacts by their timetables", func(n *control.Client) error {
					return n.Post(c.Context(), "/v1/contact/"+v[0], map[string]string{"node": args[0]}, nil)
				}, fmt.Sprintf(v[1], safe(args[0])))
			},
		})
	}
	return c
}

func (a *app) checkCmd() *cobra.Command {
	var node, timeout string
	c := &cobra.Command{
		Use:   "check",
		Short: "look for what would go wrong",
		Long: `Reads the configuration as the daemon does, and looks at contacts, keys, clock and disk. It calls the mail servers
that mail is delivered to, and asks a Postfix on this machine (postconf) whether what it is given comes back. The exit status
is 78 when there are problems; warnings do not count.

With --selftest it sends that node every kind of content that programs are known to break (NUL, bare CR and LF, dots, long
lines, eight bits, two MiB of noise), by whatever carrier the contact has, and compares the checksums of what arrived. The node
must be a peer that answers pings. The exit status is 65 when something arrived otherwise, 75 when answers are missing.`,
		Example: "  mochila check\n  mochila check --selftest hub --timeout 10m",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			if node != "" {
				d, err := config.ParseDuration(timeout)
				if err != nil {
					return usageError("such as 30s or 2d", "--timeout %q is no duration", timeout)
				}
				return a.jobNode(c.Context(), func(n *control.Client) error {
					if err := needDaemon(n); err != nil {
						return err
					}
					return a.selfTest(c.Context(), n, node, time.Duration(d))
				})
			}
			r, err := a.check(c)
			if err != nil {
				return err
			}
			if a.json {
				err = a.asJSON(r, false)
			} else {
				a.showCheck(r)
			}
			if err == nil && !r.OK {
				err = exit(control.ExitConfig)
			}
			return err
		},
	}
	c.Flags().StringVar(&node, "selftest", "", "send every hard content to this `node`, and compare")
	c.Flags().StringVar(&timeout, "timeout", "5m", "with --selftest: how long to wait for the answers, a `time`")
	return c
}

// check reads the configuration first: a node with a broken one cannot be opened, nor asked.
func (a *app) check(c *cobra.Command) (*control.CheckReport, error) {
	h, err := a.find()
	if err != nil {
		return nil, err
	}
	if h.Initialized() {
		_, warnings, err := config.Load(h)
		var ps config.Problems
		if errors.As(err, &ps) {
			r := &control.CheckReport{}
			for _, p := range ps {
				r.Problems = append(r.Problems, withHint(p))
			}
			for _, w := range warnings {
				r.Warnings = append(r.Warnings, withHint(w))
			}
			return r, nil
		}
	}
	return get[control.CheckReport](c.Context(), a, "/v1/check")
}

func withHint(p *config.Problem) string {
	return p.Error() + when(p.Hint != "", "\nhint: "+p.Hint)
}

func (a *app) showCheck(r *control.CheckReport) {
	for _, part := range []struct {
		word  string
		lines []string
	}{{"error", r.Problems}, {"warning", r.Warnings}, {"note", r.Notes}} {
		for _, l := range part.lines {
			a.printf("%s: %s\n", part.word, indent(l))
		}
	}
	if r.OK {
		a.printf("No problems%s.\n", when(len(r.Warnings) > 0, ", "+count(len(r.Warnings), "warning")))
	} else {
		a.printf("%s.\n", count(len(r.Problems), "problem"))
	}
}

func (a *app) fsckCmd() *cobra.Command {
	var fix bool
	c := &cobra.Command{
		Use:   "fsck",
		Short: "verify the spool",
		Long: `Reads the whole spool: index, contents and their sums, and what the two say of each other. With --fix it mends what
can be mended, and moves the rest to the quarantine. The exit status is 65 when problems remain.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			path := "/v1/fsck"
			if fix {
				path += "?fix=1"
			}
			r, err := post[control.FsckReport](c.Context(), a, path, empty{})
			if err != nil {
				return err
			}
			if a.json {
				err = a.asJSON(r, false)
			} else {
				for _, l := range r.Lines {
					a.printf("%s\n", safe(l))
				}
				a.printf("%s\n", map[bool]string{true: "The spool is sound.", false: "The spool has problems."}[r.OK])
			}
			if err != nil {
				return err
			}
			if !r.OK {
				if !fix && !a.json {
					a.note("hint: mochila fsck --fix")
				}
				return exit(control.ExitData)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&fix, "fix", false, "mend what can be mended")
	return c
}

func (a *app) quarantineCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "quarantine",
		Short: "what was refused or is broken, kept for a look",
	})
	c.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "list the quarantine",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			items, err := get[[]control.QuarantineItem](c.Context(), a, "/v1/quarantine")
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(items, false)
			}
			if len(*items) == 0 {
				a.printf("The quarantine is empty.\n")
				return nil
			}
			rows := [][]string{{"NAME", ">AGE", ">SIZE", "FROM", "REASON"}}
			for _, it := range *items {
				rows = append(rows, []string{safe(it.Name), a.age(it.At), bytesText(it.Size), safe(it.From), safe(it.Reason)})
			}
			a.table(rows)
			return nil
		},
	}, &cobra.Command{
		Use:   "remove NAME…",
		Short: "delete items of the quarantine",
		Args:  takes("NAME…"),
		RunE: func(c *cobra.Command, args []string) error {
			err := a.node(c.Context(), func(n *control.Client) error {
				for _, name := range args {
					if err := n.Post(c.Context(), "/v1/quarantine/remove", map[string]string{"name": name}, nil); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(map[string]bool{"ok": true}, false)
			}
			a.printf("%s removed\n", count(len(args), "item"))
			return nil
		},
	})
	return c
}

func (a *app) clockCmd() *cobra.Command {
	c := group(&cobra.Command{Use: "clock", Short: "what to do about a suspect clock"})
	c.AddCommand(&cobra.Command{
		Use:   "accept",
		Short: "say that the clock is right now",
		Long: `While the clock is suspect (before the newest time this node has seen, or far ahead of it) nothing expires, bounces or
is refused for its age. Set it right, then accept it.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.tell(c.Context(), "/v1/clock/accept", empty{}, "The clock is taken to be right.")
		},
	})
	return c
}

func (a *app) restoredCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "restored",
		Short: "say that the spool was restored from an older copy",
		Long: `After a restore from a backup this node may have forgotten what it sent and took. It usually notices by itself; this
tells it. It renews its sessions with all peers, and they send again what they have no receipt for.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.tell(c.Context(), "/v1/restored", empty{}, "Sessions are renewed; peers learn it at the next contact.")
		},
	}
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  takes(),
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.asJSON(map[string]string{"version": a.env.Version, "go": runtime.Version(), "system": runtime.GOOS + "/" + runtime.GOARCH}, false)
			}
			a.printf("mochila %s (%s, %s/%s)\n", a.env.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}
