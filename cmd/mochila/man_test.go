package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var update = flag.Bool("update", false, "write the man pages (and golden files) anew")

// manDir holds a man page for each command, made from the same tree that the program uses.
const manDir = "../../docs/man"

// extras are what mochila(1) says beside the tree of commands.
const extras = `.SH ENVIRONMENT
.TP
\fBMOCHILA_HOME\fP
the node's folder, as \fB--home\fP
.SH FILES
With \fB--home\fP DIR everything of a node is in DIR; without it a user's node is in ~/.mochila.
The machine's node, which is meant by root or wherever /etc/mochila exists, has
.TP
\fI/etc/mochila/mochila.toml\fP
its configuration
.TP
\fI/var/lib/mochila\fP
its keys and peers
.TP
\fI/var/spool/mochila\fP
its queue
.TP
\fI/run/mochila/control.sock\fP
the daemon's socket for these commands, an HTTP/JSON API
.SH EXIT STATUS
0 when all went well, else one of sysexits.h:
64 usage, 65 bad input or no such thing, 66 missing input, 69 unavailable, 70 a bug, 73 cannot create, 74 input or output failed,
75 try again later (\fBmochila sync\fP: somebody could not be reached), 77 permission denied, 78 configuration.
`

// manPages makes all pages, by file name.
func manPages(t *testing.T) map[string][]byte {
	t.Helper()
	root := (&app{env: &Env{}}).root("")
	pages := map[string][]byte{}
	date := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.IsAvailableCommand() {
			return
		}
		if c.Long == "" {
			c.Long = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
		}
		c.Long = strings.ReplaceAll(c.Long, "\n  ", "\n      ") // what is set in is code, in Markdown
		for _, sub := range c.Commands() {
			walk(sub)
		}
		var b bytes.Buffer
		h := &doc.GenManHeader{Section: "1", Source: "mochila", Manual: "mochila", Date: &date}
		if err := doc.GenMan(c, h, &b); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		if c == root {
			at := strings.Index(text, ".SH SEE ALSO")
			text = text[:at] + extras + text[at:]
		}
		pages[strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"] = []byte(text)
	}
	walk(root)
	return pages
}

// TestManPages fails when a page is not what the commands say: go generate ./cmd/mochila makes them anew.
func TestManPages(t *testing.T) {
	pages := manPages(t)
	if *update {
		if err := os.MkdirAll(manDir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	old, err := filepath.Glob(filepath.Join(manDir, "mochila*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if _, ok := pages[filepath.Base(path)]; ok {
			continue
		}
		if *update {
			os.Remove(path)
		} else {
			t.Errorf("%s is the page of no command", path)
		}
	}
	for name, want := range pages {
		path := filepath.Join(manDir, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%v: run go generate ./cmd/mochila", err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s is out of date: run go generate ./cmd/mochila", path)
		}
	}
}

// TestCommandsAreDescribed keeps help texts in one style.
func TestCommandsAreDescribed(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || strings.ToLower(c.Short[:1]) != c.Short[:1] {
			t.Errorf("%s: short description %q: lower case, no full stop", c.CommandPath(), c.Short)
		}
		if c.Args == nil && !c.DisableFlagParsing {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long+"\n"+c.Example, "\n") {
			if len([]rune(line)) > 140 {
				t.Errorf("%s: long line in its help: %q", c.CommandPath(), line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{env: &Env{}}).root(""))
}

// TestCommandsAreMadeByName compares the names that choose a command with those that the commands have, and wants the
// help of a command that was made alone to be that of the one in the tree.
func TestCommandsAreMadeByName(t *testing.T) {
	help := func(root *cobra.Command, name string) string {
		var b bytes.Buffer
		root.SetOut(&b)
		root.SetArgs([]string{name, "--help"})
		if err := root.Execute(); err != nil {
			t.Errorf("help of %s: %v", name, err)
		}
		return b.String()
	}
	a := &app{env: &Env{}}
	for _, c := range a.commands() {
		if got := c.make().Name(); got != c.name {
			t.Errorf("the command %q calls itself %q", c.name, got)
		}
		if c.name == "sendmail" || c.name == "uux" {
			continue // read their flags themselves
		}
		alone := a.root(c.name)
		if n := len(alone.Commands()); n != 1 {
			t.Errorf("%s: %d commands were made", c.name, n)
		}
		if got, want := help(alone, c.name), help(a.root(""), c.name); got != want || got == "" {
			t.Errorf("help of %s, made alone:\n%s\nin the tree:\n%s", c.name, got, want)
		}
	}
	for _, args := range [][]string{nil, {"help"}, {"help", "run"}, {"--help"}, {"completion", "bash"}, {"__complete", "r"}, {"rum"}, {"-x", "run"}, {"--home"}} {
		if n := len(a.root(verb(args)).Commands()); n != len(a.commands()) {
			t.Errorf("%q: %d commands were made, not all", args, n)
		}
	}
	for _, args := range [][]string{{"run"}, {"--home", "init", "run"}, {"--home=x", "--json", "-v", "run", "status"}} {
		if got := verb(args); got != "run" {
			t.Errorf("%q: verb %q", args, got)
		}
	}
}
