package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// site is a Postfix and a node on one machine, hooked up by the files of contrib/postfix.
type site struct {
	*node
	postfix *peertest.Postfix
	smtp    string // where the node takes mail from Postfix
	lmtp    string // the same, a socket
	back    string // where Postfix takes mail from the node
	link    string // where neighbours call
	conf    string // mochila.toml, once the neighbour is known
}

// siteOptions are what two sites differ in.
type siteOptions struct {
	name, far string            // node names; their domains are NAME.example
	relayhost bool              // only that: no transport map
	domains   string            // what else ends here, as TOML strings with a comma in front
	mailboxes []string          //
	main      map[string]string // further settings of Postfix
	conf      string            // further configuration of the node
}

// recipe reads a file of contrib/postfix and puts this site's own places into it.
func recipe(t *testing.T, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "contrib", "postfix", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(replace...).Replace(string(b))
}

// settings reads a snippet of main.cf.
func settings(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			m[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return m
}

// newSite starts the Postfix of a site and makes its node; join starts that.
func newSite(t *testing.T, o siteOptions) *site {
	t.Helper()
	s := &site{smtp: peertest.FreePort(t), back: peertest.FreePort(t), link: peertest.FreePort(t)}
	_, port, _ := strings.Cut(s.smtp, ":")
	places := []string{"[127.0.0.1]:2525", "[127.0.0.1]:" + port, "127.0.0.1:2525", s.smtp, "127.0.0.1:10026", s.back}

	main := map[string]string{ // Postfix's own defaults, not those of peertest
		"local_header_rewrite_clients": "permit_inet_interfaces",
		"smtp_line_length_limit":       "998",
	}
	main["default_transport"] = "smtp"
	maps.Copy(main, settings(recipe(t, "relayhost.cf", places...)))
	if !o.relayhost {
		dir := shortDir(t)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "transport")
		if err := os.WriteFile(file, []byte(recipe(t, "transport", places...)), 0o644); err != nil {
			t.Fatal(err)
		}
		maps.Copy(main, settings(recipe(t, "transport.cf", "/etc/postfix/transport", file)))
	}
	maps.Copy(main, o.main)
	s.postfix = peertest.StartPostfix(t, peertest.Options{Hostname: o.name + ".test", Mailboxes: o.mailboxes, Main: main,
		Master: strings.Split(strings.TrimSpace(recipe(t, "master.cf", places...)), "\n")})

	socket := s.postfix.GroupFolder("mochila")
	s.lmtp = filepath.Join(socket, "lmtp.sock")
	s.conf = recipe(t, "mochila.toml", append(places, "/var/spool/postfix/mochila", socket,
		`node = "hub"`, `node = `+toml(o.far), `name = "camp"`, `name = `+toml(o.name), `"camp.example"]`, toml(o.name+".example")+o.domains+"]",
		`"camp.example"`, toml(o.name+".example"))...) + "\n[link]\nlisten = [" + toml(s.link) + "]\n" + o.conf
	s.node = newNode(t, o.name, "")
	return s
}

// join makes two sites neighbours over a folder or over TCP, and starts their daemons if they do not run.
func join(t *testing.T, carrier string, a, b *site) {
	t.Helper()
	switch carrier {
	case "dir":
		pair(a.node, b.node, t.TempDir())
	case "tcp":
		a.knows(b.node, control.PeerAdd{Carrier: "tcp:" + b.link})
		b.knows(a.node, control.PeerAdd{Carrier: "tcp:" + a.link})
	}
	for _, s := range []*site{a, b} {
		if s.stop == nil {
			s.configure(s.conf)
			s.serve()
		}
	}
}
