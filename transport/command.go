package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command is a Dialer whose stream is the standard input and output of a program: ssh, socat, a modem helper. What
// the program writes to standard error becomes part of the error when the contact fails.
type Command struct {
	name string // for messages: the carrier URL
	argv []string
}

// NewCommand returns the Dialer that runs argv. name stands for it in messages.
func NewCommand(name string, argv ...string) *Command { return &Command{name: name, argv: argv} }

// String is the carrier URL.
func (c *Command) String() string { return c.name }

// killAfter is how long a program may go on after its standard input was closed.
const killAfter = 3 * time.Second

// Dial starts the program. One that cannot be started is ErrAbsent.
func (c *Command) Dial(ctx context.Context) (Stream, error) {
	toR, toW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", c.argv[0], err)
	}
	fromR, fromW, err := os.Pipe()
	if err != nil {
		toR.Close()
		toW.Close()
		return nil, fmt.Errorf("run %s: %w", c.argv[0], err)
	}
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	words := &lastWords{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = toR, fromW, words
	cmd.SysProcAttr = ownGroup()
	err = cmd.Start()
	toR.Close()
	fromW.Close()
	if err != nil {
		toW.Close()
		fromR.Close()
		return nil, fmt.Errorf("%w: run %s: %w", ErrAbsent, c.argv[0], err)
	}
	s := &commandStream{r: fromR, w: toW, cmd: cmd, words: words, name: c.argv[0], exited: make(chan struct{})}
	go s.wait()
	return s, nil
}

// commandStream is a running program.
type commandStream struct {
	r, w   *os.File
	cmd    *exec.Cmd
	words  *lastWords
	name   string
	exited chan struct{} // closed when the program is reaped
	err    error         // of Wait; read after exited
	once   sync.Once
}

func (s *commandStream) wait() {
	s.err = s.cmd.Wait()
	close(s.exited)
}

// Read tells, at the end of a program that failed, in which words.
func (s *commandStream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err == nil || n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	select {
	case <-s.exited:
	case <-time.After(killAfter):
		return n, err // it closed its output and runs on
	}
	if s.err == nil {
		return n, err
	}
	if w := s.words.String(); w != "" {
		err := fmt.Errorf("%s: %s (%w)", s.name, w, s.err)
		if s.name == "ssh" && s.cmd.ProcessState.ExitCode() == 255 {
			return n, sshTrouble(w, err)
		}
		return n, err
	}
	return n, fmt.Errorf("%s: %w", s.name, s.err)
}

func (s *commandStream) Write(p []byte) (int, error) { return s.w.Write(p) }

func (s *commandStream) SetReadDeadline(t time.Time) error { return s.r.SetReadDeadline(t) }

func (s *commandStream) SetWriteDeadline(t time.Time) error { return s.w.SetWriteDeadline(t) }

// Close ends both directions and waits for the program, which is killed with its process group if it does not end.
func (s *commandStream) Close() error {
	s.once.Do(func() {
		s.w.Close()
		s.r.Close()
		select {
		case <-s.exited:
			return
		case <-time.After(killAfter):
		}
		syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.exited
	})
	return nil
}

// lastWords keeps the end of what a program says on standard error, as one line.
type lastWords struct {
	mu  sync.Mutex
	buf []byte
}

const maxWords = 400

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if n := len(l.buf) - maxWords; n > 0 {
		l.buf = append(l.buf[:0], l.buf[n:]...)
	}
	return len(p), nil
}

