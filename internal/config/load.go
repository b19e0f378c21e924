package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// peerFile is the form of peers/NAME.toml.
type peerFile struct {
	Peer     Peer      `toml:"peer"`
	Contacts []Contact `toml:"contact"`
	Routes   []Route   `toml:"route"`
	Delivers []Deliver `toml:"deliver"`
}

// Load reads the configuration of a node: mochila.toml and every peers/NAME.toml. The error is Problems when the
// files say something wrong; everything that is wrong in them is in it.
func Load(h Home) (*Config, []*Warning, error) {
	c := &Config{Home: h}
	c.Limits.Reserve = -1
	main, ps := read(h.Config(), c)
	if main == nil && len(ps) == 0 {
		return nil, nil, Problems{{File: h.Config(), Msg: "there is no configuration", Hint: "mochila init NAME"}}
	}
	c.mark(main)
	files, err := peerFiles(h.PeersDir)
	if err != nil {
		return nil, nil, err
	}
	m := merger{c: c, peers: map[string]int{}}
	overrides := c.Peers
	c.Peers = nil
	for _, path := range files {
		var p peerFile
		f, bad := read(path, &p)
		if f == nil {
			ps = append(ps, bad...)
			continue
		}
		ps = append(ps, m.add(f, &p)...)
	}
	if main != nil {
		ps = append(ps, m.override(overrides)...)
	}
	if len(ps) > 0 {
		return nil, nil, ps.sorted(h)
	}
	slices.SortStableFunc(c.Peers, func(a, b Peer) int { return strings.Compare(a.Node, b.Node) })
	c.defaults()
	k := &checker{c: c, main: main}
	k.all()
	if len(k.problems) > 0 {
		return nil, k.warnings, k.problems.sorted(h)
	}
	c.impliedRoutes()
	c.absolute()
	return c, k.warnings.sorted(h), nil
}

// read decodes one file strictly. The file is nil when there are problems, or when it does not exist.
func read(path string, into any) (*file, Problems) {
	in, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, Problems{{File: path, Msg: fmt.Sprintf("cannot be opened: %v", errors.Unwrap(err)), Hint: "the daemon's user must be able to read it"}}
	}
	defer in.Close()
	doc, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, Problems{{File: path, Msg: fmt.Sprintf("cannot be read: %v", err)}}
	}
	if len(doc) > maxFile {
		return nil, Problems{{File: path, Msg: "is larger than 1 MiB"}}
	}
	d := toml.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return nil, fromTOML(path, err, reflect.TypeOf(into).Elem())
	}
	f := newFile(path, doc)
	if ps := f.units(reflect.TypeOf(into).Elem()); len(ps) > 0 {
		return nil, ps
	}
	return f, nil
}

// peerFiles lists peers/*.toml by name, without hidden and temporary files.
func peerFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing the peers: %w", err)
	}
	var files []string
	for _, e := range entries {
		if n := e.Name(); strings.HasSuffix(n, ".toml") && !strings.HasPrefix(n, ".") && !strings.HasPrefix(n, "~") {
			files = append(files, filepath.Join(dir, n))
		}
	}
	return files, nil
}

// mark notes where each element of mochila.toml stands.
func (c *Config) mark(f *file) {
	for i := range c.Routes {
		c.Routes[i].at = source{f, fmt.Sprintf("route[%d]", i)}
	}
	for i := range c.Contacts {
		c.Contacts[i].at = source{f, fmt.Sprintf("contact[%d]", i)}
	}
	for i := range c.Delivers {
		c.Delivers[i].at = source{f, fmt.Sprintf("deliver[%d]", i)}
	}
	for i := range c.Rewrites {
		c.Rewrites[i].at = source{f, fmt.Sprintf("rewrite[%d]", i)}
	}
	for i := range c.DKIM {
		c.DKIM[i].at = source{f, fmt.Sprintf("dkim[%d]", i)}
	}
	for i := range c.Handlers {
		c.Handlers[i].at = source{f, fmt.Sprintf("handler[%d]", i)}
	}
	for i := range c.Peers {
		c.Peers[i].at = source{f, fmt.Sprintf("peer[%d]", i)}
	}
}

// merger adds the peer files to a Config.
type merger struct {
	c     *Config
	peers map[string]int // index into c.Peers
}

// add merges one peer file.
func (m *merger) add(f *file, p *peerFile) (ps Problems) {
	name := strings.TrimSuffix(filepath.Base(f.path), ".toml")
	p.Peer.at = source{f, "peer[0]"}
	set(&p.Peer.Node, name)
	if p.Peer.Node != name {
		ps = append(ps, p.Peer.at.problem("node", fmt.Sprintf("%q differs from the name of the file", p.Peer.Node), fmt.Sprintf("write node = %q or rename the file", name)))
	}
	if p.Peer.Card == "" {
		ps = append(ps, p.Peer.at.problem("", "the peer has no card", "pair again, or remove this file"))
	}
	m.peers[name] = len(m.c.Peers)
	m.c.Peers = append(m.c.Peers, p.Peer)
	for i, r := range p.Routes {
		set(&r.Node, name)
		r.at = source{f, fmt.Sprintf("route[%d]", i)}
		m.c.Routes = append(m.c.Routes, r)
	}
	for i, k := range p.Contacts {
		set(&k.Node, name)
		k.at = source{f, fmt.Sprintf("contact[%d]", i)}
		m.c.Contacts = append(m.c.Contacts, k)
	}
	for i, d := range p.Delivers {
		d.at = source{f, fmt.Sprintf("deliver[%d]", i)}
		m.c.Delivers = append(m.c.Delivers, d)
	}
	return ps
}

