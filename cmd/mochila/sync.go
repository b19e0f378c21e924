package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"mochila/internal/config"
	"mochila/internal/control"
)

func (a *app) syncCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "sync [NEIGHBOUR|URL|DIR…]",
		Short: "make the contacts that are due, or these, now",
		Long: `Makes contacts now: those with the named neighbours, those over a carrier, or those that use a folder such as a
stick; without arguments all that can be made from here. A word without a slash or colon is a neighbour's name.

The exit status is 0 when all was done, and 75 when somebody could not be reached.`,
		Example:           "  mochila sync\n  mochila sync hub\n  mochila sync /media/usb",
		Args:              takes("[NEIGHBOUR|URL|DIR…]"),
		ValidArgsFunction: a.names,
		RunE: func(c *cobra.Command, args []string) error {
			q := control.SyncRequest{Targets: []string{}}
			for _, s := range args {
				t, err := a.target(s)
				if err != nil {
					return err
				}
				q.Targets = append(q.Targets, t)
			}
			s := a.newSyncView()
			defer s.close()
			err := a.node(c.Context(), func(c2 *control.Client) error {
				return c2.Stream(c.Context(), "/v1/sync", q, func(raw json.RawMessage) error {
					var l control.SyncLine
					if err := json.Unmarshal(raw, &l); err != nil {
						return fmt.Errorf("read the answer: %w", err)
					}
					if a.json {
						s.note(l)
						return errors.Join(a.asJSON(l, true), a.out.flush())
					}
					return s.line(l)
				})
			})
			s.close()
			if err != nil {
				return err
			}
			return s.end()
		},
	}
}

// syncView shows a sync to a person: one line for each result, and on a terminal one that tells what goes on.
type syncView struct {
	app     *app
	results []control.SyncLine
	failed  []control.SyncLine
	ended   bool // the last line came
	stop    chan struct{}
	done    sync.WaitGroup

	mu    sync.Mutex
	state string // shown on the terminal at the moment; "" nothing
	width int    // of the terminal; 0: none
	drawn bool
}

func (a *app) newSyncView() *syncView {
	s := &syncView{app: a, state: "making contact"}
	if a.json || a.getenv("TERM") == "dumb" {
		return s
	}
	width, ok := isTerminal(a.env.Stderr)
	if !ok {
		return s
	}
	s.width, s.stop = width, make(chan struct{})
	start := a.now
	s.done.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case now := <-tick.C:
				s.draw(span(now.Sub(start)))
			}
		}
	})
	return s
}

// close ends the line on the terminal; it may be called twice.
func (s *syncView) close() {
	if s.stop != nil {
		close(s.stop)
		s.stop = nil
		s.done.Wait()
	}
	s.clear()
}

func (s *syncView) draw(elapsed string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := []rune(s.state + " … " + elapsed)
	if len(text) >= s.width {
		text = text[:max(s.width-1, 0)]
	}
	fmt.Fprintf(s.app.env.Stderr, "\r%s\x1b[K", string(text))
	s.drawn = true
}

func (s *syncView) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn {
		fmt.Fprint(s.app.env.Stderr, "\r\x1b[K")
		s.drawn = false
	}
}

// note keeps what the exit status depends on.
func (s *syncView) note(l control.SyncLine) {
	s.ended = s.ended || l.End
	switch {
	case l.Progress:
	case l.Error != "" || l.Absent:
		s.failed = append(s.failed, l)
	case !l.End:
		s.results = append(s.results, l)
	}
}

func (s *syncView) line(l control.SyncLine) error {
	s.note(l)
	switch {
	case l.Progress:
		s.mu.Lock()
		s.state = fmt.Sprintf("%s: %s in, %s out, %s", s.who(l), count(l.PacketsIn, "packet"), count(l.PacketsOut, "packet"), bytesText(l.BytesIn+l.BytesOut))
		s.mu.Unlock()
		return nil
	case l.Error != "" || l.Absent:
		s.clear()
		s.show(l)
		s.problem(l)
	case l.End:
	default:
		s.clear()
		s.show(l)
	}
	return s.app.out.flush()
}

// who is the subject of a line.
func (s *syncView) who(l control.SyncLine) string {
	if l.Node != "" {
		return safe(l.Node)
	}
	return safe(place(l))
}

// ownName is what this node is called; "here" when its configuration cannot be read.
func (a *app) ownName() string {
	h, err := a.find()
	if err != nil {
		return "here"
	}
	c, _, err := config.Load(h)
	if err != nil {
		return "here"
	}
	return c.Name
}

