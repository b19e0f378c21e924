// Package tree carries files and folders as one stream, and puts them into their place at the other end whole or not at
// all.
//
// The stream is a POSIX tar (pax) archive, so `tar x` reads it, with more rules than tar has (docs/handlers.md): folders
// before what is in them, names in ascending order, nothing twice, no absolute path and no "..", only files, folders and
// links that stay inside, and a last record that counts and digests what came before. A Reader refuses everything
// else, so a stream that was cut or made by somebody else leaves no trace. Neither side holds more than one folder's
// names in memory.
//
// Owners, hard links (each name becomes a file), extended attributes and set-id bits do not travel; sockets, devices
// and links that lead out are left out and named.
package tree

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"
)

// Bounds of a tree.
const (
	MaxDepth   = 128       // folders in folders
	MaxName    = 255       // bytes of one name
	MaxPath    = 4000      // bytes of a path
	MaxEntries = 2_000_000 // files, folders and links
)

// Version is the first record's.
const Version = "1"

// pax records of the first and the last header.
const (
	recVersion = "MOCHILA.tree"
	recEntries = "MOCHILA.entries"
	recSum     = "MOCHILA.sha256"
)

// ErrFormat is a stream that no Pack has made, or that was cut.
var ErrFormat = errors.New("not a whole tree")

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Kind of an entry.
type Kind byte

const (
	File   Kind = 'f'
	Folder Kind = 'd'
	Link   Kind = 'l'
)

// Entry is one file, folder or link.
type Entry struct {
	Kind    Kind
	Name    string      // slash-separated, relative, clean
	Mode    fs.FileMode // permission bits only
	ModTime time.Time
	Size    int64  // of a file
	Target  string // of a link
}

// Summary counts a tree.
type Summary struct {
	Files, Folders, Links int
	Bytes                 int64  // content of the files
	Sum                   string // SHA-256 over everything, hexadecimal
}

// String is for people.
func (s Summary) String() string {
	noun := "files"
	if s.Files == 1 {
		noun = "file"
	}
	return fmt.Sprintf("%d %s, %d bytes", s.Files, noun, s.Bytes)
}

func (s *Summary) count(e *Entry) {
	switch e.Kind {
	case File:
		s.Files++
		s.Bytes += e.Size
	case Folder:
		s.Folders++
	case Link:
		s.Links++
	}
}

func (s *Summary) entries() int { return s.Files + s.Folders + s.Links }

// digest goes over every entry and every content.
type digest struct{ hash.Hash }

func newDigest() digest { return digest{sha256.New()} }

func (d digest) entry(e *Entry) {
	fmt.Fprintf(d, "%c %o %d %d %q %q\n", e.Kind, e.Mode, e.ModTime.UnixNano(), e.Size, e.Name, e.Target)
}

func (d digest) text() string { return hex.EncodeToString(d.Sum(nil)) }

// CheckName reports whether a path may be in a tree.
func CheckName(name string) error {
	switch {
	case name == "" || len(name) > MaxPath:
		return bad("a path of %d bytes", len(name))
	case strings.IndexByte(name, 0) >= 0:
		return bad("%q has a zero byte", short(name))
	case strings.HasPrefix(name, "/"):
		return bad("%q is absolute", short(name))
	}
	parts := strings.Split(name, "/")
	if len(parts) > MaxDepth {
		return bad("%q is deeper than %d", short(name), MaxDepth)
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || len(p) > MaxName {
			return bad("%q is not a plain path", short(name))
		}
	}
	if strings.HasPrefix(parts[0], stagePrefix) {
		return bad("%q is a name of ours", short(name))
	}
	return nil
}

// CheckLink reports whether a link at name stays inside its tree, whatever the other links are: its target is relative, goes
// up only at its beginning, and no further than to the top folder.
func CheckLink(name, target string) error {
	if target == "" || len(target) > MaxPath || strings.IndexByte(target, 0) >= 0 || strings.HasPrefix(target, "/") {
		return bad("link %q leads to %q", short(name), short(target))
	}
	up, down := 0, false
	for p := range strings.SplitSeq(target, "/") {
		switch p {
		case "", ".":
		case "..":
			if down {
				return bad("link %q goes up in the middle of %q", short(name), short(target))
			}
			up++
		default:
			down = true
		}
	}
	if up >= strings.Count(name, "/") && up > 0 || !strings.Contains(name, "/") {
		return bad("link %q leads out, to %q", short(name), short(target))
	}
	return nil
}

// short is the beginning of what may be long and hostile.
func short(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}

// after reports whether path b comes after a in the order of a walk: folder, then what is in it, names ascending.
func after(a, b string) bool {
	for {
		x, restA, moreA := strings.Cut(a, "/")
		y, restB, moreB := strings.Cut(b, "/")
		switch {
		case x != y:
			return x < y
		case !moreA:
			return moreB
		case !moreB:
			return false
		}
		a, b = restA, restB
	}
}

