package letter

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/textproto"
	"strings"
)

const (
	maxDepth  = 8   // multiparts and forwarded mails inside each other
	maxPieces = 200 // pieces of one multipart
)

// Message is a mail whose header has been read.
type Message struct {
	header textproto.MIMEHeader
	body   *bufio.Reader
}

// Open reads the header of a mail, lines ending in LF or CRLF, with or without the "From " line of a mailbox in front.
// A mail without a header, or with one of more than 256 KiB, is ErrNoLetter.
func Open(r io.Reader) (*Message, error) {
	limit := &io.LimitedReader{R: r, N: maxHeader}
	br := bufio.NewReader(limit)
	h, err := readHeader(br)
	if err != nil {
		if limit.N <= 0 && errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: its header is too long", ErrNoLetter)
		}
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: it ends in its header", ErrNoLetter)
		}
		return nil, err
	}
	limit.N = 1<<63 - 1
	return &Message{h, br}, nil
}

// fields are those of the header that matter.
var fields = []string{"content-type", "content-transfer-encoding", "return-path", "auto-submitted", "from", "subject"}

// readHeader reads up to the empty line. It is lenient: lines that are no fields are passed over.
func readHeader(br *bufio.Reader) (textproto.MIMEHeader, error) {
	h := textproto.MIMEHeader{}
	last := ""
	for first := true; ; first = false {
		line, err := br.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		switch key, value, ok := strings.Cut(line, ":"); {
		case line == "":
			return h, nil
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				v := h[last]
				v[len(v)-1] += " " + strings.TrimSpace(line)
			}
		case first && strings.HasPrefix(line, "From "):
		case ok:
			last = ""
			for _, f := range fields {
				if strings.EqualFold(strings.TrimSpace(key), f) && len(h[textproto.CanonicalMIMEHeaderKey(f)]) < 8 {
					last = textproto.CanonicalMIMEHeaderKey(f)
					h[last] = append(h[last], strings.TrimSpace(value))
				}
			}
		default:
			last = ""
		}
	}
}

// From is the From field as it stands there, for messages.
func (m *Message) From() string { return m.header.Get("From") }

// Parts hands every part in the mail to take, which reads the bytes to their end. It looks into multiparts and
// forwarded mails. It returns the first error of take, ErrDamaged for a part that is, and ErrNoLetter when there is
// none.
func (m *Message) Parts(take func(p Part, data io.Reader) error) error {
	w := &walk{take: take}
	if err := w.entity(m.header, m.body, 0); err != nil {
		return err
	}
	if w.found == 0 {
		return ErrNoLetter
	}
	return nil
}

type walk struct {
	take  func(Part, io.Reader) error
	found int
}

func (w *walk) entity(h textproto.MIMEHeader, body io.Reader, depth int) error {
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil && kind == "" {
		kind = "text/plain"
	}
	if depth < maxDepth {
		switch {
		case strings.HasPrefix(kind, "multipart/") && params["boundary"] != "":
			return w.multipart(multipart.NewReader(body, params["boundary"]), depth)
		case kind == "message/rfc822":
			m, err := Open(body)
			if errors.Is(err, ErrNoLetter) {
				return nil
			}
			if err != nil {
				return cut(err)
			}
			return w.entity(m.header, m.body, depth+1)
		}
	}
	switch strings.ToLower(strings.TrimSpace(h.Get("Content-Transfer-Encoding"))) {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	}
	br := bufio.NewReader(body)
	if start, _ := br.Peek(len(magic)); string(start) != magic {
		return nil
	}
	p, data, err := readPart(br)
	if err != nil {
		return err
	}
	w.found++
	if err := w.take(p, data); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, data) // a taker that did not read to the end has not seen the sum
	return err
}

func (w *walk) multipart(r *multipart.Reader, depth int) error {
	for n := 0; n < maxPieces; n++ {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return w.broken(err)
		}
		if err := w.entity(p.Header, p, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// broken ends a multipart that is cut off behind its parts, or that this program cannot read: no part is lost by it
// when there was one, and there is none when there was not.
func (w *walk) broken(err error) error {
	if isCoding(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		if w.found > 0 {
			return nil
		}
		return fmt.Errorf("%w: %v", ErrNoLetter, err)
	}
	return err
}

// isCoding reports whether an error is about the form of a mail, not about reading it.
func isCoding(err error) bool {
	var b base64.CorruptInputError
	var p textproto.ProtocolError
	return errors.As(err, &b) || errors.As(err, &p) || errors.Is(err, multipart.ErrMessageTooLarge) ||
		strings.HasPrefix(err.Error(), "multipart: ") || strings.HasPrefix(err.Error(), "quotedprintable: ")
}
