package submit

// knownExtensions are those that a batch may require (RFC 2442 section 3): what session understands, and what makes no
// difference to it.
var knownExtensions = [...]string{"8bitmime", "binarymime", "size", "dsn", "smtputf8", "deliverby", "requiretls", "auth", "pipelining",
	"enhancedstatuscodes"}

// unwrap takes the header off a batch that is inside of a mail (application/batch-SMTP, RFC 2442) and undoes its
// transfer encoding. A batch that begins with a command is left alone.
func (s *session) unwrap() error {
	l, ok, err := s.in.peek(maxCommand)
	if err != nil || !ok {
		return err
	}
	if _, colon := fieldName(l); colon < 0 && !separator(l) {
		return nil
	}
	var kind, encoding string
	last := &encoding // of the field that a continued line belongs to
	var other string
	for {
		l, ok, err := s.in.line(maxCommand)
		if err != nil {
			return err
		}
		if !ok {
			return fault(ExDataErr, "the mail ends before its batch")
		}
		s.line++
		if len(l) == 0 {
			break
		}
		if blank(l[0]) {
			*last += " " + trim(string(l))
			continue
		}
		name, colon := fieldName(l)
		other = ""
		last = &other
		if colon < 0 {
			continue // a separator of a mailbox
		}
		switch key := string(l[:name]); {
		case equalFold(key, "content-type"):
			kind, last = trim(string(l[colon+1:])), &kind
		case equalFold(key, "content-transfer-encoding"):
			encoding, last = trim(string(l[colon+1:])), &encoding
		}
	}
	if err := checkKind(kind); err != nil {
		return err
	}
	switch {
	case encoding == "" || equalFold(encoding, "7bit") || equalFold(encoding, "8bit") || equalFold(encoding, "binary"):
	case equalFold(encoding, "base64"):
		s.in.undo = &unbase64{}
	case equalFold(encoding, "quoted-printable"):
		s.in.undo = &unquote{}
	default:
		return fault(ExDataErr, "the batch has the unknown encoding "+show(encoding))
	}
	return s.in.decode(s.in.r)
}

// checkKind reads a Content-Type.
func checkKind(v string) error {
	kind, params, _ := cut(v, ';')
	if !equalFold(trim(kind), "application/batch-smtp") {
		return fault(ExDataErr, "the mail is no batch: its type is "+show(kind))
	}
	for more := params != ""; more; {
		var p string
		p, params, more = cut(params, ';')
		key, value, _ := cut(p, '=')
		if !equalFold(trim(key), "required-extensions") {
			continue
		}
		value = trim(value)
		if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		for more := true; more; {
			var word string
			word, value, more = cut(value, ',')
			if !knownExtension(trim(word)) {
				return fault(ExDataErr, "the batch needs the extension "+show(trim(word)))
			}
		}
	}
	return nil
}

func knownExtension(word string) bool {
	for _, k := range knownExtensions {
		if equalFold(word, k) {
			return true
		}
	}
	return word == ""
}

// undoer undoes a transfer encoding, in place and piece by piece. ok is false for input that is none.
type undoer interface {
	undo(b []byte) (n int, ok bool)
}

// unbase64 is RFC 2045 section 6.8. What follows the padding is ignored.
type unbase64 struct {
	bits  uint32
	count uint // bits that wait
	ended bool
}

func (d *unbase64) undo(b []byte) (n int, ok bool) {
	for _, c := range b {
		var v uint32
		switch {
		case d.ended || c == '\r' || c == '\n' || c == ' ' || c == '\t':
			continue
		case 'A' <= c && c <= 'Z':
			v = uint32(c - 'A')
		case 'a' <= c && c <= 'z':
			v = uint32(c-'a') + 26
		case '0' <= c && c <= '9':
			v = uint32(c-'0') + 52
		case c == '+':
			v = 62
		case c == '/':
			v = 63
		case c == '=':
			d.ended = true
			continue
		default:
			return n, false
		}
		d.bits = d.bits<<6 | v
		if d.count += 6; d.count >= 8 {
			d.count -= 8
			b[n] = byte(d.bits >> d.count)
			n++
		}
	}
	return n, true
}

// unquote is RFC 2045 section 6.7.
type unquote struct {
	state byte // 0: text; '=': after one; 'x': a digit has come; ' ': a soft line end, up to its LF
	high  byte
}

func (d *unquote) undo(b []byte) (n int, ok bool) {
	for _, c := range b {
		switch d.state {
		case 0:
			if c == '=' {
				d.state = '='
				continue
			}
			b[n] = c
			n++
		case '=':
			switch {
			case c == '\n':
				d.state = 0
			case c == '\r' || c == ' ' || c == '\t':
				d.state = ' '
			default:
				if d.high, ok = hexDigit(c); !ok {
					return n, false
				}
				d.state = 'x'
			}
		case 'x':
			low, ok := hexDigit(c)
			if !ok {
				return n, false
			}
			b[n] = d.high<<4 | low
			n++
			d.state = 0
		default:
			switch c {
			case '\n':
				d.state = 0
			case '\r', ' ', '\t':
			default:
				return n, false
			}
		}
	}
	return n, true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