// Reader reads a stream entry by entry. Only when Next has returned io.EOF was it whole: whoever acts before must be
// able to take it back.
type Reader struct {
	tar   *tar.Reader
	sum   digest
	cur   *Entry
	last  string   // name of the entry before
	open  []string // folders that the next entry may be in, outermost first
	limit int64    // content that may still come; <0: any
	left  int64    // of the current file
	done  bool
	Summary
}

// NewReader reads a stream of the given size, which bounds what the entries may claim; negative: unknown.
func NewReader(r io.Reader, size int64) *Reader {
	return &Reader{tar: tar.NewReader(r), sum: newDigest(), limit: size}
}

// Next returns the next entry. io.EOF comes after the last one, if all was there and as it was packed.
func (r *Reader) Next() (*Entry, error) {
	if r.done {
		return nil, io.EOF
	}
	if r.left > 0 {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return nil, err
		}
	}
	first := r.cur == nil
	h, err := r.header()
	if err != nil {
		return nil, err
	}
	if first {
		if h.Typeflag != tar.TypeXGlobalHeader || h.PAXRecords[recVersion] != Version {
			return nil, bad("no tree, or one of another version")
		}
		r.cur = &Entry{}
		if h, err = r.header(); err != nil {
			return nil, err
		}
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, r.end(h)
	}
	e, err := r.entry(h)
	if err != nil {
		return nil, err
	}
	if err := r.place(e); err != nil {
		return nil, err
	}
	r.count(e)
	if r.entries() > MaxEntries {
		return nil, bad("more than %d entries", MaxEntries)
	}
	r.sum.entry(e)
	r.cur, r.last, r.left = e, e.Name, e.Size
	return e, nil
}

func (r *Reader) header() (*tar.Header, error) {
	h, err := r.tar.Next()
	switch {
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, bad("it ends too early")
	case errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong):
		return nil, bad("%v", err)
	case err != nil:
		return nil, fmt.Errorf("read the tree: %w", err)
	}
	return h, nil
}

// entry turns a header into an entry, or refuses it.
func (r *Reader) entry(h *tar.Header) (*Entry, error) {
	e := &Entry{Name: h.Name, Mode: fs.FileMode(h.Mode) & fs.ModePerm, ModTime: h.ModTime, Target: h.Linkname}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Kind, e.Size = File, h.Size
	case tar.TypeDir:
		e.Kind, e.Name = Folder, strings.TrimSuffix(h.Name, "/")
	case tar.TypeSymlink:
		e.Kind = Link
	default:
		return nil, bad("%q is of a kind that no tree has (%q)", short(h.Name), h.Typeflag)
	}
	if err := CheckName(e.Name); err != nil {
		return nil, err
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse") {
			return nil, bad("%q is a sparse file", short(h.Name))
		}
	}
	switch {
	case e.Kind == Link:
		if err := CheckLink(e.Name, e.Target); err != nil {
			return nil, err
		}
	case e.Target != "":
		return nil, bad("%q is no link and has a target", short(e.Name))
	}
	if e.Size < 0 || r.limit >= 0 && e.Size > r.limit-r.Bytes {
		return nil, bad("%q claims %d bytes, more than came", short(e.Name), h.Size)
	}
	return e, nil
}

// place refuses an entry that is not where it may be: after the one before, in a folder that is open.
func (r *Reader) place(e *Entry) error {
	if r.last != "" && !after(r.last, e.Name) {
		return bad("%q after %q", short(e.Name), short(r.last))
	}
	dir := path.Dir(e.Name)
	for len(r.open) > 0 && r.open[len(r.open)-1] != dir {
		r.open = r.open[:len(r.open)-1]
	}
	if dir != "." && len(r.open) == 0 {
		return bad("%q is in a folder that did not come", short(e.Name))
	}
	if e.Kind == Folder {
		r.open = append(r.open, e.Name)
	}
	return nil
}

// Read reads the content of the current file.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.tar.Read(p)
	r.left -= int64(n)
	r.sum.Write(p[:n])
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = bad("it ends too early")
	}
	return n, err
}

// end checks the last record, and that nothing follows.
func (r *Reader) end(h *tar.Header) error {
	if n := h.PAXRecords[recEntries]; n != strconv.Itoa(r.entries()) {
		return bad("it has %d entries, not %s", r.entries(), short(n))
	}
	r.Sum = r.sum.text()
	if h.PAXRecords[recSum] != r.Sum {
		return bad("its digest is not that of what came")
	}
	if _, err := r.tar.Next(); err != io.EOF {
		return bad("something follows its end")
	}
	r.done = true
	return io.EOF
}
