package builtin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"mochila/bridge/jobs/tree"
)

// get writes what the patterns match as a tree to standard output.
func (s Settings) get(args []string, p *Process) error {
	var sources []tree.Source
	roots := map[string]*os.Root{}
	defer func() {
		for _, r := range roots {
			r.Close()
		}
	}()
	for _, a := range args {
		folder, rel, err := s.locate(a)
		if err != nil {
			return err
		}
		if roots[folder] == nil {
			root, err := s.open(folder)
			if err != nil {
				return err
			}
			roots[folder] = root
		}
		found, err := match(roots[folder], rel, a)
		if err != nil {
			return err
		}
		for _, at := range found {
			name := path.Base(at)
			if name == "." {
				name = path.Base(folder)
			}
			real, err := follow(roots[folder], at)
			if err != nil {
				return err
			}
			sources = append(sources, tree.Source{Root: roots[folder], Path: real, Name: name})
		}
		if len(sources) > maxMatches {
			return failure(nil, exitData, "more than %d files and folders match", maxMatches)
		}
	}
	out := &capped{w: p.Out, left: s.Output}
	buf := bufio.NewWriterSize(out, 256<<10)
	_, err := tree.Pack(buf, sources, func(text string) { fmt.Fprintf(p.Err, "%q\n", text) })
	if err == nil {
		err = buf.Flush()
	}
	if out.full {
		return failure(nil, exitData, "it is more than the %d bytes that this handler gives (output)", s.Output)
	}
	return err
}

// match finds what a pattern means.
func match(root *os.Root, pattern, asked string) ([]string, error) {
	if !strings.ContainsAny(pattern, `*?[\`) {
		if _, err := root.Stat(pattern); err != nil {
			return nil, missing(asked, err)
		}
		return []string{pattern}, nil
	}
	found, err := fs.Glob(root.FS(), pattern)
	if err != nil {
		return nil, failure(err, 64, "%q: %v", asked, err)
	}
	if len(found) == 0 {
		// a name that only looks like a pattern
		if _, err := root.Stat(pattern); err == nil {
			return []string{pattern}, nil
		}
		return nil, failure(fs.ErrNotExist, exitNoInput, "nothing matches %q", asked)
	}
	return found, nil
}

func missing(asked string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failure(err, exitNoInput, "there is no %q", asked)
	case errors.Is(err, fs.ErrPermission):
		return failure(err, exitDenied, "%q may not be read", asked)
	}
	return failure(err, exitNoInput, "%q: %v", asked, err)
}

// follow resolves a link that was asked for by name, as long as it stays in the folder.
func follow(root *os.Root, at string) (string, error) {
	for range 20 {
		fi, err := root.Lstat(at)
		if err != nil {
			return "", missing(at, err)
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			return at, nil
		}
		to, err := root.Readlink(at)
		if err != nil {
			return "", missing(at, err)
		}
		if path.IsAbs(to) {
			break
		}
		at = path.Join(path.Dir(at), to)
	}
	return "", failure(fs.ErrPermission, exitDenied, "%q is a link that leads out", at)
}

// capped fails at the first byte too many; left 0 is no limit.
type capped struct {
	w    io.Writer
	left int64
	any  bool
	full bool
}

var errFull = errors.New("too much output")

// Write passes b on while all of it fits below the cap.
func (c *capped) Write(b []byte) (int, error) {
	if !c.any {
		c.any = true
		if c.left <= 0 {
			c.left = 1<<63 - 1
		}
	}
	if int64(len(b)) > c.left {
		c.full = true
		return 0, errFull
	}
	c.left -= int64(len(b))
	return c.w.Write(b)
}
