package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/peertest"
)

// badMessenger is a command that brings what it gets on standard input to a node, now and then twice, damaged, in part,
// or not at all.
func badMessenger(t *testing.T, to *node) (path string, faults func() int) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "messenger")
	receive := strings.Join(to.command("receive").Args, " ")
	text := fmt.Sprintf(`#!/bin/sh
f=$(mktemp -p %[1]s packet-XXXXXX) && cat >$f || exit 75
trap 'rm -f $f' EXIT
touch %[1]s/faults
what=$(($(od -An -N1 -tu1 /dev/urandom) %% 12))
[ $(wc -l <%[1]s/faults) -lt 6 ] || what=9 # then it has mercy
case $what in
0) echo lost >>%[1]s/faults; exit 0;;
1) echo cut >>%[1]s/faults; head -c $(($(stat -c %%s $f) / 2)) $f | %[2]s; exit 0;;
2) echo damaged >>%[1]s/faults; (head -c 40 $f; printf x; tail -c +42 $f) | %[2]s; exit 0;;
3) echo twice >>%[1]s/faults; %[2]s <$f;;
esac
exec %[2]s <$f
`, dir, receive)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, func() int {
		b, _ := os.ReadFile(filepath.Join(dir, "faults"))
		return bytes.Count(b, []byte("\n"))
	}
}

// TestScenarioExec: a command for each packet.
func TestScenarioExec(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, hub *node) joined {
		there, one := badMessenger(t, hub)
		back, two := badMessenger(t, camp)
		return joined{camp: side{url: "exec:" + there}, hub: side{url: "exec:" + back}, faults: func() int { return one() + two() }}
	}})
}

// TestScenarioMail: a real Postfix carries the packets as mail, large ones in several; who empties the two mailboxes loses
// some mails, and hands others over twice, damaged or cut. camp sends by sendmail, hub by SMTP.
func TestScenarioMail(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, hub *node) joined {
		p := peertest.StartPostfix(t, peertest.Options{Hostname: "mx.test", Mailboxes: []string{"letters@camp.example", "letters@hub.example"}})
		wrapper := filepath.Join(t.TempDir(), "sendmail")
		if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+strings.Join(p.Sendmail().Args, " ")+" \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		r := random(t)
		hits := 0
		const mercy = 10 // a packet in many mails needs all of them
		take := func(to *node) {
			for _, file := range p.Files("letters@" + to.name + ".example") {
				mail, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				arrive := [][]byte{mail}
				if hits < mercy {
					arrive = maltreat(r, mail, &hits)
				}
				for _, m := range arrive {
					cmd := to.command("receive", "--mail", "--sender", "letters@x.example")
					cmd.Stdin = bytes.NewReader(m)
					out, _ := cmd.CombinedOutput()
					if code := cmd.ProcessState.ExitCode(); code == 75 {
						return // later
					} else if code != 0 && code != 65 {
						t.Errorf("receive --mail: exit %d: %s", code, out)
					}
				}
				os.Remove(file)
			}
		}
		return joined{
			camp:   side{url: "mail:letters@hub.example?from=letters@camp.example&size=50k&sendmail=" + wrapper},
			hub:    side{url: "mail:letters@camp.example?from=letters@hub.example&size=70k&smtp=" + p.Addr},
			carry:  func() { take(camp); take(hub) },
			faults: func() int { return hits },
		}
	}})
}

// maltreat makes of one mail what arrives: most of the time itself.
func maltreat(r *rand.Rand, mail []byte, hits *int) [][]byte {
	what := r.IntN(12)
	if what < 4 {
		*hits++
	}
	switch what {
	case 0:
		return nil
	case 1:
		return [][]byte{mail, mail}
	case 2:
		return [][]byte{mail[:r.IntN(len(mail))]}
	case 3:
		bad := bytes.Clone(mail)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(7)
		return [][]byte{bad}
	}
	return [][]byte{mail}
}

// spoil loses or damages files of a carrier's spool.
func spoil(r *rand.Rand, files []string) (hits int) {
	for i, path := range files {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 || i > 0 && r.IntN(3) > 0 {
			continue
		}
		if r.IntN(2) == 0 {
			err = os.Remove(path)
		} else {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			err = os.WriteFile(path, b, 0o666)
		}
		if err == nil {
			hits++
		}
	}
	return hits
}

// TestScenarioNNCP: real NNCP nodes, camp by handle, hub by file; packets are lost and damaged in their spools.
func TestScenarioNNCP(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, hub *node) joined {
		in := t.TempDir()
		receive := fmt.Sprintf("      exec: { mochila: [%q, \"--home\", %q, \"receive\", \"--from\", \"nncp\"] }\n", program("mochila"), hub.dir)
		n := peertest.StartNNCP(t, map[string]string{"camp": fmt.Sprintf("      incoming: %q\n", in), "hub": receive})
		r := random(t)
		hits, left := 0, 6
		return joined{
			camp: side{url: "nncp:hub?cfg=" + n.Config("camp") + "&in=" + filepath.Join(in, "mochila")},
			hub:  side{url: "nncp:camp?by=file&cfg=" + n.Config("hub")},
			carry: func() {
				n.Carry()
				if left > 0 {
					did := spoil(r, append(n.Packets("hub", "rx"), n.Packets("camp", "rx")...))
					hits, left = hits+did, left-did
				}
				n.Move()
			},
			faults: func() int { return hits },
		}
	}})
}

// TestScenarioUUCP: two sites of a real Taylor UUCP; packets are lost and damaged in the receiver's spool.
func TestScenarioUUCP(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, hub *node) joined {
		u := peertest.StartUUCP(t, [2]string{"camp", "hub"}, contribFile(t, "uucp/sys"), map[string]map[string]string{
			"camp": {"rmochila": camp.script("uucp/rmochila")}, "hub": {"rmochila": hub.script("uucp/rmochila")}})
		r := random(t)
		hits, left := 0, 6
		return joined{
			camp: side{url: "uucp:hub?config=" + u.Config("camp")},
			hub:  side{url: "uucp:camp?config=" + u.Config("hub")},
			carry: func() {
				for _, n := range []*node{camp, hub} { // the user uucp has to reach them; in life it is in their group
					if n.answers() {
						n.openTo()
					}
				}
				u.Call()
				if left > 0 {
					did := spoil(r, append(u.Data("hub"), u.Data("camp")...))
					hits, left = hits+did, left-did
				}
				u.Execute()
			},
			faults: func() int { return hits },
		}
	}})
}
