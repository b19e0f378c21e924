package spool

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The index is copy-on-write: even deleting needs new pages first. When somebody else fills the disk to the last byte,
// outcomes could not be recorded any more, and what was delivered would be delivered again. So a spool keeps a file of
// allocated blocks and throws it off then; from that moment until there is room for a new one, or plenty of free pages
// inside the index, it takes no more mail.
type ballast struct {
	path string
	size int64 // 0: none wanted
	held bool
}

// openBallast makes the file, if the disk is not so small or full that it would do harm. Failure is no error: it only
// means that there is nothing to throw off.
func (s *Spool) openBallast() {
	s.ballast = ballast{path: s.path("ballast"), size: s.o.Ballast}
	if s.ballast.size <= 0 {
		s.ballast.size = 0
		os.Remove(s.ballast.path)
		return
	}
	if st, err := os.Lstat(s.ballast.path); err == nil && st.Mode().IsRegular() && st.Size() == s.ballast.size {
		s.ballast.held = true
		return
	}
	if !s.takeBallast() && !s.ballast.held {
		s.ballast.size = 0
	}
}

// ballastRoom is how many times its own size a ballast wants to see free.
const ballastRoom = 8

// takeBallast allocates the file.
func (s *Spool) takeBallast() bool {
	b := &s.ballast
	if free, _, err := s.o.Free(); err != nil || free < ballastRoom*b.size || s.room(false) != nil {
		return false
	}
	os.Remove(b.path)
	f, err := os.OpenFile(b.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return false
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, b.size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(b.path)
		return false
	}
	b.held = true
	return true
}

// dropBallast makes room for what must be recorded now; false when there was nothing to drop.
func (s *Spool) dropBallast() bool {
	if !s.ballast.held {
		return false
	}
	if err := os.Remove(s.ballast.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	s.ballast.held = false
	return true
}

// low reports whether the ballast is gone and nothing has taken its place: free pages of the index do, when they are many
// for its size too. Among few of them a run that is long enough for what is written next may be missing. Only the writer
// calls it.
func (s *Spool) low() bool {
	if s.ballast.size == 0 || s.ballast.held || s.takeBallast() {
		return false
	}
	free := int64(s.db.Stats().FreePageN) * int64(s.db.Info().PageSize)
	st, err := os.Stat(s.path(indexFile))
	return err != nil || free < 2*s.ballast.size || free < st.Size()/4
}
