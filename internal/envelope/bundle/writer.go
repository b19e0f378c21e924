package bundle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"mochila/internal/envelope"
)

// Options tune a Writer.
type Options struct {
	// Pad says how long a content of n bytes shall become, at least n; nil adds nothing. See Padme.
	Pad func(n int64) int64
	// Compared says that the same bundle was written before, which has compared each content with its sum: it is not hashed again.
	// Whoever reads the bundle compares, too.
	Compared bool
}

// Writer writes one bundle. It is not for concurrent use. After an error every call returns that error, and what
// was written is to be thrown away.
type Writer struct {
	c     *Codec
	w     io.Writer
	pad   func(int64) int64
	seen  bool  // the contents were compared with their sums before
	n     int64 // bytes written to w
	trust string
	raw   []byte // records of the frame that is being gathered
	err   error
}

// NewWriter begins a bundle on w. The first error of w comes back from a later call. Close must be called.
func (c *Codec) NewWriter(w io.Writer, h Header, o Options) *Writer {
	b := &Writer{c: c, w: w, pad: o.Pad, seen: o.Compared, raw: c.buffer(0)}
	b.write(h.append(nil))
	return b
}

// Frame says who is behind the records that follow: records of two different trusts never share a frame. The name
// itself is not written.
func (b *Writer) Frame(trust string) error {
	if trust != b.trust {
		b.flush()
		b.trust = trust
	}
	return b.err
}

// Record adds a record that is not an envelope.
func (b *Writer) Record(t envelope.RecordType, body []byte) error {
	if b.err != nil {
		return b.err
	}
	if t == envelope.RecordEnvelope || t.MaxBody() == 0 || len(body) > t.MaxBody() {
		return b.fail(fmt.Errorf("bundle: %v record of %d bytes is not allowed", t, len(body)))
	}
	b.room(len(body) + 1 + binary.MaxVarintLen32)
	b.raw = append(b.raw, byte(t))
	b.raw = binary.AppendUvarint(b.raw, uint64(len(body)))
	b.raw = append(b.raw, body...)
	return b.err
}

// Envelope adds an envelope with its content, of which exactly e.Size bytes are read. An envelope that may not
// travel, and a content that has another length or sum than e says, spoil the bundle.
func (b *Writer) Envelope(e *envelope.Envelope, content io.Reader) error {
	if b.err != nil {
		return b.err
	}
	if err := b.envelope(e, content); err != nil {
		return b.fail(fmt.Errorf("envelope %s: %w", e.ID, err))
	}
	return nil
}

func (b *Writer) envelope(e *envelope.Envelope, content io.Reader) error {
	if err := e.Check(); err != nil {
		return err
	}
	header := envelope.AppendEnvelope(make([]byte, 0, 512), e)
	head := make([]byte, 0, len(header)+16)
	head = append(head, byte(envelope.RecordEnvelope))
	head = binary.AppendUvarint(head, uint64(len(header)))
	head = binary.AppendUvarint(head, uint64(e.Size))
	head = append(head, header...)
	if len(header) > envelope.MaxHeader {
		return fmt.Errorf("%w: header of %d bytes", envelope.ErrFormat, len(header))
	}
	if content == nil {
		content = eof{}
	}
	in := newVerifier(content, e)
	if b.seen {
		in.sum = nil
	}
	if e.Size > int64(MaxFrame-len(head)) {
		if err := b.stream(head, in); err != nil {
			return err
		}
		return in.finish()
	}
	b.room(len(head) + int(e.Size))
	b.raw = append(b.raw, head...)
	at := len(b.raw)
	b.raw = slices.Grow(b.raw, int(e.Size))[:at+int(e.Size)]
	if _, err := io.ReadFull(in, b.raw[at:]); err != nil {
		return short(err, ErrSum)
	}
	return in.finish()
}

// Close ends the bundle, without closing what it is written to.
func (b *Writer) Close() error {
	b.flush()
	if b.err == nil {
		rest := int64(1)
		if b.pad != nil {
			rest = max(b.pad(b.n+1)-b.n, 1)
		}
		var zeros [4096]byte
		for rest > 0 && b.err == nil {
			n := min(rest, int64(len(zeros)))
			b.write(zeros[:n])
			rest -= n
		}
	}
	err := b.err
	b.fail(errClosed)
	b.c.putBuffer(b.raw)
	b.raw = nil
	return err
}

