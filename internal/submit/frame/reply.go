package frame

import (
	"encoding/binary"
	"io"

	"mochila/internal/envelope"
	"mochila/internal/submit"
)

// Reply writes the answer to one request: output through Write, then one End.
type Reply struct {
	w     io.Writer
	begun bool
}

// NewReply answers on w, which should be buffered by the caller when output is expected.
func NewReply(w io.Writer) *Reply { return &Reply{w: w} }

// head is what the first write begins with.
func (r *Reply) head() []byte {
	if r.begun {
		return nil
	}
	r.begun = true
	return append([]byte(submit.ReplyMagic), submit.FrameVer)
}

// Write sends output that the client copies to its standard output.
func (r *Reply) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		k := min(len(p)-n, submit.MaxChunk)
		if _, err := r.w.Write(binary.BigEndian.AppendUint32(r.head(), uint32(k))); err != nil {
			return n, err
		}
		if _, err := r.w.Write(p[n : n+k]); err != nil {
			return n, err
		}
		n += k
	}
	return len(p), nil
}

// End sends the exit status and one line of text: the queue id, or what went wrong.
func (r *Reply) End(code uint8, text string) error {
	text = envelope.OneLine(text, submit.MaxText)
	b := append(r.head(), 0, 0, 0, 0, code)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	_, err := r.w.Write(append(b, text...))
	return err
}
