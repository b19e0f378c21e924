package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"mochila/internal/envelope"
)

// roster notes in a file which process runs which job, for the next start, should this process not come to end them. It
// need not survive a crash of the machine: neither do the processes.
type roster struct {
	path string

	mu     sync.Mutex
	f      *os.File      // nil: nothing was noted in this life
	places []envelope.ID // what the file says; zero is free
}

// rosterEntry is the size of one: id of the job, number of the process, its start time as handler.KillGroup takes it. A
// place that is free has no id.
const rosterEntry = 16 + 8 + 8

// note takes a place for the process of a job. The first one begins the file anew: what an earlier life noted has been
// looked up by then.
func (r *roster) note(id envelope.ID, pid int, start uint64) (place int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		if r.f, err = os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			return -1, err
		}
	}
	if place = slices.Index(r.places, id); place < 0 { // it is there if an earlier try could not be cleared
		place = slices.Index(r.places, envelope.ID{})
	}
	if place < 0 {
		place = len(r.places)
		r.places = append(r.places, envelope.ID{})
	}
	b := binary.BigEndian.AppendUint64(id[:len(id):len(id)], uint64(pid))
	if _, err := r.f.WriteAt(binary.BigEndian.AppendUint64(b, start), int64(place)*rosterEntry); err != nil {
		return -1, err
	}
	r.places[place] = id
	return place, nil
}

// clear gives a place back, when no process of the job is left. One that the disk keeps from being cleared is used for
// the next try of the job only, or by the next life: what it says of a process that has gone does no harm.
func (r *roster) clear(place int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.f.WriteAt(make([]byte, rosterEntry), int64(place)*rosterEntry); err == nil {
		r.places[place] = envelope.ID{}
	}
}

// find looks up what an earlier life noted of a job; zero when it did not come to that.
func (r *roster) find(id envelope.ID) (pid int, start uint64, err error) {
	b, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read which processes ran: %w", err)
	}
	for ; len(b) >= rosterEntry; b = b[rosterEntry:] {
		if envelope.ID(b[:16]) == id {
			return int(binary.BigEndian.Uint64(b[16:])), binary.BigEndian.Uint64(b[24:]), nil
		}
	}
	return 0, 0, nil
}

// Close gives the file back.
func (r *roster) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return nil
	}
	err := r.f.Close()
	r.f = nil
	return err
}
