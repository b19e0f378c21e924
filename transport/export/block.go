// Package export writes packets as one stream of blocks that needs no way back, no file system and no beginning (tape,
// disc image, data diode, broadcast), and puts together what a reader finds of such streams: docs/export.md.
//
// Nothing here opens a packet. A packet is verified against its name before it is handed on, and is never held in memory.
package export

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"mochila/internal/envelope"
)

// HeaderSize is the length of a block's header.
const HeaderSize = 72

const (
	version    = 1
	flagLast   = 1
	minBlock   = 64
	maxBlock   = 1 << 20
	maxStripe  = 16 << 20 // bytes of all shards of a stripe
	maxContent = 1 << 40  // bytes of a set
	noPacket   = 1<<32 - 1
	headerSum  = 52 // where the CRC stands
)

var magic = []byte{0x89, 'm', 'c', 'x'}

// SetID names one run of export for one neighbour.
type SetID [8]byte

// Header is what a block says of itself.
type Header struct {
	Last         bool // stripe: the content ends with it
	Data, Parity int  // shards of a stripe
	Shard        int
	Block        int // payload of the blocks of all stripes but the last
	Set          SetID
	From, To     envelope.Label
	Stripe       int64
	First        uint32 // where in the content of the stripe the first packet begins; noPacket
	Content      int    // bytes of content in the stripe
}

// Block is a header and its payload.
type Block struct {
	Header
	Payload []byte
}

// errBlock says that something is not the header of a block.
var errBlock = errors.New("not a block")

// whole is the content of every stripe but the last.
func (h *Header) whole() int { return h.Data * h.Block }

// payload is how many bytes follow the header.
func (h *Header) payload() int { return (h.Content + h.Data - 1) / h.Data }

// check holds a header against the limits of docs/export.md.
func (h *Header) check() error {
	switch {
	case h.Data < 1 || h.Data+h.Parity > 256 || h.Shard >= h.Data+h.Parity:
		return fmt.Errorf("%w: shard %d of %d and %d", errBlock, h.Shard, h.Data, h.Parity)
	case h.Block < minBlock || h.Block > maxBlock || (h.Data+h.Parity)*h.Block > maxStripe:
		return fmt.Errorf("%w: blocks of %d bytes", errBlock, h.Block)
	case h.Content < 1 || h.Content > h.whole() || !h.Last && h.Content != h.whole():
		return fmt.Errorf("%w: stripe of %d bytes", errBlock, h.Content)
	case h.First != noPacket && int64(h.First) >= int64(h.Content):
		return fmt.Errorf("%w: packet behind the end of its stripe", errBlock)
	case h.Stripe < 0 || h.Stripe > (maxContent-int64(h.whole()))/int64(h.whole()):
		return fmt.Errorf("%w: stripe %d", errBlock, h.Stripe)
	}
	return nil
}

// append adds the header of a block with this payload.
func (h *Header) append(b, payload []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	flags := byte(0)
	if h.Last {
		flags = flagLast
	}
	b = append(b, version, flags, byte(h.Data), byte(h.Parity), byte(h.Shard), byte(h.Block>>16), byte(h.Block>>8), byte(h.Block))
	b = append(append(append(b, h.Set[:]...), h.From[:]...), h.To[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(h.Stripe>>32))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Stripe))
	b = binary.BigEndian.AppendUint32(b, h.First)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Content))
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	sum := blockSum(b[start:start+headerSum], payload)
	return append(b, sum[:]...)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockSum is the hash of a block.
func blockSum(head, payload []byte) (sum [16]byte) {
	h := sha256.New()
	h.Write(head)
	h.Write(payload)
	copy(sum[:], h.Sum(nil))
	return sum
}

// parseHeader reads the header of a block.
func parseHeader(b []byte) (h Header, err error) {
	if len(b) < HeaderSize || !bytes.Equal(b[:4], magic) || crc32.Checksum(b[:headerSum], castagnoli) != binary.BigEndian.Uint32(b[headerSum:]) {
		return h, errBlock
	}
	if b[4] != version {
		return h, fmt.Errorf("%w: version %d of the stream, this program reads version %d", errBlock, b[4], version)
	}
	if b[5]&^flagLast != 0 || b[50]|b[51] != 0 {
		return h, fmt.Errorf("%w: unknown flags", errBlock)
	}
	h = Header{
		Last: b[5]&flagLast != 0, Data: int(b[6]), Parity: int(b[7]), Shard: int(b[8]), Block: int(b[9])<<16 | int(b[10])<<8 | int(b[11]),
		Set: SetID(b[12:20]), From: envelope.Label(b[20:28]), To: envelope.Label(b[28:36]),
		Stripe: int64(binary.BigEndian.Uint16(b[36:]))<<32 | int64(binary.BigEndian.Uint32(b[38:])),
		First:  binary.BigEndian.Uint32(b[42:]),
	}
	content := binary.BigEndian.Uint32(b[46:])
	if content > maxStripe {
		return h, fmt.Errorf("%w: stripe of %d bytes", errBlock, content)
	}
	h.Content = int(content)
	return h, h.check()
}

// intact reports whether a header and its payload are those that were written.
func intact(head, payload []byte) bool {
	return blockSum(head[:headerSum], payload) == [16]byte(head[headerSum+4:HeaderSize])
}

// Peek reads the header at the beginning of a stream that was just written, and tells how long the block is; 0: its header is not
// all there yet.
func Peek(b []byte) (h Header, size int, err error) {
	if len(b) < HeaderSize {
		return h, 0, nil
	}
	if h, err = parseHeader(b); err != nil {
		return h, 0, err
	}
	return h, HeaderSize + h.payload(), nil
}
