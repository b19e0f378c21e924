package transport

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"regexp"
)

// UUCPOptions say how packets get into UUCP's spool.
type UUCPOptions struct {
	Command string // at the site, default "rmochila"
	Config  string // of UUCP; "": its own default
	Spool   string // "": as the configuration says
	Call    bool   // call the site at once, if UUCP's timetable allows it
	Program string // run instead of uux
}

// UUCP is a Submitter that queues packets for a UUCP site by uux. That UUCP has them is all that it knows.
type UUCP struct {
	site string
	o    UUCPOptions
}

// NewUUCP returns the Submitter for a UUCP site.
func NewUUCP(site string, o UUCPOptions) *UUCP {
	if o.Command == "" {
		o.Command = "rmochila"
	}
	if o.Program == "" {
		o.Program = "uux"
	}
	return &UUCP{site, o}
}

// String is the carrier URL without options.
func (u *UUCP) String() string { return "uucp:" + u.site }

// Submit implements Submitter. UUCP syncs nothing to the disk: what a power cut takes is sent again when it is overdue.
func (u *UUCP) Submit(ctx context.Context, p *Packet) error {
	if err := roomIn(u.spool(), "UUCP", 2*p.Size); err != nil {
		return err
	}
	argv := []string{u.o.Program}
	if u.o.Config != "" {
		argv = append(argv, "-I", u.o.Config)
	}
	if !u.o.Call {
		argv = append(argv, "-r")
	}
	argv = append(argv, "-n", "-g", grade(p.Class), "-", u.site+"!"+u.o.Command)
	return feed(ctx, feedTime(p.Size), nil, argv, copyOf(p))
}

// grade maps a class to UUCP's: 9, ordinary mail, is N, its default; 0 is E, 18 is W.
func grade(class uint8) string { return string(rune('E' + min(class, 18))) }

// uucpSpool is where a UUCP configuration names its spool.
const uucpSpool = `(?m)^\s*spool\s+(\S+)`

func (u *UUCP) spool() string {
	if u.o.Spool != "" {
		return u.o.Spool
	}
	file := u.o.Config
	if file == "" {
		file = "/etc/uucp/config"
	}
	if b, err := os.ReadFile(file); err == nil {
		if m := regexp.MustCompile(uucpSpool).FindSubmatch(b); m != nil {
			return string(m[1])
		}
	}
	return "/var/spool/uucp"
}

// parseUUCP reads uucp:SITE and its options.
func parseUUCP(rest string, opts url.Values) (Carrier, error) {
	if !plainWord(rest) {
		return Carrier{}, withHint(fmt.Errorf("%q is not the name of a UUCP site", rest), "as in uucp:hub, a system in UUCP's sys file")
	}
	o := UUCPOptions{Command: take(opts, "command"), Config: take(opts, "config"), Spool: take(opts, "spool")}
	switch call := take(opts, "call"); call {
	case "":
	case "now":
		o.Call = true
	default:
		return Carrier{}, withHint(fmt.Errorf("call %q is not known", call), "call=now calls the site at once; without it UUCP's own timetable does")
	}
	if o.Command != "" && !plainWord(o.Command) {
		return Carrier{}, fmt.Errorf("command %q is not a word", o.Command)
	}
	for _, p := range []string{o.Config, o.Spool} {
		if p != "" && p[0] != '/' {
			return Carrier{}, fmt.Errorf("%q is not an absolute path", p)
		}
	}
	return Carrier{Submitter: NewUUCP(rest, o)}, nil
}
