package deliver

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mochila/internal/durable"
)

// Options are what every kind of delivery may need. The zero value works.
type Options struct {
	Hostname string     // EHLO name; "" = the system's host name
	Domain   string     // stands for %d in a Maildir path when an address has no domain; "" = "localhost"
	Home     string     // relative paths start here; "" = they are refused
	TempDir  string     // where a command's input is gathered before it starts; "" = the system's
	FS       durable.FS // for Maildirs; nil = the real file system
	MaxConns int        // connections at once to one SMTP or LMTP server, 20; more callers wait
	MaxRcpts int        // recipients in one transaction, 100 (RFC 5321 section 4.5.3.1.8); a server's RCPTMAX counts too

	RootCAs *x509.CertPool // for the certificates of smtps and submission; nil = the system's

	host *smarthost // of an smtps or submission delivery

	// Time limits, with RFC 5321 section 4.5.3.2 in mind.
	Connect time.Duration // to open a connection, 30 s
	Command time.Duration // for the greeting and each reply, 5 min
	Block   time.Duration // to write one block of content, 3 min
	Final   time.Duration // for a reply after the final dot, 10 min
	Idle    time.Duration // an unused connection is kept this long, 5 s
	Grace   time.Duration // after the context ends, how long an answer to a final dot is waited for, 10 s
	Run     time.Duration // a command may take, 10 min
}

// withDefaults fills the zero fields.
func (o Options) withDefaults() Options {
	set := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	set(&o.Connect, 30*time.Second)
	set(&o.Command, 5*time.Minute)
	set(&o.Block, 3*time.Minute)
	set(&o.Final, 10*time.Minute)
	set(&o.Idle, 5*time.Second)
	set(&o.Grace, 10*time.Second)
	set(&o.Run, 10*time.Minute)
	if o.MaxConns <= 0 {
		o.MaxConns = 20
	}
	if o.MaxRcpts <= 0 {
		o.MaxRcpts = 100
	}
	if o.Domain == "" {
		o.Domain = "localhost"
	}
	if o.Hostname == "" {
		o.Hostname, _ = os.Hostname()
	}
	if !safeHelo(o.Hostname) {
		o.Hostname = "localhost"
	}
	return o
}

func safeHelo(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// kinds is what New understands, for its errors.
const kinds = "smtp:HOST:PORT, smtps:USER@HOST, submission:USER@HOST, lmtp:HOST:PORT, lmtp:/path, maildir:/path/%u, sendmail:/path, pipe:/path, bsmtp:/path, uux:SITE!rsmtp"

// New opens a delivery by its via URL: one of
//
//	smtp:HOST:PORT      an SMTP server
//	smtps:[USER@]HOST[:PORT]       one that speaks TLS from the start, on port 465; USER's password is the first line
//	                               of the file secrets/USER@HOST below Home
//	submission:[USER@]HOST[:PORT]  the same with STARTTLS, which must succeed, on port 587
//	lmtp:HOST:PORT      an LMTP server over TCP
//	lmtp:/path          an LMTP server behind a unix socket
//	maildir:/path/%u    a Maildir for each recipient: %u local part, %d domain, %% a percent sign
//	sendmail:/path      a program with sendmail's command line
//	pipe:/path          any program: the mail on its stdin, once for each recipient
//	bsmtp:/path         a program that takes a batch of SMTP on its stdin; with ?to=ADDR a sendmail that mails the batch
//	uux:SITE!rmail      a UUCP site, also uux:SITE!rsmtp and uux:SITE!rgsmtp, with ?config=FILE&grade=C
//
// Nothing is connected, started or created before the first Deliver.
func New(via string, o Options) (Transport, error) {
	o = o.withDefaults()
	kind, rest, ok := strings.Cut(via, ":")
	if !ok {
		return nil, fmt.Errorf("deliver via %q: it needs a kind in front, one of %s", via, kinds)
	}
	var t Transport
	var err error
	switch kind {
	case "smtp":
		t, err = newSMTP("tcp", rest, false, o)
	case "lmtp":
		network := "tcp"
		if strings.Contains(rest, "/") && !strings.HasPrefix(rest, "//") {
			network = "unix"
		}
		t, err = newSMTP(network, rest, true, o)
	case "maildir":
		t, err = newMaildir(rest, o)
	case "sendmail":
		t, err = newSendmail(rest, o)
	case "pipe":
		t, err = newPipe(rest, o)
	case "bsmtp":
		t, err = newBSMTP(rest, o)
	case "uux":
		t, err = newUUX(rest, o)
	case "smtps", "submission":
		t, err = newSmarthost(kind == "smtps", rest, o)
	default:
		err = fmt.Errorf("unknown kind %q; use one of %s", kind, kinds)
	}
	if err != nil {
		return nil, fmt.Errorf("deliver via %q: %w", via, err)
	}
	return t, nil
}

// hostPort checks HOST:PORT.
func hostPort(s string) error {
	if strings.HasPrefix(s, "//") {
		return errors.New("leave the // out: write HOST:PORT")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("%q is not HOST:PORT", s)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q is not a port", port)
	}
	return nil
}

// localPath makes a path absolute.
func localPath(p string, o Options) (string, error) {
	switch {
	case p == "":
		return "", errors.New("the path is missing")
	case strings.HasPrefix(p, "//"):
		return "", errors.New("leave the // out: write kind:/path")
	case strings.ContainsRune(p, 0):
		return "", errors.New("the path holds a NUL")
	case filepath.IsAbs(p):
		return p, nil
	case o.Home == "":
		return "", fmt.Errorf("%q is not an absolute path", p)
	}
	return filepath.Join(o.Home, p), nil
}