// override applies the [[peer]] tables of mochila.toml.
func (m *merger) override(tables []Peer) (ps Problems) {
	seen := map[string]source{}
	for _, o := range tables {
		if o.Node == "" {
			ps = append(ps, o.at.problem("", "node is missing", ""))
			continue
		}
		if first, dup := seen[o.Node]; dup {
			ps = append(ps, o.at.problem("node", fmt.Sprintf("there is a [[peer]] %q already in %s", o.Node, first.line(o.at)), ""))
			continue
		}
		seen[o.Node] = o.at
		i, known := m.peers[o.Node]
		if !known {
			if o.Card == "" {
				var names []string
				for name := range m.peers {
					names = append(names, name)
				}
				ps = append(ps, o.at.problem("node", fmt.Sprintf("there is no peer %q", o.Node), peerHint(o.Node, names)))
				continue
			}
			m.peers[o.Node] = len(m.c.Peers)
			m.c.Peers = append(m.c.Peers, o)
			continue
		}
		ps = append(ps, m.c.Peers[i].override(o)...)
	}
	return ps
}

// override takes from o, a [[peer]] of mochila.toml, the grants that are written there.
func (p *Peer) override(o Peer) (ps Problems) {
	p.from = map[string]source{}
	if o.SendAs != nil {
		p.SendAs, p.from["send_as"] = o.SendAs, o.at
	}
	if o.SendTo != nil {
		p.SendTo, p.from["send_to"] = o.SendTo, o.at
	}
	if o.RelayTo != nil {
		p.RelayTo, p.from["relay_to"] = o.RelayTo, o.at
	}
	if o.MaxBytes != 0 {
		p.MaxBytes, p.from["max_bytes"] = o.MaxBytes, o.at
	}
	if o.MaxCount != 0 {
		p.MaxCount, p.from["max_count"] = o.MaxCount, o.at
	}
	if o.ID != "" && o.ID != p.ID {
		ps = append(ps, o.at.problem("id", "differs from "+p.at.file.path, "leave it out here"))
	}
	if o.Card != "" && strings.TrimSpace(o.Card) != strings.TrimSpace(p.Card) {
		ps = append(ps, o.at.problem("card", "differs from "+p.at.file.path, "leave it out here"))
	}
	return ps
}

// peerHint is what helps when a node's name leads nowhere.
func peerHint(name string, names []string) string {
	slices.Sort(names)
	if s := nearest(name, names); s != "" {
		return fmt.Sprintf("did you mean %q?", s)
	}
	return fmt.Sprintf("pair with it first: mochila invite %s DIR, or mochila peer add CARD --as %s", name, name)
}

// impliedRoutes adds NODE.mochila for each peer that no written route names, in front of the written ones: a
// catch-all must not take a neighbour's own name.
func (c *Config) impliedRoutes() {
	named := map[string]bool{}
	for _, r := range c.Routes {
		for _, to := range r.To {
			named[strings.ToLower(to)] = true
		}
	}
	var implied []Route
	for _, p := range c.Peers {
		if domain := p.Node + ".mochila"; !named[domain] {
			r := Route{To: []string{domain}, Node: p.Node, Keep: "end", at: p.at}
			r.Path = c.usualPath(p.Node)
			implied = append(implied, r)
		}
	}
	c.Routes = append(implied, c.Routes...)
}

// usualPath is the path that the first written route to a node takes, or the contact that reaches it, when the node
// is no neighbour itself.
func (c *Config) usualPath(node string) []string {
	for _, k := range c.Contacts {
		if k.Node == node {
			return nil
		}
	}
	for _, r := range c.Routes {
		if r.Node == node {
			return r.Path
		}
	}
	for _, k := range c.Contacts {
		if slices.Contains(k.Reaches, node) {
			return []string{k.Node}
		}
	}
	return nil
}

// absolute makes relative paths start at the home.
func (c *Config) absolute() {
	for i := range c.SMTP.Listen {
		c.SMTP.Listen[i].below(c.Home.Base)
	}
	for _, p := range []*string{&c.SMTP.TLSCert, &c.SMTP.TLSKey} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(c.Home.Base, *p)
		}
	}
	for i := range c.DKIM {
		if p := &c.DKIM[i].Key; *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(c.Home.Base, *p)
		}
	}
	for i := range c.Delivers {
		c.Delivers[i].Via = viaBelow(c.Delivers[i].Via, c.Home.Base)
	}
	c.Bounce.Via = viaBelow(c.Bounce.Via, c.Home.Base)
	for i := range c.Contacts {
		if rest, ok := strings.CutPrefix(c.Contacts[i].Carrier, "dir:"); ok && !filepath.IsAbs(rest) {
			c.Contacts[i].Carrier = "dir:" + filepath.Join(c.Home.Base, rest)
		}
	}
}
