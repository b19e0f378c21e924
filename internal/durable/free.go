package durable

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Free tells how many bytes an ordinary user may still write to the disk that holds path, and how many it has in all.
func Free(path string) (free, total int64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(path, &st)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking for the free space of %q: %w", path, err)
	}
	bs := int64(st.Bsize)
	return int64(st.Bavail) * bs, int64(st.Blocks) * bs, nil
}

// Birth identifies the file at path as one object on one disk: inode number and birth time in nanoseconds since 1970
// (0 where the file system does not record it). A copy of the file has another identity.
func Birth(path string) (inode uint64, birth int64, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err != nil {
		return 0, 0, fmt.Errorf("asking for the birth of %q: %w", path, err)
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return st.Ino, birth, nil
}
