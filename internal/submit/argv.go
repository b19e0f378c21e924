package submit

// Mode is what one call of the command is for.
type Mode uint8

// The modes, with the flags and names that choose them.
const (
	ModeSubmit  Mode = iota // -bm: one message on stdin
	ModeSMTP                // -bs: an SMTP dialog on stdin and stdout
	ModeBatch               // -bS, rsmtp: SMTP commands on stdin, no replies
	ModeRmail               // rmail: one message with From_ lines, recipients as arguments
	ModeList                // -bp, mailq
	ModeFlush               // -q, runq
	ModeVerify              // -bv
	ModeNothing             // -bi, newaliases: there is nothing to do
	ModeDaemon              // -bd, -bD
	ModeVersion             // --version
	ModeHelp                // --help
)

// Options is a parsed command line.
type Options struct {
	Mode       Mode
	Home       string // --home
	Extract    bool   // -t: recipients from the header, too
	IgnoreDots bool   // -i: a lone "." is text
	HasSender  bool   // -f or -r was given
	Sender     string // wire text; "" with HasSender is the null sender
	FullName   string // -F
	Notify     uint8  // -N as the bits of envelope.Notify
	Ret        string // -R: "FULL" or "HDRS"
	EnvID      string // -V as xtext
	Body       string // -B: "7BIT", "8BITMIME" or "BINARYMIME"
	Gateway    bool   // -G: mail from elsewhere, the header is not completed
	Quiet      bool   // -oeq: no message on stderr
	Proto      string // -oMr, -p: how the mail came, when it did not start here
	Site       string // -qRsite
	Foreground bool   // -bD
	Args       []string
}

// flags that take a value, attached or as the next argument; those in bare take none; in loose only an attached one.
const (
	valued = "ABCDFLNORVXbefhopr"
	bare   = "GIUcimnstvx"
	loose  = "qd"
)

// eximArgs are the -oM options that Exim lets stand apart from their value.
var eximArgs = [...]string{"Ma", "Maa", "Mai", "Mas", "Mi", "Mm", "Mr", "Ms", "Mt"}

// parse reads a command line of sendmail(1). name is argv[0] and chooses the defaults of mailq, newaliases, rmail,
// rsmtp and runq. As everywhere, flags end at the first argument that is not one, or at "--". Flags that only tune
// other mail systems are accepted; unknown ones are a fault with ExUsage.
func (o *Options) parse(name string, args []string) *Fault {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			name = name[i+1:]
			break
		}
	}
	switch name {
	case "mailq":
		o.Mode = ModeList
	case "newaliases":
		o.Mode = ModeNothing
	case "rmail":
		o.Mode, o.IgnoreDots, o.Gateway, o.Proto = ModeRmail, true, true, "rmail"
	case "rsmtp", "bsmtp":
		o.Mode, o.Proto = ModeBatch, "bsmtp"
	case "runq":
		o.Mode = ModeFlush
	}
	for len(args) > 0 {
		a := args[0]
		if len(a) < 2 || a[0] != '-' {
			break
		}
		args = args[1:]
		if a == "--" {
			break
		}
		var f *Fault
		if a[1] == '-' {
			args, f = o.long(a[2:], args)
		} else {
			args, f = o.short(a, args)
		}
		if f != nil {
			f.Hint = "sendmail --help"
			return f
		}
	}
	o.Args = args
	return nil
}

func (o *Options) long(flag string, args []string) ([]string, *Fault) {
	key, value, has := cut(flag, '=')
	switch key {
	case "home":
		if !has {
			if len(args) == 0 {
				return nil, fault(ExUsage, "flag --home needs a value")
			}
			value, args = args[0], args[1:]
		}
		o.Home = value
		return args, nil
	case "version":
		o.Mode = ModeVersion
		return args, nil
	case "help":
		o.Mode = ModeHelp
		return args, nil
	}
	return nil, fault(ExUsage, "unknown flag "+show("--"+flag))
}

// short reads one argument of joined one-letter flags.
func (o *Options) short(a string, args []string) ([]string, *Fault) {
	for i := 1; i < len(a); i++ {
		c := a[i]
		if indexByte([]byte(bare), c) >= 0 {
			o.bare(c)
			continue
		}
		value := a[i+1:]
		if indexByte([]byte(loose), c) >= 0 {
			if c == 'q' {
				o.flush(value)
			}
			return args, nil
		}
		if indexByte([]byte(valued), c) < 0 {
			return nil, fault(ExUsage, "unknown flag "+show("-"+string(rune(c))))
		}
		if value == "" {
			if len(args) == 0 {
				return nil, fault(ExUsage, "flag -"+string(rune(c))+" needs a value")
			}
			value, args = args[0], args[1:]
		}
		if c == 'o' {
			return o.option(value, args)
		}
		return args, o.value(c, value)
	}
	return args, nil
}

func (o *Options) bare(c byte) {
	switch c {
	case 't':
		o.Extract = true
	case 'i':
		o.IgnoreDots = true
	case 'G':
		o.Gateway = true
	case 'I':
		o.Mode = ModeNothing
	}
}

