package submit

import (
	"math/rand/v2"
	"syscall"
)

// Env is the process around one call of the command. It is large: its memory is all that most calls need.
type Env struct {
	Args   []string // with the name of the command in front
	Stdin  int      // file descriptors
	Stdout int
	Stderr int
	Getenv func(string) (string, bool)

	opt  Options
	node Node
	call call
}

const usage = `usage: sendmail [-t] [-i] [-f sender] [-F name] [-N never|success,failure,delay] [-R full|hdrs] [-V envid]
                [-B 8BITMIME] [--home DIR] [--] [recipient ...] < message
       sendmail -bs | -bS | -bp | -bv address ... | -q[Rsite] | -bd | -bD
       mailq | newaliases | rmail recipient ... | rsmtp
`

// Run does one call of sendmail, mailq, newaliases, rmail or rsmtp, and returns the exit status. It may be called from
// other programs; it neither exits nor touches anything but the descriptors and the node.
func Run(e *Env) int {
	if e == nil {
		// Never so. But because of this array the runtime makes the stack large enough for all of the call at once. Else it
		// would double it step by step, and each step fetches a handful of stacks of that size, with a page fault for each.
		var room [20 << 10]byte
		touch(&room)
	}
	if len(e.Args) == 0 {
		e.Args = []string{"sendmail"}
	}
	o := &e.opt
	f := o.parse(e.Args[0], e.Args[1:])
	if f != nil {
		*o = Options{}
	} else if err := run(e, o); err != nil {
		f = asFault(err, "submitting")
	}
	if f != nil && f.Code == ExUnavailable && (o.Proto == "rmail" || o.Proto == "bsmtp") {
		// Called by a mail server or by uuxqt, which keep the mail only for this status and bounce it for any other.
		f.Code = ExTempFail
	}
	if f == nil {
		return ExOK
	}
	if !o.Quiet {
		text := "sendmail: error: " + f.Text + "\n"
		if f.Hint != "" {
			text += "hint: " + f.Hint + "\n"
		}
		writeFD(e.Stderr, []byte(text))
	}
	return f.Code
}

//go:noinline
func touch(b *[20 << 10]byte) { b[0] = 1 }

func run(e *Env, o *Options) error {
	switch o.Mode {
	case ModeNothing:
		return nil
	case ModeVersion:
		return writeFD(e.Stdout, []byte(Version+"\n"))
	case ModeHelp:
		return writeFD(e.Stdout, []byte(usage))
	case ModeDaemon:
		return daemon(o)
	}
	node := &e.node
	if f := node.find(o.Home, e.Getenv); f != nil {
		return f
	}
	switch o.Mode {
	case ModeSMTP:
		return node.smtp(e.Stdin, e.Stdout)
	case ModeList:
		return node.ask(VerbList, &Mail{}, e.Stdout)
	case ModeFlush:
		return node.ask(VerbFlush, &Mail{Site: o.Site}, e.Stdout)
	case ModeVerify:
		rcpts, err := argRecipients(nil, new(boxes), o)
		if err != nil {
			return err
		}
		if len(rcpts) == 0 {
			return fault(ExUsage, "no address to verify")
		}
		return node.ask(VerbVerify, &Mail{Recipients: rcpts}, e.Stdout)
	case ModeBatch:
		return batch(e, o, node)
	}
	return message(e, o, node)
}

// appendRecipients reads a list of addresses.
func appendRecipients(dst []Recipient, room *boxes, list string) ([]Recipient, error) {
	found, err := parseList(room, list)
	if err != nil {
		return nil, err
	}
	for _, m := range found {
		dst = append(dst, Recipient{Addr: m.addr})
	}
	return dst, nil
}

// argRecipients appends the recipients in argv to dst.
func argRecipients(dst []Recipient, room *boxes, o *Options) ([]Recipient, error) {
	for _, a := range o.Args {
		if controls(a) {
			return nil, fault(ExUsage, "recipient "+show(a)+" contains a control character")
		}
		n := len(dst)
		var err error
		if dst, err = appendRecipients(dst, room, a); err != nil {
			return nil, fault(ExUsage, err.Error())
		}
		if len(dst) == n {
			return nil, fault(ExUsage, "recipient "+show(a)+" is empty")
		}
	}
	return dst, nil
}

// call is the memory of one submission, in one piece: on the short life of this process each new page of memory is a
// page fault, and those are most of what it does.
type call struct {
	env     *Env
	opt     *Options
	node    *Node
	in      input
	header  header
	mail    Mail
	room    [4]Recipient
	out     writer
	started int64  // microseconds
	name    []byte // the domain, once it is known
	buf     [28 << 10]byte
}

// The parts of call.buf, in this order; the message as it is read has the rest.
const (
	bufDomain  = 256     // name
	bufScratch = 4 << 10 // the time zone: the longest of today's has 3.6 KB
	bufFrame   = 8 << 10 // the frame as it is written
	bufInput   = bufDomain + bufScratch + bufFrame
)

