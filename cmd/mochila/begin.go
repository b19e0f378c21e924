package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/transport/all"
)

func (a *app) initCmd() *cobra.Command {
	var o control.InitOptions
	c := &cobra.Command{
		Use:   "init NAME",
		Short: "make a node: identity, configuration, spool",
		Long: `Makes a node called NAME (lower-case letters, digits, inner hyphens), and prints its card. Other nodes may call it
otherwise: names are local, the identity is not.

Without --maildir or --deliver, nothing is delivered here yet: set [[deliver]] in the configuration.`,
		Example: "  mochila init camp --maildir ~/Mail\n  mochila init hub --domain hub.example --deliver smtp:127.0.0.1:10026 --listen 127.0.0.1:2525 --bounce smtp:127.0.0.1:10026",
		Args:    takes("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.find()
			if err != nil {
				return err
			}
			o.Name = args[0]
			if o.Maildir != "" {
				if o.Via != "" {
					return usageError("", "--maildir and --deliver both say where mail ends")
				}
				if o.Maildir, err = a.folder(o.Maildir); err != nil {
					return err
				}
			}
			r, err := control.Init(c.Context(), h, o)
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(r, false)
			}
			a.printf("%s is made in %s\nid %s\n\n%s\n", r.Name, h.ConfigDir, r.ID, strings.TrimSpace(r.Card))
			a.printf("\nNext: mochila invite NAME DIR pairs it with another node; mochila serve starts the daemon.\n")
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Domain, "domain", "", "mail `domain` of this node (default NAME.mochila)")
	f.StringVar(&o.Maildir, "maildir", "", "deliver to Maildirs below `DIR`, one for each user")
	f.StringVar(&o.Via, "deliver", "", "deliver to this `URL`: smtp:HOST:PORT, lmtp:/path, maildir:/srv/mail/%u, …")
	f.StringVar(&o.Bounce, "bounce", "", "where error reports go that no other rule takes, a `URL` as --deliver")
	f.StringArrayVar(&o.Listen, "listen", nil, "take mail by SMTP at this `address`: HOST:PORT, lmtp:/path; may repeat")
	return c
}

// cardReply is GET /v1/card.
type cardReply struct {
	Name  string `json:"name"`
	ID    string `json:"id"`
	Card  string `json:"card"`
	Bytes []byte `json:"bytes"` // the card's binary form
}

func (a *app) cardCmd() *cobra.Command {
	var code bool
	c := &cobra.Command{
		Use:   "card",
		Short: "print this node's card",
		Long:  "Prints the card: the signed public description that other nodes need to send mail here. Nothing in it is secret.",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := get[cardReply](c.Context(), a, "/v1/card")
			if err != nil {
				return err
			}
			switch {
			case a.json:
				return a.asJSON(r, false)
			case code:
				return a.qr(r.Card)
			}
			a.printf("%s\n", strings.TrimSpace(r.Card))
			return nil
		},
	}
	c.Flags().BoolVar(&code, "qr", false, "as a QR code for a camera")
	return c
}

// qr prints text as a QR code, two rows of it to a line, dark on light whatever the terminal's colours are: with
// colours on a terminal, else reversed for white paper.
func (a *app) qr(text string) error {
	code, err := qr.Encode(strings.TrimSpace(text), qr.L)
	if err != nil {
		return &control.Error{Message: "make a QR code: " + err.Error(), Hint: "mochila card prints it as text", Exit: control.ExitData}
	}
	a.printf("%s", drawQR(code, a.colours()))
	return nil
}

// colours says whether standard output may have escape sequences.
func (a *app) colours() bool {
	_, ok := isTerminal(a.env.Stdout)
	return ok && a.getenv("TERM") != "dumb"
}

func drawQR(code *qr.Code, colours bool) string {
	const quiet = 4 // modules around it, ISO/IEC 18004
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		if colours {
			b.WriteString("\x1b[30;107m")
		}
		for x := -quiet; x < code.Size+quiet; x++ {
			top, bottom := code.Black(x, y), code.Black(x, y+1)
			switch {
			case top && bottom:
				b.WriteRune('█')
			case top:
				b.WriteRune('▀')
			case bottom:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		if colours {
			b.WriteString("\x1b[0m")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (a *app) inviteCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "invite NAME DIR|URL",
		Short: "invite a node to become a peer",
		Long: `Writes this node's card and a secret for one use to the medium; the other node answers with mochila join. NAME is
what it will be called here.

On a carrier that holds no files, such as tcp:HOST:PORT, the invitation is printed instead: bring it to the other node
by a way that nobody else reads.`,
		Example: "  mochila invite hub /media/usb\n  mochila invite hub tcp:camp.example:2424 > INVITATION",
		Args:    takes("NAME", "DIR|URL"),
		RunE: func(c *cobra.Command, args []string) error {
			url, err := a.carrier(args[1])
			if err != nil {
				return err
			}
			r, err := post[control.InviteReply](c.Context(), a, "/v1/invite", control.InviteRequest{Name: args[0], URL: url})
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(r, false)
			}
			if r.Text != "" {
				a.printf("%s\n", strings.TrimSpace(r.Text))
				a.note("Bring this to %s by a way that nobody else reads, and type there: %s", args[0], safe(r.Join))
				return nil
			}
			a.printf("Take it to %s and type there: %s\n", args[0], safe(r.Join))
			return nil
		},
	}
}

func (a *app) joinCmd() *cobra.Command {
	var q control.JoinRequest
	c := &cobra.Command{
		Use:   "join DIR|URL",
		Short: "accept an invitation",
		Long: `Takes the invitation from the medium, or from standard input for a carrier that holds no files, and answers on
the same medium. The inviter becomes a peer at once; this node becomes its peer when the answer arrives.`,
		Example: "  mochila join /media/usb --as camp\n  mochila join tcp:camp.example:2424 < INVITATION",
		Args:    takes("DIR|URL"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if q.URL, err = a.carrier(args[0]); err != nil {
				return err
			}
			if _, typed := isTerminal(a.env.Stdin); !typed && !holdsFiles(q.URL) {
				text, err := readAll(a.env.Stdin, 64<<10)
				if err != nil {
					return fmt.Errorf("read the invitation: %w", err)
				}
				q.Text = string(text)
			}
			r, err := post[control.JoinReply](c.Context(), a, "/v1/join", q)
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(r, false)
			}
			a.printf("%s is a peer now (%s)\n", safe(r.Name), r.ID)
			if dir, ok := strings.CutPrefix(r.Carrier, "dir:"); ok {
				a.printf("The answer is on the stick. Next: mail to NAME@%s.mochila, mochila sync %s, and take it to %s.\n", safe(r.Name), safe(dir), safe(r.Name))
			}
			return nil
		},
	}
	c.Flags().StringVar(&q.As, "as", "", "what the inviter is called here (default its own `name`)")
	return c
}

