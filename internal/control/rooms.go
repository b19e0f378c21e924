package control

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// rooms are the working directories of jobs: dir/ID, or dir/ID.RANDOM, by the job that one was made for. One that a
// program has left as it found it is kept for the next job of the same handler: to make and remove one costs as much as
// starting a program.
type rooms struct {
	dir string

	mu    sync.Mutex
	swept bool // what earlier lives left is gone
	kept  map[string][]*room
}

// room is one of them.
type room struct {
	path  string
	made  time.Time
	taken time.Time // by the last job
	was   roomState
}

// roomState is what a program cannot change without a trace.
type roomState struct {
	dev, ino       uint64
	mode, uid, gid uint32
	changed        unix.Timespec
}

// settled is the age from which a directory shows every change by its time: file systems count that in ticks of the
// clock, some in whole seconds, and what happens in the tick in which it was made does not show.
func (s *roomState) settled() time.Duration {
	if s.changed.Nsec%int64(time.Millisecond) != 0 {
		return 50 * time.Millisecond
	}
	return 3 * time.Second
}

// take returns an empty directory for a job.
func (r *rooms) take(handler, id string) (*room, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for kept := r.kept[handler]; len(kept) > 0; kept = r.kept[handler] {
		w := kept[len(kept)-1]
		r.kept[handler] = kept[:len(kept)-1]
		if w.untouched() { // still: a process may have left its group before the job ended, and not the room
			w.taken = time.Now()
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
	w := &room{path: filepath.Join(r.dir, id), made: time.Now()}
	w.taken = w.made
	err := os.Mkdir(w.path, 0o700)
	if errors.Is(err, fs.ErrExist) { // made for an earlier try: another job may be in it now
		w.path, err = os.MkdirTemp(r.dir, id+".")
	}
	if err == nil {
		w.was, err = lookAt(w.path)
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
	now, err := lookAt(w.path)
	if err != nil || now != w.was {
		return false
	}
	return w.taken.Sub(w.made) > w.was.settled() || isEmpty(w.path)
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

// lookAt tells how a directory stands.
func lookAt(path string) (roomState, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return roomState{uint64(st.Dev), st.Ino, st.Mode, st.Uid, st.Gid, st.Ctim}, err
}

// isEmpty reports whether nothing is in a directory.
func isEmpty(path string) bool {
	d, err := os.Open(path)
	if err != nil {
		return false
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	return errors.Is(err, io.EOF)
}
