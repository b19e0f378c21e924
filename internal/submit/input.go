package submit

import "syscall"

// input reads a message or a batch from a file descriptor, line by line or in bulk. Lines end in LF or CRLF; a CR
// elsewhere and NUL are text.
type input struct {
	fd   int
	buf  []byte
	r, w int
	eof  bool // read returned 0
	dots bool // a line "." ends the message
	done bool // the message has ended
	keep bool // what was read stays in buf, at its place: the header is being read
	// dotted says that it ended with a ".", not with the input; lines counts those that body took.
	dotted bool
	lines  int
	undo   undoer // of a transfer encoding; nil: none
}

const inputBuffer = 16 << 10

// fill reads more, behind what is left. The buffer grows when it is full.
func (in *input) fill() error {
	if in.eof {
		return nil
	}
	if in.buf == nil {
		in.buf = make([]byte, inputBuffer)
	}
	if in.r > 0 && !in.keep && (in.r == in.w || in.w == len(in.buf)) {
		copy(in.buf, in.buf[in.r:in.w])
		in.w -= in.r
		in.r = 0
	}
	if in.w == len(in.buf) {
		b := make([]byte, 2*len(in.buf))
		copy(b, in.buf[:in.w])
		in.buf = b
	}
	n, err := readFD(in.fd, in.buf[in.w:])
	if err != nil {
		if err == syscall.EBADF || err == syscall.EISDIR {
			return fault(ExNoInput, "standard input cannot be read: "+err.Error())
		}
		return fault(ExIOErr, "reading standard input: "+err.Error())
	}
	in.w += n
	in.eof = n == 0
	if in.undo != nil {
		return in.decode(in.w - n)
	}
	return nil
}

// decode undoes the transfer encoding of what lies in the buffer from a place on.
func (in *input) decode(from int) error {
	if in.undo == nil {
		return nil
	}
	n, ok := in.undo.undo(in.buf[from:in.w])
	if !ok {
		return fault(ExDataErr, "the transfer encoding is broken")
	}
	in.w = from + n
	return nil
}

// line returns the next line without its end, and false at the end of the message. The line is valid until the next
// call. One longer than limit is a fault.
func (in *input) line(limit int) ([]byte, bool, error) {
	if in.done {
		return nil, false, nil
	}
	for from := 0; ; {
		if n := indexByte(in.buf[in.r+from:in.w], '\n'); n >= 0 {
			l := in.buf[in.r : in.r+from+n]
			in.r += from + n + 1
			if len(l) > 0 && l[len(l)-1] == '\r' {
				l = l[:len(l)-1]
			}
			return in.ended(l)
		}
		from = in.w - in.r
		if from > limit {
			return nil, false, fault(ExDataErr, "a line has more than "+itoa(limit)+" bytes")
		}
		if in.eof {
			in.done = true
			l := in.buf[in.r:in.w]
			in.r = in.w
			if len(l) == 0 {
				return nil, false, nil
			}
			return in.ended(l)
		}
		if err := in.fill(); err != nil {
			return nil, false, err
		}
	}
}

func (in *input) ended(l []byte) ([]byte, bool, error) {
	if in.dots && len(l) == 1 && l[0] == '.' {
		in.done, in.dotted = true, true
		return nil, false, nil
	}
	return l, true, nil
}

// body sends the rest of the message to w with CRLF line ends. stuffed says that dots are doubled as in SMTP.
func (in *input) body(w *writer, stuffed bool) error {
	start := true // of a line
	for !in.done {
		b := in.buf[in.r:in.w]
		n := indexByte(b, '\n')
		switch {
		case n >= 0:
			l := b[:n]
			in.r += n + 1
			in.lines++
			if len(l) > 0 && l[len(l)-1] == '\r' {
				l = l[:len(l)-1]
			}
			if start && len(l) > 0 && l[0] == '.' {
				if in.dots && len(l) == 1 {
					in.done, in.dotted = true, true
					return nil
				}
				if stuffed {
					l = l[1:]
				}
			}
			if err := w.line(l); err != nil {
				return err
			}
			start = true
		case in.eof:
			in.done = true
			if in.dots && start && len(b) == 1 && b[0] == '.' {
				in.dotted = true
				return nil
			}
			in.r = in.w
			if start && len(b) == 0 {
				return nil
			}
			if start && stuffed && b[0] == '.' {
				b = b[1:]
			}
			return w.line(b)
		case len(b) > 0 && len(b) == len(in.buf):
			// A very long line goes in pieces; a CR at the end of one may belong to the line's end.
			keep := 0
			if b[len(b)-1] == '\r' {
				keep = 1
			}
			out := b[:len(b)-keep]
			if start && stuffed && out[0] == '.' {
				out = out[1:]
			}
			if err := w.write(out); err != nil {
				return err
			}
			in.r = in.w - keep
			start = false
		default:
			if err := in.fill(); err != nil {
				return err
			}
		}
	}
	return nil
}

// peek returns the next line without taking it.
func (in *input) peek(limit int) ([]byte, bool, error) {
	for !in.eof && indexByte(in.buf[in.r:in.w], '\n') < 0 && in.w-in.r <= limit {
		if err := in.fill(); err != nil {
			return nil, false, err
		}
	}
	b := in.buf[in.r:in.w]
	n := indexByte(b, '\n')
	if n < 0 {
		n = len(b)
	}
	return b[:n], n > 0 || len(b) > 0, nil
}
