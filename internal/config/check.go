package config

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"mochila/internal/envelope"
)

// checker looks at what the decoder could not: names, references between tables, and settings that hurt.
type checker struct {
	c        *Config
	main     *file
	problems Problems
	warnings Problems
}

func (k *checker) bad(s source, key, msg, hint string) {
	k.problems = append(k.problems, s.problem(key, msg, hint))
}

func (k *checker) warn(s source, key, msg, hint string) {
	k.warnings = append(k.warnings, s.problem(key, msg, hint))
}

// top is the source of the tables that are there once.
func (k *checker) top(table string) source { return source{k.main, table} }

func (k *checker) all() {
	k.node()
	k.smtp()
	k.limits()
	k.peers()
	k.routes()
	k.contacts()
	k.delivers()
	k.handlers()
	k.apart()
	k.dkim()
	k.border()
	k.reach()
}

// isNodeName wants a DNS label, because NAME.mochila is a mail domain.
func isNodeName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

const nodeNameRule = "a node name has up to 63 of a-z, 0-9 and inner hyphens"

// CheckName says what is wrong with the name of a node, nil if nothing.
func CheckName(name string) error {
	if !isNodeName(name) {
		return fmt.Errorf("%q is not a node name: %s", name, nodeNameRule)
	}
	return nil
}

func (k *checker) node() {
	c := k.c
	switch {
	case c.Name == "":
		k.bad(k.top(""), "", "name is missing", `write name = "camp" in the first line`)
		return
	case !isNodeName(c.Name):
		k.bad(k.top("name"), "", fmt.Sprintf("%q is not a node name", c.Name), nodeNameRule)
	}
	k.domain(k.top("domain"), c.Domain)
	k.domain(k.top("smtp.hostname"), c.SMTP.Hostname)
	if !isAddress(c.Postmaster) {
		k.bad(k.top("postmaster"), "", fmt.Sprintf("%q is not an address", c.Postmaster), "")
	}
}

func (k *checker) domain(s source, d string) {
	if !isDomain(d) {
		k.bad(s, "", fmt.Sprintf("%q is not a domain", d), "")
	}
}

func (k *checker) smtp() {
	s := k.c.SMTP
	seen := map[string]bool{}
	for _, l := range s.Listen {
		if seen[l.Network+l.Addr] {
			k.bad(k.top("smtp.listen"), "", fmt.Sprintf("%s is there twice", l), "")
		}
		seen[l.Network+l.Addr] = true
	}
	for _, n := range s.RelayFrom {
		if n.Bits() == 0 {
			k.warn(k.top("smtp.relay_from"), "", fmt.Sprintf("%s lets the whole world relay through this node", n), "name the networks of your own machines")
		}
	}
	k.patterns(k.top("smtp.open_to"), "", s.OpenTo, false)
	if (s.TLSCert == "") != (s.TLSKey == "") {
		k.bad(k.top("smtp"), "", "tls_cert and tls_key come together", "")
	}
	for _, l := range s.Listen {
		if l.Proto == SMTPS && s.TLSCert == "" {
			k.bad(k.top("smtp.listen"), "", fmt.Sprintf("%s needs a certificate", l), "set tls_cert and tls_key")
		}
	}
	for _, n := range s.ProxyFrom {
		if n.Bits() == 0 {
			k.bad(k.top("smtp.proxy_from"), "", fmt.Sprintf("%s lets everybody choose the address that is believed", n), "name your proxies")
		}
	}
	if s.AuthWithoutTLS {
		k.warn(k.top("smtp.auth_without_tls"), "", "passwords cross the network in clear", "set tls_cert and tls_key, and leave it out")
	}
	k.positive("smtp.max_connections", int64(s.Conns), 1)
	k.positive("smtp.client_connections", int64(s.ClientConns), 1)
	k.positive("smtp.client_rate", int64(s.ClientRate), 1)
	k.positive("smtp.mail_rate", int64(s.MailRate), 1)
	k.positive("smtp.max_size", int64(s.MaxSize), 1024)
	k.positive("smtp.max_recipients", int64(s.MaxRecipients), 1)
	for _, a := range k.c.Link.Listen {
		if strings.HasPrefix(a, "serial:/") {
			continue // its options are looked at by whoever knows them
		}
		if err := checkHostPort(a); err != nil {
			k.bad(k.top("link.listen"), "", fmt.Sprintf("%q is not HOST:PORT: %v", a, err), "")
		} else if seen["tcp"+a] {
			k.bad(k.top("link.listen"), "", fmt.Sprintf("%s is there twice", a), "[smtp] listen has it too")
		}
		seen["tcp"+a] = true
	}
	for _, a := range k.c.Metrics.Listen {
		if err := checkHostPort(a); err != nil {
			k.bad(k.top("metrics.listen"), "", fmt.Sprintf("%q is not HOST:PORT: %v", a, err), "")
		} else if seen["tcp"+a] {
			k.bad(k.top("metrics.listen"), "", fmt.Sprintf("%s is there twice", a), "[smtp] or [link] listen has it too")
		}
		seen["tcp"+a] = true
	}
	if k.c.Bounce.Via != "" {
		k.via(k.top("bounce.via"), "", k.c.Bounce.Via)
	}
	for _, j := range k.c.Jobs.Submit {
		user, what, limited := strings.Cut(j, "=")
		part := strings.Split(what, ":")
		switch {
		case user == "" || limited && (len(part) != 3 || slices.Contains(part, "")):
			k.bad(k.top("jobs.submit"), "", fmt.Sprintf("%q is not USER or USER=NODE:CHANNEL:HANDLER", j), `"*" stands for all nodes, channels or handlers`)
		case limited && part[0] != "*":
			k.known(k.top("jobs.submit"), "", part[0])
		}
	}
}

