package bundle

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"mochila/internal/envelope"
)

// Limits bound what a Reader takes; exceeding one is ErrLimit. Zero means no limit.
type Limits struct {
	MaxRaw     int64 // bytes of all frames, inflated
	MaxContent int64 // bytes of one envelope's content
	MaxRecords int
}

// Record is one element of a bundle.
type Record struct {
	Type envelope.RecordType
	// Body is the whole record, or the header of an envelope.
	Body []byte
	// Envelope is set for envelopes, unless Err is.
	Envelope *envelope.Envelope
	// Content is the content of an envelope, Size bytes; it ends with ErrSum instead of io.EOF when it is not what
	// the envelope tells. It is valid until the next call of Next, which skips what was not read.
	Content io.Reader
	// Size is the length of the content.
	Size int64
	// At is where in the bundle the content stands, byte for byte; -1 when it does not, being compressed.
	At int64
	// Err says why this record cannot be used: a type of a newer version, or an envelope that may not travel.
	// The records after it are not affected.
	Err error
}

// Reader reads one bundle. It is not for concurrent use. What it returns is to be believed only when Next has
// come to io.EOF: an authentic bundle may still be broken further behind.
type Reader struct {
	c       *Codec
	src     *counting
	in      *bufio.Reader // of src
	limits  Limits
	header  *Header
	raw     int64 // inflated so far, by declaration
	records int
	frame   frame
	content *content // of the last envelope
	err     error
}

// frame is what is left of the current frame, inflated.
type frame struct {
	r    io.Reader
	b    io.ByteReader
	left int64
	end  func() error // checks that nothing follows, gives buffers back
}

// NewReader reads the bundle that r holds to its end. Errors of r come back wrapped.
func (c *Codec) NewReader(r io.Reader, l Limits) *Reader {
	src := &counting{r, 0}
	return &Reader{c: c, src: src, in: bufio.NewReaderSize(src, 32<<10), limits: l}
}

// counting counts what is read.
type counting struct {
	r io.Reader
	n int64
}

// Read reads on, and counts.
func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// Header returns the bundle's header.
func (b *Reader) Header() (Header, error) {
	if b.header == nil && b.err == nil {
		var raw [HeaderSize]byte
		if _, err := io.ReadFull(b.in, raw[:]); err != nil {
			return Header{}, b.fail(cut(err))
		}
		h, err := parseHeader(raw[:])
		if err != nil {
			return Header{}, b.fail(err)
		}
		b.header = &h
	}
	if b.header == nil {
		return Header{}, b.err
	}
	return *b.header, nil
}

// Next returns the next record, io.EOF after the last one when all of the bundle was well formed, or the error
// that spoils the bundle. Errors wrap envelope.ErrFormat or ErrLimit, or come from the underlying reader.
func (b *Reader) Next() (*Record, error) {
	if _, err := b.Header(); err != nil {
		return nil, err
	}
	if b.err != nil {
		return nil, b.err
	}
	if b.content != nil {
		if _, err := io.Copy(io.Discard, b.content); err != nil {
			return nil, err
		}
		b.content = nil
	}
	for b.frame.left == 0 {
		if b.frame.end != nil {
			end := b.frame.end
			b.frame = frame{}
			if err := end(); err != nil {
				return nil, b.fail(err)
			}
		}
		if err := b.open(); err != nil {
			return nil, b.fail(err)
		}
	}
	r, err := b.record()
	if err != nil {
		return nil, b.fail(err)
	}
	return r, nil
}

// Close gives back what the reader holds; it is needed only before the end of the bundle, and harmless after it.
func (b *Reader) Close() {
	b.fail(errClosed)
	if end := b.frame.end; end != nil {
		b.frame = frame{}
		_ = end() // what is wrong with a bundle that nobody reads does not matter
	}
}