// flush reads what follows -q: nothing, a period, or [!]R, S or I with a text that jobs must match. Only R narrows
// what is tried; the others try everything, which is more and never less than was asked.
func (o *Options) flush(v string) {
	if o.Mode == ModeSubmit {
		o.Mode = ModeFlush
	}
	if len(v) > 1 && v[0] == 'R' {
		o.Site = v[1:]
	}
}

// option reads what follows -o. Everything unknown there is somebody else's tuning.
func (o *Options) option(v string, args []string) ([]string, *Fault) {
	switch {
	case v == "i":
		o.IgnoreDots = true
	case v == "eq":
		o.Quiet = true
	case v == "t":
		o.Extract = true
	case hasPrefix(v, "M"):
		for _, e := range eximArgs {
			if v != e {
				continue
			}
			if len(args) == 0 {
				return nil, fault(ExUsage, "flag -o"+v+" needs a value")
			}
			v, args = v+args[0], args[1:]
			if e == "Mr" {
				return args, o.proto(v[2:])
			}
			return args, nil
		}
		if hasPrefix(v, "Mr") {
			return args, o.proto(v[2:])
		}
	}
	return args, nil
}

func (o *Options) proto(v string) *Fault {
	v, _, _ = cut(v, ':')
	if len(v) > 32 || !printable(v) || len(fields(v)) != 1 {
		return fault(ExUsage, "bad protocol name "+show(v))
	}
	o.Proto = v
	return nil
}

func (o *Options) value(c byte, v string) *Fault {
	switch c {
	case 'f', 'r':
		return o.sender(v)
	case 'F':
		o.FullName = v
	case 'b':
		return o.mode(v)
	case 'N':
		return o.notify(v)
	case 'p':
		return o.proto(v)
	case 'e':
		o.Quiet = v == "q"
	case 'R':
		switch {
		case equalFold(v, "full"):
			o.Ret = "FULL"
		case equalFold(v, "hdrs"):
			o.Ret = "HDRS"
		default:
			return fault(ExUsage, "flag -R is full or hdrs, not "+show(v))
		}
	case 'V':
		if !printable(v) || v == "" || len(v) > 100 {
			return fault(ExUsage, "flag -V takes 1 to 100 printable characters, not "+show(v))
		}
		o.EnvID = xtext(v)
	case 'B':
		o.Body = upper(v)
		if o.Body != "7BIT" && o.Body != "8BITMIME" && o.Body != "BINARYMIME" {
			return fault(ExUsage, "flag -B is 7BIT, 8BITMIME or BINARYMIME, not "+show(v))
		}
	}
	return nil
}

func (o *Options) mode(v string) *Fault {
	switch v {
	case "m":
		o.Mode = ModeSubmit
	case "s":
		o.Mode = ModeSMTP
	case "S":
		o.Mode, o.Proto = ModeBatch, "bsmtp"
	case "p":
		o.Mode = ModeList
	case "v":
		o.Mode = ModeVerify
	case "i":
		o.Mode = ModeNothing
	case "d", "D":
		o.Mode, o.Foreground = ModeDaemon, v == "D"
	default:
		return fault(ExUsage, "unknown mode "+show("-b"+v))
	}
	return nil
}

func (o *Options) sender(v string) *Fault {
	o.HasSender = true
	if controls(v) {
		return fault(ExUsage, "sender "+show(v)+" contains a control character")
	}
	if v = trim(v); v == "" || v == "<>" {
		o.Sender = ""
		return nil
	}
	list, err := ParseList(v)
	if err != nil {
		return fault(ExUsage, "flag -f: "+err.Error())
	}
	if len(list) != 1 {
		return fault(ExUsage, "flag -f takes one address, not "+show(v))
	}
	o.Sender = list[0]
	return nil
}

// notify reads the value of -N.
func (o *Options) notify(v string) *Fault {
	bits, ok := notifyBits(v)
	if !ok {
		return fault(ExUsage, "flag -N is never, or success, failure and delay with commas, not "+show(v))
	}
	o.Notify = bits
	return nil
}

// notifyBits reads the list that -N and NOTIFY= share (RFC 3461 section 4.1).
func notifyBits(v string) (bits uint8, ok bool) {
	for more := true; more; {
		var word string
		word, v, more = cut(v, ',')
		switch {
		case equalFold(trim(word), "never"):
			bits |= notifyNever
		case equalFold(trim(word), "success"):
			bits |= notifySuccess
		case equalFold(trim(word), "failure"):
			bits |= notifyFailure
		case equalFold(trim(word), "delay"):
			bits |= notifyDelay
		default:
			return 0, false
		}
	}
	return bits, bits&notifyNever == 0 || bits == notifyNever
}

// xtext encodes text for ENVID (RFC 3461 section 4).
func xtext(s string) string {
	const hex = "0123456789ABCDEF"
	var b []byte
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c > '~' || c == '+' || c == '=' {
			b = append(b, '+', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