// String is the last words with controls made spaces.
func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(strings.FieldsFunc(string(l.buf), func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
}

// parsePipe reads pipe:COMMAND. The command is the operator's own and goes to the shell, as in an inetd or UUCP port.
func parsePipe(rest string, _ url.Values) (Carrier, error) {
	if strings.TrimSpace(rest) == "" {
		return Carrier{}, withHint(errors.New("no command"), "as in pipe:socat - TCP:hub:2424")
	}
	return Carrier{Dialer: NewCommand("pipe:"+rest, "/bin/sh", "-c", "exec "+rest)}, nil
}

// parseSSH reads ssh:[USER@]HOST[:PORT]. The system's ssh is run, so that the user's configuration, agent and hardware
// keys count; the other side's authorized_keys may force the command.
func parseSSH(rest string, opts url.Values) (Carrier, error) {
	argv, err := SSHCommand(rest, opts)
	if err != nil {
		return Carrier{}, err
	}
	remote := "mochila receive --link"
	if home := take(opts, "home"); home != "" {
		if strings.ContainsFunc(strings.ReplaceAll(home, "/", ""), badForShell) {
			return Carrier{}, fmt.Errorf("home %q has characters that a shell would read", home)
		}
		remote = "mochila --home " + home + " receive --link"
	}
	return Carrier{Dialer: NewCommand("ssh:"+rest, append(argv, remote)...)}, nil
}

func badForShell(r rune) bool {
	return r <= ' ' || r == 0x7f || strings.ContainsRune("'\"\\$`;&|<>()/", r)
}

// SSHCommand is the command line of the system's ssh for [USER@]HOST[:PORT] and the options identity and config, which it
// takes out of opts, up to and without the command to run there. flags are added to those of ssh. It asks no questions.
func SSHCommand(rest string, opts url.Values, flags ...string) ([]string, error) {
	host, port := rest, ""
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.HasSuffix(rest, "]") {
		host, port = rest[:i], rest[i+1:]
	}
	host = strings.NewReplacer("[", "", "]", "").Replace(host)
	if host == "" || host[0] == '-' || strings.ContainsFunc(host, badForShell) || strings.HasPrefix(host[strings.IndexByte(host, '@')+1:], "-") {
		return nil, withHint(fmt.Errorf("%q is not [USER@]HOST[:PORT]", rest), "as in ssh:mochila@hub.example")
	}
	argv := append([]string{"ssh", "-T", "-oBatchMode=yes", "-oServerAliveInterval=30"}, flags...)
	if port != "" {
		if _, err := net.LookupPort("tcp", port); err != nil {
			return nil, fmt.Errorf("%q is not a port", port)
		}
		argv = append(argv, "-p", port)
	}
	if id := take(opts, "identity"); id != "" {
		argv = append(argv, "-oIdentitiesOnly=yes", "-i", id)
	}
	if file := take(opts, "config"); file != "" {
		argv = append(argv, "-F", file)
	}
	return append(argv, "--", host), nil
}

// sshTrouble says what the last words of ssh mean, when it was ssh that failed and not the command at the other side.
func sshTrouble(words string, err error) error {
	says := func(s ...string) bool {
		return slices.ContainsFunc(s, func(x string) bool { return strings.Contains(words, x) })
	}
	switch {
	case says("REMOTE HOST IDENTIFICATION HAS CHANGED"):
		return withHint(err, "the host has another key than before: ask its administrator, then ssh-keygen -R HOST")
	case says("Host key verification failed"):
		return withHint(err, "this machine does not know the host's key: ssh there once as the daemon's user and compare the fingerprint")
	case says("Permission denied"):
		return withHint(err, "the daemon's user needs a key without a passphrase, or an agent, that authorized_keys there has")
	case says("subsystem request failed"):
		return withHint(err, "sshd there has no sftp: Subsystem sftp internal-sftp")
	case says("Could not resolve", "Connection refused", "Connection timed out", "No route to host", "Network is unreachable", "Connection reset"):
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return err
}

// Unix is a Dialer for a unix socket.
type Unix struct{ path string }

// Dial implements Dialer. Whatever keeps it from connecting is ErrAbsent.
func (u *Unix) Dial(ctx context.Context) (Stream, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", u.path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return conn, nil
}

// NewUnix returns the Dialer for the socket at path.
func NewUnix(path string) *Unix { return &Unix{path: path} }

// String is the carrier URL.
func (u *Unix) String() string { return "unix:" + u.path }

func parseUnix(rest string, _ url.Values) (Carrier, error) {
	if !strings.HasPrefix(rest, "/") {
		return Carrier{}, withHint(fmt.Errorf("%q is not an absolute path", rest), "as in unix:/run/mochila/link.sock")
	}
	return Carrier{Dialer: NewUnix(rest)}, nil
}

// Stdio joins two files, a program's own standard input and output, to a Stream. Deadlines work where the files are
// pipes, sockets or terminals.
type Stdio struct {
	In, Out *os.File
}

// Read reads from In.
func (s Stdio) Read(p []byte) (int, error) { return s.In.Read(p) }

// Write writes to Out.
func (s Stdio) Write(p []byte) (int, error) { return s.Out.Write(p) }

// Close closes both.
func (s Stdio) Close() error { return errors.Join(s.In.Close(), s.Out.Close()) }

// SetReadDeadline is that of In; a file without deadlines is success.
func (s Stdio) SetReadDeadline(t time.Time) error { return noDeadline(s.In.SetReadDeadline(t)) }

// SetWriteDeadline is that of Out; a file without deadlines is success.
func (s Stdio) SetWriteDeadline(t time.Time) error { return noDeadline(s.Out.SetWriteDeadline(t)) }

func noDeadline(err error) error {
	if errors.Is(err, os.ErrNoDeadline) {
		return nil
	}
	return err
}
