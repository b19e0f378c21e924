package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"mochila/internal/config"
)

// circles looks for mail that would run in circles: Postfix hands it to this node, whose [[deliver]] gives it back to the
// same Postfix. What Postfix is asked is its configuration (postconf, postmap), and nothing where there is none.
func circles(ctx context.Context, cfg *config.Config) (warnings []string) {
	pf := askPostfix(ctx)
	if pf == nil {
		return nil
	}
	for _, d := range cfg.Delivers {
		if !pf.owns(d.Via) {
			continue
		}
		var back []string
		by := ""
		for _, to := range d.To {
			if how := pf.away(ctx, to, cfg.SMTP.Listen); how != "" {
				back, by = append(back, to), how
			}
		}
		if len(back) > 0 {
			warnings = append(warnings, fmt.Sprintf("[[deliver]] via %s: Postfix (%s) gives mail for %s back to this node (%s): what does not end there runs in circles",
				d.Via, pf.dir, strings.Join(back, ", "), by)+
				"\nhint: in to, name the domains that end at Postfix; what does not takes a [[route]], or another way out than this Postfix")
		}
	}
	return warnings
}

// postfix is what the Postfix of this machine says about itself.
type postfix struct {
	dir   string            // of its configuration
	is    map[string]string // main.cf settings, expanded
	ports []string          // HOST:PORT of its SMTP servers; an empty host is every one of this machine
	tool  string            // folder of postconf and postmap
}

// askedOf are the settings that decide where mail goes.
var askedOf = []string{"queue_directory", "sendmail_path", "config_directory", "relayhost", "default_transport", "transport_maps",
	"mydestination", "virtual_mailbox_domains", "virtual_alias_domains"}

// askPostfix is nil where there is no Postfix, or none that can be asked.
func askPostfix(ctx context.Context) *postfix {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pf := &postfix{is: map[string]string{}}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, "postconf")); err == nil {
			pf.tool = dir
			break
		}
	}
	if pf.tool == "" {
		return nil
	}
	out, err := pf.run(ctx, "postconf", append([]string{"-x"}, askedOf...)...)
	if err != nil {
		return nil // installed, and not configured
	}
	for line := range strings.Lines(out) {
		if key, value, ok := strings.Cut(line, " = "); ok {
			pf.is[key] = strings.TrimSpace(value)
		} else if key, ok := strings.CutSuffix(strings.TrimSpace(line), " ="); ok {
			pf.is[key] = ""
		}
	}
	pf.dir = pf.is["config_directory"]
	if out, err = pf.run(ctx, "postconf", "-M"); err != nil {
		return nil
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 8 && f[1] == "inet" && f[7] == "smtpd" {
			pf.ports = append(pf.ports, service(f[0], ""))
		}
	}
	return pf
}

func (pf *postfix) run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(pf.tool, name), args...).Output()
	return string(out), err
}

