package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"mochila/internal/durable"
)

// ErrExists says that a node is already configured here.
var ErrExists = errors.New("there is a configuration already")

// Initial is what `mochila init` knows about a new node.
type Initial struct {
	Name   string
	Domain string   // "" leaves the default, NAME.mochila
	Listen []string // [smtp] listen; empty leaves it off
	Via    string   // deliver URL for mail that ends here; "" leaves it to the operator
	Bounce string   // [bounce] via; "" leaves it off
}

// WriteInitial writes a commented mochila.toml and the folders around it. ErrExists when there is one: it never
// overwrites.
func WriteInitial(h Home, n Initial) error {
	if err := CheckName(n.Name); err != nil {
		return err
	}
	if h.Initialized() {
		return fmt.Errorf("writing %s: %w", h.Config(), ErrExists)
	}
	perm := fs.FileMode(0o700)
	if h.System {
		perm = 0o755
	}
	if err := (durable.OS{}).MkdirAll(h.ConfigDir, perm); err != nil {
		return fmt.Errorf("making the folder of the configuration: %w", err)
	}
	return durable.WriteFile(durable.OS{}, h.Config(), 0o644, func(w io.Writer) error {
		_, err := io.WriteString(w, n.text())
		return err
	})
}

func (n Initial) text() string {
	var b strings.Builder
	domain := n.Domain
	set(&domain, n.Name+".mochila")
	line := func(on bool, text, comment string) {
		if !on {
			text = "# " + text
		}
		if comment != "" {
			text = fmt.Sprintf("%-46s # %s", text, comment)
		}
		b.WriteString(text + "\n")
	}
	or := func(s, example string) string {
		if s == "" {
			return example
		}
		return s
	}
	listen := n.Listen
	if len(listen) == 0 {
		listen = []string{"127.0.0.1:2525"}
	}
	line(true, "name = "+quote(n.Name), "`mochila check` finds mistakes in this file")
	line(n.Domain != "", "domain = "+quote(or(n.Domain, n.Name+".example")), "completes addresses without a domain")
	b.WriteString("\n[smtp]\n")
	line(len(n.Listen) > 0, "listen = "+quoteList(listen), "your mail server hands its mail over here")
	b.WriteString("\n")
	on := n.Via != ""
	line(on, "[[deliver]]", "mail that ends here")
	line(on, "to = "+quoteList([]string{domain}), "")
	line(on, "via = "+quote(or(n.Via, "smtp:127.0.0.1:10026")), "or lmtp:/path, maildir:/srv/mail/%u, …")
	b.WriteString("\n")
	on = n.Bounce != ""
	line(on, "[bounce]", "error reports that nothing else takes")
	line(on, "via = "+quote(or(n.Bounce, "smtp:127.0.0.1:10026")), "")
	b.WriteString(`
# [link]                                       # neighbours call us here (tcp carrier)
# listen = ["0.0.0.0:2424"]

# [[route]]                                    # mail for these goes to that node; the first match wins
# to = ["hub.example", "*.hub.example"]        # pairing already routes NODE.mochila
# node = "hub"
`)
	return b.String()
}

// PeerFile is the content of peers/NAME.toml.
type PeerFile struct {
	Peer     Peer
	Contacts []Contact
	Routes   []Route
	Delivers []Deliver
}

// WritePeer writes peers/NAME.toml, NAME being f.Peer.Node, and replaces one that is there; comments in it are lost.
// It is durable when WritePeer returns. Nothing in it is secret: its mode is 0644.
func WritePeer(h Home, f PeerFile) error {
	if err := CheckName(f.Peer.Node); err != nil {
		return err
	}
	if f.Peer.Card == "" {
		return fmt.Errorf("writing peer %q: it has no card", f.Peer.Node)
	}
	perm := fs.FileMode(0o700)
	if h.System {
		perm = 0o755
	}
	if err := (durable.OS{}).MkdirAll(h.PeersDir, perm); err != nil {
		return fmt.Errorf("making the folder of peers: %w", err)
	}
	err := durable.WriteFile(durable.OS{}, h.peer(f.Peer.Node), 0o644, func(w io.Writer) error {
		_, err := io.WriteString(w, f.text())
		return err
	})
	if err != nil {
		return fmt.Errorf("writing peer %q: %w", f.Peer.Node, err)
	}
	return nil
}

