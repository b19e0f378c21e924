package transport

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// Carrier is a parsed carrier URL. Exactly one of Folder, Dialer and Submitter is set.
type Carrier struct {
	URL       string
	Folder    Folder
	Dialer    Dialer
	Submitter Submitter
}

// LinkOptions is what a Link needs besides its carrier; each shape takes its own part.
type LinkOptions struct {
	Self, Peer envelope.Label // folders
	Stream     StreamOptions  // streams; its Log, MaxSize and Progress serve every shape
}

// Link returns the Link to one neighbour over the carrier. It should live as long as the contact is configured.
func (c Carrier) Link(o LinkOptions) Link {
	log := o.Stream.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Folder != nil:
		return NewFolderLink(c.Folder, o.Self, o.Peer,
			FolderOptions{MaxSize: o.Stream.MaxSize, Log: log, Progress: o.Stream.Progress})
	case c.Dialer != nil:
		if t, ok := c.Dialer.(Tuner); ok {
			o.Stream = t.Tune(o.Stream)
		}
		return NewStreamLink(c.Dialer, o.Stream)
	}
	return NewSubmitLink(c.Submitter, SubmitOptions{Log: log, Progress: o.Stream.Progress})
}

// Tuner is a Dialer whose line wants other options than a network does: a slow one, say.
type Tuner interface {
	Tune(o StreamOptions) StreamOptions
}

// Scheme is one kind of carrier URL.
type Scheme struct {
	Name string // what stands before the first colon
	Form string // an example for messages
	// Parse makes a Carrier of the part between "NAME:" and "?", and the options after it. It takes the options
	// that it knows out of opts; what is left is an error.
	Parse func(rest string, opts url.Values) (Carrier, error)
}

// Schemes lists the carriers of this package. Carriers that live elsewhere export a Scheme of their own, to be
// appended by the program.
func Schemes() []Scheme {
	return []Scheme{
		{"dir", "dir:/media/usb", parseDir},
		{"tcp", "tcp:hub.example:2424", parseTCP},
		{"ssh", "ssh:mochila@hub.example", parseSSH},
		{"unix", "unix:/run/mochila/link.sock", parseUnix},
		{"pipe", "pipe:socat - TCP:hub:2424", parsePipe},
		{"exec", "exec:ssh hub mochila receive", parseExec},
		{"nncp", "nncp:hub", parseNNCP},
		{"uucp", "uucp:hub", parseUUCP},
		{"fspl", "fspl:/srv/sync/to-hub", parseFspl},
		{"mail", "mail:mochila@hub.example?from=mochila@camp.example", parseMail},
	}
}

// Parse reads a carrier URL, "NAME:REST" or "NAME:REST?option=value&...". Errors carry a hint.
func Parse(schemes []Scheme, s string) (Carrier, error) {
	name, rest, found := strings.Cut(s, ":")
	if !found || strings.ContainsAny(name, "/.\\") {
		err := fmt.Errorf("carrier %q does not begin with the name of a carrier", s)
		if strings.HasPrefix(s, "/") {
			return Carrier{}, withHint(err, "a folder is written dir:%s", s)
		}
		return Carrier{}, withHint(err, "known carriers: %s", forms(schemes))
	}
	i := slices.IndexFunc(schemes, func(k Scheme) bool { return k.Name == name })
	if i < 0 {
		err := fmt.Errorf("carrier %q: there is no carrier %q", s, name)
		if k := strings.ToLower(name); k != name && slices.ContainsFunc(schemes, func(x Scheme) bool { return x.Name == k }) {
			return Carrier{}, withHint(err, "write %s in lower case", name)
		}
		return Carrier{}, withHint(err, "known carriers: %s", forms(schemes))
	}
	scheme := schemes[i]
	query := ""
	if name != "pipe" && name != "exec" { // a command may hold question marks; it has no options
		rest, query, _ = strings.Cut(rest, "?")
	}
	if strings.HasPrefix(rest, "//") {
		return Carrier{}, withHint(fmt.Errorf("carrier %q: no // follows %s: here", s, name),
			"write it like %s", scheme.Form)
	}
	opts, err := url.ParseQuery(query)
	if err != nil {
		return Carrier{}, fmt.Errorf("carrier %q: options: %w", s, err)
	}
	for k, v := range opts {
		if len(v) > 1 {
			return Carrier{}, fmt.Errorf("carrier %q: option %q is given twice", s, k)
		}
	}
	c, err := scheme.Parse(rest, opts)
	if err != nil {
		return Carrier{}, fmt.Errorf("carrier %q: %w", s, err)
	}
	for k := range opts {
		return Carrier{}, withHint(fmt.Errorf("carrier %q: unknown option %q", s, k), "see docs/carriers.md for the options of %s:", name)
	}
	c.URL = s
	return c, nil
}

func forms(schemes []Scheme) string {
	var all []string
	for _, k := range schemes {
		all = append(all, k.Form)
	}
	return strings.Join(all, ", ")
}

func take(opts url.Values, key string) string {
	v := opts.Get(key)
	opts.Del(key)
	return v
}

func parseDir(rest string, opts url.Values) (Carrier, error) {
	if strings.HasPrefix(rest, "~") {
		return Carrier{}, withHint(errors.New("~ means nothing here"), "write the whole path, as in dir:/home/ana/Sync")
	}
	d, err := NewDir(rest, DirOptions{Mount: take(opts, "mount")})
	if err != nil {
		return Carrier{}, err
	}
	return Carrier{Folder: d}, nil
}

func parseTCP(rest string, opts url.Values) (Carrier, error) {
	host, port, err := net.SplitHostPort(rest)
	var wrong *net.AddrError
	if errors.As(err, &wrong) && wrong.Err == "missing port in address" {
		host, port, err = net.SplitHostPort(rest + ":" + DefaultPort)
	}
	if err != nil || host == "" || port == "" || strings.ContainsAny(host, "/@ ") {
		return Carrier{}, withHint(fmt.Errorf("%q is not HOST:PORT", rest), "as in tcp:hub.example:2424 or tcp:[2001:db8::1]:2424")
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return Carrier{}, fmt.Errorf("%q is not a port", port)
	}
	var timeout time.Duration
	if s := take(opts, "timeout"); s != "" {
		if timeout, err = time.ParseDuration(s); err != nil || timeout <= 0 {
			return Carrier{}, withHint(fmt.Errorf("timeout %q is not a duration", s), "as in timeout=10s")
		}
	}
	d := NewTCP(net.JoinHostPort(host, port), timeout)
	if s := take(opts, "socks"); s != "" {
		if d, err = d.Via(s); err != nil {
			return Carrier{}, err
		}
	}
	return Carrier{Dialer: d}, nil
}
