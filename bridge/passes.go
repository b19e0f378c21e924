package bridge

import (
	"bytes"
	"fmt"

	"mochila/internal/envelope"
)

// passes counts how often a mail that is written to it entered this node before, by the Received lines that entries
// leave (intake: received; exits say "with mochila id" and do not count). It looks at the header alone.
//
// Counting all Received lines ends a loop, too, but late: a mail server on the way adds one, a relay host another, and
// each round between two sites costs them airtime.
type passes struct {
	mark  []byte // " by DOMAIN (mochila"
	count int
	field []byte // of the Received field that is being read, at most maxTrace bytes; nil outside of one
	line  bool   // inside a line
	body  bool   // the empty line has passed
}

// maxTrace is how much of one Received field is looked at; ours have some 200 bytes.
const maxTrace = 1 << 10

func newPasses(domain string) *passes { return &passes{mark: []byte(" by " + domain + " (mochila")} }

// Write never fails.
func (h *passes) Write(p []byte) (int, error) {
	n := len(p)
	for !h.body && len(p) > 0 {
		if !h.line {
			h.begin(p[0])
		}
		part := p
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			part, h.line = p[:i+1], false
		}
		if h.field != nil {
			h.field = append(h.field, part[:min(len(part), maxTrace-len(h.field))]...)
		}
		p = p[len(part):]
	}
	return n, nil
}

// begin looks at the first byte of a line.
func (h *passes) begin(b byte) {
	h.line = true
	if b == ' ' || b == '\t' {
		return // the field goes on
	}
	h.end()
	switch b {
	case 'R', 'r':
		h.field = make([]byte, 0, 256)
	case '\r', '\n':
		h.body = true
	}
}

// end looks at the field that is complete.
func (h *passes) end() {
	f := h.field
	h.field = nil
	if len(f) < len("Received:") || !bytes.EqualFold(f[:len("Received:")], []byte("Received:")) {
		return
	}
	if f = bytes.Join(bytes.Fields(f), []byte(" ")); bytes.Contains(f, h.mark) && !bytes.Contains(f, []byte(") with mochila id ")) {
		h.count++
	}
}

// loop is the refusal of a mail that was here too often, nil for any other.
func (h *passes) loop(most int) error {
	if h.count < most {
		return nil
	}
	return envelope.NewStatus(554, "5.4.6", fmt.Sprintf("mail loop: this node took this mail %d times before, and it came back each time", h.count))
}
