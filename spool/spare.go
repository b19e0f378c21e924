package spool

import (
	"io"
	"sync"

	"mochila/internal/durable"
)

// Files of mail that has ended are written again for mail that comes: making a file, growing it and removing it cost the
// journal of the file system more than all else that a larger mail costs, and what lies in the file already costs an
// fdatasync that touches no journal. A file comes here when the commit that ended its item is durable, and nobody reads
// it; from then on it is a leftover like any other, which the next Open removes. Such a file may be longer than the
// content that it is given next: the index knows how long that is.
//
// Only mail is stored so: the input of a job is handed to programs as the file itself.
type spareFiles struct {
	// gate is held by those who look up a file in the index and open it, and against them by who puts it here.
	gate sync.RWMutex

	mu      sync.Mutex
	files   []spareFile // the last one is taken first: its pages are in memory
	bytes   int64
	readers map[fileName]int
}

type spareFile struct {
	name fileName
	size int64
}

// Bounds of what is kept: files, and bytes of one.
const (
	maxSpares    = 64
	maxSpareSize = 16 << 20
	// spareRoom is how many times what is kept must be free on the disk.
	spareRoom = 8
)

// take gives the file that came last.
func (p *spareFiles) take() (f spareFile, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.files) - 1
	if n < 0 {
		return f, false
	}
	f = p.files[n]
	p.files = p.files[:n]
	p.bytes -= f.size
	return f, true
}

// put keeps a file, unless there are enough.
func (p *spareFiles) put(f spareFile, limit int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.files) >= maxSpares || f.size > maxSpareSize || p.bytes+f.size > limit {
		return false
	}
	p.files = append(p.files, f)
	p.bytes += f.size
	return true
}

// drain takes all of them.
func (p *spareFiles) drain() []spareFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.files
	p.files, p.bytes = nil, 0
	return all
}

// read notes a reader of a file, until the function that it returns is called.
func (p *spareFiles) read(n fileName) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readers == nil {
		p.readers = make(map[fileName]int)
	}
	p.readers[n]++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.readers[n]--; p.readers[n] == 0 {
			delete(p.readers, n)
		}
	})
}

// unread reports whether nobody reads a file. Those who were looking it up have opened it by then.
func (p *spareFiles) unread(n fileName) bool {
	p.gate.Lock()
	defer p.gate.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.readers[n] == 0
}

// retire removes the file of an item that has ended, or keeps it to be written again. No index mentions it any more.
func (s *Spool) retire(d discard) {
	if d.again && s.keepFile(d.name) {
		return
	}
	s.o.FS.Remove(s.bodyPath(d.name)) // a leftover is removed by the next Open
	s.bodies.remove(d.name)
}

func (s *Spool) keepFile(n fileName) bool {
	if s.o.Spare <= 0 || !s.spares.unread(n) {
		return false
	}
	st, err := s.o.FS.Lstat(s.bodyPath(n))
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	free, _, err := s.o.Free()
	if err != nil || free < spareRoom*min(s.o.Spare, maxSpares*st.Size()) || s.short(false) != nil {
		return false
	}
	return s.spares.put(spareFile{n, st.Size()}, s.o.Spare)
}

// dropSpares removes the files that are kept. It reports whether there were any.
func (s *Spool) dropSpares() bool {
	all := s.spares.drain()
	for _, f := range all {
		s.o.FS.Remove(s.bodyPath(f.name))
		s.bodies.remove(f.name)
	}
	return len(all) > 0
}

// spareBody opens a kept file; false when there is none.
func (s *Spool) spareBody() (durable.File, fileName, bool) {
	for {
		sp, ok := s.spares.take()
		if !ok {
			return nil, fileName{}, false
		}
		f, err := s.o.FS.OpenWrite(s.bodyPath(sp.name))
		if err == nil {
			return f, sp.name, true
		}
		s.o.FS.Remove(s.bodyPath(sp.name))
		s.bodies.remove(sp.name)
	}
}

// discard is a body file that no index mentions any more.
type discard struct {
	name  fileName
	again bool // it may be written again
}

// bodyFile is the content of a mail: the first size bytes of a file, which nobody writes to while it is open.
type bodyFile struct {
	durable.File
	at, size int64
	done     func()
}

// Read implements io.Reader.
func (b *bodyFile) Read(p []byte) (int, error) {
	left := b.size - b.at
	if left <= 0 {
		return 0, io.EOF
	}
	n, err := b.File.Read(p[:min(int64(len(p)), left)])
	b.at += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (b *bodyFile) Seek(off int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		off, whence = b.size+off, io.SeekStart
	}
	at, err := b.File.Seek(off, whence)
	if err == nil {
		b.at = at
	}
	return at, err
}

// Close implements io.Closer.
func (b *bodyFile) Close() error {
	b.done()
	return b.File.Close()
}
