// Package durabletest is a file system in memory that remembers every operation, so that a test can ask what a disk
// may hold after a power cut behind any of them. It knows the two rules that programs forget: content is safe only
// after fsync of the file, a name only after fsync of its folder.
package durabletest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"mochila/internal/durable"
)

// Loss says which of the things that were not synced a power cut takes. A real disk may mix them; these are the corners.
type Loss int

const (
	LoseAll  Loss = iota // nothing unsynced survives
	LoseNone             // everything survives
	LoseData             // names survive, content is as last synced (a new file is empty)
	LoseTail             // names survive, of the unsynced content only the first half
	LoseName             // content survives, names are as last synced
	numLoss
)

// Losses lists all kinds.
func Losses() []Loss {
	var l []Loss
	for k := range numLoss {
		l = append(l, k)
	}
	return l
}

// String names the kind.
func (l Loss) String() string {
	return [...]string{"lose all", "lose none", "lose data", "lose tail", "lose names"}[l]
}

// inode is a file or folder. Folders have names instead of data.
type inode struct {
	dir          bool
	perm         fs.FileMode
	data, synced []byte
	names        map[string]*inode
	syncedNames  map[string]*inode
}

func newDir() *inode {
	return &inode{dir: true, perm: 0o700, names: map[string]*inode{}, syncedNames: map[string]*inode{}}
}

// Disk is the file system. Its zero value is not ready; see New.
type Disk struct {
	mu    sync.Mutex
	root  *inode
	ops   []op
	fail  func(Op) error
	start *inode // what was there when recording began
}

// Op describes one operation.
type Op struct {
	Kind string // create, write, sync, rename, remove, mkdir, syncdir
	Path string
	To   string // of rename
	Data []byte // of write
	Off  int64
}

// String is the operation as a line of a trace.
func (o Op) String() string {
	switch o.Kind {
	case "write":
		return fmt.Sprintf("write %s %d", o.Path, len(o.Data))
	case "rename":
		return fmt.Sprintf("rename %s %s", o.Path, o.To)
	}
	return o.Kind + " " + o.Path
}

// op is an Op that can be done again: it knows the file itself, since names move.
type op struct {
	Op
	ino *inode
}

// New returns an empty disk.
func New() *Disk { return &Disk{root: newDir(), start: newDir()} }

// FailWith makes every operation ask fn first; its error, if any, is returned and nothing happens.
func (d *Disk) FailWith(fn func(Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = fn
}

// Len is the number of operations so far.
func (d *Disk) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ops)
}

// Trace lists the operations from the n-th on.
func (d *Disk) Trace(n int) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, o := range d.ops[n:] {
		out = append(out, o.String())
	}
	return out
}

// At returns the disk as a power cut right after the first n operations may leave it. The result has no history.
func (d *Disk) At(n int, loss Loss) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := replay{made: map[*inode]*inode{}}
	root := r.copy(d.start)
	for _, o := range d.ops[:n] {
		r.do(root, o)
	}
	crashed := cut(root, loss, map[*inode]*inode{})
	return &Disk{root: crashed, start: (&replay{made: map[*inode]*inode{}}).copy(crashed)}
}

// replay does operations again on copies of the inodes.
type replay struct{ made map[*inode]*inode }

func (r *replay) copy(n *inode) *inode {
	if c := r.made[n]; c != nil {
		return c
	}
	c := &inode{dir: n.dir, perm: n.perm, data: append([]byte(nil), n.data...), synced: append([]byte(nil), n.synced...)}
	r.made[n] = c
	if n.dir {
		c.names, c.syncedNames = map[string]*inode{}, map[string]*inode{}
		for name, x := range n.names {
			c.names[name] = r.copy(x)
		}
		for name, x := range n.syncedNames {
			c.syncedNames[name] = r.copy(x)
		}
	}
	return c
}

func (r *replay) do(root *inode, o op) {
	switch o.Kind {
	case "create":
		n := &inode{perm: o.ino.perm}
		r.made[o.ino] = n
		dir, name := lookupDir(root, o.Path)
		dir.names[name] = n
	case "write":
		r.file(root, o).write(o.Off, o.Data)
	case "sync":
		n := r.file(root, o)
		n.synced = append([]byte(nil), n.data...)
	default:
		apply(root, o.Op)
	}
}

// file is the copy of the file that an operation was done to. One that was there before the recording began is known by
// its name alone.
func (r *replay) file(root *inode, o op) *inode {
	if n := r.made[o.ino]; n != nil {
		return n
	}
	n := lookup(root, o.Path)
	r.made[o.ino] = n
	return n
}

