package peertest

import (
	"os"
	"path/filepath"
	"testing"
)

// Exim is a running private instance of an Exim 4 that is only unpacked (.ci/peers).
type Exim struct {
	*jail
	Addr string // HOST:PORT where it takes mail from this machine
}

// StartExim starts an instance with the configuration that write makes; it gets the folder for spool and logs. Addr
// must be one of its daemon_smtp_ports.
func StartExim(t testing.TB, addr string, write func(dir string) string) *Exim {
	t.Helper()
	x := &Exim{jail: newJail(t, "exim4"), Addr: addr}
	data := filepath.Join(x.dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(data, EximUser, EximUser); err != nil {
		t.Fatal(err)
	}
	x.file("/etc/exim4/exim4.conf", write(data))
	x.start("exim4", "Debian-exim:901", "/usr/sbin/exim4", "-bdf", "-q15s")
	x.await(addr)
	return x
}

// EximUser is the number of Exim's user and group inside its name space.
const EximUser = 901

// Log is everything it has logged.
func (x *Exim) Log() string {
	all := x.jail.Log()
	for _, name := range []string{"mainlog", "paniclog", "rejectlog"} {
		if b, err := os.ReadFile(filepath.Join(x.dir, "data", name)); err == nil {
			all += name + ":\n" + string(b)
		}
	}
	return all
}
