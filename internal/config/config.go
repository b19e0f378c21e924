package config

import (
	"encoding"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Config is one node's whole configuration. Load returns it complete: every default is filled in, relative paths are
// absolute, and all node names are known.
type Config struct {
	Name       string `toml:"name"`       // this node's name, a lower-case DNS label
	Domain     string `toml:"domain"`     // completes addresses without a domain; default NAME.mochila
	Postmaster string `toml:"postmaster"` // default postmaster@Domain

	SMTP    SMTP    `toml:"smtp"`
	DKIM    []DKIM  `toml:"dkim"`
	Link    Link    `toml:"link"`
	Metrics Metrics `toml:"metrics"`
	Bounce  Bounce  `toml:"bounce"`
	Jobs    Jobs    `toml:"jobs"`
	Limits  Limits  `toml:"limits"`

	Aliases  []string  `toml:"aliases"` // files in the form of aliases(5), for names of Domain; the first that has a name wins
	Archive  string    `toml:"archive"` // gets a copy of every mail that enters here
	Rewrites []Rewrite `toml:"rewrite"`

	// LocalNames is what the files of Aliases say.
	LocalNames Aliases `toml:"-"`

	Routes   []Route   `toml:"route"`   // mochila.toml first, then peers/*.toml by name, each in file order
	Contacts []Contact `toml:"contact"` // as Routes
	Delivers []Deliver `toml:"deliver"` // as Routes
	Handlers []Handler `toml:"handler"`
	Peers    []Peer    `toml:"peer"` // sorted by name

	Home Home `toml:"-"`
}

// SMTP is the [smtp] table: the listeners for mail programs.
type SMTP struct {
	Listen        []Listen `toml:"listen"`
	RelayFrom     []Net    `toml:"relay_from"`     // who may relay without AUTH; default loopback
	MaxSize       Size     `toml:"max_size"`       // largest message, from whatever side; default 50MiB
	MaxRecipients int      `toml:"max_recipients"` // recipients of one message; default 1000
	Hostname      string   `toml:"hostname"`       // greeting, Received and Reporting-MTA; default Domain
	OpenTo        []string `toml:"open_to"`        // recipient patterns that anybody may send to; nil: clients outside RelayFrom are turned away
	Normalize     bool     `toml:"normalize"`      // repair bare CR, bare LF and NUL instead of refusing them
	TLSCert       string   `toml:"tls_cert"`       // PEM file with certificate and chain: offers STARTTLS
	TLSKey        string   `toml:"tls_key"`        // PEM file with its key, readable by the daemon's user only

	AuthWithoutTLS bool     `toml:"auth_without_tls"`   // offer AUTH over a network in clear
	RequireTLS     bool     `toml:"requiretls"`         // offer REQUIRETLS under TLS
	Vrfy           bool     `toml:"vrfy"`               // tell clients that may relay whether an address is taken
	ProxyFrom      []Net    `toml:"proxy_from"`         // proxies that speak the PROXY protocol
	Conns          int      `toml:"max_connections"`    // at once; default 256
	ClientConns    int      `toml:"client_connections"` // of one stranger at once; default 32
	ClientRate     int      `toml:"client_rate"`        // connections of one stranger within a minute; default 120
	MailRate       int      `toml:"mail_rate"`          // mails of one stranger or account within a minute; default 300
	Milters        []string `toml:"milters"`            // mail filters, asked in this order: unix:/path, inet:HOST:PORT
	MilterDefault  string   `toml:"milter_default"`     // what happens when one cannot be asked: "tempfail" (default), "accept"
	CheckFrom      bool     `toml:"check_from"`         // hold From and Sender of an account's mail to the senders that it may use
	HideClients    bool     `toml:"hide_clients"`       // Received lines do not tell which user or address a mail came from
	Finish         Duration `toml:"finish"`             // how long a stopping daemon waits for messages on their way in; default 60s
}

// Prefixes returns RelayFrom as the standard library's type.
func (s SMTP) Prefixes() []netip.Prefix { return prefixes(s.RelayFrom) }

// Proxies returns ProxyFrom as the standard library's type.
func (s SMTP) Proxies() []netip.Prefix { return prefixes(s.ProxyFrom) }

func prefixes(nets []Net) []netip.Prefix {
	ps := make([]netip.Prefix, len(nets))
	for i, n := range nets {
		ps[i] = n.Prefix
	}
	return ps
}

// DKIM is one [[dkim]]: the key that signs mail of a domain that starts here.
type DKIM struct {
	Domain   string `toml:"domain"`   // of the From field
	Selector string `toml:"selector"` // under which DNS has the public key
	Key      string `toml:"key"`      // PEM file with the private key, readable by the daemon's user only

	at source
}

// Metrics is the [metrics] table: where monitoring reads numbers over the network, besides the control socket.
type Metrics struct {
	Listen []string `toml:"listen"` // HOST:PORT; HTTP, GET /metrics and nothing else
}

// Link is the [link] table: where neighbours call us (tcp carrier).
type Link struct {
	Listen []string `toml:"listen"` // HOST:PORT
}

// Bounce is the [bounce] table.
type Bounce struct {
	Via string `toml:"via"` // a deliver URL for DSNs that no [[deliver]] or [[route]] takes
}

// Jobs is the [jobs] table.
type Jobs struct {
	Submit []string `toml:"submit"` // USER or USER=NODE:CHANNEL:HANDLER, * for all of either; root and the daemon's user always may
	Ping   *bool    `toml:"ping"`   // peers get an answer to `mochila ping`; nil: they do
}

// Answers reports whether peers get an answer to a ping.
func (j Jobs) Answers() bool { return j.Ping == nil || *j.Ping }

// Limits is the [limits] table.
type Limits struct {
	Lifetime   Duration `toml:"lifetime"`   // of an envelope; default 60d
	Grace      Duration `toml:"grace"`      // after expiry, how long a receipt may still come before the failure notice; default 14d
	Delay      Duration `toml:"delay"`      // earliest delay notice; default 4h
	RetryMin   Duration `toml:"retry_min"`  // first retry; default 1m
	RetryMax   Duration `toml:"retry_max"`  // doubling ends here; default 4h
	Reserve    Size     `toml:"reserve"`    // disk space left alone; default -1: the larger of 5 % and 500MiB
	Hops       int      `toml:"hops"`       // nodes that an envelope may pass; default 20
	Received   int      `toml:"received"`   // Received lines at entry that mean a loop; default 50
	Passes     int      `toml:"passes"`     // times that one mail may enter here; default 5
	Bundle     Size     `toml:"bundle"`     // content of one bundle of small mail; default 1MiB
	Deliveries int      `toml:"deliveries"` // at once to one place; default 20
	UserCount  int      `toml:"user_count"` // mails that one local user or account may have in the queue; 0: no limit
	UserBytes  Size     `toml:"user_bytes"` // and their bytes
	Quarantine Size     `toml:"quarantine"` // of refused input is kept; default 1GiB
	TraceKeep  int      `toml:"trace_keep"` // finished envelopes remembered; default 100000
	TraceAge   Duration `toml:"trace_age"`  // and for how long; default 90d
}

// Route is one [[route]]: mail for To goes to Node.
type Route struct {
	To       []string `toml:"to"`       // user@domain, domain, *.domain (not the domain itself), *
	From     []string `toml:"from"`     // sender patterns of the same form, "<>" the null sender; nil: all
	Node     string   `toml:"node"`     // in peers/NAME.toml: default NAME
	Path     []string `toml:"path"`     // relay chain, first hop first
	MaxSize  Size     `toml:"max_size"` // 0: no limit but [smtp] max_size
	Lifetime Duration `toml:"lifetime"` // 0: [limits] lifetime
	OneWay   bool     `toml:"oneway"`   // nothing ever comes back from the node
	Repeat   int      `toml:"repeat"`   // with OneWay: a mail is sent so often, default 3
	UpTo     Size     `toml:"up_to"`    // larger mail is for a later rule; 0: any size
	// Recipients is a file of the addresses that exist there; others are refused at once. "": unknown.
	Recipients string `toml:"recipients"`
	Summary    Size   `toml:"summary"`        // larger mail is held, and a summary goes ahead; 0: none does
	SumSigned  string `toml:"summary_signed"` // signed and encrypted mail: "whole" (default), "hold"
	SumAsk     string `toml:"summary_ask"`    // who may ask for the whole mail: "recipient" (default), "node"
	Keep       string `toml:"keep"`           // "end" (default): the origin keeps a copy until the destination's receipt; "hop": until the next hop's

	Known []string `toml:"-"` // what Recipients says; nil: anybody
	at    source
}

// Contact is one [[contact]]: when and how a neighbour is reached.
type Contact struct {
	Name      string   `toml:"name"`       // for `contact pause NAME`; default NODE, NODE-2, …
	Node      string   `toml:"node"`       // in peers/NAME.toml: default NAME
	Carrier   string   `toml:"carrier"`    // a URL; may be empty when the neighbour only calls us
	When      When     `toml:"when"`       // default always
	Every     Duration `toml:"every"`      // carriers over a network: look for incoming packets this often, default 5m; others: how often a courier comes, default 0, unknown
	Linger    Duration `toml:"linger"`     // keep an idle live link this long; default 0
	MaxBytes  Size     `toml:"max_bytes"`  // budget of one contact, both ways; 0: none
	MaxPacket Size     `toml:"max_packet"` // larger packets take another contact; 0: none
	Overdue   Duration `toml:"overdue"`    // without a receipt for so long, a packet is sent again; 0: by the kind of carrier
	Summary   Size     `toml:"summary"`    // of routes that lead here and have none of their own; 0: none
	Reaches   []string `toml:"reaches"`    // further nodes to which the neighbour relays, for what no route's path says

	at source
}

// Deliver is one [[deliver]]: mail for To ends here and is handed to Via.
type Deliver struct {
	To      []string `toml:"to"`       // as in Route
	From    []string `toml:"from"`     // as in Route
	Via     string   `toml:"via"`      // smtp: lmtp: maildir: sendmail: pipe:
	MaxSize Size     `toml:"max_size"` // 0: no limit but [smtp] max_size
	UpTo    Size     `toml:"up_to"`    // as in Route
	// Recipients is a file of the addresses that exist here; others are refused at once, or go to CatchAll.
	Recipients string `toml:"recipients"`
	CatchAll   string `toml:"catch_all"`

	Known []string `toml:"-"` // what Recipients says; nil: anybody
	at    source
}

// Handler is one [[handler]]: a program that peers may run by a job.
type Handler struct {
	Name        string   `toml:"name"`
	Command     []string `toml:"command"`     // program and leading arguments, never a shell line
	Allow       []string `toml:"allow"`       // PEER:CHANNEL, PEER:* …
	Args        bool     `toml:"args"`        // the job may append arguments, any that do not begin with -
	Env         []string `toml:"env"`         // names of environment variables that the job may set
	Dir         string   `toml:"dir"`         // working directory; default: an empty one for each job
	User        string   `toml:"user"`        // run as; needs root
	Umask       string   `toml:"umask"`       // octal; default "077"
	Timeout     Duration `toml:"timeout"`     // default 1h
	Output      Size     `toml:"output"`      // stdout and stderr returned at most, each; default 64KiB
	Concurrency int      `toml:"concurrency"` // jobs of different channels at once; default 1
	Idempotent  bool     `toml:"idempotent"`  // may run again when it is unknown whether it ran
	Retry       *int     `toml:"retry"`       // further tries after EX_TEMPFAIL or timeout; default 5
	OnFailure   string   `toml:"on_failure"`  // "stop" (default) the channel, "dead" letter, "skip"
	Order       string   `toml:"order"`       // "channel" (default) or "none"

	Builtin   string   `toml:"builtin"`   // instead of Command: "file", "get" or "git"
	Folders   []string `toml:"folders"`   // of a built-in: what jobs may name, absolute; %n is the sending node
	Overwrite string   `toml:"overwrite"` // builtin "file": "never" (default), "replace", "rename"
	Push      []string `toml:"push"`      // builtin "git": refs that jobs may change, such as refs/heads/%n/*; nil: none
	Force     bool     `toml:"force"`     // builtin "git": also backwards, and deleted

	// Instead of Args: lists of arguments that a job may bring, or a pattern (RE2, of the whole argument) for each.
	ArgsFixed   [][]string `toml:"args_fixed"`
	ArgsPattern []string   `toml:"args_pattern"`
	ArgsRepeat  bool       `toml:"args_repeat"` // the last pattern stands for any number of arguments
	ArgsDash    bool       `toml:"args_dash"`   // they may begin with -

	NoNewPrivs bool `toml:"no_new_privs"` // no set-user-id program gives it more rights
	FsplEnv    bool `toml:"fspl_env"`     // Filespooler's names of variables as well

	// Resource limits of each process; 0 leaves the daemon's.
	CPU       Duration `toml:"limit_cpu"`
	Memory    Size     `toml:"limit_memory"`    // address space
	FileSize  Size     `toml:"limit_file_size"` // of one file that it writes
	Files     int      `toml:"limit_files"`     // open at once
	Processes int      `toml:"limit_processes"` // of its user, which must be its own

	at source
}

// Mask is Umask as a number; an error says what is wrong with it.
func (h *Handler) Mask() (int, error) {
	m, err := strconv.ParseUint(h.Umask, 8, 16)
	if err != nil || m > 0o777 {
		return 0, fmt.Errorf("%q is not a umask such as \"077\"", h.Umask)
	}
	return int(m), nil
}

// Patterns compiles ArgsPattern, each for a whole argument.
func (h *Handler) Patterns() ([]*regexp.Regexp, error) {
	var list []*regexp.Regexp
	for _, p := range h.ArgsPattern {
		_, err := regexp.Compile(p) // by itself: "a)|(b" is no pattern
		if err != nil {
			return nil, fmt.Errorf("%q is no pattern: %w", p, err)
		}
		re, err := regexp.Compile(`\A(?:` + p + `)\z`)
		if err != nil {
			return nil, fmt.Errorf("%q is no pattern: %w", p, err)
		}
		list = append(list, re)
	}
	return list, nil
}

// Peer is a node whose card this node holds, with what it may do here. Its table is [peer] in peers/NAME.toml;
// a [[peer]] with the same node in mochila.toml overrides single grants.
type Peer struct {
	Node     string   `toml:"node"`      // its local name; default: the file's name
	ID       string   `toml:"id"`        // node id, 52 characters
	SendAs   []string `toml:"send_as"`   // sender patterns it may use; nil: any
	SendTo   []string `toml:"send_to"`   // recipient patterns it may reach; nil: whatever [[deliver]] takes
	RelayTo  []string `toml:"relay_to"`  // nodes to which this node relays its bundles; "*" for all; nil: none
	MaxBytes Size     `toml:"max_bytes"` // it may hold in this spool; default 1GiB
	MaxCount int      `toml:"max_count"` // envelopes and bundles, as MaxBytes; default 100000
	Card     string   `toml:"card"`      // the signed card as text; line breaks do not matter

	at   source
	from map[string]source // of the keys that mochila.toml overrides
}

// src is where a key of the peer was written.
func (p Peer) src(key string) source {
	if s, ok := p.from[key]; ok {
		return s
	}
	return p.at
}

// Net is an IP network, or one address.
type Net struct{ netip.Prefix }

var _ encoding.TextUnmarshaler = (*Net)(nil)

// UnmarshalText reads 192.0.2.0/24, 2001:db8::/32 or a bare address.
func (n *Net) UnmarshalText(b []byte) error {
	s := string(b)
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("%q is not an IP address or network", s)
		}
		n.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("%q is not an IP network such as 192.0.2.0/24", s)
	}
	n.Prefix = p.Masked()
	return nil
}

