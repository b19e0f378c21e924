package smtpd

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"mochila/internal/envelope"
)

// lostError says that the connection broke inside a message.
type lostError struct{ err error }

func (e *lostError) Error() string { return "connection lost inside DATA: " + e.err.Error() }

var errFalseEnd = errors.New("end of data with a bare LF")

// receive reads one message into in. It returns the queue id, a *lostError when the connection must end now, or the
// reason why the message was refused after its true end.
func (c *conn) receive(in Intake) (id string, err error) {
	s := sink{in: in, max: c.lim.MessageSize, maxHops: c.lim.Received}
	d := dotDecoder{normalize: c.srv.Normalize}
	if err := c.readContent(&d, &s); err != nil {
		in.Abort()
		return "", err
	}
	if err := s.verdict(&d); err != nil {
		in.Abort()
		return "", err
	}
	if err := c.flush(); err != nil { // a pipelined 354: whoever cannot read it will not read the 250
		in.Abort()
		return "", &lostError{err}
	}
	id, err = in.Commit(c.ctx)
	if err != nil {
		return "", fmt.Errorf("commit: %w", err)
	}
	return id, nil
}

// readContent decodes input until the end of data. Every error is a *lostError.
func (c *conn) readContent(d *dotDecoder, s *sink) error {
	deadline := time.Now().Add(c.lim.MessageTimeout)
	for {
		if c.r < c.w {
			n, end := d.feed(c.buf[c.r:c.w], s)
			c.r += n
			switch end {
			case dotDone:
				return nil
			case dotFalse:
				return &lostError{errFalseEnd}
			}
		}
		if s.size-s.max > max(s.max, 1<<20) {
			return &lostError{tooBig(s.max)}
		}
		next := time.Now().Add(c.lim.DataTimeout)
		if next.After(deadline) {
			next = deadline
		}
		if err := c.fill(next); err != nil {
			return &lostError{err}
		}
	}
}

// sink passes decoded content to the Intake within the limits. After an error it only counts.
type sink struct {
	in      Intake
	size    int64
	max     int64
	hops    hopCounter
	maxHops int
	err     error // of the Intake
}

func (s *sink) write(p []byte) {
	s.size += int64(len(p))
	if s.err != nil || s.size > s.max || s.hops.count > s.maxHops {
		return
	}
	s.hops.write(p)
	_, s.err = s.in.Write(p)
}

// verdict is nil when the message may be committed.
func (s *sink) verdict(d *dotDecoder) error {
	switch {
	case d.fault != faultNone && !d.normalize:
		return envelope.NewStatus(554, "5.6.0", string(d.fault)+" in message (RFC 5321 section 2.3.8)")
	case s.size > s.max:
		return tooBig(s.max)
	case s.hops.count > s.maxHops:
		return envelope.NewStatus(554, "5.4.6", "too many hops")
	case s.err != nil:
		return fmt.Errorf("store content: %w", s.err)
	}
	return nil
}

// hopCounter counts the Received lines of the header of canonical content that arrives in pieces.
type hopCounter struct {
	count int
	col   int  // octets of hopName that the line has matched so far, or hopSkip
	body  bool // the empty line has passed
}

const (
	hopName = "received"
	hopSkip = -1 // the rest of the line does not matter
)

func (h *hopCounter) write(p []byte) {
	for !h.body && len(p) > 0 {
		if h.col == hopSkip {
			n := bytes.IndexByte(p, '\n')
			if n < 0 {
				return
			}
			p, h.col = p[n+1:], 0
			continue
		}
		b := p[0]
		p = p[1:]
		switch {
		case h.col == 0 && b == '\r':
			h.body = true
		case h.col < len(hopName) && b|0x20 == hopName[h.col]:
			h.col++
		case h.col == len(hopName) && b == ':':
			h.count++
			h.col = hopSkip
		case h.col == len(hopName) && (b == ' ' || b == '\t'):
		default:
			h.col = hopSkip
		}
	}
}
