package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// fspl runs Filespooler's program and fails the test when it fails.
func fspl(t *testing.T, in []byte, env []string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("fspl", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = bytes.NewReader(in)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fspl %v: %v: %s", args, err, said.String())
	}
	return out
}

// TestScenarioFilespooler: a queue for each direction; camp's is processed by fspl itself, hub's is read by camp. Packets
// are lost and damaged behind their headers.
func TestScenarioFilespooler(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, hub *node) joined {
		there, back := filepath.Join(t.TempDir(), "q"), filepath.Join(t.TempDir(), "q")
		peertest.Filespooler(t, there)
		peertest.Filespooler(t, back)
		words := strings.Fields(contribFile(t, "filespooler/process", "/srv/sync/from-camp", there, "/usr/local/bin/mochila", program("mochila")))
		for len(words) > 0 && words[0] != "fspl" {
			words = words[1:]
		}
		r := random(t)
		hits, left := 0, 6
		return joined{
			camp: side{url: "fspl:" + there + "?in=" + back}, hub: side{url: "fspl:" + back},
			carry: func() {
				if left > 0 {
					did := spoilJobs(r, there) + spoilJobs(r, back)
					hits, left = hits+did, left-did
				}
				cmd := exec.Command(words[0], words[1:]...)
				cmd.Env = append(os.Environ(), "MOCHILA_HOME="+hub.dir)
				cmd.Run() // what it does not take now stays there
			},
			faults: func() int { return hits },
		}
	}})
}

// spoilJobs loses or damages jobs of a queue.
func spoilJobs(r *rand.Rand, queue string) (hits int) {
	files, _ := filepath.Glob(filepath.Join(queue, "jobs/fspl-*.fspl"))
	for i, path := range files {
		b, err := os.ReadFile(path)
		if err != nil || len(b) < 400 || i > 0 && r.IntN(3) > 0 {
			continue
		}
		if r.IntN(2) == 0 {
			err = os.Remove(path)
		} else {
			b[300+r.IntN(len(b)-300)] ^= 1 << r.IntN(8)
			err = os.WriteFile(path, b, 0o644)
		}
		if err == nil {
			hits++
		}
	}
	return hits
}

// TestFilespoolerJobs: fspl runs the jobs that mochila wrote, and mochila those that fspl prepare wrote, in order, with
// their parameters and variables.
func TestFilespoolerJobs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	peertest.Filespooler(t, in)
	peertest.Filespooler(t, out)
	camp, hub := newNode(t, "camp", ""), newNode(t, "hub", "")
	pair(camp, hub, t.TempDir())
	hub.configure("name = \"hub\"\n" + contribFile(t, "filespooler/handler.toml", "/usr/local/bin/mochila", program("mochila"), "/srv/queue", out))
	camp.serve()
	hub.serve()

	// fspl prepare → in → mochila jobs import → camp → hub → mochila jobs export → out → fspl queue-process
	var packets [][]byte
	seq := filepath.Join(dir, "seq")
	for i := range 4 {
		packets = append(packets, fspl(t, fmt.Appendf(nil, "payload %d\n", i), []string{"FSPL_SET_COLOUR=red\tand blue"}, "prepare", "-s", seq, "-i", "-", "--", fmt.Sprintf("a b %d", i)))
	}
	imports := func(want int, say string) {
		t.Helper()
		cmd := camp.command("jobs", "import", in, "hub", "--channel", "work", "--params", "--", "queue")
		said, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want || !strings.Contains(string(said), say) {
			t.Fatalf("jobs import: exit %d, want %d: %v: %s", code, want, err, said)
		}
	}
	for _, i := range []int{3, 1, 0} { // the third one is late
		fspl(t, packets[i], nil, "queue-write", "-q", in)
	}
	imports(75, "job 3 is missing")
	fspl(t, packets[2], nil, "queue-write", "-q", in)
	fspl(t, packets[0], nil, "queue-write", "-q", in) // and the first one comes again
	imports(0, "2 jobs imported, 1 that were taken before removed")
	if left, _ := filepath.Glob(filepath.Join(in, "jobs/*")); len(left) > 0 {
		t.Errorf("left in the queue: %v", left)
	}
	if next := fspl(t, nil, nil, "queue-get-next", "-q", in); string(bytes.TrimSpace(next)) != "5" {
		t.Errorf("fspl says that the next number is %s", next)
	}
	drained(t, camp, hub)
	cmd := exec.Command(program("mochila"), "jobs", "export", out, "-e", "COLOUR=green", "--", "by hand")
	cmd.Stdin = strings.NewReader("last\n")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("jobs export: %v: %s", err, said)
	}
	got := fspl(t, nil, nil, "queue-process", "-q", out, "--allow-job-params", "/bin/sh", "--", "-c", `echo "$FSPL_SEQ $FSPL_SET_COLOUR: $1: $(cat)"`, "job")
	want := "1 red\tand blue: a b 0: payload 0\n2 red\tand blue: a b 1: payload 1\n3 red\tand blue: a b 2: payload 2\n4 red\tand blue: a b 3: payload 3\n5 green: by hand: last\n"
	if string(got) != want {
		t.Errorf("fspl ran\n%swant\n%s", got, want)
	}
	// two jobs with one number stop the queue, and a run that was cut off asks
	fspl(t, fspl(t, []byte("x"), nil, "prepare", "-s", seq, "-i", "-"), nil, "queue-write", "-q", in)
	if err := os.WriteFile(filepath.Join(in, "mochila.import"), []byte("5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	imports(75, "nobody knows whether job 5 was imported")
	if err := os.Remove(filepath.Join(in, "mochila.import")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(seq, []byte("5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	fspl(t, fspl(t, []byte("y"), nil, "prepare", "-s", seq, "-i", "-"), nil, "queue-write", "-q", in)
	imports(65, "two different jobs have number 5")
}
