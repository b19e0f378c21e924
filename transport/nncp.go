package transport

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"

	"mochila/internal/durable"
)

// NNCPOptions say how packets get into NNCP's spool.
type NNCPOptions struct {
	Config string // of NNCP; "": its own default
	Spool  string // "": as the configuration says
	Handle string // exec handle at the neighbour, default "mochila"
	Files  bool   // send files into the neighbour's incoming/mochila instead, by nncp-file
	In     string // where NNCP puts files of the neighbour here; "": nothing comes that way
	// Program is what is run instead of nncp-exec or nncp-file.
	Program string
}

// NNCP is a Submitter that queues packets for an NNCP node, by nncp-exec or nncp-file. That NNCP has them is all that it
// knows: it neither says when they leave nor when they arrive.
type NNCP struct {
	node string
	o    NNCPOptions
	in   inbox
}

// NewNNCP returns the Submitter for an NNCP node, by its name or id in NNCP's configuration.
func NewNNCP(node string, o NNCPOptions) *NNCP {
	if o.Handle == "" {
		o.Handle = "mochila"
	}
	if o.Program == "" {
		o.Program = "nncp-exec"
		if o.Files {
			o.Program = "nncp-file"
		}
	}
	return &NNCP{node: node, o: o, in: inbox{dir: o.In}}
}

// String is the carrier URL without options.
func (n *NNCP) String() string { return "nncp:" + n.node }

// Submit implements Submitter.
//
// QUIRK: nncp-exec hangs for ever on a full disk and leaves a file behind that fills it, so that it is not started
// without room for the packet twice over. Handle and arguments have 255 bytes in all: everything is in the packet.
func (n *NNCP) Submit(ctx context.Context, p *Packet) error {
	if err := n.room(p.Size); err != nil {
		return err
	}
	argv := []string{n.o.Program, "-quiet", "-noprogress", "-nice", decimal(niceness(p.Class))}
	if n.o.Config != "" {
		argv = append(argv, "-cfg", n.o.Config)
	}
	if n.o.Spool != "" {
		argv = append(argv, "-spool", n.o.Spool)
	}
	if n.o.Files {
		argv = append(argv, "-", n.node+":mochila/"+p.ID.String())
	} else {
		argv = append(argv, "-nocompress", n.node, n.o.Handle)
	}
	return feed(ctx, feedTime(p.Size), nil, argv, copyOf(p))
}

// niceness maps a class to NNCP's: 9, ordinary mail, is NORMAL; 0 is nearly PRIORITY, 18 nearly BULK.
func niceness(class uint8) int64 { return 160 + 7*(int64(min(class, 18))-9) }

// spoolLine is where an NNCP configuration names its spool.
const spoolLine = `(?m)^\s*"?spool"?\s*:\s*"?([^\s",]+)`

// spool is NNCP's spool folder.
func (n *NNCP) spool() string {
	if n.o.Spool != "" {
		return n.o.Spool
	}
	file := n.o.Config
	if file == "" {
		file = "/etc/nncp.hjson"
	}
	if b, err := os.ReadFile(file); err == nil {
		if m := regexp.MustCompile(spoolLine).FindSubmatch(b); m != nil {
			return string(m[1])
		}
	}
	return "/var/spool/nncp"
}

// spoolSpare is what is left free on the disk of another program's spool.
const spoolSpare = 4 << 20

func (n *NNCP) room(size int64) error { return roomIn(n.spool(), "NNCP", 2*size) }

// roomIn fails with ErrFull when a spool has no room for n more bytes. A spool that cannot be asked is left to its program.
func roomIn(dir, whose string, n int64) error {
	free, _, err := durable.Free(dir)
	if err != nil || free >= n+spoolSpare {
		return nil
	}
	return withHint(fmt.Errorf("%w: %s of %s has %d bytes left", ErrFull, dir, whose, free), "make room on that disk, or wait until %s has sent what is there", whose)
}

// Arrivals implements Source.
func (n *NNCP) Arrivals(ctx context.Context, each func(Arrival) bool) error {
	return n.in.arrivals(ctx, each)
}

func (n *NNCP) place() string { return n.o.In }

// parseNNCP reads nncp:NODE and its options.
func parseNNCP(rest string, opts url.Values) (Carrier, error) {
	if !plainWord(rest) {
		return Carrier{}, withHint(fmt.Errorf("%q is not the name of an NNCP node", rest), "as in nncp:hub, a name in [neigh] of nncp.hjson")
	}
	o := NNCPOptions{Config: take(opts, "cfg"), Spool: take(opts, "spool"), Handle: take(opts, "handle"), In: take(opts, "in")}
	switch by := take(opts, "by"); by {
	case "", "exec":
	case "file":
		if o.Handle != "" {
			return Carrier{}, errors.New("handle= is for by=exec")
		}
		o.Files = true
	default:
		return Carrier{}, withHint(fmt.Errorf("by %q is neither exec nor file", by), "exec hands packets to a handle, file puts them into incoming/mochila")
	}
	if o.Handle != "" && !plainWord(o.Handle) {
		return Carrier{}, fmt.Errorf("handle %q is not a word", o.Handle)
	}
	for _, p := range []string{o.Config, o.Spool, o.In} {
		if p != "" && p[0] != '/' {
			return Carrier{}, fmt.Errorf("%q is not an absolute path", p)
		}
	}
	return Carrier{Submitter: NewNNCP(rest, o)}, nil
}

// plainWord accepts what another program cannot take for an option, a path or a pattern.
func plainWord(s string) bool {
	return s != "" && s[0] != '-' && len(s) <= 100 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

var _ Source = (*NNCP)(nil)
