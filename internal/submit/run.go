package submit

import "syscall"

// Env is the process around one call of the command.
type Env struct {
	Args   []string // with the name of the command in front
	Stdin  int      // file descriptors
	Stdout int
	Stderr int
	Getenv func(string) (string, bool)
}

const usage = `usage: sendmail [-t] [-i] [-f sender] [-F name] [-N never|success,failure,delay] [-R full|hdrs] [-V envid]
                [-B 8BITMIME] [--home DIR] [--] [recipient ...] < message
       sendmail -bs | -bS | -bp | -bv address ... | -q[Rsite]
       mailq | newaliases | rmail recipient ... | rsmtp
`

// Run does one call of sendmail, mailq, newaliases, rmail or rsmtp, and returns the exit status. It may be called from
// other programs; it neither exits nor touches anything but the descriptors and the node.
func Run(e *Env) int {
	if len(e.Args) == 0 {
		e.Args = []string{"sendmail"}
	}
	o, f := ParseArgs(e.Args[0], e.Args[1:])
	if f == nil {
		if err := run(e, o); err != nil {
			f = asFault(err, "submitting")
		}
	}
	if f == nil {
		return ExOK
	}
	if o == nil || !o.Quiet {
		text := "sendmail: error: " + f.Text + "\n"
		if f.Hint != "" {
			text += "hint: " + f.Hint + "\n"
		}
		writeFD(e.Stderr, []byte(text))
	}
	return f.Code
}

func run(e *Env, o *Options) error {
	switch o.Mode {
	case ModeNothing:
		return nil
	case ModeVersion:
		return writeFD(e.Stdout, []byte(Version+"\n"))
	case ModeHelp:
		return writeFD(e.Stdout, []byte(usage))
	}
	node, f := FindNode(o.Home, e.Getenv)
	if f != nil {
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
		rcpts, err := argRecipients(o)
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

// argRecipients reads the recipients in argv.
func argRecipients(o *Options) ([]Recipient, error) {
	var out []Recipient
	for _, a := range o.Args {
		if controls(a) {
			return nil, fault(ExUsage, "recipient "+show(a)+" contains a control character")
		}
		list, err := ParseList(a)
		if err == nil && len(list) == 0 {
			err = fault(ExUsage, "recipient "+show(a)+" is empty")
		}
		if err != nil {
			return nil, fault(ExUsage, err.Error())
		}
		for _, r := range list {
			out = append(out, Recipient{Addr: r})
		}
	}
	return out, nil
}

// message reads one message from stdin and submits it.
func message(e *Env, o *Options, node *Node) error {
	m := &Mail{Owner: !o.HasSender, Sender: o.Sender, Ret: o.Ret, EnvID: o.EnvID, Body: o.Body, Proto: o.Proto}
	var err error
	if m.Recipients, err = argRecipients(o); err != nil {
		return err
	}
	if len(m.Recipients) == 0 && !o.Extract {
		return &Fault{Code: ExUsage, Text: "no recipients", Hint: "name them as arguments, or use -t to read them from the header"}
	}
	in := &input{fd: e.Stdin, dots: !o.IgnoreDots}
	if o.Mode == ModeRmail {
		for i := range m.Recipients {
			m.Recipients[i].Addr = Unbang(m.Recipients[i].Addr)
		}
		from, found, err := readFrom(in)
		if err != nil {
			return err
		}
		if found && !o.HasSender {
			if from != "" {
				if err := CheckAddr(from); err != nil {
					return err
				}
			}
			m.Owner, m.Sender = false, from
		}
	}
	h, err := readHeader(in)
	if err != nil {
		return err
	}
	if o.Extract {
		list, err := h.recipients()
		if err != nil {
			return err
		}
		for _, a := range list {
			m.Recipients = append(m.Recipients, Recipient{Addr: a})
		}
	}
	m.Recipients = unique(m.Recipients)
	if len(m.Recipients) == 0 {
		return fault(ExDataErr, "no recipients in the header")
	}
	for i := range m.Recipients {
		m.Recipients[i].Notify = o.Notify
	}
	w := newWriter(node, m)
	defer w.abort()
	if err := h.write(w, newRepair(e, o, node)); err != nil {
		return err
	}
	if h.hasRest {
		if err := w.line(h.rest); err != nil {
			return err
		}
	}
	if err := in.body(w, false); err != nil {
		return err
	}
	_, err = w.finish()
	return err
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
		for i := max(domainOf(r.Addr), 0); i < len(key) && domainOf(r.Addr) >= 0; i++ {
			key[i] = lower(key[i])
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			out = append(out, r)
		}
	}
	return out
}

// newRepair prepares the values for missing header fields; each is made only when needed.
func newRepair(e *Env, o *Options, node *Node) *repair {
	domain := ""
	r := &repair{gateway: o.Gateway}
	r.domain = func() string {
		if domain == "" {
			domain = node.Domain()
		}
		return domain
	}
	at := now()
	r.date = func() string { return rfc5322(at/1e6, localOffset(at/1e6, e.Getenv)) }
	r.id = func() string { return "<" + messageID(at) + "@" + r.domain() + ">" }
	r.from = func() string { return from(e, o, r.domain) }
	return r
}

// messageID is the left side of a Message-Id: time and chance.
func messageID(at int64) string {
	var b [16]byte
	for i := 0; i < 8; i++ {
		b[i] = byte(at >> (56 - 8*i))
	}
	if random(b[8:]) != nil {
		// No random device in a chroot: the process makes up for it within one microsecond.
		for i, pid := 8, syscall.Getpid(); i < 16; i++ {
			b[i], pid = byte(pid), pid>>8
		}
	}
	return base32(b[2:])
}

// from is the value of a missing From field: -F, $NAME or the gecos entry, and the sender.
func from(e *Env, o *Options, domain func() string) string {
	user := lookupUser(syscall.Getuid())
	addr := o.Sender
	if addr == "" && o.HasSender {
		addr = "MAILER-DAEMON"
	}
	for _, key := range [...]string{"LOGNAME", "USER"} {
		if addr == "" && user.name == "" {
			if v, _ := e.Getenv(key); v != "" && CheckAddr(v) == nil {
				addr = v
			}
		}
	}
	if addr == "" {
		addr = user.name
	}
	if addr == "" {
		addr = "uid" + itoa(syscall.Getuid())
	}
	if domainOf(addr) < 0 {
		addr += "@" + domain()
	}
	name := o.FullName
	if name == "" {
		name, _ = e.Getenv("NAME")
	}
	if name == "" && !o.HasSender {
		name = user.fullName()
	}
	if name = phrase(name); name == "" {
		return addr
	}
	return name + " <" + addr + ">"
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
