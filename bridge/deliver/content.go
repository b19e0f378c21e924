package deliver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"mochila/internal/envelope"
)

// SmallContent is the size up to which content is read into memory once, checked, and sent from there.
const SmallContent = 256 << 10

// errCorrupt says that stored content is not what its envelope promises.
var errCorrupt = errors.New("stored content does not match its checksum")

// checked reads content to its end and fails there, with errCorrupt, unless it is what the envelope promises.
type checked struct {
	r   io.Reader
	h   *envelope.Summer
	n   int64
	env *envelope.Envelope
}

func newChecked(r io.Reader, env *envelope.Envelope) *checked {
	return &checked{r: r, h: envelope.NewSummer(), env: env}
}

// Read reads the content, and at its end compares it.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	if c.n > c.env.Size {
		return n, fmt.Errorf("%w: longer than %d bytes", errCorrupt, c.env.Size)
	}
	if err == io.EOF {
		switch {
		case c.n != c.env.Size:
			err = fmt.Errorf("%w: %d bytes, not %d", errCorrupt, c.n, c.env.Size)
		case c.h.Sum() != c.env.Sum:
			err = errCorrupt
		}
	}
	return n, err
}

// content is the message of one Deliver call.
type content struct {
	m       *Message
	small   []byte // all of it, checked, when it is small
	inMem   bool
	eight   bool // bytes above 127 somewhere
	header8 bool // bytes above 127 in the header
}

// load reads small content into memory and learns what MAIL must say about it. With ask set, large content is read
// through once for that, but only when nobody has said whether it is 8-bit: who took the mail in does (bridge/accept.go).
func load(m *Message, ask bool) (*content, error) {
	c := &content{m: m}
	mail := m.Env.Mail
	r, err := m.Open()
	if err != nil {
		return nil, fmt.Errorf("open the content: %w", err)
	}
	defer r.Close()
	if m.Env.Size <= SmallContent {
		w := bytes.NewBuffer(make([]byte, 0, max(m.Env.Size, 0)+bytes.MinRead))
		if _, err := io.Copy(w, newChecked(r, m.Env)); err != nil {
			return nil, err
		}
		c.small, c.inMem = w.Bytes(), true
		c.header8, c.eight = scan8(c.small)
	} else if ask && (mail.SMTPUTF8 || mail.Body == "") {
		if err := c.survey(r); err != nil {
			return nil, err
		}
	}
	if h, e := scan8(m.Header); h || e {
		c.eight, c.header8 = true, c.header8 || h
	}
	if mail.Body == "8BITMIME" || mail.Body == "BINARYMIME" {
		c.eight = true
	}
	return c, nil
}

// survey reads large content until it is clear whether header and body hold 8-bit bytes.
func (c *content) survey(r io.Reader) error {
	buf := make([]byte, 64<<10)
	inBody := false
	tail := [3]byte{0, '\r', '\n'} // the end of the block before, for a header that ends across two
	for {
		n, err := io.ReadFull(r, buf[3:])
		block := buf[3 : 3+n]
		if !inBody {
			copy(buf, tail[:])
			end := headerEnd(buf[:3+n])
			if end >= 0 {
				inBody = true
				c.header8 = c.header8 || !envelope.SevenBit(buf[3:max(end, 3)])
			} else {
				c.header8 = c.header8 || !envelope.SevenBit(block)
			}
			copy(tail[:], buf[n:])
		}
		c.eight = c.eight || !envelope.SevenBit(block)
		if c.eight && inBody {
			return nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the content: %w", err)
		}
	}
}

// headerEnd is the offset after the empty line that ends a header, -1 when it is not in b.
func headerEnd(b []byte) int {
	for i := 0; ; {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return -1
		}
		i += j + 1
		rest := b[i:]
		if len(rest) > 0 && rest[0] == '\n' {
			return i + 1
		}
		if len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n' {
			return i + 2
		}
	}
}

// scan8 reports bytes above 127 in the header of b and in all of it.
func scan8(b []byte) (header, all bool) {
	if envelope.SevenBit(b) {
		return false, false
	}
	h := b
	if end := headerEnd(b); end >= 0 {
		h = b[:end]
	}
	if bytes.HasPrefix(b, []byte("\r\n")) || bytes.HasPrefix(b, []byte("\n")) {
		h = nil
	}
	return !envelope.SevenBit(h), true
}

// open returns the content from its start, checked.
func (c *content) open() (io.ReadCloser, error) {
	if c.inMem {
		return io.NopCloser(bytes.NewReader(c.small)), nil
	}
	r, err := c.m.Open()
	if err != nil {
		return nil, fmt.Errorf("open the content: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{newChecked(r, c.m.Env), r}, nil
}

// dotWriter turns content into what follows DATA: dots stuffed, every line ended by CRLF. Stored content is
// canonical, so that is all there is to do; what is not (a bare CR that a local program wrote) leaves in a form that no
// server can take for the end of the mail: a bare LF becomes CRLF, CRs right before CRLF are dropped, other bare CRs
// become a space (as Postfix does since 3.9). NULs and lines of any length go out as they are: to break or encode
// them would break signatures, and a server that minds says so.
type dotWriter struct {
	w   *bufio.Writer
	mid bool // inside a line
	cr  bool // CRs are held back until it is clear what follows
}

// Write passes content on as DATA wants it: dots doubled, line ends true.
func (d *dotWriter) Write(p []byte) (int, error) {
	n := len(p)
	clean := true // nothing in p has been found yet that is no clean line
	for len(p) > 0 {
		if clean && !d.cr && (d.mid || p[0] != '.') {
			k := envelope.CleanLines(p)
			if clean = k > 0; clean {
				d.w.Write(p[:k])
				d.mid = false
				p = p[k:]
				continue
			}
		}
		if d.cr {
			switch p[0] {
			case '\r':
				p = p[1:]
				continue
			case '\n':
				d.cr, d.mid = false, false
				d.w.WriteString("\r\n")
				p = p[1:]
				continue
			}
			d.cr, d.mid = false, true
			d.w.WriteByte(' ')
		}
		if !d.mid && p[0] == '.' {
			d.w.WriteByte('.')
		}
		line := p
		lf := bytes.IndexByte(p, '\n')
		if lf >= 0 {
			line = p[:lf]
		}
		cr := bytes.IndexByte(line, '\r')
		switch {
		case cr >= 0 && cr != lf-1: // bare, or the last byte we have
			d.w.Write(p[:cr])
			d.mid = d.mid || cr > 0
			d.cr = true
			p = p[cr+1:]
		case lf < 0:
			d.w.Write(p)
			d.mid = true
			p = nil
		case cr < 0:
			d.w.Write(line)
			d.w.WriteString("\r\n")
			d.mid = false
			p = p[lf+1:]
		default:
			d.w.Write(p[:lf+1])
			d.mid = false
			p = p[lf+1:]
		}
	}
	// Only the last error counts: bufio.Writer keeps the first one it meets.
	_, err := d.w.Write(nil)
	return n, err
}

// end completes the last line and writes the final dot, without flushing it.
func (d *dotWriter) end() {
	if d.cr || d.mid {
		d.w.WriteString("\r\n")
	}
	d.w.WriteString(".\r\n")
	d.cr, d.mid = false, false
}

// lfWriter turns canonical lines into the LF lines of local files. Bare CRs stay.
type lfWriter struct {
	w   *bufio.Writer
	mid bool // inside a line
	cr  bool // held back
}

// Write passes content on with LF for CRLF.
func (l *lfWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if l.cr {
			if p[0] != '\n' {
				l.w.WriteByte('\r')
				l.mid = true
			}
			l.cr = false
		}
		i := bytes.IndexByte(p, '\r')
		if i < 0 {
			l.w.Write(p)
			l.mid = p[len(p)-1] != '\n'
			break
		}
		if i > 0 {
			l.w.Write(p[:i])
			l.mid = p[i-1] != '\n'
		}
		l.cr = true
		p = p[i+1:]
	}
	_, err := l.w.Write(nil)
	return n, err
}

// end completes the last line and flushes.
func (l *lfWriter) end() error {
	if l.cr || l.mid {
		l.w.WriteByte('\n')
	}
	return l.w.Flush()
}
