package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// streamPair makes two nodes, hub with a port for neighbours, and its Maildir. Their contacts are left to the test.
func streamPair(t *testing.T) (camp, hub *node, link, mail string) {
	t.Helper()
	link, mail = peertest.FreePort(t), t.TempDir()
	quick := "[limits]\nretry_min = \"1s\"\nretry_max = \"1s\"\n"
	camp = newNode(t, "camp", quick)
	hub = newNode(t, "hub", fmt.Sprintf("[link]\nlisten = [%q]\n[[deliver]]\nto = [\"hub.mochila\"]\nvia = %q\n%s", link, "maildir:"+mail+"/%u", quick))
	hub.knows(camp, control.PeerAdd{When: "on-call"})
	return camp, hub, link, mail
}

// randomMail is a mail that does not compress, of some size.
func randomMail(r *rand.Rand, size int) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"
	var b strings.Builder
	b.WriteString("Subject: noise\n\n")
	for b.Len() < size {
		for range 72 {
			b.WriteByte(letters[r.IntN(len(letters))])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestStreamCarriers: mail goes over each kind of stream, real programs in between, and over lines that break again and
// again: what came before a cut is not sent a second time.
func TestStreamCarriers(t *testing.T) {
	for name, carrier := range map[string]func(t *testing.T, hub *node, b *breaker) string{
		"socks": func(t *testing.T, _ *node, b *breaker) string {
			s := peertest.StartSOCKS(t)
			return fmt.Sprintf("tcp:%s?socks=%s:%s@%s", b.addr, s.User, s.Password, s.Addr)
		},
		"pipe": func(t *testing.T, _ *node, b *breaker) string {
			if _, err := exec.LookPath("socat"); err != nil {
				t.Skip("SKIPPED: socat is not installed: run .ci/peers")
			}
			return "pipe:socat - TCP:" + b.addr
		},
		"unix": func(t *testing.T, hub *node, _ *breaker) string { return "unix:" + hub.home.LinkSocket() },
		"tcp":  func(_ *testing.T, _ *node, b *breaker) string { return "tcp:" + b.addr },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := random(t)
			camp, hub, link, mail := streamPair(t)
			const size, cuts = 6 << 20, 4
			b := newBreaker(t, "tcp", link, func(n int) int64 {
				if n >= cuts {
					return 0
				}
				return int64(r.IntN(1<<20) + 300<<10)
			})
			big := randomMail(r, size)
			camp.knows(hub, control.PeerAdd{Carrier: carrier(t, hub, b)})
			camp.calls("hub")
			hub.serve()
			camp.serve()
			camp.submit(big, "ana@hub.mochila")
			for range 3 {
				camp.submit("Subject: small\n\n", "ana@hub.mochila")
			}
			drained(t, camp, hub)
			got := box(t, filepath.Join(mail, "ana"))
			whole := 0
			for _, m := range got {
				if strings.Contains(m, big[len("Subject: noise\n\n"):]) {
					whole++
				}
			}
			if len(got) != 4 || whole != 1 {
				t.Errorf("%d mails arrived, the big one %d times", len(got), whole)
			}
			if name == "unix" {
				return // the socket cannot be broken but by its owner
			}
			hub.shutdown() // the last contact is over, and in the log
			if conns, n := b.tally(); n != cuts || hub.received() > size*105/100 {
				t.Errorf("%d connections, %d cuts, want %d; %d bytes received for a mail of %d", conns, n, cuts, hub.received(), size)
			}
		})
	}
}

// TestStreamTroubles: a sync over a carrier that is broken says what is broken, and what would help.
func TestStreamTroubles(t *testing.T) {
	s := peertest.StartSOCKS(t)
	camp, hub, _, _ := streamPair(t)
	nobody := peertest.FreePort(t)
	for _, c := range []struct{ name, carrier, want, hint string }{
		{"nobody listens", "tcp:" + nobody, "connection refused", ""},
		{"no proxy", "tcp:hub.example:2424?socks=" + nobody, "SOCKS proxy: dial tcp " + nobody, "hint: is the proxy running at " + nobody},
		{"wrong password", "tcp:hub.example:2424?socks=camp:horse@" + s.Addr, "SOCKS proxy " + s.Addr + ": ", "authentication"},
		{"nobody behind the proxy", fmt.Sprintf("tcp:%s?socks=%s:%s@%s", nobody, s.User, s.Password, s.Addr), "SOCKS proxy " + s.Addr, "refused"},
		{"no socket", "unix:/nonexistent/link.sock", "no such file", ""},
		{"program fails", "pipe:sh -c 'echo the modem is on fire >&2; exit 3'", "the modem is on fire", ""},
		{"no program", "pipe:/nonexistent/modem", "/nonexistent/modem", ""},
		{"no ssh there", "ssh:nobody@127.0.0.1:1", "Connection refused", ""},
	} {
		camp.knows(hub, control.PeerAdd{Carrier: c.carrier, When: "manual"})
		out, err := camp.command("sync", "hub").CombinedOutput()
		text := string(out)
		if err == nil || !strings.HasPrefix(text, "mochila: error: ") || !strings.Contains(text, c.want) || !strings.Contains(text, c.hint) {
			t.Errorf("%s: want %q and %q, got %v: %s", c.name, c.want, c.hint, err, text)
		}
		if strings.Contains(text, "stick") || strings.Contains(text, "mule") || strings.Contains(text, "horse") {
			t.Errorf("%s: %s", c.name, text)
		}
	}
}

