package control

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is the TLS certificate of the listeners. It follows its files: whoever renews the certificate need not
// tell the daemon.
type certificate struct {
	cert, key string // files
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	stamp  [2]time.Time // of the files that loaded came from
	looked time.Time
}

// certificateEvery is how often the files are looked at, when somebody connects.
const certificateEvery = 10 * time.Second

func newCertificate(cert, key string, log *slog.Logger) (*certificate, error) {
	c := &certificate{cert: cert, key: key, log: log}
	return c, c.load(time.Now())
}

// load reads the files. When they are no good, the old certificate stays in use.
func (c *certificate) load(now time.Time) error {
	stamp := c.stamps()
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	c.looked = now
	if err != nil {
		return fmt.Errorf("[smtp] tls_cert: %w", err)
	}
	c.loaded, c.stamp = &pair, stamp
	return nil
}

func (c *certificate) stamps() (t [2]time.Time) {
	for i, name := range []string{c.cert, c.key} {
		if fi, err := os.Stat(name); err == nil {
			t[i] = fi.ModTime()
		}
	}
	return t
}

// get is tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) >= certificateEvery {
		c.refresh(now)
	}
	return c.loaded, nil
}

// refresh reads the files if they have changed.
func (c *certificate) refresh(now time.Time) {
	c.looked = now
	if c.stamps() == c.stamp {
		return
	}
	if err := c.load(now); err != nil {
		c.log.Error("the new certificate cannot be used, the old one stays: " + err.Error())
		return
	}
	c.log.Info("certificate read again")
}

// reload is refresh for somebody who says that the files have changed.
func (c *certificate) reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh(time.Now())
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}
}
