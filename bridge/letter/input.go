package letter

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
)

// Input is what a job takes from a mail besides its standard input.
type Input struct {
	Subject   string // decoded, one line
	MessageID string // with its angle brackets; "" when there is none that can be quoted
	Automatic bool   // no person sent it: nobody answers it
}

// ErrInput is wrapped by errors about a mail that no input can be taken from.
var ErrInput = errors.New("no input for the job")

// Bounds of what is looked at.
const (
	maxDepth  = 10
	maxParts  = 1000
	maxHeader = 1 << 20
)

// ReadInput copies the job's standard input out of a mail to w: the first attachment, or else its text (the first part
// that is text/plain, or else the first). The transfer encoding is taken off. The lines of text end in LF; the bytes of
// what came as base64 or binary stay as they are.
func ReadInput(r io.Reader, w io.Writer) (*Input, error) {
	s, ok := r.(io.ReadSeeker)
	if !ok {
		return nil, errors.New("a mail is read twice, and this source only once")
	}
	in, h, body, err := open(s)
	if err != nil {
		return nil, err
	}
	f := &finder{best: -1, kind: none}
	if err := f.walk(entity(h), body, 0); err != nil {
		return nil, err
	}
	if f.best < 0 {
		return nil, fmt.Errorf("%w: the mail has no part that could be one", ErrInput)
	}
	if _, err := s.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if _, h, body, err = open(s); err != nil {
		return nil, err
	}
	take := &finder{best: f.best, w: w}
	if err := take.walk(entity(h), body, 0); err != nil && !errors.Is(err, errTaken) {
		return nil, err
	}
	return in, nil
}

// open reads the header of a mail.
func open(r io.Reader) (*Input, mail.Header, io.Reader, error) {
	br := bufio.NewReaderSize(r, 32<<10)
	head, err := headerOf(br)
	if err != nil {
		return nil, nil, nil, err
	}
	m, err := mail.ReadMessage(bytes.NewReader(head))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: its header: %v", ErrInput, err)
	}
	in := &Input{}
	if s, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject")); err == nil {
		in.Subject = s
	}
	if id := strings.TrimSpace(m.Header.Get("Message-Id")); len(id) > 2 && len(id) < 900 && id[0] == '<' && id[len(id)-1] == '>' && ascii(id) && !strings.ContainsAny(id, " \t") {
		in.MessageID = id
	}
	if a := m.Header.Get("Auto-Submitted"); a != "" && !strings.EqualFold(strings.TrimSpace(a), "no") {
		in.Automatic = true
	}
	return in, m.Header, br, nil
}

// headerOf reads up to the empty line behind the header.
func headerOf(br *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := br.ReadSlice('\n')
		head = append(head, line...)
		switch {
		case len(head) > maxHeader:
			return nil, fmt.Errorf("%w: a header of more than %d bytes", ErrInput, maxHeader)
		case err == bufio.ErrBufferFull:
			continue
		case err == io.EOF:
			return append(head, "\r\n\r\n"...), nil // a header without a body
		case err != nil:
			return nil, err
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 && (len(line) == len(head) || bytes.HasSuffix(head[:len(head)-len(line)], []byte("\n"))) {
			return head, nil
		}
	}
}

// header is what matters of the header of a part.
type header struct {
	kind       string
	params     map[string]string
	encoding   string
	attachment bool
}

func entity(h interface{ Get(string) string }) header {
	e := header{kind: "text/plain", encoding: strings.ToLower(strings.TrimSpace(h.Get("Content-Transfer-Encoding")))}
	if kind, params, err := mime.ParseMediaType(h.Get("Content-Type")); err == nil {
		e.kind, e.params = kind, params
	}
	how, params, err := mime.ParseMediaType(h.Get("Content-Disposition"))
	if err == nil {
		e.attachment = how != "inline" || params["filename"] != ""
	}
	if e.params["name"] != "" {
		e.attachment = true
	}
	return e
}

// How well a part suits as input.
const (
	none = iota
	other
	plain
	attachment
)

// errTaken ends the second walk.
var errTaken = errors.New("taken")

// finder walks the parts of a mail: first to find the best, then to copy it.
type finder struct {
	n    int // parts seen
	best int // number of the part
	kind int
	w    io.Writer // of the second walk
}

func (f *finder) walk(h header, r io.Reader, depth int) error {
	if strings.HasPrefix(h.kind, "multipart/") && depth < maxDepth && h.params["boundary"] != "" {
		m := multipart.NewReader(r, h.params["boundary"])
		for {
			p, err := m.NextRawPart()
			switch {
			case err == io.EOF:
				return nil
			case err != nil:
				return fmt.Errorf("%w: its parts: %v", ErrInput, err)
			}
			if err := f.walk(entity(p.Header), p, depth+1); err != nil {
				return err
			}
			if f.kind == attachment && f.w == nil {
				return nil
			}
		}
	}
	n := f.n
	if f.n++; f.n > maxParts {
		return fmt.Errorf("%w: more than %d parts", ErrInput, maxParts)
	}
	if f.w != nil {
		if n != f.best {
			return nil
		}
		if err := h.copyTo(f.w, r); err != nil {
			return err
		}
		return errTaken
	}
	kind := other
	switch {
	case h.attachment:
		kind = attachment
	case h.kind == "text/plain":
		kind = plain
	}
	if kind > f.kind {
		f.kind, f.best = kind, n
	}
	return nil
}

// copyTo takes the encoding off.
func (h header) copyTo(w io.Writer, r io.Reader) error {
	switch h.encoding {
	case "base64":
		if _, err := io.Copy(w, base64.NewDecoder(base64.StdEncoding, r)); err != nil {
			return fmt.Errorf("%w: its base64: %v", ErrInput, err)
		}
		return nil
	case "binary":
		_, err := io.Copy(w, r)
		return err
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	case "", "7bit", "8bit":
	default:
		return fmt.Errorf("%w: the transfer encoding %q is not known", ErrInput, h.encoding)
	}
	l := &unix{w: bufio.NewWriter(w)}
	if _, err := io.Copy(l, r); err != nil {
		return fmt.Errorf("%w: %w", ErrInput, err)
	}
	return l.close()
}

// unix turns CRLF into LF.
type unix struct {
	w  *bufio.Writer
	cr bool // a CR is not written yet
}

func (u *unix) Write(p []byte) (int, error) {
	for _, c := range p {
		if u.cr && c != '\n' {
			u.w.WriteByte('\r')
		}
		if u.cr = c == '\r'; !u.cr {
			u.w.WriteByte(c)
		}
	}
	return len(p), nil
}

func (u *unix) close() error {
	if u.cr {
		u.w.WriteByte('\r')
	}
	return u.w.Flush()
}
