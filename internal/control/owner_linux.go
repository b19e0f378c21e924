package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"mochila/internal/config"
	"mochila/internal/passwd"
)

// DaemonUser is whom the machine's node belongs to, where such a user exists.
const DaemonUser = "mochila"

// becomeOwner makes root go on as the user whose node this is, for the rest of the process: whatever a command writes
// must be the daemon's. A node that belongs to root stays root's.
func becomeOwner(home config.Home) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st syscall.Stat_t
	if err := syscall.Stat(home.IdentityDir, &st); err != nil || st.Uid == 0 {
		return nil // none yet, or root's
	}
	u, err := passwd.LookupID(strconv.Itoa(int(st.Uid)))
	if err != nil {
		return fmt.Errorf("become the user of the node at %q: %w", home.IdentityDir, err)
	}
	groups := []int{int(st.Gid)}
	if ids, err := passwd.GroupIDs(u); err == nil {
		groups = groups[:0]
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil {
				groups = append(groups, n)
			}
		}
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		gid = int(st.Gid)
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("become user %q: %w", u.Username, err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("become user %q: %w", u.Username, err)
	}
	if err := syscall.Setresuid(int(st.Uid), int(st.Uid), int(st.Uid)); err != nil {
		return fmt.Errorf("become user %q: %w", u.Username, err)
	}
	// ssh and other programs look there
	return os.Setenv("HOME", u.HomeDir)
}

// giveToDaemon gives a new node of the machine to the user mochila. Without such a user it stays root's.
func giveToDaemon(home config.Home) error {
	if !home.System || os.Geteuid() != 0 {
		return nil
	}
	u, err := passwd.Lookup(DaemonUser)
	if err != nil {
		return nil
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("look up user %q: %w", DaemonUser, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("look up user %q: %w", DaemonUser, err)
	}
	for _, dir := range []string{home.Base, home.IdentityDir, home.PeersDir, home.SpoolDir, home.RunDir} {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, uid, gid)
		})
		if err != nil {
			return fmt.Errorf("give the node to user %q: %w", DaemonUser, err)
		}
	}
	return nil
}
