package control

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// rooms are the working directories of jobs: dir/ID, by the job that one was made for. One that a program has left as it
// found it is kept for the next job of the same handler: to make and remove one costs as much as starting a program.
type rooms struct {
	dir string

	mu    sync.Mutex
	swept bool // what earlier lives left is gone
	kept  map[string][]*room
}

// room is one of them.
type room struct {
	path string
	was  roomState
}

// roomState is what a program cannot change without a trace.
type roomState struct {
	dev, ino       uint64
	mode, uid, gid uint32
	changed        unix.Timespec
}

// take returns an empty directory for a job.
func (r *rooms) take(handler, id string) (*room, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for kept := r.kept[handler]; len(kept) > 0; kept = r.kept[handler] {
		w := kept[len(kept)-1]
		r.kept[handler] = kept[:len(kept)-1]
		if w.untouched() { // still: a process may have left its group before the job ended, and not the room
			return w, nil
		}
		os.RemoveAll(w.path)
	}
	if !r.swept {
		if err := r.sweep(); err != nil {
			return nil, err
		}
		r.swept = true
	}
	w := &room{path: filepath.Join(r.dir, id)}
	err := os.Mkdir(w.path, 0o700)
	if errors.Is(err, fs.ErrExist) { // of an earlier try, whose end the disk did not let us see
		err = errors.Join(os.RemoveAll(w.path), os.Mkdir(w.path, 0o700))
	}
	if err == nil {
		w.was, _, err = lookInto(w.path)
	}
	return w, err
}

// give takes a directory back: it is kept, or removed.
func (r *rooms) give(handler string, w *room) {
	if !w.untouched() {
		os.RemoveAll(w.path)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept == nil {
		r.kept = map[string][]*room{}
	}
	r.kept[handler] = append(r.kept[handler], w)
}

// untouched reports whether a directory is as it was made.
func (w *room) untouched() bool {
	now, empty, err := lookInto(w.path)
	return err == nil && empty && now == w.was
}

// sweep makes the folder of all, and removes what is left of those that a crash kept from being removed.
func (r *rooms) sweep() error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	list, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.IsDir() {
			os.RemoveAll(filepath.Join(r.dir, e.Name()))
		}
	}
	return nil
}

// Close removes those that are kept.
func (r *rooms) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kept := range r.kept {
		for _, w := range kept {
			os.Remove(w.path)
		}
	}
	r.kept = nil
}

// lookInto tells how a directory stands, and whether it is empty.
func lookInto(path string) (s roomState, empty bool, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return s, false, err
	}
	s = roomState{uint64(st.Dev), st.Ino, st.Mode, st.Uid, st.Gid, st.Ctim}
	var buf [512]byte
	for {
		n, err := unix.ReadDirent(fd, buf[:])
		if err != nil || n <= 0 {
			return s, err == nil, err
		}
		if _, names, _ := unix.ParseDirent(buf[:n], 1, nil); names > 0 { // it skips . and ..
			return s, false, nil
		}
	}
}
