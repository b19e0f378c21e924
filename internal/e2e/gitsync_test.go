package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestGitsync: two stations and the node that both meet at, by the files of contrib/gitsync; one bundle is lost with its
// stick, and another is dropped by a person. In the end all have the same, and nobody did anything about it.
func TestGitsync(t *testing.T) {
	t.Parallel()
	tool(t, "git")
	hub := newNode(t, "hub", "")
	repos := t.TempDir()
	git(t, ".", "init", "-q", "--bare", "-b", "main", filepath.Join(repos, "notes.git"))
	type station struct {
		*stick
		*node
		work string
	}
	var all []station
	for _, name := range []string{"camp", "ship"} {
		s := station{newStick(t), newNode(t, name, ""), filepath.Join(t.TempDir(), "notes")}
		pair(s.node, hub, s.stick.dir)
		git(t, ".", "init", "-q", "-b", "main", s.work)
		all = append(all, s)
	}
	hub.configure("name = \"hub\"\n" + contribFile(t, "gitsync/hub.toml", "/srv/git", repos))
	write := func(s station, file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(s.work, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	gitsync := func(s station) {
		t.Helper()
		out, err := s.fromContrib(gitEnv(), "/bin/sh", "-c", `cd "$1" && exec "$0" hub/notes "$2"`, contribPath(t, "gitsync/mochila-gitsync"), s.work, s.name)
		if err != nil {
			t.Fatalf("gitsync at %s: %v: %s", s.name, err, out)
		}
	}
	round := func() {
		t.Helper()
		for _, s := range all {
			gitsync(s)
			s.must("sync")
			hub.must("sync", s.name)
			s.must("sync")
		}
	}
	camp, ship := all[0], all[1]
	write(camp, "from-camp", "1")
	write(ship, "from-ship", "1")
	// same lets the stations meet until all have the files of all, which takes a few trips.
	same := func(files ...string) {
		t.Helper()
		for trip := 1; ; trip++ {
			round()
			a, b := visibleFiles(t, camp.work), visibleFiles(t, ship.work)
			all := !slices.ContainsFunc(files, func(f string) bool {
				return !slices.ContainsFunc(a, func(s string) bool { return strings.HasPrefix(s, fmt.Sprintf("%q", f)) })
			})
			if all && slices.Equal(a, b) {
				t.Logf("%d trips", trip)
				break
			}
			if trip == 10 {
				t.Fatalf("after %d trips camp has %q, ship has %q", trip, a, b)
			}
		}
		git(t, filepath.Join(repos, "notes.git"), "fsck", "--strict")
	}
	same("from-camp", "from-ship")

	// a stick with a bundle is lost
	write(camp, "lost", "2")
	gitsync(camp)
	camp.must("sync")
	camp.lose(true)
	write(camp, "after", "3")
	gitsync(camp)
	camp.must("sync")
	camp.lose(false)
	hub.must("sync", "camp")
	same("lost", "after")

	// a job is dropped by a person
	write(ship, "dropped", "4")
	gitsync(ship)
	hub.must("jobs", "pause", "ship:git")
	ship.must("sync")
	hub.must("sync", "ship")
	for id := range strings.FieldsSeq(waiting(hub)) {
		hub.must("jobs", "drop", id)
	}
	hub.must("jobs", "resume", "ship:git")
	same("after", "dropped", "from-camp", "from-ship", "lost")

	// camp cannot write to ship's branch
	if out := camp.inTree(camp.work, "git", "push", "hub/notes", "HEAD:refs/heads/ship/main"); out == "" {
		t.Error("nothing was said")
	}
	camp.must("sync")
	hub.must("sync", "camp")
	camp.must("sync")
	if out := camp.inTree(camp.work, "git", "status", "hub/notes"); !strings.Contains(out, "not allowed here") {
		t.Errorf("another's branch: %s", out)
	}
}

// waiting lists the jobs of others that wait at a node.
func waiting(n *node) string {
	var ids []string
	for line := range strings.Lines(n.must("jobs", "list", "--peers")) {
		if f := strings.Fields(line); len(f) > 0 && len(f[0]) == 26 {
			ids = append(ids, f[0])
		}
	}
	return strings.Join(ids, " ")
}

// visibleFiles is a work tree without git's own folder.
func visibleFiles(t *testing.T, dir string) []string {
	t.Helper()
	return slices.DeleteFunc(tree(t, dir), func(s string) bool { return strings.HasPrefix(s, `".git`) })
}
