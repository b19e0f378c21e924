package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// errZ says that a file of compress(1) is broken.
var errZ = errors.New("not a file of compress")

// zReader reads what compress(1) wrote (.Z), as rcsmtp batches are: LZW with codes of 9 to 10…16 bits, low bits first (compress
// -b 9 writes something else, which is refused). It
// needs 256 KiB however large the input is.
type zReader struct {
	r       *bufio.Reader
	maxBits uint
	block   bool // code 256 empties the table
	bits    uint // width of the codes now
	next    int  // first code that is free
	prev    int  // code before, -1: none
	first   byte // first byte of what it stood for
	prefix  []uint16
	suffix  []byte
	group   [16]byte // eight codes are written together, as many bytes as a code has bits
	have    int      // bytes in group
	at      uint     // bits taken of it
	out     []byte   // decoded, not read yet
	stack   []byte
	err     error
}

const zClear = 256

// newZReader reads the header.
func newZReader(r io.Reader) (*zReader, error) {
	z := &zReader{r: bufio.NewReader(r), bits: 9, prev: -1}
	var h [3]byte
	if _, err := io.ReadFull(z.r, h[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", errZ, err)
	}
	z.maxBits, z.block = uint(h[2]&0x1f), h[2]&0x80 != 0
	if h[0] != 0x1f || h[1] != 0x9d || h[2]&0x60 != 0 || z.maxBits < 10 || z.maxBits > 16 {
		return nil, errZ
	}
	z.prefix, z.suffix = make([]uint16, 1<<z.maxBits), make([]byte, 1<<z.maxBits)
	for i := range 256 {
		z.suffix[i] = byte(i)
	}
	z.reset()
	return z, nil
}

func (z *zReader) reset() {
	z.bits, z.prev, z.next = 9, -1, 256
	if z.block {
		z.next = 257
	}
	z.have, z.at = 0, 0
}

// code reads the next one; -1 at the end.
func (z *zReader) code() (int, error) {
	if z.at+z.bits > uint(z.have)*8 {
		n, err := io.ReadFull(z.r, z.group[:z.bits])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return 0, err
		}
		z.have, z.at = n, 0
		if uint(n)*8 < z.bits {
			return -1, nil
		}
	}
	v := 0
	for i := range z.bits {
		p := z.at + i
		v |= int(z.group[p/8]>>(p%8)&1) << i
	}
	z.at += z.bits
	return v, nil
}

// Read implements io.Reader.
func (z *zReader) Read(p []byte) (int, error) {
	for len(z.out) == 0 {
		if z.err == nil {
			z.err = z.step()
		}
		if z.err != nil {
			return 0, z.err
		}
	}
	n := copy(p, z.out)
	z.out = z.out[n:]
	return n, nil
}

// step decodes one code.
func (z *zReader) step() error {
	if z.next > 1<<z.bits-1 && z.bits < z.maxBits {
		z.bits++
		z.have, z.at = 0, 0 // the rest of the group is padding
	}
	c, err := z.code()
	if err != nil {
		return err
	}
	if c < 0 {
		return io.EOF
	}
	if c == zClear && z.block {
		z.reset()
		return nil
	}
	if z.prev < 0 {
		if c > 255 {
			return fmt.Errorf("%w: it begins with code %d", errZ, c)
		}
		z.prev, z.first = c, byte(c)
		z.out = append(z.out[:0], byte(c))
		return nil
	}
	in := c
	z.stack = z.stack[:0]
	if c >= z.next {
		if c > z.next {
			return fmt.Errorf("%w: code %d before its time", errZ, c)
		}
		z.stack = append(z.stack, z.first)
		c = z.prev
	}
	for c > 255 {
		z.stack = append(z.stack, z.suffix[c])
		c = int(z.prefix[c])
	}
	z.first = byte(c)
	z.stack = append(z.stack, z.first)
	if z.next < 1<<z.maxBits {
		z.prefix[z.next], z.suffix[z.next] = uint16(z.prev), z.first
		z.next++
	}
	z.prev = in
	z.out = z.out[:0]
	for i := len(z.stack) - 1; i >= 0; i-- {
		z.out = append(z.out, z.stack[i])
	}
	return nil
}
