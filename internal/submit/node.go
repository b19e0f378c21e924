package submit

import "syscall"

// Node is where the mail of this call goes.
type Node struct {
	Socket   string // the submission socket of the daemon
	Maildrop string // the folder that the daemon empties
	disk     disk   // nil is the kernel's
	sock     socket // to the daemon, one at a time
	paths    [256]byte
	joined   int // bytes of paths
}

// join is a+b, in paths while that has room.
func (n *Node) join(a, b string) string {
	if len(a)+len(b) > len(n.paths)-n.joined {
		return a + b
	}
	p := append(append(n.paths[n.joined:n.joined], a...), b...)
	n.joined += len(p)
	return view(p)
}

// find decides which node is meant: home when given, else $MOCHILA_HOME, else the machine's when /etc/mochila
// exists or the caller is root, else the caller's own ~/.mochila.
func (n *Node) find(home string, getenv func(string) (string, bool)) *Fault {
	if home == "" {
		home, _ = getenv("MOCHILA_HOME")
	}
	if home == "" {
		var st syscall.Stat_t
		if syscall.Geteuid() == 0 || syscall.Stat("/etc/mochila", &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			n.Socket, n.Maildrop = "/run/mochila/submit.sock", "/var/spool/mochila/maildrop"
			return nil
		}
		dir, _ := getenv("HOME")
		if dir == "" {
			dir = lookupUser(syscall.Getuid()).home
		}
		if dir == "" {
			return &Fault{Code: ExConfig, Text: "cannot find a node: neither /etc/mochila nor a home directory exists", Hint: "mochila init NAME"}
		}
		home = dir + "/.mochila"
	}
	n.Socket = n.join(home, "/run/submit.sock")
	n.Maildrop = n.join(home, "/spool/maildrop")
	return nil
}

// DomainFile is the file in a maildrop in which the daemon leaves what sendmail must know without it: the domain for
// unqualified header addresses in the first line, the largest message in bytes in the second.
const DomainFile = "domain"

// settings reads the two lines of DomainFile into room. Everybody may write into the maildrop: only a file of its
// owner counts.
func (n *Node) settings(room []byte) (domain, size string) {
	var dir, st syscall.Stat_t
	file := n.join(n.Maildrop, "/"+DomainFile)
	if syscall.Lstat(n.Maildrop, &dir) != nil || syscall.Lstat(file, &st) != nil || st.Uid != dir.Uid || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return "", ""
	}
	k, err := readFile(file, room)
	if err != nil {
		return "", ""
	}
	domain, rest, _ := cut(view(room[:k]), '\n')
	size, _, _ = cut(rest, '\n')
	return trim(domain), trim(size)
}

// maxSize is the largest message that the daemon will take, 0 when unknown.
func (n *Node) maxSize() int64 {
	var room [512]byte
	_, s := n.settings(room[:])
	v, _ := atoi(s)
	return v
}

// appendDomain appends what unqualified addresses of this node's headers get: what DomainFile says, else the first
// line of /etc/mailname, else the host's name.
func (n *Node) appendDomain(b []byte) []byte {
	var room [512]byte
	if d, _ := n.settings(room[:]); validDomain(d) {
		return append(b, d...)
	}
	if k, err := readFile("/etc/mailname", room[:]); err == nil {
		if d, _, _ := cut(view(room[:k]), '\n'); validDomain(trim(d)) {
			return append(b, trim(d)...)
		}
	}
	if d := hostname(); validDomain(d) {
		return append(b, d...)
	}
	return append(b, "localhost"...)
}

func validDomain(d string) bool {
	if d == "" || len(d) > 255 {
		return false
	}
	for i := 0; i < len(d); i++ {
		c := lower(d[i])
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c >= 0x80) {
			return false
		}
	}
	return d[0] != '.' && d[len(d)-1] != '.'
}

// login is one line of passwd(5).
type login struct{ name, gecos, home string }

// lookupUser reads /etc/passwd itself. An unknown uid is an empty login.
func lookupUser(uid int) login {
	b, err := readAll("/etc/passwd", 4<<20)
	if err != nil {
		return login{}
	}
	want := itoa(uid)
	for len(b) > 0 {
		l := b
		if n := indexByte(b, '\n'); n >= 0 {
			l, b = b[:n], b[n+1:]
		} else {
			b = nil
		}
		var f [7]string
		rest := string(l)
		n := 0
		for more := true; more && n < len(f); n++ {
			f[n], rest, more = cut(rest, ':')
		}
		if n >= 6 && f[2] == want && f[0] != "" {
			return login{name: f[0], gecos: f[4], home: f[5]}
		}
	}
	return login{}
}

// fullName is the name in a gecos entry; "&" stands for the login name with a capital (finger(1)).
func (l login) fullName() string {
	g, _, _ := cut(l.gecos, ',')
	var b []byte
	for i := 0; i < len(g); i++ {
		switch {
		case g[i] == '&' && l.name != "":
			b = append(b, upper(l.name[:1])...)
			b = append(b, l.name[1:]...)
		case g[i] >= ' ' && g[i] != 0x7f:
			b = append(b, g[i])
		}
	}
	return trim(string(b))
}
