package submit

import "syscall"

// TempPrefix begins the names of files in the maildrop that are still being written.
const TempPrefix = ".tmp-"

// disk is what a maildrop is written with. Tests put a disk there whose power can be cut.
type disk interface {
	create(path string) (fd int, err error) // a new file with mode 0644
	write(fd int, b []byte) error
	read(fd int, b []byte, at int64) (int, error)
	fsync(fd int) error
	rename(from, to string) error
	syncfs(fd int) error // makes every name on the file system of fd durable
	unlink(path string) error
	close(fd int)
}

// kernel is the real disk.
type kernel struct{}

func (kernel) create(path string) (int, error) {
	fd, err := openFD(path, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return -1, err
	}
	// The daemon is another user: a strict umask must not keep it from reading.
	if err := syscall.Fchmod(fd, 0o644); err != nil {
		syscall.Close(fd)
		syscall.Unlink(path)
		return -1, err
	}
	return fd, nil
}

func (kernel) read(fd int, b []byte, at int64) (int, error) {
	for {
		n, err := syscall.Pread(fd, b, at)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

func (kernel) write(fd int, b []byte) error { return writeFD(fd, b) }
func (kernel) fsync(fd int) error           { return fsync(fd) }
func (kernel) rename(from, to string) error { return syscall.Rename(from, to) }
func (kernel) syncfs(fd int) error          { return syncfs(fd) }
func (kernel) unlink(path string) error     { return syscall.Unlink(path) }
func (kernel) close(fd int)                 { syscall.Close(fd) }

// dropFile is a frame on its way into the maildrop. Its order of writing is the promise of exit status 0:
// create, write, fsync the file, rename, sync the file system (an ordinary user cannot open the folder, hence not
// fsync it, but any descriptor on its file system will do).
type dropFile struct {
	disk      disk
	fd        int
	tmp, name string
	size      int64
}

func (n *Node) createDrop() (*dropFile, error) {
	var r [16]byte
	if err := random(r[:]); err != nil {
		return nil, err
	}
	name := string(appendBase32(nil, r[:]))
	f := &dropFile{disk: n.disk, tmp: n.Maildrop + "/" + TempPrefix + name, name: n.Maildrop + "/" + name}
	if f.disk == nil {
		f.disk = kernel{}
	}
	var err error
	if f.fd, err = f.disk.create(f.tmp); err != nil {
		return nil, dropFault("writing into the maildrop "+n.Maildrop, err)
	}
	return f, nil
}

// dropFault tells a full disk from a folder that is not there.
func dropFault(doing string, err error) *Fault {
	f := fault(ExCantCreat, doing+": "+err.Error())
	switch err {
	case syscall.ENOENT, syscall.EACCES, syscall.EPERM, syscall.ENOTDIR:
		f.Code = ExUnavailable
		f.Text = "no daemon answers, and " + doing + " failed: " + err.Error()
		f.Hint = "mochila serve"
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EFBIG:
		f.Code = ExIOErr
	}
	return f
}

func (f *dropFile) write(b []byte) error {
	if err := f.disk.write(f.fd, b); err != nil {
		return dropFault("writing "+f.tmp, err)
	}
	f.size += int64(len(b))
	return nil
}

// publish makes the finished frame durable and visible to the daemon.
func (f *dropFile) publish() error {
	if err := f.disk.fsync(f.fd); err != nil {
		f.remove()
		return dropFault("syncing "+f.tmp, err)
	}
	if err := f.disk.rename(f.tmp, f.name); err != nil {
		f.remove()
		return dropFault("renaming "+f.tmp, err)
	}
	f.tmp = f.name
	if err := f.disk.syncfs(f.fd); err != nil {
		// The name may not survive a power cut. If the daemon has it already, it is as durable as can be.
		if f.disk.unlink(f.name) == nil {
			f.tmp = ""
			f.remove()
			return dropFault("syncing the maildrop", err)
		}
	}
	f.tmp = ""
	f.remove()
	return nil
}

// remove drops the file unless it is published, and closes it. It may be called twice.
func (f *dropFile) remove() {
	if f.tmp != "" {
		f.disk.unlink(f.tmp)
		f.tmp = ""
	}
	if f.fd >= 0 {
		f.disk.close(f.fd)
		f.fd = -1
	}
}
