package control

import (
	"fmt"
	"net"
	"os"
	"slices"
)

// inherited are sockets on which a service manager listens for this daemon (sd_listen_fds(3)). While the daemon is
// restarted they stay open, and clients wait in them instead of being refused.
type inherited []net.Listener

// inherit takes the sockets over; the files are closed.
func inherit(files []*os.File) (inherited, error) {
	var list inherited
	for _, f := range files {
		ln, err := net.FileListener(f)
		f.Close()
		if err != nil {
			list.close()
			return nil, &Error{Message: fmt.Sprintf("socket %s of the service manager: %v", f.Name(), err), Hint: "the daemon takes listening stream sockets", Exit: ExitConfig}
		}
		list = append(list, ln)
	}
	return list, nil
}

// take returns the socket that listens at an address of the configuration, nil if there is none.
func (l *inherited) take(network, addr string) net.Listener {
	i := slices.IndexFunc(*l, func(ln net.Listener) bool { return listensAt(ln.Addr(), network, addr) })
	if i < 0 {
		return nil
	}
	ln := (*l)[i]
	*l = slices.Delete(*l, i, i+1)
	return ln
}

// listen is net.Listen for TCP, unless the service manager listens there.
func (l *inherited) listen(addr string) (net.Listener, error) {
	if ln := l.take("tcp", addr); ln != nil {
		return ln, nil
	}
	return net.Listen("tcp", addr)
}

func (l inherited) close() {
	for _, ln := range l {
		ln.Close()
	}
}

// listensAt compares a socket's address with one of the configuration. All unspecified addresses are the same.
func listensAt(a net.Addr, network, addr string) bool {
	switch a := a.(type) {
	case *net.UnixAddr:
		return network == "unix" && a.Name == addr
	case *net.TCPAddr:
		want, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil || network != "tcp" || want.Port != a.Port {
			return false
		}
		everywhere := func(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }
		return want.IP.Equal(a.IP) || everywhere(want.IP) && everywhere(a.IP)
	}
	return false
}
