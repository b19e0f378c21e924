package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Source is one file or folder to pack.
type Source struct {
	Root *os.Root
	Path string // in Root, not a link
	Name string // in the tree: one element
}

// Pack writes a tree of the sources. note is told what is left out or has changed meanwhile, and why. When it fails, what
// was written is no whole tree, and no Reader takes it for one.
func Pack(w io.Writer, sources []Source, note func(string)) (Summary, error) {
	p := &packer{tar: tar.NewWriter(w), sum: newDigest(), note: note}
	slices.SortFunc(sources, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	if err := p.global(map[string]string{recVersion: Version}); err != nil {
		return p.s, err
	}
	for i, s := range sources {
		if i > 0 && s.Name == sources[i-1].Name {
			return p.s, fmt.Errorf("two things have the name %q", s.Name)
		}
		if strings.Contains(s.Name, "/") {
			return p.s, fmt.Errorf("%q is not one name", s.Name)
		}
		if err := p.walk(s.Root, s.Path, s.Name); err != nil {
			return p.s, err
		}
	}
	p.s.Sum = p.sum.text()
	err := p.global(map[string]string{recEntries: strconv.Itoa(p.s.entries()), recSum: p.s.Sum})
	if err == nil {
		err = p.tar.Close()
	}
	return p.s, err
}

type packer struct {
	tar  *tar.Writer
	sum  digest
	note func(string)
	s    Summary
}

func (p *packer) global(records map[string]string) error {
	return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "mochila", PAXRecords: records, Format: tar.FormatPAX})
}

func (p *packer) skip(format string, args ...any) {
	if p.note != nil {
		p.note(fmt.Sprintf(format, args...))
	}
}

// walk packs what is at at under a name, with all that is in it.
func (p *packer) walk(root *os.Root, at, name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("pack %q: %w", at, err)
	}
	fi, err := root.Lstat(at)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	e := &Entry{Name: name, Mode: fi.Mode().Perm(), ModTime: fi.ModTime()}
	switch {
	case fi.Mode().IsRegular():
		return p.file(root, at, e, fi)
	case fi.IsDir():
		e.Kind = Folder
		if err := p.header(e); err != nil {
			return err
		}
		return p.folder(root, at, name)
	case fi.Mode()&fs.ModeSymlink != 0:
		e.Kind = Link
		if e.Target, err = root.Readlink(at); err != nil {
			return fmt.Errorf("pack: %w", err)
		}
		e.Target = filepath.ToSlash(e.Target)
		if CheckLink(name, e.Target) != nil {
			p.skip("left out: %s: a link that leads out, to %s", name, e.Target)
			return nil
		}
		return p.header(e)
	}
	p.skip("left out: %s: neither file nor folder", name)
	return nil
}

func (p *packer) folder(root *os.Root, at, name string) error {
	list, err := names(root, at)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	for _, n := range list {
		if strings.HasPrefix(n, stagePrefix) {
			continue // a half of somebody else's tree
		}
		err := p.walk(root, path.Join(at, n), name+"/"+n)
		if errors.Is(err, fs.ErrNotExist) {
			p.skip("left out: %s/%s: it has gone meanwhile", name, n)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) file(root *os.Root, at string, e *Entry, fi fs.FileInfo) error {
	f, err := root.OpenFile(at, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if !now.Mode().IsRegular() || !os.SameFile(fi, now) {
		return fmt.Errorf("pack %q: it was replaced meanwhile", at)
	}
	e.Kind, e.Size, e.ModTime = File, now.Size(), now.ModTime()
	if err := p.header(e); err != nil {
		return err
	}
	if n, err := io.Copy(io.MultiWriter(p.tar, p.sum), io.LimitReader(f, e.Size)); err != nil {
		return fmt.Errorf("pack %q: %w", at, err)
	} else if n != e.Size {
		return fmt.Errorf("pack %q: it has become shorter while it was read", at)
	}
	if now, err := f.Stat(); err == nil && (now.Size() != e.Size || !now.ModTime().Equal(e.ModTime)) {
		p.skip("%s has changed while it was read", e.Name)
	}
	return nil
}

func (p *packer) header(e *Entry) error {
	h := &tar.Header{Name: e.Name, Mode: int64(e.Mode), ModTime: e.ModTime, Size: e.Size, Linkname: e.Target, Format: tar.FormatPAX, Typeflag: tar.TypeReg}
	switch e.Kind {
	case Folder:
		h.Typeflag, h.Name = tar.TypeDir, e.Name+"/"
	case Link:
		h.Typeflag = tar.TypeSymlink
	}
	if p.s.count(e); p.s.entries() > MaxEntries {
		return fmt.Errorf("pack: more than %d entries", MaxEntries)
	}
	p.sum.entry(e)
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("pack %q: %w", e.Name, err)
	}
	return nil
}
