package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
)

// A set's blocks lie in files of some stripes each, so that what was taken can be deleted while the rest still comes:
//
//	for each stripe  first packet 4, bytes of content 4
//	for each stripe  its shards, one behind the other

// errLost says that blocks that were kept are no longer there, or cannot be read: their medium has to be read again.
var errLost = errors.New("blocks that were kept are lost")

// segmentBytes is about how much content is in one file.
const segmentBytes = 8 << 20

// segments is the folder of a set's files. A few stay open.
type segments struct {
	root    *os.Root
	dir     string
	h       Header // its shape
	stripes int64  // in a file
	open    []*segment
}

type segment struct {
	n int64
	f *os.File
}

const openSegments = 4

func newSegments(root *os.Root, dir string, h Header) *segments {
	return &segments{root: root, dir: dir, h: h, stripes: max(1, int64(segmentBytes/h.whole()))}
}

func (s *segments) name(n int64) string { return fmt.Sprintf("%s/%012x", s.dir, n) }

// file returns the file of a stripe; make says that it may be a new one.
func (s *segments) file(stripe int64, make bool) (*os.File, error) {
	n := stripe / s.stripes
	for i, x := range s.open {
		if x.n == n {
			copy(s.open[1:i+1], s.open[:i]) // the one used last is first
			s.open[0] = x
			return x.f, nil
		}
	}
	how := os.O_RDWR
	if make {
		how |= os.O_CREATE
	}
	f, err := s.root.OpenFile(s.name(n), how, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open blocks: %w: %w", errLost, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open blocks: %w", err)
	}
	if len(s.open) == openSegments {
		last := s.open[openSegments-1].f // it stays for long: what the state says of it has to be true
		s.open = s.open[:openSegments-1]
		if err := errors.Join(last.Sync(), last.Close()); err != nil {
			f.Close()
			return nil, fmt.Errorf("store blocks: %w", err)
		}
	}
	s.open = append([]*segment{{n, f}}, s.open...)
	return f, nil
}

// at is where a byte of a stripe's shards lies in its file.
func (s *segments) at(stripe, off int64) int64 {
	return 8*s.stripes + stripe%s.stripes*int64((s.h.Data+s.h.Parity)*s.h.Block) + off
}

// put stores a block; make says that it may be the first in its file.
func (s *segments) put(b *Block, make bool) error {
	f, err := s.file(b.Stripe, make)
	if err != nil {
		return err
	}
	var meta [8]byte
	binary.BigEndian.PutUint32(meta[:], b.First)
	binary.BigEndian.PutUint32(meta[4:], uint32(b.Content))
	if _, err := f.WriteAt(meta[:], b.Stripe%s.stripes*8); err != nil {
		return fmt.Errorf("store block: %w", err)
	}
	if _, err := f.WriteAt(b.Payload, s.at(b.Stripe, int64(b.Shard*b.payload()))); err != nil {
		return fmt.Errorf("store block: %w", err)
	}
	return nil
}

// meta returns where the first packet of a stripe begins, and how much content it has.
func (s *segments) meta(stripe int64) (first uint32, content int, err error) {
	f, err := s.file(stripe, false)
	if err != nil {
		return 0, 0, err
	}
	var meta [8]byte
	if _, err := f.ReadAt(meta[:], stripe%s.stripes*8); err != nil {
		return 0, 0, fmt.Errorf("read block: %w: %w", errLost, err)
	}
	content = int(binary.BigEndian.Uint32(meta[4:]))
	if content < 1 || content > s.h.whole() {
		return 0, 0, fmt.Errorf("%w: stripe %d is said to have %d bytes", errLost, stripe, content)
	}
	return binary.BigEndian.Uint32(meta[:]), content, nil
}

// shard reads or writes one shard of a stripe.
func (s *segments) shard(stripe int64, shard int, b []byte, write bool) error {
	f, err := s.file(stripe, false)
	if err != nil {
		return err
	}
	at := s.at(stripe, int64(shard*len(b)))
	if write {
		_, err = f.WriteAt(b, at)
	} else if _, err = f.ReadAt(b, at); err != nil {
		err = fmt.Errorf("%w: %w", errLost, err)
	}
	if err != nil {
		return fmt.Errorf("shard %d of stripe %d: %w", shard, stripe, err)
	}
	return nil
}

// content reads the content of a set from one offset up to another. What is not there is errLost, never the end.
type content struct {
	s       *segments
	off, to int64
}

func (c *content) Read(p []byte) (int, error) {
	if c.off >= c.to {
		return 0, io.EOF
	}
	whole := int64(c.s.h.whole())
	stripe, in := c.off/whole, c.off%whole
	f, err := c.s.file(stripe, false)
	if err != nil {
		return 0, err
	}
	n := min(int64(len(p)), whole-in, c.to-c.off)
	k, err := f.ReadAt(p[:n], c.s.at(stripe, in))
	c.off += int64(k)
	if int64(k) == n {
		return k, nil
	}
	return k, fmt.Errorf("%w: stripe %d: %w", errLost, stripe, err)
}

// remove deletes the file of a segment.
func (s *segments) remove(n int64) error {
	for i, x := range s.open {
		if x.n == n {
			x.f.Close()
			s.open = append(s.open[:i], s.open[i+1:]...)
			break
		}
	}
	if err := s.root.Remove(s.name(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blocks: %w", err)
	}
	return nil
}

// sync makes what is in the open files outlive the power, but for those of segments that are about to go.
func (s *segments) sync(gone []int64) (err error) {
	for _, x := range s.open {
		if !slices.Contains(gone, x.n) {
			err = errors.Join(err, x.f.Sync())
		}
	}
	return err
}

// there lists the segments that have a file.
func (s *segments) there() (all []int64, err error) {
	d, err := s.root.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		if n, err := strconv.ParseInt(name, 16, 64); err == nil && s.dir+"/"+name == s.name(n) {
			all = append(all, n)
		}
	}
	return all, err
}

// close closes all files, after a sync if they are to outlive the power.
func (s *segments) close(sync bool) (err error) {
	for _, x := range s.open {
		if sync {
			err = errors.Join(err, x.f.Sync())
		}
		err = errors.Join(err, x.f.Close())
	}
	s.open = nil
	return err
}