// holdsFiles reports whether a carrier can keep an invitation: a folder, a bucket. Others hand it over as text.
func holdsFiles(url string) bool {
	c, err := all.Parse(url)
	return err == nil && c.Folder != nil
}

func (a *app) sendmailCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "sendmail [ARGUMENT…]",
		Short: "submit mail as sendmail does",
		Long: `The drop-in for sendmail(1) as a subcommand: takes its arguments and a message on standard input. It answers 0 when
the mail is durably queued here, whether or not the daemon runs.

  -t                  recipients from To, Cc and Bcc, too; Bcc is removed
  -i, -oi             a lone dot does not end the message
  -f SENDER, -r …     the envelope's sender; <> is the null sender
  -F NAME             the sender's name in a From field that is missing
  -N CONDITIONS       never, or success,failure,delay: when to report
  -R full|hdrs        how much of the message a report returns
  -V ENVID            an identifier for reports
  -bs, -bS            speak SMTP on standard input and output; take a batch of SMTP
  -bp, -q, -bv        print the queue, flush it, verify an address (these need the daemon)
  -bd, -bD            start the daemon, in the background or not: mochila serve

Installed or linked under the names sendmail, mailq, newaliases, rmail and rsmtp, the program is those; mochila itself is
also rcsmtp, rgsmtp and rbsmtp, which take batches that are compressed by compress, gzip, or any of them and bzip2.`,
		Example:            "  echo hi | mochila sendmail ana@camp.mochila\n  mochila sendmail -t -i < message",
		DisableFlagParsing: true,
		RunE:               a.sendmail,
	}
}

// readAll reads r to its end, which must come before max bytes.
func readAll(r io.Reader, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("it is longer than %s", bytesText(max))
	}
	return b, err
}

// carrier makes an absolute carrier URL of a folder or URL that was typed: the daemon runs elsewhere.
func (a *app) carrier(s string) (string, error) {
	dir, isDir := strings.CutPrefix(s, "dir:")
	if !isDir && regexp.MustCompile(`^[a-z][a-z0-9+-]*:`).MatchString(s) {
		return s, nil
	}
	dir, params, _ := strings.Cut(dir, "?")
	dir, err := a.folder(dir)
	if err != nil {
		return "", err
	}
	if params != "" {
		dir += "?" + params
	}
	return "dir:" + dir, nil
}

// folder makes a path absolute; the shell does not expand ~ in --maildir=~/Mail.
func (a *app) folder(s string) (string, error) {
	if s == "" {
		return "", usageError("", "the name of the folder is empty")
	}
	if rest, ok := strings.CutPrefix(s, "~/"); ok {
		if home := a.getenv("HOME"); home != "" {
			return filepath.Join(home, rest), nil
		}
	}
	abs, err := filepath.Abs(s)
	if err != nil {
		return "", fmt.Errorf("find the folder %q: %w", s, err)
	}
	return abs, nil
}

// target is a node name, a carrier URL or a folder, as sync takes them. A word that could be both is a node's name if
// there is such a peer.
func (a *app) target(s string) (string, error) {
	if config.CheckName(s) != nil {
		return a.carrier(s)
	}
	h, err := a.find()
	if err != nil {
		return "", err
	}
	if fi, err := os.Stat(s); err != nil || !fi.IsDir() {
		return s, nil
	}
	if _, err := os.Stat(filepath.Join(h.PeersDir, s+".toml")); err == nil {
		return s, nil
	}
	return a.carrier(s)
}

// readFile reads a small file, or standard input when it is called "-".
func (a *app) readFile(name string) (string, error) {
	f := a.env.Stdin
	if name != "-" {
		var err error
		if f, err = os.Open(name); err != nil {
			return "", &control.Error{Message: err.Error(), Exit: control.ExitNoInput}
		}
		defer f.Close()
	}
	b, err := readAll(f, 64<<10)
	if err != nil {
		return "", &control.Error{Message: fmt.Sprintf("read %s: %v", name, err), Exit: control.ExitNoInput}
	}
	return string(b), nil
}

// names completes the names of peers.
func (a *app) names(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	h, err := a.find()
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	files, err := os.ReadDir(h.PeersDir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var out []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".toml"); ok {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveDefault
}

// empty is the answer of verbs that have none, and the request of those that need none.
type empty struct{}

// tell posts in to the node, and prints done when that worked; with --json the API's answer.
func (a *app) tell(ctx context.Context, path string, in any, done string) error {
	r, err := post[map[string]any](ctx, a, path, in)
	if err != nil {
		return err
	}
	if a.json {
		return a.asJSON(r, false)
	}
	a.printf("%s\n", done)
	return nil
}
