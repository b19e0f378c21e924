package account

import (
	"os"
	"path/filepath"
	"syscall"
)

// giveToOwner gives the file that root has written to the owner of its folder: the daemon, which runs without root,
// must read it.
func giveToOwner(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	fi, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return os.Chown(path, int(st.Uid), int(st.Gid))
}
