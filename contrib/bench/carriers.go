package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/net/webdav"
)

// carrier is one way between two nodes of this machine.
type carrier struct {
	name string
	live bool // hub's daemon answers; else camp writes, then hub reads
	// start sets it up in dir and returns camp's URL and, for one that is not live, hub's.
	start func(b *bench, dir string, p *pair) (camp, hub string, stop func(), err error)
}

var carriers = []carrier{
	{"dir", false, carrierDir}, {"tcp", true, carrierTCP}, {"unix", true, carrierUnix}, {"pipe", true, carrierPipe}, {"ssh", true, carrierSSH}, {"sftp", false, carrierSFTP},
	{"s3", false, carrierS3}, {"dav", false, carrierDAV}, {"nats", false, carrierNATS}, {"rclone", false, carrierRclone},
	{"exec", true, carrierExec}, {"fspl", false, carrierFspl},
}

// carriers measures what a carrier makes of small mails that wait: from the start of a contact at camp to the last one in
// a Maildir at hub, and the bytes that camp gave to the carrier.
func (b *bench) carriers() error {
	n := b.scaled(1000)
	mails := b.text.mailbox(n)
	for range b.reps {
		for _, c := range carriers {
			if !b.cases.MatchString("carrier." + c.name) {
				continue
			}
			dir, err := b.dir()
			if err != nil {
				return err
			}
			if err := b.carrierOnce(c, dir, mails); err != nil && !b.missing(c.name, err) {
				b.failed(c.name, dir, err)
			}
			os.RemoveAll(dir)
		}
	}
	b.fig.show("carrier.")
	return nil
}

func (b *bench) carrierOnce(c carrier, dir string, mails [][]byte) error {
	maildir := filepath.Join(dir, "mail")
	p, err := b.newPair(dir, "maildir:"+maildir+"/%u")
	if err != nil {
		return err
	}
	if err := os.RemoveAll(p.stick); err != nil { // nothing leaves before the contact
		return err
	}
	camp, err := b.serve(b.ctx, p.camp, p.campAddr)
	if err != nil {
		return err
	}
	_, err = load(b.ctx, p.campAddr, 10, len(mails), mails, 1)
	if err := errors.Join(err, camp.stop()); err != nil {
		return err
	}
	campURL, hubURL, stop, err := c.start(b, dir, p)
	if err != nil {
		return err
	}
	defer stop()
	old, at := fmt.Sprintf("carrier = %q", "dir:"+p.stick), `when = "on-call"`
	if !c.live {
		at = fmt.Sprintf("carrier = %q", hubURL)
	}
	if err := errors.Join(replaceIn(p.campPeering, old, fmt.Sprintf("carrier = %q", campURL)), replaceIn(p.hubPeering, old, at)); err != nil {
		return err
	}
	if c.live {
		hub, err := b.serve(b.ctx, p.hub, p.hubAddr)
		if err != nil {
			return err
		}
		defer hub.stop()
	}
	began := time.Now()
	bytes, err := b.syncBytes(p.camp, "hub")
	if err == nil && !c.live {
		_, err = b.syncBytes(p.hub, "camp")
	}
	for err == nil && delivered(maildir, len(mails)) != nil {
		if time.Since(began) > 5*time.Minute {
			err = delivered(maildir, len(mails))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	b.fig.add("carrier."+c.name+".msgs_per_s", float64(len(mails))/time.Since(began).Seconds())
	b.fig.add("carrier."+c.name+".bytes_per_msg", float64(bytes)/float64(len(mails)))
	return nil
}

// syncBytes makes a contact and returns how many bytes left.
func (b *bench) syncBytes(home, node string) (n int64, err error) {
	out, err := command(b.ctx, nil, filepath.Join(b.bin, "mochila"), "--home", home, "sync", "--json", node)
	for line := range strings.Lines(out) {
		var l struct {
			Progress bool
			Out      int64 `json:"bytes_out"`
		}
		if json.Unmarshal([]byte(line), &l) == nil && !l.Progress {
			n += l.Out
		}
	}
	return n, err
}

func nothing() {}

func carrierDir(_ *bench, dir string, _ *pair) (string, string, func(), error) {
	at := filepath.Join(dir, "shared")
	return "dir:" + at, "dir:" + at, nothing, os.Mkdir(at, 0o755)
}

func carrierTCP(_ *bench, _ string, p *pair) (string, string, func(), error) {
	addr, err := freeAddr()
	if err == nil {
		err = appendTo(p.hubConfig, fmt.Sprintf("\n[link]\nlisten = [%q]\n", addr))
	}
	return "tcp:" + addr, "", nothing, err
}

func carrierUnix(_ *bench, _ string, p *pair) (string, string, func(), error) {
	return "unix:" + filepath.Join(p.hub, "run/link.sock"), "", nothing, nil
}

func carrierPipe(b *bench, _ string, p *pair) (string, string, func(), error) {
	return "pipe:" + filepath.Join(b.bin, "mochila") + " --home " + p.hub + " receive --link", "", nothing, nil
}

func carrierExec(b *bench, _ string, p *pair) (string, string, func(), error) {
	return "exec:" + filepath.Join(b.bin, "mochila") + " --home " + p.hub + " receive", "", nothing, nil
}

func carrierFspl(b *bench, dir string, _ *pair) (string, string, func(), error) {
	if _, err := exec.LookPath("fspl"); err != nil {
		return "", "", nothing, fmt.Errorf("fspl: %w: %w", errMissing, err)
	}
	there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
	for _, queue := range []string{there, back} {
		if _, err := command(b.ctx, nil, "fspl", "queue-init", "-q", queue); err != nil {
			return "", "", nothing, err
		}
	}
	return "fspl:" + there + "?in=" + back, "fspl:" + back + "?in=" + there, nothing, nil
}

func carrierSSH(b *bench, dir string, p *pair) (string, string, func(), error) {
	host, stop, err := b.sshd(dir, filepath.Join(b.bin, "mochila")+" --home "+p.hub+" receive --link")
	return "ssh:" + host + "?config=" + filepath.Join(dir, "ssh/client"), "", stop, err
}

func carrierSFTP(b *bench, dir string, _ *pair) (string, string, func(), error) {
	host, stop, err := b.sshd(dir, "")
	at := filepath.Join(dir, "drop")
	if err == nil {
		err = os.Mkdir(at, 0o755)
	}
	url := "sftp:" + host + at + "?config=" + filepath.Join(dir, "ssh/client")
	return url, url, stop, err
}

// sshd starts a private server whose one key may run only this command, or anything.
func (b *bench) sshd(dir, forced string) (host string, stop func(), err error) {
	dir = filepath.Join(dir, "ssh")
	program, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		return "", nothing, fmt.Errorf("sshd: %w: %w", errMissing, err)
	}
	me, err := user.Current()
	if err != nil {
		return "", nothing, err
	}
	addr, err := freeAddr()
	if err != nil {
		return "", nothing, err
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.MkdirAll("/run/sshd", 0o755)); err != nil {
		return "", nothing, err
	}
	for _, key := range []string{"host", "key"} {
		if _, err := command(b.ctx, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)); err != nil {
			return "", nothing, err
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		return "", nothing, err
	}
	grant := ""
	if forced != "" {
		grant = fmt.Sprintf("restrict,command=%q ", forced)
	}
	_, port, _ := strings.Cut(addr, ":")
	for name, text := range map[string]string{
		"authorized_keys": grant + string(public),
		"client":          fmt.Sprintf("Host *\nIdentityFile %s/key\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n", dir),
		"sshd": fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
			port, dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", nothing, err
		}
	}
	c := exec.Command(program, "-D", "-f", filepath.Join(dir, "sshd"))
	if err := c.Start(); err != nil {
		return "", nothing, err
	}
	stop = func() { c.Process.Kill(); c.Wait() }
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		} else if time.Since(began) > time.Minute {
			stop()
			return "", nothing, err
		}
	}
	return me.Username + "@" + addr, stop, nil
}

