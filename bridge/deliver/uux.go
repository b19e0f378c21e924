package deliver

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mochila/bridge/route"
	"mochila/internal/envelope"
)

// uux hands mail to a UUCP site that runs rmail or takes batches of SMTP, so that a UUCP neighbour needs no change:
//
//	uux:SITE!rmail     one mail for up to 20 recipients on the command line
//	uux:SITE!rsmtp     a batch with one mail and all recipients
//	uux:SITE!rgsmtp    the same, compressed by gzip
//
// Options: ?config=FILE of UUCP, ?grade=C, ?program=/usr/bin/uux.
type uux struct {
	program
	site, command string
	config, grade string
}

// rmailRcpts is how many recipients rmail gets at once.
const rmailRcpts = 20

func newUUX(rest string, o Options) (Transport, error) {
	rest, query, _ := strings.Cut(rest, "?")
	opts, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	site, command, _ := strings.Cut(rest, "!")
	if !uucpWord(site) || command != "rmail" && command != "rsmtp" && command != "rgsmtp" {
		return nil, fmt.Errorf("%q is not SITE!rmail, SITE!rsmtp or SITE!rgsmtp", rest)
	}
	take := func(key, def string) string {
		v := opts.Get(key)
		opts.Del(key)
		if v == "" {
			return def
		}
		return v
	}
	u := &uux{site: site, command: command, config: take("config", ""), grade: take("grade", "C")}
	if len(u.grade) != 1 || !uucpWord(u.grade) {
		return nil, fmt.Errorf("grade %q is not one letter or digit", u.grade)
	}
	path := take("program", "/usr/bin/uux")
	for k := range opts {
		return nil, fmt.Errorf("there is no option %q: config, grade, program", k)
	}
	u.program, err = newProgram(path, "uux "+site, o)
	return u, err
}

// uucpWord accepts names of sites and commands.
func uucpWord(s string) bool {
	return s != "" && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// uuxWord accepts what neither uux, nor the shell that uuxqt may use, takes for anything but an address.
func uuxWord(addr string) bool {
	return route.SafePath(addr) && addr[0] != '-' && !strings.ContainsFunc(addr, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".@_+=%/-", r))
	})
}

// Deliver runs uux once, or for rmail once for each 20 recipients. What UUCP has it reports on no more.
func (u *uux) Deliver(ctx context.Context, m *Message) []Result {
	s := newSheet(m, u.mta)
	sender := m.Env.Mail.Sender
	ct, err := load(m, false)
	batch := u.command != "rmail"
	switch {
	case err != nil:
		s.trouble(err)
		return s.res
	case sender != "" && !route.SafePath(sender) || !batch && strings.ContainsAny(sender, " \t"):
		for _, i := range s.open() {
			s.fail(i, "5.1.7", fmt.Sprintf("sender address %q cannot go by %s", sender, u.command))
		}
		return s.res
	case m.Env.Mail.RequireTLS:
		for _, i := range s.open() {
			s.fail(i, "5.7.30", "REQUIRETLS was asked for, and UUCP has no way to say so")
		}
		return s.res
	case !batch && m.unsupported() != nil:
		for _, i := range s.open() {
			s.fail(i, m.unsupported().enhanced, m.unsupported().text)
		}
		return s.res
	}
	var who []int
	for _, i := range s.open() {
		addr := s.rcpt(i).Addr
		switch {
		case !route.SafePath(addr):
			s.fail(i, "5.1.3", fmt.Sprintf("recipient address %q is none", addr))
		case !batch && !uuxWord(addr):
			s.fail(i, "5.1.3", fmt.Sprintf("recipient address %q cannot stand on a command line: deliver by %s!rsmtp", addr, u.site))
		default:
			who = append(who, i)
		}
	}
	size := rmailRcpts
	if batch {
		size = u.o.MaxRcpts
	}
	for len(who) > 0 && ctx.Err() == nil {
		k := min(size, len(who))
		if err := u.send(ctx, ct, s, who[:k]); err != nil {
			s.trouble(err)
			return s.res
		}
		who = who[k:]
	}
	s.wait(ours("4.3.2", "not tried: interrupted"))
	return s.res
}