// service makes HOST:PORT of Postfix's forms: 10026, smtp, 127.0.0.1:10026, [::1]:submission. A bare name is a host when
// there is a port for hosts without one.
func service(s, port string) string {
	host, p, err := net.SplitHostPort(s)
	switch {
	case err == nil:
		port = p
	case port == "":
		port = s
	default:
		host = strings.Trim(s, "[]")
	}
	if n, err := net.LookupPort("tcp", port); err == nil {
		port = fmt.Sprint(n)
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// owns reports whether a deliver URL leads to this Postfix.
func (pf *postfix) owns(via string) bool {
	scheme, rest, _ := strings.Cut(via, ":")
	switch scheme {
	case "smtp":
		return slices.ContainsFunc(pf.ports, func(p string) bool { return config.SameSocket(rest, p) })
	case "sendmail":
		a, err1 := filepath.EvalSymlinks(rest)
		b, err2 := filepath.EvalSymlinks(pf.is["sendmail_path"])
		return err1 == nil && err2 == nil && a == b
	}
	return false
}

// away tells how mail for a recipient pattern comes from Postfix to one of the listeners, "" when it does not.
func (pf *postfix) away(ctx context.Context, to string, listen []config.Listen) string {
	domain := to[strings.LastIndexByte(to, '@')+1:]
	switch rest, wild := strings.CutPrefix(domain, "*."); {
	case domain == "*":
		domain = "anything-else.invalid"
	case wild:
		domain = "anything-else." + rest
	}
	how, hop := pf.transport(ctx, domain)
	if hop == "" {
		for _, list := range []string{"mydestination", "virtual_mailbox_domains", "virtual_alias_domains"} {
			if pf.listed(ctx, pf.is[list], domain) {
				return ""
			}
		}
		if _, nexthop, ok := strings.Cut(pf.is["default_transport"], ":"); ok && nexthop != "" {
			how, hop = "default_transport = "+pf.is["default_transport"], nexthop
		} else if hop = pf.is["relayhost"]; hop != "" {
			how = "relayhost = " + hop
		}
	}
	if hop == "" || !pf.here(hop, listen) {
		return ""
	}
	return how
}

// transport asks the transport maps for a domain, its parents and everything.
func (pf *postfix) transport(ctx context.Context, domain string) (how, hop string) {
	tables := mainWords(pf.is["transport_maps"])
	keys := []string{domain}
	for rest := domain; ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		keys, rest = append(keys, "."+parent), parent
	}
	for _, key := range append(keys, "*") {
		for _, table := range tables {
			out, err := pf.run(ctx, "postmap", "-q", key, table)
			if _, nexthop, ok := strings.Cut(strings.TrimSpace(out), ":"); err == nil && ok && nexthop != "" {
				return fmt.Sprintf("transport_maps: %s %s", key, strings.TrimSpace(out)), nexthop
			}
		}
	}
	return "", ""
}

// mainWords splits a list of main.cf; what is in braces stays together.
func mainWords(s string) []string {
	depth := 0
	return strings.FieldsFunc(s, func(r rune) bool {
		switch r {
		case '{':
			depth++
		case '}':
			depth--
		}
		return depth == 0 && (r == ',' || r == ' ' || r == '\t')
	})
}

// listed looks a domain up in a list of names, files and tables. What cannot be read counts as having it: a warning is
// for what is known.
func (pf *postfix) listed(ctx context.Context, list, domain string) bool {
	for _, w := range mainWords(list) {
		switch {
		case strings.EqualFold(w, domain):
			return true
		case strings.HasPrefix(w, "/"):
			b, err := os.ReadFile(w)
			if err != nil || slices.ContainsFunc(strings.Fields(string(b)), func(s string) bool { return strings.EqualFold(s, domain) }) {
				return true
			}
		case strings.Contains(w, ":"):
			_, err := pf.run(ctx, "postmap", "-q", domain, w)
			var exit *exec.ExitError
			if err == nil || !errors.As(err, &exit) || len(exit.Stderr) > 0 {
				return true
			}
		}
	}
	return false
}

// here reports whether a next hop, [HOST]:PORT, HOST or unix:PATH, is one of the listeners.
func (pf *postfix) here(hop string, listen []config.Listen) bool {
	for _, l := range listen {
		path, unix := strings.CutPrefix(hop, "unix:")
		switch {
		case unix && !strings.HasPrefix(path, "/"):
			path = filepath.Join(pf.is["queue_directory"], path)
			fallthrough
		case unix:
			if l.Network == "unix" && sameFile(path, l.Addr) {
				return true
			}
		case l.Network == "tcp" && config.SameSocket(service(strings.TrimPrefix(hop, "inet:"), "smtp"), l.Addr):
			return true
		}
	}
	return false
}

func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// greetings asks the servers that mail is delivered to who they are. Only this node itself is worth a warning, also where
// an address, a proxy or a forwarded port hides that it is; a server that is silent, or has this node's name, is a note.
func greetings(ctx context.Context, cfg *config.Config) (warnings, notes []string) {
	vias := map[string]bool{}
	for _, d := range cfg.Delivers {
		vias[d.Via] = true
	}
	vias[cfg.Bounce.Via] = true
	var wg sync.WaitGroup
	var mu sync.Mutex
	for via := range vias {
		scheme, addr, _ := strings.Cut(via, ":")
		if scheme != "smtp" && scheme != "lmtp" {
			continue
		}
		wg.Go(func() {
			banner, err := banner(ctx, addr)
			name, _, _ := strings.Cut(banner, " ")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				notes = append(notes, fmt.Sprintf("%s does not answer now: %v", via, err))
			case !strings.EqualFold(name, cfg.SMTP.Hostname):
			case strings.HasSuffix(banner, "mochila"):
				warnings = append(warnings, fmt.Sprintf("%s is this node itself, by its greeting: mail will run in circles\nhint: name the port where your mail server takes mail back", via))
			default:
				notes = append(notes, fmt.Sprintf("%s has the name of this node, %s: a Postfix that hands mail to this node on port 25 takes that for a loop\nhint: give [smtp] hostname a name of its own", via, name))
			}
		})
	}
	wg.Wait()
	slices.Sort(warnings)
	slices.Sort(notes)
	return warnings, notes
}

// banner is what a server says when it is called, without the code.
func banner(ctx context.Context, addr string) (string, error) {
	network := "tcp"
	if strings.Contains(addr, "/") {
		network = "unix"
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second)) // some greet late on purpose
	line, err := bufio.NewReaderSize(c, 1<<10).ReadSlice('\n')
	if err != nil {
		return "", errors.New("no greeting came")
	}
	c.Write([]byte("QUIT\r\n"))
	s := strings.TrimSpace(string(line))
	if len(s) < 4 || s[:3] != "220" {
		return "", fmt.Errorf("it says %q", s)
	}
	return s[4:], nil
}
