package smtpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// heldInMemory is how much of a mail is held without a file.
const heldInMemory = 64 << 10

// Held is content that waits until it is known what becomes of it: in memory while it is small, else in a file without
// a name. The zero value with a Dir is ready.
type Held struct {
	Dir string // where the file goes

	buf  bytes.Buffer
	file *os.File
	size int64
}

// Size is how many bytes are held.
func (h *Held) Size() int64 { return h.size }

// Write holds more.
func (h *Held) Write(p []byte) (int, error) {
	if h.file == nil && h.buf.Len()+len(p) <= heldInMemory {
		h.size += int64(len(p))
		return h.buf.Write(p)
	}
	if h.file == nil {
		f, err := os.CreateTemp(h.Dir, ".mochila-held-*")
		if err != nil {
			return 0, fmt.Errorf("hold a mail: %w", err)
		}
		h.file = f
		if err := os.Remove(f.Name()); err != nil {
			return 0, fmt.Errorf("hold a mail: %w", err)
		}
	}
	n, err := h.file.Write(p)
	h.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("hold a mail: %w", err)
	}
	return n, nil
}

// WriteTo writes all that is held; it may be called again.
func (h *Held) WriteTo(w io.Writer) (int64, error) {
	parts := []io.Reader{bytes.NewReader(h.buf.Bytes())}
	if h.file != nil {
		parts = append(parts, io.NewSectionReader(h.file, 0, h.size-int64(h.buf.Len())))
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, io.MultiReader(parts...), make([]byte, 64<<10))
	if err == nil && n != h.size {
		err = errors.New("read a held mail: it has become shorter")
	}
	return n, err
}

// Drop forgets it.
func (h *Held) Drop() {
	if h.file != nil {
		h.file.Close()
		h.file = nil
	}
	h.buf.Reset()
	h.size = 0
}