// place is where a contact was: the path of a folder, or the carrier's URL.
func place(l control.SyncLine) string {
	if dir, ok := strings.CutPrefix(l.Carrier, "dir:"); ok {
		dir, _, _ = strings.Cut(dir, "?")
		return dir
	}
	return l.Carrier
}

// show prints what one contact moved.
func (s *syncView) show(l control.SyncLine) {
	if l.Paired != "" || l.Delivered > 0 {
		var what []string
		if l.Paired != "" {
			what = append(what, "paired with "+safe(l.Paired))
		}
		if l.Delivered > 0 {
			what = append(what, count(l.Delivered, "mail")+" delivered")
		}
		s.app.printf("%s: %s\n", s.app.ownName(), strings.Join(what, ", "))
	}
	var what []string
	if l.PacketsIn > 0 {
		what = append(what, fmt.Sprintf("%s, %s received", count(l.PacketsIn, "packet"), bytesText(l.BytesIn)))
	}
	if !l.Folder && l.PacketsOut > 0 {
		what = append(what, fmt.Sprintf("%s, %s sent", count(l.PacketsOut, "packet"), bytesText(l.BytesOut)))
	}
	if l.Incomplete > 0 {
		what = append(what, fmt.Sprintf("%d not complete yet", l.Incomplete))
	}
	if l.Refused > 0 {
		what = append(what, fmt.Sprintf("%d refused (mochila quarantine list)", l.Refused))
	}
	if len(what) > 0 {
		s.app.printf("%s: %s\n", s.who(l), strings.Join(what, "; "))
	}
	switch {
	case l.Full && l.Folder && l.Lying+l.PacketsOut > 0:
		s.folder(l)
	case l.Error != "" || l.Absent:
	case l.Folder:
		s.folder(l)
	case len(what) == 0 && l.Paired == "" && l.Delivered == 0:
		s.app.printf("%s: nothing to move\n", s.who(l))
	}
}

// folder says what lies on a stick now, or in a store.
func (s *syncView) folder(l control.SyncLine) {
	lying := max(l.Lying, l.PacketsOut)
	old := lying - l.PacketsOut
	if !strings.HasPrefix(l.Carrier, "dir:") {
		s.app.printf("%s for %s at %s, %d of them new (%s).\n", count(lying, "packet"), s.who(l), safe(noSecret(l.Carrier)), l.PacketsOut, bytesText(l.BytesOut))
		return
	}
	switch {
	case lying == 0:
		s.app.printf("Nothing for %s on the stick. Safe to remove.\n", s.who(l))
	case old == 0:
		s.app.printf("%s, %s on the stick. Safe to remove. Next: plug it in at %s.\n", count(lying, "packet"), bytesText(l.BytesOut), s.who(l))
	case l.PacketsOut == 0:
		s.app.printf("%s on the stick from before. Safe to remove. Next: plug it in at %s.\n", count(lying, "packet"), s.who(l))
	default:
		s.app.printf("%s on the stick, %s of them new. Safe to remove. Next: plug it in at %s.\n",
			count(lying, "packet"), bytesText(l.BytesOut), s.who(l))
	}
}

// problem says who could not be reached, and why.
func (s *syncView) problem(l control.SyncLine) {
	text, subject := l.Error, s.who(l)
	gone := l.Absent && strings.HasPrefix(l.Carrier, "dir:") // of anything else, the reason tells more
	if gone {
		text = place(l) + " is not there"
	}
	if l.End && subject == "" {
		subject = "sync"
	} else if p := place(l); p != "" && l.Node != "" && !strings.Contains(text, p) {
		subject += " over " + safe(noSecret(p))
	}
	s.app.note("mochila: error: %s: %s", subject, indent(text))
	switch {
	case gone:
		s.app.note("hint: is the stick plugged in and mounted?")
	case l.Hint != "":
		s.app.note("hint: %s", l.Hint)
	}
}

// noSecret hides the password of a carrier's URL.
func noSecret(s string) string {
	if u, err := url.Parse(s); err == nil && u.User != nil {
		return u.Redacted()
	}
	return s
}

// end is the exit status.
func (s *syncView) end() error {
	if !s.ended {
		return &control.Error{Message: "the daemon ended before the sync did", Hint: "mochila status", Exit: control.ExitTemp}
	}
	if len(s.failed) > 0 {
		return exit(control.ExitTemp)
	}
	if len(s.results) == 0 && !s.app.json {
		s.app.printf("No contact can be made from here.\n")
		s.app.note("hint: mochila invite NAME DIR pairs this node with another; mochila status shows contacts")
	}
	return nil
}