func (k *checker) dkim() {
	seen := map[string]bool{}
	for _, d := range k.c.DKIM {
		switch domain := strings.ToLower(d.Domain); {
		case d.Domain == "" || d.Selector == "" || d.Key == "":
			k.bad(d.at, "", "domain, selector and key come together", "")
		case !isDomain(d.Domain):
			k.bad(d.at, "domain", fmt.Sprintf("%q is not a domain", d.Domain), "")
		case !isDomain(d.Selector):
			k.bad(d.at, "selector", fmt.Sprintf("%q is not a selector: letters, digits, hyphens and dots", d.Selector), "")
		case seen[domain]:
			k.bad(d.at, "domain", fmt.Sprintf("%s is there twice", d.Domain), "one key signs")
		default:
			seen[domain] = true
		}
	}
}

func (k *checker) positive(key string, v, least int64) {
	if v < least {
		k.bad(k.top(key), "", fmt.Sprintf("%d is too small", v), fmt.Sprintf("at least %d", least))
	}
}

func (k *checker) limits() {
	l := k.c.Limits
	k.positive("limits.hops", int64(l.Hops), 1)
	if l.Hops > 200 {
		k.bad(k.top("limits.hops"), "", fmt.Sprintf("%d is too large", l.Hops), "at most 200")
	}
	k.positive("limits.received", int64(l.Received), 1)
	k.positive("limits.passes", int64(l.Passes), 1)
	k.positive("limits.bundle", int64(l.Bundle), 1024)
	k.positive("limits.deliveries", int64(l.Deliveries), 1)
	k.positive("limits.trace_keep", int64(l.TraceKeep), 1)
	if l.RetryMin > l.RetryMax {
		k.bad(k.top("limits.retry_min"), "", fmt.Sprintf("%s is longer than retry_max, %s", l.RetryMin, l.RetryMax), "")
	}
	if l.Delay > l.Lifetime {
		k.bad(k.top("limits.delay"), "", fmt.Sprintf("%s is longer than lifetime, %s", l.Delay, l.Lifetime), "")
	}
}