// open reads the head of the next frame. io.EOF is the orderly end.
func (b *Reader) open() error {
	method, err := b.in.ReadByte()
	if err != nil {
		return cut(err)
	}
	if method == methodEnd {
		return b.padding()
	}
	if method > methodStream {
		return badFormat("frame with unknown method %d", method)
	}
	raw, err := number(b.in, 1<<62)
	if err != nil {
		return err
	}
	if raw == 0 {
		return badFormat("empty frame")
	}
	if b.raw += raw; b.raw < 0 || b.limits.MaxRaw > 0 && b.raw > b.limits.MaxRaw {
		return fmt.Errorf("%w: it inflates to more than %d bytes", ErrLimit, b.limits.MaxRaw)
	}
	switch method {
	case methodStored:
		b.frame = frame{r: b.in, b: b.in, left: raw, end: func() error { return nil }}
		return nil
	case methodStream:
		return b.openStream(raw)
	}
	return b.inflate(method, raw)
}

// inflate reads a frame that is decompressed at once.
func (b *Reader) inflate(method byte, raw int64) error {
	if raw > MaxFrame {
		return badFormat("frame of %d bytes, more than %d", raw, MaxFrame)
	}
	packed, err := number(b.in, raw-1)
	if err != nil {
		return err
	}
	in := b.c.buffer(int(packed))[:packed]
	defer b.c.putBuffer(in)
	if _, err := io.ReadFull(b.in, in); err != nil {
		return cut(err)
	}
	var h zstd.Header
	if err := h.Decode(in); err != nil || h.Skippable || (h.DictionaryID == mailDictID) != (method == methodDict) {
		return badFormat("frame is not compressed by method %d", method)
	}
	buf := b.c.buffer(int(raw))
	out, err := b.c.inflate.DecodeAll(in, buf[:0:raw])
	if err != nil || int64(len(out)) != raw {
		b.c.putBuffer(buf)
		return badFormat("frame does not inflate to %d bytes: %v", raw, err)
	}
	r := bytes.NewReader(out)
	b.frame = frame{r: r, b: r, left: raw, end: func() error { b.c.putBuffer(buf); return nil }}
	return nil
}

// openStream begins a frame that is decompressed as it is read.
func (b *Reader) openStream(raw int64) error {
	if raw <= MaxFrame {
		return badFormat("streamed frame of only %d bytes", raw)
	}
	chunks := &chunkReader{in: b.in}
	z, err := b.c.streamReader(chunks)
	if err != nil {
		return b.streamError(chunks, err)
	}
	r := bufio.NewReaderSize(streamErrors{z, chunks, b}, 32<<10)
	b.frame = frame{r: r, b: r, left: raw, end: func() error {
		defer b.c.putReader(z)
		if b.err != nil {
			return nil
		}
		if _, err := r.ReadByte(); err == nil {
			return badFormat("frame inflates to more than %d bytes", raw)
		} else if err != io.EOF {
			return err
		}
		if chunks.left != 0 || !chunks.done {
			return badFormat("bytes behind the end of a compressed stream")
		}
		return nil
	}}
	return nil
}

// streamErrors tells errors of the packet from those of the compression.
type streamErrors struct {
	z      *zstd.Decoder
	chunks *chunkReader
	b      *Reader
}

func (s streamErrors) Read(p []byte) (int, error) {
	n, err := s.z.Read(p)
	if err != nil && err != io.EOF {
		err = s.b.streamError(s.chunks, err)
	}
	return n, err
}

func (b *Reader) streamError(c *chunkReader, err error) error {
	if c.err != nil && c.err != io.EOF {
		return c.err
	}
	return badFormat("compressed stream: %v", err)
}

// padding reads to the end, which must be zeros.
func (b *Reader) padding() error {
	for {
		p, err := b.in.Peek(b.in.Size())
		for _, x := range p {
			if x != 0 {
				return badFormat("padding is not zero")
			}
		}
		if err == io.EOF {
			return io.EOF
		}
		if err != nil {
			return err
		}
		b.in.Discard(len(p))
	}
}

