package transport

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// lookAgain is how often a watch makes sure that it watches the right directory: a mount replaces it unseen.
const lookAgain = 10 * time.Second

// Watch implements Watcher with the notifications of the system. While dir does not exist, the nearest directory
// above it is watched, so that a stick's folder is noticed when it appears.
func (d *Dir) Watch(ctx context.Context, dir string) <-chan struct{} {
	hints := make(chan struct{}, 1)
	w := &dirWatch{full: filepath.Join(d.root, filepath.FromSlash(dir)), hints: hints}
	go w.run(ctx)
	return hints
}

type dirWatch struct {
	full  string
	hints chan struct{}
	fs    *fsnotify.Watcher
	at    string      // what is watched
	info  os.FileInfo // its identity
}

func (w *dirWatch) run(ctx context.Context) {
	defer close(w.hints)
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		<-ctx.Done() // out of watches: the rescan does it alone
		return
	}
	defer fs.Close()
	w.fs = fs
	w.follow()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if w.follow() {
				w.hint()
			}
		case e := <-fs.Events:
			if w.concerns(e) && w.follow() || w.at == w.full && isArrival(e) {
				w.hint()
			}
		case <-fs.Errors: // an overflow: something was missed
			w.hint()
		}
	}
}

// concerns reports whether an event may change which directory is the deepest that exists: not every file beside it does.
func (w *dirWatch) concerns(e fsnotify.Event) bool {
	return e.Name == w.at || w.at != w.full && strings.HasPrefix(w.full+"/", e.Name+"/")
}

func isArrival(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	return name[0] != '.' && name[0] != '~' && e.Op&(fsnotify.Create|fsnotify.Write|fsnotify.Rename) != 0
}

func (w *dirWatch) hint() {
	select {
	case w.hints <- struct{}{}:
	default:
	}
}

// follow watches the deepest directory of the path that exists, and reports whether that is another one than before.
func (w *dirWatch) follow() (moved bool) {
	for range 16 { // a directory may appear while its parent is being added: look again then
		at, info := deepest(w.full)
		if info == nil || at == w.at && os.SameFile(info, w.info) {
			return moved
		}
		if w.at != "" {
			w.fs.Remove(w.at) // gone already, if the directory is
		}
		w.at, w.info, moved = at, info, true
		if w.fs.Add(at) != nil {
			w.at = ""
			return moved
		}
	}
	return moved
}

func deepest(full string) (string, os.FileInfo) {
	for at := full; ; at = filepath.Dir(at) {
		if fi, err := os.Stat(at); err == nil && fi.IsDir() {
			return at, fi
		}
		if at == filepath.Dir(at) {
			return "", nil
		}
	}
}
