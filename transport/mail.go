package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"mochila/transport/letter"
)

// MailOptions say how a Mail gets rid of its letters.
type MailOptions struct {
	From string // required: where bounces go, an address that this node opens
	Size int64  // of a packet go into one letter; 0: 5 MiB, 7 MB as mail
	// Program is the sendmail program, default /usr/sbin/sendmail; SMTP, if not empty, HOST:PORT of a server instead.
	Program, SMTP string
	Now           func() time.Time // for the Date field; nil: time.Now
}

// Mail is a Submitter that sends each packet as the attachment of an ordinary mail, or of several when it is large.
// That a mail server took them is all that it knows: they may be late, lost or returned.
type Mail struct {
	to string
	o  MailOptions
}

// NewMail returns the Submitter that writes to the address to.
func NewMail(to string, o MailOptions) *Mail {
	if o.Size == 0 {
		o.Size = 5 << 20
	}
	if o.Program == "" {
		o.Program = "/usr/sbin/sendmail"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Mail{to, o}
}

// String is the carrier URL without options.
func (m *Mail) String() string { return "mail:" + m.to }

// Submit implements Submitter. When a later letter of a packet fails, all are sent again: the receiver knows the
// first ones.
func (m *Mail) Submit(ctx context.Context, p *Packet) error {
	r, err := p.Open(0)
	if err != nil {
		return err
	}
	defer r.Close()
	for off := int64(0); off < p.Size; off += m.o.Size {
		part := letter.Part{Packet: p.ID, Size: p.Size, Offset: off, Length: min(m.o.Size, p.Size-off)}
		write := func(w io.Writer) error {
			return letter.Write(w, letter.Cover{From: m.o.From, To: m.to, Date: m.o.Now()}, part, r)
		}
		if err := m.send(ctx, part.Length, write); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mail) send(ctx context.Context, size int64, write func(io.Writer) error) error {
	if m.o.SMTP != "" {
		return m.smtp(ctx, size, write)
	}
	env := append(os.Environ(), "LC_ALL=C")
	return feed(ctx, feedTime(size), env, []string{m.o.Program, "-i", "-f", m.o.From, "--", m.to}, write)
}

// smtp hands one letter to a server. A server that cannot be reached is ErrAbsent; one that refuses the size refuses
// this packet.
func (m *Mail) smtp(ctx context.Context, size int64, write func(io.Writer) error) error {
	limit := feedTime(size)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s did not answer within %v", m.o.SMTP, limit))
	defer cancel()
	d := net.Dialer{Timeout: 30 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", m.o.SMTP)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // cutting it before the final dot sends nothing
	defer stop()
	err = m.dialogue(conn, write)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var reply *textproto.Error
	if errors.As(err, &reply) {
		err = fmt.Errorf("%s says: %d %s", m.o.SMTP, reply.Code, strings.Join(strings.Fields(reply.Msg), " "))
		if reply.Code == 552 || reply.Code == 554 && strings.HasPrefix(reply.Msg, "5.3.4") {
			return withHint(fmt.Errorf("%w: %w", ErrRefused, err), "the server wants smaller mails: set size= in the carrier")
		}
	}
	return err
}

func (m *Mail) dialogue(conn net.Conn, write func(io.Writer) error) error {
	host, _, _ := net.SplitHostPort(m.o.SMTP)
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return err
	}
	_, domain, _ := strings.Cut(m.o.From, "@")
	if err := c.Hello(domain); err != nil {
		return err
	}
	if err := c.Mail(m.o.From); err != nil {
		return err
	}
	if err := c.Rcpt(m.to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if err := write(w); err != nil {
		conn.Close() // before the final dot
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	c.Quit() // it has the mail, whatever it says now
	return nil
}

// Address returns where the letters go: mail to it must not travel over this node again.
func (m *Mail) Address() string { return m.to }

// parseMail reads mail:ADDR?from=ADDR and its options.
func parseMail(rest string, opts url.Values) (Carrier, error) {
	o := MailOptions{From: take(opts, "from"), Program: take(opts, "sendmail"), SMTP: take(opts, "smtp")}
	const form = "as in mail:mochila@hub.example?from=mochila@camp.example"
	for _, a := range []string{rest, o.From} {
		if !plainAddress(a) {
			if a == "" {
				return Carrier{}, withHint(errors.New("an address is missing"), "from= is the address of this node, to which bounces go, "+form)
			}
			return Carrier{}, withHint(fmt.Errorf("%q is not a mail address", a), "%s", form)
		}
	}
	if s := take(opts, "size"); s != "" {
		n, err := parseSize(s)
		if err != nil || n < 1<<10 || n > 1<<30 {
			return Carrier{}, withHint(fmt.Errorf("size %q is not a size from 1KiB to 1GiB", s), "as in size=5MiB: of a packet, a mail is 1.4 times as large")
		}
		o.Size = n
	}
	if o.SMTP != "" {
		if o.Program != "" {
			return Carrier{}, errors.New("sendmail= and smtp= contradict each other")
		}
		host, port, err := net.SplitHostPort(o.SMTP)
		if err != nil || host == "" || port == "" {
			return Carrier{}, withHint(fmt.Errorf("%q is not HOST:PORT", o.SMTP), "as in smtp=127.0.0.1:25")
		}
	}
	if o.Program != "" && o.Program[0] != '/' {
		return Carrier{}, fmt.Errorf("sendmail %q is not an absolute path", o.Program)
	}
	return Carrier{Submitter: NewMail(rest, o)}, nil
}

// plainAddress accepts addresses without quotes and comments: a robot has no other.
func plainAddress(a string) bool {
	local, domain, ok := strings.Cut(a, "@")
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("<>()[],;:\\\"@", r) }
	return ok && local != "" && domain != "" && local[0] != '-' && !strings.ContainsFunc(local+domain, bad) && len(a) <= 254
}

// parseSize reads 512, 100k, 5M, 5MiB.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKMGTiB")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	base, shift := int64(1000), 0
	unit := strings.TrimSuffix(s[len(digits):], "B")
	if strings.HasSuffix(unit, "i") {
		base, unit = 1024, strings.TrimSuffix(unit, "i")
	}
	if shift = strings.Index("kMGT", strings.Replace(unit, "K", "k", 1)) + 1; len(unit) > 1 || len(unit) == 1 && shift == 0 {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	if unit == "" {
		shift = 0
	}
	for range shift {
		if n > (1<<62)/base {
			return 0, fmt.Errorf("%q is too large", s)
		}
		n *= base
	}
	return n, nil
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }
