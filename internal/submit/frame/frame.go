// Package frame is the daemon's side of the submission format (docs/submission.md): it reads the frames that package
// submit writes, from the submission socket and from the maildrop, and writes the replies. What it reads comes from
// any local user: every length is checked before it is believed, and only canonical content passes.
package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"time"
	"unicode/utf8"

	"mochila/internal/envelope"
	"mochila/internal/submit"
)

// ErrFormat is wrapped by errors about bytes that are no frame, an incomplete one, or one of another version.
var ErrFormat = errors.New("bad submission")

// ErrTooBig is wrapped when the content is longer than the limit.
var ErrTooBig = errors.New("message too big")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, a...))
}

// Request is a frame without its content.
type Request struct {
	Verb  submit.Verb
	Mail  *envelope.Mail // for VerbSubmit complete but for Client, of which only Proto is set
	Owner bool           // Mail.Sender is to be the login name of the submitter
	Size  int64          // declared content bytes, 0 when unknown
	Site  string         // of VerbFlush: the domain to try, "" for all
}

// Reader reads one frame.
type Reader struct {
	r   *bufio.Reader
	sum hash.Hash64
}

// NewReader reads a frame from r, and nothing behind it.
func NewReader(r *bufio.Reader) *Reader { return &Reader{r: r, sum: fnv.New64a()} }

func (r *Reader) full(b []byte) error {
	if _, err := io.ReadFull(r.r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return bad("it is cut off")
		}
		return fmt.Errorf("reading a submission: %w", err)
	}
	r.sum.Write(b)
	return nil
}

// Request reads up to the content.
func (r *Reader) Request() (*Request, error) {
	var head [10]byte
	if err := r.full(head[:]); err != nil {
		return nil, err
	}
	if string(head[:4]) != submit.Magic {
		return nil, bad("the magic is missing")
	}
	if head[4] != submit.FrameVer {
		return nil, bad("version %d is not known here", head[4])
	}
	q := &Request{Verb: submit.Verb(head[5])}
	if q.Verb < submit.VerbSubmit || q.Verb > submit.VerbJobs {
		return nil, bad("verb %d is not known here", head[5])
	}
	n := binary.BigEndian.Uint32(head[6:])
	if n > submit.MaxRecord {
		return nil, bad("a record of %d bytes, more than %d", n, submit.MaxRecord)
	}
	record, err := r.record(int(n))
	if err != nil {
		return nil, err
	}
	if err := q.parse(record); err != nil {
		return nil, err
	}
	return q, nil
}

// record reads in steps: memory follows the bytes that come, not the length that is claimed.
func (r *Reader) record(n int) ([]byte, error) {
	var b []byte
	for len(b) < n {
		k := min(n-len(b), 64<<10)
		b = append(b, make([]byte, k)...)
		if err := r.full(b[len(b)-k:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (q *Request) parse(b []byte) error {
	m := &envelope.Mail{}
	q.Mail = m
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case submit.FieldSender:
			m.Sender = d.String()
		case submit.FieldRecipient:
			r, err := recipient(d.List())
			if err != nil {
				return fmt.Errorf("%w: recipient: %w", ErrFormat, err)
			}
			m.Recipients = append(m.Recipients, r)
			if len(m.Recipients) > envelope.MaxRecipients {
				return bad("more than %d recipients", envelope.MaxRecipients)
			}
		case submit.FieldRet:
			m.Ret = d.String()
		case submit.FieldEnvID:
			m.EnvID = d.String()
		case submit.FieldBody:
			m.Body = d.String()
		case submit.FieldSMTPUTF8:
			m.SMTPUTF8 = d.Bool()
		case submit.FieldRequireTLS:
			m.RequireTLS = d.Bool()
		case submit.FieldBy:
			by, err := deadline(d.V)
			if err != nil {
				return fmt.Errorf("%w: deadline: %w", ErrFormat, err)
			}
			m.By = by
		case submit.FieldAuth:
			s := string(d.V)
			m.Auth = &s
		case submit.FieldOwner:
			q.Owner = d.Bool()
		case submit.FieldProto:
			m.Client.Proto = d.String()
		case submit.FieldSize:
			q.Size = int64(d.Max(1 << 60))
		case submit.FieldSite:
			q.Site = d.String()
		default:
			d.Unknown()
		}
	}
	if d.Err != nil {
		return fmt.Errorf("%w: record: %w", ErrFormat, d.Err)
	}
	return q.check()
}

func recipient(b []byte) (r envelope.Recipient, err error) {
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case submit.FieldAddr:
			r.Addr = d.String()
		case submit.FieldNotify:
			r.Notify = envelope.Notify(d.Max(0xff))
		case submit.FieldORcpt:
			r.ORcpt = d.String()
		default:
			d.Unknown()
		}
	}
	return r, d.Err
}

