package control

import (
	"strings"
)

// byText is what helps where an error says so. The first that fits counts.
var byText = []struct{ schemes, text, hint string }{
	{"ssh sftp", "Host key verification failed", "the host's key is not the known one; if that is right: ssh-keygen -R HOST, then ssh HOST once by hand, both as the daemon's user"},
	{"ssh sftp", "Permission denied", "as the daemon's user, ssh must get in without a question: is the key in authorized_keys there, and identity= right?"},
	{"ssh sftp", "executable file not found", "apt install openssh-client"},
	{"ssh", "command not found", "mochila must be in the PATH there, or be forced by authorized_keys (docs/carriers.md)"},
	{"nncp", "executable file not found", "apt install nncp"},
	{"uucp", "executable file not found", "apt install uucp"},
	{"pipe", "does not speak mochila's link protocol", "what the command reaches must be: mochila receive --link"},
	{"pipe exec", "not found", "is the program installed, and in the PATH of the daemon?"},
	{"serial unix", "permission denied", "the daemon's user must be allowed to open it (a serial device: group dialout)"},
	{"dir", "permission denied", "the daemon's user must be allowed to write there"},
	{"dir", "not a directory", "a carrier dir: is a folder"},
	{"dir", "read-only file system", "what lies there is read; what is due waits for another carrier, or for a medium that can be written"},
	{"*", "no such host", "is the name right? This machine's resolver does not know it"},
}

// byScheme is what to look at when a carrier is broken and nothing says more.
var byScheme = map[string]string{
	"dir":    "is the folder there, and can the daemon's user use it?",
	"tcp":    "does mochila serve run there, with this port in [link] listen, and does no firewall stand between?",
	"ssh":    "try it by hand, as the daemon's user: ssh HOST mochila version",
	"sftp":   "try it by hand, as the daemon's user: sftp HOST",
	"unix":   "does the other node's daemon run? Its socket is run/link.sock in its home",
	"pipe":   "try the command by hand, as the daemon's user",
	"exec":   "try the command by hand, as the daemon's user, with a file as its input; status 0 means that it has it",
	"serial": "is the device plugged in, a serial one, and used by nobody else?",
	"s3":     "is endpoint= right, and does the store answer from here?",
	"dav":    "is the address right, and does the server answer from here?",
	"davs":   "is the address right, and does the server answer from here?",
	"rclone": "try it by hand, as the daemon's user: rclone lsd REMOTE:PATH",
	"nats":   "does a nats-server with JetStream run there (nats-server -js), and on this port?",
	"mail":   "does a mail server run there? sendmail=/PATH or smtp=HOST:PORT name another",
	"nncp":   "try it by hand, as the daemon's user: nncp-exec NODE HANDLE; cfg=/FILE is another configuration of NNCP",
	"uucp":   "uuname lists the sites that UUCP knows; config=/FILE is another configuration",
	"fspl":   "fspl queue-init -q QUEUE makes one; the daemon's user must be allowed to write there",
}

// carrierAdvice is what could help when the carrier of a URL does not work and does not know better itself.
func carrierAdvice(url, trouble string) string {
	scheme, _, _ := strings.Cut(url, ":")
	for _, a := range byText {
		if strings.Contains(trouble, a.text) && (a.schemes == "*" || strings.Contains(" "+a.schemes+" ", " "+scheme+" ")) {
			return a.hint
		}
	}
	return byScheme[scheme]
}
