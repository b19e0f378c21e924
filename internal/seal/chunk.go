package seal

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
)

// sealedChunk is a full chunk on the wire.
const sealedChunk = ChunkSize + Overhead

// AppendItem seals content in one go and puts the item behind dst: the way for small items. The same arguments give
// the same bytes. A pair of seq and salt must never be used for two contents: draw the salt from a random source.
func (s *Session) AppendItem(dst []byte, seq uint64, salt [16]byte, withOffer bool, content []byte) ([]byte, error) {
	h, aead, err := s.sealer(seq, salt, withOffer, false)
	if err != nil {
		return dst, err
	}
	if need := int(SealedSize(int64(len(content)), withOffer)); cap(dst)-len(dst) < need {
		dst = append(make([]byte, 0, len(dst)+need), dst...)
	}
	dst = h.Append(dst)
	if withOffer {
		dst = append(dst, s.Offer...)
	}
	for i := uint64(0); ; i++ {
		n := min(len(content), ChunkSize)
		last := n == len(content)
		nc := nonce(i, last)
		dst = aead.Seal(dst, nc[:], content[:n], nil)
		if last {
			return dst, nil
		}
		content = content[n:]
	}
}

// SealItem writes header and offer to dst and returns a writer for the content, which seals in chunks of 64 KiB.
// The item is complete when Close, which does not close dst, has returned nil; before that it cannot be opened.
// After an error of dst every call returns that error. The writer is for one goroutine. About seq and salt see
// AppendItem; withPayload is for callers that frame the payload themselves (SealHop is the usual way).
func (s *Session) SealItem(dst io.Writer, seq uint64, salt [16]byte, withOffer, withPayload bool) (io.WriteCloser, error) {
	h, aead, err := s.sealer(seq, salt, withOffer, withPayload)
	if err != nil {
		return nil, err
	}
	head := h.Append(make([]byte, 0, HeaderSize+OfferSize))
	if withOffer {
		head = append(head, s.Offer...)
	}
	if _, err := dst.Write(head); err != nil {
		return nil, fmt.Errorf("write the head of item %d: %w", seq, err)
	}
	return &chunkWriter{dst: dst, aead: aead}, nil
}

var errClosed = errors.New("write to a sealed item that is closed")

// chunkWriter holds back up to one full chunk, because only the end tells which chunk is the last.
type chunkWriter struct {
	dst   io.Writer
	aead  cipher.AEAD
	plain []byte // pending, at most ChunkSize
	out   []byte
	chunk uint64
	err   error
}

// Write seals all but the last bytes, up to a chunk of them.
func (w *chunkWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	total := len(p)
	for len(p) > 0 {
		if len(w.plain) == 0 && len(p) > ChunkSize { // straight from the caller's buffer
			if w.err = w.flush(p[:ChunkSize], false); w.err != nil {
				return total - len(p), w.err
			}
			p = p[ChunkSize:]
			continue
		}
		if len(w.plain) == ChunkSize {
			if w.err = w.flush(w.plain, false); w.err != nil {
				return total - len(p), w.err
			}
			w.plain = w.plain[:0]
		}
		if w.plain == nil {
			w.plain = make([]byte, 0, ChunkSize)
		}
		n := copy(w.plain[len(w.plain):ChunkSize], p)
		w.plain = w.plain[:len(w.plain)+n]
		p = p[n:]
	}
	return total, nil
}

// Close seals the last chunk. A second call does nothing and returns nil if the first did.
func (w *chunkWriter) Close() error {
	if errors.Is(w.err, errClosed) {
		return nil
	}
	if w.err != nil {
		return w.err
	}
	if w.err = w.flush(w.plain, true); w.err != nil {
		return w.err
	}
	w.err = errClosed
	return nil
}

func (w *chunkWriter) flush(plain []byte, last bool) error {
	nc := nonce(w.chunk, last)
	w.out = w.aead.Seal(w.out[:0], nc[:], plain, nil)
	w.chunk++
	if _, err := w.dst.Write(w.out); err != nil {
		return fmt.Errorf("write chunk %d: %w", w.chunk-1, err)
	}
	return nil
}

// OpenItem returns the content of an item that Match knows. r is positioned behind header and offer, and its end
// is the end of the item.
//
// Every byte returned is authentic, but only io.EOF says that the item is complete: act on nothing before. The other
// ends are ErrNoMatch (seq and header don't belong together); ErrTruncated, which also wraps io.ErrUnexpectedEOF,
// when the last chunk is missing or r itself ends in io.ErrUnexpectedEOF; ErrTrailing; ErrCorrupt, which includes a
// cut inside a chunk, as that can't be told from damage; and errors of r. The reader is for one goroutine.
func (s *Session) OpenItem(h Header, seq uint64, r io.Reader) io.Reader {
	aead, err := s.opener(h, seq)
	return &chunkReader{src: r, aead: aead, err: err}
}

