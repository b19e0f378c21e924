package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDaemonModes: -bd and -bD become the program mochila that lies beside sendmail, or where make install puts it, with
// its exit status; what else stands in such a command line is for other mail systems.
func TestDaemonModes(t *testing.T) {
	for name, place := range map[string]string{"beside": "lib/mochila/mochila", "installed": "bin/mochila"} {
		t.Run(name, func(t *testing.T) {
			prefix := t.TempDir()
			for _, dir := range []string{"bin", "lib/mochila"} {
				if err := os.MkdirAll(filepath.Join(prefix, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			self := filepath.Join(prefix, "lib/mochila/sendmail")
			copyFile(t, self, binary)
			fake := "#!/bin/sh\necho \"home=$MOCHILA_HOME\" \"$@\"\nexit 69\n"
			if err := os.WriteFile(filepath.Join(prefix, place), []byte(fake), 0o755); err != nil {
				t.Fatal(err)
			}
			n := newNode(t)
			for args, want := range map[string]string{
				"-bd":              "serve --background",
				"-bd -q15m":        "serve --background",
				"-L sm-mta -bd -q": "serve --background",
				"-q15m -bd":        "serve --background",
				"-bD -q1h":         "serve",
				"--home /x -bD":    "--home /x serve",
			} {
				cmd := n.command("sendmail", strings.Fields(args)...)
				cmd.Path = self
				r := finish(t, cmd, "")
				if want = "home=" + n.home + " " + want + "\n"; r.out != want || r.exit != 69 || r.err != "" {
					t.Errorf("%s: %+v, want %q", args, r, want)
				}
			}
		})
	}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