// send queues the mail for some recipients.
func (u *uux) send(ctx context.Context, ct *content, s *sheet, who []int) error {
	in, err := u.input(ct, s, who)
	if err != nil {
		return err
	}
	defer in.Close()
	var args []string
	if u.config != "" {
		args = append(args, "-I", u.config)
	}
	args = append(args, "-r", "-n", "-g", u.grade, "-", u.site+"!"+u.command)
	if u.command == "rmail" {
		for _, i := range who {
			args = append(args, "("+s.rcpt(i).Addr+")")
		}
	}
	e := u.run(ctx, args, nil, in)
	if e.code == 0 {
		u.flush()
		for _, i := range who {
			s.put(i, envelope.ActionRelayed, envelope.Status{Enhanced: "2.0.0", Text: "queued for " + u.site + " by uux"})
		}
		return nil
	}
	a, st := e.verdict("uux", nil)
	for _, i := range who {
		s.put(i, a, st)
	}
	return nil
}

// flush makes durable what uux has queued: it syncs nothing itself.
func (u *uux) flush() {
	dir := "/var/spool/uucp"
	file := u.config
	if file == "" {
		file = "/etc/uucp/config"
	}
	if b, err := os.ReadFile(file); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "spool" {
				dir = f[1]
			}
		}
	}
	if d, err := os.Open(dir); err == nil {
		defer d.Close()
		if unix.Syncfs(int(d.Fd())) == nil {
			return
		}
	}
	unix.Sync() // wherever it may be
}

// input gathers what the command at the site gets, in a file without a name.
func (u *uux) input(ct *content, s *sheet, who []int) (*os.File, error) {
	f, err := os.CreateTemp(u.o.TempDir, ".mochila-deliver-*")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		err = u.compose(f, ct, s, who)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (u *uux) compose(f io.Writer, ct *content, s *sheet, who []int) error {
	sender := s.m.Env.Mail.Sender
	if u.command == "rmail" {
		if sender == "" {
			sender = "MAILER-DAEMON"
		}
		// no "remote from": the sender is an address with a domain, not the end of a path
		line := "From " + sender + " " + time.Now().UTC().Format(time.ANSIC) + "\n"
		if _, err := io.WriteString(f, line); err != nil {
			return err
		}
		return writeLocal(f, ct, "")
	}
	var zip *gzip.Writer
	if u.command == "rgsmtp" {
		zip = gzip.NewWriter(f)
		f = zip
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HELO %s\nMAIL FROM:<%s>\n", u.o.Hostname, sender)
	for _, i := range who {
		fmt.Fprintf(&head, "RCPT TO:<%s>\n", s.rcpt(i).Addr)
	}
	head.WriteString("DATA\n")
	if _, err := io.WriteString(f, head.String()); err != nil {
		return err
	}
	d := &stuffer{w: bufio.NewWriter(f), start: true}
	if err := writeLocal(d, ct, ""); err != nil {
		return err
	}
	if err := d.end(); err != nil {
		return err
	}
	if zip != nil {
		return zip.Close()
	}
	return nil
}

// stuffer doubles the dot in front of a line.
type stuffer struct {
	w     *bufio.Writer
	start bool
}

// Write passes content on with the dot at the start of a line doubled.
func (d *stuffer) Write(p []byte) (int, error) {
	for _, c := range p {
		if d.start && c == '.' {
			d.w.WriteByte('.')
		}
		d.start = c == '\n'
		if err := d.w.WriteByte(c); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// end ends the mail and the batch.
func (d *stuffer) end() error {
	if !d.start {
		d.w.WriteByte('\n')
	}
	d.w.WriteString(".\nQUIT\n")
	return d.w.Flush()
}