// record reads one record of the current frame.
func (b *Reader) record() (*Record, error) {
	if b.records++; b.limits.MaxRecords > 0 && b.records > b.limits.MaxRecords {
		return nil, fmt.Errorf("%w: more than %d records", ErrLimit, b.limits.MaxRecords)
	}
	t, err := b.frame.ReadByte()
	if err != nil {
		return nil, cut(err)
	}
	r := &Record{Type: envelope.RecordType(t)}
	limit := r.Type.MaxBody()
	if limit == 0 {
		limit = maxOther
	}
	n, err := number(&b.frame, int64(limit))
	if err != nil {
		return nil, err
	}
	if r.Type == envelope.RecordEnvelope {
		if r.Size, err = number(&b.frame, b.frame.left); err != nil {
			return nil, err
		}
	}
	if n+r.Size > b.frame.left {
		return nil, badFormat("%v record of %d bytes in the last %d of a frame", r.Type, n+r.Size, b.frame.left)
	}
	if b.limits.MaxContent > 0 && r.Size > b.limits.MaxContent {
		return nil, fmt.Errorf("%w: content of %d bytes, more than %d", ErrLimit, r.Size, b.limits.MaxContent)
	}
	if r.Body, err = take(&b.frame, int(n)); err != nil {
		return nil, cut(err)
	}
	switch {
	case r.Type == envelope.RecordEnvelope:
		if r.At = -1; b.frame.r == b.in {
			r.At = b.src.n - int64(b.in.Buffered())
		}
		b.content = &content{b, r.Size}
		r.Content = b.content
		if r.Envelope, r.Err = envelope.ParseEnvelope(r.Body); r.Err == nil && r.Envelope.Size != r.Size {
			r.Envelope, r.Err = nil, badFormat("content of %d bytes, the envelope tells another size", r.Size)
		}
		if r.Err == nil {
			r.Content = newVerifier(b.content, r.Envelope)
		}
	case r.Type.MaxBody() == 0:
		r.Err = badFormat("%v is not supported by this version", r.Type)
	}
	return r, nil
}

// content is what the reader hands out of an envelope; a fault in it spoils the bundle.
type content struct {
	b    *Reader
	left int64
}

func (c *content) Read(p []byte) (int, error) {
	switch {
	case c.left == 0:
		return 0, io.EOF
	case c.b.content != c:
		return 0, errStale
	case c.b.err != nil:
		return 0, c.b.err
	}
	n, err := c.b.frame.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == nil || err == io.EOF && c.left == 0 {
		return n, nil
	}
	return n, c.b.fail(cut(err))
}

func (f *frame) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > f.left {
		p = p[:f.left]
	}
	n, err := f.r.Read(p)
	f.left -= int64(n)
	if err == io.EOF && f.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (f *frame) ReadByte() (byte, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	c, err := f.b.ReadByte()
	if err == nil {
		f.left--
	}
	return c, err
}

// take reads n bytes; it takes memory only as bytes come.
func take(r io.Reader, n int) ([]byte, error) {
	const step = 64 << 10
	b := make([]byte, min(n, step))
	for at := 0; ; {
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, err
		}
		if at = len(b); at == n {
			return b, nil
		}
		b = append(b, make([]byte, min(n-at, at))...)
	}
}

// number reads a minimal uvarint of at most limit.
func number(r io.ByteReader, limit int64) (int64, error) {
	var b [binary.MaxVarintLen64]byte
	for i := range b {
		c, err := r.ReadByte()
		if err != nil {
			return 0, cut(err)
		}
		if b[i] = c; c >= 0x80 {
			continue
		}
		v, n := binary.Uvarint(b[:i+1])
		if n <= 0 || i > 0 && c == 0 {
			return 0, badFormat("broken number")
		}
		if v > uint64(max(limit, 0)) {
			return 0, badFormat("length %d, more than %d", v, limit)
		}
		return int64(v), nil
	}
	return 0, badFormat("broken number")
}

func (b *Reader) fail(err error) error {
	if b.err == nil {
		b.err = err
	}
	return b.err
}

func cut(err error) error { return short(err, errCut) }

// chunkReader joins the chunks of a streamed frame.
type chunkReader struct {
	in   *bufio.Reader
	left int  // of this chunk
	last bool // the next chunk must be the zero that ends the stream
	done bool
	err  error
}

func (c *chunkReader) Read(p []byte) (int, error) {
	if c.err == nil && c.left == 0 {
		c.err = c.next()
	}
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.in.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err != nil {
		c.err = cut(err)
		return n, c.err
	}
	return n, nil
}

func (c *chunkReader) next() error {
	n, err := number(c.in, maxChunk)
	if err != nil {
		return err
	}
	if n == 0 {
		c.done = true
		return io.EOF
	}
	if c.last {
		return badFormat("a chunk after a short one")
	}
	c.left, c.last = int(n), n < maxChunk
	return nil
}
