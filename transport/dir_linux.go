package transport

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func syncFS(f *os.File) error { return unix.Syncfs(int(f.Fd())) }

// freeSpace is what an ordinary user may still write below r.
func freeSpace(r *os.Root) (int64, error) {
	f, err := openDir(r, ".")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// checkMount returns ErrAbsent when a mount point that must be mounted is not.
func (d *Dir) checkMount() error {
	switch d.mount {
	case mountNeeded:
		return mustBeMounted(d.root)
	case "":
		return d.askFstab()
	}
	return mustBeMounted(d.mount)
}

func mustBeMounted(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("%s is not there: %w", dir, ErrAbsent)
	}
	mounts, err := mountPoints("/proc/self/mountinfo", 4)
	if err != nil {
		return fmt.Errorf("read mount points: %w", err)
	}
	if !mounts[real] {
		return fmt.Errorf("%s is not mounted: %w", dir, ErrAbsent)
	}
	return nil
}

// askFstab demands that what /etc/fstab would mount at the root, or above it, is mounted.
func (d *Dir) askFstab() error {
	planned, err := mountPoints("/etc/fstab", 1)
	if err != nil {
		return nil // no fstab, no plan
	}
	for at := d.root; at != "/" && at != "."; at = filepath.Dir(at) {
		if planned[at] {
			return mustBeMounted(at)
		}
	}
	return nil
}

// mountPoints reads one column of a table in the style of fstab(5) or proc_pid_mountinfo(5).
func mountPoints(file string, column int) (map[string]bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	points := make(map[string]bool)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > column && !strings.HasPrefix(fields[0], "#") {
			points[unescapeMount(fields[column])] = true
		}
	}
	return points, lines.Err()
}

// unescapeMount undoes the octal escapes (\040 for a space) of these tables.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
