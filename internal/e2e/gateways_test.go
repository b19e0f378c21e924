package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
	"mochila/transport"
	"mochila/transport/all"
	"mochila/transport/nats/natstest"
)

// TestScenarioNATS: a stream of a real server, from which messages get lost.
func TestScenarioNATS(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		c := natstest.New(t, 1)
		url := carrierRecipe(t, "nats.toml", "nats1.example,nats2.example,nats3.example", c.Hosts(), "replicas=3", "replicas=1",
			"/etc/mochila/nats.secret", secret(t, "camp:password"))
		return joined{camp: side{url: url}, hub: side{url: url}, harm: func(r *rand.Rand) int { return loseFiles(t, url, r) }}
	}})
}

// loseFiles deletes packets from a folder over the network.
func loseFiles(t *testing.T, url string, r *rand.Rand) (hits int) {
	t.Helper()
	c, err := all.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	f, end, err := c.Folder.(transport.Session).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	from, err := f.Dirs(t.Context(), "mochila")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range from {
		to, err := f.Dirs(t.Context(), "mochila/"+a)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range to {
			files, err := f.List(t.Context(), "mochila/"+a+"/"+b)
			if err != nil {
				t.Fatal(err)
			}
			for i, e := range files {
				if i == 0 || r.IntN(3) == 0 {
					f.Remove(t.Context(), "mochila/"+a+"/"+b, e.Name)
					hits++
				}
			}
		}
	}
	return hits
}

// TestThreeGateways runs contrib/gateways: three gateways and their servers, two sites. One gateway dies with its server
// and its disk in the middle; mail between the sites, and from the world by the other gateways, arrives once.
func TestThreeGateways(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 3)
	key := secret(t, "site:password")
	conf := func(file string, replace ...string) string {
		b, err := os.ReadFile(filepath.Join("../../contrib/gateways", file))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer(append(replace, "gw1.example,gw2.example,gw3.example", c.Hosts(), "/etc/mochila/nats.secret", key,
			`overdue = "2h"`, "", `carrier = "nats:`, "overdue = \"1s\"\nevery = \"1s\"\ncarrier = \"nats:")...).Replace(string(b))
		if !strings.Contains(text, c.Hosts()) || !strings.Contains(text, key) {
			t.Fatalf("%s has other places than the test knows", file)
		}
		return text
	}
	camp, hub := newEnd(t, "camp"), newEnd(t, "hub")
	camp.far, hub.far = hub, camp
	var gates []*node
	var ports []string
	for i := range 3 {
		gates = append(gates, newNode(t, fmt.Sprintf("gw%d", i+1), ""))
		ports = append(ports, peertest.FreePort(t))
	}
	sites := []*end{camp, hub}
	for _, s := range sites {
		s.knows(s.far.node, control.PeerAdd{})
		for _, g := range gates {
			s.knows(g, control.PeerAdd{})
			g.knows(s.node, control.PeerAdd{})
		}
	}
	const quick = "\n[limits]\nretry_min = \"1s\"\nretry_max = \"1s\"\n"
	for i, g := range gates {
		g.configure(fmt.Sprintf("name = %q\n[smtp]\nlisten = [%q]\n", g.name, ports[i]) + conf("gateway.toml") + quick)
	}
	for _, s := range sites {
		text := conf("site.toml")
		if s == hub {
			text = conf("site.toml", `"hub"`, `"camp"`, `"hub.example"`, `"camp.example"`)
		}
		s.configure(fmt.Sprintf("name = %q\ndomain = %q\n[smtp]\nlisten = [%q]\n[[deliver]]\nto = [%q]\nvia = %q\n",
			s.name, s.name+".example", s.smtp, s.name+".example", "maildir:"+s.boxes+"/%u") + text + quick)
	}
	gates[0].start() // the one that dies
	gates[1].serve()
	gates[2].serve()
	camp.serve()
	hub.serve()
	world := 0
	fromWorld := func(gate int) {
		t.Helper()
		for range count(3, 30) {
			id := fmt.Sprintf("hub-%d", len(hub.sent)) // as if hub had sent it: one verify for all that is at camp
			if err := send(ports[gate], sceneMail(id), "<who@world.example>", "<ana@camp.example>"); err != nil {
				t.Fatal(err)
			}
			hub.sent = append(hub.sent, id)
			world++
		}
	}
	n := count(5, 50)
	camp.sends(n, 0)
	hub.sends(n, 0)
	fromWorld(1)
	peertest.Await(t, "some mail at each site", func() bool { return len(camp.mails()) > 0 && len(hub.mails()) > 0 }, camp.log.String, hub.log.String)
	camp.sends(n, 0)
	gates[0].kill()
	if err := os.RemoveAll(gates[0].dir); err != nil {
		t.Fatal(err)
	}
	c.Stop(0)
	hub.sends(n, 0)
	camp.sends(n, 0)
	fromWorld(2)
	peertest.Await(t, "all mail", func() bool { return len(hub.mails()) >= len(camp.sent) && len(camp.mails()) >= len(hub.sent) },
		func() string { return camp.queue() + hub.queue() }, camp.log.String, hub.log.String, gates[1].log.String)
	drained(t, camp.node, hub.node)
	camp.verify()
	hub.verify()
	t.Logf("%d mails from the world, %d between the sites", world, len(camp.sent)+len(hub.sent)-world)
}
