package peertest

import (
	"os"
	"path/filepath"
	"testing"
)

// OpenSMTPD is a running private instance of an OpenSMTPD that is only unpacked (.ci/peers).
type OpenSMTPD struct {
	*jail
	Addr string // HOST:PORT where it takes mail from this machine
}

// StartOpenSMTPD starts an instance with the given smtpd.conf; addr must be one of its listeners.
func StartOpenSMTPD(t testing.TB, addr, conf string) *OpenSMTPD {
	t.Helper()
	o := &OpenSMTPD{jail: newJail(t, "opensmtpd"), Addr: addr}
	o.file("/etc/smtpd.conf", conf)
	o.start("opensmtpd", "opensmtpd:902 opensmtpq:903", "bash", "-c",
		`mkdir -p /var/lib/opensmtpd/empty /var/spool/smtpd /run/opensmtpd; chmod 711 /var/spool/smtpd; mount -t tmpfs none /run && mkdir -p /run/opensmtpd; exec /usr/sbin/smtpd -d -f /etc/smtpd.conf`)
	o.await(addr)
	return o
}

// queueDir is its queue, seen from outside.
func (o *OpenSMTPD) queueDir() string { return filepath.Join(o.dir, "var", "spool", "smtpd") }

// Queue lists the files of its queue.
func (o *OpenSMTPD) Queue() []string {
	var names []string
	filepath.WalkDir(o.queueDir(), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, path)
		}
		return nil
	})
	return names
}
