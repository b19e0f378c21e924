package config

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Rewrite is one [[rewrite]]: addresses change where mail enters or ends at this node.
type Rewrite struct {
	From    string `toml:"from"`    // user@domain, domain, or *.domain
	To      string `toml:"to"`      // user@domain, or the domain that takes the other's place
	Where   string `toml:"where"`   // "in": senders of mail that enters here; "out": recipients of mail that ends here. Default "in"
	Headers bool   `toml:"headers"` // with "in": also addresses in From, Sender, Reply-To, To, Cc

	at source
}

// Aliases are local names and where their mail goes: addresses, in the order of the files.
type Aliases map[string][]string

const (
	maxAliasFile = 16 << 20
	maxAliases   = 1_000_000
)

// ReadAliases reads a file of the form of aliases(5): `name: address, address …`, continued on lines that begin with
// white space. `:include:/file` names a list of addresses. Programs and files as targets are errors: [[deliver]] has
// pipe: and maildir: for them.
func ReadAliases(path string) (Aliases, error) {
	all := Aliases{}
	name, number := "", 0
	err := lines(path, func(n int, line string) error {
		if line == "" || line[0] == '#' {
			return nil
		}
		rest := line
		if line[0] != ' ' && line[0] != '\t' {
			key, after, ok := cutName(line)
			if !ok {
				return fmt.Errorf("line %d: it has no colon", n)
			}
			name, rest = strings.ToLower(key), after
			if name == "" || len(all) >= maxAliases {
				return fmt.Errorf("line %d: no name in front of the colon, or more than %d names", n, maxAliases)
			}
			if _, twice := all[name]; twice {
				return fmt.Errorf("line %d: %q is there twice", n, name)
			}
			all[name] = nil
		} else if name == "" {
			return fmt.Errorf("line %d: it continues nothing", n)
		}
		for _, t := range splitTargets(rest) {
			more, err := target(t)
			if err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			if number += len(more); number > maxAliases {
				return fmt.Errorf("more than %d addresses", maxAliases)
			}
			all[name] = append(all[name], more...)
		}
		return nil
	})
	for name, targets := range all {
		if err == nil && len(targets) == 0 {
			err = fmt.Errorf("%q leads nowhere", name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the aliases %q: %w", path, err)
	}
	return all, nil
}

// cutName splits `name: rest`; a name may be quoted.
func cutName(line string) (name, rest string, ok bool) {
	if line[0] == '"' {
		if i := strings.Index(line[1:], `"`); i >= 0 {
			rest, ok = strings.CutPrefix(strings.TrimLeft(line[i+2:], " \t"), ":")
			return line[1 : i+1], rest, ok
		}
		return "", "", false
	}
	name, rest, ok = strings.Cut(line, ":")
	return strings.TrimSpace(name), rest, ok
}

// splitTargets splits at commas outside of quotes.
func splitTargets(s string) (out []string) {
	quoted, start := false, 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] == '"' {
			quoted = !quoted
		}
		if i == len(s) || s[i] == ',' && !quoted {
			if t := strings.TrimSpace(s[start:i]); t != "" {
				out = append(out, t)
			}
			start = i + 1
		}
	}
	return out
}

