package durable

import "sync"

// DirSyncer lets concurrent writers share one fsync of a folder. It is ready to use after setting FS.
type DirSyncer struct {
	FS FS

	mu   sync.Mutex
	dirs map[string]*dirQueue // folders with an fsync under way
}

// dirQueue is the fsync that those wait for who came while another one was running.
type dirQueue struct{ next *dirCall }

// dirCall is one fsync with its result.
type dirCall struct {
	lead chan struct{} // one waiter gets the token and runs the fsync
	done chan struct{}
	err  error
}

// Sync returns when a SyncDir of path that began after this call has ended, with its error. While one runs, everybody
// who calls is served by the next one, which one of them performs.
func (d *DirSyncer) Sync(path string) error {
	d.mu.Lock()
	q := d.dirs[path]
	if q == nil {
		if d.dirs == nil {
			d.dirs = make(map[string]*dirQueue)
		}
		d.dirs[path] = &dirQueue{}
		d.mu.Unlock()
		err := d.FS.SyncDir(path)
		d.pass(path)
		return err
	}
	if q.next == nil {
		q.next = &dirCall{lead: make(chan struct{}, 1), done: make(chan struct{})}
	}
	c := q.next
	d.mu.Unlock()

	select {
	case <-c.done:
		return c.err
	case <-c.lead:
	}
	d.mu.Lock()
	q.next = nil // whoever comes from here on may have changed the folder after our fsync began
	d.mu.Unlock()
	c.err = d.FS.SyncDir(path)
	close(c.done)
	d.pass(path)
	return c.err
}

// pass lets one of those who wait go on, or forgets the folder.
func (d *DirSyncer) pass(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.dirs[path].next; c != nil {
		c.lead <- struct{}{}
		return
	}
	delete(d.dirs, path)
}
