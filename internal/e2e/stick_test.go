package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// stick is the slot of a medium between two nodes: a test decides what of it arrives.
type stick struct {
	t    *testing.T
	dir  string
	seen map[string]bool // packets that were on it
}

func newStick(t *testing.T) *stick {
	t.Helper()
	return &stick{t: t, dir: t.TempDir(), seen: map[string]bool{}}
}

// lose removes from the stick what was on an earlier one, and what is new on this one if all is to be lost: packets without
// a receipt are put on every stick.
func (m *stick) lose(all bool) {
	m.t.Helper()
	list, err := filepath.Glob(filepath.Join(m.dir, "mochila", "*", "*", "*"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range list {
		if m.seen[filepath.Base(f)] || all {
			if err := os.Remove(f); err != nil {
				m.t.Fatal(err)
			}
		}
		m.seen[filepath.Base(f)] = true
	}
}

// pull takes the stick out of the slot; what is synced then goes to an empty one.
func (m *stick) pull() (stick string) {
	m.t.Helper()
	stick = m.t.TempDir()
	if err := os.Rename(filepath.Join(m.dir, "mochila"), filepath.Join(stick, "mochila")); err != nil {
		m.t.Fatal(err)
	}
	return stick
}

// plug puts a stick into the slot.
func (m *stick) plug(stick string) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.dir, "mochila")); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(stick, "mochila"), filepath.Join(m.dir, "mochila")); err != nil {
		m.t.Fatal(err)
	}
}