// ResealItem returns a writer that seals content of an item that Match knows once more, from a chunk on, to the bytes that were
// opened: what came of an item need not be kept beside its content. The content must be the one that OpenItem gave, from
// chunk × ChunkSize on, and not reach its end: the writer holds back up to a chunk of it.
func (s *Session) ResealItem(dst io.Writer, h Header, seq, chunk uint64) (io.Writer, error) {
	aead, err := s.opener(h, seq)
	if err != nil {
		return nil, err
	}
	return &chunkWriter{dst: dst, aead: aead, chunk: chunk}, nil
}

// OpenSmall opens an item that is wholly in memory: header, offer if the header says so (which must then be this
// session's), chunks. The errors are those of ParseHeader and OpenItem.
func (s *Session) OpenSmall(packet []byte) (content []byte, h Header, seq uint64, err error) {
	if h, err = ParseHeader(packet); err != nil {
		return nil, h, 0, err
	}
	seq, keys, ok := s.match(h)
	if !ok {
		return nil, h, 0, ErrNoMatch
	}
	if len(packet) < h.BodyStart() {
		return nil, h, seq, truncated()
	}
	if h.Offer() && !s.SameOffer(packet[HeaderSize:h.BodyStart()]) {
		return nil, h, seq, fmt.Errorf("offer beside item %d: %w", seq, ErrCorrupt)
	}
	content, err = openAll(keys.recvItem.aead(h, seq), packet[h.BodyStart():])
	return content, h, seq, err
}

// openAll opens all chunks of an item.
func openAll(aead cipher.AEAD, body []byte) ([]byte, error) {
	out := make([]byte, 0, max(0, len(body)-(len(body)+sealedChunk-1)/sealedChunk*Overhead))
	for i := uint64(0); ; i++ {
		n := min(len(body), sealedChunk)
		last := n == len(body)
		var err error
		if out, err = openChunk(aead, out, body[:n], i, last); err != nil {
			return nil, err
		}
		if last {
			return out, nil
		}
		body = body[n:]
	}
}

// openChunk opens one chunk behind dst, which must not overlap box, and names what is wrong with it.
func openChunk(aead cipher.AEAD, dst, box []byte, chunk uint64, last bool) ([]byte, error) {
	if len(box) < Overhead {
		return nil, truncated()
	}
	nc := nonce(chunk, last)
	if out, err := aead.Open(dst, nc[:], box, nil); err == nil {
		if len(box) == Overhead && chunk > 0 {
			return nil, badFormat("chunk %d is empty", chunk)
		}
		return out, nil
	}
	nc = nonce(chunk, !last)
	if _, err := aead.Open(dst, nc[:], box, nil); err != nil {
		return nil, fmt.Errorf("chunk %d: %w", chunk, ErrCorrupt)
	}
	if last {
		return nil, truncated()
	}
	return nil, ErrTrailing
}

func truncated() error { return fmt.Errorf("%w: %w", ErrTruncated, io.ErrUnexpectedEOF) }

// chunkReader reads one byte ahead, to know which chunk is the last.
type chunkReader struct {
	src   io.Reader
	aead  cipher.AEAD
	buf   []byte // sealedChunk + 1 bytes, the first have of them filled
	have  int
	out   []byte // room for a chunk when the caller's buffer is smaller
	plain []byte // the part of out that was not returned yet
	chunk uint64
	err   error
}

// Read returns authenticated bytes only.
func (r *chunkReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.plain) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if len(p) >= ChunkSize {
			if n := len(r.next(p[:0:len(p)])); n > 0 {
				return n, nil
			}
			continue
		}
		if r.out == nil {
			r.out = make([]byte, 0, ChunkSize)
		}
		r.plain = r.next(r.out)
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// next opens the next chunk into dst. At the end, or at a fault, it sets err.
func (r *chunkReader) next(dst []byte) []byte {
	more, err := r.fill()
	if err != nil {
		r.err = err
		return nil
	}
	out, err := openChunk(r.aead, dst, r.buf[:min(r.have, sealedChunk)], r.chunk, !more)
	if err != nil {
		r.err = err
		return nil
	}
	r.chunk++
	if more {
		r.buf[0] = r.buf[sealedChunk]
		r.have = 1
	} else {
		r.err = io.EOF
	}
	return out
}

// fill reads a chunk and one byte; more reports whether that byte came.
func (r *chunkReader) fill() (more bool, err error) {
	if r.buf == nil {
		r.buf = make([]byte, sealedChunk+1)
	}
	for idle := 0; r.have < len(r.buf); {
		n, err := r.src.Read(r.buf[r.have:])
		r.have += n
		if r.have == len(r.buf) {
			break // whatever err is, the next Read will say it again
		}
		switch {
		case err == io.EOF:
			return false, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return false, truncated()
		case err != nil:
			return false, fmt.Errorf("read chunk %d: %w", r.chunk, err)
		case n > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return false, fmt.Errorf("read chunk %d: %w", r.chunk, io.ErrNoProgress)
			}
		}
	}
	return true, nil
}
