package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// mta is a running contestant that takes mail by SMTP.
type mta struct {
	addr     string
	pid      int
	sendmail []string // its submission command
	stop     func() error
}

// starter starts a contestant below dir that takes mail at addr and hands everything to the SMTP server at next.
type starter func(ctx context.Context, b *bench, dir, addr, next string) (*mta, error)

// errMissing says that a contestant cannot take part on this machine.
var errMissing = errors.New("not here")

// freeAddr finds a loopback address that nobody uses.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// answers waits until an SMTP server greets.
func answers(ctx context.Context, addr string) error {
	for end := time.Now().Add(20 * time.Second); ; {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.SetDeadline(time.Now().Add(5 * time.Second))
			greeting := make([]byte, 3)
			c.Read(greeting)
			c.Write([]byte("QUIT\r\n"))
			c.Close()
			if string(greeting) == "220" {
				return nil
			}
			err = fmt.Errorf("it greets with %q", greeting)
		}
		if time.Now().After(end) {
			return fmt.Errorf("nobody answers at %s: %w", addr, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// command runs a program to its end; its output is part of the error.
func command(ctx context.Context, env []string, argv ...string) (string, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func (b *bench) mochila(home string, args ...string) error {
	_, err := command(b.ctx, nil, append([]string{filepath.Join(b.bin, "mochila"), "--home", home}, args...)...)
	return err
}

// serve starts the daemon of a home; its log goes to a file, as Postfix's does.
func (b *bench) serve(ctx context.Context, home, addr string) (*mta, error) {
	logFile, err := os.Create(home + ".log")
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	c := exec.Command(filepath.Join(b.bin, "mochila"), "--home", home, "serve")
	c.Stderr = logFile
	if err := c.Start(); err != nil {
		return nil, err
	}
	m := &mta{addr: addr, pid: c.Process.Pid, sendmail: []string{filepath.Join(b.bin, "sendmail"), "--home", home, "-i"}}
	m.stop = func() error {
		c.Process.Signal(syscall.SIGTERM)
		return c.Wait()
	}
	if err := answers(ctx, addr); err != nil {
		m.stop()
		return nil, fmt.Errorf("%w\n%s", err, tail(home+".log"))
	}
	return m, nil
}

// tail is the end of a log.
func tail(path string) string {
	b, _ := os.ReadFile(path)
	return string(b[max(0, len(b)-2000):])
}

// startMochila is a node that hands everything to next.
func startMochila(ctx context.Context, b *bench, dir, addr, next string) (*mta, error) {
	home := filepath.Join(dir, "node")
	if err := b.mochila(home, "init", "camp", "--domain", "camp.example", "--listen", addr, "--deliver", "smtp:"+next); err != nil {
		return nil, err
	}
	if err := replaceIn(filepath.Join(home, "mochila.toml"), `to = ["camp.example"]`, `to = ["*"]`); err != nil {
		return nil, err
	}
	return b.serve(ctx, home, addr)
}

// replaceIn changes a piece of text in a file, which must be there.
func replaceIn(path, old, new string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), old) {
		return fmt.Errorf("%s has no %q", path, old)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(text), old, new, 1)), 0o644)
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// startPostfix is a private Postfix with the defaults of the distribution, except for limits that would stop a
// benchmark: clients may open as many connections as they like.
func startPostfix(ctx context.Context, b *bench, dir, addr, next string) (*mta, error) {
	return postfix(ctx, dir, addr, next, "")
}

// startTunedPostfix neither slows its clients down nor starts with few connections to the next server.
func startTunedPostfix(ctx context.Context, b *bench, dir, addr, next string) (*mta, error) {
	return postfix(ctx, dir, addr, next, "in_flow_delay = 0\ndefault_destination_concurrency_limit = 50\ninitial_destination_concurrency = 50\n")
}

// postfixServices is a master.cf without chroot.
const postfixServices = `pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

func postfix(ctx context.Context, dir, addr, next, extra string) (*mta, error) {
	version, err := postfixVersion()
	if err != nil {
		return nil, err
	}
	u, err := user.Lookup("postfix")
	if err != nil {
		return nil, fmt.Errorf("peer Postfix %s: %w: %w", version, errMissing, err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	p := filepath.Join(dir, "postfix")
	for _, d := range []string{"", "conf", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(p, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chown(filepath.Join(p, "data"), uid, -1); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(next)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(p, "conf")
	main := fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
multi_instance_enable = yes
myhostname = camp.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [%[2]s]:%[3]s
alias_maps =
alias_database =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
smtpd_tls_security_level = none
smtp_tls_security_level = none
message_size_limit = 0
mailbox_size_limit = 0
%[4]s`, p, host, port, extra)
	if err := os.WriteFile(filepath.Join(conf, "main.cf"), []byte(main), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(conf, "master.cf"), []byte(addr+" inet n - n - - smtpd\n"+postfixServices), 0o644); err != nil {
		return nil, err
	}
	if _, err := command(ctx, nil, tool("postfix"), "-c", conf, "start"); err != nil {
		return nil, err
	}
	m := &mta{addr: addr, sendmail: []string{tool("sendmail"), "-C", conf, "-i"}}
	m.stop = func() error {
		_, err := command(context.Background(), nil, tool("postfix"), "-c", conf, "stop")
		return err
	}
	if err := answers(ctx, addr); err != nil {
		m.stop()
		return nil, fmt.Errorf("%w\n%s", err, tail(filepath.Join(p, "log")))
	}
	pid, err := os.ReadFile(filepath.Join(p, "queue/pid/master.pid"))
	if err == nil {
		m.pid, err = strconv.Atoi(strings.TrimSpace(string(pid)))
	}
	if err != nil {
		m.stop()
		return nil, err
	}
	return m, nil
}

// postfixVersion is an error that wraps errMissing where no private Postfix can run.
func postfixVersion() (string, error) {
	out, err := exec.Command(tool("postconf"), "-d", "-h", "mail_version").Output()
	if err != nil {
		return "", fmt.Errorf("peer Postfix: %w: %w", errMissing, err)
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("peer Postfix: %w: only root can start it", errMissing)
	}
	return strings.TrimSpace(string(out)), nil
}

// tool finds a program of Postfix where PATH has no sbin.
func tool(name string) string {
	if st, err := os.Stat("/usr/sbin/" + name); err == nil && st.Mode().IsRegular() {
		return "/usr/sbin/" + name
	}
	return name
}

// missing reports whether a contestant stays away, and says so once.
func (b *bench) missing(name string, err error) bool {
	if !errors.Is(err, errMissing) {
		return false
	}
	if !b.skipped[name] {
		b.skipped[name] = true
		log.Printf("SKIPPED %s: %v", name, err)
	}
	return true
}

// startTrue is the floor of what a process costs.
func startTrue(context.Context, *bench, string, string, string) (*mta, error) {
	return &mta{sendmail: []string{"/bin/true"}, stop: func() error { return nil }}, nil
}

// startNoDaemon is a node whose daemon does not run: its sendmail fills the maildrop.
func startNoDaemon(_ context.Context, b *bench, dir, _, next string) (*mta, error) {
	home := filepath.Join(dir, "node")
	err := b.mochila(home, "init", "camp", "--domain", "camp.example", "--deliver", "smtp:"+next)
	return &mta{sendmail: []string{filepath.Join(b.bin, "sendmail"), "--home", home, "-i"}, stop: func() error { return nil }}, err
}
