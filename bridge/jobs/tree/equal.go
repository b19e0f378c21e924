package tree

import (
	"bytes"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// names lists a folder in ascending order.
func names(root *os.Root, dir string) ([]string, error) {
	d, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	list, err := d.Readdirnames(-1)
	slices.Sort(list)
	return list, err
}

// equalFiles compares contents. What cannot be read at b is another content.
func equalFiles(a, b *os.Root, x, y string) (bool, error) {
	fa, err := a.Open(x)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := b.OpenFile(y, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, nil
	}
	defer fb.Close()
	pa, pb := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(fa, pa)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return false, err
		}
		m, _ := io.ReadFull(fb, pb)
		if !bytes.Equal(pa[:n], pb[:m]) {
			return false, nil
		}
		if n < len(pa) {
			return true, nil
		}
	}
}