func deadline(b []byte) (*envelope.By, error) {
	by := &envelope.By{}
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case submit.FieldDeadline:
			by.Deadline = d.Time()
		case submit.FieldReturn:
			by.Return = d.Bool()
		case submit.FieldTrace:
			by.Trace = d.Bool()
		default:
			d.Unknown()
		}
	}
	if d.Err == nil && by.Deadline.IsZero() {
		d.Fail("no time")
	}
	return by, d.Err
}

// check applies to a record what the listener applies to SMTP commands.
func (q *Request) check() error {
	m := q.Mail
	if q.Owner && m.Sender != "" {
		return bad("a sender, and the owner as sender")
	}
	if len(m.Client.Proto) > 32 || !word(m.Client.Proto) || len(q.Site) > 255 || !word(q.Site) {
		return bad("a protocol or site name is malformed")
	}
	for _, s := range []string{m.EnvID, auth(m)} {
		if !word(s) {
			return bad("a parameter is malformed")
		}
	}
	if m.Sender != "" {
		if err := submit.CheckAddr(m.Sender); err != nil {
			return bad("sender: %v", err)
		}
		m.SMTPUTF8 = m.SMTPUTF8 || !ascii(m.Sender)
	}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		if err := submit.CheckAddr(r.Addr); err != nil {
			return bad("recipient: %v", err)
		}
		if !word(r.ORcpt) {
			return bad("an ORCPT is malformed")
		}
		m.SMTPUTF8 = m.SMTPUTF8 || !ascii(r.Addr)
	}
	switch q.Verb {
	case submit.VerbSubmit:
		if err := m.Check(); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
	case submit.VerbVerify:
		if len(m.Recipients) == 0 {
			return bad("nothing to verify")
		}
	}
	return nil
}

func auth(m *envelope.Mail) string {
	if m.Auth == nil {
		return ""
	}
	return *m.Auth
}

// word reports whether s can be a parameter of SMTP: no blanks, no controls, ASCII.
func word(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Content is the message behind a VerbSubmit request. Read returns io.EOF only after the whole frame was there and
// its sums were right; until then nothing that was read may count.
type Content struct {
	// Touch, when set, is called before each piece is read: the place for a deadline.
	Touch func(now time.Time)
	// Last, when set, is asked after the last byte: the place to refuse what follows it.
	Last func() error

	r     *Reader
	limit int64
	size  int64
	left  uint32 // of the open chunk
	last  byte   // last byte read
	bin   bool
	err   error
}

// Content reads what follows the request, up to limit bytes.
func (r *Reader) Content(limit int64) *Content { return &Content{r: r, limit: limit} }

// Size is how many bytes were read.
func (c *Content) Size() int64 { return c.size }

// Binary reports, after io.EOF, whether the content holds NUL or a CR that ends no line: what only BODY=BINARYMIME
// may carry (RFC 3030).
func (c *Content) Binary() bool { return c.bin }

// Read implements io.Reader.
func (c *Content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.read(p)
	c.err = err
	return n, err
}

func (c *Content) read(p []byte) (int, error) {
	if c.Touch != nil {
		c.Touch(time.Now())
	}
	if c.left == 0 {
		var b [4]byte
		if err := c.r.full(b[:]); err != nil {
			return 0, err
		}
		if c.left = binary.BigEndian.Uint32(b[:]); c.left == 0 {
			return 0, c.end()
		}
		if c.left > submit.MaxChunk {
			return 0, bad("a chunk of %d bytes, more than %d", c.left, submit.MaxChunk)
		}
		if c.size+int64(c.left) > c.limit {
			return 0, fmt.Errorf("%w: more than %d bytes", ErrTooBig, c.limit)
		}
	}
	p = p[:min(len(p), int(c.left))]
	n, err := c.r.r.Read(p)
	c.r.sum.Write(p[:n])
	c.left -= uint32(n)
	c.size += int64(n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return n, bad("it is cut off")
		}
		return n, fmt.Errorf("reading a submission: %w", err)
	}
	return n, c.scan(p[:n])
}

// scan refuses lines that end in a bare LF: they would smuggle (RFC 5321 section 2.3.8).
func (c *Content) scan(p []byte) error {
	last := c.last
	for _, b := range p {
		switch {
		case b == '\n' && last != '\r':
			return bad("a line ends without CR")
		case last == '\r' && b != '\n', b == 0:
			c.bin = true
		}
		last = b
	}
	c.last = last
	return nil
}

func (c *Content) end() error {
	var b [8]byte
	if err := c.r.full(b[:]); err != nil {
		return err
	}
	if n := binary.BigEndian.Uint64(b[:]); n != uint64(c.size) {
		return bad("%d bytes of content, but it says %d", c.size, n)
	}
	want := c.r.sum.Sum64()
	if err := c.r.full(b[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(b[:]) != want {
		return bad("the sum is wrong")
	}
	if c.size > 0 && c.last != '\n' {
		return bad("the last line does not end")
	}
	if c.Last != nil {
		if err := c.Last(); err != nil {
			return err
		}
	}
	return io.EOF
}