// ReadPeer reads peers/NAME.toml as it is written there, without defaults; fs.ErrNotExist when there is none.
func ReadPeer(h Home, name string) (PeerFile, error) {
	if err := CheckName(name); err != nil {
		return PeerFile{}, err
	}
	var p peerFile
	f, ps := read(h.peer(name), &p)
	if len(ps) > 0 {
		return PeerFile{}, ps
	}
	if f == nil {
		return PeerFile{}, fmt.Errorf("reading peer %q: %w", name, fs.ErrNotExist)
	}
	set(&p.Peer.Node, name)
	return PeerFile(p), nil
}

// RemovePeer deletes peers/NAME.toml; fs.ErrNotExist when there is none.
func RemovePeer(h Home, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := os.Remove(h.peer(name)); err != nil {
		return fmt.Errorf("removing peer %q: %w", name, err)
	}
	if err := (durable.OS{}).SyncDir(h.PeersDir); err != nil {
		return fmt.Errorf("removing peer %q: %w", name, err)
	}
	return nil
}

// peer is the path of a peer's file; name has passed CheckName.
func (h Home) peer(name string) string { return filepath.Join(h.PeersDir, name+".toml") }

func (f PeerFile) text() string {
	var b strings.Builder
	b.WriteString("# Written when this node was paired with " + f.Peer.Node + "; may be edited.\n")
	str := func(key, v string) {
		if v != "" {
			b.WriteString(key + " = " + quote(v) + "\n")
		}
	}
	list := func(key string, v []string) {
		if v != nil {
			b.WriteString(key + " = " + quoteList(v) + "\n")
		}
	}
	size := func(key string, v Size) {
		if v > 0 {
			str(key, v.String())
		}
	}
	dur := func(key string, v Duration) {
		if v > 0 {
			str(key, v.String())
		}
	}
	p := f.Peer
	b.WriteString("\n[peer]\n")
	str("node", p.Node)
	str("id", p.ID)
	list("send_as", p.SendAs)
	list("send_to", p.SendTo)
	list("relay_to", p.RelayTo)
	size("max_bytes", p.MaxBytes)
	if p.MaxCount > 0 {
		fmt.Fprintf(&b, "max_count = %d\n", p.MaxCount)
	}
	b.WriteString("card = \"\"\"\n")
	for line := range strings.Lines(strings.TrimSpace(p.Card) + "\n") {
		b.WriteString(escape(strings.TrimRight(line, "\r\n")) + "\n")
	}
	b.WriteString("\"\"\"\n")
	for _, k := range f.Contacts {
		b.WriteString("\n[[contact]]\n")
		str("name", k.Name)
		str("node", k.Node)
		str("carrier", k.Carrier)
		if !k.When.Always() {
			str("when", k.When.String())
		}
		dur("every", k.Every)
		dur("linger", k.Linger)
		size("max_bytes", k.MaxBytes)
		size("max_packet", k.MaxPacket)
		dur("overdue", k.Overdue)
		size("summary", k.Summary)
		list("reaches", k.Reaches)
	}
	for _, r := range f.Routes {
		b.WriteString("\n[[route]]\n")
		list("to", r.To)
		list("from", r.From)
		str("node", r.Node)
		list("path", r.Path)
		size("max_size", r.MaxSize)
		dur("lifetime", r.Lifetime)
		str("keep", r.Keep)
		size("summary", r.Summary)
		str("summary_signed", r.SumSigned)
		str("summary_ask", r.SumAsk)
		if r.OneWay {
			b.WriteString("oneway = true\n")
			fmt.Fprintf(&b, "repeat = %d\n", r.Repeat)
		}
	}
	for _, d := range f.Delivers {
		b.WriteString("\n[[deliver]]\n")
		list("to", d.To)
		list("from", d.From)
		str("via", d.Via)
		size("max_size", d.MaxSize)
	}
	return b.String()
}

// quote writes a TOML basic string.
func quote(s string) string { return `"` + escape(s) + `"` }

func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func quoteList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