func (k *checker) peers() {
	ids := map[string]Peer{}
	for _, p := range k.c.Peers {
		if !isNodeName(p.Node) {
			k.bad(p.at, "node", fmt.Sprintf("%q is not a node name", p.Node), nodeNameRule)
		}
		if p.Node == k.c.Name {
			k.bad(p.at, "node", fmt.Sprintf("%q is the name of this node itself", p.Node), "give the peer another local name with --as")
		}
		if p.ID != "" {
			if _, err := envelope.ParseNodeID(p.ID); err != nil {
				k.bad(p.at, "id", err.Error(), "")
			}
			if other, dup := ids[p.ID]; dup {
				k.bad(p.at, "id", fmt.Sprintf("peer %q has the same id, in %s", other.Node, other.at.line(p.at)), "mochila peer remove one of them")
			}
			ids[p.ID] = p
		}
		k.patterns(p.src("send_as"), "send_as", p.SendAs, true)
		k.patterns(p.src("send_to"), "send_to", p.SendTo, false)
		for _, n := range p.RelayTo {
			switch n {
			case "*":
			case p.Node:
				k.bad(p.src("relay_to"), "relay_to", fmt.Sprintf("%q is the peer itself", n), "leave it out")
			default:
				k.known(p.src("relay_to"), "relay_to", n)
			}
		}
		if p.MaxCount < 0 {
			k.bad(p.src("max_count"), "max_count", "must not be negative", "")
		}
	}
}

// known complains about the name of a node that is no peer.
func (k *checker) known(s source, key, name string) bool {
	if _, ok := k.c.Peer(name); ok {
		return true
	}
	names := make([]string, 0, len(k.c.Peers))
	for _, p := range k.c.Peers {
		names = append(names, p.Node)
	}
	k.bad(s, key, fmt.Sprintf("there is no peer %q", name), peerHint(name, names))
	return false
}

func (k *checker) patterns(s source, key string, patterns []string, sender bool) {
	for _, p := range patterns {
		if hint, ok := checkPattern(p, sender); !ok {
			k.bad(s, key, fmt.Sprintf("%q is not an address pattern", p), hint)
		}
	}
}

const patternRule = "patterns are user@domain, domain, *.domain and *"

// checkPattern knows the forms that people try.
func checkPattern(p string, sender bool) (hint string, ok bool) {
	if p == "*" || sender && p == "<>" {
		return "", true
	}
	rest := p
	if i := strings.LastIndexByte(p, '@'); i >= 0 {
		rest = p[i+1:]
		if (i == 0 || p[:i] == "*") && isDomain(rest) {
			return fmt.Sprintf("write %q", rest), false
		}
		return patternRule, isAddress(p)
	}
	if d, ok := strings.CutPrefix(rest, "."); ok && isDomain(d) {
		return fmt.Sprintf("write %q", "*."+d), false
	}
	if d, ok := strings.CutSuffix(rest, "."); ok && isDomain(d) {
		return fmt.Sprintf("write %q", d), false
	}
	return patternRule, isDomain(strings.TrimPrefix(rest, "*."))
}

// isDomain accepts host names, underscores and internationalised labels included, and address literals.
func isDomain(d string) bool {
	if len(d) == 0 || len(d) > 255 {
		return false
	}
	if d[0] == '[' {
		return d[len(d)-1] == ']' && len(d) > 2
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if r < 0x80 && !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
				return false
			}
		}
	}
	return true
}

