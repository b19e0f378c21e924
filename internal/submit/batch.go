package submit

// maxCommand bounds one line of a batch: a path of MaxAddr bytes with every parameter.
const maxCommand = 8 << 10

// session is the state of a batch: SMTP commands without their replies (the BSMTP of BITNET, Exim's -bS, rsmtp).
// Lines end in LF or CRLF, QUIT may be missing, and there may be any number of transactions. Each is queued on its
// own; the first fault ends the batch, and nothing of the transaction it stands in is queued.
type session struct {
	in   *input
	opt  *Options
	node *Node
	line int
	mail *Mail // between MAIL and the end of DATA
	done int   // transactions queued
	out  writer
}

// batch runs a whole batch from stdin.
func batch(e *Env, o *Options, node *Node) error {
	s := &session{in: &input{fd: e.Stdin}, opt: o, node: node}
	if err := s.unwrap(); err != nil {
		return s.fault(asFault(err, "reading the batch"))
	}
	for {
		l, ok, err := s.in.line(maxCommand)
		if err != nil {
			return s.fault(asFault(err, "reading the batch"))
		}
		if !ok {
			if s.mail != nil {
				return s.fault(fault(ExDataErr, "the batch ends inside of a transaction"))
			}
			if s.done == 0 {
				return fault(ExDataErr, "the batch has no message")
			}
			return nil
		}
		s.line++
		quit, f := s.command(trim(string(l)))
		if f != nil {
			return s.fault(f)
		}
		if quit {
			if s.mail != nil {
				return s.fault(fault(ExDataErr, "QUIT inside of a transaction"))
			}
			return nil
		}
	}
}

func (s *session) fault(f *Fault) *Fault {
	f.Text = "batch line " + itoa(s.line) + ": " + f.Text + " (" + itoa(s.done) + " messages were queued before)"
	return f
}

func (s *session) command(l string) (quit bool, f *Fault) {
	verb, rest, _ := cut(l, ' ')
	switch upper(verb) {
	case "HELO", "EHLO", "LHLO", "RSET":
		s.mail = nil
	case "NOOP", "VERB", "TICK", "":
	case "QUIT":
		return true, nil
	case "MAIL":
		return false, s.from(rest)
	case "RCPT":
		return false, s.to(rest)
	case "DATA":
		return false, s.data()
	default:
		return false, fault(ExDataErr, "unknown command "+show(l))
	}
	return false, nil
}

// smtpPath splits "FROM:<path> PARAMS" behind MAIL and RCPT; the address keeps its quotes.
func smtpPath(rest, word string) (addr, params string, f *Fault) {
	bad := fault(ExDataErr, "cannot read "+show(rest))
	if !hasPrefixFold(rest, word) {
		return "", "", bad
	}
	rest = trim(rest[len(word):])
	if rest == "" {
		return "", "", bad
	}
	if rest[0] != '<' {
		addr, params, _ = cut(rest, ' ')
		return addr, params, nil
	}
	start := 1
	for i := 1; i < len(rest); {
		switch {
		case rest[i] == '>':
			return rest[start:i], trim(rest[i+1:]), nil
		case rest[i] == ':' && rest[start] == '@':
			start = i + 1 // a source route ends
		}
		j, ok := skipAtom(rest, i)
		if !ok {
			break
		}
		i = j
	}
	return "", "", bad
}

func (s *session) from(rest string) *Fault {
	if s.mail != nil {
		return fault(ExDataErr, "MAIL inside of a transaction")
	}
	addr, params, f := smtpPath(rest, "FROM:")
	if f != nil {
		return f
	}
	m := &Mail{Sender: addr, Proto: s.opt.Proto}
	if addr != "" {
		if err := CheckAddr(addr); err != nil {
			return asFault(err, "MAIL")
		}
	}
	for _, p := range fields(params) {
		key, value, has := cut(p, '=')
		if !m.param(upper(key), value, has) {
			return fault(ExDataErr, "MAIL parameter "+show(p)+" is unknown or wrong")
		}
	}
	s.mail = m
	return nil
}

// param takes one parameter of MAIL. SIZE is a hint that nobody needs here.
func (m *Mail) param(key, value string, has bool) bool {
	switch key {
	case "SIZE":
		_, ok := atoi(value)
		return ok
	case "BODY":
		m.Body = upper(value)
		return m.Body == "7BIT" || m.Body == "8BITMIME" || m.Body == "BINARYMIME"
	case "RET":
		m.Ret = upper(value)
		return m.Ret == "FULL" || m.Ret == "HDRS"
	case "ENVID":
		m.EnvID = value
		return value != "" && len(value) <= MaxAddr && printable(value)
	case "SMTPUTF8":
		m.SMTPUTF8 = true
		return !has
	case "REQUIRETLS":
		m.RequireTLS = true
		return !has
	case "AUTH":
		m.Auth = &value
		return value != "" && len(value) <= MaxAddr && printable(value)
	case "BY":
		return m.by(value)
	}
	return false
}

// by reads "seconds;mode", mode R or N, with T for trace (RFC 2852 section 4). What is late already with mode N is
// still taken: its sender only wants to be told.
func (m *Mail) by(v string) bool {
	sec, mode, ok := cut(v, ';')
	if !ok {
		return false
	}
	mode = upper(mode)
	b := &By{Return: hasPrefix(mode, "R")}
	if !b.Return && !hasPrefix(mode, "N") {
		return false
	}
	switch mode[1:] {
	case "T":
		b.Trace = true
	case "":
	default:
		return false
	}
	late := hasPrefix(sec, "-")
	if late || hasPrefix(sec, "+") {
		sec = sec[1:]
	}
	n, ok := atoi(sec)
	if !ok || n > 999999999 || b.Return && (late || n == 0) {
		return false
	}
	if late {
		n = -n
	}
	b.Deadline = now()/1000 + n*1000
	m.By = b
	return true
}

func (s *session) to(rest string) *Fault {
	if s.mail == nil {
		return fault(ExDataErr, "RCPT before MAIL")
	}
	addr, params, f := smtpPath(rest, "TO:")
	if f != nil {
		return f
	}
	if err := CheckAddr(addr); err != nil {
		return asFault(err, "RCPT")
	}
	r := Recipient{Addr: addr}
	for _, p := range fields(params) {
		key, value, _ := cut(p, '=')
		ok := false
		switch upper(key) {
		case "NOTIFY":
			r.Notify, ok = notifyBits(value)
		case "ORCPT":
			kind, text, typed := cut(value, ';')
			r.ORcpt, ok = value, typed && kind != "" && text != "" && len(value) <= MaxAddr && printable(value)
		}
		if !ok {
			return fault(ExDataErr, "RCPT parameter "+show(p)+" is unknown or wrong")
		}
	}
	s.mail.Recipients = append(s.mail.Recipients, r)
	return nil
}

// data takes one message. Its end must be there: a batch that was cut short is not a message.
func (s *session) data() *Fault {
	if s.mail == nil || len(s.mail.Recipients) == 0 {
		return fault(ExDataErr, "DATA without recipients")
	}
	w := &s.out
	w.begin(s.node, s.mail, w.buf)
	defer w.abort()
	s.in.dots = true
	err := s.in.body(w, true)
	if err != nil {
		return asFault(err, "reading the message")
	}
	if !s.in.dotted {
		return fault(ExDataErr, "the batch ends inside of a message")
	}
	s.line += s.in.lines
	s.in.dots, s.in.done, s.in.dotted, s.in.lines = false, false, false, 0
	if _, err := w.finish(); err != nil {
		return asFault(err, "submitting")
	}
	s.mail = nil
	s.done++
	return nil
}