// TestCarrierTroubles: whatever is broken about a carrier, a sync names it, and says what to look at.
func TestCarrierTroubles(t *testing.T) {
	t.Parallel()
	camp, hub, _, _ := streamPair(t)
	dir, nobody := t.TempDir(), peertest.FreePort(t)
	plain, open := filepath.Join(dir, "plain"), filepath.Join(dir, "open")
	for _, f := range []string{plain, open} {
		if err := os.WriteFile(f, []byte("a:b"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	camp.knows(hub, control.PeerAdd{Carrier: "dir:" + dir, When: "manual"})
	camp.configure("[[route]]\nto = [\"*\"]\nnode = \"hub\"\n")
	camp.submit("Subject: due\n\n", "ana@hub.example")
	for _, c := range []struct{ carrier, want, hint string }{
		{"dir:" + dir + "/stick", dir + "/stick is not there", "plugged in"},
		{"dir:" + plain, plain + " is not a directory", "folder"},
		{"tcp:" + nobody, "connection refused", "[link] listen"},
		{"tcp:no.such.host.invalid", "no.such.host.invalid", "resolver"},
		{"ssh:nobody@" + nobody, "Connection refused", "ssh HOST"},
		{"sftp:nobody@" + nobody + "/x", "Connection refused", "sftp HOST"},
		{"unix:" + dir + "/link.sock", dir + "/link.sock", "run/link.sock"},
		{"pipe:/nonexistent/modem", "/nonexistent/modem", "installed"},
		{"pipe:/bin/echo hello", "link protocol", "mochila receive --link"},
		{"exec:/nonexistent/carrier", "/nonexistent/carrier", "installed"},
		{"exec:echo the dish is frozen >&2; exit 75", "the dish is frozen", "by hand"},
		{"serial:" + dir + "/ttyUSB0", dir + "/ttyUSB0", "plugged in"},
		{"serial:" + plain, plain, "a serial one"},
		{"s3:bucket?endpoint=http://" + nobody + "&credentials=" + dir + "/keys", dir + "/keys", "mode 600"},
		{"s3:bucket?endpoint=http://" + nobody + "&credentials=" + open, open, "chmod 600"},
		{"dav:" + nobody + "/x", "connection refused", "does the server answer"},
		{"davs:" + nobody + "/x?secret=" + dir + "/secret", dir + "/secret", "mode 600"},
		{"nats:" + nobody + "/net", nobody, "nats-server"},
		{"mail:a@hub.example?from=b@camp.example&sendmail=" + dir + "/sendmail", dir + "/sendmail", "mail server"},
		{"mail:a@hub.example?from=b@camp.example&smtp=" + nobody, "connection refused", "mail server"},
		{"fspl:" + dir, dir + " is no Filespooler queue", "queue-init"},
	} {
		if scheme, _, _ := strings.Cut(c.carrier, ":"); scheme == "ssh" || scheme == "sftp" {
			if _, err := exec.LookPath("ssh"); err != nil {
				t.Logf("SKIPPED: %s: no ssh: run .ci/peers", c.carrier)
				continue
			}
		}
		camp.knows(hub, control.PeerAdd{Carrier: c.carrier, When: "manual"})
		out, err := camp.command("sync", "hub").CombinedOutput()
		text := string(out)
		_, hint, _ := strings.Cut(text, "\nhint: ")
		if err == nil || !strings.HasPrefix(text, "mochila: error: hub") || !strings.Contains(text, c.want) || !strings.Contains(hint, c.hint) {
			t.Errorf("%s: want %q and the hint %q, got %v:\n%s", c.carrier, c.want, c.hint, err, text)
		}
		camp.submit("Subject: due\n\n", "ana@hub.example") // what was tried rests for a while
	}
}