// defaults fills in what was left out and does not depend on other settings' being right.
func (c *Config) defaults() {
	set(&c.Domain, c.Name+".mochila")
	set(&c.Postmaster, "postmaster@"+c.Domain)
	set(&c.SMTP.Hostname, c.Domain)
	set(&c.SMTP.MaxSize, 50<<20)
	set(&c.SMTP.MaxRecipients, 1000)
	set(&c.SMTP.Conns, 256)
	set(&c.SMTP.ClientConns, 32)
	set(&c.SMTP.ClientRate, 120)
	set(&c.SMTP.MailRate, 300)
	set(&c.SMTP.Finish, Duration(time.Minute))
	if c.SMTP.RelayFrom == nil {
		c.SMTP.RelayFrom = []Net{{netip.MustParsePrefix("127.0.0.0/8")}, {netip.MustParsePrefix("::1/128")}}
	}
	l := &c.Limits
	set(&l.Lifetime, Duration(60*day))
	set(&l.Grace, Duration(14*day))
	set(&l.Delay, Duration(4*time.Hour))
	set(&l.RetryMin, Duration(time.Minute))
	set(&l.RetryMax, Duration(4*time.Hour))
	set(&l.Hops, 20)
	set(&l.Received, 50)
	set(&l.Passes, 5)
	set(&l.Bundle, 1<<20)
	set(&l.Deliveries, 20)
	set(&l.Quarantine, 1<<30)
	set(&l.TraceKeep, 100_000)
	set(&l.TraceAge, Duration(90*day))
	for i := range c.Routes {
		set(&c.Routes[i].Keep, "end")
		if c.Routes[i].OneWay {
			set(&c.Routes[i].Repeat, 3)
		}
		if c.Routes[i].Summary > 0 {
			set(&c.Routes[i].SumSigned, "whole")
			set(&c.Routes[i].SumAsk, "recipient")
		}
	}
	names := map[string]int{}
	for i := range c.Contacts {
		k := &c.Contacts[i]
		set(&k.Every, k.When.Every())
		if isPolled(k.Carrier) {
			set(&k.Every, Duration(5*time.Minute))
		}
		if k.Name == "" {
			names[k.Node]++
			k.Name = k.Node
			if n := names[k.Node]; n > 1 {
				k.Name = fmt.Sprintf("%s-%d", k.Node, n)
			}
		}
	}
	for i := range c.Handlers {
		h := &c.Handlers[i]
		if h.Builtin != "" {
			h.builtin()
		}
		set(&h.Timeout, Duration(time.Hour))
		set(&h.Output, 64<<10)
		set(&h.Concurrency, 1)
		set(&h.Umask, "077")
		if h.Retry == nil {
			n := 5
			h.Retry = &n
		}
		set(&h.OnFailure, "stop")
		set(&h.Order, "channel")
	}
	for i := range c.Peers {
		p := &c.Peers[i]
		set(&p.MaxBytes, 1<<30)
		set(&p.MaxCount, 100_000)
	}
}

// builtin fills in what is different for handlers that come with the program: they can be started again at any time,
// each of their jobs stands for itself, and what they give is no log.
func (h *Handler) builtin() {
	set(&h.Name, h.Builtin)
	set(&h.OnFailure, "skip")
	set(&h.Umask, "022")
	h.Idempotent = true
	switch h.Builtin {
	case "file":
		set(&h.Overwrite, "never")
	case "get", "git":
		set(&h.Output, 1<<30)
	}
}

// isPolled reports whether a carrier finds out about incoming packets only by asking somebody over a network.
func isPolled(carrier string) bool {
	name, _, _ := strings.Cut(carrier, ":")
	switch name {
	case "tcp", "unix", "ssh", "pipe", "serial", "s3", "sftp", "dav", "davs", "rclone", "nats":
		return true
	}
	return false
}

// set gives *p the value v unless it has one.
func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Peer returns the peer of that local name.
func (c *Config) Peer(name string) (Peer, bool) {
	for _, p := range c.Peers {
		if p.Node == name {
			return p, true
		}
	}
	return Peer{}, false
}