// room makes place for n bytes of records, at most MaxFrame, in the frame.
func (b *Writer) room(n int) {
	if len(b.raw)+n > MaxFrame {
		b.flush()
	}
}

// flush writes the gathered records as a frame.
func (b *Writer) flush() {
	if b.err != nil || len(b.raw) == 0 {
		return
	}
	method, body := byte(methodDict), b.c.buffer(len(b.raw))
	if len(b.raw) <= dictUseful {
		body = b.c.dict.EncodeAll(b.raw, body)
	} else {
		method, body = methodZstd, b.c.plain.EncodeAll(b.raw, body)
	}
	if len(body) < len(b.raw) {
		b.frame(method, int64(len(b.raw)), int64(len(body)))
		b.write(body)
	} else {
		b.frame(methodStored, int64(len(b.raw)), 0)
		b.write(b.raw)
	}
	b.c.putBuffer(body)
	b.raw = b.raw[:0]
}

// dictUseful is the frame size up to which the dictionary is offered; beyond it, a frame's own text serves better.
const dictUseful = 256 << 10

// frame writes the head of a frame; packed is 0 where the method needs no second length.
func (b *Writer) frame(method byte, raw, packed int64) {
	h := binary.AppendUvarint(append(make([]byte, 0, 24), method), uint64(raw))
	if packed > 0 {
		h = binary.AppendUvarint(h, uint64(packed))
	}
	b.write(h)
}

// stream writes a frame with one large envelope, compressed if a sample of its content says that this helps.
func (b *Writer) stream(head []byte, content *verifier) error {
	b.flush()
	sample := make([]byte, min(maxChunk, content.size))
	if _, err := io.ReadFull(content, sample); err != nil {
		return short(err, ErrSum)
	}
	front := io.MultiReader(bytes.NewReader(head), bytes.NewReader(sample))
	raw := int64(len(head)) + content.size
	tried := b.c.plain.EncodeAll(sample, b.c.buffer(len(sample)))
	defer b.c.putBuffer(tried)
	if len(tried) > len(sample)-len(sample)/16 {
		b.frame(methodStored, raw, 0)
		return copyAll(writerFunc(b.write), front, content)
	}
	b.frame(methodStream, raw, 0)
	chunks := &chunkWriter{out: b.write, buf: make([]byte, 0, maxChunk)}
	z, err := b.c.streamWriter(chunks)
	if err != nil {
		return fmt.Errorf("compressor: %w", err)
	}
	defer b.c.putWriter(z)
	if err := copyAll(z, front, content); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return chunks.close()
}

// copyAll moves what the sources hold to w. The compressor's own ReadFrom is kept out of it.
func copyAll(w io.Writer, sources ...io.Reader) error {
	buf := make([]byte, maxChunk)
	for _, r := range sources {
		if _, err := io.CopyBuffer(onlyWriter{w}, onlyReader{r}, buf); err != nil {
			return short(err, ErrSum)
		}
	}
	return nil
}

func (b *Writer) write(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.w.Write(p)
	b.n += int64(n)
	if err != nil {
		b.fail(fmt.Errorf("write bundle: %w", err))
	}
	return n, b.err
}

func (b *Writer) fail(err error) error {
	if b.err == nil {
		b.err = err
	}
	return b.err
}

// short makes an end in the wrong place a fault of the given kind, and leaves other errors alone.
func short(err, kind error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut short", kind)
	}
	return err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
	eof        struct{}
)

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// chunkWriter cuts a compressed stream into chunks of maxChunk, the last one shorter, and a zero.
type chunkWriter struct {
	out func([]byte) (int, error)
	buf []byte
}

func (c *chunkWriter) Write(p []byte) (int, error) {
	done := len(p)
	for len(p) > 0 {
		n := min(maxChunk-len(c.buf), len(p))
		c.buf, p = append(c.buf, p[:n]...), p[n:]
		if len(c.buf) == maxChunk {
			if err := c.emit(); err != nil {
				return 0, err
			}
		}
	}
	return done, nil
}

func (c *chunkWriter) emit() error {
	if _, err := c.out(binary.AppendUvarint(nil, uint64(len(c.buf)))); err != nil {
		return err
	}
	_, err := c.out(c.buf)
	c.buf = c.buf[:0]
	return err
}

func (c *chunkWriter) close() error {
	if len(c.buf) > 0 {
		if err := c.emit(); err != nil {
			return err
		}
	}
	_, err := c.out([]byte{0})
	return err
}
