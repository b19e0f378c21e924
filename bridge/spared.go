package bridge

import (
	"io"

	"mochila/internal/envelope/bundle"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
)

// spared is a large bundle that is opened while it comes, whose bytes need not be kept beside its content (transport.Sparing): what
// stands in front of the content is remembered, and all of it can be sealed again to the same bytes.
// On its way from the reader to the body are one chunk that is opened, one that the sealer holds back, and what aheadBuffers, the bundle's
// reader and copyContent hold: less than the carrier keeps.
type spared struct {
	in    *incoming
	src   transport.Sparing
	front []byte // header and offer of the item, as they came
	m     mark
	h     seal.Header
	plain []byte // the bundle in front of the content
	body  *spool.Body
	size  int64 // of the content
}

// frontMost bounds what stands in front of the content.
const frontMost = 64 << 10

// sparing remembers the beginning of the bundle that r reads, if its packet can be spared.
func (in *incoming) sparing(r io.Reader, h seal.Header, m mark) io.Reader {
	src, ok := in.packet.r.(transport.Sparing)
	if !ok || in.box != nil {
		return r
	}
	in.spared = &spared{in: in, src: src, front: append(h.Append(nil), in.offer...), m: m, h: h}
	return &remembering{r, in.spared}
}

// remembering reads a bundle and remembers its beginning, until its content comes.
type remembering struct {
	r io.Reader
	s *spared
}

// Read reads on, and remembers what stands in front of the content.
func (r *remembering) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if r.s.body == nil && len(r.s.plain) < frontMost {
		r.s.plain = append(r.s.plain, b[:n]...)
	}
	return n, err
}

// store writes the content of a record into a body, and makes it durable. When that fails, the body is discarded.
func (in *incoming) store(body *spool.Body, rec *bundle.Record) error {
	size := rec.Envelope.Size
	if size > 0 {
		body.Vouch(rec.Envelope.Sum) // Content ends with io.EOF only if that is its sum
	}
	err := copyContent(in.spare(body, rec), rec.Content, size)
	if err == nil {
		err = body.Finish()
	}
	if err != nil {
		in.refill()
		body.Discard()
	}
	return err
}

// spare has the packet spared while the content of a record, which is the bulk of it, goes into a body. It returns what to write to.
func (in *incoming) spare(body *spool.Body, rec *bundle.Record) io.Writer {
	s := in.spared
	if s == nil || s.body != nil || rec.Size < in.size/2 || rec.At < 0 || rec.At > int64(len(s.plain)) || !s.src.Spare() {
		return body
	}
	s.plain, s.body, s.size = s.plain[:rec.At], body, rec.Size
	return s
}

// Write writes to the body.
func (s *spared) Write(p []byte) (int, error) {
	n, err := s.body.Write(p)
	if err == nil && s.src.Late() {
		s.in.refill()
	}
	return n, err
}

// refill gives back what of the packet was spared, while the body is there: what came needs not come again. It does so once.
func (in *incoming) refill() {
	s := in.spared
	if s == nil || s.body == nil {
		return
	}
	in.spared = nil
	if err := s.src.Refill(s.again); err != nil {
		in.b.log.Warn("some of a packet that came in part has to come again", "peer", in.b.Policy().nodeName(in.peer), "err", err)
	}
}

// again writes the packet from one of its bytes on, as far as its content is stored.
func (s *spared) again(w io.Writer, from int64) error {
	front := int64(len(s.front))
	if from < front {
		if _, err := w.Write(s.front[from:]); err != nil {
			return err
		}
		from = front
	}
	chunk, drop := (from-front)/(seal.ChunkSize+seal.Overhead), (from-front)%(seal.ChunkSize+seal.Overhead)
	sw, err := s.m.ses.keys.ResealItem(&skipper{w: w, n: drop}, s.h, s.m.seq, uint64(chunk))
	if err != nil {
		return err
	}
	plain := int64(len(s.plain))
	at := chunk * seal.ChunkSize // in the bundle
	if _, err := sw.Write(s.plain[min(at, plain):]); err != nil {
		return err
	}
	r, err := s.body.Written()
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Seek(max(at-plain, 0), io.SeekStart); err != nil {
		return err
	}
	return copyContent(sw, r, s.size)
}
