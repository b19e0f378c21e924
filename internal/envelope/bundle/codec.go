package bundle

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// mailDict is dictionary 1: text that mail repeats. It is frozen: a change makes every bundle in flight
// unreadable, so an improved one gets another number and method.
//
//go:embed mail1.dict
var mailDict []byte

const (
	mailDictID  = 1
	mailDictSum = "8ac2a1a97156251cc0748f9fda0f11edb4f23b12a13e78d4330784ebfafb80c4"
)

// Codec keeps compressors and buffers for reuse. It serves any number of writers and readers at once; one per
// process is enough.
type Codec struct {
	plain, dict *zstd.Encoder // for frames in memory
	inflate     *zstd.Decoder // the same
	writers     sync.Pool     // of *zstd.Encoder, for streams
	readers     sync.Pool     // of *zstd.Decoder, for streams
	buffers     sync.Pool     // of *[]byte
}

// NewCodec makes a Codec. It fails only when the program was built with another dictionary than the frozen one.
func NewCodec() (*Codec, error) {
	if sum := sha256.Sum256(mailDict); hex.EncodeToString(sum[:]) != mailDictSum {
		return nil, errors.New("the mail dictionary of this program is not the frozen one")
	}
	c := new(Codec)
	var err error
	common := []zstd.EOption{zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false)}
	if c.plain, err = zstd.NewWriter(nil, append(common, zstd.WithWindowSize(MaxFrame))...); err != nil {
		return nil, fmt.Errorf("compressor: %w", err)
	}
	if c.dict, err = zstd.NewWriter(nil, append(common, zstd.WithWindowSize(MaxFrame), zstd.WithEncoderDictRaw(mailDictID, mailDict))...); err != nil {
		return nil, fmt.Errorf("compressor with dictionary: %w", err)
	}
	c.inflate, err = zstd.NewReader(nil, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderDictRaw(mailDictID, mailDict))
	if err != nil {
		return nil, fmt.Errorf("decompressor: %w", err)
	}
	return c, nil
}

// streamWriter lends a compressor that writes to w; give it back after Close. One goroutine, so that the bytes
// do not depend on the machine.
func (c *Codec) streamWriter(w io.Writer) (*zstd.Encoder, error) {
	if e, ok := c.writers.Get().(*zstd.Encoder); ok {
		e.Reset(w)
		return e, nil
	}
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(2<<20), zstd.WithLowerEncoderMem(true))
}

func (c *Codec) putWriter(e *zstd.Encoder) {
	e.Reset(nil)
	c.writers.Put(e)
}

// streamReader lends a decompressor of bounded memory that reads from r.
func (c *Codec) streamReader(r io.Reader) (*zstd.Decoder, error) {
	if d, ok := c.readers.Get().(*zstd.Decoder); ok {
		return d, d.Reset(r)
	}
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(1<<62))
}

func (c *Codec) putReader(d *zstd.Decoder) {
	if d.Reset(nil) == nil {
		c.readers.Put(d)
	}
}

// buffer lends an empty buffer with room for n bytes. Most bundles are far smaller than a frame may be: what hundreds of
// contacts hold at a time grows with what they carry.
func (c *Codec) buffer(n int) []byte {
	if b, ok := c.buffers.Get().(*[]byte); ok && cap(*b) >= n {
		return (*b)[:0]
	}
	size := 16 << 10
	for size < n {
		size *= 2
	}
	return make([]byte, 0, size)
}

func (c *Codec) putBuffer(b []byte) {
	if cap(b) > 0 && cap(b) <= 2*MaxFrame {
		b = b[:0]
		c.buffers.Put(&b)
	}
}