// cut keeps of a tree what survives.
func cut(n *inode, loss Loss, made map[*inode]*inode) *inode {
	if c := made[n]; c != nil {
		return c
	}
	c := &inode{dir: n.dir, perm: n.perm}
	made[n] = c
	if !n.dir {
		switch loss {
		case LoseAll, LoseData:
			c.data = n.synced
		case LoseTail:
			c.data = halfWritten(n.data, n.synced)
		default:
			c.data = n.data
		}
		c.data = append([]byte(nil), c.data...)
		c.synced = append([]byte(nil), c.data...)
		return c
	}
	names := n.names
	if loss == LoseAll || loss == LoseName {
		names = n.syncedNames
	}
	c.names, c.syncedNames = map[string]*inode{}, map[string]*inode{}
	for name, x := range names {
		c.names[name] = cut(x, loss, made)
		c.syncedNames[name] = c.names[name]
	}
	return c
}

// halfWritten is data of which only the first half of what differs from synced has come to the disk.
func halfWritten(data, synced []byte) []byte {
	same := 0
	for same < len(data) && same < len(synced) && data[same] == synced[same] {
		same++
	}
	half := (same + len(data)) / 2
	out := append([]byte(nil), data[:half]...)
	if len(synced) > half {
		out = append(out, synced[half:]...)
	}
	return out
}

func (n *inode) write(off int64, p []byte) {
	if need := int(off) + len(p); need > len(n.data) {
		n.data = append(n.data, make([]byte, need-len(n.data))...)
	}
	copy(n.data[off:], p)
}

// lookup finds a path; nil when it is not there.
func lookup(root *inode, p string) *inode {
	n := root
	for _, e := range elements(p) {
		if n == nil || !n.dir {
			return nil
		}
		n = n.names[e]
	}
	return n
}

// lookupDir finds the folder of a path, and the last element.
func lookupDir(root *inode, p string) (*inode, string) {
	d := lookup(root, path.Dir(filepath.ToSlash(p)))
	if d == nil || !d.dir {
		return nil, ""
	}
	return d, path.Base(filepath.ToSlash(p))
}

func elements(p string) []string {
	var out []string
	for e := range strings.SplitSeq(path.Clean(filepath.ToSlash(p)), "/") {
		if e != "" && e != "." {
			out = append(out, e)
		}
	}
	return out
}

// apply does the operations that name folders' entries.
func apply(root *inode, o Op) error {
	missing := &fs.PathError{Op: o.Kind, Path: o.Path, Err: fs.ErrNotExist}
	switch o.Kind {
	case "rename":
		from, a := lookupDir(root, o.Path)
		to, b := lookupDir(root, o.To)
		if from == nil || to == nil || from.names[a] == nil {
			return missing
		}
		to.names[b] = from.names[a]
		if from != to || a != b {
			delete(from.names, a)
		}
	case "remove":
		dir, name := lookupDir(root, o.Path)
		if dir == nil || dir.names[name] == nil {
			return missing
		}
		if n := dir.names[name]; n.dir && len(n.names) > 0 {
			return &fs.PathError{Op: o.Kind, Path: o.Path, Err: errors.New("directory not empty")}
		}
		delete(dir.names, name)
	case "mkdir":
		n := root
		for _, e := range elements(o.Path) {
			next := n.names[e]
			if next == nil {
				next = newDir()
				n.names[e], n.syncedNames[e] = next, next // durable.FS promises so
			}
			if !next.dir {
				return &fs.PathError{Op: o.Kind, Path: o.Path, Err: fs.ErrExist}
			}
			n = next
		}
	case "syncdir":
		dir := lookup(root, o.Path)
		if dir == nil || !dir.dir {
			return missing
		}
		dir.syncedNames = map[string]*inode{}
		for name, x := range dir.names {
			dir.syncedNames[name] = x
		}
	}
	return nil
}

// step records and does one operation on names.
func (d *Disk) step(o Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		if err := d.fail(o); err != nil {
			return err
		}
	}
	if err := apply(d.root, o); err != nil {
		return err
	}
	d.ops = append(d.ops, op{Op: o})
	return nil
}

// Create implements durable.FS.
func (d *Disk) Create(p string, perm fs.FileMode) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := Op{Kind: "create", Path: p}
	if d.fail != nil {
		if err := d.fail(o); err != nil {
			return nil, err
		}
	}
	dir, name := lookupDir(d.root, p)
	if dir == nil {
		return nil, &fs.PathError{Op: "create", Path: p, Err: fs.ErrNotExist}
	}
	if dir.names[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: p, Err: fs.ErrExist}
	}
	n := &inode{perm: perm}
	dir.names[name] = n
	d.ops = append(d.ops, op{Op: o, ino: n})
	return &file{d: d, n: n, path: p, writable: true}, nil
}

