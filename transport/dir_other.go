//go:build unix && !linux

package transport

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// syncFS asks for everything to be written: this system cannot do it for one file system only.
func syncFS(*os.File) error { return unix.Sync() }

// freeSpace is not asked here; the write itself tells.
func freeSpace(*os.Root) (int64, error) { return 0, errors.ErrUnsupported }

// checkMount returns ErrAbsent when a mount point that must be mounted is not: it then lies on the same device as
// the directory above it.
func (d *Dir) checkMount() error {
	at := d.mount
	switch at {
	case "":
		return nil
	case mountNeeded:
		at = d.root
	}
	here, err1 := device(at)
	above, err2 := device(filepath.Dir(at))
	if err1 != nil || err2 != nil || here == above {
		return fmt.Errorf("%s is not mounted: %w", at, ErrAbsent)
	}
	return nil
}

func device(dir string) (uint64, error) {
	fi, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return uint64(st.Dev), nil
}