// message reads one message from stdin and submits it.
func message(e *Env, o *Options, node *Node) error {
	c := &e.call
	c.env, c.opt, c.node = e, o, node
	m := &c.mail
	*m = Mail{Owner: !o.HasSender, Sender: o.Sender, Ret: o.Ret, EnvID: o.EnvID, Body: o.Body, Proto: o.Proto}
	var err error
	if m.Recipients, err = argRecipients(c.room[:0], &c.header.boxes, o); err != nil {
		return err
	}
	if len(m.Recipients) == 0 && !o.Extract {
		return &Fault{Code: ExUsage, Text: "no recipients", Hint: "name them as arguments, or use -t to read them from the header"}
	}
	in := &c.in
	*in = input{fd: e.Stdin, dots: !o.IgnoreDots, buf: c.buf[bufInput:]}
	if o.Mode == ModeRmail {
		if err := c.uucp(); err != nil {
			return err
		}
	}
	h := &c.header
	if err := h.read(in); err != nil {
		return err
	}
	if o.Extract {
		if m.Recipients, err = h.recipients(m.Recipients); err != nil {
			return err
		}
	}
	m.Recipients = unique(m.Recipients)
	if len(m.Recipients) == 0 {
		return fault(ExDataErr, "no recipients in the header")
	}
	for i := range m.Recipients {
		m.Recipients[i].Notify = o.Notify
	}
	w := &c.out
	w.begin(node, m, c.buf[bufDomain+bufScratch:bufInput:bufInput])
	defer w.abort()
	var source origin
	if !o.Gateway {
		c.started = now()
		source = c
	}
	if err := h.write(w, source); err != nil {
		return err
	}
	if h.hasRest {
		if err := w.line(h.rest); err != nil {
			return err
		}
	}
	in.keep = false
	if err := in.body(w, false); err != nil {
		return err
	}
	_, err = w.finish()
	return err
}

// uucp reads the sender from the lines that uux puts in front, and turns paths into addresses.
func (c *call) uucp() error {
	m := &c.mail
	for i := range m.Recipients {
		m.Recipients[i].Addr = Unbang(m.Recipients[i].Addr)
	}
	from, found, err := readFrom(&c.in)
	if err != nil || !found || c.opt.HasSender {
		return err
	}
	m.Owner, m.Sender = false, from
	if from == "" {
		return nil
	}
	return CheckAddr(from)
}

// unique drops recipients that are named twice; domains are compared without case.
func unique(list []Recipient) []Recipient {
	if len(list) < 2 {
		return list
	}
	seen := make(map[string]bool, len(list))
	out := list[:0]
	for _, r := range list {
		key := []byte(r.Addr)
		if at := domainOf(r.Addr); at >= 0 {
			for i := at; i < len(key); i++ {
				key[i] = lower(key[i])
			}
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			out = append(out, r)
		}
	}
	return out
}

// domain, date, messageID and from make call an origin.
func (c *call) domain(b []byte) []byte {
	if c.name == nil {
		c.name = c.node.appendDomain(c.buf[:0:bufDomain])
	}
	return append(b, c.name...)
}

func (c *call) date(b []byte) []byte {
	sec := c.started / 1e6
	return appendDate(b, sec, localOffset(sec, c.env.Getenv, c.buf[bufDomain:bufDomain+bufScratch]))
}

// messageID is time and chance.
func (c *call) messageID(b []byte) []byte {
	var id [14]byte
	for i, v := 6, c.started; i >= 0; i, v = i-1, v>>8 {
		id[i] = byte(v)
	}
	for i, v := 7, rand.Uint64(); i < len(id); i, v = i+1, v>>8 {
		id[i] = byte(v)
	}
	b = appendBase32(append(b, '<'), id[:])
	return append(c.domain(append(b, '@')), '>')
}

// from is -F, $NAME or the gecos entry, and the sender.
func (c *call) from(b []byte) []byte {
	uid := syscall.Getuid()
	user := lookupUser(uid)
	addr := c.opt.Sender
	if addr == "" && c.opt.HasSender {
		addr = "MAILER-DAEMON"
	}
	for _, key := range [...]string{"LOGNAME", "USER"} {
		if addr == "" && user.name == "" {
			if v, _ := c.env.Getenv(key); v != "" && CheckAddr(v) == nil {
				addr = v
			}
		}
	}
	if addr == "" {
		addr = user.name
	}
	if addr == "" {
		addr = "uid" + itoa(uid)
	}
	name := c.opt.FullName
	if name == "" {
		name, _ = c.env.Getenv("NAME")
	}
	if name == "" && !c.opt.HasSender {
		name = user.fullName()
	}
	name = phrase(name)
	if name != "" {
		b = append(append(b, name...), " <"...)
	}
	b = append(b, addr...)
	if domainOf(addr) < 0 {
		b = c.domain(append(b, '@'))
	}
	if name != "" {
		b = append(b, '>')
	}
	return b
}

// phrase makes a display name safe: quoted when it is not plain words, without controls.
func phrase(name string) string {
	plain := true
	var b []byte
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c < 0x20 || c == 0x7f:
			continue
		case c == '"' || c == '\\':
			b = append(b, '\\')
			plain = false
		case 'a' <= lower(c) && lower(c) <= 'z' || '0' <= c && c <= '9' || c == ' ' || c == '-' || c == '\'' || c == '_' || c >= 0x80:
		default:
			plain = false
		}
		b = append(b, c)
	}
	s := trim(string(b))
	if s == "" || plain {
		return s
	}
	return "\"" + s + "\""
}