// OpenWrite implements durable.FS.
func (d *Disk) OpenWrite(p string) (durable.File, error) {
	f, err := d.Open(p)
	if err != nil {
		return nil, err
	}
	f.(*file).writable = true
	return f, nil
}

// Open implements durable.FS.
func (d *Disk) Open(p string) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := lookup(d.root, p)
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	if n.dir {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrInvalid}
	}
	return &file{d: d, n: n, path: p}, nil
}

// Rename implements durable.FS.
func (d *Disk) Rename(from, to string) error { return d.step(Op{Kind: "rename", Path: from, To: to}) }

// Remove implements durable.FS.
func (d *Disk) Remove(p string) error { return d.step(Op{Kind: "remove", Path: p}) }

// SyncDir implements durable.FS.
func (d *Disk) SyncDir(p string) error { return d.step(Op{Kind: "syncdir", Path: p}) }

// MkdirAll implements durable.FS; making what is there is no operation.
func (d *Disk) MkdirAll(p string, _ fs.FileMode) error {
	d.mu.Lock()
	n := lookup(d.root, p)
	d.mu.Unlock()
	if n != nil && n.dir {
		return nil
	}
	return d.step(Op{Kind: "mkdir", Path: p})
}

// ReadDir implements durable.FS.
func (d *Disk) ReadDir(p string) ([]fs.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := lookup(d.root, p)
	if n == nil || !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: p, Err: fs.ErrNotExist}
	}
	var out []fs.DirEntry
	for name, x := range n.names {
		out = append(out, fs.FileInfoToDirEntry(info{name, x.mode(), int64(len(x.data))}))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name() < out[j].Name() })
	return out, nil
}

// Lstat implements durable.FS.
func (d *Disk) Lstat(p string) (fs.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := lookup(d.root, p)
	if n == nil {
		return nil, &fs.PathError{Op: "lstat", Path: p, Err: fs.ErrNotExist}
	}
	return info{path.Base(p), n.mode(), int64(len(n.data))}, nil
}

func (n *inode) mode() fs.FileMode {
	if n.dir {
		return n.perm | fs.ModeDir
	}
	return n.perm
}

// info implements fs.FileInfo.
type info struct {
	name string
	mode fs.FileMode
	size int64
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }

// file implements durable.File.
type file struct {
	d        *Disk
	n        *inode
	path     string
	off      int64
	writable bool
	closed   bool
}

func (f *file) check(op string, write bool) error {
	if f.closed {
		return &fs.PathError{Op: op, Path: f.path, Err: fs.ErrClosed}
	}
	if write && !f.writable {
		return &fs.PathError{Op: op, Path: f.path, Err: fs.ErrPermission}
	}
	return nil
}

func (f *file) Read(p []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check("read", false); err != nil {
		return 0, err
	}
	if f.off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[f.off:])
	f.off += int64(n)
	return n, nil
}

func (f *file) Write(p []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check("write", true); err != nil {
		return 0, err
	}
	o := Op{Kind: "write", Path: f.path, Data: append([]byte(nil), p...), Off: f.off}
	if f.d.fail != nil {
		if err := f.d.fail(o); err != nil {
			return 0, err
		}
	}
	f.n.write(f.off, p)
	f.off += int64(len(p))
	f.d.ops = append(f.d.ops, op{Op: o, ino: f.n})
	return len(p), nil
}

func (f *file) Seek(off int64, whence int) (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check("seek", false); err != nil {
		return 0, err
	}
	switch whence {
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		off += int64(len(f.n.data))
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	f.off = off
	return off, nil
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check("sync", false); err != nil {
		return err
	}
	o := Op{Kind: "sync", Path: f.path}
	if f.d.fail != nil {
		if err := f.d.fail(o); err != nil {
			return err
		}
	}
	f.n.synced = append([]byte(nil), f.n.data...)
	f.d.ops = append(f.d.ops, op{Op: o, ino: f.n})
	return nil
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check("close", false); err != nil {
		return err
	}
	f.closed = true
	return nil
}

func (f *file) Stat() (fs.FileInfo, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return info{path.Base(f.path), f.n.mode(), int64(len(f.n.data))}, nil
}

func (f *file) Name() string { return f.path }