func isAddress(a string) bool {
	i := strings.LastIndexByte(a, '@')
	if i <= 0 || !isDomain(a[i+1:]) {
		return false
	}
	quoted := a[0] == '"' && i >= 2 && a[i-1] == '"'
	for _, r := range a[:i] {
		if r < ' ' || r == 0x7f || !quoted && strings.ContainsRune(` "<>()[],;:@\`, r) {
			return false
		}
	}
	return true
}

// anySender reports whether a rule's from= takes everybody.
func anySender(from []string) bool { return len(from) == 0 || slices.Contains(from, "*") }

// taker is a rule that takes all mail for a pattern.
type taker struct {
	table string
	at    source
}

func (k *checker) routes() {
	taken := map[string]taker{}
	for _, d := range k.c.Delivers {
		if anySender(d.From) && d.MaxSize == 0 && d.UpTo == 0 {
			for _, to := range d.To {
				taken[strings.ToLower(to)] = taker{"[[deliver]]", d.at}
			}
		}
	}
	for _, r := range k.c.Routes {
		k.patterns(r.at, "to", r.To, false)
		k.patterns(r.at, "from", r.From, true)
		if len(r.To) == 0 {
			k.bad(r.at, "", "to is missing", `write to = ["*"] for all mail`)
		}
		switch {
		case r.Node == "":
			k.bad(r.at, "", "node is missing", "")
		case r.Node == k.c.Name:
			k.bad(r.at, "node", fmt.Sprintf("%q is this node itself", r.Node), "mail that ends here needs a [[deliver]]")
		default:
			k.known(r.at, "node", r.Node)
		}
		for i, hop := range r.Path {
			switch {
			case hop == k.c.Name:
				k.bad(r.at, "path", fmt.Sprintf("%q is this node itself", hop), "leave it out")
			case hop == r.Node:
				k.bad(r.at, "path", fmt.Sprintf("%q is the destination; path lists only the relays before it", hop), "leave it out")
			case slices.Contains(r.Path[:i], hop):
				k.bad(r.at, "path", fmt.Sprintf("%q is there twice", hop), "")
			default:
				k.known(r.at, "path", hop)
			}
		}
		if r.Keep != "end" && r.Keep != "hop" {
			k.bad(r.at, "keep", fmt.Sprintf("%q is neither \"end\" nor \"hop\"", r.Keep), "")
		}
		switch {
		case r.OneWay && r.Keep == "hop":
			k.bad(r.at, "keep", "no receipt comes back on a one-way path, so the copy stays", `leave out keep = "hop"`)
		case r.OneWay && (r.Repeat < 1 || r.Repeat > 100):
			k.bad(r.at, "repeat", fmt.Sprintf("%d is not within 1 and 100", r.Repeat), "")
		case !r.OneWay && r.Repeat != 0:
			k.bad(r.at, "repeat", "repeat belongs to oneway = true: elsewhere receipts tell when to send again", "leave it out")
		}
		k.summary(r)
		for _, to := range r.To {
			to = strings.ToLower(to)
			for _, by := range []string{to, "*"} {
				if first, ok := taken[by]; ok {
					k.warn(r.at, "to", fmt.Sprintf("%q never gets here: the %s in %s takes it", to, first.table, first.at.line(r.at)), "[[deliver]] comes before [[route]], and the first match wins")
					break
				}
			}
			if anySender(r.From) && r.MaxSize == 0 && r.UpTo == 0 {
				if _, ok := taken[to]; !ok {
					taken[to] = taker{"[[route]]", r.at}
				}
			}
		}
	}
}

// isURL wants a scheme and something behind it.
func isURL(s string) bool {
	_, _, ok := cutScheme(s)
	return ok
}

// cutScheme takes the word before the colon off a URL: both must be there.
func cutScheme(url string) (scheme, rest string, ok bool) {
	scheme, rest, _ = strings.Cut(url, ":")
	if scheme == "" || rest == "" || strings.Contains(rest, "\n") {
		return "", "", false
	}
	for i, c := range []byte(scheme) {
		if letter := c >= 'a' && c <= 'z'; !letter && (i == 0 || (c < '0' || c > '9') && c != '+' && c != '-') {
			return "", "", false
		}
	}
	return scheme, rest, true
}

// summaryMin is the smallest limit of a summary: its header and note alone have a few KiB.
const summaryMin = 4 << 10

// summary checks what a route says of large mail.
func (k *checker) summary(r Route) {
	switch {
	case r.Summary == 0 && (r.SumSigned != "" || r.SumAsk != ""):
		k.bad(r.at, "", "summary_signed and summary_ask belong to summary", `write summary = "64KiB", or leave them out`)
		return
	case r.Summary == 0:
		return
	case r.OneWay:
		k.bad(r.at, "summary", "nobody can ask for the rest of a mail on a one-way path", "leave it out")
	case r.Summary < summaryMin:
		k.bad(r.at, "summary", fmt.Sprintf("%s is less than what a summary takes itself", r.Summary), `at least "4KiB"`)
	}
	if r.SumSigned != "whole" && r.SumSigned != "hold" {
		k.bad(r.at, "summary_signed", fmt.Sprintf("%q is neither \"whole\" nor \"hold\"", r.SumSigned), "")
	}
	if r.SumAsk != "recipient" && r.SumAsk != "node" {
		k.bad(r.at, "summary_ask", fmt.Sprintf("%q is neither \"recipient\" nor \"node\"", r.SumAsk), "")
	}
}

func (k *checker) contacts() {
	names := map[string]Contact{}
	for _, t := range k.c.Contacts {
		if t.Node == "" {
			k.bad(t.at, "", "node is missing", `name the neighbour: node = "hub"`)
		} else if k.known(t.at, "node", t.Node) {
			if first, dup := names[t.Name]; dup {
				k.bad(t.at, "name", fmt.Sprintf("%q is taken by the [[contact]] in %s", t.Name, first.at.line(t.at)), "")
			}
			names[t.Name] = t
		}
		switch {
		case t.Carrier == "" && !t.When.OnCall():
			k.bad(t.at, "", "carrier is missing", `write carrier = "tcp:HOST:2424", or when = "on-call" if only the neighbour calls`)
		case t.Carrier != "" && !isURL(t.Carrier):
			k.bad(t.at, "carrier", fmt.Sprintf("%q is not a carrier", t.Carrier), "such as tcp:host:2424, dir:/media/usb or ssh:user@host")
		}
		if every := t.When.Every(); every > 0 && every != t.Every {
			k.bad(t.at, "every", fmt.Sprintf("%s contradicts when = %q", t.Every, t.When), "leave one of them out")
		}
		if t.Summary > 0 && t.Summary < summaryMin {
			k.bad(t.at, "summary", fmt.Sprintf("%s is less than what a summary takes itself", t.Summary), `at least "4KiB"`)
		}
		for _, n := range t.Reaches {
			if n == t.Node {
				k.bad(t.at, "reaches", fmt.Sprintf("%q is the neighbour itself", n), "leave it out")
			} else {
				k.known(t.at, "reaches", n)
			}
		}
	}
}

func (k *checker) delivers() {
	taken := map[string]Deliver{}
	for _, d := range k.c.Delivers {
		for _, to := range d.To {
			to = strings.ToLower(to)
			_, domain, _ := strings.Cut(to, "@")
			for _, by := range []string{to, domain, "*"} {
				if first, ok := taken[by]; ok && by != "" {
					k.warn(d.at, "to", fmt.Sprintf("%q never gets here: the [[deliver]] in %s takes it", to, first.at.line(d.at)), "the first match wins: put the narrow rule in front")
					break
				}
			}
			if _, ok := taken[to]; !ok && anySender(d.From) && d.MaxSize == 0 && d.UpTo == 0 {
				taken[to] = d
			}
		}
		k.patterns(d.at, "to", d.To, false)
		k.patterns(d.at, "from", d.From, true)
		if len(d.To) == 0 {
			k.bad(d.at, "", "to is missing", `write to = ["`+k.c.Domain+`"]`)
		}
		if d.Via == "" {
			k.bad(d.at, "", "via is missing", "such as smtp:127.0.0.1:10026 or maildir:/srv/mail/%u")
			continue
		}
		k.via(d.at, "via", d.Via)
	}
}

func (k *checker) via(s source, key, via string) {
	host, hint, ok := checkVia(via)
	if !ok {
		k.bad(s, key, fmt.Sprintf("%q is not a place to deliver to", via), hint)
		return
	}
	for _, l := range k.c.SMTP.Listen {
		if l.Network == "tcp" && host != "" && SameSocket(host, l.Addr) || l.Network == "unix" && via == "lmtp:"+l.Addr {
			k.warn(s, key, fmt.Sprintf("%s is this node's own listener: mail will run in circles", via), "name the port where your mail server takes mail back")
		}
	}
}

// SameSocket reports whether connecting to a, HOST:PORT, reaches a listener on b of this machine, as far as the text tells.
func SameSocket(a, b string) bool {
	ahost, aport, err1 := net.SplitHostPort(a)
	bhost, bport, err2 := net.SplitHostPort(b)
	if err1 != nil || err2 != nil || aport != bport {
		return false
	}
	local := func(h string) bool {
		ip := net.ParseIP(h)
		return h == "" || h == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
	}
	return strings.EqualFold(ahost, bhost) || local(ahost) && local(bhost)
}

func (k *checker) handlers() {
	names := map[string]Handler{}
	for _, h := range k.c.Handlers {
		if h.Builtin != "" {
			k.builtin(h)
		} else if h.Folders != nil || h.Overwrite != "" || h.Push != nil || h.Force {
			k.bad(h.at, "", "folders, overwrite, push and force are for handlers with builtin", "")
		}
		if h.Name == "" || h.Builtin == "" && (len(h.Command) == 0 || h.Command[0] == "") {
			k.bad(h.at, "", "a handler needs name and command", `such as command = ["/usr/local/bin/restore", "--stdin"]`)
			continue
		}
		if first, dup := names[h.Name]; dup {
			k.bad(h.at, "name", fmt.Sprintf("%q is taken by the [[handler]] in %s", h.Name, first.at.line(h.at)), "")
		}
		names[h.Name] = h
		if h.Builtin == "" && !strings.HasPrefix(h.Command[0], "/") {
			k.bad(h.at, "command", fmt.Sprintf("%q is not an absolute path", h.Command[0]), "")
		}
		for _, a := range h.Allow {
			peer, channel, ok := strings.Cut(a, ":")
			if !ok || channel == "" {
				k.bad(h.at, "allow", fmt.Sprintf("%q is not PEER:CHANNEL", a), fmt.Sprintf("write %q for all its channels", peer+":*"))
			} else if peer != "*" {
				k.known(h.at, "allow", peer)
			}
		}
		if !slices.Contains([]string{"stop", "dead", "skip"}, h.OnFailure) {
			k.bad(h.at, "on_failure", fmt.Sprintf("%q is none of \"stop\", \"dead\", \"skip\"", h.OnFailure), "")
		}
		if h.Order != "channel" && h.Order != "none" {
			k.bad(h.at, "order", fmt.Sprintf("%q is neither \"channel\" nor \"none\"", h.Order), "")
		}
		k.handlerArgs(&h)
		k.handlerLimits(&h)
	}
}

// handlerArgs checks what a job may append.
func (k *checker) handlerArgs(h *Handler) {
	kinds := 0
	for _, on := range []bool{h.Args, h.ArgsFixed != nil, h.ArgsPattern != nil} {
		if on {
			kinds++
		}
	}
	if kinds > 1 {
		k.bad(h.at, "args", "only one of args, args_fixed and args_pattern can hold", "")
	}
	if _, err := h.Patterns(); err != nil {
		k.bad(h.at, "args_pattern", err.Error(), "")
	}
	if h.ArgsRepeat && len(h.ArgsPattern) == 0 {
		k.bad(h.at, "args_repeat", "it repeats the last of args_pattern, and there is none", "")
	}
	if h.ArgsDash && !h.Args && len(h.ArgsPattern) == 0 {
		k.bad(h.at, "args_dash", "it goes with args or args_pattern", "args_fixed says itself what may begin with -")
	}
}

// handlerLimits checks the numbers of a handler.
func (k *checker) handlerLimits(h *Handler) {
	if _, err := h.Mask(); err != nil {
		k.bad(h.at, "umask", err.Error(), "")
	}
	for _, x := range []struct {
		key   string
		value int64
		least int64
	}{{"timeout", int64(h.Timeout), 1}, {"concurrency", int64(h.Concurrency), 1}, {"retry", int64(*h.Retry), 0}, {"output", int64(h.Output), 0},
		{"limit_cpu", int64(h.CPU), 0}, {"limit_memory", int64(h.Memory), 0}, {"limit_file_size", int64(h.FileSize), 0},
		{"limit_files", int64(h.Files), 0}, {"limit_processes", int64(h.Processes), 0}} {
		if x.value < x.least {
			k.bad(h.at, x.key, fmt.Sprintf("%d is too small", x.value), "")
		}
	}
	if h.Processes > 0 && h.User == "" {
		k.bad(h.at, "limit_processes", "it counts all processes of the user, so the handler needs a user of its own", `such as user = "backup"`)
	}
}

// apart checks that nobody can put a repository, with its hooks, where the git built-in serves it.
func (k *checker) apart() {
	for _, g := range k.c.Handlers {
		for _, h := range k.c.Handlers {
			if g.Builtin != "git" || h.Builtin != "file" {
				continue
			}
			for _, a := range g.Folders {
				for _, b := range h.Folders {
					a, b := strings.TrimSuffix(a, "/%n"), strings.TrimSuffix(b, "/%n")
					if strings.HasPrefix(a+"/", b+"/") || strings.HasPrefix(b+"/", a+"/") {
						k.bad(g.at, "folders", fmt.Sprintf("%s also takes the files of handler %q", a, h.Name), "a sender could bring hooks: keep repositories in folders of their own")
					}
				}
			}
		}
	}
}

// builtin checks a handler that comes with the program.
func (k *checker) builtin(h Handler) {
	if !slices.Contains([]string{"file", "get", "git"}, h.Builtin) {
		k.bad(h.at, "builtin", fmt.Sprintf("%q is none of \"file\", \"get\", \"git\"", h.Builtin), "")
		return
	}
	if h.Command != nil || h.Args || h.ArgsFixed != nil || h.ArgsPattern != nil || h.Env != nil || h.Dir != "" {
		k.bad(h.at, "builtin", "it has no command, args, env or dir", "")
	}
	if len(h.Folders) == 0 {
		k.bad(h.at, "folders", fmt.Sprintf("builtin %q needs the folders that it may touch", h.Builtin), `such as folders = ["/srv/exchange/%n"]`)
	}
	for _, f := range h.Folders {
		if !strings.HasPrefix(f, "/") || f != filepath.Clean(f) {
			k.bad(h.at, "folders", fmt.Sprintf("%q is not a clean absolute path", f), "")
		}
	}
	if h.Builtin != "git" && (h.Push != nil || h.Force) {
		k.bad(h.at, "", "push and force are for builtin \"git\"", "")
	}
	for _, p := range h.Push {
		if !strings.HasPrefix(p, "refs/") {
			k.bad(h.at, "push", fmt.Sprintf("%q does not begin with refs/", p), `such as "refs/heads/*"`)
		}
	}
	switch {
	case h.Overwrite == "" && h.Builtin != "file":
	case h.Builtin != "file":
		k.bad(h.at, "overwrite", "it is for builtin \"file\"", "")
	case !slices.Contains([]string{"never", "replace", "rename"}, h.Overwrite):
		k.bad(h.at, "overwrite", fmt.Sprintf("%q is none of \"never\", \"replace\", \"rename\"", h.Overwrite), "")
	}
}

// reach warns about mail that would have nowhere to go.
func (k *checker) reach() {
	c := k.c
	neighbours := map[string]bool{}
	for _, t := range c.Contacts {
		neighbours[t.Node] = true
		for _, n := range t.Reaches {
			neighbours[n] = true
		}
	}
	warned, routed := map[string]bool{}, map[string]bool{}
	for _, r := range c.Routes {
		hop := r.Node
		routed[hop] = true
		if len(r.Path) > 0 {
			hop = r.Path[0]
		}
		if _, known := c.Peer(hop); known && !neighbours[hop] && !warned[hop] {
			warned[hop] = true
			k.warn(r.at, "", fmt.Sprintf("no [[contact]] reaches %q: its mail waits", hop), `add a [[contact]], with when = "on-call" if only the neighbour calls`)
		}
	}
	for _, p := range c.Peers {
		if !neighbours[p.Node] && !routed[p.Node] {
			k.warn(p.at, "", fmt.Sprintf("neither a [[contact]] nor a [[route]] reaches %q: its mail waits", p.Node), `add a [[contact]], with when = "on-call" if only the neighbour calls`)
		}
	}
	if c.Name != "" && !c.DeliversDomain(c.Domain) {
		k.warn(k.top("name"), "", fmt.Sprintf("mail for %s has nowhere to go", c.Domain), fmt.Sprintf("add a [[deliver]] with to = [%q]", c.Domain))
	}
}

// DeliversDomain reports whether some [[deliver]] takes all mail for a domain, whoever sends it.
func (c *Config) DeliversDomain(domain string) bool {
	for _, d := range c.Delivers {
		if !anySender(d.From) {
			continue
		}
		for _, to := range d.To {
			rest, wild := strings.CutPrefix(to, "*.")
			if to == "*" || strings.EqualFold(to, domain) || wild && len(domain) > len(rest)+1 && strings.EqualFold(domain[len(domain)-len(rest)-1:], "."+rest) {
				return true
			}
		}
	}
	return false
}