func target(t string) ([]string, error) {
	bare := strings.Trim(t, `"`)
	switch {
	case strings.HasPrefix(bare, "|"), strings.HasPrefix(bare, "/"):
		return nil, fmt.Errorf("%s is a program or a file: a [[deliver]] of its own, by pipe: or maildir:, does that", t)
	case strings.HasPrefix(bare, ":include:"):
		return ReadAddresses(strings.TrimPrefix(bare, ":include:"))
	case strings.HasPrefix(bare, ":"):
		return nil, fmt.Errorf("%s means nothing here", t)
	case strings.HasPrefix(t, `\`):
		t = t[1:] // sendmail's way to say: no alias
	}
	return []string{t}, nil
}

// ReadAddresses reads a list of addresses or local parts, one a line. What follows an address on its line is ignored, so
// that Postfix's maps of recipients serve, too.
func ReadAddresses(path string) ([]string, error) {
	var out []string
	err := lines(path, func(n int, line string) error {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			return nil
		}
		if i := strings.IndexAny(line, " \t"); i >= 0 && line[0] != '"' {
			line = line[:i]
		}
		if len(out) >= maxAliases {
			return fmt.Errorf("more than %d addresses", maxAliases)
		}
		out = append(out, strings.TrimSuffix(line, ","))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the addresses %q: %w", path, err)
	}
	return out, nil
}

// lines calls f for each line of a regular file, without its end.
func lines(path string, f func(n int, line string) error) error {
	if !filepath.IsAbs(path) {
		return errors.New("it is not an absolute path")
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if fi, err := in.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxAliasFile {
		return errors.Join(err, fmt.Errorf("it is not a file of at most %d MiB", maxAliasFile>>20))
	}
	sc := bufio.NewScanner(io.LimitReader(in, maxAliasFile))
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		if err := f(n, strings.TrimRight(sc.Text(), "\r")); err != nil {
			return err
		}
	}
	return sc.Err()
}

// border checks what changes addresses, and reads the files it names.
func (k *checker) border() {
	c := k.c
	c.LocalNames = Aliases{}
	for _, path := range c.Aliases {
		a, err := ReadAliases(c.below(path))
		if err != nil {
			k.bad(k.top("aliases"), "", err.Error(), "")
			continue
		}
		for name, targets := range a {
			if _, ok := c.LocalNames[name]; !ok {
				c.LocalNames[name] = targets
			}
		}
	}
	k.milters()
	if c.Archive != "" && !isAddress(c.Archive) {
		k.bad(k.top("archive"), "", fmt.Sprintf("%q is not an address", c.Archive), "write user@domain")
	}
	for _, r := range c.Rewrites {
		local, domain, mailbox := strings.Cut(r.From, "@")
		if !mailbox {
			domain = strings.TrimPrefix(r.From, "*.")
		}
		_, to, toMailbox := strings.Cut(r.To, "@")
		if !toMailbox {
			to = r.To
		}
		switch {
		case !isDomain(domain) || mailbox && local == "":
			k.bad(r.at, "from", fmt.Sprintf("%q is not user@domain, domain or *.domain", r.From), "")
		case !isDomain(to):
			k.bad(r.at, "to", fmt.Sprintf("%q is neither an address nor a domain", r.To), "")
		case r.Where != "" && r.Where != "in" && r.Where != "out":
			k.bad(r.at, "where", fmt.Sprintf("%q is neither \"in\" nor \"out\"", r.Where), "")
		case r.Headers && r.Where == "out":
			k.bad(r.at, "headers", "the content of mail that ends here is never changed", "leave it out")
		}
	}
	for i := range c.Delivers {
		d := &c.Delivers[i]
		d.Known = k.knownAt(d.at, d.Recipients, d.CatchAll)
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		r.Known = k.knownAt(r.at, r.Recipients, "")
	}
}

// milters checks the mail filters.
func (k *checker) milters() {
	for i, m := range k.c.SMTP.Milters {
		rest, inet := strings.CutPrefix(m, "inet:")
		if !strings.HasPrefix(m, "unix:/") && (!inet || checkHostPort(rest) != nil || rest[0] == ':') {
			k.bad(k.top("smtp"), fmt.Sprintf("milters[%d]", i), fmt.Sprintf("%q is no address of a filter", m), "write unix:/path or inet:HOST:PORT")
		}
	}
	if d := k.c.SMTP.MilterDefault; d != "" && d != "tempfail" && d != "accept" {
		k.bad(k.top("smtp"), "milter_default", fmt.Sprintf("%q is neither \"tempfail\" nor \"accept\"", d), "")
	}
}

// knownAt reads a rule's list of recipients.
func (k *checker) knownAt(at source, path, catchAll string) []string {
	if catchAll != "" && !isAddress(catchAll) {
		k.bad(at, "catch_all", fmt.Sprintf("%q is not an address", catchAll), "write user@domain")
	}
	if path == "" {
		if catchAll != "" {
			k.bad(at, "catch_all", "without recipients nobody is unknown", "name a file of the recipients that exist: recipients = \"/etc/mochila/users\"")
		}
		return nil
	}
	list, err := ReadAddresses(k.c.below(path))
	if err != nil {
		k.bad(at, "recipients", err.Error(), "a file with one address or local part a line")
	}
	if list == nil {
		list = []string{}
	}
	return list
}

// below makes a relative path start at the home.
func (c *Config) below(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.Home.Base, path)
}
