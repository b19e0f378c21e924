package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"mochila/internal/control"
	"mochila/transport"
	"mochila/transport/all"
	"mochila/transport/courier"
)

func (a *app) courierCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "courier DIR|URL…",
		Short: "copy packets between sticks and folders, without keys",
		Long: `For the machine of somebody who carries: copies the packets of each folder to all the others, so that every stick has
everything. It needs no node and no keys, and can open nothing. Every packet is compared with its name while it is
copied; a damaged one stays where it is. What its writer took away, because it has arrived, is taken away everywhere.

The exit status is 0 when all was done, and 75 when a folder was missing, full or broken.`,
		Example: "  mochila courier /media/usb ~/pouch\n  mochila courier /media/stick-1 /media/stick-2 s3:sites-mail/net",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError("mochila courier /media/usb ~/pouch", "a courier needs two folders at least")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var stops []courier.Stop
			for _, s := range args {
				url, err := a.carrier(s)
				if err != nil {
					return err
				}
				carrier, err := all.Parse(url)
				if err != nil {
					return hinted(err, control.ExitUsage)
				}
				if carrier.Folder == nil {
					return usageError("a courier carries between sticks, folders and stores", "%s is no folder", s)
				}
				stops = append(stops, courier.Stop{Name: strings.TrimPrefix(url, "dir:"), Folder: carrier.Folder})
			}
			_, person := isTerminal(a.env.Stderr)
			results := courier.Round(c.Context(), stops, func(rs []courier.Result) {
				if n, size := copied(rs); person && !a.json {
					fmt.Fprintf(a.env.Stderr, "\r%s, %s copied …\x1b[K", count(n, "packet"), bytesText(size))
				}
			})
			if person && !a.json {
				fmt.Fprint(a.env.Stderr, "\r\x1b[K")
			}
			return a.showRound(results)
		},
	}
}

func copied(rs []courier.Result) (n int, size int64) {
	for _, r := range rs {
		n += r.Copied
		size += r.Bytes
	}
	return n, size
}

// showRound prints what a round did, and gives the exit status.
func (a *app) showRound(results []courier.Result) error {
	failed := false
	for _, r := range results {
		text := ""
		if r.Err != nil {
			text = r.Err.Error()
		}
		failed = failed || r.Err != nil || r.Full > 0
		if a.json {
			line := struct {
				courier.Result
				Error string `json:"error,omitempty"`
			}{r, text}
			if err := a.asJSON(line, true); err != nil {
				return err
			}
			continue
		}
		if r.Err != nil {
			a.note("mochila: error: %s: %s", safe(r.Name), indent(text))
			if e := hinted(r.Err, 0); e.Hint != "" {
				a.note("hint: %s", e.Hint)
			} else if errors.Is(r.Err, transport.ErrAbsent) {
				a.note("hint: is the stick plugged in and mounted?")
			}
			continue
		}
		what := fmt.Sprintf("%s, %d of them new (%s)", count(r.Packets, "packet"), r.Copied, bytesText(r.Bytes))
		if r.Removed > 0 {
			what += fmt.Sprintf("; %d have arrived and were removed", r.Removed)
		}
		if r.Damaged > 0 {
			what += fmt.Sprintf("; %d are damaged and were not copied on", r.Damaged)
		}
		if r.Full > 0 {
			what += fmt.Sprintf("; no room for %d", r.Full)
		}
		a.printf("%s: %s. Safe to remove.\n", safe(r.Name), what)
	}
	if failed {
		return exit(control.ExitTemp)
	}
	return nil
}

// hinted is an error with the advice that it carries.
func hinted(err error, code int) *control.Error {
	e := &control.Error{Message: err.Error(), Exit: code}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		e.Hint = h.Hint()
	}
	return e
}