// secret writes a file that only its owner can read.
func secret(dir, text string) (string, error) {
	file := filepath.Join(dir, "secret")
	return file, os.WriteFile(file, []byte(text), 0o600)
}

func carrierS3(_ *bench, dir string, _ *pair) (string, string, func(), error) {
	store := s3mem.New()
	s := httptest.NewServer(gofakes3.New(store).Server())
	keys, err := secret(dir, "[default]\naws_access_key_id = bench\naws_secret_access_key = bench\n")
	url := "s3:sites?endpoint=" + s.URL + "&credentials=" + keys
	return url, url, s.Close, errors.Join(err, store.CreateBucket("sites"))
}

func carrierDAV(_ *bench, dir string, _ *pair) (string, string, func(), error) {
	at := filepath.Join(dir, "shared")
	s := httptest.NewServer(&webdav.Handler{FileSystem: webdav.Dir(at), LockSystem: webdav.NewMemLS()})
	url := "dav:" + strings.TrimPrefix(s.URL, "http://")
	return url, url, func() { s.CloseClientConnections(); s.Close() }, os.Mkdir(at, 0o755)
}

func carrierNATS(_ *bench, dir string, _ *pair) (string, string, func(), error) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: filepath.Join(dir, "nats"), NoSigs: true, NoLog: true})
	if err != nil {
		return "", "", nothing, err
	}
	go s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return "", "", s.Shutdown, errors.New("nats-server does not start")
	}
	url := "nats:" + s.Addr().String() + "/mochila"
	return url, url, func() { s.Shutdown(); s.WaitForShutdown() }, nil
}

func carrierRclone(_ *bench, dir string, _ *pair) (string, string, func(), error) {
	if _, err := exec.LookPath("rclone"); err != nil {
		return "", "", nothing, fmt.Errorf("rclone: %w: %w", errMissing, err)
	}
	at := filepath.Join(dir, "shared")
	conf := filepath.Join(dir, "rclone.conf")
	url := "rclone:plain:?config=" + conf
	return url, url, nothing, errors.Join(os.Mkdir(at, 0o755), os.WriteFile(conf, []byte("[plain]\ntype = alias\nremote = "+at+"\n"), 0o600))
}

// carrierTable is the figures of the carriers side by side.
func (b *bench) carrierTable() string {
	var s strings.Builder
	s.WriteString("| carrier | small mails a second | bytes for each |\n|---|---|---|\n")
	lines := 0
	for _, c := range carriers {
		rate, ok := b.fig.get("carrier." + c.name + ".msgs_per_s")
		if !ok {
			continue
		}
		size, _ := b.fig.get("carrier." + c.name + ".bytes_per_msg")
		fmt.Fprintf(&s, "| `%s:` | %s | %s |\n", c.name, number(rate), number(size))
		lines++
	}
	if lines == 0 {
		return ""
	}
	return s.String()
}
